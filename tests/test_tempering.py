"""Ladders and crowds: exact laws, streams, what is refused, and trajectories that a run keeps."""
from itertools import islice, pairwise
import math

import numpy as np
import pytest
import torch

from machines import machine, seeded, some_states
from rbmdiff.foundations.core import Estimate, LogZ, systematic
from rbmdiff.foundations.train import TrainState, sgd, train
from rbmdiff.foundations.units import states
from rbmdiff.learning import partition
from rbmdiff.sampling import tempering
from rbmdiff.sampling.diagnostics import drift
from rbmdiff.sampling.gibbs import gibbs
from rbmdiff.sampling.tempering import (
    at_temperatures,
    bennett,
    check_mass,
    even_ladder,
    integrate,
    ladder_chain,
    log_mass,
    parallel,
    population_annealing,
    population_chain,
    precise_free_energy,
    round_trip_rate,
    round_trips,
    swap_chance,
    thinned,
)

f32, f64 = torch.float32, torch.float64
M = machine(5, 3, scale=1.5)
LADDER = at_temperatures(M, [0.0, 0.5, 1.0])
V = some_states((6, 5))
KINDS = [("bernoulli", "bernoulli"), ("spin", "spin"), ("gaussian", "bernoulli"), ("bernoulli", "spin")]


def ladder(visible="bernoulli", hidden="bernoulli", K=6, D=5, H=3):
    m = machine(D, H, visible, hidden, scale=0.9, widths=(0.8, 1.2))
    return m, at_temperatures(m, torch.linspace(0, 1, K))


def draws(machines, n, seed=0):
    return torch.stack([m.sample(n, generator=100 * seed + k) for k, m in enumerate(machines)])


# --- laws

@pytest.mark.parametrize("visible, hidden", KINDS)
def test_log_z_of_every_kind_of_unit(visible, hidden):
    m, rungs = ladder(visible, hidden)
    truth, v = m.log_partition().item(), draws(rungs, 2000)
    assert abs(tempering._known(rungs[0]) - rungs[0].log_partition().item()) < 1e-10
    crowd = population_annealing(rungs, 3000, 2, 1)
    for found in (bennett(rungs, v), integrate(at_temperatures(m, torch.linspace(0, 1, 41)),
                                               draws(at_temperatures(m, torch.linspace(0, 1, 41)), 500)),
                  crowd):
        assert abs(found.z(truth)) < 4 and found.stderr < 0.06


@pytest.mark.parametrize("visible, hidden", [("bernoulli", "bernoulli"), ("spin", "bernoulli")])
def test_every_rung_keeps_its_law(visible, hidden):
    _, rungs = ladder(visible, hidden, K=4)
    end = parallel(rungs, draws(rungs, 4000), 3, 1)
    S = states(5, visible)
    for r, v in zip(rungs, end):
        assert abs(drift(v, r.log_prob(S).exp(), visible).z(0)) < 4


def test_a_crowd_has_the_law_of_the_target_and_the_error_of_its_families():
    m, rungs = ladder(K=8)
    S, found = states(5), [population_annealing(rungs, 50, 1, s) for s in range(150)]
    z = torch.tensor([x.value for x in found])
    ratio = Estimate.of((z - m.log_partition()).exp())
    bars = torch.tensor([x.stderr for x in found]).square().mean().sqrt()
    assert abs(ratio.z(1)) < 4 and ratio.stderr < 0.02 and abs(bars / z.std() - 1) < 0.25
    means = torch.tensor([math.exp(x.value) * (x.log_weights.softmax(0) @ x.states).sum()
                          for x in found])
    exact = (m.log_prob(S).exp() @ S).sum() * m.log_partition().exp()
    assert abs(Estimate.of(means).z(exact.item())) < 4


def test_copies_carry_their_states_from_mode_to_mode():
    """Two modes that no Gibbs step connects: as 1 to 1 at a machine and as 4 to 1 at the next."""
    m = machine(12, 1, "spin", "spin")
    m.W.fill_(1.5)
    m.b.fill_(0.0)
    m.c.fill_(0.0)
    target = m.sharing(c=m.c + math.log(4) / 2)
    rungs = [*at_temperatures(m, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), target]
    found = population_annealing(rungs, 4000, 1, 0, threshold=1.0)
    share = found.log_weights.softmax(0) @ (found.states.sum(1) > 0).double()
    assert abs(share.item() - 0.8) < 0.06 and abs(found.z(target.log_partition().item())) < 4


