"""All pairs of nine kinds of unit, against tables and quadrature; own kinds of a user; what is refused.
"""
from dataclasses import dataclass
from functools import cache
import math

import numpy as np
import pytest
import torch

from machines import seeded
from rbmdiff.bridge import tilted
from rbmdiff.diffusion.schedule import LinearBeta
from rbmdiff.foundations.core import Estimate
from rbmdiff.foundations.kernels import draw_bits
from rbmdiff.foundations.units import (
    Bernoulli,
    Binomial,
    Discrete,
    Gaussian,
    Poisson,
    Potts,
    ReLU,
    Spin,
    as_unit,
    states,
)
from rbmdiff.learning.contrastive import cd_gradient, centred, exact_gradient, expected_cd_gradient
from rbmdiff.learning.partition import ais, log_likelihood, reverse_ais
from rbmdiff.models.rbm import RBM
from rbmdiff.sampling import means
from rbmdiff.sampling.diagnostics import drift, state_numbers
from rbmdiff.sampling.gibbs import (
    gibbs,
    gibbs_chain,
    scan_gibbs,
    spectrum,
    transition_matrix,
    unit_field,
)

f64 = torch.float64
FINITE = [Bernoulli(), Spin(), Discrete((-1.0, 0.0, 1.0)), Discrete((-1.5, 0.0, 2.0), 0.6), Potts(3),
          Binomial(3)]
UNITS = [*FINITE, Poisson(), Gaussian(), ReLU()]
FREE = {Gaussian(), ReLU(), Poisson()}
PAIRS = [(v, h) for v in UNITS for h in UNITS if {v, h} != {Poisson(), Gaussian()}]
LISTED = [(v, h) for v, h in PAIRS if not {v, h} <= FREE]
BOTH = [(v, h) for v in FINITE for h in FINITE]


def pairs(chosen):
    return pytest.mark.parametrize("visible, hidden", chosen, ids=[f"{v}-{h}" for v, h in chosen])


def machine(visible, hidden, scale=0.25, seed=0):
    """Two units a layer; unbounded layers, of which one counts, can only push each other down."""
    g = seeded(seed)
    rbm = RBM(2 * visible.columns, 2 * hidden.columns, visible, hidden, dtype=f64).requires_grad_(False)
    for p in rbm.parameters():
        p.copy_(scale * torch.randn(p.shape, dtype=f64, generator=g))
    if Poisson() in (visible, hidden) and {visible, hidden} <= FREE: rbm.W.abs_().neg_()
    return rbm


@cache
def axis(unit):
    """States [T, columns] of one unit, listed or as Gauss-Legendre nodes, and their log cells."""
    if unit.n_states: return states(unit.columns, unit), torch.zeros(unit.n_states, dtype=f64)
    if unit == Poisson(): return torch.arange(60, dtype=f64)[:, None], torch.zeros(60, dtype=f64)
    low = 0.0 if unit.lowest == 0 else -16.0
    x, w = (torch.tensor(a) for a in np.polynomial.legendre.leggauss(90 if low == 0 else 150))
    half = (16 - low) / 2
    return (low + half * (1 + x))[:, None], (half * w).log()


def layer(unit):
    """All states of two units, [T², 2 columns], and the logarithms of their cells."""
    x, cell = axis(unit)
    T = len(x)
    both = torch.cat([x[:, None].expand(T, T, -1), x.expand(T, T, -1)], -1)
    return both.reshape(T * T, -1), (cell[:, None] + cell).flatten()


def draws(unit, n, seed=3):
    """States of two units without fields."""
    width = torch.ones(1, dtype=f64) if unit.wide else None
    fields = torch.zeros(n, 2 * unit.columns, dtype=f64)
    return unit.draw(fields, torch.zeros(1, dtype=f64), seeded(seed), width)


def close(a, b, tol=1e-12):
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


# every pair

@pairs(PAIRS)
def test_free_energies_are_sums_over_the_other_layer(visible, hidden):
    rbm = machine(visible, hidden)
    v, h = draws(visible, 3), draws(hidden, 3)
    (V, v_cell), (S, h_cell) = layer(visible), layer(hidden)
    close(rbm.free_energy(v), -torch.logsumexp(h_cell - rbm.energy(v[:, None], S), 1))
    close(rbm.hidden_free_energy(h), -torch.logsumexp(v_cell - rbm.energy(V, h[:, None]), 1))


