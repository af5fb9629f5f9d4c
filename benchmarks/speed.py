"""Milliseconds per parameter update: rbmdiff, its peers, and the floor of its matrix products alone,
interleaved in one run.

    python benchmarks/speed.py [--out FILE] [--threads 2] [--rounds 15] [--no-likelihood]

One update is one step of persistent contrastive divergence with k Gibbs steps (PCD-k) on one batch of
0/1 images, with as many chains as images, and one step of plain gradient ascent. All contenders start
from the same weights and data. A round runs every contender for at least 30 ms, after a call that is not
timed; numbers are medians over the rounds, with the 10th and 90th percentile.

The textbook estimate of PCD-k needs 2k + 4 products of a batch with the weights: 2k for the chains, one
each for the hidden means of data and chains, two for the gradient. Chains that end with hidden states
(rbms, "hidden chain") save one. What is not installed is skipped with a line. The last part trains a
machine on the 8x8 digits with products in float32 and in bfloat16 and compares test log-likelihoods by
annealed importance sampling.
"""
import math
import os
import platform
import statistics
import time

from record import RESULTS, arguments, versions, write

# visible, hidden, batch
SIZES = ((784, 500, 100), (784, 1024, 512), (64, 128, 128), (20, 16, 10), (64, 64, 10), (64, 64, 100),
         (256, 128, 128))
RATE = 1e-3
parser = arguments(__doc__, RESULTS / "speed.json", threads=os.cpu_count())
parser.add_argument("--rounds", type=int, default=15)
parser.add_argument("--block", type=float, default=0.03, help="least seconds of a timed block")
parser.add_argument("--no-likelihood", action="store_true")
options = parser.parse_args()
# JAX heeds nothing else
if options.threads < os.cpu_count() and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-options.threads:])

import torch

from rbmdiff.foundations import kernels
from rbmdiff.foundations.core import Estimate
from rbmdiff.foundations.data import base_rate, binarize, digits
from rbmdiff.foundations.train import ascend
from rbmdiff.learning.contrastive import cd_gradient
from rbmdiff.learning.partition import ais
from rbmdiff.models.rbm import RBM


def start(D, H, B):
    """Weights, data and chains, the same for every contender."""
    g = torch.Generator().manual_seed(0)
    return 0.01 * torch.randn(D, H, generator=g), *((torch.rand(B, D, generator=g) < p).float()
                                                    for p in (0.2, 0.5))


def ours(D, H, B, k, products=None, numba=True, **sgd):
    """rbmdiff as its user calls it: gradient, `ascend`, optimiser."""
    W, v, chains = start(D, H, B)
    m, g, fused, none = RBM(D, H), torch.Generator().manual_seed(1), kernels._fused, lambda dtype: None
    m.W.data = W
    optimizer = torch.optim.SGD(m.parameters(), lr=RATE, **{"fused": True, **sgd})

    def update():
        nonlocal chains
        kernels._fused = fused if numba else none
        gradients, chains = cd_gradient(m, v, k, chains, g, products=products)
        ascend(m, gradients)
        optimizer.step()
        kernels._fused = fused

    return update


def by_hand(D, H, B, k):
    """The step as one would write it in PyTorch on a good day: stacked gradient, uniform numbers
    compared, no torch.bernoulli.
    """
    W, v, x = start(D, H, B)
    b, c = torch.zeros(D), torch.zeros(H)
    up = lambda field: (torch.rand_like(field) < torch.sigmoid(field)).float()

    @torch.no_grad()
    def update():
        nonlocal x
        for _ in range(k): x = up(torch.addmm(b, up(torch.addmm(c, x, W)), W.T))
        s = torch.cat([v, x])
        q = torch.sigmoid(torch.addmm(c, s, W)) / B
        q[B:].neg_()
        (
            W.addmm_(s.T, q, alpha=RATE),
            b.add_((v.mean(0) - x.mean(0)), alpha=RATE),
            c.add_(q.sum(0), alpha=RATE),
        )

    return update


def floor(D, H, B, k, kind):
    """The matrix products of an update, nothing else: 2k + 4 of them."""
    W, v, _ = start(D, H, B)
    q, h, dtype = (
        torch.rand(2 * B, H),
        (torch.rand(B, H) < 0.3).float(),
        torch.bfloat16 if kind == "bfloat16" else torch.float32,
    )
    W, v, s, q, h = (x.to(dtype) for x in (W, v, torch.cat([v, v]), q, h))
    sT, onednn = s.T.contiguous(), getattr(torch.ops.mkldnn, "_linear_pointwise",
                                           None) if kind == "oneDNN" else None
    if kind == "oneDNN" and onednn is None: raise ImportError("oneDNN's float32 product")
    product = (
        (lambda x, w: onednn(x, w, None, "none", [], "")) if onednn else lambda x, w: torch.mm(x, w.T)
    )

    @torch.no_grad()
    def update():
        for _ in range(k): product(v, W.T), product(h, W)
        product(s, W.T), product(sT, q.T)

    return update


