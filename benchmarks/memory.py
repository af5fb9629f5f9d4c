"""The training images of MNIST as a memory: at which noise they are told apart, how many are restored
after flips, and how quickly attention is computed.

    python benchmarks/memory.py --mnist DIR [--out FILE] [--threads 1] [--rows 500]

DIR is the folder of the four MNIST files. `own` has the weight of the own image behind noisy copies of
`rows` of K images, pixels in [0, 1], for signal-to-noise ratios at multiples of the predicted threshold;
`half` the ratio at which half of them have at least half the weight. `flips` has the share of `rows`
black and white images that one step of attention restores, after flips of a tenth and of three tenths of
the pixels. `milliseconds` are the shortest of several calls of two matrix products, of PyTorch's
attention with the norms as its mask, and of `denoise`, for 100 noisy copies of uniform patterns at the
threshold; `gap` is the largest difference to float64.
"""
import math
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention

from rbmdiff.bridge.memory import collapse_snr, denoise, flip_beta, own_log_weight
from rbmdiff.foundations.core import Estimate
from rbmdiff.foundations.data import digits, mnist, some
from record import RESULTS, arguments, header, shortest, write

MULTIPLES = 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0
BETAS = 0.003, 0.01, 0.03, 0.1, 0.3, 1.0
SIZES = (1500, 64), (60000, 784)


def shown(e):
    """An estimate as JSON keeps it."""
    return {"value": e.value, "stderr": e.stderr, "n": e.n}


def told_apart(images, rows):
    """Weights of the own image of `images` [K, D] at multiples of the threshold, and where half is."""
    K, D = images.shape
    variances = torch.linalg.eigvalsh(torch.cov(images.T.double())).clamp(min=0)
    predicted = float(collapse_snr(variances, K))
    index = torch.randperm(K, generator=torch.Generator().manual_seed(0))[:rows]
    curve = []
    for k, multiple in enumerate(MULTIPLES):
        snr = multiple * predicted
        log_w = own_log_weight(images, index, 1.0, snr**-0.5, k)
        curve.append({"multiple": multiple, "snr": snr, "weight": shown(Estimate.of(log_w.exp())),
                      "information": shown(Estimate.of(math.log(K) + log_w))})
        print(K, D, curve[-1], flush=True)
    w = [point["weight"]["value"] for point in curve]
    up = next(i for i, x in enumerate(w) if x > 0.5)
    part = (0.5 - w[up - 1]) / (w[up] - w[up - 1])
    half = MULTIPLES[up - 1] * (MULTIPLES[up] / MULTIPLES[up - 1]) ** part
    equal = (K ** (2 / D) - 1) / variances.mean().item()
    return {"patterns": K, "dimensions": D, "equal": equal, "predicted": predicted,
            "half": half * predicted, "curve": curve}


def restored(spins, rows):
    """Shares of `rows` images that one step of attention restores, by flips and inverse temperature."""
    g = torch.Generator().manual_seed(0)
    clean = spins[torch.randperm(len(spins), generator=g)[:rows]]
    table = []
    for p in (0.1, 0.3):
        x = clean * (1 - 2 * (torch.rand(clean.shape, generator=g) < p).float())
        for beta in (*BETAS, flip_beta(p)):
            found = denoise(x, spins, 1.0, beta**-0.5).sign()
            right = (found == clean).all(1).double()
            table.append({"p": p, "beta": beta, "restored": shown(Estimate.of(right))})
            print(table[-1], flush=True)
    return table


def speed(K, D, dtype):
    """Milliseconds of three ways for 100 states among `K` patterns of `D` numbers."""
    g = torch.Generator().manual_seed(0)
    patterns = torch.rand(K, D, generator=g, dtype=torch.float64)
    snr = float(collapse_snr(torch.full((D,), 1 / 12), K))
    noise = torch.randn(100, D, generator=g, dtype=torch.float64) / snr**0.5
    x, patterns = ((y - 0.5).to(dtype) for y in (patterns[:100] + noise, patterns))
    norms = snr * patterns.square().sum(1) / 2
    mask = -norms.expand(100, K)
    ways = {"products": lambda: (snr * (x @ patterns.T) - norms).softmax(1) @ patterns,
            "attention": lambda: scaled_dot_product_attention(x, patterns, patterns, mask, scale=snr),
            "denoise": lambda: denoise(x, patterns, 1.0, snr**-0.5)}
    truth = denoise(x.double(), patterns.double(), 1.0, snr**-0.5)
    rounds = 30 if K < 10_000 else 4
    row = {"patterns": K, "dimensions": D, "dtype": str(dtype).removeprefix("torch."),
           "milliseconds": {name: shortest(run, rounds) for name, run in ways.items()},
           "gap": {name: (run().double() - truth).abs().max().item() for name, run in ways.items()}}
    print(row, flush=True)
    return row


def main():
    parser = arguments(__doc__, RESULTS / "memory.json", threads=1)
    parser.add_argument("--mnist", type=Path, required=True, help="folder of the four MNIST files")
    parser.add_argument("--rows", type=int, default=500, help="noisy images (default 500)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images = mnist(options.mnist)[0]
    result = header("nats; shares; ms") | {
        "command": "python benchmarks/memory.py --mnist DIR", "threads": options.threads,
        "rows": options.rows, "speed": [speed(*size, dtype) for size in SIZES
                                        for dtype in (torch.float32, torch.float64)]}
    result["own"] = {"digits": told_apart(digits()[0], 1500)}
    for K in (1000, 10_000, 60_000):
        result["own"][f"mnist {K}"] = told_apart(some(images, K), options.rows)
    result["flips"] = restored(2 * (images >= 0.5).float() - 1, options.rows)
    write(options.out, result)


if __name__ == "__main__":
    main()
