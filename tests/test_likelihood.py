"""Probability-flow likelihoods: closed forms, schedules, precision, probes, solvers, independence of the
batch, bad input.
"""
import math

from hypothesis import given, settings, strategies as st
import pytest
from scipy.integrate import solve_ivp
import torch

from rbmdiff.diffusion import likelihood as module
from rbmdiff.diffusion.likelihood import (
    Likelihood,
    bits_per_dimension,
    cell_log_prob,
    dequantize,
    log_likelihood,
    nats_to_bits,
    probe_variance,
    transport,
    velocity,
)
from rbmdiff.diffusion.networks import UNet
from rbmdiff.diffusion.oracle import Mixture, gaussian, gaussian_flow
from rbmdiff.diffusion.schedule import (
    Cosine,
    Geometric,
    LinearBeta,
    LinearLogSNR,
    LogSNR,
    SinusoidalBeta,
    SubVP,
)

f64 = torch.float64
SCHEDULES = [LinearBeta(), Geometric(), SubVP(), Cosine(), LinearLogSNR(), SinusoidalBeta(),
             LogSNR(lambda t: 8 - 14 * t - t**2, "ve")]
PLANE = Mixture(torch.tensor([0.4, 0.6], dtype=f64), torch.tensor([[-0.7, 0.2], [0.6, -0.4]], dtype=f64),
                torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.15, 0.0], [0.0, 0.4]]], dtype=f64))


def points(n, seed=0):
    return PLANE.sample(n, torch.Generator().manual_seed(seed))


def true_end(answer, mixture, schedule):
    """Log-likelihood with the exact density at t = 1 in the place of the prior."""
    alpha, sigma = schedule.alpha(1.0), schedule.sigma(1.0)
    return (answer.log_prob - answer.prior + mixture.log_prob(answer.latent, alpha, sigma)
            + mixture.means.shape[1] * torch.hypot(alpha, sigma).log())


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{type(s).__name__}-{s.kind}")
def test_mixture_equals_the_oracle(schedule):
    x = points(6)
    truth = PLANE.log_prob(x, 1.0, schedule.rho(1e-3))
    answer = log_likelihood(PLANE.predictor(schedule), schedule, x)
    assert (true_end(answer, PLANE, schedule) - truth).abs().max() < 1e-5
    assert (answer.stderr == 0).all() and (answer.nfe == 4 * 33 + 32 + 1).all()
    assert (answer.backward == 2 * 33).all()
    assert answer.log_prob.dtype == f64 and answer.latent.shape == x.shape


def test_gaussian_in_64_dimensions_and_images():
    g = torch.Generator().manual_seed(1)
    A = torch.randn(64, 64, dtype=f64, generator=g) / 8
    one = gaussian(torch.randn(64, dtype=f64, generator=g) / 4,
                   A @ A.T / 2 + 0.1 * torch.eye(64, dtype=f64))
    schedule = LinearBeta()
    x = one.sample(5, g)
    answer = log_likelihood(one.predictor(schedule), schedule, x)
    assert (true_end(answer, one, schedule)
            - one.log_prob(x, 1.0, schedule.rho(1e-3))).abs().max() < 1e-4
    exact = gaussian_flow(one, schedule, schedule.alpha(1e-3) * x, 1e-3, 1.0)
    assert (answer.latent - exact).abs().max() < 1e-5
    flat = one.predictor(schedule)
    images = log_likelihood(lambda x, t: flat(x.flatten(1), t).view_as(x), schedule,
                            x.reshape(5, 1, 8, 8))
    assert (images.log_prob - answer.log_prob).abs().max() < 1e-10
    assert images.latent.shape == (5, 1, 8, 8)


def test_scipy_agrees():
    """Path and divergence together in time, DOP853, the density pushed from the prior."""
    schedule, x = LinearBeta(), points(1)
    predict = PLANE.predictor(schedule)

    def field(t, state):
        y = torch.tensor(state[None, :2], dtype=f64)
        J = torch.autograd.functional.jacobian(lambda y: velocity(predict, schedule, y, t), y)[0, :, 0]
        return [*velocity(predict, schedule, y, t)[0].tolist(), J.trace().item()]

    start = [*(schedule.alpha(1e-2) * x[0]).tolist(), 0.0]
    end = solve_ivp(field, (1e-2, 1.0), start, "DOP853", rtol=1e-9, atol=1e-9).y[:, -1]
    wanted = -(end[:2]
               @ end[:2]) / 2 - math.log(2 * math.pi) + end[2] + 2 * float(schedule.alpha(1e-2).log())
    assert abs(log_likelihood(predict, schedule, x, 1e-2, nodes=48).log_prob.item() - wanted) < 1e-6
    assert abs(log_likelihood(predict, schedule, x, 1e-2, tolerance=1e-7).log_prob.item()
               - wanted) < 1e-5


