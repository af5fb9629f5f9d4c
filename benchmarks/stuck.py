"""A machine whose chains get stuck: 784 x 10 units trained on the digits 0 and 1 of MNIST. Its 1024
hidden states are listed, so log Z, exact draws and the weight of every mode are known at full size.

    python benchmarks/stuck.py --data DIR [--out FILE] [--threads 1] [--only NAME ...]

`machine` and `hard` (steps five times as long) are trained by exact gradients. `methods` start with
independent pixels, if not said otherwise, and know no exact draw; the temperatures alone are spaced with
exact draws. Each is run with three seeds: total variation over the hidden states, weight of the digit 1,
error of log Z in nats, its own error bar, processor seconds. `peers`: rules of rbms and fastrbm, written
out. `completion`: the top quarter of test images given, total variation over the hidden states.

With `--only` parts of these names, or methods, are run again; what else the file holds is kept. The
machine must then come out the same.
"""
from itertools import islice, pairwise
import json
import math
from pathlib import Path
import time

import torch
from torch.nn.functional import softplus

from rbmdiff.bridge.tilted import WarmGibbs, machine_predictor
from rbmdiff.diffusion.schedule import LinearBeta, time_grid
from rbmdiff.diffusion.solvers import ancestral
from rbmdiff.foundations.data import base_rate, mnist
from rbmdiff.foundations.train import TrainState, ascend, batches, train
from rbmdiff.foundations.units import states
from rbmdiff.learning.contrastive import exact_gradient
from rbmdiff.learning.partition import ais, reverse_ais
from rbmdiff.models.rbm import RBM
from rbmdiff.sampling.gibbs import gibbs
from rbmdiff.sampling.tempering import (
    at_temperatures,
    bennett,
    even_ladder,
    integrate,
    ladder_chain,
    log_mass,
    population_annealing,
    round_trips,
    swap_chance,
    thinned,
)
from record import RESULTS, arguments, header, write

SEEDS = 0, 1, 2


def digits(folder):
    """Bits [N, 784] and labels [N] of the digits 0 and 1, to train and to test."""
    train_x, test_x, train_y, test_y = mnist(folder, labels=True)
    return [((x > 0.5).float()[y < 2], y[y < 2]) for x, y in ((train_x, train_y), (test_x, test_y))]


def trained(data, lr, updates, checkpoints=512):
    """The state of a run of exact gradients, batches of 200, Adam."""
    rbm = RBM(784, 10, generator=0)
    rbm.b.data = base_rate(data)
    state = TrainState(rbm, torch.optim.Adam(rbm.parameters(), lr), 0)

    def step(state, v):
        ascend(state.model, exact_gradient(state.model, v))
        return {}

    def drawn(generator):
        rows = torch.randint(len(data), (200 * updates,), generator=generator)
        return (data[rows[part]] for part in batches(200 * updates, 200, generator))

    for _ in train(state, drawn, step, 1, 200, False, checkpoints): pass
    return state


class Truth:
    """Everything about a machine whose hidden states are listed, and the class of each of them."""

    def __init__(self, rbm, data, labels):
        self.rbm, self.precise = rbm, rbm.precise()
        self.h = states(rbm.W.shape[1], dtype=torch.float64)
        F = self.precise.hidden_free_energy(self.h)
        self.log_z = torch.logsumexp(-F, 0).item()
        self.p = (-F - self.log_z).exp()
        zero, one = (data[labels == k].double().mean(0) for k in (0, 1))
        picture = self.precise.visible_mean(self.h)
        self.one = ((picture - (zero + one) / 2) @ (one - zero) > 0).double()
        self.share = (self.p @ self.one).item()

    def law(self, v, w=None):
        """p(h) [1024] under states [N, D], averaged over p(h | v)."""
        w = torch.full((len(v),), 1 / len(v), dtype=torch.float64) if w is None else w
        total = torch.zeros_like(self.p)
        for rows, weights in zip(v.split(500), w.split(500)):
            x = self.precise.hidden_field(rows.double())
            log_p = x @ self.h.T - softplus(x).sum(1, keepdim=True)
            total += weights @ log_p.exp()
        return total

    def judged(self, v, w=None, log_z=None, seconds=None):
        """What a method found, as JSON."""
        q = self.law(v, w)
        row = {"tv": (q - self.p).abs().sum().item() / 2, "one": (q @ self.one).item(), "n": len(v)}
        if log_z is not None:
            row |= {"error": log_z.value - self.log_z, "bar": log_z.stderr}
        return row | ({} if seconds is None else {"seconds": seconds})


