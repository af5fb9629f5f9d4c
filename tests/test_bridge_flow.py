"""DDIM as a flow: its steps, densities and inverses against other roads; what networks may not do; other
noise that machines undo; lattices.
"""
import json
import math
from pathlib import Path

import pytest
import torch

from machines import machine, seeded
from rbmdiff.bridge.flow import (
    DDIMFlow,
    denoiser_jacobian,
    lattice_log_prob,
    lattice_predictor,
    symmetry,
    thinned_log_prob,
    thinned_posterior,
)
from rbmdiff.bridge.memory import memory_predictor
from rbmdiff.bridge.tilted import machine_predictor
from rbmdiff.diffusion.networks import as_eps
from rbmdiff.diffusion.oracle import Mixture
from rbmdiff.diffusion.schedule import Cosine, FlowMatching, Geometric, LinearBeta, time_grid
from rbmdiff.diffusion.solvers import ddim, prior_sample
from rbmdiff.foundations.units import states
from rbmdiff.models import ising
from rbmdiff.models.rbm import RBM

F32, F64 = torch.float32, torch.float64
ROOT = Path(__file__).resolve().parents[1]
VP, VE = LinearBeta(), Geometric(0.1, 5.0)
GRID = time_grid(VP, 4, 0.2)
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[cuda, pytest.mark.cuda])]


def numbers(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=seeded(seed), dtype=F64).to(dtype)


def mixture(D=3, seed=5):
    roots = 0.4 * numbers(4, D, D, seed=seed)
    return Mixture(numbers(4, seed=seed + 1).exp(), numbers(4, D, seed=seed + 2), roots @ roots.mT)


def flow_of(schedule=VP, grid=GRID, law=None):
    return DDIMFlow((law or mixture()).predictor(schedule), schedule, grid)


def worst(x, y): return (x - y).abs().max().item()


# --- the flow

@pytest.mark.parametrize("schedule, top",
                         [(VP, 1.0), (VE, 1.0), (Cosine(), 0.99), (FlowMatching(), 0.95)])
@pytest.mark.parametrize("steps", (1, 2, 5))
def test_forward_is_the_solver_and_its_determinant(schedule, top, steps):
    law = mixture()
    grid = time_grid(schedule, steps, 0.2, t_max=top)
    flow, z = flow_of(schedule, grid, law), 2 * numbers(6, 3)
    x, log_det = flow.forward(z)
    assert worst(x, ddim(law.predictor(schedule), schedule, z, grid)) < 1e-11
    sampler = lambda z: ddim.differentiable(law.predictor(schedule), schedule, z[None], grid)[0]
    J = torch.func.vmap(torch.func.jacrev(sampler))(z)
    assert worst(log_det, torch.linalg.slogdet(J)[1]) < 1e-9
    back, log_back = flow.inverse(x)
    assert worst(back, z) < 1e-8 and worst(log_back, -log_det) < 1e-8
    top = torch.tensor(top, dtype=F64)
    scale = torch.hypot(schedule.alpha(top), schedule.sigma(top))
    base = torch.distributions.Normal(0 * scale, scale).log_prob(z).sum(1)
    assert worst(flow.prior_log_prob(z), base) < 1e-12
    assert worst(flow.log_prob(x), base - log_det) < 1e-8


@pytest.mark.parametrize("kind", ("eps", "x0", "v"))
def test_every_kind_of_prediction_gives_one_flow(kind):
    law, z = mixture(), numbers(4, 3)
    flow = DDIMFlow(as_eps(law.predictor(VP, kind), VP, kind), VP, GRID)
    x, log_det = flow.forward(z)
    truth = flow_of(law=law).forward(z)
    assert worst(x, truth[0]) < 1e-11 and worst(log_det, truth[1]) < 1e-10
    one = denoiser_jacobian(as_eps(law.predictor(VP, kind), VP, kind), VP, z, 0.4)
    assert worst(one, denoiser_jacobian(law.predictor(VP), VP, z, 0.4)) < 1e-11


