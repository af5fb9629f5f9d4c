"""DEIS: coefficients against other people's numbers and other integrals, invariants, the buffer, orders,
bad input.
"""
from copy import deepcopy
from functools import partial
from itertools import pairwise, product
import json
import math
from pathlib import Path
import pickle
from types import SimpleNamespace
from typing import get_args

from hypothesis import given, settings, strategies as st
import pytest
from scipy.integrate import quad
import torch

from rbmdiff.diffusion.deis import (
    Extrapolate,
    History,
    Method,
    Variable,
    check_order,
    deis,
    deis_coefficients,
    lagrange,
    rho_rk,
    window,
)
from rbmdiff.diffusion.networks import MLP, Preconditioned, as_eps
from rbmdiff.diffusion.objective import native
from rbmdiff.diffusion.oracle import Mixture, gaussian, gaussian_flow
from rbmdiff.diffusion.schedule import (
    Betas,
    Cosine,
    FlowMatching,
    Geometric,
    LinearBeta,
    LogSNR,
    SinusoidalBeta,
    SubVP,
    time_grid,
)
from rbmdiff.diffusion.solvers import ancestral, ddim, heun

CHECK = Path(__file__).parents[2] / "shared/data/deis_check.json"
needs_check = pytest.mark.skipif(not CHECK.is_file(), reason=f"the check numbers are not in {CHECK}")
F64 = torch.float64
VARIABLES, EXTRAPOLATE = get_args(Variable), get_args(Extrapolate)
SCHEDULES = [LinearBeta(), SinusoidalBeta(), Cosine(-10, 10), Geometric(), SubVP(),
             LogSNR(lambda t: 6 - 12 * t, "sub-vp")]
name = lambda f: getattr(f, "__name__", type(f).__name__)
three = Mixture(torch.tensor([0.3, 0.5, 0.2], dtype=F64),
                torch.tensor([[-2.0, 0.0], [1.0, 1.5], [1.5, -1.5]], dtype=F64),
                torch.eye(2, dtype=F64).expand(3, 2, 2) * 0.1)
linear = LinearBeta()
predict = three.predictor(linear)
GRID = time_grid(linear, 6)
TAB = dict(variable="t", extrapolate="eps", correct=False)


