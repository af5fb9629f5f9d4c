"""The oracle against PyTorch's distributions, autograd, sums over points and Runge-Kutta; shapes,
dtypes, bad input.
"""
import math
from typing import get_args

from hypothesis import given, settings, strategies as st
import pytest
import torch
from torch.distributions import MultivariateNormal

from rbmdiff.diffusion.oracle import Mixture, gaussian, gaussian_flow
from rbmdiff.diffusion.schedule import (
    Cosine,
    Geometric,
    LinearBeta,
    Prediction,
    SubVP,
    convert,
    diffuse,
    expand,
)
from rbmdiff.foundations.core import Estimate

PREDICTIONS = get_args(Prediction)
SCHEDULES = (LinearBeta(), Geometric(0.05, 10), SubVP(), Cosine())
each = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
quick = settings(max_examples=30, deadline=None)


def seeded(k): return torch.Generator().manual_seed(k)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=seeded(seed))


def some_mixture(K=3, D=4, seed=0, rank=None, dtype=torch.float64):
    root = normal(K, D, D if rank is None else rank, seed=seed) / 2
    weights = torch.rand(K, dtype=torch.float64, generator=seeded(seed)) + 0.1
    return Mixture(*(x.to(dtype) for x in (weights, normal(K, D, seed=seed + 1),
                                           root @ root.mT))), weights / weights.sum(), root @ root.mT


# Exact answers

@quick
@given(st.integers(1, 4), st.integers(1, 6), st.floats(0, 2), st.floats(0.05, 2), st.integers(0, 99))
def test_density_is_that_of_pytorch(K, D, a, s, seed):
    mixture, weights, C = some_mixture(K, D, seed)
    x = normal(7, D, seed=seed + 2)
    truth = (
        MultivariateNormal(a * mixture.means, a**2 * C + s**2 * torch.eye(D, dtype=C.dtype)).log_prob(
            x[:, None]
        )
        + weights.log()
    )
    assert torch.allclose(mixture.log_prob(x, a, s), truth.logsumexp(-1), rtol=1e-10, atol=1e-10)


@quick
@given(st.integers(1, 4), st.integers(1, 5), st.floats(0.05, 2), st.floats(0.05, 2), st.integers(0, 99))
def test_score_denoiser_and_variance_are_derivatives(K, D, a, s, seed):
    mixture = some_mixture(K, D, seed)[0]
    x = normal(5, D, seed=seed + 2).requires_grad_()
    score, = torch.autograd.grad(mixture.log_prob(x, a, s).sum(), x)
    assert torch.allclose(mixture.score(x, a, s), score, rtol=1e-9, atol=1e-9)
    mean = mixture.denoise(x, a, s)
    trace = sum(torch.autograd.grad(mean[:, d].sum(), x, retain_graph=True)[0][:, d] for d in range(D))
    assert torch.allclose(mean, (x + s**2 * score) / a, rtol=1e-7, atol=1e-7)
    assert torch.allclose(mixture.posterior_variance(x, a, s), s**2 / a * trace, rtol=1e-7, atol=1e-8)


@quick
@given(st.integers(1, 4), st.integers(1, 5), st.floats(0, 2), st.floats(0.1, 2), st.integers(0, 99))
def test_posterior_is_bayes_rule(K, D, a, s, seed):
    mixture = some_mixture(K, D, seed)[0]
    x, x0 = normal(D, seed=seed + 2), mixture.sample(5, seeded(seed))
    posterior = mixture.posterior(x, a, s)
    evidence = MultivariateNormal(a * x0, s**2 * torch.eye(D, dtype=x.dtype)).log_prob(
        x
    ) - mixture.log_prob(x, a, s)
    assert torch.allclose(posterior.log_prob(x0), mixture.log_prob(x0) + evidence, rtol=1e-6, atol=1e-6)
    w = posterior.log_weights.exp()
    mean = w @ posterior.means
    spread = (w * (posterior.variances + (posterior.means - mean)**2).sum(1) if D == 1 else
              w * (posterior.variances.sum(1) + (posterior.means - mean).square().sum(1))).sum()
    assert torch.allclose(mean, mixture.denoise(x, a, s), atol=1e-10)
    assert torch.allclose(spread, mixture.posterior_variance(x, a, s), atol=1e-10)


