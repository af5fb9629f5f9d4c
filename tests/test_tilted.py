"""Noised Boltzmann machines against enumeration: posterior, density, denoisers, path identity, reverse
process.
"""
from dataclasses import dataclass
import importlib.util
import math

import numpy as np
import pytest
import torch

from machines import machine, seeded
from rbmdiff.bridge.tilted import (
    WarmGibbs,
    _half_error,
    _two_means,
    denoise,
    flip_posterior,
    hidden_couplings,
    log_prob,
    machine_predictor,
    noised_energy,
    path_log_z,
    posterior,
    score,
)
from rbmdiff.diffusion.deis import deis
from rbmdiff.diffusion.likelihood import log_likelihood
from rbmdiff.diffusion.oracle import Mixture
from rbmdiff.diffusion.schedule import Cosine, Geometric, LinearBeta, time_grid
from rbmdiff.diffusion.solvers import ancestral, ddim
from rbmdiff.foundations.core import Estimate
from rbmdiff.foundations.units import Binomial, Discrete, Gaussian, Poisson, Potts, ReLU, as_unit, states
from rbmdiff.models import rbm as rbm_module
from rbmdiff.models.rbm import RBM
from rbmdiff.sampling.diagnostics import drift
from rbmdiff.sampling.gibbs import spectrum
from rbmdiff.sampling.means import exact_mean

DISCRETE = [(v, h) for v in ("bernoulli", "spin") for h in ("bernoulli", "spin")]
PAIRS = [*DISCRETE, ("gaussian", "bernoulli"), ("gaussian", "spin")]
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[cuda, pytest.mark.cuda])]
ALPHA, SIGMA = 0.7, 0.6


def oracle(m):
    """The machine as a mixture of points or of normal densities."""
    D, H = m.W.shape
    if m.visible.wide:
        S, C = states(H, m.hidden), torch.diag(m.sigma**2).expand(2**H, D, D)
        return Mixture(torch.softmax(-m.hidden_free_energy(S), 0), m.visible_mean(S), C)
    V = states(D, m.visible)
    return Mixture(m.log_prob(V).exp(), V, torch.zeros(D, D, dtype=V.dtype).expand(2**D, D, D))


def noise(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=seeded(seed))


# Posterior, density, score

@pytest.mark.parametrize("visible, hidden", PAIRS)
@pytest.mark.parametrize("D, H", [(5, 3), (3, 5)])
def test_posterior_density_and_score_are_those_of_the_oracle(visible, hidden, D, H):
    m, truth = machine(D, H, visible, hidden), oracle(machine(D, H, visible, hidden))
    x = noise(6, D)
    V = (noise(40, D, seed=2) if visible == "gaussian" else states(D, visible))[:, None]
    likelihood = torch.distributions.Normal(ALPHA * V, SIGMA).log_prob(x).sum(-1)
    bayes = m.log_prob(V) + likelihood - truth.log_prob(x, ALPHA, SIGMA)
    assert (posterior(m, x, ALPHA, SIGMA).log_prob(V) - bayes).abs().max() < 1e-12
    assert (posterior(m, x, ALPHA, 1.1 * SIGMA).log_prob(V) - bayes).abs().max() > 1e-2
    assert (log_prob(m, x, ALPHA, SIGMA) - truth.log_prob(x, ALPHA, SIGMA)).abs().max() < 1e-12
    assert (denoise(m, x, ALPHA, SIGMA) - truth.denoise(x, ALPHA, SIGMA)).abs().max() < 1e-12
    assert (score(m, x, ALPHA, SIGMA) - truth.score(x, ALPHA, SIGMA)).abs().max() < 1e-11
    assert (score(m, x, ALPHA, SIGMA) + truth.score(x, ALPHA, SIGMA)).abs().max() > 1e-2


@pytest.mark.parametrize("visible, hidden", DISCRETE)
def test_every_row_may_have_its_own_level_and_any_batch_shape(visible, hidden):
    m, x = machine(5, 3, visible, hidden), noise(4, 3, 5)
    alpha, sigma = torch.tensor([1.0, 0.5, 0.0, 0.9]), torch.tensor([0.1, 0.5, 1.0, 7.0])
    for f in (log_prob, denoise, score):
        whole = f(m, x, alpha, sigma)
        for i in range(4):
            for j in range(3):
                one = f(m, x[i, j:j + 1], float(alpha[i]), float(sigma[i]))[0]
                assert (whole[i, j] - one).abs().max() < 1e-6 * one.abs().max().clamp(min=1)
    for method in ("mean_field", "tap"):
        whole = denoise(m, x, alpha, sigma, method)
        assert (whole[2, 1] - denoise(m, x[2, 1:2], 0.0, 1.0, method)[0]).abs().max() < 1e-6
    assert denoise(m, x, alpha, sigma, "gibbs", steps=2, chains=3, generator=seeded(0)).shape == x.shape


