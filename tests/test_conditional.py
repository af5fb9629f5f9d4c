"""Conditional sampling: exact posteriors, guidance sample by sample, the repaired and the broken methods
against closed forms, classes, bad input.
"""
import math

import pytest
import torch
from torch import nn

from machines import BAD_STREAMS, normal, seeded
from rbmdiff.diffusion.conditional import (
    Measurement,
    blur_rows,
    classifier_free,
    classifier_guided,
    dps,
    exact_score,
    guided,
    log_evidence,
    mean_rows,
    pixel_rows,
    posterior,
    repaint,
    twisted_smc,
)
from rbmdiff.diffusion.deis import deis
from rbmdiff.diffusion.networks import MLP, Preconditioned, as_eps
from rbmdiff.diffusion.oracle import Mixture, gaussian
from rbmdiff.diffusion.schedule import FlowMatching, Geometric, LinearBeta, SubVP, time_grid
from rbmdiff.diffusion.solvers import ancestral, ddim, euler_maruyama, heun, prior_sample
from rbmdiff.foundations.core import Estimate, LogZ, systematic

f32, f64 = torch.float32, torch.float64
METHODS = "dps", "pigdm", "tmpd"
VP = LinearBeta()
GRID = time_grid(VP, 20, kind="log_snr")


def mixture(K=3, D=4, seed=0, dtype=f64):
    """A mixture with full covariances."""
    roots = normal(K, D, D, seed=seed + 1) / 2
    covariances = roots @ roots.mT + 0.2 * torch.eye(D, dtype=f64)
    weights = normal(K, seed=seed + 2).exp()
    return Mixture(weights.to(dtype), 1.5 * normal(K, D, seed=seed, dtype=dtype), covariances.to(dtype))


def covariances(m):
    return m.axes @ torch.diag_embed(m.variances) @ m.axes.mT


A, Y = normal(2, 4, seed=5), normal(2, seed=6)
M = Measurement(A, Y, 0.3)


# The posterior

@pytest.mark.parametrize("K", [1, 3])
def test_posterior_is_bayes_rule_at_any_point(K):
    prior = mixture(K)
    x = normal(50, 4, seed=7)
    for sigma_y in (0.1, 1.0):
        given = posterior(prior, A, Y, sigma_y)
        seen = torch.distributions.Normal(x @ A.mT, sigma_y).log_prob(Y).sum(1)
        log_p = prior.log_prob(x) + seen - log_evidence(prior, A, Y, sigma_y)
        assert (given.log_prob(x) - log_p).abs().max() < 1e-8
        other = posterior(prior, A, Y, 1.1 * sigma_y)
        assert (other.log_prob(x) - log_p).abs().max() > 0.1


def test_posterior_of_alike_and_of_unlike_components():
    """The short way for equal covariances gives what the long way gives."""
    prior = mixture()
    alike = Mixture(prior.log_weights.exp(), prior.means, covariances(prior)[:1].expand(3, 4, 4))
    nearly = covariances(prior)[:1].repeat(3, 1, 1)
    nearly[1] += 1e-13 * torch.eye(4, dtype=f64)
    unlike = Mixture(prior.log_weights.exp(), prior.means, nearly)
    x = normal(20, 4, seed=3)
    a, b = (posterior(m, A, Y, 0.2).log_prob(x) for m in (alike, unlike))
    assert (a - b).abs().max() < 1e-8


TURNED = torch.tensor([[[2.0, 1.0], [1.0, 2.0]], [[2.0, -1.0], [-1.0, 2.0]]], dtype=f64)
WIDER = torch.tensor([[[2.0, 0.5], [0.5, 1.0]], [[4.0, 1.0], [1.0, 2.0]]], dtype=f64)


@pytest.mark.parametrize("covariances", [TURNED, WIDER], ids=["turned", "wider"])
def test_components_that_share_widths_or_axes_alone_are_unlike(covariances):
    prior, x = Mixture(torch.ones(2, dtype=f64), normal(2, 2), covariances), normal(9, 2, seed=2)
    row, y = normal(1, 2, seed=3), normal(1, seed=4)
    given = posterior(prior, row, y, 0.4)
    seen = torch.distributions.Normal(x @ row.mT, 0.4).log_prob(y).sum(1)
    log_p = prior.log_prob(x) + seen - log_evidence(prior, row, y, 0.4)
    assert (given.log_prob(x) - log_p).abs().max() < 1e-10


def test_unlike_components_of_weight_zero_are_left_out():
    far = torch.tensor([[0.0, 0.0], [1e3, 0.0], [1.0, 1.0]], dtype=f64)
    prior = Mixture(torch.ones(3, dtype=f64), far, torch.cat([TURNED, WIDER[:1]]))
    near = Mixture(torch.ones(2, dtype=f64), far[[0, 2]], torch.cat([TURNED[:1], WIDER[:1]]))
    row, y, x = torch.eye(2, dtype=f64)[:1], torch.zeros(1, dtype=f64), normal(9, 2)
    given, same = (posterior(m, row, y, 0.3) for m in (prior, near))
    assert len(given.means) == 2 and (given.log_prob(x) - same.log_prob(x)).abs().max() < 1e-12


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e4])
def test_sharp_observations_of_data_in_large_units(scale):
    """One coordinate in other units: what is left after an observation has no negative variance."""
    units = torch.tensor([scale, 1, 1, 1], dtype=f64)
    inside = covariances(mixture())
    prior = Mixture(torch.ones(3, dtype=f64), units * normal(3, 4), inside * units * units[:, None])
    plain = Mixture(torch.ones(3, dtype=f64), normal(3, 4), inside)
    for sigma_y in (0.0, 0.1):
        given, same = posterior(prior, A, Y, sigma_y), posterior(plain, A * units, Y, sigma_y)
        assert (given.means / units - same.means).abs().max() < 1e-6
        assert (covariances(given) / (units * units[:, None]) - covariances(same)).abs().max() < 1e-6
    units[0] = 1e9                                                # beyond rounding
    apart = Mixture(torch.ones(3, dtype=f64), units * normal(3, 4), inside * units * units[:, None])
    with pytest.raises(ValueError, match="^sigma_y must be positive"): posterior(apart, A, Y, 0.0)


