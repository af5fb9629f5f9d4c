"""Hopfield networks: descents, rest states, rules, capacity, steep energies, the machine behind them."""
from itertools import combinations
import math

from hypothesis import given, settings, strategies as st
import pytest
import torch

from machines import normal, seeded
from rbmdiff.foundations.units import states
from rbmdiff.models import hopfield
from rbmdiff.models.boltzmann import Boltzmann, couplings
from rbmdiff.models.hopfield import (
    as_rbm,
    dense_update,
    error_rate,
    free_energy,
    hebb,
    learn,
    modern_energy,
    modern_update,
    overlap,
    pair_energy,
    pseudo_inverse,
    recall,
    relax,
    rest_states,
    storkey,
    together,
)
from rbmdiff.sampling.means import approximate

f32, f64 = torch.float32, torch.float64
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[cuda, pytest.mark.cuda])]
RULES = {"hebb": hebb, "storkey": storkey, "pseudo_inverse": pseudo_inverse, "learn": learn}
MACKAY = ("1111..1..1.1..1.1..1.111.", "11111...1....1.1..1.111..",
          ".11111....1....1.....1111", "1...111.111.1.11...11...1")
LETTERS = torch.tensor([[1.0 if c == "1" else -1.0 for c in row] for row in MACKAY], dtype=f64)


def coins(*shape, seed=0, dtype=f64):
    """Random patterns."""
    return (torch.randint(2, shape, generator=seeded(seed)) * 2 - 1).to(dtype)


def network(n=8, seed=0, dtype=f64):
    """Whole couplings and biases: sums are exact, and ties occur."""
    J = torch.randint(-3, 4, (n, n), generator=seeded(seed)).to(dtype).triu(1)
    return J + J.T, torch.randint(-2, 3, (n,), generator=seeded(seed + 50)).to(dtype)


def walk(J, b, x, order=None, held=None, sweeps=100):
    """Plain passes over the units of one state."""
    x = x.clone()
    for _ in range(sweeps):
        before = x.clone()
        for i in (range(len(x)) if order is None else order.tolist()):
            if held is None or not held[i]: x[i] = 1.0 if J[i] @ x + b[i] >= 0 else -1.0
        if torch.equal(x, before): break
    return x


# --- recall

@pytest.mark.parametrize("dtype", (f32, f64))
@pytest.mark.parametrize("seed", range(2))
def test_recall_is_a_plain_walk(seed, dtype):
    J, b = network(70, seed, dtype)                                      # two blocks
    x, order = coins(3, 70, seed=seed, dtype=dtype), torch.randperm(70, generator=seeded(seed))
    held = torch.rand(3, 70, generator=seeded(seed)) < 0.3
    for kwargs in ({}, {"order": order}, {"sweeps": 1}, {"order": order, "sweeps": 2}):
        assert torch.equal(recall(J, x, b, **kwargs), torch.stack([walk(J, b, y, **kwargs) for y in x]))
    wanted = torch.stack([walk(J, b, y, held=h) for y, h in zip(x, held)])
    assert torch.equal(recall(J, x, b, held), wanted)
    assert torch.equal(recall(J, x, b, held[0]), torch.stack([walk(J, b, y, held=held[0]) for y in x]))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 9))
def test_energies_fall_and_walks_end(seed, n):
    J, b = network(n, seed)
    machine, x = Boltzmann(J, b), coins(4, n, seed=seed)
    last = machine.energy(x)
    for sweeps in (1, 2, 3, 100):
        y = recall(J, x, b, sweeps=sweeps)
        E = machine.energy(y)
        assert (E <= last).all()
        last = E
    rest = rest_states(J, b)
    assert all((rest == row).all(1).any() for row in y)
    path = [x, together(J, x, b), together(J, together(J, x, b), b)]
    while not torch.equal(path[-1], path[-3]) and len(path) < 2**n + 2:
        path.append(together(J, path[-1], b))
    path = torch.stack(path)
    L = pair_energy(J, path[1:], path[:-1], b)
    assert (L.diff(dim=0) <= 0).all() and torch.equal(path[-1], path[-3])


