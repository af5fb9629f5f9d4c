"""Gibbs kernels against enumeration: exact matrices, no drift, streams of random numbers and bad
input."""
from itertools import islice
import math

from hypothesis import given, settings, strategies as st
import pytest
import torch

from machines import machine, seeded, some_states
from rbmdiff.foundations.core import Estimate
from rbmdiff.foundations.units import (
    Bernoulli,
    Binary,
    Binomial,
    Discrete,
    Poisson,
    Potts,
    ReLU,
    states,
)
from rbmdiff.models.rbm import RBM
from rbmdiff.sampling.diagnostics import drift, integrated_time, r_hat
from rbmdiff.sampling.gibbs import (
    conditionals,
    gibbs,
    gibbs_chain,
    scan_gibbs,
    spectrum,
    transition_matrix,
    unit_field,
)

DISCRETE = [(v, h) for v in ("bernoulli", "spin") for h in ("bernoulli", "spin")]
PAIRS = [*DISCRETE, ("gaussian", "bernoulli"), ("gaussian", "spin")]
UNITS = ("bernoulli", "spin")
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
quick = settings(max_examples=15, deadline=None)


def cubic(x):
    rows = [0.3, -1.2, 0.7, 0.9], [1.1, 0.4, -0.6, 0.2], [-0.5, 0.8, 1.3, -0.4], [0.6, 0.1, 0.2, 1.0]
    A = torch.tensor(rows, dtype=x.dtype)
    return ((x @ A) ** 3).sum(-1) / 8


def exact_draws(p, V, n,
                seed): return V[torch.multinomial(p, n, replacement=True, generator=seeded(seed))]


# Kernels

@pytest.mark.parametrize("visible, hidden", DISCRETE)
def test_the_kernel_is_stationary_reversible_and_the_sampler_has_it(visible, hidden):
    rbm, V = machine(5, 4, visible, hidden), states(5, visible)
    T, p = transition_matrix(rbm), rbm.log_prob(V).exp()
    flow = p[:, None] * T
    assert max((T.sum(1) - 1).abs().max(), (p @ T - p).abs().max(), (flow - flow.T).abs().max()) < 1e-14
    assert (p @ transition_matrix(rbm.tilt(torch.full_like(rbm.b, 1e-3))) - p).abs().max() > 1e-6
    for k in (0, 13):
        draws = gibbs(rbm, V[k].repeat(2**16, 1), 1, seeded(k))
        row = drift(draws, T[k].clone(), visible)
        assert abs(row.z(0)) < 4 and row.stderr < 0.002 and drift(draws, p, visible).z(0) > 4


@pytest.mark.parametrize("visible, hidden", DISCRETE)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_no_drift(visible, hidden, dtype):
    rbm, V = machine(5, 4, visible, hidden, dtype=dtype), states(5, visible, dtype=dtype)
    p = rbm.log_prob(V).exp()
    v = gibbs(rbm, exact_draws(p, V, 2**16, 2), 7, seeded(3))
    after = drift(v, p, visible)
    other = rbm.tilt(torch.full_like(rbm.b, 0.1)).log_prob(V).exp()  # control: a bias off by a tenth
    assert v.dtype == dtype and abs(after.z(0)) < 4 and after.stderr < 0.002
    assert drift(v, other, visible).z(0) > 4


@pytest.mark.parametrize("hidden", UNITS)
def test_no_drift_of_gaussian_units(hidden):
    rbm, n = machine(3, 4, "gaussian", hidden), 2**16
    H = states(4, hidden)
    p, mu = torch.softmax(-rbm.hidden_free_energy(H), 0), rbm.visible_mean(H)
    truth = torch.cat([p @ mu, p @ mu**2 + rbm.sigma**2]).tolist()
    v = gibbs(rbm, rbm.sample_visible(exact_draws(p, H, n, 4), seeded(5)), 4, seeded(6))
    moments = [Estimate.of(y) for y in torch.cat([v, v**2], 1).T]
    assert max(abs(e.z(t)) for e, t in zip(moments, truth)) < 4 and max(e.stderr for e in moments) < 0.05
    assert max(abs(e.z(t + 0.05)) for e, t in zip(moments, truth)) > 4  # control: moments off by 0.05