def test_posterior_of_points_chooses_among_them():
    points = normal(6, 4, seed=8)
    prior = Mixture(torch.ones(6, dtype=f64), points, torch.zeros(4, 4, dtype=f64).expand(6, 4, 4))
    given = posterior(prior, A, Y, 0.5)
    w = (-(Y - points @ A.mT).square().sum(1) / (2 * 0.25)).softmax(0)
    assert (given.log_weights.exp() - w).abs().max() < 1e-14 and torch.equal(given.means, points)
    assert given.variances.abs().max() < 1e-14
    far = posterior(Mixture(torch.ones(6, dtype=f64), 1e3 * points, torch.zeros(4, 4).double().expand(
        6, 4, 4)), A, Y, 0.5)
    assert len(far.means) == 1                                             # weights of zero are left out


def test_sharp_observations_are_kept():
    given = posterior(mixture(), A, Y, 0.0)
    assert (given.sample(100, 0) @ A.mT - Y).abs().max() < 1e-6
    near = posterior(mixture(), A, Y, 1e-5)
    assert (near.log_weights - given.log_weights).abs().max() < 1e-6


def test_two_observations_are_one_after_the_other():
    prior, x = mixture(), normal(10, 4, seed=9)
    B, z = normal(1, 4, seed=10), normal(1, seed=11)
    both = posterior(prior, torch.cat([A, B]), torch.cat([Y, z]), 0.4)
    first = posterior(prior, A, Y, 0.4)
    assert (posterior(first, B, z, 0.4).log_prob(x) - both.log_prob(x)).abs().max() < 1e-9
    log_z = log_evidence(prior, A, Y, 0.4) + log_evidence(first, B, z, 0.4)
    assert abs(log_evidence(prior, torch.cat([A, B]), torch.cat([Y, z]), 0.4) - log_z) < 1e-10


@pytest.mark.parametrize("schedule", [VP, Geometric(), SubVP(), FlowMatching()], ids=repr)
def test_exact_score_is_the_slope_of_the_noised_posterior(schedule):
    prior, x = mixture(), normal(5, 4, seed=12)
    t = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=f64)
    found = exact_score(prior, schedule, x, t, A, Y, 0.3)
    given = posterior(prior, A, Y, 0.3)
    z = x.clone().requires_grad_()
    log_p = given.log_prob(z, schedule.alpha(t), schedule.sigma(t)).sum()
    assert (torch.autograd.grad(log_p, z)[0] - found).abs().max() < 1e-10
    assert exact_score(prior, schedule, x, 0.5, A, Y, 0.3).shape == x.shape


def test_known_digits():
    """The mixture of the chapter, ten digits."""
    rows = lambda *a: torch.tensor(a, dtype=f64)
    prior = Mixture(rows(0.5, 0.3, 0.2), rows([-1, -1.5], [0.6, 1.5], [1, -0.5]),
                    rows([[0.5, 0.2], [0.2, 0.3]], [[0.4, -0.2], [-0.2, 0.3]], [[0.3, 0], [0, 0.2]]))
    look = rows([1, 0]), rows(0.3)
    for sigma_y, wanted in {
            0.05: (-1.2531864649, 0.1833402672, 0.5906710451, 0.2259886877, 0.3012222190, 0.6809147910),
            0.3: (-1.2512382445, 0.2167014914, 0.5450733622, 0.2382251464, 0.3255441707, 0.5356844825),
            }.items():
        given = posterior(prior, *look, sigma_y)
        w = given.log_weights.exp()
        found = torch.cat([log_evidence(prior, *look, sigma_y)[None], w, w @ given.means])
        assert (found - rows(*wanted)).abs().max() < 1e-9
    noised = posterior(prior, *look, 0.3).score(rows([0.2, -0.4]), 0.6, 0.8)
    assert (noised - rows([-0.0097470882, 0.4206666214])).abs().max() < 1e-9


# Matrices

def test_rows_of_images():
    image = normal(6, 8, seed=13)
    mask = image > 0
    assert torch.equal(pixel_rows(mask) @ image.flatten(), image[mask])
    coarse = (mean_rows(6, 8, 2) @ image.flatten()).reshape(3, 4)
    assert (coarse - nn.functional.avg_pool2d(image[None], 2)[0]).abs().max() < 1e-14
    blur = blur_rows(6, 8, 0.7)
    flat = torch.ones(48, dtype=f64)
    assert (blur @ flat - flat).abs().max() < 1e-14
    spot = (blur @ torch.eye(48, dtype=f64)[3 * 8 + 4]).reshape(6, 8)
    ratio = spot[3, 5] / spot[3, 4], spot[2, 4] / spot[3, 4]
    assert all(abs(r - math.exp(-1 / (2 * 0.49))) < 0.05 for r in ratio) and spot[0, 0] < 1e-3
    assert torch.equal(blur_rows(2, 3, 1e-200), torch.eye(6, dtype=f64))
    assert (blur_rows(2, 3, 1e200) - 1 / 6).abs().max() < 1e-15


# Guidance

