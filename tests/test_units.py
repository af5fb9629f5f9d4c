"""Kinds of unit: one function knows everything, draws, states, enumeration, names, observation through noise, bad input."""
from dataclasses import dataclass
import math
import re

from hypothesis import given, settings, strategies as st
from machines import seeded
import mpmath
import numpy as np
import pytest
import torch

from rbmdiff.foundations.core import as_generator
from rbmdiff.foundations.units import (
    Bernoulli, Binary, Binomial, Discrete, Gaussian, Poisson, Potts, ReLU, Spin, Unit, as_unit, bits_of, chunks, check_layer,
    log_erfcx, numbered, positive_normal, rectified, states)

BITS = (Bernoulli(), Spin())
LISTED = (*BITS, Binary((-0.5, 2.0)), Discrete((-1.0, 0.0, 1.0)), Discrete((0.0, 1.0, 3.0), 0.8), Binomial(4), Binomial(3, 0.5))
ALL = (*LISTED, Potts(3), Poisson(), Gaussian(), ReLU())
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
fields = st.floats(-1e4, 1e4, allow_subnormal=False)
quick = settings(max_examples=50, deadline=None)
named = lambda units: pytest.mark.parametrize("unit", units, ids=str)
f64 = {"dtype": torch.float64}


def exact_cumulant(x, unit):
    with mpmath.workdps(50):
        return float(mpmath.log1p(mpmath.exp(x)) if unit == Bernoulli() else mpmath.log(2 * mpmath.cosh(x)))


@named(BITS)
@quick
@given(x=fields)
def test_cumulant_is_the_log_of_the_sum_of_weights(unit, x):
    got = unit.log_norm(torch.tensor(x, dtype=torch.float64)).item()
    assert got == pytest.approx(exact_cumulant(x, unit), rel=1e-15, abs=5e-324)


@named(BITS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_cumulant_and_mean_at_the_ends(unit, dtype):
    x = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4], dtype=dtype)
    low = unit.levels[0]
    assert unit.log_norm(x).dtype == unit.mean(x).dtype == dtype
    assert torch.isfinite(unit.log_norm(x)).all()
    assert unit.log_norm(x)[-1] == 1e4 and unit.log_norm(x)[0] == (0.0 if low == 0 else 1e4)
    assert unit.mean(x)[[0, -1]].tolist() == [low, 1.0]


def test_a_spin_is_a_bit_with_twice_the_field():
    x = torch.linspace(-20, 20, 401, dtype=torch.float64)
    assert torch.allclose(Spin().mean(x), 2 * Bernoulli().mean(2 * x) - 1, atol=1e-15, rtol=0)
    assert torch.allclose(Spin().log_norm(x), Bernoulli().log_norm(2 * x) - x, atol=1e-13, rtol=0)


@named(LISTED)
def test_a_listed_unit_is_the_sum_over_its_states(unit):
    x = torch.linspace(-5, 5, 11, dtype=torch.float64)
    v = torch.tensor(unit.levels, dtype=torch.float64)
    ways = torch.tensor([math.comb(unit.n, int(k)) for k in unit.levels]).log() if hasattr(unit, "n") else torch.zeros(len(v))
    log_w = x[:, None] * v + ways.double() - unit.curvature / 2 * v**2
    p = log_w.softmax(-1)
    close = lambda a, b, tol=1e-13: torch.testing.assert_close(a, b, rtol=1e-6 if hasattr(unit, "n") else tol, atol=tol)
    close(unit.log_norm(x), log_w.logsumexp(-1))
    close(unit.mean(x), p @ v)
    close(unit.variance(x), p @ v**2 - (p @ v) ** 2)
    for b in (0.3, -1.1):
        close(-unit.energy(v, torch.tensor(b, **f64)), b * v + ways.double() - unit.curvature / 2 * v**2)


