"""Evidence lower bounds on the 8x8 digits of small U-Nets trained under four weightings.

    python benchmarks/diffusion_elbo.py [--updates 1200] [--seeds 2] [--threads 1] [--out FILE]

The 17 grey levels k are spread uniformly, x = 2 (k + u) / 17 - 1. A bound in nats of log p(x) becomes
one of log P(k) by adding 64 log(2/17); bits per dimension are -log P(k) / (64 log 2). Everything below
t_min is left to the Gaussian decoder of the chapter.

U-Net (16, 32), schedule LinearBeta(0.1, 20), Adam whose rate falls linearly from 4e-3, batches of 64,
the same order of images and the same start for all; noise levels adapted to each weighting. Every
network is judged by the unweighted bound.
"""
import time

import torch
from tqdm import tqdm

from rbmdiff.diffusion.elbo import AdaptiveLevels, elbo
from rbmdiff.diffusion.likelihood import cell_log_prob, dequantize, nats_to_bits
from rbmdiff.diffusion.networks import Preconditioned, UNet
from rbmdiff.diffusion.objective import denoising_loss
from rbmdiff.diffusion.schedule import LinearBeta
from rbmdiff.diffusion.weights import exponential, flat, sech, sigmoid_weight, weighted_loss
from rbmdiff.foundations.core import Estimate
from rbmdiff.foundations.data import digits
from rbmdiff.foundations.train import TrainState, linear_decay, update
from record import RESULTS, arguments, command, versions, write

T_MIN, BATCH, RATE, LEVELS = 1e-3, 64, 4e-3, 17
WEIGHTS = {"1": flat, "sigmoid(2 - l)": sigmoid_weight, "exp(-l/2)": exponential, "sech(l/2)": sech}


def images():
    """Grey levels [N, 1, 8, 8] of the training and of the test images."""
    return [(16 * x).round().reshape(-1, 1, 8, 8) for x in digits()]


def bits(value):
    """Bits per dimension from bounds of log p(x) [...] in nats."""
    return nats_to_bits(cell_log_prob(value[None], 64, LEVELS), 64)


def fit(weight, seed, updates, train, scale):
    """One network trained under `weight`, its weights averaged."""
    g, schedule = torch.Generator().manual_seed(seed), LinearBeta()
    network = Preconditioned(UNet(1, (16, 32), generator=g), schedule, scale)
    levels = AdaptiveLevels(schedule, T_MIN, 40, 0.99)
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    state = TrainState(network, optimizer, torch.Generator().manual_seed(1000 + seed),
                  linear_decay(optimizer, updates), average=0.99)

    def step(state, batch):
        x = dequantize(batch, LEVELS, state.generator)
        weighted_loss(state.model, schedule, x, weight, levels, T_MIN, state.generator).mean().backward()
        return {}

    for _ in tqdm(range(updates), disable=None, leave=False):
        rows = torch.randint(len(train), (BATCH,), generator=state.generator)
        update(state, train[rows], step)
    return state.averaged_model(), schedule


@torch.no_grad()
def error_curve(network, schedule, test, log_snr):
    """Mean squared error of the noise per dimension at each log-SNR; the same noise for every network.
    """
    g = torch.Generator().manual_seed(7)
    x = dequantize(test, LEVELS, g)
    times = schedule.t_of_log_snr(log_snr)
    return [sum(denoising_loss(network, schedule, x, t.expand(len(x)), generator=g).mean().item() / 64
                for _ in range(2)) / 2
            for t in times]


def weightings(options, train, test):
    scale = round(float(dequantize(train, LEVELS, torch.Generator().manual_seed(0)).std()), 2)
    log_snr = torch.linspace(-8, 9, 18, dtype=torch.float64)
    settings = {"network": "UNet(1, (16, 32))", "schedule": "LinearBeta(0.1, 20)", "t_min": T_MIN,
                "updates": options.updates, "batch": BATCH,
                "rate": RATE, "average": 0.99, "seeds": options.seeds, "scale": scale,
                "threads": options.threads,
                "test_images": len(test)}
    result, values = {"settings": settings, "log_snr": log_snr.tolist(), "methods": {}}, {}
    for name, weight in WEIGHTS.items():
        runs, curves, seconds = [], [], 0.0
        for seed in range(options.seeds):
            start = time.process_time()
            network, schedule = fit(weight, seed, options.updates, train, scale)
            seconds += (time.process_time() - start) / options.seeds
            g = torch.Generator().manual_seed(99)
            runs.append(elbo(network, schedule, dequantize(test, LEVELS, g), T_MIN, 16, 4, generator=g))
            curves.append(error_curve(network, schedule, test, log_snr))
        values[name] = torch.stack([run.log_prob for run in runs])
        mean, less = (
            Estimate.of(bits(values[name].mean(0))),
            Estimate.of((values[name] - values["1"]).mean(0)),
        )
        result["methods"][name] = {
            "bits_per_dimension": {"value": mean.value, "stderr": mean.stderr,
                                   "by_seed": [bits(v).mean().item() for v in values[name]]},
            "nats_above_flat": {"value": less.value, "stderr": less.stderr},
            "noise_error_per_dimension": torch.tensor(curves).mean(0).tolist(), "train_seconds": seconds}
        row = result["methods"][name]
        print(
            f"w = {name:15} {mean} bits per dimension, by seed {row['bits_per_dimension']['by_seed']}, "
            f"{less} nats above w = 1, {seconds:.0f} s"
        )
    return result


def main():
    parser = arguments(__doc__, RESULTS / "diffusion_elbo.json", threads=1)
    parser.add_argument("--updates", type=int, default=1200,
                        help="updates of each network (default 1200)")
    parser.add_argument("--seeds", type=int, default=2, help="networks for each weighting (default 2)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train, test = images()
    result = {"command": command(), "versions": versions(),
              "weightings": weightings(options, train, test)}
    write(options.out, result)


if __name__ == "__main__":
    main()
