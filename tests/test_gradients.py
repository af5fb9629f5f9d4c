"""Rules of learning: estimates against sums over all states, chains of PCD, fast weights by hand, laws
of ladders and crowds, the one loop of training, bad input.
"""
from functools import partial
import math

import pytest
import torch

from machines import machine, normal, seeded, some_states
from rbmdiff.foundations.core import Estimate
from rbmdiff.foundations.train import TrainState, ascend, sgd, train
from rbmdiff.foundations.units import Binary, states
from rbmdiff.learning.contrastive import cd_gradient, energy_gradient, exact_gradient
from rbmdiff.learning.gradients import (
    fast_gradient,
    population_gradient,
    population_log_z,
    start_population,
    tempered_gradient,
    two_sided_gradient,
)
from rbmdiff.models.rbm import RBM
from rbmdiff.practice.runs import contrastive_step, new_machine
from rbmdiff.sampling.tempering import at_temperatures, check_mass, parallel

RULES = two_sided_gradient, fast_gradient, tempered_gradient, population_gradient
PAIRS = [("bernoulli", "bernoulli"), ("spin", "bernoulli"), ("bernoulli", "spin"),
         ("gaussian", "bernoulli"), (Binary((-0.5, 2.0)), "spin"), ("potts(3)", "bernoulli")]


def wave(scale=1.0):
    """The machine without random numbers."""
    i, j = torch.arange(6, dtype=torch.float64), torch.arange(3, dtype=torch.float64)
    m = RBM(6, 3, dtype=torch.float64).requires_grad_(False)
    m.W.copy_(scale * 1.5 * torch.sin(1 + i[:, None] + 2 * j))
    m.b.copy_(torch.cos(i) / 2)
    m.c.copy_(torch.sin(j) / 2)
    return m


M, DATA = wave(), states(6)[[3, 17, 42, 60]]


def far(ours, truth):
    """Largest distance of any entry."""
    assert ours.keys() == truth.keys()
    return max((ours[name] - x).abs().max().item() for name, x in truth.items())


def start(m, n, seed=0):
    """Chains of a machine, made by some steps."""
    return m.sample(n, steps=3, generator=seed)


def test_variances_of_the_estimates():
    V, S = states(6), states(3)
    p = torch.softmax(-M.energy(V[:, None], S).flatten(), 0).view(64, 8)
    one = torch.einsum("ai,aj->aij", V, M.hidden_mean(V))[:, None].expand(64, 8, 6, 3)
    other = torch.einsum("bi,bj->bij", M.visible_mean(S), S).expand(64, 8, 6, 3)
    known = {"pair": 3.443, "one": 1.947, "other": 1.461, "mean": 1.161}
    found = {"pair": torch.einsum("ai,bj->abij", V, S), "one": one, "other": other,
             "mean": (one + other) / 2}
    for name, x in found.items():
        mean = torch.einsum("ab,abij->ij", p, x)
        assert torch.einsum("ab,abij->", p, (x - mean)**2).item() == pytest.approx(known[name], abs=6e-4)
    product = torch.einsum("ab,bi,aj->ij", p, M.visible_mean(S), M.hidden_mean(V))
    truth = torch.einsum("ab,abij->ij", p, found["pair"])
    assert (product - truth).abs().max() == pytest.approx(0.0567, abs=1e-4)


@pytest.mark.parametrize("visible, hidden", PAIRS, ids=str)
def test_two_sides_by_hand(visible, hidden):
    m = machine(6, 3, visible, hidden, scale=0.4)
    v, chains = start(m, 5), start(m, 4, 1)
    for k in (1, 3):
        g, x = seeded(7), chains
        for _ in range(k):
            h = m.sample_hidden(x, g)
            x = m.sample_visible(h, g)
        ours, kept = two_sided_gradient(m, v, {"chains": chains}, seeded(7), k)
        assert torch.equal(kept["chains"], x)
        parameters = {name: p.requires_grad_() for name, p in m.named_parameters()}
        y = m.visible_field(h).detach()
        energy = (m.free_energy(x).mean() + m.energy(m.visible.mean(y, m.sigma), h).mean()) / 2
        if m.sigma is not None:
            spread = m.visible.variance(y, m.sigma).detach()
            energy = energy + (spread / m.sigma**2).sum(-1).mean() / 4
        truth = torch.autograd.grad(energy - m.free_energy(v).mean(), [*parameters.values()])
        m.requires_grad_(False)
        assert far(ours, dict(zip(parameters, truth))) < 1e-10


@pytest.mark.parametrize("rule", [two_sided_gradient, partial(fast_gradient, rate=0.0),
                                  population_gradient])
