"""Gibbs kernels against enumeration, and the measures of mixing against known processes and ArviZ."""
from itertools import islice
import math

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest
import torch

from rbmdiff.foundations.core import Estimate
from rbmdiff.models.rbm import RBM, states
from rbmdiff.sampling.gibbs import (
    autocorrelation, chain_estimate, drift, effective_sample_size, gibbs, gibbs_chain, integrated_time, r_hat,
    scan_gibbs, spectrum, transition_matrix, unit_field)

DISCRETE = [(v, h) for v in ("bernoulli", "spin") for h in ("bernoulli", "spin")]
PAIRS = [*DISCRETE, ("gaussian", "bernoulli"), ("gaussian", "spin")]
UNITS = ("bernoulli", "spin")
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
quick = settings(max_examples=15, deadline=None)


def seeded(k): return torch.Generator().manual_seed(k)


def machine(D, H, visible="bernoulli", hidden="bernoulli", seed=0, scale=0.6, dtype=torch.float64):
    rbm = RBM(D, H, visible, hidden, dtype=dtype)
    for p in rbm.parameters(): p.data = scale * torch.randn(p.shape, dtype=dtype, generator=seeded(seed + p.numel()))
    if visible == "gaussian": rbm.sigma.data = 0.5 + torch.rand(D, dtype=dtype, generator=seeded(seed))
    return rbm.requires_grad_(False)


def some_states(shape, visible, seed=1, dtype=torch.float64):
    x = torch.randn(shape, dtype=dtype, generator=seeded(seed))
    return x if visible == "gaussian" else (x > 0).to(dtype) if visible == "bernoulli" else (x > 0).to(dtype) * 2 - 1


def cubic(x):
    rows = [0.3, -1.2, 0.7, 0.9], [1.1, 0.4, -0.6, 0.2], [-0.5, 0.8, 1.3, -0.4], [0.6, 0.1, 0.2, 1.0]
    A = torch.tensor(rows, dtype=x.dtype)
    return ((x @ A) ** 3).sum(-1) / 8


def exact_draws(p, V, n, seed): return V[torch.multinomial(p, n, replacement=True, generator=seeded(seed))]


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
    other = rbm.tilt(torch.full_like(rbm.b, 0.1)).log_prob(V).exp()                   # control: a bias off by a tenth
    assert v.dtype == dtype and abs(after.z(0)) < 4 and after.stderr < 0.002 and drift(v, other, visible).z(0) > 4


@pytest.mark.parametrize("hidden", UNITS)
def test_no_drift_of_gaussian_units(hidden):
    rbm, n = machine(3, 4, "gaussian", hidden), 2**16
    H = states(4, hidden)
    p, mu = torch.softmax(-rbm.hidden_free_energy(H), 0), rbm.visible_mean(H)
    truth = torch.cat([p @ mu, p @ mu**2 + rbm.sigma**2]).tolist()
    v = gibbs(rbm, rbm.sample_visible(exact_draws(p, H, n, 4), seeded(5)), 4, seeded(6))
    moments = [Estimate.of(y) for y in torch.cat([v, v**2], 1).T]
    assert max(abs(e.z(t)) for e, t in zip(moments, truth)) < 4 and max(e.stderr for e in moments) < 0.05
    assert max(abs(e.z(t + 0.05)) for e, t in zip(moments, truth)) > 4            # control: moments off by 0.05


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
    v = gibbs(rbm.tilt(torch.zeros(2000, 6, dtype=torch.float64)), torch.ones(6, dtype=torch.float64), 1, seeded(0))
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
        torch.testing.assert_close(f, odds / (1 if visible == "bernoulli" else 2), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("visible, hidden", DISCRETE)
def test_spectrum(visible, hidden):
    rbm = machine(5, 7, visible, hidden)
    direct = torch.linalg.eigvals(transition_matrix(rbm))
    assert direct.imag.abs().max() < 1e-9
    torch.testing.assert_close(spectrum(rbm), direct.real.sort(descending=True).values, rtol=0, atol=1e-9)


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


# Drift

def test_the_floor_of_the_total_variation_is_exact():
    p = torch.tensor([0.5, 0.25, 0.2, 0.05], dtype=torch.float64)
    V, n = states(2), 3
    total = 0.0
    for index in torch.cartesian_prod(*[torch.arange(4)] * n):
        total += p[index].prod().item() * drift(V[index], p).value
    assert abs(total) < 1e-15
    sure = drift(V[[0, 0]], torch.tensor([1.0, 0, 0, 0], dtype=torch.float64))
    assert sure.value == 0 and drift(V[[1, 1]], torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)).value == 1


# Mixing: ArviZ 0.22.0 on these series gives the values below (az.rhat; az.ess(method="mean"))

def series(phi, chains, draws, shift=0.0):
    """A filtered, deterministic pseudo-noise; the last chain is shifted."""
    k = np.arange(chains * draws)
    e = np.sin(0.1 * k**2 + k).reshape(chains, draws)
    x = e.copy()
    for t in range(1, draws): x[:, t] = phi * x[:, t - 1] + e[:, t]
    x[-1] += shift
    return torch.tensor(x)


ARVIZ = {"slow": (series(0.9, 4, 400), 1.071623636046895, 44.71071740158098),
         "fast": (series(0.2, 3, 501, 0.5), 1.0647931242830628, 68.74561550009909),
         "swing": (series(-0.6, 4, 300), 0.9987481059098248, 3695.0174952571497),
         "bits": ((series(0.2, 3, 501, 0.5) > 0).double(), 1.0064853625750678, 1413.5244196897004)}


