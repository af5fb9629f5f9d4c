"""The matrix case of DEIS: the scalar case in it, a rotating frame, orders, bad input."""
import pickle

import pytest
import torch

from rbmdiff.diffusion.deis import deis, deis_coefficients
from rbmdiff.diffusion.matrix import matrix_coefficients, matrix_deis
from rbmdiff.diffusion.oracle import Mixture, gaussian, gaussian_flow
from rbmdiff.diffusion.schedule import Cosine, LinearBeta, SubVP, time_grid
from rbmdiff.diffusion.sde import LinearSDE, scalar_sde

F64 = torch.float64
name = lambda f: getattr(f, "__name__", type(f).__name__)
three = Mixture(torch.tensor([0.3, 0.5, 0.2], dtype=F64),
                torch.tensor([[-2.0, 0.0], [1.0, 1.5], [1.5, -1.5]], dtype=F64),
                torch.eye(2, dtype=F64).expand(3, 2, 2) * 0.1)
linear = LinearBeta()
predict = three.predictor(linear)
GRID = time_grid(linear, 6)


def noise(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("schedule", [LinearBeta(), SubVP(), Cosine(-8, 8)], ids=name)
def test_scalar_matrices_are_scalars(schedule):
    grid = time_grid(schedule, 6, 1e-2)
    if isinstance(schedule, Cosine):                                        # some noise at t = 0
        initial = float(schedule.sigma(0.0))**2 * torch.eye(2, dtype=F64)
    else: initial = None
    for order in (0, 2):
        Psi, C = matrix_coefficients(scalar_sde(schedule, 2), grid, order, initial)
        flat_Psi, flat_C = deis_coefficients(schedule, grid, order)
        eye = torch.eye(2, dtype=F64)
        torch.testing.assert_close(Psi, flat_Psi[:, None, None] * eye, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(C, flat_C[..., None, None] * eye, rtol=1e-8, atol=1e-9)


def test_matrix_solver_is_the_scalar_solver():
    grid, x = time_grid(linear, 8, 1e-2), noise(4, 2)
    states = list(matrix_deis.states(predict, scalar_sde(linear, 2), x, grid, 2))
    scalar = deis(predict, linear, x, grid, 2, "t", "eps", False)
    torch.testing.assert_close(states[-1].x, scalar, rtol=1e-9, atol=1e-9)
    assert [s.nfe for s in states] == list(range(9)) and [s.t for s in states] == grid.tolist()


def test_rotation_commutes_with_the_matrix_solver():
    """A drift that also rotates: in the rotating frame the flow is the scalar one."""
    turn, eye = torch.tensor([[0.0, -3.0], [3.0, 0.0]], dtype=F64), torch.eye(2, dtype=F64)
    spinning = LinearSDE(lambda t: linear.drift(t) * eye + turn, lambda t: linear.diffusion(t) * eye)
    frame = lambda t: torch.linalg.matrix_exp(turn * float(t))
    bell = gaussian(torch.tensor([0.5, -0.3], dtype=F64),
                    torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=F64))
    still = bell.predictor(linear)
    net = lambda x, t: still(x @ frame(t), t) @ frame(t).mT
    root, x = torch.linspace(1, 0.1, 99, dtype=F64), noise(4, 2)
    # short steps at low degree
    ease = root[0] + root[:2].diff() * torch.tensor([0, 1 / 73, 9 / 73], dtype=F64)
    grid = torch.cat([ease, root[1:]]).square()
    ours = matrix_deis(net, spinning, x @ frame(1.0).mT, grid, 2) @ frame(1e-2)
    torch.testing.assert_close(ours, gaussian_flow(bell, linear, x, 1.0, 1e-2), rtol=0, atol=1e-3)


@pytest.mark.parametrize("order", range(3))
def test_states_and_single_precision(order):
    grid, x, sde = time_grid(linear, 8, 1e-2), noise(4, 2), scalar_sde(linear, 2)
    net = lambda x, t: predict(x.double(), t.double()).to(x)
    states = list(matrix_deis.states(net, sde, x.float(), grid, order))
    assert states[-1].x.dtype == torch.float32 and states[0].x.dtype == torch.float32
    assert torch.equal(states[-1].x, matrix_deis(net, sde, x.float(), grid, order))
    torch.testing.assert_close(states[-1].x.double(), matrix_deis(predict, sde, x, grid, order),
                               rtol=1e-3, atol=1e-3)


def test_a_network_may_use_its_answer_again():
    answer = torch.empty(3, 2, dtype=F64)
    again = lambda x, t: answer.copy_(predict(x, t))
    grid, sde = time_grid(linear, 8, 1e-2), scalar_sde(linear, 2)
    assert torch.equal(matrix_deis(again, sde, noise(3, 2), grid),
                       matrix_deis(predict, sde, noise(3, 2), grid))


def test_bad_input():
    assert pickle.loads(pickle.dumps(matrix_deis)) is matrix_deis
    with pytest.raises(ValueError, match=r"x must have shape \[B, 2\]"):
        matrix_deis(predict, scalar_sde(linear, 2), noise(3, 3), GRID)
    still = LinearSDE(lambda t: torch.eye(2, dtype=F64), lambda t: torch.zeros(2, 2, dtype=F64))
    with pytest.raises(ValueError, match="positive definite"): matrix_coefficients(still, GRID, 1)
    with pytest.raises(ValueError,
                       match="order must be at most 5"): matrix_coefficients(scalar_sde(linear, 2),
                                                                             GRID, 6)
    with pytest.raises(TypeError, match="order"): matrix_coefficients(scalar_sde(linear, 2), GRID, 1.0)
    with pytest.raises(ValueError,
                       match="grid must decrease"): matrix_coefficients(scalar_sde(linear, 2),
                                                                        GRID.flip(0), 1)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda():
    x, grid = noise(4, 2), time_grid(linear, 10)
    bell = gaussian(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64))
    moved = gaussian(torch.zeros(2, dtype=F64, device="cuda"), torch.eye(2, dtype=F64, device="cuda"))
    there = matrix_deis(moved.predictor(linear), scalar_sde(linear, 2), x.cuda(), grid)
    assert there.device.type == "cuda"
    wanted = matrix_deis(bell.predictor(linear), scalar_sde(linear, 2), x, grid)
    torch.testing.assert_close(there.cpu(), wanted, rtol=1e-9, atol=1e-9)


def test_short_grids():
    x, sde = noise(4, 2), scalar_sde(linear, 2)
    for steps in (1, 2, 3, 4):
        grid = time_grid(linear, steps)
        assert torch.equal(matrix_deis(predict, sde, x, grid),
                           matrix_deis(predict, sde, x, grid, min(3, steps - 1)))
    with pytest.raises(ValueError, match="order must be at most 0"):
        matrix_deis(predict, sde, x, time_grid(linear, 1), 1)