def test_chains_are_those_of_pcd(rule):
    kept, chains = {"chains": start(M, 8)}, start(M, 8)
    for seed in range(3):
        found, kept = rule(M, DATA, kept, seeded(seed), k=2)
        ours, chains = cd_gradient(M, DATA, 2, chains, seeded(seed))
        assert torch.equal(kept["chains"], chains)
    assert far(found, ours) < 1e-12 or rule is two_sided_gradient


@pytest.mark.parametrize("rule", [two_sided_gradient, fast_gradient, tempered_gradient])
def test_stationary_chains_are_unbiased(rule):
    g, truth = seeded(1), exact_gradient(M, DATA)
    found = [rule(M, DATA, {"chains": M.sample(8, generator=g)}, g)[0] for _ in range(150)]
    for name, x in truth.items():
        draws = torch.stack([f[name] for f in found]).flatten(1)
        error = draws.std(0) / math.sqrt(150)
        assert ((draws.mean(0) - x.flatten()).abs() <= 4 * error).all() and error.max() < 0.03


@pytest.mark.parametrize("visible", ["bernoulli", "spin"])
def test_the_parts_of_a_gradient(visible):
    m = machine(6, 3, visible)
    v, chains = start(m, 5), start(m, 4, 1)
    uneven = torch.linspace(0, 2, 4).double()
    for rule in (*RULES[1:3], partial(population_gradient, threshold=0.0)):
        found, kept = rule(m, v, {"chains": chains, "log_weights": uneven}, 3)
        w = kept["log_weights"].softmax(0) if "log_weights" in kept else None
        m.requires_grad_()
        truth = energy_gradient(m.free_energy, dict(m.named_parameters()), v, kept["chains"], w)
        m.requires_grad_(False)
        assert far(found, truth) < 1e-12


def test_fast_weights_by_hand():
    kept, x = {"chains": start(M, 5)}, start(M, 5)
    fast = {name: torch.zeros_like(getattr(M, name)) for name in "Wbc"}
    for seed in range(5):
        kept = fast_gradient(M, DATA, kept, seeded(seed), rate=0.3, decay=0.8, k=2)[1]
        near = M.sharing(**{name: getattr(M, name) + f for name, f in fast.items()})
        g = seeded(seed)
        for _ in range(2):
            x = near.sample_visible(near.sample_hidden(x, g), g)
        M.requires_grad_()
        step = energy_gradient(M.free_energy, dict(M.named_parameters()), DATA, x)
        M.requires_grad_(False)
        fast = {name: 0.8 * f + 0.3 * step[name] for name, f in fast.items()}
    assert torch.equal(kept["chains"], x)
    assert far({name: kept[f"fast.{name}"] for name in "Wbc"}, fast) < 1e-12


def test_fast_weights_of_real_units_do_not_depend_on_the_unit_of_measurement():
    m = machine(4, 3, "gaussian", scale=0.4)
    other = machine(4, 3, "gaussian", scale=0.4)
    other.sigma = 100 * m.sigma
    other.b.copy_(100 * m.b)
    other.W.copy_(100 * m.W)
    v = normal(5, 4)
    a, b = {"chains": v}, {"chains": 100 * v}
    for seed in range(4):
        a = fast_gradient(m, v, a, seed, rate=0.5)[1]
        b = fast_gradient(other, 100 * v, b, seed, rate=0.5)[1]
    torch.testing.assert_close(100 * a["chains"], b["chains"])
    assert a["fast.W"].abs().max() > 0.01


def test_ladders_are_those_of_parallel_tempering():
    base, betas = torch.linspace(-1, 1, 6).double(), (0.0, 0.4, 1.0)
    kept, x = {"chains": start(M, 5)}, start(M, 5).expand(3, 5, 6)
    for seed in range(3):
        kept = tempered_gradient(M, DATA, kept, seed, 2, betas, base)[1]
        x = parallel(at_temperatures(M, betas, base), x, 1, seed, 2)
        assert torch.equal(kept["ladder"], x) and torch.equal(kept["chains"], x[-1])


def test_a_crowd_knows_the_partition_function():
    path, g = [wave(s) for s in (0.01, 0.5, 1.0, 1.5)], seeded(0)
    ratios, first = [], []
    for _ in range(300):
        kept = start_population(path[0], 20, g)
        first.append(math.exp(population_log_z(path[0], kept).value - path[0].log_partition()))
        for m in path[1:]: kept = population_gradient(m, DATA, kept, g, threshold=0.95)[1]
        ratios.append(math.exp(population_log_z(path[-1], kept).value - path[-1].log_partition()))
    for found in (ratios, first):
        e = Estimate.of(torch.tensor(found).double())
        assert abs(e.value - 1) <= 4 * e.stderr and e.stderr < 0.01