@pytest.mark.parametrize("name", ARVIZ)
def test_arviz_agrees(name):
    x, rhat, ess = ARVIZ[name]
    assert r_hat(x).item() == pytest.approx(rhat, rel=1e-12)
    assert effective_sample_size(x).item() == pytest.approx(ess, rel=0.01)    # ArviZ adds one more term at the end


@pytest.mark.parametrize("phi", (0.95, 0.6, 0.0, -0.4))
def test_autoregressions_have_the_known_time(phi):
    g, n = seeded(5), 4000
    x, rows = torch.randn(40, 8, dtype=torch.float64, generator=g), []
    for noise in (1 - phi**2) ** 0.5 * torch.randn(n, 40, 8, dtype=torch.float64, generator=g):
        rows.append(x := phi * x + noise)
    tau = Estimate.of(integrated_time(torch.stack(rows, -1)))
    truth = (1 + phi) / (1 - phi)
    assert tau.stderr < 0.03 * truth and abs(tau.value / truth - 1) < 0.05 + 4 * tau.stderr / truth
    assert abs((1 + (tau.value - 1) / 2) / truth - 1) > 0.2 or phi == 0          # control: the factor two forgotten


def test_the_slowest_statistic_of_a_machine_has_the_time_of_its_second_eigenvalue():
    """Along the second eigenvector of T, autocorrelation is exactly lambda_2^t."""
    rbm, V = machine(5, 4, "spin", "spin", scale=0.5), states(5, "spin")
    T, p = transition_matrix(rbm), rbm.log_prob(V).exp()
    values, vectors = torch.linalg.eigh(p.sqrt()[:, None] * T / p.sqrt())
    f, lam = vectors[:, -2] / p.sqrt(), values[-2].item()
    start = exact_draws(p, V, 320, 1).view(40, 8, 5)
    powers = 2 ** torch.arange(5)
    x = torch.stack([f[(v > 0).long() @ powers] for v in islice(gibbs_chain(rbm, start, seeded(2)), 3000)], -1)
    tau, truth = Estimate.of(integrated_time(x)), (1 + lam) / (1 - lam)
    assert lam == pytest.approx(spectrum(rbm)[1].item())
    assert tau.stderr < 0.03 * truth and abs(tau.value / truth - 1) < 0.05
    rho = Estimate.of(autocorrelation(x)[:, 2])
    assert abs(rho.z(lam**2)) < 4 < abs(rho.z(lam))


def test_measures_do_not_depend_on_the_rest_of_the_batch():
    bits = (series(0.3, 4, 64) > 0).double()
    x = torch.stack([series(0.9, 4, 64), series(-0.5, 4, 64), series(0.3, 4, 64, 2.0), bits])
    for f in (autocorrelation, integrated_time, effective_sample_size, r_hat):
        torch.testing.assert_close(f(x)[2], f(x[2]), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(f(x.float())[2], f(x[2]), rtol=1e-4, atol=1e-4)


def test_chains_that_stand_still_apart_have_infinite_r_hat():
    x = torch.arange(4.0)[:, None].expand(4, 100)
    assert r_hat(x).item() == math.inf and effective_sample_size(x).item() < 8


def test_chain_estimate_of_independent_draws_is_the_plain_one():
    x = torch.randn(8, 5000, dtype=torch.float64, generator=seeded(0))
    ours, plain = chain_estimate(x), Estimate.of(x.flatten())
    assert ours.value == pytest.approx(plain.value, abs=1e-15) and ours.stderr == pytest.approx(plain.stderr, rel=0.05)
    assert abs(ours.n / 40000 - 1) < 0.1


# Bad input

RBM43 = RBM(4, 3)
GOOD = torch.zeros(2, 4)


@pytest.mark.parametrize("call, kind, match", (
    (lambda: gibbs(RBM43, torch.zeros(2, 5), 1), ValueError, r"^v must have shape \[..., 4\], got \[2, 5\]"),
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
    (lambda: transition_matrix(RBM(4, 3, "gaussian")), ValueError, "^rbm must be one machine"),
    (lambda: spectrum(RBM43.tilt(GOOD)), ValueError, "^rbm must be one machine"),
    (lambda: spectrum(RBM(12, 13)), ValueError, "D \\+ H <= 24"),
    (lambda: drift(GOOD, torch.ones(8) / 8), ValueError, r"^p must have shape \[..., 16\]"),
    (lambda: drift(GOOD, torch.ones(16)), ValueError, "^p must be"),
    (lambda: drift(torch.tensor(1.0), torch.ones(2) / 2), ValueError, "^v must have shape"),
    (lambda: drift(GOOD + 0.5, torch.ones(16) / 16), ValueError, "^v must hold"),
    (lambda: drift(GOOD, torch.eye(16)), ValueError, "^p must be"),
    (lambda: r_hat(torch.ones(4, 100)), ValueError, "^x must vary"),
    (lambda: r_hat(torch.randn(100)), ValueError, "^x must have shape"),
    (lambda: r_hat(torch.randn(4, 10)), ValueError, "draws >= 16"),
    (lambda: integrated_time(torch.randn(4, 15)), ValueError, "draws >= 16"),
    (lambda: autocorrelation(torch.randn(4, 7)), ValueError, "draws >= 8"),
    (lambda: effective_sample_size(torch.full((4, 20), math.nan)), ValueError, "^x must be finite"),
    (lambda: chain_estimate(torch.randn(2, 4, 100)), ValueError, r"^x must have shape \[chains, draws\]"),
    (lambda: r_hat(torch.ones(4, 100).long()), TypeError, "^x must be float32"),
    (lambda: r_hat([[1.0, 2.0]]), TypeError, "^x must be a torch.Tensor")))
def test_bad_input(call, kind, match):
    with pytest.raises(kind, match=match): call()
