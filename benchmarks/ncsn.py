"""Noise-conditional score networks on the 8x8 digits, beside a diffusion chain, and on MNIST.

    python benchmarks/ncsn.py --data DIR [--out FILE] [--threads 1] [--only digits,mnist]

`digits`: one U-Net of 16 and 32 channels, three seeds. Trained for 1000 updates of 50 images as NCSNv2
(`ScoreNetwork`, not told the level, on a ladder from the largest distance down to 0.05, images in
[0, 1]) and as the noise predictor of a chain of 97 steps (`simple_loss`, images in [-1, 1]). AdamW, rate
falling linearly from 3e-3 to zero, running average 0.995. Then 500 samples a method, 97 calls of the
network each, 100 from noise of about 1; methods of one seed share their start and, where the loop is the
same, their noise. A sample belongs to the training image nearest to it; `hit` counts how many different
images have a sample, `tv` is the total variation of the shares of the classes from those of the training
set, `near` the mean distance to the nearest training image, `energy` the energy distance to the 297 test
images. `mnist`: a U-Net of 32 and 64 channels on blocks of 2 x 2 pixels, NCSNv2 on the ladder that its
first two techniques ask for, trained once for 1200 updates of 64 images. Pictures are grey levels 0 to
255, packed.
"""
import base64
from pathlib import Path
import time
import zlib

import torch
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from rbmdiff.diffusion.ddpm import chain_on_grid, sample_chain, simple_step
from rbmdiff.diffusion.likelihood import dequantize
from rbmdiff.diffusion.ncsn import (
    ScoreNetwork,
    best_step,
    eps_of_score,
    ladder,
    ladder_step,
    largest_distance,
    nearest,
    sample,
    score_of_eps,
)
from rbmdiff.diffusion.networks import UNet
from rbmdiff.diffusion.objective import norm_squared
from rbmdiff.diffusion.schedule import Geometric, LinearBeta, noised, time_grid
from rbmdiff.diffusion.solvers import ancestral
from rbmdiff.foundations.data import digits, mnist
from rbmdiff.foundations.train import TrainState, linear_decay, train
from rbmdiff.sampling.langevin import annealed
from record import RESULTS, arguments, header, write

SEEDS, WIDTHS, LAST, STEPS, DRAWS = (0, 1, 2), (16, 32), 0.05, 6, 500
UPDATES, BATCH, RATE, AVERAGE = 1000, 50, 3e-3, 0.995
BIG_WIDTHS, BIG_LAST, BIG_STEPS, BIG_UPDATES, BIG_BATCH, BIG_DRAWS = (32, 64), 0.01, 5, 1200, 64, 64


class Blocks(torch.nn.Module):
    """A network for [B, 4, H/2, W/2] as one for [B, 1, H, W]."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, t):
        return pixel_shuffle(self.network(pixel_unshuffle(x, 2), t), 2)


def images(k, generator):
    """Grey levels `k` [N, 64] of the digits as images [N, 1, 8, 8] in [0, 1]."""
    return (dequantize(k, 17, generator).reshape(-1, 1, 8, 8) + 1) / 2


def trained(model, data, step, updates, batch, seed, note):
    """The state of a run of `updates` updates, and what it took."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, betas=(0.9, 0.99))
    state = TrainState(model, optimizer, 1000 + seed, linear_decay(optimizer, updates), AVERAGE)
    start = time.process_time()

    def drawn(generator):
        for k in range(updates):
            if k % 200 == 0: print(f"  {note} {k}: {time.process_time() - start:.0f} s", flush=True)
            yield data(batch, generator)

    for record in train(state, drawn, step, 1, batch, False): loss = record.scalars["loss"]
    return state, {"seconds": round(time.process_time() - start), "loss": round(loss, 4)}


def packed(x):
    """Pictures [...] in [0, 1] as text."""
    grey = (x.clamp(0, 1) * 255).round().to(torch.uint8)
    return base64.b64encode(zlib.compress(bytes(grey.flatten().tolist()), 9)).decode()


