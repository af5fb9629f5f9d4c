"""The denoising objective: exact identities, its minimiser, and what it refuses."""
from functools import partial
import math
from typing import get_args

from hypothesis import given, settings, strategies as st
import pytest
import torch
from torch import nn

from rbmdiff.diffusion.objective import (
    Bound,
    CheckedNetwork,
    conditional_score,
    denoising_loss,
    denoising_step,
    empirical_score,
    irreducible_loss,
    noise_weight,
    norm_squared,
    uniform_times,
)
from rbmdiff.diffusion.oracle import Mixture, gaussian
from rbmdiff.diffusion.schedule import Cosine, Geometric, LinearBeta, Prediction, SubVP, convert
from rbmdiff.foundations.core import Estimate
from rbmdiff.foundations.train import TrainState, sgd, train

F64 = torch.float64
PREDICTIONS = get_args(Prediction)
SCHEDULES = (LinearBeta(), Cosine(), Geometric(), SubVP())
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
quick = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31)


def seeded(k): return torch.Generator().manual_seed(k)


def normal(*shape, seed=0, dtype=F64): return torch.randn(shape, dtype=dtype, generator=seeded(seed))


def mixture(dtype=F64):
    means = torch.tensor([[1.0, 0.5], [-1.0, 0.0]], dtype=dtype)
    spread = torch.tensor([[[0.2, 0.1], [0.1, 0.1]], [[0.05, 0.0], [0.0, 0.3]]], dtype=dtype)
    return Mixture(torch.tensor([0.4, 0.6], dtype=dtype), means, spread)


def zero(x, t): return torch.zeros_like(x)


# Norm and conditional score

@quick
@given(seeds, st.integers(1, 5), st.floats(0.1, 5))
def test_norm_is_quadratic_and_sees_the_factor(seed, D, c):
    R, d = normal(D, D, seed=seed), normal(4, D, seed=seed + 1)
    A = R.T @ R
    torch.testing.assert_close(norm_squared(d, A), norm_squared(d @ R.T))
    torch.testing.assert_close(norm_squared(c * d, A), c**2 * norm_squared(d, A))
    torch.testing.assert_close(norm_squared(d, A.expand(4, D, D)), norm_squared(d, A))


def test_norm_sums_over_all_axes_of_a_sample_and_carries_gradients():
    d = normal(3, 2, 4, 4).requires_grad_()
    torch.testing.assert_close(norm_squared(d), (d**2).sum((1, 2, 3)))
    A = torch.diag(torch.rand(32, dtype=F64, generator=seeded(1)))
    norm_squared(d, A).sum().backward()
    torch.testing.assert_close(d.grad.flatten(1), 2 * (d.flatten(1) @ A).detach())


def test_singular_norm_is_allowed_and_blind():
    A = torch.diag(torch.tensor([0.0, 1.0], dtype=F64))
    assert norm_squared(torch.tensor([[5.0, 0.0]], dtype=F64), A).item() == 0


@pytest.mark.parametrize("A, error, message", [
    (torch.eye(3, dtype=F64), ValueError, r"A must have shape \[2, 2\] or \[4, 2, 2\], got \[3, 3\]"),
    (torch.eye(2), TypeError, "A must be torch.float64"),
    (torch.tensor([[1.0, 1], [0, 1]], dtype=F64), ValueError, "A must be symmetric"),
    (torch.diag(torch.tensor([1.0, -1], dtype=F64)), ValueError,
     "A must not have negative eigenvalues, got -1"),
    (torch.full((2, 2), math.nan, dtype=F64), ValueError, "A must be finite")])
def test_bad_norms(A, error, message):
    with pytest.raises(error, match=message): norm_squared(normal(4, 2), A)


@quick
@given(seeds, st.floats(0.01, 20))
def test_conditional_score_of_a_number_is_that_of_a_diagonal_matrix(seed, sigma):
    eps = normal(5, 3, seed=seed)
    expected = conditional_score(eps, sigma)
    torch.testing.assert_close(conditional_score(eps, sigma * torch.eye(3, dtype=F64)), expected)
    torch.testing.assert_close(conditional_score(eps, torch.full((5,), sigma, dtype=F64)), expected)
    assert conditional_score(eps.reshape(5, 1, 3), sigma).shape == (5, 1, 3)


