"""Diffusion of bits against enumeration: noised machines, ratios, ways back, bounds, networks."""
import math

import pytest
import torch

from machines import machine, normal, seeded
from rbmdiff.bridge import discrete
from rbmdiff.bridge.discrete import (
    FlipDenoiser,
    consistent_entropy,
    denoise,
    flip_chance,
    leap_chance,
    log_prob,
    mean_ratios,
    path_loss,
    ratios,
    sample,
    score_entropy,
)
from rbmdiff.bridge.masked import MaskDenoiser
from rbmdiff.bridge.recovery import flip
from rbmdiff.bridge.tilted import flip_posterior
from rbmdiff.diffusion.networks import MLP
from rbmdiff.foundations.core import Estimate
from rbmdiff.foundations.units import Binary, states
from rbmdiff.sampling.diagnostics import drift, state_numbers
from rbmdiff.sampling.means import mean as machine_mean

f32, f64 = torch.float32, torch.float64
PAIRS = [(v, h) for v in ("bernoulli", "spin") for h in ("bernoulli", "spin")]
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[cuda, pytest.mark.cuda])]
TIMES = 0.05, 0.4, 2.0
GRID = torch.tensor([4.0, 1.0, 0.2, 0.05], dtype=f64)


def noise_table(D, t):
    """q(x | v) of all states, [v, x]."""
    apart = (states(D)[:, None] != states(D)).double().sum(-1)
    p = -math.expm1(-2 * t) / 2
    return p**apart * (1 - p) ** (D - apart)


def law(m, t): return m.log_prob(states(len(m.W), m.visible)).exp() @ noise_table(len(m.W), t)


def neighbours(D, unit="bernoulli"):
    V = states(D, unit)
    return state_numbers(V[:, None] + torch.diag_embed(V.max() + V.min() - 2 * V), unit)


# Noise and the noised machine

@pytest.mark.parametrize("visible, hidden", PAIRS)
@pytest.mark.parametrize("D, H", [(5, 3), (3, 5)])
def test_law_and_ratios_are_those_of_the_sum_over_all_flips(visible, hidden, D, H):
    m = machine(D, H, visible, hidden)
    V, near = states(D, visible), neighbours(D, visible)
    for t in TIMES:
        p = law(m, t)
        assert (log_prob(m, V, t) - p.log()).abs().max() < 1e-12
        truth = p[near] / p[:, None]
        assert (ratios(m, V, t) / truth - 1).abs().max() < 1e-11
        assert (ratios(m, V, 1.1 * t) / truth - 1).abs().max() > 1e-3
        assert (ratios(m, V, t) * ratios(m, V, t)[near, torch.arange(D)] - 1).abs().max() < 1e-10
        assert (ratios(m, V, t) > math.tanh(t)).all() and (ratios(m, V, t) < 1 / math.tanh(t)).all()
        posterior = (m.log_prob(V)[:, None] + noise_table(D, t).log()).softmax(0)
        assert (denoise(m, V, t) - posterior.T @ V).abs().max() < 1e-12


def test_units_of_any_two_levels():
    m = machine(4, 3, Binary((0.5, 2.0)))
    V = states(4, m.visible)
    p = law(m, 0.3)
    assert (ratios(m, V, 0.3) / (p[neighbours(4, m.visible)] / p[:, None]) - 1).abs().max() < 1e-11
    loss = path_loss(lambda x, t: denoise(m, x, t), V.repeat(4000, 1), 1, m.visible, seeded())
    for column, truth in zip(loss.view(4000, 16).T, (-m.log_prob(V)).tolist()):
        assert abs(Estimate.of(column).z(truth)) < 4
    x = sample(lambda x, t: denoise(m, x, t), V.repeat(500, 1), GRID, "thinning", m.visible, seeded())
    assert abs(drift(x, law(m, 0.05), m.visible).z(0)) < 4


@pytest.mark.parametrize("method", ["exact", "gibbs", "mean_field", "tap"])
def test_all_methods_give_ratios_of_their_means(method):
    m, V = machine(5, 3), states(5)[:7]
    m_ = denoise(m, V, 0.4, method, steps=30, generator=3)
    r = ratios(m, V, 0.4, method, steps=30, generator=3)
    assert torch.equal(r, mean_ratios(m_, V, 0.4))
    if method != "exact": assert 1e-6 < (r / ratios(m, V, 0.4) - 1).abs().max() < 0.5
    posterior = flip_posterior(m, V, flip_chance(0.4))
    wanted = machine_mean(posterior, method, steps=30, generator=3)
    assert (m_ - wanted).abs().max() < 1e-12