def test_one_flip_changes_the_energy_by_twice_its_field():
    J, b = network(9)
    S, machine = states(9, "spin"), Boltzmann(J, b)
    for i in range(9):
        y = S.clone()
        y[:, i] *= -1
        change = machine.energy(y) - machine.energy(S)
        assert torch.equal(change, 2 * S[:, i] * machine.field(S)[:, i])


def test_swings_and_chases():
    J = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=f64)
    x = torch.tensor([1.0, -1.0], dtype=f64)
    assert torch.equal(together(J, x), -x) and torch.equal(together(J, -x), x)
    assert torch.equal(recall(J, x), -torch.ones(2, dtype=f64))
    with pytest.raises(ValueError, match="J must be symmetric"):
        recall(torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=f64), x)


def test_unknown_entries_say_nothing_and_are_decided():
    X = coins(3, 60)
    J, held = hebb(X), torch.arange(60) < 30
    found = recall(J, X * held, held=held)
    assert torch.equal(found, X)
    assert torch.equal(recall(J, torch.zeros(60, dtype=f64)),
                       walk(J, torch.zeros(60, dtype=f64), torch.zeros(60, dtype=f64)))


@pytest.mark.parametrize("shape", ((), (1,), (2, 3)))
def test_batch_shapes(shape):
    J, b = network(6)
    x, X = coins(*shape, 6), coins(4, 6, seed=3)
    flat = x.reshape(-1, 6)
    calls = [lambda x: recall(J, x, b), lambda x: together(J, x, b), lambda x: relax(J, x, b, 2),
             lambda x: free_energy(J, x, b), lambda x: pair_energy(J, x, -x, b),
             lambda x: dense_update(x, X, 3), lambda x: modern_update(x, X, 0.5),
             lambda x: modern_energy(x, X, 0.5)]
    for call in calls:
        y, rows = call(x), torch.stack([call(row) for row in flat])
        torch.testing.assert_close(y, rows.reshape(y.shape))
        assert y.shape[:len(shape)] == shape
    one = recall(J, flat[0], b)
    assert not one.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()


def test_a_row_does_not_depend_on_the_batch():
    J = pseudo_inverse(coins(20, 50))
    x = coins(40, 50, seed=1)
    assert all(torch.equal(recall(J, x)[k], recall(J, x[k])) for k in range(0, 40, 7))


# --- rest states

