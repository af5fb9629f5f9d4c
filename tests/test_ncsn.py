"""Score networks over ladders of noise: laws, ladders, steps, both loops, and what is refused."""
from collections.abc import Sequence
from itertools import pairwise
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from bookmaker import ROOT
from machines import normal
from rbmdiff.diffusion.ddpm import linear_chain, sample_chain
from rbmdiff.diffusion.ncsn import (
    ScoreNetwork,
    best_step,
    eps_of_score,
    ladder,
    ladder_loss,
    ladder_step,
    largest_distance,
    nearest,
    overlap,
    sample,
    score_of_eps,
)
from rbmdiff.diffusion.networks import MLP, UNet
from rbmdiff.diffusion.objective import empirical_score
from rbmdiff.diffusion.oracle import gaussian
from rbmdiff.diffusion.schedule import Geometric, LinearBeta, SubVP, time_grid
from rbmdiff.diffusion.solvers import ddim
from rbmdiff.foundations.core import Estimate
from rbmdiff.foundations.train import TrainState, train
from rbmdiff.sampling.langevin import annealed, check_levels, geometric_levels, level_variance

f32, f64 = torch.float32, torch.float64
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[cuda, pytest.mark.cuda])]
STAIRS = geometric_levels(3.0, 0.1, 6)
X = normal(4, 2)


def column(sigma, x):
    """A level, or one a sample, as a factor of x."""
    return torch.as_tensor(sigma).to(x).reshape(-1, *[1] * (x.ndim - 1)) if sigma.ndim else sigma


def bell(x, sigma):
    """Score of normal data of variance 1/4 with noise."""
    return -x / (0.25 + column(sigma, x) ** 2)


def eps(x, t): return 0.3 * x


RUNS = {
    "sample": lambda x, g=None: sample(bell, x, STAIRS, 2, g),
    "ladder_loss": lambda x, g=None: ladder_loss(bell, x, STAIRS, g),
}


# --- shapes, dtypes, devices, streams

@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("shape", [(3, 2), (5, 1, 4, 4), (2, 3, 2)])
@pytest.mark.parametrize("name", RUNS)
def test_shapes_dtypes_and_seeds(name, shape, dtype, device):
    x = normal(*shape).to(device, dtype)
    before = x.clone()
    y = RUNS[name](x, 3)
    assert y.shape == (x.shape if name == "sample" else x.shape[:1])
    assert y.dtype == dtype and y.device == x.device and torch.equal(x, before)
    assert torch.equal(y, RUNS[name](x, 3)) and not torch.equal(y, RUNS[name](x, 4))


@pytest.mark.parametrize("name", RUNS)
def test_a_row_is_what_it_would_be_alone(name):
    whole = RUNS[name](X, range(4))
    for b in range(4): assert torch.equal(RUNS[name](X[b:b + 1], [b]), whole[b:b + 1])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("told", [False, True])
def test_the_score_network_has_the_dtype_of_x(told, dtype, device):
    x = normal(3, 2).to(device, dtype)
    network = MLP(2, 8, 1, dtype=dtype, generator=0).to(device)
    nn.init.ones_(network.last.weight)
    score = ScoreNetwork(network, told)
    for sigma in (0.5, torch.tensor(0.5), torch.full((3,), 0.5, dtype=f64)):
        y = score(x, sigma)
        assert y.dtype == dtype and y.shape == x.shape and y.device == x.device
        torch.testing.assert_close(y, score(x, 0.5))
    halved = score(x, 1.0)
    close = torch.allclose(halved, y / 2)
    assert close is not told


def test_answers_of_half_precision_are_cast_and_gradients_flow():
    score = ScoreNetwork(lambda x, t: x.half())
    assert score(X.float(), 2.0).dtype == f32
    p = torch.tensor(0.5, dtype=f64, requires_grad=True)
    for f in (ScoreNetwork(lambda x, t: p * x), eps_of_score(lambda x, s: p * x, LinearBeta()),
              score_of_eps(lambda x, t: p * x, LinearBeta())):
        assert torch.autograd.grad(f(X, torch.tensor(0.5)).sum(), p)[0] != 0
    assert torch.autograd.grad(ladder_loss(lambda x, s: p * x, X, STAIRS, 0).sum(), p)[0] != 0


