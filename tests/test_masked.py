"""Masks and chains of machines against enumeration: completion, orders, groups, bounds of chains."""
from itertools import permutations
import math

import pytest
import torch

from machines import machine, seeded, some_states
from rbmdiff.bridge import masked
from rbmdiff.bridge.masked import (
    MaskDenoiser,
    chain_bound,
    chain_sample,
    check_mask,
    completed_mean,
    completion_loss,
    fill,
    order_log_prob,
)
from rbmdiff.bridge.tilted import flip_posterior
from rbmdiff.diffusion.networks import MLP
from rbmdiff.foundations.core import Estimate
from rbmdiff.foundations.units import Binary, states
from rbmdiff.sampling.diagnostics import drift
from rbmdiff.sampling.means import exact_mean

f32, f64 = torch.float32, torch.float64
PAIRS = [(v, h) for v in ("bernoulli", "spin") for h in ("bernoulli", "spin")]
ALL = states(4).bool()


def oracle(m): return lambda x, mask: completed_mean(m, x, mask)


def conditional(m, x, mask):
    """Mean of one row by a sum over all states."""
    V = states(len(m.W), m.visible)
    fits = (V == x)[:, ~mask].all(1)
    return m.log_prob(V)[fits].softmax(0) @ V[fits]


# Completion

@pytest.mark.parametrize("visible, hidden", [*PAIRS, (Binary((0.5, 2.0)), "spin")])
def test_completion_is_bayes_under_every_mask(visible, hidden):
    m = machine(4, 3, visible, hidden)
    V = states(4, m.visible)
    x, masks = V.repeat(16, 1), ALL.repeat_interleave(16, 0)
    truth = torch.stack([conditional(m, *row) for row in zip(x, masks)])
    assert (completed_mean(m, x, masks) - truth).abs().max() < 1e-12
    assert (completed_mean(m, x, ~masks) - truth).abs().max() > 0.1
    again = completed_mean(m, torch.where(masks, sum(m.visible.levels) - x, x), masks)
    assert (again - truth).abs().max() < 1e-12


def test_completion_is_that_of_clamped_machines_and_of_the_machine():
    m, V = machine(6, 3), states(6)[::5]
    mask = torch.tensor([True, False, True, True, False, True])
    found = completed_mean(m, V, mask.expand(V.shape))
    assert (found[:, mask] - exact_mean(m.clamp(V, ~mask))).abs().max() < 1e-12
    assert torch.equal(found[:, ~mask], V[:, ~mask])
    whole = completed_mean(m, V, torch.ones_like(V, dtype=torch.bool))
    assert (whole - exact_mean(m)).abs().max() < 1e-12


def test_real_size_pieces_and_single_precision():
    m = machine(64, 14, scale=0.3)
    x = (torch.rand(500, 64, generator=seeded()) < 0.5).double()
    mask = torch.rand(500, 64, generator=seeded(1)) < 0.5
    found = completed_mean(m, x, mask)
    assert (found[3:5] - completed_mean(m, x[3:5], mask[3:5])).abs().max() < 1e-12
    clamped = torch.stack([exact_mean(m.clamp(x[k], ~mask[k])) .sum() for k in range(3)])
    assert (torch.where(mask, found, 0.0).sum(1)[:3] - clamped).abs().max() < 1e-10
    single = completed_mean(machine(64, 14, scale=0.3, dtype=f32), x.float(), mask)
    assert single.dtype == f32 and (single - found).abs().max() < 1e-5


# Orders

@pytest.mark.parametrize("visible", ["bernoulli", "spin"])
def test_every_order_is_the_likelihood(visible):
    m, V = machine(4, 3, visible), states(4, visible)
    for order in permutations(range(4)):
        assert (order_log_prob(oracle(m), V, order, visible) - m.log_prob(V)).abs().max() < 1e-12
    assert torch.equal(order_log_prob(oracle(m), V, None, visible),
                       order_log_prob(oracle(m), V, range(4), visible))


