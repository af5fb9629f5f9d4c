"""Learning by the TAP expansion on the 8x8 digits, H = 12, beside PCD-1 and the exact gradient.

    python benchmarks/tap.py [--out FILE] [--seeds 8] [--updates 5000] [--rates 0.1 0.3] [--threads 1]
    python benchmarks/tap.py --mnist DIR [--updates 20000] [--rates 0.05]

All methods share everything but the average over the model: data (pixels > 7, 1500 images to train on,
297 to test), start (independent pixels and small random weights) and batches of 100, the same for a
seed; gradient ascent with a rate that falls linearly to zero, no decay, no momentum. Means take three
sweeps an update, from the data of the batch ("data") or from where the last update left them
("persistent", 100 of them). Likelihoods are exact, in nats per image; nothing is chosen by them: all
rates are reported. Differences are paired, of runs with the same seed. The exact gradient, whose updates
cost ten times as much, has two seeds. With `--mnist`, 500 hidden units
on MNIST, binarised at random, with likelihoods by AIS of 100 chains and 10,000 temperatures; nothing is
stored unless `--out` is given.
"""
from functools import partial
import statistics
import time

import torch
from tqdm import tqdm

from rbmdiff.foundations.core import Estimate
from rbmdiff.foundations.data import (
    base_rate,
    binarize,
    binarize_stochastic,
    digits,
    independent_log_prob,
    mnist,
)
from rbmdiff.foundations.train import batches
from rbmdiff.learning.contrastive import cd_gradient, exact_gradient
from rbmdiff.learning.partition import ais
from rbmdiff.learning.tap import tap_gradient
from rbmdiff.models.rbm import RBM
from record import RESULTS, arguments, header, write

BATCH, LOOKS, EXACT = 100, 20, 2
STARTS = "data", "persistent"
TAP = {f"order {order}, {start}": (order, start) for start in STARTS for order in (1, 2, 3)}


def method(name, v, generator):
    """The gradient of method `name` as a function of machine and batch; `v` is where chains start."""
    kept = None

    def persistent(step, m, batch):
        nonlocal kept
        start = kept if kept is not None else v if step.func is cd_gradient else (v, m.hidden_mean(v))
        gradients, kept = step(m, batch, chains=start)
        return gradients

    if name == "exact": return exact_gradient
    if name == "PCD-1": return partial(persistent, partial(cd_gradient, generator=generator))
    order, start = TAP[name]
    step = partial(tap_gradient, order=order)
    return partial(persistent, step) if start == "persistent" else lambda m, batch: step(m, batch)[0]


