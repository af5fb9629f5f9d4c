"""Machines given some of their units: every method of conditional generation against the exact law.

    python benchmarks/completion.py --data DIR [--out FILE] [--threads 1] [--only PART ...]

`spins`: 8 x 3 spins without random numbers, three of them given in a pattern of probability 0.012;
4000 draws, three seeds; total variation over all 256 states. `digits`: 64 x 6 bits trained by exact
gradients on the digits of scikit-learn, the upper half of five test digits given; 200 draws each; total
variation over the 64 hidden states, wrong pixels among the given ones. `images`: the 784 x 10 bits of
`stuck.py` (MNIST 0 and 1), the top quarter of ten test images given; 100 draws each; total variation
over the 1024 hidden states. `peers`: azula and diffusers on `spins` and `digits`, with our exact
denoiser, the same first noise and the same fifty steps. Draws are rounded to states. Processor seconds.

The guided methods take an observation noise of 0.3, which for units of two levels says the same as none.
"""
import json
from pathlib import Path
import statistics
import time

import torch
from torch.nn.functional import softplus

from rbmdiff.bridge import completion, tilted
from rbmdiff.diffusion import conditional
from rbmdiff.diffusion.schedule import Cosine, expand, time_grid
from rbmdiff.diffusion.solvers import ancestral, prior_sample
from rbmdiff.foundations.data import base_rate, binarize, digits
from rbmdiff.foundations.train import ascend
from rbmdiff.foundations.units import states
from rbmdiff.learning.contrastive import exact_gradient
from rbmdiff.models.rbm import RBM
from rbmdiff.sampling.diagnostics import state_numbers
from record import RESULTS, arguments, header, write
import stuck

SCHEDULE = Cosine()
NOISE = 0.3                                                  # of the observation, see above
SEEDS = 0, 1, 2
LONG = "replacement, 4 times the steps", "RePaint, 20 repeats"    # on the spins alone
PARTS = "spins", "digits", "images", "peers"
f64 = torch.float64


def waves():
    """The machine of 8 x 3 spins of the chapter."""
    m = RBM(8, 3, "spin", "spin", dtype=f64).requires_grad_(False)
    i, j = torch.arange(8).double(), torch.arange(3).double()
    m.W.copy_(0.8 * torch.sin(1 + i[:, None] + 2 * j))
    m.b.copy_(0.5 * torch.cos(i))
    m.c.copy_(0.5 * torch.sin(j))
    return m


def pulled(rbm, log_p):
    """predict(x, t) -> eps of the machine, guided by the gradient of log_p(x, alpha, sigma) [B]."""
    free = tilted.machine_predictor(rbm, SCHEDULE)

    def predict(x, t):
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            total = log_p(y, SCHEDULE.alpha(t), SCHEDULE.sigma(t)).sum()
            slope, = torch.autograd.grad(total, y)
        return free(x, t) - expand(SCHEDULE.sigma(t), x) * slope
    return predict