def timed(run):
    """The result of `run`, and its processor seconds."""
    start = time.process_time()
    found = run()
    return found, time.process_time() - start


def pixels(base, n, generator):
    """Independent pixels [n, 784]."""
    return (torch.rand(n, len(base), generator=generator) < base.sigmoid()).float()


def unweighted(machines, v, steps, generator):
    """States [K, n, 784] of annealing along the machines without weights, as PTT starts."""
    found = []
    for m in machines:
        v = gibbs(m, v, steps, generator)
        found.append(v)
    return torch.stack(found)


def laddered(truth, machines, v, sweeps, generator, looks=4):
    """Judged states of the last half of a run of parallel tempering, with Bennett's estimate."""
    every, trace, who, chances = sweeps // (2 * looks), [], [], []
    for k, (x, w, c) in enumerate(islice(ladder_chain(machines, v, generator), sweeps), 1):
        who.append(w)
        chances.append(c.nanmean(1))
        if k > sweeps // 2 and k % every == 0: trace.append(x)
    trace = torch.stack(trace, 1)
    log_z = bennett(machines, trace)
    return truth.judged(trace[-1].flatten(0, 1), log_z=log_z) | {
        "trips": round_trips(torch.stack(who)).double().mean().item(), "sweeps": sweeps,
        "rungs": len(machines), "swaps": torch.stack(chances).nanmean(0).tolist(),
        "forward": averaged(machines, trace) - truth.log_z, "ladders": v.shape[1],
        "integral": integrate(machines, trace).value - truth.log_z}


def averaged(machines, trace):
    """log Z by forward averages, exact for the first machine."""
    log_z = machines[0].precise().log_partition().item()
    for k, (easy, hard) in enumerate(pairwise(machines)):
        x = trace[k].flatten(0, 1)
        gain = (easy.free_energy(x) - hard.free_energy(x)).double()
        log_z += torch.logsumexp(gain, 0).item() - math.log(len(gain))
    return log_z


def crowded(truth, found, seconds):
    """A crowd, judged by its weights."""
    return truth.judged(found.states, found.log_weights.softmax(0), found, seconds)


def tempered(truth, base, rungs=8):
    """Temperatures at which neighbours swap equally often, by 300 exact draws of each machine."""
    rbm = truth.rbm

    def chance(a, b):
        pair = at_temperatures(rbm, [a, b, 1.0] if b < 1 else [a, 1.0], base)[:2]
        return swap_chance(*pair, *(m.sample(300, generator=7) for m in pair))
    return even_ladder(chance, rungs, 8)


def exact_rows(truth, n):
    """The floor: ten sets of exact draws."""
    return [truth.judged(truth.rbm.sample(n, generator=seed)) for seed in range(10)]


def gibbs_rows(truth, base, seeds):
    """2000 steps from independent pixels."""
    rows = []
    for seed in seeds:
        g = torch.Generator().manual_seed(seed)
        v, seconds = timed(lambda: gibbs(truth.rbm, pixels(base, 500, g), 2000, g))
        rows.append(truth.judged(v, seconds=seconds))
    return rows


def ladder_rows(truth, machines, base, seeds, sweeps, n=250, start=None):
    """Parallel tempering from unweighted annealing along the machines, or from `start`(seed)."""
    rows = []
    for seed in seeds:
        g = torch.Generator().manual_seed(seed)
        if start is None: begin = lambda: (machines, unweighted(machines, pixels(base, n, g), 20, g))
        else: begin = lambda: start(seed)

        def run():
            rungs, v = begin()
            return laddered(truth, rungs, v[:, :n], sweeps, g)
        row, seconds = timed(run)
        rows.append(row | {"seconds": seconds})
    return rows


def crowd_rows(truth, machines, n, steps, seeds, spread=None):
    """Population annealing, with machines on lines where a step would spread weights by more."""
    rows = []
    for seed in seeds:
        found, seconds = timed(lambda: population_annealing(machines, n, steps, seed, spread=spread))
        rows.append(crowded(truth, found, seconds))
    return rows


