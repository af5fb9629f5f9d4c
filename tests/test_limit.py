"""Score matching, contrastive divergence and pseudo-likelihood against autograd, quadrature, samplers
and tables.
"""
from itertools import pairwise
import math

import pytest
import torch

import machines
from machines import seeded
from rbmdiff.bridge.limit import (
    _smoothed,
    gaussian_cd_gradient,
    langevin_cd_gradient,
    score_matching_gradient,
    score_matching_loss,
    site_cd_gradient,
)
from rbmdiff.foundations.units import Discrete, Gaussian, Potts, ReLU, states
from rbmdiff.learning.contrastive import (
    cd_gradient,
    energy_gradient,
    exact_gradient,
    expected_cd_gradient,
    weighted_statistics,
)
from rbmdiff.learning.score_matching import pseudo_likelihood
from rbmdiff.models.energy import grid
from rbmdiff.models.rbm import RBM

UNITS = ("bernoulli", "spin")
PAIRS = [(v, h) for v in UNITS for h in UNITS]
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def machine(D, H, visible="gaussian", hidden="bernoulli", **options):
    """A small machine whose parameters ask for gradients."""
    return machines.machine(D, H, visible, hidden, **{"scale": 0.8, **options}).requires_grad_()


def real(*shape, seed=1, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=seeded(seed))


def some_states(n, rbm, seed=1):
    return machines.some_states((n, len(rbm.W)), rbm.visible, seed, rbm.W.dtype)


def flat(gradients): return torch.cat([gradients[name].flatten() for name in sorted(gradients)])


# The loss

@pytest.mark.parametrize("hidden", UNITS)
def test_the_loss_is_that_of_the_free_energy(hidden):
    rbm, v = machine(4, 3, hidden=hidden), real(6, 4)
    truth = []
    for y in v:
        jacobian = torch.autograd.functional.jacobian(rbm.score, y)
        truth.append((jacobian.trace() + rbm.score(y).square().sum() / 2).detach())
    loss = score_matching_loss(rbm, v).detach()
    assert (loss - torch.stack(truth)).abs().max() < 1e-12
    assert (loss - rbm.score(v).square().sum(-1) - torch.stack(truth)).abs().max() > 0.1


@pytest.mark.parametrize("hidden", UNITS)
def test_the_loss_is_the_fisher_divergence_less_a_constant(hidden):
    V, cell = grid(-12, 12, 400)
    data = machine(1, 2, hidden=hidden, seed=5)
    p, s_d = data.log_prob(V).exp().detach() * cell, data.score(V).detach()
    gaps = []
    for seed in (11, 12):
        rbm = machine(1, 3, hidden=hidden, seed=seed)
        fisher = p @ (rbm.score(V) - s_d).square().sum(-1) / 2
        gaps.append((fisher - p @ score_matching_loss(rbm, V)).item())
    assert (
        abs(gaps[0] - gaps[1]) < 1e-10 and abs(gaps[0] - (p @ s_d.square().sum(-1) / 2).item()) < 1e-10
    )
    others = [(p @ score_matching_loss(machine(1, 3, seed=k), V)).item() for k in (11, 12)]
    assert (p @ score_matching_loss(data, V)).item() < min(others)


@pytest.mark.parametrize("hidden", UNITS)
def test_the_gradient_of_the_loss_is_that_of_central_differences(hidden):
    rbm, v, h = machine(3, 2, hidden=hidden), real(5, 3), 1e-6
    ours = score_matching_gradient(rbm, v)
    assert torch.equal(flat(score_matching_gradient(rbm.requires_grad_(False), v)), flat(ours))
    for name, p in rbm.named_parameters():
        index = tuple(0 for _ in p.shape)
        values = []
        for sign in (1, -1):
            p[index] += sign * h
            values.append(-score_matching_loss(rbm, v).mean().item())
            p[index] -= sign * h
        assert abs(ours[name][index].item() - (values[0] - values[1]) / (2 * h)) < 1e-7


# Contrastive divergence with one step

@pytest.mark.parametrize("hidden", UNITS)
@pytest.mark.parametrize("step", (0.05, 0.4))
def test_one_langevin_step_against_a_grid_of_noise(hidden, step):
    rbm, v = machine(2, 3, hidden=hidden), real(3, 2)
    X = grid(-8, 8, 160, 2)[0]
    weights = torch.softmax(-X.square().sum(-1) / 2, 0).repeat(3) / 3
    theta = dict(rbm.named_parameters())
    ends = [(v + k * step**2 / 2 * rbm.score(v).detach())[:, None] + step * X for k in (1, -1)]
    truth, mutant = (flat(energy_gradient(rbm.free_energy, theta, v, e.reshape(-1, 2), weights))
                     for e in ends)
    ours = flat(langevin_cd_gradient(rbm, v, step))
    assert (ours - truth).abs().max() < 1e-12 and (ours - mutant).abs().max() > 1e-3 * step**2