@pairs(PAIRS)
def test_score_is_the_slope_of_the_free_energy(visible, hidden):
    rbm, v = machine(visible, hidden), (0.3 * draws(visible, 4) + 0.2).requires_grad_()
    slope, = torch.autograd.grad(-rbm.free_energy(v).sum(), v)
    close(rbm.score(v.detach()), slope, 1e-11)
    assert (rbm.score(v.detach()) + slope).abs().max() > 1e-3


@pairs(PAIRS)
def test_draws_have_the_means_of_the_conditionals(visible, hidden):
    rbm, g, n = machine(visible, hidden, scale=0.5), seeded(11), 3000
    v, h = draws(visible, 1), draws(hidden, 1)
    up, down = rbm.sample_hidden(v.expand(n, -1), g), rbm.sample_visible(h.expand(n, -1), g)
    hidden.check("h", up)
    visible.check("v", down)
    for sample, mean in ((up, rbm.hidden_mean(v)[0]), (down, rbm.visible_mean(h)[0])):
        found = [Estimate.of(column) for column in sample.T]
        assert max(abs(e.z(m)) for e, m in zip(found, mean.tolist())) < 4
        assert max(e.stderr / (1 + abs(e.value)) for e in found) < 0.06


@pairs(PAIRS)
def test_tilt_reweights(visible, hidden):
    rbm, v = machine(visible, hidden), draws(visible, 6)
    field = 0.2 * torch.randn(2, v.shape[-1], dtype=f64, generator=seeded(5))
    shift = rbm.tilt(field).free_energy(v[:, None]) - (rbm.free_energy(v)[:, None] - v @ field.T)
    assert (shift - shift[0]).abs().max() < 1e-11
    other = rbm.tilt(-field).free_energy(v[:, None]) - (rbm.free_energy(v)[:, None] - v @ field.T)
    assert (other - other[0]).abs().max() > 1e-2 or len(v.unique(dim=0)) == 1


# pairs of which one layer can be listed

@pairs(LISTED)
def test_log_partition_is_the_sum_over_the_other_layer_too(visible, hidden):
    rbm = machine(visible, hidden)
    (V, v_cell), (S, h_cell) = layer(visible), layer(hidden)
    if rbm.by_hidden: other = torch.logsumexp(v_cell - rbm.free_energy(V), 0)
    else: other = torch.logsumexp(h_cell - rbm.hidden_free_energy(S), 0)
    close(rbm.log_partition(), other)


@pairs(LISTED)
def test_exact_gradient_and_mean_are_slopes(visible, hidden):
    rbm, v = machine(visible, hidden).requires_grad_(), draws(visible, 5)
    names, parameters = zip(*rbm.named_parameters())
    slopes = torch.autograd.grad(rbm.log_prob(v).mean(), parameters)
    ours = exact_gradient(rbm, v)
    assert list(ours) == list(names)
    for name, slope in zip(names, slopes): close(ours[name], slope, 1e-10)
    V, cell = layer(visible)
    with torch.no_grad(): p = torch.softmax(cell - rbm.free_energy(V), 0)
    close(means.exact_mean(rbm).detach(), p @ V, 1e-10)


@pairs(LISTED)
def test_annealing_finds_log_partition(visible, hidden):
    rbm = machine(visible, hidden)
    truth = rbm.log_partition().item()
    up = ais(rbm, 400, 20, seeded(2), base=rbm.b)
    down = reverse_ais(rbm, rbm.sample(400, generator=seeded(3)), 20, seeded(4), base=rbm.b)
    for z in (up, down): assert abs(z.z(truth)) < 4 and z.stderr < 0.05
    assert abs(Estimate(up.value, up.stderr, 400).z(truth + 0.3)) > 4


# pairs of which both layers can be listed

def largest_z(found, truth):
    """Largest |z| of the means of gradients `found`, exact where nothing varies, and largest error."""
    z, error = 0.0, 0.0
    for name, t in truth.items():
        x = torch.stack([d[name] for d in found])
        stderr = x.std(0) / len(found) ** 0.5
        fixed = stderr < 1e-9
        if bool(fixed.any()): z = max(z, 1e6 * (x.mean(0) - t)[fixed].abs().max().item())
        if not bool(fixed.all()): z = max(z, ((x.mean(0) - t) / stderr)[~fixed].abs().max().item())
        error = max(error, stderr.max().item())
    return z, error