def test_without_copies_the_error_is_that_of_the_weights():
    found = population_annealing(LADDER, 40, 1, 0, threshold=0.0)
    plain = LogZ.from_weights(found.log_weights, found.states)
    assert abs(found.value - plain.value) < 1e-12 and abs(found.stderr - plain.stderr) < 1e-12


def test_the_crowd_passes_every_machine():
    chain = [*population_chain(LADDER, 2000, 2, 3)]
    assert len(chain) == 3
    for crowd, m in zip(chain, LADDER): assert abs(crowd.z(m.log_partition().item())) < 4
    assert chain[0].stderr < 1e-6                              # the first machine has no couplings


def test_bennett_of_two_sweeps_of_the_same_ladders():
    v = torch.stack([draws(LADDER, 400, 1), draws(LADDER, 400, 2)], 1)
    both, one = bennett(LADDER, v), bennett(LADDER, v[:, 0])
    assert both.n == 400 and 0.5 < both.stderr / one.stderr < 0.9
    shift = bennett(LADDER, v, first=10.0).value - both.value
    assert abs(shift - (10 - tempering._known(LADDER[0]))) < 1e-12
    assert abs(bennett(LADDER, v, first=0.0).value + 10 - bennett(LADDER, v, first=10.0).value) < 1e-12


def test_the_chance_of_a_swap_by_hand():
    """The exact ratio of the joint law after and before, from energies alone."""
    v = torch.stack([some_states((40, 5), seed=k) for k in range(2)])
    before, after = (sum(m.log_prob(x) for m, x in zip(LADDER[1:], pair)) for pair in (v, v.flip(0)))
    wanted = (after - before).exp().clamp(max=1)
    who = torch.arange(2)[:, None].repeat(1, 40)
    chances = tempering._exchanged(LADDER[1:], v.clone(), who, [0], seeded(0))
    torch.testing.assert_close(chances[0], wanted)
    assert 0.01 < wanted.min() < 0.9 and 10 < (who[0] == 1).sum() < 40


def test_swap_chance_is_symmetric_and_one_for_equal_machines():
    v, w = M.sample(300, generator=0), M.sample(200, generator=1)
    assert abs(swap_chance(M, M, v, w).item() - 1) < 1e-12
    a, b = LADDER[1:]
    x, y = a.sample(100, generator=2), b.sample(80, generator=3)
    gain = a.free_energy(torch.cat([x, y])) - b.free_energy(torch.cat([x, y]))
    wanted = (gain[:100, None] - gain[100:]).clamp(max=0).exp().mean()
    assert abs(swap_chance(a, b, x, y) - wanted) < 1e-12


def test_at_temperatures_is_at_with_a_base_of_zero():
    for beta, m in zip((0.3, 0.6), at_temperatures(M, [0.3, 0.6, 1.0])):
        torch.testing.assert_close(m.free_energy(V), M.at(beta).free_energy(V))
    base = torch.linspace(-1, 1, 5, dtype=f64)
    foot, top = at_temperatures(M, [0.0, 1.0], base)
    assert torch.equal(foot.b, base) and not foot.W.any() and torch.equal(top.W, M.W)


def test_even_ladder_of_a_known_barrier():
    places = even_ladder(lambda a, b: math.exp(-(b**2 - a**2)), 6, rounds=60)
    assert ((places**2).diff() - 0.2).abs().max() < 1e-6
    assert places[0] == 0 and places[-1] == 1


def test_round_trips_by_hand():
    who = torch.tensor([[0, 1, 2], [1, 0, 2], [1, 2, 0], [1, 0, 2], [0, 1, 2], [2, 0, 1], [2, 1, 0]])
    # walker 0 goes up to the target and is home at time 4; walker 2, which began at the top, has come
    # down once and never up again
    assert round_trips(who[:, :, None]).tolist() == [1]
    assert round_trips(who[:4, :, None]).tolist() == [0]
    near = torch.tensor([[0, 1, 2], [1, 0, 2], [0, 1, 2], [1, 0, 2], [0, 1, 2]])
    assert round_trips(near[:, :, None]).tolist() == [0]                       # never at the target


def test_rates_of_limits():
    assert abs(round_trip_rate(torch.ones(5).double()).item() - 0.5) < 1e-12
    assert abs(round_trip_rate(torch.tensor([0.5, 0.5])).item() - 1 / 6) < 1e-6