class Judge:
    """What samples are compared with: training images, their labels, test images."""

    def __init__(self, data, labels, test):
        self.data, self.labels, self.test = data.flatten(1), labels, test.flatten(1)
        self.shares = torch.bincount(labels, minlength=10) / len(labels)
        self.within = torch.cdist(self.test, self.test).sum() / (len(test) * (len(test) - 1))

    def __call__(self, x):
        x = x.flatten(1)
        distance, index = nearest(x, self.data)
        shares = torch.bincount(self.labels[index], minlength=10) / len(x)
        own = torch.cdist(x, x).sum() / (len(x) * (len(x) - 1))
        energy = 2 * torch.cdist(x, self.test).mean() - own - self.within
        return {"hit": len(index.unique()), "tv": (shares - self.shares).abs().sum().item() / 2,
                "near": distance.mean().item(), "closest": distance.min().item(),
                "energy": energy.item()}


def digit_runs(k, data, seed):
    """Ladder, chain, and the two trained states of one seed."""
    sigmas = ladder(largest_distance(data), LAST, 64)
    grid = torch.linspace(1, 1 / (STEPS * len(sigmas) + 1), STEPS * len(sigmas) + 1,
                          dtype=torch.float64)
    chain = chain_on_grid(LinearBeta(), grid)
    unet = lambda: UNet(1, WIDTHS, bandwidth=1.0, generator=seed)

    def batch(n, g):
        return images(k[torch.randint(len(k), (n,), generator=g)], g)

    ways = {"ncsn": (ScoreNetwork(unet()), batch, ladder_step(sigmas)),
            "ddpm": (unet(), lambda n, g: 2 * batch(n, g) - 1, simple_step(chain))}
    runs = {name: trained(model, source, step, UPDATES, BATCH, seed, f"{name} {seed}")
            for name, (model, source, step) in ways.items()}
    return sigmas, chain, runs


def digit_samples(sigmas, chain, runs, mean, seed):
    """Samples of all methods, one after the other: name and images."""
    g = lambda: torch.Generator().manual_seed(500 + seed)
    z = torch.randn(DRAWS, 1, 8, 8, generator=torch.Generator().manual_seed(400 + seed))
    x = mean + sigmas[0].item() * z
    score = runs["ncsn"][0].averaged_model()
    eps = runs["ddpm"][0].averaged_model()
    noisy = annealed(score, x, sigmas, STEPS, best_step(sigmas, STEPS), g())
    yield "NCSNv2", noisy + LAST**2 * score(noisy, LAST)
    yield "NCSNv2, not denoised", noisy
    yield "NCSNv2, not averaged", sample(runs["ncsn"][0].model.requires_grad_(False), x, sigmas, STEPS,
                                         g())
    short = sigmas[sigmas < 1.1]
    yield "NCSNv2, from noise of about 1", sample(score, mean + short[0].item() * z, short,
                                                  round(STEPS * len(sigmas) / len(short)), g())
    schedule = Geometric(LAST, sigmas[0].item())
    grid = time_grid(schedule, STEPS * len(sigmas), kind="log_snr")
    yield "NCSNv2, ancestral", ancestral(eps_of_score(score, schedule), schedule, x, grid,
                                         generator=g(), denoise=True)
    yield "DDPM", (sample_chain(eps, chain, z, generator=g()) + 1) / 2
    centred = score_of_eps(eps, LinearBeta())
    yield "DDPM, annealed Langevin", sample(lambda x, s: 2 * centred(2 * x - 1, 2 * s), x, sigmas, STEPS,
                                            g())


@torch.no_grad()
def level_losses(score, x0, sigmas, seed):
    """Loss on images `x0` at every level, in squared noise."""
    found = []
    for sigma in sigmas.tolist():
        x, z = noised(x0, 1.0, sigma, torch.Generator().manual_seed(seed))
        found.append(round(norm_squared(sigma * score(x, sigma) + z).mean().item(), 4))
    return found