def test_a_start_without_data_in_it():
    """At t = 1 flow matching keeps nothing of the data: a prediction of the data is enough."""
    law, line = mixture(), FlowMatching()
    grid = time_grid(line, 4, 0.1)
    flow = DDIMFlow(as_eps(law.predictor(line, "x0"), line, "x0"), line, grid)
    z = numbers(4, 3)
    x = flow.forward(z)[0]
    assert x.isfinite().all() and worst(flow.inverse(x)[0], z) < 1e-9
    with pytest.raises(ValueError, match="start the grid at an earlier time"):
        DDIMFlow(law.predictor(line), line, grid)


def test_single_precision():
    law = mixture()
    single = Mixture(law.log_weights.exp().float(), law.means.float(), numbers(4, 3, 3).float() * 0)
    flow = DDIMFlow(single.predictor(VP), VP, time_grid(VP, 3, 0.5))
    z = numbers(5, 3, dtype=F32)
    x, log_det = flow.forward(z)
    back, log_back = flow.inverse(x)
    assert x.dtype == log_det.dtype == back.dtype == log_back.dtype == flow.log_prob(x).dtype == F32
    assert worst(back, z) < 1e-2 and worst(log_back, -log_det) < 1e-2


def test_images_are_flattened_in_the_determinant_alone():
    law, z = mixture(4), numbers(3, 1, 2, 2)
    ask = lambda x, t: law.predictor(VP)(x.flatten(1), t).view_as(x)
    flow, flat = DDIMFlow(ask, VP, GRID), flow_of(law=law)
    x, log_det = flow.forward(z)
    assert x.shape == z.shape and worst(log_det, flat.forward(z.flatten(1))[1]) < 1e-12
    assert worst(flow.log_prob(x), flat.log_prob(x.flatten(1))) < 1e-10
    assert denoiser_jacobian(ask, VP, z, torch.tensor([0.3, 0.4, 0.5])).shape == (3, 4, 4)


def test_neighbours_in_the_batch_change_nothing():
    flow, x = flow_of(), torch.cat([numbers(4, 3), 30 * numbers(1, 3)])
    for run in (flow.forward, flow.inverse):
        whole, alone = run(x), [run(row) for row in x.split(1)]
        for part in (0, 1):
            assert worst(whole[part], torch.cat([one[part] for one in alone])) < 1e-10
    assert worst(flow.log_prob(x), torch.cat([flow.log_prob(row) for row in x.split(1)])) < 1e-8


@pytest.mark.parametrize("scale", (1.0, 30.0, 100.0))
def test_inverse_far_away_and_between_far_clouds(scale):
    """Stretches between two far points are huge, and far outside of all data they are r."""
    points = scale * torch.tensor([[-1.0, 0], [1, 0]], dtype=F64)
    grid = VE.t_of_rho(torch.tensor([5.0, 1.0, 0.2], dtype=F64))
    flow = DDIMFlow(memory_predictor(points, VE), VE, grid)
    x = scale * torch.tensor([[0.0, 0.3], [1e-3, 0], [0.5, 2], [40, -30], [-1, 0]], dtype=F64)
    z, log_det = flow.inverse(x)
    found, log_back = flow.forward(z)
    assert worst(found, x) < 1e-7 * scale and worst(log_back, -log_det) < 1e-6


def test_thousands_of_states_at_once():
    z = numbers(5000, 2)
    M = denoiser_jacobian(mixture(2).predictor(VP), VP, z, 0.5)
    assert worst(M[-3:], denoiser_jacobian(mixture(2).predictor(VP), VP, z[-3:], 0.5)) < 1e-12


@pytest.mark.parametrize("unit", (1e-9, 1e9))
def test_inverse_in_other_units(unit):
    schedule = Geometric(0.1 * unit, 5 * unit)
    points = 30 * unit * torch.tensor([[-1.0, 0], [1, 0]], dtype=F64)
    grid = schedule.t_of_rho(unit * torch.tensor([5.0, 1.0, 0.2], dtype=F64))
    flow = DDIMFlow(memory_predictor(points, schedule), schedule, grid)
    x = 30 * unit * torch.tensor([[0.0, 0.3], [1e-3, 0], [0.5, 2], [40, -30], [-1, 0]], dtype=F64)
    assert worst(flow.forward(flow.inverse(x)[0])[0], x) < 1e-6 * unit