@pairs(BOTH)
def test_contrastive_divergence_has_its_expectation(visible, hidden):
    rbm, other, g = machine(visible, hidden, 0.7), machine(visible, hidden, 0.7), seeded(6)
    other.c += 0.4 * torch.arange(len(other.c))
    v = draws(visible, 4)
    found = [cd_gradient(rbm, v.repeat(100, 1), 1, generator=g)[0] for _ in range(60)]
    z, error = largest_z(found, expected_cd_gradient(rbm, v))
    assert z < 4 and error < 0.04 and largest_z(found, expected_cd_gradient(other, v))[0] > 4


@pairs(BOTH)
def test_block_steps_leave_the_distribution_alone(visible, hidden):
    rbm = machine(visible, hidden, 0.7)
    p = rbm.log_prob(layer(visible)[0]).exp()
    order = state_numbers(layer(visible)[0], visible)
    p = torch.zeros_like(p).index_put((order,), p)
    start = rbm.sample(2**12, generator=seeded(7))
    stay = drift(gibbs(rbm, start, 2, 8), p, visible)
    wrong = drift(gibbs(machine(visible, hidden, 0.7, 1), start, 9, 8), p, visible)
    assert abs(stay.z(0)) < 4 and stay.stderr < 0.01 and wrong.z(0) > 4
    assert (p @ transition_matrix(rbm) - p).abs().max() < 1e-14


# numbers from elsewhere, and pairs that have none

def test_numbers_of_a_machine_of_colours():
    rbm = RBM(6, 2, Potts(3), dtype=f64).requires_grad_(False)
    i, k = torch.meshgrid(torch.arange(2.0, dtype=f64), torch.arange(3.0, dtype=f64), indexing="ij")
    j = torch.arange(2.0, dtype=f64)
    rbm.W.copy_(torch.sin(i[..., None] + 2 * k[..., None] + 3 * j).view(6, 2))
    rbm.b.copy_(torch.cos(i + k).flatten())
    rbm.c.copy_(torch.tensor([0.1, -0.2], dtype=f64))
    assert rbm.log_partition().item() == pytest.approx(4.338482246616446, abs=1e-13)
    first = torch.tensor([1.0, 0, 0, 1, 0, 0], dtype=f64)
    assert rbm.log_prob(first).exp().item() == pytest.approx(0.3131410141419033, abs=1e-13)


def test_numbers_of_a_machine_of_counts():
    rbm = RBM(2, 2, Poisson(), dtype=f64).requires_grad_(False)
    rbm.W.copy_(torch.tensor([[0.3, -0.4], [0.2, 0.5]], dtype=f64))
    rbm.b.copy_(torch.tensor([0.1, -0.3], dtype=f64))
    rbm.c.copy_(torch.tensor([0.2, -0.1], dtype=f64))
    assert rbm.log_partition().item() == pytest.approx(3.677448646419506, abs=1e-13)
    mean = torch.tensor([1.1415413765751368, 1.1283223217027314], dtype=f64)
    close(means.exact_mean(rbm), mean, 1e-13)
    found = [Estimate.of(x) for x in rbm.sample(20_000, generator=1).T]
    assert max(abs(e.z(m)) for e, m in zip(found, mean.tolist())) < 4


def test_number_of_two_real_units():
    rbm = RBM(1, 1, Gaussian(), ReLU(), dtype=f64).requires_grad_(False)
    for p, x in zip((rbm.W, rbm.b, rbm.c), (0.5, 0.3, 0.2)): p.fill_(x)
    assert rbm.log_partition().item() == pytest.approx(1.64323286857012, abs=1e-13)
    z = ais(rbm, 1000, 50, 3)
    assert abs(z.z(1.64323286857012)) < 4 and z.stderr < 0.03


WILD = [(Gaussian(), Gaussian(), 1.2), (Gaussian(), ReLU(), 1.2), (ReLU(), Gaussian(), 1.2),
        (ReLU(), ReLU(), 1.2), (Poisson(), Poisson(), 0.1), (Poisson(), ReLU(), 0.1),
        (Gaussian(), Poisson(), -0.1), (Poisson(), Gaussian(), 0.1)]