def test_the_order_is_the_one_that_was_asked_for():
    v = states(5)
    counting = lambda x, mask: 0 * x + mask.to(x).sum(1, keepdim=True) / 6
    for order in ([2, 0, 4, 3, 1], [1, 2, 3, 4, 0], None):
        hand = sum((1 - v[:, i] - (5 - k) / 6).abs().log() for k, i in enumerate(order or range(5)))
        assert (order_log_prob(counting, v, order) - hand).abs().max() < 1e-12
        assert (order_log_prob(counting, v, order) - hand.flip(0)).abs().max() > 0.1


def test_masks_are_of_each_size_alike_and_of_all_units_of_a_size():
    seen = []
    network = lambda x, mask: seen.append(mask) or 0 * x + 0.5
    completion_loss(network, states(4).repeat(2000, 1), generator=0)
    number = seen[0].double() @ torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=f64)
    for k, mask in enumerate(ALL):
        share = Estimate.of((number == k).double())
        n = int(mask.sum())
        if n: assert abs(share.z(1 / (4 * math.comb(4, n)))) < 4 and share.stderr < 0.003
        else: assert share.value == 0


def test_means_may_be_rounded():
    low = lambda x, mask: torch.where(mask, -1e-12, x)
    assert order_log_prob(low, states(4))[0].abs() < 1e-10
    assert (fill(low, states(4), ALL, generator=0)[ALL] == 0).all()


def test_networks_answer_in_evaluation_mode_and_learn_in_theirs():
    net = MaskDenoiser(MLP(4, 8, 1, generator=0), torch.zeros(4))
    modes = []
    net.network.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    net.train()
    v = states(4).float()
    order_log_prob(net, v)
    fill(net, v, ALL, generator=0)
    assert not any(modes) and net.training
    completion_loss(net, v)
    assert modes[-1]


# A network

@pytest.mark.parametrize("unit", ["bernoulli", "spin", Binary((0.5, 2.0))])
def test_a_network_of_masks_is_what_it_says_of_hidden_units(unit):
    seen = []
    V, b = states(4, unit).repeat_interleave(16, 0), torch.linspace(-1, 1, 4, dtype=f64)
    masks = ALL.repeat(16, 1)
    net = MaskDenoiser(lambda x, share: seen.append((x, share)) or 0.3 * x + 0.7, b, unit)
    found = net(V, masks)
    x, share = seen[0]
    assert torch.equal(x, torch.where(masks, 0.0, torch.where(V == V.max(), 1.0, -1.0)))
    assert torch.equal(share, masks.double().mean(1)) and torch.equal(found[~masks], V[~masks])
    assert (found - net.unit.mean(b + 0.7))[masks].abs().max() < 1e-12
    assert torch.equal(net(torch.where(masks, V.min(), V), masks), found)


def test_a_network_learns_to_complete():
    m = machine(6, 2, scale=1.5)
    v = m.sample(2000, generator=0).float()
    net = MaskDenoiser(MLP(6, 16, 1, generator=0), torch.zeros(6))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for step in range(300):
        optimizer.zero_grad()
        rows = torch.randint(2000, (200,), generator=seeded(step))
        completion_loss(net, v[rows], generator=step).mean().backward()
        optimizer.step()
    p = m.log_prob(states(6))
    V = states(6).float()
    with torch.no_grad(): found = -(p.exp() @ order_log_prob(net, V).double())
    entropy = -(p.exp() @ p)
    assert entropy < found < entropy + 0.1 and found < 6 * math.log(2) - 0.3
    with torch.no_grad(): total = order_log_prob(net, V, [3, 1, 5, 0, 2, 4]).double().exp().sum()
    assert abs(total - 1) < 1e-5


def test_orders_of_other_models_differ_and_the_loss_is_their_mean():
    m, V = machine(4, 3), states(4)
    bent = lambda x, mask: completed_mean(m, x, mask) ** 1.3
    each = torch.stack([order_log_prob(bent, V, order) for order in permutations(range(4))])
    assert (each.amax(0) - each.amin(0)).max() > 0.02
    draws = [completion_loss(bent, V.repeat(200, 1), generator=seeded(k)) for k in range(60)]
    for column, truth in zip(torch.stack(draws).view(60, 200, 16).mean(1).T, (-each.mean(0)).tolist()):
        e = Estimate.of(column)
        assert abs(e.z(truth)) < 4 and e.stderr < 0.03 and abs(e.z(1.3 * truth)) > 4


