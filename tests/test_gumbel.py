"""Noisy logits against exact probabilities, and every gradient estimator against its enumerated
expectation.
"""
import math

import pytest
import torch

import machines
from machines import seeded
from rbmdiff.bridge.gumbel import (
    concrete,
    concrete_gradient,
    expectation_gradient,
    flip_gradient,
    gumbel_max,
    mean_field_gradient,
    score_function_gradient,
    straight_through_gradient,
)
from rbmdiff.bridge.meanfield import score
from rbmdiff.foundations.kernels import draw_bits
from rbmdiff.foundations.units import Bernoulli, states

DTYPES = (torch.float32, torch.float64)
HIDDEN = ("bernoulli", "spin")
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def machine(D=5, H=4, **options):
    """A machine with parameters of size one."""
    return machines.machine(D, H, scale=1.0, **options)


def energies(hidden="bernoulli", dtype=torch.float64):
    """Functions of five bits: the free energies of a machine of bits and of one of spins."""
    bits, spins = (machine(visible=visible, hidden=hidden, dtype=dtype)
                   for visible in ("bernoulli", "spin"))
    return bits.free_energy, lambda v: spins.free_energy(2 * v - 1)


def some_logits(*shape, seed=1, dtype=torch.float64):
    return 1.5 * torch.randn(shape, dtype=torch.float64, generator=seeded(seed)).to(dtype)


def probabilities(a): return torch.exp(states(len(a)) @ a - Bernoulli().log_norm(a).sum())


def z_scores(draws,
             truth):
    return ((draws.mean(0) - truth) / (draws.std(0) / len(draws) ** 0.5)).abs().max().item()


def estimators(f, generator=None):
    """All of them, as functions of logits and number of samples."""
    return {"concrete": lambda a, n: concrete_gradient(f, a, 0.7, n, generator),
            "hard": lambda a, n: concrete_gradient(f, a, 0.7, n, generator, hard=True),
            "mean": lambda a, n: straight_through_gradient(f, a, n, generator),
            "trapezoid": lambda a, n: straight_through_gradient(f, a, n, generator, "trapezoid"),
            "none": lambda a, n: score_function_gradient(f, a, n, generator),
            "leave_one_out": lambda a, n: score_function_gradient(f, a, n, generator, "leave_one_out"),
            "mean_field": lambda a, n: score_function_gradient(f, a, n, generator, "mean_field"),
            "flips": lambda a, n: flip_gradient(f, a, n, generator)}


# Draws

@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("logits",
                         ([0.3, -1.0, 2.0], [0.0, 0.0], [5.0], [-2.0, 1.0, 0.5, -30.0, 1.2, 0.1]))
def test_gumbel_max_draws_from_the_softmax(logits, dtype):
    a, n = torch.tensor(logits, dtype=dtype), 2**15
    k = gumbel_max(a.expand(n, len(a)), seeded(0))
    p = torch.softmax(a.double(), 0)
    error = (p * (1 - p) / n).sqrt().clamp(min=1 / n)
    gap = (torch.bincount(k, minlength=len(a)) / n - p).abs() / error
    assert k.dtype == torch.int64 and k.shape == (n,) and gap.max() < 4
    if len(a) == 3:
        assert ((torch.bincount(k, minlength=3) / n
                 - torch.softmax(1.1 * a.double(), 0)).abs() / error).max() > 4


def test_noise_does_not_depend_on_the_dtype():
    a = some_logits(40, 7)
    for function in (gumbel_max, lambda x, g: concrete(x, 0.5, g).round()):
        assert torch.equal(function(a.float().double(), seeded(2)).double(),
                           function(a.float(), seeded(2)).double())


def test_a_common_shift_changes_no_category():
    a = some_logits(50, 4)
    assert torch.equal(gumbel_max(a, seeded(3)), gumbel_max(a + 8, seeded(3)))


