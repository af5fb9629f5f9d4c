"""Errata of the sources: every entry of book/errata.md, the printed and the corrected form against an
independent truth.

A test is named by the id of its entry. The page states by how much the printed form misses and what the
corrected form stays below; `entry` asserts both, so that page, tests and package cannot drift apart.
"""
import graphlib
import itertools
import math
import re

import numpy as np
import pytest
import torch
from torch.distributions import AffineTransform, TransformedDistribution
from torch.nn.functional import softplus

from bookmaker import ROOT
from rbmdiff.diffusion.ddpm import linear_chain
from rbmdiff.diffusion.deis import deis, deis_coefficients
from rbmdiff.diffusion.likelihood import velocity
from rbmdiff.diffusion.objective import conditional_score, irreducible_loss
from rbmdiff.diffusion.oracle import Mixture, gaussian, gaussian_flow
from rbmdiff.diffusion.schedule import LinearBeta, LinearLogSNR, convert, diffuse, time_grid
from rbmdiff.diffusion.sde import (
    LinearSDE,
    critically_damped_langevin,
    path_kl,
    reverse_sde,
    scalar_sde,
    simulate,
)
from rbmdiff.diffusion.solvers import euler_maruyama
from rbmdiff.diffusion.weights import augmentation, exponential, is_monotone, level_masses, sech
from rbmdiff.foundations.core import Estimate, logit
from rbmdiff.foundations.data import binarize, digits
from rbmdiff.foundations.kernels import draw_bits
from rbmdiff.foundations.units import states
from rbmdiff.learning.contrastive import exact_gradient, expected_cd_gradient
from rbmdiff.learning.score_matching import explicit_loss
from rbmdiff.models.boltzmann import Boltzmann, couplings
from rbmdiff.models.deep import DBM
from rbmdiff.models.energy import grid, log_partition, log_probs, tempered
from rbmdiff.models.rbm import RBM
from rbmdiff.sampling.gibbs import conditionals, gibbs, transition_matrix, unit_field
from rbmdiff.sampling.langevin import level_variance

BLOCK = re.compile(r"^### ([A-E]\d+) ([a-z0-9-]+)\n(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\| \[([A-E]\d+)\]\(#([a-z0-9-]+)\) \| ([a-z0-9-]+) \| (.*?) \| (\w+) \|$",
                 re.MULTILINE)
MISS = re.compile(
    r"printed\s+form\s+misses\s+by\s+([\d.e+-]+),"
    r"\s+the\s+corrected\s+one\s+by\s+less\s+than\s+([\d.e+-]+\d)"
)
COUNT = re.compile(r"printed\s+form\s+has\s+(\d+),\s+the\s+corrected\s+one\s+none")
TEXT = (ROOT / "book/errata.md").read_text("utf8")
PAGE = {name: block for _, name, block in BLOCK.findall(TEXT)}
S = LinearBeta()
f64 = torch.float64


def claim(block):
    """What an entry says: by how much the print misses, and what the correction stays below."""
    if counted := COUNT.search(block): return float(counted[1]), 0.1
    return tuple(float(x) for x in MISS.search(block).groups())


@pytest.fixture
def entry(request):
    """Compare both forms of the entry that the test is named by with the truth, and the misses with
    those on the page.
    """
    name = request.node.name.removeprefix("test_").replace("_", "-")
    calls = []

    def compare(truth, printed, corrected):
        truth, printed, corrected = (torch.as_tensor(x, dtype=f64).detach()
                                     for x in (truth, printed, corrected))
        far, near = ((x - truth).abs().max().item() for x in (printed, corrected))
        stated, bound = claim(PAGE[name])
        assert near < bound, f"{name}: corrected form misses by {near:.3g}"
        assert far > 5 * bound, f"{name}: printed form passes, it misses by {far:.3g}"
        assert abs(far - stated) <= 0.051 * stated, (
            f"{name}: printed form misses by {far:.3g}, the page says {stated:g}"
        )
        calls.append(name)
    yield compare
    assert calls, f"{name}: nothing was compared"


def test_page_and_tests_have_the_same_entries():
    tests = {n.removeprefix("test_").replace("_", "-") for n in globals() if n.startswith("test_")
             and "_page_" not in n}
    assert set(PAGE) == tests and len(BLOCK.findall(TEXT)) == len(PAGE)


def test_page_entries_are_whole():
    for name, block in PAGE.items():
        assert all(f"**{word}**" in block for word in ("Printed", "Correct", "Check")), name
        assert len(MISS.findall(block)) + len(COUNT.findall(block)) == 1, name
        assert re.search(r"\]\([a-z_/]+\.ipynb\)", block), name


def test_page_table_lists_the_entries_as_they_stand():
    rows, blocks = ROW.findall(TEXT), BLOCK.findall(TEXT)
    place = lambda block: " ".join(block.strip().split("\n\n")[0].split()).rstrip(".")
    assert [(n, name, where) for n, _, name, where, _ in rows] == [
        (n, name, place(block)) for n, name, block in blocks
    ]
    assert all(anchor == f"{n.lower()}-{name}" for n, anchor, name, _, _ in rows)
    numbers = [n for n, *_ in rows]
    assert numbers == [f"{s}{k}" for s in "ABCDE" for k in range(1, sum(n[0] == s for n in numbers) + 1)]


def test_page_grades_add_up():
    grades = [grade for *_, grade in ROW.findall(TEXT)]
    said = re.search(r"(\d+) entries (\d+) are of the first grade, (\d+) of the second, (\d+) of", TEXT)
    counts = [grades.count(grade) for grade in ("result", "sign", "letter")]
    assert [int(x) for x in said.groups()] == [len(PAGE), *counts] and sum(counts) == len(grades)


def seeded(k=0): return torch.Generator().manual_seed(k)


def normal(*shape, seed=0): return torch.randn(*shape, dtype=f64, generator=seeded(seed))


def machine(D, H, visible="bernoulli", seed=0):
    rbm = RBM(D, H, visible, dtype=f64)
    for k, p in enumerate(rbm.parameters()): p.data = normal(*p.shape, seed=10 * seed + k)
    if visible == "gaussian": rbm.sigma.data = 0.6 + 0.3 * torch.arange(D, dtype=f64)
    return rbm.requires_grad_(False)


def joint(rbm):
    """p(v, h) [2^D, 2^H] by enumeration, from the energy alone."""
    V, H = states(rbm.W.shape[0]), states(rbm.W.shape[1])
    p = torch.exp(-rbm.energy(V[:, None], H))
    return V, H, p / p.sum()


def quadrature(f, a, b, n=40):
    """Integral of f, a function of a float, by Gauss-Legendre."""
    x, w = np.polynomial.legendre.leggauss(n)
    return sum(wi * (b - a) / 2 * f((a + b) / 2 + (b - a) / 2 * xi)
               for xi, wi in zip(x.tolist(), w.tolist()))


