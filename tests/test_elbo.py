"""Bounds against exact likelihoods, noise levels against their distributions, weightings against their definitions."""
import math

from hypothesis import given, settings, strategies as st
import pytest
import torch

from rbmdiff.diffusion import elbo as module
from rbmdiff.diffusion.elbo import (
    AdaptiveLevels, Bound, augmentation, bridge, edm, edm_monotone, elbo, exponential, flat, implied_weight, is_monotone,
    level_masses, low_discrepancy, min_snr, p2, sech, sigmoid_weight, uniform_log_snr, uniform_time, weighted_loss)
from rbmdiff.diffusion.oracle import Mixture, gaussian
from rbmdiff.diffusion.schedule import Cosine, Geometric, LinearBeta, LinearLogSNR, SinusoidalBeta, SubVP
from rbmdiff.foundations.core import Estimate

f64 = torch.float64
SCHEDULES = [LinearBeta(), SinusoidalBeta(), Cosine(-8, 8), LinearLogSNR(-8, 8), Geometric(0.02, 30.0), SubVP()]
MONOTONE, OTHERS = (flat, exponential, sigmoid_weight, bridge, edm_monotone), (sech, edm, min_snr, p2, implied_weight(LinearBeta()))
quick = settings(max_examples=20, deadline=None)
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


def seeded(k): return torch.Generator().manual_seed(k)


def cloud(dtype=f64):
    means = torch.tensor([[-1.0, 0.5], [1.2, 0.0], [0.0, -1.0]], dtype=dtype)
    return Mixture(torch.tensor([0.2, 0.3, 0.5], dtype=dtype), means, 0.05 * torch.eye(2, dtype=dtype).expand(3, 2, 2))


# The bound

@each_schedule
def test_bound_of_a_perfect_predictor_is_the_likelihood(schedule):
    data, g = cloud(), seeded(0)
    x = data.sample(600, g)
    t_min = float(schedule.t_of_log_snr(min(9.0, float(schedule.log_snr(1e-6))))) if schedule.kind != "ve" else 0.02
    b = elbo(data.predictor(schedule), schedule, x, t_min, n=16, generator=g)
    rho = float(schedule.rho(t_min))
    noised = data.log_prob(x + rho * torch.randn(x.shape, dtype=f64, generator=g), 1.0, rho)      # what is bounded exactly
    prior = float(b.prior.mean())
    gap = Estimate.of(noised - b.value)
    assert abs(gap.z(0)) < 4 and gap.stderr < 0.06 and prior < 0.02
    worse = elbo(lambda x, t: 0.6 * data.predictor(schedule)(x, t), schedule, x, t_min, n=16, generator=g)
    assert Estimate.of(noised - worse.value).z(0) > 6


@pytest.mark.parametrize("dtype", [torch.float32, f64])
@pytest.mark.parametrize("shape", [(5, 3), (4, 1, 2, 2)])
def test_terms_shapes_and_types(dtype, shape):
    x = torch.randn(shape, dtype=dtype, generator=seeded(1))
    b = elbo(lambda x, t: 0.5 * x, LinearBeta(), x, n=4, sets=3, generator=seeded(2))
    for part in (b.prior, b.diffusion, b.reconstruction, b.stderr, b.value):
        assert part.shape == x.shape[:1] and part.dtype == f64 and bool(part.isfinite().all())
    assert torch.equal(b.value, -(b.prior + b.diffusion + b.reconstruction)) and bool((b.stderr > 0).all())
    again = elbo(lambda x, t: 0.5 * x, LinearBeta(), x, n=4, sets=3, generator=seeded(2))
    assert torch.equal(b.value, again.value)


def test_gaussian_data_have_their_entropy():
    schedule, v = LinearLogSNR(-9, 12), 0.4
    data = gaussian(torch.zeros(6, dtype=f64), v * torch.eye(6, dtype=f64))
    x = data.sample(2500, seeded(3))
    b = elbo(data.predictor(schedule), schedule, x, n=32, generator=seeded(4))
    gap = Estimate.of(data.log_prob(x) - b.value)
    assert abs(gap.z(0)) < 4 and gap.stderr < 0.05
    assert abs(float(b.reconstruction[0]) - 3 * math.log(2 * math.pi * math.e * schedule.rho(1e-3) ** 2)) < 1e-12


