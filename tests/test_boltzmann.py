"""Boltzmann machines of any couplings: enumeration, check numbers, contracts, and every kind of unit
that can be listed.
"""
import copy
import itertools
import math

from hypothesis import given, settings, strategies as st
import pytest
import torch
from torch.func import vmap

from machines import normal, seeded
from rbmdiff.foundations.data import binarize, digits
from rbmdiff.foundations.kernels import walk
from rbmdiff.foundations.units import Bernoulli, Binary, Binomial, Discrete, Potts, Spin, states
from rbmdiff.models.boltzmann import Boltzmann, check_boltzmann, couplings
from rbmdiff.models.rbm import RBM
from rbmdiff.sampling.diagnostics import drift
from rbmdiff.sampling.gibbs import scan_gibbs, sweep
from rbmdiff.sampling.means import approximate

KINDS = [Spin(), Bernoulli(), Binary((-0.5, 1.5)),
         Discrete((-1.0, 0.0, 2.0), 0.3), Binomial(2), Potts(3)]
TWO = [Spin(), Bernoulli(), Binary((-0.5, 1.5)), Binary((0.0, 3.0), 0.4)]
f64 = torch.float64
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[cuda, pytest.mark.cuda])]


def machine(n=4, unit="spin", seed=0, scale=0.5, dtype=f64, batch=None):
    """A machine of `n` units with normal couplings and biases."""
    columns = getattr(unit, "columns", 1)
    width = n * columns
    owner = torch.arange(width) // columns
    J = scale * normal(width, width, seed=seed) * (owner[:, None] != owner)
    b = scale * normal(*((width,) if batch is None else (batch, width)), seed=seed + 100)
    return Boltzmann((J + J.T).to(dtype) / 2, b.to(dtype), unit)


def table(m):
    """All states, and their probabilities by an energy written as loops over pairs."""
    S = states(len(m.J), m.unit)
    E = m.unit.energy(S, m.b).sum(-1)
    for i, j in itertools.combinations(range(len(m.J)), 2):
        E = E - m.J[i, j] * S[:, i] * S[:, j]
    return S, E, torch.softmax(-E, 0)


@pytest.mark.parametrize("unit", KINDS, ids=str)
@pytest.mark.parametrize("n", (1, 2, 5))
def test_energy_sums_and_moments_are_those_of_the_table(unit, n):
    m = machine(n, unit)
    S, E, p = table(m)
    assert (m.energy(S) - E).abs().max() < 1e-13
    assert abs(m.log_partition() - torch.logsumexp(-E, 0)) < 1e-13
    assert (m.log_prob(S).exp() - p).abs().max() < 1e-14
    mean, pairs = m.moments()
    assert (mean - p @ S).abs().max() < 1e-14 and (pairs - S.T * p @ S).abs().max() < 1e-14
    assert torch.equal(pairs, pairs.T)


@pytest.mark.parametrize("unit", KINDS, ids=str)
def test_field_is_the_slope_of_minus_the_energy_and_gives_the_conditionals(unit):
    m = machine(3, unit)
    S, _, p = table(m)
    width = unit.columns
    for i, x in itertools.product(range(3), S[::3]):
        part = torch.arange(len(x)) // width == i
        rows = (S[:, ~part] == x[~part]).all(1)
        given_others = (p[rows] / p[rows].sum()) @ S[rows][:, part]
        assert (m.conditional_mean(x)[part] - given_others).abs().max() < 1e-14


@pytest.mark.parametrize("unit,T,expected", (
    ("spin", 1.0, (2.4706997746209605, 0.30301465570973585)),
    ("spin", 2.0, (2.1964683323253253, 0.19069500771064718)),
    ("bernoulli", 1.0, (2.537694853069171, 0.3803763250932456)),
    ("bernoulli", 2.0, (2.280446594624819, None))))