@pytest.mark.parametrize("tau", (0.05, 0.5, 1.0, 4.0, 2))
def test_a_rounded_relaxed_bit_is_the_bit_of_the_sampler(tau):
    a = some_logits(3, 2, 500)
    v = concrete(a, tau, seeded(4))
    assert torch.equal((v > 0.5).double(), draw_bits(a, torch.zeros_like(a), 0, seeded(4)))
    assert v.shape == a.shape


@pytest.mark.parametrize("dtype", DTYPES)
def test_concrete_is_differentiable_and_keeps_dtype(dtype):
    a = some_logits(30, 6, dtype=dtype).requires_grad_()
    v = concrete(a, 0.8, seeded(5))
    slope, = torch.autograd.grad(v.sum(), a)
    assert v.dtype == dtype and torch.allclose(slope, (v * (1 - v) / 0.8).detach(), rtol=1e-4, atol=1e-6)


def test_limits_of_the_temperature():
    a = some_logits(2000)
    assert set(concrete(a, 1e-9, seeded(6)).tolist()) == {0.0, 1.0}
    assert (concrete(a, 1e9, seeded(6)) - 0.5).abs().max() < 1e-6


@pytest.mark.parametrize("tau", (0.3, 1.0, 2.5))
def test_distribution_function_of_a_relaxed_bit(tau):
    n, a = 20000, torch.tensor([1.3, -0.4], dtype=torch.float64)
    cuts = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    below = (concrete(a.expand(n, 2), tau, seeded(5)) <= cuts[:, None, None]).double().mean(1)

    def z(t):
        P = torch.sigmoid(t * torch.logit(cuts)[:, None] - a)
        return ((below - P) / (P * (1 - P) / n).sqrt()).abs().max()

    assert z(tau) < 4 < 8 < z(1.2 * tau)


# Exact gradient

@pytest.mark.parametrize("hidden", HIDDEN)
def test_exact_gradient_equals_autograd(hidden):
    for f in energies(hidden):
        a = some_logits(5).requires_grad_()
        truth, = torch.autograd.grad(probabilities(a) @ f(states(5)), a)
        assert (expectation_gradient(f, a) - truth).abs().max() < 1e-13
        assert (expectation_gradient(f, -a) - truth).abs().max() > 0.01


def test_exact_gradient_in_pieces_and_in_batches(monkeypatch):
    f, a = energies()[0], some_logits(2, 3, 5)
    whole = expectation_gradient(f, a)
    rows = torch.stack([expectation_gradient(f, x) for x in a.reshape(-1, 5)]).reshape(a.shape)
    assert whole.shape == a.shape and (whole - rows).abs().max() < 1e-13
    shifted = expectation_gradient(lambda v: f(v) + 1e3, a)
    assert (shifted - whole).abs().max() < 1e-11
    # 2^18 states, several pieces
    wide = some_logits(18)
    linear = expectation_gradient(lambda v: v @ wide, wide)
    assert (linear - wide * torch.sigmoid(wide) * torch.sigmoid(-wide)).abs().max() < 1e-11


# Estimators

@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("name", ("none", "leave_one_out", "mean_field", "flips"))
def test_unbiased_estimators(name, hidden):
    for f in energies(hidden):
        a = some_logits(5, seed=3)
        truth = expectation_gradient(f, a)
        draws = estimators(f, seeded(7))[name](a.expand(2**13, 5), 2).mean(0)
        assert z_scores(draws, truth) < 4 and draws.std(0).max() / 2**6.5 < 0.2
        assert z_scores(draws, 1.5 * truth) > 4


