"""Boltzmann machines, a mixture and diffusion models of the 8x8 digits, as bits, in nats per test image.

    python benchmarks/comparison.py [--out FILE] [--seeds 3] [--threads 1] [--resume]

Data and split are those of benchmarks/digits.py (pixels > 7, 1500 images to train on, 297 to test), and
so is the recipe of the machines. The mixture is fitted by expectation maximisation with one count of
smoothing. Networks see pixels of -1 and +1 and are trained with all noise levels weighted as in the
likelihood bound (uniform log-SNR from -10), AdamW, a running average of the weights. How long is decided
on the last 200 training images, looked at every 20 epochs, where the bound of the averaged weights was
best; then each seed (two for a U-Net) trains anew on all 1500. `plain`: networks.Preconditioned,
`tilted`: bridge.comparison.BinaryDenoiser. The bound of the plain networks stops at the log-SNR that is
best for the same 200 images.
One row per model: value, mean over seeds of the mean over test images; stderr over images; noise, the
part of it due to the draws of a bound; spread over seeds; parameters; seconds of processor time of one
training (without the search for the epochs). Machines were shared, one thread each. `profile`: the
integrand of the bound, mean of |eps_hat - eps|^2 / 2 over test images and noise, in nats per unit of
log-SNR.
"""
import json
import math
import statistics
import time

import torch
from tqdm import tqdm

from digits import BATCH, DECAY, RATE, H, method
from rbmdiff.bridge.comparison import BinaryDenoiser, binary_bound
from rbmdiff.bridge.tilted import denoise
from rbmdiff.diffusion.elbo import low_discrepancy
from rbmdiff.diffusion.networks import MLP, Preconditioned, UNet
from rbmdiff.diffusion.objective import denoising_loss, denoising_step
from rbmdiff.diffusion.schedule import LinearLogSNR, expand
from rbmdiff.foundations.core import Estimate
from rbmdiff.foundations.data import base_rate, binarize, digits, independent_log_prob
from rbmdiff.foundations.train import TrainState, ascend, train
from rbmdiff.models.rbm import RBM
from record import RESULTS, arguments, header, write