def test_states_that_have_arrived_wait_and_cost_nothing():
    """In single precision a state arrives long before more moves would stop to change it."""
    calls = []
    bits = lambda x, t: calls.append(1) or torch.tanh(x / VE.sigma(t) ** 2)
    flow = DDIMFlow(as_eps(bits, VE, "x0"), VE, VE.t_of_rho(torch.tensor([0.5, 0.2], dtype=F64)))
    x = torch.linspace(-3, 3, 200, dtype=F32)[:, None]
    alone = torch.cat([flow.inverse(row)[0] for row in x.split(1)])
    calls.clear()
    assert worst(flow.inverse(x)[0], alone) < 1e-5 and len(calls) < 30


def test_states_whose_squares_overflow_are_undone():
    """Far outside of all data a step is linear; lengths of such states are infinite."""
    for network in (memory_predictor(numbers(5, 3), VP), lambda x, t: 0.5 * x):
        flow, x = DDIMFlow(network, VP, GRID), 1e200 * numbers(2, 3)
        back = flow.forward(flow.inverse(x)[0])[0]
        assert worst(back / x, torch.ones(2, 3, dtype=F64)) < 1e-9


@pytest.mark.parametrize("device", DEVICES)
def test_devices(device):
    law = mixture().to(device)
    flow = DDIMFlow(law.predictor(VP), VP, GRID)
    x, log_det = flow.forward(numbers(3, 3).to(device))
    assert x.device.type == log_det.device.type == flow.log_prob(x).device.type == device


def test_eigenvalues_of_exact_denoisers():
    """Machines of every pair of units of two levels, and of real ones."""
    for visible in ("bernoulli", "spin", "gaussian", "potts(2)"):
        m = machine(4, 3, visible)
        M = denoiser_jacobian(machine_predictor(m, VP), VP, numbers(6, 4), 0.4)
        asymmetry, least = symmetry(M)
        assert asymmetry.max() < 1e-12 and least.min() > -1e-12


# --- networks

class Turn(torch.nn.Module):
    """The denoiser m = A x as a network of the data."""

    def __init__(self, A):
        super().__init__()
        self.A = torch.nn.Parameter(torch.tensor(A, dtype=F64))

    def forward(self, x, t):
        return x @ self.A.T


def test_a_step_that_folds_is_refused_and_says_where():
    grid = torch.tensor([0.9, 0.5, 0.2], dtype=F64)
    bad = as_eps(Turn([[0.1, 0.0], [0.0, -9.0]]), VP, "x0")
    for run in (DDIMFlow(bad, VP, grid).forward, DDIMFlow(bad, VP, grid).log_prob):
        with pytest.raises(ValueError, match=r"predict must make .* undone: step \d of 2"):
            run(numbers(2, 2))


def test_a_step_with_two_folds_has_a_positive_determinant_and_is_refused():
    grid = torch.tensor([0.9, 0.2], dtype=F64)
    bad = as_eps(Turn([[-9.0, 0.0], [0.0, -9.0]]), VP, "x0")
    with pytest.raises(ValueError, match="stretches a direction by -"):
        DDIMFlow(bad, VP, grid).forward(numbers(2, 2))


@pytest.mark.parametrize("stretch, passes", [(0.01, True), (-0.01, False), (-1e-9, False)])
def test_the_least_stretch_must_be_positive_and_not_nearly(stretch, passes):
    grid = torch.tensor([0.9, 0.2], dtype=F64)
    r = VP.sigma(grid[1]) / VP.sigma(grid[0])
    slope = ((stretch - r) / (VP.alpha(grid[1]) - VP.alpha(grid[0]) * r)).item()
    flow = DDIMFlow(as_eps(Turn([[0.5, 0.0], [0.0, slope]]), VP, "x0"), VP, grid)
    if passes: assert flow.forward(numbers(2, 2))[1].isfinite().all()
    else:
        with pytest.raises(ValueError, match="stretches a direction by -"): flow.forward(numbers(2, 2))