@pytest.mark.parametrize("hidden", HIDDEN)
def test_biased_estimators_have_the_expectations_of_their_rules(hidden):
    for f in energies(hidden):
        a, V, eye = some_logits(5, seed=4), states(5), torch.eye(5, dtype=torch.float64)
        m, p = torch.sigmoid(a), probabilities(some_logits(5, seed=4))

        def slope(u):
            x = (V[:, None] * (1 - eye) + u * eye).requires_grad_()
            return torch.einsum("v,vii->i", p, torch.autograd.grad(f(x).sum(), x)[0])

        on, off, spread = slope(1), slope(0), m * (1 - m)
        rules = {"mean": spread * (m * on + (1 - m) * off), "trapezoid": spread * (on + off) / 2}
        for name, truth in rules.items():
            draws = estimators(f, seeded(8))[name](a, 2**14)
            assert z_scores(draws, truth) < 4 < 8 < max(z_scores(draws, x) for x in rules.values())


def test_all_rules_agree_on_a_linear_function():
    w, a = some_logits(5, seed=5), some_logits(5, seed=6)
    f, m = (lambda v: v @ w), torch.sigmoid(some_logits(5, seed=6))
    truth = w * m * (1 - m)
    assert (expectation_gradient(f, a) - truth).abs().max() < 1e-14
    assert torch.allclose(mean_field_gradient(f, a), truth)
    for name in ("mean", "mean_field", "flips"):                               # no variance either
        assert (estimators(f, seeded(9))[name](a, 20) - truth).abs().max() < 1e-13
    assert (estimators(f, seeded(9))["trapezoid"](a, 20) - truth).abs().max() > 0.01


def test_mean_field_is_minus_the_score_of_the_source():
    rbm, a = machine(), some_logits(3, 5)
    assert (mean_field_gradient(rbm.free_energy, a) + score(rbm, a)).abs().max() < 1e-14


def test_concrete_gradient_is_the_gradient_of_the_relaxed_mean():
    f, a, n = energies()[0], some_logits(5), 300
    x = a.clone().requires_grad_()
    truth, = torch.autograd.grad(f(concrete(x.expand(n, 5), 0.6, seeded(10))).mean(), x)
    assert (concrete_gradient(f, a, 0.6, n, seeded(10)).mean(0) - truth).abs().max() < 1e-13
    assert (concrete_gradient(f, a, 0.7, n, seeded(10)).mean(0) - truth).abs().max() > 1e-3


def test_a_linear_function_has_the_known_variance_at_a_small_temperature():
    w, a, tau = some_logits(4, seed=13), some_logits(4, seed=14), 0.02
    m = torch.sigmoid(a)
    variance = concrete_gradient(lambda v: v @ w, a, tau, 2**17, seeded(12)).var(0) * tau
    limit = w**2 * m * (1 - m) / 6
    assert ((variance - limit) / limit).abs().max() < 0.1 < ((variance - 2 * limit) / limit).abs().min()


def test_bias_halves_with_a_small_temperature():
    f, a = energies()[0], some_logits(5, seed=11)
    truth = expectation_gradient(f, a)
    linear = mean_field_gradient(f, a) / (torch.sigmoid(a) * torch.sigmoid(-a))
    biases = []
    # common noise in `f` and its linear part
    for tau in (0.4, 0.2):
        rest = (concrete_gradient(g, a, tau, 2**17, seeded(12)) for g in (f, lambda v: v @ linear))
        rest = next(rest) - next(rest)
        known = expectation_of_slope(a, tau) * linear
        biases.append((rest.mean(0) + known - truth).norm().item())
    assert 1.7 < biases[0] / biases[1] < 4.3


def expectation_of_slope(a, tau):
    """Mean of s (1 - s) / tau, s = sigmoid((a + L) / tau), by a sum over the probability of L."""
    u = (torch.arange(200000, dtype=torch.float64) + 0.5) / 200000
    s = torch.sigmoid((a[:, None] + torch.logit(u)) / tau)
    return (s * (1 - s)).mean(1) / tau


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ((5,), (3, 5), (2, 1, 5)))
def test_shapes_and_dtypes(shape, dtype):
    f, a = energies(dtype=dtype)[0], some_logits(*shape, dtype=dtype).requires_grad_()
    for name, draw in estimators(f, seeded(15)).items():
        g = draw(a, 4)
        assert (
            g.shape == (4, *shape) and g.dtype == dtype and not g.requires_grad and g.isfinite().all()
        ), name
    for g in (mean_field_gradient(f, a), expectation_gradient(f, a)):
        assert g.shape == shape and g.dtype == dtype
    with torch.no_grad():
        assert torch.equal(mean_field_gradient(f, a), mean_field_gradient(f, a.detach()))


