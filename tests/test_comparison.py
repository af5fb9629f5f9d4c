"""Bounds on binary pixels against exact likelihoods, the tilted network against enumeration, errors of
differences against their spread.
"""
import math

import pytest
import torch

from machines import seeded
from rbmdiff.bridge import tilted
from rbmdiff.bridge.comparison import (
    BinaryBound,
    BinaryDenoiser,
    _bit_term,
    binary_bound,
    paired_difference,
)
from rbmdiff.diffusion.elbo import elbo, uniform_time
from rbmdiff.diffusion.networks import MLP, UNet, as_eps, bounded_time
from rbmdiff.diffusion.objective import denoising_step
from rbmdiff.diffusion.schedule import Cosine, Geometric, LinearBeta, LinearLogSNR
from rbmdiff.foundations.core import Estimate
from rbmdiff.foundations.data import base_rate
from rbmdiff.foundations.train import TrainState, train
from rbmdiff.foundations.units import Bernoulli, Binary, Discrete, Spin, as_unit, states
from rbmdiff.models.rbm import RBM

f64 = torch.float64
UNITS = "bernoulli", "spin"
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
each_unit = pytest.mark.parametrize("unit", UNITS)


def machine(unit, D=5, H=3, scale=0.8, dtype=f64, device=None):
    m, g = RBM(D, H, unit, dtype=dtype), seeded(7)
    for p in m.parameters(): p.data = scale * torch.randn(p.shape, dtype=dtype, generator=g)
    return m.to(device)


def exact(m, schedule):
    return as_eps(lambda x, t: tilted.denoise(m, x, schedule.alpha(t), schedule.sigma(t)), schedule,
                  "x0")


def drawn(m, n, g):
    """Images of an enumerable machine, drawn from its exact distribution."""
    V = states(len(m.b), m.visible)
    return V[torch.multinomial(m.log_prob(V).detach().exp(), n, replacement=True, generator=g)]


# The last step

@each_unit
def test_last_step_between_its_limits(unit):
    schedule, v = LinearLogSNR(-20, 20), torch.ones(3, 2, 4, dtype=f64)
    nats = torch.stack([_bit_term(schedule, v, as_unit("unit", unit),
                                  float(t))[0] for t in torch.linspace(0.01, 1, 60)])
    assert abs(nats[-1] - 8 * math.log(2)) < 1e-6 and nats[0] < 1e-100 and bool((nats.diff() >= 0).all())
    spins, bits = (_bit_term(schedule, v, as_unit("unit", u), t)
                   for u, t in (("spin", 0.5), ("bernoulli", float(schedule.t_of_log_snr(math.log(4))))))
    # spins are bits, twice as far apart
    assert (spins - bits).abs().max() < 1e-12


@each_unit
@pytest.mark.parametrize("schedule", [LinearBeta(), Cosine(-8, 8), Geometric(0.05, 40.0)],
                         ids=lambda s: type(s).__name__)
def test_last_step_by_simulation(unit, schedule):
    t, g = 0.35, seeded(1)
    v = states(1, unit).repeat(50_000, 1)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x = alpha * v + sigma * torch.randn(v.shape, dtype=f64, generator=g)
    log_q = torch.stack([-(x - alpha * value) ** 2 / (2 * sigma**2) for value in states(1, unit)])
    right = -(x - alpha * v) ** 2 / (2 * sigma**2)
    e = Estimate.of((log_q.logsumexp(0) - right)[:, 0])
    assert abs(e.z(_bit_term(schedule, v[:1], as_unit("unit", unit), t).item())) < 4 and e.stderr < 0.005


# The bound

@each_unit
@pytest.mark.parametrize("schedule", [LinearLogSNR(-9, 8), Cosine(-9, 8), Geometric(0.02, 60.0)],
                         ids=lambda s: type(s).__name__)
def test_bound_of_the_exact_denoiser_is_exact(unit, schedule):
    m, v = machine(unit), drawn(machine(unit), 4000, seeded(1))
    b = binary_bound(exact(m, schedule), schedule, v, unit, n=32, sets=2, generator=seeded(2))
    log_p = m.log_prob(v).detach()
    gap = Estimate.of(log_p - b.each.log_prob)
    assert abs(gap.z(0)) < 4 and gap.stderr < 0.03
    # half of the integral too much
    assert Estimate.of(log_p - b.each.log_prob + b.each.diffusion / 2).z(0) > 20
    # a quarter too little
    assert Estimate.of(log_p - b.each.log_prob - b.each.diffusion / 4).z(0) < -20


