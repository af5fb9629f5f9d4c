"""Measures of mixing against known processes and ArviZ; the drift against all possible draws."""
from itertools import islice
import math

import numpy as np
import pytest
import torch

from machines import machine, seeded
from rbmdiff.foundations.core import Estimate
from rbmdiff.foundations.units import Discrete, Potts, states
from rbmdiff.models.rbm import RBM
from rbmdiff.sampling.diagnostics import (
    autocorrelation,
    chain_estimate,
    drift,
    effective_sample_size,
    gibbs_r_hat,
    integrated_time,
    r_hat,
    state_numbers,
)
from rbmdiff.sampling.gibbs import gibbs_chain, spectrum, transition_matrix


def exact_draws(p, V, n, seed):
    return V[torch.multinomial(p, n, replacement=True, generator=seeded(seed))]


# Drift

def test_the_floor_of_the_total_variation_is_exact():
    p = torch.tensor([0.5, 0.25, 0.2, 0.05], dtype=torch.float64)
    V, n = states(2), 3
    total = 0.0
    for index in torch.cartesian_prod(*[torch.arange(4)] * n):
        total += p[index].prod().item() * drift(V[index], p).value
    assert abs(total) < 1e-15
    sure = drift(V[[0, 0]], torch.tensor([1.0, 0, 0, 0], dtype=torch.float64))
    assert sure.value == 0
    assert drift(V[[1, 1]], torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)).value == 1


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
    # ArviZ adds one more term at the end
    assert effective_sample_size(x).item() == pytest.approx(ess, rel=0.01)


@pytest.mark.parametrize("phi", (0.95, 0.6, 0.0, -0.4))
def test_autoregressions_have_the_known_time(phi):
    g, n = seeded(5), 4000
    x = torch.randn(40, 8, dtype=torch.float64, generator=g)
    noises = (1 - phi**2) ** 0.5 * torch.randn(n, 40, 8, dtype=torch.float64, generator=g)
    rows = [x := phi * x + noise for noise in noises]
    tau = Estimate.of(integrated_time(torch.stack(rows, -1)))
    truth = (1 + phi) / (1 - phi)
    assert tau.stderr < 0.03 * truth and abs(tau.value / truth - 1) < 0.05 + 4 * tau.stderr / truth
    # control: the factor two forgotten
    assert abs((1 + (tau.value - 1) / 2) / truth - 1) > 0.2 or phi == 0


def test_the_slowest_statistic_of_a_machine_has_the_time_of_its_second_eigenvalue():
    """Along the second eigenvector of T, autocorrelation is exactly lambda_2^t."""
    rbm, V = machine(5, 4, "spin", "spin", scale=0.5), states(5, "spin")
    T, p = transition_matrix(rbm), rbm.log_prob(V).exp()
    values, vectors = torch.linalg.eigh(p.sqrt()[:, None] * T / p.sqrt())
    f, lam = vectors[:, -2] / p.sqrt(), values[-2].item()
    start = exact_draws(p, V, 320, 1).view(40, 8, 5)
    powers = 2 ** torch.arange(5)
    x = torch.stack([f[(v > 0).long() @ powers]
                     for v in islice(gibbs_chain(rbm, start, seeded(2)), 3000)], -1)
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


def two_modes(weight):
    """A machine of 50 spins that all lean to one hidden spin."""
    rbm = RBM(50, 1, "spin", "spin").requires_grad_(False)
    rbm.W.fill_(weight)
    return rbm


def test_steps_that_are_not_enough_are_seen_from_free_starts():
    v = torch.ones(20, 50)
    assert gibbs_r_hat(two_modes(0.6), v, 100, 0) > 1.3              # no chain changes its mode
    assert gibbs_r_hat(two_modes(0.05), v, 200, 0) < 1.01
    rbm = machine(12, 4, scale=0.3)
    assert gibbs_r_hat(rbm, rbm.sample(50, generator=1), 200, 0) < 1.01


def test_chains_of_gibbs_r_hat_have_streams_of_their_own():
    rbm, v = machine(6, 3), machine(6, 3).sample(3, generator=1)
    assert gibbs_r_hat(rbm, v, 40, range(6)) == gibbs_r_hat(rbm, v, 40, [seeded(k) for k in range(6)])
    with pytest.raises(ValueError, match="^generator"): gibbs_r_hat(rbm, v, 40, range(3))
    with pytest.raises(ValueError, match="^steps must be at least 32"): gibbs_r_hat(rbm, v, 31)
    with pytest.raises(ValueError, match="^v must have shape"): gibbs_r_hat(rbm, v[0], 40)


def test_chain_estimate_of_independent_draws_is_the_plain_one():
    x = torch.randn(8, 5000, dtype=torch.float64, generator=seeded(0))
    ours, plain = chain_estimate(x), Estimate.of(x.flatten())
    assert ours.value == pytest.approx(plain.value, abs=1e-15)
    assert ours.stderr == pytest.approx(plain.stderr, rel=0.05)
    assert abs(ours.n / 40000 - 1) < 0.1


@pytest.mark.parametrize("unit", ["bernoulli", "spin", Discrete((-1.0, 0.5, 2.0)), Potts(3)], ids=str)
def test_states_are_numbered_in_the_order_of_their_list(unit):
    V = states(6, unit)
    assert torch.equal(state_numbers(V, unit), torch.arange(len(V)))
    assert state_numbers(V[:6].view(2, 3, 6), unit).shape == (2, 3)
    p = torch.full((len(V),), 1 / len(V), dtype=torch.float64)
    index = torch.randint(len(V), (20_000,), generator=seeded(1))
    fair, off = drift(V[index], p, unit), drift(V[index // 2 * 2], p, unit)
    assert abs(fair.z(0)) < 4 < off.z(0)


# Bad input

GOOD = torch.zeros(2, 4)


@pytest.mark.parametrize("call, kind, match", (
    (lambda: drift(GOOD, torch.ones(8) / 8), ValueError, r"^p must have shape \[..., 16\]"),
    (lambda: drift(GOOD, torch.ones(16)), ValueError, "^p must be"),
    (lambda: drift(torch.tensor(1.0), torch.ones(2) / 2), ValueError, "^v must have shape"),
    (lambda: drift(GOOD + 0.5, torch.ones(16) / 16), ValueError, "^v must hold"),
    (lambda: drift(GOOD, torch.eye(16)), ValueError, "^p must be"),
    (lambda: drift(GOOD, torch.ones(16) / 16, "relu"), ValueError, "^unit must have a list of states"),
    (lambda: state_numbers(GOOD[:, :3], Potts(2)), ValueError, "^v must have shape"),
    (lambda: r_hat(torch.ones(4, 100)), ValueError, "^x must vary"),
    (lambda: r_hat(torch.randn(100)), ValueError, "^x must have shape"),
    (lambda: r_hat(torch.randn(4, 10)), ValueError, "draws >= 16"),
    (lambda: integrated_time(torch.randn(4, 15)), ValueError, "draws >= 16"),
    (lambda: autocorrelation(torch.randn(4, 7)), ValueError, "draws >= 8"),
    (lambda: effective_sample_size(torch.full((4, 20), math.nan)), ValueError, "^x must be finite"),
    (lambda: chain_estimate(torch.randn(2, 4, 100)), ValueError,
     r"^x must have shape \[chains, draws\]"),
    (lambda: r_hat(torch.ones(4, 100).long()), TypeError, "^x must be float32"),
    (lambda: r_hat([[1.0, 2.0]]), TypeError, "^x must be a torch.Tensor"),
))
def test_bad_input(call, kind, match):
    with pytest.raises(kind, match=match): call()