def test_draws_have_the_moments():
    mixture, weights, C = some_mixture()
    x, mean = mixture.sample(2**16, seeded(3)), weights @ mixture.means
    covariance = (weights[:, None,
                          None] * (C + mixture.means[:, :, None]
                                   * mixture.means[:, None, :])).sum(0) - mean[:, None] * mean
    for d in range(4):
        assert abs(Estimate.of(x[:, d]).z(mean[d].item())) < 4
        for e in range(d + 1):
            product = Estimate.of((x[:, d] - mean[d]) * (x[:, e] - mean[e]))
            assert abs(product.z(covariance[d, e].item())) < 4 and product.stderr < 0.03
    assert torch.equal(x, mixture.sample(2**16, seeded(3)))


def test_every_draw_has_its_own_stream():
    for mixture in (some_mixture()[0], gaussian(torch.zeros(2), torch.eye(2))):
        whole = mixture.sample(4, [seeded(3), 4, 5, seeded(6)])
        for b in range(4): torch.testing.assert_close(whole[b:b + 1], mixture.sample(1, [3 + b]))
        assert torch.equal(mixture.sample(9, 5), mixture.sample(9, seeded(5)))
        with pytest.raises(ValueError, match="generator must hold 3 streams"): mixture.sample(3, [1, 2])
    # components by their weights, not one
    many = some_mixture()[0].sample(2000, list(range(2000)))
    assert len(many.unique(dim=0)) == 2000
    assert abs(Estimate.of(many[:, 0]).z(some_mixture()[0].denoise(many[:1], 0.0, 1.0)[0, 0].item())) < 4


def test_points_are_a_softmax_of_distances():
    points = normal(20, 6)
    memory = Mixture(torch.ones(20).double(), points,
                     torch.zeros(6, 6, dtype=torch.float64).expand(20, 6, 6))
    assert memory.axes is None
    x, a, s = normal(9, 6, seed=1), 0.8, 0.6
    r = torch.softmax(-((x[:, None] - a * points)**2).sum(-1) / (2 * s**2), -1)
    assert torch.allclose(memory.denoise(x, a, s), r @ points, atol=1e-13)
    assert torch.allclose(memory.posterior_variance(x, a, s),
                          r @ (points**2).sum(1) - (r @ points).square().sum(1), atol=1e-12)
    assert torch.equal(memory.denoise(points + 1e-3, 1.0, 1e-2), points)
    assert set(memory.sample(50, seeded(0))[:, 0].tolist()) <= set(points[:, 0].tolist())
    # all other weights are zero
    assert len(memory.posterior(points[3], 1.0, 0.01).means) == 1


def test_diagonal_and_turned_covariances_agree():
    variances, weights, means = normal(3, 4).abs(), torch.ones(3).double(), normal(3, 4, seed=1)
    Q = torch.linalg.qr(normal(4, 4, seed=2))[0]
    straight = Mixture(weights, means, torch.diag_embed(variances))
    turned = Mixture(weights, means @ Q.T, Q @ torch.diag_embed(variances) @ Q.T)
    x = normal(8, 4, seed=3)
    assert straight.axes is None and turned.axes is not None
    for name, back in (("log_prob", None), ("posterior_variance", None), ("score", Q), ("denoise", Q)):
        y = getattr(turned, name)(x @ Q.T, 0.7, 0.4)
        assert torch.allclose(y if back is None else y @ Q, getattr(straight, name)(x, 0.7, 0.4),
                              atol=1e-11)


def test_one_covariance_for_all():
    means, weights, x = normal(3, 4), torch.ones(3).double(), normal(5, 4, seed=2)
    root = normal(4, 4, seed=1)
    for C in (root @ root.T, torch.eye(4).double(), torch.zeros(4, 4).double()):
        shared, apart = (
            Mixture(weights, means, C.expand(3, 4, 4)),
            Mixture(weights, means, C.repeat(3, 1, 1)),
        )
        assert (shared.axes is None) == (apart.axes is None) and shared.variances.shape == (3, 4)
        for name in ("log_prob", "score", "denoise", "posterior_variance"):
            assert torch.allclose(getattr(shared, name)(x, 0.7, 0.4), getattr(apart, name)(x, 0.7, 0.4),
                                  atol=1e-12)
        assert torch.equal(shared.sample(9, seeded(0)), apart.sample(9, seeded(0)))
        shared.load_state_dict(apart.state_dict())
    skew = torch.tensor([[1.0, 0.5], [0.0, 1.0]]).expand(3, 2, 2)
    with pytest.raises(ValueError, match="symmetric"): Mixture(torch.ones(3), torch.zeros(3, 2), skew)
    with pytest.raises(ValueError, match="negative"):
        Mixture(torch.ones(3), torch.zeros(3, 2), -torch.eye(2).expand(3, 2, 2))


