"""Bounds against exact likelihoods, noise levels against their distributions."""
import math

from hypothesis import given, settings, strategies as st
import pytest
import torch

from rbmdiff.diffusion import elbo as module
from rbmdiff.diffusion.elbo import AdaptiveLevels, elbo, low_discrepancy, uniform_log_snr, uniform_time
from rbmdiff.diffusion.oracle import Mixture, gaussian
from rbmdiff.diffusion.schedule import Cosine, Geometric, LinearBeta, LinearLogSNR, SinusoidalBeta, SubVP
from rbmdiff.foundations.core import Estimate

f64 = torch.float64
SCHEDULES = [LinearBeta(), SinusoidalBeta(), Cosine(-8, 8), LinearLogSNR(-8, 8), Geometric(0.02, 30.0),
             SubVP()]
quick = settings(max_examples=20, deadline=None)
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


def seeded(k): return torch.Generator().manual_seed(k)


def cloud(dtype=f64):
    means = torch.tensor([[-1.0, 0.5], [1.2, 0.0], [0.0, -1.0]], dtype=dtype)
    return Mixture(torch.tensor([0.2, 0.3, 0.5], dtype=dtype), means,
                   0.05 * torch.eye(2, dtype=dtype).expand(3, 2, 2))


# The bound

@each_schedule
def test_bound_of_a_perfect_predictor_is_the_likelihood(schedule):
    data, g = cloud(), seeded(0)
    x = data.sample(600, g)
    top = min(9.0, float(schedule.log_snr(1e-6)))
    t_min = 0.02 if schedule.kind == "ve" else float(schedule.t_of_log_snr(top))
    b = elbo(data.predictor(schedule), schedule, x, t_min, n=16, generator=g)
    rho = float(schedule.rho(t_min))
    # what is bounded exactly
    noised = data.log_prob(x + rho * torch.randn(x.shape, dtype=f64, generator=g), 1.0, rho)
    prior = float(b.prior.mean())
    gap = Estimate.of(noised - b.log_prob)
    assert abs(gap.z(0)) < 4 and gap.stderr < 0.06 and prior < 0.02
    worse = elbo(lambda x, t: 0.6 * data.predictor(schedule)(x, t), schedule, x, t_min, n=16,
                 generator=g)
    assert Estimate.of(noised - worse.log_prob).z(0) > 6


@pytest.mark.parametrize("dtype", [torch.float32, f64])
@pytest.mark.parametrize("shape", [(5, 3), (4, 1, 2, 2)])
def test_terms_shapes_and_types(dtype, shape):
    x = torch.randn(shape, dtype=dtype, generator=seeded(1))
    b = elbo(lambda x, t: 0.5 * x, LinearBeta(), x, n=4, sets=3, generator=seeded(2))
    for part in (b.prior, b.diffusion, b.reconstruction, b.stderr, b.log_prob):
        assert part.shape == x.shape[:1] and part.dtype == f64 and bool(part.isfinite().all())
    assert torch.equal(b.log_prob, -(b.prior + b.diffusion + b.reconstruction))
    assert bool((b.stderr > 0).all())
    again = elbo(lambda x, t: 0.5 * x, LinearBeta(), x, n=4, sets=3, generator=seeded(2))
    assert torch.equal(b.log_prob, again.log_prob)


def test_gaussian_data_have_their_entropy():
    schedule, v = LinearLogSNR(-9, 12), 0.4
    data = gaussian(torch.zeros(6, dtype=f64), v * torch.eye(6, dtype=f64))
    x = data.sample(2500, seeded(3))
    b = elbo(data.predictor(schedule), schedule, x, n=32, generator=seeded(4))
    gap = Estimate.of(data.log_prob(x) - b.log_prob)
    assert abs(gap.z(0)) < 4 and gap.stderr < 0.05
    assert abs(float(b.reconstruction[0]) - 3
               * math.log(2 * math.pi * math.e * schedule.rho(1e-3) ** 2)) < 1e-12


def test_stated_errors_are_true():
    data, schedule = cloud(), LinearBeta()
    x = data.sample(1, seeded(5)).expand(400, 2)
    b = elbo(data.predictor(schedule), schedule, x, n=8, sets=6, generator=seeded(6))
    true, stated = b.log_prob.std().item(), b.stderr.square().mean().sqrt().item()
    assert abs(stated / true - 1) < 0.15


