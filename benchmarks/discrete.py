"""Diffusion of bits on the 8x8 digits: networks trained by score entropy, and by completion under masks,
beside a machine, in nats per test image, and samplers of a machine's exact noise reversed.

    python benchmarks/discrete.py [--out FILE] [--seeds 2] [--threads 1] [--chains]

Data, split, machines and the shapes of the rows are those of benchmarks/comparison.py. Networks are
bridge.discrete.FlipDenoiser or bridge.masked.MaskDenoiser around an MLP, trained by `path_loss` or
`completion_loss` on batches of 100, AdamW, a running average of the weights; how long is decided on the
last 200 training images, looked at every 20 epochs, then each seed trains anew on all 1500. Bounds have
256 noised copies of each image in each of 4 sets; the noise of a row is the error of their mean.
`orders`, for masks: the first seed in 8 random orders, the mean over images and orders, its error over
orders, the deviation between orders, root mean square over images, and the mean log-likelihood of the
mixture of the 8 laws, with its images. `machine`: a CD-1 machine by its
exact ratios, with 8 copies in 4 sets, and by its partition function. `samplers`: of that machine, 500
walks from fair coins at time 4 back to 0.01, the last step exact: the mean log-likelihood under the
machine of what they give, against its own, minus the entropy. `chains`: bounds of chains of one to four
machines of 10 hidden units, trained together by exact gradients of their bound with the recipe of
benchmarks/digits.py; one level is the machine itself; from level to level so much is flipped that after
the last a mean of +-1 is left at three hundredths. `less` is the difference from one level, paired over
images and seeds. With `--chains` these alone; what else the file holds is kept.
"""
import json
import math
import time

import torch
from tqdm import tqdm

from comparison import BATCH, DECAY, HELD_OUT, LOOK, RATE, TEST, TRAIN, machine, summary
from rbmdiff.bridge.discrete import FlipDenoiser, denoise, path_loss, sample
from rbmdiff.bridge.masked import MaskDenoiser, chain_bound, completion_loss, order_log_prob
from rbmdiff.bridge.tilted import flip_posterior
from rbmdiff.diffusion.networks import MLP
from rbmdiff.foundations.core import Estimate
from rbmdiff.foundations.data import base_rate
from rbmdiff.foundations.train import TrainState, train
from rbmdiff.models.rbm import RBM
from record import RESULTS, arguments, header, write

COPIES, SETS, WALKS, ORDERS, LEVELS = 256, 4, 500, 8, (1, 2, 3, 4)
# name: (class, width, depth, learning rate, most epochs, noised copies of an image in a step)
NETWORKS = {"bit diffusion, MLP, small": (FlipDenoiser, 4, 1, 5e-3, 200, 4),
            "bit diffusion, MLP": (FlipDenoiser, 96, 2, 2e-3, 200, 4),
            "mask diffusion, MLP, small": (MaskDenoiser, 4, 1, 5e-3, 200, 4),
            "mask diffusion, MLP": (MaskDenoiser, 96, 2, 2e-3, 200, 4)}


def start(name, seed, v):
    """A network before training on bits `v`, and its state."""
    kind, width, depth, rate, _, _ = NETWORKS[name]
    g = torch.Generator().manual_seed(seed)
    model = kind(MLP(64, width, depth, generator=g), base_rate(v))
    return TrainState(model, torch.optim.AdamW(model.parameters(), rate, weight_decay=0.01), g,
                      average=0.999)


def loss(predict, v, copies, g):
    """Bounds above -log p of every image [N] of `v`: of flips, or of masks."""
    if not isinstance(predict, MaskDenoiser): return path_loss(predict, v, copies, generator=g)
    return completion_loss(predict, v.repeat(copies, 1), generator=g).view(copies, -1).mean(0)


def epochs_of(name, state, v, epochs):
    """Train on bits `v`: a record an epoch."""
    def step(state, batch):
        many = batch.repeat(NETWORKS[name][5], 1)
        value = loss(state.model, many, 1, state.generator).mean()
        value.backward()
        return {"loss": value.detach()}
    return train(state, v, step, epochs, BATCH, progress=False)


def bound(predict, v, copies=COPIES, sets=SETS, seed=0):
    """Bounds of log p of every image [N] of `v`, and the standard error of their mean from the noise."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        draws = torch.stack([-loss(predict, v, copies, g) for _ in range(sets)]).double()
    return draws.mean(0), draws.mean(1).std(correction=min(1, sets - 1)).item() / math.sqrt(sets)


def search(name):
    """Epochs that are best for held-out training images, how good, and the curve."""
    state, best, curve = start(name, 100, TRAIN[:-HELD_OUT]), (-math.inf, 0), []
    for record in epochs_of(name, state, TRAIN[:-HELD_OUT], NETWORKS[name][4]):
        if record.epoch % LOOK: continue
        value = bound(state.averaged_model(), TRAIN[-HELD_OUT:], COPIES, 1)[0].mean().item()
        best = max(best, (value, record.epoch))
        curve.append((record.epoch, value))
        if record.epoch - best[1] > 3 * LOOK: break
    return best, curve


def network_row(name, seeds):
    """Search, train each seed anew, measure."""
    (held, epochs), curve = search(name)
    models, seconds = [], []
    for seed in range(seeds):
        state = start(name, seed, TRAIN)
        clock = time.process_time()
        for _ in epochs_of(name, state, TRAIN, epochs): pass
        seconds.append(time.process_time() - clock)
        models.append(state.averaged_model())
    images, noise = zip(*(bound(m, TEST) for m in models))
    size = sum(p.numel() for p in models[0].parameters())
    more = {"orders": orders(models[0])} if NETWORKS[name][0] is MaskDenoiser else {}
    return summary(name, "bound", images, seconds, size, noise, epochs=epochs, held_out=held,
                   search=curve, note=f"{epochs} epochs", **more)


def orders(model):
    """How much a network of masks disagrees with itself about the test images, order by order."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        each = torch.stack([order_log_prob(model, TEST, torch.randperm(64, generator=g))
                            for _ in range(ORDERS)]).double()
    e, mixture = Estimate.of(each.mean(1)), each.logsumexp(0) - math.log(ORDERS)
    return {"value": e.value, "stderr": e.stderr, "deviation": each.var(0).mean().sqrt().item(),
            "mixture": mixture.mean().item(), "images": [round(x, 4) for x in mixture.tolist()]}