def test_conditional_score_with_a_matrix_is_whitened_by_the_covariance():
    L, eps = torch.tril(normal(3, 3, seed=5)) + 2 * torch.eye(3, dtype=F64), normal(50_000, 3)
    s = conditional_score(eps, L)
    torch.testing.assert_close(norm_squared(s, L @ L.T), norm_squared(eps))
    torch.testing.assert_close(s.T @ s / len(s), torch.linalg.inv(L @ L.T), atol=0.01, rtol=0)


@pytest.mark.parametrize("eps, sigma, error, message", [
    (torch.zeros(3), 1.0, ValueError, r"eps must have shape \[B, ...\], got \[3\]"),
    (torch.zeros(3, 2), 0.0, ValueError, "sigma must be positive, got 0"),
    (torch.zeros(3, 2), -1.0, ValueError, "sigma must be positive"),
    (torch.zeros(3, 2), torch.ones(2), ValueError, r"must be a scalar or have shape \[3\], got \[2\]"),
    (torch.zeros(3, 2), torch.eye(3), ValueError, r"sigma must have shape \[2, 2\], got \[3, 3\]"),
    (torch.zeros(3, 2), torch.zeros(2, 2), ValueError, "sigma must not be a singular matrix"),
    (torch.zeros(3, 2, dtype=torch.int64), 1.0, TypeError, "eps must be float32 or float64"),
    (torch.zeros(3, 2).half(), 1.0, TypeError, "eps must be float32 or float64")])
def test_bad_conditional_scores(eps, sigma, error, message):
    with pytest.raises(error, match=message): conditional_score(eps, sigma)


# The minimiser and the constant

@quick
@given(seeds, st.floats(0, 1), st.floats(0.05, 3))
def test_empirical_score_is_the_oracle_of_points(seed, alpha, sigma):
    data, x = normal(6, 2, seed=seed), 2 * normal(5, 2, seed=seed + 1)
    oracle = Mixture(torch.ones(6, dtype=F64), data, torch.zeros(6, 2, 2, dtype=F64))
    a, s = torch.tensor(alpha, dtype=F64), torch.tensor(sigma, dtype=F64)
    torch.testing.assert_close(empirical_score(x, data, alpha, sigma), oracle.score(x, a, s), rtol=1e-9,
                               atol=1e-9)


def test_empirical_score_of_images_rows_and_dtypes():
    data, x, s = (
        normal(20, 1, 4, 4, dtype=torch.float32),
        normal(3, 1, 4, 4, seed=1, dtype=torch.float32),
        torch.tensor([0.1, 1, 3]),
    )
    all_at_once = empirical_score(x, data, 0.5, s)
    assert all_at_once.dtype == torch.float32 and all_at_once.shape == x.shape
    for k in range(3):
        alone = empirical_score(x[k:k + 1], data, 0.5, s[k:k + 1])
        torch.testing.assert_close(alone, all_at_once[k:k + 1], rtol=1e-6, atol=1e-6)
    flat = empirical_score(x.flatten(1), data.flatten(1), 0.5, s)
    torch.testing.assert_close(flat, all_at_once.flatten(1))


def test_empirical_score_at_little_noise_points_to_the_nearest_point():
    data = normal(50, 3)
    score = empirical_score(0.9 * data + 1e-4, data, 0.9, 1e-3)
    torch.testing.assert_close(score, torch.full_like(data, -1e-4 / 1e-6), rtol=1e-6, atol=1e-6)


