"""The discrete chain: composition, posterior, bound, both algorithms, and bad input."""
import math

from hypothesis import given, settings, strategies as st
import pytest
import torch

from rbmdiff.diffusion import ddpm
from rbmdiff.diffusion.ddpm import (
    Chain,
    chain_on_grid,
    ddim_coefficients,
    jump,
    linear_chain,
    posterior,
    sample_chain,
    simple_loss,
    simple_step,
    slerp,
    variational_bound,
)
from rbmdiff.diffusion.oracle import Mixture, gaussian
from rbmdiff.diffusion.schedule import Cosine, Geometric, LinearBeta, LinearLogSNR, time_grid
from rbmdiff.diffusion.solvers import ancestral, ddim
from rbmdiff.foundations.core import Estimate
from rbmdiff.foundations.train import TrainState, train

F64 = {"dtype": torch.float64}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def mixture():
    roots = torch.randn(3, 4, 4, generator=rng(), **F64)
    return Mixture(torch.tensor([0.2, 0.3, 0.5], **F64), torch.randn(3, 4, generator=rng(1), **F64),
                   0.3 * roots @ roots.mT)


@pytest.mark.parametrize("schedule", [LinearBeta(), Cosine(-8, 12), LinearLogSNR()])
def test_chain_on_grid_has_the_marginals_of_the_schedule(schedule):
    grid = time_grid(schedule, 20, kind="quadratic")
    chain = chain_on_grid(schedule, grid)
    assert chain.steps == 21 and chain.alphas[0] == 1 and chain.sigmas[0] == 0
    torch.testing.assert_close(chain.alphas[1:], schedule.alpha(grid.flip(0)), rtol=1e-12, atol=0)
    torch.testing.assert_close(chain.sigmas[1:], schedule.sigma(grid.flip(0)), rtol=1e-9, atol=0)
    torch.testing.assert_close(chain.times[1:], grid.flip(0))