@each_unit
def test_gap_of_an_early_end(unit):
    schedule, m = LinearLogSNR(-9, 8), machine(unit)
    v, t = drawn(m, 8000, seeded(2)), float(schedule.t_of_log_snr(0.5))
    b = binary_bound(exact(m, schedule), schedule, v, unit, t, n=8, sets=2, generator=seeded(3))
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x = alpha * v + sigma * torch.randn(v.shape, dtype=f64, generator=seeded(4))
    with torch.no_grad(): known = tilted.posterior(m, x, alpha, sigma).log_prob(v)
    blank = RBM(5, 1, unit, dtype=f64)
    for p in blank.parameters(): p.data.zero_()
    with torch.no_grad(): guess = tilted.posterior(blank, x, alpha, sigma).log_prob(v)
    e = Estimate.of(m.log_prob(v).detach() - b.each.log_prob - (known - guess))
    assert abs(e.z(0)) < 4 and e.stderr < 0.05
    # the end costs something
    assert Estimate.of(m.log_prob(v).detach() - b.each.log_prob).z(0) > 10
    every = states(5, unit)
    b = binary_bound(exact(m, schedule), schedule, every.repeat(200, 1), unit, t, n=8, sets=2,
                     generator=seeded(5))
    walked = torch.logsumexp(b.each.log_prob.reshape(200, -1).mean(0), 0).exp().item()
    # a bound of some distribution: no more than one in all
    assert 0.5 < walked < 1.02


@pytest.mark.parametrize("unit", (Binary((-2.0, 1.0)), Discrete((0.5, 1.0)), Bernoulli()), ids=str)
def test_bound_is_exact_for_any_two_levels(unit):
    schedule = LinearLogSNR(-9, 12)
    m, v = machine(unit), drawn(machine(unit), 4000, seeded(1))
    ours = binary_bound(exact(m, schedule), schedule, v, unit, n=8, sets=2, generator=2)
    gap = Estimate.of(m.log_prob(v).detach() - ours.each.log_prob)
    assert abs(gap.z(0)) < 4 and gap.stderr < 0.05
    with pytest.raises(ValueError, match="^v must hold only"):
        binary_bound(exact(m, schedule), schedule, v, Spin(), n=2, sets=2)


def test_a_name_and_an_object_are_the_same_unit():
    m, schedule = machine("bernoulli"), LinearLogSNR(-8, 6)
    v = drawn(m, 20, seeded(1))
    named, made = (binary_bound(exact(m, schedule), schedule, v, unit, n=2, sets=2, generator=3)
                   for unit in ("bernoulli", Bernoulli()))
    assert named.value == made.value and named.stderr == made.stderr


def test_every_image_has_its_own_stream():
    m, schedule = machine("spin"), LinearLogSNR(-8, 6)
    v, seeds = drawn(m, 5, seeded(1)), [31, 32, 33, 34, 35]

    def bound(rows, generator):
        return binary_bound(exact(m, schedule), schedule, v[rows], n=4, sets=2,
                            generator=generator).each.log_prob

    together = bound([0, 1, 2, 3, 4], seeds)
    pair = bound([3, 1], [seeds[3], seeds[1]])
    torch.testing.assert_close(pair, together[[3, 1]], rtol=1e-10, atol=1e-10)
    # control: other streams
    assert not torch.allclose(pair, bound([3, 1], [seeds[1], seeds[3]]))
    with pytest.raises(ValueError, match="^generator must hold"):
        bound([0, 1, 2], seeds)


def test_the_network_is_told_the_bounded_time():
    schedule, told = LinearBeta(), []
    model = BinaryDenoiser(lambda x, u: told.append(u) or x, schedule, torch.zeros(3))
    t = torch.tensor([0.01, 0.3, 1.0])
    model(torch.ones(3, 3), t)
    assert torch.equal(told[0], bounded_time(schedule.alpha(t), schedule.sigma(t)))
    assert bool((told[0].diff() > 0).all()) and 0 < told[0][0] and told[0][-1] < 1


