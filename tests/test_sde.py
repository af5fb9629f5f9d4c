"""Linear SDEs against closed forms, schedules and the oracle; the Fokker-Planck grid; the price of a
wrong score.
"""
import math

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest
import torch

from rbmdiff.diffusion.oracle import Mixture, gaussian, gaussian_flow
from rbmdiff.diffusion.schedule import (
    Cosine,
    Geometric,
    LinearBeta,
    LinearLogSNR,
    LogSNR,
    SinusoidalBeta,
    SubVP,
)
from rbmdiff.diffusion.sde import (
    LinearSDE,
    chain_marginal,
    critically_damped_langevin,
    fokker_planck,
    path_kl,
    reverse_sde,
    scalar_sde,
    simulate,
)
from rbmdiff.foundations.core import Estimate

SCHEDULES = [LinearBeta(), SinusoidalBeta(), SubVP(), Cosine(-9, 9), LinearLogSNR(), Geometric(),
             LogSNR(lambda t: 6 - 12 * t - t**3), LogSNR(lambda t: 4 - 9 * t, "sub-vp")]
NAMES = [f"{type(schedule).__name__}-{schedule.kind}" for schedule in SCHEDULES]
f64 = torch.float64
quick = settings(max_examples=15, deadline=None)
times = st.floats(0, 1)


def seeded(k): return torch.Generator().manual_seed(k)


def steps(a, b, n): return torch.linspace(a, b, n + 1, dtype=f64)


def wild():
    """Three coordinates, matrices that do not commute."""
    A, B, C = torch.randn(3, 3, 3, dtype=f64, generator=seeded(0))
    return LinearSDE(lambda t: A + math.sin(5 * t) * B, lambda t: 0.5 * B + t * C)


def ring(schedule, dim=2):
    """A mixture with correlated components, and its exact score."""
    means = torch.tensor([[1.0, 0.5], [-1.0, 0.0], [0.2, -1.2]], dtype=f64)
    L = 0.3 * torch.randn(3, 2, 2, dtype=f64, generator=seeded(1)) + 0.3 * torch.eye(2, dtype=f64)
    mixture = Mixture(torch.tensor([0.2, 0.5, 0.3], dtype=f64), means, L @ L.mT)
    return mixture, lambda x, t: mixture.score(x, schedule.alpha(t), schedule.sigma(t))


# Moments

@quick
@given(times, times, times)
def test_transitions_compose_and_invert(s, u, t):
    sde = wild()
    direct, two = sde.transition(s, t), sde.transition(u, t) @ sde.transition(s, u)
    assert (direct - two).abs().max() < 1e-10 * direct.abs().max().clamp(min=1)
    assert (sde.transition(t, s) @ direct - torch.eye(3, dtype=f64)).abs().max() < 1e-10


def test_many_times_are_as_good_as_one():
    sde, t = wild(), torch.tensor([[0.9, 0.1], [0.4, 0.0]], dtype=f64)
    together = sde.transition(0.4, t)
    assert together.shape == (2, 2, 3, 3) and torch.equal(together[1, 0], torch.eye(3, dtype=f64))
    each = torch.stack([sde.transition(0.4, u.item()) for u in t.flatten()]).reshape(2, 2, 3, 3)
    assert (together - each).abs().max() < 1e-11
    S = sde.covariance(0.0, t)
    each = torch.stack([sde.covariance(0.0, u.item()) for u in t.flatten()]).reshape(2, 2, 3, 3)
    assert (S - each).abs().max() < 1e-11


def test_volume_changes_with_the_trace():
    sde = wild()
    nodes, w = np.polynomial.legendre.leggauss(20)
    integral = sum(0.5 * b * sde.F((a + 1) / 2).trace().item()
                   for a, b in zip(nodes.tolist(), w.tolist()))
    assert abs(torch.linalg.slogdet(sde.transition(0.0, 1.0))[1].item() - integral) < 1e-11


@quick
@given(times, times)
def test_covariance_splits_into_what_was_and_what_comes(a, b):
    sde, (s, t) = wild(), sorted((a, b))
    L = torch.randn(3, 3, dtype=f64, generator=seeded(2))
    Psi, new = sde.transition(s, t), sde.covariance(s, t)
    whole = sde.covariance(s, t, L @ L.T)
    assert (whole - Psi @ L @ L.T @ Psi.T - new).abs().max() < 1e-9 * whole.abs().max()
    assert torch.equal(new, new.mT)
    assert torch.linalg.eigvalsh(new).min() > -1e-12 * new.abs().max().clamp(min=1e-3)


