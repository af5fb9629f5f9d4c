"""Schedules against their definitions, their inverses, both ends in float32; grids, noising,
conversions, bad input.
"""
from fractions import Fraction
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from rbmdiff.diffusion import schedule as library
from rbmdiff.diffusion.ddpm import chain_on_grid, linear_chain
from rbmdiff.diffusion.elbo import AdaptiveLevels, uniform_log_snr, uniform_time
from rbmdiff.diffusion.schedule import (
    Betas,
    Cosine,
    FlowMatching,
    Geometric,
    Grid,
    Kind,
    LinearBeta,
    LinearLogSNR,
    LogSNR,
    Prediction,
    Schedule,
    SinusoidalBeta,
    SubVP,
    arctan_variable,
    check_grid,
    convert,
    diffuse,
    expand,
    noised,
    speed_of_velocity,
    time_grid,
    velocity_of_speed,
)
from rbmdiff.diffusion.weights import implied_weight, weighted_loss

GRIDS, KINDS, PREDICTIONS = get_args(Grid), get_args(Kind), get_args(Prediction)
DEIS = Path(__file__).parents[2] / "shared/data/deis_check.json"
FAMILIES = (LinearBeta(), SinusoidalBeta(), SubVP(), Cosine(), LinearLogSNR(), Geometric(),
            LogSNR(lambda t: 8 - 14 * t + 2 * torch.cos(5 * t), "sub-vp"),
            LogSNR(lambda t: -torch.log(t + t * t)), LogSNR(lambda t: 9 - 17 * t, "line"),
            Betas(torch.linspace(1e-3, 0.2, 30)))
names = [f"{type(s).__name__}-{s.kind}" for s in FAMILIES]
every = pytest.mark.parametrize("schedule", FAMILIES, ids=names)
methods = ("alpha", "sigma", "rho", "log_snr", "log_snr_slope", "drift", "beta", "diffusion")
quick = settings(max_examples=40, deadline=None)


def seeded(k): return torch.Generator().manual_seed(k)


def f64(*values): return torch.tensor(values, dtype=torch.float64)


# One function fixes the schedule

@every
def test_marginals_and_coefficients_agree(schedule):
    t = torch.linspace(0.02, 1, 99, dtype=torch.float64, requires_grad=True)
    a, s = schedule.alpha(t), schedule.sigma(t)
    f, g2 = schedule.drift(t), schedule.diffusion(t)**2
    slope, = torch.autograd.grad((a + 0 * t).sum(), t, retain_graph=True)
    rate, = torch.autograd.grad((s**2).sum(), t, retain_graph=True)
    step, = torch.autograd.grad(schedule.rho(t).sum(), t)
    assert torch.allclose(slope, f * a, rtol=1e-11, atol=1e-11)
    assert torch.allclose(rate, 2 * f * s**2 + g2, rtol=1e-9, atol=1e-9)
    assert torch.allclose(g2, 2 * s * a * step, rtol=1e-9)
    assert torch.allclose(g2 / s**2, -schedule.log_snr_slope(t))
    assert torch.equal(schedule.beta(t), -2 * f) and (schedule.log_snr_slope(t) < 0).all()
    total = {"vp": a**2 + s**2, "ve": a, "sub-vp": a**2 + s, "line": a + s}[schedule.kind]
    assert (total - 1).abs().max() < 1e-14
    assert torch.allclose((a / s).log() * 2, schedule.log_snr(t), atol=1e-12)


@every
@pytest.mark.parametrize("name", methods)
def test_times_of_any_shape_and_type(schedule, name):
    function = getattr(schedule, name)
    t = torch.linspace(0.01, 1, 12, dtype=torch.float64)
    y = function(t)
    assert torch.equal(function(t.reshape(3, 4)), y.reshape(3, 4)) and torch.equal(function(t[5]), y[5])
    assert function(0.37).dtype == torch.float64 and function(0.37).ndim == 0 and function(1).ndim == 0
    single = function(t.float())
    assert single.dtype == torch.float32 and torch.equal(single, function(t.float().double()).float())


@pytest.mark.parametrize("schedule", FAMILIES[:6], ids=names[:6])
def test_both_ends_in_float32(schedule):
    t = torch.cat([torch.logspace(-12, -1, 23), 1 - torch.logspace(-7, -1, 13),
                   torch.tensor([0.0, 1.0])])
    for name in ("alpha", "sigma", "drift", "diffusion"):
        y = getattr(schedule, name)(t)
        assert y.isfinite().all()
        assert torch.allclose(y.double(), getattr(schedule, name)(t.double()), rtol=1e-7, atol=0)
    s = schedule.sigma(t[:23])
    assert (s > 0).all() and (s.diff() >= 0).all() and (schedule.alpha(t) > 0).all()


