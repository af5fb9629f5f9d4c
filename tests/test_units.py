"""Kinds of unit: one function knows everything, draws, lists of states, names, noise, bad input."""
from dataclasses import dataclass
import math
import re

from hypothesis import given, settings, strategies as st
import mpmath
import numpy as np
import pytest
import torch

from machines import seeded
from rbmdiff.foundations.core import as_generator
from rbmdiff.foundations.units import (
    Bernoulli,
    Binary,
    Binomial,
    Discrete,
    Gaussian,
    Poisson,
    Potts,
    ReLU,
    Spin,
    Unit,
    as_unit,
    bits_of,
    check_layer,
    chunks,
    log_erfcx,
    numbered,
    positive_normal,
    rectified,
    states,
)

BITS = (Bernoulli(), Spin())
LISTED = (*BITS, Binary((-0.5, 2.0)), Discrete((-1.0, 0.0, 1.0)), Discrete((0.0, 1.0, 3.0), 0.8),
          Binomial(4), Binomial(3, 0.5))
ALL = (*LISTED, Potts(3), Poisson(), Gaussian(), ReLU())
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
fields = st.floats(-1e4, 1e4, allow_subnormal=False)
quick = settings(max_examples=50, deadline=None)
named = lambda units: pytest.mark.parametrize("unit", units, ids=str)
f64 = {"dtype": torch.float64}


def exact_cumulant(x, unit):
    with mpmath.workdps(50):
        if unit == Spin(): return float(mpmath.log(2 * mpmath.cosh(x)))
        return float(mpmath.log1p(mpmath.exp(x)))


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
    counts = hasattr(unit, "n")
    ways = torch.tensor([math.comb(unit.n, int(k)) if counts else 1 for k in unit.levels]).log()
    log_w = x[:, None] * v + ways.double() - unit.curvature / 2 * v**2
    p = log_w.softmax(-1)
    rtol = 1e-6 if counts else 1e-13
    close = lambda a, b: torch.testing.assert_close(a, b, rtol=rtol, atol=1e-13)
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
    y, (b, sigma) = torch.tensor([-2.0, 0.3, 4.0], **f64), torch.tensor([0.5, 0.8], **f64)
    v = torch.arange(-40_000, 40_000, **f64) * 5e-4 + 2.5e-4
    if unit == ReLU(): v = v[v > 0]
    log_w = -unit.energy(v[:, None], b, sigma) + unit.coupled(v[:, None], sigma) * (y - b)
    p = log_w.softmax(0)
    torch.testing.assert_close(unit.log_norm(y, b, sigma), log_w.logsumexp(0) + math.log(5e-4),
                               rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(unit.mean(y, sigma), v @ p, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(unit.variance(y, sigma), v**2 @ p - (v @ p) ** 2, rtol=1e-5, atol=1e-7)


def test_rectified_units_reach_far_below_zero():
    A = ReLU().log_norm(torch.tensor([0.0, 1.0, -1.0], **f64))
    torch.testing.assert_close(A,
                               torch.tensor([0.22579135264473, 1.24618475418122, -0.42208311], **f64),
                               rtol=0, atol=1e-8)
    m = ReLU().mean(torch.tensor([1.0, -1.0], **f64))
    torch.testing.assert_close(m, torch.tensor([1.28759997, 0.52513528], **f64), rtol=0, atol=1e-8)
    for dtype, rtol in ((torch.float64, 1e-10), (torch.float32, 1e-6)):
        x = torch.tensor([-1e4, -300.0, -40.0, -29.0], dtype=dtype)
        with mpmath.workdps(60):
            hazard = [mpmath.npdf(f) / mpmath.ncdf(f) for f in map(mpmath.mpf, x.tolist())]
            truth = [float(f + h) for f, h in zip(map(mpmath.mpf, x.tolist()), hazard)]
            spread = [float(1 - h * (f + h)) for f, h in zip(map(mpmath.mpf, x.tolist()), hazard)]
        torch.testing.assert_close(ReLU().mean(x).double(), torch.tensor(truth, **f64), rtol=rtol,
                                   atol=0)
        torch.testing.assert_close(ReLU().variance(x).double(), torch.tensor(spread, **f64),
                                   rtol=max(rtol, 1e-9), atol=0)
    assert rectified(torch.tensor([40.0], **f64))[1].item() == 1
    assert log_erfcx(torch.tensor(-30.0, **f64)).isfinite()


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
    assert draws.dtype == dtype and z.abs().max() < 4.2 < mutant.abs().max()
    assert ((variance / n).sqrt() / (1 + mean.abs())).max() < 0.01
    fourth = ((draws.double() - mean) ** 4).mean(0)
    error = ((fourth - variance**2) / n).sqrt().clamp(min=1e-4)
    assert (((draws.double() - mean) ** 2).mean(0) - variance).abs().div(error).max() < 4.5


@named(ALL)
def test_every_sample_draws_from_its_stream(unit):
    x = torch.linspace(-1, 1, 24, **f64).reshape(4, 6)
    together = unit.draw(x.clone(), torch.zeros(6, **f64), as_generator([5, 6, 7, 8], x))
    alone = unit.draw(x[2:3].clone(), torch.zeros(6, **f64), as_generator([7], x))
    assert torch.equal(together[2:3], alone)
    assert torch.equal(unit.draw(x.clone(), torch.zeros(6, **f64), seeded(4)),
                       unit.draw(x.clone(), torch.zeros(6, **f64), seeded(4)))


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
    (Binary((-0.5, 2.0)), (-0.5, 2.0), (0.0, 1.0)),
    (Discrete((-1.0, 0.0, 1.0)), (-1.0, 0.0, 1.0), (0.5, 2.0, math.nan)),
    (Binomial(3), (0.0, 3.0), (4.0, 0.5, -1.0)), (Poisson(), (0.0, 7.0), (0.5, -1.0, math.nan)),
    (ReLU(), (0.0, 2.5), (-0.1, math.nan)),
    (Potts(3), (0.0, 1.0, 0.0), ())), ids=str)