def test_covariance_of_a_forgotten_start_solves_the_lyapunov_equation():
    A = torch.tensor([[-30.0, 20.0], [0.0, -40.0]], dtype=f64)
    B = torch.tensor([[3.0, 0.0], [1.0, 2.0]], dtype=f64)
    S = LinearSDE(lambda t: A, lambda t: B).covariance(0.0, 1.0, 5 * torch.eye(2, dtype=f64))
    assert (A @ S + S @ A.T + B @ B.T).abs().max() < 1e-9


@pytest.mark.parametrize("schedule", SCHEDULES, ids=NAMES)
def test_every_schedule_is_a_scalar_sde(schedule):
    sde, t = scalar_sde(schedule, 2), steps(0.05, 1, 7)
    Psi, S = sde.transition(0.05, t), sde.covariance(0.05, t,
                                                     schedule.sigma(0.05) ** 2 * torch.eye(2, dtype=f64))
    assert (Psi[:, 0, 0] * schedule.alpha(0.05) / schedule.alpha(t) - 1).abs().max() < 1e-10
    assert (S[:, 1, 1] / schedule.sigma(t) ** 2 - 1).abs().max() < 1e-10
    assert S[:, 0, 1].abs().max() == Psi[:, 1, 0].abs().max() == 0


@pytest.mark.parametrize("schedule", SCHEDULES, ids=NAMES)
def test_the_chain_tends_to_the_schedule_at_first_order(schedule):
    gaps = []
    for N in (800, 1600):
        a, s = chain_marginal(schedule, N)
        t = steps(0, 1, N)
        gaps.append(max((a - schedule.alpha(t)).abs().max().item(),
                        (s - schedule.sigma(t)).abs().max().item()))
        assert a.shape == s.shape == (N + 1,)
    assert 0.8 < math.log2(gaps[0] / gaps[1]) < 1.2


def test_the_chain_preserves_the_variance_and_has_the_published_end():
    a, s = chain_marginal(LinearBeta(), 1000)
    assert (a**2 + s**2 - 1).abs().max() < 1e-12
    beta = 20 / 1000 * torch.linspace(0.005, 1, 1000, dtype=f64)
    assert abs((1 - beta).prod().item() - 4.0358e-5) < 1e-9                   # the numbers of exercise 1
    assert abs(LinearBeta().alpha(1.0) ** 2 - math.exp(-10.05)) < 1e-15
    assert abs(-0.5 * beta.square().sum().item() + 0.0670) < 1e-4


# Langevin

@pytest.mark.parametrize("mass, dim", [(0.25, 1), (1.0, 3), (0.04, 2)])
def test_critical_damping_has_one_eigenvalue_and_the_right_rest(mass, dim):
    sde = critically_damped_langevin(lambda t: 2 + t, mass, dim)
    assert sde.dim == 2 * dim
    # a double eigenvalue is only found to the root of the rounding
    assert (torch.linalg.eigvals(sde.F(0.0)) + 2 / mass**0.5).abs().max() < 1e-5 / mass
    rest = torch.diag(torch.tensor([1.0] * dim + [mass] * dim, dtype=f64))
    assert (sde.covariance(0.0, 1.0, rest) - rest).abs().max() < 1e-12
    A, tau = sde.F(0.0) / 2, 2.5
    closed = math.exp(-tau / mass**0.5) * ((1 + tau / mass**0.5) * torch.eye(2 * dim, dtype=f64) + tau
                                           * A)
    assert (sde.transition(0.0, 1.0) - closed).abs().max() < 1e-11
    assert sde.G(0.3)[:dim].abs().max() == 0


# Paths

def test_every_path_has_its_own_stream():
    x, times = torch.randn(3, 2, dtype=f64, generator=seeded(0)), torch.linspace(0, 1, 6)
    sde = scalar_sde(LinearBeta(), 2)
    paths = simulate(sde.drift, sde.G, x, times, [seeded(4), 5, 6])
    for b in range(3):
        alone = simulate(sde.drift, sde.G, x[b:b + 1], times, [4 + b])
        torch.testing.assert_close(paths[:, b:b + 1], alone, rtol=1e-13, atol=1e-13)
    assert torch.equal(simulate(sde.drift, sde.G, x, times, 8),
                       simulate(sde.drift, sde.G, x, times, seeded(8)))
    with pytest.raises(ValueError, match="generator must hold"):
        simulate(sde.drift, sde.G, x, times, [1, 2])