class Bridge:
    """Gaussian data under the underdamped SDE: everything about x_s given x_t, s < t, by conditioning a
    joint Gaussian.
    """
    sde = critically_damped_langevin(lambda t: 1 + 3 * t)
    start = torch.tensor([[0.3, 0.05], [0.05, 0.2]], dtype=f64)
    t, s = 0.5, 0.4
    x = torch.tensor([1.0, -0.5], dtype=f64)

    def Psi(self, t, s):
        """The transition matrix, in closed form: the SDE is one of constant coefficients in the time t +
        3 t^2 / 2.
        """
        A = torch.tensor([[0.0, 4.0], [-1.0, -4.0]], dtype=f64)
        return torch.linalg.matrix_exp((t - s + 1.5 * (t**2 - s**2)) * A)

    def S(self, t):
        """The covariance, which relaxes to that of the equilibrium."""
        rest, Psi = torch.diag(torch.tensor([1.0, 0.25], dtype=f64)), self.Psi(t, 0.0)
        return Psi @ (self.start - rest) @ Psi.mT + rest

    def score(self, x, t): return -torch.linalg.solve(self.S(t), x[..., None])[..., 0]

    def GG(self, t): return self.sde.G(t) @ self.sde.G(t).mT

    def gain(self, s): return torch.linalg.solve(self.S(self.t), self.Psi(self.t, s) @ self.S(s)).mT

    def mean(self, s): return self.gain(s) @ self.x


B = Bridge()


class Plain:
    """Gaussian data of variance 1/4 in one dimension under a variance-preserving SDE."""
    v0 = 0.25

    def V(self, t): return float(S.alpha(t) ** 2 * self.v0 + S.sigma(t) ** 2)

    def mean(self, s, t):
        """E[x_s | x_t = 1], s < t."""
        return float(S.alpha(t) / S.alpha(s)) * self.V(s) / self.V(t)

    def variance(self, s, t):
        """Var[x_s | x_t], s < t."""
        return self.V(s) - self.mean(s, t) ** 2 * self.V(t)


P = Plain()


# Paquet I


def test_fokker_planck(entry):
    X, t, h = normal(30, 2), 0.5, 2e-3

    def p(x, t): return gaussian(torch.zeros(2, dtype=f64), B.S(t)).log_prob(x).exp()

    truth = (8 * (p(X, t + h) - p(X, t - h)) - p(X, t + 2 * h) + p(X, t - 2 * h)) / (12 * h)

    def rate(field):
        x = X.clone().requires_grad_()
        flux = field(x) * p(x, t)[:, None]
        return -sum(torch.autograd.grad(flux[:, i].sum(), x, retain_graph=True)[0][:, i]
                    for i in range(2))

    flow, _ = reverse_sde(B.sde, B.score, eta=0.0)
    printed = rate(lambda x: B.sde.drift(x, t) - 0.5 * (p(x, t)[:, None] * B.score(x, t)) @ B.GG(t))
    entry(truth / truth.abs().max(),
          *(x / truth.abs().max() for x in (printed, rate(lambda x: flow(x, t)))))


def test_markov_reason(entry):
    H, (s, t, u) = 0.75, (0.3, 0.7, 1.0)
    fbm = lambda a, b: (a ** (2 * H) + b ** (2 * H) - abs(a - b) ** (2 * H)) / 2
    sde = LinearSDE(lambda t: torch.zeros(1, 1, dtype=f64),
                    lambda t: torch.full((1, 1), math.sqrt(2 * H * t ** (2 * H - 1)), dtype=f64))
    ito = lambda a, b: float(sde.transition(min(a, b), max(a, b)) * sde.covariance(0.0, min(a, b)))
    for time in (s, t, u):
        assert abs(ito(time, time) - fbm(time, time)) < 1e-6          # one Fokker-Planck equation
    defect = lambda R: R(s, u) - R(s, t) * R(t, u) / R(t, t)
    entry(0.0, defect(fbm), defect(ito))


def test_euler_maruyama(entry):
    h = 1e-4
    F, GG, s = B.sde.drift(B.x, B.t), B.GG(B.t), B.score(B.x, B.t)
    drift, _ = reverse_sde(B.sde, B.score)
    corrected = simulate(drift, lambda t: torch.zeros(2, 2, dtype=f64), B.x,
                         torch.tensor([B.t, B.t - h], dtype=f64))[-1]
    truth = B.mean(B.t - h)
    entry(truth, F + GG @ s, corrected)
    # the sign of F x alone
    assert (B.x + (F + GG @ s) * h - truth).abs().max() > 1e3 * (corrected - truth).abs().max()


def test_page_tests_share_an_exact_bridge():
    assert (B.Psi(B.s, B.t) - B.sde.transition(B.t, B.s)).abs().max() < 1e-10
    assert (B.S(B.t) - B.sde.covariance(0.0, B.t, B.start)).abs().max() < 1e-10


def test_deis_sign(entry):
    Psi = lambda u: B.sde.transition(u, B.s)
    inside = quadrature(lambda u: Psi(u) @ B.GG(u) @ B.score(B.mean(u), u), B.t, B.s, 12)
    entry(B.mean(B.s), Psi(B.t) @ B.x + inside, Psi(B.t) @ B.x - inside)


def test_deis_noise(entry):
    backwards = LinearSDE(lambda r: -B.sde.F(B.t - r), lambda r: B.sde.G(B.t - r))
    truth = backwards.covariance(0.0, B.t - B.s)
    Psi = lambda u: B.sde.transition(u, B.s)
    spread = lambda at: quadrature(lambda u: Psi(at(u)) @ B.GG(u) @ Psi(at(u)).mT, B.s, B.t, 12)
    entry(truth, spread(lambda u: B.t), spread(lambda u: u))


def test_deis_half(entry):
    data = gaussian(torch.tensor([0.5, -1.0], dtype=f64),
                    torch.diag(torch.tensor([0.2, 2.0], dtype=f64)))
    times, x, predict = time_grid(S, 100, kind="quadratic"), normal(8, 2), data.predictor(S)
    truth = gaussian_flow(data, S, x, 1.0, float(times[-1]))

    def multistep(weight):
        y, past, (Psi, C) = x, [], deis_coefficients(S, times, 3)
        for i, t in enumerate(times[:-1]):
            past = [predict(y, t), *past][:4]
            y = Psi[i] * y + 2 * weight * sum(c * e for c, e in zip(C[i], past))
        return y

    assert (multistep(0.5) - deis(predict, S, x, times, 3, "t", "eps", False)).abs().max() < 1e-12
    entry(truth, multistep(1.0), deis(predict, S, x, times, 3, "t", "eps", False))


