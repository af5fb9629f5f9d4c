"""Noised Ising lattices, the largest exact diffusion problems: solvers ranked at equal calls, and the
exact likelihood of a sampler on 720 spins.

    python benchmarks/lattice.py [--parts solvers likelihood] [--out FILE] [--threads 1]

Solvers: four strips of 120 x 6 spins, hot, critical and cold ones of equal couplings and a glass, the
exact denoiser by the transfer matrix, linear beta from t = 1 to t = 0.001, the same 12 starts a lattice
for all methods. The error is the root mean square distance, per spin, to a Runge-Kutta solution of 48
steps; its own error is estimated from one of 24. Energies are those of the signs of the last states.
Members of the family of `deis` are the best of `solver_defaults.json`, chosen on other laws; peers run
with their defaults, on their own spacings.

Likelihood: a critical strip of 180 x 4 spins, DDIM of 5 and 10 steps on the default grid to t = 0.1,
from four starts; the determinant of every step by 720 products with its Jacobian. The parts that are not
asked for are kept as they stand in the file.
"""
from collections import defaultdict
from contextlib import redirect_stderr
import io
from itertools import pairwise
import json
import math
import time
import warnings

import torch
from torch import Tensor

from rbmdiff.bridge.flow import DDIMFlow, lattice_log_prob, lattice_predictor
from rbmdiff.diffusion.deis import deis
from rbmdiff.diffusion.networks import as_eps
from rbmdiff.diffusion.schedule import LinearBeta, time_grid
from rbmdiff.diffusion.solvers import ancestral, ddim, euler_maruyama, heun, prior_sample
from rbmdiff.foundations.core import Estimate
from rbmdiff.models import ising
from record import RESULTS, arguments, command, versions, write
import solver_defaults

F64, SCHEDULE, T_MIN = {"dtype": torch.float64}, LinearBeta(), 1e-3
CALLS, STARTS, REFERENCE = (8, 16, 32), 12, 48
CRITICAL = math.log(1 + math.sqrt(2)) / 2
STEPS, END = (5, 10), 0.1
PEERS = ("diffusers UniPC", "diffusers DPM-Solver++", "azula REAB")


