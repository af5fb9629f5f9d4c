"""learning.partition: both directions against enumeration, error bars that cover, and the doors."""

import dataclasses
from itertools import pairwise
import math

from hypothesis import given, settings, strategies as st
import pytest
import torch

from machines import machine as any_machine
from rbmdiff.foundations import kernels
from rbmdiff.foundations.core import Estimate, log_mean_exp
from rbmdiff.foundations.units import states
from rbmdiff.learning import partition
from rbmdiff.learning.partition import (
    LogZ,
    ais,
    bracket,
    default_base,
    free_energy_gap,
    log_likelihood,
    reverse_ais,
    temperatures,
)
from rbmdiff.models import rbm
from rbmdiff.models.rbm import RBM
from rbmdiff.sampling.tempering import log_mass

KINDS = [(v, h) for v in ("bernoulli", "spin", "gaussian") for h in ("bernoulli", "spin")]
PATH = torch.tensor([0.0, 0.3, 0.6, 1.0], dtype=torch.float64)


def machine(visible="bernoulli", hidden="bernoulli", D=5, H=3, scale=0.5, seed=0, dtype=torch.float64):
    """A machine with random parameters and a random base bias."""
    m = any_machine(D, H, visible, hidden, seed, scale, dtype, widths=(0.8, 1.2)).requires_grad_()
    base = scale * torch.randn(len(m.W), dtype=torch.float64,
                               generator=torch.Generator().manual_seed(seed + 99))
    return m, base.to(dtype)


def exact_draws(m, n, generator):
    """Independent exact draws [n, D]."""
    return m.sample(n, generator=generator)


def noise(seed=1): return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------ exactness

@pytest.mark.parametrize("visible, hidden", KINDS)
def test_both_directions_are_unbiased(visible, hidden):
    m, base = machine(visible, hidden)
    log_z, g, n = m.log_partition().item(), noise(), 2**16
    forward = Estimate.of(torch.exp(ais(m, n, generator=g, base=base, betas=PATH).log_weights - log_z))
    back = reverse_ais(m, exact_draws(m, n, g), generator=g, base=base, betas=PATH).log_weights
    backward = Estimate.of(torch.exp(log_z - back))
    for estimate in (forward, backward): assert abs(estimate.z(1)) < 4 and estimate.stderr < 0.03
    # controls: a log Z that is wrong by 0.2 nats; the forward formula on backward weights
    assert abs(Estimate.of(torch.exp(back - log_z)).z(1)) > 5
    assert abs(forward.z(math.exp(0.2))) > 6 and abs(backward.z(math.exp(0.2))) > 6


@pytest.mark.parametrize("visible, hidden", KINDS[:4])
def test_mean_weight_is_exact_by_transfer_matrices(visible, hidden):
    """All randomness removed: E[w] as a product of matrices over all visible states, for the path of the
    module."""
    m, base = machine(visible, hidden, D=4)
    V, H = states(4, visible), states(3, hidden)
    with torch.no_grad():
        def log_f(beta):
            bias = (1 - beta) * base + beta * m.b
            return V @ bias + torch.logsumexp(beta * (V @ m.W + m.c) @ H.T, 1)

        def step(beta):
            # [V, H]
            joint = V @ ((1 - beta) * base + beta * m.b + beta * (H @ m.W.T)).T + beta * (H @ m.c)
            return torch.softmax(joint, 1) @ torch.softmax(joint, 0).T

        def mean_weight(lag):
            mass = torch.exp(log_f(0.0))
            for now, new in pairwise(PATH):
                mass = (mass * torch.exp(log_f(new) - log_f(now))) @ step(now if lag else new)
            return mass.sum().log().item()
        truth = m.log_partition().item()
        assert abs(mean_weight(False) - truth) < 1e-12 and abs(mean_weight(True) - truth) > 1e-3
  # the module's log-ratios are those of log_f: one chain for every state, the draws replaced by the
  # states
        for now, new in zip(PATH[:-1].tolist(), PATH[1:].tolist()):
            got = partition._anneal(m, base, V, torch.tensor([now, new]), None, False)[0]
            assert torch.allclose(got, log_f(new) - log_f(now), atol=1e-6)
        assert abs(partition._log_z0(m, base) - log_f(0.0).logsumexp(0).item()) < 1e-12


