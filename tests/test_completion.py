"""Machines given some of their units: marginals, draws, denoisers, likelihoods against enumeration."""
import math

import pytest
import torch

from machines import machine, normal, seeded, some_states
from rbmdiff.bridge import completion, tilted
from rbmdiff.bridge.completion import complete, denoise, log_likelihood, log_marginal, predictor
from rbmdiff.diffusion.deis import deis
from rbmdiff.diffusion.schedule import Cosine, LinearBeta, time_grid
from rbmdiff.foundations.units import Binomial, Discrete, Potts, as_unit, states
from rbmdiff.sampling.diagnostics import drift
from rbmdiff.sampling.means import mean

f64 = torch.float64
KINDS = ["bernoulli", "spin", Discrete((-1.0, 0.0, 2.0)), Binomial(2), Potts(3)]
LEVELS = (0.95, 0.3), (0.6, 0.8), (0.0, 1.0)
MASK = torch.tensor([True, False, False, True])


def enumerated(kind, hidden="bernoulli", seed=0):
    """A machine of four units, its mask by columns, all states, their log p, a state."""
    width = as_unit("unit", kind).columns
    m = machine(4 * width, 3, kind, hidden, seed=seed)
    V = states(4 * width, kind)
    return m, MASK.repeat_interleave(width), V, m.log_prob(V), V[len(V) // 2 + 1]


def fits(V, v, mask): return (V[:, mask] == v[mask]).all(1)


@pytest.mark.parametrize("hidden", ["bernoulli", "spin", "relu"], ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_marginals_are_sums_over_the_others(kind, hidden):
    m, mask, V, log_p, v = enumerated(kind, hidden)
    torch.testing.assert_close(log_marginal(m, v, mask), log_p[fits(V, v, mask)].logsumexp(0))
    rows = log_marginal(m, V[:7], mask)
    wanted = torch.stack([log_p[fits(V, x, mask)].logsumexp(0) for x in V[:7]])
    torch.testing.assert_close(rows, wanted)


def test_the_density_of_real_units_integrates_to_one():
    m = machine(3, 2, "gaussian")
    mask = torch.tensor([False, True, False])
    x = torch.linspace(-15, 15, 4001, dtype=f64)
    v = torch.stack([0 * x, x, 0 * x], 1)
    density = log_marginal(m, v, mask).exp()
    assert abs(torch.trapezoid(density, x).item() - 1) < 1e-10
    more = torch.tensor([True, True, False])
    joint = torch.trapezoid(log_marginal(m, torch.stack([x, 0 * x + 0.3, 0 * x], 1), more).exp(), x)
    one = log_marginal(m, torch.tensor([0.0, 0.3, 0.0], dtype=f64), mask).exp()
    torch.testing.assert_close(joint, one)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_denoiser_and_likelihood_are_those_of_bayes(kind):
    m, mask, V, log_p, v = enumerated(kind)
    x = normal(5, V.shape[1])
    chosen = fits(V, v, mask)
    for alpha, sigma in LEVELS:
        log_w = log_p - (x[:, None] - alpha * V).square().sum(-1) / (2 * sigma**2)
        held = log_w.masked_fill(~chosen, -math.inf)
        torch.testing.assert_close(denoise(m, v, mask, x, alpha, sigma), held.softmax(1) @ V)
        exact = held.logsumexp(1) - log_w.logsumexp(1)
        torch.testing.assert_close(log_likelihood(m, v, mask, x, alpha, sigma), exact)


def test_the_real_denoiser_is_that_of_the_clamped_machine():
    m = machine(4, 2, "gaussian", scale=0.5)
    v, x = normal(4, seed=1), normal(6, 4, seed=2)
    free = tilted.denoise(m.clamp(v, MASK), x[:, ~MASK], 0.6, 0.8)
    whole = denoise(m, v, MASK, x, 0.6, 0.8)
    torch.testing.assert_close(whole[:, ~MASK], free)
    assert torch.equal(whole[:, MASK], v[MASK].expand(6, 2))


@pytest.mark.parametrize("kind", ["bernoulli", Potts(3), "gaussian"], ids=str)
def test_guidance_by_the_likelihood_is_the_conditional_denoiser(kind):
    m = machine(8 if kind == "bernoulli" else 12, 3, kind, scale=0.4)
    mask = (torch.arange(len(m.b)) < 3) | (torch.arange(len(m.b)) > 8)
    v = m.sample(1, generator=1)[0]
    x = normal(3, len(m.b)).requires_grad_()
    slope, = torch.autograd.grad(log_likelihood(m, v, mask, x, 0.6, 0.8).sum(), x)
    given = (0.6 * denoise(m, v, mask, x, 0.6, 0.8) - x) / 0.8**2
    torch.testing.assert_close(tilted.score(m, x, 0.6, 0.8) + slope, given)


@pytest.mark.parametrize("kind", ["bernoulli", Potts(3)], ids=str)
def test_the_product_takes_each_unit_for_itself(kind):
    m, mask, V, log_p, v = enumerated(kind)
    x = normal(5, V.shape[1])
    log_w = log_p - (x[:, None] - 0.6 * V).square().sum(-1) / (2 * 0.8**2)
    p = log_w.softmax(1)
    wanted = torch.zeros(5, dtype=f64)
    width = len(mask) // 4
    for unit in MASK.nonzero()[:, 0]:
        one = torch.zeros_like(mask)
        one[unit * width:(unit + 1) * width] = True
        wanted += p[:, fits(V, v, one)].sum(1).log()
    torch.testing.assert_close(completion.product_log_likelihood(m, v, mask, x, 0.6, 0.8), wanted)
    assert (wanted - log_likelihood(m, v, mask, x, 0.6, 0.8)).abs().max() > 1e-3


def test_rows_have_their_own_states_levels_and_shapes():
    m = machine(4, 3)
    v, x = some_states((2, 3, 4)), normal(2, 3, 4)
    alpha = torch.tensor([0.9, 0.5], dtype=f64)
    sigma = (1 - alpha**2).sqrt()
    for f in (denoise, log_likelihood, completion.product_log_likelihood):
        whole = f(m, v, MASK, x, alpha, sigma)
        rows = [f(m, v[i, j], MASK, x[i, j][None], alpha[i].item(), sigma[i].item())[0]
                for i in range(2) for j in range(3)]
        torch.testing.assert_close(whole.flatten(0, 1), torch.stack(rows))


@pytest.mark.parametrize("kind", ["spin", Potts(3)], ids=str)
def test_completions_have_the_law_of_the_others(kind):
    m, mask, V, log_p, v = enumerated(kind)
    found = complete(m, v.expand(4000, -1), mask, generator=3)
    assert torch.equal(found[:, mask], v[mask].expand(4000, -1))
    p = torch.where(fits(V, v, mask), log_p.exp(), 0)
    assert abs(drift(found, p / p.sum(), kind).z(0)) < 4
    chains = complete(m, v.expand(4000, -1), mask, 60, 3)
    assert abs(drift(chains, p / p.sum(), kind).z(0)) < 4
    assert drift(m.sample(4000, generator=4), p / p.sum(), kind).value > 0.2
    assert complete(m, v, mask, generator=0).shape == v.shape


def test_each_completion_has_its_own_stream():
    m = machine(4, 3)
    v = some_states((3, 4))
    together = complete(m, v, MASK, generator=[seeded(k) for k in range(3)])
    alone = [complete(m, v[k:k + 1], MASK, generator=[seeded(k)]) for k in range(3)]
    assert torch.equal(together, torch.cat(alone))
    chains = [seeded(k) for k in range(3)]
    options = {"method": "gibbs", "steps": 3, "burn_in": 1}
    together = denoise(m, v, MASK, 0 * v, 0.6, 0.8, generator=chains, **options)
    alone = [denoise(m, v[k:k + 1], MASK, 0 * v[:1], 0.6, 0.8, generator=[seeded(k)], **options)
             for k in range(3)]
    assert torch.equal(together, torch.cat(alone))


def test_a_conditional_flow_ends_at_what_is_given():
    m, schedule = machine(4, 3, "spin"), LinearBeta()
    v = torch.tensor([1.0, -1, 1, -1], dtype=f64)
    predict = predictor(m, v, MASK, schedule)
    x = deis(predict, schedule, normal(50, 4), time_grid(schedule, 12, 1e-4))
    assert (x[:, MASK] - v[MASK]).abs().max() < 0.05
    many = predictor(m, v, MASK, schedule, "gibbs", steps=400, chains=50, generator=0)
    x = normal(3, 4)
    torch.testing.assert_close(many(x, 0.5), predict(x, 0.5), atol=0.05, rtol=0)


@pytest.mark.parametrize("options", [{"steps": 7}, {"burn_in": 5}, {"chains": 3}], ids=str)
def test_chains_are_those_of_the_mean_of_a_machine(options):
    m, v, x = machine(4, 3), some_states(4), normal(2, 4)
    options = {"steps": 2, "burn_in": 1, "chains": 1, **options}
    found = denoise(m, v, MASK, x, 0.6, 0.8, "gibbs", **options, generator=5)
    free = tilted.posterior(m, x, 0.6, 0.8).clamp(v.expand(2, 4), MASK)
    torch.testing.assert_close(found[:, ~MASK], mean(free, "gibbs", **options, generator=5))


def test_defaults_are_those_of_the_docstring():
    m, v, x = machine(4, 3), some_states(4), normal(2, 4)
    found = denoise(m, v, MASK, x, 0.6, 0.8, "gibbs", generator=5)
    options = {"steps": 100, "burn_in": 10, "chains": 1}
    assert torch.equal(found, denoise(m, v, MASK, x, 0.6, 0.8, "gibbs", **options, generator=5))
    assert torch.equal(denoise(m, v, MASK, x, 0.6, 0.8), denoise(m, v, MASK, x, 0.6, 0.8, "exact"))


def test_a_predictor_is_the_noise_of_the_denoiser():
    m, v, x, t = machine(4, 3), some_states(4), normal(3, 4), torch.tensor([0.2, 0.5, 0.9], dtype=f64)
    schedule = LinearBeta()
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    eps = predictor(m, v, MASK, schedule)(x, t)
    mean = denoise(m, v, MASK, x, alpha, sigma)
    torch.testing.assert_close(alpha[:, None] * mean + sigma[:, None] * eps, x)


def test_a_predictor_goes_on_where_its_generator_stands():
    m, x = machine(4, 3), normal(2, 4)
    predict = predictor(m, some_states(4), MASK, Cosine(), "gibbs", steps=2, generator=0)
    assert not torch.equal(predict(x, 0.5), predict(x, 0.5))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_types_and_devices(dtype, device):
    if device == "cuda" and not torch.cuda.is_available(): pytest.skip("no CUDA device")
    m = machine(4, 3, dtype=dtype, device=device)
    v, mask = some_states((3, 4), dtype=dtype).to(device), MASK.to(device)
    x = normal(3, 4, dtype=dtype).to(device)
    eps = predictor(m, v, mask, Cosine())(x, 0.5)
    found = [log_marginal(m, v, mask), denoise(m, v, mask, x, 0.6, 0.8), eps,
             log_likelihood(m, v, mask, x, 0.6, 0.8), complete(m, v, mask, generator=0),
             completion.product_log_likelihood(m, v, mask, x, 0.6, 0.8)]
    assert all(y.dtype == dtype and y.device.type == device and y.isfinite().all() for y in found)


M4, V4, X4 = machine(4, 3), some_states((2, 4)), normal(2, 4)
LARGE = machine(40, 40, scale=0.1)
BROKEN, REAL = machine(4, 3), machine(4, 3, "gaussian")
BROKEN.W.data[0, 0] = math.nan
L40 = some_states((2, 40))
HALF = torch.arange(40) < 5
BAD = {
    "mask of numbers": (lambda: denoise(M4, V4, MASK.double(), X4, 0.6, 0.8), ValueError,
                        "mask must be a bool"),
    "mask of another length": (lambda: complete(M4, V4, MASK[:3]), ValueError, "mask"),
    "all given": (lambda: log_marginal(M4, V4, MASK | True), ValueError, "mask must clamp some"),
    "none given": (lambda: log_likelihood(M4, V4, MASK & False, X4, 0.6, 0.8), ValueError, "mask"),
    "half a colour": (lambda: complete(machine(6, 2, Potts(3)), states(6, Potts(3))[0],
                                       torch.arange(6) < 2), ValueError, "mask"),
    "no states": (lambda: denoise(M4, V4 + 0.5, MASK, X4, 0.6, 0.8), ValueError, "v must"),
    "states of another shape": (lambda: denoise(M4, V4[:1], MASK, X4, 0.6, 0.8), ValueError,
                                r"v must have shape \[4\] or \[2, 4\] like x, got \[1, 4\]"),
    "states of another type": (lambda: denoise(M4, V4.float(), MASK, X4, 0.6, 0.8), TypeError, "v"),
    "x of another width": (lambda: denoise(M4, V4, MASK, X4[:, :3], 0.6, 0.8), ValueError, "x must"),
    "no noise": (lambda: log_likelihood(M4, V4, MASK, X4, 0.6, 0.0), ValueError, "sigma must"),
    "unknown method": (lambda: denoise(M4, V4, MASK, X4, 0.6, 0.8, "exakt"), ValueError, "method"),
    "no machine": (lambda: log_marginal(3, V4, MASK), TypeError, "rbm must be an RBM"),
    "no schedule": (lambda: predictor(M4, V4, MASK, 3), TypeError, "schedule"),
    "too large to list": (lambda: denoise(LARGE, L40, HALF, normal(2, 40), 0.6, 0.8), ValueError,
                          "at most 25 bits"),
    "too large to sum": (lambda: log_marginal(LARGE, L40, HALF), ValueError, "at most 25 bits"),
    "too large to draw": (lambda: complete(LARGE, L40, HALF), ValueError, "steps must be given"),
    "product too large": (
        lambda: completion.product_log_likelihood(LARGE, L40, HALF, normal(2, 40), 0.6, 0.8),
        ValueError, "at most 25 bits.*ais"),
    "broken machine": (lambda: log_marginal(BROKEN, V4, MASK), ValueError, r"finite parameters.*'W'"),
    "predictor, mask": (lambda: predictor(M4, V4, MASK[:3], Cosine()), ValueError, "mask must be"),
    "predictor, states": (lambda: predictor(M4, V4 + 0.5, MASK, Cosine()), ValueError, "v must hold"),
    "likelihood of no states": (lambda: log_likelihood(M4, None, MASK, X4, 0.6, 0.8), TypeError,
                                "v must be a torch.Tensor"),
    "product of no states": (lambda: completion.product_log_likelihood(M4, None, MASK, X4, 0.6, 0.8),
                             TypeError, "v must be a torch.Tensor"),
    "product, mask a list": (lambda: completion.product_log_likelihood(M4, V4, [True], X4, 0.6, 0.8),
                             ValueError, "mask must be a bool"),
    "lost gradient of states": (
        lambda: denoise(REAL, normal(4).requires_grad_(), MASK, X4, 0.6, 0.8, "gibbs"),
        ValueError, "denoise"),
    "lost gradient of parameters": (
        lambda: torch.func.grad(lambda W: denoise(
            M4.sharing(W=W), V4, MASK, X4, 0.6, 0.8, "gibbs").sum())(
            M4.W.detach()), ValueError, "denoise"),
    "lost gradient": (lambda: denoise(M4, V4, MASK, X4.clone().requires_grad_(), 0.6, 0.8, "gibbs"),
                      ValueError, "denoise"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case):
    call, kind, message = BAD[case]
    with pytest.raises(kind, match=message): call()


def test_exact_means_need_few_free_units_alone():
    few = torch.arange(40) < 35
    x = normal(2, 40)
    means = denoise(LARGE, L40, few, x, 0.6, 0.8)
    V = states(5)
    for row in range(2):
        whole = torch.cat([L40[row, few].expand(32, 35), V], 1)
        log_w = -LARGE.free_energy(whole) - (x[row] - 0.6 * whole).square().sum(1) / (2 * 0.8**2)
        torch.testing.assert_close(means[row], log_w.softmax(0) @ whole)


def test_large_machines_are_completed_by_chains():
    found = complete(LARGE, L40, HALF, 20, 0)
    assert torch.equal(found[:, HALF], L40[:, HALF])
    means = denoise(LARGE, L40, HALF, normal(2, 40), 0.6, 0.8, "tap")
    assert means.isfinite().all()


def test_a_soft_clamp_is_a_clamp_in_the_limit():
    m, mask, V, log_p, v = enumerated("spin")
    p = torch.where(fits(V, v, mask), log_p.exp(), 0)
    p = p / p.sum()
    off = [(m.tilt(L * v * mask).log_prob(V).exp() - p).abs().sum().item() / 2 for L in (2.0, 5.0, 10.0)]
    assert off[0] > 1e-3 and off[0] > 50 * off[1] > 1e4 * off[2]
