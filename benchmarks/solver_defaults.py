"""Which fixed method and grid should be the default of `deis` and `time_grid`, and is any peer's better?

    python benchmarks/solver_defaults.py

Problems: the exact denoisers of mixtures of five Gaussians, of machines of bits and of spins, in 16
dimensions, under four schedules, from t = 1 (0.999 for flow matching) to 0.001, with 6, 12 and 25 calls.
One half of the laws serves to choose among all members of the family on five grids, the other half to
report. The error is the root mean square distance, over 256 starts, to a Runge-Kutta solution of 1000
steps. A peer's default is its constructor without options on its own spacing. A ratio is the error of a
method over that of the best default of a peer on the same problem.
"""
from collections import defaultdict
from contextlib import redirect_stderr
import io
import itertools
import json
import math
import statistics
from typing import get_args
import warnings

import azula.denoise
import azula.noise
import azula.sample
import diffusers
import torch
from torch import Tensor

from rbmdiff.bridge import tilted
from rbmdiff.diffusion.deis import Extrapolate, Variable, _prediction_of, deis, deis_coefficients
from rbmdiff.diffusion.networks import as_eps
from rbmdiff.diffusion.oracle import Mixture
from rbmdiff.diffusion.schedule import (
    Cosine,
    FlowMatching,
    Geometric,
    Grid,
    LinearBeta,
    Schedule,
    time_grid,
)
from rbmdiff.diffusion.solvers import prior_sample
from rbmdiff.models.rbm import RBM
from record import RESULTS, arguments, command, versions, write

F64, T_MIN, CALLS, DIM, STARTS = {"dtype": torch.float64}, 1e-3, (6, 12, 25), 16, 256
SCHEDULES = {"linear beta": (LinearBeta(), 1.0), "cosine": (Cosine(), 1.0),
             "geometric": (Geometric(), 1.0), "flow matching": (FlowMatching(), 0.999)}
OLD = ("quadratic", "eps", "t", 3, False)


class MachineLaw:
    """A machine of 16 visible and 4 hidden units of two levels, its denoiser by the 16 hidden states."""

    def __init__(self, kind: str, scale: float, seed: int):
        g = torch.Generator().manual_seed(seed)
        m = self.machine = RBM(DIM, 4, kind, kind).double().requires_grad_(False)
        m.W.copy_(scale * torch.randn(DIM, 4, generator=g, **F64))
        m.b.copy_(0.3 * torch.randn(DIM, generator=g, **F64))
        m.c.copy_(0.3 * torch.randn(4, generator=g, **F64))
        self.low = 0.0 if kind == "bernoulli" else -1.0
        if self.low == 0:
            m.b.sub_(m.W.sum(1) / 2)
            m.c.sub_(m.W.sum(0) / 2)
        self.h = torch.tensor(list(itertools.product((self.low, 1.0), repeat=4)), **F64)

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        m = self.machine
        shift = 0.5 * alpha**2 / sigma**2 if self.low == 0 else 0.0
        z = (self.h @ m.W.T)[None] + (m.b + alpha * x / sigma**2 - shift)[:, None]
        norm, mean = (torch.logaddexp(z, 0 * z), z.sigmoid()) if self.low == 0 else (
            torch.logaddexp(z, -z), z.tanh())
        weight = (norm.sum(-1) + self.h @ m.c).softmax(-1)
        return (weight[..., None] * mean).sum(1)


def mixture(seed: int) -> Mixture:
    """Five anisotropic Gaussians."""
    g = torch.Generator().manual_seed(seed)
    roots = torch.randn(5, DIM, DIM, generator=g, **F64) * torch.logspace(-1.5, -0.2, DIM, **F64) / 4
    return Mixture(torch.rand(5, generator=g, **F64) + 0.2, torch.randn(5, DIM, generator=g, **F64),
                   roots @ roots.mT + 1e-3 * torch.eye(DIM, **F64))


def laws(half: int) -> dict:
    """Six laws of a half, 0 to choose and 1 to report."""
    found = {}
    for k in (2 * half, 2 * half + 1):
        found[f"mixture {k}"] = mixture(10 + k)
        found[f"bits {k}"] = MachineLaw("bernoulli", 1.6, 20 + k)
        found[f"spins {k}"] = MachineLaw("spin", 0.5, 30 + k)
    return found


def check_machines() -> None:
    """The denoisers here are those of the library."""
    x, a, s = torch.randn(3, DIM, **F64), torch.tensor(0.6, **F64), torch.tensor(0.8, **F64)
    for law in laws(0).values():
        if isinstance(law, MachineLaw):
            assert torch.allclose(tilted.denoise(law.machine, x, a, s), law.denoise(x, a, s), atol=1e-10)


def start(schedule: Schedule, top: float) -> Tensor:
    """Starts [256, 16] at the time `top`."""
    return prior_sample(schedule, (STARTS, DIM), 1, t_max=top, **F64)