# --- the loss

def test_every_level_comes_equally_often_and_is_one_of_the_ladder():
    seen = []
    ladder_loss(lambda x, sigma: seen.append(sigma) or x, torch.zeros(60_000, 1, dtype=f64), STAIRS, 1)
    places = (seen[0][:, None] == STAIRS).double()
    assert bool((places.sum(1) == 1).all())
    for share in places.T: assert abs(Estimate.of(share).z(1 / 6)) < 4


def test_a_perfect_score_pays_what_is_irreducible():
    """For normal data the loss at a level is D v / (v + sigma^2)."""
    x = 0.5 * normal(40_000, 3)
    found = Estimate.of(ladder_loss(bell, x, STAIRS, 2))
    known = (3 * 0.25 / (0.25 + STAIRS**2)).mean().item()
    assert abs(found.z(known)) < 4 and found.stderr < 0.01
    worse = Estimate.of(ladder_loss(lambda x, s: 0.5 * bell(x, s), x, STAIRS, 2))
    assert worse.z(known) > 20


def test_a_step_trains_a_network():
    model = ScoreNetwork(MLP(2, 32, 1, generator=0), told=True)
    state = TrainState(model, torch.optim.Adam(model.parameters(), 1e-2), 0)
    records = list(train(state, 0.5 * normal(500, 2).float(), ladder_step(STAIRS), 8, 100, False))
    assert records[-1].scalars["loss"] < 0.7 * records[0].scalars["loss"]


# --- ladders

@pytest.mark.parametrize("n", [2, 3, 300, 700])
def test_the_largest_distance_is_that_of_all_pairs(n):
    x = normal(n, 5, seed=n)
    x[0] *= 3                                                  # far out, and the rest in between
    truth = max((a - b).norm().item() for a in x[:50] for b in x)
    truth = max(truth, torch.cdist(x, x).max().item())
    assert abs(largest_distance(x) - truth) < 1e-12
    assert abs(largest_distance(x.reshape(n, 1, 5) + 100) - truth) < 1e-10


def test_the_longest_pair_need_not_be_far_out():
    """300 data far out along axes of their own, and two that are nearer to the mean and opposite."""
    x = torch.cat([1.1 * torch.eye(300, 301), torch.tensor([[1.0], [-1.0]]) * torch.eye(301)[-1:]])
    assert abs(largest_distance(x.double()) - 2) < 1e-12


def test_the_largest_distance_of_equal_data_is_zero():
    assert largest_distance(torch.ones(5, 3)) == 0


@pytest.mark.parametrize("dims", [5, 64, 784, 12288])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_ladder_is_the_shortest_that_overlaps(dims, share):
    stairs = ladder(50.0, 0.01, dims, share)
    n, top = len(stairs), stairs[0].item()
    assert stairs.dtype == f64 and abs(top - 50) < 1e-12 and abs(stairs[-1].item() - 0.01) < 1e-15
    ratios = stairs[:-1] / stairs[1:]
    assert torch.allclose(ratios, ratios[:1]) and bool((overlap(ratios, dims) >= share - 1e-9).all())
    if n > 2: assert overlap(5000 ** (1 / (n - 2)), dims) < share


def test_a_short_way_needs_two_levels():
    assert len(ladder(1.0, 0.99, 64)) == 2


def test_overlaps():
    assert abs(overlap(1.0, 64).item() - math.erf(3 / math.sqrt(2))) < 1e-12
    assert overlap(torch.tensor([1.0, 2.0]), 64).shape == (2,)
    for dims in (64, 784, 3072):                               # C = 1/2: u = 3 gamma
        root = math.sqrt(2 * dims)
        assert abs(overlap(root / (root - 3), dims).item() - 0.5) < 2e-3