@pytest.mark.parametrize("visible, hidden, w", WILD, ids=[f"{v}-{h}" for v, h, _ in WILD])
def test_pairs_that_cannot_be_normalised_are_refused_with_the_number(visible, hidden, w):
    rbm = RBM(2, 2, visible, hidden, dtype=f64).requires_grad_(False)
    rbm.W.copy_(w * torch.eye(2))
    v = torch.ones(3, 2, dtype=f64)
    number = "inf" if Poisson() in (visible, hidden) else r"1\.44"
    for call in (rbm.log_partition, lambda: rbm.log_prob(v), lambda: ais(rbm, 5, 5),
                 lambda: reverse_ais(rbm, v, 5), lambda: gibbs(rbm, v, 1), lambda: gibbs_chain(rbm, v),
                 lambda: exact_gradient(rbm, v), lambda: rbm.sample(2, 3),
                 lambda: means.mean_field(rbm), lambda: means.gibbs_mean(rbm, v, 1)):
        with pytest.raises(ValueError, match=f"cannot be normalised.* {number}"): call()


# kinds of a user

class Dice(Discrete):
    """Three levels with weights of their own: a subclass that gives the weights and their slope."""

    def __init__(self):
        super().__init__((-0.5, 0.5, 2.0))

    def log_weights(self, v):
        return 0.4 * v - 0.1 * v**3

    def weight_slope(self, v):
        return 0.4 - 0.3 * v**2


@dataclass(frozen=True)
class Coin:
    """A bit that shows 0 or 2, with nothing but what a machine asks for."""
    wide = False
    growth = "bounded"
    lowest = -math.inf
    columns = 1
    n_states = 2
    levels = (0.0, 2.0)

    def energy(self, v, b, sigma=None): return -(v * b)
    def slope(self, v, y, sigma=None): return y
    def coupled(self, v, sigma=None): return v
    def log_norm(self, x, b=None, sigma=None): return torch.logaddexp(2 * x, torch.zeros_like(x))
    def mean(self, x, sigma=None): return 2 * torch.sigmoid(2 * x)
    def variance(self, x, sigma=None): return self.spread(self.mean(x))[0]
    def spread(self, m, sigma=None): return m * (2 - m), 1 - m
    def tilted(self, b, field, sigma=None): return b + field
    def observed(self, f, kappa, W, b, sigma=None): return {"b": b + f - kappa}
    def state(self, index, dtype): return 2 * index.to(dtype)

    def draw(self, x, bias, generator=None, sigma=None):
        return 2 * draw_bits(2 * (x + bias), torch.zeros(1, dtype=x.dtype), 0, generator)

    def check(self, name, v):
        if not bool(((v == 0) | (v == 2)).all()): raise ValueError(f"{name} must hold 0 or 2")


OWN = [Dice(), Coin()]
MIXED = [(Dice(), Coin()), (Coin(), Dice()), (Coin(), Coin()), (Dice(), Spin()), (Gaussian(), Coin()),
         (Coin(), ReLU())]


def names(chosen): return [f"{type(v).__name__}-{type(h).__name__}" for v, h in chosen]


def own_machine(visible, hidden, scale=0.6):
    g, rbm = seeded(0), RBM(3, 2, visible, hidden, dtype=f64).requires_grad_(False)
    for p in rbm.parameters(): p.copy_(scale * torch.randn(p.shape, dtype=f64, generator=g))
    return rbm


@pytest.mark.parametrize("visible, hidden", MIXED, ids=names(MIXED))
def test_a_user_writes_a_unit_and_everything_takes_it(visible, hidden):
    rbm, g = own_machine(visible, hidden), seeded(1)
    v = rbm.sample(50, generator=g)
    visible.check("v", v)
    log_z = rbm.log_partition().item()
    up = ais(rbm, 500, 15, g, base=rbm.b)
    down = reverse_ais(rbm, rbm.sample(500, generator=g), 15, g)
    assert abs(up.z(log_z)) < 4 and abs(down.z(log_z)) < 4
    assert log_likelihood(rbm, v, up).value == pytest.approx(rbm.log_prob(v).mean().item(), abs=0.3)
    own = RBM.sharing(rbm)
    own.requires_grad_()
    slopes = torch.autograd.grad(own.log_prob(v).mean(), tuple(own.parameters()))
    for ours, slope in zip(exact_gradient(rbm, v).values(), slopes): close(ours, slope, 1e-10)
    gradients, chains = cd_gradient(rbm, v, 2, generator=g)
    visible.check("chains", chains)
    assert centred(gradients, torch.zeros(3, dtype=f64), torch.zeros(2, dtype=f64))["W"].shape == (3, 2)
    assert next(gibbs_chain(rbm, v, g)).shape == v.shape
    exact = means.mean(rbm)
    many = rbm.tilt(torch.zeros(1500, 3, dtype=f64))
    found = [Estimate.of(x) for x in means.mean(many, "gibbs", steps=3, burn_in=400, generator=g).T]
    assert max(abs(e.z(m)) for e, m in zip(found, exact.tolist())) < 4
    assert means.mean(rbm, "mean_field").shape == (3,)
    if all(getattr(unit, "spread", None) for unit in (visible, hidden)):
        assert (means.tap(rbm) - exact).abs().max() < 0.3