def test_full_diffusion_is_rejected():
    schedule, x = LinearBeta(), points(4)
    predict = PLANE.predictor(schedule)
    truth = PLANE.log_prob(x, 1.0, schedule.rho(1e-3))
    wrong = log_likelihood(lambda x, t: 2 * predict(x, t), schedule, x)
    assert (true_end(wrong, PLANE, schedule) - truth).abs().min() > 1


def test_float32():
    single = Mixture(PLANE.log_weights.exp().float(), PLANE.means.float(), torch.tensor(
        [[[0.3, 0.1], [0.1, 0.2]], [[0.15, 0.0], [0.0, 0.4]]]))
    for schedule in SCHEDULES:
        for n, options in ((6, {"nodes": 16}), (1, {"tolerance": 1e-3})):
            x = points(n).float()
            wanted = log_likelihood(PLANE.predictor(schedule), schedule, x.double(), 1e-2, **options)
            got = log_likelihood(single.predictor(schedule), schedule, x, 1e-2, **options)
            assert got.latent.dtype == torch.float32 and got.log_prob.dtype == f64
            assert (got.log_prob - wanted.log_prob).abs().max() < 1e-3


@pytest.mark.parametrize("trace", ["rademacher", "gaussian"])
def test_probes_against_the_exact_trace(trace):
    schedule, x, g = LinearBeta(), points(60), torch.Generator().manual_seed(3)
    exact = log_likelihood(PLANE.predictor(schedule), schedule, x, nodes=16)
    got = log_likelihood(PLANE.predictor(schedule), schedule, x, nodes=16, trace=trace, probes=32,
                         generator=g)
    error = got.log_prob - exact.log_prob
    z = error.sum() / got.stderr.square().sum().sqrt()
    assert abs(z) < 4 and got.stderr.mean() < (0.1 if trace == "rademacher" else 0.8)
    assert 0.6 < (error / got.stderr).square().mean().sqrt() < 1.5
    # the path knows nothing of the probes
    assert (got.latent == exact.latent).all()


def test_a_generator_a_sample():
    schedule, x = LinearBeta(), points(3)
    options = {"nodes": 6, "trace": "rademacher", "probes": 3}
    make = lambda seeds: [torch.Generator().manual_seed(s) for s in seeds]
    for extra in ({}, {"tolerance": 1e-2}):
        both = log_likelihood(PLANE.predictor(schedule), schedule, x, **options,
                              generator=make((1, 2, 3)), **extra)
        last = log_likelihood(PLANE.predictor(schedule), schedule, x[2:], **options,
                              generator=make((3,)), **extra)
        assert abs(both.log_prob[2] - last.log_prob[0]) < 1e-10
        assert abs(both.stderr[2] - last.stderr[0]) < 1e-10


def test_seeds_and_one_class():
    options = {"nodes": 6, "trace": "gaussian", "probes": 3}
    run = lambda g: log_likelihood(PLANE.predictor(LinearBeta()), LinearBeta(), points(3), generator=g,
                                   **options).log_prob
    assert torch.equal(run(5), run(torch.Generator().manual_seed(5)))
    assert torch.equal(run([5, 6, 7]), run([torch.Generator().manual_seed(k) for k in (5, 6, 7)]))
    assert module._Flow.__mro__ == (module._Flow, object)


@given(st.integers(1, 6), st.integers(0, 10**6))
@settings(max_examples=5, deadline=None)
def test_the_batch_does_not_matter(n, seed):
    schedule, x = Geometric(), points(n, seed)
    x = torch.cat([x, torch.full((1, 2), 9.0, dtype=f64)])
    predict = PLANE.predictor(schedule)
    for options in ({"nodes": 6}, {"tolerance": 1e-2}):
        whole = log_likelihood(predict, schedule, x, **options)
        alone = log_likelihood(predict, schedule, x[n - 1:n], **options)
        assert abs(whole.log_prob[n - 1] - alone.log_prob[0]) < 1e-10
        assert whole.nfe[n - 1] == alone.nfe[0]
    moved = transport(predict, schedule, x, 0.1, 0.9, tolerance=1e-3)
    assert (moved[n - 1] == transport(predict, schedule, x[n - 1:n], 0.1, 0.9, tolerance=1e-3)[0]).all()