def test_check_numbers_of_three_units(unit, T, expected):
    J = couplings(torch.tensor([0.5, -0.3, 0.8], dtype=f64))
    m = Boltzmann(J, torch.tensor([0.1, -0.2, 0.3], dtype=f64), unit).at(1 / T)
    mean, pairs = m.moments()
    log_Z, pair = expected
    assert abs(m.log_partition().item() - log_Z) < 1e-14
    assert pair is None or abs(pairs[0, 1].item() - pair) < 1e-14
    known = {"spin": (0.0448110935, 0.0013519935, 0.1836875875),
             "bernoulli": (0.5551003287, 0.6395233984, 0.6509438598)}[unit]
    assert T != 1 or (mean - torch.tensor(known, dtype=f64)).abs().max() < 1e-10


def test_check_numbers_of_the_middle_of_digits():
    middle = torch.arange(64).view(8, 8)[2:6, 2:6].flatten()
    train, test = (2 * binarize(x, 7.5 / 16)[:, middle].to(f64) - 1 for x in digits())
    independent = Boltzmann(torch.zeros(16, 16, dtype=f64), torch.atanh(train.mean(0)))
    J = -torch.linalg.inv(torch.cov(train.T, correction=0)).fill_diagonal_(0)
    J = (J + J.T).fill_diagonal_(0) / 2
    inverse = Boltzmann(J, torch.atanh(train.mean(0)) - J @ train.mean(0))
    for m, expected in ((independent, (-10.758, -10.809)), (inverse, (-8.983, -9.038))):
        found = [m.log_prob(x).mean().item() for x in (train, test)]
        assert found == pytest.approx(expected, abs=5e-4)


def test_25_spins_are_listed_and_26_are_not():
    m = machine(25, scale=0.1, dtype=torch.float32)
    with torch.no_grad():
        assert abs(m.log_partition() - approximate(m)[0]) < 0.1
    for call in (Boltzmann.log_partition, Boltzmann.moments, lambda m: m.sample(1)):
        with pytest.raises(ValueError, match=r"machine must have at most 25 bits.*sweep"):
            call(machine(26, scale=0.1))


@pytest.mark.parametrize("unit", KINDS, ids=str)
def test_temperature(unit):
    m = machine(4, unit)
    if unit == Binomial(2):
        with pytest.raises(ValueError, match="no energy"): m.at(2.0)
        return
    S, E, _ = table(m)
    assert (m.at(0.6).log_prob(S) - torch.log_softmax(-0.6 * E, 0)).abs().max() < 1e-13


@pytest.mark.parametrize("unit", KINDS, ids=str)
def test_clamp_and_marginal_are_slices_and_sums(unit):
    m = machine(4, unit)
    S, _, p = table(m)
    mask = torch.tensor([True, False, True, False]).repeat_interleave(unit.columns)
    for x in S[::7]:
        rows = (S[:, mask] == x[mask]).all(1)
        inside = m.clamp(x, mask).log_prob(S[rows][:, ~mask])
        assert (inside - (p[rows] / p[rows].sum()).log()).abs().max() < 1e-13
        assert abs(m.log_marginal(x, mask) - p[rows].sum().log()) < 1e-13
    batch = m.clamp(S[:5], mask)
    assert batch.batch == (5,) and batch.log_partition().shape == (5,)
    nothing = S.clone()
    nothing[:, ~mask] = 7.0                                            # hidden entries play no part
    assert torch.equal(m.log_marginal(nothing, mask), m.log_marginal(S, mask))


@pytest.mark.parametrize("unit", (Spin(), Bernoulli(), Potts(3)), ids=str)
def test_tilt_reweights(unit):
    m = machine(3, unit)
    S, _, p = table(m)
    fields = normal(4, len(m.J), seed=5)
    batch = m.tilt(fields)
    want = torch.log_softmax(p.log()[:, None] + S @ fields.T, 0)
    assert (batch.log_prob(S[:, None]) - want).abs().max() < 1e-13
    for k in range(4):
        assert (m.tilt(fields[k]).log_prob(S) - want[:, k]).abs().max() < 1e-13


