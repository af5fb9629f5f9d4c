"""Is anything better than the default of `deis` and `time_grid`? Candidates outside the family.

    python benchmarks/solver_search.py [--lattice]

Problems, errors and ratios of `solver_defaults.py`. Beside the half to choose and the half to report
stand six fresh laws, which had no part in any choice. The candidates change the grid (the factor in the
arc tangent and the weight of the logarithm), the variable of the polynomials (an arc tangent of another
scale, or the cosine 1 / sqrt(1 + rho^2), in which the x_0 of a standard normal law is linear), the
order, and the degree of the last step. Their numbers were found by random search, about 300 grids,
scales and orders, on the half to choose and most of them also on six laws with other seeds. Only the
default and the member that is named WINNER are run on the laws that report.

With `--lattice`, instead, the default, WINNER, tAB3 on the quadratic grid and UniPC of diffusers on
noised Ising strips of 40 x 6 spins, six starts each, as in `lattice.py`; what else the file holds is
kept.

The denoisers are those of `solver_defaults.py`, compiled by numba; references take 250 steps, not
1000, which moves them by 1e-5.
"""
from contextlib import redirect_stderr
from functools import partial
import io
import json
import math

from numba import njit
import numpy as np
import torch
from torch import Tensor

import lattice
from rbmdiff.diffusion.deis import _corrected, _lowered, _Table, deis
from rbmdiff.diffusion.networks import as_eps
from rbmdiff.diffusion.schedule import Schedule, arctan_variable, time_grid
from rbmdiff.diffusion.solvers import prior_sample
from record import RESULTS, arguments, command, versions, write
import solver_defaults as base

F64, STEPS = {"dtype": torch.float64}, 250
PLACES = {"angle": lambda l: torch.atan(l.exp()),
          "angle / √2": lambda l: torch.atan(l.exp() / math.sqrt(2)),
          "cosine": lambda l: 1 / torch.hypot(l.exp(), torch.ones_like(l))}
DEFAULT, WINNER = "default: 2, 0.06, angle, 3", "1.2, 0.045, cosine, 4"
# factor and weight of the grid, variable, order, degree of the last step
MEMBERS = {DEFAULT: (2.0, 0.06, "angle", 3, None),
           "1.2, 0.045, angle, 3": (1.2, 0.045, "angle", 3, None),
           "1.2, 0.045, angle, 3, last 0": (1.2, 0.045, "angle", 3, 0),
           "1.2, 0.045, angle / √2, 3, last 0": (1.2, 0.045, "angle / √2", 3, 0),
           "2, 0.06, cosine, 3": (2.0, 0.06, "cosine", 3, None),
           "1.2, 0.045, cosine, 3": (1.2, 0.045, "cosine", 3, None),
           WINNER: (1.2, 0.045, "cosine", 4, None),
           "1, 0.045, cosine, 3": (1.0, 0.045, "cosine", 3, None),
           "1.4, 0.045, cosine, 3": (1.4, 0.045, "cosine", 3, None)}


@njit(fastmath=True)
def machine_means(x, rho, E, c, b, bits):
    """Means behind w = x / sigma; E = exp(W h), or exp(2 W h) for spins, of every state h."""
    B, D = x.shape
    out, G, joint = np.zeros((B, D)), np.empty(D), np.empty(len(E))
    for i in range(B):
        for d in range(D):
            f = b[d] + x[i, d] / rho
            f = f / 2 - 0.25 / rho**2 if bits else f
            G[d] = math.exp(2 * min(max(f, -20.0), 20.0))
        for h in range(len(E)):
            p = q = 1.0
            for d in range(0, D, 2):
                p *= 1 + E[h, d] * G[d]
                q *= 1 + E[h, d + 1] * G[d + 1]
            joint[h] = math.log(p) + math.log(q) + c[h]
        top = joint.max()
        total = np.exp(joint - top).sum()
        for h in range(len(E)):
            weight = math.exp(joint[h] - top) / total
            for d in range(D): out[i, d] += weight / (1 + E[h, d] * G[d])
        for d in range(D): out[i, d] = 1 - out[i, d] * (1 if bits else 2)
    return out


