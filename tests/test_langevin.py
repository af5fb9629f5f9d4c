"""Langevin steps: streams, laws, levels, what is refused, and chains that leave the numbers."""
from itertools import islice
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from machines import machine, normal, seeded
from rbmdiff.foundations.core import Estimate
from rbmdiff.models.energy import score as slope_of
from rbmdiff.sampling.langevin import (
    adjusted_chain,
    annealed,
    barker,
    first_order_bias,
    geometric_levels,
    leimkuhler_matthews,
    level_variance,
    mala,
    ula,
)

f32, f64 = torch.float32, torch.float64
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[cuda, pytest.mark.cuda])]
K = torch.tensor([[2.0, -1.0], [-1.0, 3.0]], dtype=f64)


def down(x): return -x


def bell(x): return -x.square().sum(-1) / 2


def tilted(x): return -(x @ K.to(x) * x).sum(-1) / 2


def tilted_score(x): return -x @ K.to(x)


RUNS = {
    "ula": lambda x, g=None, score=down, **o: ula(score, x, 0.3, 4, g, **o),
    "leimkuhler_matthews": lambda x, g=None, score=down: leimkuhler_matthews(score, x, 0.3, 4, g),
    "annealed": lambda x, g=None, score=down: annealed(
        lambda x, sigma: score(x), x, [2.0, 1.0], 2, 0.3, g),
    "mala": lambda x, g=None, score=None, log_prob=bell, **o: mala(
        log_prob, x, 0.9, 4, g, score=score, **o),
    "barker": lambda x, g=None, score=None, log_prob=bell, **o: barker(
        log_prob, x, 0.9, 4, g, score=score, **o),
    "adjusted_chain": lambda x, g=None, score=None, log_prob=bell, **o: [*islice(
        adjusted_chain(log_prob, x, 0.9, g, score=score, **o), 4)][-1][0],
}
PLAIN = "ula", "leimkuhler_matthews", "annealed"
TESTED = "mala", "barker", "adjusted_chain"


# --- shapes, dtypes, devices, streams

@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("shape", [(2,), (5, 2), (3, 1, 2), (2, 3, 2, 4)])
@pytest.mark.parametrize("name", RUNS)
def test_any_batch_shape_and_dtype(name, shape, dtype, device):
    x = normal(*shape).to(device, dtype)
    before = x.clone()
    y = RUNS[name](x, 3)
    assert y.shape == x.shape and y.dtype == dtype and y.device == x.device and y.isfinite().all()
    assert torch.equal(x, before) and not torch.equal(x, y)
    assert torch.equal(y, RUNS[name](x, 3)) and not torch.equal(y, RUNS[name](x, 4))


@pytest.mark.parametrize("name", RUNS)
def test_no_device_tells_the_shape(name):
    y = RUNS[name](torch.empty(3, 2, device="meta"))
    assert y.shape == (3, 2) and y.is_meta


@pytest.mark.parametrize("name", PLAIN)
def test_states_may_be_single_numbers_and_images(name):
    assert RUNS[name](torch.tensor(0.5), 1).shape == ()
    assert RUNS[name](torch.zeros(2, 1, 4, 4), [1, 2]).shape == (2, 1, 4, 4)


@pytest.mark.parametrize("name", RUNS)
def test_a_row_is_what_it_would_be_alone(name):
    x = normal(4, 2)
    whole = RUNS[name](x, range(4))
    for b in range(4): assert torch.equal(RUNS[name](x[b:b + 1], [b]), whole[b:b + 1])