def test_clean_data_at_time_zero():
    for schedule in FAMILIES[:3]:
        assert schedule.alpha(0.0) == 1 and schedule.sigma(0.0) == 0 and schedule.rho(0.0) == 0
        assert schedule.log_snr(0.0) == math.inf and schedule.log_snr_slope(0.0) == -math.inf


def test_extreme_rates_do_not_overflow():
    for family in (LinearBeta, SinusoidalBeta, SubVP):
        schedule, t = family(1.0, 2800.0), torch.linspace(0.01, 1, 100, dtype=torch.float64)
        for name in ("alpha", "sigma", "log_snr", "log_snr_slope", "drift", "diffusion"):
            assert getattr(schedule, name)(t).isfinite().all(), (family, name)
        early = t[:40]
        assert torch.allclose(schedule.t_of_log_snr(schedule.log_snr(early)), early, rtol=1e-10)


def test_known_values():
    assert abs(LinearBeta().alpha(1.0).item() - math.exp(-10.05 / 2)) < 1e-16
    assert abs(LinearBeta().sigma(1.0).item()**2 - 1 + math.exp(-10.05)) < 1e-15
    assert abs(SubVP().sigma(0.5).item() + math.expm1(-0.05 - 19.9 / 8)) < 1e-15
    assert abs(Geometric(0.01, 50).sigma(0.5).item() - 0.5**0.5) < 1e-14
    assert abs(Cosine(-20, 20).log_snr(0.5)) < 1e-14 and abs(LinearLogSNR(-4, 8).log_snr(0.25)
                                                             - 5) < 1e-15
    assert repr(LinearBeta()) == "LinearBeta(beta_min=0.1, beta_max=20)"
    assert repr(Geometric(0.1, 5)).endswith("sigma_max=5)")


# Inverse

rates = st.tuples(st.floats(1e-3, 5), st.floats(0, 40)).map(lambda b: (b[0], b[0] + b[1]))
levels = st.tuples(st.floats(-20, 0), st.floats(0.5, 20)).map(lambda l: (l[0], l[0] + l[1]))
widths = st.tuples(st.floats(1e-3, 1), st.floats(1.5, 1e4)).map(lambda w: (w[0], w[0] * w[1]))
families = st.one_of(*(rates.map(lambda b, c=c: c(*b)) for c in (LinearBeta, SinusoidalBeta, SubVP)),
                     *(levels.map(lambda l, c=c: c(*l)) for c in (LinearLogSNR, Cosine)),
                     widths.map(lambda w: Geometric(*w)))


@quick
@given(families, st.floats(1e-6, 1.0))
def test_inverse_of_every_family(schedule, t):
    log_snr, rho = schedule.log_snr(t), schedule.rho(t)
    slack = 1e-12 + 64 * 2.3e-16 * (1 + abs(log_snr)) / abs(schedule.log_snr_slope(t))
    assert abs(schedule.t_of_log_snr(log_snr) - t) < slack and abs(schedule.t_of_rho(rho) - t) < slack
    # bisection
    assert abs(Schedule._t_of_log_snr(schedule, log_snr) - t) < slack
    single = schedule.t_of_log_snr(log_snr.float())
    assert single.dtype == torch.float32
    assert abs(single - t) < 3e-7 * (1 + (1 + abs(log_snr)) / abs(schedule.log_snr_slope(t)))


@quick
@given(families, st.floats(0, 1), st.floats(0, 1))
def test_log_snr_falls(schedule, t, u):
    if t < u: assert schedule.log_snr(t) >= schedule.log_snr(u) and schedule.rho(t) <= schedule.rho(u)


@every
def test_ends_are_inverted(schedule):
    for t in (1e-4, 1.0):
        assert abs(schedule.t_of_log_snr(schedule.log_snr(t)) - t) < 1e-9
        assert abs(schedule.t_of_rho(schedule.rho(torch.tensor(t))) - t) < 1e-6


def test_a_learned_schedule_gets_gradients():
    w = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    schedule = LogSNR(lambda t: 5 - w * t)
    schedule.sigma(0.5).backward()
    sigma = torch.sigmoid(w / 2 - 5).detach()
    assert abs(w.grad - 0.25 * sigma.sqrt() * (1 - sigma)) < 1e-15
    for kind in GRIDS: assert not time_grid(schedule, 5, kind=kind).requires_grad
    assert schedule.log_snr_slope(0.3) == -3 and abs(schedule.t_of_log_snr(3.5) - 0.5) < 1e-15