@pytest.mark.parametrize("schedule", [VP, Geometric(), SubVP(), FlowMatching()], ids=repr)
def test_moments_are_exact_for_any_gaussian(schedule):
    law = gaussian(normal(4, seed=14), covariances(mixture(1))[0])
    predict, x = law.predictor(schedule), normal(6, 4, seed=15)
    for t in (0.05, 0.5, 0.9, torch.linspace(0.1, 0.9, 6, dtype=f64)):
        truth = exact_score(law, schedule, x, t, A, Y, 0.3)
        sigma = torch.as_tensor(schedule.sigma(t))[..., None]
        found = {k: -guided(predict, schedule, M, k)(x, t) / sigma for k in METHODS}
        assert (found["tmpd"] - truth).abs().max() < 1e-9 * (1 + truth.abs().max())
        assert min((found[k] - truth).abs().max() for k in ("dps", "pigdm")) > 1e-4


def test_pigdm_is_exact_for_standard_normal_data_and_any_matrix():
    law = gaussian(torch.zeros(4, dtype=f64), torch.eye(4, dtype=f64))
    x = normal(6, 4, seed=15)
    for schedule in (VP, Geometric(), FlowMatching()):
        truth = exact_score(law, schedule, x, 0.4, A, Y, 0.0)
        found = guided(law.predictor(schedule), schedule, Measurement(A, Y), "pigdm")(x, 0.4)
        assert (found / -schedule.sigma(0.4) - truth).abs().max() < 1e-9


@pytest.mark.parametrize("method", METHODS)
def test_guidance_of_a_sample_knows_no_other(method):
    predict, x = mixture().predictor(VP), normal(7, 4, seed=16)
    t = torch.linspace(0.1, 0.9, 7, dtype=f64)
    many = Measurement(A, normal(7, 2, seed=17), 0.3)
    whole = guided(predict, VP, many, method)(x, t)
    for b in range(7):
        alone = guided(predict, VP, Measurement(A, many.y[b], 0.3), method)(x[b:b + 1], t[b])
        assert (whole[b] - alone[0]).abs().max() < 1e-12


def test_weight_of_guidance_is_linear():
    predict, x = mixture().predictor(VP), normal(3, 4, seed=18)
    plain = predict(x, 0.4)
    one, two, none = (guided(predict, VP, M, weight=w)(x, 0.4) for w in (1.0, 2.0, 0.0))
    assert (none - plain).abs().max() < 1e-12 and (two - plain - 2 * (one - plain)).abs().max() < 1e-12


def test_images_are_flattened_and_given_back():
    predict = lambda x, t: 0.5 * x
    flat, x = normal(3, 4, seed=19), normal(3, 4, seed=19).reshape(3, 1, 2, 2)
    for method in METHODS:
        found = guided(predict, VP, M, method)(x, 0.3)
        assert torch.equal(found, guided(predict, VP, M, method)(flat, 0.3).reshape(3, 1, 2, 2))
    assert dps(predict, VP, x, GRID, M, generator=0).shape == x.shape
    mask = torch.tensor([[[True, False], [False, True]]])
    assert repaint(predict, VP, x, GRID, x[0], mask, generator=0).shape == x.shape


def test_every_solver_runs_guided():
    given = posterior(mixture(1), A, Y, 0.3)
    predict = guided(mixture(1).predictor(VP), VP, M, "tmpd")
    x, grid = prior_sample(VP, (500, 4), 1, dtype=f64), time_grid(VP, 25)
    for run in (ancestral, ddim, euler_maruyama, heun, deis):
        options = {"generator": 2} if run in (ancestral, euler_maruyama) else {}
        end = run(predict, VP, x, grid, **options)
        truth = run(given.predictor(VP), VP, x, grid, **options)
        assert (end - truth).abs().max() < 1e-6


def test_kinds_of_networks_are_one_currency():
    law, x = mixture(), normal(3, 4, seed=20)
    wanted = guided(law.predictor(VP), VP, M, "tmpd")(x, 0.4)
    for kind in ("x0", "v", "score"):
        network = as_eps(law.predictor(VP, kind), VP, kind)
        assert (guided(network, VP, M, "tmpd")(x, 0.4) - wanted).abs().max() < 1e-10


@pytest.mark.parametrize("dtype", [f32, f64])
def test_guidance_keeps_the_dtype_and_learns_nothing(dtype):
    network = Preconditioned(MLP(4, 16, 1, dtype=dtype, generator=0), VP)
    nn.init.normal_(network.network.last.weight, std=0.2, generator=seeded(1))
    look = Measurement(A.to(dtype), Y.to(dtype), 0.3)
    x = normal(3, 4, seed=21, dtype=dtype)
    for method in METHODS:
        found = guided(network, VP, look, method)(x, 0.4)
        assert found.dtype == dtype and not found.requires_grad
        assert all(p.grad is None for p in network.parameters())
    assert twisted_smc(network, VP, x, GRID, look, generator=0).states.dtype == dtype


def test_a_jacobian_that_is_no_covariance():
    """Symmetric part without negative eigenvalues, by hand."""
    W = normal(4, 4, seed=22)
    x, t = normal(2, 4, seed=23), 0.4
    alpha, sigma = VP.alpha(t).item(), VP.sigma(t).item()
    J = (torch.eye(4, dtype=f64) - sigma * W) / alpha
    C = sigma**2 / alpha * A @ J @ A.mT
    s, V = torch.linalg.eigh((C + C.mT) / 2)
    assert s.min() < -0.01
    inverse = V @ torch.diag(1 / (s.clamp(min=0) + 0.09)) @ V.mT
    slope = (Y - x @ J.mT @ A.mT) @ inverse @ A @ J
    found = guided(lambda x, t: x @ W.mT, VP, M, "tmpd")(x, t)
    assert (found - x @ W.mT + sigma * slope).abs().max() < 1e-10