@pytest.mark.parametrize("hidden", UNITS)
def test_the_limit_of_small_steps_has_order_two(hidden):
    rbm, v = machine(5, 4, hidden=hidden), real(20, 5)
    limit = flat(score_matching_gradient(rbm, v))
    updates = {e: flat(langevin_cd_gradient(rbm, v, e)) / e**2 for e in (0.04, 0.02, 0.01)}
    gap = [((2 * x - limit).norm() / limit.norm()).item() for x in updates.values()]
    assert all(abs(math.log2(a / b) - 2) < 0.1 for a, b in pairwise(gap)) and gap[-1] < 1e-3
    # the rate e^2
    assert abs(((updates[0.01] - limit).norm() / limit.norm()).item() - 0.5) < 0.01


@pytest.mark.parametrize("hidden", UNITS)
def test_the_mean_of_cd1_with_gaussian_units(hidden):
    rbm, v = machine(3, 3, hidden=hidden), real(4, 3)
    estimate = lambda k, n: flat(cd_gradient(rbm, v.repeat(400, 1), k, generator=seeded(n))[0])
    draws = {k: torch.stack([estimate(k, n) for n in range(60)]) for k in (1, 2)}
    ours = flat(gaussian_cd_gradient(rbm, v))
    z = {k: ((x.mean(0) - ours) / (x.std(0) / 60**0.5)).abs().max().item() for k, x in draws.items()}
    assert z[1] < 4 and z[2] > 6 and (draws[1].std(0) / 60**0.5).max() < 0.02


def test_without_weights_cd1_is_maximum_likelihood():
    rbm, v = machine(3, 2), real(6, 3)
    rbm.W.data.zero_()
    exact = flat(exact_gradient(rbm, v))
    assert (flat(gaussian_cd_gradient(rbm, v)) - exact).abs().max() < 1e-12
    assert (flat(langevin_cd_gradient(rbm, v, 0.1)) - exact).abs().max() > 0.1


@pytest.mark.parametrize("hidden", UNITS)
@pytest.mark.parametrize("scale", (0.8, 4))
def test_clouds_of_the_machine_itself_give_the_exact_gradient(hidden, scale):
    """At scale 4 fields are 14 wide, which takes 511 nodes for bits and 1019 for spins."""
    ratios = []
    for seed in range(5):
        rbm, v, S = machine(3, 4, hidden=hidden, scale=scale, seed=seed), real(5, 3), states(4, hidden)
        rbm.requires_grad_(False)
        data = flat(weighted_statistics(rbm, v, rbm.hidden_mean(v), v.new_full((5,), 0.2)))
        p, mu = torch.softmax(-rbm.hidden_free_energy(S), 0), rbm.visible_mean(S)
        model = flat(_smoothed(rbm, mu, rbm.sigma**2, -p))
        centres = flat(weighted_statistics(rbm, mu, rbm.hidden_mean(mu), -p))
        exact = flat(exact_gradient(rbm, v))
        ratios.append([(data + x - exact).abs().max() / exact.abs().max() for x in (model, centres)])
    gap, control = torch.tensor(ratios).T
    assert gap.max() < 1e-12 < 1e-4 < control.min() and control.median() > 1e-3


# Bits

@pytest.mark.parametrize("visible, hidden", PAIRS)
def test_pseudo_likelihood_against_the_table(visible, hidden):
    rbm, V, index = machine(5, 3, visible, hidden), states(5, visible), torch.arange(32)
    log_p = rbm.log_prob(V).detach()
    others = torch.stack([log_p[index ^ (1 << i)] for i in range(5)], 1)
    truth = (log_p[:, None] - torch.logaddexp(log_p[:, None], others)).sum(1)
    ours = -pseudo_likelihood(rbm, V).detach()
    assert (ours - truth).abs().max() < 1e-12 and (ours - log_p).abs().max() > 0.01