def machine_row(m):
    """A machine by its bound, whose ratios are exact, and by its partition function."""
    images, noise = bound(lambda x, t: denoise(m, x, t), TEST, 8, 4)
    return {"value": images.mean().item(), "noise": noise, "exact": m.log_prob(TEST).mean().item(),
            "stderr": Estimate.of(images).stderr}


def sampler_rows(m, seed=0):
    """Mean log-likelihood of what each way back gives, by number of steps, and that of exact draws."""
    g = torch.Generator().manual_seed(seed)
    predict, rows = lambda x, t: denoise(m, x, t), []
    for kind in ("posterior", "tau"):
        for steps in (8, 32, 128):
            grid = torch.logspace(math.log10(4), -2, steps + 1)
            x = (torch.rand(WALKS, 64, generator=g) < 0.5).float()
            clock = time.process_time()
            x = sample(predict, x, grid, kind, generator=g)
            e = Estimate.of(last(m, x, 0.01, g).double())
            rows.append({"kind": kind, "steps": steps, "value": e.value, "stderr": e.stderr,
                         "seconds": time.process_time() - clock})
    exact = Estimate.of(m.log_prob(m.sample(200_000, generator=g)).double())
    return {"rows": rows, "exact": exact.value, "stderr": exact.stderr}


def last(m, x, t, g):
    """Log-likelihoods of an exact draw of the posterior of each row: the step from `t` to 0."""
    p = -math.expm1(-2 * t) / 2
    draws = [flip_posterior(m, rows, p).sample(1, generator=g)[0] for rows in x.split(500)]
    return m.log_prob(torch.cat(draws))


def chain(levels, seed, epochs=300):
    """Machines of a trained chain, the chance of a flip, and processor seconds."""
    g, clock = torch.Generator().manual_seed(seed), time.process_time()
    p = 0.5 if levels == 1 else (1 - 0.03 ** (1 / levels)) / 2
    machines, rate = [RBM(64, 10, generator=g) for _ in range(levels)], base_rate(TRAIN).sigmoid()
    for k, m in enumerate(machines): m.b.data = torch.logit(0.5 + (rate - 0.5) * (1 - 2 * p) ** k)
    optimizer = torch.optim.Adam([{"params": [m.W for m in machines], "weight_decay": DECAY},
                                  {"params": [x for m in machines for x in (m.b, m.c)]}], lr=RATE)
    total = epochs * (len(TRAIN) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    for _ in range(epochs):
        for rows in torch.randperm(len(TRAIN), generator=g).split(BATCH):
            optimizer.zero_grad()
            (-chain_bound(machines, TRAIN[rows], p, g).mean()).backward()
            optimizer.step(), schedule.step()
    return machines, p, time.process_time() - clock


def chain_rows(seeds):
    """Chains of all lengths, each judged with `COPIES` paths of every test image."""
    rows, first = [], None
    for levels in LEVELS:
        images, noise, seconds = [], [], []
        for seed in range(seeds):
            machines, p, spent = chain(levels, seed)
            g, seconds = torch.Generator().manual_seed(0), [*seconds, spent]
            with torch.no_grad():
                draws = torch.stack([chain_bound(machines, TEST, p, g).double() for _ in range(COPIES)])
            images.append(draws.mean(0))
            noise.append(draws.mean(1).std().item() / math.sqrt(COPIES))
        row = summary(f"chain of {levels}", "bound", images, seconds, levels * (64 * 10 + 74), noise,
                      p=p)
        first = images if first is None else first
        e = Estimate.of((torch.stack(images) - torch.stack(first)).mean(0))
        rows.append(row | {"less": {"value": e.value, "stderr": e.stderr}})
        print({k: v for k, v in rows[-1].items() if k != "images"}, flush=True)
    return rows


def main():
    parser = arguments(__doc__, RESULTS / "discrete.json", threads=1)
    parser.add_argument("--seeds", type=int, default=2, help="runs of each network, at least 2")
    parser.add_argument("--chains", action="store_true", help="the chains of machines alone")
    options = parser.parse_args()
    if options.seeds < 2: parser.error("--seeds must be at least 2")
    torch.set_num_threads(options.threads)
    if options.chains:
        kept = json.loads(options.out.read_text("utf8"))
        write(options.out, kept | {"chains": chain_rows(options.seeds)})
        return
    result = {**header("nats per image"),
              "settings": {"seeds": options.seeds, "threads": options.threads, "batch": BATCH,
                           "copies": COPIES, "sets": SETS, "walks": WALKS}, "rows": []}
    bar = tqdm(total=len(NETWORKS) + 2, disable=None)

    def put(name, value):
        if name == "rows": result["rows"].append(value)
        else: result[name] = value
        write(options.out, result)
        bar.update()
        print(name, {k: v for k, v in value.items() if k not in ("images", "search")}, flush=True)

    for name in NETWORKS: put("rows", network_row(name, options.seeds))
    m, _ = machine("CD-1", 0)
    put("machine", machine_row(m))
    put("samplers", sampler_rows(m))
    write(options.out, result | {"chains": chain_rows(options.seeds)})


if __name__ == "__main__":
    main()