def test_gaussian_noise_and_flips_of_spins_are_tilts():
    m = machine(4)
    S, _, p = table(m)
    alpha, sigma, flip, x = 0.7, 0.9, 0.2, normal(4, seed=9)
    posterior = torch.log_softmax(p.log() - (x - alpha * S).square().sum(1) / (2 * sigma**2), 0)
    assert (m.tilt(alpha * x / sigma**2).log_prob(S) - posterior).abs().max() < 1e-13
    y = S[5]
    kept = flip + (1 - 2 * flip) * (S == y).to(f64)
    posterior = torch.log_softmax(p.log() + kept.log().sum(1), 0)
    assert (m.tilt(math.log((1 - flip) / flip) / 2 * y).log_prob(S) - posterior).abs().max() < 1e-13


@pytest.mark.parametrize("unit", (Spin(), Bernoulli(), Discrete((-1.0, 0.0, 2.0), 0.3)), ids=str)
@pytest.mark.parametrize("hidden", (0, 2))
def test_gradient_is_that_of_autograd(unit, hidden):
    m = machine(5, unit)
    i, j = torch.triu_indices(5, 5, 1)
    parameters = m.J[i, j].requires_grad_(), m.b.clone().requires_grad_()
    mine = Boltzmann(couplings(parameters[0]), parameters[1], unit)
    x = m.sample(7, seeded(1))
    mask = torch.arange(5) < 3 if hidden else None
    L = mine.log_prob(x) if mask is None else mine.log_marginal(x, mask)
    truth = torch.autograd.grad(L.mean(), parameters)
    dJ, db = m.gradient(x, mask)
    assert (dJ[i, j] - truth[0]).abs().max() < 1e-14 and (db - truth[1]).abs().max() < 1e-14
    assert torch.equal(dJ, dJ.T) and dJ.diagonal().abs().max() == 0


def test_gradient_of_colours_stays_out_of_a_unit():
    m = machine(3, Potts(3))
    dJ, db = m.gradient(m.sample(9, 1))
    Boltzmann(m.J + dJ, m.b + db, Potts(3))
    Boltzmann(*m.gradient(m.sample(9, 1), torch.arange(9) < 6), Potts(3))


def test_derivative_in_temperature_and_second_derivative_of_the_likelihood():
    m = machine(4)
    S, E, p = table(m)
    beta = torch.ones((), dtype=f64, requires_grad=True)
    hot = Boltzmann(m.J * beta, m.b * beta)
    slope, = torch.autograd.grad(hot.log_prob(S[3]), beta)
    assert abs(slope - (p @ E - E[3])) < 1e-13                         # in 1/T; in T by -1/T²
    i, j = torch.triu_indices(4, 4, 1)
    log_Z = lambda v: Boltzmann(couplings(v[:6]), v[6:]).log_partition()
    H = torch.autograd.functional.hessian(log_Z, torch.cat([m.J[i, j], m.b]))
    features = torch.cat([S[:, i] * S[:, j], S], 1)
    assert (H - torch.cov(features.T, aweights=p, correction=0)).abs().max() < 1e-13


@pytest.mark.parametrize("unit", KINDS, ids=str)
def test_pseudo_likelihood_is_the_sum_of_conditionals(unit):
    m = machine(3, unit)
    S, _, p = table(m)
    total = torch.zeros(len(S), dtype=f64)
    for i in range(3):
        part = torch.arange(len(m.J)) // unit.columns == i
        same = (S[:, None, ~part] == S[:, ~part]).all(-1)
        total += (p / (same * p).sum(1)).log()
    assert (m.log_pseudo(S) - total).abs().max() < 1e-13


@pytest.mark.parametrize("unit", TWO, ids=str)
def test_edge_rbm(unit):
    m = machine(4, unit, scale=1.0)
    rbm = m.edge_rbm()
    assert rbm.W.shape == (4, 6)
    assert (rbm.log_prob(states(4, unit)) - m.log_prob(states(4, unit))).abs().max() < 1e-12
    free, S = m.sharing(J=torch.zeros_like(m.J)), states(4, unit)
    assert (free.edge_rbm().log_prob(S) - free.log_prob(S)).abs().max() < 1e-12
    J = m.J.clone().requires_grad_()
    Boltzmann(J, m.b, unit).edge_rbm().log_partition().backward()
    assert J.grad.isfinite().all()