def test_check_states(unit, good, bad):
    unit.check("v", torch.tensor(good))
    for value in bad:
        with pytest.raises(ValueError, match=re.escape(f"({unit} units), got values")):
            unit.check("v", torch.tensor([*good, value]))


@pytest.mark.parametrize("row", ((1.0, 1.0, 0.0), (0.0, 0.0, 0.0), (0.5, 0.5, 0.0), (2.0, -1.0, 0.0)))
def test_colours_are_one_hot(row):
    with pytest.raises(ValueError, match="v must hold one 1 in every 3 columns"):
        Potts(3).check("v", torch.tensor([0.0, 0.0, 1.0, *row]))


def test_check_states_sees_errors_that_cancel():
    with pytest.raises(ValueError, match="v must hold only 0 or 1"):
        Bernoulli().check("v", torch.tensor([0.5, 0.5, 0.5, 0.5, -0.618034, 1.618034]))
    with pytest.raises(ValueError, match="v must hold only -1 or"):
        Spin().check("v", torch.tensor([0.0, 2**0.5]))


# Names

@named(ALL)
def test_a_unit_is_read_from_its_name(unit):
    assert as_unit("visible", str(unit)) == unit and as_unit("visible", unit) is unit


@pytest.mark.parametrize("text",
                         ("relo", "", "potts", "potts(1)", "potts(3", "potts(2, 3)", "discrete((1.0,))",
                          "discrete((1.0, 0.0))", "binomial(0)",
                                  "binomial(2.5)", "spin(3)", "__import__('os')", "unit"))
def test_bad_names(text):
    with pytest.raises(ValueError, match=r"^visible must be one of 'bernoulli', 'spin'"):
        as_unit("visible", text)


@pytest.mark.parametrize("bad, match",
                         ((Spin, "got the class Spin: write Spin()"), (3, "got int"),
                          (None, "got NoneType"), ([0, 1], "got list")))
