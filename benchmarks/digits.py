"""Exact maximum likelihood, CD and PCD on the 8x8 digits, H = 12, measured by the exact likelihood.

    python benchmarks/digits.py [--out FILE] [--seeds 5] [--epochs 300] [--threads 1]

All methods share everything but the gradient: data (pixels > 7, 1500 images to train on, 297 to test),
start (independent pixels and small random weights), batches of 100 in the same order, Adam with a rate
that falls linearly from 0.02 to zero, weight decay 1e-4 on W, number of epochs. No early stopping. The
rate was chosen among 0.005, 0.02 and 0.05 on 300 images held out of the training set: best for CD-1 and
PCD-1, the two that were tried with all three. Log-likelihoods are in nats per image, seconds are those
of updates alone.
"""
import math
import statistics
import time

import torch
from tqdm import tqdm

from rbmdiff.foundations.core import Estimate
from rbmdiff.foundations.data import base_rate, binarize, digits, independent_log_prob
from rbmdiff.foundations.train import ascend
from rbmdiff.learning.contrastive import cd_gradient, centred, exact_gradient
from rbmdiff.models.rbm import RBM
from record import RESULTS, arguments, header, write

H, BATCH, RATE, DECAY = 12, 100, 0.02, 1e-4
LOOKS = (1, 2, 3, 5, 8, 12, 18, 25, 35, 50, 70, 90, 110, 130, 150, 170, 190, 210, 230, 250, 270, 290)


def method(name, train, generator):
    """The gradient of method `name` as a function of machine and batch; a persistent one keeps its
    chains.
    """
    chains, mu, half = (torch.rand(BATCH, 64, generator=generator)
                        < train.mean(0)).float(), train.mean(0), torch.full((H,), 0.5)

    def persistent(m, v):
        nonlocal chains
        gradients, chains = cd_gradient(m, v, 1, chains, generator)
        return gradients

    return {"exact": exact_gradient, "CD-1": lambda m, v: cd_gradient(m, v, 1, generator=generator)[0],
            "CD-10": lambda m, v: cd_gradient(m, v, 10, generator=generator)[0], "PCD-1": persistent,
            "PCD-1, centred": lambda m, v: centred(persistent(m, v), mu, half)}[name]


def run(name, seed, epochs, train, test):
    """Train once; the curve, and the exact log-likelihood of every image at the end."""
    g = torch.Generator().manual_seed(seed)
    m = RBM(64, H, generator=g)
    m.b.data = base_rate(train)
    gradient = method(name, train, torch.Generator().manual_seed(1000 + seed))
    optimizer = torch.optim.Adam([{"params": [m.W], "weight_decay": DECAY}, {"params": [m.b, m.c]}],
                                 lr=RATE)
    total = epochs * (len(train) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    wall = cpu = 0.0
    curve = {"epoch": [], "wall_seconds": [], "cpu_seconds": [], "train": [], "test": []}
    for epoch in range(1, epochs + 1):
        clocks = time.perf_counter(), time.process_time()
        for rows in torch.randperm(len(train), generator=g).split(BATCH):
            ascend(m, gradient(m, train[rows]))
            optimizer.step(), schedule.step()
        wall, cpu = wall + time.perf_counter() - clocks[0], cpu + time.process_time() - clocks[1]
        if epoch in LOOKS or epoch == epochs:
            with torch.no_grad(): both = m.log_prob(train), m.log_prob(test)
            values = epoch, wall, cpu, *(x.mean().item() for x in both)
            for column, value in zip(curve.values(), values): column.append(round(value, 5))
    return curve, both


def summary(images, curves):
    """Mean over images of the log-likelihood averaged over seeds, its error over images, and the spread
    over seeds.
    """
    estimate = Estimate.of(torch.stack(images).mean(0).double())
    return {"value": estimate.value, "stderr": estimate.stderr,
            "spread_over_seeds": statistics.stdev(curves)}


def main():
    parser = arguments(__doc__, RESULTS / "digits.json", threads=1)
    parser.add_argument("--seeds", type=int, default=5,
                        help="runs of each method, at least 2 (default 5)")
    parser.add_argument("--epochs", type=int, default=300,
                        help="passes over the training set (default 300)")
    options = parser.parse_args()
    if options.seeds < 2 or options.epochs < 1:
        parser.error("--seeds must be at least 2 and --epochs at least 1")
    torch.set_num_threads(options.threads)
    train, test = (binarize(x, 7.5 / 16) for x in digits())
    result = {**header("nats per image", "numpy", "scikit-learn"),
              "settings": {"hidden": H, "batch": BATCH, "optimizer": "Adam", "rate": RATE,
                           "decay_of_weights": DECAY,
                           "epochs": options.epochs, "seeds": options.seeds, "threads": options.threads,
                           "train_images": len(train), "test_images": len(test)}, "methods": {}}
    bias = base_rate(train)
    result["independent pixels"] = {name: {"value": e.value, "stderr": e.stderr} for name, e in
                                    ((n, Estimate.of(independent_log_prob(x, bias).double()))
                                     for n, x in (("train", train), ("test", test)))}
    names = ("exact", "CD-1", "CD-10", "PCD-1", "PCD-1, centred")
    runs = {name: [] for name in names}
    for seed, name in tqdm([(seed, name) for seed in range(options.seeds) for name in names],
                           disable=None):
        runs[name].append(run(name, seed, options.epochs, train, test))
    for name in names:
        curves = [curve for curve, _ in runs[name]]
        result["methods"][name] = {
            **{
                split: summary([both[i] for _, both in runs[name]], [c[split][-1] for c in curves])
                for i, split in enumerate(("train", "test"))
            },
            "milliseconds_per_update": {
                clock: 1e3
                * statistics.median(c[f"{clock}_seconds"][-1] for c in curves)
                / (options.epochs * math.ceil(len(train) / BATCH))
                for clock in ("wall", "cpu")
            },
            "curves": curves,
        }
        row = result["methods"][name]
        print(
            f"{name:23} train {row['train']['value']:.2f}  test {row['test']['value']:.2f} ± "
            f"{row['test']['stderr']:.2f} (images), "
            f"spread over seeds {row['test']['spread_over_seeds']:.2f}, "
            f"{row['milliseconds_per_update']['wall']:.2f} ms per update"
        )
    write(options.out, result)


if __name__ == "__main__":
    main()