def test_a_turn_that_is_no_fold_passes():
    """Symmetry is not asked for: a rotation is invertible."""
    grid = torch.tensor([0.9, 0.2], dtype=F64)
    flow = DDIMFlow(as_eps(Turn([[0.2, -0.9], [0.9, 0.2]]), VP, "x0"), VP, grid)
    z = numbers(5, 2)
    x, log_det = flow.forward(z)
    assert worst(flow.inverse(x)[0], z) < 1e-10
    r = VP.sigma(grid[1]) / VP.sigma(grid[0])
    new = VP.alpha(grid[1]) - VP.alpha(grid[0]) * r
    A = r * torch.eye(2, dtype=F64) + new * torch.tensor([[0.2, -0.9], [0.9, 0.2]], dtype=F64)
    assert worst(x, z @ A.T) < 1e-12 and worst(log_det, torch.linalg.slogdet(A)[1]) < 1e-12


def test_a_state_that_is_not_reached_is_an_error():
    kink = lambda x, t: -3 * x.abs()
    flow = DDIMFlow(as_eps(kink, VP, "x0"), VP, torch.tensor([0.9, 0.2], dtype=F64))
    with pytest.raises(ValueError, match=r"step 0 of 1 is not, .* after 20 steps of Newton"):
        flow.inverse(torch.full((1, 1), 50.0, dtype=F64), 20)
    with pytest.raises(ValueError, match="after 1 steps of Newton"):
        flow_of().inverse(numbers(2, 3), 1)


@pytest.mark.parametrize("answer, words", [
    (lambda x, t: x * math.nan, "predict returned NaN or infinity in call 1"),
    (lambda x, t: x[:, :1], "predict must return shape"), (lambda x, t: None, "predict must return"),
    (lambda x, t: x.detach(), "predict must be differentiable in x"),
    (lambda x, t: torch.ones_like(x).requires_grad_(), "predict must depend on x"),
    (lambda x, t: (x - x.detach()).abs().sqrt() + x, "predict must have finite slopes in x"),
    (lambda x, t: x.mul_(2), "in-place|in place|inplace")])
def test_bad_answers(answer, words):
    z = numbers(2, 3)
    before = z.clone()
    for run in (DDIMFlow(answer, VP, GRID).forward, DDIMFlow(answer, VP, GRID).inverse,
                lambda x: denoiser_jacobian(answer, VP, x, 0.5)):
        with pytest.raises((TypeError, ValueError, RuntimeError), match=words): run(z)
    assert torch.equal(z, before)


def test_modules_are_asked_in_evaluation_mode_and_get_their_mode_back():
    network = torch.nn.Dropout(0.5).train()
    flow = DDIMFlow(lambda x, t: network(0.5 * x), VP, GRID)
    z = numbers(3, 2)
    assert torch.equal(flow.forward(z)[0], flow.forward(z)[0]) and network.training


@pytest.mark.parametrize("change, error, words", [
    ({"predict": None}, TypeError, "predict must be callable"),
    ({"schedule": 3}, TypeError, "schedule must"),
    ({"grid": [0.9, 0.1]}, TypeError, "grid must be a torch.Tensor"),
    ({"grid": torch.tensor([0.1, 0.9])}, ValueError, "grid must decrease strictly"),
    ({"grid": torch.tensor([0.9, 0.9])}, ValueError, "grid must decrease strictly"),
    ({"grid": torch.tensor([0.9, 0.0])}, ValueError, r"grid must lie in \(0, 1\]"),
    ({"grid": torch.tensor([0.9])}, ValueError, "grid must have shape"),
    ({"grid": torch.tensor([0.9, math.nan])}, ValueError, "grid must be finite")])