# DPS, replacement

def test_steps_of_dps_have_their_length_for_every_sample():
    """Where the estimate is x / alpha, the second step moves each x by zeta / alpha along a row."""
    look, x = Measurement(torch.eye(4, dtype=f64)[:2], normal(5, 2, seed=25), 0.1), normal(5, 4, seed=24)
    nothing = lambda x, t: 0 * x
    pulled, plain = (dps(nothing, VP, x, GRID[:2], look, zeta, range(5)) for zeta in (0.7, 0.0))
    first = (pulled - plain) * VP.alpha(GRID[0])
    r = look.y - x[:, :2] / VP.alpha(GRID[0])
    assert (first[:, 2:].abs().max() < 1e-9) and (first.norm(dim=1) - 0.7).abs().max() < 1e-9
    assert (first[:, :2] - 0.7 * r / r.norm(dim=1, keepdim=True)).abs().max() < 1e-9
    torch.testing.assert_close(plain, ancestral(nothing, VP, x, GRID[:2], generator=range(5)))


def test_dps_of_a_sample_knows_no_other():
    predict, x = mixture().predictor(VP), normal(4, 4, seed=26)
    whole = dps(predict, VP, x, GRID, M, 0.5, range(4))
    for b in range(4):
        assert (dps(predict, VP, x[b:b + 1], GRID, M, 0.5, [b]) - whole[b]).abs().max() < 1e-10


def test_a_residual_of_zero_is_no_nan():
    exact = Measurement(A, torch.zeros(2, dtype=f64), 0.1)
    x = torch.zeros(2, 4, dtype=f64)
    assert bool(dps(lambda x, t: 0 * x, VP, x, GRID, exact, generator=0).isfinite().all())


@pytest.mark.parametrize("M", [1, 2, 8])
def test_spread_of_the_residual_is_that_of_its_step(M):
    """Whatever the noise of the observation: the law of a length that is reflected and stirred."""
    law = gaussian(torch.zeros(M, dtype=f64), torch.eye(M, dtype=f64))
    x = prior_sample(VP, (1500, M), 0, dtype=f64)
    look = Measurement(torch.eye(M, dtype=f64), normal(M) / 4, 9.0)
    end = dps(law.predictor(VP), VP, x, time_grid(VP, 100, kind="log_snr"), look, 0.5, 1)
    found = Estimate.of((end - look.y).square().sum(1) / 0.25)
    assert abs(found.z((M + 3) / (4 * (M + 2)))) < 4 and found.stderr < 0.01 and abs(found.z(1)) > 40


def test_defaults_are_those_of_the_signature():
    """Without options: ΠGDM of weight 1, DPS of step 1, replacement, copies below half the members."""
    predict, x = mixture().predictor(VP), normal(8, 4, seed=32)
    mask = torch.tensor([True, False, False, False])
    assert torch.equal(guided(predict, VP, M)(x, 0.4), guided(predict, VP, M, "pigdm", 1.0)(x, 0.4))
    assert torch.equal(dps(predict, VP, x, GRID, M, generator=1), dps(predict, VP, x, GRID, M, 1.0, 1))
    assert torch.equal(repaint(predict, VP, x, GRID, x, mask, generator=1),
                       repaint(predict, VP, x, GRID, x, mask, 1, 1))
    short = twisted_smc(predict, VP, x, GRID, M, generator=1)
    whole = twisted_smc(predict, VP, x, GRID, M, "pigdm", 1, threshold=0.5)
    assert torch.equal(short.states, whole.states)
    classes = logits(mixture())
    assert torch.equal(classifier_guided(predict, VP, classes, 1)(x, 0.4),
                       classifier_guided(predict, VP, classes, 1, 1.0)(x, 0.4))


def test_the_last_estimate_is_given_on_request():
    predict, x = mixture().predictor(VP), normal(8, 4, seed=33)
    mask = torch.tensor([True, False, False, False])
    runs = (lambda d: dps(predict, VP, x, GRID, M, 0.5, 1, d),
            lambda d: repaint(predict, VP, x, GRID, x, mask, 2, 1, d))
    for run in runs:
        end, done = run(False), run(True)
        guess = (end - VP.sigma(GRID[-1]) * predict(end, GRID[-1])) / VP.alpha(GRID[-1])
        assert (done - guess).abs().max() < 1e-12 < (done - end).abs().max()


def test_replacement_keeps_what_is_known():
    predict, x = mixture().predictor(VP), normal(300, 4, seed=27)
    mask, known = torch.tensor([True, True, False, False]), normal(300, 4, seed=28)
    for grid in (GRID[:8], GRID):
        end = repaint(predict, VP, x, grid, known, mask, 2, 3)
        noise = (end - VP.alpha(grid[-1]) * known)[:, :2] / VP.sigma(grid[-1])
        assert abs(Estimate.of((noise * known[:, :2]).flatten()).z(0)) < 4
        assert abs(Estimate.of(noise.flatten().square()).z(1)) < 4
    done = repaint(predict, VP, x, GRID, known, mask, 2, 3, True)
    assert (done - end)[:, 2:].abs().max() > 1e-6


def test_a_mask_of_nothing_is_ancestral_sampling():
    predict, x = mixture().predictor(VP), normal(3, 4, seed=29)
    none = torch.zeros(4, dtype=torch.bool)
    a = repaint(predict, VP, x, GRID[:2], x, none, 1, [1, 2, 3])
    assert torch.equal(a, ancestral(predict, VP, x, GRID[:2], generator=[1, 2, 3]))
    per_sample = none.repeat(3, 1)
    assert torch.equal(repaint(predict, VP, x, GRID, x, per_sample, 1, 5),
                       repaint(predict, VP, x, GRID, x[0], none, 1, 5))