@pytest.mark.parametrize("D, H", [(5, 3), (3, 5)])
def test_a_large_batch_is_enumerated_in_pieces(D, H):
    m, x = machine(D, H), noise(8, D)
    assert (denoise(m, x.repeat(20000, 1), ALPHA, SIGMA)[-8:]
            - denoise(m, x, ALPHA, SIGMA)).abs().max() < 1e-12


def test_limits_are_the_state_itself_and_the_machine_itself():
    for visible, hidden in DISCRETE:
        m, v = machine(5, 3, visible, hidden), states(5, visible)
        assert (denoise(m, v + 0.01 * noise(32, 5), 1.0, 0.01) - v).abs().max() < 1e-12
        mean = m.log_prob(v).exp() @ v
        assert (denoise(m, noise(3, 5), 0.0, 2.0) - mean).abs().max() < 1e-12
    for x in (1e150, -1e150):
        far = denoise(machine(5, 3), torch.full((1, 5), x, dtype=torch.float64), 1.0, 1.0)
        assert bool((far == (x > 0)).all())


@pytest.mark.parametrize("visible, hidden", PAIRS)
def test_gibbs_agrees_and_the_approximations_have_their_orders(visible, hidden):
    m, x = machine(5, 3, visible, hidden, scale=0.35), noise(1, 5)
    exact = denoise(m, x, ALPHA, SIGMA)
    draws = denoise(m, x.expand(3000, -1), ALPHA, SIGMA, "gibbs", steps=3, burn_in=60,
                    generator=seeded(3))
    stderr = draws.std(0) / 3000**0.5
    assert ((draws.mean(0) - exact)[0] / stderr).abs().max() < 4 and stderr.max() < 0.02
    assert ((draws.mean(0) - exact.neg())[0] / stderr).abs().max() > 4
    W, errors = m.W.data.clone(), {}
    for size in (0.04, 0.02):
        m.W.data = size * W
        for method in ("mean_field", "tap"):
            errors[method, size] = (denoise(m, x, ALPHA, SIGMA, method)
                                    - denoise(m, x, ALPHA, SIGMA)).norm().item()
    orders = [math.log2(errors[method, 0.04] / errors[method, 0.02]) for method in ("mean_field", "tap")]
    first = 3 if visible == "gaussian" else 2
    assert abs(orders[0] - first) < 0.4 and orders[1] > first + 0.5


def test_means_of_means_vary_less_than_means_of_states():
    m, x = machine(6, 4), noise(1, 6).expand(2000, -1)
    tilted = posterior(m, x, ALPHA, SIGMA)
    g = seeded(5)
    v = total = tilted.sample_visible(tilted.sample_hidden((x > 0.5).double(), g), g)
    for _ in range(9): total = total + (v := tilted.sample_visible(tilted.sample_hidden(v, g), g))
    means = denoise(m, x, ALPHA, SIGMA, "gibbs", steps=10, burn_in=1, generator=g)
    assert (total / 10).var(0).sum() > 1.2 * means.var(0).sum()


@pytest.mark.parametrize("method", ["exact", "mean_field", "tap"])
def test_denoisers_are_differentiable_in_x_and_parameters(method):
    m = machine(4, 3).requires_grad_(True)
    x = noise(2, 4).requires_grad_(True)
    f = lambda x, W: denoise(m.sharing(W=W), x, ALPHA, SIGMA, method, steps=30)
    assert torch.autograd.gradcheck(f, (x, m.W))
    denoise(m, x, ALPHA, SIGMA, method).sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in m.parameters())


# Flips and couplings