def test_thinned_keeps_the_ends_and_the_chance():
    _, rungs = ladder(K=40)
    numbers, v = thinned(rungs, 400, 0.7, 1, 0)
    assert numbers[0] == 0 and numbers[-1] == 39 and len(v) == len(numbers) < 20
    chances = [swap_chance(rungs[a], rungs[b], rungs[a].sample(400, generator=1),
                           rungs[b].sample(400, generator=2)).item() for a, b in pairwise(numbers)]
    assert min(chances) > 0.6
    for k, x in zip(numbers, v):
        assert abs(drift(x, rungs[k].log_prob(states(5)).exp()).value) < 0.15


def test_two_equal_machines_are_a_ladder():
    same = [M, M.sharing()]
    truth, v = M.log_partition().item(), torch.stack([V, V.flip(0)])
    assert bennett(same, v).value == integrate(same, v).value == pytest.approx(truth, abs=1e-12)
    assert swap_chance(*same, V, V).item() == 1 and thinned(same, 9, 0.3, 1, 0)[0] == [0, 1]
    _, who, chances = next(ladder_chain(same, V, 0))
    assert bool((chances == 1).all()) and who.tolist() == [[1] * 6, [0] * 6]
    assert abs(population_annealing(same, 3000, 1, 0).z(truth)) < 4


def test_swap_chances_are_those_of_all_pairs():
    """Sorted sums against the pairs themselves, with ties, far ends, single states."""
    hard = M.sharing(W=40 * M.W)
    for v, w in ((states(5), states(5).repeat(2, 1)), (V[:1], V), (V, V[:1])):
        x, y = (tempering._gain(M, hard, s) for s in (v, w))
        wanted = (x[:, None] - y).clamp(max=0).exp().mean()
        torch.testing.assert_close(swap_chance(M, hard, v, w), wanted, rtol=1e-12, atol=1e-300)


def test_tens_of_thousands_of_states_need_no_list_of_pairs():
    m, n = machine(2, 1), 60_000
    v = m.sample(n, generator=0)
    assert swap_chance(*at_temperatures(m, [0.5, 1.0]), v, v.flip(0)).item() > 0.8


def test_trips_over_no_time_are_none():
    who = torch.arange(3)[None, :, None].repeat(1, 1, 2)
    assert round_trips(who[:0]).tolist() == round_trips(who).tolist() == [0, 0]


def test_even_and_odd_pairs_in_this_order():
    """Machines that like every swap: a state climbs by two rungs a sweep, or falls by two."""
    _, who, _ = next(ladder_chain([M] * 5, V[:1], 0))
    assert who[:, 0].tolist() == [1, 3, 0, 4, 2]


def test_two_rungs_have_one_pair():
    assert tempering._order(2) == [0] and tempering._order(3) == [0, 1]
    assert parallel(LADDER[1:], V, 3, 0).shape == (2, 6, 5)


def test_chances_of_a_swap_are_never_above_one():
    chances = torch.cat([c for _, _, c in islice(ladder_chain(LADDER, V, 0), 20)])
    assert bool((chances == 1).any()) and bool((chances < 1).any())
    pairs = tempering._exchanged(LADDER, V.expand(3, 6, 5).clone(), torch.zeros(3, 6).long(), [1], None)
    assert bool(pairs[0].isnan().all()) and not bool(pairs[1].isnan().any())


def test_a_sweep_is_gibbs_steps_at_every_rung_and_then_swaps():
    g = seeded(3)
    v = torch.stack([gibbs(m, V, 2, g) for m in LADDER])
    tempering._exchanged(LADDER, v, torch.zeros(3, 6).long(), [0, 1], g)
    assert torch.equal(parallel(LADDER, V, 1, 3, 2), v)


def test_a_chain_of_machines_that_want_gradients_keeps_no_graph():
    rungs = [machine(5, 3, seed=k).requires_grad_() for k in range(2)]
    v, _, chances = next(ladder_chain(rungs, V, 0))
    crowd = next(population_chain(rungs, 9, 1, 0))
    assert not any(x.requires_grad for x in (v, chances, crowd.states, crowd.log_weights))


def test_the_integral_and_its_error_by_hand():
    v = torch.stack([draws(LADDER, 30, 1), draws(LADDER, 30, 2)], 1)          # two sweeps of 30 ladders
    F = [[m.free_energy(v[k]) for m in LADDER] for k in range(3)]
    middle = [(F[0][0] - F[0][1]) + (F[1][0] - F[1][1]), (F[1][1] - F[1][2]) + (F[2][1] - F[2][2])]
    columns = 0.5 * (middle[0] + middle[1]).mean(0)
    found = integrate(LADDER, v, 2.0)
    assert found.value == pytest.approx(2 + columns.mean().item(), abs=1e-12) and found.n == 30
    assert found.stderr == pytest.approx(columns.std().item() / 30**0.5, rel=1e-12)