@njit(fastmath=True)
def mixture_means(x, rho, axes, variances, means, log_weights):
    """Means behind w = x / sigma of a mixture of Gaussians with covariances in their axes."""
    B, D = x.shape
    K = len(means)
    out, turned, joint = np.zeros((B, D)), np.empty((K, D)), np.empty(K)
    for i in range(B):
        for k in range(K):
            z = np.zeros(D)
            for d in range(D):
                away = x[i, d] * rho - means[k, d]
                for e in range(D): z[e] += away * axes[k, d, e]
            joint[k] = log_weights[k]
            for e in range(D):
                variance = variances[k, e] + rho**2
                joint[k] -= 0.5 * (z[e]**2 / variance + math.log(variance))
                turned[k, e] = z[e] * variances[k, e] / variance
        top = joint.max()
        total = np.exp(joint - top).sum()
        for k in range(K):
            weight = math.exp(joint[k] - top) / total
            for d in range(D):
                pulled = means[k, d]
                for e in range(D): pulled += axes[k, d, e] * turned[k, e]
                out[i, d] += weight * pulled
    return out


class FastMixture:
    """A mixture, compiled."""

    def __init__(self, law):
        self.parts = [part.numpy() for part in (law.axes, law.variances, law.means, law.log_weights)]

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.from_numpy(mixture_means((x / sigma).numpy(), float(sigma / alpha), *self.parts))


class FastMachine:
    """A machine of `solver_defaults`, compiled."""

    def __init__(self, law):
        m, bits = law.machine, law.low == 0
        field = law.h @ m.W.T
        c = law.h @ m.c - (0 if bits else field.sum(1))
        self.E, self.c, self.b = ((field * (1 if bits else 2)).exp().numpy(), c.numpy(), m.b.numpy())
        self.bits = bits

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        scaled, rho = (x / sigma).numpy(), float(sigma / alpha)
        return torch.from_numpy(machine_means(scaled, rho, self.E, self.c, self.b, self.bits))


def laws(half: int) -> dict:
    """The laws of `half`, machines compiled and compared with their originals."""
    found = {}
    for name, law in base.laws(half).items():
        found[name] = quick = (FastMachine if isinstance(law, base.MachineLaw) else FastMixture)(law)
        for rho in (0.01, 0.5, 3.0):
            a = torch.tensor(1 / math.hypot(1, rho), **F64)
            x = a * rho * torch.randn(4, base.DIM, generator=torch.Generator().manual_seed(0), **F64)
            assert torch.allclose(quick.denoise(x, a, a * rho), law.denoise(x, a, a * rho), atol=1e-8)
    return found


def grid_of(schedule: Schedule, top: float, calls: int, factor: float, weight: float) -> Tensor:
    """Times in equal steps of arctan(factor rho) + weight log min(rho, 150)."""
    ends = [float(-schedule.log_snr(t) / 2) for t in (top, base.T_MIN)]
    l = torch.linspace(*ends, 200001, **F64)
    u = torch.atan(factor * l.exp()) + weight * l.clamp(max=math.log(150))
    if (factor, weight) == (2.0, 0.06): assert torch.allclose(u, arctan_variable(l))
    equal = np.linspace(float(u[0]), float(u[-1]), calls + 1)
    at = np.interp(equal, u.flip(0).numpy(), l.flip(0).numpy())
    grid = schedule.t_of_log_snr(torch.from_numpy(-2 * at))
    grid[0], grid[-1] = top, base.T_MIN
    return grid