def test_saturated_logits_give_no_gradient_and_no_nan():
    f, a = energies()[0], torch.tensor([800.0, -800.0, 40.0, -40.0, 0.0], dtype=torch.float64)
    for name, draw in estimators(f, seeded(16)).items():
        g = draw(a, 50)
        assert g.isfinite().all() and g[:, :2].abs().max() == 0, name


def test_a_seed_repeats_the_draws_and_the_argument_is_left_alone():
    f, a = energies()[0], some_logits(5)
    before = a.clone()
    for name in estimators(f):
        x, y, other = (estimators(f, seeded(k))[name](a, 6) for k in (17, 17, 18))
        assert torch.equal(x, y) and not torch.equal(x, other), name
    assert torch.equal(a, before)


DRAWS = {"gumbel": lambda rows, g: gumbel_max(some_logits(5, 4)[rows], g),
         "concrete": lambda rows, g: concrete(some_logits(5, 4)[rows], 0.7, g)}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_every_row_of_logits_has_its_own_stream(draw):
    rows, seeds = list(range(5)), [21, 22, 23, 24, 25]
    together = draw(rows, seeds)
    alone = torch.cat([draw([b], [seeds[b]]) for b in rows])
    torch.testing.assert_close(together, alone, rtol=1e-14, atol=0)         # but for rounding
    # control: other streams
    assert not torch.equal(together, draw(rows, seeds[::-1]))
    assert torch.equal(draw(rows, 7), draw(rows, seeded(7)))
    assert not torch.equal(draw(rows, 7), draw(rows, 8))
    with pytest.raises(ValueError, match="^generator must hold"):
        draw(rows, seeds[:4])


@pytest.mark.parametrize("name", sorted(set(estimators(None)) - {"leave_one_out"}))
@pytest.mark.parametrize("shape", ((5,), (2, 5)))
def test_every_sample_of_an_estimator_has_its_own_stream(name, shape):
    f, a, seeds = energies()[0], some_logits(*shape), [21, 22, 23, 24]
    estimate = lambda n, g: estimators(f, g)[name](a, n)
    together = estimate(4, seeds)
    torch.testing.assert_close(together, torch.cat([estimate(1, [k]) for k in seeds]), rtol=1e-12,
                               atol=1e-12)
    # control: other streams
    assert not torch.allclose(together, estimate(4, seeds[::-1]))
    assert torch.equal(estimate(4, 7), estimate(4, seeded(7)))
    with pytest.raises(ValueError, match="^generator must hold"):
        estimate(4, seeds[:3])