def noise_rows(truth, method, calls, n, seeds, steps=1):
    """The reverse process of diffusion with the exact denoiser, or with warm chains."""
    schedule, rows = LinearBeta(), []
    grid = time_grid(schedule, calls, kind="quadratic")
    for seed in seeds:
        g = torch.Generator().manual_seed(seed)

        def run():
            predict = machine_predictor(truth.rbm, schedule) if method == "exact" else WarmGibbs(
                truth.rbm, schedule, steps=steps, average=False, generator=g)
            x = ancestral(predict, schedule, torch.randn(n, 784, generator=g), grid, generator=g)
            return (x > schedule.alpha(grid[-1]) / 2).float()
        v, seconds = timed(run)
        rows.append(truth.judged(v, seconds=seconds))
    return rows


def annealed_rows(truth, base, data, seeds):
    """AIS upwards, and downwards from exact draws and from training images."""
    forward, back, images = [], [], []
    for seed in seeds:
        up, seconds = timed(lambda: ais(truth.rbm, 100, 5000, seed, base=base))
        forward.append(truth.judged(up.states, up.log_weights.softmax(0), up, seconds))
        rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:100]
        for found, v in ((back, truth.rbm.sample(100, generator=seed)), (images, data[rows])):
            down, seconds = timed(lambda: reverse_ais(truth.rbm, v, 5000, seed, base=base))
            found.append({"error": down.value - truth.log_z, "bar": down.stderr, "seconds": seconds})
    return {"AIS": forward, "reverse AIS from exact draws": back, "reverse AIS from images": images}


def path_of(truth, machines, data, labels):
    """Weight of the digit 1 and log Z of each machine."""
    found = [Truth(m, data, labels) for m in machines]
    return {"one": [t.share for t in found], "log_z": [t.log_z for t in found]}


def peer_chain(machines, v, generator, joint=False, in_order=True):
    """States and walkers at the rungs after each sweep, by other rules: swaps on joint energies; pairs
    in one order, or even and odd ones in turn.
    """
    K, n = v.shape[:2]
    v, who, parity = v.clone(), torch.arange(K)[:, None].repeat(1, n), 0
    while True:
        h = [m._draw_hidden(x, generator) for m, x in zip(machines, v)]
        v = torch.stack([m._draw_visible(y, generator) for m, y in zip(machines, h)])
        h, who = torch.stack(h), who.clone()
        for k in range(K - 1) if in_order else range(parity, K - 1, 2):
            easy, hard = machines[k:k + 2]
            if joint: gain = easy.energy(v[k:k + 2], h[k:k + 2]) - hard.energy(v[k:k + 2], h[k:k + 2])
            else: gain = easy.free_energy(v[k:k + 2]) - hard.free_energy(v[k:k + 2])
            taken = torch.rand(n, generator=generator) < (gain[0] - gain[1]).exp()
            for x in (v, h, who):
                mask = taken if x.ndim == 2 else taken[:, None]
                x[k:k + 2] = torch.where(mask, x[k:k + 2].flip(0), x[k:k + 2])
        parity = 1 - parity
        yield v, who


def peer_rows(truth, machines, seeds, sweeps=200, n=50):
    """Rules compared from exact draws at every rung: round trips, seconds, error of log Z."""
    rules = {"free energies, even then odd, Bennett": ({}, bennett),
             "free energies, even or odd in turn, forward": ({"in_order": False}, None),
             "free energies, one order, forward": ({}, None),
             "joint energies, one order, forward": ({"joint": True}, None)}
    found = {name: [] for name in rules}
    for seed in seeds:
        start = torch.stack([m.sample(n, generator=100 * seed + k) for k, m in enumerate(machines)])
        for name, (options, estimate) in rules.items():
            g, who, trace = torch.Generator().manual_seed(seed), [], []

            def run():
                chain = peer_chain(machines, start, g, **options) if estimate is None else (
                    x[:2] for x in ladder_chain(machines, start, g))
                for k, (v, w) in enumerate(islice(chain, sweeps)):
                    who.append(w)
                    if k % 10 == 9: trace.append(v)
            _, seconds = timed(run)
            states_seen = torch.stack(trace, 1)
            value = averaged(machines, states_seen) if estimate is None else bennett(
                machines, states_seen).value
            trips = round_trips(torch.stack(who)).double().sum().item()
            found[name].append({"trips": trips / n / sweeps, "seconds": seconds,
                                "trips_a_second": trips / seconds, "error": value - truth.log_z})
    return found