@pytest.mark.parametrize("visible, hidden", DISCRETE)
@pytest.mark.parametrize("p", [0.05, 0.5, 0.8])
def test_flipped_states_have_the_posterior_of_bayes(visible, hidden, p):
    m, V = machine(5, 3, visible, hidden), states(5, visible)
    wrong = (V[:, None] != V).double().sum(-1)
    bayes = (m.log_prob(V)[:, None] + wrong * math.log(p) + (5 - wrong) * math.log(1 - p)).log_softmax(0)
    assert (flip_posterior(m, V, p).log_prob(V[:, None]) - bayes).abs().max() < 1e-12
    if p != 0.5: assert (flip_posterior(m, V, 1 - p).log_prob(V[:, None]) - bayes).abs().max() > 0.1


@pytest.mark.parametrize("hidden", ["bernoulli", "spin"])
def test_a_noised_gaussian_machine_is_a_boltzmann_machine(hidden):
    m, S, x = machine(5, 3, "gaussian", hidden), states(3, hidden)[:, None], noise(6, 5)
    for alpha, sigma in ((0.7, 0.6), (1.0, 3.0), (0.0, 1.0), (1.0, 0.0)):
        log_z = m.log_partition() + torch.sqrt(alpha**2 + (sigma / m.sigma) ** 2).log().sum()
        log_p = torch.logsumexp(-noised_energy(m, x, S, alpha, sigma), 0) - log_z
        assert (log_p - oracle(m).log_prob(x, alpha, sigma)).abs().max() < 1e-12
    assert hidden_couplings(m, 1.0, 0.0)[0].abs().max() == 0
    K, _ = hidden_couplings(m, 1.0, 1e6)
    assert (K - m.W.T @ (m.W / m.sigma[:, None] ** 2)).abs().max() < 1e-9


# A diffusion model

def test_it_samples_and_scores_like_a_diffusion_model():
    m, schedule, V = machine(4, 2, scale=1.5), LinearBeta(), states(4)
    p, grid = m.log_prob(V).exp(), time_grid(schedule, 40, kind="quadratic")
    for solve in (ddim, deis):
        x = solve(machine_predictor(m, schedule), schedule, noise(4000, 4), grid)
        e = drift((x > 0.5 * schedule.alpha(grid[-1])).double(), p)
        assert abs(e.z(0)) < 4 and e.stderr < 0.01
    for cosine in (Cosine(), Geometric(0.01, 1e5)):
        x, t = V[:4] + 0.3 * noise(4, 4), float(cosine.t_of_rho(0.3))
        flow = log_likelihood(machine_predictor(m, cosine), cosine, x, t_min=t, nodes=48)
        assert (flow.log_prob - log_prob(m, x, 1.0, 0.3)).abs().max() < 1e-3
    discrete = log_prob(m, x, 1.0, 0.3) + posterior(m, x, 1.0, 0.3).log_prob(V[:4])
    discrete = discrete - torch.distributions.Normal(V[:4], 0.3).log_prob(x).sum(-1)
    assert (discrete - m.log_prob(V[:4])).abs().max() < 1e-12


def test_draws_make_long_steps_exact_and_means_do_not():
    m, schedule, V = machine(4, 2, scale=1.5), LinearBeta(), states(4)
    p, grid = m.log_prob(V).exp(), torch.tensor([1.0, 0.4, 0.01], dtype=torch.float64)
    found = []
    for predict in (WarmGibbs(m, schedule, steps=60, average=False, generator=seeded(7)),
                    machine_predictor(m, schedule)):
        x = ancestral(predict, schedule, noise(20000, 4), grid, generator=seeded(8))
        found.append(drift((x > schedule.alpha(0.01) / 2).double(), p))
    assert abs(found[0].z(0)) < 4 and found[0].stderr < 0.004 and found[1].z(0) > 10


def test_warm_chains_remember_and_their_mean_is_the_denoiser():
    m, schedule, x = machine(5, 3, scale=0.5), LinearBeta(), noise(2000, 5)
    warm = WarmGibbs(m, schedule, chains=2, steps=5, generator=seeded(9))
    for _ in range(12): eps = warm(x[:1].expand(2000, -1), 0.3)
    assert warm.v.shape == (2, 2000, 5)
    exact = machine_predictor(m, schedule)(x[:1], 0.3)[0]
    assert ((eps.mean(0) - exact) / (eps.std(0) / 2000**0.5)).abs().max() < 4.5
    rows = x[:1].expand(2000, -1)
    for mean in (lambda k: WarmGibbs(m, schedule, chains=k, generator=seeded(11))(rows, 0.3),
                 lambda k: denoise(m, rows, ALPHA, SIGMA, "gibbs", steps=1, chains=k,
                                   generator=seeded(12))):
        assert mean(8).var(0).sum() < mean(1).var(0).sum() / 6
    again = WarmGibbs(m, schedule, chains=2, v=warm.v, generator=seeded(10))
    other = WarmGibbs(m, schedule, chains=2, v=1 - warm.v, generator=seeded(10))
    assert not torch.equal(again(x, 0.9), other(x, 0.9))