# Gradients

def own(a, kind): return LogSNR(lambda t: 6 - a * t - 2 * torch.sin(a * t) / a, kind)


FUNCTIONS = {**{n: (n, 0.37) for n in methods}, "t_of_log_snr": ("t_of_log_snr", 1.3),
             "t_of_rho": ("t_of_rho", 0.6)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_through_an_own_schedule(name, kind):
    method, at = FUNCTIONS[name]
    value = lambda a, x: getattr(own(a, kind), method)(x)
    a, x = f64(11.0)[0].requires_grad_(), f64(at)[0].requires_grad_()
    first = torch.autograd.grad(value(a, x) + 0 * (a + x), (a, x), create_graph=True)
    h = 1e-5
    for i, (da, dx) in enumerate(((h, 0), (0, h))):
        ends = [float(value(a + s * da, x + s * dx).detach()) for s in (1, -1)]
        assert abs(first[i] - (ends[0] - ends[1]) / (2 * h)) < 1e-7 * (1 + abs(first[i]))
    mixed, = torch.autograd.grad(first[1] + 0 * a, a)
    ends = [torch.autograd.grad(value(a + s * h, x) + 0 * x, x)[0] for s in (1, -1)]
    assert abs(mixed - (ends[0] - ends[1]) / (2 * h)) < 1e-6 * (1 + abs(mixed))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_torch_func_through_an_own_schedule(kind):
    a, x = f64(11.0)[0], f64(0.37)[0]
    for name in ("drift", "diffusion"):
        schedule = own(a, kind)
        known = torch.autograd.functional.jacobian(lambda x: getattr(schedule, name)(x), x)
        assert abs(torch.func.grad(lambda x: getattr(schedule, name)(x))(x) - known) < 1e-12
    schedule = own(a, kind)
    slope = float(schedule.log_snr_slope(schedule.t_of_log_snr(1.3)))
    assert abs(torch.func.grad(schedule.t_of_log_snr)(f64(1.3)[0]) - 1 / slope) < 1e-12


def test_gradients_with_known_values():
    a = f64(20.0)[0].requires_grad_()
    schedule, half = LogSNR(lambda t: 10 - a * t), f64(0.5)[0]
    found, = torch.autograd.grad(schedule.diffusion(half), a)
    assert abs(found - 3 / (2 * 10**0.5)) < 1e-12
    t = half.clone().requires_grad_()
    found, = torch.autograd.grad(LogSNR(lambda t: 10 - 20 * t**2).drift(t), t)
    assert abs(found + 1.4635) < 1e-4
    plain = LogSNR(lambda t: 10 - 20 * t)
    assert not any(getattr(plain, name)(0.5).requires_grad for name in methods)
    assert not plain.t_of_log_snr(1.0).requires_grad


def test_gradient_of_the_inverse_of_the_sinusoidal_rate():
    schedule, log_snr = SinusoidalBeta(), f64(3.0, 0.0, -4.0).requires_grad_()
    t = schedule.t_of_log_snr(log_snr)
    found, = torch.autograd.grad(t.sum(), log_snr)
    assert (found * schedule.log_snr_slope(t.detach()) - 1).abs().max() < 1e-10
    assert schedule.t_of_log_snr(f64(math.inf, 3.0)[1:].requires_grad_()).isfinite().all()


@pytest.mark.parametrize("levels", [uniform_time, uniform_log_snr])
def test_gradient_of_a_weighted_loss_in_the_schedule(levels):
    x, answer = torch.randn(400, 2, generator=seeded(5), dtype=torch.float64), lambda x, t: 0.3 * x

    def loss(a):
        schedule = LogSNR(lambda t: 10 - a * t)
        return weighted_loss(answer, schedule, x, levels=levels, generator=seeded(6)).mean()
    a = f64(20.0)[0].requires_grad_()
    found, = torch.autograd.grad(loss(a), a)
    ends = [float(loss(f64(20.0 + s)[0])) for s in (1e-4, -1e-4)]
    assert abs(found - (ends[0] - ends[1]) / 2e-4) < 1e-5 and abs(found) > 1e-3


def test_gradient_of_implied_weights_and_adaptive_levels():
    def value(a): return implied_weight(LogSNR(lambda t: 10 - 3 * a * t - a * t**2), "v")(f64(0.5)[0])
    a = f64(5.0)[0].requires_grad_()
    found, = torch.autograd.grad(value(a), a)
    assert abs(found - float(value(f64(5.00001)[0]) - value(f64(4.99999)[0])) / 2e-5) < 1e-6
    schedule = LogSNR(lambda t: 10 - 4 * a * t)
    u = torch.rand(8, dtype=torch.float64, generator=seeded(0))
    t, _ = AdaptiveLevels(schedule)(schedule, u, 1e-3)
    assert t.requires_grad


# Own schedules are tried out

def narrow(t): return 10 - 20 * t + 0.01 * torch.exp(-((t - 0.50051) / 1e-4)**2)


def stepwise(t): return (10 - 20 * t).detach() + 0 * t


def scalar_only(t): return torch.cat([10 - 20 * t[:1], 10 - 20 * t[1:]])


def centred(t): return 10 - 20 * t + 0.1 * (t - t.mean())


def noisy(t): return 10 - 20 * t + 1e-6 * torch.rand_like(t)


@pytest.mark.parametrize("function, error, message", [
    (3.0, TypeError, "log_snr must be a function"), (torch.nn.Linear, TypeError, "must be a function"),
    ([1.0, 2.0], TypeError, "must be a function"),
    (lambda t: 10 - 20 * t.detach(), ValueError, "its derivative is 0 at t = .*detach"),
    (stepwise, ValueError, "its derivative is 0"),
    (lambda t: torch.as_tensor(10 - 20 * t.numpy()), ValueError, "differentiable by torch"),
    (lambda t: 10 - 19 * t - t.detach(), ValueError, "its derivative is -19 at .* differences give -20"),
    (scalar_only, ValueError, r"for shape \[\] it raised"),
    (lambda t: 10 - 20 * t.reshape(-1), ValueError, r"for shape \[\] it gave torch.float64 \[1\]"),
    (centred, ValueError, "whatever the shape and the other times"),
    (noisy, ValueError, "rise|whatever the shape"),
    (narrow, ValueError, "must not rise, it does at t = 0.500"),
    (torch.nn.Linear(1, 1), ValueError, "it raised RuntimeError")])
def test_own_schedules_are_tried_out(function, error, message):
    with pytest.raises(error, match=message): LogSNR(function)


def test_own_schedules_that_pass():
    kinked = LogSNR(lambda t: torch.where(t < 0.5, 10 - 8 * t, 16 - 20 * t))
    assert kinked.log_snr_slope(0.7) == -20
    net = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    learned = LogSNR(lambda t: 10 - 20 * t + 0.1 * net(t[..., None])[..., 0])
    learned.diffusion(0.3).backward()
    assert net[0].weight.grad.abs().sum() > 0
    line = LogSNR(lambda t: 2 * torch.log((1 - t) / t), "line")
    assert line.log_snr(1.0) == -math.inf and line.alpha(1.0) == 0 and line.sigma(1.0) == 1


def test_schedules_are_values():
    for make in (LinearBeta, SinusoidalBeta, SubVP, Cosine, LinearLogSNR, Geometric, FlowMatching,
                 lambda: Betas([0.1, 0.2])):
        assert make() == make() and hash(make()) == hash(make()) and len({make(), make()}) == 1
        assert "object at" not in repr(make())
    assert LinearBeta() != LinearBeta(0.2) and LinearBeta() != SubVP() and LinearBeta() != 3
    assert Betas([0.1, 0.2]) != Betas([0.1, 0.3]) and Betas([0.1]) != Betas([0.1, 0.2])
    f = lambda t: 10 - 20 * t
    assert LogSNR(f) == LogSNR(f) != LogSNR(f, "ve") and LogSNR(f) != LogSNR(lambda t: 10 - 20 * t)
    assert repr(LogSNR(f)) == "LogSNR(<lambda>, kind='vp')"
    assert repr(FlowMatching()) == "FlowMatching()"


# Where values are unknown, and devices without float64

@every
def test_schedules_in_vmap_and_compiled(schedule):
    t = torch.linspace(0.1, 0.9, 4)
    torch.compiler.reset()
    for name in methods:
        method = getattr(schedule, name)
        assert torch.equal(torch.func.vmap(method)(t), method(t))
    def whole(t):
        return schedule.alpha(t), schedule.diffusion(t), schedule.t_of_log_snr(schedule.log_snr(t))
    compiled = torch.compile(whole, fullgraph=True, backend="eager")(t)
    for found, wanted in zip(compiled, whole(t)): torch.testing.assert_close(found, wanted)


class NoDouble(TorchDispatchMode):
    """Refuses float64 on an imagined device of a type that has none."""
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        y = function(*args, **(kwargs or {}))
        wrong = isinstance(y, torch.Tensor) and y.device.type == "mps" and y.dtype == torch.float64
        assert not wrong, f"{function} makes float64 on {y.device}"
        return y


def test_devices_without_float64(monkeypatch):
    for name, stub in (("check_tensor", lambda *a, **k: None), ("holds", lambda x: True)):
        monkeypatch.setattr(library, name, stub)          # an imagined tensor has no values to look at
    with FakeTensorMode(allow_non_fake_inputs=True), NoDouble():
        t, x = torch.empty(4, device="mps"), torch.empty(4, 3, device="mps")
        for schedule in (LinearBeta(), Cosine(), Geometric(), FlowMatching()):
            for name in (*methods, "t_of_rho"):
                y = getattr(schedule, name)(t)
                assert y.device.type == "mps" and y.dtype == torch.float32
        for factor in (0.5, t):
            assert expand(factor, x).device.type == "mps"


# Chains and the line

def test_betas_are_the_chain():
    chain = linear_chain(50, 1e-3, 0.3)
    schedule, t = Betas(chain), torch.arange(51, dtype=torch.float64) / 50
    assert torch.allclose(schedule.alpha(t), chain.alphas, rtol=1e-14)
    assert torch.allclose(schedule.sigma(t), chain.sigmas, rtol=1e-12)
    for same in (Betas(chain.betas), Betas(chain.betas.tolist()),
                 Betas(SimpleNamespace(betas=chain.betas)), Betas(alphas_cumprod=chain.alphas[1:]**2)):
        assert torch.allclose(same.log_snr(t[1:]), schedule.log_snr(t[1:]), rtol=1e-9)
    grid = time_grid(LinearBeta(), 12)
    bent = Betas(chain_on_grid(LinearBeta(), grid))
    assert torch.allclose(bent.log_snr(grid), LinearBeta().log_snr(grid), rtol=1e-9)
    assert abs(schedule.beta(0.5) / schedule.diffusion(0.5)**2 - 1) < 1e-15
    assert repr(schedule).startswith("Betas(of 50 steps")
    assert abs(schedule.t_of_log_snr(schedule.log_snr(0.777)) - 0.777) < 1e-12


def test_betas_can_be_learned():
    betas = f64(0.1, 0.2, 0.3).requires_grad_()
    Betas(betas).alpha(1.0).backward()
    alpha = (0.9 * 0.8 * 0.7)**0.5
    assert torch.allclose(betas.grad, -alpha / 2 / (1 - betas.detach()))


def test_flow_matching():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    schedule = FlowMatching()
    assert torch.allclose(schedule.alpha(t), 1 - t, atol=1e-15)
    assert torch.allclose(schedule.sigma(t), t, atol=1e-15)
    assert schedule.diffusion(1.0) == math.inf and schedule.diffusion(0.0) == 0
    x0, eps = torch.randn(2, 11, 3, dtype=torch.float64, generator=seeded(0))
    x = expand(1 - t, x0) * x0 + expand(t, x0) * eps
    v = expand(1 - t, x0) * eps - expand(t, x0) * x0
    assert torch.allclose(speed_of_velocity(v, x, t), eps - x0)
    assert torch.allclose(velocity_of_speed(eps - x0, x, t), v)
    for kind in ("log_snr", "rho7"):
        with pytest.raises(ValueError, match="t_max must be below 1"): time_grid(schedule, 5, kind=kind)
        assert len(time_grid(schedule, 5, kind=kind, t_max=0.99)) == 6


def test_numbers_as_times():
    for t in (0.5, np.float32(0.5), np.float64(0.5), Fraction(1, 2)):
        assert LinearBeta().alpha(t) == LinearBeta().alpha(0.5)
    with pytest.raises(TypeError, match="t must be a number"): LinearBeta().alpha(True)


# Grids

@quick
@given(families, st.sampled_from(GRIDS), st.integers(1, 60), st.floats(1e-5, 0.1), st.floats(0.2, 1.0))
def test_grids_are_grids(schedule, kind, steps, t_min, t_max):
    grid = time_grid(schedule, steps, t_min, kind, t_max)
    assert grid.dtype == torch.float64 and len(grid) == steps + 1 and grid[0] == t_max
    assert grid[-1] == t_min
    assert torch.equal(check_grid(grid), grid)
    u = {"uniform": lambda t: t, "quadratic": lambda t: t.sqrt(), "log_snr": schedule.log_snr,
         "rho7": lambda t: schedule.rho(t)**(1 / 7),
         "arctan": lambda t: arctan_variable(schedule.rho(t).log())}[kind](grid)
    assert torch.allclose(u, torch.linspace(float(u[0]), float(u[-1]), steps + 1, dtype=torch.float64),
                          rtol=1e-6, atol=1e-9)


def test_grid_from_float32_is_widened():
    grid = check_grid(torch.tensor([1.0, 0.5, 0.1], requires_grad=True))
    assert grid.dtype == torch.float64 and not grid.requires_grad and grid[1] == 0.5


@pytest.mark.skipif(not DEIS.is_file(), reason=f"the check numbers of DEIS are not in {DEIS}")
def test_numbers_of_40_digits():
    truth = json.loads(DEIS.read_text())["t2"]
    ts, rho, power = (f64(*map(float, truth[key])) for key in ("ts", "rho", "alpha_bar"))
    schedule, grid = LinearBeta(), time_grid(LinearBeta(), 10, kind="quadratic")
    assert (grid / ts - 1).abs().max() < 1e-14 and (schedule.rho(grid) / rho - 1).abs().max() < 1e-13
    assert (schedule.alpha(grid)**2 / power - 1).abs().max() < 1e-13
    assert (schedule.t_of_rho(rho) / ts - 1).abs().max() < 1e-13


# Noising and predictions

def test_diffuse_per_sample_and_reproducible():
    x0, t = torch.randn(4, 3, 2, 2, generator=seeded(0)), torch.tensor([0.1, 0.4, 0.7, 1.0])
    x, eps = diffuse(Cosine(), x0, t, seeded(1))
    again, same = diffuse(Cosine(), x0, t, seeded(1))
    assert torch.equal(x, again) and torch.equal(eps, same) and x.dtype == torch.float32
    for i in range(4):
        a, s = Cosine().alpha(t[i]), Cosine().sigma(t[i])
        assert torch.equal(a * x0[i] + s * eps[i], x[i])
    wide = diffuse(Cosine(), x0.double(), t, seeded(1))[0]
    assert wide.dtype == torch.float64 and torch.equal(diffuse(Cosine(), x0, t[1], seeded(1))[0][1],
                                                       x[1])


def test_noised_with_factors_is_diffuse_with_times():
    x0, t = torch.randn(3, 2, generator=seeded(0)), torch.tensor([0.1, 0.5, 0.9])
    x, eps = noised(x0, Cosine().alpha(t), Cosine().sigma(t), seeded(1))
    assert torch.equal(x, diffuse(Cosine(), x0, t, seeded(1))[0])
    assert torch.equal(eps, torch.randn(3, 2, generator=seeded(1)))
    assert torch.equal(noised(x0, 1.0, 0.0, 5)[0], x0)


def test_noise_from_one_stream_a_sample():
    x0 = torch.randn(3, 2, 2, generator=seeded(0))
    x, eps = noised(x0, 0.6, 0.8, [4, seeded(5), 6])
    y, same = diffuse(LinearBeta(), x0, 0.5, [4, seeded(5), 6])
    assert torch.equal(eps, same)
    for b in range(3):
        one, alone = noised(x0[b:b + 1], 0.6, 0.8, [4 + b])
        assert torch.equal(alone, eps[b:b + 1]) and torch.equal(one, x[b:b + 1])
        assert torch.equal(diffuse(LinearBeta(), x0[b:b + 1], 0.5, [4 + b])[0], y[b:b + 1])
    assert torch.equal(noised(x0, 0.6, 0.8, 7)[0], noised(x0, 0.6, 0.8, seeded(7))[0])
    with pytest.raises(ValueError, match="one stream a sample"): noised(x0, 0.6, 0.8, [1, 2])


def test_expand():
    x = torch.ones(3, 2, 2)
    assert expand(0.5, x).shape == () and expand(f64(1, 2, 3), x).shape == (3, 1, 1)
    assert expand(f64(1, 2, 3), x).dtype == x.dtype
    # not rounded to float32
    assert expand(0.1, x.double()) == torch.tensor(0.1, dtype=torch.float64)
    for bad in (f64(1, 2), torch.ones(1), torch.ones(3, 1)):
        with pytest.raises(ValueError, match=r"scalar or have shape \[3\]"): expand(bad, x)


@quick
@given(st.sampled_from(PREDICTIONS), st.sampled_from(PREDICTIONS), st.sampled_from(KINDS),
       st.floats(-8, 8), st.integers(0, 99))
def test_conversions_are_inverse_to_each_other(given_, wanted, kind, log_snr, seed):
    schedule = LogSNR(lambda t: 10 - 20 * t, kind)
    a, s = (f(schedule.t_of_log_snr(log_snr)) for f in (schedule.alpha, schedule.sigma))
    x0, eps = torch.randn(2, 5, 3, dtype=torch.float64, generator=seeded(seed))
    x = a * x0 + s * eps
    truth = {"eps": eps, "x0": x0, "v": a * eps - s * x0, "score": -eps / s}
    found = convert(truth[given_], x, a, s, given_, wanted)
    assert torch.allclose(found, truth[wanted], rtol=1e-8, atol=1e-8)
    assert torch.allclose(convert(found, x, a, s, wanted, given_), truth[given_], rtol=1e-8, atol=1e-8)


def test_conversion_takes_one_coefficient_a_sample():
    x0, eps = torch.randn(2, 6, 3, generator=seeded(0))
    t = torch.linspace(0.1, 0.9, 6)
    a, s = SubVP().alpha(t), SubVP().sigma(t)
    x = expand(a, x0) * x0 + expand(s, x0) * eps
    for wanted in PREDICTIONS:
        whole = convert(eps, x, a, s, "eps", wanted)
        parts = [convert(eps[i:i + 1], x[i:i + 1], a[i:i + 1], s[i:i + 1], "eps",
                         wanted) for i in range(6)]
        assert whole.dtype == torch.float32 and torch.equal(whole, torch.cat(parts))


NEED_SIGMA = {("x0", "eps"), ("x0", "v"), ("x0", "score"), ("eps", "score"), ("v", "score")}
NEED_ALPHA = {("eps", "x0"), ("eps", "v"), ("score", "x0"), ("score", "v")}


@pytest.mark.parametrize("given_", PREDICTIONS)
@pytest.mark.parametrize("wanted", PREDICTIONS)
def test_conversions_at_the_ends(given_, wanted):
    x0, eps = torch.randn(2, 4, 2, dtype=torch.float64, generator=seeded(0))
    for a, s, refusing, name in ((1.0, 0.0, NEED_SIGMA, "sigma"), (0.0, 1.0, NEED_ALPHA, "alpha")):
        x = a * x0 + s * eps
        p = {"eps": eps, "x0": x0, "v": a * eps - s * x0, "score": -eps}
        if (given_, wanted) in refusing:
            with pytest.raises(ValueError, match=f"{name} must be positive"):
                convert(p[given_], x, a, s, given_, wanted)
            mixed = f64(0.6, 0.6, a, 0.6), f64(0.8, 0.8, s, 0.8)
            with pytest.raises(ValueError, match=f"{name} must be positive"):
                convert(p[given_], x, *mixed, given_, wanted)
        else:
            found = convert(p[given_], x, a, s, given_, wanted)
            # the score times sigma² is zero there
            known = given_ == "score" and s == 0 and wanted != "score"
            assert found.isfinite().all() and (known or torch.allclose(found, p[wanted], atol=1e-15))


# Bad input

@pytest.mark.parametrize("call, message", [
    (lambda: LinearBeta(0.0, 1.0), "beta_min"), (lambda: LinearBeta(2.0, 1.0), "beta_min"),
    (lambda: SinusoidalBeta(0.1, math.inf), "beta_max"), (lambda: SubVP(math.nan, 1.0), "beta_min"),
    (lambda: LinearLogSNR(3.0, 3.0), "log_snr_min"), (lambda: Cosine(5.0, -5.0), "log_snr_min"),
    (lambda: Geometric(0.0, 1.0), "sigma_min"), (lambda: Geometric(2.0, 1.0), "sigma_min"),
    (lambda: LogSNR(lambda t: t), "fall strictly"),
    (lambda: LogSNR(lambda t: torch.cos(7 * t)), "fall strictly"),
    (lambda: LogSNR(lambda t: 1 - t.clamp(max=0.7)), "fall strictly"),
    (lambda: LogSNR(lambda t: 1 / (1 - t)), "finite"),
    (lambda: LogSNR(lambda t: -t.sum()), "same shape"),
    (lambda: LogSNR(lambda t: -t.float()), "float64"),
    (lambda: LogSNR(lambda t: -t, "vpp"), "kind must be one of"),
    (lambda: LogSNR(lambda t: 1.0), "same shape"),
    (lambda: LinearBeta().alpha(1.01), r"t must lie in \[0, 1\]"),
    (lambda: LinearBeta().sigma(f64(0.5, -1e-9)), "t must lie"),
    (lambda: LinearBeta().drift(f64(math.nan)), "t "),
    (lambda: Cosine().t_of_log_snr(21.0), "log_snr must lie"),
    (lambda: Geometric().t_of_rho(51.0), "rho must lie"),
    (lambda: LinearBeta().t_of_rho(-0.1), "rho must lie"),
    (lambda: FAMILIES[7].drift(0.0), "t must be where"),
    (lambda: Betas([0.1, 1.0]), "betas must lie in .*got 1; .*leave the last step out"),
    (lambda: Betas([0.1, -0.1]), "betas must lie in"), (lambda: Betas([[0.1, 0.2]]), r"shape \[T\]"),
    (lambda: Betas(alphas_cumprod=[0.5, 0.6]), "fall strictly"),
    (lambda: Betas([0.1, 0.2], times=[0, 1]), "times must be 3 numbers"),
    (lambda: Betas([0.1, 0.2], times=[0, 0.8, 0.5]), "times must be 3 numbers"),
    (lambda: time_grid(LinearBeta(), 0), "steps"), (lambda: time_grid(LinearBeta(), 5, 0.0), "t_min"),
    (lambda: time_grid(LinearBeta(), 5, 0.5, t_max=0.5), "t_min"),
    (lambda: time_grid(LinearBeta(), 5, t_max=1.1), "t_max"),
    (lambda: time_grid(LinearBeta(), 5, math.nan), "t_min"),
    (lambda: time_grid(LinearBeta(), 5, kind="cubic"), "kind"),
    (lambda: check_grid(f64(0.1, 0.5)), "decrease"),
    (lambda: check_grid(f64(0.9, 0.5, 0.5)), "decrease"),
    (lambda: check_grid(f64(1, 0.5, 0)), "denoise=True"),
    (lambda: check_grid(f64(1.2, 0.5)), r"\(0, 1\]"),
    (lambda: check_grid(f64(0.5)), "shape"), (lambda: check_grid(f64([1, 0.5])), "shape"),
    (lambda: check_grid(f64(1, math.nan)), "grid"),
    (lambda: diffuse(LinearBeta(), torch.ones(3, 2), f64(0.1, 0.2)), "scalar or have shape"),
    (lambda: diffuse(LinearBeta(), torch.full((3, 2), math.inf), 0.5), "x0"),
    (lambda: convert(torch.ones(2, 3), torch.ones(3, 2), 1.0, 1.0, "eps", "x0"),
     "prediction must have shape"),
    (lambda: convert(torch.ones(3), torch.ones(3, 2), 1.0, 1.0, "eps", "x0"),
     "prediction must have shape"),
    (lambda: convert(torch.full((3, 2), math.nan), torch.ones(3, 2), 1.0, 1.0, "eps", "x0"),
     "prediction"),
    (lambda: convert(torch.ones(3, 2), torch.ones(3, 2), 1.0, 1.0, "noise", "x0"),
     "given must be one of"),
    (lambda: convert(torch.ones(3, 2), torch.ones(3, 2), 1.0, 1.0, "eps", "x"), "wanted must be one of"),
    (lambda: convert(torch.ones(3, 2), torch.ones(3, 2), f64(1, 1), 1.0, "eps", "x0"),
     "scalar or have shape")])
def test_bad_values(call, message):
    with pytest.raises(ValueError, match=message): call()


@pytest.mark.parametrize("call", [
    lambda: Betas(), lambda: Betas([0.1], alphas_cumprod=[0.9]),
    lambda: LinearBeta().alpha("0.5"), lambda: LinearBeta().alpha(torch.tensor(1)),
    lambda: LinearBeta().alpha(None),
    lambda: LinearBeta().sigma(torch.tensor(0.5, dtype=torch.float16)),
    lambda: time_grid(LinearBeta(), 5.0),
    lambda: check_grid([1.0, 0.5]), lambda: check_grid(torch.tensor([1, 0])),
    lambda: diffuse(LinearBeta(), torch.ones(3, 2, dtype=torch.int64), 0.5),
    lambda: convert(torch.ones(3, 2).double(), torch.ones(3, 2), 1.0, 1.0, "eps", "x0")])
def test_bad_types(call):
    with pytest.raises(TypeError, match="must be"): call()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda():
    for schedule in FAMILIES:
        t = torch.linspace(0.01, 1, 8, device="cuda")
        for name in methods:
            y = getattr(schedule, name)(t)
            assert y.device == t.device
            assert torch.allclose(y.cpu(), getattr(schedule, name)(t.cpu()), rtol=1e-6)
        assert torch.allclose(schedule.t_of_log_snr(schedule.log_snr(t)), t, atol=1e-4)
        x, eps = diffuse(schedule, torch.ones(8, 2, device="cuda"), t)
        for wanted in PREDICTIONS:
            assert convert(eps, x, schedule.alpha(t), schedule.sigma(t), "eps",
                           wanted).device == t.device
