"""Solvers of the probability flow side by side, in one run: error against calls of the network, and time
beyond them.

    make bench        or        python benchmarks/diffusion.py

Accuracy: the exact score of a mixture, the same starts at t = 1, the same end at t = 0.001, linear beta
from 0.1 to 20; root mean square distance, per sample, to a reference of 3000 Runge-Kutta steps. Every
library runs on its own spacings and on ours, and is called at exact times. Overhead: seconds a step with
a network that costs nothing, as a fraction of a call of a small U-Net.
"""
from contextlib import redirect_stderr
import io
from itertools import chain, pairwise
import json
import math
import statistics
import time
from typing import get_args
import warnings

import azula.denoise
import azula.noise
import azula.sample
import diffusers
import torch
from torch import Tensor

from rbmdiff.diffusion.deis import Extrapolate, Variable, deis, rho_rk
from rbmdiff.diffusion.networks import Preconditioned, UNet
from rbmdiff.diffusion.oracle import Mixture
from rbmdiff.diffusion.schedule import LinearBeta, time_grid
from rbmdiff.diffusion.solvers import ddim, heun
from record import RESULTS, arguments, command, versions, write

SCHEDULE, T_MIN, CALLS = LinearBeta(), 1e-3, (5, 10, 20, 50)
GRIDS = ("quadratic", "log_snr", "rho7", "uniform")
DEFAULT = "deis eps t 3, quadratic"


def mixtures() -> dict[str, Mixture]:
    """The exact problems: a ring of eight narrow Gaussians, three broad ones, twenty in 64 dimensions.
    """
    f = {"dtype": torch.float64}
    g = torch.Generator().manual_seed(0)
    angle = torch.arange(8, **f) * math.pi / 4
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    ring = Mixture(torch.ones(8, **f), circle, 0.01 * torch.eye(2, **f).repeat(8, 1, 1))
    roots = 0.7 * torch.randn(3, 2, 2, generator=g, **f)
    broad = Mixture(torch.tensor([0.2, 0.3, 0.5], **f), torch.randn(3, 2, generator=g, **f),
                    roots @ roots.mT + 0.05 * torch.eye(2, **f))
    roots = 0.1 * torch.randn(20, 64, 8, generator=g, **f)
    wide = Mixture(torch.ones(20, **f), 0.5 * torch.randn(20, 64, generator=g, **f),
                   roots @ roots.mT + 1e-3 * torch.eye(64, **f))
    return {"ring, 2-D": ring, "three Gaussians, 2-D": broad, "twenty Gaussians, 64-D": wide}