@pytest.mark.parametrize("name", [*TESTED, "ula"])
def test_a_chain_goes_on_where_it_was(name):
    g, h = seeded(), seeded()
    x = normal(6, 2)
    twice = RUNS[name](RUNS[name](x, g), g)
    chain = {"ula": lambda: ula(down, x, 0.3, 8, h), "mala": lambda: mala(bell, x, 0.9, 8, h),
             "barker": lambda: barker(bell, x, 0.9, 8, h),
             "adjusted_chain": lambda: [*islice(adjusted_chain(bell, x, 0.9, h), 8)][-1][0]}
    torch.testing.assert_close(twice, chain[name](), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind, run", [("mala", mala), ("barker", barker)])
def test_the_chain_visits_what_the_function_returns(kind, run):
    x = normal(6, 2)
    states = [*islice(adjusted_chain(tilted, x, 0.4, 5, proposal=kind, M=K.inverse()), 6)]
    assert torch.equal(states[-1][0], run(tilted, x, 0.4, 6, 5, M=K.inverse()))
    last = x
    for y, a in states:
        moved = (y != last).any(-1)
        assert a.shape == (6,) and bool(((a >= 0) & (a <= 1)).all()) and bool((a[moved] > 0).all())
        last = y


# --- laws

def means(x, truth, most=0.05):
    """The mean of x [n] is `truth` within four errors, which are small."""
    e = Estimate.of(x)
    assert abs(e.z(truth)) < 4 and e.stderr < most, (e, truth)


def test_steps_of_one_call_each_have_the_noise_of_ula():
    """One step of the second-order method is a step of `ula`; k steps have k times its noise."""
    x, flat = torch.zeros(40000, 1, dtype=f64), lambda x: 0 * x
    for steps in (1, 2, 5):
        y = leimkuhler_matthews(flat, x, 0.3, steps, steps)
        means(y[:, 0].square(), 0.6 * steps, 0.03 * steps)


@pytest.mark.parametrize("step, run, truth", [
    (0.5, ula, 1 / 0.75), (0.5, leimkuhler_matthews, 1.0), (1.2, leimkuhler_matthews, 1.0)])
def test_variances_of_a_normal_law(step, run, truth):
    x = run(down, normal(40000, 1), step, 60, 1)
    means(x[:, 0].square(), truth)
    means(x[:, 0], 0.0)


@pytest.mark.parametrize("M", [None, K.inverse()], ids=["plain", "turned"])
@pytest.mark.parametrize("score", [None, tilted_score, lambda x: -x - 0.5], ids=["auto", "own", "wrong"])
@pytest.mark.parametrize("run", [mala, barker])
def test_tested_steps_are_exact_for_any_drift(run, score, M):
    root = torch.linalg.cholesky(K.inverse())
    x = normal(20000, 2) @ root.T
    y = run(tilted, x, 0.3, 12, 2, score=score, M=M)
    S = K.inverse()
    for i, j in ((0, 0), (0, 1), (1, 1)): means(y[:, i] * y[:, j], S[i, j].item())
    assert (x != y).any(1).double().mean() > 0.9


def test_calls_for_one_step_each_lose_the_memory():
    x, g = normal(40000, 1), seeded(2)
    for _ in range(60): x = leimkuhler_matthews(down, x, 0.5, 1, g)
    means(x[:, 0].square(), 4 / 3)


def test_units_that_fit_allow_longer_steps():
    wide = torch.tensor([1.0, 1e-4], dtype=f64)
    valley = lambda x: -(x.square() / wide).sum(-1) / 2
    x, moves = wide.sqrt() * normal(2000, 2), []
    for step, M in ((5.6e-5, None), (0.56, wide.diag())):
        (y, a), = islice(adjusted_chain(valley, x, step, 1, M=M), 1)
        moves.append((y - x)[:, 0].square().mean())
        assert 0.85 < a.mean() < 0.95
    assert moves[1] > 5e3 * moves[0]


def test_ula_in_other_units_has_the_law_of_those_units():
    M = K.inverse()
    y = ula(tilted_score, normal(40000, 2), 0.5, 60, 3, M=M)
    for i, j in ((0, 0), (0, 1), (1, 1)): means(y[:, i] * y[:, j], M[i, j].item() / 0.75)


def test_a_score_by_autograd_and_a_machine():
    rbm = machine(3, 2, "gaussian", scale=0.4)
    v = rbm.sample(3000, generator=0)
    log_prob = lambda x: -rbm.free_energy(x)
    y = mala(log_prob, v, 0.1, 20, 1)
    z = mala(log_prob, v, 0.1, 20, 1, score=rbm.score)
    torch.testing.assert_close(y, z, rtol=1e-9, atol=1e-9)
    means(log_prob(y) - log_prob(rbm.sample(3000, generator=1)), 0.0)
    torch.testing.assert_close(ula(lambda x: slope_of(rbm.free_energy, x), v, 0.1, 5, 2),
                               ula(rbm.score, v, 0.1, 5, 2))


@pytest.mark.parametrize("step", [0.1, 0.5])
def test_mala_on_a_normal_law_accepts_what_is_known(step):
    x = normal(2000, 3)
    y, a = next(adjusted_chain(bell, x, step, 3))
    z = torch.randn(2000, 3, dtype=f64, generator=seeded(3))
    w = (1 - step) * x + math.sqrt(2 * step) * z
    known = torch.exp(-step / 4 * (w.square() - x.square()).sum(-1)).clamp(max=1)
    torch.testing.assert_close(a, known, rtol=1e-12, atol=1e-12)
    moved = (y != x).any(-1)
    assert torch.equal(y[moved], y[moved]) and torch.allclose(y[moved], w[moved], atol=1e-13)


def test_the_error_to_first_order_of_linear_and_curved_scores():
    x = normal(5, 2)
    known = (-2 * K.trace() + (x @ K).square().sum(-1)) / 4
    torch.testing.assert_close(first_order_bias(tilted_score, x), known)
    torch.testing.assert_close(first_order_bias(tilted_score, x[0]), known[0])
    cubic = lambda x: -x.pow(3) + 0.5 * x.flip(-1)
    known = (-6 * x.square().sum(-1) + cubic(x).square().sum(-1)) / 4
    torch.testing.assert_close(first_order_bias(cubic, x), known)
    z = x.clone().requires_grad_()
    slope, = torch.autograd.grad(first_order_bias(cubic, z).sum(), z)
    h = 1e-6
    for i in range(2):
        e = h * torch.eye(2, dtype=f64)[i]
        rate = (first_order_bias(cubic, x + e) - first_order_bias(cubic, x - e)) / (2 * h)
        torch.testing.assert_close(slope[:, i], rate, rtol=1e-6, atol=1e-6)


# --- levels

def test_levels_are_geometric():
    s = geometric_levels(50, 0.01, 232)
    assert s.dtype == f64 and s[0] == pytest.approx(50) and s[-1] == pytest.approx(0.01)
    torch.testing.assert_close(s[1:] / s[:-1], torch.full((231,), (0.01 / 50) ** (1 / 231), dtype=f64))


@pytest.mark.parametrize("sigmas", [[3.0, 1.0], (3, 1), torch.tensor([3.0, 1.0]), np.array([3.0, 1.0])],
                         ids=["list", "whole", "float32", "numpy"])
def test_levels_in_any_form(sigmas):
    seen = []
    def score(x, sigma):
        seen.append(sigma)
        return -x / sigma**2
    y = annealed(score, normal(4, 2), sigmas, 3, 0.2, 1, denoise=True)
    assert [s.item() for s in seen] == [3.0] * 3 + [1.0] * 4
    assert all(s.ndim == 0 and s.dtype == f64 for s in seen)
    annealed(score, normal(4, 2).float(), sigmas, 1, 0.2, 1)
    assert [s.dtype for s in seen[7:]] == [f32, f32]
    assert not y.any()                                            # the mean of a point at zero


def test_a_level_is_a_run_of_steps_in_its_units():
    x, score = normal(5, 2), lambda x, sigma: (1 - x) / (sigma**2 + 0.5)
    g = seeded(6)
    y = ula(lambda x: score(x, 0.5), ula(lambda x: score(x, 3.0), x, 1.8, 4, g), 0.05, 4, g)
    torch.testing.assert_close(annealed(score, x, [3.0, 0.5], 4, 0.2, 6), y, rtol=1e-12, atol=1e-12)


def test_denoising_takes_off_the_last_noise():
    x, score = normal(4, 2), lambda x, sigma: (1 - x) / (sigma**2 + 0.5)
    plain, clean = (annealed(score, x, [2.0, 0.5], 3, 0.1, 1, denoise=d) for d in (False, True))
    torch.testing.assert_close(clean, plain + 0.25 * score(plain, 0.5))


def test_a_level_at_its_limits():
    assert level_variance(2.0, 1.0, 1) == pytest.approx(2.0)
    assert level_variance(0.0, 0.1, 10**6) == pytest.approx(1 / 0.95)
    assert level_variance(7.0, 1e-12, 1) == pytest.approx(49.0)
    assert level_variance(3.0, 0.25, 2) == pytest.approx(((9 * 0.75**2 + 0.5) * 0.75**2) + 0.5)


def test_noise_keeps_weights_which_a_temperature_moves():
    x = torch.linspace(-60, 60, 24001, dtype=f64)
    two = sum(0.5 * torch.exp(-((x - c) / s) ** 2 / 2) / s for c, s in ((-20, 1.0), (20, 0.5)))
    hot = two**0.25
    assert (hot[x < 0].sum() / hot.sum()).item() == pytest.approx(1 / (1 + 0.5**0.75), abs=1e-5)
    assert [1 / (1 + 0.5 ** (0.75 * D)) for D in (1, 20)] == pytest.approx([0.627115, 0.99997], abs=1e-6)


# --- what is refused

def test_steps_just_below_the_limit_are_taken():
    for run in (ula, leimkuhler_matthews): run(down, X, 1.99, 1, 1, smoothness=1.0)


X = normal(3, 2)
NAN = torch.tensor([[0.0, math.nan]])
WRONG = {
    "no score": (lambda: ula(3, X, 0.1, 1), TypeError, "^score must be a function, got int"),
    "no tensor": (lambda: ula(down, [1.0], 0.1, 1), TypeError, "^x must be a torch.Tensor, got list"),
    "whole numbers": (lambda: ula(down, X.long(), 0.1, 1), TypeError, "^x must be float32 or float64"),
    "half": (lambda: ula(down, X.half(), 0.1, 1), TypeError, "^x must be float32 or float64"),
    "NaN": (lambda: ula(down, NAN, 0.1, 1), ValueError, "^x must be finite"),
    "empty": (lambda: ula(down, X[:0], 0.1, 1), ValueError, "^x must not be empty"),
    "no step": (lambda: ula(down, X, 0.0, 1), ValueError, "^step must be finite and above 0, got 0"),
    "a step back": (lambda: ula(down, X, -0.1, 1), ValueError, "^step must be finite and above 0"),
    "an endless step": (lambda: ula(down, X, math.inf, 1), ValueError, "^step must be finite"),
    "a step in words": (lambda: ula(down, X, "0.1", 1), TypeError, "^step must be a number, got str"),
    "steps none": (lambda: ula(down, X, 0.1, 0), ValueError, "^steps must be at least 1, got 0"),
    "steps 1.5": (lambda: ula(down, X, 0.1, 1.5), TypeError, "^steps must be an int"),
    "too smooth": (lambda: ula(down, X, 0.2, 1, smoothness=10.0), ValueError,
                   "^step must be below 2 / smoothness = 0.2, got 0.2"),
    "smoothness 0": (lambda: ula(down, X, 0.2, 1, smoothness=0), ValueError, "^smoothness must be"),
    "too smooth 2": (lambda: leimkuhler_matthews(down, X, 3.0, 1, smoothness=1.0), ValueError,
                     r"^step must be below 2 / smoothness = 2"),
    "M a list": (lambda: ula(down, X, 0.1, 1, M=[1.0]), TypeError, "^M must be a torch.Tensor"),
    "M of 3": (lambda: ula(down, X, 0.1, 1, M=torch.eye(3, dtype=f64)), ValueError,
               r"^M must have shape \[2, 2\], got \[3, 3\]"),
    "M in single": (lambda: ula(down, X, 0.1, 1, M=torch.eye(2)), TypeError, "^M must be torch.float64"),
    "M skew": (lambda: ula(down, X, 0.1, 1, M=torch.tensor([[1.0, 0.5], [0.0, 1.0]], dtype=f64)),
               ValueError, "^M must be symmetric and positive definite"),
    "M negative": (lambda: mala(bell, X, 0.1, 1, M=-torch.eye(2, dtype=f64)), ValueError,
                   "^M must be symmetric and positive definite"),
    "M of a number": (lambda: ula(down, X[0, 0], 0.1, 1, M=torch.eye(2, dtype=f64)), ValueError,
                      r"^M must have shape \[D, D\]"),
    "no log_prob": (lambda: mala(None, X, 0.1, 1), TypeError, "^log_prob must be a function"),
    "a bad score": (lambda: mala(bell, X, 0.1, 1, score=3), TypeError, "^score must be a function"),
    "one number": (lambda: mala(bell, X[0, 0], 0.1, 1), ValueError, r"^x must have shape \[..., D\]"),
    "mala step": (lambda: mala(bell, X, 0.0, 1), ValueError, "^step must be finite and above 0"),
    "mala steps": (lambda: mala(bell, X, 0.1, -1), ValueError, "^steps must be at least 1"),
    "barker steps": (lambda: barker(bell, X, 0.1, 0), ValueError, "^steps must be at least 1"),
    "proposal": (lambda: adjusted_chain(bell, X, 0.1, proposal="hmc"), ValueError,
                 "^proposal must be one of 'mala', 'barker', got 'hmc'"),
    "no slope": (lambda: mala(lambda x: bell(x).detach(), X, 0.1, 1), ValueError,
                 "^log_prob must depend on x through differentiable"),
    "another slope": (lambda: mala(lambda x: (K[0, 0] * torch.ones(3, requires_grad=True)), X, 0.1, 1),
                      ValueError, "^log_prob must depend on x through differentiable"),
    "a number as density": (lambda: mala(lambda x: 1.0, X, 0.1, 1), TypeError, "^log_prob must return"),
    "densities [3, 2]": (lambda: mala(lambda x: -x.square(), X, 0.1, 1), ValueError,
                         r"^log_prob must return shape \[3\] on cpu for x of \[3, 2\], got \[3, 2\]"),
    "impossible": (lambda: mala(lambda x: bell(x) - math.inf, X, 0.1, 1), ValueError,
                   r"^log_prob\(x\) must be finite"),
    "chain at once": (lambda: adjusted_chain(lambda x: bell(x) * math.nan, X, 0.1), ValueError,
                      r"^log_prob\(x\) must be finite"),
    "rising": (lambda: annealed(down, X, [1.0, 2.0], 1), ValueError, "^sigmas must be positive .* fall"),
    "twice": (lambda: annealed(down, X, [2.0, 2.0], 1), ValueError, "^sigmas must be positive .* fall"),
    "down to zero": (lambda: annealed(down, X, [1.0, 0.0], 1), ValueError, "^sigmas must be positive"),
    "no levels": (lambda: annealed(down, X, [], 1), ValueError, "^sigmas must not be empty"),
    "a table": (lambda: annealed(down, X, [[2.0, 1.0]], 1), ValueError, "^sigmas must be positive"),
    "one level": (lambda: annealed(down, X, 2.0, 1), ValueError, "^sigmas must be positive"),
    "words": (lambda: annealed(down, X, ["a"], 1), TypeError, "^sigmas must be numbers, got list"),
    "nothing": (lambda: annealed(down, X, None, 1), TypeError, "^sigmas must be numbers, got NoneType"),
    "NaN level": (lambda: annealed(down, X, [math.nan, 1.0], 1), ValueError, "^sigmas must be finite"),
    "levels without numbers": (lambda: annealed(down, X, torch.ones(2, device="meta"), 1), TypeError,
                               "^sigmas must be numbers, got Tensor"),
    "relative step": (lambda: annealed(down, X, [2.0, 1.0], 1, 2.0), ValueError,
                      "^step must be finite and above 0 and below 2"),
    "levels rise": (lambda: geometric_levels(1.0, 2.0, 3), ValueError, "^first must be .* above 2.0"),
    "one geometric": (lambda: geometric_levels(2.0, 1.0, 1), ValueError, "^n must be at least 2"),
    "down to nothing": (lambda: geometric_levels(2.0, 0.0, 3), ValueError, "^last must be"),
    "ratio": (lambda: level_variance(-1.0, 0.1, 1), ValueError, "^ratio must be"),
    "level step": (lambda: level_variance(1.0, 2.0, 1), ValueError, "^step must be .* below 2"),
    "level steps": (lambda: level_variance(1.0, 0.1, 0), ValueError, "^steps must be at least 1"),
    "bias of a number": (lambda: first_order_bias(down, X[0, 0]), ValueError, r"^x must have shape"),
    "bias of NaN": (lambda: first_order_bias(lambda x: x * math.nan, X), ValueError,
                    "^score must be finite at x"),
    "bias of sums": (lambda: first_order_bias(bell, X), ValueError, "^score must return shape"),
}


@pytest.mark.parametrize("call, kind, message", WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_named(call, kind, message):
    with pytest.raises(kind, match=message): call()


ANSWERS = {
    "None": lambda x: None, "a number": lambda x: 1.0, "a tuple": lambda x: (x,),
    "an array": lambda x: x.detach().numpy(), "an object": lambda x: SimpleNamespace(mean=x),
    "int64": lambda x: x.long(), "bool": lambda x: x > 0, "complex": lambda x: x + 0j,
    "sparse": lambda x: x.to_sparse(), "[B, 1]": lambda x: x[:, :1], "[B]": lambda x: x.sum(-1),
    "[B - 1, D]": lambda x: x[1:], "[B, D, 1]": lambda x: x[..., None],
    "another device": lambda x: x.to("meta"),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize("name", RUNS)
def test_bad_scores_are_refused(name, answer):
    with pytest.raises((TypeError, ValueError), match="^score must return "): RUNS[name](X, 1, answer)


@pytest.mark.parametrize("name", RUNS)
def test_scores_of_another_precision_are_cast(name):
    x = X.float()
    for dtype in (f64, torch.bfloat16):
        y = RUNS[name](x, 1, lambda x: down(x).to(dtype))
        assert y.dtype == f32 and torch.allclose(y, RUNS[name](x, 1, down), atol=0.1)


def test_a_log_density_in_double_keeps_small_differences():
    x = normal(500, 2).float()
    far = lambda x: bell(x.double()) - 1e8
    _, a = next(adjusted_chain(far, x, 0.3, 1))
    _, b = next(adjusted_chain(lambda x: bell(x.double()), x, 0.3, 1))
    assert a.dtype == f64 and (a - b).abs().max() < 1e-7
    assert mala(far, x, 0.3, 3, 1).dtype == f32
    with pytest.raises(TypeError, match=r"^log_prob\(x\) must be float32 or float64"):
        mala(lambda x: bell(x).half(), x, 0.3, 1)


@pytest.mark.parametrize("name", RUNS)
def test_what_is_handed_out_is_a_copy(name):
    def greedy(x):
        answer = down(x)
        x.mul_(100)
        return answer
    assert torch.equal(RUNS[name](X, 1, greedy), RUNS[name](X, 1, down))


@pytest.mark.parametrize("name", RUNS)
def test_a_reused_answer_changes_nothing(name):
    buffer = torch.empty(3, 2, dtype=f64)
    assert torch.equal(RUNS[name](X, 1, lambda x: buffer.copy_(down(x))), RUNS[name](X, 1, down))


def test_a_reused_density_changes_nothing():
    buffer = torch.empty(3, dtype=f64)
    filled = lambda x: buffer.copy_(bell(x.detach()))
    assert torch.equal(mala(filled, X, 0.9, 9, 1, score=down), mala(bell, X, 0.9, 9, 1, score=down))


# --- chains that leave the numbers

def steep(x): return -x.pow(3)


@pytest.mark.parametrize("dtype", [f32, f64])
def test_a_chain_that_diverges_says_where(dtype):
    x = torch.full((4, 1), 10.0, dtype=dtype)
    found = r"^x is not finite after step (\d+) of 50: take a smaller step, or mala"
    with pytest.raises(FloatingPointError, match=found) as error: ula(steep, x, 0.1, 50, 1)
    first = int(str(error.value).split("step ")[1].split()[0])
    assert ula(steep, x, 0.1, first - 1, 1).isfinite().all()
    with pytest.raises(FloatingPointError, match=f"after step {first} of {first}:"):
        ula(steep, x, 0.1, first, 1)
    with pytest.raises(FloatingPointError, match=r"after step \d+ of 50:"):
        leimkuhler_matthews(steep, x, 0.1, 50, 1)
    with pytest.raises(FloatingPointError, match=r"after step \d+ of 100: 50 at each level"):
        annealed(lambda x, sigma: steep(x), x, [2.0, 1.0], 50, 0.1, 1)
    assert mala(lambda x: -x.pow(4).sum(-1) / 4, x, 0.1, 50, 1).equal(x)   # refused, and honest


def test_numbers_too_large_to_square():
    with pytest.raises(FloatingPointError, match="after step 1 of 4: 2 at each level"):
        annealed(lambda x, sigma: -x / sigma**2, X, [1e200, 1.0], 2, 0.1, 1)
    assert level_variance(1e200, 0.1, 1) == math.inf


def test_one_bad_answer_ends_the_run():
    calls = []
    def score(x):
        calls.append(x)
        return -x * (math.nan if len(calls) == 5 else 1.0)
    with pytest.raises(FloatingPointError, match="after step 5 of 9:"): ula(score, X, 0.1, 9, 1)
    assert len(calls) == 5                                        # on the CPU at once


@cuda
@pytest.mark.cuda
def test_elsewhere_the_run_ends_first():
    calls = []
    def score(x):
        calls.append(x)
        return -x * (math.nan if len(calls) == 5 else 1.0)
    with pytest.raises(FloatingPointError, match="after step 5 of 9:"): ula(score, X.cuda(), 0.1, 9, 1)
    assert len(calls) == 9


def wall(x):
    """A half-normal law: nobody is below zero."""
    return torch.where((x >= 0).all(-1), bell(x), -math.inf)


@pytest.mark.parametrize("run", [mala, barker])
def test_where_nobody_can_be_nobody_goes(run):
    x = run(wall, normal(20000, 1).abs(), 0.5, 10, 2)
    assert (x >= 0).all()
    means(x[:, 0].square(), 1.0)
    means(x[:, 0], math.sqrt(2 / math.pi))
    root = lambda x: torch.where((x > 0).all(-1), x.clamp(min=0).sqrt().sum(-1) - x.sum(-1), -math.inf)
    assert run(root, torch.ones(50, 1, dtype=f64), 0.5, 30, 1).isfinite().all()  # its slope there is NaN


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", TESTED)
def test_a_density_that_is_no_number_ends_the_run(name, bad):
    def log_prob(x): return torch.where(x[..., 0] > 1.5, bad, bell(x))
    x = torch.full((400, 2), 1.4, dtype=f64)
    found = r"^x is not finite after step \d+.*log_prob or its slope"
    with pytest.raises(FloatingPointError, match=found):
        RUNS[name](x, 1, log_prob=log_prob)
    with pytest.raises(FloatingPointError, match="after step 1"):
        next(adjusted_chain(log_prob, x, 0.9, 1))


def test_a_slope_that_is_no_number_ends_the_run():
    score = lambda x: torch.where(x > 1.5, math.nan, -x)
    with pytest.raises(FloatingPointError, match="log_prob or its slope"):
        RUNS["mala"](torch.full((400, 2), 1.4, dtype=f64), 1, score)


@pytest.mark.parametrize("x", [1e4, 40.0, 0.0, -1e4])
@pytest.mark.parametrize("dtype", [f32, f64])
def test_steep_and_far_starts(dtype, x):
    quartic = lambda x: -x.pow(4).sum(-1) / 4
    start = torch.full((50, 2), x, dtype=dtype)
    for run in (mala, barker):
        y = run(quartic, start, 0.01, 20, 1)
        assert y.isfinite().all() and y.dtype == dtype
    if abs(x) > 1: assert (barker(quartic, start, 0.01, 20, 1).abs() < abs(x)).all()


# --- gradients and modules

def test_lost_gradients_are_named():
    z = X.clone().requires_grad_()
    for name in RUNS:
        with pytest.raises(ValueError, match="wants a gradient, which would be lost"): RUNS[name](z, 1)
        with pytest.raises(ValueError, match="wants a gradient, which would be lost"):
            torch.func.grad(lambda p: RUNS[name](X, 1, lambda x: -p * x).sum())(K[0, 0])
    with pytest.raises(ValueError, match="wants a gradient, which would be lost"):
        torch.func.grad(lambda p: mala(lambda x: p * bell(x), X, 0.1, 2, 1).sum())(torch.tensor(1.0))
    layer = torch.nn.Linear(2, 2, dtype=f64)
    for name in RUNS: assert not RUNS[name](X, 1, layer).requires_grad
    energy = lambda x: -layer(x).square().sum(-1)
    assert not mala(energy, X, 0.1, 2, 1).requires_grad and layer.weight.grad is None


def test_inside_inference_mode_and_autocast():
    want = {name: RUNS[name](X, 1) for name in RUNS}
    with torch.no_grad(): got = {name: RUNS[name](X, 1) for name in RUNS}
    assert all(torch.equal(got[name], want[name]) for name in RUNS)
    with torch.inference_mode():
        for name in PLAIN: assert torch.equal(RUNS[name](X, 1), want[name])
    M, x = K.inverse().float(), X.float()
    want = ula(down, x, 0.1, 3, 1, M=M), mala(bell, x, 0.1, 3, 1, M=M)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ula(down, x, 0.1, 3, 1, M=M), want[0])
        assert torch.equal(mala(bell, x, 0.1, 3, 1, M=M), want[1])