def rbms(D, H, B, k):
    """The package `rbms`: its persistent chains start and end with hidden states, hence one product
    less.
    """
    from rbms.bernoulli_bernoulli.classes import BBRBM
    from rbms.training.pcd import fit_batch_pcd
    W, v, _ = start(D, H, B)
    m, weights = BBRBM(weight_matrix=W, vbias=torch.zeros(D), hbias=torch.zeros(H)), torch.ones(B)
    for p in m.parameters(): p.grad = torch.zeros_like(p)
    optimizer, chains = torch.optim.SGD(m.parameters(), lr=RATE, maximize=True,
                                        fused=True), m.init_chains(B)

    @torch.no_grad()
    def update():
        nonlocal chains
        optimizer.zero_grad(set_to_none=False)
        chains, _ = fit_batch_pcd((v, weights), chains, m, k, 1.0, centered=False)
        optimizer.step()

    return update


def scikit_learn(D, H, B, k):
    """`BernoulliRBM` in float32; it has one Gibbs step an update."""
    from sklearn.neural_network import BernoulliRBM
    if k > 1: return None
    m, v = BernoulliRBM(H, learning_rate=RATE, batch_size=B, random_state=0), start(D, H, B)[1].numpy()
    m.partial_fit(v)
    m.components_ = m.components_.astype(v.dtype)
    return lambda: m.partial_fit(v)


def jax_lines(D, H, B, k, hidden_chain):
    """Jitted JAX. Chains end with visible states (2k + 4 products) or with hidden ones (2k + 3)."""
    import jax
    from jax import lax, nn, numpy as jnp, random
    draw = lambda key, field: random.bernoulli(key, nn.sigmoid(field)).astype(jnp.float32)

    def step(p, v, state, key):
        W, b, c = p
        def gibbs(i, carry):
            key, (x, h) = carry
            key, *two = random.split(key, 3)
            if not hidden_chain: h = draw(two[0], x @ W + c)
            x = draw(two[1], h @ W.T + b)
            return key, (x, draw(two[0], x @ W + c) if hidden_chain else h)
        key, (x, h) = lax.fori_loop(0, k, gibbs, (key, state))
        q, h_mean = nn.sigmoid(v @ W + c), h if hidden_chain else nn.sigmoid(x @ W + c)
        steps = (v.T @ q - x.T @ h_mean) / B, v.mean(0) - x.mean(0), q.mean(0) - h_mean.mean(0)
        return tuple(p + RATE * s for p, s in zip(p, steps)), (x, h), key

    step, (W, v, x) = (
        jax.jit(step, donate_argnums=(0, 2)),
        (jnp.array(t.numpy()) for t in start(D, H, B)),
    )
    p, state, key = (W, jnp.zeros(D), jnp.zeros(H)), (x, jnp.zeros((B, H))), random.key(0)

    def update():
        nonlocal p, state, key
        p, state, key = step(p, v, state, key)
        p[0].block_until_ready()

    return update


CONTENDERS = {
    "rbmdiff": ours,
    "rbmdiff, bfloat16": lambda *a: ours(*a, products=torch.bfloat16),
    "rbmdiff without numba": lambda *a: ours(*a, numba=False),
    "rbmdiff, momentum, fused": lambda *a: ours(*a, momentum=0.5),
    "rbmdiff, momentum, foreach": lambda *a: ours(*a, momentum=0.5, fused=False, foreach=True),
    "PyTorch by hand": by_hand,
    "rbms": rbms,
    "scikit-learn": scikit_learn,
    "JAX, visible chain": lambda *a: jax_lines(*a, False),
    "JAX, hidden chain": lambda *a: jax_lines(*a, True),
    "floor float32, torch.mm": lambda *a: floor(*a, "mm"),
    "floor float32, oneDNN": lambda *a: floor(*a, "oneDNN"),
    "floor bfloat16": lambda *a: floor(*a, "bfloat16"),
}
RATIOS = (("rbmdiff", "floor float32, torch.mm"), ("rbmdiff", "floor float32, oneDNN"),
          ("rbmdiff, bfloat16", "floor float32, oneDNN"), ("rbmdiff, bfloat16", "floor bfloat16"),
          ("rbms", "rbmdiff"),
          ("scikit-learn", "rbmdiff"), ("PyTorch by hand", "rbmdiff"), ("JAX, visible chain", "rbmdiff"),
          ("JAX, hidden chain", "rbmdiff"))