@pytest.mark.parametrize("unit", KINDS, ids=str)
def test_gaussian_rbm(unit):
    m = machine(3, unit)
    S = states(len(m.J), unit)
    rbm = m.gaussian_rbm()
    assert str(rbm.visible) == "gaussian" and rbm.W.shape == m.J.shape
    assert (torch.log_softmax(-rbm.hidden_free_energy(S), 0) - m.log_prob(S)).abs().max() < 1e-12


def test_noised_spins_with_their_clean_copy_are_one_machine():
    m, flip = machine(3), 0.2
    S, _, p = table(m)
    J = torch.zeros(6, 6, dtype=f64)
    J[:3, :3] = m.J
    J[:3, 3:] = J[3:, :3] = math.log((1 - flip) / flip) / 2 * torch.eye(3, dtype=f64)
    both = Boltzmann(J, torch.cat([m.b, torch.zeros(3, dtype=f64)]))
    channel = (flip + (1 - 2 * flip) * (S[:, None] == S).to(f64)).prod(-1)
    x = torch.cat([torch.ones_like(S), S], 1)
    assert (both.log_marginal(x, torch.arange(6) > 2).exp() - p @ channel).abs().max() < 1e-15


@pytest.mark.parametrize("unit", TWO, ids=str)
def test_bethe_is_exact_on_a_tree_and_mean_field_is_a_bound(unit):
    m = machine(5, unit, scale=0.3)
    keep = torch.zeros(5, 5)
    keep[[0, 1, 1, 3], [1, 2, 3, 4]] = 1
    tree = m.sharing(J=m.J * (keep + keep.T))
    log_Z, mean = approximate(tree, "bethe")
    assert abs(log_Z - tree.log_partition()) < 1e-12 and (mean - tree.moments()[0]).abs().max() < 1e-12
    assert approximate(m, "mean_field")[0] < m.log_partition()


@pytest.mark.parametrize("method", ("mean_field", "tap", "bethe"))
def test_approximations_are_exact_without_couplings_and_stationary(method):
    m = machine(5, scale=0.3)
    free = m.sharing(J=torch.zeros_like(m.J))
    log_Z, mean = approximate(free, method)
    assert abs(log_Z - free.log_partition()) < 1e-14 and (mean - free.moments()[0]).abs().max() < 1e-14
    b = m.b.clone().requires_grad_()
    log_Z, mean = approximate(m.sharing(b=b), method)                  # d log Z / db are the means
    assert (torch.autograd.grad(log_Z, b)[0] - mean).abs().max() < 1e-12


def test_mean_field_takes_every_kind_and_a_batch():
    for unit in KINDS:
        m = machine(3, unit)
        fields = normal(4, len(m.J))
        log_Z, mean = approximate(m.tilt(fields), "mean_field")
        assert log_Z.shape == (4,) and mean.shape == fields.shape
        for k in range(4):
            one = approximate(m.tilt(fields[k]), "mean_field")
            assert (one[0] - log_Z[k]).abs() < 1e-13 and (one[1] - mean[k]).abs().max() < 1e-13
    m = machine(4)
    for method in ("tap", "bethe"):
        log_Z, mean = approximate(m.tilt(normal(4, 4)), method)
        assert abs(approximate(m.tilt(normal(4, 4)[2]), method)[0] - log_Z[2]) < 1e-13


def one_by_one(m, x, sweeps, generator):
    """Sweeps of a plain loop over units of two levels."""
    x = x.clone()
    low, high = m.unit.levels
    for _ in range(sweeps):
        u = torch.rand(x.shape, dtype=x.dtype, generator=generator)
        for i in range(x.shape[-1]):
            up = u[..., i] < torch.sigmoid((high - low) * (x @ m.J[:, i] + m.b[..., i]))
            x[..., i] = torch.where(up, high, low)
    return x