def reference(law, schedule: Schedule, x: Tensor, top: float, steps: int = 1000) -> Tensor:
    """Classical Runge-Kutta for dy / d log rho = -x_0 / rho, y = x / sigma, uniform in log rho."""
    ends = [float(-schedule.log_snr(t) / 2) for t in (top, T_MIN)]
    at = torch.linspace(*ends, steps + 1, **F64)

    def slope(y: Tensor, l: Tensor) -> Tensor:
        rho = l.exp()
        alpha = 1 / torch.sqrt(1 + rho**2)
        return -law.denoise(y * rho * alpha, alpha, rho * alpha) / rho
    y = x / schedule.sigma(top)
    for a, b in itertools.pairwise(at):
        h = b - a
        k1 = slope(y, a)
        k2 = slope(y + h / 2 * k1, a + h / 2)
        k3 = slope(y + h / 2 * k2, a + h / 2)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(y + h * k3, b))
    return y * schedule.sigma(T_MIN)


def rms(y: Tensor, goal: Tensor) -> float:
    return float((y - goal).square().sum(1).mean().sqrt())


def family(group: dict, members: list[tuple], goals: dict) -> dict:
    """Errors {member: {(law, schedule, calls): error}} of fixed `members` (grid, extrapolate, variable,
    order, correct)."""
    found = defaultdict(dict)
    for (name, (schedule, top)), calls, member in itertools.product(SCHEDULES.items(), CALLS, members):
        kind, extrapolate, variable, order, correct = member
        grid = time_grid(schedule, calls, T_MIN, kind, top)
        alpha, sigma = schedule.alpha(grid), schedule.sigma(grid)
        Psi, C = deis_coefficients(schedule, grid, order, variable, extrapolate, correct)
        X, P = _prediction_of(schedule, grid[:-1], extrapolate, "x0")
        for law, data in group.items():
            x, past = start(schedule, top), []
            for i in range(calls):
                newest = X[i] * x + P[i] * data.denoise(x, alpha[i], sigma[i])
                past = [newest, *past][:C.shape[1]]
                x = Psi[i] * x + sum(c * p for c, p in zip(C[i].tolist(), past))
            found[member][law, name, calls] = rms(x, goals[law, name])
    return found


def default(group: dict, goals: dict) -> dict:
    """Errors of `deis` and `time_grid` without options."""
    found = {}
    for law, name, calls in itertools.product(group, SCHEDULES, CALLS):
        schedule, top = SCHEDULES[name]
        def data(x, t, law=law, schedule=schedule):
            return group[law].denoise(x, schedule.alpha(t), schedule.sigma(t))
        y = deis(as_eps(data, schedule, "x0"), schedule, start(schedule, top),
                 time_grid(schedule, calls, T_MIN, t_max=top))
        found[law, name, calls] = rms(y, goals[law, name])
    return found


def betas(schedule: Schedule, top: float) -> list[float]:
    """Betas of the chain with the log-SNRs of `schedule` at t = 0.001, 0.002, ..."""
    t = torch.arange(1, round(1000 * top) + 1, **F64) / 1000
    power = torch.sigmoid(schedule.log_snr(t))
    return torch.cat([1 - power[:1], 1 - power[1:] / power[:-1]]).tolist()


def run_diffusers(make, law, schedule: Schedule, top: float, calls: int) -> Tensor:
    """A scheduler of diffusers on the variance-preserving form of `schedule`."""
    scheduler = make(betas(schedule, top))
    scheduler.set_timesteps(calls)
    size = lambda t: torch.hypot(schedule.alpha(t), schedule.sigma(t))
    ends = (float(schedule.rho(t)) for t in (T_MIN, top))
    times = schedule.t_of_rho(scheduler.sigmas.double().clamp(*ends))
    x = start(schedule, top) / size(top)
    for t, label in zip(times, scheduler.timesteps):
        alpha, sigma = schedule.alpha(t) / size(t), schedule.sigma(t) / size(t)
        eps = (x - alpha * law.denoise(x, alpha, sigma)) / sigma
        x = scheduler.step(eps, label, x).prev_sample.double()
    return x * size(T_MIN)


class Clock(azula.noise.Schedule):
    """Our schedule on azula's own spacing."""

    def __init__(self, schedule: Schedule, top: float):
        super().__init__()
        self.schedule, self.top = schedule, top

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return self.alpha(u), self.sigma(u)

    def alpha(self, u: Tensor) -> Tensor:
        return self.schedule.alpha(T_MIN + (self.top - T_MIN) * u.double())

    def sigma(self, u: Tensor) -> Tensor:
        return self.schedule.sigma(T_MIN + (self.top - T_MIN) * u.double())