def ours() -> dict:
    """name: function(predict, x, calls) -> x at T_MIN."""
    runs = {}
    grid = lambda steps, kind: time_grid(SCHEDULE, steps, T_MIN, kind)
    for kind in GRIDS:
        for extrapolate in get_args(Extrapolate):
            for variable in get_args(Variable):
                for order in (1, 2, 3):
                    for correct in (False, True):
                        how = " corrected" if correct else ""
                        name = f"deis {extrapolate} {variable} {order}{how}, {kind}"
                        runs[name] = lambda p, x, n, k=kind, o=order, options={
                            "variable": variable, "extrapolate": extrapolate, "correct": correct}: deis(
                                p, SCHEDULE, x, grid(n, k), order=o, **options)
        runs[f"ddim, {kind}"] = lambda p, x, n, k=kind: ddim(p, SCHEDULE, x, grid(n, k))
        runs[f"heun, {kind}"] = lambda p, x, n, k=kind: heun(p, SCHEDULE, x, grid(max(1, n // 2), k))
        for method, stages in (("heun", 2), ("kutta3", 3), ("rk4", 4)):
            runs[f"rho_rk {method}, {kind}"] = lambda p, x, n, k=kind, m=method, s=stages: rho_rk(
                p, SCHEDULE, x, grid(max(1, n // s), k), method=m)
    return runs


def diffusers_betas() -> list[float]:
    """Discrete betas whose cumulative products are alpha² at t = 0.001, 0.002, ..., 1."""
    alpha = SCHEDULE.alpha(torch.arange(0, 1001, dtype=torch.float64) / 1000).square()
    return (1 - alpha[1:] / alpha[:-1]).tolist()


def run_diffusers(make, predict, x: Tensor, calls: int, kind: str | None) -> Tensor:
    """A scheduler of diffusers; `kind` replaces its own spacing by one of our grids."""
    scheduler = make()
    scheduler.set_timesteps(calls)
    if kind is not None: scheduler.sigmas = SCHEDULE.rho(time_grid(SCHEDULE, calls, T_MIN, kind)).float()
    times = SCHEDULE.t_of_rho(
        scheduler.sigmas.double().clamp(*(float(SCHEDULE.rho(t)) for t in (T_MIN, 1.0)))
    )
    for t, label in zip(times, scheduler.timesteps):
        x = scheduler.step(predict(x.double(), t), label, x).prev_sample
    return x.double()


def peers_diffusers() -> dict:
    """name: function(predict, x, calls) -> x."""
    shared = {"trained_betas": diffusers_betas()}
    last = shared | {"final_sigmas_type": "sigma_min"}
    runs = {}
    spacings = {"linspace": {}, "karras": {"use_karras_sigmas": True}, "lu": {"use_lu_lambdas": True}}
    for order in (2, 3):
        makers = {"DEIS": (diffusers.DEISMultistepScheduler, shared),
                  "UniPC": (diffusers.UniPCMultistepScheduler, last),
                  "DPM-Solver++": (diffusers.DPMSolverMultistepScheduler, last)}
        for name, (scheduler, options) in makers.items():
            for spacing, extra in spacings.items():
                if spacing == "lu" and name != "DPM-Solver++": continue
                make = lambda s=scheduler, o=options | extra | {"solver_order": order}: s(**o)
                runs[f"diffusers {name} {order}, {spacing}"] = lambda p, x, n, m=make: run_diffusers(
                    m, p, x, n, None
                )
            make = lambda s=scheduler, o=options | {"solver_order": order}: s(**o)
            for kind in GRIDS:
                runs[f"diffusers {name} {order}, {kind}"] = lambda p, x, n, m=make, k=kind: (
                    run_diffusers(m, p, x, n, k)
                )
    return runs


class Warped(azula.noise.Schedule):
    """Our schedule on azula's uniform times, bent to one of our grids of `steps` steps."""

    def __init__(self, steps: int, kind: str):
        self.grid = time_grid(SCHEDULE, steps, T_MIN, kind).flip(0)

    def time(self, u: Tensor) -> Tensor:
        return self.grid[(u.double() * (len(self.grid) - 1)).round().long()]

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return self.alpha(u), self.sigma(u)

    def alpha(self, u: Tensor) -> Tensor:
        return SCHEDULE.alpha(self.time(u))

    def sigma(self, u: Tensor) -> Tensor:
        return SCHEDULE.sigma(self.time(u))


class AzulaDenoiser(azula.denoise.Denoiser):
    """`predict` in azula's clothes."""

    def __init__(self, predict, schedule: Warped):
        super().__init__()
        self.predict, self.schedule = predict, schedule

    def forward(self, x: Tensor, u: Tensor, **kwargs) -> azula.denoise.DiracPosterior:
        alpha, sigma = self.schedule(u)
        return azula.denoise.DiracPosterior((x - sigma * self.predict(x, self.schedule.time(u))) / alpha)


def peers_azula() -> dict:
    """name: function(predict, x, calls) -> x."""
    def run(predict, x, calls, kind, sampler, calls_a_step=1, **options):
        steps = max(1, calls // calls_a_step)
        denoiser = AzulaDenoiser(predict, Warped(steps, kind))
        return sampler(denoiser, start=1.0, stop=0.0, steps=steps, silent=True, dtype=torch.float64,
                       **options)(x)
    runs = {}
    for kind in GRIDS:
        for name in ("zAB", "vAB", "zEAB", "xEAB", "REAB"):
            for order in (2, 3, 4):
                sampler = getattr(azula.sample, f"{name}Sampler")
                runs[f"azula {name} {order}, {kind}"] = lambda p, x, n, k=kind, s=sampler, o=order: run(
                    p, x, n, k, s, order=o)
        runs[f"azula Heun, {kind}"] = lambda p, x, n, k=kind: run(p, x, n, k, azula.sample.HeunSampler,
                                                                  2)
    return runs


def reference(mixture: Mixture, x: Tensor, steps: int = 3000) -> Tensor:
    """Classical Runge-Kutta for dy / d log rho = rho eps, y = x / alpha, on a uniform grid in log rho.
    """
    grid = time_grid(SCHEDULE, steps, T_MIN, "log_snr")
    log_rho, predict = SCHEDULE.rho(grid).log(), mixture.predictor(SCHEDULE)
    def slope(y: Tensor, l: Tensor) -> Tensor:
        t = SCHEDULE.t_of_rho(l.exp())
        return l.exp() * predict(SCHEDULE.alpha(t) * y, t)
    y = x / SCHEDULE.alpha(grid[0])
    for a, b in pairwise(log_rho):
        h = b - a
        k1 = slope(y, a)
        k2 = slope(y + h / 2 * k1, a + h / 2)
        k3 = slope(y + h / 2 * k2, a + h / 2)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(y + h * k3, b))
    return SCHEDULE.alpha(grid[-1]) * y


def accuracy(mixture: Mixture, runs: dict, samples: int = 128) -> dict[str, dict[str, float]]:
    """Root mean square error of every run at every number of calls; runs that need more calls are left
    out.
    """
    g = torch.Generator().manual_seed(1)
    x = torch.randn(samples, mixture.means.shape[1], dtype=torch.float64, generator=g)
    exact, goal, table = mixture.predictor(SCHEDULE), reference(mixture, x), {}
    for name, run in runs.items():
        for calls in CALLS:
            count = [0]

            def predict(x, t):
                count[0] += 1
                return exact(x, t)

            y = run(predict, x, calls)
            if count[0] > calls: continue
            table.setdefault(name, {})[str(calls)] = float((y - goal).square().sum(1).mean().sqrt())
    return table


def seconds(call, repeats: int = 15) -> float:
    """Median seconds of `call`."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def overhead(steps: int = 20, batch: int = 16) -> dict:
    """Seconds a step beyond the network, as a fraction of a call of a small U-Net on `batch` images of
    28 x 28.
    """
    g = torch.Generator().manual_seed(2)
    x = torch.randn(batch, 1, 28, 28, generator=g)
    network = Preconditioned(UNet(1), SCHEDULE)
    answer = torch.randn(x.shape, generator=g)
    free = lambda x, t: answer
    with torch.no_grad(): call = seconds(lambda: network(x, torch.tensor(0.5)))
    grid = time_grid(SCHEDULE, steps, T_MIN, kind="quadratic")
    rows = {"deis": lambda: deis(free, SCHEDULE, x, grid), "ddim": lambda: ddim(free, SCHEDULE, x, grid)}
    def loop(make):
        scheduler = make()
        scheduler.set_timesteps(steps)
        y = x
        for label in scheduler.timesteps: y = scheduler.step(answer, label, y).prev_sample
    betas = {"trained_betas": diffusers_betas()}
    third = betas | {"solver_order": 3}
    peers = {"DEIS": lambda: diffusers.DEISMultistepScheduler(**third),
             "DDIM": lambda: diffusers.DDIMScheduler(**betas),
             "DPM-Solver++": lambda: diffusers.DPMSolverMultistepScheduler(**third)}
    for name, make in peers.items(): rows[f"diffusers {name}"] = lambda make=make: loop(make)
    per_step = {name: seconds(run) / steps for name, run in rows.items()}
    return {"batch": batch, "steps": steps, "unet_call_ms": 1e3 * call,
            "parameters": sum(p.numel() for p in UNet(1).parameters()),
            "step_ms": {name: 1e3 * s for name, s in per_step.items()},
            "fraction_of_call": {name: s / call for name, s in per_step.items()}}


def winners(tables: dict) -> dict:
    """For every number of calls and every library, the run with the smallest error on one problem."""
    found = {}
    for calls in map(str, CALLS):
        for group, table in tables.items():
            errors = {name: row[calls] for name, row in table.items()
                      if math.isfinite(row.get(calls, math.nan))}
            name = min(errors, key=errors.get)
            found.setdefault(calls, {})[group] = {"run": name, "error": errors[name]}
    return found


def ranking(accuracy: dict, best: dict, group: str, top: int = 5) -> list[dict]:
    """Runs of one library, kept fixed over all problems and calls, by their geometric mean distance to
    the best peer.

    A ratio of 1 at every entry would mean: as good everywhere as the best of all runs of both peers.
    """
    floor = {(p, c): min(best[p][c][peer]["error"] for peer in ("diffusers", "azula")) for p in best
             for c in best[p]}
    rows = []
    for name in next(iter(accuracy.values()))[group]:
        errors = {(p, c): accuracy[p][group][name].get(c, math.nan) for p, c in floor}
        if not all(map(math.isfinite, errors.values())): continue
        logs = [math.log(errors[key] / floor[key]) for key in floor]
        rows.append({"run": name, "geometric_mean": math.exp(statistics.fmean(logs)),
                     "worst": math.exp(max(logs)),
                     "errors": {p: [errors[p, c] for c in best[p]] for p in best}})
    rows.sort(key=lambda row: row["geometric_mean"])
    return rows[:top] + [row for row in rows[top:] if row["run"] == DEFAULT]


def main() -> None:
    options = arguments(__doc__, RESULTS / "diffusion.json").parse_args()
    torch.set_num_threads(1)
    groups = {"rbmdiff": ours(), "diffusers": peers_diffusers(), "azula": peers_azula()}
    accuracies, best = {}, {}
    for problem, mixture in mixtures().items():
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            accuracies[problem] = {group: accuracy(mixture, runs) for group, runs in groups.items()}
        best[problem] = winners(accuracies[problem])
        for calls, row in best[problem].items():
            print(f"{problem}, {calls} calls",
                  *(f"    {v['error']:.2e}  {v['run']}" for v in row.values()), sep="\n")
    fixed = {group: ranking(accuracies, best, group) for group in groups}
    for row in chain.from_iterable(fixed.values()):
        print(f"{row['geometric_mean']:.2f}, at worst {row['worst']:.2f}: {row['run']}")
    cost = overhead()
    print(json.dumps(cost, indent=1))
    result = {"command": command(), "versions": versions("diffusers", "azula"), "calls": CALLS,
              "runs": {group: len(runs) for group, runs in groups.items()}, "best": best, "fixed": fixed,
              "overhead": cost}
    write(options.out, result)


if __name__ == "__main__":
    main()
