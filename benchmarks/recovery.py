"""Denoising objectives against exact maximum likelihood and CD on the 8x8 digits, H = 12, measured by
the exact likelihood.

    python benchmarks/recovery.py [--device cuda --device-workers 5] [--workers 10] [--resume]

All methods share data (pixels > 7), start, batches of 100, Adam, decay, epochs with
benchmarks/digits.py; only the gradient differs.

Select: levels of noise are chosen without the test set. Every level trains on the first 1200 training
images and is measured on the other 300, over 2 seeds (1 where each step enumerates a machine for every
image: those run on --device); the best mean is chosen.
Test: the chosen level of each family trains on all 1500 images from other seeds and is measured on the
297 test images. Differences to CD-1, to CD with as many steps and to exact maximum likelihood are paired
by seed. Short: one method with a fifth of the epochs, for a quick repetition. The result is written
after every run; --resume goes on where a stopped command was, also on another machine: `made` lists
where the runs come from. A run is [train, test or held out in nats per image, seconds of updates by the
clock].
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
import json
import math
import multiprocessing
import statistics
import time

import torch
from tqdm import tqdm

from rbmdiff.bridge.recovery import (
    denoising_loss,
    flip,
    flip_recovery_loss,
    path_loss,
    readout_loss,
    recovery_gradient,
    recovery_loss,
)
from rbmdiff.bridge.tilted import flip_posterior, posterior
from rbmdiff.foundations.data import base_rate, binarize, digits, independent_log_prob
from rbmdiff.foundations.train import ascend
from rbmdiff.learning.contrastive import cd_gradient, exact_gradient
from rbmdiff.learning.score_matching import probability_flow_loss, score_entropy_loss
from rbmdiff.models.rbm import RBM
from record import RESULTS, arguments, command, versions, write

H, BATCH, RATE, DECAY, HELD, SWEEPS, STEPS = 12, 100, 0.02, 1e-4, 300, 5, (1, 3, 10)
SHORT = "flip recovery, k = 3"
FLIPS, SIGMAS, RANGES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4,
                         0.45), (0.3, 0.5, 0.7, 1, 1.5, 2, 3), ((0.3, 1), (0.3, 3))
FAMILIES = {  # name: levels to choose from (None: there is none)
    "exact maximum likelihood": (None,), "CD-1": (None,), "CD-3": (None,), "CD-10": (None,),
    "flip recovery, k = 1": FLIPS, "flip recovery, k = 3": FLIPS, "Gaussian recovery, k = 1": SIGMAS,
    "Gaussian recovery, k = 3": SIGMAS,
    "flip recovery, k = 10": (0.2, 0.25, 0.35), "Gaussian recovery, k = 10": (1, 2, 3),
    "score entropy (p to 0)": (None,), "probability flow (sigma to 0)": (None,),
    "squared error, mean field": RANGES}
ON_DEVICE = {
    "flip recovery, exact": (0.1, 0.2, 0.35), "Gaussian recovery, exact": (1, 2),
    "squared error, ELBO weight": (None,),
    "squared error, exact": RANGES, "cross-entropy of means": RANGES}


def uniform(level, v, g):
    """One sigma a row, uniform over the range `level`."""
    return level[0] + (level[1] - level[0]) * torch.rand(len(v), dtype=v.dtype, device=v.device,
                                                         generator=g)


def noised(v, sigma, g):
    return v + sigma * torch.randn(v.shape, dtype=v.dtype, device=v.device, generator=g)


# losses [B] of machine, batch, level, generator; their slope is found by autograd
LOSSES: dict[str, Callable] = {
    "flip recovery, exact": flip_recovery_loss,
    "Gaussian recovery, exact": lambda m, v, s, g: recovery_loss(m, v, 1.0, s, g),
    "squared error, ELBO weight": lambda m, v, _, g: path_loss(m, v, g),
    "squared error, exact": lambda m, v, r, g: denoising_loss(m, v, 1.0, uniform(r, v, g), generator=g),
    "cross-entropy of means": lambda m, v, r, g: readout_loss(m, v, 1.0, uniform(r, v, g), g),
    "score entropy (p to 0)": lambda m, v, _, g: score_entropy_loss(m, v),
    "probability flow (sigma to 0)": lambda m, v, _, g: probability_flow_loss(m, v),
    "squared error, mean field": lambda m, v, r, g: denoising_loss(m, v, 1.0, uniform(r, v, g),
                                                                   "mean_field", SWEEPS, g)}
GRADIENTS: dict[str, Callable] = {  # gradients uphill of machine, batch, level, generator
    "exact maximum likelihood": lambda m, v, _, g: exact_gradient(m, v),
    **{f"CD-{k}": lambda m, v, _, g, k=k: cd_gradient(m, v, k, generator=g)[0] for k in STEPS},
    **{
        f"flip recovery, k = {k}": lambda m, v, p, g, k=k: recovery_gradient(
            m, v, flip_posterior(m, flip(v, p, generator=g), p), k, g
        )
        for k in STEPS
    },
    **{
        f"Gaussian recovery, k = {k}": lambda m, v, s, g, k=k: recovery_gradient(
            m, v, posterior(m, noised(v, s, g), 1.0, s), k, g
        )
        for k in STEPS
    },
}


def climb(name, m, v, level, g):
    """Set the gradients of `m` for one step of method `name`."""
    if name in GRADIENTS: return ascend(m, GRADIENTS[name](m, v, level, g))
    m.zero_grad(set_to_none=True)
    LOSSES[name](m, v, level, g).mean().backward()


def run(stage, name, level, seed, epochs, device):
    """Train once; the mean exact log-likelihood of the images trained on and of those held out, and
    seconds of updates.
    """
    torch.set_num_threads(1)
    train, test = (binarize(x, 7.5 / 16) for x in digits())
    if stage == "select": train, test = train[:-HELD], train[-HELD:]
    # float32 rounds its means to 0 and 1
    dtype = torch.float64 if name == "cross-entropy of means" else torch.float32
    g = torch.Generator().manual_seed(seed)
    m = RBM(64, H, generator=g)
    m.b.data = base_rate(train)
    m, train, test = m.to(device, dtype), train.to(device, dtype), test.to(device, dtype)
    own = torch.Generator(device).manual_seed(1000 + seed)
    optimizer = torch.optim.Adam([{"params": [m.W], "weight_decay": DECAY}, {"params": [m.b, m.c]}],
                                 lr=RATE)
    total = epochs * (len(train) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    start = time.perf_counter()
    for _ in range(epochs):
        for rows in torch.randperm(len(train), generator=g).split(BATCH):
            climb(name, m, train[rows.to(device)], level, own)
            optimizer.step(), schedule.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        return [round(m.log_prob(x).mean().item(), 5) for x in (train, test)] + [round(seconds, 3)]


def key(level):
    return (
        "-"
        if level is None
        else str(level)
        if isinstance(level, (int, float))
        else " to ".join(map(str, level))
    )


def paired(a, b):
    """Mean difference of runs `a` and `b` (seed -> numbers) over the seeds that both have, with its
    standard error.
    """
    d = [a[seed][1] - b[seed][1] for seed in a if seed in b]
    return {"value": statistics.mean(d), "stderr": statistics.stdev(d) / math.sqrt(len(d)),
            "seeds": len(d)} if len(d) > 1 else None


def tables(result):
    """Fill the tables of `result` from its runs."""
    select, test = result["runs"]["select"], result["runs"]["test"]
    means = {name: {level: [statistics.mean(r[i] for r in runs.values()) for i in (0, 1)]
                    for level, runs in by.items()}
             for name, by in select.items()}
    result["selection"] = {
        name: {
            level: {
                "train": x[0],
                "held_out": x[1],
                "seeds": len(select[name][level]),
                "minus_cd1": paired(select[name][level], select.get("CD-1", {}).get("-", {})),
            }
            for level, x in by.items()
        }
        for name, by in means.items()
    }
    result["chosen"] = {name: max(by, key=lambda level: by[level][1]) for name, by in means.items()}
    result["methods"] = {}
    for name, (level, runs) in ((n, next(iter(by.items()))) for n, by in test.items()):
        columns = list(zip(*runs.values()))
        result["methods"][name] = {
            "level": level, "seeds": len(runs),
            **{s: statistics.mean(columns[i]) for i, s in enumerate(("train", "test"))},
            "spread_over_seeds": statistics.stdev(columns[1]) if len(runs) > 1 else None,
            **{f"minus_{short}": paired(runs, test.get(other, {}).get("-", {})) for short, other in
               (("cd1", "CD-1"), ("cdk", f"CD-{name.split(' = ')[-1]}"),
                ("exact", "exact maximum likelihood"))}}
    for level, runs in result["runs"]["short"].get(SHORT, {}).items():
        values = [r[1] for r in runs.values()]
        result["short"] = {"method": SHORT, "level": level, "epochs": result["settings"]["epochs"] // 5,
                           "seeds": len(runs),
                           "test": statistics.mean(values), "spread_over_seeds": statistics.stdev(values)
                           if len(runs) > 1 else None}


def work(tasks, result, options):
    """Run `tasks` (stage, name, level, seed) that are not in `result` yet, on two pools; write it after
    each.
    """
    spawn = multiprocessing.get_context("spawn")
    pools = {"cpu": ProcessPoolExecutor(options.workers, spawn)}
    if options.device != "cpu":
        pools[options.device] = ProcessPoolExecutor(options.device_workers, spawn)
    waiting = {}
    for stage, name, level, seed in tasks:
        if str(seed) in result["runs"][stage].get(name, {}).get(key(level), {}): continue
        where = options.device if name in ON_DEVICE else "cpu"
        epochs = options.epochs // 5 if stage == "short" else options.epochs
        waiting[pools[where].submit(run, stage, name, level, seed, epochs,
                                    where)] = stage, name, key(level), str(seed)
    for future in tqdm(as_completed(waiting), total=len(waiting), disable=None):
        stage, name, level, seed = waiting[future]
        result["runs"][stage].setdefault(name, {}).setdefault(level, {})[seed] = future.result()
        tables(result)
        write(options.out, result)
    for pool in pools.values(): pool.shutdown()


def parse():
    parser = arguments(__doc__, RESULTS / "recovery.json")
    parser.add_argument("--device", default="cpu",
                        help="where the enumerated posteriors are computed: cpu (default) or cuda")
    parser.add_argument("--workers", type=int, default=2, help="processes on the processor (default 2)")
    parser.add_argument("--device-workers", type=int, default=5,
                        help="processes on the device, if it is not the processor (default 5)")
    parser.add_argument("--seeds", type=int, default=16, help="test runs of each method (default 16)")
    parser.add_argument("--device-seeds", type=int, default=2,
                        help="test runs of each method with enumerated posteriors (default 2)")
    parser.add_argument("--select-seeds", type=int, default=2,
                        help="runs of each level to choose from (default 2; half on the device)")
    parser.add_argument("--epochs", type=int, default=300,
                        help="passes over the training set (default 300)")
    parser.add_argument("--only", nargs="*", help="names of methods, or parts of them (default all)")
    parser.add_argument("--resume", action="store_true",
                        help="keep the runs that the file at --out holds")
    return parser.parse_args()


def main():
    options = parse()
    every = FAMILIES | ON_DEVICE
    names = [n for n in every if not options.only or any(part in n for part in options.only)]
    train, test = (binarize(x, 7.5 / 16) for x in digits())
    result = {"unit": "nats per image", "made": [{
                  "command": command(), "methods": names,
                  "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
                  "versions": versions("numpy", "scikit-learn")}],
              "settings": {"hidden": H, "batch": BATCH, "optimizer": "Adam", "rate": RATE,
                           "decay_of_weights": DECAY,
                           "epochs": options.epochs, "held_out": HELD, "train_images": len(train),
                           "test_images": len(test),
                           "mean_field_sweeps": SWEEPS},
              "independent pixels": {"test": independent_log_prob(test, base_rate(train)).mean().item()},
              "runs": {"select": {}, "test": {}, "short": {}}}
    if options.resume and options.out.is_file():
        stored = json.loads(options.out.read_text())
        if stored["settings"] != result["settings"]:
            raise SystemExit(f"{options.out} holds runs of other settings")
        result["runs"], result["made"] = (
            {"short": {}} | stored["runs"],
            stored["made"] + [x for x in result["made"] if x not in stored["made"]],
        )
    count = {n: (max(1, options.select_seeds // 2), options.device_seeds) if n in ON_DEVICE else
             (options.select_seeds, options.seeds) for n in names}
    work([("select", n, level, 100 + s) for s in range(options.select_seeds) for n in names
          for level in every[n] if s < count[n][0]],
         result, options)
    tables(result)
    choice = {n: next(x for x in every[n] if key(x) == result["chosen"][n]) for n in names}
    for n in names: result["runs"]["test"].setdefault(n, {})
    result["runs"]["test"] = {n: {k: r for k, r in by.items() if n not in choice or k == key(choice[n])}
                              for n, by in result["runs"]["test"].items() if by}
    work([("test", n, choice[n], s) for s in range(max(options.seeds, options.device_seeds))
          for n in names if s < count[n][1]],
         result, options)
    work([("short", SHORT, choice[SHORT], s) for s in range(options.seeds) if SHORT in names], result,
         options)
    for name, row in result["methods"].items():
        gain = row["minus_cd1"] or {"value": math.nan, "stderr": math.nan}
        print(
            f"{name:31}{row['level']:>11} train {row['train']:.3f} test {row['test']:.3f}, minus CD-1 "
            f"{gain['value']:+.3f} "
            f"± {gain['stderr']:.3f} over {row['seeds']} seeds"
        )


if __name__ == "__main__":
    main()
