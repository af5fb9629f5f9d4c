"""Weightings of the noise levels against their definitions; weighted losses against exact ones."""
import math

from hypothesis import given, settings, strategies as st
import pytest
import torch

from rbmdiff.diffusion.elbo import AdaptiveLevels, elbo, uniform_log_snr, uniform_time
from rbmdiff.diffusion.oracle import Mixture
from rbmdiff.diffusion.schedule import Cosine, Geometric, LinearBeta, LinearLogSNR
from rbmdiff.diffusion.weights import (
    augmentation,
    bridge,
    edm,
    edm_monotone,
    exponential,
    flat,
    implied_weight,
    is_monotone,
    level_masses,
    min_snr,
    p2,
    sech,
    sigmoid_weight,
    weighted_loss,
)
from rbmdiff.foundations.core import Estimate

f64 = torch.float64
MONOTONE = (flat, exponential, sigmoid_weight, bridge, edm_monotone)
OTHERS = (sech, edm, min_snr, p2, implied_weight(LinearBeta()))
quick = settings(max_examples=20, deadline=None)


def seeded(k): return torch.Generator().manual_seed(k)


def cloud(dtype=f64):
    means = torch.tensor([[-1.0, 0.5], [1.2, 0.0], [0.0, -1.0]], dtype=dtype)
    return Mixture(torch.tensor([0.2, 0.3, 0.5], dtype=dtype), means,
                   0.05 * torch.eye(2, dtype=dtype).expand(3, 2, 2))


# Weighted losses

def test_every_sampler_has_the_same_mean():
    data, schedule = cloud(), LinearBeta()
    x = data.sample(20000, seeded(11))
    adaptive = AdaptiveLevels(schedule)
    weighted_loss(data.predictor(schedule), schedule, x, flat, adaptive, generator=seeded(12))
    exact = elbo(data.predictor(schedule), schedule, x[:2000], n=32, generator=seeded(13)).diffusion
    truth = Estimate.of(exact)
    for levels in (uniform_time, uniform_log_snr, adaptive):
        e = Estimate.of(weighted_loss(data.predictor(schedule), schedule, x, flat, levels,
                                      generator=seeded(14)).double())
        assert abs(e.value - truth.value) < 4 * math.hypot(e.stderr, truth.stderr) and e.stderr < 0.5
    spread = {levels: weighted_loss(data.predictor(schedule), schedule, x, flat, levels,
                                    generator=seeded(15)).std().item()
              for levels in (uniform_time, uniform_log_snr, adaptive)}
    assert spread[adaptive] < spread[uniform_log_snr] < spread[uniform_time]


def test_weighted_loss_trains():
    schedule, g = LinearBeta(), seeded(16)
    scale = torch.zeros((), requires_grad=True)
    levels = AdaptiveLevels(schedule, bins=10, decay=0.9)
    optimizer = torch.optim.Adam([scale], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        # unit variance: the best linear guess is sigma x_t
        x = torch.randn(256, 4, generator=g)
        predict = lambda z, t: scale * schedule.sigma(t)[:, None] * z
        loss = weighted_loss(predict, schedule, x, sigmoid_weight, levels, generator=g)
        assert loss.shape == (256,) and loss.dtype == torch.float32
        loss.mean().backward()
        optimizer.step()
    assert abs(scale.item() - 1) < 0.05 and levels.total.requires_grad is False


def test_streams_of_the_loss():
    """A seed is a generator; with a stream a datum, a datum has the level and the loss that it has
    alone.
    """
    x = torch.randn(4, 3, dtype=f64, generator=seeded(3))
    run = lambda g, x=x: weighted_loss(lambda x, t: torch.tanh(x), LinearBeta(), x, sech, generator=g)
    assert torch.equal(run(9), run(seeded(9)))
    together = run([4, 5, 6, 7])
    for b in range(4): torch.testing.assert_close(run([4 + b], x[b:b + 1])[0], together[b], rtol=1e-12,
                                                  atol=1e-12)
    with pytest.raises(ValueError, match="it holds 3"): run([1, 2, 3])


def test_levels_are_known_by_what_they_can():
    """As a notebook makes them, whose class is another than the package's."""
    class Watching:
        seen = 0

        def __call__(self, *args): return uniform_log_snr(*args)

        def observe(self, log_snr, error): self.seen += len(error)
    levels = Watching()
    weighted_loss(lambda x, t: 0 * x, LinearBeta(), torch.ones(5, 2), flat, levels)
    assert levels.seen == 5


# Weightings

def test_the_monotone_column():
    assert all(is_monotone(w) for w in MONOTONE) and not any(is_monotone(w) for w in OTHERS)
    assert is_monotone(edm, -3.0, 10.0) and is_monotone(sech, 0.0, 20.0)
    assert not is_monotone(sech, -1.0, 20.0)


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
    assert ratio(implied_weight(Cosine())(l), sech(l)) < 1e-12
    assert ratio(implied_weight(Cosine(), "v")(l), exponential(l)) < 1e-12
    assert ratio(implied_weight(Geometric(0.01, 50.0), "eps")(l), flat(l)) < 1e-12
    assert ratio(implied_weight(LinearLogSNR(-8, 8), "x0")(l), torch.exp(-l)) < 1e-12
    t = LinearBeta().t_of_log_snr(l)
    assert ratio(implied_weight(LinearBeta())(l),
                 LinearBeta().sigma(t) ** 2 / LinearBeta().beta(t)) < 1e-12
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
    (lambda: weighted_loss(good, vp, z.long()), TypeError, "x must be float32 or float64"),
    (lambda: weighted_loss(good, vp, z, t_min=2.0), ValueError, "t_min must be finite and above 0 and "
                                                                "below 1"),
    (lambda: weighted_loss(lambda x, t: x[:2], vp, z), ValueError, "predict must return shape"),
    (lambda: implied_weight(vp, "noise"), ValueError, "kind must be one of"),
    (lambda: is_monotone(sech, 3.0, -3.0), ValueError, "low must lie below high"),
    (lambda: is_monotone(sech, n=1), ValueError, "n must be at least 2"),
    (lambda: is_monotone(lambda l: -l), ValueError, "must not be negative"),
    (lambda: is_monotone(lambda l: l.log()), ValueError, "must be finite"),
    (lambda: level_masses(flat, vp, torch.tensor([0.5, 0.1])), ValueError, "times must be"),
    (lambda: level_masses(flat, vp, torch.tensor([0.5])), ValueError, "times must be"),
    (lambda: augmentation(sech, vp, torch.linspace(0.01, 1, 9)), ValueError, "weight must not fall with "
                                                                             "time"),
    (lambda: is_monotone(sech, -math.inf, 3.0), ValueError, "low must be finite"),
])
def test_bad_input(call, error, what):
    with pytest.raises(error, match=what): call()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda():
    x = torch.randn(6, 2, device="cuda")
    g = torch.Generator("cuda").manual_seed(0)
    levels = AdaptiveLevels(vp)
    assert weighted_loss(lambda x, t: 0.5 * x, vp, x, sech, levels, generator=g).device.type == "cuda"