def test_stated_errors_are_true():
    data, schedule = cloud(), LinearBeta()
    x = data.sample(1, seeded(5)).expand(400, 2)
    b = elbo(data.predictor(schedule), schedule, x, n=8, sets=6, generator=seeded(6))
    true, stated = b.value.std().item(), b.stderr.square().mean().sqrt().item()
    assert abs(stated / true - 1) < 0.15


def test_zero_data_and_calls():
    calls = []
    b = elbo(lambda x, t: calls.append(t) or torch.zeros_like(x), LinearBeta(), torch.zeros(3, 2), n=5, sets=2)
    assert len(calls) == 10 and all(t.shape == (3,) and t.dtype == torch.float32 for t in calls)
    assert bool(b.value.isfinite().all())


def test_prior_and_constant():
    x = torch.randn(7, 3, dtype=f64, generator=seeded(7))
    s = Geometric(0.01, 5.0)
    exact = (25 / 26 + x.square() / 26 - 1 - math.log(25 / 26)).sum(1) / 2
    b = elbo(lambda x, t: 0.5 * x, s, x, 0.5, n=1, sets=2)
    assert torch.allclose(b.prior, exact, atol=1e-12)
    assert torch.allclose(b.reconstruction, torch.full((7,), 1.5 * math.log(2 * math.pi * math.e * 0.05), dtype=f64))


# Noise levels

@quick
@given(st.integers(1, 40), st.integers(0, 2**31))
def test_low_discrepancy_rows(n, seed):
    u = low_discrepancy(n, seeded(seed), (2, 3))
    assert u.shape == (2, 3, n) and u.dtype == f64 and bool(((u >= 0) & (u < 1)).all())
    k = (u * n).floor().sort(-1).values
    assert torch.equal(k, torch.arange(n, dtype=f64).expand(2, 3, n)) or bool(((u * n - (u * n).round()).abs() < 1e-9).any())
    assert torch.equal(u, low_discrepancy(n, seeded(seed), (2, 3)))


@each_schedule
def test_levels_are_a_change_of_variables(schedule):
    u = (torch.arange(4000, dtype=f64) + 0.5) / 4000
    high, low = (float(schedule.log_snr(t)) for t in (0.01, 1.0))
    adaptive = AdaptiveLevels(schedule, 0.01, 7)
    adaptive.observe(torch.linspace(low, high, 50, dtype=f64), torch.rand(50, dtype=f64, generator=seeded(10)))
    for levels in (uniform_time, uniform_log_snr, adaptive):
        t, volume = levels(schedule, u, 0.01)
        assert float(t.min()) >= 0.01 - 1e-12 and float(t.max()) <= 1 and bool((volume > 0).all())
        assert volume.mean().item() == pytest.approx(high - low, rel=1e-3)                      # integral of one
        level = schedule.log_snr(t)
        assert (volume * level).mean().item() == pytest.approx((high**2 - low**2) / 2, abs=2e-3 * (high - low) ** 2)


def test_adaptive_levels_follow_and_forget():
    schedule = LinearLogSNR(-8, 8)
    levels, old = AdaptiveLevels(schedule, 0.5, 8, 0.9), AdaptiveLevels(schedule, 0.5, 8)
    centres = (levels.edges[1:] + levels.edges[:-1]) / 2
    assert torch.allclose(levels.probabilities(), torch.full((8,), 1 / 8, dtype=f64))
    for error in (torch.ones(8, dtype=f64), torch.arange(8, dtype=f64)):
        for _ in range(100):
            for each in (levels, old): each.observe(centres, error)
    wanted = 0.9 * torch.arange(8, dtype=f64) / 28 + 0.1 / 8
    assert (levels.probabilities() - wanted).abs().max() < 0.02 < (old.probabilities() - wanted).abs().max()
    assert levels.probabilities().min() > 0.1 / 8 and levels.probabilities().sum().item() == pytest.approx(1)
    unseen = AdaptiveLevels(schedule, 0.5, 8)
    unseen.observe(centres[:1], torch.ones(1, dtype=f64))
    assert torch.allclose(unseen.probabilities(), torch.full((8,), 1 / 8, dtype=f64))