def test_ho_chain():
    chain = linear_chain()
    assert chain.betas[0] == 1e-4 and chain.betas[-1] == 0.02
    exact = math.prod(1 - beta for beta in chain.betas.tolist())
    assert abs(chain.alphas[-1] ** 2 / exact - 1) < 1e-12
    assert "1000" in repr(chain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_jump(dtype):
    chain, x0 = linear_chain(), torch.randn(5, 2, 3, generator=rng(), dtype=dtype)
    k = torch.tensor([1, 10, 100, 500, 1000])
    x, eps = jump(chain, x0, k, rng(1))
    shape = (5, 1, 1)
    expected = (
        chain.alphas[k].reshape(shape).to(dtype) * x0 + chain.sigmas[k].reshape(shape).to(dtype) * eps
    )
    assert x.dtype == dtype and torch.equal(x, expected)
    assert torch.equal(jump(chain, x0, 7, rng(1))[1], eps)


@settings(max_examples=50, deadline=None)
@given(alpha=st.floats(0.02, 0.98), step=st.floats(0.02, 0.98), eta=st.floats(0, 1))
def test_coefficients_keep_the_marginals(alpha, step, eta):
    """With the true noise in the prediction's place, the step leads to alpha_s x_0 + sigma_s noise for
    every eta.
    """
    a = torch.tensor([alpha, alpha + step * (1 - alpha)], **F64)
    s = torch.sqrt(1 - a**2)
    of_x, of_eps, of_z = (c[0] for c in ddim_coefficients(a, s, eta))
    assert abs(of_x * a[0] - a[1]) < 1e-12                              # signal
    old = of_x * s[0] + of_eps
    assert abs(old**2 + of_z**2 - s[1] ** 2) < 1e-12                     # noise


def test_posterior_scalar_level_and_batch_of_levels_agree():
    chain = linear_chain(50, 0.01, 0.2)
    x0, x = torch.randn(2, 6, 3, generator=rng(), **F64)
    k = torch.tensor([1, 2, 10, 20, 49, 50])
    mean, variance = posterior(chain, x0, x, k)
    for i, level in enumerate(k.tolist()):
        m, v = posterior(chain, x0[i:i + 1], x[i:i + 1], level)
        torch.testing.assert_close(m[0], mean[i])
        torch.testing.assert_close(v, variance[i])
    assert variance[0] == 0


def test_posterior_mean_is_the_ancestral_step():
    chain = linear_chain(50, 0.01, 0.2)
    x, eps = torch.randn(2, 4, 3, generator=rng(), **F64)
    of_x, of_eps, of_z = ddim_coefficients(chain.alphas.flip(0), chain.sigmas.flip(0), 1.0)
    for i, k in enumerate(range(50, 0, -1)):
        mean, variance = posterior(chain, (x - chain.sigmas[k] * eps) / chain.alphas[k], x, k)
        torch.testing.assert_close(of_x[i] * x + of_eps[i] * eps, mean, rtol=1e-11, atol=1e-11)
        assert abs(of_z[i] ** 2 - variance) < 1e-12


def test_bound_is_the_entropy_plus_a_gap_that_closes():
    """Mean bound over Gaussian data against its entropy, for the perfect prediction; the gap is of order
    1/T.
    """
    power = torch.tensor([0.2, 1.5], **F64)
    data, g = gaussian(torch.zeros(2, **F64), power.diag()), rng(3)
    entropy, gaps = float(0.5 * (1 + (2 * math.pi * power).log()).sum()), []
    for steps in (40, 160):
        chain = chain_on_grid(LinearBeta(), time_grid(LinearBeta(), steps - 1, 1e-4, "log_snr"))
        bound = variational_bound(data.predictor(LinearBeta()), chain, data.sample(20_000, g), g)
        assert bound.prior.shape == (20_000,) and bound.steps.shape == (steps - 1, 20_000)
        gaps.append(Estimate.of(bound.nats))
    excess = [gap.value - entropy for gap in gaps]
    assert all(e > 4 * gap.stderr for e, gap in zip(excess, gaps))
    assert max(gap.stderr for gap in gaps) < 0.03
    assert 2.5 < excess[0] / excess[1] < 6


def test_bound_of_one_step():
    chain, x0 = Chain(torch.tensor([0.5], **F64)), torch.randn(3, 2, generator=rng(), **F64)
    bound = variational_bound(lambda x, t: torch.zeros_like(x), chain, x0, rng(1))
    assert bound.steps.shape == (0, 3) and bool(bound.nats.isfinite().all())


@pytest.mark.parametrize("shape", [(4,), (1, 2, 2)])
def test_simple_loss_of_perfect_and_zero_networks(shape):
    x0 = torch.zeros(6, *shape, **F64)
    chain = linear_chain(100)
    sigmas = {float(t): s for t, s in zip(chain.times, chain.sigmas)}
    perfect = lambda x, t: x / torch.stack([sigmas[float(u)] for u in t]).reshape(-1, *[1] * len(shape))
    assert simple_loss(perfect, chain, x0, rng()).max() < 1e-20
    assert simple_loss(lambda x, t: torch.zeros_like(x), chain, x0, rng()).min() > 0.01


def test_simple_loss_visits_every_level_equally():
    seen = []
    chain = linear_chain(5, 0.1, 0.3)
    simple_loss(lambda x, t: (seen.append(t), torch.zeros_like(x))[1], chain,
                torch.zeros(50_000, 1, **F64), rng())
    counts = torch.bincount((seen[0] * 5).round().long(), minlength=6)
    assert counts[0] == 0 and (counts[1:] - 10_000).abs().max() < 4 * math.sqrt(50_000 * 0.2 * 0.8)


def test_training_finds_the_best_linear_network():
    """Noise c x, without a time: on N(0, I) the best c is the mean sigma, its loss 3 (1 - c²)."""
    network = torch.nn.Linear(3, 3, **F64)
    network.load_state_dict({"weight": -torch.eye(3, **F64), "bias": torch.zeros(3, **F64)})   # far off
    network.forward = lambda x, t: torch.nn.functional.linear(x, network.weight, network.bias)
    state = TrainState(network, torch.optim.Adam(network.parameters(), 0.05), rng())
    records = list(train(state, torch.randn(500, 3, generator=rng(1), **F64),
                         simple_step(linear_chain(100)), epochs=10))
    best = float(linear_chain(100).sigmas[1:].mean())
    torch.testing.assert_close(network.weight.detach(), best * torch.eye(3, **F64), atol=0.15, rtol=0)
    assert abs(records[-1].scalars["loss"] - 3
               * (1 - best**2)) < 0.4 < records[0].scalars["loss"] - 3 * (1 - best**2)


def test_sample_chain_is_the_solver_of_the_same_name():
    schedule, model = LinearBeta(), mixture()
    grid = time_grid(schedule, 12, kind="quadratic")
    chain, predict = chain_on_grid(schedule, grid), model.predictor(schedule)
    x = torch.randn(5, 4, generator=rng(), **F64)
    down = torch.arange(13, 0, -1)
    torch.testing.assert_close(sample_chain(predict, chain, x, down, eta=0.0),
                               ddim(predict, schedule, x, grid), rtol=1e-9, atol=1e-9)
    ours = sample_chain(predict, chain, x, down, eta=1.0, generator=rng(4))
    torch.testing.assert_close(ours, ancestral(predict, schedule, x, grid, generator=rng(4)), rtol=1e-9,
                               atol=1e-9)
    assert (ours - sample_chain(predict, chain, x, down, eta=0.5, generator=rng(4))).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sample_chain_does_not_depend_on_the_batch(dtype):
    schedule = LinearBeta()
    chain = chain_on_grid(schedule, time_grid(schedule, 20, kind="quadratic"))
    predict = mixture().to(dtype).predictor(schedule)
    x = torch.randn(5, 4, generator=rng(), dtype=dtype)
    whole = sample_chain(predict, chain, x, eta=0.0)
    assert whole.dtype == dtype
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(whole[2:3], sample_chain(predict, chain, x[2:3], eta=0.0),
                               rtol=tolerance, atol=tolerance)


def test_encoding_is_undone_at_first_order():
    schedule, predict, errors = LinearBeta(), mixture().predictor(LinearBeta()), []
    x = mixture().sample(20, rng(5))
    for steps in (100, 200, 400):
        chain = chain_on_grid(schedule, time_grid(schedule, steps - 1, 1e-4, "quadratic"))
        code = sample_chain(predict, chain, x, torch.arange(1, steps + 1), eta=0.0)
        back = sample_chain(predict, chain, code, torch.arange(steps, 0, -1), eta=0.0)
        errors.append(float((back - x).square().mean().sqrt()))
    assert 0.7 < math.log2(errors[0] / errors[1]) < 1.3 and 0.7 < math.log2(errors[1] / errors[2]) < 1.3


@settings(max_examples=30, deadline=None)
@given(w=st.floats(0, 1), seed=st.integers(0, 1000))
def test_slerp(w, seed):
    z0, z1 = torch.randn(2, 3, 8, generator=rng(seed), **F64)
    z = slerp(z0, z1, w)
    assert torch.allclose(slerp(z1, z0, 1 - w), z)
    unit = torch.nn.functional.normalize(torch.stack([z0, z1]), dim=-1)
    assert torch.allclose(slerp(unit[0], unit[1], w).norm(dim=-1), torch.ones(3, **F64))


def test_error_of_the_bound_is_that_of_its_draws():
    """Spread over many bounds of one draw, and the error that 400 draws in one call report."""
    chain, predict = linear_chain(6, 0.05, 0.3), mixture().predictor(LinearBeta())
    x0 = mixture().sample(1, rng(1)).expand(2000, 4)
    single = variational_bound(predict, chain, x0, rng(2))
    many = variational_bound(predict, chain, x0[:3], rng(3), sets=400)
    assert single.stderr.isnan().all() and many.stderr.shape == (3,)
    torch.testing.assert_close(many.stderr, (single.nats.std() / 20).expand(3), rtol=0.15, atol=0)
    assert ((many.nats - single.nats.mean()) / many.stderr).abs().max() < 4.5
    torch.testing.assert_close(many.diffusion, many.steps.sum(0))
    torch.testing.assert_close(many.log_prob, -(many.prior + many.diffusion + many.reconstruction))
    with pytest.raises(ValueError, match="sets must be at least 1"):
        variational_bound(predict, chain, x0, sets=0)


def test_every_sample_has_its_own_stream():
    chain, x = linear_chain(8, 0.05, 0.3), torch.randn(3, 2, generator=rng(), **F64)
    predict = lambda x, t: torch.sin(x) * torch.cos(t.reshape(-1, *[1] * (x.ndim - 1)))
    calls = {"jump": lambda x, g: jump(chain, x, 3, g)[0],
             "loss": lambda x, g: simple_loss(predict, chain, x, g),
             "bound": lambda x, g: variational_bound(predict, chain, x, g).nats,
             "sets": lambda x, g: variational_bound(predict, chain, x, g, sets=3).stderr,
             "walk": lambda x, g: sample_chain(predict, chain, x, generator=g)}
    for name, call in calls.items():
        whole = call(x, [rng(5), 6, rng(7)])
        for b in range(3):
            torch.testing.assert_close(whole[b:b + 1], call(x[b:b + 1], [5 + b]), rtol=1e-12,
                                       atol=1e-12, msg=name)
        assert torch.equal(call(x, 9), call(x, rng(9))), name
        with pytest.raises(ValueError, match="generator must hold"): call(x, [1, 2])


def test_network_is_checked():
    chain, x = linear_chain(8, 0.05, 0.3), torch.zeros(2, 3, **F64)
    with pytest.raises(TypeError, match="network must return dense floating-point numbers"):
        simple_loss(lambda x, t: x.long(), chain, x)
    with pytest.raises(ValueError, match="network returned NaN"):
        simple_loss(lambda x, t: x / 0, chain, x)
    with pytest.raises(ValueError, match="predict returned NaN or infinity in call 1, at t = 1"):
        sample_chain(lambda x, t: x / 0, chain, x)
    with pytest.raises(TypeError, match="predict must be callable"): variational_bound(None, chain, x)


CHAIN, X = linear_chain(10), torch.zeros(2, 3, **F64)
BAD = {
    "betas of zero": (ValueError, "betas", lambda: Chain(torch.zeros(3))),
    "betas of one": (ValueError, "betas", lambda: Chain(torch.ones(3))),
    "betas, two axes": (ValueError, "betas", lambda: Chain(torch.full((2, 2), 0.1))),
    "betas NaN": (ValueError, "betas", lambda: Chain(torch.tensor([0.1, math.nan]))),
    "betas list": (TypeError, "betas", lambda: Chain([0.1, 0.2])),
    "no steps": (ValueError, "steps", lambda: linear_chain(0)),
    "exploding schedule": (ValueError, "schedule",
                           lambda: chain_on_grid(Geometric(), torch.tensor([1.0, 0.5]))),
    "rising grid": (ValueError, "grid", lambda: chain_on_grid(LinearBeta(), torch.tensor([0.5, 1.0]))),
    "times too short": (ValueError, "times",
                        lambda: Chain(torch.full((3,), 0.1), torch.linspace(0, 1, 3))),
    "times falling": (ValueError, "times",
                      lambda: Chain(torch.full((3,), 0.1), torch.linspace(1, 0, 4))),
    "level 0": (ValueError, "k", lambda: jump(CHAIN, X, 0)),
    "level 11": (ValueError, "k", lambda: jump(CHAIN, X, 11)),
    "level 2.5": (TypeError, "k", lambda: jump(CHAIN, X, 2.5)),
    "three levels for two": (ValueError, "k", lambda: jump(CHAIN, X, torch.tensor([1, 2, 3]))),
    "integers": (TypeError, "x0", lambda: jump(CHAIN, torch.zeros(2, 3, dtype=torch.int64), 1)),
    "posterior shapes": (ValueError, "x0", lambda: posterior(CHAIN, X[:1], X, 1)),
    "eta": (ValueError, "eta", lambda: sample_chain(lambda x, t: x, CHAIN, X, eta=1.5)),
    "eta below": (ValueError, "eta", lambda: ddim_coefficients(CHAIN.alphas, CHAIN.sigmas, -0.1)),
    "levels repeat": (ValueError, "levels",
                      lambda: sample_chain(lambda x, t: x, CHAIN, X, torch.tensor([3, 3, 1]))),
    "levels turn": (ValueError, "levels",
                    lambda: sample_chain(lambda x, t: x, CHAIN, X, torch.tensor([3, 1, 2]))),
    "levels outside": (ValueError, "levels",
                       lambda: sample_chain(lambda x, t: x, CHAIN, X, torch.tensor([11, 1]))),
    "levels float": (TypeError, "levels",
                     lambda: sample_chain(lambda x, t: x, CHAIN, X, torch.tensor([3.0, 1.0]))),
    "noisy way up": (ValueError, "levels",
                     lambda: sample_chain(lambda x, t: x, CHAIN, X, torch.tensor([1, 3]))),
    "way up from data": (ValueError, "levels",
                         lambda: sample_chain(lambda x, t: x, CHAIN, X, torch.tensor([0, 3]), eta=0.0)),
    "shape of prediction": (ValueError, "predict", lambda: sample_chain(lambda x, t: x[:1], CHAIN, X)),
    "NaN prediction": (ValueError, "predict", lambda: sample_chain(lambda x, t: x * math.nan, CHAIN, X)),
    "bound, shape": (ValueError, "predict", lambda: variational_bound(lambda x, t: x[:1], CHAIN, X)),
    "slerp shapes": (ValueError, "z1", lambda: slerp(X + 1, X[:1] + 1, 0.5)),
    "slerp parallel": (ValueError, "z0", lambda: slerp(X + 1, X + 2, 0.5)),
    "slerp outside": (ValueError, "w", lambda: slerp(torch.eye(2), torch.eye(2).flip(0), 1.5)),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    error, word, call = BAD[name]
    with pytest.raises(error, match=rf"\b{word}\b"): call()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda():
    chain, model = linear_chain(50, 1e-3, 0.2), mixture().cuda()
    predict = lambda x, t: 0.5 * x
    x = torch.randn(4, 4, generator=rng(), **F64)
    torch.testing.assert_close(sample_chain(predict, chain, x.cuda(), eta=0.0).cpu(),
                               sample_chain(predict, chain, x, eta=0.0))
    g = torch.Generator("cuda").manual_seed(0)
    assert variational_bound(predict, chain, x.cuda(), g).nats.device.type == "cuda"
    assert simple_loss(predict, chain, x.cuda(), g).device.type == "cuda" and model.means.is_cuda
    assert ddpm.posterior(chain, x.cuda(), x.cuda(), 3)[1].is_cuda