@pytest.mark.parametrize("visible", ["bernoulli", "spin"])
def test_the_loss_of_a_machine_is_its_likelihood(visible):
    m, V = machine(4, 3, visible), states(4, visible)
    draws = [completion_loss(oracle(m), V.repeat(200, 1), visible, seeded(k)) for k in range(60)]
    for column, truth in zip(torch.stack(draws).view(60, 200, 16).mean(1).T, (-m.log_prob(V)).tolist()):
        assert abs(Estimate.of(column).z(truth)) < 4


def test_a_network_sees_nothing_of_what_is_hidden():
    seen = []

    def network(x, mask):
        seen.append((x.clone(), mask.clone()))
        return torch.full_like(x, 0.5)

    v = states(4)
    assert (completion_loss(network, v, generator=0) - 4 * math.log(2)).abs().max() < 1e-12
    order_log_prob(network, v)
    fill(network, v, ALL, generator=0)
    assert all((x[mask] == 0).all() for x, mask in seen) and len(seen) == 9
    sizes = [completion_loss(lambda x, mask: seen.append(mask.sum(1)) or x * 0 + 0.5, v.repeat(500, 1),
                             generator=k) for k in range(3)]
    counts = torch.cat([s for s in seen if isinstance(s, torch.Tensor)]).bincount()
    assert len(sizes) == 3 and counts[0] == 0 and (counts[1:] - 6000).abs().max() < 4 * 80


# Groups

@pytest.mark.parametrize("visible", ["bernoulli", "spin"])
def test_one_by_one_is_exact_and_at_once_is_a_product(visible):
    m = machine(4, 3, visible, scale=1.5)
    V = states(4, visible)
    p = m.log_prob(V).exp()
    x, mask = V.repeat(1250, 1), torch.ones(20000, 4, dtype=torch.bool)
    assert abs(drift(fill(oracle(m), x, mask, None, visible, 0), p, visible).z(0)) < 4
    low, high = m.visible.levels
    up = (p @ V - low) / (high - low)
    product = torch.where(V == high, up, 1 - up).prod(1)
    once = fill(oracle(m), x, mask, 1, visible, 0)
    assert abs(drift(once, product, visible).z(0)) < 4 < drift(once, p, visible).z(0)


def test_what_is_shown_stays_and_draws_are_conditional():
    m = machine(4, 3, scale=1.5)
    V, p = states(4), machine(4, 3, scale=1.5).log_prob(states(4)).exp()
    mask = torch.tensor([True, False, True, False]).expand(20000, 4)
    x = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=f64).expand(20000, 4)
    found = fill(oracle(m), x, mask, generator=1)
    q = torch.where((V[:, 1] == 1) & (V[:, 3] == 0), p, 0.0)
    assert torch.equal(found[:, [1, 3]], x[:, [1, 3]]) and abs(drift(found, q / q.sum()).z(0)) < 4
    assert drift(found, p).z(0) > 4