def test_what_is_no_unit(bad, match):
    with pytest.raises(TypeError, match="visible must be a unit") as error: as_unit("visible", bad)
    assert match in str(error.value)


@pytest.mark.parametrize("make",
                         (lambda: Discrete((0.0, math.nan)), lambda: Discrete(()),
                          lambda: Binary((0.0, 1.0, 2.0)), lambda: Discrete((0.0, 0.0)),
                                  lambda: Potts(1), lambda: Binomial(0),
                          lambda: Discrete((0.0, 1.0), math.inf)))
def test_bad_units(make):
    with pytest.raises(ValueError): make()


@pytest.mark.parametrize("make",
                         (lambda: Discrete(("a", "b")), lambda: Potts(2.0), lambda: Binomial("3"),
                          lambda: Discrete((0, True))))
def test_units_of_bad_types(make):
    with pytest.raises(TypeError): make()


# Lists of states

def test_states_are_counted_with_unit_zero_fastest():
    S = states(4)
    assert (S @ torch.tensor([1.0, 2, 4, 8], dtype=torch.float64)).tolist() == list(range(16))
    assert torch.equal(states(4, "spin"), 2 * S - 1) and torch.equal(states(4, first=3, last=9), S[3:9])
    assert states(3, dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize("unit, n, count",
                         ((Discrete((-1.0, 0.0, 1.0)), 4, 81), (Potts(3), 9, 27), (Binomial(2), 3, 27),
                          (Spin(), 5, 32)), ids=str)
def test_states_are_all_different_and_come_in_chunks(unit, n, count):
    S = states(n, unit)
    unit.check("S", S)
    assert len(S) == len(S.unique(dim=0)) == count == pytest.approx(2 ** bits_of(n, unit))
    assert torch.equal(torch.cat(list(chunks(n, unit, 7, S))), S)
    assert torch.equal(numbered(torch.tensor([[5, 1]]), n, unit, torch.float64), S[[5, 1]][None])


@pytest.mark.parametrize("n, unit, match",
                         ((26, "bernoulli", "n must be at most 25"),
                          (16, Discrete((-1.0, 0.0, 1.0)), "n must be at most 25"),
                                            (3, "gaussian", "n must be at most 25"),
                          (0, "spin", "n must be at least 1"), (4, "potts(3)", "multiple of 3")))
def test_what_is_not_listed(n, unit, match):
    with pytest.raises(ValueError, match=match): states(n, unit)


def test_a_layer_is_a_whole_number_of_units():
    assert check_layer("n", np.int64(6), Potts(3)) == Potts(3)
    wanted = "n_visible must be a multiple of 3, the columns of a potts(3) unit, got 7"
    with pytest.raises(ValueError, match=re.escape(wanted)):
        check_layer("n_visible", 7, Potts(3))


# Fields from means

@named([u for u in ALL if u != Potts(3)])
def test_field_inverts_the_mean(unit):
    x = torch.linspace(-3, 3, 13, **f64)
    torch.testing.assert_close(unit.mean(unit.field(unit.mean(x))), unit.mean(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("unit, m",
                         ((Bernoulli(), 1.0), (Spin(), -1.0), (Binomial(3), 3.5), (Poisson(), -1.0),
                          (ReLU(), -0.1), (Discrete((-1.0, 0.0, 1.0)), 1.5)), ids=str)
def test_means_that_no_field_has(unit, m):
    with pytest.raises(ValueError, match=r"^m must"): unit.field(torch.tensor([m], **f64))


# Noise

@named((*LISTED, Gaussian(), ReLU()))
def test_a_noisy_look_is_a_unit_of_the_same_kind(unit):
    kappa, f = torch.tensor(0.6, **f64), torch.tensor([[0.7], [-2.0]], **f64)
    W, b = torch.ones(1, 1, **f64), torch.tensor([0.2], **f64)
    sigma = torch.tensor([1.3], **f64) if unit.wide else None
    grid = torch.linspace(0 if unit == ReLU() else -30, 30, 4001, **f64)
    v = torch.tensor(unit.levels, **f64) if unit.levels else grid
    new = {"visible": unit, "b": b, "W": W, **unit.observed(f, kappa, W, b, sigma)}
    width = new["log_sigma"].exp() if unit.wide else None
    truth = torch.log_softmax(-unit.energy(v, b, sigma) + f * v - kappa / 2 * v**2, -1)
    torch.testing.assert_close(torch.log_softmax(-new["visible"].energy(v, new["b"], width), -1), truth,
                               rtol=1e-9, atol=1e-9)
    assert type(new["visible"]).__mro__[-3] is type(unit).__mro__[-3]


def test_what_has_no_posterior_of_its_kind():
    row = torch.zeros(1, 1, **f64)
    with pytest.raises(ValueError,
                       match="posterior of their own kind under Gaussian noise, got poisson"):
        Poisson().observed(row, torch.tensor(0.5), row, row[0])
    for unit in (Discrete((-1.0, 0.0, 1.0)), Binomial(3), Gaussian()):
        with pytest.raises(ValueError, match="alpha, sigma must be numbers"):
            unit.observed(row, torch.zeros(2, 1), row, row[0], row[0] + 1)


def test_temperature_of_weights():
    assert Spin().tempered(0.5) == Spin()
    assert Discrete((-1.0, 0.0, 1.0), 2.0).tempered(0.5).curvature == 1.0
    assert Poisson().tempered(1) == Poisson()
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
            slope = torch.sinh(x) + 2 * torch.sinh(2 * x)
            return slope / (torch.cosh(x) + torch.cosh(2 * x))
        variance = draw = check = mean

    assert as_unit("visible", Arrow()) == Arrow() and str(Arrow()) == "arrow"
    assert Arrow().energy(torch.tensor(2.0), torch.tensor(0.5)) == -1 and bits_of(3, Arrow()) == 6


# Own weights, rounded levels, large fields

class Pair(Discrete):
    """Two spins that share a field: -2, 0, 2 in one, two and one ways."""

    def __init__(self):
        super().__init__((-2.0, 0.0, 2.0))

    def log_weights(self, v):
        return (v == 0).to(v.dtype) * math.log(2)


class Uneven(Binary):
    """A bit that weighs three times as much where it is 1."""

    def __init__(self, curvature=0.0):
        super().__init__((0.0, 1.0), curvature)

    def log_weights(self, v):
        return v * math.log(3)

    def weight_slope(self, v):
        return torch.full_like(v, math.log(3))


def test_own_weights_stay_under_noise_and_forbid_a_temperature():
    unit, x = Pair(), torch.linspace(-2, 2, 9, **f64)
    torch.testing.assert_close(unit.log_norm(x), 2 * Spin().log_norm(x), rtol=1e-14, atol=1e-14)
    seen = unit.observed(torch.zeros(1, 1, **f64), torch.tensor(0.6, **f64), x[:1, None],
                         x[:1])["visible"]
    v = torch.tensor(unit.levels, **f64)
    truth = torch.log_softmax(torch.tensor([1.0, 2, 1], **f64).log() - 0.3 * v**2, 0)
    torch.testing.assert_close(torch.log_softmax(-seen.energy(v, x[4]), 0), truth, rtol=1e-14,
                               atol=1e-14)
    assert type(seen) is Pair and seen.curvature == 0.6 and unit.curvature == 0
    with pytest.raises(ValueError, match="number of ways"):
        unit.tempered(0.5)
    assert unit.tempered(1) is unit


@named((Uneven(), Uneven(0.5), Binary((-1.0, 3.0), 0.4)))
def test_unequal_weights_of_two_states_are_a_field(unit):
    x = torch.linspace(-2, 2, 9, **f64)
    (low, high), (_, log_w) = unit.levels, unit.terms(x * 0)
    assert unit.offset == pytest.approx((log_w[0, 1] - log_w[0, 0]).item() / (high - low))
    draws = unit.draw(x.repeat(2**16, 1), torch.zeros(9, **f64), seeded(1))
    z = (draws.mean(0) - unit.mean(x)) / (unit.variance(x) / 2**16).sqrt()
    assert z.abs().max() < 4
    torch.testing.assert_close(unit.field(unit.mean(x)), x, rtol=1e-11, atol=1e-12)
    if low == -1:
        hot = unit.tempered(0.5)
        assert hot.curvature == 0.2 and hot.offset == pytest.approx(unit.offset / 2)
        assert unit.curvature == 0.4


WIDE = [(unit, 0.5) for unit in ALL if unit.wide]


@pytest.mark.parametrize("unit, width", [*[(unit, None) for unit in ALL], *WIDE], ids=str)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_large_fields(unit, width, dtype):
    x = torch.tensor([-1e4, -100.0, -0.0, 20.0, 100.0, 1e4], dtype=dtype)
    sigma = None if width is None else torch.full((6,), width, dtype=dtype)
    if unit == Poisson(): x = x.clamp(max=20)
    x.requires_grad_()
    slope, = torch.autograd.grad(unit.log_norm(x, x.detach(), sigma).sum(), x)
    found = unit.log_norm(x, x, sigma), unit.mean(x, sigma), unit.variance(x, sigma), slope
    assert all(y.isfinite().all() and y.dtype == dtype for y in found)
    assert (found[2] >= 0).all()
    with torch.no_grad():
        draws = unit.draw(x.repeat(50, 1), torch.zeros_like(x), seeded(0), sigma)
    unit.check("draws", draws)
    assert draws.isfinite().all() and draws.dtype == dtype


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("field", (21.6, 100.0, 1e4, math.nan))
def test_counts_that_overflow_are_refused(dtype, field):
    x = torch.tensor([[0.0, field]], dtype=dtype)
    with pytest.raises(ValueError, match=r"poisson units below 21\.5 to draw them, got values in"):
        Poisson().draw(x, torch.zeros(2, dtype=dtype))
    few = Poisson().draw(torch.full((1, 4), 21.0, **f64), torch.zeros(4, **f64), seeded(0))
    assert (few / math.exp(21) - 1).abs().max() < 5 * math.exp(-10.5)


@named((Discrete((0.1, 0.3, 0.7)), Binary((0.1, 0.7)), Binary((-0.3, 0.7)), Binary((1 / 3, 1.0))))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_levels_that_no_float_has(unit, dtype):
    draws = unit.draw(torch.zeros(64, 3, dtype=dtype), torch.zeros(3, dtype=dtype), seeded(0))
    unit.check("draws", draws)
    assert torch.equal(draws.unique(), torch.tensor(unit.levels, dtype=dtype))
    assert torch.equal(states(2, unit, dtype=dtype).unique(), torch.tensor(unit.levels, dtype=dtype))


def test_levels_and_counts_of_other_types():
    wanted = Discrete((0.0, 1.0, 2.0), 0.5)
    for levels in ([0, 1, 2], range(3), np.arange(3), np.arange(3.0), np.arange(3, dtype=np.float32)):
        unit = Discrete(levels, np.float64(0.5))
        assert unit == wanted and hash(unit) == hash(wanted)
        assert str(unit) == "discrete((0.0, 1.0, 2.0), 0.5)"
    assert str(Potts(np.int64(3))) == "potts(3)" and str(Binomial(np.int64(3))) == "binomial(3)"
    assert Potts(np.int64(3)) == Potts(3) and as_unit("v", str(unit)) == wanted


@pytest.mark.parametrize("levels, match",
                         ((3, "levels must be numbers, got int 3"), ("01", "each of levels must"),
                                           (torch.arange(3),
                                            "each of levels must be a number, got Tensor")))
def test_levels_that_are_no_numbers(levels, match):
    with pytest.raises(TypeError, match=match):
        Discrete(levels)


# What data say of a unit on its own

@pytest.mark.parametrize("unit, truth", (
    (Bernoulli(), (2 + 1) / (3 + 2)), (Spin(), (1 + 0) / (3 + 2)),
    (Discrete((-1.0, 0.0, 1.0)), (1 + 0) / (3 + 3)),
    (Binomial(2), (2 + 3) / (3 + 3)), (Poisson(), (2 + 1) / (3 + 1)), (Gaussian(), 2 / 3),
    (ReLU(), 2 / 3)), ids=str)
@pytest.mark.parametrize("s", (0.0, 1.0, 0.5))
def test_smoothed_means_count_imagined_examples(unit, truth, s):
    low = unit.levels[0] if unit.levels else 0.0
    v = torch.tensor([[1.0], [1.0], [low]], **f64)
    imagined = torch.tensor(unit.levels or (), **f64)
    if unit == Poisson(): imagined = torch.ones(1, **f64)
    weights = torch.cat([torch.ones(3, **f64), torch.full((len(imagined),), s, **f64)])
    wanted = (weights * torch.cat([v[:, 0], imagined])).sum() / weights.sum()
    assert unit.smoothed(v, s).item() == pytest.approx(wanted.item(), rel=1e-14)
    if s == 1: assert wanted.item() == pytest.approx(truth)


def test_smoothed_colours_are_shares():
    v = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0]], **f64)
    torch.testing.assert_close(Potts(3).smoothed(v, 1.0), torch.tensor([3.0, 2, 1], **f64) / 6)
    x = Potts(3).field(Potts(3).smoothed(v, 1.0))
    torch.testing.assert_close(Potts(3).mean(x), torch.tensor([3.0, 2, 1], **f64) / 6)
    with pytest.raises(ValueError, match=r"^m must be positive"):
        Potts(3).field(v.mean(0))