@pytest.mark.parametrize("visible, hidden", PAIRS)
def test_one_random_unit_is_the_gradient_of_the_pseudo_likelihood(visible, hidden):
    rbm, V, index = machine(4, 3, visible, hidden), states(4, visible), torch.arange(16)
    v, p, P = (
        some_states(6, rbm),
        rbm.log_prob(V).exp().detach(),
        torch.zeros(16, 16, dtype=torch.float64),
    )
    for i in range(4):
        other = index ^ (1 << i)
        P[index, other] += p[other] / (p + p[other]) / 4
        P[index, index] += p / (p + p[other]) / 4
    mu = (V == v[:, None]).all(-1).double().mean(0)
    chain = flat(energy_gradient(rbm.free_energy, dict(rbm.named_parameters()), v, V, mu @ P))
    ours = flat(site_cd_gradient(rbm, v))
    assert (ours - chain).abs().max() < 1e-13 and (
        ours - flat(expected_cd_gradient(rbm, v))
    ).abs().max() > 1e-3
    frozen = flat(site_cd_gradient(rbm.requires_grad_(False), v))
    assert torch.equal(frozen, ours)


def test_independent_units_have_their_likelihood_as_pseudo_likelihood():
    rbm = machine(4, 3, "bernoulli")
    v = some_states(6, rbm)
    assert (pseudo_likelihood(rbm, v) + rbm.log_prob(v)).abs().max() > 1e-3
    rbm.W.data.zero_()
    assert (pseudo_likelihood(rbm, v) + rbm.log_prob(v)).abs().max() < 1e-12


# Shapes, dtypes, devices

@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_shapes_and_dtypes(dtype):
    g, b = machine(4, 3, dtype=dtype), machine(4, 3, "spin", dtype=dtype)
    v, bits = real(2, 3, 4, dtype=dtype), some_states(6, b).reshape(2, 3, 4)
    for loss, rbm, x in ((score_matching_loss, g, v), (pseudo_likelihood, b, bits)):
        whole = loss(rbm, x)
        assert whole.shape == (2, 3) and whole.dtype == dtype
        assert (whole[1, 2] - loss(rbm, x[1, 2])).abs() < 1e-5 and loss(rbm, x[0, 0]).shape == ()
    for gradients in (score_matching_gradient(g, v), langevin_cd_gradient(g, v, 0.1),
                      gaussian_cd_gradient(g, v),
                      site_cd_gradient(b, bits)):
        parameters = dict((g if "log_sigma" in gradients else b).named_parameters())
        assert gradients.keys() == parameters.keys() and not any(
            x.requires_grad for x in gradients.values()
        )
        assert all(x.dtype == dtype and x.shape == parameters[n].shape for n, x in gradients.items())
    single = machine(4, 3, dtype=torch.float64)
    for n, p in g.named_parameters(): dict(single.named_parameters())[n].data = p.data.double()
    ours, precise = (
        flat(gaussian_cd_gradient(g, v)).double(),
        flat(gaussian_cd_gradient(single, v.double())),
    )
    assert (ours - precise).abs().max() < 1e-4


def test_tilted_machines_have_losses():
    rbm, field = machine(4, 3), real(3, 4, seed=4)
    v = real(3, 4)
    together = score_matching_loss(rbm.tilt(field), v)
    assert (together - torch.stack([score_matching_loss(rbm.tilt(f), x)
                                    for f, x in zip(field, v)])).abs().max() < 1e-12


@cuda
def test_cuda():
    def everything(g, b, v, bits):
        return [score_matching_loss(g, v), flat(langevin_cd_gradient(g, v, 0.2)),
                flat(gaussian_cd_gradient(g, v)),
                flat(score_matching_gradient(g, v)), pseudo_likelihood(b, bits),
                flat(site_cd_gradient(b, bits))]

    g, b = machine(4, 3), machine(4, 3, "bernoulli")
    v, bits = real(5, 4), some_states(5, b)
    here = everything(g, b, v, bits)
    there = everything(g.cuda(), b.cuda(), v.cuda(), bits.cuda())
    assert all(x.is_cuda and (x.cpu() - y).abs().max() < 1e-10 for x, y in zip(there, here))


# Other kinds of unit

@pytest.mark.parametrize("hidden", [Discrete((-1, 0, 1)), Potts(3), Gaussian(), ReLU()], ids=str)
def test_the_loss_takes_hidden_units_of_any_kind_with_a_variance(hidden):
    """Potts units are the control: their columns are not independent, so that the trace is another one.
    """
    rbm, v = machine(3, 3, hidden=hidden, scale=0.3), real(4, 3)
    truth = [torch.autograd.functional.jacobian(rbm.score, y).trace() for y in v]
    gap = score_matching_loss(rbm, v) - rbm.score(v).square().sum(-1) / 2 - torch.stack(truth)
    assert (gap.abs().max() < 1e-12) == (hidden != Potts(3))