def test_a_large_crowd_has_the_exact_gradient():
    path, g = [wave(s) for s in (0.01, 0.5, 1.0, 1.5)], seeded(1)
    for threshold in (0.0, 0.95, 1.0):
        kept = start_population(path[0], 20_000, g)
        for m in path[1:]: found, kept = population_gradient(m, DATA, kept, g, 2, threshold)
        assert far(found, exact_gradient(m, DATA)) < 0.025
        families = len(kept["family"].unique())
        assert (families == 20_000) == (threshold == 0)
        log_z = population_log_z(m, kept)
        assert abs(log_z.value - m.log_partition()) < 5 * log_z.stderr < 0.1
        check_mass(m, DATA, log_z)


def test_the_crowd_that_teaches_says_too_little_and_one_that_watches_does_not():
    m, g = wave(0.01), seeded(2)
    teacher, watcher = start_population(m, 50, g), start_population(m, 50, g)
    for _ in range(200):
        step, teacher = population_gradient(m, DATA, teacher, g)
        watcher = population_gradient(m, DATA, watcher, g)[1]
        for name, p in m.named_parameters(): p += 0.05 * step[name]
    ours, theirs = (population_log_z(m, kept) for kept in (watcher, teacher))
    truth = m.log_partition().item()
    assert abs(ours.value - truth) <= 4 * ours.stderr < 0.4
    assert theirs.value < truth - 0.3


def test_the_heavy_chain_is_copied():
    m = RBM(5, 5, dtype=torch.float64).requires_grad_(False)        # a step that leaves states alone
    m.W.copy_(80 * torch.eye(5))
    m.b.fill_(-40)
    m.c.fill_(-40)
    v, log_w = states(5)[:6], torch.zeros(6).double()
    log_w[4] = 90
    kept = population_gradient(m, v, {"chains": v, "log_weights": log_w}, 0)[1]
    assert torch.equal(kept["chains"], v[4].expand(6, 5)) and (kept["family"] == 4).all()


def test_a_crowd_is_weighed_for_the_machine_that_is_asked():
    kept, other = start_population(M, 30, 0), wave(1.3)
    w = kept["log_weights"] + M.free_energy(kept["chains"]) - other.free_energy(kept["chains"])
    found = population_log_z(other, kept)
    assert found.value == pytest.approx((w.logsumexp(0) - math.log(30)).item(), abs=1e-12)
    torch.testing.assert_close(found.log_weights, w)


def test_copies_keep_the_mean_weight():
    kept = start_population(M, 50, 0)
    kept["log_weights"] = kept["log_weights"] + torch.linspace(0, 6, 50).double()
    mean = torch.logsumexp(kept["log_weights"], 0)
    new = population_gradient(M, DATA, kept, 1)[1]
    assert torch.logsumexp(new["log_weights"], 0) == pytest.approx(mean.item(), abs=1e-12)
    assert new["log_weights"].unique().numel() == 1
    kept_apart = population_gradient(M, DATA, kept, 1, threshold=0.0)[1]
    torch.testing.assert_close(kept_apart["log_weights"], kept["log_weights"])
    assert torch.equal(kept_apart["family"], torch.arange(50))
    assert new["family"].bincount(minlength=50)[-1] > 2


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("visible, hidden", PAIRS, ids=str)
def test_units_dtypes_and_shapes(rule, visible, hidden):
    for dtype in (torch.float32, torch.float64):
        m = machine(6, 3, visible, hidden, scale=0.3, dtype=dtype)
        v, kept = start(m, 4), {"chains": start(m, 7, 1)}
        for seed in range(2):
            flat, more = rule(m, v, kept, seed)
            ours, _ = rule(m, v.view(2, 2, 6), kept, seed)
            assert far(ours, flat) < 1e-5
            assert {x.dtype for x in ours.values()} == {dtype} and more["chains"].dtype == dtype
            assert ours.keys() == dict(m.named_parameters()).keys()
            assert more["chains"].shape == (7, 6)
            kept = {**kept, **more}


@pytest.mark.parametrize("rule", RULES[:3])
def test_a_stream_for_every_chain(rule):
    chains = start(M, 3)
    together = rule(M, DATA, {"chains": chains}, [4, 5, 6])[1]["chains"]
    for b, seed in enumerate((4, 5, 6)):
        alone = rule(M, DATA, {"chains": chains[b:b + 1]}, [seed])[1]["chains"]
        assert torch.equal(alone[0], together[b])


@pytest.mark.parametrize("rule", RULES)
def test_nothing_of_the_caller_is_changed_or_shared(rule):
    chains = start(M, 5)
    before, kept = chains.clone(), {"chains": chains}
    first = rule(M, DATA, kept, 0)[1]
    copies = {name: x.clone() for name, x in first.items()}
    second = rule(M, DATA, first, 1)[1]
    assert list(kept) == ["chains"] and torch.equal(chains, before)
    for name, x in first.items(): assert torch.equal(x, copies[name])
    owned = {x.untyped_storage().data_ptr() for x in first.values()}
    assert not owned & {x.untyped_storage().data_ptr() for x in second.values()}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("visible", ["bernoulli", "gaussian"])