# Log Z from the path

@pytest.mark.parametrize("visible, hidden", DISCRETE)
def test_log_z_from_denoising_errors(visible, hidden):
    m = machine(4, 3, visible, hidden, scale=0.4)
    log_z = m.log_partition().item()
    for k in (0, 9):
        v = states(4, visible)[k].repeat(600, 1)
        for options in (dict(method="exact"), dict(steps=3, burn_in=50)):
            e = path_log_z(m, v, 16, generator=seeded(k), **options)
            assert abs(e.z(log_z)) < 4 and e.stderr < 0.1 and e.n == 600
            assert abs(e.z(log_z + 0.6)) > 4


def test_more_levels_give_less_variance_and_no_bias():
    m, v = machine(5, 3), states(5)
    errors = [path_log_z(m, v, n, "exact", generator=seeded(1)) for n in (4, 256)]
    assert errors[1].stderr < errors[0].stderr / 3 and abs(errors[1].z(m.log_partition().item())) < 4


def test_two_chains_leave_no_bias_in_a_squared_error_and_one_does():
    m, v = machine(5, 3, scale=0.5), states(5)[[0, 7, 26]].repeat(4000, 1)
    x = 2**0.5 * v + noise(len(v), 5)
    one, two = _two_means(posterior(m, x, 2**0.5, 1.0), v, "gibbs", 2, 25, seeded(4))
    exact = denoise(m, x, 2**0.5, 1.0)
    truth = _half_error(v, exact, exact)
    excess = [Estimate.of(_half_error(v, one, other) - truth) for other in (two, one)]
    assert abs(excess[0].z(0)) < 4 and excess[1].z(0) > 8


def test_a_stuck_path_measures_its_mode():
    m = machine(8, 1, "spin", "spin", scale=0.0)
    m.W.data += 2.0
    m.c.data += 0.7
    V = states(8, "spin")
    p = m.log_prob(V).exp()
    weight, gap = p[V.sum(1) > 0].sum().log().item(), 1 - spectrum(m)[1]
    v = torch.full((300, 8), -1.0, dtype=torch.float64)
    stuck, exact = (path_log_z(m, v, 32, method, steps=5, burn_in=5, generator=seeded(2))
                    for method in ("gibbs", "exact"))
    down = math.log(1 - math.exp(weight))
    assert gap < 1e-4 and abs(stuck.value - m.log_partition().item() - down) < 0.3
    assert abs(exact.z(m.log_partition().item())) < 4


# Every kind of unit

FINITE = [Discrete((0, 2)), Discrete((-1, 3), 0.5), Potts(3), Discrete((-1, 0, 1), 0.3), Binomial(3)]
MORE = FINITE[3:]                                                        # one level of noise a call
REAL = [Gaussian(), ReLU()]
LIKE = {"dtype": torch.float64}


@dataclass(frozen=True)
class Heavy(Discrete):
    """A kind of a user's own: states far from zero have more weight."""

    def log_weights(self, v): return 0.3 * v**2

    def weight_slope(self, v): return 0.6 * v


OWN = Heavy((-1, 0.5, 2))


def nodes(m):
    """Visible states [N, D] and the logarithms [N] of their weights in a sum or a quadrature."""
    if m.visible.n_states is not None:
        V = states(len(m.b), m.visible)
        return V, torch.zeros(len(V), **LIKE)
    place, weight = np.polynomial.legendre.leggauss(400)
    low = 0.0 if m.visible.lowest == 0 else -12.0
    x, w = (torch.from_numpy(a) * (12 - low) / 2 for a in (place, weight))
    assert len(m.b) == 1
    return (x + (12 + low) / 2)[:, None], w.log()


def small(visible, hidden="bernoulli", seed=3):
    """A machine with two units that can be listed, or one that is integrated."""
    D = 1 if visible.n_states is None else 2 * visible.columns
    return machine(D, 3, visible, hidden, seed=seed, scale=0.5)