@pytest.mark.parametrize("seed", range(6))
def test_rest_states_are_those_of_all_states(seed):
    n = 5 + seed
    J, b = network(n, seed)
    S = states(n, "spin")
    wanted = S[((S @ J + b >= 0) == (S > 0)).all(1)]
    found = rest_states(J, b)
    assert len(found) == len(wanted)
    assert set(map(tuple, found.tolist())) == set(map(tuple, wanted.tolist()))
    real = couplings(normal(n * (n - 1) // 2, seed=seed))
    wanted = S[((S @ real >= 0) == (S > 0)).all(1)]
    assert len(rest_states(real)) == len(wanted)
    assert len(rest_states(real.float())) == len(wanted)


def test_letters_of_the_textbook():
    J = hebb(LETTERS)
    assert J[0].tolist() == [0, 0, 0, 0, 0, -2, 2, -2, 2, 2, -2, 0, 0, 0, 2, 0, 0, -2, 0, 2, 2, 0, 0,
                             -2, -2]
    assert (LETTERS * (LETTERS @ J)).min(1).values.tolist() == [12, 8, 10, 6]
    rest = rest_states(J)
    assert len(rest) == 17 and (rest @ J != 0).all(1).sum() == 14      # as all 2^25, asked one by one
    for k, expected in ((1, (1, 1, 1, 0.96)), (3, (0.959, 0.938, 0.910, 0.830))):
        ways = torch.tensor(list(combinations(range(25), k)))
        flips = torch.ones(len(ways), 25, dtype=f64).scatter(1, ways, -1.0)
        for x, share in zip(LETTERS, expected):
            assert abs((recall(J, x * flips) == x).all(1).double().mean() - share) < 5e-4


def test_mixtures_of_three_rest_at_low_loads_only():
    """The sign of three patterns: an overlap of one half with each, at rest while few are stored."""
    N = 2000
    for count, share in ((3, 0.0), (20, 0.0), (60, 0.001), (100, 0.010), (140, 0.025)):
        X = coins(count, N, seed=count, dtype=f32)
        mixed, J = X[:3].sum(0).sign(), hebb(X)
        assert ((X[:3] @ mixed / N - 0.5).abs() < 4 / math.sqrt(N)).all()
        unstable = (together(J, mixed) != mixed).double().mean().item()
        assert abs(unstable - share) < 4 * math.sqrt(max(share, 1 / N) / N) + 6e-4
        rest = recall(J, mixed)
        assert count > 20 or (rest == mixed).double().mean() > 0.99


def test_many_branches_are_refused():
    with pytest.raises(ValueError, match="J must leave at most 3 branches, got 4"):
        rest_states(hebb(coins(1, 5)), limit=3)


# --- soft units

def test_free_energy_bounds_log_z_and_its_rest_is_mean_field():
    J, b = couplings(0.2 * normal(28)), 0.3 * normal(8, seed=1)
    machine = Boltzmann(J, b)
    m = 2 * torch.rand(200, 8, dtype=f64, generator=seeded()) - 1
    assert (free_energy(J, m, b) >= -machine.log_partition()).all()
    log_Z, means = approximate(machine, "mean_field", 150)
    rest = relax(J, 0 * b, b)
    assert (rest - means).abs().max() < 1e-12 and abs(free_energy(J, rest, b) + log_Z) < 1e-12
    ends = coins(5, 8)
    assert torch.allclose(free_energy(J, ends, b), machine.energy(ends))    # no entropy at the corners


def test_relax_descends_and_all_at_once_does_not():
    up, quadratic, at_once = 0, 0, 0
    for seed in range(10):
        J, b = couplings(2 * normal(28, seed=seed)), normal(8, seed=seed + 20)
        m, machine = 2 * torch.rand(20, 8, dtype=f64, generator=seeded(seed)) - 1, Boltzmann(J, b)
        for _ in range(6):
            new = relax(J, m, b, 1)
            up += (free_energy(J, new, b) > free_energy(J, m, b) + 1e-12).sum().item()
            quadratic += (machine.energy(new) > machine.energy(m) + 1e-12).sum().item()
            together_ = torch.tanh(m @ J + b)
            at_once += (free_energy(J, together_, b) > free_energy(J, m, b) + 1e-12).sum().item()
            m = new
    assert up == 0 and quadratic > 0 and at_once > 0


def test_the_flow_of_fields_descends():
    J, b = couplings(2 * normal(28)), normal(8, seed=1)
    a = 3 * normal(20, 8, seed=2)
    F = [free_energy(J, torch.tanh(a), b)]
    for _ in range(400):
        a = a + 0.01 * (-a + torch.tanh(a) @ J + b)
        F.append(free_energy(J, torch.tanh(a), b))
    assert (torch.stack(F).diff(dim=0) < 1e-12).all()


# --- rules

@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("dtype", (f32, f64))
def test_rules_give_couplings_that_keep_few_patterns(rule, dtype):
    X = coins(4, 60, dtype=dtype)
    J = rule(X)
    assert J.dtype == dtype and torch.equal(J, J.T) and J.diagonal().abs().max() == 0
    assert torch.equal(recall(J, X), X) and (X * (X @ J) > 0).all()
    spoiled = X.clone()
    spoiled[:, ::10] *= -1
    assert torch.equal(recall(J, spoiled), X)
    Boltzmann(J, J.new_zeros(60))
    one = rule(X[:1])
    ratio = one / torch.outer(X[0], X[0]).fill_diagonal_(1)
    assert (ratio.masked_select(~torch.eye(60, dtype=torch.bool)) > 0).all()


def test_hebb_is_whole_and_does_not_know_the_order():
    X = coins(140, 200, dtype=f32)
    J = hebb(X)
    assert torch.equal(J, J.round()) and torch.equal(J, hebb(X.flip(0))) and torch.equal(J, hebb(-X))
    assert torch.equal(J.double(), hebb(X.double()))


def test_pseudo_inverse_is_a_projection_without_its_diagonal():
    X = coins(12, 20)
    J = pseudo_inverse(X)
    G = X.T @ torch.linalg.solve(X @ X.T, X)
    assert (J - G + G.diagonal().diag()).abs().max() < 1e-13
    twice = pseudo_inverse(torch.cat([X, X[:3]]))                      # repeated rows change nothing
    assert (twice - J).abs().max() < 1e-13
    assert pseudo_inverse(coins(60, 20)).abs().max() < 1e-13           # all dimensions: nothing left


def test_the_pseudo_inverse_forgets_a_unit_in_which_two_patterns_differ_alone():
    X = coins(3, 20)
    X = torch.cat([X, X[:1]])
    X[3, 7] *= -1
    J = pseudo_inverse(X)
    others = torch.arange(20) != 7
    assert J[7].abs().max() < 1e-13 and ((X * (X @ J))[:, others] > 0.01).all()
    G = X.T @ torch.linalg.solve(X @ X.T, X)
    assert abs(G[7, 7] - 1) < 1e-13


def test_capacities_of_the_rules():
    kept = lambda rule, P: sum(bool((X * (X @ rule(X)) > 0).all()) for X in
                               (coins(P, 100, seed=s) for s in range(3)))
    assert kept(hebb, 30) == 0 and kept(storkey, 20) == 3 and kept(storkey, 60) == 0
    assert kept(pseudo_inverse, 90) == 3 and kept(pseudo_inverse, 110) == 0


def test_learning_climbs_the_pseudo_likelihood():
    X, theta = coins(12, 9), normal(36).requires_grad_()
    i, j = torch.triu_indices(9, 9, 1)
    J, none = couplings(theta), torch.zeros(9, dtype=f64)
    truth, = torch.autograd.grad(Boltzmann(J, none).log_pseudo(X).sum(), theta)
    assert (hopfield._slope(X, J.detach())[i, j] - truth).abs().max() < 1e-13
    rate = 0.05
    first = hopfield._slope(X, torch.zeros(9, 9, dtype=f64)) * rate
    assert (learn(X, 1, rate=rate) - first.fill_diagonal_(0)).abs().max() < 1e-15
    assert (learn(X, 1, rate=rate) - 2 * rate * hebb(X)).abs().max() < 1e-13   # the first is Hebb's
    end = learn(X, 4000, decay=0.5)
    assert (hopfield._slope(X, end) - 0.5 * end)[i, j].abs().max() < 1e-9


def test_learning_does_not_go_down_with_any_decay():
    X, none = coins(200, 10), torch.zeros(10, dtype=f64)
    for decay in (0.0, 1.0, 400.0, 1e6):
        heights = torch.stack([Boltzmann(J, none).log_pseudo(X).sum() - decay * J.square().sum() / 4
                               for J in (learn(X, k, decay) for k in range(1, 25))])
        assert heights.diff().min() > -1e-9
    with pytest.raises(ValueError, match="rate must be finite and above 0 and below 0.5, got 0.5"):
        learn(X, decay=4.0, rate=0.5)


# --- capacity

def test_error_rate_counts_all_coins():
    for N, P in ((3, 2), (4, 3), (5, 3), (6, 2)):
        n = (N - 1) * (P - 1)
        sums = states(n, "spin").sum(1)
        wanted = ((sums < -(N - 1)).double() + (sums == -(N - 1)).double() / 2).mean().item()
        assert abs(error_rate(N, P) - wanted) < 1e-14, (N, P)
    assert abs(error_rate(100, 10) - 4.5353e-4) < 5e-9 and error_rate(100, 1) == 0
    assert abs(error_rate(1000, 138) - 3.463e-3) < 5e-7


def test_error_rates_of_the_textbook_table():
    for rate, load in ((0.001, 0.105), (0.0036, 0.138), (0.01, 0.185), (0.05, 0.37), (0.1, 0.61)):
        assert abs(math.erfc(math.sqrt(1 / (2 * load))) / 2 / rate - 1) < 0.04
        assert abs(error_rate(20000, round(20000 * load)) / rate - 1) < 0.05


def test_overlaps_of_the_exact_theory():
    loads = torch.tensor([0.05, 0.10, 0.12, 0.13], dtype=f64)
    known = torch.tensor([0.9999922281, 0.9979992663, 0.9932227318, 0.9872118908], dtype=f64)
    assert (overlap(loads) - known).abs().max() < 1e-9
    load, y = hopfield.CRITICAL
    left = lambda y: math.erf(y) / y - 2 / math.sqrt(math.pi) * math.exp(-y * y)
    assert abs(left(y) ** 2 / 2 - load) < 1e-15 and left(y) > max(left(y - 1e-5), left(y + 1e-5))
    assert abs(load - 0.137905566) < 1e-9 and abs(math.erf(y) - 0.967417) < 1e-6
    assert overlap(torch.tensor([0.1380, 1e-4], dtype=f64)).tolist() == [0.0, 1.0]
    fine = torch.linspace(0.01, 0.1379, 200, dtype=f64)
    assert (overlap(fine).diff() <= 0).all()
    short = overlap(fine.float())
    assert short.dtype == f32 and (short - overlap(fine)).abs().max() < 1e-5


def test_retrieval_at_a_low_load_is_that_of_the_theory():
    m = [(recall(hebb(X), X) * X).mean().item() for X in (coins(50, 500, seed=s, dtype=f32)
                                                          for s in range(8))]
    m = torch.tensor(m)
    se = m.std() / math.sqrt(8)
    assert abs(m.mean() - overlap(torch.tensor(0.1)).item()) < 4 * se and se < 2e-3


# --- steep energies

@pytest.mark.parametrize("power", (2, 3, 4, 7))
def test_dense_updates_compare_both_energies(power):
    X, S = coins(5, 8), states(8, "spin")
    E = lambda y: -((y @ X.T) ** power).sum(-1)
    found = dense_update(S, X, power)
    for i in range(8):
        up, down = S.clone(), S.clone()
        up[:, i], down[:, i] = 1, -1
        assert torch.equal(found[:, i] > 0, E(up) <= E(down))
    if power == 2: assert torch.equal(found, together(hebb(X), S))


@pytest.mark.parametrize("power,count,rate,error", ((3, 60, 0.0150, 8e-4), (4, 300, 0.0090, 1.2e-3)))
def test_error_rates_of_dense_memories(power, count, rate, error):
    sets = [coins(count, 30, seed=s, dtype=f32) for s in range(6)]
    found = torch.stack([(dense_update(X, X, power) != X).double().mean() for X in sets])
    assert abs(found.mean() - rate) < 4 * math.hypot(found.std().item() / math.sqrt(6), error / 4)


@pytest.mark.parametrize("dtype,bound", ((f32, 2e-5), (f64, 1e-13)))
def test_modern_update_is_the_energy_less_its_slope(dtype, bound):
    X = normal(20, 6).to(dtype)
    x = normal(9, 6, seed=1).to(dtype).requires_grad_()
    slope, = torch.autograd.grad(modern_energy(x, X, 1.3).sum(), x)
    new = modern_update(x, X, 1.3)
    assert new.dtype == dtype and (new - x + slope).abs().max() < bound
    attention = torch.nn.functional.scaled_dot_product_attention(x, X, X, scale=1.3)
    assert (new - attention).abs().max() < bound


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 50))
def test_modern_energy_falls_within_bounds(seed, beta):
    X = normal(7, 4, seed=seed)
    M = X.square().sum(1).max()
    x = normal(5, 4, seed=seed + 1)
    x = x * (M.sqrt() / x.norm(dim=1).max())
    for _ in range(4):
        y = modern_update(x, X, beta)
        E, new = modern_energy(x, X, beta), modern_energy(y, X, beta)
        assert (new <= E + 1e-10).all() and (E >= -1e-10).all() and (E <= 2 * M + 1e-10).all()
        x = y