def test_a_batch_of_tilted_machines_draws_each_from_its_own():
    rbm, V, n = machine(5, 4), states(5), 2**15
    both = rbm.tilt(some_states((3, 5), "gaussian"))
    p = both.log_prob(V[:, None]).exp()
    start = torch.stack([exact_draws(p[:, k], V, n, k) for k in range(3)], 1)
    v = gibbs(both, start, 3, seeded(9))
    assert v.shape == (n, 3, 5)
    for k in range(3):
        d = [drift(v[:, k], p[:, j].contiguous()).z(0) for j in range(3)]
        assert abs(d.pop(k)) < 4 and min(d) > 4


def test_one_start_for_a_batch_of_machines_gives_independent_chains():
    rbm = machine(6, 4)
    v = gibbs(rbm.tilt(torch.zeros(2000, 6, dtype=torch.float64)), torch.ones(6, dtype=torch.float64),
              1, seeded(0))
    T = transition_matrix(rbm)
    assert v.shape == (2000, 6) and abs(drift(v, T[-1].clone()).z(0)) < 4


@pytest.mark.parametrize("unit", UNITS)
def test_scan_is_the_product_of_its_conditionals(unit):
    X = states(4, unit)
    p, T = torch.softmax(-cubic(X), 0), torch.eye(16, dtype=torch.float64)
    backward = T
    for i in range(4):
        same = (X[:, None] == X).logical_or(torch.arange(4) == i).all(-1).double()
        single = same * p / (same * p).sum(1, keepdim=True)
        T, backward = T @ single, single @ backward
    assert (p @ T - p).abs().max() < 1e-15
    draws = scan_gibbs(cubic, X[5].repeat(2**15, 1), 1, unit, seeded(1))
    assert abs(drift(draws, T[5].clone(), unit).z(0)) < 4 < drift(draws, backward[5].clone(), unit).z(0)
    stay = scan_gibbs(cubic, exact_draws(p, X, 2**15, 2), 4, unit, seeded(3))
    assert abs(drift(stay, p, unit).z(0)) < 4


@pytest.mark.parametrize("visible, hidden", DISCRETE)
def test_unit_field_of_an_rbm_is_a_difference_of_free_energies(visible, hidden):
    rbm, V = machine(5, 3, visible, hidden), states(5, visible)
    log_p = rbm.log_prob(V)
    for i in range(5):
        f = unit_field(rbm.free_energy, V, i, visible)
        partner = V.clone()
        partner[:, i] = 1 - V[:, i] if visible == "bernoulli" else -V[:, i]
        odds = (log_p - rbm.log_prob(partner)) * (2 * (V[:, i] > 0) - 1)
        torch.testing.assert_close(f, odds / (1 if visible == "bernoulli" else 2), rtol=1e-11,
                                   atol=1e-12)


FINITE = [Bernoulli(), Binary((-0.5, 2.0)), Discrete((-1.0, 0.0, 1.0), 0.4), Potts(3), Binomial(2)]