@given(st.floats(1e-3, 1.0), st.floats(1e-3, 1.0), st.integers(0, 6))
@settings(max_examples=10, deadline=None)
def test_there_and_back(t, s, which):
    schedule, x = SCHEDULES[which], points(5)
    size = torch.hypot(schedule.alpha(t), schedule.sigma(t))
    x = schedule.alpha(t) * x
    there = transport(PLANE.predictor(schedule), schedule, x, t, s, 32)
    assert (transport(PLANE.predictor(schedule), schedule, there, s, t, 32)
            - x).abs().max() < 1e-4 * size
    if t == s: assert (there == x).all()


def test_adaptive_paths_meet_their_tolerance():
    one = gaussian(torch.zeros(2, dtype=f64), torch.diag(torch.tensor([0.01, 2.0], dtype=f64)))
    schedule = LinearBeta()
    x = one.sample(4, torch.Generator().manual_seed(0))
    exact = gaussian_flow(one, schedule, schedule.alpha(1e-3) * x, 1e-3, 1.0)
    errors = [(transport(one.predictor(schedule), schedule, schedule.alpha(1e-3) * x, 1e-3, 1.0,
                         tolerance=tol) - exact).abs().max()
              for tol in (1e-3, 1e-5, 1e-7)]
    assert errors[0] < 2e-2 and errors[1] < 2e-4 and errors[2] < 2e-6


def test_nothing_leaks():
    """No gradient, no change of the input, no grad mode left on, parameters untouched."""
    layer, schedule, x = torch.nn.Linear(2, 2).double(), LinearBeta(), points(3)
    copy = x.clone()
    answer = log_likelihood(lambda x, t: layer(x), schedule, x, nodes=4)
    assert layer.weight.grad is None and not answer.log_prob.requires_grad and torch.equal(x, copy)
    assert torch.is_grad_enabled()
    assert isinstance(answer, Likelihood) and not answer.latent.requires_grad


def test_truncation_and_noise_ends():
    schedule, x = LinearBeta(), points(300)
    answer = log_likelihood(PLANE.predictor(schedule), schedule, x, 5e-3, nodes=8)
    gap = PLANE.log_prob(x) - PLANE.log_prob(x, 1.0, schedule.rho(5e-3))
    assert (gap - answer.truncation).abs().mean() < 0.1 * gap.abs().mean()


def test_cells_and_bits():
    log_prob = torch.tensor([[0.0, -1.0], [1.0, -1.0]], dtype=f64)
    got = cell_log_prob(log_prob, 3, 17)
    wanted = torch.tensor([math.log((1 + math.e) / 2), -1.0], dtype=f64) + 3 * math.log(2 / 17)
    assert torch.allclose(got, wanted, atol=1e-14, rtol=0)
    assert torch.allclose(nats_to_bits(got, 3), -wanted / (3 * math.log(2)), atol=1e-14, rtol=0)
    A = torch.tensor([[1.0, 2.0], [0.0, 3.0]], dtype=f64)
    assert probe_variance(A).item() == 4.0 and probe_variance(A, "gaussian").item() == 24.0
    assert probe_variance(A, "exact") == 0


X = points(2)
EPS = PLANE.predictor(LinearBeta())


def likelihood(predict=EPS, x=X, **options):
    return lambda: log_likelihood(predict, LinearBeta(), x, **options)


def seeded(seed=0): return torch.Generator().manual_seed(seed)


def test_dequantize_with_one_stream_a_sample():
    k = torch.randint(17, (3, 5), generator=seeded()).float()
    x = dequantize(k, 17, [seeded(4), 5, 6])
    for b in range(3): assert torch.equal(x[b:b + 1], dequantize(k[b:b + 1], 17, [4 + b]))
    assert torch.equal(dequantize(k, 17, 8), dequantize(k, 17, seeded(8)))


@given(levels=st.integers(2, 256), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=40)
def test_dequantize_keeps_the_level(levels, seed):
    k = torch.randint(levels, (200,), generator=seeded(seed)).double()
    x = dequantize(k, levels, seeded(seed))
    assert torch.equal(((x + 1) * levels / 2).floor(), k) and bool((x.abs() <= 1).all())


# --- Gradients, modes, what a trace costs