def test_transition_derivative(entry):
    h, s, t = 1e-3, B.s, B.t
    slope = lambda g: (8 * (g(h) - g(-h)) - g(2 * h) + g(-2 * h)) / (12 * h)
    Psi = B.sde.transition(t, s)
    assert (slope(lambda d: B.Psi(s + d, t)) - B.sde.F(s) @ Psi).abs().max() < 1e-7
    entry(slope(lambda d: B.Psi(s, t + d)), B.sde.F(t) @ Psi, -Psi @ B.sde.F(t))


def test_location_scale(entry):
    x, t = torch.tensor([[2.0], [-1.0], [0.3]], dtype=f64), 0.3
    # the mean of z given x, by an integrator
    truth = x @ scalar_sde(S).transition(0.0, t).mT
    z, eps = diffuse(S, x, t, seeded())
    entry(truth, S.alpha(t) * torch.ones_like(x), z - S.sigma(t) * eps)


def test_sech_monotone(entry):
    schedule, times = LinearLogSNR(-10.0, 10.0), torch.linspace(0, 1, 2001, dtype=f64)
    fall = lambda weight: level_masses(weight, schedule, times).clamp(max=0).sum()
    with pytest.raises(ValueError, match="weight must not fall"): augmentation(sech, schedule, times)
    assert (
        not is_monotone(sech)
        and is_monotone(exponential)
        and bool((augmentation(exponential, schedule, times) >= 0).all())
    )
    # from its peak at 0 down to log-SNR -10
    assert abs(fall(sech) + 1 - 1 / math.cosh(5)) < 1e-3
    entry(0.0, fall(sech), fall(exponential))


def losses(t, slope=-0.4):
    """Denoising and explicit loss of s(x) = slope x for two points, by quadrature, and the constant of
    the book.
    """
    points, w = torch.tensor([[-1.0], [2.0]], dtype=f64), torch.tensor([0.3, 0.7], dtype=f64)
    data = Mixture(w, points, torch.zeros(2, 1, 1, dtype=f64))
    (x, cell), a, s = grid(-12, 12, 24000), float(S.alpha(t)), float(S.sigma(t))
    p, score = data.log_prob(x, a, s).exp(), data.score(x, a, s)
    eps = torch.stack([(x - a * m) / s for m in points])
    of_pair = torch.exp(-eps[..., 0] ** 2 / 2) / math.sqrt(2 * math.pi) / s * w[:, None]
    denoising = (
        of_pair * (slope * x - conditional_score(eps.flatten(0, 1), s).view_as(eps))[..., 0] ** 2
    ).sum() * cell
    explicit = (p * (slope * x - score)[:, 0] ** 2).sum() * cell
    return denoising, explicit, (p * irreducible_loss(score, s)).sum() * cell


def test_two_losses(entry):
    denoising, explicit, omega = losses(0.3)
    assert omega > 0
    entry(denoising, explicit, explicit + omega)


# Paquet III


def reverse_variance(score_variance, steps=2000):
    """Variance at t = 0.001 of Gaussian samples carried back by Euler-Maruyama with score -x /
    score_variance(t).
    """
    times = torch.linspace(1, 1e-3, steps + 1, dtype=f64)
    v = P.V(1.0)
    for t, a, b, c in zip(times.tolist(), *(k.tolist() for k in euler_maruyama.coefficients(S, times))):
        v = (a + b * float(S.sigma(t)) / score_variance(t)) ** 2 * v + c**2
    return v


def test_score_time(entry):
    entry(P.V(1e-3), reverse_variance(lambda t: P.v0), reverse_variance(P.V))


def test_total_free_energy(entry):
    rbm = machine(4, 3)
    F = rbm.free_energy(states(4))
    truth = -torch.log(torch.exp(-rbm.energy(states(4)[:, None], states(3))).sum())
    assert abs(truth + rbm.log_partition()) < 1e-12
    entry(truth, F.sum(), -torch.logsumexp(-F, 0))


def test_two_machines(entry):
    bits, widths = machine(4, 3), machine(4, 3, "gaussian")
    v = normal(6, 4).requires_grad_()
    slope = lambda rbm: torch.autograd.grad(rbm.free_energy(v).sum(), v)[0]

    def ten(rbm, sigma):
        x = v.detach() / sigma**2
        return (v.detach() - rbm.b) / sigma**2 - torch.sigmoid(rbm.c + x @ rbm.W) @ rbm.W.T / sigma**2

    # (10) is right for its own machine
    assert (slope(widths) - ten(widths, widths.sigma)).abs().max() < 1e-12
    entry(slope(bits), ten(bits, torch.ones(4, dtype=f64)), -bits.score(v.detach()))


def test_missing_sum(entry):
    rbm, a = machine(4, 3), normal(4, seed=5)
    truth = -torch.logsumexp(-rbm.energy(torch.sigmoid(a), states(3)), 0)
    # for each j by itself
    one = -torch.sigmoid(a) @ rbm.b - softplus(rbm.c + torch.sigmoid(a) @ rbm.W)
    entry(truth, one[(one - truth).abs().argmin()], rbm.free_energy(torch.sigmoid(a)))


def test_jacobian(entry):
    rbm = machine(1, 3)
    truth = quadrature(lambda m: torch.exp(-rbm.free_energy(torch.tensor([m], dtype=f64))), 0.0, 1.0)

    def integral(box, jacobian):
        a, cell = grid(-box, box, 200 * box)
        m = torch.sigmoid(a)
        return (torch.exp(-rbm.free_energy(m)) * (m * (1 - m))[:, 0] ** jacobian).sum() * cell

    # grows with the box
    assert 9.5 < integral(1000, 0) / integral(100, 0) < 10.5
    entry(1.0, integral(1000, 0) / truth, integral(1000, 1) / truth)


def test_explicit_loss(entry):
    denoising, explicit, omega = losses(0.7)
    entry(denoising, explicit, explicit + omega)


def test_time_argument(entry):
    data = Mixture(torch.ones(2, dtype=f64), torch.tensor([[-1.0], [1.0]], dtype=f64),
                   torch.zeros(2, 1, 1, dtype=f64))
    (x, cell), times = grid(-8, 8, 8000), torch.linspace(0.05, 1, 20, dtype=f64)
    p, s, exact = [], [], []
    for t in times:
        y = x.clone().requires_grad_()
        exact.append(torch.autograd.grad(data.log_prob(y, S.alpha(t), S.sigma(t)).sum(), y)[0][:, 0])
        p.append(S.sigma(t) ** 2 / len(times) * data.log_prob(x, S.alpha(t), S.sigma(t)).exp())
        s.append(data.score(x, S.alpha(t), S.sigma(t))[:, 0])
    p, s, exact = torch.stack(p), torch.stack(s), torch.stack(exact)
    # of all functions of x alone
    best = (p * exact).sum(0) / p.sum(0).clamp(min=1e-300)
    loss = lambda model: (p * (model - exact) ** 2).sum() * cell
    entry(0.0, loss(best), loss(s))


