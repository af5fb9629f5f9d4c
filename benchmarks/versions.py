"""Two versions of the package side by side: is a size slower than it was?

    python benchmarks/versions.py OLD NEW [--out FILE] [--threads 2] [--rounds 15] [--cases TEXT]

OLD and NEW are the roots of two checkouts. Each runs in a process of its own; the two take turns, block
by block, so that both see the same weather on the machine. A number is the median over rounds of NEW /
OLD, with the 10th and 90th percentile; `fastest` is the ratio of the shortest blocks, which other work
on the machine disturbs least.
"""
import json
from pathlib import Path
import statistics
import subprocess
import sys
import time

from record import arguments, write

# visible, hidden, batch
SIZES = ((20, 16, 10), (64, 12, 100), (64, 128, 128), (784, 500, 100), (784, 1024, 512))
CASES = [*(f"pcd {D}x{H}x{B} k={k} {kind}" for D, H, B in SIZES for k in (1, 10)
           for kind in ("bernoulli", "gaussian")),
         "ais 784x500x100", "exact 64x12", "log_prob 64x12", "tilted 64x12x100", "deis 20"]


def gradient(case: str):
    """A step of persistent contrastive divergence."""
    import torch

    from rbmdiff.learning.contrastive import cd_gradient
    from rbmdiff.models.rbm import RBM
    _, size, k, visible = case.split()
    D, H, B = map(int, size.split("x"))
    rbm, g = RBM(D, H, visible), torch.Generator().manual_seed(0)
    v = (torch.rand(B, D, generator=g) < 0.2).float()
    state = {"chains": v.clone()}

    def step():
        _, state["chains"] = cd_gradient(rbm, v, int(k[2:]), state["chains"], g)
    return step


def other(case: str):
    """Annealing, exact sums, tilted means, a solver."""
    import torch

    from rbmdiff.bridge.tilted import denoise
    from rbmdiff.diffusion.deis import deis
    from rbmdiff.diffusion.schedule import LinearBeta, time_grid
    from rbmdiff.learning.contrastive import exact_gradient
    from rbmdiff.learning.partition import ais
    from rbmdiff.models.rbm import RBM
    g = torch.Generator().manual_seed(0)
    large, small = RBM(784, 500), RBM(64, 12)
    v = (torch.rand(1500, 64, generator=g) < 0.2).float()
    x = torch.randn(100, 64, generator=g)
    schedule = LinearBeta()
    grid = time_grid(schedule, 20, kind="quadratic")
    no_grad = torch.no_grad()
    return {"ais": lambda: ais(large, 100, 10, g), "exact": lambda: exact_gradient(small, v),
            "log_prob": lambda: no_grad(small.log_prob)(v),
            "tilted": lambda: no_grad(denoise)(small, x, 0.7, 0.7),
            "deis": lambda: deis(lambda x, t: 0.3 * x, schedule, x, grid)}[case.split()[0]]


def worker(threads: int) -> None:
    """Time a block of calls for every line on standard input: the name of a case and how often to call
    it.
    """
    import torch
    torch.set_num_threads(threads)
    steps = {}
    for line in sys.stdin:
        case, count = json.loads(line)
        if case not in steps: steps[case] = gradient(case) if case.startswith("pcd") else other(case)
        steps[case]()
        start = time.perf_counter()
        for _ in range(count): steps[case]()
        print((time.perf_counter() - start) / count, flush=True)


def main() -> None:
    parser = arguments(__doc__, None, threads=2)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cases", default="", help="only the cases that hold this text")
    options = parser.parse_args()
    command = [sys.executable, __file__, "--worker", str(options.threads)]
    roots = {"old": options.old, "new": options.new}
    workers = {
        name: subprocess.Popen(
            command,
            cwd=root,
            env={"PYTHONPATH": str(root.resolve()), "PATH": ""},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for name, root in roots.items()
    }

    def block(name: str, case: str, count: int) -> float:
        workers[name].stdin.write(json.dumps([case, count]) + "\n")
        workers[name].stdin.flush()
        return float(workers[name].stdout.readline())

    results = {}
    for case in [case for case in CASES if options.cases in case]:
        count = max(1, round(0.05 / block("old", case, 3)))
        block("new", case, 3)
        rounds = [{name: block(name, case, count) for name in ("old", "new")[:: 1 if i % 2 else -1]}
                  for i in range(options.rounds)]
        ratios = sorted(r["new"] / r["old"] for r in rounds)
        low, high = ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]
        old, new = (min(r[name] for r in rounds) for name in ("old", "new"))
        middle = statistics.median(ratios)
        results[case] = {"ratio": middle, "low": low, "high": high, "fastest": new / old,
                         "old_ms": 1e3 * old}
        print(f"{case:34} {1e3 * old:9.3f} ms   new / old {middle:.3f} ({low:.3f} to {high:.3f}), "
              f"fastest {new / old:.3f}", flush=True)
    if options.out:
        conditions = {"command": "python benchmarks/versions.py OLD NEW", "threads": options.threads,
                      "rounds": options.rounds}
        write(options.out, conditions | {"cases": results})


if __name__ == "__main__":
    if sys.argv[1] == "--worker": worker(int(sys.argv[2]))
    else: main()
