"""Likelihood, CD-1 and score matching on principal components of the 8x8 digits: exact gradients, many
starts.

    python benchmarks/limit.py [--out FILE] [--seeds 12] [--updates 1000] [--threads 1]

A machine of 8 Gaussian visible units and 6 bits, with widths that are learned, by their logarithms; data
are the first 8 principal components of the digits, in units of the standard deviation of the first (1500
images to train on, 297 to test). Every update uses all images and an exact gradient, so runs differ in
their start alone. Adam with a rate that falls linearly from 0.02 to zero. Along the runs that follow the
likelihood the gradients of the other two are measured too: lengths; cosines; "chance", the standard
deviation that a cosine would have if every entry of both had a random sign; "agreement", the share of
entries whose signs agree, which does not depend on the scale of any parameter. Log-likelihoods are in
nats per image; those of a density, so their zero has no meaning.
"""

import statistics

import torch
from tqdm import tqdm

from rbmdiff.bridge.limit import gaussian_cd_gradient, score_matching_gradient
from rbmdiff.foundations.data import digits
from rbmdiff.foundations.train import ascend
from rbmdiff.learning.contrastive import exact_gradient
from rbmdiff.models.rbm import RBM
from record import RESULTS, arguments, header, write

D, H, RATE = 8, 6, 0.02
LOOKS = (0, 2, 5, 10, 15, 20, 30, 40, 60, 80, 100, 140, 180, 240, 320, 420, 540, 660, 780, 900, 1000)
PAIRS = (("CD-1", "likelihood"), ("score matching", "likelihood"), ("CD-1", "score matching"))
METHODS = {"likelihood": exact_gradient, "CD-1": gaussian_cd_gradient,
           "score matching": score_matching_gradient}


def components():
    """Training and test data in the coordinates of the first principal components."""
    train, test = digits(dtype=torch.float64)
    centre, (_, size, axes) = train.mean(0), torch.linalg.svd(train - train.mean(0), full_matrices=False)
    return (((x - centre) @ axes[:D].T) * (len(train) ** 0.5 / size[0]) for x in (train, test))


def compare(m, v):
    """Of all pairs of exact gradients: cosines, their spread under random signs, share of equal signs;
    and all lengths.
    """
    x = {name: torch.cat([t.flatten() for t in f(m, v).values()]) for name, f in METHODS.items()}
    unit = {name: y / y.norm() for name, y in x.items()}
    return {"cosines": [round((unit[a] @ unit[b]).item(), 5) for a, b in PAIRS],
            "chance": [round((unit[a] * unit[b]).norm().item(), 5) for a, b in PAIRS],
            "agreement": [round((x[a] * x[b] > 0).double().mean().item(), 5) for a, b in PAIRS],
            "lengths": [float(f"{y.norm():.4g}") for y in x.values()]}


def run(name, seed, train, test, updates=1000, stop=None):
    """Follow one gradient, to the end or to update `stop`: test log-likelihoods and, where it is the
    likelihood's, `compare`.
    """
    m = RBM(D, H, "gaussian", dtype=torch.float64)
    m.W.data = 0.3 * torch.randn(D, H, dtype=torch.float64,
                                 generator=torch.Generator().manual_seed(seed))
    m.sigma = train.std(0)
    optimizer = torch.optim.Adam(m.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 - n / (updates + 1))
    looks = []
    for n in range((updates if stop is None else stop) + 1):
        if n in LOOKS or n == updates:
            with torch.no_grad():
                look = {"update": n, "test": round(m.log_prob(test).mean().item(), 5)}
            looks.append(look | (compare(m, train) if name == "likelihood" else {}))
        ascend(m, METHODS[name](m, train))
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        final = m.log_prob(train).mean().item()
    return {key: [look[key] for look in looks] for key in looks[0]} | {"train": final}


def main():
    parser = arguments(__doc__, RESULTS / "limit.json", threads=1)
    parser.add_argument("--seeds", type=int, default=12, help="starts, at least 2 (default 12)")
    parser.add_argument("--updates", type=int, default=1000, help="updates of each run (default 1000)")
    options = parser.parse_args()
    if options.seeds < 2 or options.updates < 1:
        parser.error("--seeds must be at least 2 and --updates at least 1")
    torch.set_num_threads(options.threads)
    train, test = components()
    normal = torch.distributions.Normal(train.mean(0), train.std(0)).log_prob(test).sum(-1).mean().item()
    result = {**header("nats per image", "numpy", "scikit-learn"),
              "settings": {"visible": D, "hidden": H, "optimizer": "Adam", "rate": RATE,
                           "updates": options.updates, "seeds": options.seeds,
                           "threads": options.threads, "train_images": len(train),
                           "test_images": len(test)},
              "independent normal components": normal, "pairs": [", ".join(pair) for pair in PAIRS],
              "methods": {}}
    runs = {name: [] for name in METHODS}
    for seed, name in tqdm([(seed, name) for seed in range(options.seeds) for name in METHODS],
                           disable=None):
        runs[name].append(run(name, seed, train, test, options.updates))
    for name, rows in runs.items():
        final = {split: [x[split][-1] if split == "test" else x[split] for x in rows]
                 for split in ("train", "test")}
        result["methods"][name] = {
            split: {"value": statistics.mean(x), "spread_over_seeds": statistics.stdev(x), "runs": x}
            for split, x in final.items()
        } | {"curves": [{k: v for k, v in x.items() if k != "train"} for x in rows]}
        print(f"{name:15}", *(f"{split} {statistics.mean(x):.3f} (spread {statistics.stdev(x):.3f})"
                              for split, x in final.items()))
    write(options.out, result)


if __name__ == "__main__":
    main()