def test_leave_one_out_draws_by_the_streams_of_its_samples():
    f, a = energies()[0], some_logits(5)
    leave = lambda seeds: score_function_gradient(f, a, len(seeds), seeds, "leave_one_out")
    torch.testing.assert_close(leave([1, 2, 3]), leave([3, 1, 2])[[1, 2, 0]], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(leave([1, 2, 3]), leave([1, 2, 4]))


@cuda
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu(dtype):
    rbm, a = machine(dtype=dtype).to("cuda"), some_logits(5, dtype=dtype).cuda()
    f, truth = rbm.free_energy, expectation_gradient(machine().free_energy, some_logits(5)).to(dtype)
    assert torch.allclose(expectation_gradient(f, a).cpu(), truth, atol=1e-4)
    for name in ("none", "mean_field", "flips"):
        draws = estimators(f, seeded(19, "cuda"))[name](a, 2**14)
        assert draws.is_cuda and z_scores(draws.double().cpu(), truth.double()) < 4.5
    v = concrete(a, 0.5, seeded(20, "cuda"))
    assert v.is_cuda and gumbel_max(a, seeded(20, "cuda")).is_cuda
    assert concrete_gradient(f, a, 0.5, 3, seeded(21, "cuda"), True).is_cuda


# Bad input

GOOD = torch.zeros(3, dtype=torch.float64)
CALLS = {"gumbel_max": lambda a: gumbel_max(a), "concrete": lambda a: concrete(a, 1.0),
         "exact": lambda a: expectation_gradient(lambda v: v.sum(-1), a),
         "mean_field_alone": lambda a: mean_field_gradient(lambda v: v.sum(-1), a),
         **{name: lambda a, name=name: estimators(lambda v: v.sum(-1))[name](a, 2)
            for name in estimators(None)}}


@pytest.mark.parametrize("name", CALLS)
def test_bad_logits(name):
    argument = "logits" if name == "gumbel_max" else "a"
    for bad in (GOOD / 0, GOOD + math.inf, GOOD[:0], GOOD[0]):
        with pytest.raises(ValueError, match=f"^{argument} must"): CALLS[name](bad)
    for bad in (GOOD.int(), [0.0, 1.0], GOOD.half()):
        with pytest.raises(TypeError, match=f"^{argument} must"): CALLS[name](bad)


@pytest.mark.parametrize("tau", (0, 0.0, -1.0, math.inf, math.nan))
def test_bad_temperature(tau):
    for call in (lambda: concrete(GOOD, tau), lambda: concrete_gradient(lambda v: v.sum(-1), GOOD, tau)):
        with pytest.raises(ValueError, match="^tau must be finite and above 0"): call()


def test_a_temperature_that_is_no_number():
    for bad in ("1", True, GOOD, None):
        with pytest.raises(TypeError, match="^tau must be a number"): concrete(GOOD, bad)


@pytest.mark.parametrize("name", estimators(None))
def test_bad_samples(name):
    draw = estimators(lambda v: v.sum(-1))[name]
    with pytest.raises(ValueError, match="^samples must be at least"): draw(GOOD, 0)
    with pytest.raises(TypeError, match="^samples must be an int"): draw(GOOD, 2.0)


def test_leave_one_out_needs_two():
    with pytest.raises(ValueError, match="^samples must be at least 2"):
        estimators(energies()[0])["leave_one_out"](some_logits(5), 1)


def test_unknown_choices():
    with pytest.raises(ValueError, match="^rule must be one of 'mean', 'trapezoid'"):
        straight_through_gradient(energies()[0], some_logits(5), rule="midpoint")
    with pytest.raises(ValueError, match="^baseline must be one of 'none'"):
        score_function_gradient(energies()[0], some_logits(5), 2, baseline="batch")


def test_too_many_bits_name_the_way_out():
    with pytest.raises(ValueError, match="^a must have at most 25 units.*flip_gradient"):
        expectation_gradient(lambda v: v.sum(-1), torch.zeros(26))


@pytest.mark.parametrize("name", [name for name in CALLS if name not in ("gumbel_max", "concrete")])
def test_functions_of_a_wrong_shape(name):
    for f in (lambda v: v, lambda v: 0.0):
        call = {"exact": lambda: expectation_gradient(f, GOOD),
                "mean_field_alone": lambda: mean_field_gradient(f, GOOD)}
        with pytest.raises(ValueError, match="^f must map shape"):
            call.get(name, lambda: estimators(f)[name](GOOD, 2))()


@pytest.mark.parametrize("name", ("concrete", "hard", "mean", "trapezoid", "mean_field"))
def test_functions_without_a_derivative(name):
    with pytest.raises(ValueError, match="^f must be differentiable"):
        estimators(lambda v: v.detach().sum(-1))[name](GOOD, 2)