def test_bad_flows(change, error, words):
    good = {"predict": mixture().predictor(VP), "schedule": VP, "grid": GRID}
    with pytest.raises(error, match=words): DDIMFlow(**good | change)


def test_a_step_that_keeps_nothing_is_refused():
    class Clean(LinearBeta):
        def sigma(self, t): return super().sigma(t) * (torch.as_tensor(t) > 0.3)

    schedule = Clean()
    with pytest.raises(ValueError, match="cannot be undone"):
        DDIMFlow(as_eps(Turn([[0.5]]), schedule, "x0"), schedule, torch.tensor([0.9, 0.2], dtype=F64))


def test_a_grid_that_wants_a_gradient_gives_numbers():
    flow = flow_of(grid=GRID.clone().requires_grad_())
    assert not flow.log_prob(numbers(2, 3)).requires_grad


def test_bad_states():
    flow = flow_of()
    for name, run in (("z", flow.forward), ("x", flow.inverse), ("x", flow.log_prob),
                      ("z", flow.prior_log_prob)):
        for bad, error in ((None, TypeError), (numbers(3), ValueError), (numbers(0, 3), ValueError),
                           (numbers(2, 3).long(), TypeError), (numbers(2, 3) * math.nan, ValueError)):
            with pytest.raises(error, match=f"{name} must"): run(bad)
    for run in (flow.forward, flow.inverse, flow.log_prob):
        with pytest.raises(ValueError, match="wants a gradient, which would be lost"):
            run(numbers(2, 3).requires_grad_())
    for most, error in ((0, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="most must"): flow.inverse(numbers(2, 3), most)
    with pytest.raises(ValueError, match="does not work inside"): torch.func.vmap(
        lambda x: flow.forward(x[None])[0][0])(numbers(2, 3))
    with pytest.raises(ValueError, match="t must"):
        denoiser_jacobian(mixture().predictor(FlowMatching()), FlowMatching(), numbers(2, 3), 1.0)


# --- the test

def test_symmetry_by_hand():
    J = torch.tensor([[[2.0, 1], [1, 2]], [[0, -2.0], [2, 0]], [[1.0, 2], [0, 1]], [[0.0, 0], [0, 0]]],
                     dtype=F64)
    asymmetry, least = symmetry(J)
    torch.testing.assert_close(asymmetry, torch.tensor([0, 1, 1 / math.sqrt(3), 0], dtype=F64))
    torch.testing.assert_close(least, torch.tensor([1.0, 0, 0, 0], dtype=F64))
    assert symmetry(J[0].float())[0].dtype == F32 and symmetry(J[0])[0].shape == ()
    for bad, error in ((numbers(2, 3), ValueError), (numbers(3), ValueError), (None, TypeError)):
        with pytest.raises(error, match="J must"): symmetry(bad)


# --- thinned counts

def counts(dtype=F64):
    m = RBM(2, 2, "poisson", generator=1, dtype=dtype).requires_grad_(False)
    m.W.copy_(0.4 * numbers(2, 2))
    m.b.copy_(torch.tensor([0.2, -0.3]))
    return m


@pytest.mark.parametrize("p", (1e-6, 0.3, 0.999))
def test_lost_counts_by_tables(p):
    m = counts()
    V = torch.cartesian_prod(*[torch.arange(30, dtype=F64)] * 2)
    x = torch.tensor([[0.0, 0], [2, 1]], dtype=F64)
    for row in x:
        fits = (V >= row).all(1)
        v = V[fits]
        ways = torch.lgamma(v + 1) - torch.lgamma(row + 1) - torch.lgamma(v - row + 1)
        log_joint = m.log_prob(v) + (ways + row * math.log(p) + (v - row) * math.log1p(-p)).sum(1)
        torch.testing.assert_close(thinned_log_prob(m, row, p), log_joint.logsumexp(0))
        torch.testing.assert_close(thinned_posterior(m, row, p).log_prob(v - row),
                                   log_joint.log_softmax(0), rtol=1e-9, atol=1e-9)
    batch = thinned_posterior(m, x, p)
    assert batch.batch == (2,) and thinned_log_prob(m, x, p).shape == (2,)
    torch.testing.assert_close(batch.log_prob(x), torch.stack(
        [thinned_posterior(m, row, p).log_prob(row) for row in x]))


def test_laws_of_kept_counts_sum_to_one_in_single_precision():
    m = counts(F32)
    x = torch.cartesian_prod(*[torch.arange(25, dtype=F32)] * 2)
    assert abs(thinned_log_prob(m, x, 0.4).exp().sum() - 1) < 1e-5


def test_bad_thinning():
    x = torch.ones(3, 2, dtype=F64)
    for run in (thinned_posterior, thinned_log_prob):
        for unit in ("bernoulli", "gaussian", "binomial(3)", "potts(2)"):
            with pytest.raises(ValueError, match="rbm must have visible units that are 'poisson'"):
                run(machine(2, 2, unit), x, 0.5)
        with pytest.raises(TypeError, match="rbm must be an RBM"): run(None, x, 0.5)
        with pytest.raises(ValueError, match="rbm must be one machine"):
            run(thinned_posterior(counts(), x, 0.5), x, 0.5)
        for bad in (x - 2, x / 2, x[:, :1], x[None], x * math.inf):
            with pytest.raises(ValueError, match="x must"): run(counts(), bad, 0.5)
        with pytest.raises(TypeError, match="x must"): run(counts(), x.long(), 0.5)
        for p, error in ((0, ValueError), (1, ValueError), (math.nan, ValueError), ("a", TypeError)):
            with pytest.raises(error, match="p must"): run(counts(), x, p)


# --- lattices

def strip(R=3, C=2, seed=0, dtype=F64):
    return [numbers(*shape, seed=seed + i, dtype=dtype)
            for i, shape in enumerate(((R, C - 1), (R - 1, C), (R, C)))]


def points(s):
    right, down, field = s
    R, C = field.shape
    y = states(R * C, "spin")
    z = y.view(-1, R, C)
    bonds = (right * z[..., 1:] * z[..., :-1]).sum((1, 2)) + (down * z[:, 1:] * z[:, :-1]).sum((1, 2))
    log_w = bonds + y @ field.flatten()
    return Mixture(log_w.softmax(0), y, torch.zeros(R * C, R * C, dtype=F64).expand(len(y), -1, -1))


@pytest.mark.parametrize("schedule", (VP, VE))
@pytest.mark.parametrize("t", (0.1, 0.5, 1.0))
@pytest.mark.parametrize("R, C", [(3, 2), (2, 3), (1, 4), (4, 1)])
def test_lattices_by_enumeration(schedule, t, R, C):
    s, law = strip(R, C), points(strip(R, C))
    x = numbers(4, R, C)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    flat = x.flatten(1)
    truth = law.predictor(schedule)(flat, t)
    assert worst(lattice_predictor(*s, schedule)(x, t).flatten(1), truth) < 1e-11
    assert worst(lattice_log_prob(*s, x, alpha, sigma), law.log_prob(flat, alpha, sigma)) < 1e-11


def test_lattices_in_batches_and_at_times_of_their_own():
    s, x, t = strip(), numbers(4, 3, 2), torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=F64)
    ask = lattice_predictor(*s, VP)
    one = torch.cat([ask(row, u) for row, u in zip(x.split(1), t)])
    assert worst(ask(x, t), one) < 1e-12
    levels = VP.alpha(t), VP.sigma(t)
    one = [lattice_log_prob(*s, row, a, b)[0] for row, a, b in zip(x.split(1), *levels)]
    assert worst(lattice_log_prob(*s, x, *levels), torch.stack(one)) < 1e-12
    many = [torch.stack([part, 2 * part, -part, 0 * part]) for part in s]
    each = [lattice_predictor(*(part[i] for part in many), VP)(x[i:i + 1], 0.5) for i in range(4)]
    assert worst(lattice_predictor(*many, VP)(x, 0.5), torch.cat(each)) < 1e-12
    low = lattice_predictor(*(part.float() for part in s), VP)(x.float(), 0.5)
    assert low.dtype == F32 and worst(low.double(), ask(x, 0.5)) < 1e-4