def test_empirical_score_refuses():
    data = normal(4, 2)
    with pytest.raises(ValueError, match="sigma must be positive"): empirical_score(data, data, 1.0, 0.0)
    with pytest.raises(ValueError, match=r"data must have shape \[4, 3\]"):
        empirical_score(normal(2, 3), data, 1.0, 1.0)
    with pytest.raises(TypeError, match="data must be torch.float32"):
        empirical_score(data.float(), data, 1.0, 1.0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("t", (0.1, 0.5, 0.95))
def test_denoising_loss_of_the_oracle_is_the_constant(schedule, t):
    oracle, n = mixture(), 20_000
    x0 = oracle.sample(n, seeded(1))
    loss = Estimate.of(denoising_loss(oracle.predictor(schedule), schedule, x0, t, generator=seeded(2)))
    a, s = (f(torch.tensor(t, dtype=F64)) for f in (schedule.alpha, schedule.sigma))
    x = a * oracle.sample(n, seeded(3)) + s * normal(n, 2, seed=4)
    floor = Estimate.of(s**2 * irreducible_loss(oracle.score(x, a, s), s))
    error = math.hypot(loss.stderr, floor.stderr)
    assert abs(loss.value - floor.value) < 4 * error and error < 0.05
    other = denoising_loss(lambda x, t: 1.5 * oracle.predictor(schedule)(x, t), schedule, x0, t,
                           generator=seeded(2))
    # the same noise: nothing beats the oracle
    assert other.mean() > loss.value


def test_constant_with_one_norm_a_sample_and_sigma_a_sample():
    s, A, sigma = (
        normal(4, 2),
        torch.eye(2, dtype=F64) * torch.arange(1, 5)[:, None, None],
        torch.arange(1, 5).double(),
    )
    expected = torch.stack([2 * (k + 1) / sigma[k]**2 - (k + 1) * s[k].square().sum() for k in range(4)])
    torch.testing.assert_close(irreducible_loss(s, sigma, A), expected)
    with pytest.raises(ValueError, match="sigma must be positive"): irreducible_loss(s, 0.0)


# Weights and the noise loss

@quick
@given(seeds, st.sampled_from(SCHEDULES), st.floats(0.01, 0.99), st.sampled_from(("x0", "v", "score")))
def test_weights_turn_errors_into_errors_of_the_noise(seed, schedule, t, kind):
    a, s = (f(torch.tensor(t, dtype=F64)) for f in (schedule.alpha, schedule.sigma))
    x0, eps, guess = (normal(3, 2, seed=seed + k) for k in range(3))
    x = a * x0 + s * eps
    target = convert(eps, x, a, s, "eps", kind)
    noise = convert(guess, x, a, s, kind, "eps")
    expected = norm_squared(noise - eps)
    torch.testing.assert_close(noise_weight(kind, a, s) * norm_squared(guess - target), expected,
                               rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", (torch.float32, F64))
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_noise_loss_by_hand(kind, dtype):
    schedule, x0, t = Cosine(), normal(5, 1, 3, 3, dtype=dtype), torch.linspace(0.1, 0.9, 5, dtype=dtype)
    seen = {}

    def network(x, t):
        seen.update(x=x, t=t)
        return torch.sin(x)

    loss = denoising_loss(network, schedule, x0, t, kind, seeded(3))
    a, s = schedule.alpha(t), schedule.sigma(t)
    eps = normal(5, 1, 3, 3, seed=3, dtype=dtype)
    x = a[:, None, None, None] * x0 + s[:, None, None, None] * eps
    implied = convert(torch.sin(x), x, a, s, kind, "eps")
    assert loss.shape == (5,) and loss.dtype == dtype and seen["t"].dtype == dtype
    torch.testing.assert_close(seen["x"], x)
    torch.testing.assert_close(loss, (implied - eps).square().sum((1, 2, 3)), rtol=2e-4, atol=1e-4)


def test_time_as_number_scalar_and_batch_agree():
    schedule, x0 = LinearBeta(), normal(6, 2)
    losses = [denoising_loss(lambda x, t: x * t.reshape(-1, 1), schedule, x0, t, generator=seeded(0))
              for t in (0.3, torch.tensor(0.3, dtype=F64), torch.full((6,), 0.3, dtype=F64))]
    for loss in losses[1:]: torch.testing.assert_close(loss, losses[0])


def test_zero_network_of_the_noise_has_the_loss_d_everywhere():
    t = uniform_times(50_000, seeded(1))
    loss = Estimate.of(denoising_loss(zero, LinearBeta(), normal(50_000, 7), t, "eps", seeded(2)))
    assert abs(loss.z(7)) < 4 and loss.stderr < 0.05


def test_ends_of_time():
    schedule, x0 = LinearBeta(), normal(4, 2)
    for kind in ("eps", "v"): assert denoising_loss(zero, schedule, x0, 0.0, kind).isfinite().all()
    for kind in ("x0", "score"):
        with pytest.raises(ValueError, match="sigma must be positive"):
            denoising_loss(zero, schedule, x0, 0.0, kind)
    for kind in PREDICTIONS:
        assert denoising_loss(zero, schedule, x0.float(), 1.0, kind).isfinite().all()


@pytest.mark.parametrize("call, error, message", [
    (lambda x0: denoising_loss(lambda x, t: x[:, :1], LinearBeta(), x0, 0.5), ValueError,
     r"network must return shape \[4, 2\] on cpu for x of .*, got \[4, 1\]"),
    (lambda x0: denoising_loss(lambda x, t: x / 0, LinearBeta(), x0, 0.5), ValueError,
     "network returned NaN or infinity in call 1, at t = 0.5"),
    (lambda x0: denoising_loss(lambda x, t: None, LinearBeta(), x0, 0.5), TypeError,
     "network must return a torch.Tensor"),
    (lambda x0: denoising_loss(lambda x, t: x.long(), LinearBeta(), x0, 0.5), TypeError,
     "network must return dense floating-point"),
    (lambda x0: denoising_loss(zero, LinearBeta(), x0, 0.5, "noise"), ValueError, "kind must be one of"),
    (lambda x0: denoising_loss(zero, LinearBeta(), x0, 1.5), ValueError, r"t must lie in \[0, 1\]"),
    (lambda x0: denoising_loss(zero, LinearBeta(), x0, torch.rand(3)), ValueError,
     r"shape \[4\], got \[3\]"),
    (lambda x0: denoising_loss(zero, LinearBeta(), x0[0], 0.5), ValueError,
     r"x0 must have shape \[B, ...\]"),
    (lambda x0: denoising_loss(zero, LinearBeta(), x0.long(), 0.5), TypeError,
     "x0 must be float32 or float64"),
    (lambda x0: denoising_loss(zero, LinearBeta(), x0 * math.nan, 0.5), ValueError, "x0 must be finite"),
    (lambda x0: denoising_loss(zero, LinearBeta(), x0[:0], 0.5), ValueError, "x0 must not be empty"),
    (lambda x0: noise_weight("noise", x0, x0), ValueError, "kind must be one of"),
    (lambda x0: noise_weight("x0", torch.ones(2), torch.zeros(2)), ValueError, "sigma must be positive"),
    (lambda x0: denoising_step(LinearBeta(), "noise"), ValueError, "kind must be one of"),
    (lambda x0: uniform_times(0), ValueError, "n must be at least 1"),
    (lambda x0: uniform_times(3.0), TypeError, "n must be an int"),
    (lambda x0: uniform_times(3, t_min=1.0), ValueError,
     "t_min must be finite and at least 0 and below 1")])
def test_bad_losses(call, error, message):
    with pytest.raises(error, match=message): call(normal(4, 2))


# Networks and bounds

def test_checked_network_counts_and_passes_answers_on():
    network = CheckedNetwork(lambda x, t: x * t.reshape(-1, 1))
    x = normal(3, 2)
    assert torch.equal(network(x, 0.5), x / 2) and torch.equal(network(x, torch.ones(3, dtype=F64)), x)
    assert network.nfe == 2
    huge = CheckedNetwork(lambda x, t: torch.full_like(x, 1e308))
    # their sum is infinite, they are not
    assert torch.equal(huge(x, 0.5), torch.full_like(x, 1e308))


@pytest.mark.parametrize("predict, t, error, message", [
    (lambda x, t: x[:, :1], 0.5, ValueError,
     r"teacher must return shape \[3, 2\] on cpu for x of .*, got \[3, 1\] on cpu"),
    (lambda x, t: x.to("meta"), 0.5, ValueError, "teacher must return .* got .* on meta"),
    (lambda x, t: x.long(), 0.5, TypeError, "must return dense floating-point .* got torch.int64"),
    (lambda x, t: x > 0, 0.5, TypeError, "got torch.bool"),
    (lambda x, t: x + 0j, 0.5, TypeError, "got torch.complex128"),
    (lambda x, t: x.to_sparse(), 0.5, TypeError, "got torch.float64, torch.sparse_coo"),
    (lambda x, t: (x, x), 0.5, TypeError, "got tuple; a function around it"),
    (lambda x, t: x.mul_(2), 0.5, ValueError, "must not change x or t in place"),
    (lambda x, t: x * t.mul_(1000), 0.5, ValueError, "must not change x or t in place"),
    (lambda x, t: 1.0, 0.5, TypeError, "teacher must return a torch.Tensor, got float"),
    (lambda x, t: x * math.nan, 0.5, ValueError,
     "teacher returned NaN or infinity in call 1, at t = 0.5"),
    (lambda x, t: x / 0, torch.tensor([0.1, 0.5, 0.3]), ValueError, "call 1, at t = 0.1 to 0.5")])
def test_checked_network_refuses(predict, t, error, message):
    with pytest.raises(error, match=message): CheckedNetwork(predict, "teacher")(normal(3, 2), t)
    with pytest.raises(TypeError, match="teacher must be callable, got NoneType"):
        CheckedNetwork(None, "teacher")


def test_bound_has_two_signs():
    prior, diffusion, reconstruction = normal(3, 4)
    bound = Bound(prior, diffusion, reconstruction, torch.ones(4))
    torch.testing.assert_close(bound.nats, prior + diffusion + reconstruction)
    assert torch.equal(bound.log_prob, -bound.nats) and bound.steps is None


# Streams

def test_every_sample_draws_from_its_own_stream():
    x0, schedule = normal(3, 2), LinearBeta()
    network = lambda x, t: torch.sin(x)
    loss = denoising_loss(network, schedule, x0, 0.5, generator=[seeded(5), 6, seeded(7)])
    times = uniform_times(3, [seeded(5), 6, seeded(7)])
    for b in range(3):
        torch.testing.assert_close(loss[b:b + 1],
                                   denoising_loss(network, schedule, x0[b:b + 1], 0.5,
                                                  generator=[5 + b]))
        assert torch.equal(times[b:b + 1], uniform_times(1, [5 + b]))
    assert torch.equal(denoising_loss(network, schedule, x0, 0.5, generator=9),
                       denoising_loss(network, schedule, x0, 0.5, generator=seeded(9)))
    assert torch.equal(uniform_times(4, 9), uniform_times(4, seeded(9)))
    with pytest.raises(ValueError, match="one stream a sample"): uniform_times(2, [1, 2, 3])
    with pytest.raises(ValueError, match="at least one"): uniform_times(2, [])


# Training

class Linear(nn.Module):
    """Noise as a linear function of x, the right family for centred Gaussians at one time."""

    def __init__(self, dtype=F64):
        super().__init__()
        self.layer = nn.Linear(2, 2, dtype=dtype)

    def forward(self, x, t): return self.layer(x)


def test_training_finds_the_score_of_a_gaussian():
    torch.manual_seed(0)
    schedule, model = LinearBeta(), Linear()
    oracle = gaussian(torch.tensor([0.5, -0.5], dtype=F64),
                      torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=F64))
    state = TrainState(model, sgd(model, 0.05), seeded(1))
    step = denoising_step(schedule, times=lambda n, g: torch.full((n,), 0.3, dtype=F64))
    rate = torch.optim.lr_scheduler.LinearLR(state.optimizer, 1.0, 0.01, 200)
    state.schedule = rate
    records = list(train(state, partial(oracle.sample, 2000), step, epochs=10, progress=False))
    a, s = (f(torch.tensor(0.3, dtype=F64)) for f in (schedule.alpha, schedule.sigma))
    x = normal(10, 2)
    error = (model(x, 0.3) + s * oracle.score(x, a, s)).abs().max().item()
    assert error < 0.1 and set(records[-1].scalars) == {"loss"} and records[-1].updates == 200


def test_step_leaves_the_gradient_of_the_mean_weighted_loss():
    torch.manual_seed(0)
    model, schedule, x0 = Linear(torch.float32), Cosine(), normal(8, 2, dtype=torch.float32)
    state = TrainState(model, sgd(model, 0.1), seeded(5))
    found = denoising_step(schedule, "v", weight=torch.sqrt)(state, x0)
    gradient = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    g = seeded(5)
    t = uniform_times(8, g)
    loss = (t.sqrt().float() * denoising_loss(model, schedule, x0, t, "v", g)).mean()
    loss.backward()
    assert set(found) == {"loss"} and not found["loss"].requires_grad
    torch.testing.assert_close(found["loss"], loss.detach())
    for p, known in zip(model.parameters(), gradient): torch.testing.assert_close(p.grad, known)


def test_times_are_uniform_seeded_and_within_their_limits():
    t = uniform_times(100_000, seeded(0), t_min=0.2)
    assert t.dtype == F64 and t.min() >= 0.2 and t.max() < 1
    assert torch.equal(t, uniform_times(100_000, seeded(0), t_min=0.2))
    for k in (1, 2):
        moment = Estimate.of(((t - 0.2) / 0.8) ** k)
        assert abs(moment.z(1 / (k + 1))) < 4


# Regression

def test_the_score_of_a_mixture_by_regression_on_responsibilities():
    oracle, a, s, n = mixture(), torch.tensor(0.8, dtype=F64), torch.tensor(0.6, dtype=F64), 50_000
    one = [gaussian(m, q @ torch.diag(v) @ q.T)
           for m, v, q in zip(oracle.means, oracle.variances, oracle.axes)]
    eps = normal(n, 2, seed=1)
    x = a * oracle.sample(n, seeded(0)) + s * eps
    joint = torch.stack([p.log_prob(x, a, s) for p in one], 1) + oracle.log_weights
    scores = torch.stack([p.score(x, a, s) for p in one], 1) * joint.softmax(1)[..., None]
    X, y = scores[..., 0], conditional_score(eps, s)[:, 0]
    H = torch.linalg.pinv(X)
    # the score is their sum: weights one
    W = H @ y
    se = (H.square() @ (y - X @ W).square()).sqrt()
    assert ((W - 1) / se).abs().max() < 4 and se.max() < 0.02


# Accelerator

@cuda
@pytest.mark.cuda
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_cuda(kind):
    g = torch.Generator("cuda").manual_seed(0)
    model, x0 = Linear(torch.float32).cuda(), torch.randn(64, 2, device="cuda", generator=g)
    state = TrainState(model, sgd(model, 0.01), g)
    found = denoising_step(LinearBeta(), kind)(state, x0)
    assert (
        found["loss"].is_cuda and found["loss"].isfinite() and model.layer.weight.grad.isfinite().all()
    )
    d, A = x0.cpu(), torch.diag(torch.tensor([1.0, 2.0]))
    pairs = [(norm_squared(x0, A.cuda()), norm_squared(d, A)),
             (conditional_score(x0, A.cuda()), conditional_score(d, A)),
             (empirical_score(x0, x0, 0.9, 0.4), empirical_score(d, d, 0.9, 0.4)),
             (irreducible_loss(x0, 0.5), irreducible_loss(d, 0.5))]
    for ours, known in pairs: torch.testing.assert_close(ours.cpu(), known, rtol=1e-4, atol=1e-4)