# Rectified units, by their distribution function

@pytest.mark.parametrize("s", (-1e4, -40.0, -5.1, -4.9, 0.0, 3.0, 30.0))
def test_quantiles_and_moments_of_rectified_units(s):
    u = torch.tensor([0.999, 0.7, 0.5, 0.1, 1e-6], **f64)
    z = positive_normal(torch.full_like(u, s), u)
    with mpmath.workdps(60):
        tail = [mpmath.erfc((mpmath.mpf(t) - s) / mpmath.sqrt(2)) for t in (0.0, *z.tolist())]
        shares = torch.tensor([float(t / tail[0]) for t in tail[1:]], **f64)
        hazard = mpmath.sqrt(2 / mpmath.pi) * mpmath.exp(-mpmath.mpf(s) ** 2 / 2) / tail[0]
        mean, variance = float(s + hazard), float(1 - hazard * (s + hazard))
    torch.testing.assert_close(shares, u, rtol=1e-6, atol=1e-12)
    m, V = rectified(torch.tensor([s], **f64))
    assert m.item() == pytest.approx(mean, rel=1e-9) and V.item() == pytest.approx(variance, rel=1e-9)


# Noise, kind by kind

def test_noise_moves_biases_widths_and_weights_by_the_numbers():
    f, kappa = torch.tensor([[0.5, -1.0]], **f64), torch.tensor(0.8, **f64)
    b, W = torch.tensor([0.1, 0.2], **f64), torch.ones(2, 3, **f64)
    for unit, shift in ((Bernoulli(), 0.4), (Spin(), 0.0), (Binary((-0.5, 2.0)), 0.6), (Potts(2), 0.4)):
        new = unit.observed(f, kappa, W, b)
        assert set(new) == {"b"}
        torch.testing.assert_close(new["b"], b + f - shift)
        rows = unit.observed(f.expand(2, -1), torch.tensor([[0.8], [1.6]], **f64), W, b)["b"]
        torch.testing.assert_close(rows[1] - rows[0], torch.full((2,), -shift, **f64))
    for unit in (Discrete((-1.0, 0.0, 2.0), 0.3), Binomial(3, 0.3)):
        new = unit.observed(f, kappa, W, b)
        assert type(new["visible"]) is type(unit) and new["visible"].curvature == pytest.approx(1.1)
        torch.testing.assert_close(new["b"], b + f)
    for unit in (Gaussian(), ReLU()):
        sigma = torch.tensor([1.0, 2.0], **f64)
        new = unit.observed(f, kappa, W, b, sigma)
        variance = 1 / (1 / sigma**2 + 0.8)
        torch.testing.assert_close(new["log_sigma"], variance.sqrt().log())
        torch.testing.assert_close(new["W"] / variance[:, None], W / sigma[:, None] ** 2)
        torch.testing.assert_close(new["b"], variance * (b / sigma**2 + f))
        with pytest.raises(ValueError, match="sigma must be the widths"):
            unit.observed(f, kappa, W, b)