def test_the_loop_of_training(rule, visible, tmp_path):
    v = some_states((40, 4), visible)

    def new(seed=3):
        m = new_machine(v, 3, visible, generator=0)
        return TrainState(m, sgd(m, 0.01), seed)

    whole, cut = new(), new()
    for _ in train(whole, v, contrastive_step(method=rule, chains=6), 4, 20, False): pass
    for _ in train(cut, v, contrastive_step(method=rule, chains=6), 2, 20, False): pass
    cut.save(tmp_path / "state")
    again = new(9)
    again.load(tmp_path / "state")
    for _ in train(again, v, contrastive_step(method=rule, chains=6), 4, 20, False): pass
    for a, b in zip(whole.model.parameters(), again.model.parameters()): assert torch.equal(a, b)
    assert whole.carry.keys() == again.carry.keys() > {"mean_v", "mean_h"}


def test_a_plain_step_is_five_lines():
    v, ways = some_states((30, 4)), []

    def step(state, batch):
        gradients, kept = two_sided_gradient(state.model, batch, state.carry, state.generator)
        state.carry |= kept
        ascend(state.model, gradients)
        return {}

    for way in (step, contrastive_step(method=two_sided_gradient, centre=False)):
        m = new_machine(v, 3, generator=0)
        state = TrainState(m, sgd(m, 0.1), 2)
        state.carry["chains"] = v[:10].clone()
        for _ in train(state, v, way, 3, 10, False): pass
        ways.append(m.W.detach())
    assert torch.equal(*ways)


def test_a_rule_has_its_own_steps():
    with pytest.raises(ValueError, match="k must be 1 for a rule, which has its own, got 2"):
        contrastive_step(2, two_sided_gradient)


KEPT = {"chains": DATA}
STARTED = start_population(M, 4, 0)


@pytest.mark.parametrize("call, error, words", [
    (lambda: two_sided_gradient(3, DATA, KEPT), TypeError, "rbm must be an RBM"),
    (lambda: two_sided_gradient(M, DATA + 0.5, KEPT), ValueError, "v must hold only"),
    (lambda: two_sided_gradient(M, DATA, DATA), TypeError, "kept must be a dict with the chains"),
    (lambda: two_sided_gradient(M, DATA, {}), TypeError, "kept must be a dict with the chains"),
    (lambda: two_sided_gradient(M, DATA, {"chains": DATA[:, :5]}), ValueError, "chains must have shape"),
    (lambda: two_sided_gradient(M, DATA, {"chains": DATA[0]}), ValueError, r"must have shape \[N, D"),
    (lambda: two_sided_gradient(M, DATA, {"chains": DATA - 1}), ValueError, "chains must hold only"),
    (lambda: two_sided_gradient(M, DATA, KEPT, k=0), ValueError, "k must be at least 1"),
    (lambda: two_sided_gradient(M.tilt(DATA[0]), DATA, KEPT), ValueError, "parameters of its own"),
    (lambda: two_sided_gradient(M, DATA, {"chains": DATA.clone().requires_grad_()}), ValueError,
     "wants a gradient, which would be lost: detach what is kept"),
    (lambda: fast_gradient(M, DATA, KEPT, rate=-1.0), ValueError, "rate"),
    (lambda: fast_gradient(M, DATA, KEPT, decay=1.0), ValueError, "decay must be .*below 1"),
    (lambda: fast_gradient(M, DATA, {**KEPT, "fast.W": M.W.T}), ValueError, "fast.W must have shape"),
    (lambda: tempered_gradient(M, DATA, KEPT, betas=(0.5, 0.2)), ValueError, "betas"),
    (lambda: tempered_gradient(M, DATA, KEPT, base=M.c), ValueError, "base"),
    (lambda: tempered_gradient(M, DATA, {**KEPT, "ladder": DATA.expand(3, 4, 6)}), ValueError, "shape"),
    (lambda: population_gradient(M, DATA, KEPT, threshold=2.0), ValueError, "threshold"),
    (lambda: population_gradient(M, DATA, KEPT, [1, 2, 3, 4]), TypeError, "one stream for a whole"),
    (lambda: population_gradient(M, DATA, {**STARTED, "energies": M.c}), ValueError,
     r"energies must have shape \[4\]"),
    (lambda: population_gradient(M, DATA, {**STARTED, "log_weights": M.c}), ValueError, "log_weights"),
    (lambda: start_population(M, 1), ValueError, "n must be at least 2"),
    (lambda: start_population(M, 2, [1, 2]), TypeError, "one stream for a whole"),
    (lambda: population_log_z(M, KEPT), ValueError, "kept must hold log_weights"),
    (lambda: population_log_z(M, DATA), TypeError, "kept must be a dict"),
])
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words): call()