def measure(size, k, missing):
    """Milliseconds of an update of every contender: median, 10th and 90th percentile over interleaved
    rounds.
    """
    updates, repeats, times = {}, {}, {}
    for name, make in CONTENDERS.items():
        try: update = make(*size, k)
        except ImportError as error:
            if name not in missing: print(f"skipped: {name} ({error})")
            missing.add(name)
            continue
        if update is None: continue
        for _ in range(3): update()
        begin = time.perf_counter()
        update()
        updates[name], repeats[name], times[name] = (
            update,
            1 + int(options.block / (time.perf_counter() - begin)),
            [],
        )
    for _ in range(options.rounds):
        for name, update in updates.items():
            update()                                                # wakes its threads, fills its caches
            begin = time.perf_counter()
            for _ in range(repeats[name]): update()
            times[name].append(1e3 * (time.perf_counter() - begin) / repeats[name])
    deciles = {name: statistics.quantiles(t, n=10, method="inclusive") for name, t in times.items()}
    return {name: {"median": statistics.median(t), "p10": deciles[name][0], "p90": deciles[name][-1],
                   "least": min(t)} for name, t in times.items()}


def likelihood(products, seed, epochs=30):
    """Test log-likelihood of a 64x64 machine trained on the digits by PCD-1: value and standard error of
    log Z.
    """
    g, (train, test) = torch.Generator().manual_seed(seed), (binarize(x, 7.5 / 16) for x in digits())
    m, chains = RBM(64, 64, generator=g), (torch.rand(512, 64, generator=g) < train.mean(0)).float()
    m.b.data, total = base_rate(train), epochs * math.ceil(len(train) / 100)
    optimizer = torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.5, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    for _ in range(epochs):
        for rows in torch.randperm(len(train), generator=g).split(100):
            gradients, chains = cd_gradient(m, train[rows], 1, chains, g, products=products)
            ascend(m, gradients), optimizer.step(), schedule.step()
    with torch.no_grad():
        log_z = ais(m, n_chains=256, n_temperatures=1000, generator=g)
        return -m.free_energy(test).double().mean().item() - log_z.value, log_z.stderr


def compare_formats(seeds=6):
    """Mean test log-likelihood over seeds, with its standard error, for products in float32 and
    bfloat16.
    """
    runs = {name: [likelihood(p, seed) for seed in range(seeds)]
            for name, p in (("float32", None), ("bfloat16", torch.bfloat16))}
    mean = {name: Estimate.of(torch.tensor([value for value, _ in r], dtype=torch.float64))
            for name, r in runs.items()}
    difference, error = (
        mean["bfloat16"].value - mean["float32"].value,
        math.hypot(*(e.stderr for e in mean.values())),
    )
    print(f"\ntest log-likelihood of 64x64 machines on the digits, nats, {seeds} seeds: "
          + ", ".join(f"{name} {e}" for name, e in mean.items())
          + f"; difference {difference:.3f} ± {error:.3f}")
    return {
        "seeds": seeds,
        "runs": {name: [{"value": x, "ais_stderr": se} for x, se in r] for name, r in runs.items()},
        **{name: {"value": e.value, "stderr": e.stderr} for name, e in mean.items()},
        "difference": {"value": difference, "stderr": error},
    }


def environment():
    """What the numbers depend on."""
    try:
        cpu = next(line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo")
                   if line.startswith("model name"))
    except (OSError, StopIteration): cpu = platform.processor() or platform.machine()
    return {"cpu": cpu, "cpus": os.cpu_count(), "threads": options.threads,
            "versions": versions("numpy", "numba", "rbms", "scikit-learn", "jax")}


def main():
    torch.set_num_threads(options.threads)
    try:
        from threadpoolctl import threadpool_limits
        threadpool_limits(options.threads)
    except ImportError: pass
    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    result = {
        "command": f"python benchmarks/speed.py --threads {options.threads} --rounds {options.rounds} "
                   f"--block {options.block}",
        "unit": "milliseconds per update",
        **environment(),
        "rounds": options.rounds,
        "load_average_before": load,
        "sizes": {},
    }
    print(f"{result['cpu']}, {options.threads} threads, load average {load}\n{result['versions']}")
    missing = set()
    for size in SIZES:
        for k in (1, 10):
            label, table = f"{size[0]}x{size[1]}x{size[2]} k={k}", measure(size, k, missing)
            ratios = {f"{a} / {b}": table[a]["median"] / table[b]["median"] for a, b in RATIOS
                      if a in table and b in table}
            result["sizes"][label] = {"times": table, "ratios": ratios}
            print(f"\n{label:38} {'median':>9} {'p10':>9} {'p90':>9}  ms per update")
            for name, t in table.items():
                print(f"  {name:36} {t['median']:9.3f} {t['p10']:9.3f} {t['p90']:9.3f}")
            for name, ratio in ratios.items(): print(f"    {name:60} {ratio:6.2f}", flush=True)
    if not options.no_likelihood: result["likelihood"] = compare_formats()
    result["load_average_after"] = os.getloadavg() if hasattr(os, "getloadavg") else None
    write(options.out, result)


if __name__ == "__main__": main()
