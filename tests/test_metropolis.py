"""Metropolis kernels against enumeration, loops, closed forms and known numbers; the doors."""
import math

import pytest
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import norm
import torch

from machines import machine, normal, seeded, some_states, widen
from rbmdiff.foundations.core import Estimate
from rbmdiff.foundations.units import Discrete, Potts, as_unit, states
from rbmdiff.models.rbm import RBM, flip_log_ratios
from rbmdiff.sampling import metropolis
from rbmdiff.sampling.diagnostics import check_kernel, drift, exact_time
from rbmdiff.sampling.gibbs import gibbs, transition_matrix
from rbmdiff.sampling.metropolis import (
    acceptance,
    flip,
    flip_the_state,
    hastings,
    hastings_matrix,
    locally_balanced,
    net_flow,
    normal_walk,
    random_walk,
)

F32, F64 = torch.float32, torch.float64
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[cuda, pytest.mark.cuda])]
LISTED = ["bernoulli", "spin", "binary((-0.5, 2.0))", "discrete((-1.0, 0.0, 2.0))", "potts(3)",
          "binomial(3)"]
RULES = ["metropolis", "barker"]


def known():
    """The machine without random numbers of the chapter."""
    i, j = torch.arange(6, dtype=F64), torch.arange(3, dtype=F64)
    return RBM(6, 3, dtype=F64).requires_grad_(False).sharing(
        W=1.5 * torch.sin(1 + i[:, None] + 2 * j), b=0.5 * torch.cos(i), c=0.5 * torch.sin(j))


def neighbours(V, unit):
    """Matrices [N, N], one a unit, that are 1 where that unit alone differs."""
    apart = (V[:, None] != V).unflatten(-1, (-1, as_unit("unit", unit).columns)).any(-1)
    alone = apart.sum(-1) == 1
    return [(alone & apart[..., k]).to(F64) for k in range(apart.shape[-1])]


def normal_density(x): return -x.square().sum(-1) / 2


# --- kernels as matrices

@pytest.mark.parametrize("rule", RULES)
def test_any_proposal_is_made_right(rule):
    log_p = normal(9, seed=1)
    p = log_p.softmax(0)
    Q = (3 * normal(9, 9, seed=2)).softmax(1)
    Q[0, 3:] = 0                                          # moves without a way back are never made
    Q = Q / Q.sum(1, keepdim=True)
    T = hastings_matrix(log_p + 7, Q, rule)
    assert (T >= 0).all() and (T.sum(1) - 1).abs().max() < 1e-15 and (T[3:, 0] == 0).all()
    assert net_flow(T, p).abs().max() < 1e-16 and (p @ T - p).abs().max() < 1e-15
    assert (net_flow(T, p).sum(0) - (p @ T - p)).abs().max() < 1e-15
    g = torch.minimum if rule == "metropolis" else lambda a, b: a * b / (a + b)
    for x in range(3, 9):
        for y in range(3, 9):
            if x != y: assert abs(p[x] * T[x, y] - g(p[x] * Q[x, y], p[y] * Q[y, x])) < 1e-15


def test_rules_have_the_property_of_a_rule():
    log_r = torch.tensor([-800.0, -30, -1, 0, 1e-3, 5, 800], dtype=F64)
    for rule in metropolis.RULES:
        g = metropolis.RULES[rule]
        torch.testing.assert_close(g(log_r), log_r + g(-log_r), rtol=1e-12, atol=1e-15)
    ends = torch.tensor([-math.inf, math.inf])
    for rule in RULES:
        a = acceptance(log_r, rule)
        assert (a >= 0).all() and (a <= 1).all() and acceptance(ends, rule).tolist() == [0, 1]
        assert a.dtype == F64 and acceptance(ends, rule).dtype == F32
    assert (acceptance(log_r) >= acceptance(log_r, "barker")).all()


def test_gradients_of_a_kernel_are_differences():
    log_p, Q = normal(5, seed=3), normal(5, 5, seed=4).softmax(1)
    assert torch.autograd.gradcheck(lambda x: hastings_matrix(x, Q), log_p.requires_grad_())
    sparse = torch.where(torch.eye(5).bool(), 0, Q)
    sparse[0, 1] = 0
    sparse = (sparse / sparse.sum(1, keepdim=True)).requires_grad_()
    slope, = torch.autograd.grad(hastings_matrix(log_p, sparse)[1, 2], sparse)
    assert slope.isfinite().all() and slope.abs().max() > 0.1


def sweep(law, alone, rule):
    T = torch.eye(len(law), dtype=F64)
    for k in alone:
        T = T @ hastings_matrix(law, k / k.sum(1, keepdim=True), rule)
    return T