def test_shells_of_real_noise_overlap_as_said():
    length = 0.8 * normal(40_000, 500, dtype=f32).norm(dim=1) / math.sqrt(500)
    inside = ((length - 1).abs() < 3 / math.sqrt(1000)).double()
    found = Estimate.of(inside)
    assert abs(found.value - overlap(1.25, 500).item()) < 1e-3 + 4 * found.stderr
    inside = ((length / 0.8 * 0.93 - 1).abs() < 3 / math.sqrt(1000)).double()
    found = Estimate.of(inside)
    assert abs(found.value - overlap(1 / 0.93, 500).item()) < 0.01 + 4 * found.stderr


# --- steps

@pytest.mark.parametrize("steps", [1, 2, 5, 50, 1000])
@pytest.mark.parametrize("ratio", [1.001, 1.04, 1.36, 2.0, 30.0])
def test_no_other_step_brings_a_level_nearer_to_its_variance(ratio, steps):
    step = best_step([ratio, 1.0], steps)
    least = level_variance(ratio, step, steps)
    others = [level_variance(ratio, e, steps) for e in torch.linspace(1e-4, 1.999, 4000).tolist()]
    others += [level_variance(ratio, step * f, steps) for f in (0.9, 0.99, 1.01, 1.1) if step * f < 2]
    assert 0 < step < 1 and 1 < least < min(others) * (1 + 1e-12)


def test_the_widest_gap_decides():
    assert best_step([4.0, 3.0, 1.5, 1.0], 4) == best_step([2.0, 1.0], 4)


def test_published_steps():
    """NCSNv2's steps to the digits given, but for that of the churches."""
    found = [1e-4 * best_step(geometric_levels(first, 0.01, n), T) for first, n, T in
             ((50, 232, 5), (90, 500, 5), (140, 788, 4), (190, 1086, 3), (348, 2311, 3))]
    assert [f"{e:.1e}" for e in found] == ["6.2e-06", "3.3e-06", "2.3e-06", "1.8e-06", "8.9e-07"]


# --- sampling

def test_walkers_have_the_variance_of_the_formula_at_every_level():
    """One datum: the variance runs on by `level_variance`; denoised, nothing is left."""
    origin = lambda x, sigma: -x / column(sigma, x) ** 2
    x, step = 3 * normal(20_000, 1), best_step(STAIRS, 3)
    V = 1.0
    for k in range(1, len(STAIRS) + 1):
        y = annealed(origin, x, STAIRS[:k], 3, step, 1)
        V = level_variance((STAIRS[k - 2] / STAIRS[k - 1]).item() * V**0.5 if k > 1 else 1.0, step, 3)
        found = Estimate.of((y / STAIRS[k - 1]).square()[:, 0])
        assert abs(found.z(V)) < 4 and found.stderr < 0.03
    assert sample(origin, x, STAIRS, 3, 1).abs().max() < 1e-12


def test_calls_and_levels_of_a_walk():
    asked = []
    sample(lambda x, sigma: asked.append(sigma.item()) or -x, X, STAIRS, 3, 0)
    assert asked == [s for s in STAIRS.tolist() for _ in range(3)] + [STAIRS[-1].item()]


def test_a_sample_is_a_walk_and_a_posterior_mean():
    y = annealed(bell, X, STAIRS, 3, best_step(STAIRS, 3), 5)
    last = STAIRS[-1]
    assert torch.equal(sample(bell, X, STAIRS, 3, 5), y + last**2 * bell(y, last))


def test_networks_are_asked_in_evaluation_mode():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)
        def forward(self, x, t): return -self.drop(x)
    network = Noisy()
    score = ScoreNetwork(network)
    assert torch.equal(sample(score, X, STAIRS, 2, 0), sample(score, X, STAIRS, 2, 0))
    assert network.training and network.drop.training


def test_a_perfect_score_returns_training_data():
    data = normal(40, 6, seed=3)
    perfect = lambda x, sigma: empirical_score(x, data, 1.0, sigma)
    stairs = ladder(largest_distance(data), 0.01, 6)
    x = sample(perfect, stairs[0] * normal(30, 6, seed=4), stairs, 10, 0)
    assert nearest(x, data)[0].max() < 1e-6 and len(nearest(x, data)[1].unique()) > 10


# --- two loops

