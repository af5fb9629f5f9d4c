"""A spin glass of 16 x 16 spins, exactly: log Z and ground state by the walk of `models.ising`, beside
the tree decomposition of dwave-samplers.

    python benchmarks/glass.py [--out FILE] [--threads 1] [--rounds 5]

Couplings are +1 or -1 with equal probability, on a free lattice, at inverse temperature 1, in float64.
Both ways are exact, so they must agree; seconds are the shortest of `--rounds`, interleaved. Without
dwave-samplers its two rows are left out.
"""
import torch

from rbmdiff.models.ising import ground_state, log_partition, neighbours
from record import RESULTS, arguments, header, interleaved, write

L = 16


def glass(seed=0):
    """Couplings to the right [L, L-1] and down [L-1, L], each +1 or -1, and no field [L, L]."""
    g = torch.Generator().manual_seed(seed)
    signs = [1 - 2 * torch.randint(2, shape, generator=g) for shape in ((L, L - 1), (L - 1, L))]
    return *(x.double() for x in signs), torch.zeros(L, L, dtype=torch.float64)


def energy(y, right, down):
    """Energy of the spins `y` [L, L]."""
    return -((right * y[:, 1:] * y[:, :-1]).sum() + (down * y[1:] * y[:-1]).sum()).item()


def trees(right, down):
    """log Z and lowest energy by tree decomposition, a function each; none if it is not installed."""
    try:
        import dimod
        from dwave.samplers import TreeDecompositionSampler, TreeDecompositionSolver
    except ImportError:
        return {}
    couplings = torch.cat([right.flatten(), down.flatten()])
    bonds = dict(zip(map(tuple, neighbours(L, L).T.tolist()), (-couplings).tolist()))
    model = dimod.BinaryQuadraticModel.from_ising({}, bonds)
    return {
        "log Z by tree decomposition": lambda: TreeDecompositionSampler().sample(
            model, beta=1.0, marginals=False).info["log_partition_function"],
        "ground state by tree decomposition": lambda: TreeDecompositionSolver().sample(
            model).first.energy}


def main():
    parser = arguments(__doc__, RESULTS / "glass.json", threads=1)
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default 5)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    right, down, field = glass()
    ways = {
        "log Z": lambda: log_partition(right, down, field).item(),
        "ground state": lambda: energy(ground_state(right, down, field), right, down),
        **trees(right, down)}
    found = {name: run() for name, run in ways.items()}
    result = header("seconds", "dwave-samplers")
    result |= {"threads": options.threads, "side": L, "values": found,
               "times": interleaved(ways, options.rounds)}
    for name in ways:
        print(f"{name:36s} {result['times'][name]:8.3f} s   {found[name]:.12f}")
    write(options.out, result)


if __name__ == "__main__":
    main()