def test_the_error_of_bennett_is_that_of_leaving_out_columns():
    v, n = draws(LADDER, 60), 60
    left = [torch.cat([v[:, :k], v[:, k + 1:]], 1) for k in range(n)]
    some = torch.tensor([bennett(LADDER, x).value for x in left])
    knife = ((n - 1) / n * (some - some.mean()).square().sum()).sqrt()
    assert bennett(LADDER, v).stderr == pytest.approx(knife.item(), rel=0.1)


def test_data_are_held_against_the_last_machine():
    asked, v = [], draws(LADDER, 9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempering, "check_mass", lambda m, v, found: asked.append((m, v, found)))
        found = [bennett(LADDER, v, seen=V), integrate(LADDER, v, seen=V),
                 population_annealing(LADDER, 9, 1, 0, seen=V)]
    for (m, seen, z), wanted in zip(asked, found, strict=True):
        assert m is LADDER[-1] and seen is V and z is wanted


def test_free_energies_that_are_known_are_taken():
    S = states(5)
    F = precise_free_energy(M, S)
    assert log_mass(M, S.repeat(3, 1)) == pytest.approx(log_mass(M, S), abs=1e-12)
    far = Estimate(99.0, 0.0, 1)
    assert check_mass(M, S, far, F - 1) == pytest.approx(log_mass(M, S) + 1, abs=1e-12)


def test_each_round_asks_once_for_each_pair():
    asked = []
    even_ladder(lambda a, b: asked.append((a, b)) or 0.5, 4, 3)
    assert len(asked) == 9 and all(0 <= a < b <= 1 for a, b in asked)


def test_the_first_log_z_of_a_machine_in_float32_is_in_float64():
    for m in (machine(5, 3, dtype=f32), at_temperatures(machine(5, 3, dtype=f32), [0.0, 1.0])[0]):
        assert tempering._known(m) == pytest.approx(m.precise().log_partition().item(), abs=1e-13)


def test_walkers_of_earlier_sweeps_stay():
    seen = [*islice(ladder_chain(LADDER, V, 0), 3)]
    again = [*islice(ladder_chain(LADDER, V, 0), 1)]
    assert torch.equal(seen[0][1], again[0][1]) and not torch.equal(seen[0][1], seen[2][1])


def test_a_crowd_begins_with_what_the_first_machine_says_of_its_units():
    """The spread of the first weights is that of independent units in the mean field of the others."""
    foot, S = machine(5, 3, scale=0.3), states(5)
    crowd = next(population_chain([foot, M], 4000, 1, 0))

    def spread(bias):
        base = foot.sharing(W=torch.zeros_like(foot.W), b=bias)
        p, w = base.log_prob(S).exp(), tempering._gain(base, foot, S).exp()
        return ((p @ w**2) / (p @ w) ** 2 - 1).sqrt().item()
    wanted = spread(foot.visible_field(foot.hidden.mean(foot.c)))
    assert crowd.stderr * 4000**0.5 == pytest.approx(wanted, rel=0.1)
    assert min(spread(foot.b), spread(torch.zeros_like(foot.b))) > 1.5 * wanted
    assert abs(crowd.z(foot.log_partition().item())) < 4


def test_copies_are_made_when_fewer_than_the_threshold_are_effective():
    far = [LADDER[0], M.sharing(b=M.b + 3)]
    families = lambda part: len(population_annealing(far, 60, 1, 0, threshold=part).log_weights.unique())
    assert families(0.0) > 1 and families(1.0) == 1
    near = [M, M.sharing(b=M.b + 1e-3)]
    assert len(population_annealing(near, 60, 1, 0, threshold=0.01).log_weights.unique()) > 1


def test_an_error_below_nothing_is_none():
    crowd = population_annealing(at_temperatures(M, [0.0, 1e-9, 1.0])[:2], 7, 1, 0)
    assert crowd.stderr < 1e-6


def test_states_of_kept_rungs_are_in_random_order():
    """Copies lie side by side after systematic resampling, and would swap as one."""
    rungs = at_temperatures(machine(30, 2, scale=0.2), [0.0, 1.0])
    beside = lambda v: (v[1:] == v[:-1]).all(-1).double().mean().item()
    _, v = thinned(rungs, 300, 0.999, 1, 0)
    *_, crowd = population_chain(rungs, 300, 1, 0)
    assert len(v[1].unique(dim=0)) < 280                                   # by weight, so with copies
    assert beside(v[1]) < 0.03 and beside(crowd.states[systematic(crowd.log_weights, 300, 0)]) > 0.1