def methods(rbm, v, mask, n, seed, steps=50):
    """The ways to draw n states given those of `mask` at `v` [D], by name: a function for each."""
    free = tilted.machine_predictor(rbm, SCHEDULE)
    seen = conditional.Measurement(conditional.pixel_rows(mask).to(v), v[mask], NOISE)
    grid = time_grid(SCHEDULE, steps)
    long = time_grid(SCHEDULE, 4 * steps)
    x = prior_sample(SCHEDULE, (n, len(v)), 2 * seed, dtype=v.dtype)
    g = lambda: torch.Generator().manual_seed(2 * seed + 1)
    walk = lambda predict, on=grid: ancestral(predict, SCHEDULE, x, on, generator=g())
    painted = lambda repeats, on=grid: conditional.repaint(free, SCHEDULE, x, on, v, mask, repeats, g())
    guided = lambda method: conditional.guided(free, SCHEDULE, seen, method)
    exact = lambda y, a, s: completion.log_likelihood(rbm, v, mask, y, a, s)
    product = lambda y, a, s: completion.product_log_likelihood(rbm, v, mask, y, a, s)

    def twisted():
        crowd = conditional.twisted_smc(free, SCHEDULE, x, grid, seen, "pigdm", g())
        pick = torch.multinomial(crowd.log_weights.exp(), n, True, generator=g())
        return crowd.states[pick]

    return {
        "exact draws": lambda: completion.complete(rbm, v.expand(n, -1), mask, generator=g()),
        "clamped Gibbs, 100 steps": lambda: completion.complete(rbm, v.expand(n, -1), mask, 100, g()),
        "exact denoiser": lambda: walk(completion.predictor(rbm, v, mask, SCHEDULE)),
        "exact guidance": lambda: walk(pulled(rbm, exact)),
        "replacement": lambda: painted(1),
        "replacement, 4 times the steps": lambda: painted(1, long),
        "RePaint, 5 repeats": lambda: painted(5),
        "RePaint, 20 repeats": lambda: painted(20),
        "DPS, zeta 1": lambda: conditional.dps(free, SCHEDULE, x, grid, seen, 1.0, g()),
        "DPS, zeta 0.3": lambda: conditional.dps(free, SCHEDULE, x, grid, seen, 0.3, g()),
        "PiGDM": lambda: walk(guided("pigdm")),
        "TMPD": lambda: walk(guided("tmpd")),
        "product of marginals": lambda: walk(pulled(rbm, product)),
        "twisted SMC": twisted,
    }


def rounded(x, unit):
    """The nearest states, NaN kept out."""
    low, high = unit.levels
    return torch.where(x.nan_to_num() > (low + high) / 2, high, low).to(x)


def others(rbm, v, mask, n, seed, steps=50):
    """The same by azula and diffusers: their own methods, with our denoiser, grid and noise."""
    import peers
    seen = conditional.Measurement(conditional.pixel_rows(mask).to(v), v[mask], NOISE)
    x = prior_sample(SCHEDULE, (n, len(v)), 2 * seed, dtype=v.dtype)
    return peers.ways(tilted.machine_predictor(rbm, SCHEDULE), SCHEDULE, x,
                      time_grid(SCHEDULE, steps), seen, v, mask, 2 * seed + 1)


def run_spins(ways=methods):
    """Rows of every method: share that keeps what is given, total variations, seconds."""
    rbm, mask = waves(), torch.arange(8) < 3
    v = torch.tensor([-1.0, -1, 1, 1, 1, 1, 1, 1], dtype=f64)
    V = states(8, "spin")
    p = torch.where((V[:, mask] == v[mask]).all(1), rbm.log_prob(V).exp(), 0)
    p /= p.sum()
    rest = rbm.clamp(v, mask).log_prob(states(5, "spin")).exp()
    found = {}
    for seed in SEEDS:
        for name, run in ways(rbm, v, mask, 4000, seed).items():
            start = time.process_time()
            s = rounded(run(), rbm.visible)
            seconds = time.process_time() - start
            share = lambda s, n: torch.bincount(state_numbers(s, "spin"), minlength=n).double() / len(s)
            found.setdefault(name, []).append({
                "kept": (s[:, mask] == v[mask]).all(1).double().mean().item(),
                "tv": (share(s, 256) - p).abs().sum().item() / 2,
                "tv_rest": (share(s[:, ~mask], 32) - rest).abs().sum().item() / 2, "seconds": seconds})
    given = completion.log_marginal(rbm, v, mask).exp().item()
    return {"n": 4000, "calls": 50, "given": given, "methods": found}


def trained():
    """A machine of 64 x 6 bits of the digits by exact gradients, and the test digits."""
    train, test = (binarize(x, 7.5 / 16) for x in digits())
    g = torch.Generator().manual_seed(0)
    m = RBM(64, 6, generator=g)
    m.b.data = base_rate(train)
    optimizer = torch.optim.Adam(m.parameters(), lr=0.02)
    for _ in range(60):
        for batch in torch.randperm(len(train), generator=g).split(100):
            ascend(m, exact_gradient(m, train[batch]))
            optimizer.step()
    return m.double().requires_grad_(False), test.double()


def hidden_law(held, h, v):
    """p(h) under free states [n, U] of a clamped machine, averaged over p(h | v)."""
    x = held.hidden_field(v)
    return (x @ h.T - softplus(x).sum(1, keepdim=True)).exp().mean(0)