def test_exact_variance(entry):
    times = torch.linspace(0.01, 1, 100, dtype=f64)
    B_of = lambda t: 0.1 * t + 19.9 * t**2 / 2
    by_integral = torch.tensor([quadrature(lambda s: math.exp(B_of(s) - B_of(t)) * (0.1 + 19.9 * s), 0.0,
                                           t) for t in times.tolist()], dtype=f64)
    agree = float(((by_integral - S.sigma(times) ** 2).abs() < 1e-12).sum())
    # wrongly called different: as printed, all that agree
    entry(100 - agree, agree, 0.0)


def test_gumbel_bias(entry):
    rbm, a = machine(1, 3, seed=2), torch.tensor(0.7, dtype=f64)
    F = lambda m: rbm.free_energy(m.reshape(-1, 1))
    bits, slope = torch.tensor([0.0, 1.0], dtype=f64), torch.sigmoid(a) * torch.sigmoid(-a)
    truth = F(bits).diff()[0] * slope

    def concrete(tau):
        """Exact expectation of the pathwise gradient at temperature tau; x is the logit of the relaxed
        bit.
        """
        x, cell = grid(-40, 40, 80000)
        m = torch.sigmoid(x[:, 0]).requires_grad_()
        dF, = torch.autograd.grad(F(m).sum(), m)
        L = tau * x[:, 0] - a
        return (dF * m * (1 - m) * torch.sigmoid(L) * torch.sigmoid(-L)).sum().detach() * cell

    bias = [abs(concrete(tau) / truth - 1) for tau in (0.1, 0.01)]
    # in proportion to tau, once it is small
    assert 0.08 < bias[0] < 0.09 and 0.009 < bias[1] < 0.0095
    p = torch.stack([torch.sigmoid(-a), torch.sigmoid(a)])
    score_function = (p * F(bits) * (bits - torch.sigmoid(a))).sum()
    entry(1.0, concrete(0.5) / truth, score_function / truth)


def test_reverse_sign(entry):
    t, h = 0.5, 1e-4
    f, g2 = float(S.drift(t)), float(S.diffusion(t)) ** 2
    a, b, _ = (float(k) for k in euler_maruyama.coefficients(S, torch.tensor([t, t - h], dtype=f64)))
    entry((P.mean(t - h, t) - 1) / h, f + g2 / P.V(t), (a + b * float(S.sigma(t)) / P.V(t) - 1) / h)


def test_bernoulli_readout(entry):
    p = torch.tensor([0.1, 0.35, 0.8], dtype=f64)
    u = (torch.arange(10000, dtype=f64)[:, None] + 0.5) / 10000
    drawn = draw_bits(logit(p).repeat(40000, 1), torch.zeros_like(p), 0, seeded())
    for i in range(3):
        estimate = Estimate.of(drawn[:, i])
        assert (
            abs(estimate.z(p[i].item())) <= 4
            and estimate.stderr < 3e-3
            and abs(estimate.z(1 - p[i].item())) > 50
        )
    entry(p, (p < u).to(f64).mean(0), (u < p).to(f64).mean(0))


# The lecture on energies, flows and scores


def symmetric(n, seed=0, scale=0.5):
    W = scale * normal(n, n, seed=seed)
    return (W + W.T) * (1 - torch.eye(n, dtype=f64))


def test_half_in_denominator(entry):
    W, Y = symmetric(4), states(4, "spin")
    E = lambda y: -0.5 * ((y @ W) * y).sum(-1)
    assert abs(torch.logsumexp(-E(Y), 0) - log_partition(E, Y)) < 1e-12
    entry(1.0, (torch.exp(-E(Y)) / torch.exp(-2 * E(Y)).sum()).sum(), log_probs(E, Y).exp().sum())


def test_spin_conditional(entry):
    W, T, y = symmetric(4), 1.5, states(4, "spin")
    E = lambda y: -0.5 * ((y @ W) * y).sum(-1)
    up, down = y.clone(), y.clone()
    up[:, 1], down[:, 1] = 1, -1
    truth = torch.exp(-E(up) / T) / (torch.exp(-E(up) / T) + torch.exp(-E(down) / T))
    z = y @ W[:, 1] / T
    entry(truth, torch.sigmoid(z), torch.sigmoid(2 * unit_field(tempered(E, T), y, 1, "spin")))


def stationary(K):
    """Stationary distribution [N] of a transition matrix [N, N]."""
    return torch.linalg.matrix_power(K, 4096)[0]


def single_site(E, X, i):
    """Matrix [N, N] of the redraw of spin i given the others."""
    up = torch.sigmoid(2 * unit_field(E, X, i, "spin"))
    others = [j for j in range(X.shape[1]) if j != i]
    same = (X[:, None, others] == X[None, :, others]).all(-1)
    return same * torch.where(X[None, :, i] > 0, up[:, None], 1 - up[:, None])


def test_synchronous_update(entry):
    W, X = symmetric(3, seed=1), states(3, "spin")
    E = lambda y: -0.5 * ((y @ W) * y).sum(-1)
    up = torch.stack([torch.sigmoid(2 * unit_field(E, X, i, "spin")) for i in range(3)], 1)
    together = torch.where(X[None] > 0, up[:, None], 1 - up[:, None]).prod(-1)
    in_turn = single_site(E, X, 0) @ single_site(E, X, 1) @ single_site(E, X, 2)
    tv = lambda K: (stationary(K) - log_probs(E, X).exp()).abs().sum() / 2
    entry(0.0, tv(together), tv(in_turn))


def test_weight_indices(entry):
    rbm = machine(3, 3)
    for p in (rbm.b, rbm.c): p.data.zero_()
    data = states(3)[[1, 3, 6, 6]]
    # w_ij joins h_i and v_j, as printed
    w = rbm.W.T.clone().requires_grad_()
    F = lambda v: -softplus(v @ w.T).sum(-1)
    truth, = torch.autograd.grad(-F(data).mean() - torch.logsumexp(-F(states(3)), 0), w)
    V, H, p = joint(rbm)
    v_h = torch.einsum("ni,nj->ij", data, rbm.hidden_mean(data)) / 4 - torch.einsum(
        "vh,vi,hj->ij", p, V, H
    )
    entry(truth, v_h, exact_gradient(rbm, data)["W"].T)