def test_separated_patterns_are_retrieved_within_the_bound_of_the_paper():
    X, beta = normal(50, 64), 1 / 8
    M = X.norm(dim=1).max()
    products = X @ X.T
    others = products.masked_fill(torch.eye(50, dtype=torch.bool), -torch.inf).amax(1)
    gap = products.diagonal() - others
    error = (modern_update(X, X, beta) - X).norm(dim=1)
    rest = X
    for _ in range(200): rest = modern_update(rest, X, beta)
    far = (rest - X).norm(dim=1)
    bound = 2 * 49 * torch.exp(-beta * (gap - 2 * far * M)) * M
    assert (error <= bound).all()


def test_two_opposite_memories_part_at_a_pitchfork():
    xi = normal(5)
    x = 0.9 * xi
    for strength, wanted in ((0.9, 0.0), (1.1, 0.5029), (2.0, 0.9575)):
        y = x
        for _ in range(500): y = modern_update(y, torch.stack([xi, -xi]), strength / float(xi @ xi))
        assert abs((y @ xi / (xi @ xi)).item() - wanted) < 1e-4
        step = modern_update(x, torch.stack([xi, -xi]), 0.3)
        assert (step - xi * torch.tanh(0.3 * (xi @ x))).abs().max() < 1e-14


# --- the restricted machine

