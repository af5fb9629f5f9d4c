"""Rules of learning that differ in their average over the model: same budget, starts and batches.

    python benchmarks/learning.py --data DIR [--parts pair digits images] [--out FILE] [--threads 1]

DIR is the folder of the four MNIST files. Every rule goes through the step of `rbmdiff train`: centred,
100 chains, batches of 100, plain ascent with a rate that falls linearly to zero, a running average of
the parameters. Rows are written one by one and found again by part, rule, rate and seed: a run that was
killed, or has too few seeds, goes on. Nothing is chosen by a number of the test images. Rules
that cost several times as much have fewer seeds.

`digits`: 64x16 on the 8x8 digits, the rates of the package, exact likelihoods, sixteen seeds. `pair`:
784x10 on the digits 0 and 1 of MNIST, exact likelihoods; where a rule says log Z itself, its error, and
whether the mass of the training images leaves room for it. `images`: 784x500 on MNIST, binarised anew
every epoch. There every rule gets as many epochs as fit into the processor time of `--epochs` epochs of
PCD-1, by the cost of an update, the shortest of many, measured in turns; log Z by AIS and reverse AIS.
With `--held` the images that judge are 10,000 of those to train on, which are then left out: rates are
chosen by that.
"""
from functools import partial
import json
from pathlib import Path
import time

import torch

from rbmdiff.foundations.data import (
    base_rate,
    binarize,
    binarize_stochastic,
    digits,
    independent_log_prob,
    mnist,
)
from rbmdiff.foundations.train import TrainState, batches, linear_decay, sgd, train
from rbmdiff.learning.gradients import (
    fast_gradient,
    population_gradient,
    population_log_z,
    start_population,
    tempered_gradient,
    two_sided_gradient,
)
from rbmdiff.learning.partition import ais, reverse_ais
from rbmdiff.learning.tap import tap_gradient
from rbmdiff.practice.runs import contrastive_step, new_machine
from rbmdiff.sampling.gibbs import gibbs
from rbmdiff.sampling.tempering import check_mass
from record import RESULTS, arguments, header, interleaved, write
from stuck import digits as pair_of_digits

BATCH = CHAINS = 100
DECAY = 1e-4
KEEP = "costs", "rows"
FEW = {("pair", "exact"): 2, ("pair", "tempering"): 2, ("digits", "tempering"): 8}
ANNEALING = {"n_chains": 100, "n_temperatures": 10_000}
SETTINGS = {
    "digits": {"hidden": 16, "epochs": 100, "average": 0.99, "rates": (0.3,), "seeds": 16,
               "betas": (0.0, 0.5, 1.0)},
    "pair": {"hidden": 10, "epochs": 12, "average": 0.99, "rates": (0.2, 0.02), "seeds": 4,
             "betas": (0.0, 0.25, 0.5, 0.75, 1.0)},
    "images": {"hidden": 500, "epochs": 20, "average": 0.999, "rates": (0.3,), "seeds": 1,
               "betas": (0.0, 0.25, 0.5, 0.75, 1.0)}}
NAMES = {"digits": ("PCD-1", "two-sided", "fast 0.02", "TAP 3", "population", "tempering"),
         "pair": ("PCD-1", "two-sided", "fast 0.2", "fast 0.05", "fast 0.02", "TAP 3", "population",
                  "exact", "tempering"),
         "images": ("PCD-1", "two-sided", "fast 0.02", "TAP 3", "population")}


def third_order(rbm, v, kept, generator=None):
    """TAP of the third order from the data, as a rule."""
    return tap_gradient(rbm, v, order=3)[0], {}


def rule_of(name, betas, base):
    """The rule of a name, for `contrastive_step`."""
    if name == "exact": return "exact"
    if name == "PCD-1": return "pcd"
    if name.startswith("fast"): return partial(fast_gradient, rate=float(name.split()[1]))
    return {"two-sided": two_sided_gradient, "TAP 3": third_order, "population": population_gradient,
            "tempering": partial(tempered_gradient, betas=betas, base=base)}[name]


def drawn(draw, seed):
    """Batches for every epoch, the same for all rules, from what `draw` returns."""
    g = torch.Generator().manual_seed(1000 + seed)

    def epoch(_):
        x = draw(g)
        return (x[part] for part in batches(len(x), BATCH, g))
    return epoch