@pytest.mark.parametrize("unit", ("spin", "bernoulli"))
@pytest.mark.parametrize("dtype", (torch.float32, f64))
def test_sweeps_are_bit_for_bit_those_of_a_loop(unit, dtype):
    m = machine(70, unit, scale=0.3)
    m = m.sharing(J=(m.J * 256).round().to(dtype) / 256, b=(m.b * 256).round().to(dtype) / 256)
    x = states(7, unit, 0, 128, dtype).repeat(2, 10)[:200]
    want = one_by_one(m, x, 3, seeded(1))
    for block in (1, 7, 64, 100):
        assert torch.equal(sweep(m, x, 3, seeded(1), block), want)
    assert torch.equal(sweep(m, x[:1], 3, seeded(1)), one_by_one(m, x[:1], 3, seeded(1)))


def test_compiled_and_plain_walk_agree(monkeypatch):
    from rbmdiff.foundations import kernels
    m = machine(20, scale=0.5)
    x = states(10, "spin", 0, 50).repeat(1, 2)
    compiled = sweep(m, x, 4, 3)
    monkeypatch.setattr(kernels, "_walker", lambda: None)
    assert torch.equal(sweep(m, x, 4, 3), compiled)
    A, new = torch.zeros(2, 1, dtype=f64), torch.full((2, 1), -1.0, dtype=f64)
    J = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=f64)
    walk(A, J, torch.tensor([[-1.0], [1.5]], dtype=f64), new, (-1.0, 1.0))
    assert new[:, 0].tolist() == [1.0, 1.0] and A[1, 0] == 2.0


@pytest.mark.parametrize("unit", KINDS, ids=str)
def test_sweeps_do_not_drift(unit):
    m = machine(3, unit, scale=0.8)
    p = table(m)[2]
    start = m.sample(2**15, seeded(1))
    still = drift(sweep(m, start, 2, seeded(2)), p, unit)
    assert abs(still.z(0)) < 4 and still.stderr < 4e-3
    if unit != Binomial(2): assert drift(sweep(m.at(0.5), start, 2, seeded(2)), p, unit).z(0) > 5


def test_exact_draws_have_the_law_and_one_stream_a_draw():
    m = machine(4, Potts(2))
    p = table(m)[2]
    counts = drift(m.sample(2**15, seeded(1)), p, Potts(2))
    assert abs(counts.z(0)) < 4
    several = m.sample(3, [1, 2, 3])
    for k in range(3):
        assert torch.equal(m.sample(1, [k + 1])[0], several[k])
    batch = m.tilt(normal(2, 8))
    assert batch.sample(5, [1, 2]).shape == (5, 2, 8)
    assert torch.equal(batch.sample(5, [1, 2])[:, 1], m.tilt(normal(2, 8)[1]).sample(5, 2))


def test_one_stream_a_chain_and_batches_of_machines():
    m = machine(6)
    x = m.sample(3, 1)
    together = sweep(m, x, 4, [5, 6, 7])
    for k in range(3):
        assert torch.equal(sweep(m, x[k:k + 1], 4, [5 + k]), together[k:k + 1])
    fields = normal(3, 6)
    batch = sweep(m.tilt(fields), x, 4, [5, 6, 7])
    for k in range(3):
        assert torch.equal(sweep(m.tilt(fields[k]), x[k:k + 1], 4, [5 + k])[0], batch[k])
    assert sweep(m.tilt(fields), x[0], 2, 1).shape == (3, 6)
    assert sweep(m.tilt(fields), x.expand(4, 3, 6), 2, 1).shape == (4, 3, 6)
    assert sweep(m, x[0], 2, 1).shape == (6,)


def test_nothing_of_the_callers_changes():
    J, b, x = couplings(normal(6)), normal(4), states(4, "spin")
    copies = J.clone(), b.clone(), x.clone()
    m = Boltzmann(J, b)
    sweep(m, x, 2, 1)
    m.gradient(x)
    m.clamp(x[0], torch.arange(4) < 2)
    assert all(map(torch.equal, (J, b, x), copies))
    J.zero_()
    assert torch.equal(m.J, copies[0])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", (torch.float32, f64))