def test_gradient_of_z(entry):
    rbm = machine(4, 3).requires_grad_()
    v = states(4)[[3, 5, 12]].requires_grad_()
    truth, = torch.autograd.grad(rbm.log_prob(v).mean(), rbm.W, retain_graph=True)
    of_x, = torch.autograd.grad((rbm.log_prob(v) + rbm.free_energy(v)).sum(), v)
    # -log Z does not depend on x
    assert of_x.abs().max() < 1e-12
    without, = torch.autograd.grad(-rbm.free_energy(v).mean(), rbm.W)
    entry(truth, without, exact_gradient(rbm, v.detach())["W"])


def test_sliced_sign(entry):
    x = 1.5 * normal(500, 3)
    # score -k x of the fitted normal density
    truth = 3 / x.square().sum(1).mean()

    def best(sign):
        def loss(k):
            return (k * x).square().sum(1).mean() + sign * 2 * torch.trace(-k * torch.eye(3, dtype=f64))
        k = torch.tensor(0.0, dtype=f64, requires_grad=True)
        slope, = torch.autograd.grad(loss(k), k, create_graph=True)
        # Newton's step solves a parabola
        return -slope.detach() / torch.autograd.grad(slope, k)[0]
    entry(truth, best(-1), best(+1))


def test_convolution(entry):
    data = Mixture(torch.tensor([0.3, 0.7], dtype=f64), torch.tensor([[-1.0], [1.5]], dtype=f64),
                   torch.full((2, 1, 1), 0.1, dtype=f64))
    sigma, x, (delta, cell) = 0.5, torch.linspace(-2, 3, 11, dtype=f64), grid(-14, 14, 14000)
    truth = data.log_prob(x[:, None], 1.0, sigma).exp()
    density = lambda z: torch.exp(-z**2 / (2 * sigma**2)) / math.sqrt(2 * math.pi) / sigma
    clean = data.log_prob(x[:, None, None] - delta).exp()
    printed = (clean * density(x[:, None] - delta[:, 0])).sum(1) * cell
    # it does not depend on x
    assert printed.max() - printed.min() < 1e-9
    entry(truth, printed, (clean * density(delta[:, 0])).sum(1) * cell)


def test_negative_root(entry):
    t, h = 0.5, 1e-4
    with pytest.raises(ValueError): math.sqrt(-h)
    _, _, c = euler_maruyama.coefficients(S, torch.tensor([t, t - h], dtype=f64))
    truth = P.variance(t - h, t)
    # the square of g sqrt(dt), dt < 0
    entry(1.0, float(S.diffusion(t)) ** 2 * -h / truth, c**2 / truth)


def test_flow_without_half(entry):
    t, s = 0.8, 0.2
    data = gaussian(torch.zeros(1, dtype=f64), torch.full((1, 1), P.v0, dtype=f64))
    one = torch.ones(1, 1, dtype=f64)
    half = lambda u: float(velocity(data.predictor(S), S, one, u))
    full = lambda u: float(S.drift(u)) + float(S.diffusion(u)) ** 2 / P.V(u)
    entry(gaussian_flow(data, S, one, t, s),
          *(math.exp(quadrature(rate, t, s)) for rate in (full, half)))


def test_planar_normalisation(entry):
    w, b, z = torch.tensor([1.0, 0.0], dtype=f64), 0.4, torch.tensor([-0.4, 1.3], dtype=f64)
    assert w @ z + b == 0                                          # a point of the plane

    def singular(u):
        """Is the map singular at z?"""
        J = torch.autograd.functional.jacobian(lambda z: z + u * torch.tanh(w @ z + b), z)
        return float(torch.linalg.det(J).abs() < 1e-12)

    angle = torch.arange(12, dtype=f64) * math.pi / 6
    units = torch.stack([angle.cos(), angle.sin()], 1)
    shifted = [u + (softplus(u @ w) - 1 - u @ w) * w / (w @ w) for u in units]
    assert all(1 + u @ w > 0 for u in shifted)
    entry(0, sum(map(singular, units)), sum(map(singular, shifted)))


def test_self_weight(entry):
    W = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=f64)
    S = states(2, "spin")
    log_p = torch.log_softmax((S @ W * S).sum(1) / 2, 0).view(2, 2)    # second spin, first spin
    truth = torch.softmax(log_p, 1)[:, 1].repeat_interleave(2)         # that the first is up
    listened = Boltzmann(W - torch.eye(2, dtype=f64), torch.zeros(2, dtype=f64)).field(S)[:, 0]
    entry(truth, torch.sigmoid(2 * (S @ W)[:, 0]), torch.sigmoid(2 * listened))


def test_no_bias(entry):
    middle = torch.arange(64).view(8, 8)[2:6, 2:6].flatten()
    mean = (2 * binarize(digits()[0], 7.5 / 16)[:, middle].to(f64) - 1).mean(0)
    J = couplings(torch.randn(120, dtype=f64, generator=torch.Generator().manual_seed(0)))
    printed = Boltzmann(J, torch.zeros(16, dtype=f64)).moments()[0]
    entry(mean, printed, Boltzmann(0 * J, torch.atanh(mean)).moments()[0])


def test_langevin_stationary(entry):
    left = 0.9 ** torch.arange(2000, dtype=f64)                  # of each noise
    entry(0.2 * left.square().sum(), 1.0, level_variance(1.0, 0.1, 2000))


def test_temperatures(entry):
    x = grid(-60, 60, 12000)[0][:, 0]
    two = sum(0.5 * torch.exp(-((x - c) / s) ** 2 / 2) / s for c, s in ((-20, 1.0), (20, 0.5)))
    noise = torch.exp(-x**2 / 18)
    blurred = torch.from_numpy(np.convolve(two.numpy(), noise.numpy(), "same"))
    share = lambda p: p[x < 0].sum() / p.sum()
    entry(share(blurred), share(two**0.25), 0.5)


def test_density_factor(entry):
    """Of z uniform in [0, 1] and x = 2 z + 1."""
    x = 1 + 2 * (torch.arange(1000, dtype=f64)[:, None] + 0.5) / 1000
    z = ((x - 1) / 2).requires_grad_()
    slope, = torch.autograd.grad((2 * z + 1).sum(), z)
    mass = lambda p: p.sum() * 2 / 1000
    entry(1.0, mass((1 / slope) / (1 / slope)), mass(1 / slope))


def test_final_sample(entry):
    first, last = AffineTransform(1.0, 1.0), AffineTransform(0.0, 3.0)
    base = torch.distributions.Normal(torch.zeros((), dtype=f64), 1.0)
    z0 = torch.linspace(-2, 2, 9, dtype=f64)
    z2 = last(first(z0))
    said = base.log_prob(z0) - math.log(1) - math.log(3)             # of x on the slides
    law = lambda *steps: TransformedDistribution(base, list(steps))
    entry(0.0, said - law(first, last, last).log_prob(last(z2)), said - law(first, last).log_prob(z2))