def test_noise_between_repetitions_leads_back_to_the_level():
    """Data at one point: after the repetition x is again alpha x_0 + sigma times a normal number."""
    point = Mixture(torch.ones(1, dtype=f64), torch.full((1, 2), 1.5, dtype=f64),
                    torch.zeros(1, 2, 2, dtype=f64))
    seen = []

    def predict(x, t):
        seen.append((float(t), x.clone()))
        return point.predictor(VP)(x, t)
    x = VP.alpha(0.9) * 1.5 + VP.sigma(0.9) * normal(20000, 2, seed=30)
    grid = torch.tensor([0.9, 0.4, 0.2], dtype=f64)
    repaint(predict, VP, x, grid, x, torch.zeros(2, dtype=torch.bool), 3, 6)
    assert [t for t, _ in seen] == pytest.approx([0.9] * 3 + [0.4] * 3)
    for t, x in seen:
        z = ((x - 1.5 * VP.alpha(t)) / VP.sigma(t)).flatten()
        assert abs(Estimate.of(z).z(0)) < 4 and abs(Estimate.of(z.square()).z(1)) < 4


# A population

def test_a_perfect_guide_gives_equal_weights():
    """Gaussian data and moments: the evidence up to the steps of the grid, and nothing to repair."""
    law = gaussian(normal(4, seed=14), covariances(mixture(1))[0])
    x, y = prior_sample(VP, (200, 4), 2, dtype=f64), A @ law.means[0] + 0.3
    look = Measurement(A, y, 0.3)
    found = [twisted_smc(law.predictor(VP), VP, x, time_grid(VP, n, kind="log_snr"), look, "tmpd", 3)
             for n in (50, 400)]
    truth = log_evidence(law, A, y, 0.3).item()
    spread = [r.log_weights.std().item() for r in found]
    assert abs(found[1].value - truth) < 0.05 and spread[1] < spread[0] / 2 < 0.4


def test_evidence_is_right_on_average_and_the_sum_of_weights_says_so():
    prior = mixture(2, 2, seed=40)
    look = Measurement(normal(1, 2, seed=41), normal(1, seed=42), 0.5)
    truth = log_evidence(prior, look.A, look.y, 0.5).item()
    grid = time_grid(VP, 100, kind="log_snr")
    found = [twisted_smc(prior.predictor(VP), VP, prior_sample(VP, (100, 2), 50 + k, dtype=f64), grid,
                         look, generator=k, threshold=1) for k in range(12)]       # copies at each step
    ratio = Estimate.of(torch.tensor([math.exp(r.value - truth) for r in found]))
    assert abs(ratio.value - 1) < 0.04 + 4 * ratio.stderr and ratio.stderr < 0.03
    for r in found:
        assert abs(torch.logsumexp(r.log_weights, 0).item() - math.log(100) - r.value) < 1e-12
        assert r.log_weights.dtype == f64 and r.states.shape == (100, 2) and r.n == 100


@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_a_population_by_hand(threshold):
    """Step by step from densities, with ΠGDM's guess and copies in systematic order."""
    n, prior, rows = 30, mixture(), ancestral.coefficients(VP, GRID, 1.0)
    predict, x, g = prior.predictor(VP), prior_sample(VP, (n, 4), 8, dtype=f64), seeded(9)
    led, law = guided(predict, VP, M), torch.distributions.Normal

    def guess(x, t):
        alpha, sigma = VP.alpha(t), VP.sigma(t)
        S = sigma**2 / (alpha**2 + sigma**2) * A @ A.mT + 0.09 * torch.eye(2, dtype=f64)
        mean = (x - sigma * predict(x, t)) / alpha @ A.mT
        return torch.distributions.MultivariateNormal(mean, S).log_prob(Y)
    log_w, copies = guess(x, GRID[0]), 0
    for t, s, a, b, c in zip(GRID, GRID[1:], *rows):
        if 1 / log_w.softmax(0).square().sum() < threshold * n:
            x = x[systematic(log_w, n, g)]
            log_w = (log_w.logsumexp(0) - math.log(n)).expand(n)
            copies += 1
        p, q = (law(a * x + b * eps(x, t), c) for eps in (predict, led))
        new = q.mean + c * torch.randn(n, 4, dtype=f64, generator=g)
        log_w = log_w + (p.log_prob(new) - q.log_prob(new)).sum(1) + guess(new, s) - guess(x, t)
        x = new
    found = twisted_smc(predict, VP, prior_sample(VP, (n, 4), 8, dtype=f64), GRID, M, generator=9,
                        threshold=threshold)
    assert 2 < copies < len(GRID) and (found.states - x).abs().max() < 1e-9
    assert (found.log_weights - log_w).abs().max() < 1e-8


def test_threshold_says_when_to_copy():
    predict, x = mixture().predictor(VP), prior_sample(VP, (40, 4), 4, dtype=f64)
    never, always = (twisted_smc(predict, VP, x, GRID, M, generator=5, threshold=t) for t in (0, 1))
    assert never.log_weights.std() > always.log_weights.std() and never.stderr > 0
    own = LogZ.from_weights(always.log_weights, always.states).stderr       # as if all were strangers
    assert always.stderr > 2 * own and abs(never.stderr / LogZ.from_weights(
        never.log_weights, never.states).stderr - 1) < 0.02
    again = twisted_smc(predict, VP, x, GRID, M, generator=seeded(5), threshold=1)
    assert torch.equal(again.states, always.states) and again.value == always.value