def test_gradients_of_lattices():
    s, x = strip(), numbers(2, 3, 2)
    score = torch.func.grad(lambda x: lattice_log_prob(*s, x, 0.6, 0.8).sum())(x)
    assert worst(score, ising.score(*s, x, 0.6, 0.8)) < 1e-12
    z = x.clone().requires_grad_()
    assert worst(torch.autograd.grad(lattice_log_prob(*s, z, 0.6, 0.8).sum(), z)[0], score) < 1e-12


def test_a_lattice_of_720_spins_is_a_flow():
    K = torch.tensor(0.44, dtype=F64)
    s = K.expand(180, 3), K.expand(179, 4), 0 * K.expand(180, 4)
    grid = torch.tensor([0.9, 0.6], dtype=F64)
    z = prior_sample(VP, (1, 180, 4), 0, dtype=F64)
    flow = DDIMFlow(lattice_predictor(*s, VP), VP, grid)
    x, log_det = flow.forward(z)
    assert x.shape == z.shape and log_det.isfinite().all()


def test_what_the_caller_changes_afterwards_changes_nothing():
    s, x = strip(), numbers(2, 3, 2)
    ask = lattice_predictor(*s, VP)
    before = ask(x, 0.5)
    for part in s: part.zero_()
    assert torch.equal(ask(x, 0.5), before)