def test_tanh_slope(entry):
    z = torch.linspace(-2, 2, 41, dtype=f64)
    slopes = torch.func.vmap(torch.func.grad(torch.tanh))(z - z[20])
    entry(0, (~((slopes > 0) & (slopes < 1))).sum(), (~((slopes > 0) & (slopes <= 1))).sum())


def test_two_passes(entry):
    dbm = DBM([3, 2, 2], dtype=f64).requires_grad_(False)
    i, j, k = (torch.arange(n, dtype=f64) for n in (3, 2, 2))
    dbm.W[0].copy_(2 * torch.sin(i[:, None] + 2 * j + 1))
    dbm.W[1].copy_(2 * torch.cos(j[:, None] + 3 * k))
    for b, value in zip(dbm.b, ((i - 1) / 2, j / 3 - 0.5, 0.2 - 0.3 * k)): b.copy_(value)
    low = RBM(1, 1, dtype=f64, generator=0).sharing(W=dbm.W[0], b=dbm.b[0], c=dbm.b[1])
    high = low.sharing(W=dbm.W[1], b=dbm.b[1], c=dbm.b[2])
    (up, down), (further, back), (odd, even) = ([p.exp() for p in conditionals(m)]
                                                for m in (low, high, dbm.as_rbm()))
    rest = lambda T: torch.linalg.matrix_power(T, 2**16)[0]
    V, H, K = states(3), states(2), states(2)
    E = -(V @ dbm.b[0])[:, None, None] - (H @ dbm.b[1])[:, None] - K @ dbm.b[2]
    E = E - (V @ dbm.W[0] @ H.T)[..., None] - H @ dbm.W[1] @ K.T
    truth = (-E).exp().sum((1, 2))
    truth /= truth.sum()
    tv = lambda p: (p - truth).abs().sum() / 2
    entry(0, tv(rest(up @ further @ back @ down)), tv(rest(odd @ even).view(4, 8).sum(0)))


# Gavves, Lecture 8


def rises(E, activation, n=5):
    """How many single updates x_i <- sign(a_i), over all states and units, raise E."""
    count = 0
    for x, i in itertools.product(states(n, "spin"), range(n)):
        y = x.clone()
        y[i] = 1.0 if activation(x)[i] >= 0 else -1.0
        count += bool(E(y) > E(x) + 1e-12)
    return count


def test_hopfield_sign(entry):
    W = symmetric(5)
    f = lambda x: x @ W @ x
    entry(0, rises(f, lambda x: W @ x), rises(lambda x: -f(x), lambda x: W @ x))


def test_hopfield_field(entry):
    W, b = symmetric(5), 2 * normal(5, seed=3)
    entry(0, rises(lambda x: -(x @ W @ x + b @ x), lambda x: W @ x),
          rises(lambda x: -(0.5 * x @ W @ x + b @ x), lambda x: W @ x + b))
    # the bias alone is not enough
    assert rises(lambda x: -(x @ W @ x + b @ x), lambda x: W @ x + b) > 0


def rest_of_loop(X, eta=0.1, alpha=1.0):
    """Of all states of ten units: how many no flip lowers, how many rest after the printed loop, and
    how many if the diagonal is cleared once more.
    """
    S, w = states(10, "spin"), X.T @ X
    for _ in range(30):
        w = w - w.diagonal().diag()
        pull = X.T @ ((X + 1) / 2 - torch.sigmoid(2 * X @ w))
        w = w + eta * (pull + pull.T - alpha * w)
    E = lambda y: -0.5 * ((y @ w) * y).sum(-1)             # x_i² = 1: the diagonal is a constant
    flipped = S * (1 - 2 * torch.eye(10, dtype=f64)[:, None])
    rest = lambda w: ((S @ w >= 0) == (S > 0)).all(1).sum()
    return torch.stack([(E(flipped) > E(S)).all(0).sum(), rest(w), rest(w - w.diagonal().diag())])


def test_octave_diagonal(entry):
    sets = [torch.where(normal(5, 10, seed=seed) > 0, 1.0, -1.0).to(f64) for seed in range(4)]
    entry(*sum(rest_of_loop(X) for X in sets))


def test_octave_temperature(entry):
    W, S = symmetric(4), states(4, "spin")
    p = log_probs(lambda y: -0.5 * ((y @ W) * y).sum(-1), S).exp()

    def gradient(y):
        pull = (S * p[:, None]).T @ ((S + 1) / 2 - y)
        return (pull + pull.T) * (1 - torch.eye(4, dtype=f64))

    a = S @ W
    entry(0.0, gradient(torch.sigmoid(a)), gradient(torch.sigmoid(2 * a)))


def test_continuous_energy(entry):
    W, m = symmetric(8, scale=2.0), 2 * torch.rand(20, 8, dtype=f64, generator=seeded()) - 1
    quadratic = lambda m: -0.5 * ((m @ W) * m).sum(-1)
    coin = lambda q: -torch.special.xlogy(q, q)
    free = lambda m: quadratic(m) - (coin((1 + m) / 2) + coin((1 - m) / 2)).sum(-1)
    raised = [0, 0]
    for i in list(range(8)) * 6:
        new = m.clone()
        new[:, i] = torch.tanh(m @ W[i])
        for k, f in enumerate((quadratic, free)): raised[k] += (f(new) > f(m) + 1e-12).sum().item()
        m = new
    entry(0, *raised)


def test_parameter_count(entry):
    N = 65536
    entry(sum(range(N)) / 1e9, 4.2, N * (N - 1) / 2 / 1e9)


def test_energy_transpose(entry):
    W, x, v = normal(3, 3).requires_grad_(), states(3)[5], states(3)[6]
    truth, = torch.autograd.grad(-(v @ W @ x), W)
    rbm = machine(3, 3).requires_grad_()
    other, = torch.autograd.grad(rbm.energy(x, v), rbm.W)
    # right for the energy printed before
    assert torch.equal(other, -torch.outer(x, v))
    entry(truth, -torch.outer(x, v), -torch.outer(v, x))


def test_swapped_biases(entry):
    rbm = machine(3, 3)
    V, H, p = joint(rbm)
    truth = torch.cat([(p / p.sum(1, keepdim=True)) @ H, (p / p.sum(0)).T @ V])
    printed = torch.cat([torch.sigmoid(V @ rbm.W + rbm.b), torch.sigmoid(H @ rbm.W.T + rbm.c)])
    entry(truth, printed, torch.cat([rbm.hidden_mean(V), rbm.visible_mean(H)]))