# Classes

def logits(prior):
    return lambda x, t: prior._split(x, VP.alpha(t), VP.sigma(t))[-1]


def test_the_exact_classifier_gives_the_class():
    prior, x = mixture(), normal(6, 4, seed=31)
    labels, t = torch.tensor([0, 1, 2, 0, 1, 2]), torch.linspace(0.1, 0.9, 6, dtype=f64)
    one = [gaussian(m, C).predictor(VP) for m, C in zip(prior.means, covariances(prior))]
    truth = torch.stack([one[k](x, t)[i] for i, k in enumerate(labels.tolist())])
    found = classifier_guided(prior.predictor(VP), VP, logits(prior), labels)(x, t)
    assert (found - truth).abs().max() < 1e-10
    same = classifier_guided(prior.predictor(VP), VP, logits(prior), 1)(x, t)
    assert (same - one[1](x, t)).abs().max() < 1e-10
    free = classifier_free(one[1], prior.predictor(VP), 0.7)(x, t)
    assert (free - classifier_guided(prior.predictor(VP), VP, logits(prior), 1, 1.7)(
        x, t)).abs().max() < 1e-10
    shifted = classifier_guided(prior.predictor(VP), VP, lambda x, t: logits(prior)(x, t) + 3, 1)(x, t)
    assert (shifted - same).abs().max() < 1e-10


def test_classifiers_are_asked_in_evaluation_mode():
    class Noisy(nn.Module):
        def forward(self, x, t):
            assert not self.training
            return torch.cat([x, -x], 1)
    net = Noisy()
    classifier_guided(lambda x, t: x, VP, net, 0)(normal(2, 3), 0.5)
    assert net.training


@pytest.mark.parametrize("run", [
    lambda bad, x: classifier_free(bad, lambda x, t: x, 1.0)(x, 0.5),
    lambda bad, x: classifier_free(lambda x, t: x, bad, 1.0)(x, 0.5),
    lambda bad, x: classifier_guided(bad, VP, lambda x, t: x, 0)(x, 0.5),
    lambda bad, x: guided(bad, VP, M)(x, 0.5)], ids=["given", "plain", "classifier", "guided"])
def test_a_network_that_writes_into_x_leaves_that_of_the_caller(run):
    def bad(x, t):
        x.data.zero_()
        return x + 0.0
    x = normal(3, 4)
    try:
        run(bad, x)
    except ValueError as error:
        assert "must not change x" in str(error)
    assert torch.equal(x, normal(3, 4))


def test_classifier_free_is_differentiable_and_sharpens_equal_covariances_exactly():
    plain = gaussian(torch.zeros(1, dtype=f64), torch.eye(1, dtype=f64)).predictor(VP)
    given = gaussian(torch.ones(1, dtype=f64), torch.eye(1, dtype=f64)).predictor(VP)
    power = gaussian(torch.full((1,), 3.0, dtype=f64), torch.eye(1, dtype=f64)).predictor(VP)
    x = normal(5, 1).requires_grad_()
    y = classifier_free(given, plain, 2.0)(x, 0.4)
    assert (y - power(x, 0.4)).abs().max() < 1e-12
    assert bool((torch.autograd.grad(y.sum(), x)[0] > 0).all())


# Bad input