def test_paths_repeat_with_the_generator_and_keep_dtype_and_shape():
    sde = scalar_sde(LinearBeta(), 3)
    for dtype in (torch.float32, f64):
        x = torch.randn(2, 5, 3, dtype=dtype, generator=seeded(0))
        path = simulate(sde.drift, sde.G, x, steps(0, 1, 50), seeded(1))
        assert path.shape == (51, 2, 5, 3) and path.dtype == dtype and torch.equal(path[0], x)
        assert torch.equal(path, simulate(sde.drift, sde.G, x, steps(0, 1, 50), seeded(1)))
        assert not torch.equal(path, simulate(sde.drift, sde.G, x, steps(0, 1, 50), seeded(2)))


def test_the_flow_does_not_depend_on_the_batch():
    schedule = LinearBeta()
    process = reverse_sde(scalar_sde(schedule, 2), ring(schedule)[1], 0.0)
    x = torch.randn(6, 2, dtype=f64, generator=seeded(3))
    whole, part = (simulate(*process, y, steps(1, 0.01, 30))[-1] for y in (x, x[2:4]))
    assert (whole[2:4] - part).abs().max() < 1e-13


@pytest.mark.parametrize("schedule", [LinearBeta(), SubVP(), Geometric(0.05, 8)], ids=repr)
def test_the_probability_flow_tends_to_that_of_the_oracle(schedule):
    data = gaussian(torch.tensor([1.0, -0.5], dtype=f64),
                    torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=f64))
    x = data.sample(20, seeded(0)) * schedule.alpha(0.8) + schedule.sigma(0.8)
    wanted = gaussian_flow(data, schedule, x, 0.8, 0.1)
    process = reverse_sde(scalar_sde(schedule, 2), data.predictor(schedule, "score"), 0.0)
    gaps = [(simulate(*process, x, steps(0.8, 0.1, N))[-1] - wanted).abs().max().item()
            for N in (200, 400)]
    assert gaps[1] < 0.03 and 0.85 < math.log2(gaps[0] / gaps[1]) < 1.15


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_the_way_back_ends_in_the_data(eta):
    schedule = LinearBeta(0.1, 8)
    mixture, score = ring(schedule)
    n, ends = 4000, []
    for N in (150, 300):
        x0 = mixture.sample(n, seeded(4))
        x = x0 * schedule.alpha(1.0) + schedule.sigma(1.0) * torch.randn(
            n, 2, dtype=f64, generator=seeded(5)
        )
        x = simulate(*reverse_sde(scalar_sde(schedule, 2), score, eta), x, steps(1, 0.02, N),
                     seeded(6 + N))[-1]
        ends.append(Estimate.of(mixture.log_prob(x, schedule.alpha(0.02), schedule.sigma(0.02))))
    exact = mixture.sample(200_000, seeded(7))
    z = torch.randn(exact.shape, dtype=f64, generator=seeded(8))
    exact = exact * schedule.alpha(0.02) + schedule.sigma(0.02) * z
    truth = mixture.log_prob(exact, schedule.alpha(0.02), schedule.sigma(0.02)).mean().item()
    error = math.hypot(2 * ends[1].stderr, ends[0].stderr)
    assert abs(2 * ends[1].value - ends[0].value - truth) < 4 * error and error < 0.08


# Density

def plane(n, half):
    axes = [torch.linspace(-half, half, n + 1, dtype=f64)[:-1]] * 2
    return axes, torch.cartesian_prod(*axes).reshape(n, n, 2)


@pytest.mark.parametrize("schedule", [LinearBeta(0.1, 8), SubVP(0.1, 8), Geometric(0.1, 0.9)], ids=repr)
def test_the_grid_agrees_with_the_oracle_in_the_plane(schedule):
    mixture = ring(schedule)[0]
    axes, X = plane(80, 7)
    p, q = (mixture.log_prob(X, schedule.alpha(t), schedule.sigma(t)).exp() for t in (0.2, 0.5))
    found = fokker_planck(scalar_sde(schedule, 2), p, axes, steps(0.2, 0.5, 200))
    assert (found - q).abs().max() < 1e-5 * q.max() and abs((found - p).sum()) < 1e-9 * p.sum()