def test_dtypes_devices_and_batch_shapes(device, dtype):
    m = machine(5, dtype=dtype).to(device)
    x = states(5, "spin", dtype=dtype, device=device)[:12].view(2, 6, 5)
    for value in (m.energy(x), m.field(x).sum(-1), m.log_prob(x), m.log_pseudo(x)):
        assert value.shape == (2, 6) and value.dtype == dtype and value.device.type == device
    for value in (m.log_partition(), *m.moments(), m.sample(3, 1), sweep(m, x, 2, 1),
                  *approximate(m, "bethe"), *approximate(m, "tap"), *m.gradient(x.view(-1, 5)),
                  m.edge_rbm().W, m.gaussian_rbm().W):
        assert value.dtype == dtype and value.device.type == device
    assert m.double().J.dtype == f64


def test_state_dict_copy_and_print():
    m = machine(4)
    other = Boltzmann(torch.zeros_like(m.J), torch.zeros_like(m.b))
    other.load_state_dict(m.state_dict())
    assert torch.equal(other.J, m.J) and torch.equal(copy.deepcopy(m).b, m.b)
    assert str(m) == "Boltzmann(4 spin units)"
    assert "a batch of 3" in str(m.tilt(normal(3, 4)))
    assert "2 potts(3) units" in str(machine(2, Potts(3)))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(0.0, 3.0))
def test_log_partition_is_convex_between_mean_field_and_the_ground_state(seed, n, scale):
    m = machine(n, seed=seed, scale=scale)
    E = table(m)[1]
    log_Z = m.log_partition().item()
    assert -E.min() - 1e-9 <= log_Z <= -E.min() + n * math.log(2) + 1e-9
    assert approximate(m, "mean_field")[0] <= log_Z + 1e-9
    assert 0 <= m.log_partition() + m.at(3.0).log_partition() - 2 * m.at(2.0).log_partition() + 1e-9


def test_log_weights_stay_finite_at_low_temperature():
    m = machine(6, dtype=torch.float32).at(1e4)
    assert m.log_partition().isfinite() and m.moments()[0].isfinite().all()
    assert m.edge_rbm().W.isfinite().all() and approximate(m)[0].isfinite()
    assert sweep(m, m.sample(4, 1), 3, 1).isfinite().all()