def test_chain_order(entry):
    def never_drawn(needs):
        order = graphlib.TopologicalSorter(needs)
        try: order.prepare()
        except graphlib.CycleError: pass
        drawn = set()
        while ready := order.get_ready(): drawn.update(ready), order.done(*ready)
        return len(set(needs) - drawn)

    rbm, v = machine(3, 3), states(3)[5]
    # x1 given x0, in the order of the book
    p = transition_matrix(rbm)[5]
    ends = gibbs(rbm, v.expand(40000, 3), 1, seeded())
    for i in range(3): assert abs(Estimate.of(ends[:, i]).z(float(p @ states(3)[:, i]))) <= 4
    printed = never_drawn({"v1": ["x0"], "x1": ["v2"], "v2": ["x1"]})
    entry(0, printed, never_drawn({"v1": ["x0"], "x1": ["v1"], "v2": ["x1"]}))


def test_kl_constant(entry):
    p0 = torch.softmax(normal(8), 0)
    cross = [-(p0 * torch.log_softmax(normal(8, seed=k), 0)).sum() for k in (1, 2)]
    truth = (p0 * (p0.log() - torch.log_softmax(normal(8, seed=2), 0))).sum()
    first = (p0 * (p0.log() - torch.log_softmax(normal(8, seed=1), 0))).sum()
    entry(truth, first * cross[1] / cross[0], first + cross[1] - cross[0])


def contrast():
    """An RBM, data, and p_0 [2^D] of the data."""
    rbm, data = machine(3, 2).requires_grad_(), states(3)[[1, 1, 6, 4, 7]]
    index = (data @ torch.tensor([1.0, 2.0, 4.0], dtype=f64)).long()
    return rbm, data, torch.bincount(index, minlength=8).to(f64) / 5


def test_cd_sign(entry):
    rbm, data, p0 = contrast()
    p = rbm.log_prob(states(3))
    pn = p0 @ transition_matrix(rbm)
    kl = lambda q: (torch.xlogy(q, q) - q * p).sum()
    truth, = torch.autograd.grad(kl(p0) - kl(pn), rbm.W, retain_graph=True)
    # the dots: through p_n alone
    rest, = torch.autograd.grad(-(pn * (pn.log() - p).detach()).sum(), rbm.W)
    # -E_0[dE] + E_n[dE]
    up = expected_cd_gradient(rbm, data)["W"].detach()
    entry(truth, up + rest, -up + rest)


def test_cd_k_sign(entry):
    rbm, data, _ = contrast()
    truth, = torch.autograd.grad(rbm.log_prob(data).mean(), rbm.W)
    long = expected_cd_gradient(rbm, data, k=200)["W"].detach()
    V, H, p = joint(rbm)
    of_data = torch.einsum("ni,nj->ij", data, rbm.hidden_mean(data)) / 5
    of_chain = of_data - long
    # the chain has forgotten the data
    assert (of_chain - torch.einsum("vh,vi,hj->ij", p, V, H)).abs().max() < 1e-9
    entry(truth, of_data + of_chain, long)


def test_metropolis_not_gibbs(entry):
    # f(1) - f(0) of one bit, from 0
    b = torch.linspace(-2, 2, 9, dtype=f64)
    u = (torch.arange(20000, dtype=f64)[:, None] + 0.5) / 20000
    # uphill always, else with the ratio
    described = ((b > 0) | (u < torch.exp(b))).to(f64).mean(0)
    field = torch.stack([unit_field(lambda x: -w * x[..., 0], torch.zeros(1, dtype=f64), 0) for w in b])
    entry(described, torch.sigmoid(field), torch.exp(b).clamp(max=1))


def test_metropolis_stay(entry):
    X, E = states(3), lambda x: machine(3, 2).free_energy(x)
    p = log_probs(E, X).exp()
    # a proposal flips one bit
    near = (X[:, None] != X[None]).sum(-1) == 1

    def tv(accept):
        K = near * accept / 3
        return (stationary(K + torch.diag(1 - K.sum(1))) - p).abs().sum() / 2

    ratio = p[None] / p[:, None]
    entry(0.0, tv(torch.where(ratio > 1, 1.0, 1 - ratio)), tv(ratio.clamp(max=1)))


def test_annealing_order(entry):
    def end(sigmas, epsilon, steps=300):
        """Variance of annealed Langevin dynamics for Gaussian data; every step is linear."""
        v = 1.0
        for sigma in sigmas:
            alpha = epsilon * sigma**2 / sigmas[-1] ** 2
            for _ in range(steps): v = (1 - alpha / 2 / (P.v0 + sigma**2)) ** 2 * v + alpha
        return v

    falling = [5 * 0.01 ** (i / 9) for i in range(10)]
    best = max((end(falling[::-1], e) for e in (1e-3, 1e-2, 0.1, 1.0, 10.0)),
               key=lambda v: -abs(v - P.v0 - 0.05**2))
    entry(P.v0 + 0.05**2, best, end(falling, 1e-3))


def test_missing_square(entry):
    w, points, t = torch.tensor([0.3, 0.7], dtype=f64), torch.tensor([[-1.0], [1.0]], dtype=f64), 0.4
    data, x, a, s = (
        Mixture(w, points, torch.zeros(2, 1, 1, dtype=f64)),
        torch.tensor([[0.1]], dtype=f64),
        S.alpha(t),
        S.sigma(t),
    )
    targets = conditional_score((x - a * points) / s, s)[:, 0]
    posterior = w * torch.exp(-((x - a * points) / s)[:, 0] ** 2 / 2)
    s_of_x = torch.linspace(-5, 5, 200001, dtype=f64)
    loss = lambda power: (posterior[:, None] / posterior.sum()
                          * (targets[:, None] - s_of_x).abs() ** power).sum(0)
    entry(data.score(x, a, s)[0], s_of_x[loss(1).argmin()], s_of_x[loss(2).argmin()])


def test_kl_bound(entry):
    # standard normal data: s = -x at all times
    schedule, delta = LinearBeta(10.0, 10.0), 1.0
    sde, score = scalar_sde(schedule), lambda x, t: -x
    model = lambda x, t: -x + delta
    bound = path_kl(sde, score, model, lambda t: normal(100, 1)).value
    drift, _ = reverse_sde(sde, model)
    zero, times = torch.zeros(1, 1, dtype=f64), torch.linspace(1, 0, 4001, dtype=f64)
    # of the mean; the variance stays 1
    shift = simulate(drift, lambda t: zero, zero, times)[-1].item()
    assert abs(shift - 2 * delta * (1 - math.exp(-5))) < 1e-2
    kl, mean_square = shift**2 / 2, delta**2
    h, g2 = 1e-3, 10.0
    # of the steps, one by one
    path = sum((g2 * delta * h) ** 2 / (2 * g2 * h) for _ in range(1000))
    assert abs(bound - path) < 1e-9 and abs(bound - g2 * mean_square / 2) < 1e-9
    entry(0.0, max(0.0, kl - mean_square), max(0.0, kl - bound))