def between(machines, parts):
    """Machines, and `parts` - 1 more between two neighbours, on a straight line."""
    found = []
    for a, b in pairwise(machines):
        ends = {name: (getattr(a, name).detach(), getattr(b, name).detach()) for name in "Wbc"}
        found += [a.sharing(**{name: torch.lerp(*pair, k / parts) for name, pair in ends.items()})
                  for k in range(parts)]
    return [*found, machines[-1]]


def averages_of(machines, decay):
    """Running averages of the machines of a run, every update kept."""
    W, b, c = (getattr(machines[0], name).detach().clone() for name in "Wbc")
    found = []
    for m in machines:
        W, b, c = (torch.lerp(x, getattr(m, name).detach(), 1 - decay)
                   for x, name in ((W, "W"), (b, "b"), (c, "c")))
        found.append(m.sharing(W=W, b=b, c=c))
    return found


def hard_rows(data, labels, base, seeds):
    """The machine of larger steps, along every update, finer, and along running averages."""
    run = trained(data, 0.01, 1500, 4096)
    path = run.trajectory()
    truth = Truth(run.model.requires_grad_(False), data, labels)
    smooth = averages_of(path, 0.95)
    last = between([smooth[-1], path[-1]], 64)
    ways = {"every update": path, "every update, 3 parts": between(path, 3),
            "running averages, then the machine": smooth + last[1:],
            "running averages, 3 parts": between(smooth, 3) + last[1:]}
    found = {"log_z": truth.log_z, "one": truth.share, "methods": {}}
    for name, machines in ways.items():
        found["methods"][f"population, {name}"] = crowd_rows(truth, machines, 1000, 1, seeds)
    found["methods"]["population, every update, 16000"] = crowd_rows(truth, path, 16_000, 1, seeds)
    betas = tempered(truth, base)
    found["methods"]["parallel tempering, temperatures"] = ladder_rows(
        truth, at_temperatures(truth.rbm, betas, base), base, seeds[:1], 400, 100)
    return found


def completed(truth, machines, base, images, n=400):
    """Mean total variation over the hidden states, given the top quarter: Gibbs, populations, floor."""
    mask = torch.arange(784) < 196
    found = {"Gibbs": [], "population": [], "exact draws": []}
    seconds = {name: 0.0 for name in found}
    for seed, image in enumerate(images):
        held = truth.precise.clamp(image.double(), mask)
        p = (-held.hidden_free_energy(truth.h)).softmax(0)
        ladder = [m.clamp(image, mask) for m in machines]
        g = torch.Generator().manual_seed(seed)
        ways = {"Gibbs": lambda: (gibbs(ladder[-1], pixels(base[~mask], n, g), 100, g), None),
                "population": lambda: population_of(ladder, n, g),
                "exact draws": lambda: (ladder[-1].sample(n, generator=g), None)}
        for name, run in ways.items():
            (v, log_w), spent = timed(run)
            w = torch.full((n,), 1 / n).double() if log_w is None else log_w.softmax(0)
            x = held.hidden_field(v.double())
            q = w @ (x @ truth.h.T - softplus(x).sum(1, keepdim=True)).exp()
            found[name].append((q - p).abs().sum().item() / 2)
            seconds[name] += spent / len(images)
    return {"n": n, "images": len(images), "tv": found, "seconds": seconds}


def population_of(ladder, n, generator):
    """States and log weights of a crowd."""
    crowd = population_annealing(ladder, n, 2, generator)
    return crowd.states, crowd.log_weights