X, P = normal(3, 4), lambda x, t: x
TWO, MASK = normal(2, 4), torch.tensor([True, False, True, False])
PRIOR = mixture()
FLAT = Measurement(torch.cat([A[:1], A[:1]]), Y)
BAD = {
    "no mixture": (lambda: posterior(None, A, Y, 0.1), TypeError, "^mixture must be a Mixture"),
    "its predictor": (lambda: log_evidence(PRIOR.predictor(VP), A, Y, 0.1), TypeError,
                      "^mixture must be a Mixture"),
    "the class of mixtures": (lambda: exact_score(Mixture, VP, X, 0.5, A, Y, 0.1), TypeError,
                              "^mixture must be a Mixture"),
    "y a list": (lambda: posterior(PRIOR, A, [0.1, 0.2], 0.1), TypeError, "^y must be a torch.Tensor"),
    "y a number": (lambda: log_evidence(PRIOR, A, 0.3, 0.1), TypeError, "^y must be a torch.Tensor"),
    "noise beyond numbers": (lambda: posterior(PRIOR, A, Y, 1e200), ValueError, "^sigma_y must be"),
    "noise beyond single": (lambda: Measurement(A.float(), Y.float(), 1e30), ValueError, "^sigma_y"),
    "x a list": (lambda: classifier_free(P, P, 1.0)([1.0], 0.5), TypeError, "^x must be a torch"),
    "A a vector": (lambda: Measurement(A[0], Y), ValueError, r"^A must have shape \[M, D\]"),
    "A of integers": (lambda: Measurement(A.long(), Y), TypeError, "^A must be float32"),
    "A of NaN": (lambda: Measurement(A * math.nan, Y), ValueError, "^A must be finite"),
    "y of another length": (lambda: Measurement(A, Y[:1]), ValueError,
                            r"^y must have shape \[2\] or \[B, 2\], got \[1\]"),
    "y of another dtype": (lambda: Measurement(A, Y.float()), TypeError, "^y must be torch.float64"),
    "no y": (lambda: Measurement(A, None), TypeError, "^y must be a torch.Tensor"),
    "negative noise": (lambda: Measurement(A, Y, -1.0), ValueError,
        "^sigma_y must be finite and at least"),
    "noise of infinity": (lambda: Measurement(A, Y, math.inf), ValueError, "^sigma_y must be finite"),
    "noise a text": (lambda: Measurement(A, Y, "0.1"), TypeError, "^sigma_y must be a number"),
    "singular": (lambda: posterior(PRIOR, torch.cat([A, A]), torch.cat([Y, Y]), 0.0), ValueError,
                 "^sigma_y must be positive where A leaves no doubt"),
    "singular to rounding": (lambda: posterior(PRIOR, torch.cat([A, A[:1] + 1e-9]), normal(3), 0.0),
                             ValueError, "^sigma_y must be positive where A leaves no doubt"),
    "points without noise": (
        lambda: posterior(Mixture(torch.ones(3).double(), X, torch.zeros(3, 4, 4).double()), A, Y, 0.0),
        ValueError, "^sigma_y must be positive where"),
    "many y": (lambda: posterior(PRIOR, A, TWO[:, :2], 0.1), ValueError, "^y must be one observation"),
    "many y of evidence": (lambda: log_evidence(PRIOR, A, TWO[:, :2], 0.1), ValueError,
                           "^y must be one observation"),
    "wide A": (lambda: posterior(PRIOR, normal(2, 5), Y, 0.1), ValueError,
               r"^A must have shape \[M, 4\], got \[2, 5\]"),
    "A in single": (lambda: posterior(PRIOR, A.float(), Y.float(), 0.1), TypeError,
        "^A must be torch.float64"),
    "score too late": (lambda: exact_score(PRIOR, VP, X, 1.5, A, Y, 0.1), ValueError, "^t must lie in"),
    "score of sharp points": (lambda: exact_score(PRIOR, VP, X, 0.0, A, Y, 0.0), ValueError,
                              "^sigma must be positive where a covariance is singular"),
    "no measurement": (lambda: guided(P, VP, None), TypeError, "^measurement must be a Measurement"),
    "its class": (lambda: guided(P, VP, Measurement), TypeError, "^measurement must be a Measurement"),
    "a tensor": (lambda: dps(P, VP, X, GRID, A), TypeError, "^measurement must be a Measurement"),
    "method": (lambda: guided(P, VP, M, "ddrm"), ValueError,
        "^method must be one of 'dps', 'pigdm', 'tmpd'"),
    "weight": (lambda: guided(P, VP, M, weight=math.nan), ValueError, "^weight must be finite"),
    "weight a text": (lambda: guided(P, VP, M, weight="1"), TypeError, "^weight must be a number"),
    "dps without noise": (lambda: guided(P, VP, Measurement(A, Y), "dps")(X, 0.5), ValueError,
                          "^sigma_y must be positive, or A have independent rows"),
    "rows alike": (lambda: guided(P, VP, FLAT)(X, 0.5), ValueError,
        "^sigma_y must be positive, or A have"),
    "rows alike, moments": (lambda: guided(P, VP, FLAT, "tmpd")(X, 0.5), ValueError, "^sigma_y must be"),
    "time 0": (lambda: guided(P, VP, M)(X, 0.0), ValueError, "^t must be positive"),
    "time below 0": (lambda: guided(P, VP, M)(X, -0.1), ValueError, r"^t must lie in \[0, 1\]"),
    "times of another batch": (lambda: guided(P, VP, M)(X, torch.rand(2)), ValueError,
        "alpha, sigma, t must"),
    "x of another width": (lambda: guided(P, VP, M)(X[:, :3], 0.5), ValueError,
        r"^A must have shape \[M, 3\]"),
    "x in single": (lambda: guided(P, VP, M)(X.float(), 0.5), TypeError, "^A must be torch.float32"),
    "x a row": (lambda: guided(P, VP, M)(X[0], 0.5), ValueError, r"^x must have shape \[B, ...\]"),
    "y of another batch": (lambda: guided(P, VP, Measurement(A, TWO[:, :2], 0.1))(X, 0.5), ValueError,
                           r"^y must have shape \[2\] or \[3, 2\], got \[2, 2\]"),
    "no graph": (lambda: guided(lambda x, t: x.detach(), VP, M)(X, 0.5), ValueError,
                 "^predict must be differentiable in x"),
    "no data at the start": (lambda: guided(P, FlowMatching(), M)(X, 1.0), ValueError, "^alpha must be"),
    "zeta": (lambda: dps(P, VP, X, GRID, M, math.inf), ValueError, "^zeta must be finite"),
    "zeta below 0": (lambda: dps(P, VP, X, GRID, M, -1.0), ValueError,
        "^zeta must be finite and at least 0"),
    "grid to 0": (lambda: dps(P, VP, X, torch.tensor([1.0, 0.0]), M), ValueError,
        r"^grid must lie in \(0"),
    "grid rises": (lambda: repaint(P, VP, X, GRID.flip(0), X, MASK), ValueError, "^grid must decrease"),
    "derivative of dps": (lambda: dps.differentiable(P, VP, X, GRID, M), ValueError,
                          "^guidance has no derivative itself"),
    "mask of numbers": (lambda: repaint(P, VP, X, GRID, X, MASK.double()), TypeError,
                        "^mask must be a tensor of booleans, got torch.float64"),
    "mask a list": (lambda: repaint(P, VP, X, GRID, X, [True]), TypeError,
        "^mask must be a tensor of booleans, got list"),
    "mask of another shape": (lambda: repaint(P, VP, X, GRID, X, MASK[:3]), ValueError,
                              r"^mask must have shape \[3, 4\] or \[4\], got \[3\]"),
    "known of another shape": (lambda: repaint(P, VP, X, GRID, X[:2], MASK), ValueError,
        "^known must have"),
    "known in single": (lambda: repaint(P, VP, X, GRID, X.float(), MASK), TypeError, "^known must be"),
    "known of NaN": (lambda: repaint(P, VP, X, GRID, X * math.nan, MASK), ValueError, "^known must be"),
    "no repeats": (lambda: repaint(P, VP, X, GRID, X, MASK, 0), ValueError,
        "^repeats must be at least 1"),
    "half a repeat": (lambda: repaint(P, VP, X, GRID, X, MASK, 1.5), TypeError,
        "^repeats must be an int"),
    "one particle": (lambda: twisted_smc(P, VP, X[:1], GRID, M), ValueError,
        "^x must hold at least two"),
    "y a particle": (lambda: twisted_smc(P, VP, X, GRID, Measurement(A, X[:, :2], 0.1)), ValueError,
                     "^y must be one observation"),
    "streams": (lambda: twisted_smc(P, VP, X, GRID, M, generator=[1, 2, 3]), TypeError,
                "^generator must be one stream"),
    "threshold": (lambda: twisted_smc(P, VP, X, GRID, M, threshold=1.5), ValueError,
        "^threshold must be"),
    "method of a population": (lambda: twisted_smc(P, VP, X, GRID, M, "exact"), ValueError,
        "^method must"),
    "pixels": (lambda: pixel_rows(X), TypeError, "^mask must be a tensor of booleans"),
    "no pixels": (lambda: pixel_rows(MASK & ~MASK), ValueError, "^mask must be true somewhere"),
    "spread": (lambda: blur_rows(8, 8, 0.0), ValueError, "^spread must be finite and above 0"),
    "height": (lambda: blur_rows(0, 8, 1.0), ValueError, "^height must be at least 1"),
    "width": (lambda: mean_rows(8, 2.5, 2), TypeError, "^width must be an int"),
    "factor": (lambda: mean_rows(8, 9, 2), ValueError, "^factor must divide width, got 2 for 9"),
    "no factor": (lambda: mean_rows(8, 8, 0), ValueError, "^factor must be at least 1"),
    "label": (lambda: classifier_guided(P, VP, P, 4)(X, 0.5), ValueError,
        r"^labels must lie in 0 \.\.\. 3"),
    "label below 0": (lambda: classifier_guided(P, VP, P, -1), ValueError, "^labels must be at least 0"),
    "a label below 0": (lambda: classifier_guided(P, VP, P, torch.tensor([0, -1, 1]))(X, 0.5),
                        ValueError, r"^labels must lie in 0 \.\.\. 3, got -1 to 1"),
    "label a number": (lambda: classifier_guided(P, VP, P, 1.0), TypeError, "^labels must be an int"),
    "labels of numbers": (lambda: classifier_guided(P, VP, P, X[:, 0])(X, 0.5), TypeError,
                          "^labels must be int64"),
    "labels of another batch": (lambda: classifier_guided(P, VP, P, torch.zeros(2).long())(X, 0.5),
                                ValueError, r"^labels must be one class or have shape \[3\]"),
    "no classifier": (lambda: classifier_guided(P, VP, None, 0), TypeError,
        "^classifier must be a function"),
    "weight of a class": (lambda: classifier_guided(P, VP, P, 0, math.inf), ValueError,
        "^weight must be"),
    "one logit for all": (lambda: classifier_guided(P, VP, lambda x, t: x.sum(0), 0)(X, 0.5), ValueError,
                          r"^classifier must return shape"),
    "no logits": (lambda: classifier_guided(P, VP, lambda x, t: None, 0)(X, 0.5), TypeError,
                  "^classifier must return a torch.Tensor"),
    "logits of NaN": (lambda: classifier_guided(P, VP, lambda x, t: x / 0, 0)(X, 0.5), ValueError,
                      "^classifier returned NaN"),
    "classifier without graph": (lambda: classifier_guided(P, VP, lambda x, t: x.detach(), 0)(X, 0.5),
                                 ValueError, "^classifier must be differentiable"),
    "w": (lambda: classifier_free(P, P, math.nan), ValueError, "^w must be finite"),
    "no conditional network": (lambda: classifier_free(None, P, 1.0), TypeError,
                               "^conditional_predict must be callable"),
    "its answer": (lambda: classifier_free(lambda x, t: x[:1], P, 1.0)(X, 0.5), ValueError,
                   "^conditional_predict must return shape"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name(name):
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message): call()


@pytest.mark.parametrize("k", range(1, 8))
def test_rows_in_proportion_have_no_spread_whatever_rounding_says(k):
    look = Measurement(torch.cat([A, A[:1] * k / 7]), normal(3))
    with pytest.raises(ValueError, match="^sigma_y must be positive, or A have"):
        guided(P, VP, look)(X, 0.5)


@pytest.mark.parametrize("kind", BAD_STREAMS)
def test_bad_streams_of_a_population_are_refused(kind):
    with pytest.raises((TypeError, ValueError), match="generator must"):
        twisted_smc(P, VP, X, GRID, M, generator=BAD_STREAMS[kind])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_guidance_on_cuda():
    law, x = mixture().to("cuda"), X.cuda()
    look = Measurement(A.cuda(), Y.cuda(), 0.3)
    for method in METHODS:
        found = guided(law.predictor(VP), VP, look, method)(x, 0.4).cpu()
        assert (found - guided(PRIOR.predictor(VP), VP, M, method)(X, 0.4)).abs().max() < 1e-10
    with pytest.raises(ValueError, match="returned NaN"):
        guided(lambda x, t: x * math.nan, VP, look, "dps")(x, 0.4)
    assert dps(law.predictor(VP), VP, x, GRID, look).is_cuda
    assert twisted_smc(law.predictor(VP), VP, x, GRID, look).states.is_cuda
    assert repaint(law.predictor(VP), VP, x, GRID, x, MASK.cuda()).is_cuda
