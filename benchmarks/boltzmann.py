"""A Gibbs sweep over a Boltzmann machine of 256 coupled spins, 100 chains, in four ways.

    python benchmarks/boltzmann.py [--out FILE] [--threads 1] [--rounds 20]

`sweep` is that of the package; `one product a unit` is a loop in PyTorch with the same draws;
`scan_gibbs` knows the energy alone. The floor is one product of all states with all couplings. Numbers
are the shortest of `rounds` runs, in milliseconds a sweep, which other work on the machine disturbs
least.
"""

import torch

from rbmdiff.models.boltzmann import Boltzmann
from rbmdiff.sampling.gibbs import scan_gibbs, sweep
from record import RESULTS, arguments, header, shortest, write

N, CHAINS, SWEEPS = 256, 100, 10


def one_by_one(machine, x, generator):
    """One sweep, a product of the couplings of a unit with all states at a time."""
    u = torch.rand(x.shape, generator=generator)
    for i in range(N):
        z = x @ machine.J[:, i] + machine.b[i]
        x[:, i] = torch.where(u[:, i] < torch.sigmoid(2 * z), 1.0, -1.0)
    return x


def main():
    parser = arguments(__doc__, RESULTS / "boltzmann.json", threads=1)
    parser.add_argument("--rounds", type=int, default=20, help="runs of each way (default 20)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    g = torch.Generator().manual_seed(0)
    J = (torch.randn(N, N, generator=g) / N**0.5).triu(1)
    machine = Boltzmann(J + J.T, torch.zeros(N))
    x = torch.randn(CHAINS, N, generator=g).sign()
    times = {"scan_gibbs": shortest(lambda: scan_gibbs(machine.energy, x, 1, "spin", g), 3),
             "one product a unit": shortest(lambda: one_by_one(machine, x.clone(), g), options.rounds),
             "sweep": shortest(lambda: sweep(machine, x, SWEEPS, g), options.rounds) / SWEEPS,
             "floor": shortest(lambda: x @ machine.J, 10 * options.rounds)}
    result = header("ms a sweep", "numba") | {"threads": options.threads, "units": N, "chains": CHAINS}
    write(options.out, result | {"times": times})
    for name, ms in times.items():
        print(f"{name:20s} {ms:8.3f} ms a sweep")


if __name__ == "__main__":
    main()