def test_bad_lattices():
    s, x = strip(), numbers(2, 3, 2)
    with pytest.raises(TypeError, match="schedule must"): lattice_predictor(*s, None)
    with pytest.raises(TypeError, match="field must be a torch.Tensor"):
        lattice_predictor(*s[:2], 3, VP)
    with pytest.raises(ValueError, match="right must"): lattice_predictor(s[1], *s[1:], VP)
    with pytest.raises(ValueError, match="x must have shape"):
        lattice_predictor(*s, VP)(numbers(2, 6), 0.5)
    for bad, error in ((None, TypeError), (x.numpy(), TypeError), (x.long(), TypeError),
                       (x.half(), TypeError), (x * math.nan, ValueError), (x[:0], ValueError),
                       (x.to("meta"), ValueError), (x[0, 0, 0], ValueError)):
        with pytest.raises(error, match="x must"): lattice_predictor(*s, VP)(bad, 0.5)
    with pytest.raises(ValueError, match="sigma must be positive"): lattice_predictor(*s, VP)(x, 0.0)
    with pytest.raises(ValueError, match="sigma must be positive"): lattice_log_prob(*s, x, 1.0, 0.0)
    with pytest.raises(TypeError, match="x must be torch.float64"): lattice_log_prob(*s, x.float(), 1, 1)
    for bad in (numbers(2, 6), numbers(6)):
        with pytest.raises(ValueError, match="x must have shape"): lattice_log_prob(*s, bad, 1.0, 1.0)


# --- stored results

def test_the_default_of_deis_is_ranked_as_the_page_says():
    stored = json.loads((ROOT / "benchmarks/results/lattice.json").read_text())["solvers"]
    logs = {name: {n: torch.tensor(found[n]["errors"]).log() for n in ("8", "16", "32")}
            for name, found in stored["methods"].items() if "errors" in found["8"]}
    best = lambda n: min(logs, key=lambda name: logs[name][n].mean())
    assert best("8") == best("16") == "deis, default" and best("32") != "deis, default"
    cold = stored["lattices"].index("cold, 0.6")
    for n in ("8", "16", "32"):
        gap = (logs["diffusers UniPC"][n] - logs["deis, default"][n])[cold]
        assert gap.mean() < -2.5 * gap.std() / math.sqrt(stored["starts"])
    assert max(stored["reference_error"]) < 1e-5