class Strips:
    """Lattices of rows x columns spins, `starts` noisy copies of each: one batch."""

    def __init__(self, rows: int, columns: int, starts: int):
        self.shape, self.starts = (rows, columns), starts
        g = torch.Generator().manual_seed(0)
        equal = {"hot, 0.3": 0.3, "critical, 0.4407": CRITICAL, "cold, 0.6": 0.6}
        shapes = (rows, columns - 1), (rows - 1, columns)
        self.names = [*equal, "glass"]
        pairs = [[torch.full(s, K, **F64) for s in shapes] for K in equal.values()]
        pairs.append([torch.randn(s, generator=g, **F64) for s in shapes])
        self.right, self.down = (torch.stack(side) for side in zip(*pairs))
        self.field = torch.zeros(4, rows, columns, **F64)
        self.field[3] = 0.3 * torch.randn(rows, columns, generator=g, **F64)

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Means of the spins behind `x` [4 starts, D], in the order of the lattices."""
        y = x.view(4, self.starts, *self.shape).transpose(0, 1)
        m = ising.means(self.right, self.down, self.field + alpha / sigma**2 * y)
        return m.transpose(0, 1).reshape(x.shape)

    def energy(self, s: Tensor) -> Tensor:
        """Energy a spin [4, starts] of the spins `s` [4 starts, D]."""
        y = s.view(4, self.starts, *self.shape)
        bonds = ((y[..., 1:] * y[..., :-1] * self.right[:, None]).sum((-1, -2))
                 + (y[..., 1:, :] * y[..., :-1, :] * self.down[:, None]).sum((-1, -2)))
        return -(bonds + (y * self.field[:, None]).sum((-1, -2))) / math.prod(self.shape)

    def exact_energy(self) -> Tensor:
        """Expected energy a spin [4], minus the slope of log Z in the inverse temperature."""
        beta = torch.ones(4, 1, 1, **F64, requires_grad=True)
        log_z = ising.log_partition(beta * self.right, beta * self.down, beta * self.field)
        slope, = torch.autograd.grad(log_z.sum(), beta)
        return -slope.flatten() / math.prod(self.shape)


def reference(law: Strips, x: Tensor, steps: int) -> Tensor:
    """Classical Runge-Kutta for dy / d log rho = -x_0 / rho, y = x / sigma, uniform in log rho."""
    ends = [float(-SCHEDULE.log_snr(t) / 2) for t in (1.0, T_MIN)]

    def slope(y: Tensor, l: Tensor) -> Tensor:
        rho = l.exp()
        alpha = 1 / torch.sqrt(1 + rho**2)
        return -law.denoise(y * rho * alpha, alpha, rho * alpha) / rho
    y = x / SCHEDULE.sigma(1.0)
    for a, b in pairwise(torch.linspace(*ends, steps + 1, **F64)):
        h = b - a
        k1 = slope(y, a)
        k2 = slope(y + h / 2 * k1, a + h / 2)
        k3 = slope(y + h / 2 * k2, a + h / 2)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(y + h * k3, b))
    return y * SCHEDULE.sigma(T_MIN)


def methods(law: Strips, x: Tensor) -> dict:
    """name: function(calls) -> last states, at most `calls` calls of the denoiser."""
    predict = as_eps(lambda x, t: law.denoise(x, SCHEDULE.alpha(t), SCHEDULE.sigma(t)), SCHEDULE, "x0")
    grid = lambda n, kind=None: time_grid(SCHEDULE, n, T_MIN, kind)
    member = lambda kind, extrapolate, variable, order, correct: lambda n: deis(
        predict, SCHEDULE, x, grid(n, kind), order, variable, extrapolate, correct)
    runs = {"deis, default": lambda n: deis(predict, SCHEDULE, x, grid(n)),
            "deis x0, angle, 2, corrected, arctan": member("arctan", "x0", "angle", 2, True),
            "deis x0, t, 3, corrected, arctan": member("arctan", "x0", "t", 3, True),
            "deis x0, log_rho, 1, log_snr": member("log_snr", "x0", "log_rho", 1, False),
            "deis eps, t, 3, quadratic": member("quadratic", "eps", "t", 3, False),
            "ddim": lambda n: ddim(predict, SCHEDULE, x, grid(n)),
            "euler": lambda n: euler_maruyama(predict, SCHEDULE, x, grid(n), 0.0),
            "heun": lambda n: heun(predict, SCHEDULE, x, grid(n // 2))}
    peers = solver_defaults.peers()
    for name in PEERS:
        runs[name] = lambda n, run=peers[name]: run(law, SCHEDULE, 1.0, n)
    noisy = {"ancestral": ancestral, "euler_maruyama": euler_maruyama}
    for name, solve in noisy.items():
        runs[f"{name}, noise"] = lambda n, solve=solve: solve(predict, SCHEDULE, x, grid(n), 1.0,
                                                              generator=5)
    return runs


def pair(x: Tensor) -> list[float]:
    """Mean and standard error of numbers [n]."""
    e = Estimate.of(x)
    return [e.value, e.stderr]


def solvers() -> dict:
    """Errors of every method, lattice by lattice; energies; the error of the reference."""
    law = Strips(120, 6, STARTS)
    x = prior_sample(SCHEDULE, (4 * STARTS, 720), 1, **F64)
    solver_defaults.start = lambda schedule, top: x
    start = time.perf_counter()
    goal, coarse = (reference(law, x, n) for n in (REFERENCE, REFERENCE // 2))
    rms = lambda y: (y - goal).square().mean(1).sqrt().view(4, STARTS)
    true, found = law.energy(goal.sign()), defaultdict(dict)
    print("references done", time.perf_counter() - start, "s", rms(coarse).mean(1).tolist(), flush=True)
    for name, run in methods(law, x).items():
        for calls in CALLS:
            with redirect_stderr(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                y = run(calls).view_as(x)
            cell = {"flipped": (y.sign() != goal.sign()).double().view(4, -1).mean(1).tolist()}
            if "noise" not in name: cell["errors"] = rms(y).tolist()
            moved = law.energy(y.sign()) - (law.exact_energy()[:, None] if "noise" in name else true)
            cell["energy"] = [pair(row) for row in moved]
            found[name][str(calls)] = cell
            print(name, calls, rms(y).mean(1).tolist(), moved.mean(1).tolist(), flush=True)
    exact = law.exact_energy()
    spins = goal.sign().view(4, STARTS, -1)
    return {"command": command(), "lattices": law.names, "spins": 720, "starts": STARTS,
            "calls": CALLS, "reference_error": (rms(coarse).mean(1) / 15).tolist(),
            "exact_energy": exact.tolist(), "energy": [pair(row) for row in true],
            "magnetisation": [pair(row) for row in spins.mean(2).abs()],
            "methods": found, "seconds": round(time.perf_counter() - start)}


def likelihood(starts: int = 4) -> dict:
    """Exact log q_N of what DDIM makes of 720 noised spins of a critical strip, beside log p_t."""
    strip = [K * torch.ones(shape, **F64) for K, shape in
             ((CRITICAL, (180, 3)), (CRITICAL, (179, 4)), (0, (180, 4)))]
    z = prior_sample(SCHEDULE, (starts, 180, 4), 2, **F64)
    predict, rows, begin = lattice_predictor(*strip, SCHEDULE), {}, time.perf_counter()
    for steps in STEPS:
        grid = time_grid(SCHEDULE, steps, END)
        flow = DDIMFlow(predict, SCHEDULE, grid)
        x, log_det = flow.forward(z)
        log_q = flow.prior_log_prob(z) - log_det
        log_p = lattice_log_prob(*strip, x, SCHEDULE.alpha(END), SCHEDULE.sigma(END))
        rows[str(steps)] = {"log_q": log_q.tolist(), "log_p": log_p.tolist()}
        print(steps, (log_q - log_p).tolist(), time.perf_counter() - begin, "s", flush=True)
    return {"command": command(), "spins": 720, "starts": starts, "noise": float(SCHEDULE.rho(END)),
            "steps": rows, "seconds": round(time.perf_counter() - begin)}


def main() -> None:
    parser = arguments(__doc__, RESULTS / "lattice.json", 1)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = json.loads(options.out.read_text()) if options.out.exists() else {}
    for part in options.parts:
        result[part] = PARTS[part]()
        result |= {"command": command(), "versions": versions("diffusers", "azula")}
        write(options.out, result)


PARTS = {"solvers": solvers, "likelihood": likelihood}

if __name__ == "__main__":
    main()
