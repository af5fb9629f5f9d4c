"""Retrieval in Hopfield networks of random patterns: overlap with a pattern, after starting there.

    python benchmarks/hopfield.py [--out FILE] [--threads 1] [--units 250 1000] [--draws 16]

For each load P/N, `draws` sets of P patterns of N units are stored by Hebb's rule, and every pattern is
followed to rest, one unit after the other. The patterns of a set share their couplings, so a set counts
as one draw: `overlap` is the mean over sets of the mean over its patterns, with its standard error.
`kept` is the share of patterns that end with an overlap above 0.8.
"""
import time

import torch

from rbmdiff.foundations.core import Estimate
from rbmdiff.models.hopfield import hebb, recall
from record import RESULTS, arguments, header, write

LOADS = 0.05, 0.08, 0.10, 0.11, 0.12, 0.13, 0.138, 0.145, 0.15, 0.16, 0.18, 0.20


def retrieved(units, count, generator):
    """Overlaps of `count` random patterns with where they end."""
    x = torch.randint(2, (count, units), generator=generator).float() * 2 - 1
    return (recall(hebb(x), x) * x).mean(1)


def measured(units, load, draws, generator):
    """One point of the curve."""
    count = round(load * units)
    found = [retrieved(units, count, generator) for _ in range(draws)]
    overlap, kept = (Estimate.of(torch.stack([f(m) for m in found]).double())
                     for f in (torch.mean, lambda m: (m > 0.8).float().mean()))
    return {"load": count / units, "patterns": count, "draws": draws, "overlap": overlap.value,
            "stderr": overlap.stderr, "kept": kept.value, "kept_stderr": kept.stderr}


def main():
    parser = arguments(__doc__, RESULTS / "hopfield.json", threads=1)
    parser.add_argument("--units", type=int, nargs="+", default=[250, 1000],
                        help="sizes (default 250 1000)")
    parser.add_argument("--draws", type=int, default=16, help="sets of patterns (default 16)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    curves = {}
    for units in options.units:
        start = time.perf_counter()
        curves[units] = [measured(units, load, options.draws, generator) for load in LOADS]
        print(f"{units} units: {time.perf_counter() - start:.0f} s")
    result = header("overlap with a stored pattern", "numba") | {"threads": options.threads}
    write(options.out, result | {"curves": curves})
    for units, curve in curves.items():
        for point in curve:
            print(f"{units:5d} {point['load']:.3f} {point['overlap']:.4f} ± {point['stderr']:.4f}")


if __name__ == "__main__":
    main()