@pytest.mark.parametrize("hidden", ["bernoulli", Potts(3)], ids=str)
@pytest.mark.parametrize("visible", [*FINITE, OWN, *REAL], ids=str)
def test_posterior_density_mean_and_score_of_every_kind(visible, hidden):
    m = small(visible, hidden)
    V, log_w = nodes(m)
    x = noise(6, len(m.b)).requires_grad_()

    def table(sigma):
        at = torch.distributions.Normal(ALPHA * V[:, None], sigma).log_prob(x).sum(-1)
        return m.log_prob(V)[:, None] + log_w[:, None] + at

    log_p, bayes = table(SIGMA).logsumexp(0), table(SIGMA).log_softmax(0)
    held = posterior(m, x, ALPHA, SIGMA)
    # of densities, on their own scale
    seen = (bayes - log_w[:, None]).exp()
    assert (held.log_prob(V[:, None]).exp() - seen).abs().max() < 1e-12
    assert (held.log_prob(V[:, None]).exp() - table(1.2 * SIGMA).softmax(0)).abs().max() > 1e-2
    assert (log_prob(m, x, ALPHA, SIGMA) - log_p).abs().max() < 1e-12
    assert (log_prob(m, x, ALPHA, SIGMA) - table(1.2 * SIGMA).logsumexp(0)).abs().max() > 1e-2
    assert (denoise(m, x, ALPHA, SIGMA) - bayes.exp().T @ V).abs().max() < 1e-12
    assert (denoise(m, x, ALPHA, SIGMA) - denoise(m, x, ALPHA, 1.2 * SIGMA)).abs().max() > 1e-2
    slope, = torch.autograd.grad(log_p.sum(), x)
    assert (score(m, x, ALPHA, SIGMA) - slope).abs().max() < 1e-11
    assert (score(m, x, ALPHA, SIGMA) + slope).abs().max() > 1e-2


@pytest.mark.parametrize("visible", [*FINITE, OWN, *REAL, Potts(2)], ids=str)
def test_the_noised_density_integrates_to_one(visible):
    """In one dimension, or two for a pair of colours; the control leaves the posterior out."""
    D = visible.columns
    if D > 2: return
    m = machine(D, 3, visible, scale=0.5)
    line = torch.arange(-16, 16, 0.1, **LIKE)
    x = line[:, None] if D == 1 else torch.cartesian_prod(line, line)
    total = log_prob(m, x, ALPHA, SIGMA).exp().sum() * 0.1**D
    assert abs(total - 1) < 1e-12
    v = nodes(m)[0][3 % m.visible.n_states] if m.visible.n_states else torch.ones(1, **LIKE)
    alone = m.log_prob(v) + torch.distributions.Normal(ALPHA * v, SIGMA).log_prob(x).sum(-1)
    assert abs(alone.exp().sum() * 0.1**D - 1) > 0.1


@pytest.mark.parametrize("visible", [*FINITE, OWN, *REAL], ids=str)
def test_chains_warm_chains_and_predictors_of_every_kind(visible):
    m, schedule, t = small(visible), LinearBeta(), 0.3
    x = noise(1, len(m.b))
    exact = machine_predictor(m, schedule)(x, t)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    assert (exact + sigma * score(m, x, alpha, sigma)).abs().max() < 1e-12
    rows = x.expand(3000, -1)
    for predict in (machine_predictor(m, schedule, "gibbs", steps=3, burn_in=30, generator=1),
                    WarmGibbs(m, schedule, steps=30, average=False, generator=2)):
        eps = predict(rows, t)
        stderr = eps.std(0) / 3000**0.5
        assert ((eps.mean(0) - exact) / stderr).abs().max() < 4.5 and stderr.max() < 0.05
        assert ((eps.mean(0) + exact) / stderr).abs().max() > 8


@pytest.mark.parametrize("visible", [*FINITE, OWN, *REAL], ids=str)
def test_mean_field_becomes_exact_for_small_weights_and_tap_says_what_it_needs(visible):
    m, x = small(visible), noise(3, len(small(visible).b))
    errors = []
    for size in (0.04, 0.02):
        held = m.sharing(W=size * m.W)
        errors.append((denoise(held, x, ALPHA, SIGMA, "mean_field")
                       - denoise(held, x, ALPHA, SIGMA)).norm())
    assert math.log2(errors[0] / errors[1]) > 1.7
    if m.visible.spread is not None: return
    with pytest.raises(ValueError, match="tap"): denoise(m, x, ALPHA, SIGMA, "tap")


