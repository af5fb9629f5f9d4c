"""Cluster steps, two colours and draws from the past, against enumeration, loops and known numbers."""
from itertools import islice, product
import math

import numpy as np
import pytest
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
import torch

from machines import machine, normal, seeded
from rbmdiff.foundations.units import Binary, Potts, as_unit, states
from rbmdiff.learning.partition import ais
from rbmdiff.models.boltzmann import Boltzmann, couplings
from rbmdiff.models.ising import as_rbm, exact_samples, kaufman, lattice, neighbours
from rbmdiff.models.rbm import RBM
from rbmdiff.sampling import clusters
from rbmdiff.sampling.clusters import (
    binder,
    checkerboard,
    cluster_chain,
    cluster_moments,
    components,
    coupling_from_the_past,
    edges,
    swendsen_wang,
    two_colours,
)
from rbmdiff.sampling.diagnostics import drift
from rbmdiff.sampling.gibbs import gibbs

F64 = torch.float64
T_C = 2 / math.log(1 + math.sqrt(2))
TWO = ["spin", "bernoulli", Binary((-0.5, 1.5)), Binary((0.0, 2.0), 0.4)]
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[cuda, pytest.mark.cuda])]


def boltzmann(n=5, unit="spin", seed=0, scale=0.6, dtype=F64, batch=()):
    """A machine of couplings of both signs, with biases: as spins, the same for all units."""
    unit = as_unit("unit", unit)
    half, middle = (unit.levels[1] - unit.levels[0]) / 2, sum(unit.levels) / 2
    J = couplings(scale * normal(n * (n - 1) // 2, seed=seed)) / half**2
    b = 0.4 * normal(*batch, n, seed=seed + 50) / half - unit.offset - middle * J.sum(0)
    return Boltzmann(J.to(dtype), b.to(dtype), unit)


def attractive(D=5, H=4, visible="bernoulli", hidden="bernoulli", dtype=F64):
    """A restricted machine with positive weights and biases that keep it in the middle."""
    rbm = machine(D, H, visible, hidden, scale=1.0, dtype=dtype)
    spreads = [unit.levels[1] - unit.levels[0] for unit in (rbm.visible, rbm.hidden)]
    middles = [sum(unit.levels) / 2 for unit in (rbm.visible, rbm.hidden)]
    W = rbm.W.abs() / math.prod(spreads)
    return rbm.sharing(W=W, b=0.3 * rbm.b - middles[1] * W.sum(1), c=0.3 * rbm.c - middles[0] * W.sum(0))


# --- clusters

def searched(pairs, linked, n):
    """Clusters of one list of bonds by a search."""
    name = list(range(n))
    for (i, j), tied in zip(pairs.T.tolist(), linked.tolist()):
        if tied: name = [min(name[i], name[j]) if c in (name[i], name[j]) else c for c in name]
    return name


@pytest.mark.parametrize("p", (0.0, 0.3, 0.5, 0.8, 1.0))
@pytest.mark.parametrize("shape", ((1, 9), (7, 5), (4, 4)))
def test_clusters_are_those_of_a_search(p, shape):
    n = math.prod(shape)
    pairs = neighbours(*shape, periodic=min(shape) > 2)
    linked = torch.rand(2, 3, pairs.shape[1], generator=seeded(1)) < p
    found = components(pairs, linked, n)
    assert found.shape == (2, 3, n) and found.dtype == torch.int64
    for a, b in product(range(2), range(3)):
        assert found[a, b].tolist() == searched(pairs, linked[a, b], n)


@pytest.mark.parametrize("n, m", ((1, 0), (2, 1), (50, 20), (50, 49), (200, 400)))
def test_all_ways_to_find_clusters_agree(n, m, monkeypatch):
    """Compiled, plain and SciPy's: random graphs, a path in reverse, a star."""
    for ends in (torch.randint(n, (2, m), generator=seeded(2)),
                 (torch.arange(n - 1, 0, -1), torch.arange(n - 2, -1, -1)),
                 (torch.full((n - 1,), n - 1), torch.arange(n - 1))):
        pairs = torch.stack(tuple(ends))
        linked = torch.rand(3, pairs.shape[1], generator=seeded(3)) < torch.tensor([[0.3], [0.7], [1.0]])
        found = components(pairs, linked, n)
        with monkeypatch.context() as patch:
            patch.setattr(clusters, "_compiled", lambda: None)
            assert torch.equal(components(pairs, linked, n), found)
        for row, cluster in zip(linked, found):
            graph = coo_matrix((np.ones(int(row.sum())), pairs[:, row].numpy()), (n, n))
            label = torch.from_numpy(connected_components(graph, False)[1])
            assert torch.equal(label[cluster], label) and len(cluster.unique()) == label.max() + 1
            assert torch.equal(cluster[cluster], cluster) and (cluster <= torch.arange(n)).all()


def test_pairs_of_a_machine_give_its_energy():
    for unit in TWO:
        m = boltzmann(6, unit)
        pairs, J, h = edges(m)
        x = states(6, unit)
        s = states(6, "spin")
        E = -(J * s[:, pairs[0]] * s[:, pairs[1]]).sum(1) - s @ h
        gap = E - m.energy(x)
        torch.testing.assert_close(gap, gap[:1].expand_as(gap), rtol=0, atol=1e-13)
    pairs, J, h = edges(lattice(3, 4, 0.5, 0.1, periodic=True))
    wanted = {frozenset(pair) for pair in neighbours(3, 4, True).T.tolist()}
    assert {frozenset(pair) for pair in pairs.T.tolist()} == wanted and len(wanted) == 24
    assert (J == 0.5).all() and (h == 0.1).all()


def one_step(pairs, J, h, s, g):
    """A step of one chain by loops, with the same random numbers."""
    u = torch.rand(pairs.shape[1], dtype=s.dtype, generator=g)
    coin = torch.rand(len(s), dtype=s.dtype, generator=g)
    tied = [k * s[i] * s[j] > 0 and v < 1 - math.exp(-2 * abs(k))
            for (i, j), k, v in zip(pairs.T.tolist(), J.tolist(), u.tolist())]
    name = searched(pairs, torch.tensor(tied), len(s))
    new = s.clone()
    for c in set(name):
        members = [i for i in range(len(s)) if name[i] == c]
        pull = sum((h[i] * s[i]).item() for i in members)
        if coin[c].item() < 1 / (1 + math.exp(2 * pull)): new[members] *= -1
    return new, name


def test_steps_are_those_of_loops():
    m = boltzmann(7)
    pairs, J, h = edges(m)
    s = m.sample(1, 3)[0]
    g = seeded(4)
    for new, cluster in islice(cluster_chain(pairs, J, h, s, 4), 20):
        s, name = one_step(pairs, J, h, s, g)
        assert torch.equal(new, s) and cluster.tolist() == name
    assert torch.equal(swendsen_wang(m, m.sample(1, 3)[0], 20, 4), s)


@pytest.mark.parametrize("unit", TWO, ids=str)
def test_no_drift_and_the_mutants_drift(unit, monkeypatch):
    m = boltzmann(5, unit)
    p = m.log_prob(states(5, unit)).exp()
    x = m.sample(2**15, 1)
    still = swendsen_wang(m, x, 2, 2)
    assert abs(drift(still, p, unit).z(0)) < 4 and (still != x).double().mean() > 0.1
    right = clusters._linked
    monkeypatch.setattr(clusters, "_linked", lambda pairs, J, s, g: right(pairs, J / 2, s, g))
    assert drift(swendsen_wang(m, x, 2, 2), p, unit).z(0) > 6
    monkeypatch.setattr(clusters, "_linked", right)
    turned = clusters._turned
    monkeypatch.setattr(clusters, "_turned", lambda c, h, s, g: turned(c, h / 2, s, g))
    assert drift(swendsen_wang(m, x, 2, 2), p, unit).z(0) > 6


def test_couplings_beyond_all_numbers():
    m = boltzmann(5, scale=1e4, dtype=torch.float32)
    x = m.sample(8, 1)
    assert torch.equal(swendsen_wang(m, x, 3, 2).abs(), torch.ones_like(x))
    free = Boltzmann(torch.zeros(3, 3), torch.full((3,), 40.0))
    assert (swendsen_wang(free, -torch.ones(9, 3), 1, 1) == 1).all()        # every unit is a cluster


def test_energy_and_moments_of_a_torus():
    L = 8
    machine = neighbours(L, L, True), torch.full((2 * L * L,), 1 / T_C), torch.zeros(L * L)
    beta = torch.tensor(1 / T_C, dtype=F64, requires_grad=True)
    truth = -torch.autograd.grad(kaufman(beta, L, L), beta)[0].item() / L**2
    assert abs(truth + 1.49158910744) < 1e-10
    chain = list(islice(cluster_chain(*machine, torch.ones(64, L * L), 1), 30, 530))
    E = torch.stack([-(s[:, machine[0][0]] * s[:, machine[0][1]]).sum(1) / L**2 for s, _ in chain], 1)
    assert abs(clusters.chain_estimate(E).z(truth)) < 4
    plain = torch.stack([s.double().mean(1).square() for s, _ in chain], 1)
    better = torch.stack([cluster_moments(c)[0] for _, c in chain], 1)
    gap = clusters.chain_estimate(plain - better)
    assert abs(gap.z(0)) < 4 and better.var() < plain.var()


def test_moments_are_averages_over_all_turns():
    for seed in range(5):
        pairs = neighbours(3, 3)
        c = components(pairs, torch.rand(4, 12, generator=seeded(seed)) < 0.4, 9)
        m2, m4 = cluster_moments(c)
        for k in range(4):
            m = states(9, "spin")[:, c[k]].mean(1)
            torch.testing.assert_close(torch.stack([m.pow(2).mean(), m.pow(4).mean()]),
                                       torch.stack([m2[k], m4[k]]), rtol=1e-13, atol=1e-15)


def test_binder_of_what_is_known():
    up = torch.ones(4, 64, dtype=F64) + 1e-9 * normal(4, 64)
    assert abs(binder(up, up).value - 2 / 3) < 1e-6
    m = normal(64, 400, seed=3)
    U = binder(m**2, m**4)
    assert abs(U.z(0)) < 4 and U.stderr < 0.02
    several = [binder(x**2, x**4) for x in normal(40, 16, 200, seed=4)]
    spread = torch.tensor([e.value for e in several]).std().item()
    assert 0.6 < sum(e.stderr for e in several) / 40 / spread < 1.5


# --- two colours

@pytest.mark.parametrize("shape, periodic", (((3, 5), False), ((1, 6), False), ((4, 6), True)))
def test_colours_are_even_and_odd_sites(shape, periodic):
    n = math.prod(shape)
    wanted = (torch.arange(shape[0])[:, None] + torch.arange(shape[1])).flatten() % 2 == 1
    assert torch.equal(two_colours(neighbours(*shape, periodic), n), wanted)
    assert not two_colours(torch.zeros(2, 0, dtype=torch.int64), n).any()


def test_checkerboard_is_block_gibbs_of_the_halves():
    m = lattice(4, 4, 0.4, 0.1, periodic=True)
    x = m.sample(1, 1).expand(2**14, 16)
    rbm = as_rbm(m, 4, 4)
    even = ~two_colours(edges(m)[0], 16)
    v = checkerboard(*edges(m), x, 2, 3)
    w = gibbs(rbm, x[:, even].flip(0), 2, 4)                   # in another order
    for one in (v[:, even].mean(1).square(), w.mean(1).square()): assert one.mean() > 0.1
    h = checkerboard(*edges(m), x, 1, 5)
    mean = rbm.hidden_mean(h[:, even]).detach()                          # odd ones were drawn last
    z = (h[:, ~even] - mean).mean(0) / ((1 - mean**2).mean(0) / len(h)).sqrt()
    assert z.abs().max() < 4.5


@pytest.mark.parametrize("dtype", (torch.float32, F64))
def test_checkerboard_does_not_drift(dtype):
    right, down, h = 0.7 * normal(3, 2, seed=1), 0.7 * normal(2, 3, seed=2), 0.4 * normal(3, 3, seed=3)
    J = torch.cat([right.flatten(), down.flatten()]).to(dtype)
    pairs = neighbours(3, 3)
    M = torch.zeros(9, 9, dtype=dtype).index_put(tuple(pairs), J)
    m = Boltzmann(M + M.T, h.flatten().to(dtype))
    p = m.log_prob(states(9, "spin", dtype=dtype)).exp()
    x = exact_samples(right, down, h, 2**15, 1).flatten(1).to(dtype)
    for new in (checkerboard(pairs, J, m.b, x, 2, 2), swendsen_wang(m, x, 2, 3)):
        assert abs(drift(new, p, "spin").z(0)) < 4 and new.dtype == dtype


def test_a_sweep_is_that_of_loops():
    m = boltzmann(6)
    pairs = neighbours(2, 3)
    J, h = normal(7, seed=2), normal(6, seed=3)
    x = m.sample(3, 1)
    colour = two_colours(pairs, 6)
    wanted, streams = x.clone(), [seeded(k) for k in range(3)]
    for now in (False, True):
        part = (colour == now).nonzero()[:, 0].tolist()
        for row, g in enumerate(streams):
            u = torch.rand(len(part), dtype=F64, generator=g)
            for i, v in zip(part, u):
                z = h[i] + sum(k * wanted[row, a + b - i] for a, b, k in zip(*pairs.tolist(), J)
                               if i in (a, b))
                wanted[row, i] = 1.0 if v < torch.sigmoid(2 * z) else -1.0
    assert torch.equal(checkerboard(pairs, J, h, x, 1, range(3)), wanted)


# --- coupling from the past

@pytest.mark.parametrize("visible, hidden", (("bernoulli", "bernoulli"), ("spin", "bernoulli"),
                                             ("spin", "spin"), (Binary((0.0, 2.0), 0.4), "spin")))
@pytest.mark.parametrize("dtype", (torch.float32, F64))
def test_draws_from_the_past_are_exact(visible, hidden, dtype):
    rbm = attractive(5, 4, visible, hidden, dtype)
    p = rbm.log_prob(states(5, rbm.visible, dtype=dtype)).exp()
    v = coupling_from_the_past(rbm, 2**14, 2)
    assert v.dtype == dtype and not v.requires_grad
    assert abs(drift(v, p, rbm.visible).z(0)) < 4
    assert drift(v, p.flip(0), rbm.visible).z(0) > 6


def test_any_boltzmann_machine_that_attracts():
    m = Boltzmann(couplings(normal(10, seed=1).abs() / 3), 0.3 * normal(5))
    v = coupling_from_the_past(m.edge_rbm().requires_grad_(False), 2**14, 3)
    assert abs(drift(v, m.log_prob(states(5, "spin")).exp(), "spin").z(0)) < 4


def test_order_is_kept_and_all_chains_end_in_one():
    rbm = attractive()
    u = torch.rand(64, 9, dtype=F64, generator=seeded(1))
    every = states(5)
    for numbers in u:
        every = clusters._moved(rbm, every, numbers)
        assert (every[0] <= every).all() and (every <= every[-1]).all()
    assert (every == every[0]).all()


def test_the_past_is_not_drawn_again():
    """A draw is the map of its own numbers: those of the last steps first, none used twice."""
    rbm, g = attractive(), seeded(5)
    now = []
    for steps in (1, 1, 2, 4, 8, 16, 32):
        stream = seeded(int(torch.randint(2**63 - 1, (), generator=g)))
        now = [*torch.rand(steps, 1, 9, dtype=F64, generator=stream), *now]
        low, high = clusters._sandwich(rbm, now, 1)
        if torch.equal(low, high): break
    assert torch.equal(coupling_from_the_past(rbm, 1, [5]), low)
    assert torch.equal(coupling_from_the_past(rbm, 3, [4, 5, 6])[1:2], low)
    earlier = [*torch.rand(7, 1, 9, dtype=F64, generator=g), *now]
    assert torch.equal(clusters._sandwich(rbm, earlier, 1)[0], low)


def test_the_same_numbers_for_fewer_draws():
    W, draws = torch.zeros(3, 2), torch.tensor([1, 4, 6, 7])
    for seeds in (3, (3, 4, 5, 6)):
        past = [(2, seeds, draws), (70, seeds, draws)]
        every = list(clusters._numbers(W, past, draws))
        some = list(clusters._numbers(W, past, draws[[1, 3]]))
        assert len(every) == 72 and all(torch.equal(x[[1, 3]], y) for x, y in zip(every, some))


@pytest.mark.parametrize("most", (1, 2, 3, 5, 64))
def test_no_more_steps_than_allowed_and_no_more_memory(most, monkeypatch):
    rbm, used, drawn = attractive(), [], []
    monkeypatch.setattr(clusters, "_moved", lambda rbm, both, u: used.append(u) or both)
    right = clusters.uniform
    monkeypatch.setattr(clusters, "uniform", lambda *args: drawn.append(right(*args)) or drawn[-1])
    with pytest.raises(ValueError, match=f"most must be larger than {most}: 4 of 4 draws"):
        coupling_from_the_past(rbm, 4, 1, most)
    assert max(u.numel() for u in drawn) <= 4 * 32 * 9
    last = used[-most:]                                  # the last start walks through all of the past
    assert len({u.sum().item() for u in used}) == len({u.sum().item() for u in last}) == most


# --- contracts

@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", (torch.float32, F64))
def test_dtypes_devices_and_batch_shapes(device, dtype):
    m = boltzmann(6, dtype=dtype).to(device)
    x = states(6, "spin", dtype=dtype, device=device)[:12].view(2, 6, 6)
    pairs = neighbours(2, 3).to(device)
    J, h = (torch.ones(n, dtype=dtype, device=device) for n in (7, 6))
    s, c = next(cluster_chain(pairs, J, h, x, 1))
    for y in (swendsen_wang(m, x, 2, 1), checkerboard(pairs, J, h, x, 2, 1), s):
        assert y.shape == (2, 6, 6) and y.dtype == dtype and y.device.type == device
    assert swendsen_wang(m, x[0, 0], 2, 1).shape == (6,)
    assert checkerboard(pairs, J, h, x[0, 0], 2, 1).shape == (6,)
    assert c.shape == x.shape and cluster_moments(c)[0].shape == (2, 6)
    v = coupling_from_the_past(attractive(dtype=dtype).to(device), 7, 1)
    assert v.shape == (7, 5) and v.device.type == device


@pytest.mark.cuda
@cuda
def test_clusters_on_a_gpu_are_those_of_the_cpu():
    pairs = neighbours(16, 16, True)
    linked = torch.rand(8, 512, generator=seeded(1)) < 0.5
    found = components(pairs.cuda(), linked.cuda(), 256)
    assert torch.equal(found.cpu(), components(pairs, linked, 256))


def test_one_unit_and_no_pairs():
    h = torch.tensor([0.5], dtype=F64)
    pairs, J, x = neighbours(1, 1), torch.ones(0, dtype=F64), torch.ones(2**14, 1, dtype=F64)
    for new in (checkerboard(pairs, J, h, x, 1, 1), next(cluster_chain(pairs, J, h, x, 1))[0],
                swendsen_wang(Boltzmann(torch.zeros(1, 1, dtype=F64), h), x, 1, 1)):
        assert abs(new.mean() - math.tanh(0.5)) < 4 / 2**7
    assert checkerboard(pairs, J, h, x[:3], 2, [1, 2, 3]).shape == (3, 1)


def test_layout_does_not_matter():
    m, x = boltzmann(6), torch.ones(4, 6, dtype=F64)
    pairs, J, h = edges(m)
    spread, wide = (torch.stack([y, y], -1)[..., 0] for y in (pairs, x))
    assert not spread.is_contiguous() and not wide.is_contiguous()
    one, other = (next(cluster_chain(*args, 1)) for args in ((pairs, J, h, x), (spread, J, h, wide)))
    assert all(map(torch.equal, one, other))


def test_half_of_the_critical_draws_need_fewer_than_two_hundred_steps():
    """What the chapter says of the torus of 8 x 8; forwards the time to meet has the same law."""
    rbm = as_rbm(lattice(8, 8, 1 / T_C, periodic=True, dtype=torch.float32), 8, 8)
    u = torch.rand(500, 300, 64, generator=seeded(1))
    ends = [clusters._sandwich(rbm, u[:T], 300) for T in (200, 500)]
    share = [(low == high).all(1).double().mean().item() for low, high in ends]
    assert 0.4 < share[0] < 0.65 and 0.84 < share[1] < 0.95


def test_batches_of_machines_and_a_stream_a_chain():
    m = boltzmann(5)
    x = m.sample(3, 1)
    fields = normal(3, 5, seed=7)
    batch = swendsen_wang(m.tilt(fields), x, 3, [5, 6, 7])
    for k in range(3):
        assert torch.equal(swendsen_wang(m.tilt(fields[k]), x[k:k + 1], 3, [5 + k])[0], batch[k])
    assert swendsen_wang(m.tilt(fields), x[0], 2, 1).shape == (3, 5)
    assert swendsen_wang(m.tilt(fields), x.expand(4, 3, 5), 2, 1).shape == (4, 3, 5)
    pairs = neighbours(1, 5)
    J = torch.ones(4, dtype=F64)
    assert checkerboard(pairs, J, fields, x[0], 2, 1).shape == (3, 5)


def test_a_chain_belongs_to_its_caller():
    m = boltzmann(5)
    pairs, J, h = edges(m)
    x = m.sample(4, 1)
    first = [s for s, _ in islice(cluster_chain(pairs, J, h, x, 2), 3)]
    chain = cluster_chain(pairs, J, h, x, 2)
    seen = []
    for s, _ in islice(chain, 3):
        seen.append(s.clone())
        J.zero_()                                          # the chain has its own numbers
        x.fill_(1.0)
    assert all(map(torch.equal, first, seen))


def test_ais_covers_the_torus_at_its_critical_point():
    rbm = as_rbm(lattice(4, 4, 1 / T_C, periodic=True), 4, 4)
    truth = kaufman(torch.tensor(1 / T_C, dtype=F64), 4, 4).item()
    assert abs(ais(rbm, 200, 200, generator=0).z(truth)) < 4


PAIRS = neighbours(2, 3)
ONE = torch.ones(7, dtype=F64), torch.zeros(6, dtype=F64), torch.ones(6, dtype=F64)
BAD = [
    (lambda: neighbours(2, 3, periodic=True), ValueError, "rows must be at least 3"),
    (lambda: neighbours(3.0, 3), TypeError, "rows must be an int"),
    (lambda: edges(RBM(2, 2)), TypeError, "machine must be a Boltzmann"),
    (lambda: edges(Boltzmann(torch.zeros(4, 4), torch.zeros(4), Potts(2))), ValueError,
     r"machine must have units of two levels, got potts\(2\)"),
    (lambda: swendsen_wang(Boltzmann(torch.zeros(4, 4), torch.zeros(4), Potts(2)),
                           torch.tensor([1.0, 0, 0, 1])), ValueError, "units of two levels"),
    (lambda: swendsen_wang(RBM(2, 2), torch.ones(2)), TypeError, "machine must be a Boltzmann"),
    (lambda: swendsen_wang(boltzmann(), torch.zeros(5, dtype=F64)), ValueError, "x must hold only"),
    (lambda: swendsen_wang(boltzmann(), torch.ones(4, dtype=F64)), ValueError, r"shape \[..., 5\]"),
    (lambda: swendsen_wang(boltzmann(), torch.ones(5, dtype=F64), 0), ValueError, "steps must be"),
    (lambda: cluster_chain(PAIRS.float(), *ONE), TypeError, "pairs must be an int64 tensor"),
    (lambda: cluster_chain([[0], [1]], *ONE), TypeError, "pairs must be an int64 tensor, got list"),
    (lambda: cluster_chain(PAIRS.T, *ONE), ValueError, r"pairs must have shape \[2, E\]"),
    (lambda: cluster_chain(PAIRS + 1, *ONE), ValueError, "pairs must hold .* 0 to 5, got 1 to 6"),
    (lambda: cluster_chain(PAIRS, ONE[0][:3], *ONE[1:]), ValueError, r"J must have shape \[7\]"),
    (lambda: cluster_chain(PAIRS, ONE[0].float(), *ONE[1:]), TypeError, "J must be torch.float64"),
    (lambda: cluster_chain(PAIRS, ONE[0], ONE[1][:5], ONE[2]), ValueError, r"h must have shape"),
    (lambda: cluster_chain(PAIRS, ONE[0], ONE[1].expand(2, 6), ONE[2].expand(3, 6)), ValueError,
     "h must fit x"),
    (lambda: cluster_chain(PAIRS, *ONE[:2], 0 * ONE[2]), ValueError, "x must hold only"),
    (lambda: cluster_chain(PAIRS, *ONE[:2], ONE[2][0]), ValueError, "h must have|pairs"),
    (lambda: cluster_chain(PAIRS, ONE[0] * math.nan, *ONE[1:]), ValueError, "J must be finite"),
    (lambda: components(PAIRS, None, 6), TypeError, "linked must be a bool tensor"),
    (lambda: components(PAIRS, torch.ones(7), 6), ValueError, "linked must be .* got torch.float32"),
    (lambda: components(PAIRS, torch.ones(6) > 0, 6), ValueError, r"linked .* \[..., 7\], got .* \[6\]"),
    (lambda: components(PAIRS, torch.tensor(True), 6), ValueError, r"linked .* \[..., 7\], got .* \[\]"),
    (lambda: components(PAIRS.to("meta"), torch.ones(7) > 0, 6), ValueError, "pairs must be on cpu"),
    (lambda: cluster_chain(PAIRS.to("meta"), *ONE), ValueError, "pairs must be on cpu, got meta"),
    (lambda: components(PAIRS, torch.ones(7) > 0, 0), ValueError, "n must be at least 1"),
    (lambda: cluster_moments(torch.ones(3)), TypeError, "cluster must be an int64"),
    (lambda: cluster_moments(torch.tensor([0, 3])), ValueError, "cluster must have .* below N"),
    (lambda: cluster_moments(torch.tensor(0)), ValueError, "cluster must have shape"),
    (lambda: binder(torch.ones(2, 20), torch.ones(2, 19)), ValueError, "m4 must have shape"),
    (lambda: binder(torch.ones(2, 20), torch.ones(2, 20, dtype=F64)), TypeError, "m4 must be"),
    (lambda: swendsen_wang(boltzmann(), None), TypeError, "x must be a torch.Tensor, got NoneType"),
    (lambda: binder(torch.rand(20), torch.rand(20)), ValueError, r"m2 must have shape \[chains, draws"),
    (lambda: binder(torch.rand(2, 15), torch.rand(2, 15)), ValueError, "m2 must have .* 16"),
    (lambda: binder(torch.zeros(2, 20), torch.zeros(2, 20)), ValueError, "m2 must .* vary, .* 0 to 0"),
    (lambda: two_colours(neighbours(3, 4, True), 12), ValueError,
     "pairs must allow two colours: 12 of 12 units .* torus with an odd side; use swendsen_wang"),
    (lambda: checkerboard(neighbours(4, 5, True), torch.ones(40), torch.zeros(20), torch.ones(20)),
     ValueError, "pairs must allow two colours"),
    (lambda: checkerboard(PAIRS, *ONE, 0), ValueError, "sweeps must be at least 1"),
    (lambda: coupling_from_the_past(machine(), 3), ValueError,
     r"rbm must have weights W >= 0, .* got \d+ of 15 below 0, the least -"),
    (lambda: coupling_from_the_past(machine(5, 3, "gaussian"), 3), ValueError,
     "rbm must have visible units of two levels, got gaussian"),
    (lambda: coupling_from_the_past(machine(4, 4, "bernoulli", "potts(2)"), 3), ValueError,
     "rbm must have hidden units of two levels"),
    (lambda: coupling_from_the_past(boltzmann(), 3), TypeError, "rbm must be an RBM, got Boltzmann"),
    (lambda: coupling_from_the_past(attractive().tilt(normal(2, 5)), 3), ValueError, "one machine"),
    (lambda: coupling_from_the_past(attractive(), 0), ValueError, "n must be at least 1"),
    (lambda: coupling_from_the_past(attractive(), 3, 1, 0), ValueError, "most must be at least 1"),
    (lambda: coupling_from_the_past(attractive(), 2, [1, 2, 3]), ValueError, "generator must hold 2"),
    (lambda: coupling_from_the_past(attractive(), 64, 1, 2), ValueError,
     r"most must be larger than 2: \d+ of 64 draws still depend on where their chains began"),
]


@pytest.mark.parametrize("call,error,message", BAD, ids=[message for *_, message in BAD])
def test_bad_input_is_one_clear_error(call, error, message):
    with pytest.raises(error, match=message): call()


def test_a_lattice_that_is_no_matrix():
    """128 x 128 spins step without a matrix of their couplings."""
    L = 128
    pairs = neighbours(L, L, True)
    assert pairs.shape == (2, 2 * L * L)
    x = torch.ones(1, L * L)
    s, c = next(cluster_chain(pairs, torch.full((2 * L * L,), 1 / T_C), torch.zeros(L * L), x, 1))
    assert s.abs().eq(1).all() and (c <= torch.arange(L * L)).all()