def run(name, seed, rate, updates, train, hidden, look):
    """Train once: the machine, what `look` sees on the way, and seconds of the processor an update."""
    g = torch.Generator().manual_seed(seed)
    m = RBM(train.shape[1], hidden, generator=g)
    m.b.data = base_rate(train)
    start = train[torch.randperm(len(train), generator=g)[:BATCH]]
    gradient = method(name, start, torch.Generator().manual_seed(1000 + seed))
    curve, seconds, todo = [], 0.0, []
    for n in range(updates):
        todo = todo or list(batches(len(train), BATCH, g))
        clock = time.process_time()
        steps = gradient(m, train[todo.pop()])
        with torch.no_grad():
            for key, p in m.named_parameters(): p += rate * (1 - n / updates) * steps[key]
        seconds += time.process_time() - clock
        if (n + 1) % (updates // LOOKS) == 0: curve.append(look(m))
    return m, curve, seconds / updates


def paired(found, name, other, rate):
    """Mean difference of final test log-likelihoods of two methods over seeds, with its error."""
    both = zip(found[name, rate], found[other, rate])               # as many as both have
    gaps = [x["curve"][-1] - y["curve"][-1] for x, y in both]
    gap = Estimate.of(torch.tensor(gaps, dtype=torch.float64))
    return {"of": name, "from": other, "rate": rate, "seeds": gap.n, "value": gap.value,
            "stderr": gap.stderr}


def summary(found):
    """A row for every method and rate, and paired differences, of the runs `found` so far."""
    rows, gaps = [], []
    for (name, rate), runs in found.items():
        test = [x["curve"][-1] for x in runs]
        curve = [round(statistics.mean(column), 4) for column in zip(*(x["curve"] for x in runs))]
        ms = 1e3 * statistics.median(x["seconds"] for x in runs)
        rows.append({"method": name, "rate": rate, "test": test, "curve": curve,
                     "milliseconds_per_update": ms})
        others = ["PCD-1"] if name != "PCD-1" else []
        if name.startswith("order 3"): others.append(name.replace("3", "2"))
        gaps += [paired(found, name, other, rate) for other in others
                 if min(len(runs), len(found.get((other, rate), ()))) > 1]
    return {"rows": rows, "differences": gaps}


def on_digits(options):
    """Every method at every rate, one seed after the other; what is done is written after each."""
    train, test = (binarize(x, 7.5 / 16) for x in digits())
    look = lambda m: round(m.log_prob(test).mean().item(), 4)
    settings = {"hidden": 12, "batch": BATCH, "sweeps": 3, "damping": 0.5, "updates": options.updates,
                "seeds": options.seeds, "rates": options.rates, "threads": options.threads}
    result = {**header("nats per test image", "numpy", "scikit-learn"), "settings": settings,
              "independent pixels": independent_log_prob(test, base_rate(train)).mean().item()}
    names, found = options.methods or ["PCD-1", *TAP, "exact"], {}
    jobs = [(seed, name, rate) for seed in range(options.seeds) for name in names
            for rate in options.rates if name != "exact" or seed < EXACT]
    for number, (seed, name, rate) in enumerate(tqdm(jobs, disable=None), 1):
        _, curve, seconds = run(name, seed, rate, options.updates, train, 12, look)
        found.setdefault((name, rate), []).append({"curve": curve, "seconds": seconds})
        print(f"seed {seed}, {name}, rate {rate}: {curve[-1]:.3f}, best on the way {max(curve):.3f}",
              flush=True)
        if number < len(jobs) and jobs[number][0] == seed: continue
        settings["seeds"] = seed + 1
        write(options.out or RESULTS / "tap.json", result | summary(found))


def on_mnist(options):
    """Two orders and PCD-1 with 500 hidden units on MNIST."""
    train, test = mnist(options.mnist)
    g = torch.Generator().manual_seed(0)
    train, test = binarize_stochastic(train, g), binarize_stochastic(test, g)
    result = {**header("nats per test image"), "rows": []}
    for rate in options.rates:
        for name in options.methods or ("PCD-1", "order 2, persistent", "order 3, persistent"):
            m, _, seconds = run(name, 0, rate, options.updates, train, 500, lambda m: None)
            log_z = ais(m, 100, 10_000, 0, base=base_rate(train))
            fit = -m.free_energy(test).mean().item() - log_z.value
            result["rows"].append({"method": name, "rate": rate, "test": fit, "stderr": log_z.stderr,
                                   "milliseconds_per_update": 1e3 * seconds})
            print(result["rows"][-1], flush=True)
    if options.out: write(options.out, result)


def main():
    parser = arguments(__doc__, None, threads=1)
    parser.add_argument("--seeds", type=int, default=8, help="runs of each method (default 8)")
    parser.add_argument("--updates", type=int, default=5000, help="updates of a run (default 5000)")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.1, 0.3],
                        help="rates (default 0.1 0.3)")
    parser.add_argument("--methods", nargs="+", help="methods by name (default all)")
    parser.add_argument("--mnist", help="folder of the MNIST files: 784x500 in place of the digits")
    options = parser.parse_args()
    if options.seeds < 1 or options.updates < LOOKS:
        parser.error(f"--seeds must be at least 1 and --updates at least {LOOKS}")
    torch.set_num_threads(options.threads)
    with torch.no_grad(): (on_mnist if options.mnist else on_digits)(options)


if __name__ == "__main__":
    main()
