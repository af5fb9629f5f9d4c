"""Solvers: interface, objects, bad input, precision, streams of noise, exactness where it is known,
order under every schedule.
"""
import copy
from inspect import signature
import math
import pickle
import pydoc

from hypothesis import given, settings, strategies as st
import pytest
import torch

from rbmdiff.diffusion.deis import deis
from rbmdiff.diffusion.oracle import Mixture, gaussian, gaussian_flow
from rbmdiff.diffusion.schedule import (
    Cosine,
    Geometric,
    LinearBeta,
    LinearLogSNR,
    LogSNR,
    SinusoidalBeta,
    SubVP,
    diffuse,
    time_grid,
)
from rbmdiff.diffusion.solvers import (
    Snapshot,
    Solver,
    ancestral,
    corrector,
    ddim,
    euler_maruyama,
    heun,
    integrate,
    predictor_corrector,
    prepare,
    prior_sample,
    reverse_diffusion,
    runge_kutta,
    runge_kutta_nodes,
    solver as as_solver,
)

ONE_CALL = [euler_maruyama, reverse_diffusion, ancestral, ddim]
CALLS = {euler_maruyama: 1, reverse_diffusion: 1, ancestral: 1, ddim: 1, heun: 2, runge_kutta: 4,
         predictor_corrector: 2}
SOLVERS = list(CALLS)
RANDOM = [solver for solver in SOLVERS if solver is not runge_kutta]
SCHEDULES = [LinearBeta(), SinusoidalBeta(), Cosine(-10, 10), LinearLogSNR(), Geometric(), SubVP(),
             LogSNR(lambda t: 6 - 12 * t, "sub-vp")]
F64 = torch.float64
three = Mixture(torch.tensor([0.3, 0.5, 0.2], dtype=F64),
                torch.tensor([[-2.0, 0.0], [1.0, 1.5], [1.5, -1.5]], dtype=F64),
                torch.eye(2, dtype=F64).expand(3, 2, 2) * 0.1)
name = lambda f: getattr(f, "__name__", type(f).__name__)


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def noise(schedule, *shape, seed=0, dtype=F64):
    return float(schedule.sigma(1.0)) * torch.randn(*shape, dtype=dtype,
                                                    generator=torch.Generator().manual_seed(seed))


def streams(solver, generator):
    return {"generator": generator} if solver in RANDOM else {}


# --- interface