def test_a_flat_gaussian_needs_noise():
    mixture = some_mixture(2, 4, rank=2)[0]
    x = normal(3, 4)
    with pytest.raises(ValueError, match="sigma must be positive where"): mixture.log_prob(x)
    s = 1e-4
    normalised = mixture.score(mixture.sample(2000, seeded(0)) + s * normal(2000, 4, seed=2), 1.0, s) * s
    # D - d directions are known
    assert abs(normalised.square().sum(1).mean() - 2) < 0.2
    assert mixture.denoise(x, 0.0, 1.0).isfinite().all()


def test_limits():
    mixture, weights, _ = some_mixture()
    x = normal(5, 4, seed=3)
    assert torch.allclose(mixture.denoise(x, 0.0, 2.0), (weights @ mixture.means).expand(5, 4),
                          atol=1e-13)
    assert torch.allclose(mixture.score(x, 0.0, 2.0), -x / 4, atol=1e-13)
    assert torch.allclose(mixture.denoise(x, 0.5, 0.0), x / 0.5)
    assert mixture.posterior_variance(x).max() < 1e-25
    far = torch.full((1, 4), 1e6, dtype=torch.float64)
    assert mixture.score(far, 0.5, 0.5).isfinite().all()
    assert mixture.log_prob(far, 0.5, 0.5).isfinite().all()


# The perfect network

@each
def test_predictions_agree_and_are_unbiased(schedule):
    mixture = some_mixture()[0]
    x0, t = mixture.sample(2**14, seeded(5)), torch.rand(2**14, dtype=torch.float64,
                                                         generator=seeded(6)) * 0.98 + 0.01
    x, eps = diffuse(schedule, x0, t, seeded(7))
    a, s = schedule.alpha(t), schedule.sigma(t)
    answers = {wanted: mixture.predictor(schedule, wanted)(x, t) for wanted in PREDICTIONS}
    for given_ in PREDICTIONS:
        for wanted in PREDICTIONS:
            assert torch.allclose(convert(answers[given_], x, a, s, given_, wanted), answers[wanted],
                                  rtol=1e-6, atol=1e-6)
    for truth, guess in ((eps, answers["eps"]), (x0, answers["x0"]),
                         (expand(a, x) * eps - expand(s, x) * x0, answers["v"])):
        # errors are orthogonal to all of x
        for probe in (guess, torch.sin(x), torch.ones_like(x)):
            estimate = Estimate.of(((truth - guess) * probe).sum(1))
            assert abs(estimate.z(0)) < 4.5


def test_one_time_or_one_a_sample_any_batch_shape():
    mixture, predict = some_mixture()[0], some_mixture()[0].predictor(SubVP())
    x, t = normal(5, 4), torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    whole = predict(x, t)
    for i in range(5):
        assert torch.allclose(predict(x[i:i + 1], t[i])[0], whole[i], rtol=1e-13, atol=1e-15)
        assert torch.equal(predict(x[i:i + 1], t[i:i + 1])[0], predict(x[i:i + 1], t[i])[0])
        assert torch.allclose(mixture.log_prob(x[i], 0.6, 0.8), mixture.log_prob(x, 0.6, 0.8)[i])
    cube = normal(2, 3, 5, 4)
    assert mixture.log_prob(cube, 0.6, 0.8).shape == (2, 3, 5)
    assert mixture.denoise(cube, 0.6, 0.8).shape == cube.shape
    a = torch.tensor([0.3, 0.9], dtype=torch.float64)
    assert torch.allclose(mixture.score(cube, a, 0.5)[1], mixture.score(cube[1], 0.9, 0.5))