def noise(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


# --- coefficients

@needs_check
@pytest.mark.parametrize("variable, key", [("t", "tab"), ("rho", "rhoab"), ("log_rho", "logrhoab")])
@pytest.mark.parametrize("order", range(4))
def test_all_published_numbers(variable, key, order):
    data = json.loads(CHECK.read_text())["t2"]
    numbers = lambda rows: torch.tensor([[float(c) for c in row] for row in rows], dtype=F64)
    grid = time_grid(linear, 10, kind="quadratic")
    Psi, C = deis_coefficients(linear, grid, order, variable)
    wanted = numbers(data[f"{key}{order}"])
    # the file gives these for x / alpha
    if variable != "t": wanted = wanted * linear.alpha(grid)[1:, None]
    torch.testing.assert_close(grid, numbers([data["ts"]])[0], rtol=0, atol=1e-14)
    torch.testing.assert_close(Psi, numbers([data["psi"]])[0], rtol=1e-13, atol=0)
    torch.testing.assert_close(C, wanted, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(C.sum(1), numbers([data["ddim"]])[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
@pytest.mark.parametrize("variable, extrapolate", list(product(VARIABLES, EXTRAPOLATE)))
def test_coefficients_are_integrals_over_time(schedule, variable, extrapolate):
    """Adaptive quadrature in t with the slope of the log-SNR: no inverse, no substitution."""
    grid = time_grid(schedule, 5, 1e-2)
    Psi, C = deis_coefficients(schedule, grid, 2, variable, extrapolate)
    scale = {"eps": schedule.alpha, "x0": schedule.sigma,
             "v": lambda t: torch.hypot(schedule.alpha(t), schedule.sigma(t))}[extrapolate]
    place = {"t": float, "rho": lambda t: float(schedule.rho(t)),
             "log_rho": lambda t: -float(schedule.log_snr(t)) / 2,
             "angle": lambda t: math.atan(float(schedule.rho(t)))}[variable]
    torch.testing.assert_close(Psi, scale(grid)[1:] / scale(grid)[:-1], rtol=1e-14, atol=0)
    i, past = 3, [place(grid[3 - j]) for j in range(3)]
    for j in range(3):
        def slope(t):
            rho, u = float(schedule.rho(t)), place(t)
            measure = {"eps": rho, "x0": -1 / rho, "v": rho / (1 + rho**2)}[extrapolate]
            basis = math.prod((u - b) / (past[j] - b) for k, b in enumerate(past) if k != j)
            return -0.5 * float(schedule.log_snr_slope(t)) * measure * basis
        area = quad(slope, float(grid[i]), float(grid[i + 1]), epsabs=1e-12, epsrel=1e-12)[0]
        wanted = float(scale(grid[i + 1])) * area
        assert C[i, j] == pytest.approx(wanted, rel=1e-9, abs=1e-11)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(1e-4, 1), min_size=6, max_size=12, unique=True), st.sampled_from(VARIABLES),
       st.sampled_from(SCHEDULES), st.integers(0, 4))
def test_any_grid(times, variable, schedule, order):
    times = sorted(times, reverse=True)
    if min(a - b for a, b in pairwise(times)) < 1e-4: return
    grid = torch.tensor(times, dtype=F64)
    Psi, C = deis_coefficients(schedule, grid, order, variable)
    assert C.shape == (len(grid) - 1, order + 1) and Psi.shape == (len(grid) - 1,)
    whole = schedule.alpha(grid)[1:] * schedule.rho(grid).diff()
    slack = 1e-12 * C.abs().sum(1) + 1e-14
    assert bool(((C.sum(1) - whole).abs() <= slack).all())
    later = torch.arange(order + 1) > torch.arange(len(grid) - 1)[:, None]
    # columns of predictions that do not exist
    assert not bool(C[later].any())


@pytest.mark.parametrize("extrapolate", EXTRAPOLATE)
def test_rows_depend_on_their_own_window_only(extrapolate):
    grid = time_grid(linear, 12)
    for correct, reach in ((False, 3), (True, 4)):
        C = deis_coefficients(linear, grid, 3, "t", extrapolate, correct)[1]
        part = deis_coefficients(linear, grid[2:], 3, "t", extrapolate, correct)[1]
        assert torch.equal(C[2 + reach:], part[reach:])
        assert not torch.equal(C[1 + reach], part[reach - 1])


@pytest.mark.parametrize("q", range(4))
def test_corrected_is_one_degree_more_on_equal_steps(q):
    schedule = Geometric()
    grid = schedule.t_of_rho(torch.linspace(40, 1, 12, dtype=F64))
    corrected = deis_coefficients(schedule, grid, q, "rho", correct=True)[1]
    plain = deis_coefficients(schedule, grid, q + 1, "rho")[1]
    torch.testing.assert_close(corrected[q + 2:], plain[q + 2:], rtol=0, atol=1e-12)


def test_adams_bashforth_weights():
    schedule = Geometric()
    grid = schedule.t_of_rho(torch.linspace(40, 1, 14, dtype=F64))
    C = deis_coefficients(schedule, grid, 3, "rho")[1] / -3.0
    torch.testing.assert_close(C[6], torch.tensor([55.0, -59.0, 37.0, -9.0], dtype=F64) / 24,
                               rtol=1e-11, atol=0)


# --- the solver

@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
@pytest.mark.parametrize("variable", VARIABLES)
def test_order_zero_is_ddim(schedule, variable):
    net, x = three.predictor(schedule), noise(5, 2) * schedule.sigma(1.0)
    # both freeze what DDIM freezes
    for extrapolate in ("eps", "x0"):
        ours = deis(net, schedule, x, time_grid(schedule, 7), 0, variable, extrapolate, False)
        torch.testing.assert_close(ours, ddim(net, schedule, x, time_grid(schedule, 7)), rtol=1e-11,
                                   atol=1e-12)


@pytest.mark.parametrize("denoise", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_states(denoise, dtype):
    grid, x = time_grid(linear, 6), noise(3, 2, dtype=dtype)
    net = lambda x, t: predict(x.double(), t.double()).to(x)
    states = list(deis.states(net, linear, x, grid, **TAB, denoise=denoise))
    assert [s.t for s in states] == grid.tolist() + [0.0] * denoise
    assert [s.nfe for s in states] == list(range(7 + denoise))
    assert torch.equal(states[-1].x, deis(net, linear, x, grid, **TAB, denoise=denoise))
    assert states[-1].x.dtype == dtype
    assert [s.history is None for s in states] == [False] * 7 + [True] * denoise
    assert torch.equal(states[0].x, x)
    assert [len(s.history.t) for s in states[:7]] == [0, 1, 2, 3, 3, 3, 3]
    assert states[4].history.t == tuple(grid[[3, 2, 1]].tolist())
    assert states[4].history.end == float(grid[4])


@pytest.mark.parametrize("order, variable, extrapolate, correct",
                         list(product((0, 1, 3), VARIABLES, EXTRAPOLATE, (False, True))))
def test_state_and_history_restart_exactly(order, variable, extrapolate, correct):
    grid, x = time_grid(linear, 9), noise(4, 2)
    options = dict(order=order, variable=variable, extrapolate=extrapolate, correct=correct)
    states = list(deis.states(predict, linear, x, grid, **options))
    for k in (0, 1, 3, 8):
        state = states[k]
        assert torch.equal(deis(predict, linear, state.x, grid[k:], history=state.history, **options),
                           states[-1].x)
    short = dict(options, order=min(order, 3))
    alone = deis(predict, linear, states[4].x, grid[4:], **short)
    assert torch.equal(alone, states[-1].x) == (order == 0 and not correct)


def test_histories_are_not_changed_by_going_on():
    grid, states = time_grid(linear, 6), deis.states(predict, linear, noise(2, 2), time_grid(linear, 6))
    kept = [s.history for s in states]
    assert [len(h.values) for h in kept] == [len(h.t) for h in kept]
    values = [v.clone() for v in kept[4].values]
    deis(predict, linear, noise(2, 2), grid[4:], order=2, history=kept[4])
    assert all(torch.equal(a, b) for a, b in zip(values, kept[4].values))


@pytest.mark.parametrize("run", [deis, rho_rk], ids=name)
def test_neither_batch_nor_shape_matters(run):
    x, grid = noise(6, 2), time_grid(linear, 8)
    whole = run(predict, linear, x, grid)
    torch.testing.assert_close(run(predict, linear, x[2:3], grid), whole[2:3], rtol=1e-12, atol=1e-12)
    images = lambda x, t: predict(x.flatten(1), t).reshape(x.shape)
    assert torch.equal(run(images, linear, x.reshape(6, 1, 1, 2), grid).flatten(1), whole)
    with pytest.raises(ValueError, match="wants a gradient"):
        run(predict, linear, x.clone().requires_grad_(), grid)


@pytest.mark.parametrize("extrapolate", EXTRAPOLATE)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_single_precision(schedule, extrapolate):
    bell = gaussian(torch.tensor([0.5, -0.3], dtype=F64), torch.eye(2, dtype=F64))
    net, grid, x = bell.predictor(schedule), time_grid(schedule, 12), noise(4, 2) * schedule.sigma(1.0)
    single = deis(lambda x, t: net(x.double(), t.double()).float(), schedule, x.float(), grid,
                  extrapolate=extrapolate)
    double = deis(net, schedule, x, grid, extrapolate=extrapolate)
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_orders_of_the_whole_family(schedule):
    bell = gaussian(torch.tensor([0.3], dtype=F64), torch.tensor([[0.8]], dtype=F64))
    net, x = bell.predictor(schedule), noise(3, 1) * schedule.sigma(1.0)
    goal = gaussian_flow(bell, schedule, x, 1.0, 0.05)
    error = lambda y: float((y - goal).norm())
    ends = [float(schedule.log_snr(t)) for t in (1.0, 0.05)]
    grids = [schedule.t_of_log_snr(torch.linspace(*ends, n + 1, dtype=F64)).clamp(0.05, 1.0)
             for n in (40, 80)]
    for extrapolate, (order, correct, wanted) in product(EXTRAPOLATE,
                                                         ((0, False, 1), (1, False, 2), (1, True, 3))):
        runs = [error(deis(net, schedule, x, g, order, "log_rho", extrapolate, correct)) for g in grids]
        assert runs[1] < 1e-9 or math.log2(runs[0] / runs[1]) > wanted - 0.45, (extrapolate, order,
                                                                                correct, runs)


def test_a_history_is_known_by_what_it_holds():
    """As a notebook makes one, whose class is another than the package's."""
    grid, x = time_grid(linear, 6), noise(3, 2)
    states = list(deis.states(predict, linear, x, grid))
    other = SimpleNamespace(**vars(states[3].history))
    assert torch.equal(deis(predict, linear, states[3].x, grid[3:], 2, history=other),
                       deis(predict, linear, states[3].x, grid[3:], 2, history=states[3].history))


def test_a_network_may_use_its_answer_again():
    """The same tensor is returned and overwritten in every call; the buffer has copies."""
    grid, x, answer = time_grid(linear, 8), noise(3, 2), torch.empty(3, 2, dtype=F64)
    again = lambda x, t: answer.copy_(predict(x, t))
    assert torch.equal(deis(again, linear, x, grid), deis(predict, linear, x, grid))


def test_solvers_are_objects():
    for run in (deis, rho_rk):
        assert pickle.loads(pickle.dumps(run)) is run and not hasattr(run, "coefficients")
    assert get_args(Method) == ("heun", "kutta3", "rk4")


def test_windows_and_polynomials():
    past, known = window(torch.arange(4.0), 2, 0)
    assert past.tolist() == [[0, 0], [1, 0], [2, 1]]
    assert known.tolist() == [[True, False], [True, True], [True, True]]
    basis = lagrange(torch.tensor([[3.0]]), torch.tensor([[2.0, 1.0]]), torch.tensor([[True, True]]))
    assert basis.tolist() == [[[2.0, -1.0]]]
    grid, order = check_order(GRID.float(), 5)
    assert torch.equal(grid, GRID.float().double()) and order == 5
    assert [check_order(GRID[:n], None)[1] for n in (2, 3, 4, 5, 7)] == [0, 1, 2, 3, 3]


# --- predictions as they are, and coefficients that magnify

bell32 = gaussian(torch.tensor([0.5, -0.3]), torch.tensor([[1.0, 0.6], [0.6, 0.5]]))
bell64 = deepcopy(bell32).double()
BELLS = {torch.float32: bell32, F64: bell64}


def terminal(t): return -2 * torch.log(torch.tan(math.pi / 2 * t))


ENDS = {"zero terminal SNR": LogSNR(terminal), "cosine to -40": Cosine(-40, 20),
        "cosine to -200": Cosine(-200, 20), "cosine to -infinity": Cosine(-math.inf, 20),
        "flow matching": FlowMatching()}


def rms(schedule, y, x, t=1e-3):
    goal = gaussian_flow(bell64, schedule, x.double(), 1.0, t)
    return float((y.double() - goal).square().sum(-1).mean().sqrt())


@pytest.mark.parametrize("dtype", BELLS)
@pytest.mark.parametrize("kind", ["x0", "v"])
@pytest.mark.parametrize("end", ENDS)
def test_predictions_are_taken_as_they_are(end, kind, dtype):
    schedule, x = ENDS[end], noise(64, 2).to(dtype)
    net = as_eps(BELLS[dtype].predictor(schedule, kind), schedule, kind)
    grid = time_grid(schedule, 50, kind="uniform")
    assert rms(schedule, deis(net, schedule, x, grid, 3, "angle", "v", False), x) < 3e-4
    assert rms(schedule, deis(net, schedule, x, grid, 3, "angle", "x0", True), x) < 6e-4
    for run in (ddim, partial(ancestral, eta=0.0)):
        assert rms(schedule, run(net, schedule, x, grid), x) < 0.05
    assert rms(schedule, deis(net, schedule, x, grid, 0, extrapolate="x0"), x) < 0.05
    last = deis(net, schedule, x, grid, 3, "angle", "v", denoise=True)
    assert last.isfinite().all()


def test_the_number_of_the_fault():
    schedule, x = ENDS["zero terminal SNR"], noise(64, 2)
    grid, found = time_grid(schedule, 50, kind="uniform"), []
    for dtype, bell in BELLS.items():
        v = bell.predictor(schedule, "v")
        y = deis(as_eps(v, schedule, "v"), schedule, x.to(dtype), grid, None, "angle", "v", False)
        found.append(rms(schedule, y, x))
        assert rms(schedule, heun(as_eps(v, schedule, "v"), schedule, x.to(dtype), grid), x) < 0.03
    assert found[0] == pytest.approx(2.86e-4, rel=0.02) and found[1] == pytest.approx(found[0], rel=0.01)


@pytest.mark.parametrize("extrapolate", EXTRAPOLATE)
@pytest.mark.parametrize("end", [e for e in ENDS if "terminal" not in e])
def test_noise_that_says_nothing_is_refused_before_the_first_call(end, extrapolate):
    schedule, calls = ENDS[end], []
    grid = time_grid(schedule, 10, kind="uniform")
    with pytest.raises(ValueError, match="magnifies the rounding|no finite step"):
        deis(lambda x, t: calls.append(t), schedule, noise(3, 2).float(), grid, 0, "t", extrapolate)
    assert not calls


def test_kinds_agree_where_all_exist():
    for schedule in SCHEDULES:
        grid, x = time_grid(schedule, 9), noise(4, 2) * schedule.sigma(1.0)
        for run in (partial(deis, extrapolate="x0", correct=True), partial(deis, extrapolate="v"), deis,
                    ddim, partial(ddim, eta=0.5, generator=3), partial(ancestral, generator=3), heun,
                    partial(heun, eta=0.7, generator=3)):
            runs = [run(as_eps(three.predictor(schedule, kind), schedule, kind), schedule, x, grid,
                        denoise=True) for kind in ("eps", "x0", "v", "score")]
            for other in runs[1:]: torch.testing.assert_close(other, runs[0], rtol=1e-6, atol=1e-7)


def test_only_what_is_asked_under_its_own_schedule_is_native():
    v = as_eps(three.predictor(linear, "v"), linear, "v")
    assert native(v, linear) == (v.native, "v") and native(v, LinearBeta()) == (v.native, "v")
    assert native(v, Cosine()) == (v, "eps") and native(v, None) == (v, "eps")
    score = as_eps(three.predictor(linear, "score"), linear, "score")
    assert native(score, linear) == (score, "eps") and native(predict, linear) == (predict, "eps")
    model = Preconditioned(MLP(2, 8, 1, dtype=F64), linear)
    assert native(model, linear)[1] == "v"
    class Guided(Preconditioned):
        def forward(self, x, t): return 0.5 * super().forward(x, t)
    guided = Guided(MLP(2, 8, 1, dtype=F64), linear)
    assert native(guided, linear) == (guided, "eps")
    seen, x = [], noise(3, 2)
    handle = model.register_forward_hook(lambda *a: seen.append(1))
    deis(model, linear, x, GRID)
    assert len(seen) == 6
    handle.remove()
    hidden = lambda x, t: model(x, t)
    torch.testing.assert_close(deis(model, linear, x, GRID), deis(hidden, linear, x, GRID))


def test_short_grids():
    x, net, errors = noise(64, 2), bell64.predictor(linear), []
    for steps in (1, 2, 3, 4, 5):
        grid = time_grid(linear, steps)
        errors.append(rms(linear, deis(net, linear, x, grid, extrapolate="x0", correct=True), x))
        assert torch.equal(deis(net, linear, x, grid), deis(net, linear, x, grid, min(3, steps - 1)))
    assert errors[0] > errors[1] > errors[2] > 0.5 * errors[4]
    with pytest.raises(ValueError, match="order must be at most 2"):
        deis(predict, linear, noise(3, 2), time_grid(linear, 3), 3)


def test_a_run_in_pieces_without_an_order():
    grid, x = time_grid(linear, 7), noise(4, 2)
    for correct in (False, True):
        whole = deis(predict, linear, x, grid, correct=correct)
        y, history = x, None
        for k in range(7):
            *_, last = deis.states(predict, linear, y, grid[k:k + 2], correct=correct, history=history)
            y, history = last.x, last.history
        torch.testing.assert_close(y, whole, rtol=1e-12, atol=1e-12)


def test_magnified_errors_are_told_and_avoided():
    schedule, x = Cosine(), noise(64, 2)
    net, grid = bell64.predictor(schedule), time_grid(schedule, 6, kind="log_snr")
    free = deis(net, schedule, x, grid, None, "t", "eps", False)
    with pytest.warns(UserWarning, match="choose a lower order"):
        told = deis(net, schedule, x, grid, 3, "t", "eps", False)
    zero = deis(net, schedule, x, grid, 0, correct=False)
    errors = [rms(schedule, y, x) for y in (free, zero, told)]
    assert errors[0] < errors[1] < errors[2]
    jump = torch.tensor([1.0, 0.999, 0.1, 0.05, 0.01], dtype=F64)
    y = deis(bell64.predictor(linear), linear, x, jump)
    zero = deis(bell64.predictor(linear), linear, x, jump, 0, correct=False)
    assert rms(linear, y, x, 0.01) < 2 * rms(linear, zero, x, 0.01)


# --- Runge-Kutta

@pytest.mark.parametrize("method, calls, degree", [("heun", 2, 1), ("kutta3", 3, 3), ("rk4", 4, 3)])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_runge_kutta_integrates_polynomials_in_rho(schedule, method, calls, degree):
    grid, x = time_grid(schedule, 4, 0.01), noise(2, 2)
    rho = schedule.rho(grid)
    times = []
    def net(x, t):
        times.append(float(t))
        return (schedule.rho(t) / rho[0])**degree * torch.ones_like(x)
    whole = rho[0] / (degree + 1) * ((rho[-1] / rho[0])**(degree + 1) - 1)
    wanted = schedule.alpha(grid[-1]) * (x / schedule.alpha(grid[0]) + whole)
    states = list(rho_rk.states(net, schedule, x, grid, method, denoise=True))
    torch.testing.assert_close(states[4].x, wanted, rtol=1e-10, atol=1e-12)
    assert [s.nfe for s in states] == [0, calls, 2 * calls, 3 * calls, 4 * calls, 4 * calls + 1]
    assert min(times) >= grid[-1] and max(times) <= grid[0]
    assert [s.t for s in states] == [*grid.tolist(), 0.0]


def test_runge_kutta_restarts_from_the_state_alone():
    grid, x = time_grid(linear, 6), noise(3, 2)
    for method in ("heun", "kutta3", "rk4"):
        states = list(rho_rk.states(predict, linear, x, grid, method))
        assert torch.equal(rho_rk(predict, linear, states[2].x, grid[2:], method), states[-1].x)


# --- bad input

BAD = {
    "rising": (dict(grid=GRID.flip(0)), ValueError, "grid must decrease"),
    "repeating": (dict(grid=torch.tensor([1.0, 0.5, 0.5, 0.1])), ValueError, "grid must decrease"),
    "zero": (dict(grid=torch.tensor([1.0, 0.5, 0.2, 0.1, 0.0])), ValueError, "denoise=True"),
    "above one": (dict(grid=torch.tensor([1.5, 0.5, 0.2, 0.1, 0.01])), ValueError, "grid must lie"),
    "grid of integers": (dict(grid=torch.tensor([3, 2, 1])), TypeError, "grid"),
    "order above the grid": (dict(order=6), ValueError, "order must be at most 5"),
    "order below zero": (dict(order=-1), ValueError, "order"),
    "fractional order": (dict(order=1.5), TypeError, "order"),
    "variable": (dict(variable="lambda"), ValueError, "variable must be one of"),
    "extrapolate": (dict(extrapolate="score"), ValueError, "extrapolate must be one of"),
    "integers": (dict(x=torch.ones(3, 2, dtype=torch.int64)), TypeError, "x must be float32 or float64"),
    "no batch": (dict(x=torch.ones(2)), ValueError, "x must have shape"),
    "NaN": (dict(x=torch.full((3, 2), math.nan)), ValueError, "x must be finite"),
    "predict": (dict(predict=3), TypeError, "predict must be"),
    "shape of the prediction": (dict(predict=lambda x, t: x[:, :1]), ValueError,
                                "predict must return shape"),
    "NaN in the third call": (dict(predict=lambda x, t: predict(x, t) / (t > 0.4)), ValueError,
                              "in call 3, at t = "),
    "history": (dict(history=[]), TypeError, "history must be a History"),
    "history of another grid": (dict(history=History(0.9)), ValueError, "a buffer from another grid"),
    "history of another kind": (dict(history=History(1.0, extrapolate="eps")), ValueError,
                                "predictions of 'x0'"),
    "history of another shape": (dict(grid=GRID[1:],
                                      history=History(float(GRID[1]), (1.0,), (noise(4, 2),))),
                                 ValueError, r"history must hold shape \[3, 2\]"),
    "history of another dtype": (dict(grid=GRID[1:],
                                      history=History(float(GRID[1]), (1.0,), (noise(3, 2).float(),))),
                                 TypeError, "history must be torch.float64"),
    "history out of order": (dict(grid=GRID[2:], order=2, history=History(
        float(GRID[2]), tuple(GRID[:2].tolist()), (noise(3, 2), noise(3, 2)))), ValueError,
        "newest first"),
    "history without predictions": (dict(grid=GRID[1:], history=History(float(GRID[1]), (1.0,))),
                                    ValueError, "as many"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input(what):
    options, error, message = BAD[what]
    with pytest.raises(error, match=message):
        deis(**{"predict": predict, "schedule": linear, "x": noise(3, 2), "grid": GRID, **options})


def test_more_bad_input():
    with pytest.raises(ValueError, match="method must be one of"): rho_rk(predict, linear, noise(3, 2),
                                                                          GRID, "euler")
    with pytest.raises(ValueError, match="no finite step"):
        deis_coefficients(LogSNR(lambda t: 10 - 3000 * t), GRID, 1)
    history = list(deis.states(predict, linear, noise(3, 2), GRID))[2].history
    with pytest.raises(ValueError, match="a buffer from another grid"):
        deis(predict, linear, noise(3, 2), time_grid(linear, 7)[2:], order=2, history=history)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda():
    x, grid = noise(4, 2), time_grid(linear, 10)
    bell = gaussian(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64))
    moved = gaussian(torch.zeros(2, dtype=F64, device="cuda"), torch.eye(2, dtype=F64, device="cuda"))
    for run in (deis, rho_rk):
        there = run(moved.predictor(linear), linear, x.cuda(), grid)
        assert there.device.type == "cuda"
        torch.testing.assert_close(there.cpu(), run(bell.predictor(linear), linear, x, grid), rtol=1e-9,
                                   atol=1e-9)


def test_coarse_answers_are_refused_where_they_are_magnified():
    """Half-precision noise under a schedule that ends nearly without data, at the first call."""
    for schedule in (Cosine(), linear):
        net, x, grid = bell64.predictor(schedule), noise(64, 2).float(), time_grid(schedule, 12)
        half = lambda x, t: net(x.double(), t.double()).bfloat16()
        if schedule == linear:
            assert rms(schedule, deis(half, schedule, x, grid), x) < 0.1
            continue
        with pytest.raises(ValueError, match="finer dtype, or predict v or x0"):
            deis(half, schedule, x, grid)
        v = bell64.predictor(schedule, "v")
        half = as_eps(lambda x, t: v(x.double(), t.double()).bfloat16(), schedule, "v")
        assert rms(schedule, deis(half, schedule, x, grid), x) < 0.01


BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=F64)


def labelled(x, label, alpha_bar):
    """A network of a chain, asked with the label of its level; the exact noise of `bell64`."""
    a, s = alpha_bar[label].sqrt(), (1 - alpha_bar[label]).sqrt()
    return -s * bell64.score(x, a, s)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_chain_by_its_own_numbers(order):
    """DEIS written out with alpha_bar alone, its integrals by quadrature in log rho."""
    labels, bar, x = list(range(999, -1, -111)), torch.cumprod(1 - BETAS, 0), noise(5, 2)
    rho = [float(((1 - bar[k]) / bar[k]).sqrt()) for k in labels]
    y, past = x.clone(), []
    for i in range(len(labels) - 1):
        past = [labelled(y, labels[i], bar), *past][:order + 1]
        at = [math.log(rho[i - j]) for j in range(len(past))]
        push = 0
        for j, value in enumerate(past):
            def basis(l, j=j): return math.prod((l - at[k]) / (at[j] - at[k])
                                                for k in range(len(at)) if k != j) * math.exp(l)
            push = push + quad(basis, math.log(rho[i]), math.log(rho[i + 1]), epsabs=1e-13)[0] * value
        scale = [float(bar[k].sqrt()) for k in labels[i:i + 2]]
        y = scale[1] * (y / scale[0] + push)
    schedule = Betas(BETAS)
    grid = (torch.tensor(labels, dtype=F64) + 1) / 1000
    net = lambda x, t: labelled(x, round(1000 * float(t) - 1), bar)
    ours = deis(net, schedule, x, grid, order, "log_rho", "eps", False)
    torch.testing.assert_close(ours, y, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_chain_against_diffusers(order):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DEISMultistepScheduler(trained_betas=BETAS.tolist(), solver_order=order,
                                                 lower_order_final=False)
    scheduler.set_timesteps(10)
    labels, bar, x = scheduler.timesteps.tolist(), torch.cumprod(1 - BETAS, 0), noise(5, 2)
    y = x.clone()
    for label in labels[:-1]:
        y = scheduler.step(labelled(y.double(), label, bar), label, y).prev_sample
    grid = (torch.tensor(labels, dtype=F64) + 1) / 1000
    net = lambda x, t: labelled(x, round(1000 * float(t) - 1), bar)
    ours = deis(net, Betas(BETAS), x, grid, order - 1, "log_rho", "eps", False)
    assert (ours - y.double()).norm() < 1e-6 * ours.norm()             # theirs are float32 inside