@pytest.mark.parametrize("schedule", [LinearBeta(), Geometric(0.01, 20.0), SubVP()], ids=str)
def test_both_ways_are_inverse_and_right(schedule):
    mean, spread = torch.tensor([1.0, -2.0]), torch.tensor([[1.0, 0.3], [0.3, 0.5]])
    law = gaussian(mean.double(), spread.double())
    plain = lambda x, sigma: law.score(x, 1.0, sigma)
    t = torch.tensor([0.1, 0.3, 0.5, 0.9], dtype=f64)
    predict = eps_of_score(plain, schedule)
    torch.testing.assert_close(predict(X, t), law.predictor(schedule)(X, t), rtol=1e-10, atol=1e-10)
    sigma = schedule.rho(t)
    for level in (sigma, 0.7):
        back = score_of_eps(predict, schedule)(X, level)
        torch.testing.assert_close(back, plain(X, level), rtol=1e-9, atol=1e-9)


def test_an_exploding_schedule_changes_sign_and_unit_alone():
    network, schedule = MLP(2, 8, 1, dtype=f64, generator=0), Geometric(0.01, 20.0)
    nn.init.ones_(network.last.weight)
    score = ScoreNetwork(network)
    t = torch.tensor(0.4, dtype=f64)
    zero = torch.zeros((), dtype=f64)
    torch.testing.assert_close(eps_of_score(score, schedule)(X, t), -network(X, zero))


def test_one_score_in_two_loops():
    """The exact score of normal data, walked down a ladder and along a chain: both laws are known."""
    v, stairs, schedule = 0.3, geometric_levels(5.0, 0.05, 30), LinearBeta()
    law = gaussian(torch.tensor([0.5], dtype=f64), torch.tensor([[v]], dtype=f64))
    plain = lambda x, sigma: law.score(x, 1.0, sigma)
    z = normal(20_000, 1, seed=6)
    back = score_of_eps(law.predictor(schedule), schedule)
    walks = [sample(f, 0.5 + 5 * z, stairs, 20, 1) for f in (plain, back)]
    torch.testing.assert_close(*walks, rtol=1e-8, atol=1e-8)
    step, V = best_step(stairs, 20), 25.0
    for sigma in stairs.tolist():
        for _ in range(20): V = (1 - step * sigma**2 / (v + sigma**2)) ** 2 * V + 2 * step * sigma**2
    V *= (v / (v + sigma**2)) ** 2                             # the last call
    solved = ddim(eps_of_score(plain, schedule), schedule, z, time_grid(schedule, 200))
    for x, truth, most in ((walks[0], V, 0.0), (solved, v, 0.01)):
        assert abs(Estimate.of(x[:, 0]).z(0.5)) < 4
        assert abs(x.var().item() / truth - 1) < most + 4 * math.sqrt(2 / 20_000)
    assert V > 1.05 * v                                        # a ladder is never at rest


def test_a_chain_takes_a_score():
    law = gaussian(torch.zeros(2, dtype=f64), torch.eye(2, dtype=f64) / 4)
    chain = linear_chain(50, 1e-3, 0.3)
    schedule = LinearBeta()
    predict = eps_of_score(lambda x, sigma: law.score(x, 1.0, sigma), schedule)
    assert torch.equal(sample_chain(predict, chain, X, generator=0),
                       sample_chain(predict, chain, X, generator=0))


# --- nearest data

@pytest.mark.parametrize("dtype", [f32, f64])
def test_the_nearest_datum(dtype):
    data, x = normal(700, 1, 2, 2, seed=1).to(dtype), normal(600, 1, 2, 2, seed=2).to(dtype)
    distance, index = nearest(x, data)
    every = (x[:, None] - data).flatten(2).norm(dim=2)
    assert distance.dtype == dtype and torch.equal(index, every.argmin(1))
    torch.testing.assert_close(distance, every.min(1).values, rtol=1e-4, atol=1e-5)
    one, where = nearest(x[5:6], data)
    torch.testing.assert_close(one, distance[5:6])
    assert torch.equal(where, index[5:6])


# --- levels

@pytest.mark.parametrize("given", [[3.0, 1.0], (3, 1), torch.tensor([3.0, 1.0]), np.array([3.0, 1.0])],
                         ids=lambda x: type(x).__name__)