@pytest.mark.parametrize("D, H", [(5, 3), (3, 5)])
def test_a_time_a_row_any_batch_and_the_table_agree(D, H):
    m, V = machine(D, H), states(D)
    t = torch.linspace(0.1, 3, len(V), dtype=f64)
    single = torch.cat([ratios(m, v[None], float(s)) for v, s in zip(V, t)])
    assert (ratios(m, V, t) / single - 1).abs().max() < 1e-12
    assert (log_prob(m, V, t) - torch.stack([log_prob(m, v[None], float(s))[0] for v, s in zip(V, t)])
            ).abs().max() < 1e-12
    deep = V.view(2, 2, -1, D)
    assert torch.equal(ratios(m, deep, 0.3), ratios(m, V, 0.3).view_as(deep))
    two = torch.tensor([0.3, 0.7], dtype=f64)
    wanted = torch.stack([ratios(m, deep[k], float(two[k])) for k in (0, 1)])
    assert (ratios(m, deep, two) / wanted - 1).abs().max() < 1e-12
    assert log_prob(m, deep, two).shape == (2, 2, len(V) // 4)


@pytest.mark.parametrize("device", DEVICES)
def test_single_precision_and_devices(device):
    m, V = machine(5, 3, device=device), states(5).to(device)
    for t in (1e-4, 0.1, 3.0, 30.0):
        r = ratios(m.float(), V.float(), t)
        assert r.dtype == f32 and r.device == V.device
        assert (r.double() / ratios(machine(5, 3, device=device, dtype=f32).double(), V, t) - 1
                ).abs().max() < 1e-5
        assert log_prob(m.float(), V.float(), t).dtype == denoise(m.float(), V.float(), t).dtype == f32
    x = sample(lambda x, t: denoise(m.float(), x, t), V.float(), GRID, "thinning",
               generator=seeded(0, device))
    assert x.dtype == f32 and x.device == V.device


def test_sixty_four_bits_at_once():
    m = machine(64, 10, scale=0.3)
    x = (normal(300, 64) > 0).double()
    t = torch.full((3,), 0.4, dtype=f64)
    assert (denoise(m, x, 0.4)[:3] - denoise(m, x[:3], t)).abs().max() < 1e-12
    assert ratios(m, x, 0.01).isfinite().all()


def test_hidden_states_in_pieces():
    m = machine(64, 14, scale=0.3)
    x = (normal(500, 64) > 0).double()
    assert (denoise(m, x, 0.4)[3:5] - denoise(m, x[3:5], 0.4)).abs().max() < 1e-12


# Ways back

def rates_flow(m, t):
    """The matrix of reverse flow at time t, [from, to]."""
    D, V = len(m.W), states(len(m.W))
    G = torch.zeros(len(V), len(V), dtype=f64)
    G.scatter_(1, neighbours(D), ratios(m, V, t))
    return G - torch.diag(G.sum(1))


def test_reverse_rates_undo_the_noise():
    m = machine(4, 3)
    h = 1e-5
    slope = (law(m, 0.3 - h) - law(m, 0.3 + h)) / (2 * h)
    assert (law(m, 0.3) @ rates_flow(m, 0.3) - slope).abs().max() < 1e-9


def chance_matrix(m, t, s, kind):
    V = states(len(m.W))
    chance = leap_chance(denoise(m, V, t), V, t, s, kind)
    return torch.where(V[:, None] != V, chance[:, None], 1 - chance[:, None]).prod(-1)


def test_short_steps_of_both_kinds_are_the_rates():
    m, h = machine(4, 3), 1e-6
    for kind in ("posterior", "tau"):
        T = chance_matrix(m, 0.3, 0.3 - h, kind)
        assert ((T - torch.eye(16)) / h - rates_flow(m, 0.3)).abs().max() < 1e-3


def test_tau_counts_all_flips_at_fixed_rates():
    m, V = machine(4, 3), states(4)
    chance = leap_chance(denoise(m, V, 0.6), V, 0.6, 0.1, "tau")
    move = torch.tensor([[-0.5, 0.5], [0.5, -0.5]], dtype=f64)
    truth = torch.matrix_exp(ratios(m, V, 0.6)[..., None, None] * move)[..., 0, 1]
    assert (chance - truth).abs().max() < 1e-14
    assert (chance - 0.5 * ratios(m, V, 0.6)).abs().min() > 0.01


def test_the_posterior_step_of_independent_units_is_exact_and_tau_is_not():
    m = machine(4, 3)
    m.W.zero_()
    for t, s in ((2.0, 0.5), (0.5, 0.02), (0.5, 0.0)):
        wanted = law(m, s) if s else m.log_prob(states(4)).exp()
        assert (law(m, t) @ chance_matrix(m, t, s, "posterior") - wanted).abs().max() < 1e-13
        if s: assert (law(m, t) @ chance_matrix(m, t, s, "tau") - wanted).abs().max() > 1e-3


@pytest.mark.parametrize("visible", ["bernoulli", "spin"])
@pytest.mark.parametrize("kind, steps", [("thinning", 1), ("posterior", 80), ("tau", 400)])
def test_walks_arrive_at_the_law(visible, kind, steps):
    m = machine(4, 3, visible)
    V = states(4, visible)
    x = V.repeat(1250, 1)
    grid = torch.logspace(math.log10(4), math.log10(0.05), steps + 1, dtype=f64)
    x = sample(lambda x, t: denoise(m, x, t), x, grid, kind, visible, seeded(1))
    e = drift(x, law(m, 0.05), visible)
    assert abs(e.z(0)) < 4 and e.stderr < 0.01
    assert drift(x, law(m, 0.5), visible).z(0) > 4


def test_steps_end_at_zero_and_thinning_looks_at_the_ends():
    m = machine(4, 3)
    oracle, x = lambda x, t: denoise(m, x, t), states(4).repeat(1250, 1)
    grid = torch.cat([torch.logspace(0.6, -2, 81, dtype=f64), torch.zeros(1, dtype=f64)])
    assert abs(drift(sample(oracle, x, grid, generator=2), m.log_prob(states(4)).exp()).z(0)) < 4
    ends = sample(oracle, x, GRID[[0, -1]], "thinning", generator=5)
    assert torch.equal(ends, sample(oracle, x, GRID, "thinning", generator=5))


def test_thinning_takes_the_calls_it_says():
    m, calls = machine(4, 3), []

    def oracle(x, t):
        calls.append(t)
        return denoise(m, x, t)

    for seed in range(100):
        sample(oracle, states(4)[:1], GRID, "thinning", generator=seed)
    mean = 4 * math.log(math.sinh(4) / math.sinh(0.05))
    assert abs(len(calls) / 100 - mean) < 4 * math.sqrt(mean / 100)
    assert all(0.05 <= float(t) <= 4 for t in calls)


def test_as_many_flips_as_the_noise_had():
    m, seen = machine(4, 3), []

    def oracle(x, t):
        seen.append(x)
        return denoise(m, x, t)

    start = states(4)[torch.multinomial(law(m, 2.0), 2000, True, generator=seeded())]
    end = sample(oracle, start, torch.tensor([2.0, 0.3], dtype=f64), "thinning", generator=1)
    path = torch.stack([*seen, end])
    flips = Estimate.of((path[1:] != path[:-1]).double().sum((0, 2)))
    assert abs(flips.z(4 * 1.7)) < 4 and flips.stderr < 0.1


def test_times_of_all_sizes_survive():
    log_sinh = torch.tensor([-300.0, -5.0, -0.1, 0.1, 5.0, 300.0, 5000.0], dtype=f64)
    t = discrete._after(log_sinh)
    back = t + torch.log(-torch.expm1(-2 * t) / 2)
    assert (back / log_sinh - 1).abs().max() < 1e-12
    m = machine(3, 2)
    oracle, ends = lambda x, t: denoise(m, x, t), torch.tensor([900.0, 0.1])
    x = sample(oracle, states(3), ends, "thinning", generator=0)
    assert x.shape == (8, 3)


@pytest.mark.parametrize("kind", ["posterior", "tau", "thinning"])
def test_every_walker_has_its_own_stream(kind):
    m, x = machine(4, 3), states(4)[:5]
    oracle = lambda x, t: denoise(m, x, t)
    together = sample(oracle, x, GRID, kind, generator=range(5))
    alone = [sample(oracle, x[k:k + 1], GRID, kind, generator=[k]) for k in range(5)]
    assert torch.equal(together, torch.cat(alone))
    assert not torch.equal(x, together) and torch.equal(x, states(4)[:5])


# Losses

def quadrature(n=161):
    y = torch.linspace(-4, 2.2, n, dtype=f64)
    t = torch.exp(math.pi / 2 * torch.sinh(y))
    return t.tolist(), (t * math.pi / 2 * torch.cosh(y) * (y[1] - y[0])).tolist()


@pytest.mark.parametrize("visible", ["bernoulli", "spin"])
def test_the_bound_is_minus_the_log_likelihood_for_exact_ratios(visible):
    m, V = machine(3, 2, visible), states(3, visible)
    whole, implicit = torch.zeros(8, dtype=f64), torch.zeros(8, dtype=f64)
    for t, w in zip(*quadrature()):
        r, q = ratios(m, V, t), noise_table(3, t)
        x, v = V.expand(8, 8, 3), V[:, None].expand(8, 8, 3)
        whole += w * (q * score_entropy(r.expand(8, 8, 3), v, x, t, visible)).sum(1)
        implicit += w * q @ consistent_entropy(r, t)
    truth = -m.log_prob(V)
    assert (whole - truth).abs().max() < 1e-9 and (implicit - truth).abs().max() < 1e-9
    assert (whole - 1.01 * truth).abs().min() > 1e-3


def test_score_entropy_is_least_at_the_rates_of_the_datum():
    V = states(4)
    v, x = V[:8], V[8:]
    for t in TIMES:
        c = torch.where(v == x, math.tanh(t), 1 / torch.tensor(math.tanh(t), dtype=f64))
        assert score_entropy(c, v, x, t).abs().max() < 1e-12
        for factor in (1.3, 1 / 1.3): assert (score_entropy(factor * c, v, x, t) > 0).all()
        hand = (2 * c - c - c * math.log(2)).sum(-1)
        assert (score_entropy(2 * c, v, x, t) - hand).abs().max() < 1e-12


@pytest.mark.parametrize("visible", ["bernoulli", "spin"])
def test_the_path_is_unbiased_with_any_number_of_copies(visible):
    m, V = machine(3, 2, visible), states(3, visible)
    oracle = lambda x, t: denoise(m, x, t)
    for n in (1, 5):
        draws = [path_loss(oracle, V.repeat(300, 1), n, visible, seeded(k)) for k in range(50)]
        draws = torch.stack(draws).view(50, 300, 8).mean(1)
        for column, truth in zip(draws.T, (-m.log_prob(V)).tolist()):
            e = Estimate.of(column)
            assert abs(e.z(truth)) < 4 and e.stderr < 0.06 and abs(e.z(2 * truth)) > 10


def test_times_cover_all_of_time_evenly():
    t, w = discrete._times(50, 40, seeded())
    assert t.shape == w.shape == (40, 50) and t.min() < 1e-6 and t.max() > 2
    assert abs((w * torch.exp(-4 * t)).mean() - 0.25) < 1e-3             # the integral of exp(-4 t)
    assert abs((w * torch.exp(-4 * t)).mean() - 0.2) > 0.01
    rows, _ = discrete._times(2, 4, discrete.as_generator([1, 2], t))
    alone, _ = discrete._times(1, 4, discrete.as_generator([2], t))
    assert torch.equal(rows[:, 1], alone[:, 0])


def test_the_gradient_of_the_bound_is_that_of_the_likelihood():
    m, V = machine(3, 2).requires_grad_(), states(3)
    draws = []
    for k in range(60):
        loss = path_loss(lambda x, t: denoise(m, x, t), V.repeat(100, 1), generator=seeded(k)).mean()
        draws.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(m.parameters()))]))
    truth = torch.autograd.grad(-m.log_prob(V).mean(), list(m.parameters()))
    for column, y in zip(torch.stack(draws).T, torch.cat([g.flatten() for g in truth]).tolist()):
        assert abs(Estimate.of(column).z(y)) < 4 and Estimate.of(column).stderr < 0.05