@named((Bernoulli(), Spin(), Binary((-0.5, 2.0)), Gaussian()))
def test_spread_is_the_variance_at_a_mean_and_half_its_slope(unit):
    x = torch.linspace(-2, 2, 9, **f64)
    sigma = torch.full((9,), 0.7, **f64) if unit.wide else None
    m = unit.mean(x, sigma).requires_grad_()
    V, half = unit.spread(m, sigma)
    torch.testing.assert_close(V, unit.variance(x, sigma), rtol=1e-13, atol=1e-14)
    slope = torch.zeros(9, **f64)
    if V.requires_grad: slope, = torch.autograd.grad(V.sum(), m)
    torch.testing.assert_close(2 * half, slope, rtol=1e-13, atol=1e-14)
    assert ReLU().spread is None and Poisson().spread is None


def test_a_tilted_well_moves_by_its_width_squared():
    b, f, sigma = torch.tensor([[0.3], [0.5], [2.0]], **f64)
    v = torch.linspace(-3, 3, 7, **f64)
    moved = Gaussian().energy(v, Gaussian().tilted(b, f, sigma), sigma)
    gap = moved - Gaussian().energy(v, b, sigma) + f * v
    torch.testing.assert_close(gap, gap[:1].expand(7), rtol=0, atol=1e-13)