def test_every_sampler_has_the_same_mean():
    data, schedule = cloud(), LinearBeta()
    x = data.sample(20000, seeded(11))
    adaptive = AdaptiveLevels(schedule)
    weighted_loss(data.predictor(schedule), schedule, x, flat, adaptive, generator=seeded(12))
    exact = elbo(data.predictor(schedule), schedule, x[:2000], n=32, generator=seeded(13)).diffusion
    truth = Estimate.of(exact)
    for levels in (uniform_time, uniform_log_snr, adaptive):
        e = Estimate.of(weighted_loss(data.predictor(schedule), schedule, x, flat, levels, generator=seeded(14)).double())
        assert abs(e.value - truth.value) < 4 * math.hypot(e.stderr, truth.stderr) and e.stderr < 0.5
    spread = {levels: weighted_loss(data.predictor(schedule), schedule, x, flat, levels, generator=seeded(15)).std().item()
              for levels in (uniform_time, uniform_log_snr, adaptive)}
    assert spread[adaptive] < spread[uniform_log_snr] < spread[uniform_time]


def test_weighted_loss_trains():
    schedule, g = LinearBeta(), seeded(16)
    scale = torch.zeros((), requires_grad=True)
    levels = AdaptiveLevels(schedule, bins=10, decay=0.9)
    optimizer = torch.optim.Adam([scale], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        x = torch.randn(256, 4, generator=g)                     # unit variance: the best linear guess is sigma x_t
        predict = lambda z, t: scale * schedule.sigma(t)[:, None] * z
        loss = weighted_loss(predict, schedule, x, sigmoid_weight, levels, generator=g)
        assert loss.shape == (256,) and loss.dtype == torch.float32
        loss.mean().backward()
        optimizer.step()
    assert abs(scale.item() - 1) < 0.05 and levels.total.requires_grad is False


# Weightings

def test_the_monotone_column():
    assert all(is_monotone(w) for w in MONOTONE) and not any(is_monotone(w) for w in OTHERS)
    assert is_monotone(edm, -3.0, 10.0) and is_monotone(sech, 0.0, 20.0) and not is_monotone(sech, -1.0, 20.0)


@quick
@given(st.floats(-1, 1).filter(lambda c: abs(c) > 1e-6))
def test_monotone_exponentials(c):
    assert is_monotone(lambda l: torch.exp(-c * l)) == (c > 0)


@quick
@given(st.floats(0.5, 20), st.floats(0.1, 2))
def test_no_choice_of_constants_makes_them_monotone(gamma, k):
    assert not is_monotone(lambda l: min_snr(l, gamma)) and not is_monotone(lambda l: p2(l, 1.0, k))


def test_values_and_implied_weights():
    l = torch.linspace(-7, 7, 29, dtype=f64)
    ratio = lambda a, b: float((a / b).std() / (a / b).mean())
    assert ratio(implied_weight(Cosine())(l), sech(l)) < 1e-12 and ratio(implied_weight(Cosine(), "v")(l), exponential(l)) < 1e-12
    assert ratio(implied_weight(Geometric(0.01, 50.0), "eps")(l), flat(l)) < 1e-12
    assert ratio(implied_weight(LinearLogSNR(-8, 8), "x0")(l), torch.exp(-l)) < 1e-12
    t = LinearBeta().t_of_log_snr(l)
    assert ratio(implied_weight(LinearBeta())(l), LinearBeta().sigma(t) ** 2 / LinearBeta().beta(t)) < 1e-12
    assert float(sigmoid_weight(torch.tensor(2.0))) == 0.5 and float(min_snr(torch.tensor(0.0))) == 1
    assert float(p2(torch.tensor(0.0))) == 0.5 and float(bridge(torch.tensor(0.0))) == 1
    assert torch.allclose(edm_monotone(l), edm(l).flip(0).cummax(0).values.flip(0), rtol=2e-2)


@quick
@given(st.sampled_from(MONOTONE + OTHERS), st.integers(3, 50), st.integers(0, 1000))
def test_masses_sum_to_the_last_weight(weight, n, seed):
    times = torch.rand(n, dtype=f64, generator=seeded(seed)).sort().values * 0.99 + 0.005
    if bool((times.diff() <= 0).any()): return
    schedule = LinearBeta()
    mass, last = level_masses(weight, schedule, times), float(weight(schedule.log_snr(times))[-1])
    assert mass.sum().item() == pytest.approx(last, rel=1e-9)
    if weight in MONOTONE:
        p = augmentation(weight, schedule, times)
        assert p.min() > -1e-12 and p.sum().item() == pytest.approx(1)


def test_any_weighting_is_a_sum_of_linear_bounds():
    schedule = LinearLogSNR(-6, 6)
    times = torch.linspace(1e-3, 1, 4001, dtype=f64)
    L = schedule.log_snr(times) + 6                               # as if every level cost two per unit
    for weight in MONOTONE + OTHERS[:4]:
        mass, w = level_masses(weight, schedule, times), weight(schedule.log_snr(times))
        loss = -torch.trapezoid(w, schedule.log_snr(times)).item()
        assert (mass @ L - w[-1] * L[-1]).item() == pytest.approx(loss, rel=1e-5)


# Bad input

z = torch.zeros(4, 2, dtype=f64)
good = lambda x, t: torch.zeros_like(x)
vp = LinearBeta()


@pytest.mark.parametrize("call, error, what", [
    (lambda: elbo(good, vp, z.long()), TypeError, "x must be float32 or float64"),
    (lambda: elbo(good, vp, z[0]), ValueError, r"x must have shape \[B"),
    (lambda: elbo(good, vp, z + math.nan), ValueError, "x must be finite"),
    (lambda: elbo(good, vp, z, 0.0), ValueError, "t_min must lie strictly"),
    (lambda: elbo(good, vp, z, 1.0), ValueError, "t_min must lie strictly"),
    (lambda: elbo(good, vp, z, n=0), ValueError, "n must be at least 1"),
    (lambda: elbo(good, vp, z, sets=1), ValueError, "sets must be at least 2"),
    (lambda: elbo(lambda x, t: x[:, :1], vp, z), ValueError, r"must return shape \[4, 2\]"),
    (lambda: elbo(lambda x, t: x * math.nan, vp, z), ValueError, "returned NaN or infinity"),
    (lambda: elbo(good, vp, z, 1e-2, levels=AdaptiveLevels(vp)), ValueError, "levels must span"),
    (lambda: weighted_loss(good, vp, z, t_min=2.0), ValueError, "t_min must lie strictly"),
    (lambda: weighted_loss(lambda x, t: x[:2], vp, z), ValueError, "network must return shape"),
    (lambda: low_discrepancy(0), ValueError, "n must be at least 1"),
    (lambda: low_discrepancy(2.0), TypeError, "n must be an int"),
    (lambda: AdaptiveLevels(vp, bins=0), ValueError, "bins must be at least 1"),
    (lambda: AdaptiveLevels(vp, decay=0.0), ValueError, "decay must lie"),
    (lambda: AdaptiveLevels(vp).observe(z[:, 0], z), ValueError, "error must have shape"),
    (lambda: implied_weight(vp, "noise"), ValueError, "kind must be one of"),
    (lambda: is_monotone(sech, 3.0, -3.0), ValueError, "low must lie below high"),
    (lambda: is_monotone(sech, n=1), ValueError, "n must be at least 2"),
    (lambda: is_monotone(lambda l: -l), ValueError, "must not be negative"),
    (lambda: is_monotone(lambda l: l.log()), ValueError, "must be finite"),
    (lambda: level_masses(flat, vp, torch.tensor([0.5, 0.1])), ValueError, "times must be"),
    (lambda: level_masses(flat, vp, torch.tensor([0.5])), ValueError, "times must be"),
    (lambda: augmentation(sech, vp, torch.linspace(0.01, 1, 9)), ValueError, "weight must not fall with time"),
])
def test_bad_input(call, error, what):
    with pytest.raises(error, match=what): call()


def test_the_bound_carries_no_gradient_and_public_names_exist():
    scale = torch.ones((), dtype=f64, requires_grad=True)
    assert not elbo(lambda x, t: scale * x, vp, z, n=2).value.requires_grad
    assert Bound(*(torch.ones(3, dtype=f64) for _ in range(4))).value.tolist() == [-3.0] * 3
    assert set(module.__all__) >= {"elbo", "weighted_loss", "AdaptiveLevels", "is_monotone", "augmentation"}


@pytest.mark.cuda
@cuda
def test_on_cuda():
    x = torch.randn(6, 2, device="cuda")
    g = torch.Generator("cuda").manual_seed(0)
    b = elbo(lambda x, t: 0.5 * x, vp, x, n=2, generator=g)
    assert b.value.device.type == "cuda" and bool(b.value.isfinite().all())
    levels = AdaptiveLevels(vp)
    assert weighted_loss(lambda x, t: 0.5 * x, vp, x, sech, levels, generator=g).device.type == "cuda"