@pytest.mark.parametrize("visible", [*MORE, OWN, *REAL], ids=str)
def test_kinds_that_change_with_the_noise_take_one_level_a_call(visible):
    m, two = small(visible), torch.ones(2, **LIKE)
    x = noise(2, len(m.b))
    assert (denoise(m, x, 0.0, 1.0) - exact_mean(m)).abs().max() < 1e-12
    with pytest.raises(ValueError, match="alpha, sigma must be numbers"): posterior(m, x, two, 1.0)


@pytest.mark.parametrize("visible", [Potts(3), Discrete((-1, 3), 0.5)], ids=str)
def test_two_levels_and_colours_take_a_level_a_row(visible):
    m, sigma = small(visible), torch.tensor([0.3, 1.0, 4.0], **LIKE)
    x = noise(3, len(m.b))
    one = [denoise(m, x[i:i + 1], ALPHA, float(sigma[i])) for i in range(3)]
    assert (denoise(m, x, ALPHA, sigma) - torch.cat(one)).abs().max() < 1e-12


def test_counts_without_a_limit_have_no_posterior_of_their_kind():
    with pytest.raises(ValueError, match=r"rbm must have visible units with a posterior.*poisson"):
        posterior(machine(2, 2, Poisson()), noise(3, 2), 1.0, 1.0)


@pytest.mark.parametrize("p", [0.1, 0.7])
@pytest.mark.parametrize("visible", [Discrete((0, 2)), Discrete((-1, 3), 0.5), Potts(3), Potts(2)],
                         ids=str)
def test_flips_and_new_colours_have_the_posterior_of_bayes(visible, p):
    m = small(visible)
    V, q = states(len(m.b), visible), visible.n_states
    same = (V[:, None] == V).unflatten(-1, (-1, visible.columns)).all(-1).double()
    # a colour may be redrawn as itself
    keep = 1 - p + p / q if visible.columns > 1 else 1 - p
    log_q = torch.log(same * keep + (1 - same) * (1 - keep) / (q - 1)).sum(-1)
    bayes = (m.log_prob(V)[:, None] + log_q).log_softmax(0)
    assert (log_q.exp().sum(1) - 1).abs().max() < 1e-12
    assert (flip_posterior(m, V, p).log_prob(V[:, None]) - bayes).abs().max() < 1e-12
    assert (flip_posterior(m, V, 1 - p).log_prob(V[:, None]) - bayes).abs().max() > 0.1


def test_log_z_of_any_two_levels_from_the_path():
    m = machine(3, 2, Discrete((-1, 3), 0.5), scale=0.3)
    V = states(3, m.visible)[[0, 5]]
    for v in V:
        e = path_log_z(m, v.repeat(500, 1), 24, "exact", generator=seeded(1))
        assert abs(e.z(m.log_partition().item())) < 4 and e.stderr < 0.1
        assert abs(e.z(m.log_partition().item() + 0.6)) > 4


# A stream a sample

@pytest.mark.parametrize("visible", ["bernoulli", "gaussian", Potts(3), Discrete((-1, 0, 1)), ReLU()],
                         ids=str)
def test_a_stream_a_sample_makes_samples_independent_of_their_batch(visible):
    m, schedule = small(as_unit("visible", visible)), LinearBeta()
    x = noise(4, len(m.b))
    options = dict(steps=3, burn_in=2, chains=2)
    draws = {
        "denoise": lambda x, g: denoise(m, x, ALPHA, SIGMA, "gibbs", generator=g, **options),
        "score": lambda x, g: score(m, x, ALPHA, SIGMA, "gibbs", generator=g, **options),
        "predictor": lambda x, g: machine_predictor(m, schedule, "gibbs", generator=g, **options)(
            x, 0.4
        ),
        "warm": lambda x, g: WarmGibbs(m, schedule, 2, 3, generator=g)(x, 0.4),
        "draw": lambda x, g: WarmGibbs(m, schedule, 2, 3, False, generator=g)(x, 0.4),
    }
    for f in draws.values():
        together = f(x, [seeded(i) for i in range(4)])
        alone = torch.cat([f(x[i:i + 1], [seeded(i)]) for i in range(4)])
        assert (together - alone).abs().max() < 1e-12
        assert not torch.equal(together, f(x, [seeded(i + 9) for i in range(4)]))
        assert torch.equal(f(x, 3), f(x, seeded(3)))
        with pytest.raises(ValueError, match="generator"): f(x, [seeded(0), seeded(1)])


