"""Lattices: nanoseconds of a sweep per spin against the floor of any sweep, and annealed importance
sampling against the exact log Z of a torus.

    python benchmarks/ising.py [--out FILE] [--threads 1] [--rounds 7] [--runs 32]

Sweeps are over 64 chains of a torus of 64 x 64 spins in float32 at the critical point. The floor of a
sweep draws one random number a spin, reads four neighbours and writes a spin, with compiled code for
all but the random numbers; without numba it is left out. dwave-samplers, if installed, walks a general
graph, as `checkerboard` does. Ways are interleaved; times are the shortest of `--rounds`, setting up
included. AIS runs over the torus of 16 x 16 spins at the critical point, 100 chains, 500 temperatures.
"""
from itertools import islice
import math

import numpy as np
import torch

from rbmdiff.learning.partition import ais
from rbmdiff.models.ising import as_rbm, kaufman, lattice, neighbours
from rbmdiff.sampling.clusters import checkerboard, cluster_chain
from rbmdiff.sampling.gibbs import gibbs, sweep
from record import RESULTS, arguments, header, interleaved, write

T_C = 2 / math.log(1 + math.sqrt(2))
L, CHAINS, SWEEPS = 64, 64, 40


def floor():
    """One sweep of the least that any must do, or None without numba."""
    try:
        from numba import njit
    except ImportError:
        return None

    up, down = np.float32(1), np.float32(-1)

    @njit(fastmath=True, error_model="numpy")
    def walk(x, u, out):
        for i in range(L, len(u) - L):
            out[i] = up if x[i - 1] + x[i + 1] + x[i - L] + x[i + L] > u[i] else down

    n = CHAINS * L * L
    x, out = np.ones(n, np.float32), np.empty(n, np.float32)
    u = torch.empty(n)
    return lambda: walk(x, u.uniform_().numpy(), out)


def dwave(criterion):
    """Sweeps of dwave-samplers over the same lattice, or None if it is not installed."""
    try:
        import dimod
        from dwave.samplers import SimulatedAnnealingSampler
    except ImportError:
        return None
    pairs = neighbours(L, L, True).T.tolist()
    model = dimod.BinaryQuadraticModel.from_ising({}, {(i, j): -1 / T_C for i, j in pairs})
    settings = {"num_reads": CHAINS, "beta_schedule_type": "custom", "seed": 1,
                "proposal_acceptance_criteria": criterion}
    return lambda: SimulatedAnnealingSampler().sample(model, beta_schedule=[1.0] * SWEEPS, **settings)


def sweeps(rounds):
    """Nanoseconds of a sweep per spin, by way."""
    pairs = neighbours(L, L, True)
    torus = pairs, torch.full((2 * L * L,), 1 / T_C), torch.zeros(L * L)
    machine = lattice(L, L, 1 / T_C, periodic=True, dtype=torch.float32)
    x, _ = next(islice(cluster_chain(*torus, torch.ones(CHAINS, L * L), 1), 30, None))
    halves = as_rbm(machine, L, L)
    half = x[:, ::2].contiguous()
    ways = {"floor": (floor(), 1), "checkerboard": (lambda: checkerboard(*torus, x, SWEEPS, 1), SWEEPS),
            "dense matrix, two colours (gibbs)": (lambda: gibbs(halves, half, 1, 1), 1),
            "dense matrix, any couplings (sweep)": (lambda: sweep(machine, x, 1, 1), 1),
            "dwave-samplers, Metropolis": (dwave("Metropolis"), SWEEPS),
            "dwave-samplers, Gibbs": (dwave("Gibbs"), SWEEPS),
            "Swendsen-Wang step": (lambda: next(islice(cluster_chain(*torus, x, 1), 4, None)), 5)}
    seconds = interleaved({name: run for name, (run, _) in ways.items() if run is not None}, rounds)
    return {name: 1e9 * found / ways[name][1] / (CHAINS * L * L) for name, found in seconds.items()}


def examined(runs):
    """Estimates of log Z of the 16 x 16 torus, and how often the truth is within their errors."""
    rbm = as_rbm(lattice(16, 16, 1 / T_C, periodic=True), 16, 16)
    truth = kaufman(torch.tensor(1 / T_C, dtype=torch.float64), 16, 16).item()
    found = [ais(rbm, 100, 500, generator=seed) for seed in range(runs)]
    z = torch.tensor([run.z(truth) for run in found])
    each = [[run.value, run.stderr] for run in found]
    values = torch.tensor([run.value for run in found], dtype=torch.float64)
    return {"exact": truth, "chains": 100, "temperatures": 500, "estimates": each,
            "within one error": (z.abs() < 1).double().mean().item(),
            "within two errors": (z.abs() < 2).double().mean().item(),
            "mean distance in errors": z.mean().item(),
            "log of the mean estimate of Z": (values.logsumexp(0) - math.log(runs)).item(),
            "spread": values.std().item(), "mean error": sum(run.stderr for run in found) / runs}


def main():
    parser = arguments(__doc__, RESULTS / "ising.json", threads=1)
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds (default 7)")
    parser.add_argument("--runs", type=int, default=32, help="runs of AIS (default 32)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = header("ns a spin and sweep, nats", "numba", "scipy", "dwave-samplers")
    result |= {"threads": options.threads, "side": L, "chains": CHAINS, "times": sweeps(options.rounds)}
    for name, ns in result["times"].items():
        print(f"{name:36s} {ns:9.1f} ns a spin")
    result["ais"] = examined(options.runs)
    print({name: value for name, value in result["ais"].items() if name != "estimates"})
    write(options.out, result)


if __name__ == "__main__":
    main()