@pytest.mark.parametrize("visible, hidden", KINDS)
def test_independent_units_need_no_luck(visible, hidden):
    m, _ = machine(visible, hidden)
    m.W.data.zero_()
    z = ais(m, 5, 3, noise(), base=m.b.detach())
    assert torch.allclose(z.log_weights, m.log_partition().double().expand(5), atol=1e-12)
    assert z.stderr < 1e-12 and abs(z.ess - 5) < 1e-9


def test_final_states_are_weighted_draws_of_the_machine():
    m, base = machine("spin", "spin", scale=0.6)
    z = ais(m, 2**16, generator=noise(), base=base, betas=PATH)
    V = states(5, "spin")
    truth = torch.exp(m.log_prob(V).detach()) @ V
    w = torch.exp(z.log_weights - m.log_partition().item())
    weighted, plain = w[:, None] * z.states, z.states
    for draws, close in ((weighted, True), (plain, False)):
        largest = max(abs(Estimate.of(column).z(t)) for column, t in zip(draws.T, truth.tolist()))
        assert largest < 4 if close else largest > 6


def test_tilted_machine():
    m, base = machine()
    tilted = m.tilt(torch.full((5,), 0.3, dtype=torch.float64))
    z = ais(tilted, 4000, 30, noise(), base=base)
    assert abs(z.z(tilted.log_partition().item())) < 4 and z.stderr < 0.01
    assert abs(z.z(m.log_partition().item())) > 20


# ------------------------------------------------------------------ error bars

def test_error_bars_cover_and_both_sides_are_bounds():
    m, base = machine("bernoulli", "bernoulli", 8, 4, scale=1.0)
    truth, g, runs, n = m.log_partition().item(), noise(3), 400, 64
    up = ais(m, runs * n, 60, g, base=base)
    down = reverse_ais(m, exact_draws(m, runs * n, g), 60, g, base=base)
    for whole, sign in ((up, 1), (down, -1)):
        parts = [LogZ.from_weights(w, v, sign)
                 for w, v in zip(whole.log_weights.split(n), whole.states.split(n))]
        inside, half = (sum(abs(p.z(truth)) < width for p in parts) / runs for width in (2, 1))
        band = 4 * math.sqrt(0.95 * 0.05 / runs)
        assert abs(inside - 0.95) < band and half < 0.95 - 2 * band
        assert sign * Estimate.of(whole.log_weights).z(truth) < -4  # Jensen's inequality, each side
        assert sum(sign * (p.value - truth) > 1 for p in parts) / runs < math.exp(-1)   # Markov's


def test_gap_shrinks_like_one_over_k():
    m, base = machine("bernoulli", "bernoulli", 8, 4, scale=1.0)
    g = noise(4)

    def gap(K):
        up, down = ais(m, 20000, K, g, base=base), reverse_ais(m, exact_draws(m, 20000, g), K, g,
                                                               base=base)
        return (down.log_weights.mean() - up.log_weights.mean()).item()
    assert 2.5 < gap(15) / gap(60) < 4.7


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-1000, 1000), min_size=2, max_size=30), st.sampled_from([1, -1]))
def test_estimate_of_any_weights(values, sign):
    log_w = torch.tensor(values, dtype=torch.float64)
    z = LogZ.from_weights(log_w, log_w[:, None], sign)
    assert min(values) - 1e-9 <= z.value <= max(values) + 1e-9
    assert 0 <= z.stderr <= 1 + 1e-12 and 1 - 1e-9 <= z.ess <= len(values) + 1e-9
    assert math.isclose(z.ess, 1 / torch.softmax(sign * log_w, 0).square().sum().item(), rel_tol=1e-6)
    assert math.isclose(LogZ.from_weights(log_w + 7, log_w[:, None], sign).value, z.value + 7,
                        abs_tol=1e-9)
    assert math.isclose(z.value, sign * log_mean_exp(sign * log_w).item())