# --- machines on the way

def test_a_line_has_the_machines_between_and_the_last():
    a, b = machine(5, 3, seed=1), machine(5, 3, seed=2)
    line = [*tempering._line(a, b, 4)]
    assert len(line) == 4 and line[-1] is b
    for k, m in enumerate(line[:3], 1):
        for name, x in m.state_dict().items():
            torch.testing.assert_close(x, torch.lerp(a.state_dict()[name], b.state_dict()[name], k / 4))
    assert [*tempering._line(a, b, 1)] == [b]


@pytest.mark.parametrize("visible, hidden", KINDS)
def test_a_crowd_finds_its_way_between_two_machines(visible, hidden):
    m, rungs = ladder(visible, hidden)
    crowd = population_annealing([rungs[0], m], 2000, 1, 2, spread=0.3)
    far = population_annealing([rungs[0], m], 2000, 1, 2)
    assert abs(crowd.z(m.log_partition().item())) < 4 and crowd.stderr < 0.7 * far.stderr


def test_the_spread_asks_for_so_many_parts():
    v, even = states(5), torch.zeros(32).double()
    gain = tempering._gain(*LADDER[1:], v)
    for log_w in (even, M.log_prob(v) + 7):
        w = log_w.softmax(0)
        sd = (w @ (gain - w @ gain) ** 2).sqrt()
        for spread in (0.05, 0.3, 100.0):
            found = tempering._parts(*LADDER[1:], v, log_w, spread)
            assert found == max(1, math.ceil(sd.item() / spread))
    assert tempering._parts(*LADDER[1:], v, even, None) == 1
    a, b = (population_annealing(LADDER, 20, 1, 4, spread=x) for x in (None, 1e6))
    assert a.value == b.value and torch.equal(a.states, b.states)


# --- streams, dtypes, shapes

def test_a_column_gets_what_it_would_get_alone():
    whole = parallel(LADDER, V[:3], 4, [5, 6, 7])
    alone = parallel(LADDER, V[1:2], 4, [6])
    assert torch.equal(whole[:, 1:2], alone)
    chain = [*islice(ladder_chain(LADDER, V[:3], [5, 6, 7]), 4)]
    assert torch.equal(chain[-1][0], whole)
    for _, who, chances in chain:
        assert torch.equal(who.sort(0).values, torch.arange(3)[:, None].expand(3, 3))
        assert chances.shape == (2, 3) and bool(((chances > 0) & (chances <= 1)).all())


def test_seeds_and_steps():
    assert torch.equal(parallel(LADDER, V, 3, 1), parallel(LADDER, V, 3, seeded(1)))
    assert torch.equal(parallel(LADDER, V.expand(3, 6, 5), 3, 1), parallel(LADDER, V, 3, 1))
    assert not torch.equal(parallel(LADDER, V, 3, 1, steps=2), parallel(LADDER, V, 3, 1))
    assert not torch.equal(population_annealing(LADDER, 20, 2, 4).states,
                           population_annealing(LADDER, 20, 1, 4).states)
    a, b = (population_annealing(LADDER, 20, 1, g) for g in (4, seeded(4)))
    assert a.value == b.value and torch.equal(a.states, b.states)


def test_float32():
    m = machine(5, 3, scale=1.5, dtype=f32)
    rungs = at_temperatures(m, [0.0, 0.5, 1.0])
    assert parallel(rungs, V.float(), 2, 0).dtype == f32
    crowd = population_annealing(rungs, 2000, 1, 0)
    assert crowd.states.dtype == f32 and crowd.log_weights.dtype == f64
    assert abs(crowd.z(M.log_partition().item())) < 4
    found = bennett(rungs, torch.stack([r.sample(500, generator=k) for k, r in enumerate(rungs)]))
    assert abs(found.z(M.log_partition().item())) < 4


def test_sums_of_a_machine_in_float32_are_in_float64():
    m = machine(5, 3, scale=1.5, dtype=f32)
    v, rungs = V.float(), at_temperatures(m, [0.5, 1.0])
    assert tempering._gains(rungs, v.expand(2, 6, 5)).dtype == f64
    assert swap_chance(*rungs, v, v).dtype == f64
    F = precise_free_energy(m, v)
    torch.testing.assert_close(F, m.precise().free_energy(v.double()), rtol=1e-14, atol=1e-14)
    assert F.dtype == f64 and not torch.equal(F, m.free_energy(v).double())