TRAIN, TEST = (binarize(x, 7.5 / 16) for x in digits())
SPINS, TEST_SPINS, HELD_OUT = 2 * TRAIN - 1, 2 * TEST - 1, 200
# log-SNR where a walk may stop
SCHEDULE, STOPS = LinearLogSNR(-10.0, 5.0), (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
LOOK, PATIENCE, COMPONENTS = 20, 5, 13
# name: (tilted, shape, network, learning rate, most epochs, log-SNR up to which it is trained)
NETWORKS = {
    "diffusion, plain MLP": (False, (64,), lambda g: MLP(64, 96, 2, generator=g), 2e-3, 600, 5.0),
    "diffusion, plain MLP, trained to 1": (False, (64,), lambda g: MLP(64, 96, 2, generator=g), 2e-3,
                                           600, 1.0),
    "diffusion, plain U-Net": (False, (1, 8, 8), lambda g: UNet(1, (8, 16), generator=g), 4e-3, 160,
                               5.0),
    "diffusion, tilted MLP, small": (True, (64,), lambda g: MLP(64, 4, 1, generator=g), 5e-3, 400, 5.0),
    "diffusion, tilted MLP": (True, (64,), lambda g: MLP(64, 96, 2, generator=g), 2e-3, 500, 5.0),
    "diffusion, tilted U-Net": (True, (1, 8, 8), lambda g: UNet(1, (8, 16), generator=g), 4e-3, 160,
                                5.0)}


def machine(name, seed, epochs=300):
    """A 64x12 machine by the recipe of benchmarks/digits.py, and processor seconds."""
    g, clock = torch.Generator().manual_seed(seed), time.process_time()
    m, total = RBM(64, H, generator=g), epochs * (len(TRAIN) // BATCH)
    m.b.data, gradient = (
        base_rate(TRAIN),
        method(name, TRAIN, torch.Generator().manual_seed(1000 + seed)),
    )
    optimizer = torch.optim.Adam([{"params": [m.W], "weight_decay": DECAY}, {"params": [m.b, m.c]}],
                                 lr=RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    for _ in range(epochs):
        for rows in torch.randperm(len(TRAIN), generator=g).split(BATCH):
            ascend(m, gradient(m, TRAIN[rows]))
            optimizer.step(), schedule.step()
    return m.requires_grad_(False), time.process_time() - clock


def mixture(v, seed, rounds=200):
    """log weights [K] and means [K, D] of a Bernoulli mixture, by expectation maximisation."""
    g = torch.Generator().manual_seed(seed)
    r = torch.softmax(3 * torch.randn(len(v), COMPONENTS, dtype=v.dtype, generator=g), 1)
    for _ in range(rounds):
        n = r.sum(0)
        log_w, m = torch.log((n + 1) / (n + 1).sum()), (r.T @ v + 1) / (n + 2)[:, None]
        r = torch.softmax(components(log_w, m, v), 1)
    return log_w, m


def components(log_w, m, v):
    """log of weight and probability of `v` [N, D] in each component [N, K]."""
    return log_w + v @ torch.logit(m).T + torch.log1p(-m).sum(1)


def start(name, seed, v):
    """A model of NETWORKS before training on spins `v`, its state, its shape."""
    is_tilted, shape, make, rate, _, _ = NETWORKS[name]
    g = torch.Generator().manual_seed(seed)
    network, b = make(g), base_rate(v, unit="spin").reshape(shape)
    model = BinaryDenoiser(network, SCHEDULE, b) if is_tilted else Preconditioned(network, SCHEDULE, 1.0)
    return TrainState(model, torch.optim.AdamW(model.parameters(), rate, weight_decay=0.01), g,
                 average=0.999), shape


def end(log_snr):
    """Time at which a walk stops."""
    return max(1e-3, float(SCHEDULE.t_of_log_snr(log_snr)))


def epochs_of(name, state, v, shape, epochs):
    """Train on spins `v` [N, D]: a record an epoch, noise levels spread evenly in log-SNR."""
    first = end(NETWORKS[name][5])
    step = denoising_step(SCHEDULE, times=lambda n, g: first + (1 - first) * low_discrepancy(n, g))
    return train(state, v.reshape(-1, *shape), step, epochs, BATCH, progress=False)


def bound(model, v, stop, seed=0, **options):
    """The bound of spins `v`, shaped for the model, by a walk that stops at log-SNR `stop`."""
    return binary_bound(model, SCHEDULE, v, "spin", end(stop),
                        generator=torch.Generator().manual_seed(seed), **options)


def search(name):
    """Epochs and log-SNR of the end of the walk that are best for held-out training images, and how
    good.
    """
    is_tilted, state, shape = NETWORKS[name][0], *start(name, 100, SPINS[:-HELD_OUT])
    held, best, curve = SPINS[-HELD_OUT:].reshape(-1, *shape), (-math.inf, 0, 0.0), []
    for record in epochs_of(name, state, SPINS[:-HELD_OUT], shape, NETWORKS[name][4]):
        if record.epoch % LOOK: continue
        model = state.averaged_model()
        looks = [(bound(model, held, stop, n=8).value, record.epoch, stop)
                 for stop in (STOPS[-1:] if is_tilted else STOPS)]
        best = max(best, *looks)
        curve.append((record.epoch, max(looks)[0]))
        if record.epoch - best[1] > LOOK * PATIENCE: break
    return best, curve


def summary(name, kind, images, seconds, parameters, noise=None, **more):
    """A row from log-likelihoods [297] of each seed and noise errors of each seed."""
    per_image = torch.stack(images).double().mean(0)
    e, means = Estimate.of(per_image), [x.double().mean().item() for x in images]
    row = {"name": name, "kind": kind, "value": e.value, "stderr": e.stderr, "parameters": parameters,
           "seconds": statistics.mean(seconds), **more}
    if len(means) > 1: row["spread"] = statistics.stdev(means)
    if noise: row["noise"] = math.hypot(*noise) / len(noise)
    return row | {"images": [round(x, 4) for x in per_image.tolist()]}


def network_row(name, seeds):
    """Search, train each seed anew, measure; the row and the model of the first seed."""
    (held, epochs, stop), curve = search(name)
    models, seconds, bounds = [], [], []
    for seed in range(seeds):
        state, shape = start(name, seed, SPINS)
        clock = time.process_time()
        for _ in epochs_of(name, state, SPINS, shape, epochs): pass
        seconds.append(time.process_time() - clock)
        models.append(state.averaged_model())
        bounds.append(bound(models[-1], TEST_SPINS.reshape(-1, *shape), stop))
    row = summary(name, "bound", [x.each.log_prob for x in bounds], seconds,
                  sum(p.numel() for p in models[0].parameters()), [x.noise for x in bounds],
                  epochs=epochs, stop=stop, note=f"{epochs} epochs, walk stopped at log-SNR {stop:g}",
                  held_out=held, search=curve)
    return row, models[0], shape


def of_spins(rbm):
    """The machine of bits as a prediction of the noise in spins 2 v - 1, by its exact denoiser."""
    def predict(x, t):
        alpha, half = SCHEDULE.alpha(t), SCHEDULE.sigma(t) / 2
        y = (x + expand(alpha, x)) / 2                                    # = alpha v + half eps
        return (y - expand(alpha, x) * denoise(rbm, y, alpha, half)) / expand(half, x)
    return predict


def profile(predict, v, draws):
    """Mean of |eps_hat - eps|^2 / 2 over images `v` and `draws` of the noise at 16 log-SNRs."""
    g, levels = torch.Generator().manual_seed(7), torch.linspace(-10, 5, 16, dtype=torch.float64)
    with torch.no_grad():
        return [round(sum(denoising_loss(predict, SCHEDULE, v, SCHEDULE.t_of_log_snr(level),
                                         generator=g).mean().item() for _ in range(draws)) / draws / 2,
                      5)
                for level in levels]


def main():
    parser = arguments(__doc__, RESULTS / "comparison.json", threads=1)
    parser.add_argument("--seeds", type=int, default=3,
                        help="runs of each method, at least 2 (default 3; of the U-Nets always 2)")
    parser.add_argument("--resume", action="store_true",
                        help="keep the rows that the file at --out holds")
    options = parser.parse_args()
    if options.seeds < 2: parser.error("--seeds must be at least 2")
    torch.set_num_threads(options.threads)
    seeds, rows, curves = range(options.seeds), [], {}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    result = {**header("nats per image", without=("--resume",)),
              "settings": {"seeds": options.seeds, "threads": options.threads, "batch": BATCH,
                           "machines": {"hidden": H, "rate": RATE, "epochs": 300},
                           "networks": {"log_snr": [-10, 5], "average": 0.999, "held_out": HELD_OUT}},
              "rows": rows, "profile": {"log_snr": [-10 + k for k in range(16)], "curves": curves}}
    if options.resume:
        stored = json.loads(options.out.read_text())
        if stored["settings"] != result["settings"]:
            raise SystemExit(f"{options.out} holds rows of other settings")
        rows += stored["rows"]
        curves |= stored["profile"]["curves"]
    bar, known = tqdm(total=7 + len(NETWORKS), disable=None), {row["name"] for row in rows}

    def add(row):
        rows.append(row), bar.update()
        print({k: v for k, v in row.items() if k not in ("images", "search")}, flush=True)
        write(options.out, result)

    if "independent pixels" not in known:
        add(summary("independent pixels", "exact", [independent_log_prob(TEST, base_rate(TRAIN))], [0.0],
                    64))
        clock, fits = time.process_time(), [mixture(TRAIN.double(), seed) for seed in seeds]
        add(summary(f"Bernoulli mixture, K = {COMPONENTS}", "exact",
                    [torch.logsumexp(components(*fit, TEST.double()), 1) for fit in fits],
                    [(time.process_time() - clock) / len(fits)], COMPONENTS * 65 - 1))
    for name in {"exact ML": "exact", "CD-1": "CD-1", "CD-10": "CD-10", "PCD-1": "PCD-1"}.items():
        if name[0] in known: continue
        machines, seconds = zip(*(machine(name[1], seed) for seed in seeds))
        add(summary(name[0], "exact", [m.log_prob(TEST) for m in machines], seconds,
                    sum(p.numel() for p in machines[0].parameters())))
    if "CD-1, by the bound" not in known:
        cd, clock = machine("CD-1", 0)
        by_bound = bound(of_spins(cd), TEST_SPINS, 5.0, n=16, sets=2)
        curves["CD-1, exact denoiser"] = profile(of_spins(cd), TEST_SPINS, 1)
        add(summary("CD-1, by the bound", "bound", [by_bound.each.log_prob], [clock],
                    sum(p.numel() for p in cd.parameters()), [by_bound.noise],
                    exact=cd.log_prob(TEST).mean().item(),
                    note="one of the CD-1 machines, its exact denoiser"))
    for name in NETWORKS:
        if name in known: continue
        row, model, shape = network_row(name, options.seeds if "MLP" in name else 2)
        curves[name.removeprefix("diffusion, ")] = profile(model, TEST_SPINS.reshape(-1, *shape), 20)
        add(row)


if __name__ == "__main__":
    main()
