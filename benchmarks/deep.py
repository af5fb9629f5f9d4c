"""Deep machines: small ones on the digits, whose likelihood is exact, and a deep Boltzmann machine of
784-500-1000 units on MNIST.

    python benchmarks/deep.py --data DIR [--runs runs/deep] [--epochs 100] [--only PART] [--out FILE]

DIR is the folder of the four MNIST files; test images are binarised once, as in `mnist.py`, training
images anew in every epoch. `--runs` keeps the machine and a checkpoint, written after every epoch, from
which a run that was stopped goes on. `--only` makes one part (digits, ceilings, time, mnist) and keeps
the others as they are in FILE; rows that are there already are not made again. The part mnist trains
until `--epochs`, or takes the machine of the last checkpoint with `--evaluate`.
"""
import json
from pathlib import Path
import time

from safetensors.torch import load_file
import torch

from rbmdiff.foundations.core import Estimate
from rbmdiff.foundations.data import base_rate, binarize, binarize_stochastic, digits
from rbmdiff.foundations.train import TrainState, ascend, batches, sgd, train
from rbmdiff.foundations.units import states
from rbmdiff.learning.contrastive import cd_gradient, centred, deep_gradient
from rbmdiff.learning.partition import ais, reverse_ais
from rbmdiff.models.deep import DBM, DBN, ceilings, with_prior
from rbmdiff.models.rbm import RBM
from rbmdiff.practice import runs
from rbmdiff.sampling.gibbs import gibbs
from record import RESULTS, arguments, header, interleaved, write

SIZES = 784, 500, 1000
PRETRAIN = dict(epochs=5, lr=0.1)
JOINT = dict(lr=0.04, share=0.25, k=2, steps=5, average=0.999)


def images(folder, scratch):
    """Grey training images, and test images binarised as in `mnist.py`."""
    run = runs.prepare(scratch, {"data": "mnist", "data_folder": str(folder)}, overwrite=True)
    return run.x, run.held_out


def doubled(rbm, axis):
    """`rbm` with two copies of a layer on the same weights, the visible one for axis 0."""
    layer = {0: "b", 1: "c"}[axis]
    sizes = [n * (2 if i == axis else 1) for i, n in enumerate(rbm.W.shape)]
    big = RBM(*sizes, generator=0, dtype=rbm.W.dtype)
    big.requires_grad_(False)
    for name in "Wbc":
        x = getattr(rbm, name)
        twice = name == layer or name == "W"
        getattr(big, name).copy_(torch.cat([x, x], axis if name == "W" else 0) if twice else x)
    return big


def folded(gradients, axis):
    """The gradients of the machine behind `doubled`: those of the copies added up."""
    layer = {0: "b", 1: "c"}[axis]
    add = lambda x, dim: sum(x.chunk(2, dim))
    return {name: add(x, axis if name == "W" else 0) if name in ("W", layer) else x
            for name, x in gradients.items()}


def doubled_step(axis, rows):
    """A centred PCD step of a machine with one layer doubled; `rows` makes its data of a batch."""
    seen = -1

    def step(state, v):
        nonlocal seen
        big, g, carry = doubled(state.model, axis), state.generator, state.carry
        v = rows(v, g)
        if axis == 0: v = torch.cat([v, v], 1)
        if seen != state.epoch:
            carry["mean_v"], carry["mean_h"] = v.mean(0), big.hidden_mean(v).mean(0)
            seen = state.epoch
        found, carry["chains"] = cd_gradient(big, v, 1, carry.get("chains", v[:100]), g)
        ascend(state.model, folded(centred(found, carry["mean_v"], carry["mean_h"]), axis))
        return {}
    return step


def falling(optimizer, updates, hold=0.0, low=0.01):
    """The full rate for a part `hold` of the updates, then a straight fall to `low` of it."""
    rate = lambda s: max(low, min(1.0, (1 - s / updates) / (1 - hold)))
    return torch.optim.lr_scheduler.LambdaLR(optimizer, rate)