def test_gradient_of_transport_is_that_of_the_exact_flow():
    bell = gaussian(torch.tensor([0.5, -0.3], dtype=f64),
                    torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=f64))
    schedule, x = LinearBeta(), torch.randn(5, 2, dtype=f64, generator=seeded())
    run = lambda z: transport(bell.predictor(schedule), schedule, z, 1.0, 1e-3, 128, differentiable=True)
    wanted = torch.func.grad(lambda z: gaussian_flow(bell, schedule, z, 1.0, 1e-3).sum())(x)
    torch.testing.assert_close(torch.func.grad(lambda z: run(z).sum())(x), wanted, rtol=1e-4, atol=1e-6)
    leaf = x.clone().requires_grad_()
    got, = torch.autograd.grad(run(leaf).sum(), leaf)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def test_a_network_in_training_mode_has_one_likelihood():
    class Noisy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = torch.nn.Dropout(0.2)

        def forward(self, x, t): return self.drop(EPS(x, t))
    x, network = points(2), Noisy()
    wanted = log_likelihood(EPS, LinearBeta(), x).log_prob
    assert torch.equal(log_likelihood(network, LinearBeta(), x).log_prob, wanted)
    assert network.training and network.drop.training


class Backward(torch.autograd.Function):
    """A cube whose backward vmap does not know."""
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        x, = ctx.saved_tensors
        return torch.from_numpy(3 * x.numpy() ** 2) * torch.from_numpy(g.numpy().copy())


def test_backwards_that_vmap_does_not_know():
    x, options = points(3), {"nodes": 4, "trace": "rademacher", "generator": 1}
    wanted = log_likelihood(lambda x, t: x**3 / 9, LinearBeta(), x, **options)
    got = log_likelihood(lambda x, t: Backward.apply(x) / 9, LinearBeta(), x, **options)
    torch.testing.assert_close(got.log_prob, wanted.log_prob)


def test_channels_last():
    net = UNet(4, (8, 16), generator=1)
    torch.nn.init.normal_(net.last.weight, std=0.1, generator=seeded())
    x = torch.randn(2, 4, 8, 8, generator=seeded())
    runs = [log_likelihood(net, LinearBeta(), images, nodes=2, trace="rademacher", generator=[1, 2])
            for images in (x, x.contiguous(memory_format=torch.channels_last))]
    torch.testing.assert_close(runs[0].log_prob, runs[1].log_prob, rtol=1e-4, atol=1e-2)


def test_default_trace_and_its_cost():
    few, many = torch.randn(2, 64, generator=seeded()), torch.randn(2, 65, generator=seeded())
    run = lambda x: log_likelihood(lambda x, t: x * t, LinearBeta(), x, nodes=2, generator=0)
    assert run(few).backward.tolist() == [3 * 64] * 2 and (run(few).stderr == 0).all()
    assert run(many).backward.tolist() == [3 * 16] * 2 and run(many).nfe.tolist() == [4 * 3 + 2 + 1] * 2


def test_bits_per_dimension_is_what_its_parts_are():
    k = torch.randint(17, (5, 2), generator=seeded()).to(torch.uint8)
    schedule, predict = LinearBeta(), lambda x, t: EPS(x.double(), t.double())
    got = bits_per_dimension(predict, schedule, k, 17, draws=2, batch=2, generator=range(5), nodes=4)
    streams = [seeded(i) for i in range(5)]
    log_p = [log_likelihood(predict, schedule, dequantize(k.float(), 17, streams), nodes=4).log_prob
             for _ in range(2)]
    wanted = nats_to_bits(cell_log_prob(torch.stack(log_p), 2, 17), 2)
    assert got.n == 5 and abs(got.value - wanted.mean().item()) < 1e-6
    assert abs(got.stderr - wanted.std().item() / 5**0.5) < 1e-6