def test_flow_of_the_lecture(entry):
    def carried(c):
        """Covariance that the flow with c GG' carries from t to s."""
        flow = LinearSDE(lambda u: B.sde.F(u) + c * B.GG(u) @ torch.linalg.inv(B.S(u)), B.sde.G)
        M = flow.transition(B.t, B.s)
        return M @ B.S(B.t) @ M.mT

    ode, _ = reverse_sde(B.sde, B.score, eta=0.0)
    assert (
        ode(B.x, B.t) - (B.sde.F(B.t) + B.GG(B.t) @ torch.linalg.inv(B.S(B.t)) / 2) @ B.x
    ).abs().max() < 1e-9
    entry(B.S(B.s), carried(1.0), carried(0.5))


def test_ddpm_variance(entry):
    chain, v, truth = linear_chain(100, 1e-3, 0.1), 0.0, []
    for beta in chain.betas.tolist():
        v = (1 - beta) * v + beta
        truth.append(v)
    entry(truth, chain.sigmas[1:], chain.sigmas[1:] ** 2)


def test_langevin_direction(entry):
    data = Mixture(torch.tensor([0.3, 0.7], dtype=f64), torch.tensor([[-1.0], [1.5]], dtype=f64),
                   torch.full((2, 1, 1), 0.4, dtype=f64))
    x, h = torch.linspace(-2, 3, 11, dtype=f64)[:, None].requires_grad_(), 1e-4
    p = lambda x: data.log_prob(x, 1.0, 0.0).exp()
    slope = (8 * (p(x + h) - p(x - h)) - p(x + 2 * h) + p(x - 2 * h)) / (12 * h)
    score = data.score(x, 1.0, 0.0)
    of_score, = torch.autograd.grad(score.sum(), x, retain_graph=True)
    entry(slope / p(x), of_score[:, 0], score[:, 0])


# Dai, Lecture 11


def test_langevin_noise(entry):
    eta = 0.01

    def end(noise, v=3.0):
        """Variance after many steps at a standard normal target."""
        for _ in range(5000): v = (1 - eta) ** 2 * v + noise * eta
        return v

    x, _ = grid(-6, 6, 600)
    p = torch.exp(-x[:, 0] ** 2 / 2)

    def accepted(noise):
        """Part of the proposals that the test accepts at equilibrium."""
        q = torch.exp(-(x[None, :, 0] - (1 - eta)
                        * x[:, :1]) ** 2 / (2 * noise * eta)) / math.sqrt(2 * math.pi * noise * eta)
        flux = torch.minimum(p[:, None] * q, (p[:, None] * q).T)
        return flux.sum() / (p[:, None] * q).sum()

    # the test repairs the law, not the step
    assert accepted(2.0) > 0.999 and 0.96 < accepted(1.0) < 0.98
    entry(1.0, end(1.0), end(2.0))


def test_score_argument(entry):
    points, w, beta = torch.tensor([-1.0, 1.0], dtype=f64), torch.tensor([0.3, 0.7], dtype=f64), 0.5
    a, s = math.sqrt(1 - beta), math.sqrt(beta)
    data = Mixture(w, points[:, None], torch.zeros(2, 1, 1, dtype=f64))
    y, cell = grid(-8, 8, 16000)
    p = (
        torch.exp(-((y[:, 0] - a * points[:, None]) ** 2) / (2 * beta))
        / math.sqrt(2 * math.pi * beta)
        * cell
    )  # x' given x
    # beta S
    wanted = a * (w[:, None] * p * points[:, None]).sum(0) / (w[:, None] * p).sum(0) - y[:, 0]
    # of all functions of the clean x
    best = (p * wanted).sum(1, keepdim=True)
    loss = lambda beta_S: (w[:, None] * p * (wanted - beta_S) ** 2).sum()
    tweedie = convert(data.score(y, a, s), y, a, s, "score", "x0") * a - y
    assert (tweedie[:, 0] - beta * data.score(y, a, s)[:, 0]).abs().max() < 1e-9
    entry(0.0, loss(best), loss(beta * data.score(y, a, s)[:, 0]))


def split_square():
    """What is left of the square of (11.18) without its two squares, halved, then both forms of half the
    cross term: a function of the factors A, B and of b, on data of two points, with b = x'.
    """
    points, w, beta = torch.tensor([-1.0, 1.0], dtype=f64), torch.tensor([0.3, 0.7], dtype=f64), 0.5
    y, cell = grid(-8, 8, 16000)
    y, a = y[:, 0], math.sqrt(1 - beta)
    p = w[:, None] * torch.exp(-((y - a * points[:, None]) ** 2) / (2 * beta))
    p *= cell / math.sqrt(2 * math.pi * beta)                      # of x and x'
    mean = lambda f: (p * f).sum()
    A, B_ = y - beta * 0.4 * y - y, y - a * points[:, None]         # S = -0.4 x'
    return (mean((A + B_) ** 2) - mean(A**2) - mean(B_**2)) / 2, mean, A, B_, y


def test_cross_term_product(entry):
    left, mean, A, B_, _ = split_square()
    entry(left, mean(A) * mean(B_), mean(A * B_))


def test_cross_term_b(entry):
    left, mean, A, B_, b = split_square()
    entry(left, mean((A + b) * B_), mean(A * B_))


def test_else_stay(entry):
    m, X = machine(6, 3), states(6, dtype=f64)
    p = log_probs(m.free_energy, X).exp()
    near = (X[:, None] != X[None]).sum(-1) == 1
    moves = near * torch.minimum(p[None] / p[:, None], torch.tensor(1.0)) / 6
    stay = torch.diag(1 - moves.sum(1))
    # every second step at rest: bits that always flip would never settle
    tv = lambda K: (stationary((K + torch.eye(64, dtype=f64)) / 2) - p).abs().sum() / 2
    entry(0.0, tv(moves / moves.sum(1, keepdim=True)), tv(moves + stay))


def test_divergence(entry):
    cov = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=f64)
    law = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=f64), cov)
    score = torch.func.grad(lambda x: law.log_prob(x).sum())
    root = 2**0.5 * torch.linalg.cholesky(cov).T
    x = torch.cat([root, -root])                                 # four points with this covariance
    every = lambda s: torch.func.vjp(s, x)[1](torch.ones_like(x))[0].sum(1) + s(x).square().sum(1) / 2

    def best(loss):
        """The K of s = -K x with the least mean loss, which is quadratic."""
        mean = lambda K: loss(lambda x: -x @ K.view(2, 2).T).mean()
        zero = torch.zeros(4, dtype=f64)
        slope = torch.func.grad(mean)
        return torch.linalg.solve(torch.func.jacrev(slope)(zero), -slope(zero)).view(2, 2)

    entry(-torch.stack([score(e) for e in torch.eye(2, dtype=f64)], 1), best(every),
          best(lambda s: explicit_loss(s, x)))