def pretrained(x, folder):
    """The two machines of the stack, each with its inner layer doubled, as one DBM."""
    path = folder / "pretrained.safetensors"
    if path.is_file(): return DBM.load(path)
    g = torch.Generator().manual_seed(0)
    _, H1, H2 = SIZES
    one, two = runs.new_machine(x, H1, generator=g), RBM(H1, H2, generator=g)
    epochs, lr = PRETRAIN["epochs"], PRETRAIN["lr"]

    def up(v, g):
        field = 2 * v @ one.W.detach() + one.c.detach()
        return torch.bernoulli(torch.sigmoid(field), generator=g)

    for machine, axis, rows in ((one, 0, lambda v, g: v), (two, 1, up)):
        if axis == 1: two.b.data.copy_(one.c.detach())
        optimizer = sgd(machine, lr)
        state = TrainState(machine, optimizer, g, falling(optimizer, epochs * 600, 0.5, 0.02))
        for record in train(state, lambda g: binarize_stochastic(x, g), doubled_step(axis, rows), epochs,
                            progress=False):
            print("pretraining", axis, record.epoch, f"{record.seconds:.0f} s", flush=True)
    dbm = DBM(SIZES, generator=0).requires_grad_(False)
    numbers = one.W, two.W, one.b, (one.c + two.b) / 2, two.c
    for p, value in zip((*dbm.W, *dbm.b), numbers):
        p.copy_(value.detach())
    dbm.save(path)
    return dbm


def joint_step(k, steps, share):
    """A centred PCD step of a DBM; offsets are the means over the first batch of an epoch. The weights
    between the hidden layers move at a `share` of the rate."""
    seen = -1

    def step(state, v):
        nonlocal seen
        dbm, g, carry = state.model, state.generator, state.carry
        if seen != state.epoch:
            rows = dbm.mean_field(v, 10).detach()
            carry["mean_v"] = rows.mean(0)
            carry["mean_h"] = dbm.as_rbm().hidden_mean(rows).mean(0).detach()
            if "chains" not in carry: carry["chains"] = torch.bernoulli(rows, generator=g)
            seen = state.epoch
        offsets = carry["mean_v"], carry["mean_h"]
        found, carry["chains"] = deep_gradient(dbm, v, k, carry["chains"], g, steps, offsets)
        found["W.1"] *= share
        ascend(dbm, found)
        return {}
    return step


def trained(x, folder, epochs):
    """The averaged machine of `epochs` epochs; goes on from the checkpoint in `folder`."""
    dbm = pretrained(x, folder).requires_grad_(True)
    optimizer = sgd(dbm, JOINT["lr"])
    state = TrainState(dbm, optimizer, 1, falling(optimizer, epochs * 600), JOINT["average"])
    checkpoint = folder / "checkpoint.safetensors"
    if checkpoint.is_file(): state.load(checkpoint)
    step = joint_step(JOINT["k"], JOINT["steps"], JOINT["share"])
    for record in train(state, lambda g: binarize_stochastic(x, g), step, epochs, progress=False):
        state.save(checkpoint)
        state.averaged_model().save(folder / "model.safetensors")
        history = {"epoch": record.epoch, "seconds": record.seconds}
        (folder / "history.json").write_text(json.dumps(history))
        print("joint", record.epoch, f"{record.seconds:.0f} s", time.strftime("%H:%M:%S"), flush=True)
    history = json.loads((folder / "history.json").read_text())
    return state.averaged_model(), state, history


# --- the digits, where everything is exact

SEEDS, UPDATES = 4, 12_000
f64 = torch.float64


def small_digits():
    return [binarize(x, 7.5 / 16).to(f64) for x in digits()]


def endless(x, generator):
    """Batches of 100, for ever."""
    while True:
        for rows in batches(len(x), 100, generator): yield x[rows]


def exactly(machine, x, seed, updates=2500, lr=0.03):
    """Maximum likelihood by automatic differentiation and Adam, its rate falling to zero."""
    optimizer = torch.optim.Adam(machine.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 1 - s / updates)
    for _, v in zip(range(updates), endless(x, torch.Generator().manual_seed(seed))):
        optimizer.zero_grad()
        (-machine.log_prob(v).mean()).backward()
        optimizer.step()
        schedule.step()
    return machine.requires_grad_(False)