@pytest.mark.parametrize("hidden", FINITE, ids=str)
@pytest.mark.parametrize("visible", FINITE, ids=str)
def test_kernel_of_all_finite_units(visible, hidden):
    rbm = machine(2 * visible.columns, 2 * hidden.columns, visible, hidden, scale=0.5)
    V, S = states(len(rbm.b), visible), states(len(rbm.c), hidden)
    joint = torch.softmax(-rbm.energy(V[:, None], S).flatten(), 0).view(len(V), len(S))
    down, up = conditionals(rbm)
    torch.testing.assert_close(down.exp(), joint / joint.sum(1, keepdim=True), rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(up.exp(), (joint / joint.sum(0)).T, rtol=1e-11, atol=1e-13)
    T, p = transition_matrix(rbm), joint.sum(1)
    flow = p[:, None] * T
    assert max((p @ T - p).abs().max(), (flow - flow.T).abs().max()) < 1e-14
    values = torch.linalg.eigvals(T).real.sort(descending=True).values
    n = min(len(V), len(S))
    torch.testing.assert_close(spectrum(rbm)[:n], values[:n], rtol=0, atol=1e-7)
    row = drift(gibbs(rbm, V[1].repeat(2**13, 1), 1, seeded(1)), T[1].clone(), visible)
    assert abs(row.z(0)) < 4 and row.stderr < 0.006


@pytest.mark.parametrize("unit", FINITE, ids=str)
def test_scan_of_all_finite_units(unit):
    """A sweep over any energy is the product of its conditionals, and keeps exact draws exact."""
    n, q = 3, unit.columns
    X = states(n * q, unit)
    w = torch.randn(n * q, 3, dtype=torch.float64, generator=seeded(7))

    def energy(x):
        return ((x @ w) ** 3).sum(-1) / 8 + (x @ w).sum(-1) / 4
    p, T = torch.softmax(-energy(X), 0), torch.eye(len(X), dtype=torch.float64)
    unit_of = torch.arange(n * q) // q
    for i in range(n):
        same = (X[:, None] == X).logical_or(unit_of == i).all(-1).double()
        single = same * p / (same * p).sum(1, keepdim=True)
        T = T @ single
        fields = unit_field(energy, X, i, unit)
        if fields.ndim == 1: stay = torch.exp(fields * X[:, i] - unit.log_norm(fields))
        else: stay = torch.exp(-energy(X) - fields.logsumexp(-1))
        torch.testing.assert_close(stay, single.diagonal(), rtol=1e-9, atol=1e-12)
    draws = scan_gibbs(energy, X[1].repeat(2**13, 1), 1, unit, seeded(1))
    row = drift(draws, T[1].clone(), unit)
    assert abs(row.z(0)) < 4 and row.stderr < 0.006
    stay = drift(scan_gibbs(energy, exact_draws(p, X, 2**13, 2), 2, unit, seeded(3)), p, unit)
    assert abs(stay.z(0)) < 4 < drift(scan_gibbs(lambda x: -energy(x), draws, 2, unit, seeded(3)), p,
                                      unit).z(0)


@pytest.mark.parametrize("visible, hidden", DISCRETE)
def test_spectrum(visible, hidden):
    rbm = machine(5, 7, visible, hidden)
    direct = torch.linalg.eigvals(transition_matrix(rbm))
    assert direct.imag.abs().max() < 1e-9
    torch.testing.assert_close(spectrum(rbm), direct.real.sort(descending=True).values, rtol=0,
                               atol=1e-9)


def test_spectrum_of_two_spins():
    rbm = RBM(1, 1, "spin", "spin", dtype=torch.float64).requires_grad_(False)
    for w in (0.0, 0.3, -1.0, 4.0):
        rbm.W.fill_(w)
        assert spectrum(rbm)[1].item() == pytest.approx(math.tanh(w) ** 2, abs=1e-14)


# Shapes, streams, side effects

@pytest.mark.parametrize("visible, hidden", PAIRS)
@quick
@given(batch=st.lists(st.integers(1, 3), max_size=3), D=st.integers(1, 5), H=st.integers(1, 5),
       steps=st.integers(1, 3), double=st.booleans())
def test_shapes_dtypes_and_the_stream(visible, hidden, batch, D, H, steps, double):
    dtype = torch.float64 if double else torch.float32
    rbm = machine(D, H, visible, hidden, dtype=dtype).requires_grad_()
    v = some_states((*batch, D), visible, dtype=dtype)
    before = v.clone()
    a, b = gibbs(rbm, v, steps, seeded(4)), list(islice(gibbs_chain(rbm, v, seeded(4)), steps))[-1]
    assert a.shape == v.shape and a.dtype == dtype and not a.requires_grad and not b.requires_grad
    assert torch.equal(a, b) and torch.equal(v, before) and torch.is_grad_enabled()


KINDS = ["bernoulli", "spin", "gaussian", ReLU(), Poisson(), Potts(2), Discrete((-1.0, 0.0, 1.0))]


@pytest.mark.parametrize("visible", KINDS, ids=str)
def test_every_row_has_its_own_stream(visible):
    rbm = machine(4, 3, visible, scale=0.4)
    v = rbm.sample(5, generator=1)
    whole = gibbs(rbm, v, 3, [10, 11, 12, 13, 14])
    chain = next(islice(gibbs_chain(rbm, v, [10, 11, 12, 13, 14]), 2, None))
    for k in range(5):
        alone = gibbs(rbm, v[k:k + 1], 3, [10 + k])
        torch.testing.assert_close(alone[0], whole[k], rtol=1e-13, atol=1e-13)
    assert torch.equal(chain, whole)
    assert torch.equal(gibbs(rbm, v, 3, 7), gibbs(rbm, v, 3, seeded(7))) and len(whole.unique(dim=0)) > 1
    batch = rbm.tilt(0.2 * torch.ones(5, 4, dtype=torch.float64))
    # one stream a machine, two chains each
    many = gibbs(batch, v.expand(2, 5, 4), 2, [10, 11, 12, 13, 14])
    one = gibbs(batch.sharing(b=batch.b[3:4]), v[3].expand(2, 1, 4), 2, [13])
    torch.testing.assert_close(one[:, 0], many[:, 3], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("unit", ["bernoulli", "spin", Discrete((-1.0, 0.0, 1.0)), Potts(2)], ids=str)
def test_every_row_of_a_scan_has_its_own_stream(unit):
    x = states(4, unit)[[0, 1, 2, 3]]
    whole = scan_gibbs(cubic, x, 2, unit, [5, 6, 7, 8])
    for k in range(4):
        assert torch.equal(scan_gibbs(cubic, x[k:k + 1], 2, unit, [5 + k])[0], whole[k])


def test_scan_leaves_its_argument_alone_and_takes_any_batch():
    for shape in ((4,), (3, 4), (2, 3, 4)):
        x = some_states(shape, "spin")
        before = x.clone()
        y = scan_gibbs(cubic, x, 2, "spin", seeded(0))
        assert y.shape == x.shape and torch.equal(x, before) and torch.equal((y * y), torch.ones_like(y))
        assert torch.equal(y, scan_gibbs(cubic, x, 2, "spin", seeded(0)))


@pytest.mark.cuda
@cuda
@pytest.mark.parametrize("visible, hidden", DISCRETE)
def test_cuda_kernel(visible, hidden):
    rbm, V = machine(5, 4, visible, hidden).cuda(), states(5, visible, device="cuda")
    T, g = transition_matrix(rbm), torch.Generator("cuda").manual_seed(0)
    assert abs(drift(gibbs(rbm, V[7].repeat(2**16, 1), 1, g), T[7].clone(), visible).z(0)) < 4
    torch.testing.assert_close(spectrum(rbm).cpu(), spectrum(rbm.cpu()), rtol=0, atol=1e-12)
    x = torch.randn(4, 100, device="cuda")
    assert r_hat(x).is_cuda and integrated_time(x).is_cuda


# Bad input

RBM43 = RBM(4, 3)
GOOD = torch.zeros(2, 4)


@pytest.mark.parametrize("call, kind, match", (
    (lambda: gibbs(RBM43, torch.zeros(2, 5), 1), ValueError,
     r"^v must have shape \[..., 4\], got \[2, 5\]"),
    (lambda: gibbs(RBM43, torch.tensor(0.0), 1), ValueError, "^v must"),
    (lambda: gibbs(RBM43, GOOD.long(), 1), TypeError, "^v must be float32"),
    (lambda: gibbs(RBM43, GOOD.half(), 1), TypeError, "^v must be float32"),
    (lambda: gibbs(RBM43, GOOD * 1j, 1), TypeError, "^v must"),
    (lambda: gibbs(RBM43, GOOD.double(), 1), TypeError, "^v must be torch.float32 like"),
    (lambda: gibbs(RBM43, GOOD + math.nan, 1), ValueError, "^v must be finite"),
    (lambda: gibbs(RBM43, GOOD + 0.3, 1), ValueError, "^v must hold only 0 or 1"),
    (lambda: gibbs(RBM43, GOOD - 1, 1), ValueError, "^v must hold only"),
    (lambda: gibbs(RBM43, torch.zeros(0, 4), 1), ValueError, "^v must not be empty"),
    (lambda: gibbs(RBM(4, 3, "spin"), GOOD, 1), ValueError, "^v must hold only -1 or"),
    (lambda: gibbs(RBM43, GOOD.to("meta"), 1), ValueError, "^v must be on cpu"),
    (lambda: gibbs(RBM43, GOOD, 0), ValueError, "^steps must be at least 1"),
    (lambda: gibbs(RBM43, GOOD, 2.0), TypeError, "^steps must be an int"),
    (lambda: gibbs(RBM43.tilt(torch.zeros(3, 4)), GOOD, 1), ValueError,
     r"^v must fit a batch of machines \[3, 4\], got \[2, 4\]"),
    (lambda: gibbs_chain(RBM43, GOOD + 0.3), ValueError, "^v must hold"),
    (lambda: gibbs_chain(RBM43, GOOD[:, :3]), ValueError, "^v must have shape"),
    (lambda: scan_gibbs(RBM43.free_energy, GOOD + 0.5), ValueError, "^x must hold only"),
    (lambda: scan_gibbs(RBM43.free_energy, GOOD, 0), ValueError, "^sweeps must"),
    (lambda: scan_gibbs(RBM43.free_energy, GOOD, 1, "gaussian"), ValueError, "^unit must"),
    (lambda: scan_gibbs(lambda x: x, GOOD), ValueError, "^energy must map shape"),
    (lambda: scan_gibbs(lambda x: x.sum(), GOOD), ValueError, "^energy must map"),
    (lambda: scan_gibbs(RBM43.free_energy, torch.tensor(1.0)), ValueError, "^x must have shape"),
    (lambda: scan_gibbs(RBM43.free_energy, GOOD.int()), TypeError, "^x must"),
    (lambda: unit_field(lambda x: x, GOOD, 0), ValueError, "^energy must"),
    (lambda: unit_field(lambda x: x.sum(-1), GOOD, 0, "relu"), ValueError, "^unit must"),
    (lambda: unit_field(lambda x: x.sum(-1), GOOD, 4), ValueError, "^i must"),
    (lambda: transition_matrix(RBM(13, 3)), ValueError, "^rbm must have D <= 12"),
    (lambda: transition_matrix(RBM(4, 3, "gaussian")), ValueError,
     "^rbm must have visible units with a list"),
    (lambda: spectrum(RBM(4, 3, "spin", "relu")), ValueError,
     "^rbm must have D \\+ H <= 24 bits .* got inf"),
    (lambda: gibbs(machine(4, 3, "gaussian", "relu", scale=3.0), GOOD.double(), 1), ValueError,
     "cannot be normalised"),
    (lambda: gibbs(RBM43, GOOD, 1, "now"), TypeError, "^generator"),
    (lambda: gibbs(RBM43, GOOD, 1, [1, 2, 3]), ValueError, "^generator must hold one stream a sample"),
    (lambda: gibbs(RBM43.W.detach(), GOOD, 1), TypeError, "^rbm must be an RBM"),
    (lambda: scan_gibbs(RBM43.free_energy, GOOD[:, :3], 1, Potts(2)), ValueError, "n a multiple of 2"),
    (lambda: spectrum(RBM43.tilt(GOOD)), ValueError, "^rbm must be one machine"),
    (lambda: spectrum(RBM(12, 13)), ValueError, "D \\+ H <= 24")))
def test_bad_input(call, kind, match):
    with pytest.raises(kind, match=match): call()