def test_clamped_machines_are_rungs():
    mask, v = torch.tensor([True, False, False, True, False]), V[0]
    rungs = [m.clamp(v, mask) for m in LADDER]
    crowd = population_annealing(rungs, 2000, 1, 0)
    assert crowd.states.shape == (2000, 3) and abs(crowd.z(rungs[-1].log_partition().item())) < 4


def test_what_is_given_stays():
    v = V.expand(3, 6, 5).clone()
    copy, foot = v.clone(), LADDER[0].W.clone()
    parallel(LADDER, v, 2, 0)
    assert torch.equal(v, copy) and torch.equal(LADDER[0].W, foot)
    assert partition.LogZ is LogZ


def test_the_mass_is_an_error_only_far_below():
    S, truth = states(5), M.log_partition().item()
    assert abs(check_mass(M, S, Estimate(truth, 0.0, 1)) - truth) < 1e-12
    check_mass(M, S, Estimate(truth - 0.9, 0.0, 1))
    check_mass(M, S, Estimate(truth - 2.9, 0.5, 1))
    for seen in (bennett, integrate):
        with pytest.raises(ValueError, match="log_z must be at least"):
            seen(LADDER, draws(LADDER, 50), first=-20.0, seen=S)
    with pytest.raises(ValueError, match="have not been where the machine is"):
        check_mass(M, S, Estimate(truth - 3, 0.1, 1))


def wild():
    """A machine of real units whose sum over states does not exist."""
    m = machine(2, 2, "gaussian", "relu")
    m.W.fill_(9.0)
    return m


# --- what is refused