@pytest.mark.parametrize("call, error, message", [
    (likelihood(x=X.long()), TypeError, "x must be float32"),
    (likelihood(x=X.half()), TypeError, "x must be float32"),
    (likelihood(x=X * 1j), TypeError, "x must be float32"),
    (likelihood(x=X * math.nan), ValueError, "x must be finite"),
    (likelihood(x=X[:0]), ValueError, "x must not be empty"),
    (likelihood(x=X[0]), ValueError, r"x must have shape \[B"),
    (likelihood(predict=3), TypeError, "predict must be"),
    (likelihood(predict=lambda x, t: x[:, :1]), ValueError, "predict must return shape"),
    (likelihood(predict=lambda x, t: x.sum()), ValueError, "predict must return shape"),
    (likelihood(predict=lambda x, t: None), TypeError, "predict must return a torch.Tensor"),
    (likelihood(predict=lambda x, t: x * math.nan), ValueError, "NaN or infinity in call 1"),
    (likelihood(predict=lambda x, t: x.detach()), ValueError, "differentiable"),
    (likelihood(predict=lambda x, t: torch.ones_like(x).requires_grad_() * 1), ValueError,
     "depend on x"),
    (likelihood(t_min=0.0), ValueError, "times must be finite and above 0 and at most 1"),
    (likelihood(t_min=1.0), ValueError, "t_min must be finite and above 0 and below 1"),
    (likelihood(t_min=math.nan), ValueError, "times must be finite and above 0 and at most 1"),
    (likelihood(nodes=0), ValueError, "nodes"),
    (likelihood(nodes=2.5), TypeError, "nodes"),
    (likelihood(steps=0), ValueError, "steps"),
    (likelihood(tolerance=0.0), ValueError, "tolerance"),
    (likelihood(tolerance=math.nan), ValueError, "tolerance"),
    (likelihood(tolerance=1e-18), ValueError, "tolerance"),
    (likelihood(trace="hutchinson"), ValueError, "trace must be one of"),
    (likelihood(trace="gaussian", probes=1), ValueError, "probes"),
    (likelihood(trace="gaussian", generator=[1, 2, 3]), ValueError, "it holds 3"),
    (likelihood(trace="gaussian", generator=[torch.Generator()] * 2), ValueError, "generator must hold "
                                                                                  "different"),
    (likelihood(trace="gaussian", generator="0"), TypeError, "generator must be"),
    (lambda: transport(EPS, LinearBeta(), X[0], 0.5, 1.0), ValueError, r"x must have shape \[B"),
    (lambda: transport(EPS, LinearBeta(), X, 0.0, 1.0), ValueError, "times must be finite and above 0 "
                                                                    "and at most 1"),
    (lambda: transport(EPS, LinearBeta(), X, 0.5, 1.5), ValueError, "times must be finite and above 0 "
                                                                    "and at most 1"),
    (lambda: velocity(EPS, LinearBeta(), X, 0.0), ValueError, "t must be positive"),
    (lambda: velocity(lambda x, t: x[:1], LinearBeta(), X, 0.5), ValueError, "predict must return "
                                                                             "shape"),
    (lambda: velocity(EPS, LinearBeta(), X, torch.ones(3, dtype=f64)), ValueError, "t must be a "
                                                                                   "scalar|must"),
    (lambda: probe_variance(X[:1]), ValueError, "A must have shape"),
    (lambda: probe_variance(X, "both"), ValueError, "trace must be one of"),
    (lambda: cell_log_prob(X, 2, 1), ValueError, "levels"),
    (lambda: cell_log_prob(X.sum(), 2, 17), ValueError, "log_prob must have shape"),
    (lambda: nats_to_bits(X, 0), ValueError, "dims"),
    (lambda: dequantize(torch.tensor([17.0]), 17), ValueError, "k must"),
    (lambda: dequantize(torch.tensor([-1.0]), 17), ValueError, "k must"),
    (lambda: dequantize(torch.tensor([0.5]), 17), ValueError, "k must"),
    (lambda: dequantize(torch.tensor([3]), 17), TypeError, "k must"),
    (lambda: dequantize(torch.tensor([0.0]), 1), ValueError, "levels"),
    (lambda: bits_per_dimension(EPS, LinearBeta(), X[:1].round().abs()), ValueError, "two images"),
    (lambda: bits_per_dimension(EPS, LinearBeta(), X), ValueError, "k must hold whole numbers 0 to 255"),
    (lambda: bits_per_dimension(EPS, LinearBeta(), 0 * X, draws=0), ValueError, "draws"),
    (lambda: bits_per_dimension(EPS, LinearBeta(), 0 * X, generator=[1, 2, 3]), ValueError,
     "it holds 3"),
    (likelihood(x=X.clone().requires_grad_()), ValueError, "log_likelihood builds no graph"),
    (lambda: transport(EPS, LinearBeta(), X.clone().requires_grad_(), 0.5, 1.0), ValueError,
     "differentiable=True"),
    (lambda: torch.func.grad(lambda z: transport(EPS, LinearBeta(), z, 1.0, 0.5).sum())(X), ValueError,
     "differentiable=True"),
])
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message): call()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda():
    schedule, x = LinearBeta(), points(4)
    there = Mixture(PLANE.log_weights.exp(), PLANE.means, torch.tensor(
        [[[0.3, 0.1], [0.1, 0.2]], [[0.15, 0.0], [0.0, 0.4]]], dtype=f64)).cuda()
    for options in ({}, {"tolerance": 1e-4}):
        wanted = log_likelihood(PLANE.predictor(schedule), schedule, x, **options)
        got = log_likelihood(there.predictor(schedule), schedule, x.cuda(), **options)
        assert got.log_prob.is_cuda and (got.log_prob.cpu() - wanted.log_prob).abs().max() < 1e-8