def solve(data, schedule: Schedule, x: Tensor, top: float, calls: int, member: tuple) -> Tensor:
    """The last state of a corrected method that extrapolates x_0, from `x` at the time `top`."""
    factor, weight, place, order, last = member
    grid = grid_of(schedule, top, calls, factor, weight)
    table = _Table(schedule, grid, "log_rho", "x0")
    table.u, table.places = PLACES[place](table.u), PLACES[place](table.places)
    q = min(order, calls - 1)
    count = torch.full((calls,), q + 1)
    if last is not None: count[-1] = last + 1
    C = _lowered(table, q, True) if last is None else _corrected(table, q, count)
    alpha, sigma = schedule.alpha(grid), schedule.sigma(grid)
    past = []
    for i in range(calls):
        past = [data.denoise(x, alpha[i], sigma[i]), *past][:C.shape[1]]
        x = table.Psi[i] * x + sum(c * p for c, p in zip(C[i].tolist(), past))
    return x


def errors(group: dict, goals: dict, member: tuple) -> dict:
    """{(law, schedule, calls): error}"""
    return {(law, name, calls): base.rms(solve(data, schedule, base.start(schedule, top), top, calls,
                                               member), goals[law, name])
            for name, (schedule, top) in base.SCHEDULES.items()
            for calls in base.CALLS for law, data in group.items()}


def strips() -> dict:
    """Errors a spin {method: {calls: [4]}} on the four lattices, root mean square over six starts."""
    law, schedule = lattice.Strips(40, 6, 6), lattice.SCHEDULE
    x = prior_sample(schedule, (24, 240), 3, **F64)
    base.start = lambda schedule, top: x
    goal = lattice.reference(law, x, lattice.REFERENCE)
    predict = as_eps(lambda x, t: law.denoise(x, schedule.alpha(t), schedule.sigma(t)), schedule, "x0")
    quadratic = lambda n: time_grid(schedule, n, kind="quadratic")
    unipc = base.peers()["diffusers UniPC"]
    runs = {name: partial(solve, law, schedule, x, 1.0, member=MEMBERS[name])
            for name in (DEFAULT, WINNER)}
    runs["eps, t, 3, quadratic"] = lambda n: deis(predict, schedule, x, quadratic(n), 3, "t", "eps",
                                                  False)
    runs["diffusers UniPC"] = lambda n: unipc(law, schedule, 1.0, n)
    found = {}
    for name, run in runs.items():
        with redirect_stderr(io.StringIO()):
            ends = {str(n): run(n).view_as(x) for n in lattice.CALLS}
        found[name] = {n: (y - goal).square().view(4, -1).mean(1).sqrt().tolist()
                       for n, y in ends.items()}
        print(name, found[name], flush=True)
    return {"command": command(), "lattices": law.names, "errors": found}


def judged(errors: dict, floor: dict) -> dict:
    """`summary`, and how many ratios are above 1.1 for every number of calls."""
    above = {str(n): sum(errors[k] > 1.1 * floor[k][0] for k in floor if k[2] == n) for n in base.CALLS}
    return base.summary(errors, floor) | {"problems": len(floor), "above": above}


def main() -> None:
    parser = arguments(__doc__, RESULTS / "solver_search.json")
    parser.add_argument("--lattice", action="store_true", help="noised Ising strips instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.lattice:
        result = json.loads(options.out.read_text())
        write(options.out, result | {"lattice": strips()})
        return
    result = {"command": command(), "versions": versions("diffusers", "azula", "numba"),
              "calls": base.CALLS, "winner": WINNER}
    for half, name in ((0, "choose"), (1, "report"), (50, "fresh")):
        group = laws(half)
        goals = {(law, s): base.reference(data, at[0], base.start(*at), at[1], STEPS)
                 for law, data in group.items() for s, at in base.SCHEDULES.items()}
        floor = base.best_peer(group, goals)
        members = MEMBERS if half == 0 else {m: MEMBERS[m] for m in (DEFAULT, WINNER)}
        result[name] = {m: judged(errors(group, goals, member), floor) for m, member in members.items()}
        for m, row in result[name].items():
            print(name, m, row["above"], row["mean"], row["worst"], flush=True)
        write(options.out, result)


if __name__ == "__main__":
    main()