FINITE_MIXED = [(v, h) for v, h in MIXED if {v, h} <= {*OWN, Spin()}]


@pytest.mark.parametrize("visible, hidden", FINITE_MIXED, ids=names(FINITE_MIXED))
def test_the_kernels_of_own_units(visible, hidden):
    rbm, V, g = own_machine(visible, hidden), states(3, visible), seeded(2)
    p = rbm.log_prob(V).exp()
    close(p.sum().item(), 1.0)
    T = transition_matrix(rbm)
    assert (p @ T - p).abs().max() < 1e-14 and spectrum(rbm)[0].item() == pytest.approx(1)
    start = V[torch.multinomial(p, 2**13, replacement=True, generator=g)]
    for sampled in (gibbs(rbm, start, 3, g), scan_gibbs(rbm.free_energy, start, 2, visible, g)):
        assert abs(drift(sampled, p, visible).z(0)) < 4
    assert unit_field(rbm.free_energy, V, 1, visible).shape[0] == len(V)
    v = V[[1, 4, 5]]
    draws_of_it = [cd_gradient(rbm, v.repeat(200, 1), 1, generator=g)[0] for _ in range(50)]
    z, error = largest_z(draws_of_it, expected_cd_gradient(rbm, v))
    assert z < 4 and error < 0.05


@pytest.mark.parametrize("visible, hidden", FINITE_MIXED, ids=names(FINITE_MIXED))
def test_own_units_under_noise(visible, hidden):
    rbm, V, g, alpha, sigma = own_machine(visible, hidden), states(3, visible), seeded(3), 0.7, 0.8
    x = torch.randn(4, 3, dtype=f64, generator=g).requires_grad_()
    noise = torch.distributions.Normal(alpha * V[:, None], sigma).log_prob(x).sum(-1)
    joint = rbm.log_prob(V)[:, None] + noise                                     # [states, rows of x]
    close(tilted.log_prob(rbm, x, alpha, sigma), joint.logsumexp(0), 1e-11)
    mean = joint.softmax(0).T @ V
    close(tilted.denoise(rbm, x, alpha, sigma), mean, 1e-11)
    slope, = torch.autograd.grad(joint.logsumexp(0).sum(), x)
    x = x.detach()
    close(tilted.score(rbm, x, alpha, sigma), slope, 1e-10)
    after = tilted.posterior(rbm, x, alpha, sigma).log_prob(V[:, None])
    close(after, joint.log_softmax(0).detach(), 1e-11)
    options = {"steps": 3, "burn_in": 20, "generator": g}
    sampled = tilted.denoise(rbm, x[:1].expand(1500, -1), alpha, sigma, "gibbs", **options)
    found = [Estimate.of(column) for column in sampled.T]
    assert max(abs(e.z(m)) for e, m in zip(found, mean[0].tolist())) < 4
    assert tilted.denoise(rbm, x, alpha, sigma, "mean_field").shape == x.shape
    predict = tilted.machine_predictor(rbm, LinearBeta())
    warm = tilted.WarmGibbs(rbm, LinearBeta(), steps=2, generator=g)
    assert predict(x, 0.4).shape == warm(x, 0.4).shape == x.shape
    if len(visible.levels) > 2: return
    flipped = sum(visible.levels) - V[[2]]
    p = tilted.flip_posterior(rbm, flipped, 0.2).log_prob(V).exp()
    wrong = (V != flipped).double().sum(-1)
    bayes = (rbm.log_prob(V) + wrong * math.log(0.2) + (3 - wrong) * math.log(0.8)).softmax(0)
    close(p, bayes, 1e-11)
    z = tilted.path_log_z(rbm, rbm.sample(300, generator=g), 16, "exact", generator=g)
    assert abs(z.z(rbm.log_partition().item())) < 4


def test_own_units_are_units():
    for unit in OWN: assert as_unit("unit", unit) is unit
    with pytest.raises(TypeError, match="^visible must be a unit .* got object without log_norm"):
        RBM(2, 2, object())
    with pytest.raises(ValueError, match="posterior of their own kind"):
        tilted.posterior(machine(Poisson(), Spin()), torch.zeros(1, 2, dtype=f64), 1.0, 1.0)