def test_a_number_is_not_rounded_to_float32():
    mixture, x = some_mixture()[0], normal(3, 4)
    tensors = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    assert torch.equal(mixture.log_prob(x, 0.3, 0.7), mixture.log_prob(x, *tensors))


def test_float32_and_state():
    mixture, *_ = some_mixture()
    single, x = some_mixture(dtype=torch.float32)[0], normal(6, 4)
    for name in ("log_prob", "score", "denoise", "posterior_variance"):
        y = getattr(single, name)(x.float(), 0.6, 0.5)
        assert y.dtype == torch.float32
        assert torch.allclose(y.double(), getattr(mixture, name)(x, 0.6, 0.5), rtol=1e-3, atol=1e-4)
    posterior = single.posterior(x[0].float(), 0.6, 0.5)
    assert (
        posterior.means.dtype == torch.float32 and posterior.sample(3, seeded(0)).dtype == torch.float32
    )
    assert "means" in mixture.state_dict()
    assert mixture.float().score(x.float(), 0.6, 0.5).dtype == torch.float32


def test_high_dimension():
    root = normal(784, 784) / 28
    mixture, x = gaussian(normal(784, seed=1), root @ root.T), normal(3, 784, seed=2)
    S = 0.25 * root @ root.T + 0.75 * torch.eye(784, dtype=torch.float64)
    truth = MultivariateNormal(0.5 * mixture.means[0], S).log_prob(x)
    assert torch.allclose(mixture.log_prob(x, 0.5, 0.75**0.5), truth, rtol=1e-11)
    assert torch.allclose(mixture.score(x, 0.5, 0.75**0.5),
                          -torch.linalg.solve(S, (x - 0.5 * mixture.means).T).T, atol=1e-10)


# The flow of a Gaussian

@each
def test_flow_composes_and_keeps_the_density(schedule):
    one, x = gaussian(normal(3), some_mixture(1, 3)[2][0]), normal(6, 3, seed=4)
    y = gaussian_flow(one, schedule, x, 0.9, 0.2)
    assert torch.allclose(gaussian_flow(one, schedule, gaussian_flow(one, schedule, x, 0.9, 0.5), 0.5,
                                        0.2), y, rtol=1e-10, atol=1e-10)
    J = torch.autograd.functional.jacobian(lambda z: gaussian_flow(one, schedule, z, 0.9, 0.2), x[0])
    before = one.log_prob(x[0], schedule.alpha(0.9), schedule.sigma(0.9))
    after = one.log_prob(y[0], schedule.alpha(0.2), schedule.sigma(0.2))
    # change of variables
    assert abs(before - torch.linalg.slogdet(J)[1] - after) < 1e-9
    times = torch.linspace(0.3, 0.9, 6, dtype=torch.float64)
    each_its_own = gaussian_flow(one, schedule, x, times, times - 0.1)
    assert torch.allclose(each_its_own[2],
                          gaussian_flow(one, schedule, x[2:3], times[2], times[2] - 0.1)[0])


@each
def test_flow_follows_its_equation(schedule):
    one, x, h = gaussian(normal(3), some_mixture(1, 3)[2][0]), normal(6, 3, seed=4), 1e-4
    for t in (0.1, 0.5, 0.9):
        moved = (gaussian_flow(one, schedule, x, t, t + h)
                 - gaussian_flow(one, schedule, x, t, t - h)) / (2 * h)
        velocity = schedule.drift(t) * x - schedule.diffusion(t) ** 2 / 2 * one.score(
            x, schedule.alpha(t), schedule.sigma(t)
        )
        assert (moved - velocity).abs().max() < 1e-5 * (1 + velocity.abs().max())


def test_flow_reaches_flat_data():
    flat, x = some_mixture(1, 4, rank=2)[0], normal(5, 4)
    data = gaussian_flow(flat, LinearBeta(), x, 1.0, 0.0)
    away = torch.einsum("kde,nd->nke", flat.axes, data - flat.means)[..., flat.variances[0] < 1e-12]
    assert away.abs().max() < 1e-6


# Bad input

one, two, means, eye = torch.ones(1), torch.ones(2), torch.zeros(2, 3), torch.eye(3).repeat(2, 1, 1)


def changed(k, i, j, value):
    C = eye.clone()
    C[k, i, j] = value
    return C


