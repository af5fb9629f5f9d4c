"""Lattices of spins: exact sums, samples, means and ground states against enumeration and formulas."""
import math

import pytest
import torch

from machines import seeded
from rbmdiff.foundations.units import states
from rbmdiff.models import ising
from rbmdiff.models.ising import (
    as_rbm,
    exact_samples,
    ground_state,
    halves,
    kac_ward,
    kaufman,
    lattice,
    log_partition,
    means,
    observed,
    onsager,
    score,
)
from rbmdiff.sampling.diagnostics import drift

F64 = torch.float64
T_C = 2 / math.log(1 + math.sqrt(2))
SIZES = [(4, 3), (3, 4), (1, 6), (6, 1), (2, 5), (1, 1)]
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[cuda, pytest.mark.cuda])]


def strip(R, C, *batch, seed=0, dtype=F64, scale=1.0):
    g = seeded(seed)
    return [scale * torch.randn(*batch, *shape, dtype=F64, generator=g).to(dtype)
            for shape in ((R, C - 1), (R - 1, C), (R, C))]


def even_strip(R, C, K, field=0.0):
    return (torch.full((R, C - 1), K, dtype=F64), torch.full((R - 1, C), K, dtype=F64),
            torch.full((R, C), field, dtype=F64))


def table(right, down, field):
    """All states [2^N, R, C] and their log weights."""
    R, C = field.shape
    y = states(R * C, "spin").view(-1, R, C)
    bonds = (right * y[..., 1:] * y[..., :-1]).sum((1, 2)) + (down * y[:, 1:] * y[:, :-1]).sum((1, 2))
    return y, bonds + (field * y).sum((1, 2))


def two_samples(*s): return exact_samples(*s, 2)


@pytest.mark.parametrize("R, C", SIZES)
@pytest.mark.parametrize("scale", (0.1, 1.0, 30.0))
def test_log_z_means_and_ground_state_against_enumeration(R, C, scale):
    s = strip(R, C, scale=scale)
    y, w = table(*s)
    torch.testing.assert_close(log_partition(*s), w.logsumexp(0), rtol=1e-13, atol=1e-12)
    truth = (w.softmax(0)[:, None, None] * y).sum(0)
    torch.testing.assert_close(means(*s), truth, rtol=1e-11, atol=1e-12)
    assert (ground_state(*s) == y[w.argmax()]).all()


