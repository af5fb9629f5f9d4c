"""The estimators of `practice.estimator` against those of scikit-learn: time and quality.

    python benchmarks/estimator.py [--out FILE] [--threads 1] [--rounds 15] [--only speed digits classes]

`speed`: processor time of `fit`, `RBMTransformer` against `BernoulliRBM`, in turns. Both get the same
random bits and the same arguments: a learning rate of 0.1, ten epochs, persistent chains, one step an
update. `fit` counts as a whole, with its checks of the table. A round fits both, in an order that
changes from round to round; the first does not count. Processor seconds are medians over the rounds,
the ratio is the median of the ratios of the rounds, with the 10th and 90th percentile.

`digits`: exact test log-likelihood of machines with 16 hidden units on the binary 8x8 digits, four
seeds: ten epochs with the arguments of `BernoulliRBM`; then 80 epochs at a rate of 0.05 on whole
pictures, on pictures with three pixels in ten missing, and on those filled with coins or with means.

`classes`: percent of test digits told, four splits of grey digits into 1500 and 297: logistic
regression, features and logistic regression, both, `RBMClassifier`; and `RBMClassifier` on few and many
answers with shares of the generative part, six seeds.
"""
import json
import platform
import statistics
import time

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import BernoulliRBM
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import FunctionTransformer
from threadpoolctl import threadpool_limits
import torch

from rbmdiff.foundations.data import binarize, digits
from rbmdiff.models.rbm import RBM
from rbmdiff.practice.estimator import RBMClassifier, RBMTransformer
from record import RESULTS, arguments, header, write

# visible, hidden, batch
SIZES = (20, 16, 10), (64, 64, 10), (64, 64, 100), (256, 128, 10), (256, 128, 100)


def seconds(kind, x, hidden, batch):
    """Processor seconds of a fit."""
    estimator = kind(hidden, batch_size=batch, random_state=0)
    start = time.process_time()
    estimator.fit(x)
    return time.process_time() - start


def compared(visible, hidden, batch, dtype, rows, rounds):
    """Medians of both estimators and of their ratio."""
    r = np.random.default_rng(0)
    x = (r.random((rows, visible)) < r.random(visible)).astype(dtype)
    kinds, found = [RBMTransformer, BernoulliRBM], {RBMTransformer: [], BernoulliRBM: []}
    for _ in range(rounds + 1):
        for kind in kinds:
            found[kind].append(seconds(kind, x, hidden, batch))
        kinds.reverse()
    ours, theirs = (found[kind][1:] for kind in (RBMTransformer, BernoulliRBM))
    ratios = sorted(a / b for a, b in zip(ours, theirs))
    tenths = statistics.quantiles(ratios, n=10)
    return {"visible": visible, "hidden": hidden, "batch": batch, "dtype": dtype,
            "RBMTransformer": statistics.median(ours), "BernoulliRBM": statistics.median(theirs),
            "ratio": statistics.median(ratios), "ratio_10": tenths[0], "ratio_90": tenths[-1]}


def run_speed(options):
    """Rows of all sizes and both precisions."""
    return [compared(*size, dtype, options.rows, options.rounds)
            for size in SIZES for dtype in ("float32", "float64")]


def exact(found, v):
    """Mean log-likelihood of bits `v` under a machine with the parameters of an estimator."""
    m = RBM(64, 16, dtype=torch.float64).requires_grad_(False)
    for p, x in ((m.W, found.components_.T), (m.b, found.intercept_visible_),
                 (m.c, found.intercept_hidden_)):
        p.copy_(torch.from_numpy(x))
    return m.log_prob(v).mean().item()


def run_digits(options):
    """Test log-likelihoods by what was trained on."""
    train, test = (binarize(x, 7.5 / 16).double() for x in digits())
    x, r = train.numpy(), np.random.RandomState(0)
    lost = r.random(x.shape) < 0.3
    holes = np.where(lost, np.nan, x)
    means = np.nanmean(holes, 0)
    tables = {"all pixels": x, "missing": holes, "coins": np.where(lost, r.random(x.shape) < means, x),
              "means": np.where(lost, means, x)}
    found = {kind.__name__: [exact(kind(16, random_state=k).fit(x), test) for k in range(4)]
             for kind in (BernoulliRBM, RBMTransformer)}
    for name, table in tables.items():
        ours = lambda k: RBMTransformer(16, learning_rate=0.05, n_iter=80, random_state=k)
        found[name] = [exact(ours(k).fit(table), test) for k in range(4)]
    return found


def ways(seed):
    """Ways from pixels to a digit."""
    features = RBMTransformer(100, n_iter=20, random_state=seed)
    last = LogisticRegression(C=10, max_iter=500)
    return {"logistic regression": last, "features": make_pipeline(features, last),
            "pixels and features": make_pipeline(make_union(FunctionTransformer(), features), last),
            "RBMClassifier": RBMClassifier(100, learning_rate=0.5, batch_size=20, n_iter=20,
                                           random_state=seed)}


def run_classes(options):
    """Percent right by way and split, and by answers, share and seed."""
    parts = digits(labels=True, dtype=torch.float64)
    x, y = (torch.cat(pair).numpy() for pair in (parts[:2], parts[2:]))
    found = {"splits": {}, "shares": []}
    for seed in range(4):
        order = np.random.RandomState(seed).permutation(len(x))
        first, last = order[:1500], order[1500:]
        for name, way in ways(seed).items():
            right = 100 * way.fit(x[first], y[first]).score(x[last], y[last])
            found["splits"].setdefault(name, []).append(right)
    for answers in (60, 600):
        for share in (0.0, 0.01, 0.1):
            ours = lambda k: RBMClassifier(50, learning_rate=0.2, n_iter=3000 // answers + 10,
                                           generative=share, random_state=k)
            right = [100 * ours(k).fit(x[:answers], y[:answers]).score(x[1500:], y[1500:])
                     for k in range(6)]
            found["shares"].append({"answers": answers, "share": share, "right": right})
    return found


def main():
    runs = {"speed": run_speed, "digits": run_digits, "classes": run_classes}
    parser = arguments(__doc__, RESULTS / "estimator.json", threads=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rows", type=int, default=2000, help="rows of the random bits")
    parser.add_argument("--only", nargs="+", choices=runs, default=tuple(runs),
                        help="parts to run; others are kept")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    threadpool_limits(options.threads)
    old = json.loads(options.out.read_text()) if options.out.is_file() else {}
    result = header("processor seconds of fit; nats; percent", "numpy", "scikit-learn")
    result["command"] = "python benchmarks/estimator.py"
    result |= {"device": f"{options.threads} thread of {platform.machine()}", "rounds": options.rounds,
               "rows_of_data": options.rows}
    result |= {part: old[part] for part in runs if part in old}
    for part in options.only:
        result[part] = runs[part](options)
        write(options.out, result)
        print(part, result[part], flush=True)


if __name__ == "__main__": main()