def test_the_grid_is_of_order_four_in_time_and_takes_correlated_noise():
    A = torch.tensor([[-1.0, 2.0], [-2.0, -0.5]], dtype=f64)
    B = torch.tensor([[0.6, 0.0], [0.5, 0.4]], dtype=f64)
    sde = LinearSDE(lambda t: (1 + t) * A, lambda t: (1 + t) ** 2 * B)
    axes, X = plane(48, 6)
    start, m = 0.4 * torch.eye(2, dtype=f64), torch.tensor([0.5, 0.2], dtype=f64)

    def density(t):
        S, mean = sde.covariance(0.0, t, start), sde.transition(0.0, t) @ m
        return torch.distributions.MultivariateNormal(mean, S).log_prob(X).exp()

    found = [fokker_planck(sde, density(0.0), axes, steps(0, 0.6, N)) for N in (120, 240)]
    gaps = [(p - density(0.6)).abs().max().item() for p in found]
    assert gaps[1] < 1e-7 and 3.5 < math.log2(gaps[0] / gaps[1]) < 4.5


# Price of a wrong score

@quick
@given(st.floats(0.3, 3.0), st.floats(0.2, 2.0))
def test_the_price_grows_with_the_square_of_the_error_and_with_eta(eta, slope):
    sde, x = scalar_sde(LinearBeta(), 2), torch.randn(50, 2, dtype=f64, generator=seeded(0))
    cost = path_kl(sde, lambda x, t: -x, lambda x, t: -slope * x, lambda t: x, eta, 8)
    wanted = ((1 + eta**2) / (2 * eta)) ** 2 / 2 * (1 - slope) ** 2 * 10.05 * x.square().sum(1)
    assert abs(cost.value - wanted.mean().item()) < 1e-10
    assert abs(cost.stderr - Estimate.of(wanted).stderr) < 1e-10


def test_the_bound_is_exact_for_the_scores_of_another_mixture():
    schedule, n = LinearBeta(), 4000
    mixture, score = ring(schedule)
    other = Mixture(torch.tensor([1.0], dtype=f64), torch.zeros(1, 2, dtype=f64),
                    torch.eye(2, dtype=f64)[None])
    x0, z = mixture.sample(n, seeded(1)), torch.randn(n, 2, dtype=f64, generator=seeded(2))
    cost = path_kl(scalar_sde(schedule, 2), score,
                   lambda x, t: other.score(x, schedule.alpha(t), schedule.sigma(t)),
                   lambda t: schedule.alpha(t) * x0 + schedule.sigma(t) * z)
    data = mixture.sample(n, seeded(3))
    direct = Estimate.of(mixture.log_prob(data) - other.log_prob(data))    # KL(p_1 || q_1) is below 1e-4
    error = math.hypot(cost.stderr, direct.stderr)
    assert abs(cost.value - direct.value) < 4 * error and error < 0.05 * direct.value
    assert abs(2 * cost.value - direct.value) > 10 * error


# Bad input

EYE, TWO, VP = torch.eye(1, dtype=f64), torch.eye(2, dtype=f64), scalar_sde(LinearBeta())
X, AXIS = torch.zeros(4, 1, dtype=f64), torch.linspace(-8, 8, 65, dtype=f64)[:-1]
P = torch.exp(-AXIS**2 / 2)


def constant(A): return lambda t: A