BAD = [
    (lambda: Boltzmann([[0.0]], torch.zeros(1)), TypeError, "J must be a torch.Tensor"),
    (lambda: Boltzmann(torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2)), TypeError,
     "J must be float32"),
    (lambda: Boltzmann(torch.zeros(2, 3), torch.zeros(2)), ValueError, r"J must have shape \[N, N\]"),
    (lambda: Boltzmann(torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.zeros(2)), ValueError,
     "J must be symmetric, got entries that differ by 1"),
    (lambda: Boltzmann(torch.eye(2), torch.zeros(2)), ValueError, "J must be zero on its diagonal"),
    (lambda: Boltzmann(torch.ones(4, 4).fill_diagonal_(0), torch.zeros(4), Potts(2)), ValueError,
     "J must be zero on its diagonal"),
    (lambda: Boltzmann(torch.full((2, 2), math.nan), torch.zeros(2)), ValueError, "J must be finite"),
    (lambda: Boltzmann(torch.zeros(2, 2), torch.zeros(3)), ValueError, r"b must have shape \[..., 2\]"),
    (lambda: Boltzmann(torch.zeros(2, 2), torch.zeros(1, 1, 2)), ValueError, "b must have shape"),
    (lambda: Boltzmann(torch.zeros(2, 2), torch.zeros(2, dtype=f64)), TypeError,
     "b must be torch.float32"),
    (lambda: Boltzmann(torch.zeros(2, 2), torch.zeros(2), "gaussian"), ValueError,
     "unit must have a list"),
    (lambda: Boltzmann(torch.zeros(2, 2), torch.zeros(2), "up"), ValueError, "unit must be one of"),
    (lambda: Boltzmann(torch.zeros(4, 4), torch.zeros(4), "potts(3)"), ValueError,
     "width of J.*multiple of 3"),
    (lambda: machine().energy(torch.zeros(3, dtype=f64)), ValueError, r"x must have shape \[..., 4\]"),
    (lambda: machine().energy(torch.zeros(4)), TypeError, "x must be torch.float64"),
    (lambda: machine(batch=3).energy(torch.zeros(2, 4, dtype=f64)), ValueError,
     "x must fit a batch of 3"),
    (lambda: machine().log_prob(torch.zeros(4, dtype=f64)), ValueError, r"x must hold only -1 or \+1"),
    (lambda: machine().log_pseudo(torch.zeros(4, dtype=f64)), ValueError, r"x must hold only -1 or \+1"),
    (lambda: machine().at(0.0), ValueError, "beta must be finite and above 0"),
    (lambda: machine().tilt(torch.zeros(1, 1, 4, dtype=f64)), ValueError, "field must have shape"),
    (lambda: machine().clamp(torch.ones(4, dtype=f64), torch.ones(3, dtype=torch.bool)), ValueError,
     r"mask must be a bool tensor of shape \[4\]"),
    (lambda: machine().clamp(torch.ones(4, dtype=f64), torch.ones(4)), ValueError,
     "mask must be a bool"),
    (lambda: machine().clamp(torch.ones(4, dtype=f64), torch.ones(4, dtype=torch.bool)), ValueError,
     "mask must clamp some columns and leave some free"),
    (lambda: machine(2, Potts(3)).clamp(torch.zeros(6, dtype=f64), torch.arange(6) < 2), ValueError,
     "mask must not cut"),
    (lambda: machine().clamp(torch.zeros(4, dtype=f64), torch.arange(4) < 2), ValueError,
     "x must hold only"),
    (lambda: machine().clamp(torch.ones(1, 1, 4, dtype=f64), torch.arange(4) < 2), ValueError,
     "x must have"),
    (lambda: machine().gradient(torch.ones(4, dtype=f64)), ValueError, r"x must have shape \[n, 4\]"),
    (lambda: machine(batch=2).gradient(torch.ones(2, 4, dtype=f64)), ValueError, "machine must be one"),
    (lambda: machine(4, Potts(3)).edge_rbm(), ValueError, "machine must have units of two levels"),
    (lambda: machine().sample(0), ValueError, "n must be at least 1"),
    (lambda: couplings(torch.zeros(4)), ValueError, r"pairs must have shape \[N \(N - 1\) / 2\]"),
    (lambda: couplings(torch.zeros(2, 3)), ValueError, "pairs must have shape"),
    (lambda: check_boltzmann(RBM(2, 2)), TypeError, "machine must be a Boltzmann, got RBM"),
    (lambda: sweep(RBM(2, 2), torch.zeros(2)), TypeError, "machine must be a Boltzmann"),
    (lambda: sweep(machine(), torch.zeros(4, dtype=f64)), ValueError, "x must hold only"),
    (lambda: sweep(machine(), torch.ones(4, dtype=f64), 0), ValueError, "sweeps must be at least 1"),
    (lambda: sweep(machine(), torch.ones(4, dtype=f64), block=0), ValueError,
     "block must be at least 1"),
    (lambda: approximate(RBM(2, 2)), TypeError, "machine must be a Boltzmann"),
    (lambda: approximate(machine(), "gibbs"), ValueError, "method must be one of"),
    (lambda: approximate(machine(), "tap", 0), ValueError, "steps must be at least 1"),
    (lambda: approximate(machine(3, Potts(3)), "bethe"), ValueError,
     "units of two levels.*'mean_field'"),
]


@pytest.mark.parametrize("call,error,message", BAD, ids=[message for *_, message in BAD])
def test_bad_input_is_one_clear_error(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_energy_under_vmap_of_the_biases():
    m, x = machine(4), states(4, "spin")
    b = normal(3, 4)
    energies = vmap(lambda b: m.unit.energy(x, b).sum(-1))(b)
    assert torch.allclose(m.sharing(b=b).energy(x[:, None]).T,
                          energies - ((x @ m.J) * x).sum(-1) / 2)


def test_scan_and_sweep_have_one_law():
    m = machine(4, scale=0.8)
    p = table(m)[2]
    x = m.sample(2**14, 1)
    assert all(abs(drift(y, p, "spin").z(0)) < 4
               for y in (sweep(m, x, 3, 2), scan_gibbs(m.energy, x, 3, "spin", 2)))