# Networks

@pytest.mark.parametrize("unit", ["bernoulli", "spin"])
def test_a_silent_network_is_independent_units(unit):
    m = machine(4, 2, unit)
    m.W.zero_()
    net = FlipDenoiser(lambda x, t: torch.zeros_like(x), m.b, unit)
    V = states(4, unit)
    for t in (0.3, torch.linspace(0.1, 2, 16, dtype=f64)):
        assert (net(V, t) - denoise(m, V, t)).abs().max() < 1e-12


def test_what_a_network_is_told():
    seen = []

    def network(x, t):
        seen.append((x, t))
        return x

    net = FlipDenoiser(network, torch.zeros(3), "bernoulli")
    net(states(3).float(), torch.full((8,), 0.4))
    x, t = seen[0]
    assert set(x.unique().tolist()) == {-1, 1} and t.shape == (8,)
    assert (t - math.sqrt(1 - math.exp(-0.8))).abs().max() < 1e-6


def test_a_network_learns_by_the_bound():
    m = machine(6, 2, scale=1.5)
    v = m.sample(2000, generator=0).float()
    net = FlipDenoiser(MLP(6, 16, 1, generator=0), torch.zeros(6))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for step in range(300):
        optimizer.zero_grad()
        rows = torch.randint(2000, (200,), generator=seeded(step))
        path_loss(net, v[rows], generator=step).mean().backward()
        optimizer.step()
    with torch.no_grad():
        nats = Estimate.of(torch.stack([path_loss(net, v, 4, generator=k).mean() for k in range(20)]))
    entropy = -m.log_prob(states(6)) @ m.log_prob(states(6)).exp()
    assert entropy - 0.1 < nats.value < entropy + 0.15 and nats.value < 6 * math.log(2) - 0.3