def persistently(dbm, x, seed, lr, centre):
    """PCD with mean field, at a rate that falls to zero."""
    g = torch.Generator().manual_seed(seed)
    named, chains, offsets = dict(dbm.requires_grad_(False).named_parameters()), None, None
    for s, v in zip(range(UPDATES), endless(x, g)):
        if s % 15 == 0 and centre:
            rows = dbm.mean_field(v, 10)
            offsets = rows.mean(0), dbm.as_rbm().hidden_mean(rows).mean(0)
        if chains is None: chains = torch.bernoulli(dbm.mean_field(v, 10), generator=g)
        found, chains = deep_gradient(dbm, v, 1, chains, g, 10, offsets)
        for name, slope in found.items(): named[name].add_(slope, alpha=lr * (1 - s / UPDATES))
    return dbm


def fresh(x, sizes, seed):
    dbm = DBM(sizes, generator=seed, dtype=f64)
    dbm.b[0].data.copy_(base_rate(x))
    return dbm


def stacked(x, seed, updates=6000, lr=0.05):
    """A DBM of two machines, each trained with its inner layer doubled."""
    g = torch.Generator().manual_seed(seed)
    one = RBM(64, 10, generator=g, dtype=f64).requires_grad_(False)
    one.b.copy_(base_rate(x))
    two = RBM(10, 10, generator=g, dtype=f64).requires_grad_(False)
    up = lambda v: torch.bernoulli(torch.sigmoid(2 * v @ one.W + one.c), generator=g)
    for machine, axis, rows in ((one, 0, lambda v: torch.cat([v, v], 1)), (two, 1, up)):
        if axis: two.b.copy_(one.c)
        chains = None
        for s, v in zip(range(updates), endless(x, g)):
            big, v = doubled(machine, axis), rows(v)
            found, chains = cd_gradient(big, v, 1, v if chains is None else chains, g)
            found = folded(centred(found, v.mean(0), big.hidden_mean(v).mean(0)), axis)
            for name, slope in found.items():
                getattr(machine, name).add_(slope, alpha=lr * (1 - s / updates))
    dbm = DBM([64, 10, 10], generator=0, dtype=f64).requires_grad_(False)
    numbers = one.W, two.W, one.b, (one.c + two.b) / 2, two.c
    for p, value in zip(dbm.parameters(), numbers):
        p.copy_(value)
    return dbm


def plainly(lr, centre):
    """A way to train: PCD from small weights."""
    return lambda x, seed: persistently(fresh(x, [64, 10, 10], seed), x, seed, lr, centre)


WAYS = {
    "RBM, 10 hidden, exact": lambda x, s: exactly(RBM(64, 10, generator=s, dtype=f64), x, s),
    "RBM, 12 hidden, exact": lambda x, s: exactly(RBM(64, 12, generator=s, dtype=f64), x, s),
    "DBM, exact": lambda x, s: exactly(fresh(x, [64, 10, 10], s), x, s),
    "DBM, PCD, rate 0.05": plainly(0.05, False),
    "DBM, PCD, rate 0.2": plainly(0.2, False),
    "DBM, centred PCD, rate 0.2": plainly(0.2, True),
    "DBM, pretrained": stacked,
    "DBM, pretrained, then centred PCD, rate 0.05":
        lambda x, s: persistently(stacked(x, s), x, s, 0.05, True),
}