class Denoiser(azula.denoise.Denoiser):
    """A law in azula's clothes."""

    def __init__(self, law, schedule: Clock):
        super().__init__()
        self.law, self.schedule = law, schedule

    def forward(self, x: Tensor, u: Tensor, **kwargs) -> azula.denoise.DiracPosterior:
        return azula.denoise.DiracPosterior(self.law.denoise(x, *self.schedule(u)))


def peers() -> dict:
    """name: function(law, schedule, top, calls) -> x."""
    last = {"final_sigmas_type": "sigma_min"}
    makers = {"DEIS": (diffusers.DEISMultistepScheduler, {}),
              "UniPC": (diffusers.UniPCMultistepScheduler, last),
              "DPM-Solver++": (diffusers.DPMSolverMultistepScheduler, last),
              "DPM-Solver": (diffusers.DPMSolverMultistepScheduler,
                             last | {"algorithm_type": "dpmsolver"})}
    runs = {}
    for name, (scheduler, options) in makers.items():
        make = lambda b, s=scheduler, o=options: s(num_train_timesteps=len(b), trained_betas=b, **o)
        runs[f"diffusers {name}"] = lambda law, s, top, n, m=make: run_diffusers(m, law, s, top, n)
    for name in ("zAB", "vAB", "zEAB", "xEAB", "REAB", "DDIM"):
        sampler = getattr(azula.sample, f"{name}Sampler")
        runs[f"azula {name}"] = lambda law, s, top, n, f=sampler: f(
            Denoiser(law, Clock(s, top)), start=1.0, stop=0.0, steps=n, silent=True,
            dtype=torch.float64)(start(s, top))
    return runs


def best_peer(group: dict, goals: dict) -> dict:
    """Error and name of the best default of a peer for every problem."""
    found = {}
    for law, name, calls in itertools.product(group, SCHEDULES, CALLS):
        schedule, top = SCHEDULES[name]
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            errors = {peer: rms(run(group[law], schedule, top, calls), goals[law, name])
                      for peer, run in peers().items()}
        peer = min((p for p in errors if math.isfinite(errors[p])), key=errors.get)
        found[law, name, calls] = errors[peer], peer
    return found


def summary(errors: dict, floor: dict) -> dict:
    """Geometric mean of the ratios, the largest, the median, and the share above 1.1."""
    ratios = {key: errors[key] / floor[key][0] for key in floor}
    logs = [math.log(r) for r in ratios.values()]
    kinds = defaultdict(list)
    for (law, name, _), r in ratios.items():
        kinds[f"{law.split()[0]}, {name}"].append(math.log(r))
    return {"mean": math.exp(statistics.fmean(logs)), "worst": math.exp(max(logs)),
            "median": math.exp(statistics.median(logs)),
            "beaten": sum(r > 1.1 for r in ratios.values()) / len(ratios),
            "by_kind": {kind: math.exp(statistics.fmean(ls)) for kind, ls in kinds.items()}}


def main() -> None:
    options = arguments(__doc__, RESULTS / "solver_defaults.json").parse_args()
    torch.set_num_threads(1)
    check_machines()
    halves, goals, floors = {}, {}, {}
    for half, name in enumerate(("choose", "report")):
        halves[name] = laws(half)
        goals[name] = {}
        for (law, data), (s, at) in itertools.product(halves[name].items(), SCHEDULES.items()):
            goals[name][law, s] = reference(data, at[0], start(*at), at[1])
        floors[name] = best_peer(halves[name], goals[name])
        print(name, "references and peers done", flush=True)
    kinds = get_args(Grid), get_args(Extrapolate), get_args(Variable)
    members = list(itertools.product(*kinds, (1, 2, 3), (False, True)))
    errors = family(halves["choose"], members, goals["choose"])
    rank = [(summary(errors[m], floors["choose"]), m) for m in members]
    rank.sort(key=lambda row: row[0]["mean"])
    label = lambda m: f"{m[1]}, {m[2]}, {m[3]}{', corrected' if m[4] else ''} on {m[0]}"
    rows = [{"method": label(m), **s} for s, m in rank if s["mean"] < 1 or m == OLD]
    reported = {"new default": summary(default(halves["report"], goals["report"]), floors["report"])}
    tops = [m for _, m in rank[:10]]
    again = family(halves["report"], [*tops, OLD], goals["report"])
    reported |= {label(m): summary(again[m], floors["report"]) for m in again}
    reported["old default"] = reported.pop(label(OLD))
    for row in rows[:15]: print(f"choose {row['mean']:.2f} {row['worst']:.2f} {row['method']}")
    print(json.dumps(reported, indent=1))
    winners = defaultdict(int)
    for _, peer in floors["report"].values(): winners[peer] += 1
    write(options.out, {"command": command(), "versions": versions("diffusers", "azula"), "calls": CALLS,
                        "members": len(members), "choose": rows[:40], "report": reported,
                        "best_peers": dict(winners)})


if __name__ == "__main__":
    main()
