"""Square tori at the critical point: autocorrelation times of sweeps and of cluster steps, energies,
magnetisations and Binder cumulants.

    python benchmarks/clusters.py [--out FILE] [--threads 1] [--effort 1.0]

Times are those of |m|, in steps, by Geyer's sequence on eight groups of chains; the checkerboard is
looked at after every fifth sweep. `edge machine` is block Gibbs on the restricted machine with a hidden
spin for each coupling. Energies are those of a spin for couplings of 1. `--effort` multiplies the number
of steps. What a step costs is in `benchmarks/ising.py`.
"""
from itertools import islice
import math
import time

import torch

from rbmdiff.foundations.core import Estimate
from rbmdiff.models.ising import lattice, neighbours
from rbmdiff.sampling.clusters import binder, checkerboard, cluster_chain, cluster_moments
from rbmdiff.sampling.diagnostics import chain_estimate, integrated_time
from rbmdiff.sampling.gibbs import gibbs_chain
from record import RESULTS, arguments, header, write

T_C = 2 / math.log(1 + math.sqrt(2))
CHAINS = {16: 32, 32: 32, 64: 16, 128: 16}
STEPS = {16: 6000, 32: 2000, 64: 1000, 128: 400}         # at the critical point; a fifth beside it
BURN = 50


def torus(L, T):
    """Pairs, couplings and fields of a square torus at a temperature."""
    pairs = neighbours(L, L, True)
    return pairs, torch.full((2 * L * L,), 1 / T), torch.zeros(L * L)


def turned(L, T, steps, seed):
    """Energy, |m|, E[m²] and E[m⁴] of a spin [chains, steps] of a chain of cluster steps."""
    machine = torus(L, T)
    pairs = machine[0]
    chain = cluster_chain(*machine, torch.ones(CHAINS[L], L * L), seed)
    found = []
    for s, cluster in islice(chain, BURN, BURN + steps):
        E = -(s.index_select(1, pairs[0]) * s.index_select(1, pairs[1])).sum(1) / L**2
        found.append(torch.stack([E, s.mean(1).abs(), *cluster_moments(cluster)]))
    return torch.stack(found, -1)


def time_of(trace, every=1):
    """Integrated time of `trace` [chains, draws] in steps, `every` of them a draw."""
    parts = [every * integrated_time(part) for part in trace.split(len(trace) // 8)]
    return Estimate.of(torch.stack(parts))


def swept(L, draws, every=5):
    """|m| [chains, draws] of checkerboard sweeps, after every fifth."""
    machine, generator = torus(L, T_C), torch.Generator().manual_seed(1)
    s, _ = next(islice(cluster_chain(*machine, torch.ones(CHAINS[L], L * L), 2), BURN, None))
    found = []
    for _ in range(draws):
        s = checkerboard(*machine, s, every, generator)
        found.append(s.mean(1).abs())
    return torch.stack(found, -1)


def edge_machine(L):
    """The restricted machine with a hidden spin for each coupling of the torus."""
    return lattice(L, L, 1 / T_C, periodic=True, dtype=torch.float32).edge_rbm()


def pair(e):
    """An estimate as JSON."""
    return [e.value, e.stderr, e.n]


def main():
    parser = arguments(__doc__, RESULTS / "clusters.json", threads=1)
    parser.add_argument("--effort", type=float, default=1.0, help="factor of all steps (default 1)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    count = lambda n: max(20, int(n * options.effort))
    result = header("steps, energies of a spin, pure numbers", "scipy", "numba")
    result |= {"threads": options.threads, "chains": CHAINS, "time": {}}
    result |= {"energy": {}, "magnetisation": {}, "binder": {}}
    cluster_times = {}
    for L in STEPS:
        E, m, m2, m4 = turned(L, T_C, count(STEPS[L]), L)
        cluster_times[L] = pair(time_of(m))
        result["energy"][L] = pair(chain_estimate(E))
        result["magnetisation"][L] = pair(chain_estimate(m.double() * L**0.125))
        cumulants = {"1.0": pair(binder(m2, m4))}
        for k, ratio in enumerate((0.98, 0.99, 1.01, 1.02)):
            _, _, m2, m4 = turned(L, ratio * T_C, count(STEPS[L] / 5), 1000 + 10 * L + k)
            cumulants[str(ratio)] = pair(binder(m2, m4))
        result["binder"][L] = cumulants
        print(L, cluster_times[L], result["energy"][L], cumulants, round(time.perf_counter() - start))
    hidden = islice(gibbs_chain(edge_machine(16), torch.ones(32, 256), 3), 500, 500 + count(12000))
    trace = torch.stack([v.mean(1).abs() for v in hidden], -1)
    sweeps = {L: pair(time_of(swept(L, count(n)), 5)) for L, n in ((16, 2000), (32, 5000))}
    result["time"] = {"checkerboard": sweeps, "Swendsen-Wang": cluster_times,
                      "edge machine": {16: pair(time_of(trace))}}
    result["seconds"] = round(time.perf_counter() - start)
    write(options.out, result)
    print(result["time"], result["seconds"])


if __name__ == "__main__":
    main()