def test_groups_are_as_many_as_asked_and_nothing_stays_hidden():
    calls = []

    def network(x, mask):
        calls.append(mask.sum(1))
        return torch.ones_like(x)

    for steps in (1, 2, 3, 4, 7):
        calls.clear()
        found = fill(network, torch.zeros(5, 4), torch.ones(5, 4, dtype=torch.bool), steps, generator=0)
        assert len(calls) == steps and (found == 1).all()
        left = [sum(place * steps // 4 >= k for place in range(4)) for k in range(steps)]
        assert all((n == wanted).all() for n, wanted in zip(calls, left))
    assert torch.equal(fill(network, torch.zeros(5, 4), torch.zeros(5, 4, dtype=torch.bool)),
                       torch.zeros(5, 4))


def test_groups_are_drawn_in_random_order():
    seen = []
    fill(lambda x, mask: seen.append(mask) or 0 * x + 0.5, torch.zeros(4000, 4),
         torch.ones(4000, 4, dtype=torch.bool), 2, generator=0)
    number = seen[1].double() @ torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=f64)
    for k, mask in enumerate(ALL):
        share = Estimate.of((number == k).double())
        if mask.sum() == 2: assert abs(share.z(1 / 6)) < 4 and share.stderr < 0.01
        else: assert share.value == 0


def test_a_mask_of_the_caller_is_left_as_it_was():
    mask = ALL.clone()
    with pytest.raises(ValueError, match="^predict must not change x or t"):
        fill(lambda x, m: x + 0 * m.logical_not_(), states(4), mask)
    assert torch.equal(mask, ALL)


# Chains

def chain_of(visible="bernoulli"):
    return [machine(3, 2, visible, seed=k, scale=1.2) for k in range(2)]


@pytest.mark.parametrize("visible", ["bernoulli", "spin"])
def test_the_bound_of_a_chain_is_a_sum_over_paths(visible):
    pair, V = chain_of(visible), states(3, visible)
    apart = (V[:, None] != V).double().sum(-1)
    log_q = apart * math.log(0.2) + (3 - apart) * math.log(0.8)
    terms = [flip_posterior(m, V, 0.2).log_prob(V[:, None]) - log_q for m in pair]
    q = log_q.exp()
    truth = -3 * math.log(2) + (q * terms[0]).sum(1) + q @ (q * terms[1]).sum(1)
    draws = torch.stack([chain_bound(pair, V.repeat(200, 1), 0.2, seeded(k)) for k in range(50)])
    for column, exact in zip(draws.view(50, 200, 8).mean(1).T, truth.tolist()):
        e = Estimate.of(column)
        assert abs(e.z(exact)) < 4 and e.stderr < 0.03
    law = torch.full((8,), 1 / 8, dtype=f64)
    for m in reversed(pair): law = law @ flip_posterior(m, V, 0.2).log_prob(V[:, None]).T.exp()
    assert (law.log() - truth).min() > 0 and abs(law.sum() - 1) < 1e-12
    x = chain_sample(pair, V.repeat(2500, 1), 0.2, 200, 0)
    short = chain_sample(pair[::-1], V.repeat(2500, 1), 0.2, 200, 0)
    assert abs(drift(x, law, visible).z(0)) < 4 < drift(short, law, visible).z(0)


def test_one_level_of_coins_is_the_machine():
    m, V = machine(4, 3), states(4)
    assert (chain_bound([m], V, 0.5) - m.log_prob(V)).abs().max() < 1e-12
    assert (chain_bound([m], V, 0.4, 0) - m.log_prob(V)).abs().max() > 0.01


@pytest.mark.parametrize("visible, hidden", [("bernoulli", "bernoulli"), ("spin", "spin"),
                                             ("bernoulli", "gaussian"), (Binary((0.0, 2.0)), "spin")])
@pytest.mark.parametrize("D, H", [(5, 3), (3, 5)])
def test_all_rows_by_one_product(visible, hidden, D, H):
    """The law of what was told, as every row's own machine has it, and its slope."""
    m = machine(D, H, visible, hidden, scale=0.7).requires_grad_()
    v, x = (some_states((20, D), visible, seed) for seed in (1, 2))
    slopes = []
    for log_p in (masked._log_prob_told(m, v, x, 0.2), flip_posterior(m, x, 0.2).log_prob(v)):
        slopes.append(torch.autograd.grad(log_p.sum(), [m.W, m.b, m.c]))
        assert torch.allclose(log_p, flip_posterior(m, x, 0.2).log_prob(v), atol=1e-12)
    for a, b in zip(*slopes): torch.testing.assert_close(a, b)
    other = masked._log_prob_told(m, v, v, 0.2)
    assert (other - log_p).abs().max() > 0.1


def test_a_seed_starts_one_stream_for_all_levels():
    pair, V = chain_of(), states(3)
    assert torch.equal(chain_bound(pair, V, 0.2, 3), chain_bound(pair, V, 0.2, seeded(3)))
    assert torch.equal(chain_sample(pair, V, 0.2, 2, 3), chain_sample(pair, V, 0.2, 2, seeded(3)))


def test_the_bound_has_a_gradient():
    m, V = machine(3, 2).requires_grad_(), states(3)
    chain_bound([m, machine(3, 2)], V, 0.3, 0).sum().backward()
    assert m.W.grad.abs().max() > 1e-3


# What is refused

M, V = machine(4, 3), states(4)
half = lambda x, mask: 0 * x + 0.5
REFUSED = {
    "mask of numbers": (lambda: completed_mean(M, V, V), TypeError, "^mask must be a bool tensor"),
    "no mask": (lambda: completed_mean(M, V, None), TypeError, "^mask must be a bool tensor"),
    "one mask": (lambda: completed_mean(M, V, ALL[0]), ValueError, r"^mask must have shape \[16, 4\]"),
    "mask of others": (lambda: fill(half, V, ALL[:3]), ValueError, r"^mask must have shape \[16, 4\]"),
    "one state": (lambda: completed_mean(M, V[0], ALL[0]), ValueError, r"^x must have shape \[B, D\]"),
    "no state": (lambda: completed_mean(M, V / 2, ALL), ValueError, "^x must hold only 0 or 1"),
    "real units": (lambda: completed_mean(machine(4, 3, "gaussian"), V, ALL), ValueError,
                   "^rbm must have visible units of two levels"),
    "too large": (lambda: completed_mean(machine(30, 30), torch.ones(1, 30).double(),
                                         torch.ones(1, 30).bool()), ValueError, "^rbm must have at"),
    "no network": (lambda: order_log_prob(3, V), TypeError, "^predict must be callable"),
    "no order": (lambda: order_log_prob(half, V, [0, 1, 1, 2]), ValueError, "^order must hold each"),
    "no means": (lambda: order_log_prob(lambda x, m: x - 1, V), ValueError, "^predict must be means"),
    "means just outside": (lambda: completion_loss(lambda x, m: x + 1e-6, V), ValueError,
                           "^predict must be means between 0 and 1"),
    "means of NaN": (lambda: completion_loss(lambda x, m: x * math.nan, V), ValueError,
                     "^predict returned NaN or infinity in call 1$"),
    "fill outside": (lambda: fill(lambda x, m: x + 5, V, ALL), ValueError, "^predict must be means bet"),
    "fill with NaN": (lambda: fill(lambda x, m: x * math.nan, V, ALL), ValueError, "^predict returned"),
    "a mask of no states": (lambda: check_mask(ALL, None), TypeError, "^x must be a torch.Tensor"),
    "denoiser of numbers": (lambda: MaskDenoiser(half, V[0])(V, V), TypeError, "^mask must be a bool"),
    "denoiser of a block": (lambda: MaskDenoiser(half, V[0])(V[None], ALL[None]),
                            ValueError, r"^x must have shape \[B, 4\]"),
    "denoiser of nothing": (lambda: MaskDenoiser(3, V[0]), TypeError, "^network must be a function"),
    "denoiser of real units": (lambda: MaskDenoiser(half, V[0], "gaussian"), ValueError, "^unit must"),
    "denoiser of one answer": (lambda: MaskDenoiser(lambda x, s: x[0], V[0])(V, ALL),
                               ValueError, r"^network must return shape \[16, 4\]"),
    "other shape": (lambda: completion_loss(lambda x, m: x[0], V), ValueError, "^predict must return"),
    "spins": (lambda: completion_loss(half, 2 * V - 1), ValueError, "^v must hold only 0 or 1"),
    "unit of three": (lambda: completion_loss(half, V, "binomial(2)"), ValueError, "^unit must have"),
    "no groups": (lambda: fill(half, V, ALL, 0), ValueError, "^steps must be at least 1"),
    "blocks": (lambda: fill(half, V[None], ALL[None]), ValueError, r"^x must have shape \[B, D\]"),
    "no machines": (lambda: chain_bound([], V, 0.2), TypeError, "^machines must be a sequence"),
    "one machine": (lambda: chain_bound(M, V, 0.2), TypeError, "^machines must be a sequence"),
    "no machine": (lambda: chain_bound([M, 3], V, 0.2), TypeError, r"^machines\[1\] must be an RBM"),
    "p of one": (lambda: chain_bound([M], V, 1.0), ValueError, "^p must be finite and above 0"),
    "no steps": (lambda: chain_sample([M], V, 0.2, 0), ValueError, "^steps must be at least 1"),
    "other size": (lambda: chain_sample([M, machine(3, 2)], V, 0.2, 1), ValueError, "^x must have"),
}


@pytest.mark.parametrize("call, kind, words", REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused(call, kind, words):
    with pytest.raises(kind, match=words): call()