def test_errors_are_true_and_apart():
    schedule, m = LinearLogSNR(-8, 6), machine("spin")
    v = states(5, "spin")
    runs = [binary_bound(exact(m, schedule), schedule, v, n=4, sets=4,
                         generator=seeded(k)) for k in range(60)]
    true, stated = (
        torch.tensor([r.value for r in runs]).std().item(),
        sum(r.noise for r in runs) / len(runs),
    )
    assert abs(stated / true - 1) < 0.35
    r = runs[0]
    assert isinstance(r, Estimate) and r.n == 32 and r.noise < r.stderr
    assert r.value == pytest.approx(r.each.log_prob.mean().item())
    assert r.stderr == pytest.approx(r.each.log_prob.std().item() / 32**0.5) and "each" not in repr(r)
    assert "±" in str(r)


@pytest.mark.parametrize("dtype", [torch.float32, f64])
@pytest.mark.parametrize("shape", [(4, 6), (3, 1, 2, 2)])
def test_shapes_types_levels_and_seed(dtype, shape):
    v = torch.where(torch.rand(shape, generator=seeded(5)) < 0.5, 1.0, -1.0).to(dtype)
    calls = []
    def predict(x, t):
        calls.append(x.dtype)
        return 0.5 * x
    b, again = (binary_bound(predict, LinearBeta(), v, n=3, sets=2, levels=uniform_time,
                             generator=seeded(6)) for _ in "ab")
    assert isinstance(b, BinaryBound) and b.n == len(v) and b.value == again.value
    assert calls == [dtype] * 12
    for part in (b.each.log_prob, b.each.stderr, b.each.reconstruction):
        assert part.shape == v.shape[:1] and part.dtype == f64
    same = elbo(predict, LinearBeta(), v, n=3, sets=2, levels=uniform_time, generator=seeded(6))
    assert torch.equal(same.diffusion, b.each.diffusion) and torch.equal(same.prior, b.each.prior)


# A network that knows its channel

@pytest.mark.parametrize("dtype", [torch.float32, f64])
@pytest.mark.parametrize("schedule", [LinearLogSNR(-10, 5), Geometric(0.1, 20.0)],
                         ids=lambda s: type(s).__name__)
def test_untrained_network_is_independent_spins(dtype, schedule):
    b = torch.tensor([0.3, -1.0, 0.0, 0.7], dtype=dtype)
    model = BinaryDenoiser(MLP(4, 8, 1, dtype=dtype), schedule, b)
    x = torch.randn(6, 4, dtype=dtype, generator=seeded(8))
    t = torch.rand(6, dtype=f64, generator=seeded(9)) * 0.9 + 0.1
    a, s = (c(t)[:, None].to(dtype) for c in (schedule.alpha, schedule.sigma))
    v = torch.tanh(b + a * x / s**2)
    assert torch.allclose(model.denoise(x, t), v)
    assert torch.allclose(model(x, t), (x - a * v) / s, atol=1e-5)
    # no sample depends on another
    assert torch.allclose(model(x, 0.5)[2], model(x[2:3], 0.5)[0])
    assert {n for n, _ in model.named_parameters()} >= {"b", "network.last.weight"}
    assert model(x, t).dtype == dtype


def test_tilted_learns_what_independent_pixels_cannot():
    schedule, g = LinearLogSNR(-8, 5), seeded(10)
    # four equal spins: entropy log 2
    v = torch.where(torch.rand(400, 1, generator=g) < 0.5, 1.0, -1.0).repeat(1, 4)
    model = BinaryDenoiser(MLP(4, 16, 1, generator=g), schedule, base_rate(v, unit="spin"))
    before = binary_bound(model, schedule, v, n=16, sets=2, generator=seeded(11))
    state = TrainState(model, torch.optim.Adam(model.parameters(), 5e-3), g)
    for _ in train(state, v, denoising_step(schedule), 150, 100, progress=False): pass
    after = binary_bound(model, schedule, v, n=16, sets=2, generator=seeded(11))
    assert abs(before.value + 4 * math.log(2)) < 0.2 and -1.1 < after.value < -0.5


def test_images_and_networks_of_two_axes():
    schedule, b = LinearLogSNR(-8, 5), torch.zeros(1, 4, 4)
    model = BinaryDenoiser(UNet(1, (8,), generator=seeded(12)), schedule, b)
    v = torch.where(torch.rand(3, 1, 4, 4, generator=seeded(13)) < 0.5, 1.0, -1.0)
    bound = binary_bound(model, schedule, v, n=16, sets=4, generator=seeded(14))
    assert (
        abs(bound.value + 16 * math.log(2)) < 6 * bound.noise and model.denoise(v, 0.3).shape == v.shape
    )


# Differences

