"""Machines of real units, trained by the defaults of the command line, beside fitted densities.

Test log-likelihood in nats per example, in the user's units: independent normals, one normal with a full
covariance, mixtures of normals whose number is chosen on a part of the training data, and machines of
the default run for three seeds. Whole numbers are spread over their cells by uniform noise.

    python benchmarks/gaussian.py --mnist DIR

DIR holds the four files of MNIST; without it the images are left out. Stores
benchmarks/results/gaussian.json.
"""
from pathlib import Path
import tempfile

import numpy as np
from sklearn.datasets import load_digits, load_iris, load_wine
from sklearn.mixture import GaussianMixture
import torch

from rbmdiff.foundations.core import Estimate
from rbmdiff.foundations.data import Examples, read_idx
from rbmdiff.practice import runs
from record import RESULTS, arguments, header, write

SEEDS = 0, 1, 2


def tables(mnist: Path | None) -> dict:
    """Name: (rows [N, D], options besides the defaults)."""
    r = np.random.default_rng
    k = r(0).integers(0, 2, (4000, 1))
    normal = r(0).normal(size=(6, 6))
    found = {
        "two clusters": (0.45 * k + 0.03 * r(1).normal(size=(4000, 2)), {"hidden": 2}),
        "correlated": (r(0).normal(size=(2000, 6)) @ normal, {}),
        "iris": (load_iris().data + 0.1 * (r(3).random((150, 4)) - 0.5), {}),
        "wine": (load_wine().data, {}),
        "digits": ((load_digits().data + r(3).random((1797, 64))) / 17, {}),
        "digits, 100 hidden": ((load_digits().data + r(3).random((1797, 64))) / 17, {"hidden": 100}),
    }
    if mnist is None: return found
    pixels = read_idx(mnist / "train-images-idx3-ubyte.gz").reshape(-1, 784)
    spread = ((pixels + r(3).random(pixels.shape)) / 256).astype(np.float32)
    return found | {"MNIST, 200 hidden": (spread, {"hidden": 200, "epochs": 10})}


def chosen_mixture(x: np.ndarray) -> GaussianMixture:
    """The mixture of 1 to 16 normals, full or diagonal, that is best on a fifth of the rows it lacks."""
    held, best = len(x) // 5, (-np.inf, 1, "diag")
    for kind in ("full", "diag"):
        for n in (1, 2, 4, 8, 16):
            if kind == "full" and (n * x.shape[1] > len(x) / 2 or x.shape[1] > 100): continue
            score = mixture(x[held:], n, kind).score(x[:held])
            best = max(best, (score, n, kind))
    return mixture(x, *best[1:])


def mixture(x: np.ndarray, n: int, kind: str) -> GaussianMixture:
    """`n` normals fitted to `x`."""
    return GaussianMixture(n, covariance_type=kind, random_state=0, reg_covar=1e-6).fit(x)


def densities(data: Examples) -> dict:
    """Test log-likelihood of densities, standardised for the fit, in the user's units."""
    mean, spread = data.train.mean(0), data.train.std(0)
    x, y = (((part - mean) / spread).astype(np.float64) for part in (data.train, data.test))
    shift = np.log(spread).sum()
    fits = {"independent": GaussianMixture(1, covariance_type="diag").fit(x),
            "full covariance": GaussianMixture(1).fit(x), "mixture": chosen_mixture(x)}
    found = {name: vars(Estimate.of(torch.from_numpy(fit.score_samples(y) - shift)))
             for name, fit in fits.items()}
    chosen = fits["mixture"]
    return found | {"mixture of": f"{chosen.n_components}, {chosen.covariance_type}"}


def machine(file: Path, options: dict, seed: int, folder: Path) -> dict:
    """Test log-likelihood of a default run."""
    run = runs.prepare(folder, {"data": str(file), "visible": "gaussian", "seed": seed, **options})
    for _ in run.fit(False): pass
    found = runs.evaluate(folder, progress=False)
    values = found["log_likelihood"]["test"]
    return {name: entry["value"] for name, entry in values.items()} | {
        "method": run.options["method"], "seconds": round(run.state.seconds, 1)}


def main() -> None:
    parser = arguments(__doc__, RESULTS / "gaussian.json")
    parser.add_argument("--mnist", type=Path, help="folder of the four files of MNIST")
    args = parser.parse_args()
    result = header("nats per test example", "scikit-learn", "numpy")
    for name, (x, options) in tables(args.mnist).items():
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "rows.npy"
            np.save(file, x)
            fits = densities(Examples(x).split())
            machines = [machine(file, options, seed, Path(folder) / f"run{seed}") for seed in SEEDS]
        result[name] = {"rows": list(x.shape), **fits, "machines": machines}
        print(name, result[name], flush=True)
    write(args.out, result)


if __name__ == "__main__":
    main()