@pytest.mark.parametrize("kind", [FlipDenoiser, MaskDenoiser])
def test_the_fields_of_independent_units_are_its_own_and_trained(kind):
    b = torch.zeros(4)
    net = kind(MLP(4, 8, 1, generator=0), b)
    with torch.no_grad(): net.b.add_(1.0)
    assert (b == 0).all() and net.b.requires_grad


def test_modes_of_networks_are_kept():
    net = FlipDenoiser(MLP(4, 8, 1, generator=0), torch.zeros(4))
    modes = []
    net.network.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    net.train()
    sample(net, states(4).float(), GRID.float())
    assert net.training and not any(modes)
    path_loss(net, states(4).float())
    assert net.training and modes[-1]


def test_chances_by_row():
    v = states(4)[:2].repeat(2000, 1).view(2000, 2, 4).transpose(0, 1)
    x = flip(v, torch.tensor([0.1, 0.4]), generator=0)
    for k, p in enumerate((0.1, 0.4)):
        share = Estimate.of((x != v)[k].double().flatten())
        assert abs(share.z(p)) < 4 and abs(share.z(p + 0.05)) > 4
    p = torch.tensor([0.1, 0.4], dtype=f64)
    m = machine(4, 3)
    rows = [flip_posterior(m, v[k:k + 1, 0], p[k].item()).b for k in (0, 1)]
    assert torch.equal(flip_posterior(m, v[:, 0], p).b, torch.cat(rows))