def test_gradient_in_the_couplings():
    s = [x.requires_grad_() for x in strip(4, 3)]
    y, w = table(*(x.detach() for x in s))
    found = torch.autograd.grad(log_partition(*s), s[:2])
    p = w.softmax(0)[:, None, None]
    for grad, pairs in zip(found, (y[..., 1:] * y[..., :-1], y[:, 1:] * y[:, :-1])):
        torch.testing.assert_close(grad, (p * pairs).sum(0), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("L, value", [(4, 13.676315241392), (8, 56.924442203019),
                                      (12, 129.893398552170)])
def test_critical_squares(L, value):
    s = even_strip(L, L, 1 / T_C)
    assert abs(log_partition(*s).item() - value) < 1e-11
    assert abs(kac_ward(*s[:2]).item() - value) < 1e-11


def test_posterior_of_nine_pixels():
    x = torch.tensor([[1, 1, -1], [1, -1, -1], [1, 1, 1]], dtype=F64)
    right, down, field = even_strip(3, 3, 0.5)
    field = observed(field, x, 0.2)
    assert abs(log_partition(right, down, field).item() - 9.776249541115767) < 1e-13
    m = means(right, down, field)
    assert abs(m[1, 1].item() - 0.24127094975320107) < 1e-13
    assert abs(m[0, 2].item() + 0.3395920262279145) < 1e-13


def test_chain_correlations():
    right, down, field = even_strip(1, 9, 0.4)
    pinned = field.clone()
    pinned[0, 0] = 40.0                                                  # the first spin is up
    truth = torch.tanh(torch.tensor(0.4, dtype=F64)) ** torch.arange(9, dtype=F64)
    torch.testing.assert_close(means(right, down, pinned)[0], truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("R, C", [(4, 3), (3, 4), (1, 6), (2, 5)])
def test_samples_do_not_drift(R, C):
    s = strip(R, C)
    _, w = table(*s)
    found = drift(exact_samples(*s, 20000, 3).flatten(1), w.softmax(0), "spin")
    assert abs(found.z(0)) <= 4 and found.stderr < 0.004
    weaker = exact_samples(0.5 * s[0], 0.5 * s[1], s[2], 20000, 3)
    assert drift(weaker.flatten(1), w.softmax(0), "spin").z(0) > 10      # control


def test_samples_of_a_glass_of_700_spins_have_its_means():
    s = strip(10, 70, seed=5)
    m, y = means(*s), exact_samples(*s, 4000, 1)
    stderr = ((1 - m**2) / 4000).sqrt().clamp(min=1e-4)
    z = (y.mean(0) - m) / stderr
    assert z.abs().max() < 5 and abs(z.mean() * math.sqrt(700)) < 8 and 0.9 < z.std() < 1.1


def test_batches_and_broadcasting():
    right, down, _ = strip(4, 3)
    field = strip(4, 3, 2, 5, seed=1)[2]
    log_z, m = log_partition(right, down, field), means(right, down, field)
    y = ground_state(right, down, field)
    assert log_z.shape == (2, 5) and m.shape == y.shape == (2, 5, 4, 3)
    for i in range(2):
        for k in range(5):
            one = right, down, field[i, k]
            torch.testing.assert_close(log_z[i, k], log_partition(*one), rtol=1e-14, atol=1e-14)
            torch.testing.assert_close(m[i, k], means(*one), rtol=1e-13, atol=1e-14)
            assert (y[i, k] == ground_state(*one)).all()
    assert exact_samples(right, down, field, 7, 0).shape == (7, 2, 5, 4, 3)


def test_couplings_may_have_the_batch():
    right, down, _ = strip(3, 4, 3)
    field = strip(3, 4)[2]
    log_z, m = log_partition(right, down, field), means(right, down, field)
    assert log_z.shape == (3,) and m.shape == (3, 3, 4)
    torch.testing.assert_close(m[1], means(right[1], down[1], field), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", (torch.float32, F64))
def test_dtypes_and_devices(dtype, device):
    s = [x.to(device) for x in strip(5, 4, dtype=dtype)]
    for x in (log_partition(*s), means(*s), ground_state(*s), exact_samples(*s, 3, 0), kac_ward(*s[:2]),
              score(*s, s[2], 0.5, 0.5), observed(s[2], s[2].sign(), 0.1)):
        assert x.dtype == dtype and x.device.type == device
    truth = log_partition(*(x.double().cpu() for x in s)).item()
    assert abs(log_partition(*s).item() - truth) < (1e-5 if dtype == torch.float32 else 1e-12)
    K = torch.tensor([0.3, 0.4], dtype=dtype, device=device)
    assert all(x.dtype == dtype and x.device.type == device for x in (kaufman(K, 4, 4), *onsager(K)))


def test_generators():
    s = strip(4, 3)
    rows = [seeded(k) for k in range(5)]
    together = exact_samples(*s, 5, rows)
    alone = torch.cat([exact_samples(*s, 1, [seeded(k)]) for k in range(5)])
    assert (together == alone).all()
    assert (exact_samples(*s, 5, 3) == exact_samples(*s, 5, seeded(3))).all()


def test_inputs_stay_and_samples_carry_no_gradient():
    s = [x.requires_grad_() for x in strip(3, 3)]
    before = [x.detach().clone() for x in s]
    assert log_partition(*s).requires_grad and means(*s).requires_grad
    assert not means(*(x.detach() for x in s)).requires_grad
    for run in (lambda *s: exact_samples(*s, 2, 0), ground_state):
        with pytest.raises(ValueError, match="wants a gradient, which would be lost"): run(*s)
        run(*(x.detach() for x in s))
    assert all((x == y).all() for x, y in zip(s, before))


def test_slopes_of_means_are_covariances():
    """In a field and in a coupling, by enumeration; without a graph the same numbers."""
    s = [x.requires_grad_() for x in strip(3, 3)]
    y, log_p = table(*(x.detach() for x in s))
    p, flat = log_p.softmax(0), y.flatten(1)
    m = means(*s).flatten()
    with torch.no_grad(): assert torch.equal(means(*s).flatten(), m)
    bond = y[:, 0, 0] * y[:, 0, 1]
    for i in (0, 4):
        right, _, field = torch.autograd.grad(m[i], s, retain_graph=True)
        truth = (p * flat[:, i]) @ flat - (p @ flat[:, i]) * (p @ flat)
        torch.testing.assert_close(field.flatten(), truth, rtol=1e-11, atol=1e-13)
        of_bond = (p * flat[:, i]) @ bond - (p @ flat[:, i]) * (p @ bond)
        torch.testing.assert_close(right[0, 0], of_bond, rtol=1e-11, atol=1e-13)


def test_ground_state_is_a_minimum_cut():
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_flow

    g, (R, C) = seeded(2), (30, 10)
    right, down = (torch.randint(1, 9, shape, generator=g).to(F64) for shape in ((R, C - 1), (R - 1, C)))
    field = torch.randint(-20, 21, (R, C), generator=g).to(F64)
    site = torch.arange(R * C).view(R, C)
    a = torch.cat([site[:, :-1].flatten(), site[:-1].flatten()])
    b = torch.cat([site[:, 1:].flatten(), site[1:].flatten()])
    J, h = torch.cat([right.flatten(), down.flatten()]), field.flatten()
    source, sink = R * C, R * C + 1
    rows = torch.cat([a, b, torch.full((R * C,), source), site.flatten()])
    columns = torch.cat([b, a, site.flatten(), torch.full((R * C,), sink)])
    capacity = 2 * torch.cat([J, J, h.clamp(min=0), (-h).clamp(min=0)])
    edges = capacity.to(torch.int32).numpy(), (rows.numpy(), columns.numpy())
    graph = csr_array(edges, (R * C + 2,) * 2)
    least = maximum_flow(graph, source, sink).flow_value - (J.sum() + h.abs().sum()).item()
    y = ground_state(right, down, field).flatten()
    assert -((J * y[a] * y[b]).sum() + (h * y).sum()).item() == least


def test_score_of_720_noised_spins():
    g = seeded(4)
    s = strip(9, 80, seed=6, scale=0.6)
    x, way = torch.randn(2, 9, 80, dtype=F64, generator=g)
    alpha, sigma = 0.7, 0.9
    log_z = lambda x: log_partition(s[0], s[1], s[2] + alpha / sigma**2 * x)
    log_p = lambda x: log_z(x) - (x**2).sum() / (2 * sigma**2)
    slope = (log_p(x + 1e-4 * way) - log_p(x - 1e-4 * way)) / 2e-4
    found = (score(*s, x, alpha, sigma) * way).sum()
    assert abs(found / slope - 1) < 1e-6


@pytest.mark.parametrize("L, value, u", [(4, 15.521915458755283, None),
                                         (8, 60.1417807890692, -1.49158910744),
                                         (16, 238.642256635133, -1.45306485281),
                                         (32, 952.648079548543, -1.43365846615)])
def test_kaufman_at_the_critical_point(L, value, u):
    K = torch.tensor(1 / T_C, dtype=F64, requires_grad=True)
    log_z = kaufman(K, L, L)
    slope, = torch.autograd.grad(log_z, K)
    assert abs(log_z.item() - value) < 1e-11
    assert u is None or abs(-slope.item() / L**2 - u) < 1e-10


@pytest.mark.parametrize("K", (0.05, 0.2, 1 / T_C, 0.6, 2.0))
@pytest.mark.parametrize("n, m", [(3, 3), (4, 4), (3, 5), (5, 3)])
def test_kaufman_against_enumeration(n, m, K):
    exact = lattice(n, m, K, periodic=True).log_partition()
    torch.testing.assert_close(kaufman(torch.tensor(K, dtype=F64), n, m), exact, rtol=1e-13, atol=1e-12)


def test_onsager():
    K = torch.tensor([0.3, 0.4, 1 / T_C, 0.5, 0.6], dtype=F64, requires_grad=True)
    log_z, u, m = onsager(K)
    known = ((log_z, (.79055907095126, .87936382077495, .92969539834161, 1.0257928126949,
                      1.2101323882884)),
             (u, (-.704499070832, -1.10607920375, -1.41421356237, -1.74556457531, -1.90908617768)),
             (m, (0, 0, 0, .911319377877, .97360866744)))
    for found, values in known:
        off = (found - torch.tensor(values, dtype=F64)).abs()
        assert off[[0, 1, 3, 4]].max() < 1e-11 and off[2] < (1e-2 if found is m else 1e-11)
    slope, = torch.autograd.grad(log_z.sum(), K)
    torch.testing.assert_close(-slope, u, rtol=1e-11, atol=1e-11)
    catalan = 0.915965594177219
    assert abs(log_z[2].item() - math.log(2) / 2 - 2 * catalan / math.pi) < 1e-12


@pytest.mark.parametrize("R, C", [(2, 2), (3, 3), (4, 4), (3, 5), (5, 3), (12, 12)])
def test_kac_ward_of_a_glass(R, C):
    right, down, field = strip(R, C)
    truth = log_partition(right, down, 0 * field)
    torch.testing.assert_close(kac_ward(right, down), truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("R, C", [(2, 2), (3, 3), (6, 6), (10, 10)])
@pytest.mark.parametrize("beta", (2, 5, 8, 15, 30))
def test_kac_ward_is_right_or_refuses(R, C, beta):
    """Frustrated squares keep the phase of the determinant when its digits are gone."""
    refused = 0
    for seed in range(4):
        right, down, _ = (beta * x.sign() for x in strip(R, C, seed=seed))
        truth = log_partition(right, down, torch.zeros(R, C, dtype=F64)).item()
        try:
            assert abs(kac_ward(right, down).item() - truth) < 1e-8
        except ValueError as error:
            assert "use log_partition instead" in str(error)
            refused += 1
    assert beta > 2 or refused == 0


def test_kac_ward_of_a_frustrated_square():
    square = torch.ones(2, 1, dtype=F64), torch.tensor([[1.0, -1.0]], dtype=F64)
    for beta in (1, 3, 6):
        truth = math.log(16 * math.cosh(2 * beta))           # 8 states of energy 2, 8 of -2
        assert abs(kac_ward(beta * square[0], beta * square[1]).item() - truth) < 1e-10
    cold = [20 * x for x in square]
    with pytest.raises(ValueError, match="right, down must be weaker"): kac_ward(*cold)


@pytest.mark.parametrize("dtype", (torch.float32, F64))
def test_energies_that_overflow_are_refused(dtype):
    s = [torch.full_like(x, torch.finfo(dtype).max / 2) for x in strip(4, 3, dtype=dtype)]
    for run in (log_partition, means, ground_state, two_samples):
        with pytest.raises(ValueError, match="right, down, field must be smaller"): run(*s)
    with pytest.raises(ValueError, match="right, down must be smaller"): kac_ward(*s[:2])


def test_cold_limits():
    """At beta = 300 the two ground states are all that is left."""
    K = torch.tensor([5.0, 300.0], dtype=F64, requires_grad=True)
    log_z = kaufman(K, 4, 5)
    torch.testing.assert_close(log_z, 40 * K + math.log(2), rtol=1e-13, atol=1e-13)
    slope, = torch.autograd.grad(log_z.sum(), K)
    torch.testing.assert_close(slope, torch.full_like(K, 40), rtol=1e-13, atol=1e-13)
    log_z, u, m = onsager(torch.tensor([5.0, 300.0, 1e4], dtype=F64))
    assert (log_z == torch.tensor([10.0, 600.0, 2e4])).all() and (u + 2).abs().max() < 1e-14
    assert (m - 1).abs().max() < 1e-15


@pytest.mark.parametrize("n, m", [(1, 1), (1, 5), (5, 1), (2, 2), (2, 4), (4, 2)])
def test_kaufman_of_sides_of_one_and_two(n, m):
    """A spin meets itself around a side of 1, and its neighbour twice around a side of 2."""
    y = states(n * m, "spin").view(-1, n, m)
    truth = (0.4 * (y * y.roll(1, 1) + y * y.roll(1, 2)).sum((1, 2))).logsumexp(0)
    found = kaufman(torch.tensor(0.4, dtype=F64), n, m)
    torch.testing.assert_close(found, truth, rtol=1e-13, atol=1e-13)


def test_magnetisation_in_the_middle_of_a_held_square():
    right, down, field = even_strip(13, 13, 0.7)
    field[[0, -1]] = field[:, [0, -1]] = 20.0
    m = onsager(torch.tensor(0.7, dtype=F64))[2]
    assert abs(means(right, down, field)[6, 6] - m) < 1e-6


def test_views_and_bigger_batches_of_the_copy():
    g = seeded(3)
    s = [torch.randn(*shape, dtype=F64, generator=g).mT for shape in ((3, 5), (4, 4), (4, 5))]
    whole = [x.contiguous() for x in s]
    assert not s[2].is_contiguous() and torch.equal(log_partition(*s), log_partition(*whole))
    assert torch.equal(means(*s), means(*whole)) and torch.equal(ground_state(*s), ground_state(*whole))
    assert torch.equal(exact_samples(*s, 3, 1), exact_samples(*whole, 3, 1))
    x = torch.randn(2, 3, 5, 4, dtype=F64, generator=g)
    many = score(*s, x, 0.6, 0.8)
    assert many.shape == x.shape
    torch.testing.assert_close(many[1, 2], score(*s, x[1, 2], 0.6, 0.8), rtol=1e-12, atol=1e-13)
    assert observed(s[2], x.sign(), 0.1).shape == x.shape


def test_memory_of_a_strip_at_its_limit(monkeypatch):
    s = strip(6, 4)
    for run, kept in ((log_partition, 0), (two_samples, 1), (ground_state, 1), (means, 8)):
        needed = (8 + 6 + 4 * kept) * 8 * 2**4
        monkeypatch.setattr(ising, "MEMORY", needed)
        run(*s)
        monkeypatch.setattr(ising, "MEMORY", needed - 1)
        with torch.no_grad(), pytest.raises(ValueError, match=f"take {needed} bytes"): run(*s)


def test_density_of_states_of_the_4x4_torus():
    energy = lattice(4, 4, periodic=True).energy(states(16, "spin"))
    value, count = energy.round().long().unique(return_counts=True)
    known = [2, 32, 64, 424, 1728, 6688, 13568, 20524]
    assert dict(zip(value.tolist(), count.tolist())) == dict(
        zip((-32, -24, -20, -16, -12, -8, -4, 0, 4, 8, 12, 16, 20, 24, 32), known + known[-2::-1]))


def test_density_of_states_of_the_free_3x3_lattice():
    energy = lattice(3, 3).energy(states(9, "spin"))
    value, count = energy.round().long().unique(return_counts=True)
    known = [2, 8, 32, 46, 96, 144]
    assert value.tolist() == [-12, -8, -6, -4, -2, 0, 2, 4, 6, 8, 12]
    assert count.tolist() == known + known[-2::-1]


@pytest.mark.parametrize("periodic", (False, True))
def test_lattice_is_a_strip_and_a_restricted_machine(periodic):
    machine = lattice(4, 6 if periodic else 3, 0.4, 0.2, periodic)
    R, C = 4, 6 if periodic else 3
    rbm, (even, odd) = as_rbm(machine, R, C), halves(R, C)
    y = states(R * C, "spin", 0, 2000)
    E = rbm.energy(y[:, even], y[:, odd])
    torch.testing.assert_close(E, machine.energy(y), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(rbm.log_partition(), machine.log_partition(), rtol=1e-12, atol=1e-12)
    if not periodic:
        z = log_partition(*even_strip(R, C, 0.4, 0.2))
        torch.testing.assert_close(z, machine.log_partition(), rtol=1e-12, atol=1e-12)


def test_halves_of_two_rows():
    even, odd = halves(2, 3)
    assert even.tolist() == [0, 2, 4] and odd.tolist() == [1, 3, 5]
    assert [len(x) for x in halves(1, 1)] == [1, 0]


def test_observed_twice_is_two_fields():
    field, x = torch.zeros(2, 3, dtype=F64), torch.ones(2, 3, dtype=F64)
    assert (observed(field, x, 0.2) == math.log(2)).all() and (observed(field, x, 0.5) == 0).all()



@pytest.mark.parametrize("change, error, words", [
    ({"right": torch.zeros(4, 3, dtype=F64)}, ValueError, r"right must have shape"),
    ({"down": torch.zeros(4, 3, dtype=F64)}, ValueError, r"down must have shape"),
    ({"right": torch.zeros(2, 4, 2, dtype=F64), "down": torch.zeros(3, 3, 3, dtype=F64)}, ValueError,
     "batch shapes"),
    ({"field": torch.zeros(3, dtype=F64)}, ValueError, "field must have shape"),
    ({"field": [1.0]}, TypeError, "field must be a torch.Tensor"),
    ({"right": None}, TypeError, "right must be a torch.Tensor"),
    ({"right": torch.zeros(4, 2)}, TypeError, "right must be torch.float64"),
    ({"field": torch.full((4, 3), math.nan, dtype=F64)}, ValueError, "field must be finite"),
    ({"down": torch.full((3, 3), math.inf, dtype=F64)}, ValueError, "down must be finite")])
@pytest.mark.parametrize("function", (log_partition, means, ground_state, two_samples))
def test_bad_strips(function, change, error, words):
    good = dict(zip(("right", "down", "field"), even_strip(4, 3, 0.1)))
    with pytest.raises(error, match=words): function(*(good | change).values())


@pytest.mark.parametrize("function, words", [
    (log_partition, "learning.partition.ais"), (two_samples, "sampling.gibbs"),
    (ground_state, "sampling.gibbs")])
def test_a_strip_too_wide_is_refused_with_its_bytes(function, words):
    s = even_strip(40, 30, 0.1)
    with pytest.raises(ValueError, match=r"take \d+ bytes, at most 4294967296 are allowed.*" + words):
        function(*s)


@pytest.mark.parametrize("call, error, words", [
    (lambda: exact_samples(*even_strip(3, 3, 0.1), 0), ValueError, "n must be at least 1"),
    (lambda: observed(torch.zeros(2, 2), torch.ones(2, 2), 0.0), ValueError, "p must be"),
    (lambda: observed(torch.zeros(2, 2), torch.zeros(2, 2), 0.1), ValueError, "x must hold"),
    (lambda: observed(torch.zeros(2, 2), torch.ones(3, 3), 0.1), ValueError, "x must fit"),
    (lambda: observed(torch.zeros(2, 2), torch.ones(2), 0.1), ValueError, "x must fit"),
    (lambda: observed(torch.zeros(2), torch.ones(2, 2), 0.1), ValueError, "x must fit"),
    (lambda: observed(torch.zeros(3, 2, 2), torch.ones(5, 2, 2), 0.1), ValueError, "x must fit"),
    (lambda: score(*even_strip(3, 3, 0.1), torch.zeros(3, 2).double(), 1, 1), ValueError, "x must fit"),
    (lambda: score(*even_strip(3, 3, 0.1), torch.ones(3).double(), 1, 1), ValueError, "x must fit"),
    (lambda: score(*even_strip(3, 3, 0.1), torch.ones(3, 3).double(), 1, 1e-200), ValueError,
     "sigma must"),
    (lambda: score(*(x.float() for x in even_strip(3, 3, 0.1)), torch.ones(3, 3), 1, 1e-30), ValueError,
     "sigma must be larger"),
    (lambda: score(*even_strip(3, 3, 0.1), torch.zeros(3, 3).double(), 1, 0), ValueError, "sigma must"),
    (lambda: kaufman(torch.tensor(-0.1), 3, 3), ValueError, "beta must be above"),
    (lambda: kaufman(torch.tensor(400.0), 3, 3), ValueError, "beta must be below 350"),
    (lambda: kaufman(0.1, 3, 3), TypeError, "beta must be a torch.Tensor"),
    (lambda: kaufman(torch.tensor(0.1), 0, 3), ValueError, "rows must be at least 1"),
    (lambda: onsager(torch.tensor(0.0)), ValueError, "beta must be above 1e-6"),
    (lambda: kac_ward(torch.zeros(3, 3), torch.zeros(3, 3)), ValueError, "right, down must have shapes"),
    (lambda: lattice(2, 4, periodic=True), ValueError, "rows must be at least 3"),
    (lambda: lattice(3, 4, math.inf), ValueError, "coupling must be finite"),
    (lambda: lattice(400, 400), ValueError, "rows, columns must be less"),
    (lambda: as_rbm(None, 3, 4), TypeError, "machine must be a Boltzmann"),
    (lambda: as_rbm(lattice(3, 4), "3", 4), TypeError, "rows must be an int"),
    (lambda: as_rbm(lattice(3, 4, periodic=True), 3, 4), ValueError, "couple even sites to odd ones"),
    (lambda: as_rbm(lattice(3, 4), 4, 4), ValueError, "machine must have 4 x 4 units")])
def test_bad_arguments(call, error, words):
    with pytest.raises(error, match=words): call()