def test_levels_in_any_form(given: Sequence[float]):
    assert check_levels(given).tolist() == [3.0, 1.0] and check_levels(given).dtype == f64
    assert best_step(given, 2) == best_step([3.0, 1.0], 2)
    torch.testing.assert_close(ladder_loss(bell, X, given, 0), ladder_loss(bell, X, [3.0, 1.0], 0))
    torch.testing.assert_close(sample(bell, X, given, 2, 0), sample(bell, X, [3.0, 1.0], 2, 0))


LISTS = {
    "rising": ([1.0, 2.0], ValueError, "^sigmas must be positive .* fall"),
    "twice the same": ([2.0, 2.0], ValueError, "^sigmas must be positive .* fall"),
    "down to zero": ([1.0, 0.0], ValueError, "^sigmas must be positive"),
    "below zero": ([1.0, -1.0], ValueError, "^sigmas must be positive"),
    "one level": ([1.0], ValueError, "^sigmas must hold 2 levels or more"),
    "a number": (2.0, ValueError, "^sigmas must be positive"),
    "empty": ([], ValueError, "^sigmas must not be empty"),
    "a table": ([[2.0, 1.0]], ValueError, "^sigmas must be positive"),
    "words": (["a", "b"], TypeError, "^sigmas must be numbers, got list"),
    "nothing": (None, TypeError, "^sigmas must be numbers, got NoneType"),
    "NaN": ([math.nan, 1.0], ValueError, "^sigmas must be finite"),
    "infinity": ([math.inf, 1.0], ValueError, "^sigmas must be finite"),
}
TAKERS = {"best_step": lambda s: best_step(s, 2), "ladder_step": ladder_step,
          "ladder_loss": lambda s: ladder_loss(bell, X, s), "sample": lambda s: sample(bell, X, s)}


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("name", LISTS)
def test_bad_levels_are_one_clear_error(name, taker):
    levels, kind, message = LISTS[name]
    with pytest.raises(kind, match=message): TAKERS[taker](levels)