def main():
    parser = arguments(__doc__, RESULTS / "stuck.json", threads=1)
    parser.add_argument("--data", type=Path, required=True, help="folder of the four MNIST files")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="parts or methods to run again")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.perf_counter()
    old = json.loads(Path(options.out).read_text("utf8")) if options.only else {}
    result = old | header("nats; processor seconds", without=(str(options.data),))
    result["command"] = "python benchmarks/stuck.py --data DIR"

    def put(name, value):
        result[name] = value
        write(options.out, result)
        print(f"{time.perf_counter() - clock:.0f} s: {name}", flush=True)

    def wanted(name):
        return not options.only or name in options.only

    (data, labels), (test, _) = digits(options.data)
    base = base_rate(data)
    run, seconds = timed(lambda: trained(data, 0.002, 2500))
    path = [m.requires_grad_(False) for m in run.trajectory()]
    truth = Truth(path[-1], data, labels)
    mass = log_mass(truth.rbm, data)
    if options.only and abs(truth.log_z - old["machine"]["log_z"]) > 1e-9:
        raise SystemExit("the machine is not that of the file: run all parts")
    put("machine", old["machine"] if options.only else {
        "log_z": truth.log_z, "one": truth.share, "seconds": seconds, "checkpoints": len(path),
        "test": truth.precise.log_prob(test.double()).mean().item(), "log_mass": mass - truth.log_z,
        "effective": math.exp(-torch.special.xlogy(truth.p, truth.p).sum().item())})
    betas = tempered(truth, base)
    heat = at_temperatures(truth.rbm, betas, base)
    numbers, _ = thinned(path, 1000, 0.3, 5, 0)
    rungs = [path[k] for k in numbers]
    if wanted("temperatures"):
        put("temperatures", {"beta": betas.tolist()} | path_of(truth, heat, data, labels))
    if wanted("checkpoints"):
        number = [list(run.kept)[k] if k < len(run.kept) else run.updates for k in numbers]
        put("checkpoints", {"number": number} | path_of(truth, rungs, data, labels))
    fine = at_temperatures(truth.rbm, torch.linspace(0, 1, len(path), dtype=torch.float64), base)

    def start(seed):
        numbers, v = thinned(path, 1000, 0.3, 5, seed)
        return [path[k] for k in numbers], v
    methods = old.get("methods", {})
    for name, rows in {
            "exact draws": lambda: exact_rows(truth, 1000),
            "exact draws, 4000": lambda: exact_rows(truth, 4000),
            "exact draws, 16000": lambda: exact_rows(truth, 16_000),
            "training images": lambda: [truth.judged(data)],
            "Gibbs, 2000 steps": lambda: gibbs_rows(truth, base, SEEDS),
            "parallel tempering, temperatures": lambda: ladder_rows(truth, heat, base, SEEDS, 400),
            "parallel tempering, checkpoints": lambda: ladder_rows(truth, rungs, base, SEEDS, 400),
            "population, temperatures": lambda: crowd_rows(truth, fine, 1000, 5, SEEDS),
            "population, checkpoints": lambda: crowd_rows(truth, path, 1000, 5, SEEDS),
            "population, checkpoints, 4000": lambda: crowd_rows(truth, path, 4000, 5, SEEDS),
            "population, checkpoints, 16000": lambda: crowd_rows(truth, path, 16_000, 5, SEEDS),
            "population, checkpoints and lines": lambda: crowd_rows(truth, path, 2000, 1, SEEDS, 0.15),
            "population, every eighth checkpoint and lines": lambda: crowd_rows(
                truth, path[::8] + path[-1:], 2000, 1, SEEDS, 0.15),
            "population, then parallel tempering": lambda: ladder_rows(
                truth, rungs, base, SEEDS, 200, 250, start),
            "diffusion, exact denoiser": lambda: noise_rows(truth, "exact", 20, 250, SEEDS[:1]),
            "diffusion, warm chains": lambda: noise_rows(truth, "warm", 50, 1000, SEEDS)}.items():
        if not wanted(name): continue
        methods[name] = rows()
        put("methods", methods)
    for name, part in {
            "annealing": lambda: annealed_rows(truth, base, data, SEEDS),
            "peers": lambda: peer_rows(truth, rungs, SEEDS),
            "completion": lambda: completed(truth, path[::2] + path[-1:], base, test[:20]),
            "hard": lambda: hard_rows(data, labels, base, SEEDS)}.items():
        if wanted(name): put(name, part())
    if not options.only: put("minutes", (time.perf_counter() - clock) / 60)


if __name__ == "__main__": main()
