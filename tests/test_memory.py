"""Stored patterns: their denoiser against mixtures and scores, retrieval, the machine, and the threshold
from which on a state names its pattern.
"""
import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from machines import seeded
from rbmdiff.bridge.memory import (
    as_rbm,
    attention_prior,
    collapse_snr,
    denoise,
    flip_beta,
    gaussian_information,
    log_weights,
    memory_predictor,
    own_log_weight,
    retrieve,
)
from rbmdiff.diffusion.deis import deis
from rbmdiff.diffusion.objective import empirical_score
from rbmdiff.diffusion.oracle import Mixture
from rbmdiff.diffusion.schedule import Cosine, Geometric, LinearBeta, time_grid
from rbmdiff.diffusion.solvers import ddim, heun, runge_kutta
from rbmdiff.foundations.core import Estimate
from rbmdiff.foundations.data import digits
from rbmdiff.foundations.units import states
from rbmdiff.models.hopfield import modern_energy, modern_update

F32, F64 = torch.float32, torch.float64
ROOT = Path(__file__).resolve().parents[1]
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[cuda, pytest.mark.cuda])]
LEVELS = [(1.0, 0.5), (0.8, 0.6), (0.3, 2.0), (0.0, 1.0)]


def numbers(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=seeded(seed), dtype=F64).to(dtype)


P, X, PI = numbers(6, 4), 2 * numbers(9, 4, seed=1), numbers(6, seed=2)


def points(log_prior):
    return Mixture(log_prior.exp(), P, torch.zeros(4, 4, dtype=F64).expand(6, 4, 4))


# --- exactness