BAD = {
    "no network": (lambda: ScoreNetwork(3), TypeError, "^network must be a function, got int"),
    "a class": (lambda: ScoreNetwork(UNet), TypeError, "^network must be a function"),
    "level zero": (lambda: ScoreNetwork(eps)(X, 0.0), ValueError, "^sigma must be positive, got 0"),
    "level below": (lambda: ScoreNetwork(eps)(X, torch.tensor(-1.0)), ValueError, "^sigma must be pos"),
    "three levels": (lambda: ScoreNetwork(eps)(X, torch.ones(3)), ValueError, r"have shape \[4\]"),
    "other shape": (lambda: ScoreNetwork(lambda x, t: x[:, :1])(X, 1.0), ValueError,
                    r"^network must return shape \[4, 2\]"),
    "score of another shape": (lambda: ladder_loss(lambda x, s: x[:2], X, STAIRS), ValueError,
                               r"^score must return shape \[4, 2\]"),
    "walk of another shape": (lambda: sample(lambda x, s: x[..., :1], X, STAIRS), ValueError,
                              r"^score must return shape \[4, 2\]"),
    "score NaN": (lambda: sample(lambda x, s: x * math.nan, X, STAIRS), ValueError,
                  "^score returned NaN or infinity in call 1"),
    "loss NaN": (lambda: ladder_loss(lambda x, s: x * math.nan, X, STAIRS), ValueError,
                 "^score returned NaN"),
    "no score": (lambda: sample(None, X, STAIRS), TypeError, "^score must be callable"),
    "no score to learn": (lambda: ladder_loss(3, X, STAIRS), TypeError, "^score must be callable"),
    "whole numbers": (lambda: sample(bell, torch.ones(2, 2).long(), STAIRS), TypeError, "^x must"),
    "x NaN": (lambda: sample(bell, X * math.nan, STAIRS), ValueError, "^x must be finite"),
    "data NaN": (lambda: ladder_loss(bell, X * math.nan, STAIRS), ValueError, "^x0 must be finite"),
    "one number": (lambda: ladder_loss(bell, X[:, 0], STAIRS), ValueError, r"^x0 must have shape \[B"),
    "no steps": (lambda: sample(bell, X, STAIRS, 0), ValueError, "^steps must be at least 1"),
    "steps of a half": (lambda: best_step(STAIRS, 0.5), TypeError, "^steps must be an int"),
    "a walk that diverges": (lambda: sample(lambda x, s: 1e30 * x, X.float(), STAIRS),
                             (ValueError, FloatingPointError), "finite|infinity"),
    "one datum": (lambda: largest_distance(X[:1]), ValueError, "^x must hold two data or more, got 1"),
    "no rows": (lambda: largest_distance(X[0]), ValueError, r"^x must have shape \[B"),
    "data at infinity": (lambda: largest_distance(X / 0), ValueError, "^x must be finite"),
    "ratio below one": (lambda: overlap(0.5, 64), ValueError, "^ratio must be at least 1, got 0.5"),
    "ratio NaN": (lambda: overlap(math.nan, 64), ValueError, "^ratio must be finite"),
    "no dimensions": (lambda: overlap(1.5, 0), ValueError, "^dims must be at least 1"),
    "flat": (lambda: ladder(1.0, 0.1, 4), ValueError, "^dims must be at least 5"),
    "upside down": (lambda: ladder(0.1, 1.0, 64), ValueError, "^first must be .* above 1.0"),
    "down to nothing": (lambda: ladder(1.0, 0.0, 64), ValueError, "^last must be .* above 0"),
    "no share": (lambda: ladder(1.0, 0.1, 64, 0.0), ValueError, "^share must be .* above 0"),
    "the whole": (lambda: ladder(1.0, 0.1, 64, 1.0), ValueError, "^share must be .* at most 0.99"),
    "no schedule": (lambda: eps_of_score(bell, 3), TypeError, "^schedule"),
    "no schedule back": (lambda: score_of_eps(eps, None), TypeError, "^schedule"),
    "no function": (lambda: eps_of_score(None, LinearBeta()), TypeError, "^score must be a function"),
    "no predictor": (lambda: score_of_eps(2, LinearBeta()), TypeError, "^predict must be a function"),
    "eps of another shape": (lambda: eps_of_score(lambda x, s: x[:1], LinearBeta())(X, 0.5), ValueError,
                             r"^score must return shape \[4, 2\]"),
    "score from another shape": (lambda: score_of_eps(lambda x, t: x[:1], LinearBeta())(X, 0.5),
                                 ValueError, r"^predict must return shape \[4, 2\]"),
    "beyond the schedule": (lambda: score_of_eps(eps, Geometric(0.1, 2.0))(X, 5.0), ValueError, "^rho"),
    "unlike images": (lambda: nearest(X, normal(3, 5)), ValueError, r"^data must have shape \[3, 2\]"),
    "unlike dtypes": (lambda: nearest(X, X.float()), TypeError, "^data must be"),
    "no data": (lambda: nearest(X, X[:0]), ValueError, "^data must not be empty"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_error(name):
    run, kind, message = BAD[name]
    with pytest.raises(kind, match=message): run()


def test_a_gradient_that_would_be_lost_is_refused():
    with pytest.raises(ValueError, match="^sample builds no graph"):
        sample(bell, X.clone().requires_grad_(), STAIRS)
    with pytest.raises(ValueError, match="^largest_distance builds no graph"):
        largest_distance(X.clone().requires_grad_())


# --- what is stored

STORED = ROOT / "benchmarks/results/ncsn.json"


def test_the_stored_ladders_are_those_of_the_rules():
    found = json.loads(STORED.read_text("utf8"))
    digits, big = found["digits"], found["mnist"]
    sigmas = torch.tensor(digits["sigmas"], dtype=f64)
    assert torch.allclose(sigmas, ladder(digits["sigmas"][0], 0.05, 64))
    stairs = ladder(big["first"], 0.01, 784)
    assert big["levels"] == len(stairs) and abs(big["step"] - best_step(stairs, 5)) < 1e-12
    assert all(len(rows) == 3 for name, rows in digits["rows"].items() if name != "test images")
    assert all(a > b for a, b in pairwise(digits["sigmas"]))