# What a kind must give

@pytest.mark.parametrize("method", ("log_norm", "mean", "variance", "draw", "check"))
def test_a_kind_that_lacks_a_method_is_named(method):
    given = {name: lambda self, *args: args[0] for name in ("log_norm", "mean", "variance", "draw",
                                                            "check")}
    del given[method]
    Half = dataclass(frozen=True)(type("Half", (Unit,), given))
    with pytest.raises(TypeError,
                       match=f"^visible must be a unit or its name, got Half without {method}$"):
        as_unit("visible", Half())
    x = torch.zeros(1)
    needed = {"check": ("v", x), "draw": (x, x)}.get(method, (x,))
    with pytest.raises(NotImplementedError):
        getattr(Half(), method)(*needed)


def test_configurations_are_numbers_to_the_base_of_their_states():
    S = states(3, Discrete((-1.0, 0.0, 1.0)))
    assert torch.equal((S + 1) @ torch.tensor([1.0, 3, 9], **f64), torch.arange(27.0, **f64))
    colours = numbered(torch.tensor([[0, 5], [8, 3]]), 6, Potts(3), torch.float32)
    assert colours.shape == (2, 2, 6) and colours.dtype == torch.float32
    wanted = torch.tensor([[[0, 0], [2, 1]], [[2, 2], [0, 1]]])
    assert torch.equal(colours.unflatten(-1, (2, 3)).argmax(-1), wanted)


@pytest.mark.cuda
@cuda
@named(ALL)
def test_cuda_draws_and_values(unit):
    x = torch.linspace(-3, 3, 9, dtype=torch.float64, device="cuda")
    for f in (unit.log_norm, unit.mean, unit.variance):
        assert torch.allclose(f(x).cpu(), f(x.cpu()), atol=1e-12)
    draws = unit.draw(x.repeat(2**16, 1), torch.zeros_like(x), torch.Generator("cuda").manual_seed(0))
    assert ((draws.mean(0) - unit.mean(x)) / (unit.variance(x) / 2**16).sqrt()).abs().max() < 4.2