def test_a_predictor_goes_on_where_its_generator_stands():
    m, x = machine(5, 3), noise(4, 5)
    predict = machine_predictor(m, LinearBeta(), "gibbs", steps=1, burn_in=0, generator=3)
    assert not torch.equal(predict(x, 0.5), predict(x, 0.5))             # a seed is used once


@pytest.mark.parametrize("method", ["gibbs", "exact"])
def test_log_z_from_a_stream_a_row_is_the_mean_of_the_rows_alone(method):
    m, v = machine(5, 3), states(5)[[1, 7, 30]]
    options = dict(levels=6, method=method, steps=3, burn_in=2)
    three = path_log_z(m, v, generator=[seeded(i) for i in range(3)], **options)
    pairs = [path_log_z(m, v[[i, j]], generator=[seeded(i), seeded(j)], **options).value
             for i, j in ((0, 1), (1, 2), (2, 0))]
    assert abs(three.value - sum(pairs) / 3) < 1e-12
    assert path_log_z(m, v, generator=3, **options) == path_log_z(m, v, generator=seeded(3), **options)


# A machine that a notebook made

def test_a_machine_of_another_class_is_a_machine():
    spec = importlib.util.spec_from_file_location("rbmdiff.models.again", rbm_module.__file__)
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    m, x = machine(5, 3), noise(4, 5)
    other = again.RBM(5, 3, dtype=torch.float64).requires_grad_(False)
    other.load_state_dict(m.state_dict())
    assert not isinstance(other, RBM) and type(posterior(other, x, 1.0, 1.0)) is again.RBM
    for f in (log_prob, denoise, score):
        assert torch.equal(f(other, x, ALPHA, SIGMA), f(m, x, ALPHA, SIGMA))
    for predict in (machine_predictor, WarmGibbs):
        pair = [predict(one, LinearBeta(), generator=1)(x, 0.3) for one in (other, m)]
        assert torch.equal(*pair)
    pair = [path_log_z(one, states(5)[:4], 4, "exact", generator=1) for one in (other, m)]
    assert pair[0] == pair[1]


# Types and devices