OTHER, BATCH = machine(4, 3), M.tilt(torch.zeros(2, 5, dtype=f64))
HUGE = [machine(5, 3, dtype=f32), machine(5, 3, dtype=f32)]
HUGE[1].W.fill_(3e38)
ONES = torch.ones(2, 6, 5)
BAD = {
    "one machine": (lambda: parallel([M], V, 2), TypeError, "machines must be a list of two"),
    "no list": (lambda: parallel(M, V, 2), TypeError, "machines must be a list of two"),
    "no machine": (lambda: parallel([M, 3], V, 2), TypeError, r"machines\[1\] must be an RBM"),
    "another size": (lambda: parallel([OTHER, M], some_states((6, 4)), 2), ValueError,
                     r"machines\[1\] must have 4 visible columns"),
    "another dtype": (lambda: parallel([machine(5, 3, dtype=f32), M], V.float(), 2), TypeError,
                      r"machines\[1\].W must be torch.float32"),
    "a batch": (lambda: parallel([M, BATCH], V, 2), ValueError, r"machines\[1\] must be one machine"),
    "other units": (lambda: population_annealing([M, machine(5, 3, "spin")], 4), ValueError,
                    r"machines\[1\] must have 5 visible columns, bernoulli, like the first"),
    "one chain": (lambda: parallel(LADDER, V[0], 2), ValueError, r"v must have shape \[3, n, 5\]"),
    "two rungs of states": (lambda: parallel(LADDER, V.expand(2, 6, 5), 2), ValueError, "v must have"),
    "half states of the last rung": (lambda: parallel(LADDER, torch.stack([V, V, V / 2]), 2),
                                     ValueError, "v must"),
    "states of one rung": (lambda: bennett(LADDER, V), ValueError, r"v must have shape \[3, n, 5\]"),
    "half states": (lambda: parallel(LADDER, V + 0.5, 2), ValueError, "v must"),
    "no sweeps": (lambda: parallel(LADDER, V, 0), ValueError, "sweeps"),
    "no steps": (lambda: parallel(LADDER, V, 1, steps=0), ValueError, "steps"),
    "no crowd": (lambda: population_annealing(LADDER, 1), ValueError, "n must"),
    "streams for a crowd": (lambda: population_annealing(LADDER, 2, 1, [1, 2]), TypeError,
                            "one stream"),
    "threshold": (lambda: population_annealing(LADDER, 4, threshold=1.5), ValueError, "threshold"),
    "betas in words": (lambda: at_temperatures(M, "abc"), TypeError, "betas must be numbers, got str"),
    "no betas": (lambda: at_temperatures(M, None), TypeError, "betas must be numbers, got NoneType"),
    "first in words": (lambda: bennett(LADDER, draws(LADDER, 5), "x"), TypeError,
                       "first must be a number"),
    "first is NaN": (lambda: integrate(LADDER, draws(LADDER, 5), math.nan), ValueError, "first must be"),
    "betas fall": (lambda: at_temperatures(M, [0.5, 0.2, 1.0]), ValueError, "betas must be numbers"),
    "betas end early": (lambda: at_temperatures(M, [0.0, 0.9]), ValueError, "betas must"),
    "betas below zero": (lambda: at_temperatures(M, [-0.1, 1.0]), ValueError, "betas must"),
    "base": (lambda: at_temperatures(M, [0.0, 1.0], torch.zeros(4).double()), ValueError, "base"),
    "one ladder": (lambda: bennett(LADDER, V[None, :1].expand(3, 1, 5)), ValueError, "two ladders"),
    "no overlap": (lambda: bennett([M.sharing(b=M.b - 5000), M.sharing(b=M.b + 5000)], torch.stack(
        [torch.zeros(4, 5), torch.ones(4, 5)]).double(), first=0.0), ValueError, "overlap"),
    "gains that overflow": (lambda: bennett(HUGE, ONES), ValueError, "machines must have finite"),
    "means that overflow": (lambda: integrate(HUGE, ONES), ValueError, "machines must have finite"),
    "a crowd that overflows": (lambda: population_annealing(HUGE, 9), ValueError, "a finite log Z"),
    "a line that overflows": (lambda: population_annealing(HUGE, 9, spread=1.0), ValueError,
                              "finite free energies on the way"),
    "chances that overflow": (lambda: swap_chance(*HUGE, *ONES), ValueError, "easy and hard must have"),
    "no spread": (lambda: population_annealing(LADDER, 9, spread=0.0), ValueError, "spread must be"),
    "a spread in words": (lambda: population_annealing(LADDER, 9, spread="x"), TypeError, "spread must"),
    "other hidden units": (lambda: population_annealing([machine(5, 2), M], 9, spread=1.0), ValueError,
                           "the same hidden units"),
    "other kinds of hidden units": (lambda: population_annealing(
        [machine(5, 3, hidden="spin"), M], 9, spread=1.0), ValueError, "the same hidden units"),
    "too few streams": (lambda: parallel(LADDER, V, 2, [1, 2]), ValueError, "generator must hold"),
    "a generator of machines": (lambda: parallel(iter(LADDER), V, 2), TypeError, "must be a list"),
    "betas with a gradient": (lambda: at_temperatures(M, torch.tensor([0.0, 1.0], requires_grad=True)),
                              ValueError, "wants a gradient"),
    "a start with a gradient": (lambda: ladder_chain(LADDER, V.clone().requires_grad_()), ValueError,
                                "wants a gradient"),
    "one beta": (lambda: at_temperatures(M, [1.0]), ValueError, "betas must be numbers"),
    "equal betas": (lambda: at_temperatures(M, [0.5, 0.5, 1.0]), ValueError, "betas must be numbers"),
    "betas beyond one": (lambda: at_temperatures(M, [0.5, 1.0, 1.5]), ValueError, "betas must be"),
    "a batch of bases": (lambda: at_temperatures(M, [0.0, 1.0], torch.zeros(2, 5).double()), ValueError,
                         r"base must have shape \[5\]"),
    "a table of chances": (lambda: round_trip_rate(torch.ones(2, 2)), ValueError, "chances must be"),
    "chances below zero": (lambda: round_trip_rate(torch.tensor([-0.1])), ValueError, "chances must be"),
    "steps of a chain": (lambda: ladder_chain(LADDER, V, steps=0), ValueError, "steps"),
    "steps of a crowd": (lambda: population_annealing(LADDER, 9, 0), ValueError, "steps"),
    "no states": (lambda: parallel(LADDER, V[:0], 2), ValueError, "v must"),
    "states of another dtype": (lambda: parallel(LADDER, V.float(), 2), TypeError, "v must be"),
    "free energies": (lambda: log_mass(M, V, torch.zeros(3).double()), ValueError, "F must have shape"),
    "a machine without a sum": (lambda: parallel([wild(), wild()], torch.zeros(3, 2).double(), 2),
                                ValueError, "cannot be normalised"),
    "walkers": (lambda: round_trips(torch.zeros(4, 3, 2).long()), ValueError, "who must hold"),
    "walkers of one rung": (lambda: round_trips(torch.zeros(4, 1, 2).long()), TypeError, "who must be"),
    "chances": (lambda: round_trip_rate(torch.tensor([1.2])), ValueError, "chances"),
    "a chance": (lambda: thinned(LADDER, 10, 1.0), ValueError, "chance"),
    "no function": (lambda: even_ladder(0.5, 4), TypeError, "chance"),
    "no rungs": (lambda: even_ladder(lambda a, b: 0.5, 1), ValueError, "rungs"),
    "no chance": (lambda: even_ladder(lambda a, b: 2.0, 3), ValueError, "the answer of chance must be"),
    "a chance of NaN": (lambda: even_ladder(lambda a, b: math.nan, 3), ValueError, "the answer of"),
    "a chance below zero": (lambda: even_ladder(lambda a, b: -0.1, 3), ValueError, "the answer of"),
    "a chance in words": (lambda: even_ladder(lambda a, b: "half", 3), TypeError,
                          "the answer of chance must be a number, got str"),
    "no answer": (lambda: even_ladder(lambda a, b: None, 3), TypeError, "got NoneType"),
    "two chances": (lambda: even_ladder(lambda a, b: torch.ones(2), 3), TypeError, "got Tensor"),
    "all chances one": (lambda: even_ladder(lambda a, b: 1.0, 3), ValueError, "fall below 1"),
    "no estimate": (lambda: check_mass(M, V, 3.0), TypeError, "log_z must be an Estimate"),
    "shapes of a pair": (lambda: swap_chance(M, M, V[0], V), ValueError, "v and w must have shape"),
    "no weights": (lambda: systematic(torch.full((3,), -math.inf)), ValueError, "log_weights"),
    "weights of a table": (lambda: systematic(torch.zeros(3, 2)), ValueError, "log_weights"),
    "a list of weights": (lambda: systematic([0.0]), TypeError, "log_weights"),
    "streams of copies": (lambda: systematic(torch.zeros(3), 3, [1, 2, 3]), TypeError, "one stream"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    run, error, words = BAD[name]
    with pytest.raises(error, match=words): run()


# --- trajectories

def fitted(checkpoints, epochs=3, state=None):
    """A state after some epochs of a line through noise, five updates each."""
    g = seeded(0)
    model = torch.nn.Linear(2, 1, dtype=f64)
    for p in model.parameters(): p.data = torch.randn(p.shape, dtype=f64, generator=g)
    state = TrainState(model, sgd(model, 0.1, 0.9), g) if state is None else state

    def step(state, x):
        state.model(x).square().mean().backward()
        return {}

    x = torch.randn(25, 2, dtype=f64, generator=seeded(1))
    for _ in train(state, x, step, epochs, 5, False, checkpoints): pass
    return state


def test_as_many_copies_as_asked_for_at_most_and_at_least_half():
    for most in range(2, 18):
        kept = [*fitted(most).kept]
        assert kept[0] == 0 and most // 2 <= len(kept) <= most
        assert len({b - a for a, b in pairwise(kept)}) <= 1
    assert fitted(0).kept == {}


def test_copies_after_given_updates_and_the_present_one():
    state = fitted([0, 3, 7, 99])
    path = state.trajectory()
    assert [*state.kept] == [0, 3, 7] and len(path) == 4
    assert torch.equal(path[-1].weight, state.model.weight) and path[-1] is not state.model
    assert torch.equal(path[1].weight, state.kept[3]["weight"])
    assert not torch.equal(path[0].weight, path[1].weight)
    assert not any(p.requires_grad for m in path for p in m.parameters())


def test_a_killed_run_keeps_its_copies(tmp_path):
    whole, half, rest = fitted(4), fitted(4, 1), fitted(4, 1)
    half.save(tmp_path / "state")
    rest.kept = {}
    rest.load(tmp_path / "state")
    rest = fitted(4, 3, rest)
    assert [*rest.kept] == [*whole.kept]
    for a, b in zip(whole.kept.values(), rest.kept.values()):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_file_with_copies_of_another_model_is_refused(tmp_path):
    state = fitted(4, 1)
    state.kept[0]["weight"] = torch.zeros(3, 3, dtype=f64)
    state.save(tmp_path / "state")
    with pytest.raises(ValueError, match="holds kept.0.weight"): fitted(4, 1).load(tmp_path / "state")
    del state.kept[0]["weight"]
    state.save(tmp_path / "state")
    with pytest.raises(ValueError, match="lacks parameters"): fitted(4, 1).load(tmp_path / "state")


def test_counts_of_updates_in_any_collection():
    for counts in ([0, 3, 7], range(0, 8, 3), np.array([0, 3]), torch.tensor([3, 7]), {7}):
        assert [*fitted(counts).kept] == sorted(int(k) for k in counts if k < 15)
    assert [*fitted(np.int64(4)).kept] == [*fitted(4).kept]


@pytest.mark.parametrize("checkpoints, error", [(1, ValueError), (-1, ValueError), (2.5, TypeError),
                                                ("all", TypeError), ([0, -1], ValueError)])
def test_bad_checkpoints(checkpoints, error):
    with pytest.raises(error, match="checkpoints"): fitted(checkpoints)