def test_paired_difference_is_exact_and_paired():
    g = seeded(15)
    hard = 5 * torch.randn(500, dtype=f64, generator=g)
    a, b = hard + 0.1, hard + 0.01 * torch.randn(500, dtype=f64, generator=g)
    e = paired_difference(a, b)
    assert abs(e.value - (a.mean() - b.mean()).item()) < 1e-14 and abs(e.z(0.1)) < 4 and e.n == 500
    cov = torch.cov(torch.stack([a, b]))
    assert e.stderr == pytest.approx(math.sqrt(((cov[0, 0] + cov[1, 1] - 2 * cov[0, 1]) / 500).item()),
                                     rel=1e-6)
    swapped = paired_difference(b, a)
    assert swapped.value == -e.value and swapped.stderr == e.stderr
    # as if independent
    assert (cov.diagonal().sum() / 500).sqrt() > 100 * e.stderr


# Bad input

V = torch.tensor([[1.0, -1.0], [-1.0, -1.0]])


@pytest.mark.parametrize("v, options, match", [
    ([[1.0]], {}, "v must be a torch.Tensor"), (V[0], {}, "v must have shape"),
    (V[:1], {}, "v must hold at least 2"),
    ((V + 1) / 2, {}, "v must hold only -1"), (V, {"unit": "bernoulli"}, "v must hold only 0 or 1"),
    (V, {"unit": "gaussian"}, "unit must be one of two levels"),
    (V * math.nan, {}, "v must be finite"), (V.long(), {}, "v must be float"),
    (V, {"t_min": 0.0}, "t_min"), (V, {"t_min": 1.0}, "t_min"),
    (V, {"n": 0}, "n must be"), (V, {"sets": 1}, "sets must be")])
def test_bound_refuses(v, options, match):
    with pytest.raises((TypeError, ValueError), match=match):
        binary_bound(lambda x, t: x, LinearBeta(), v, **options)


def test_bound_refuses_a_bad_prediction():
    with pytest.raises(ValueError, match="predict must return shape"):
        binary_bound(lambda x, t: x[:, :1], LinearBeta(), V, n=2, sets=2)


@pytest.mark.parametrize("a, b, match", [
    (torch.zeros(3), torch.zeros(4), "b must have shape"),
    (torch.zeros(1), torch.zeros(1), "a must have shape"),
    (torch.zeros(2, 2), torch.zeros(2, 2), "a must have shape"),
    (torch.zeros(3), torch.zeros(3, dtype=f64), "b must be"),
    (torch.full((3,), math.nan), torch.zeros(3), "a must be finite"),
    ([1.0], torch.zeros(1), "a must be a torch.Tensor")])
def test_difference_refuses(a, b, match):
    with pytest.raises((TypeError, ValueError), match=match): paired_difference(a, b)


def test_tilted_refuses():
    with pytest.raises(TypeError, match="b must be"):
        BinaryDenoiser(MLP(2, 4, 1), LinearBeta(), [0.0, 0.0])
    with pytest.raises(ValueError, match="b must be finite"):
        BinaryDenoiser(MLP(2, 4, 1), LinearBeta(), torch.tensor([0.0, math.inf]))
    model = BinaryDenoiser(MLP(2, 4, 1), LinearBeta(), torch.zeros(2))
    for x, match in ((V.double(), "x must be"), (V[:, :1], "x must have shape"),
                     (V * math.nan, "finite")):
        with pytest.raises((TypeError, ValueError), match=match): model(x, 0.5)
    with pytest.raises(ValueError, match="sigma"):
        BinaryDenoiser(MLP(2, 4, 1), LinearBeta(), torch.zeros(2))(V, 0.0)


@cuda
def test_on_cuda():
    schedule, m, g = LinearLogSNR(-9, 8), machine("spin",
                                                  device="cuda"), torch.Generator("cuda").manual_seed(16)
    v = states(5, "spin", device="cuda").repeat(40, 1)
    bound = binary_bound(exact(m, schedule), schedule, v, n=16, sets=2, generator=g)
    assert abs(Estimate.of(m.log_prob(v).detach() - bound.each.log_prob).z(0)) < 4
    model = BinaryDenoiser(MLP(5, 8, 1), schedule, torch.zeros(5)).to("cuda")
    assert model(v.float(), 0.5).device.type == "cuda"
    assert paired_difference(bound.each.log_prob, bound.each.log_prob + 1).value == pytest.approx(-1)