@named([u for u in ALL if u != Potts(3)])
def test_mean_and_variance_are_derivatives(unit):
    x = torch.linspace(-5, 5, 11, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit.log_norm, x)
    slope, = torch.autograd.grad(unit.log_norm(x).sum(), x)
    torch.testing.assert_close(slope, unit.mean(x).detach(), rtol=1e-12, atol=1e-14)
    curve, = torch.autograd.grad(unit.mean(x).sum(), x)
    torch.testing.assert_close(curve, unit.variance(x).detach(), rtol=1e-10, atol=1e-13)


@named([u for u in ALL if u != Potts(3)])
def test_slope_is_the_derivative_of_minus_the_energy(unit):
    v = torch.tensor([0.2, 0.9, 1.7, 2.4], **f64).requires_grad_()
    b, sigma = torch.tensor(0.4, **f64), torch.tensor(0.7, **f64) if unit.wide else None
    slope, = torch.autograd.grad(-unit.energy(v, b, sigma).sum(), v)
    torch.testing.assert_close(unit.slope(v.detach(), b, sigma), slope, rtol=1e-12, atol=1e-13)
    assert (unit.slope(v.detach(), -b, sigma) - slope).abs().min() > 0.1


@named((Gaussian(), ReLU()))
def test_units_with_a_width_are_normal_densities(unit):
    y, b, sigma = torch.tensor([-2.0, 0.3, 4.0], **f64), torch.tensor(0.5, **f64), torch.tensor(0.8, **f64)
    v = torch.arange(-40_000, 40_000, **f64) * 5e-4 + 2.5e-4
    if unit == ReLU(): v = v[v > 0]
    log_w = -unit.energy(v[:, None], b, sigma) + unit.coupled(v[:, None], sigma) * (y - b)
    p = log_w.softmax(0)
    torch.testing.assert_close(unit.log_norm(y, b, sigma), log_w.logsumexp(0) + math.log(5e-4), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(unit.mean(y, sigma), v @ p, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(unit.variance(y, sigma), v**2 @ p - (v @ p) ** 2, rtol=1e-5, atol=1e-7)


def test_rectified_units_reach_far_below_zero():
    A = ReLU().log_norm(torch.tensor([0.0, 1.0, -1.0], **f64))
    torch.testing.assert_close(A, torch.tensor([0.22579135264473, 1.24618475418122, -0.42208311], **f64), rtol=0, atol=1e-8)
    m = ReLU().mean(torch.tensor([1.0, -1.0], **f64))
    torch.testing.assert_close(m, torch.tensor([1.28759997, 0.52513528], **f64), rtol=0, atol=1e-8)
    for dtype, rtol in ((torch.float64, 1e-10), (torch.float32, 1e-6)):
        x = torch.tensor([-1e4, -300.0, -40.0, -29.0], dtype=dtype)
        with mpmath.workdps(60):
            hazard = [mpmath.npdf(f) / mpmath.ncdf(f) for f in map(mpmath.mpf, x.tolist())]
            truth = [float(f + h) for f, h in zip(map(mpmath.mpf, x.tolist()), hazard)]
            spread = [float(1 - h * (f + h)) for f, h in zip(map(mpmath.mpf, x.tolist()), hazard)]
        torch.testing.assert_close(ReLU().mean(x).double(), torch.tensor(truth, **f64), rtol=rtol, atol=0)
        torch.testing.assert_close(ReLU().variance(x).double(), torch.tensor(spread, **f64), rtol=max(rtol, 1e-9), atol=0)
    assert rectified(torch.tensor([40.0], **f64))[1].item() == 1 and log_erfcx(torch.tensor(-30.0, **f64)).isfinite()


@named(ALL)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_draws_have_the_right_mean_and_are_states(unit, dtype):
    n, cols = 2**16, 9
    x = torch.linspace(-2, 2, cols, dtype=dtype)
    bias = torch.linspace(-0.3, 0.5, cols, dtype=dtype)
    draws = unit.draw(x.repeat(n, 1), bias, seeded(3))
    unit.check("draws", draws)
    mean, variance = unit.mean((x + bias).double()), unit.variance((x + bias).double())
    z = (draws.double().mean(0) - mean) / (variance / n).sqrt()
    mutant = (draws.double().mean(0) - unit.mean(1.1 * (x + bias).double())) / (variance / n).sqrt()
    assert draws.dtype == dtype and z.abs().max() < 4.2 < mutant.abs().max() and ((variance / n).sqrt() / (1 + mean.abs())).max() < 0.01
    fourth = ((draws.double() - mean) ** 4).mean(0)
    error = ((fourth - variance**2) / n).sqrt().clamp(min=1e-4)
    assert (((draws.double() - mean) ** 2).mean(0) - variance).abs().div(error).max() < 4.5


@named(ALL)
def test_every_sample_draws_from_its_stream(unit):
    x = torch.linspace(-1, 1, 24, **f64).reshape(4, 6)
    together = unit.draw(x.clone(), torch.zeros(6, **f64), as_generator([5, 6, 7, 8], x))
    alone = unit.draw(x[2:3].clone(), torch.zeros(6, **f64), as_generator([7], x))
    assert torch.equal(together[2:3], alone)
    assert torch.equal(unit.draw(x.clone(), torch.zeros(6, **f64), seeded(4)), unit.draw(x.clone(), torch.zeros(6, **f64), seeded(4)))


@named(BITS)
def test_pinned_units_never_flip_and_the_generator_decides(unit):
    x = torch.tensor([-1e4, 1e4]).repeat(10000, 1)
    assert torch.equal(unit.draw(x, torch.zeros(2)).unique(dim=0), torch.tensor([unit.levels]))
    x = torch.randn(50, 20)
    a, b, c = (unit.draw(x.clone(), torch.zeros(20), seeded(s)) for s in (7, 7, 8))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_positive_normals_at_the_join():
    u = torch.linspace(0.001, 1, 1000, **f64)
    below, above = (positive_normal(torch.full_like(u, s), u) for s in (-5 - 1e-12, -5 + 1e-12))
    torch.testing.assert_close(below, above, rtol=1e-7, atol=1e-9)
    assert bool((below.diff() < 0).all()) and below[-1].abs() < 1e-9


@pytest.mark.parametrize("unit, good, bad", (
    (Bernoulli(), (0.0, 1.0), (-1.0, 0.5, 2.0, math.nan)), (Spin(), (-1.0, 1.0), (0.0, 0.5, math.nan)),
    (Binary((-0.5, 2.0)), (-0.5, 2.0), (0.0, 1.0)), (Discrete((-1.0, 0.0, 1.0)), (-1.0, 0.0, 1.0), (0.5, 2.0, math.nan)),
    (Binomial(3), (0.0, 3.0), (4.0, 0.5, -1.0)), (Poisson(), (0.0, 7.0), (0.5, -1.0, math.nan)), (ReLU(), (0.0, 2.5), (-0.1, math.nan)),
    (Potts(3), (0.0, 1.0, 0.0), ())), ids=str)
def test_check_states(unit, good, bad):
    unit.check("v", torch.tensor(good))
    for value in bad:
        with pytest.raises(ValueError, match=re.escape(f"({unit} units), got values")): unit.check("v", torch.tensor([*good, value]))


@pytest.mark.parametrize("row", ((1.0, 1.0, 0.0), (0.0, 0.0, 0.0), (0.5, 0.5, 0.0), (2.0, -1.0, 0.0)))
def test_colours_are_one_hot(row):
    with pytest.raises(ValueError, match="v must hold one 1 in every 3 columns"): Potts(3).check("v", torch.tensor([0.0, 0.0, 1.0, *row]))


def test_check_states_sees_errors_that_cancel():
    with pytest.raises(ValueError, match="v must hold only 0 or 1"): Bernoulli().check("v", torch.tensor([0.5, 0.5, 0.5, 0.5, -0.618034, 1.618034]))
    with pytest.raises(ValueError, match="v must hold only -1 or"): Spin().check("v", torch.tensor([0.0, 2**0.5]))


# Names

@named(ALL)
def test_a_unit_is_read_from_its_name(unit):
    assert as_unit("visible", str(unit)) == unit and as_unit("visible", unit) is unit


@pytest.mark.parametrize("text", ("relo", "", "potts", "potts(1)", "potts(3", "potts(2, 3)", "discrete((1.0,))", "discrete((1.0, 0.0))", "binomial(0)",
                                  "binomial(2.5)", "spin(3)", "__import__('os')", "unit"))
def test_bad_names(text):
    with pytest.raises(ValueError, match="^visible must be one of 'bernoulli', 'spin'"): as_unit("visible", text)


@pytest.mark.parametrize("bad, match", ((Spin, "got the class Spin: write Spin()"), (3, "got int"), (None, "got NoneType"), ([0, 1], "got list")))
def test_what_is_no_unit(bad, match):
    with pytest.raises(TypeError, match="visible must be a unit") as error: as_unit("visible", bad)
    assert match in str(error.value)


@pytest.mark.parametrize("make", (lambda: Discrete((0.0, math.nan)), lambda: Discrete(()), lambda: Binary((0.0, 1.0, 2.0)), lambda: Discrete((0.0, 0.0)),
                                  lambda: Potts(1), lambda: Binomial(0), lambda: Discrete((0.0, 1.0), math.inf)))
def test_bad_units(make):
    with pytest.raises(ValueError): make()


@pytest.mark.parametrize("make", (lambda: Discrete(("a", "b")), lambda: Potts(2.0), lambda: Binomial("3"), lambda: Discrete((0, True))))
def test_units_of_bad_types(make):
    with pytest.raises(TypeError): make()


# Lists of states

def test_states_are_counted_with_unit_zero_fastest():
    S = states(4)
    assert (S @ torch.tensor([1.0, 2, 4, 8], dtype=torch.float64)).tolist() == list(range(16))
    assert torch.equal(states(4, "spin"), 2 * S - 1) and torch.equal(states(4, first=3, last=9), S[3:9])
    assert states(3, dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize("unit, n, count", ((Discrete((-1.0, 0.0, 1.0)), 4, 81), (Potts(3), 9, 27), (Binomial(2), 3, 27), (Spin(), 5, 32)), ids=str)
def test_states_are_all_different_and_come_in_chunks(unit, n, count):
    S = states(n, unit)
    unit.check("S", S)
    assert len(S) == len(S.unique(dim=0)) == count == pytest.approx(2 ** bits_of(n, unit))
    assert torch.equal(torch.cat(list(chunks(n, unit, 7, S))), S)
    assert torch.equal(numbered(torch.tensor([[5, 1]]), n, unit, torch.float64), S[[5, 1]][None])


@pytest.mark.parametrize("n, unit, match", ((26, "bernoulli", "n must be at most 25"), (16, Discrete((-1.0, 0.0, 1.0)), "n must be at most 25"),
                                            (3, "gaussian", "n must be at most 25"), (0, "spin", "n must be at least 1"), (4, "potts(3)", "multiple of 3")))
def test_what_is_not_listed(n, unit, match):
    with pytest.raises(ValueError, match=match): states(n, unit)


def test_a_layer_is_a_whole_number_of_units():
    assert check_layer("n", np.int64(6), Potts(3)) == Potts(3)
    with pytest.raises(ValueError, match="n_visible must be a multiple of 3, the columns of a potts\\(3\\) unit, got 7"): check_layer("n_visible", 7, Potts(3))


# Fields from means

@named([u for u in ALL if u != Potts(3)])
def test_field_inverts_the_mean(unit):
    x = torch.linspace(-3, 3, 13, **f64)
    torch.testing.assert_close(unit.mean(unit.field(unit.mean(x))), unit.mean(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("unit, m", ((Bernoulli(), 1.0), (Spin(), -1.0), (Binomial(3), 3.5), (Poisson(), -1.0), (ReLU(), -0.1), (Discrete((-1.0, 0.0, 1.0)), 1.5)), ids=str)
def test_means_that_no_field_has(unit, m):
    with pytest.raises(ValueError, match="^m must"): unit.field(torch.tensor([m], **f64))


# Noise

@named((*LISTED, Gaussian(), ReLU()))
def test_a_noisy_look_is_a_unit_of_the_same_kind(unit):
    kappa, f = torch.tensor(0.6, **f64), torch.tensor([[0.7], [-2.0]], **f64)
    W, b, sigma = torch.ones(1, 1, **f64), torch.tensor([0.2], **f64), torch.tensor([1.3], **f64) if unit.wide else None
    v = torch.tensor(unit.levels, **f64) if unit.levels else torch.linspace(0 if unit == ReLU() else -30, 30, 4001, **f64)
    new = {"visible": unit, "b": b, "W": W, **unit.observed(f, kappa, W, b, sigma)}
    width = new["log_sigma"].exp() if unit.wide else None
    truth = torch.log_softmax(-unit.energy(v, b, sigma) + f * v - kappa / 2 * v**2, -1)
    torch.testing.assert_close(torch.log_softmax(-new["visible"].energy(v, new["b"], width), -1), truth, rtol=1e-9, atol=1e-9)
    assert type(new["visible"]).__mro__[-3] is type(unit).__mro__[-3]


def test_what_has_no_posterior_of_its_kind():
    row = torch.zeros(1, 1, **f64)
    with pytest.raises(ValueError, match="posterior of their own kind under Gaussian noise, got poisson"):
        Poisson().observed(row, torch.tensor(0.5), row, row[0])
    for unit in (Discrete((-1.0, 0.0, 1.0)), Binomial(3), Gaussian()):
        with pytest.raises(ValueError, match="alpha, sigma must be numbers"): unit.observed(row, torch.zeros(2, 1), row, row[0], row[0] + 1)


def test_temperature_of_weights():
    assert Spin().tempered(0.5) == Spin() and Discrete((-1.0, 0.0, 1.0), 2.0).tempered(0.5).curvature == 1.0 and Poisson().tempered(1) == Poisson()
    for unit in (Binomial(3), Poisson()):
        with pytest.raises(ValueError, match="number of ways"): unit.tempered(0.5)


def test_an_own_kind_needs_what_it_changes():
    @dataclass(frozen=True)
    class Arrow(Unit):
        """Directions 0, 90, 180, 270 degrees seen as a number is no standard unit: here -2, -1, 1, 2."""
        levels = (-2.0, -1.0, 1.0, 2.0)
        n_states = 4

        def log_norm(self, x, b=None, sigma=None):
            return torch.log(2 * torch.cosh(x) + 2 * torch.cosh(2 * x))

        def mean(self, x, sigma=None):
            return (2 * torch.sinh(x) + 4 * torch.sinh(2 * x)) / (2 * torch.cosh(x) + 2 * torch.cosh(2 * x))
        variance = draw = check = mean

    assert as_unit("visible", Arrow()) == Arrow() and str(Arrow()) == "arrow"
    assert Arrow().energy(torch.tensor(2.0), torch.tensor(0.5)) == -1 and bits_of(3, Arrow()) == 6


@pytest.mark.cuda
@cuda
@named(ALL)
def test_cuda_draws_and_values(unit):
    x = torch.linspace(-3, 3, 9, dtype=torch.float64, device="cuda")
    for f in (unit.log_norm, unit.mean, unit.variance): assert torch.allclose(f(x).cpu(), f(x.cpu()), atol=1e-12)
    draws = unit.draw(x.repeat(2**16, 1), torch.zeros_like(x), torch.Generator("cuda").manual_seed(0))
    assert ((draws.mean(0) - unit.mean(x)) / (unit.variance(x) / 2**16).sqrt()).abs().max() < 4.2