def test_a_network_is_asked_at_the_times_of_the_grid():
    seen, grid = [], torch.tensor([1.0, 0.3, 0.1], dtype=f64)
    sample(lambda x, t: seen.append(t) or half(x, t), V, grid, generator=0)
    assert torch.equal(torch.stack(seen), grid[:-1])


def test_a_network_that_writes_into_what_it_sees_changes_nothing():
    b = torch.zeros(4, dtype=f64)
    writes = FlipDenoiser(lambda x, t: x.mul_(2.0), b)
    assert torch.equal(writes(V, 0.3), FlipDenoiser(lambda x, t: 2 * x, b)(V, 0.3))


# What is refused

M, REAL = machine(4, 3), machine(4, 3, "gaussian")
V = states(4)
MEANS = torch.full_like(V, 0.5)
LARGE = machine(30, 30)
TINY = torch.tensor(1e-320, dtype=f64)
half = lambda x, t: 0 * x + 0.5
REFUSED = {
    "no machine": (lambda: ratios(3, V, 0.1), TypeError, "^rbm must be an RBM"),
    "real units": (lambda: ratios(REAL, V, 0.1),
                   ValueError, "^rbm must have visible units of two levels"),
    "many machines": (lambda: ratios(M.tilt(V), V, 0.1), ValueError, "^rbm must be one machine"),
    "no state": (lambda: ratios(M, V / 2, 0.1), ValueError, "^v must hold only 0 or 1"),
    "spins for bits": (lambda: log_prob(M, 2 * V - 1, 0.1), ValueError, "^x must hold only 0 or 1"),
    "one state": (lambda: ratios(M, V[0], 0.1), ValueError, r"^x must have shape \[B, ...\]"),
    "other width": (lambda: ratios(M, V[:, :3], 0.1), ValueError, r"^v must have shape \[..., 4\]"),
    "time zero": (lambda: ratios(M, V, 0.0), ValueError, "^t must be finite and above 0, got 0"),
    "time below": (lambda: log_prob(M, V, -1.0), ValueError, "^t must be finite and above 0"),
    "time NaN": (lambda: denoise(M, V, math.nan), ValueError, "^t must be finite"),
    "time a text": (lambda: ratios(M, V, "now"), TypeError, "^t must be a number, got str"),
    "times below": (lambda: ratios(M, V, V[:, 0]),
                    ValueError, "^t must be positive and finite, got 0 to 1"),
    "times infinite": (lambda: ratios(M, V, V[:, 0] + math.inf),
                       ValueError, "^t must be positive and finite"),
    "too few times": (lambda: ratios(M, V, torch.ones(3)),
                      ValueError, r"^t must be a number or have shape \[16\], got \[3\]"),
    "overflow": (lambda: ratios(M, V, TINY), ValueError, "^t must be larger: rates of 1 / t overflow"),
    "overflow of floats": (lambda: ratios(machine(4, 3, dtype=f32), V.float(), 1e-39),
                           ValueError, "^t must be larger"),
    "too large": (lambda: ratios(LARGE, torch.ones(2, 30, dtype=f64), 0.1),
                  ValueError, "^rbm must have at most"),
    "too large for log p": (lambda: log_prob(LARGE, torch.ones(2, 30, dtype=f64), 0.1), ValueError,
                            "learning.partition.ais"),
    "no method": (lambda: ratios(M, V, 0.1, "bethe"), ValueError, "^method must be one of"),
    "time before": (lambda: flip_chance(-0.1), ValueError, "^t must be finite and at least 0"),
    "times before": (lambda: flip_chance(-V), ValueError, "^t must be finite and not negative, got -1"),
    "time without end": (lambda: flip_chance(V + math.inf), ValueError, "^t must be finite and not neg"),
    "means outside": (lambda: mean_ratios(2 * V, V, 0.1),
                      ValueError, "^m must be means between 0 and 1, got 0 to 2"),
    "means of spins": (lambda: mean_ratios(-V, V, 0.1), ValueError, "^m must be means between"),
    "means of others": (lambda: mean_ratios(MEANS[:3], V, 0.1), ValueError, "^m must return shape"),
    "ratio zero": (lambda: score_entropy(V, V, V, 0.1), ValueError, "^r must be positive, got 0"),
    "ratio NaN": (lambda: score_entropy(V * math.nan, V, V, 0.1), ValueError, "^r must be finite"),
    "ratio below": (lambda: consistent_entropy(-MEANS, 0.1), ValueError, "^r must be positive"),
    "unlike states": (lambda: score_entropy(MEANS, V, V[:3], 0.1),
                      ValueError, r"^x must have shape \[16, 4\]"),
    "no observation": (lambda: score_entropy(MEANS, V, V / 2, 0.1),
                       ValueError, "^x must hold only 0 or 1"),
    "unit of three": (lambda: score_entropy(MEANS, V, V, 0.1, "binomial(2)"),
                      ValueError, "^unit must have"),
    "no network": (lambda: path_loss(None, V), TypeError, "^predict must be callable"),
    "no means": (lambda: path_loss(lambda x, t: x + 2, V),
                 ValueError, "^predict must be means between 0 and 1"),
    "answer of NaN": (lambda: path_loss(lambda x, t: x * math.nan, V),
                      ValueError, "^predict returned NaN"),
    "other answer": (lambda: sample(lambda x, t: x[:1], V, GRID),
                     ValueError, "^predict must return shape"),
    "no copies": (lambda: path_loss(half, V, 0), ValueError, "^n must be at least 1"),
    "states in a block": (lambda: path_loss(half, V[None]), ValueError, r"^v must have shape \[B, D\]"),
    "walkers in a block": (lambda: sample(half, V[None], GRID),
                           ValueError, r"^x must have shape \[B, D\]"),
    "grid that grows": (lambda: sample(half, V, GRID.flip(0)),
                        ValueError, "^grid must be N \\+ 1 strictly"),
    "grid of one": (lambda: sample(half, V, GRID[:1]), ValueError, "^grid must be"),
    "grid of tau to 0": (lambda: sample(half, V, GRID - 0.05, "tau"),
                         ValueError, "^grid must end above 0"),
    "thinning to 0": (lambda: sample(half, V, GRID - 0.05, "thinning"),
                      ValueError, "^grid must end above 0"),
    "grid below 0": (lambda: sample(half, V, GRID - 1), ValueError, "^grid must end above 0"),
    "no kind": (lambda: sample(half, V, GRID, "euler"), ValueError, "^kind must be one of"),
    "times in another order": (lambda: leap_chance(MEANS, V, 0.1, 0.2),
                               ValueError, "^s must be finite and at least 0"),
    "step of a text": (lambda: leap_chance(MEANS, V, "a", 0.1), TypeError, "^t must be a number, got"),
    "step of no time": (lambda: leap_chance(MEANS, V, None, 0.1), TypeError, "^t must be a number"),
    "means just outside": (lambda: mean_ratios(V + 1e-6, V, 0.1), ValueError, "^m must be means"),
    "no chance": (lambda: flip_posterior(M, V, torch.full((16,), 1.0)),
                  ValueError, "^p must be above 0"),
    "chances of others": (lambda: flip(V, torch.full((3,), 0.1)),
                          ValueError, r"^p must be a number or have shape \[16\]"),
    "bias NaN": (lambda: FlipDenoiser(half, MEANS[0] * math.nan), ValueError, "^b must be finite"),
    "denoiser of real units": (lambda: FlipDenoiser(half, MEANS[0], "gaussian"),
                               ValueError, "^unit must have"),
    "denoiser of spins": (lambda: FlipDenoiser(half, MEANS[0])(2 * V - 1, 0.1),
                          ValueError, "^x must hold only"),
    "denoiser of width": (lambda: FlipDenoiser(half, MEANS[0])(V[:, :3], 0.1),
                          ValueError, "^x must have shape"),
    "denoiser of a block": (lambda: FlipDenoiser(half, MEANS[0])(V[None], 0.1),
                            ValueError, r"^x must have shape \[B, 4\], got \[1, 16, 4\]"),
    "denoiser of one state": (lambda: FlipDenoiser(half, MEANS[0])(V[0], 0.1),
                              ValueError, r"^x must have shape \[B, 4\]"),
    "fields of a block": (lambda: FlipDenoiser(half, MEANS), ValueError, r"^b must have shape \[D\]"),
    "denoiser of nothing": (lambda: FlipDenoiser(None, MEANS[0]), TypeError, "^network must be a func"),
    "denoiser of one answer": (lambda: FlipDenoiser(lambda x, t: x[:1], MEANS[0])(V, 0.1),
                               ValueError, r"^network must return shape \[16, 4\]"),
    "denoiser of no answer": (lambda: FlipDenoiser(lambda x, t: None, MEANS[0])(V, 0.1),
                              TypeError, "^network must return a torch.Tensor"),
    "denoiser at 0": (lambda: FlipDenoiser(half, MEANS[0])(V, 0.0),
                      ValueError, "^t must be finite and above 0"),
}


@pytest.mark.parametrize("call, kind, words", REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused(call, kind, words):
    with pytest.raises(kind, match=words): call()


def test_rounding_is_no_bad_mean():
    low = MEANS * 0 - 1e-12
    assert (mean_ratios(low, 0 * V, 0.1) == math.tanh(0.1)).all()
    assert (mean_ratios(low, 0 * V + 1, 0.1) - 1 / math.tanh(0.1)).abs().max() < 1e-12