@pytest.mark.parametrize("alpha, sigma", LEVELS)
@pytest.mark.parametrize("prior", (None, PI))
def test_denoiser_is_the_posterior_mean_of_a_mixture_of_points(alpha, sigma, prior):
    law = points(torch.zeros(6, dtype=F64) if prior is None else prior)
    posterior = law.posterior(X[0], alpha, sigma)
    w = log_weights(X, P, alpha, sigma, prior).exp()
    torch.testing.assert_close(w[0], posterior.log_weights.exp(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(denoise(X, P, alpha, sigma, prior), w @ P, rtol=1e-13, atol=1e-14)
    tweedie = X + sigma**2 * law.score(X, alpha, sigma)
    torch.testing.assert_close(alpha * (w @ P), tweedie, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("alpha, sigma", LEVELS[:3])
def test_other_routes(alpha, sigma):
    m = denoise(X, P, alpha, sigma)
    tweedie = (X + sigma**2 * empirical_score(X, P, alpha, sigma)) / alpha
    torch.testing.assert_close(m, tweedie, rtol=1e-12, atol=1e-12)
    mask = -((alpha / sigma) ** 2 * P.square().sum(1) / 2).expand(9, 6)
    torchs = scaled_dot_product_attention(X, P, P, mask, scale=alpha / sigma**2)
    torch.testing.assert_close(m, torchs, rtol=1e-12, atol=1e-12)
    plain = scaled_dot_product_attention(X, P, P, scale=alpha / sigma**2)
    torch.testing.assert_close(denoise(X, P, alpha, sigma, attention_prior(P, alpha, sigma)), plain)
    assert (m - plain).abs().max() > 1e-3


def test_equal_norms_need_no_norm_term():
    spins = states(5, "spin")[[1, 7, 12, 30]]
    torch.testing.assert_close(denoise(numbers(8, 5), spins, 1.0, 0.9),
                               modern_update(numbers(8, 5), spins, 0.9**-2), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("sigma", (1e-6, 1e-3, 1e3, 1e8))
def test_the_ends_of_the_noise(sigma):
    m = denoise(P + 1e-9, P, 1.0, sigma)
    truth = P if sigma < 1 else P.mean(0).expand(6, 4)
    torch.testing.assert_close(m, truth, rtol=0, atol=1e-2 if sigma == 1e3 else 1e-6)


def test_a_step_of_the_flow_and_the_update_of_hopfield():
    s, r = 0.7, 0.4
    ve = Geometric(s * r / 2, s)
    grid = torch.tensor([1.0, float(ve.t_of_rho(s * r))], dtype=F64)
    y = ddim(memory_predictor(P, ve), ve, X, grid)
    torch.testing.assert_close(y, r * X + (1 - r) * denoise(X, P, 1.0, s), rtol=1e-12, atol=1e-12)
    prior = attention_prior(P, 1.0, s)
    torch.testing.assert_close(denoise(X, P, 1.0, s, prior), modern_update(X, P, s**-2))


def test_retrieval_has_the_order_of_its_steps():
    line = torch.tensor([[-2.0], [-0.5], [0.7], [1.1], [3.0]], dtype=F64)
    start = 8 * torch.linspace(-1.5, 1.5, 13, dtype=F64)[:, None]
    ve = Geometric(0.1, 8.0)
    walked = lambda solver, n: solver(memory_predictor(line, ve), ve, start,
                                      time_grid(ve, n, 0.1, "log_snr"))
    fine = walked(runge_kutta, 400)
    coarse, finer = ((walked(ddim, n) - fine).abs().max().item() for n in (200, 400))
    assert 0.9 < math.log2(coarse / finer) < 1.1


@pytest.mark.parametrize("schedule", (LinearBeta(), Cosine(), Geometric(0.01, 20.0)))
@pytest.mark.parametrize("solver", (ddim, heun, deis))
def test_every_sampler_ends_at_stored_patterns(schedule, solver):
    predict = memory_predictor(P, schedule)
    x = schedule.sigma(0.999).item() * numbers(50, 4, seed=3)
    y = solver(predict, schedule, x, time_grid(schedule, 40, 1e-4, t_max=0.999), denoise=True)
    assert torch.cdist(y, P).amin(1).max() < 0.02


def test_retrieval_stays_where_it_belongs():
    y = retrieve(P + 0.05 * numbers(6, 4, seed=4), P, 1 / 0.05**2, 1e6)
    torch.testing.assert_close(y, P, rtol=0, atol=1e-9)
    blend = retrieve(X, P, 1e-8, 1e-6)
    torch.testing.assert_close(blend, P.mean(0).expand(9, 4), rtol=0, atol=1e-4)
    assert retrieve(X.view(3, 3, 4), P, 1.0, 9.0).equal(retrieve(X, P, 1.0, 9.0).view(3, 3, 4))
    assert retrieve(X[0], P, 1.0, 9.0).shape == (4,)


@pytest.mark.parametrize("sigma", (0.3, 1.0, 2.5))
def test_machine(sigma):
    rbm, law = as_rbm(P, sigma, PI), points(PI)
    torch.testing.assert_close(rbm.log_prob(X), law.log_prob(X, 1.0, sigma), rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(rbm.visible_mean(rbm.hidden_mean(X)), denoise(X, P, 1.0, sigma, PI))
    hopfield = as_rbm(P, sigma, attention_prior(P, 1.0, sigma))
    apart = sigma**2 * hopfield.free_energy(X) - modern_energy(X, P, sigma**-2)
    torch.testing.assert_close(apart, apart[:1].expand(9), rtol=0, atol=1e-11)
    assert rbm.W.requires_grad and rbm.W.data_ptr() != P.data_ptr()
    before = torch.get_rng_state()
    as_rbm(P)
    assert torch.equal(before, torch.get_rng_state())


def test_draws_of_the_machine_are_noisy_patterns():
    v = as_rbm(P, 0.2, PI).sample(20_000, generator=0)
    share = torch.bincount(torch.cdist(v, P).argmin(1), minlength=6) / 20_000
    exact = torch.log_softmax(PI, 0).exp()
    assert ((share - exact) / (exact * (1 - exact) / 20_000).sqrt()).abs().max() < 5


@pytest.mark.parametrize("p", (0.01, 0.2, 0.45))
def test_flips(p):
    few, x = states(5, "spin")[[3, 9, 20]], states(5, "spin")
    agree = (x[:, None] == few).sum(-1).to(F64)
    truth = (agree * math.log(1 - p) + (5 - agree) * math.log(p)).log_softmax(1)
    found = log_weights(x, few, 1.0, flip_beta(p) ** -0.5)
    torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-12)


# --- when it knows which

@pytest.mark.parametrize("K, D", [(1000, 20), (20_000, 40), (2, 1), (10**9, 3072), (10**110, 2)])
def test_threshold_of_equal_variances(K, D):
    for v in (1.0, 0.3):
        snr = collapse_snr(torch.full((D,), v, dtype=F64), K).item()
        assert abs(snr * v / (K ** (2 / D) - 1) - 1) < 1e-11


def test_threshold_of_any_variances_solves_its_equation():
    v = numbers(3, 2, 30).exp()
    v[0, 0, :10] = 0
    snr = collapse_snr(v, 5000)
    assert snr.shape == (3, 2)
    nats = gaussian_information(v, snr)
    torch.testing.assert_close(nats, torch.full_like(nats, math.log(5000)), rtol=1e-13, atol=0)
    assert collapse_snr(v[1, 1], 5000) == snr[1, 1]


def test_information_of_many_ratios_at_once():
    snr = numbers(5, 2, seed=9).exp()
    nats = gaussian_information(P[0].square(), snr)
    assert nats.shape == (5, 2) and nats[3, 1] == gaussian_information(P[0].square(), snr[3, 1].item())


def test_slope_of_the_information():
    """Half the squared error of the denoiser (Guo, Shamai, Verdú 2005), on digits with one noise."""
    images = digits()[0].double()
    eps = numbers(*images.shape, seed=11)
    low, high = (own_log_weight(images, torch.arange(len(images)), 1.0, snr**-0.5, seeded(11))
                 for snr in (4.0, 5.0))
    errors = [(denoise(images + eps * snr**-0.5, images, 1.0, snr**-0.5) - images).square().sum(1)
              for snr in torch.linspace(4.05, 4.95, 10).tolist()]
    slope = torch.stack(errors).mean(0)
    half, whole = (Estimate.of(high - low - part * slope) for part in (0.5, 1.0))
    assert abs(half.z(0)) < 4 and half.stderr < 0.01 and abs(whole.z(0)) > 10


# own weights at half the threshold, there, and at twice, as many memories gave them; d = 20, n = 1000
MEASURED = {0.5: 0.194, 1.0: 0.574, 2.0: 0.922}


@pytest.mark.parametrize("multiple, wanted", MEASURED.items())
def test_own_weight_at_the_threshold(multiple, wanted):
    snr = multiple * collapse_snr(torch.ones(20, dtype=F64), 1000).item()
    w = torch.stack([own_log_weight(numbers(1000, 20, seed=s), torch.arange(500), 1.0, snr**-0.5,
                                    100 + s).exp().mean() for s in range(8)])
    found = Estimate.of(w)
    assert abs(found.value - wanted) < 4 * math.hypot(found.stderr, 0.002) and found.stderr < 0.01


def test_own_weight_depends_on_the_ratio_alone():
    index = torch.tensor([3, 0, 5])
    a, b = (own_log_weight(P, index, c, 0.7 * c, [1, 2, 3]) for c in (1.0, 0.01))
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert own_log_weight(P, index, 1.0, 1e-3, 0).exp().min() > 1 - 1e-12
    lost = own_log_weight(P, index, 1.0, 1e9, 0).exp()
    torch.testing.assert_close(lost, torch.full((3,), 1 / 6, dtype=F64))


def test_one_stream_a_copy():
    index = torch.tensor([4, 1, 2])
    own = own_log_weight(P, index, 1.0, 0.8, [7, 8, 9])
    for b in range(3):
        alone = own_log_weight(P, index[b:b + 1], 1.0, 0.8, [7 + b])
        torch.testing.assert_close(alone[0], own[b], rtol=1e-12, atol=0)
    levels = torch.tensor([0.5, 0.8, 1.1], dtype=F64)
    mixed = own_log_weight(P, index, 1.0, levels, [7, 8, 9])
    assert abs(mixed[1] - own[1]) < 1e-12 < (mixed - own).abs()[[0, 2]].min()


def test_stored_result_on_mnist():
    stored = json.loads((ROOT / "benchmarks/results/memory.json").read_text())
    case = stored["own"]["mnist 60000"]
    assert case["patterns"] == 60_000 and case["equal"] < case["predicted"] < case["half"]
    train = digits()[0].double()
    spectrum = torch.linalg.eigvalsh(torch.cov(train.T)).clamp(min=0)
    found = collapse_snr(spectrum, len(train)).item()
    assert abs(stored["own"]["digits"]["predicted"] / found - 1) < 1e-4


def test_attention_without_norms_leaves_the_middle_pattern():
    """What the caption of the figure of the three patterns says, at a noise of 0.7."""
    three = torch.tensor([(2.0, 1.5), (0.0, 1.0), (-1.0, -0.5)], dtype=F64)
    nearest = lambda prior: torch.cdist(denoise(three, three, 1.0, 0.7, prior), three).argmin(1).tolist()
    assert nearest(None) == [0, 1, 2] and nearest(attention_prior(three, 1.0, 0.7)) == [0, 0, 2]
    shares = attention_prior(three, 1.0, 0.7).softmax(0)
    assert shares[0] > 0.9


# --- shapes, dtypes, gradients

@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", (F32, F64))
def test_dtypes_devices_and_batches(dtype, device):
    x, p, pi = (z.to(device, dtype) for z in (X.view(3, 3, 4), P, PI))
    levels = torch.tensor([0.5, 1.0, 2.0], device=device, dtype=dtype)
    w = log_weights(x, p, 1.0, levels, pi)
    assert w.shape == (3, 3, 6) and w.dtype == dtype and w.device.type == device
    tolerance = 1e-5 if dtype == F32 else 1e-12
    for b in range(3):
        one = denoise(X.view(3, 3, 4)[b], P, 1.0, float(levels[b]), PI)
        found = denoise(x, p, 1.0, levels, pi)[b].cpu().double()
        torch.testing.assert_close(found, one, rtol=tolerance, atol=tolerance)
    outcomes = [retrieve(x, p, 1.0, 4.0, 3), attention_prior(p, 1.0, 0.5), as_rbm(p, 0.5, pi).score(x),
                own_log_weight(p, torch.tensor([1, 2], device=device), 1.0, 0.5, 0),
                collapse_snr(p.square(), 10), memory_predictor(p, Cosine())(x, 0.5)]
    assert all(y.dtype == dtype and y.device.type == device for y in outcomes)
    torch.testing.assert_close(outcomes[0].cpu().double(), retrieve(X.view(3, 3, 4), P, 1.0, 4.0, 3),
                               rtol=1e-4, atol=1e-4)


def test_an_offset_costs_little_in_single_precision():
    far = [(z + 1000).float() for z in (X, P)]
    assert (denoise(*far, 1.0, 0.5).double() - 1000 - denoise(X, P, 1.0, 0.5)).abs().max() < 0.01


def test_gradients_flow_through_the_denoiser():
    x, p = X[:2].clone().requires_grad_(), P.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, p: denoise(x, p, 0.8, 0.6), (x, p))
    assert torch.autograd.gradcheck(lambda p: attention_prior(p, 0.8, 0.6), (p,))
    assert torch.autograd.gradcheck(lambda v: gaussian_information(v.exp(), 0.7), (p,))
    J = torch.autograd.functional.jacobian(lambda x: denoise(x, P, 0.8, 0.6), X[0])
    w = log_weights(X[0], P, 0.8, 0.6).exp()
    covariance = (P - w @ P).T @ (w[:, None] * (P - w @ P))
    torch.testing.assert_close(J, 0.8 / 0.6**2 * covariance, rtol=1e-11, atol=1e-12)


def test_the_predictor_keeps_its_patterns():
    mine = P.clone()
    predict = memory_predictor(mine, Cosine())
    before = predict(X, 0.3)
    mine.zero_()
    assert torch.equal(before, predict(X, 0.3))


# --- bad input

BAD = {
    "no tensor": (lambda: denoise([0.0], P, 1.0, 1.0), TypeError, "^x must be a torch.Tensor"),
    "another width":
        (lambda: denoise(X[:, :3], P, 1.0, 1.0), ValueError, r"^x must have shape \[..., 4\]"),
    "one pattern without a batch":
        (lambda: denoise(X, P[0], 1.0, 1.0), ValueError, "^patterns must have"),
    "another dtype": (lambda: denoise(X.float(), P, 1.0, 1.0), TypeError, "^x must be torch.float64"),
    "NaN": (lambda: denoise(X, P * math.nan, 1.0, 1.0), ValueError, "^patterns must be finite"),
    "no noise": (lambda: log_weights(X, P, 1.0, 0.0), ValueError, "^sigma must be positive"),
    "negative signal": (lambda: log_weights(X, P, -1.0, 1.0), ValueError, "^alpha must not be negative"),
    "text as sigma": (lambda: attention_prior(P, 1.0, "a"), TypeError, "^sigma must be a number"),
    "shares of others":
        (lambda: denoise(X, P, 1.0, 1.0, PI[:5]), ValueError, r"^log_prior must .* \[6\]"),
    "levels of others": (lambda: denoise(X, P, 1.0, torch.ones(4)), ValueError, "^alpha, sigma, t must"),
    "a lone pattern": (lambda: as_rbm(P[:1]), ValueError, "^patterns must be at least 2"),
    "a width of 0": (lambda: as_rbm(P, 0.0), ValueError, "^sigma must be finite and above 0"),
    "falling": (lambda: retrieve(X, P, 2.0, 1.0), ValueError, "^end must be finite and above 2.0"),
    "no start": (lambda: retrieve(X, P, 0.0, 1.0), ValueError, "^start must be finite and above 0"),
    "no steps": (lambda: retrieve(X, P, 1.0, 2.0, 0), ValueError, "^steps must be at least 1"),
    "no schedule": (lambda: memory_predictor(P, 3), TypeError, "schedule must"),
    "half of all flipped": (lambda: flip_beta(0.5), ValueError, "^p must be finite and above 0"),
    "numbers as index": (lambda: own_log_weight(P, PI, 1.0, 1.0), TypeError, "^index must be whole"),
    "beyond the patterns": (lambda: own_log_weight(P, torch.tensor([6]), 1.0, 1.0), ValueError,
                            "^index must be numbers of 6 patterns, got 6"),
    "below the patterns": (lambda: own_log_weight(P, torch.tensor([-1, 3]), 1.0, 1.0), ValueError,
                           "^index must be numbers of 6 patterns, got -1"),
    "negative variances": (lambda: collapse_snr(-P.abs(), 5), ValueError, "^variances must not be neg"),
    "no variance": (lambda: collapse_snr(0 * P, 5), ValueError, "^variances must not all be 0"),
    "one variance": (lambda: collapse_snr(P[0, 0].abs(), 5), ValueError, r"^variances must have shape"),
    "one number": (lambda: gaussian_information(P[0, 0].abs(), 1.0), ValueError, "^variances must have"),
    "a ratio beyond the numbers":
        (lambda: collapse_snr(P[:1, :1].abs().float(), 10**30), ValueError, "^n_patterns must be sm"),
    "ratios of others":
        (lambda: gaussian_information(P.abs(), P[0].abs()), ValueError, r"^snr must have shape \[6\]"),
    "NaN as ratio":
        (lambda: gaussian_information(P.abs(), P[0, 0] * math.nan), ValueError, "^snr must be finite"),
    "ratios of another kind":
        (lambda: gaussian_information(P.abs(), torch.tensor(1j)), TypeError, "^snr must be float32"),
    "nothing": (lambda: denoise(None, P, 1.0, 1.0), TypeError, "^x must be a torch.Tensor, got None"),
    "nothing to retrieve": (lambda: retrieve(None, P, 1.0, 2.0), TypeError, "^x must be a torch.Tensor"),
    "a level a number of one state": (lambda: denoise(X[0], P, 1.0, torch.ones(4)), ValueError,
                                      "^alpha, sigma, t must"),
    "a list as index": (lambda: own_log_weight(P, [0], 1.0, 1.0), TypeError, r"^index .* got \[0\]"),
    "too many streams":
        (lambda: own_log_weight(P, torch.tensor([1, 2]), 1.0, 1.0, range(3)), ValueError, "^generator"),
    "one draw": (lambda: collapse_snr(P.abs(), 1), ValueError, "^n_patterns must be at least 2"),
    "a negative ratio": (lambda: gaussian_information(P.abs(), -1.0), ValueError, "^snr must not be"),
}


@pytest.mark.parametrize("call, kind, message", BAD.values(), ids=BAD)
def test_bad_input_is_named(call, kind, message):
    with pytest.raises(kind, match=message): call()


def test_gradients_that_would_be_lost_are_refused():
    p = P.clone().requires_grad_()
    first = torch.tensor([0])
    for call in (lambda: retrieve(X, p, 1.0, 2.0), lambda: own_log_weight(p, first, 1.0, 1.0),
                 lambda: collapse_snr(p.square(), 5)):
        with pytest.raises(ValueError, match="wants a gradient, which would be lost"): call()