@pytest.mark.parametrize("call, error, words", [
    (lambda: LinearSDE(EYE, EYE), TypeError, "F must be a function"),
    (lambda: LinearSDE(constant(EYE), constant(3.0)), TypeError, r"G\(0.5\)"),
    (lambda: LinearSDE(constant(EYE.float()), constant(EYE)), TypeError, "float64"),
    (lambda: LinearSDE(constant(EYE * math.nan), constant(EYE)), ValueError, "finite"),
    (lambda: LinearSDE(constant(EYE[0]), constant(EYE)), ValueError, r"F\(t\) must have shape \[D, D\]"),
    (lambda: LinearSDE(constant(torch.ones(2, 3, dtype=f64)), constant(EYE)), ValueError,
     r"shape \[D, D\]"),
    (lambda: LinearSDE(constant(EYE), constant(TWO)), ValueError, r"G\(0.5\) must have shape \[1, 1\]"),
    (lambda: LinearSDE(lambda t: EYE if t == 0.5 else TWO, constant(EYE)).transition(0.0, 1.0),
     ValueError, r"F\(.*\) must have shape \[1, 1\]"),
    (lambda: VP.transition(0.0, math.nan), ValueError, "t must be finite"),
    (lambda: VP.transition(math.inf, 0.5), ValueError, "s must be finite"),
    (lambda: VP.transition(torch.tensor(0.0), 0.5), TypeError, "s must be a number"),
    (lambda: VP.transition(0.0, "1"), TypeError, "t must be a number"),
    (lambda: VP.transition(0.0, torch.tensor([0, 1])), TypeError, "t must be float"),
    (lambda: VP.transition(0.0, 1.5), ValueError, "t must lie in"),
    (lambda: VP.covariance(0.5, 0.4), ValueError, "before s = 0.5"),
    (lambda: VP.covariance(0.0, 0.4, TWO), ValueError, "initial"),
    (lambda: scalar_sde(LinearBeta(), 2).covariance(0.0, 0.4, TWO.cumsum(0)), ValueError, "symmetric"),
    (lambda: VP.drift(torch.zeros(4, 2, dtype=f64), 0.5), ValueError, "x must have shape"),
    (lambda: VP.drift(torch.zeros(4, 1, dtype=torch.int64), 0.5), TypeError, "x must be float"),
    (lambda: scalar_sde(LinearBeta(), 0), ValueError, "dim"),
    (lambda: critically_damped_langevin(mass=0.0), ValueError, "mass"),
    (lambda: critically_damped_langevin(beta=-1.0), ValueError, "beta"),
    (lambda: critically_damped_langevin(dim=1.5), TypeError, "dim"),
    (lambda: chain_marginal(LinearBeta(), 0), ValueError, "steps"),
    (lambda: chain_marginal(LinearBeta(), 20), ValueError, "steps must exceed 20"),
    (lambda: simulate(VP.drift, VP.G, X, steps(0, 1, 0)), ValueError, "times"),
    (lambda: simulate(VP.drift, VP.G, X, torch.tensor([0.0, 0.5, 0.4])), ValueError,
     "rise or fall strictly"),
    (lambda: simulate(VP.drift, VP.G, X, torch.tensor([0.0, 0.5, 0.5])), ValueError,
     "rise or fall strictly"),
    (lambda: simulate(VP.drift, VP.G, X.half(), steps(0, 1, 5)), TypeError, "x must be float"),
    (lambda: simulate(lambda x, t: 1e200 * (x + 1) ** 3, VP.G, X, steps(0, 1, 5)), ValueError,
     "no longer finite"),
    (lambda: reverse_sde(VP, VP.drift, -0.1), ValueError, "eta must be finite and at least 0"),
    (lambda: reverse_sde(VP, lambda x, t: x[:, 0])[0](X, 0.5), ValueError, "score must return shape"),
    (lambda: simulate(lambda x, t: x[:, 0], VP.G, X, steps(0, 1, 5)), ValueError,
     "drift must return shape"),
    (lambda: path_kl(VP, VP.drift, lambda x, t: x[:1], lambda t: X), ValueError,
     "model must return shape"),
    (lambda: fokker_planck(VP, P, [AXIS], steps(1, 0, 2000)), ValueError, "must rise"),
    (lambda: fokker_planck(VP, P, [AXIS, AXIS], steps(0, 1, 2000)), ValueError, "1 dimensions"),
    (lambda: fokker_planck(VP, P[1:], [AXIS], steps(0, 1, 2000)), ValueError, "equal lengths"),
    (lambda: fokker_planck(VP, P, [AXIS**3], steps(0, 1, 2000)), ValueError, "even steps"),
    (lambda: fokker_planck(VP, P.flip(0), [AXIS.flip(0)], steps(0, 1, 2000)), ValueError,
     "axes must rise"),
    (lambda: fokker_planck(VP, torch.ones_like(P), [AXIS], steps(0, 1, 2000)), ValueError, "too small"),
    (lambda: fokker_planck(VP, P, [AXIS], steps(0, 1, 20)), ValueError, "times shorter"),
    (lambda: path_kl(VP, VP.drift, VP.drift, lambda t: X, 0.0), ValueError,
     "eta must be finite and above 0"),
    (lambda: path_kl(VP, VP.drift, VP.drift, lambda t: X, nodes=0), ValueError, "nodes"),
    (lambda: path_kl(VP, VP.drift, VP.drift, lambda t: X.repeat(1, 2)), ValueError, r"sample\(t\)"),
])
def test_bad_input_is_refused_by_name(call, error, words):
    with pytest.raises(error, match=words): call()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_states_stay_on_their_device():
    sde = critically_damped_langevin(dim=2)
    x = torch.randn(8, 4, device="cuda")
    path = simulate(*reverse_sde(sde, lambda x, t: -x), x, steps(1, 0, 20),
                    torch.Generator("cuda").manual_seed(0))
    assert path.device == x.device and path.dtype == x.dtype and sde.drift(x, 0.5).device == x.device
    cost = path_kl(sde, lambda x, t: -x, lambda x, t: -0.9 * x, lambda t: x, nodes=4)
    assert math.isfinite(cost.value)