@pytest.mark.parametrize("P", (1, 3))
def test_the_rbm_has_the_law_of_the_network(P):
    X, beta = coins(P, 9), 0.07
    rbm, machine = as_rbm(X, beta), Boltzmann(hebb(X), torch.zeros(9, dtype=f64)).at(beta)
    S = states(9, "spin")
    constant = -beta * P * 9 / 2 - P / 2 * math.log(2 * math.pi)
    assert (rbm.hidden_free_energy(S) - machine.energy(S) - constant).abs().max() < 1e-13
    assert abs(rbm.log_partition() + constant - machine.log_partition()) < 1e-12
    assert (rbm.visible_mean(S) - math.sqrt(beta) * S @ X.T).abs().max() < 1e-14


def test_curie_weiss():
    for N, beta, wanted in ((8, 0.9, 6.29602615975204), (100, 1.0, 70.7862767636892)):
        log_Z = as_rbm(torch.ones(1, N, dtype=f64), beta / N).log_partition() if N < 26 else None
        k = torch.arange(N + 1, dtype=f64)
        ways = math.lgamma(N + 1) - torch.lgamma(k + 1) - torch.lgamma(N - k + 1)
        total = (ways + beta * (2 * k - N) ** 2 / (2 * N)).logsumexp(0)
        assert abs(total - wanted) < 1e-12
        assert log_Z is None or abs(log_Z - math.log(2 * math.pi) / 2 - wanted) < 1e-12