def joint(m, V, H):
    """Kernel of flip-the-state over all pairs, by loops over units, number v + len(V) h."""
    pairs = [(v, h) for h in H for v in V]
    T = torch.zeros(len(pairs), len(pairs), dtype=F64)
    up, down = torch.sigmoid(m.hidden_field(V)), torch.sigmoid(m.visible_field(H))

    def step(old, new, p):
        out = 1.0
        for a, b, q in zip(old.tolist(), new.tolist(), p.tolist()):
            move = min(1.0, (1 - q) / q if a else q / (1 - q))
            out *= move if a != b else 1 - move
        return out

    K = torch.tensor([[[step(h, k, up[v]) for k in H] for h in H] for v in range(len(V))], dtype=F64)
    L = torch.tensor([[[step(v, w, down[k]) for w in V] for v in V] for k in range(len(H))], dtype=F64)
    for a in range(len(pairs)):
        v, h = a % len(V), a // len(V)
        for b in range(len(pairs)):
            T[a, b] = K[v, h, b // len(V)] * L[b // len(V), v, b % len(V)]
    return T


TABLE = {                                                # kernel: reversible, |λ₂|, τ(Σv), τ(F)
    "Metropolis, random": (True, 0.8265, 5.3631, 7.4632),
    "heat bath, random": (True, 0.8924, 9.4487, 11.4511),
    "Metropolis, sweep": (False, 0.6769, 0.1727, 1.1474),
    "heat bath, sweep": (False, 0.1176, 0.8711, 1.2458),
    "block Gibbs": (True, 0.4491, 1.0096, 1.7527), "sqrt": (True, 0.8713, 4.2131, 5.0058),
    "barker": (True, 0.8683, 4.2369, 5.2606)}


def test_the_table_of_kernels():
    m, V = known(), states(6, dtype=F64)
    law, S, F = m.log_prob(V), V.sum(1), m.free_energy(V)
    p, alone = law.exp(), neighbours(V, "bernoulli")
    kernels = {"block Gibbs": transition_matrix(m)}
    for name, rule in (("Metropolis", "metropolis"), ("heat bath", "barker")):
        kernels[f"{name}, random"] = hastings_matrix(law, sum(alone) / 6, rule)
        kernels[f"{name}, sweep"] = sweep(law, alone, rule)
    for rule in ("sqrt", "barker"):
        w = metropolis.RULES[rule](flip_log_ratios(m, V)).softmax(1)
        kernels[rule] = hastings_matrix(law, sum(k * w[:, [i]] for i, k in enumerate(alone)))
    for name, T in kernels.items():
        reversible, second, *times = TABLE[name]
        assert (net_flow(T, p).abs().max().item() < 1e-15) == reversible, name
        assert (p @ T - p).abs().max() < 1e-16
        found = torch.linalg.eigvals(T).abs().sort(descending=True).values[1].item()
        assert abs(found - second) < 6e-5, name
        assert [round(exact_time(T, p, f).item(), 4) for f in (S, F)] == pytest.approx(times, abs=1.1e-4)
    off = kernels["Metropolis, random"] - kernels["heat bath, random"]
    assert (off - off.diag().diag()).min() >= 0           # Peskun's order


def test_flip_the_state_is_stationary_and_one_line_better():
    m, V, H = known(), states(6, dtype=F64), states(3, dtype=F64)
    T = joint(m, V, H)
    law = torch.softmax(-m.energy(V[:, None], H).T.flatten(), 0)
    assert (law @ T - law).abs().max() < 1e-16
    assert abs(exact_time(T, law, V.sum(1).repeat(8)).item() - 0.3299) < 1e-4
    second = torch.linalg.eigvals(T).abs().sort(descending=True).values[1].item()
    assert abs(second - 0.5403) < 6e-5
    J = torch.cat([V.repeat(8, 1), H.repeat_interleave(64, 0)], 1)
    for state in (3, 99, 511):
        start = J[state].expand(2**15, 9)
        drawn = torch.cat(flip_the_state(m, start[:, :6], 1, seeded(state), start[:, 6:]), 1)
        assert abs(drift(drawn, T[state]).z(0)) < 4
        assert drift(drawn, T[state - 1]).z(0) > 20


def test_the_acceptance_of_balanced_proposals_is_the_ratio_of_sums():
    m, V = machine(6, 3, scale=2.0), states(6, dtype=F64)
    law, alone = m.log_prob(V), neighbours(V, "bernoulli")
    random = hastings_matrix(law, sum(alone) / 6)
    w = (flip_log_ratios(m, V) / 2).softmax(1)
    T = hastings_matrix(law, sum(k * w[:, [i]] for i, k in enumerate(alone)))
    moved = [(law.exp() @ (1 - K.diag())).item() for K in (random, T)]
    assert moved[1] > 2 * moved[0]


def test_at_constant_energy_nothing_converges():
    alone = neighbours(states(4, dtype=F64), "bernoulli")
    flat = torch.full((16,), -4 * math.log(2), dtype=F64)
    values = torch.linalg.eigvalsh(sweep(flat, alone, "metropolis"))
    assert (values.abs() > 1 - 1e-12).all() and values.min() < -0.99
    assert torch.linalg.eigvalsh(hastings_matrix(flat, sum(alone) / 4)).min() < -1 + 1e-12
    assert (sweep(flat, alone, "barker") - 1 / 16).abs().max() < 1e-15
    with pytest.raises(ValueError, match="^T must reach every state"):
        exact_time(sweep(flat, alone, "metropolis"), flat.exp(), torch.arange(16.0, dtype=F64))
    m = RBM(4, 3, dtype=F64).requires_grad_(False)
    m.W.zero_()
    v = some_states((5, 4))
    assert torch.equal(flip(m, v, 1, 0, "sweep"), 1 - v) and torch.equal(flip(m, v, 2, 0, "sweep"), v)
    assert torch.equal(flip_the_state(m, v, 3, 0)[0], 1 - v)
    assert not torch.equal(flip(m, v, 1, 0, "sweep", "barker"), 1 - v)


def test_flip_the_state_goes_to_and_fro_where_all_fields_are_zero():
    one = torch.ones(6, 2, dtype=F64)
    m = RBM(6, 2, dtype=F64).requires_grad_(False).sharing(W=2 * one, b=-2 * one[:, 0], c=-6 * one[0])
    v, h = (torch.arange(n).expand(9, n) < n // 2 for n in (6, 2))
    v, h = v.to(F64), h.to(F64)
    ends = flip_the_state(m, v, 5, 0, h)
    assert torch.equal(ends[0], 1 - v) and torch.equal(ends[1], 1 - h)
    assert not torch.equal(gibbs(m, v, 5, 0), 1 - v)


# --- samplers are their kernels

@pytest.mark.parametrize("scan", ["random", "sweep"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("visible", LISTED)
def test_flips_are_their_kernel(visible, rule, scan):
    D = 6 if visible.startswith("potts") else 3
    m, V = machine(D, 2, visible), states(D, visible, dtype=F64)
    law, alone = m.log_prob(V), neighbours(V, visible)
    T = sweep(law, alone, rule)
    q = m.visible.n_states
    if scan == "random": T = hastings_matrix(law, sum(alone) / (len(alone) * (q - 1)), rule)
    other = T.roll(1, 1)
    for state in (0, len(V) // 2):
        drawn = flip(m, V[state].expand(2**14, D), 1, seeded(state), scan, rule)
        assert abs(drift(drawn, T[state], m.visible).z(0)) < 4
        assert drift(drawn, other[state], m.visible).z(0) > 10


@pytest.mark.parametrize("rule", list(metropolis.RULES))
@pytest.mark.parametrize("visible", LISTED[:3])
def test_balanced_flips_are_their_kernel(visible, rule):
    m, V = machine(4, 3, visible, "spin", scale=1.0), states(4, visible, dtype=F64)
    w = metropolis.RULES[rule](flip_log_ratios(m, V)).softmax(1)
    Q = sum(k * w[:, [i]] for i, k in enumerate(neighbours(V, visible)))
    T = hastings_matrix(m.log_prob(V), Q)
    for state in (1, T.diag().argmax().item()):           # where most is refused
        drawn = locally_balanced(m, V[state].expand(2**14, 4), 1, seeded(state), rule)
        assert abs(drift(drawn, T[state], visible).z(0)) < 4
        assert drift(drawn, T[state].roll(1), visible).z(0) > 10
    assert drift(drawn, Q[state], visible).z(0) > 8       # not all is accepted


@pytest.mark.parametrize("visible,hidden", [("bernoulli", "spin"), ("spin", "bernoulli"),
                                            ("potts(3)", "discrete((-1.0, 0.0, 2.0))"),
                                            ("binomial(3)", "potts(2)"), ("bernoulli", "gaussian"),
                                            ("spin", "relu")])
def test_no_drift(visible, hidden):
    D = 6 if visible.startswith("potts") else 4
    m = machine(D, 2, visible, hidden, scale=0.5)
    p = m.log_prob(states(D, visible, dtype=F64)).exp()
    start = m.sample(2**14, generator=1)
    for walk in (lambda v: flip_the_state(m, v, 3, 2)[0], lambda v: flip(m, v, 3, 2),
                 lambda v: flip(m, v, 1, 2, "sweep", "barker")):
        end = walk(start)
        assert abs(drift(end, p, m.visible).z(0)) < 4
        assert (end != start).any(1).double().mean() > 0.3


def test_real_layers_are_redrawn():
    m = widen(machine(3, 2, "gaussian", "spin", scale=0.4), 0.5)
    start = m.sample(2**15, generator=1)
    v, h = flip_the_state(m, start, 2, 2)
    fresh = gibbs(m, start, 1, 3)
    for f in (lambda v: v.sum(1), lambda v: v[:, 0] * v[:, 1], lambda v: v[:, 2].square()):
        a, b = Estimate.of(f(v)), Estimate.of(f(fresh))
        assert abs(a.value - b.value) < 4 * math.hypot(a.stderr, b.stderr) and a.stderr < 0.02
    assert h.shape == (2**15, 2) and set(h.unique().tolist()) == {-1.0, 1.0}


def test_fields_do_not_drift_away():
    """Ten thousand flips in single precision stay where those in double precision go."""
    m = machine(8, 5, scale=1.0)
    v = some_states((4, 8))
    u = flip(m.float(), v.float(), 4000, 3)
    assert u.dtype == F32 and set(u.unique().tolist()) <= {0.0, 1.0}
    long, steps = flip(m.double(), v, 24, 5), v
    g = seeded(5)
    for _ in range(24):
        steps = flip(m.double(), steps, 1, g)
    assert torch.equal(long, steps)                      # in one go, or one by one
    a, b = locally_balanced(m, v, 5, 5), v
    g = seeded(5)
    for _ in range(5):
        b = locally_balanced(m, b, 1, g)
    assert torch.equal(a, b)
    a, b, h = flip_the_state(m, v, 4, 6)[0], v, None
    g = seeded(6)
    for _ in range(4):
        b, h = flip_the_state(m, b, 1, g, h)
    assert torch.equal(a, b)


def test_fields_are_computed_afresh_once_a_round(monkeypatch):
    m, calls, field = machine(8, 5), [], RBM.hidden_field
    monkeypatch.setattr(RBM, "hidden_field", lambda self, v: calls.append(1) or field(self, v))
    flip(m, some_states((4, 8)), 24, 0)
    assert len(calls) == 3


def test_a_unit_without_weight_is_never_proposed():
    """Also where the weights before it sum to less than the largest number below one."""
    m, log_w = machine(100, 2, dtype=F32), normal(500, 100, seed=1).float()
    log_w[:, -1] = -200
    u = torch.full((500,), 1 - 2**-24)
    assert (log_w.softmax(-1).cumsum(-1)[:, -1] <= u).sum() > 50
    v = some_states((500, 100), dtype=F32)
    moved = metropolis._flipped(m, v, log_w, u) != v
    assert (moved.sum(-1) == 1).all() and not moved[:, -1].any()
    first = metropolis._flipped(m, v, log_w.flip(-1), 0 * u) != v       # nor by the number zero
    assert (first.sum(-1) == 1).all() and not first[:, 0].any()


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_the_size_of_all_weights_does_not_matter(shift):
    m, log_w, v = machine(6, 2), normal(50, 6, seed=1), some_states((50, 6))
    u = torch.linspace(0, 0.99, 50, dtype=F64)
    assert torch.equal(metropolis._flipped(m, v, log_w + shift, u), metropolis._flipped(m, v, log_w, u))


def test_a_batch_of_machines_is_one_after_the_other():
    m, f = machine(4, 3), normal(3, 4, seed=5)
    v = some_states((2, 3, 4))
    for walk in (lambda m, v, g: flip(m, v, 6, g), lambda m, v, g: flip(m, v, 2, g, "sweep", "barker"),
                 lambda m, v, g: locally_balanced(m, v, 4, g),
                 lambda m, v, g: flip_the_state(m, v, 3, g)[0]):
        both = walk(m.tilt(f), v, [7, 8, 9])
        for k in range(3):
            assert torch.equal(both[:, [k]], walk(m.tilt(f[[k]]), v[:, [k]], [7 + k]))
        assert walk(m.tilt(f), v[0, 0], 1).shape == (3, 4)
    held = m.clamp(v[0], torch.tensor([True, False, False, False]))
    assert flip(held, v[0, :, 1:], 5, 0).shape == (3, 3)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_any_leading_shape(shape):
    m, v = machine(4, 3), some_states((*shape, 4))
    for end in (flip(m, v, 3, 0), locally_balanced(m, v, 3, 0), *flip_the_state(m, v, 3, 0)[:1]):
        assert end.shape == v.shape and end.dtype == v.dtype
    x = normal(*shape, 4)
    assert random_walk(normal_density, x, 0.5, 3, 0).shape == x.shape
    m = machine(1, 1)
    assert flip(m, torch.ones(1, dtype=F64), 3, 0).shape == (1,)


@pytest.mark.parametrize("scale", [40.0, 1e4])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_cold_machines(scale, dtype):
    """Where all is certain, chains go downhill and stay."""
    m = machine(6, 4, dtype=dtype)
    m = m.sharing(W=scale * m.W, b=scale * m.b, c=scale * m.c)
    v = some_states((8, 6), dtype=dtype)
    for end in (flip(m, v, 20, 0, "sweep"), locally_balanced(m, v, 50, 0)):
        assert set(end.unique().tolist()) <= {0.0, 1.0}
        assert (m.free_energy(end) <= m.free_energy(v) + 30).all()
        assert (flip_log_ratios(m, end) <= 1e-3 * scale + 20).all()
    assert flip_the_state(m, v, 5, 0)[0].isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
def test_devices(device):
    m = machine(5, 3, dtype=F32, device=device)
    v = some_states((4, 5), dtype=F32).to(device)
    for end in (flip(m, v, 7, 0), locally_balanced(m, v, 3, 0), *flip_the_state(m, v, 3, 0)):
        assert end.device.type == device and end.isfinite().all()
    x = normal(4, 5, dtype=F32).to(device)
    assert random_walk(normal_density, x, torch.ones(5, device=device), 3, 0).device.type == device


# --- walks

@pytest.mark.parametrize("d,scale,a,jump", [
    (1, 2.4264, 0.4389, 0.7442), (2, 2.4147, 0.3507, 0.9500), (5, 2.3999, 0.2839, 1.1440),
    (10, 2.3919, 0.2593, 1.2283), (50, 2.3836, 0.2390, 1.3051), (100, 2.3824, 0.2364, 1.3153)])
def test_the_best_scale(d, scale, a, jump):
    best = minimize_scalar(lambda s: -normal_walk(s, d)[1], bounds=(0.01, 6 / d**0.5), method="bounded",
                           options={"xatol": 1e-10}).x
    assert abs(best * d**0.5 - scale) < 6e-5
    assert normal_walk(best, d) == pytest.approx((a, jump), abs=6e-5)


def test_limits_of_the_best_scale():
    assert abs(normal_walk(2.4, 1)[0] - 2 / math.pi * math.atan(2 / 2.4)) < 1e-15
    assert abs(normal_walk(2.4, 1)[0] - 0.442284) < 1e-6
    l = minimize_scalar(lambda l: -l**2 * 2 * norm.cdf(-l / 2), bounds=(1, 4), method="bounded",
                        options={"xatol": 1e-12}).x
    assert l == pytest.approx(2.381203, abs=1e-6)
    assert 2 * norm.cdf(-l / 2) == pytest.approx(0.233810, abs=1e-6)
    assert l**2 * 2 * norm.cdf(-l / 2) == pytest.approx(1.325733, abs=1e-6)
    a, jump = normal_walk(l / 1000, 10**6)
    assert abs(a - 0.233810) < 1e-5 and abs(jump - 1.325733) < 1e-4
    slow = brentq(lambda s: normal_walk(s, 1)[0] - 0.234, 2, 99)
    assert abs(normal_walk(slow, 1)[1] - 0.5534) < 5e-5
    small, large = normal_walk(1e-9, 3), normal_walk(1e9, 3)
    assert small[0] == pytest.approx(1) and small[1] == pytest.approx(3e-18) and large[0] < 1e-20


def test_a_walk_keeps_its_density_and_the_mutant_does_not():
    x = torch.randn(2**15, 3, dtype=F64, generator=seeded(1))
    y = random_walk(normal_density, x, torch.tensor([0.5, 1.0, 3.0], dtype=F64), 5, 2)
    assert (y != x).any(1).double().mean() > 0.5
    for f, value in ((lambda x: x[:, 0], 0.0), (lambda x: x.square().sum(1), 3.0),
                     (lambda x: x[:, 1] * x[:, 2], 0.0)):
        assert abs(Estimate.of(f(y)).z(value)) < 4
    drifting = lambda x, g: (0.7 * x + torch.randn(x.shape, dtype=F64, generator=g), 0.0)
    assert Estimate.of(hastings(normal_density, drifting, x, 5, 2).square().sum(1)).z(3.0) < -20


def test_a_proposal_with_a_ratio():
    """Steps that shrink x, and the ratio that pays for it."""
    def shrink(x, g):
        y = 0.7 * x + torch.randn(x.shape, dtype=F64, generator=g)
        return y, ((y - 0.7 * x).square() - (x - 0.7 * y).square()).sum(-1) / 2

    x = torch.randn(2**15, 2, dtype=F64, generator=seeded(1))
    for rule in RULES:
        y = hastings(normal_density, shrink, x, 4, 3, rule)
        assert abs(Estimate.of(y.square().sum(1)).z(2.0)) < 4 and (y != x).double().mean() > 0.3


@pytest.mark.parametrize("rule,share", [("metropolis", math.exp(-1)), ("barker", 1 / (1 + math.e))])
def test_the_rule_is_the_one_asked_for(rule, share):
    up = lambda x, g: (x + 1, 0.0)
    x = torch.zeros(2**14, 1, dtype=F64)
    moved = hastings(lambda x: -x.sum(-1), up, x, 1, 3, rule)[:, 0]
    assert abs(Estimate.of(moved).z(share)) < 4
    assert ((hastings(lambda x: x.sum(-1), up, x, 1, 3, rule) == 1).all()) == (rule == "metropolis")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("when,steps", [(1, 1), (1, 4), (3, 4)])
def test_one_bad_log_prob_on_the_way_is_enough(bad, when, steps):
    calls = []

    def log_prob(x):
        calls.append(1)
        return normal_density(x) * 0 + (bad if len(calls) == when + 1 else 0.0)

    with pytest.raises(ValueError, match="^log_prob must be numbers below inf, .* 5 of 5 chains met"):
        random_walk(log_prob, torch.zeros(5, 2), 1.0, steps, 0)


def test_outside_the_support_is_never_accepted():
    inside = lambda x: torch.where((x.abs() < 1).all(-1), 0.0, -math.inf)
    x = torch.rand(2**14, 2, dtype=F64, generator=seeded(1)) * 2 - 1
    y = random_walk(inside, x, 1.5, 20, 2)
    assert (y.abs() < 1).all() and abs(Estimate.of(y[:, 0].square()).z(1 / 3)) < 4
    with pytest.raises(ValueError, match="^x must start where log_prob is finite, it is -inf at 3 of 5"):
        random_walk(inside, torch.tensor([[0.0], [2], [0.5], [3], [4]]), 1.0, 2)


def test_steps_in_one_go_or_one_by_one():
    x, g = normal(3, 2), seeded(4)
    y = x
    for _ in range(6):
        y = random_walk(normal_density, y, 0.7, 1, g)
    assert torch.equal(y, random_walk(normal_density, x, 0.7, 6, 4))
    tensor = torch.full((2,), 0.7, dtype=F64)
    assert torch.equal(y, random_walk(normal_density, x, tensor, 6, 4))


# --- exact times

def test_exact_times_of_known_chains():
    p = torch.full((4,), 0.25, dtype=F64)
    f = torch.tensor([1.0, -1, 2, 0], dtype=F64)
    lazy = lambda r: r * torch.eye(4, dtype=F64) + (1 - r) * p.expand(4, 4)
    for r in (0.0, 0.5, 0.99, 1 - 2**-27):
        assert exact_time(lazy(r), p, f).item() == pytest.approx((1 + r) / (1 - r), rel=1e-6)
    both = exact_time(lazy(0.5), p, torch.stack([f, f**2]))
    assert both.shape == (2,) and both[1].item() == pytest.approx(3)
    cycle = torch.eye(4, dtype=F64).roll(1, 1)
    assert abs(exact_time(cycle, p, f).item()) < 1e-14   # a tour of all states
    single = exact_time(lazy(0.5).float(), p.float(), f.float())
    assert single.dtype == F64 and single.item() == pytest.approx(3, rel=1e-5)


EYE, HALF = torch.eye(3, dtype=F64), torch.full((3,), 1 / 3, dtype=F64)
ROW = torch.arange(3, dtype=F64)
BITS, GOOD = machine(4, 3, dtype=F32), torch.ones(5, 4)
X = torch.zeros(5, 2)


def step(x, g): return x + torch.randn(x.shape, generator=g), 0.0


DOORS = [
    (lambda: exact_time(EYE, HALF, ROW), ValueError, "^T must reach every state"),
    (lambda: exact_time(HALF.expand(3, 3), HALF, 0 * ROW + 1), ValueError, "^f must vary"),
    (lambda: exact_time(HALF.expand(3, 3), HALF, ROW[:2]), ValueError, r"^f must have shape \[..., 3\]"),
    (lambda: check_kernel(EYE[:2], HALF), ValueError, r"^T must have shape \[N, N\], got \[2, 3\]"),
    (lambda: check_kernel(EYE, EYE), ValueError, r"^p must have shape \[3\], got \[3, 3\]"),
    (lambda: check_kernel(2 * EYE, HALF), ValueError, "^T, p must hold probabilities, got rows of T"),
    (lambda: check_kernel(EYE, 2 * HALF), ValueError, "^T, p must hold probabilities"),
    (lambda: check_kernel(2 * EYE - HALF.expand(3, 3), HALF), ValueError, "^T must not be negative"),
    (lambda: check_kernel(HALF.expand(3, 3), ROW / 3), ValueError,
     "^T must keep p, it changes it by 0.333"),
    (lambda: net_flow(EYE, HALF.float()), TypeError, "^p must be torch.float64"),
    (lambda: acceptance(0.3), TypeError, "^log_r must be a torch.Tensor of real numbers, got float"),
    (lambda: acceptance(torch.tensor([1]), "barker"), TypeError, "^log_r must be .* got torch.int64"),
    (lambda: acceptance(torch.tensor([True])), TypeError, "^log_r must be .* got torch.bool"),
    (lambda: acceptance(torch.tensor(math.nan)), ValueError, "^log_r must not be NaN"),
    (lambda: acceptance(ROW, "sqrt"), ValueError, "^rule must be one of 'metropolis', 'barker'"),
    (lambda: hastings_matrix(EYE, EYE), ValueError, r"^log_p, Q must have shapes \[N\], \[N, N\]"),
    (lambda: hastings_matrix(ROW, 2 * EYE), ValueError, "^Q must hold probabilities"),
    (lambda: hastings_matrix(ROW, 1.5 * EYE - HALF.expand(3, 3) / 2), ValueError, "^Q must hold"),
    (lambda: hastings_matrix(ROW / 0, EYE), ValueError, "^log_p must be finite"),
    (lambda: normal_walk(0.0, 2), ValueError, "^scale must be finite and above 0 .*, got 0.0"),
    (lambda: normal_walk(1e200, 2), ValueError, "^scale must be finite and above 0 and at most 1e"),
    (lambda: normal_walk(1.0, 0), ValueError, "^d must be at least 1"),
    (lambda: random_walk(normal_density, X, 0.0, 2), ValueError, "^scale must be finite and above 0"),
    (lambda: random_walk(normal_density, X, -1, 2), ValueError, "^scale must be finite and above 0"),
    (lambda: random_walk(normal_density, X, "1", 2), TypeError, "^scale must be a number, got str"),
    (lambda: random_walk(normal_density, X, torch.tensor([1.0, 0.0]), 2), ValueError,
     "^scale must be positive, got values from 0"),
    (lambda: random_walk(normal_density, X, torch.ones(3), 2), ValueError,
     r"^scale must have shape \[..., 2\]"),
    (lambda: random_walk(normal_density, X, 1.0, 0), ValueError, "^steps must be at least 1"),
    (lambda: random_walk(normal_density, X, 1.0, 2.0), TypeError, "^steps must be an int"),
    (lambda: random_walk(3, X, 1.0, 2), TypeError, "^log_prob must be a function, got int"),
    (lambda: random_walk(normal_density, X.long(), 1.0, 2), TypeError, "^x must be float32 or float64"),
    (lambda: random_walk(normal_density, torch.tensor(0.0), 1.0, 2), ValueError, "^x must have shape"),
    (lambda: random_walk(lambda x: x, X, 1.0, 2), ValueError,
     r"^log_prob must return shape \[5\] on cpu for x of \[5, 2\], got \[5, 2\]"),
    (lambda: random_walk(lambda x: x.sum(), X, 1.0, 2), ValueError,
     r"return shape \[5\] .* got \[\] on cpu"),
    (lambda: random_walk(lambda x: 0.0, X, 1.0, 2), TypeError, "^log_prob must return a torch.Tensor"),
    (lambda: random_walk(lambda x: x.sum(-1).long(), X, 1.0, 2), TypeError,
     "got torch.int64, torch.strided$"),
    (lambda: random_walk(lambda x: x.sum(-1) * math.nan, X, 1.0, 2), ValueError,
     "^x must start where .* nan"),
    (lambda: random_walk(lambda x: x.sum(-1) + math.inf, X, 1.0, 2), ValueError,
     "^x must start .* inf at"),
    (lambda: random_walk(lambda x: (-x.sum(-1) ** 2).sqrt(), X, 1.0, 2, 0), ValueError,
     "^log_prob must be numbers below inf, or -inf, .* of 5 chains met NaN or inf"),
    (lambda: random_walk(lambda x: 1 / (x.sum(-1) == 0).float() - 1, X, 1.0, 2, 0), ValueError,
     "chains met NaN or inf"),
    (lambda: hastings(normal_density, 3, X, 2), TypeError, "^propose must be a function"),
    (lambda: hastings(normal_density, lambda x, g: (x[:2], 0.0), X, 2), ValueError,
     r"^propose must return places of shape \[5, 2\] of torch.float32, got \[2, 2\]"),
    (lambda: hastings(normal_density, lambda x, g: (x.double(), 0.0), X, 2), ValueError,
     "^propose must"),
    (lambda: hastings(normal_density, lambda x, g: (3, 0.0), X, 2), ValueError, "got int$"),
    (lambda: hastings(normal_density, lambda x, g: (x, math.nan), X, 2), ValueError, "met NaN or inf"),
    (lambda: hastings(normal_density, lambda x, g: (x, math.inf), X, 2), ValueError, "met NaN or inf"),
    (lambda: hastings(normal_density, lambda x, g: (x, torch.zeros(5, 1)), X, 2), ValueError,
     r"^propose must return log q of shape \[5\], or a number, got \[5, 1\] of torch.float32"),
    (lambda: hastings(normal_density, lambda x, g: (x, torch.zeros(2, 5)), X, 2), ValueError,
     "^propose must return log q"),
    (lambda: hastings(normal_density, lambda x, g: (x, torch.zeros(3)), X, 2), ValueError,
     "^propose must return log q"),
    (lambda: hastings(normal_density, lambda x, g: (x, torch.zeros(5, dtype=torch.long)), X, 2),
     ValueError, "^propose must return log q .* of torch.int64"),
    (lambda: hastings(normal_density, lambda x, g: (x, None), X, 2), ValueError, "got NoneType$"),
    (lambda: hastings(normal_density, lambda x, g: (x, True), X, 2), ValueError, "got bool$"),
    (lambda: hastings(normal_density, lambda x, g: x, X, 2), TypeError,
     "^propose must return a place and log q, got Tensor"),
    (lambda: hastings(normal_density, lambda x, g: (x, 0.0, 0.0), X, 2), TypeError,
     "^propose must return a place"),
    (lambda: random_walk(normal_density, X, torch.ones(2, requires_grad=True), 2), ValueError,
     "^random_walk builds no graph"),
    (lambda: hastings(normal_density, step, X, 2, rule="sqrt"), ValueError, "^rule must be one of"),
    (lambda: flip(GOOD, GOOD, 2), TypeError, "^rbm must be an RBM"),
    (lambda: flip(machine(4, 3, "gaussian", dtype=F32), GOOD, 2), ValueError,
     "^rbm must have visible units"),
    (lambda: flip(machine(4, 3, "poisson", dtype=F32), GOOD, 2), ValueError,
     "^rbm must have visible units"),
    (lambda: flip(BITS, None, 2), TypeError, "^v must be a torch.Tensor, got NoneType"),
    (lambda: flip_the_state(BITS, None, 2), TypeError, "^v must be a torch.Tensor, got NoneType"),
    (lambda: gibbs(BITS, None, 2), TypeError, "^v must be a torch.Tensor, got NoneType"),
    (lambda: flip(BITS, GOOD[:, :3], 2), ValueError, r"^v must have shape \[..., 4\]"),
    (lambda: flip(BITS, GOOD / 2, 2), ValueError, "^v must hold only 0 or 1"),
    (lambda: flip(BITS, GOOD.double(), 2), TypeError, "^v must be torch.float32"),
    (lambda: flip(BITS, GOOD, 0), ValueError, "^steps must be at least 1"),
    (lambda: flip(BITS, GOOD, 2, scan="order"), ValueError, "^scan must be one of 'random', 'sweep'"),
    (lambda: flip(BITS, GOOD, 2, rule="sqrt"), ValueError,
     "^rule must be one of 'metropolis', 'barker'"),
    (lambda: flip(BITS.tilt(torch.zeros(3, 4)), GOOD, 2), ValueError, "^v must fit a batch of machines"),
    (lambda: locally_balanced(machine(4, 3, Discrete((0.0, 1.0, 2.0)), dtype=F32), GOOD, 2), ValueError,
     "^rbm must have visible units of two levels"),
    (lambda: locally_balanced(machine(4, 3, Potts(2), dtype=F32), GOOD, 2), ValueError, "of two levels"),
    (lambda: locally_balanced(BITS, GOOD, 2, rule="r"), ValueError, "^rule must be one of 'metropolis'"),
    (lambda: locally_balanced(BITS, GOOD, 0), ValueError, "^steps must be at least 1"),
    (lambda: flip_the_state(BITS, GOOD, 0), ValueError, "^steps must be at least 1"),
    (lambda: flip_the_state(BITS, GOOD, 2, h=torch.ones(5, 2)), ValueError,
     r"^h must have shape \[..., 3\]"),
    (lambda: flip_the_state(BITS, GOOD, 2, h=torch.ones(1, 3)), ValueError,
     r"^h must have shape \[5, 3\], one for each row of v, got \[1, 3\]"),
    (lambda: flip_the_state(BITS, GOOD, 2, h=torch.full((5, 3), 0.5)), ValueError,
     "^h must hold only 0 or 1"),
    (lambda: flip_the_state(BITS, GOOD, 2, h=3), TypeError, "^h must be a torch.Tensor"),
]


@pytest.mark.parametrize("call,kind,message", DOORS)
def test_doors(call, kind, message):
    with pytest.raises(kind, match=message): call()