def test_estimate_prints_and_is_frozen():
    z = ais(machine()[0], 50, 10, noise())
    assert str(z) == str(Estimate(z.value, z.stderr, z.n)) and "±" in str(z) and "tensor" not in repr(z)
    assert isinstance(z, Estimate) and z.log_weights.shape == (50,)
    assert z.log_weights.dtype == torch.float64
    assert z.states.shape == (50, 5) and z == dataclasses.replace(z)
    with pytest.raises(dataclasses.FrozenInstanceError): z.value = 0.0


# ------------------------------------------------------------------ reproducibility, dtype, work

def test_reproducible_and_free_of_the_global_generator():
    m, base = machine()
    before = torch.get_rng_state()
    a, b, c = (ais(m, 20, 15, noise(s), base=base) for s in (1, 1, 2))
    v = exact_draws(m, 20, noise())
    r, q = (reverse_ais(m, v, 15, noise(1), base=base) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(a.log_weights, b.log_weights) and not torch.equal(a.log_weights, c.log_weights)
    assert torch.equal(r.log_weights, q.log_weights)
    assert not a.log_weights.requires_grad and not a.states.requires_grad


def test_float32_keeps_its_digits():
    """The same walk in both precisions: states that no rounding can change, so only the weights
    differ."""
    m, base = machine("bernoulli", "bernoulli", 40, 30, scale=0.2)
    m.W.data.zero_()
    m.b.data.copy_(base)
    double = ais(m, 4, 2000, noise(), base=base).log_weights
    single = ais(m.float(), 4, 2000, noise(), base=base.float()).log_weights
    assert single.dtype == torch.float64 and (single - double).abs().max() < 1e-4


def test_two_matrix_products_a_temperature(monkeypatch):
    m, base = machine()
    shapes, product = [], kernels.affine

    def counted(x, weight, bias=None):
        shapes.append(list(weight.shape))
        return product(x, weight, bias)

    for module in (partition, rbm): monkeypatch.setattr(module, "affine", counted)
    ais(m, 3, 7, noise(), base=base)
    assert shapes == [[3, 5], [5, 3]] * 7


def test_progress_bar(capsys):
    m, _ = machine()
    ais(m, 3, 7, noise())
    assert capsys.readouterr().err == ""
    ais(m, 3, 7, noise(), progress=True)
    assert "7/7" in capsys.readouterr().err


# ------------------------------------------------------------------ temperatures, likelihood

@settings(deadline=None, max_examples=40)
@given(st.integers(1, 300), st.floats(0.25, 4))
def test_temperatures(K, power):
    betas = temperatures(K, power)
    assert betas.shape == (K + 1,) and betas.dtype == torch.float64
    assert betas[0] == 0 and betas[-1] == 1 and bool((betas.diff() > 0).all())


def test_log_likelihood():
    m, _ = machine()
    v = states(5)[torch.randint(32, (9000,), generator=noise())]
    exact, log_z = Estimate.of(m.log_prob(v).detach()), m.log_partition().item()
    ours = log_likelihood(m, v.reshape(90, 100, 5), Estimate(log_z, 0.3, 10))
    assert abs(ours.value - exact.value) < 1e-12 and ours.n == 9000
    assert math.isclose(ours.stderr, math.sqrt(exact.stderr**2 + 0.09), rel_tol=1e-9)
    assert log_likelihood(m, v, Estimate(log_z + 1, 0.0, 10)).value < ours.value - 0.9


# ------------------------------------------------------------------ the doors

NAN = torch.full((5,), math.nan, dtype=torch.float64)
V = torch.ones(4, 5, dtype=torch.float64)
BAD = {
    "no chains": (lambda m: ais(m, 0), ValueError, "n_chains"),
    "one chain": (lambda m: ais(m, 1), ValueError, "n_chains"),
    "half a chain": (lambda m: ais(m, 2.5), TypeError, "n_chains"),
    "no temperatures": (lambda m: ais(m, 4, 0), ValueError, "n_temperatures"),
    "no temperatures back": (lambda m: reverse_ais(m, V, 0), ValueError, "n_temperatures"),
    "temperatures by name": (lambda m: ais(m, 4, "many"), TypeError, "n_temperatures"),
    "base NaN": (lambda m: ais(m, base=NAN), ValueError, "base"),
    "base width": (lambda m: ais(m, base=V[0, :4]), ValueError, "base"),
    "base rank": (lambda m: ais(m, base=V), ValueError, "base"),
    "base dtype": (lambda m: ais(m, base=V[0].float()), TypeError, "base"),
    "betas down": (lambda m: ais(m, betas=PATH.flip(0)), ValueError, "betas"),
    "betas short of one": (lambda m: ais(m, betas=PATH / 2), ValueError, "betas"),
    "betas repeat": (lambda m: ais(m, betas=torch.tensor([0.0, 0.5, 0.5, 1.0])), ValueError, "betas"),
    "betas rank": (lambda m: ais(m, betas=PATH[None]), ValueError, "betas"),
    "betas list": (lambda m: ais(m, betas=[0.0, 1.0]), TypeError, "betas"),
    "machine": (lambda m: ais(m.W.detach()), TypeError, "rbm"),
    "batch of machines": (lambda m: ais(m.tilt(V)), ValueError, "rbm"),
    "half machine": (lambda m: ais(m.half()), TypeError, "rbm"),
    "v width": (lambda m: reverse_ais(m, V[:, :4]), ValueError, "v"),
    "v rank": (lambda m: reverse_ais(m, V[0]), ValueError, "v"),
    "v one": (lambda m: reverse_ais(m, V[:1]), ValueError, "v"),
    "v empty": (lambda m: reverse_ais(m, V[:0]), ValueError, "v"),
    "v dtype": (lambda m: reverse_ais(m, V.float()), TypeError, "v"),
    "v integer": (lambda m: reverse_ais(m, V.long()), TypeError, "v"),
    "v not states": (lambda m: reverse_ais(m, V / 2), ValueError, "v"),
    "v spins": (lambda m: reverse_ais(m, -V), ValueError, "v"),
    "v NaN": (lambda m: reverse_ais(m, V * math.nan), ValueError, "v"),
    "power": (lambda m: temperatures(4, 0.0), ValueError, "power"),
    "power NaN": (lambda m: temperatures(4, math.nan), ValueError, "power"),
    "likelihood of greys": (lambda m: log_likelihood(m, V / 2, Estimate(0.0, 0.0, 1)), ValueError, "v"),
    "likelihood of one": (lambda m: log_likelihood(m, V[:1], Estimate(0.0, 0.0, 1)), ValueError, "v"),
    "likelihood without error": (lambda m: log_likelihood(m, V, 3.0), TypeError, "log_z"),
    "generator": (lambda m: ais(m, 4, 3, "now"), TypeError, "generator"),
    "likelihood of a batch": (lambda m: log_likelihood(m.tilt(V), V, Estimate(0.0, 0.0, 1)), ValueError,
                              "rbm"),
    "likelihood of a tensor": (lambda m: log_likelihood(m.W.data, V, Estimate(0.0, 0.0, 1)), TypeError,
                               "rbm"),
}


@pytest.mark.parametrize("call, error, name", BAD.values(), ids=BAD)
def test_refused(call, error, name):
    with pytest.raises(error, match=rf"^{name}\b"): call(machine()[0])


def test_damaged_machine_is_refused():
    m, _ = machine()
    m.W.data[2, 1] = math.nan
    with pytest.raises(ValueError, match=r"^rbm must have finite .*\['W'\]"): ais(m, 4, 3)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("visible, hidden", KINDS)
def test_cuda(visible, hidden):
    m, base = machine(visible, hidden)
    truth, draws = m.log_partition().item(), exact_draws(m, 4000, noise()).cuda()
    m, base, g = m.cuda(), base.cuda(), torch.Generator("cuda").manual_seed(0)
    for z in (ais(m, 4000, 100, g, base=base), reverse_ais(m, draws, 100, g, base=base)):
        assert abs(z.z(truth)) < 4 and z.stderr < 0.02 and z.log_weights.is_cuda and z.states.is_cuda
    with pytest.raises(ValueError, match="^base"): ais(m, base=base.cpu())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_widths_that_are_no_numbers(value):
    rbm = RBM(4, 3, "gaussian")
    rbm.log_sigma.data[1] = value
    for call in (lambda: ais(rbm, 5, 5), lambda: reverse_ais(rbm, torch.zeros(5, 4), 5)):
        with pytest.raises(ValueError, match=r"^rbm must .* infinity in \['log_sigma'\]"): call()


def test_pairs_that_cannot_be_normalised():
    wild = any_machine(4, 3, "gaussian", "gaussian", scale=2.0)
    for call in (lambda: ais(wild, 5, 5), lambda: reverse_ais(wild, torch.zeros(5, 4).double(), 5)):
        with pytest.raises(ValueError, match=r"cannot be normalised: .* with \d+"): call()


@pytest.mark.parametrize("visible",
                         ["bernoulli", "spin", "gaussian", "relu", "poisson", "potts(5)", "binomial(3)"])
def test_every_chain_has_its_own_stream(visible):
    m, base = machine(visible, scale=0.3)
    whole = ais(m, 4, 7, [3, 4, 5, 6], base=base)
    v = m.sample(4, generator=1)
    back = reverse_ais(m, v, 7, [3, 4, 5, 6], base=base)
    for k in range(4):
        other = 40 + k
        alone = ais(m, 2, 7, [3 + k, other], base=base)
        torch.testing.assert_close(alone.log_weights[0], whole.log_weights[k], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(alone.states[0], whole.states[k], rtol=1e-12, atol=1e-12)
        alone = reverse_ais(m, v[[k, k]], 7, [3 + k, other], base=base)
        torch.testing.assert_close(alone.log_weights[0], back.log_weights[k], rtol=1e-12, atol=1e-12)
    assert torch.equal(ais(m, 4, 7, 5, base=base).states, ais(m, 4, 7, noise(5), base=base).states)
    with pytest.raises(ValueError, match="^generator must hold one stream a sample"):
        ais(m, 4, 7, [1, 2])


def test_chains_draw_from_streams_of_their_own():
    rbm, v = machine()[0], (torch.rand(3, 5, generator=torch.Generator().manual_seed(0)) < 0.5).double()
    together, alone = (ais(rbm, 3, 6, generator=g) for g in ([4, 5, 6], [7, 5, 8]))
    assert torch.equal(together.states[1], alone.states[1])
    assert together.log_weights[1] == alone.log_weights[1]
    assert not torch.equal(together.log_weights, alone.log_weights)
    back, other = (reverse_ais(rbm, v, 6, generator=g) for g in ([4, 5, 6], [7, 5, 8]))
    assert back.log_weights[1] == other.log_weights[1]
    assert ais(rbm, 3, 6, generator=9) == ais(rbm, 3, 6, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("visible", ["bernoulli", "spin", "gaussian", "relu", "potts(5)", "binomial(3)"])
def test_the_default_base_halves_the_error_of_fair_coins(visible):
    rbm = any_machine(20, 8, visible, scale=0.4)
    rbm.b *= 4
    log_z = rbm.log_partition().item()
    coins = ais(rbm, 400, 200, noise(), base=torch.zeros_like(rbm.b))
    ours = ais(rbm, 400, 200, noise())
    assert abs(ours.z(log_z)) < 4 and ours.stderr < coins.stderr / 2
    torch.testing.assert_close(default_base(rbm), rbm.b + rbm.W.sum(1) / 2, rtol=1e-12, atol=0)


def test_ais_of_real_units_far_from_zero_needs_no_data():
    rbm = any_machine(20, 8, "gaussian", scale=0.3, dtype=torch.float32)
    rbm.b += 1e4
    rbm.c.copy_(-(rbm.b / rbm.sigma**2) @ rbm.W)
    log_z = ais(rbm, 1000, 300, noise())
    assert abs(log_z.z(rbm.log_partition().item())) < 4 and log_z.stderr < 0.05


def test_mixed_precision_does_not_reach_annealing():
    rbm = any_machine(8, 4, dtype=torch.float32)
    both = lambda: (ais(rbm, 10, 20, 1), reverse_ais(rbm, v, 20, 1))
    v = rbm.sample(9, generator=0)
    with torch.autocast("cpu", torch.bfloat16): inside = both()
    assert inside == both()


# ------------------------------------------------------------------ brackets that are none

@pytest.mark.parametrize("visible", ["bernoulli", "spin", "potts(2)", "binomial(2)"])
def test_the_mass_of_all_states_is_z_however_often_they_stand_there(visible):
    rbm = any_machine(4, 3, visible)
    V, log_z = states(4, visible), rbm.log_partition().item()
    assert abs(log_mass(rbm, torch.cat([V, V[:3], V])) - log_z) < 1e-12
    assert log_mass(rbm, V[1:]) < log_z - 1e-4


def test_real_numbers_have_no_mass_and_counts_have():
    assert log_mass(any_machine(4, 3, "gaussian"), torch.zeros(3, 4).double()) == -math.inf
    counts = any_machine(2, 3, "poisson", scale=0.3)
    v = torch.cartesian_prod(*2 * [torch.arange(40.0)]).double()
    assert abs(log_mass(counts, v) - counts.log_partition().item()) < 1e-10


def stuck():
    """A machine of 50 bits that is nowhere near its data, all 0 and all 1, and those."""
    rbm = RBM(50, 22, dtype=torch.float64).requires_grad_(False)
    rbm.W.copy_(0.3 * torch.randn(50, 22, dtype=torch.float64, generator=noise()))
    return rbm, torch.tensor([[0.0], [1.0]], dtype=torch.float64).expand(2, 50).repeat(20, 1)


def test_log_z_below_the_mass_of_the_data_is_refused():
    rbm, v = stuck()
    mass = log_mass(rbm, v)
    with pytest.raises(ValueError, match="^log_z must be at least .* mass of the states v alone"):
        log_likelihood(rbm, v, Estimate(mass - 22, 0.28, 100))
    found = log_likelihood(rbm, v, Estimate(mass - 0.3, 0.2, 100))
    assert found.value <= 0 and found.value == pytest.approx((-rbm.free_energy(v)).mean().item() - mass)


def test_no_log_likelihood_of_bits_is_positive():
    rbm, v = stuck()
    exact = rbm.log_partition().item()
    for log_z in (exact, exact - 0.5):
        assert log_likelihood(rbm, v, Estimate(log_z, 0.0, 1)).value < 0
    one = v[:1].expand(5, -1)
    assert log_likelihood(rbm, one, Estimate(log_mass(rbm, one) - 0.9, 0.0, 1)).value == 0


def test_bounds_that_cross_are_named_as_what_they_are():
    up, down = Estimate(139.65, 0.05, 100), Estimate(81.94, 0.28, 100)
    with pytest.raises(ValueError, match="^backward must not lie .* are no draws of the machine"):
        bracket(up, down)
    assert bracket(Estimate(139.6, 0.05, 100), Estimate(139.7, 0.1, 100)) == (139.6, 139.7)
    assert bracket(Estimate(139.7, 0.05, 100), Estimate(139.6, 0.1, 100)) == (139.6, 139.7)


def test_free_energy_gap():
    m, _ = machine(D=6, H=4, scale=1.0)
    train, held_out = exact_draws(m, 50, noise(1)), exact_draws(m, 30, noise(2))
    with torch.no_grad(): truth = m.log_prob(train).mean() - m.log_prob(held_out).mean()
    assert free_energy_gap(m, train, held_out) == pytest.approx(truth.item(), abs=1e-12)

    class Energy(torch.nn.Module):
        def free_energy(self, v): return v.sum(-1)
    assert free_energy_gap(Energy(), torch.zeros(4, 2), torch.ones(3, 2)) == 2