def test_zero_data_and_calls():
    calls = []
    b = elbo(lambda x, t: calls.append(t) or torch.zeros_like(x), LinearBeta(), torch.zeros(3, 2), n=5,
             sets=2)
    assert len(calls) == 10 and all(t.shape == (3,) and t.dtype == torch.float32 for t in calls)
    assert bool(b.log_prob.isfinite().all())


def test_prior_and_constant():
    x = torch.randn(7, 3, dtype=f64, generator=seeded(7))
    s = Geometric(0.01, 5.0)
    exact = (25 / 26 + x.square() / 26 - 1 - math.log(25 / 26)).sum(1) / 2
    b = elbo(lambda x, t: 0.5 * x, s, x, 0.5, n=1, sets=2)
    assert torch.allclose(b.prior, exact, atol=1e-12)
    assert torch.allclose(b.reconstruction,
                          torch.full((7,), 1.5 * math.log(2 * math.pi * math.e * 0.05), dtype=f64))


def test_streams_of_the_bound():
    """A seed is a generator; with a stream a datum, a datum has the bound that it has alone."""
    x = torch.randn(4, 3, dtype=f64, generator=seeded(3))
    run = lambda g, x=x: elbo(lambda x, t: torch.tanh(x), LinearBeta(), x, n=4, sets=3, generator=g)
    assert torch.equal(run(9).log_prob, run(seeded(9)).log_prob)
    together = run([4, 5, 6, 7])
    for b in range(4):
        alone = run([4 + b], x[b:b + 1])
        torch.testing.assert_close(alone.log_prob[0], together.log_prob[b], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(alone.stderr[0], together.stderr[b], rtol=1e-12, atol=1e-12)
    assert not torch.equal(run([4, 5, 6, 8]).log_prob[3], together.log_prob[3])
    with pytest.raises(ValueError, match="it holds 3"): run([1, 2, 3])
    with pytest.raises(ValueError, match="different"): run([seeded(0)] * 4)


# Noise levels

@quick
@given(st.integers(1, 40), st.integers(0, 2**31))
def test_low_discrepancy_rows(n, seed):
    u = low_discrepancy(n, seeded(seed), (2, 3))
    assert u.shape == (2, 3, n) and u.dtype == f64 and bool(((u >= 0) & (u < 1)).all())
    k = (u * n).floor().sort(-1).values
    assert torch.equal(k,
                       torch.arange(n, dtype=f64).expand(2, 3,
                                                         n)) or bool(((u * n - (u * n).round()).abs()
                                                                      < 1e-9).any())
    assert torch.equal(u, low_discrepancy(n, seeded(seed), (2, 3)))


def test_low_discrepancy_streams():
    together = low_discrepancy(5, [1, 2, 3], (2, 3))
    for b in range(3): assert torch.equal(together[:, b:b + 1], low_discrepancy(5, [b + 1], (2, 1)))
    assert torch.equal(low_discrepancy(5, 1), low_discrepancy(5, seeded(1)))
    with pytest.raises(ValueError, match="it holds 3"): low_discrepancy(5, [1, 2, 3], (3, 2))
    with pytest.raises(ValueError, match="one stream a sample"): low_discrepancy(5, [1])


def test_adaptive_levels_are_one_flat_class():
    assert AdaptiveLevels.__mro__ == (AdaptiveLevels, object)
    assert {"observe", "probabilities", "__call__"} <= vars(AdaptiveLevels).keys()


@each_schedule
def test_levels_are_a_change_of_variables(schedule):
    u = (torch.arange(4000, dtype=f64) + 0.5) / 4000
    high, low = (float(schedule.log_snr(t)) for t in (0.01, 1.0))
    adaptive = AdaptiveLevels(schedule, 0.01, 7)
    adaptive.observe(torch.linspace(low, high, 50, dtype=f64),
                     torch.rand(50, dtype=f64, generator=seeded(10)))
    for levels in (uniform_time, uniform_log_snr, adaptive):
        t, volume = levels(schedule, u, 0.01)
        assert float(t.min()) >= 0.01 - 1e-12 and float(t.max()) <= 1 and bool((volume > 0).all())
        # integral of one
        assert volume.mean().item() == pytest.approx(high - low, rel=1e-3)
        level = schedule.log_snr(t)
        assert (volume * level).mean().item() == pytest.approx((high**2 - low**2) / 2,
                                                               abs=2e-3 * (high - low) ** 2)


def test_adaptive_levels_follow_and_forget():
    schedule = LinearLogSNR(-8, 8)
    levels, old = AdaptiveLevels(schedule, 0.5, 8, 0.9), AdaptiveLevels(schedule, 0.5, 8)
    centres = (levels.edges[1:] + levels.edges[:-1]) / 2
    assert torch.allclose(levels.probabilities(), torch.full((8,), 1 / 8, dtype=f64))
    for error in (torch.ones(8, dtype=f64), torch.arange(8, dtype=f64)):
        for _ in range(100):
            for each in (levels, old): each.observe(centres, error)
    wanted = 0.9 * torch.arange(8, dtype=f64) / 28 + 0.1 / 8
    assert (levels.probabilities() - wanted).abs().max() < 0.02 < (old.probabilities()
                                                                   - wanted).abs().max()
    assert levels.probabilities().min() > 0.1 / 8
    assert levels.probabilities().sum().item() == pytest.approx(1)
    unseen = AdaptiveLevels(schedule, 0.5, 8)
    unseen.observe(centres[:1], torch.ones(1, dtype=f64))
    assert torch.allclose(unseen.probabilities(), torch.full((8,), 1 / 8, dtype=f64))


# Bad input

z = torch.zeros(4, 2, dtype=f64)
good = lambda x, t: torch.zeros_like(x)
vp = LinearBeta()


@pytest.mark.parametrize("call, error, what", [
    (lambda: elbo(good, vp, z.long()), TypeError, "x must be float32 or float64"),
    (lambda: elbo(good, vp, z[0]), ValueError, r"x must have shape \[B"),
    (lambda: elbo(good, vp, z + math.nan), ValueError, "x must be finite"),
    (lambda: elbo(good, vp, z, 0.0), ValueError, "t_min must be finite and above 0 and below 1"),
    (lambda: elbo(good, vp, z, 1.0), ValueError, "t_min must be finite and above 0 and below 1"),
    (lambda: elbo(good, vp, z, n=0), ValueError, "n must be at least 1"),
    (lambda: elbo(good, vp, z, sets=1), ValueError, "sets must be at least 2"),
    (lambda: elbo(lambda x, t: x[:, :1], vp, z), ValueError, r"must return shape \[4, 2\]"),
    (lambda: elbo(lambda x, t: x * math.nan, vp, z), ValueError, "returned NaN or infinity"),
    (lambda: elbo(good, vp, z, 1e-2, levels=AdaptiveLevels(vp)), ValueError, "levels must span"),
    (lambda: low_discrepancy(0), ValueError, "n must be at least 1"),
    (lambda: low_discrepancy(2.0), TypeError, "n must be an int"),
    (lambda: AdaptiveLevels(vp, bins=0), ValueError, "bins must be at least 1"),
    (lambda: AdaptiveLevels(vp, decay=0.0), ValueError, "decay must be finite and above 0 and at most "
                                                        "1"),
    (lambda: AdaptiveLevels(vp).observe(z[:, 0], z), ValueError, "error must have shape"),
])
def test_bad_input(call, error, what):
    with pytest.raises(error, match=what): call()


def test_the_bound_carries_no_gradient_and_public_names_exist():
    scale = torch.ones((), dtype=f64, requires_grad=True)
    assert not elbo(lambda x, t: scale * x, vp, z, n=2).log_prob.requires_grad
    assert set(module.__all__) >= {"elbo", "AdaptiveLevels", "low_discrepancy", "uniform_time",
                                   "uniform_log_snr"}


@pytest.mark.cuda
@cuda
def test_on_cuda():
    x = torch.randn(6, 2, device="cuda")
    g = torch.Generator("cuda").manual_seed(0)
    b = elbo(lambda x, t: 0.5 * x, vp, x, n=2, generator=g)
    assert b.log_prob.device.type == "cuda" and bool(b.log_prob.isfinite().all())