def on_digits(kept, save):
    """Exact likelihoods of the ways to train, a row a seed; what is there already is kept."""
    x, test = small_digits()
    rows = kept.get("digits", {}).get("ways", {})
    for seed in range(SEEDS):
        for name, way in WAYS.items():
            found = rows.setdefault(name, [])
            if len(found) > seed: continue
            start = time.perf_counter()
            m = way(x, seed)
            row = {"train": m.log_prob(x).mean().item(), "test": m.log_prob(test).mean().item(),
                   "seconds": time.perf_counter() - start}
            if hasattr(m, "mean_field"):
                row |= {"bound": m.bound(test, 100).mean().item(), "W2": m.W[1].norm().item()}
            found.append(row)
            print(seed, name, row, flush=True)
            save({"digits": {"ways": rows, "updates": UPDATES, "machine": "64-10-10 and 64-10"}})
    return {"ways": rows, "updates": UPDATES, "machine": "64-10-10 and 64-10"}


def climbed(net, table, value, updates=3000):
    """Train the top machine of `net` on a table of hidden states; (updates, *value) on the way."""
    S, curve = states(10), []
    top = net.layers[1].requires_grad_(True)
    optimizer = torch.optim.Adam(top.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 1 - s / (updates + 1))
    for s in range(updates + 1):
        log_p = top.log_prob(S)
        if s % 100 == 0: curve.append([s, *value(log_p.detach())])
        optimizer.zero_grad()
        (-(table.exp() @ log_p)).backward()
        optimizer.step()
        schedule.step()
    return curve


def to_ceilings(kept, save):
    """A 64-10 machine, a belief network grown on it and trained on q, both ceilings: a row a seed."""
    x, test = small_digits()
    found = kept.get("ceilings", {"rows": [], "curves": []})
    found["columns"] = "updates, train log p and bound, test log p and bound"
    for seed in range(len(found["rows"]), SEEDS):
        first = DBN([64, 10], generator=seed, dtype=f64)
        rbm = exactly(first.layers[0], x, seed)

        def value(table, rbm=rbm):
            return [y.mean().item() for v in (x, test) for y in with_prior(rbm, v, table)]

        best = ceilings(rbm, x, 500)
        row = {"RBM": [rbm.log_prob(v).mean().item() for v in (x, test)]}
        row |= {name: value(table) for name, table in zip(("bound", "likelihood"), best)}
        curve = climbed(first.grown(), best[0], value)
        row["DBN"] = curve[-1][1:]
        found["rows"].append(row)
        found["curves"].append(curve)
        print(seed, row, flush=True)
        save({"ceilings": found})
    return found


def timed():
    """Milliseconds of an update of 100 rows and 100 chains, and multiply-adds a row."""
    x = torch.bernoulli(torch.full((100, 784), 0.2))
    dbm = DBM(SIZES, generator=0).requires_grad_(False)
    rbm = RBM(784, 500, generator=0).requires_grad_(False)
    chains = torch.bernoulli(torch.full((100, 1784), 0.5))
    ways = {"DBM": lambda: deep_gradient(dbm, x, 5, chains, 0, 10),
            "RBM": lambda: cd_gradient(rbm, x, 1, x, 0)}
    seconds = interleaved(ways, 30)
    D, H1, H2 = SIZES
    both = (D + H2) * H1
    floor = {"DBM": D * H1 + 10 * 2 * H1 * H2 + 5 * 2 * both + 2 * both, "RBM": 5 * D * H1}
    return {"milliseconds": {name: 1e3 * s for name, s in seconds.items()}, "multiply-adds a row": floor,
            "mean_field": 10, "gibbs": 5, "threads": torch.get_num_threads()}


# --- MNIST

EVALUATE = dict(chains=100, temperatures=10_000, back=100, steps=2000, cases=100, inner=(50, 500))


def hexadecimal(p):
    """Probabilities [n, D] as a text a row, of sixteen levels."""
    return ["".join("0123456789abcdef"[int(16 * y.clamp(max=0.999))] for y in row) for row in p]


def as_dict(e):
    return {"value": e.value, "stderr": e.stderr}


def shortly(rbm, v, base):
    """log Z from both sides by few temperatures, with and without a base made of data."""
    ways = {"base of the data": base, "no base": None}
    return {name: [as_dict(ais(rbm, len(v), 1000, 4, base=b)),
                   as_dict(reverse_ais(rbm, v, 1000, 5, base=b))] for name, b in ways.items()}