@pytest.mark.parametrize("solver", SOLVERS, ids=name)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_states_are_the_grid_and_the_calls_are_counted(solver, schedule):
    grid, seen = time_grid(schedule, 6), []

    def predict(x, t):
        assert t.ndim == 0 and t.dtype == x.dtype and not torch.is_grad_enabled()
        seen.append(float(t))
        return three.predictor(schedule)(x, t)
    x = noise(schedule, 3, 2)
    states = list(solver.states(predict, schedule, x, grid, denoise=True,
                                **streams(solver, seeded(1, 2, 3))))
    assert all(isinstance(state, Snapshot) and state.history is None for state in states)
    assert len(states) == 8
    assert [state.t for state in states] == [*grid.tolist(), 0.0]
    assert [state.nfe for state in states] == [*(CALLS[solver] * i for i in range(7)),
                                               6 * CALLS[solver] + 1]
    assert len(seen) == states[-1].nfe and torch.equal(states[0].x, x)
    assert min(seen) >= grid[-1] and max(seen) <= grid[0]
    assert all(bool(state.x.isfinite().all()) for state in states)
    last = solver(three.predictor(schedule), schedule, x, grid, denoise=True,
                  **streams(solver, seeded(1, 2, 3)))
    assert torch.equal(last, states[-1].x)


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_input_is_left_alone_and_no_graph_is_built(solver):
    schedule, layer = LinearBeta(), torch.nn.Linear(2, 2, dtype=F64)
    x = noise(schedule, 3, 2)
    kept = x.clone()
    states = list(solver.states(lambda x, t: layer(x), schedule, x, time_grid(schedule, 4)))
    assert not any(state.x.requires_grad for state in states)
    copies = [state.x.clone() for state in states]
    # states do not share memory
    assert len({tuple(copy.flatten().tolist()) for copy in copies}) == 5
    assert torch.is_grad_enabled()
    states[0].x.zero_()
    assert torch.equal(x, kept)


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_a_lost_gradient_is_refused(solver):
    schedule, layer = LinearBeta(), torch.nn.Linear(2, 2, dtype=F64)
    x, grid = noise(schedule, 3, 2), time_grid(schedule, 4)
    predict, message = lambda x, t: layer(x), "wants a gradient, which would be lost"
    with pytest.raises(ValueError, match=f"{name(solver)}.differentiable"):
        solver(predict, schedule, x.clone().requires_grad_(), grid)
    with torch.no_grad():
        solver(predict, schedule, x.clone().requires_grad_(), grid)
    run = lambda z: solver(predict, schedule, z, grid).sum()
    for transform in (torch.func.grad, torch.func.jacrev, lambda f: lambda z: torch.func.vjp(f, z)):
        with pytest.raises(ValueError, match=message): transform(run)(x)
    with pytest.raises(ValueError, match=message):
        torch.func.grad(lambda p: solver(lambda x, t: p * x, schedule, x, grid).sum())(x[0, 0])


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_gradients_of_the_differentiable_form(solver):
    """By autograd, by torch.func and by central differences, in the start and in a parameter."""
    schedule, x, p = LinearBeta(), noise(LinearBeta(), 3, 2), torch.tensor(0.7, dtype=F64)
    grid = time_grid(schedule, 5)

    def end(x, p, run=solver.differentiable):
        network = lambda x, t: torch.tanh(p * x) + t
        return run(network, schedule, x, grid, **streams(solver, 3)).sin().sum()
    by_func = torch.func.grad(end, (0, 1))(x, p)
    leaves = x.clone().requires_grad_(), p.clone().requires_grad_()
    by_autograd = torch.autograd.grad(end(*leaves), leaves)
    torch.testing.assert_close(by_func, by_autograd)
    h, direction = 1e-6, torch.ones_like(x)
    in_x, in_p = ((end(x + h * d, p + h * e) - end(x - h * d, p - h * e)) / (2 * h)
                  for d, e in ((direction, 0.0), (0 * direction, 1.0)))
    torch.testing.assert_close(by_func[0].sum(), in_x, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(by_func[1], in_p, rtol=1e-6, atol=1e-8)
    assert torch.equal(end(x, p), end(x, p, solver)) and by_func[1] != 0


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_stopping_early_costs_only_the_calls_made(solver):
    calls = []
    walk = solver.states(lambda x, t: calls.append(1) or x, LinearBeta(), torch.ones(1, 1),
                         time_grid(LinearBeta(), 50))
    assert next(walk).nfe == 0 and not calls
    assert next(walk).nfe == len(calls) == CALLS[solver]


@pytest.mark.parametrize("solver", [*ONE_CALL, heun, runge_kutta], ids=name)
@pytest.mark.parametrize("schedule", [LinearBeta(), Geometric(), SubVP()], ids=name)
def test_float32_follows_float64(solver, schedule):
    grid, exact = time_grid(schedule, 20), three.predictor(schedule)
    predict = lambda x, t: exact(x.double(), t.double()).to(x.dtype)
    options = {"eta": 0.0} if solver in RANDOM else {}
    wide, narrow = (solver(predict, schedule, noise(schedule, 4, 2).to(dtype), grid, **options)
                    for dtype in (F64, torch.float32))
    assert narrow.dtype == torch.float32
    assert (wide - narrow).abs().max() < 2e-4 * max(1, float(wide.abs().max()))


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_images_and_noncontiguous_batches(solver):
    schedule, grid = Geometric(), time_grid(Geometric(), 5)
    x = noise(schedule, 2, 8, 8, 3).permute(0, 3, 1, 2)
    predict = lambda x, t: torch.tanh(x)
    a = solver(predict, schedule, x, grid, **streams(solver, seeded(1, 2)))
    b = solver(predict, schedule, x.contiguous(), grid, **streams(solver, seeded(1, 2)))
    assert a.shape == (2, 3, 8, 8) and torch.equal(a, b)


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_a_solver_looks_like_its_function(solver):
    names = list(signature(solver).parameters)
    assert names[:4] == ["predict", "schedule", "x", "grid"]
    assert names == list(signature(solver.states).parameters)
    assert signature(solver).return_annotation is torch.Tensor
    assert solver.__name__ == solver.__qualname__ == name(solver)
    assert solver.__module__ == "rbmdiff.diffusion.solvers"
    assert solver.__doc__ == solver.__wrapped__.__doc__ and "carried along `grid`" in solver.__doc__
    assert repr(solver) == f"<solver rbmdiff.diffusion.solvers.{name(solver)}>"
    shown = pydoc.render_doc(solver, renderer=pydoc.plaintext)
    assert f"{name(solver)}(predict: " in shown and "carried along `grid`" in shown
    kept = type("Kept", (), {"run": solver})()
    assert kept.run is solver


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_a_solver_is_pickled_and_copied_by_its_name(solver):
    assert pickle.loads(pickle.dumps(solver)) is solver
    assert copy.deepcopy(solver) is solver is copy.copy(solver)
    assert pickle.loads(pickle.dumps(solver.states)) is solver.states
    assert len(pickle.dumps(solver)) < 100


def test_only_solvers_of_one_call_have_coefficients():
    assert [s for s in SOLVERS if hasattr(s, "coefficients")] == ONE_CALL
    a, b, c = ddim.coefficients(LinearBeta(), time_grid(LinearBeta(), 4))
    assert len(a) == len(b) == 4 and not c.any()


def test_a_solver_of_ones_own():
    """A solver written by a user: with the decorator, with and without coefficients, from `prepare` and
    `integrate`.
    """
    def halves(schedule, grid, eta=1.0):
        return tuple(0.5 * torch.ones(3, len(grid) - 1, dtype=F64))

    @as_solver(coefficients=halves)
    def halving(predict, schedule, x, grid, denoise=False):
        """Half of everything."""
        network, grid, _ = prepare(predict, x, grid)
        return integrate(network, x, grid, lambda x, i: x / 2 + network(x, grid[i]) / 2, schedule
                         if denoise else None)

    @as_solver
    def plain(x: torch.Tensor):
        yield Snapshot(1.0, x, 0)
        yield Snapshot(0.5, x + 1, 0, history="kept")
    schedule, grid, x = LinearBeta(), time_grid(LinearBeta(), 3), torch.ones(2, 2, dtype=F64)
    assert isinstance(halving, Solver) and torch.equal(halving(lambda x, t: x, schedule, x, grid), x)
    assert [s.t for s in halving.states(lambda x, t: x, schedule, x, grid)] == grid.tolist()
    assert torch.equal(plain(x), x + 1) and [s.history for s in plain.states(x)] == [None, "kept"]
    y = predictor_corrector(lambda x, t: 0 * x, schedule, x, grid, predictor=halving, snr=1e-6,
                            generator=0)
    assert y.shape == x.shape
    assert y.std() > 0.1                                # its coefficients are used


def test_a_predictor_is_known_by_its_coefficients_alone():
    class Other:
        coefficients = staticmethod(ddim.coefficients)
    schedule, grid, x = LinearBeta(), time_grid(LinearBeta(), 3), noise(LinearBeta(), 2, 2)
    runs = [predictor_corrector(three.predictor(schedule), schedule, x, grid, predictor=p, generator=0)
            for p in (ddim, Other())]
    assert torch.equal(*runs)


@pytest.mark.parametrize("order, nodes", [(2, [0, 1]), (3, [0, 0.5, 1]), (4, [0, 0.5, 0.5, 1])])
def test_nodes_of_runge_kutta(order, nodes):
    assert runge_kutta_nodes(order).tolist() == nodes


# --- randomness

@pytest.mark.parametrize("solver", RANDOM, ids=name)
@settings(max_examples=8, deadline=None)
@given(batch=st.integers(2, 5), data=st.data())
def test_own_streams_make_a_sample_independent_of_its_batch(solver, batch, data):
    index = data.draw(st.integers(0, batch - 1))
    schedule, grid = LinearBeta(), time_grid(LinearBeta(), 4)
    x = noise(schedule, batch, 3)
    predict = lambda x, t: torch.tanh(x) + t
    options = {"eta": 1.0}
    all_ = solver(predict, schedule, x, grid, generator=seeded(*range(batch)), **options)
    one = solver(predict, schedule, x[index:index + 1], grid, generator=seeded(index), **options)
    assert torch.equal(all_[index], one[0])


@pytest.mark.parametrize("solver", RANDOM, ids=name)
def test_same_seed_same_result_and_eta_zero_draws_nothing(solver):
    schedule, grid, x = LinearBeta(), time_grid(LinearBeta(), 5), noise(LinearBeta(), 2, 2)
    run = lambda g, **kw: solver(three.predictor(schedule), schedule, x, grid, generator=g, **kw)
    first, second, other = (run(torch.Generator().manual_seed(seed), eta=1.0) for seed in (0, 0, 1))
    assert torch.equal(first, second) and not torch.equal(first, other)
    if solver is not predictor_corrector:
        g = torch.Generator().manual_seed(0)
        before = g.get_state()
        run(g, eta=0.0)
        assert torch.equal(before, g.get_state())


@pytest.mark.parametrize("solver", RANDOM, ids=name)
def test_seeds_are_streams(solver):
    schedule, grid, x = LinearBeta(), time_grid(LinearBeta(), 4), noise(LinearBeta(), 3, 2)
    run = lambda g, x=x: solver(three.predictor(schedule), schedule, x, grid, eta=1.0, generator=g)
    assert torch.equal(run(5), run(torch.Generator().manual_seed(5)))
    together = run([7, 8, 9])
    assert torch.equal(together, run(seeded(7, 8, 9)))
    for b in range(3): torch.testing.assert_close(run([7 + b], x[b:b + 1])[0], together[b], rtol=1e-12,
                                                  atol=1e-12)


def test_corrector_with_streams():
    x, predict = noise(LinearBeta(), 3, 2), three.predictor(LinearBeta())
    together = corrector(predict, LinearBeta(), x, 0.4, 3, generator=[1, 2, 3])
    for b in range(3):
        alone = corrector(predict, LinearBeta(), x[b:b + 1], 0.4, 3, generator=[b + 1])
        torch.testing.assert_close(alone[0], together[b], rtol=1e-12, atol=1e-12)


# --- exactness

@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
@pytest.mark.parametrize("solver, options", [(ancestral, {"eta": 0.0}), (ancestral, {"eta": 0.7}),
                                             (ancestral, {"eta": 1.0}),
                                             (ddim, {}), (ddim, {"eta": 0.7}), (heun, {}),
                                             (heun, {"eta": 1.0})])
def test_a_point_is_reached_exactly_in_any_number_of_steps(solver, options, schedule):
    target = gaussian(torch.tensor([0.3, -2.0], dtype=F64), torch.zeros(2, 2, dtype=F64))
    x = noise(schedule, 3, 2)
    for steps in (1, 3):
        end = solver(target.predictor(schedule), schedule, x, time_grid(schedule, steps, t_min=0.05),
                     denoise=True,
                     generator=torch.Generator().manual_seed(0), **options)
        assert (end - target.means).abs().max() < 1e-10


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_ddim_is_ancestral_at_the_ends_of_eta(schedule):
    grid, x = time_grid(schedule, 8), noise(schedule, 4, 2)
    for eta in (0.0, 1.0):
        a, b = (solver(three.predictor(schedule), schedule, x, grid, eta=eta,
                       generator=torch.Generator().manual_seed(0))
                for solver in (ancestral, ddim))
        assert (a - b).abs().max() < 1e-9 * max(1, float(a.abs().max()))


@pytest.mark.parametrize("schedule", [LinearBeta(), Geometric(), SubVP(), Cosine(-10, 10)], ids=name)
@pytest.mark.parametrize("solver, options, theory", [
    (euler_maruyama, {"eta": 0.0}, 1), (ddim, {}, 1), (heun, {}, 2), (runge_kutta, {"order": 2}, 2),
    (runge_kutta, {"order": 3}, 3), (runge_kutta, {}, 4)], ids=str)
def test_strong_order_for_the_flow(solver, options, theory, schedule):
    data = gaussian(torch.tensor([1.0, -0.5], dtype=F64),
                    torch.tensor([[0.25, 0.1], [0.1, 0.5]], dtype=F64))
    x = float(schedule.alpha(1.0)) * data.sample(8, torch.Generator().manual_seed(0)) + noise(schedule,
                                                                                              8, 2)
    exact = gaussian_flow(data, schedule, x, 1.0, 1e-3)
    grids = [time_grid(schedule, n, kind="quadratic") for n in (64, 128)]
    errors = [(solver(data.predictor(schedule), schedule, x, grid, **options) - exact).abs().mean()
              for grid in grids]
    assert abs(math.log2(errors[0] / errors[1]) - theory) < 0.2


@settings(max_examples=25, deadline=None)
@given(eta=st.floats(0, 1.5), which=st.integers(0, 2), steps=st.integers(2, 60))
def test_constants_of_the_coefficients(eta, which, steps):
    """All one-call solvers agree to first order in the step, whatever eta."""
    schedule = (LinearBeta(), Geometric(), SubVP())[which]
    t = 0.3 + 0.5 * eta / 1.5
    distances = []
    for dt in (1e-3, 1e-3 / 2):
        grid = torch.tensor([t, t - dt / steps], dtype=F64)
        rows = torch.stack([torch.stack(torch.broadcast_tensors(*solver.coefficients(schedule, grid,
                                                                                     eta)))
                            for solver in (euler_maruyama, reverse_diffusion, ancestral)])[..., 0]
        scale = torch.tensor([1.0, float(schedule.sigma(t)), float(schedule.sigma(t))], dtype=F64)
        distances.append(((rows - rows[0]) / scale).abs().amax(0))
    (a, b, c), (a2, b2, c2) = distances
    assert a2 < a / 3 + 1e-14 and b2 < b / 3 + 1e-14 and c2 < c / 2.5 + 1e-14


@pytest.mark.parametrize("predictor", ONE_CALL, ids=name)
def test_predictor_corrector_is_its_two_parts(predictor):
    schedule, grid, x = SubVP(), time_grid(SubVP(), 3), noise(SubVP(), 2, 2)
    eta, g, h = 1.0, torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    predict = three.predictor(schedule)
    whole = predictor_corrector(predict, schedule, x, grid, corrections=2, snr=0.1, predictor=predictor,
                                generator=g)
    for i in range(3):
        x = predictor(predict, schedule, x, grid[i:i + 2], eta=eta, generator=h)
        x = corrector(predict, schedule, x, float(grid[i + 1]), steps=2, snr=0.1, generator=h)
    assert (whole - x).abs().max() < 1e-12


def test_corrector_leaves_the_marginal_alone_up_to_its_bias():
    schedule, t, n = LinearBeta(), 0.2, 20000
    g = torch.Generator().manual_seed(0)
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    x = alpha * three.sample(n, g) + sigma * torch.randn(n, 2, dtype=F64, generator=g)
    left = lambda y: float((y[:, 0] < -0.5 * alpha).double().mean())
    y = corrector(three.predictor(schedule), schedule, x, t, steps=30, snr=0.05, generator=g)
    assert abs(left(x) - left(y)) < 4 * math.sqrt(0.5 / n)
    assert abs(float(y.square().sum(1).mean() / x.square().sum(1).mean()) - 1) < 0.03


def test_corrector_at_the_very_end_of_time():
    assert corrector(lambda x, t: x, LinearBeta(), torch.zeros(2, 2), 1.0,
                     generator=seeded(0, 1)).shape == (2, 2)


# --- bad input

GOOD = dict(schedule=LinearBeta(), x=torch.zeros(2, 3), grid=time_grid(LinearBeta(), 4))
BAD = [
    ("grid", torch.tensor([0.1, 0.5, 1.0]), ValueError, "decrease"),
    ("grid", torch.tensor([1.0, 0.5, 0.5]), ValueError, "decrease"),
    ("grid", torch.tensor([1.0, 0.5, 0.0]), ValueError, "denoise"),
    ("grid", torch.tensor([1.5, 0.5]), ValueError, "lie in"),
    ("grid", torch.tensor([1.0]), ValueError, "N"),
    ("grid", torch.tensor([1.0, math.nan]), ValueError, "finite"),
    ("grid", [1.0, 0.5], TypeError, "Tensor"), ("grid", torch.tensor([3, 2]), TypeError, "float"),
    ("grid", torch.ones(2, 2), ValueError, "shape"),
    ("x", torch.zeros(3), ValueError, "B"),
    ("x", torch.zeros(2, 3, dtype=torch.long), TypeError, "float"),
    ("x", torch.zeros(2, 3, dtype=torch.complex64), TypeError, "float"),
    ("x", torch.zeros(0, 3), ValueError, "empty"),
    ("x", torch.zeros(2, 3).half(), TypeError, "float"),
    ("x", torch.full((2, 3), math.inf), ValueError, "finite"),
    ("predict", None, TypeError, "predict")]
BAD_RANDOM = [
    ("eta", -0.1, ValueError, "eta"), ("eta", math.nan, ValueError, "eta"),
    ("eta", math.inf, ValueError, "eta"),
    ("eta", "1", TypeError, "eta"), ("eta", True, TypeError, "eta"),
    ("generator", seeded(1), ValueError, "2"), ("generator", seeded(1, 2, 3), ValueError, "2"),
    ("generator", "0", TypeError, "generator"),
    ("generator", ["a", "b"], TypeError, "generator"), ("generator", True, TypeError, "generator"),
    ("generator", seeded(1) * 2, ValueError, "different")]
BAD_PC = [("corrections", 0, ValueError, "corrections"), ("corrections", 1.0, TypeError, "corrections"),
          ("snr", 0.0, ValueError, "snr"), ("snr", 1.0, ValueError, "snr"),
          ("snr", math.nan, ValueError, "snr"),
          ("snr", None, TypeError, "snr"), ("predictor", heun, TypeError, "predictor must be a solver "
                                                                          "of one call a step.*got "
                                                                          "<solver .*heun>"),
          ("predictor", "ddim", TypeError, "predictor must be a solver of one call a step.*got 'ddim'")]
CASES = ([(s, *bad) for s in SOLVERS for bad in BAD] + [(s, *bad) for s in RANDOM for bad in BAD_RANDOM]
         + [(predictor_corrector, *bad) for bad in BAD_PC]
         + [(ddim, "eta", 1.1, ValueError, "eta"), (runge_kutta, "order", 5, ValueError, "order"),
            (runge_kutta, "order", None, ValueError, "order")])


@pytest.mark.parametrize("solver, argument, value, error, message", CASES, ids=lambda v: name(v)
                         if callable(v) else None)
def test_bad_argument_is_refused_at_the_door(solver, argument, value, error, message):
    with pytest.raises(error, match=message):
        # before the first state is asked for
        solver.states(**{"predict": lambda x, t: x, **GOOD, argument: value})


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
@pytest.mark.parametrize("answer, error, message", [
    (lambda x, t: x[:1], ValueError, "shape"), (lambda x, t: x[..., None], ValueError, "shape"),
    (lambda x, t: None, TypeError, "NoneType"), (lambda x, t: (x, x), TypeError, "tuple"),
    (lambda x, t: x / 0, ValueError, "NaN"), (lambda x, t: x + math.inf, ValueError, "NaN"),
    (lambda x, t: x.long(), TypeError, "floating-point"), (lambda x, t: x > 0, TypeError, "bool"),
    (lambda x, t: x + 0j, TypeError, "complex")])
def test_bad_prediction_is_named(solver, answer, error, message):
    with pytest.raises(error, match=message):
        solver(answer, **GOOD)


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_nan_is_reported_with_call_and_time(solver):
    count = []

    def predict(x, t):
        count.append(float(t))
        return x * math.nan if len(count) == 5 else x
    with pytest.raises(ValueError, match="call 5, at t = ") as caught:
        solver(predict, **{**GOOD, "x": torch.ones(2, 3)}, denoise=True)
    assert f"{count[4]:g}" in str(caught.value)


def test_large_finite_predictions_are_no_nan():
    end = ddim(lambda x, t: torch.full_like(x, 3e38), LinearBeta(), torch.zeros(1, 4),
               torch.tensor([0.5, 0.4999]))
    assert bool(end.isfinite().all())


def test_a_schedule_without_signal_at_the_start_is_refused():
    schedule = LogSNR(lambda t: -2000 * t + 10)
    with pytest.raises(ValueError, match="alpha = 0"):
        ddim(lambda x, t: x, schedule, torch.zeros(1, 1), torch.tensor([1.0, 0.5], dtype=F64))
    assert ddim(lambda x, t: x, schedule, torch.zeros(1, 1),
                torch.tensor([0.02, 0.01], dtype=F64)).isfinite().all()


@pytest.mark.parametrize("t", [0.0, -1.0, 1.5, math.nan])
def test_corrector_refuses_times_outside(t):
    with pytest.raises(ValueError, match="t must"): corrector(lambda x, t: x, LinearBeta(),
                                                              torch.zeros(1, 1), t)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_on_cuda(solver):
    schedule, grid = LinearBeta(), time_grid(LinearBeta(), 6)
    x = noise(schedule, 2, 3, dtype=torch.float32)
    g = [torch.Generator("cuda").manual_seed(k) for k in range(2)]
    end = solver(lambda x, t: torch.tanh(x) * t, schedule, x.cuda(), grid, denoise=True,
                 **streams(solver, g))
    assert end.is_cuda and end.dtype == torch.float32 and bool(end.isfinite().all())
    if solver in RANDOM:
        with pytest.raises(ValueError, match="generator"): solver(lambda x, t: x, schedule, x.cuda(),
                                                                  grid, generator=seeded(1, 2))


# --- where a run begins, and what it hands out

def test_starts_have_the_variance_of_the_schedule():
    for schedule in (LinearBeta(), Geometric(), SubVP()):
        x = prior_sample(schedule, (20000, 2), 3, dtype=torch.float64)
        wanted = torch.hypot(schedule.alpha(1.0), schedule.sigma(1.0)).item()
        assert abs(x.std().item() / wanted - 1) < 5 / math.sqrt(2 * x.numel())
    assert prior_sample(LinearBeta(), torch.Size([3, 1, 2])).dtype == torch.float32
    with pytest.raises(TypeError, match="^shape must"): prior_sample(LinearBeta(), 5)
    with pytest.raises((TypeError, ValueError), match="^shape must"): prior_sample(LinearBeta(), (5, -1))


def test_a_snapshot_belongs_to_the_caller():
    x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    schedule = LinearBeta()
    grid = time_grid(schedule, 6)
    for run in (heun, ddim, deis):
        for now in run.states(lambda x, t: 0.5 * x, schedule, x, grid):
            last = now.x.clone()
            now.x.zero_()
            for value in getattr(now.history, "values", ()):
                value.zero_()
        assert torch.equal(last, run(lambda x, t: 0.5 * x, schedule, x, grid))


@pytest.mark.parametrize("schedule", [LinearBeta, None, "cosine"])
def test_a_class_is_no_schedule(schedule):
    x = torch.ones(2, 2, dtype=torch.float64)
    grid = time_grid(LinearBeta(), 6)
    half = lambda x, t: 0.5 * x
    for ask in (lambda: heun(half, schedule, x, grid), lambda: ddim(half, schedule, x, grid),
                lambda: deis(half, schedule, x, grid), lambda: time_grid(schedule, 6),
                lambda: prior_sample(schedule, (2, 2)), lambda: diffuse(schedule, x, 0.5),
                lambda: euler_maruyama(half, schedule, x, grid)):
        with pytest.raises(TypeError, match="^schedule must be a schedule"): ask()