def run_digits(n=200, images=5, ways=methods):
    """Means over test digits, and the spread between them, of every method."""
    rbm, test = trained()
    mask, h = torch.arange(64) < 32, states(6, dtype=f64)
    found = {}
    for k, v in enumerate(test[:images]):
        held = rbm.clamp(v, mask)
        p = (-held.hidden_free_energy(h)).softmax(0)
        for name, run in ways(rbm, v, mask, n, k).items():
            if name in LONG: continue
            start = time.process_time()
            s = rounded(run(), rbm.visible)
            seconds = time.process_time() - start
            q = hidden_law(held, h, s[:, ~mask])
            found.setdefault(name, []).append({
                "tv": (q - p).abs().sum().item() / 2, "seconds": seconds,
                "kept": (s[:, mask] == v[mask]).all(1).double().mean().item(),
                "wrong": (s[:, mask] != v[mask]).double().mean().item()})
        print(k, {name: round(rows[-1]["tv"], 3) for name, rows in found.items()}, flush=True)
    score = rbm.log_prob(test).mean().item()
    return {"n": n, "images": images, "calls": 50, "log_prob": score, "methods": found}


def run_images(folder, n=100, images=10):
    """Total variation of the completions of images of MNIST by a machine that is stuck."""
    (data, _), (test, _) = stuck.digits(folder)
    rbm = stuck.trained(data, 0.002, 2500).model.requires_grad_(False)
    precise, h = rbm.precise(), states(10, dtype=f64)
    mask, grid = torch.arange(784) < 196, time_grid(SCHEDULE, 25)
    found = {}
    for k, image in enumerate(test[:images]):
        held = precise.clamp(image.double(), mask)
        p = (-held.hidden_free_energy(h)).softmax(0)
        v = image.expand(n, -1)
        x = prior_sample(SCHEDULE, (n, 784), 2 * k)
        ways = {"exact draws": lambda: completion.complete(rbm, v, mask, generator=k),
                "clamped Gibbs, 100 steps": lambda: completion.complete(rbm, v, mask, 100, k),
                "exact denoiser, 25 calls": lambda: ancestral(
                    completion.predictor(rbm, v, mask, SCHEDULE), SCHEDULE, x, grid, generator=k)}
        for name, run in ways.items():
            start = time.process_time()
            s = rounded(run(), rbm.visible)
            seconds = time.process_time() - start
            q = hidden_law(held, h, s[:, ~mask].double())
            found.setdefault(name, []).append({
                "tv": (q - p).abs().sum().item() / 2, "seconds": seconds,
                "kept": (s[:, mask] == v[:, mask]).all(1).double().mean().item()})
        print(k, {name: round(rows[-1]["tv"], 3) for name, rows in found.items()}, flush=True)
    return {"n": n, "images": images, "methods": found}


def main():
    parser = arguments(__doc__, RESULTS / "completion.json", threads=1)
    parser.add_argument("--data", type=Path, help="folder of the four MNIST files, for 'images'")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS,
                        help="parts to run; others are kept")
    options = parser.parse_args()
    if "images" in options.only and options.data is None: parser.error("--data is needed for 'images'")
    torch.set_num_threads(options.threads)
    result = header("total variation, shares, processor seconds", "azula", "diffusers")
    result["command"] = "python benchmarks/completion.py --data DIR"
    if options.out.exists(): result = json.loads(options.out.read_text()) | result
    runs = {"spins": run_spins, "digits": run_digits, "images": lambda: run_images(options.data),
            "peers": lambda: {"spins": run_spins(others), "digits": run_digits(ways=others)}}
    for part in options.only:
        result[part] = runs[part]()
        write(options.out, result)
        places = result[part] if part == "peers" else {part: result[part]}
        for place, name, rows in ((where, *row) for where, found in places.items()
                                  for row in found["methods"].items()):
            mean = {key: statistics.mean(row[key] for row in rows) for key in rows[0]}
            print(f"{place:8}{name:38}", *(f"{key} {x:.3f}" for key, x in mean.items()), flush=True)


if __name__ == "__main__": main()