def learned(name, draw, start, s, rate, seed, epochs):
    """The state after a run by the rule `name`, and seconds of the processor."""
    m = new_machine(start, s["hidden"], generator=seed)
    optimizer = sgd(m, rate, 0.0, DECAY)
    updates = epochs * -(-len(start) // BATCH)
    state = TrainState(m, optimizer, seed, linear_decay(optimizer, updates), s["average"])
    if name == "population": state.carry |= start_population(m, CHAINS, state.generator)
    step = contrastive_step(method=rule_of(name, s["betas"], base_rate(start)), chains=CHAINS)
    clock = time.process_time()
    for _ in train(state, drawn(draw, seed), step, epochs, BATCH, False): pass
    return state, time.process_time() - clock


def own_log_z(state, seen):
    """What a population says of log Z: error, its bar, families left, and whether there is room."""
    found = population_log_z(state.model, state.carry)
    try:
        check_mass(state.model, seen, found)
        room = True
    except ValueError:
        room = False
    truth = state.model.precise().log_partition().item()
    return {"log_z_error": found.value - truth, "log_z_bar": found.stderr, "room": room,
            "families": len(state.carry["family"].unique())}


def judged(m, test):
    """Exact mean log-likelihood of test images [n, D], in nats."""
    return m.precise().log_prob(test.double()).mean().item()


def annealed(m, test, start, base):
    """Mean log-likelihoods by AIS and by reverse AIS, with their errors."""
    fit = -m.precise().free_energy(test.double()).mean().item()
    up = ais(m, generator=0, base=base, **ANNEALING)
    v = gibbs(m, start[:ANNEALING["n_chains"]], 1000, 0)
    down = reverse_ais(m, v, ANNEALING["n_temperatures"], 0, base=base)
    return {"test": fit - up.value, "bar": up.stderr, "reverse": fit - down.value,
            "reverse_bar": down.stderr}


class Rows:
    """The file of results: rows by part, rule, rate and seed."""

    def __init__(self, path, data):
        self.path, self.result = path, header("nats per test image; processor seconds", "scikit-learn",
                                              without=(str(data),))
        self.result |= {"command": "python benchmarks/learning.py --data DIR", "settings": SETTINGS,
                        "costs": {}, "rows": []}
        if not path.is_file(): return
        old = json.loads(path.read_text("utf8"))
        self.result |= {name: old[name] for name in old if name not in self.result or name in KEEP}

    def has(self, **key):
        """Whether there is a row with all of these entries."""
        return any(key.items() <= row.items() for row in self.result["rows"])

    def put(self, **row):
        """Keep a row, and write the file."""
        self.result["rows"].append(row)
        write(self.path, self.result)
        print(row, flush=True)


def small(part, rows, train_x, test, options):
    """Exact likelihoods of every rule, seed after seed."""
    s = SETTINGS[part]
    alone = independent_log_prob(test, base_rate(train_x)).mean().item()
    rows.result.setdefault("independent pixels", {})[part] = alone
    for rate in options.rates or s["rates"]:
        for seed in range(options.seeds or s["seeds"]):
            for name in options.rules or NAMES[part]:
                key = {"part": part, "rule": name, "rate": rate, "seed": seed}
                if rows.has(**key) or seed >= FEW.get((part, name), seed + 1): continue
                state, seconds = learned(name, lambda g: train_x, train_x, s, rate, seed, s["epochs"])
                own = own_log_z(state, train_x) if name == "population" else {}
                rows.put(**key, test=judged(state.averaged_model(), test), updates=state.updates,
                         seconds=seconds, **own)


def costs(names, x, s, base):
    """Seconds of an update by each rule, the shortest of many in turns, late enough to be typical."""
    ways = {}
    for name in names:
        m = new_machine(x, s["hidden"], generator=0)
        state = TrainState(m, sgd(m, 0.1, 0.0, DECAY), 0, None, s["average"])
        if name == "population": state.carry |= start_population(m, CHAINS, 0)
        step = contrastive_step(method=rule_of(name, s["betas"], base), chains=CHAINS)
        one = binarize_stochastic(x[:BATCH], torch.Generator().manual_seed(0))

        def way(state=state, step=step, one=one):
            for _ in train(state, iter([one] * 5), step, state.epoch + 1, BATCH, False): pass
        ways[name] = way
    return {name: seconds / 5 for name, seconds in interleaved(ways, 20).items()}


def images(rows, folder, options):
    """784x500 on MNIST, at the processor time of so many epochs of PCD-1."""
    x, test = mnist(folder)
    s, g = SETTINGS["images"], torch.Generator().manual_seed(0)
    order = torch.randperm(len(x), generator=g)
    if options.held: x, test = x[order[10_000:]], x[order[:10_000]]
    test, base = binarize_stochastic(test, g), base_rate(x)
    start = binarize_stochastic(x[torch.randperm(len(x), generator=g)[:CHAINS]], g)
    names = options.rules or NAMES["images"]
    missing = [name for name in names if name not in rows.result["costs"]]
    if missing:
        found = costs(["PCD-1", *(n for n in missing if n != "PCD-1")], x, s, base)
        rows.result["costs"] |= {n: found[n] / found["PCD-1"] for n in missing}
        print(rows.result["costs"], flush=True)
    budget = options.epochs or s["epochs"]
    for seed in range(options.seeds or s["seeds"]):
        for rate in options.rates or s["rates"]:
            for name in names:
                key = {"part": "held" if options.held else "images", "rule": name, "rate": rate,
                       "seed": seed, "budget": budget, "average": options.average or s["average"]}
                if rows.has(**key): continue
                epochs = max(1, round(budget / rows.result["costs"][name]))
                state, seconds = learned(name, partial(binarize_stochastic, x), x,
                                         s | {"average": key["average"]}, rate, seed, epochs)
                rows.put(**key, epochs=epochs, updates=state.updates, seconds=seconds,
                         **annealed(state.averaged_model(), test, start, base))


def main():
    parser = arguments(__doc__, RESULTS / "learning.json", threads=1)
    parser.add_argument("--data", type=Path, required=True, help="folder of the four MNIST files")
    parser.add_argument("--parts", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--rules", nargs="+", help="rules by name (default all of a part)")
    parser.add_argument("--rates", type=float, nargs="+", help="rates (default those of a part)")
    parser.add_argument("--seeds", type=int, help="runs of each (default those of a part)")
    parser.add_argument("--epochs", type=int, help="epochs of PCD-1 for `images` (default 20)")
    parser.add_argument("--average", type=float, help="decay of the average for `images`")
    parser.add_argument("--held", action="store_true", help="judge `images` by images to train on")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = Rows(options.out, options.data)
    for part in options.parts:
        if part == "images": images(rows, options.data, options)
        elif part == "digits":
            small(part, rows, *(binarize(x, 7.5 / 16) for x in digits()), options)
        else: small(part, rows, *(x for x, _ in pair_of_digits(options.data)), options)


if __name__ == "__main__":
    with torch.no_grad(): main()