@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("visible, hidden", PAIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_types_and_devices(visible, hidden, dtype, device):
    truth = machine(5, 3, visible, hidden, scale=0.5)
    m, x = machine(5, 3, visible, hidden, scale=0.5, dtype=dtype), noise(6, 5, dtype=dtype)
    for a, b in zip(m.parameters(), truth.parameters()): a.data = b.data.to(dtype)
    m, at, g = m.to(device), x.to(device), torch.Generator(device).manual_seed(0)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    for method in ("exact", "mean_field", "tap"):
        y = denoise(m, at, ALPHA, SIGMA, method)
        assert y.dtype == dtype and y.device == at.device
        assert (y.cpu() - denoise(truth, x.double(), ALPHA, SIGMA, method)).abs().max() < tolerance
    assert (log_prob(m, at, ALPHA, SIGMA).cpu()
            - log_prob(truth, x.double(), ALPHA, SIGMA)).abs().max() < 10 * tolerance
    assert denoise(m, at, ALPHA, SIGMA, "gibbs", steps=3, generator=g).dtype == dtype
    warm = WarmGibbs(m, LinearBeta(), generator=g)
    assert warm(at, 0.5).dtype == dtype and warm.v.dtype == dtype
    if visible == "gaussian": return
    v = (at > 0).to(dtype) if visible == "bernoulli" else (at > 0).to(dtype) * 2 - 1
    assert flip_posterior(m, v, 0.1).b.dtype == dtype
    assert abs(path_log_z(m, v, 32, "exact", generator=g).z(truth.log_partition().item())) < 5


# Bad input

M, N, LARGE = machine(4, 3), machine(4, 3, "gaussian"), machine(30, 30)
X, V = noise(2, 4), states(4)


@pytest.mark.parametrize("call, name", [
    (lambda: posterior(M.W, X, 1.0, 1.0), "rbm"), (lambda: posterior(M.tilt(X), X, 1.0, 1.0), "rbm"),
    (lambda: posterior(M, X[0], 1.0, 1.0), "x"), (lambda: posterior(M, X[:, :3], 1.0, 1.0), "x"),
    (lambda: posterior(M, X.float(), 1.0, 1.0), "x"), (lambda: posterior(M, X / 0, 1.0, 1.0), "x"),
    (lambda: posterior(M, X.tolist(), 1.0, 1.0), "x"),
    (lambda: posterior(M, X, -1.0, 1.0), "alpha"), (lambda: posterior(M, X, math.nan, 1.0), "alpha"),
    (lambda: posterior(M, X, 1.0, 0.0), "sigma"), (lambda: posterior(M, X, 1.0, math.inf), "sigma"),
    (lambda: posterior(M, X, 1.0, torch.tensor([1.0, 0.0])), "sigma"),
    (lambda: posterior(M, X, torch.ones(3), 1.0), "alpha"),
    (lambda: posterior(N, X, torch.ones(2), 1.0), "alpha"),
    (lambda: denoise(M, X, 1.0, 1.0, "bethe"), "method"),
    (lambda: denoise(M, X, 1.0, 1.0, "gibbs", steps=0), "steps"),
    (lambda: denoise(M, X, 1.0, 1.0, "gibbs", burn_in=-1), "burn_in"),
    (lambda: denoise(M, X, 1.0, 1.0, "gibbs", chains=0), "chains"),
    (lambda: denoise(M, X, 1.0, 1.0, steps=1.5), "steps"),
    (lambda: denoise(LARGE, noise(2, 30), 1.0, 1.0), "method='gibbs'"),
    (lambda: score(LARGE, noise(2, 30), 1.0, 1.0), "method='gibbs'"),
    (lambda: log_prob(LARGE, noise(2, 30), 1.0, 1.0), "learning.partition.ais"),
    (lambda: path_log_z(LARGE, torch.ones(2, 30, dtype=torch.float64), method="exact"),
     "method='gibbs'"),
    (lambda: flip_posterior(N, X, 0.1), "rbm"), (lambda: flip_posterior(M, X, 0.1), "v"),
    (lambda: flip_posterior(M, V[0], 0.1), "v"), (lambda: flip_posterior(M, V, 0.0), "p must"),
    (lambda: flip_posterior(M, V, 1.0), "p must"), (lambda: flip_posterior(M.tilt(X), V, 0.1), "rbm"),
    (lambda: flip_posterior(machine(4, 3, "binomial(2)"), V, 0.1), "of two levels"),
    (lambda: flip_posterior(machine(6, 3, "potts(3)"), noise(2, 6), 0.1), "v must hold one 1"),
    (lambda: hidden_couplings(M, 1.0, 1.0), "rbm"), (lambda: hidden_couplings(N, -1.0, 1.0), "alpha"),
    (lambda: hidden_couplings(N, 1.0, math.nan), "sigma"),
    (lambda: noised_energy(N, X, X[:, :2], 1.0, 1.0), "h must"),
    (lambda: noised_energy(N, X, X[:, :3], 0.0, 0.0), "alpha"),
    (lambda: path_log_z(N, X), "rbm"), (lambda: path_log_z(M, V[:1]), "v must"),
    (lambda: path_log_z(M, X), "v must"),
    (lambda: path_log_z(M, V, levels=1), "levels"), (lambda: path_log_z(M, V, method="bethe"), "method"),
    (lambda: WarmGibbs(M, LinearBeta(), chains=0), "chains"),
    (lambda: WarmGibbs(M, LinearBeta(), steps=0), "steps"),
    (lambda: WarmGibbs(M, LinearBeta(), v=X), "v must"),
    (lambda: WarmGibbs(M, LinearBeta(), v=V[None])(X, 0.5), "v must"),
])
def test_bad_input_is_refused(call, name):
    with pytest.raises((TypeError, ValueError), match=name): call()


@pytest.mark.parametrize("method", ["exact", "gibbs", "mean_field", "tap"])
@pytest.mark.parametrize("bad", ["W", "b", "c"])
def test_parameters_that_are_no_numbers_are_named(method, bad):
    rbm = machine(4, 3)
    getattr(rbm, bad).view(-1)[0] = math.nan
    x = torch.zeros(2, 4, dtype=torch.float64)
    calls = [lambda: denoise(rbm, x, 0.5, 0.5, method), lambda: score(rbm, x, 0.5, 0.5, method),
             lambda: log_prob(rbm, x, 0.5, 0.5), lambda: path_log_z(rbm, x, method=method),
             lambda: posterior(rbm, x, 0.5, 0.5)]
    for call in calls:
        with pytest.raises(ValueError, match=rf"^rbm must have finite parameters, .*\['{bad}'\]"): call()