def test_hidden_units_of_any_two_levels_have_the_limit_and_the_mean_of_cd1():
    rbm, v = machine(4, 3, hidden=Discrete((-0.5, 2))), real(6, 4)
    limit = flat(score_matching_gradient(rbm, v))
    gap = [(2 / e**2 * flat(langevin_cd_gradient(rbm, v, e)) - limit).norm() / limit.norm()
           for e in (0.02, 0.01)]
    assert abs(math.log2(gap[0] / gap[1]) - 2) < 0.1 and gap[1] < 1e-2
    draws = torch.stack([flat(cd_gradient(rbm, v.repeat(200, 1), generator=seeded(i))[0])
                         for i in range(60)])
    z = (draws.mean(0) - flat(gaussian_cd_gradient(rbm, v))) / (draws.std(0) / 60**0.5)
    assert z.abs().max() < 4.5


@pytest.mark.parametrize("levels", [(0, 2), (-1, 3)])
def test_pseudo_likelihood_of_any_two_levels(levels):
    rbm = machine(4, 3, Discrete(levels, 0.4))
    V, index = states(4, rbm.visible), torch.arange(16)
    log_p = rbm.log_prob(V)
    flipped = torch.stack([log_p[index ^ (1 << i)] for i in range(4)], 1)
    truth = (log_p[:, None] - torch.logaddexp(log_p[:, None], flipped)).sum(1)
    assert (pseudo_likelihood(rbm, V) + truth).abs().max() < 1e-12
    wrong = machine(4, 3, Discrete(levels))                              # control: without the curvature
    assert (pseudo_likelihood(wrong, V) + truth).abs().max() > 0.1
    theta = torch.autograd.grad(truth.mean() / 4, tuple(rbm.parameters()))
    ours = site_cd_gradient(rbm, V)
    assert max((ours[n] - x).abs().max() for (n, _), x in zip(rbm.named_parameters(), theta)) < 1e-12


# Bad input

BITS, REAL = RBM(4, 3), RBM(4, 3, "gaussian")
TERNARY = RBM(4, 3, "gaussian", "discrete((-1, 0, 1))")
V = torch.zeros(5, 4)


@pytest.mark.parametrize("call, error, match", [
    (lambda: score_matching_loss(BITS, V), ValueError, "rbm.*pseudo_likelihood"),
    (lambda: score_matching_loss("rbm", V), TypeError, "rbm"),
    (lambda: score_matching_loss(REAL, V[:, :3]), ValueError, "v must have shape"),
    (lambda: score_matching_loss(REAL, V.double()), TypeError, "v must be torch.float32"),
    (lambda: score_matching_loss(REAL, V * math.nan), ValueError, "v must be finite"),
    (lambda: score_matching_gradient(BITS, V), ValueError, "rbm.*pseudo_likelihood"),
    (lambda: score_matching_gradient(REAL.tilt(V[0]), V), ValueError, "rbm.*tilted"),
    (lambda: langevin_cd_gradient(BITS, V, 0.1), ValueError, "rbm.*gaussian"),
    (lambda: langevin_cd_gradient(REAL, V, 0.0), ValueError, "step"),
    (lambda: langevin_cd_gradient(REAL, V, math.inf), ValueError, "step"),
    (lambda: langevin_cd_gradient(REAL, V, math.nan), ValueError, "step"),
    (lambda: langevin_cd_gradient(REAL.tilt(V[0]), V, 0.1), ValueError, "rbm.*tilted"),
    (lambda: gaussian_cd_gradient(BITS, V), ValueError, "rbm.*gaussian"),
    (lambda: gaussian_cd_gradient(REAL.tilt(V[0]), V), ValueError, "rbm.*tilted"),
    (lambda: gaussian_cd_gradient(RBM(4, 26, "gaussian"), V), ValueError, "rbm.*25 hidden.*cd_gradient"),
    (lambda: gaussian_cd_gradient(REAL, V[:0]), ValueError, "v must not be empty"),
    (lambda: gaussian_cd_gradient(TERNARY, V), ValueError, "rbm must have hidden units of two levels"),
    (lambda: langevin_cd_gradient(TERNARY, V, 0.1), ValueError, "rbm must have hidden units of two"),
    (lambda: score_matching_loss(RBM(4, 3, "relu"), V), ValueError, "rbm.*gaussian.*'relu'"),
    (lambda: site_cd_gradient(REAL, V), ValueError, "rbm.*score_matching_loss"),
    (lambda: site_cd_gradient(BITS, V - 1), ValueError, "v must hold only 0 or 1"),
    (lambda: site_cd_gradient(BITS.tilt(V[0]), V), ValueError, "rbm.*tilted"),
])
def test_bad_input_is_refused_by_name(call, error, match):
    with pytest.raises(error, match=match): call()