# --- devices, and what is refused

@pytest.mark.parametrize("device", DEVICES)
def test_devices(device):
    X = coins(5, 60, dtype=f32)
    put = lambda x: x.to(device)
    spoiled = X.clone()
    spoiled[:, ::7] *= -1
    for rule in RULES.values():
        J = rule(put(X))
        assert J.device.type == device and torch.equal(recall(J, put(spoiled)).cpu(), X)
        assert torch.equal(recall(J, put(spoiled), order=torch.randperm(60, device=device)).cpu(), X)
    J, m = hebb(put(X)) / 64, put(0.5 * X)
    for y in (together(J, put(X)), relax(J, m, sweeps=2), free_energy(J, m), pair_energy(J, m, m),
              dense_update(put(X), put(X), 3), modern_update(m, put(X), 0.1),
              modern_energy(m, put(X), 0.1), overlap(put(torch.tensor([0.1]))), rest_states(J[:9, :9]),
              as_rbm(put(X), 0.01).W):
        assert y.device.type == device and y.dtype == f32


J8, B8 = network()
X8 = coins(3, 8)
HELD = torch.arange(8) < 3
BAD = {
    "not symmetric": (lambda: recall(J8.triu(), X8), ValueError, "J must be symmetric"),
    "diagonal": (lambda: recall(J8 + torch.eye(8), X8), ValueError, "J must be zero on its diagonal"),
    "no square": (lambda: recall(J8[:4], X8), ValueError, r"J must have shape \[N, N\]"),
    "no tensor": (lambda: recall(None, X8), TypeError, "J must be a torch.Tensor"),
    "a batch of biases": (lambda: recall(J8, X8, coins(3, 8)), ValueError, r"b must have shape \[8\]"),
    "no states": (lambda: recall(J8, X8 / 2), ValueError, r"x must be -1 or \+1, or 0 where nothing"),
    "other width": (lambda: recall(J8, X8[:, :5]), ValueError, r"x must have shape \[..., 8\]"),
    "other dtype": (lambda: recall(J8, X8.float()), TypeError, "x must be torch.float64"),
    "whole states": (lambda: recall(J8, X8.long()), TypeError, "x must be float32 or float64"),
    "mask of another shape":
        (lambda: recall(J8, X8, held=HELD[:5]), ValueError, r"held must be .* of shape \[8\]"),
    "mask of another batch":
        (lambda: recall(J8, X8, held=HELD.expand(2, 8)), ValueError, "held must be a bool tensor"),
    "mask of numbers": (lambda: recall(J8, X8, held=HELD.double()), ValueError, "held must be a bool"),
    "mask in a list": (lambda: recall(J8, X8, held=[True] * 8), ValueError, "held must be a bool"),
    "unknown and held": (lambda: recall(J8, 0 * X8, held=HELD), ValueError, "held must be False where"),
    "no sweeps": (lambda: recall(J8, X8, sweeps=0), ValueError, "sweeps must be at least 1"),
    "order twice": (lambda: recall(J8, X8, order=torch.zeros(8).long()), ValueError, "order must hold"),
    "short order": (lambda: recall(J8, X8, order=torch.arange(7)), ValueError, "order must hold"),
    "unknown at once": (lambda: together(J8, 0 * X8), ValueError, "x must hold only -1 or"),
    "pairs": (lambda: pair_energy(J8, X8, X8[:, :3]), ValueError, "previous must have shape"),
    "means": (lambda: free_energy(J8, 2 * X8), ValueError, r"m must lie in \[-1, 1\]"),
    "soft start": (lambda: relax(J8, 2 * X8), ValueError, r"m must lie in \[-1, 1\]"),
    "soft, not symmetric": (lambda: relax(J8.triu(), X8), ValueError, "J must be symmetric"),
    "rest, diagonal": (lambda: rest_states(J8 + torch.eye(8)), ValueError, "zero on its diagonal"),
    **{f"{name}: no patterns": (lambda rule=rule: rule(X8 / 2), ValueError, "patterns must hold only")
       for name, rule in (*RULES.items(), ("as_rbm", as_rbm))},
    **{f"{name}: one pattern": (lambda rule=rule: rule(X8[0]), ValueError, "patterns must have shape")
       for name, rule in (*RULES.items(), ("as_rbm", as_rbm))},
    "steps": (lambda: learn(X8, 0), ValueError, "steps must be at least 1"),
    "decay": (lambda: learn(X8, decay=-1.0), ValueError, "decay must be finite and at least 0"),
    "rate": (lambda: learn(X8, rate=0.0), ValueError, "rate must be finite and above 0"),
    "units": (lambda: error_rate(1, 3), ValueError, "n_units must be at least 2"),
    "patterns": (lambda: error_rate(10, 0), ValueError, "n_patterns must be at least 1"),
    "load": (lambda: overlap(torch.tensor([0.1, -0.1])), ValueError, "load must be positive"),
    "a number as load": (lambda: overlap(0.1), TypeError, "load must be a torch.Tensor"),
    "dense, no states": (lambda: dense_update(X8 / 2, X8, 3), ValueError, "x must hold only -1 or"),
    "dense, no patterns": (lambda: dense_update(X8, X8 / 2, 3), ValueError, "patterns must hold only"),
    "power": (lambda: dense_update(X8, X8, 1), ValueError, "power must be at least 2"),
    "dense, too steep":
        (lambda: dense_update(X8, X8, 400), ValueError, "power must be at most 340 for 8 units"),
    **{f"{name}: nothing": (lambda call=call: call(None), TypeError, "x must be a torch.Tensor")
       for name, call in (("dense", lambda x: dense_update(x, X8, 3)),
                          ("update", lambda x: modern_update(x, X8, 1.0)),
                          ("energy", lambda x: modern_energy(x, X8, 1.0)))},
    "modern width": (lambda: modern_update(X8[:, :3], X8, 1.0), ValueError, "x must have shape"),
    "modern beta": (lambda: modern_update(X8, X8, 0.0), ValueError, "beta must be finite and above 0"),
    "energy beta": (lambda: modern_energy(X8, X8, -1.0), ValueError, "beta must be finite and above 0"),
    "one vector": (lambda: modern_energy(X8, X8[0], 1.0), ValueError, "patterns must have shape"),
    "cold rbm": (lambda: as_rbm(X8, 0.0), ValueError, "beta must be finite and above 0"),
    "graph": (lambda: recall(J8, X8.clone().requires_grad_()), ValueError, "recall builds no graph"),
}


@pytest.mark.parametrize("call, kind, message", BAD.values(), ids=BAD)
def test_bad_input_is_refused(call, kind, message):
    with pytest.raises(kind, match=message): call()