@pytest.mark.parametrize("call, message", [
    (lambda: Mixture(one, means, eye), r"weights must have shape \[2\]"),
    (lambda: Mixture(two, means[0], eye), r"means must have shape \[K, D\]"),
    (lambda: Mixture(two, means, eye[:1]), "covariances must have shape"),
    (lambda: Mixture(two, means, eye[..., :2]), "covariances must have shape"),
    (lambda: Mixture(two, means, changed(0, 0, 1, 0.5)), "symmetric"),
    (lambda: Mixture(two, means, changed(1, 2, 2, -1.0)), "negative eigenvalues"),
    (lambda: Mixture(0 * two, means, eye), "weights must be positive"),
    (lambda: Mixture(-two, means, eye), "weights must be positive"),
    (lambda: Mixture(two * math.nan, means, eye), "weights"),
    (lambda: Mixture(two, means + math.inf, eye), "means"),
    (lambda: Mixture(two, means, eye).log_prob(torch.ones(4, 2)), r"x must have shape \[\.\.\., 3\]"),
    (lambda: Mixture(two, means, eye).score(torch.full((4, 3), math.nan)), "x"),
    (lambda: Mixture(two, means, eye).score(torch.ones(4, 3), torch.ones(3), 0.5),
     r"scalar or have shape \[4\]"),
    (lambda: Mixture(two, means, eye).score(torch.ones(3), torch.ones(3), 0.5),
     r"scalar or have shape \[\]"),
    (lambda: Mixture(two, means, 0 * eye).denoise(torch.ones(4, 3)), "sigma must be positive"),
    (lambda: Mixture(two, means, eye).log_prob(torch.ones(4, 3), math.nan, 0.5), "sigma"),
    (lambda: Mixture(two, means, eye).posterior(torch.ones(4, 3), 0.5, 0.5), "one point"),
    (lambda: Mixture(two, means, eye).sample(0), "n must be at least 1"),
    (lambda: Mixture(two, means, eye).predictor(LinearBeta(), "noise"), "wanted must be one of"),
    (lambda: Mixture(two, means, eye).predictor(LinearBeta())(torch.ones(4, 3), 1.5), "t must lie"),
    (lambda: Mixture(two, means, eye).predictor(LinearBeta())(torch.ones(4, 3), torch.ones(3)),
     "scalar or have shape"),
    (lambda: gaussian(torch.tensor(1.0), torch.eye(1)), r"means must have shape"),
    (lambda: gaussian_flow(Mixture(two, means, eye), LinearBeta(), torch.ones(4, 3), 1.0, 0.5),
     "one component, got 2")])
def test_bad_values(call, message):
    with pytest.raises(ValueError, match=message): call()


@pytest.mark.parametrize("call", [
    lambda: Mixture(two, means.double(), eye), lambda: Mixture([1, 1], means, eye),
    lambda: Mixture(two, means.long(), eye),
    lambda: Mixture(two, means, eye.half()),
    lambda: Mixture(two, means, eye).log_prob(torch.ones(4, 3).double()),
    lambda: Mixture(two, means, eye).sample(2.0)])
def test_bad_types(call):
    with pytest.raises(TypeError, match="must be"): call()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda():
    mixture, there = some_mixture()[0], some_mixture()[0].cuda()
    x, t = normal(6, 4), torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    for wanted in PREDICTIONS:
        y = there.predictor(LinearBeta(), wanted)(x.cuda(), t.cuda())
        assert y.is_cuda
        assert torch.allclose(y.cpu(), mixture.predictor(LinearBeta(), wanted)(x, t), atol=1e-10)
    one, moved = (
        gaussian(normal(4), torch.eye(4).double()),
        gaussian(normal(4).cuda(), torch.eye(4).double().cuda()),
    )
    assert torch.allclose(gaussian_flow(moved, Cosine(), x.cuda(), 0.9, 0.1).cpu(),
                          gaussian_flow(one, Cosine(), x, 0.9, 0.1))
    draws = there.sample(9, torch.Generator("cuda").manual_seed(0))
    assert draws.is_cuda and there.posterior(draws[0], 0.5, 0.5).means.is_cuda
    with pytest.raises(ValueError, match="x must be on cuda"): there.log_prob(x)