def digit_part(put):
    """Everything on the 8x8 digits."""
    data, test, labels, _ = digits(labels=True)
    k, test_k = (16 * data).round(), (16 * test).round()
    judge = Judge(data, labels, test)
    result = {"rows": {}, "runs": {}}
    rows = result["rows"]

    def put_row(name, x):
        rows.setdefault(name, []).append(judge(x))
        put("digits", result)

    for seed in SEEDS:
        g = torch.Generator().manual_seed(seed)
        put_row("training images", data[torch.randint(len(data), (DRAWS,), generator=g)])
        sigmas, chain, runs = digit_runs(k, data, seed)
        result["sigmas"] = sigmas.tolist()
        for name, (_, facts) in runs.items(): result["runs"].setdefault(name, []).append(facts)
        score = runs["ncsn"][0].averaged_model()
        result.setdefault("test_loss", []).append(level_losses(score, images(test_k, g), sigmas, 11))
        for name, x in digit_samples(sigmas, chain, runs, data.mean().item(), seed):
            put_row(name, x)
            if seed == 0 and name in ("NCSNv2", "DDPM"):
                result.setdefault("pictures", {})[name] = packed(x[:40])
    put_row("test images", test)


def strip(score, x, sigmas, steps, step, every, generator):
    """States [levels, n, ...] at the end of every `every`-th level, and the result, [0, 1]."""
    kept = []
    for i in range(0, len(sigmas), every):
        x = annealed(score, x, sigmas[i:i + every], steps, step, generator)
        kept.append(x)
    sigma = sigmas[-1].item()
    kept.append(x + sigma**2 * score(x, sigma).detach())
    return torch.stack(kept)


def mnist_part(put, folder):
    """NCSNv2 on MNIST, trained once."""
    data, test, labels, _ = mnist(folder, labels=True)
    first = largest_distance(data)
    sigmas = ladder(first, BIG_LAST, 784)
    score = ScoreNetwork(Blocks(UNet(4, BIG_WIDTHS, bandwidth=1.0, generator=0)))

    def batch(n, g):
        k = 255 * data[torch.randint(len(data), (n,), generator=g)]
        return ((k + torch.rand(k.shape, generator=g)) / 256).reshape(-1, 1, 28, 28)

    state, facts = trained(score, batch, ladder_step(sigmas), BIG_UPDATES, BIG_BATCH, 0, "mnist")
    best = state.averaged_model()
    result = {"first": first, "levels": len(sigmas), "step": best_step(sigmas, BIG_STEPS),
              "parameters": sum(p.numel() for p in score.parameters()), **facts}
    put("mnist", result)
    start, g = time.process_time(), torch.Generator().manual_seed(1)
    x = data.mean() + first * torch.randn(BIG_DRAWS, 1, 28, 28, generator=g)
    x = torch.cat([sample(best, part, sigmas, BIG_STEPS, g) for part in x.split(64)])
    result |= {"sampling_seconds": round(time.process_time() - start), "pictures": packed(x[:48])}
    put("mnist", result)
    distance, index = nearest(x.flatten(1), data)
    shares = torch.bincount(labels[index], minlength=10) / len(x)
    result |= {"near": distance.mean().item(), "closest": distance.min().item(),
               "near_of_test": nearest(test[:500], data)[0].mean().item(),
               "hit": len(index.unique()), "shares": shares.tolist(),
               "train_shares": (torch.bincount(labels) / len(labels)).tolist()}
    put("mnist", result)
    x = data.mean() + first * torch.randn(6, 1, 28, 28, generator=g)
    frames = strip(best, x, sigmas, BIG_STEPS, result["step"], 16, g)
    result["strip"], result["strip_shape"] = packed(frames), list(frames.shape)
    some = test[:300].reshape(-1, 1, 28, 28)
    result["sigmas"] = sigmas[::5].tolist()
    result["test_loss"] = level_losses(best, some, sigmas[::5], 11)
    put("mnist", result)


def main():
    parser = arguments(__doc__, RESULTS / "ncsn.json", threads=1)
    parser.add_argument("--data", type=Path, required=True, help="folder of the four MNIST files")
    parser.add_argument("--only", default="digits,mnist", help="parts to run (default digits,mnist)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.perf_counter()
    result = header("squared noise; distances of images in [0, 1]; processor seconds")
    result["command"] = "python benchmarks/ncsn.py --data DIR"
    result["device"] = f"CPU, {options.threads} thread"
    result["settings"] = {name.lower(): value for name, value in globals().items()
                          if name.isupper() and name != "RESULTS"}

    def put(name, value):
        result[name] = value
        result["minutes"] = round((time.perf_counter() - clock) / 60, 1)
        write(options.out, result)

    if "digits" in options.only: digit_part(put)
    if "mnist" in options.only: mnist_part(put, options.data)


if __name__ == "__main__": main()