@torch.no_grad()
def evaluated(dbm, chains, x, test):
    """log Z from both sides, the bound, the likelihood of some cases by annealing, and samples."""
    start, E, rbm = time.perf_counter(), EVALUATE, dbm.as_rbm()
    sets = {"test": test, "train": binarize_stochastic(x[:10_000], torch.Generator().manual_seed(0))}
    base = base_rate(dbm.mean_field(sets["train"], 10))
    log_z = ais(rbm, E["chains"], E["temperatures"], 0, base=base)
    print("log Z", log_z, log_z.ess, flush=True)
    long = gibbs(rbm, chains[:E["back"]], E["steps"], 1)
    back = reverse_ais(rbm, long, E["temperatures"], 3, base=base)
    print("back", back, back.ess, flush=True)
    short = shortly(rbm, long[:50], base)
    below = lambda v: torch.cat([dbm.bound(part, 30, log_z.value) for part in v.split(500)]).double()
    bounds = {name: Estimate.of(below(v)) for name, v in sets.items()}
    print(bounds, flush=True)
    cases = test[torch.randperm(len(test), generator=torch.Generator().manual_seed(1))[:E["cases"]]]
    inner = [ais(dbm.clamped(v), *E["inner"], i) for i, v in enumerate(cases)]
    own = (cases @ dbm.b[0]).double()
    log_p = torch.tensor([z.value for z in inner], dtype=f64) + own - log_z.value
    gap = log_p - below(cases)
    return {
        "log_z": as_dict(log_z) | {"ess": log_z.ess}, "log_z_back": as_dict(back) | {"ess": back.ess},
        "log_z_short": short,
        "bound": {name: as_dict(e) for name, e in bounds.items()},
        "cases": {"n": len(cases), "log_p": as_dict(Estimate.of(log_p)),
                  "bound": as_dict(Estimate.of(below(cases))), "gap": as_dict(Estimate.of(gap)),
                  "inner_stderr": max(z.stderr for z in inner)},
        "spectral_norms": [torch.linalg.matrix_norm(W, 2).item() for W in dbm.W],
        "dreams": hexadecimal(rbm.visible_mean(rbm.sample_hidden(long[:40], 2))[:, :784]), "settings": E,
        "evaluation_seconds": time.perf_counter() - start,
    }


def on_mnist(args):
    """Train, or go on, and evaluate."""
    folder = args.runs
    folder.mkdir(parents=True, exist_ok=True)
    x, test = images(args.data, folder / "data")
    if args.evaluate:
        dbm = DBM.load(folder / "model.safetensors").requires_grad_(False)
        chains = load_file(folder / "checkpoint.safetensors")["carry.chains"]
        history = json.loads((folder / "history.json").read_text())
    else:
        dbm, state, history = trained(x, folder, args.epochs)
        chains = state.carry["chains"]
    return {"epochs": history["epoch"], "training_seconds": history["seconds"], "pretraining": PRETRAIN,
            "joint": JOINT, "threads": torch.get_num_threads(), **evaluated(dbm, chains, x, test)}


def main():
    parser = arguments(__doc__, RESULTS / "deep.json", threads=1)
    parser.add_argument("--data", type=Path, help="folder of the four MNIST files")
    parser.add_argument("--runs", type=Path, default=Path("runs/deep"), help="machine and checkpoints")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--only", choices=("digits", "ceilings", "time", "mnist"))
    parser.add_argument("--evaluate", action="store_true", help="the machine of the last checkpoint")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    def kept():
        return json.loads(args.out.read_text()) if args.out.is_file() else {}

    def save(part):
        found = kept() | header("nats per image") | {"command": "python benchmarks/deep.py --data DIR"}
        write(args.out, found | part)

    parts = {"ceilings": lambda: to_ceilings(kept(), save), "digits": lambda: on_digits(kept(), save),
             "time": timed, "mnist": lambda: on_mnist(args)}
    for name, make in parts.items():
        if args.only in (None, name): save({name: make()})


if __name__ == "__main__":
    main()
