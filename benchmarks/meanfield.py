"""The mean-field proposal and its repairs on the 8x8 digits, H = 12, measured by the exact likelihood of
the learned machine.

    python benchmarks/meanfield.py [--out FILE] [--workers 1] [--seeds 3] [--steps 2400]

Data are those of benchmarks/digits.py (pixels > 7, 1500 images to train on, 297 to test). Every run
minimises the denoising loss, weight sigma², on mean-field logits, with 500 terms an update, linear beta
from 0.1 to 20, Adam with a rate that falls linearly to zero, weight decay 1e-4 on W, and starts from
small random weights and zero biases. Methods differ in the batch whose mean gives a logit, the range of
times, the Jacobian, a Gaussian prior of width 1, and parameters that depend on time. The floor of the
means is chosen for each method among six, in shorter runs on 1200 training images, by the exact
likelihood of the other 300; the rate, one for all, in the same way with single images and little noise.
Test images serve for the final numbers alone. With time-dependent parameters, the machine of the least
noise counts.
"""
from multiprocessing import get_context
import statistics
import time

import torch
from tqdm import tqdm

from rbmdiff.bridge.meanfield import TimedRBM, dsm_loss, score, with_prior
from rbmdiff.diffusion.schedule import LinearBeta
from rbmdiff.foundations.core import Estimate
from rbmdiff.foundations.data import base_rate, binarize, digits, independent_log_prob
from rbmdiff.foundations.train import linear_decay
from rbmdiff.foundations.units import states
from rbmdiff.models.rbm import RBM
from record import RESULTS, arguments, header, write

H, TERMS, DECAY, RATE, FLOORS, RATES = 12, 500, 1e-4, 0.05, (0.03, 0.1, 0.2, 0.3, 0.36,
                                                             0.4), (0.01, 0.02, 0.05, 0.1)
ALL, LITTLE, TIMED = (1e-3, 1.0), (1e-3, 0.1), (0.05, 1.0)
METHODS = {  # images in a batch, range of times, further options
    "proposal": (16, ALL, {}),
    "+ Jacobian": (16, ALL, {"jacobian": True}),
    "+ Gaussian prior": (16, ALL, {"width": 1.0}),
    "+ parameters in time": (16, TIMED, {"knots": 4}),
    "+ little noise": (16, LITTLE, {}),
    "+ single images": (1, ALL, {}),
    "all but single images": (16, TIMED, {"jacobian": True, "width": 1.0, "knots": 4}),
    "single, prior": (1, ALL, {"width": 1.0}),
    "single, little noise": (1, LITTLE, {}),
    "single, little noise, Jacobian": (1, LITTLE, {"jacobian": True}),
    "single, little noise, prior": (1, LITTLE, {"width": 1.0}),
    "single, in time": (1, TIMED, {"knots": 4}),
    "single, in time, Jacobian": (1, TIMED, {"jacobian": True, "knots": 4}),
    "single, in time, prior": (1, TIMED, {"width": 1.0, "knots": 4}),
    "single, all": (1, TIMED, {"jacobian": True, "width": 1.0, "knots": 4}),
}
SIZES = (1, 2, 3, 4, 8, 16)
# a chapter of the book makes a run more of it
REPEATED, REPEATS = "single, little noise", 8


def train(v, seed, batch, times, floor, rate, steps, jacobian=False, width=None, knots=0):
    """The machine after `steps` updates on bits `v`; the one of the least noise if it depends on time.
    """
    schedule, g = LinearBeta(), torch.Generator().manual_seed(seed)
    rbm = RBM(v.shape[1], H, generator=g)
    model = TimedRBM(rbm, schedule, knots, *times, jacobian) if knots else rbm
    network = model if knots else lambda a, t: score(rbm, a, jacobian)
    if width: network = with_prior(network, schedule, width)
    optimizer = torch.optim.Adam([{"params": [model.W], "weight_decay": DECAY},
                                  {"params": [model.b, model.c]}], lr=rate)
    decay, smoothing = linear_decay(optimizer, steps), floor * batch / (1 - 2 * floor)
    for _ in range(steps):
        optimizer.zero_grad()
        dsm_loss(network, v, schedule, TERMS, batch, smoothing, times, g).mean().backward()
        optimizer.step(), decay.step()
    return model.at(times[0]) if knots else rbm


@torch.no_grad()
def correlations(rbm, v):
    """Slope and correlation coefficient of the machine's pixel covariances, exact, against those of the
    data `v`, off the diagonal.
    """
    h = states(H, dtype=torch.float64)
    p, m = torch.softmax(-rbm.double().hidden_free_energy(h), 0), rbm.visible_mean(h)
    mean, off = p @ m, ~torch.eye(64, dtype=torch.bool)
    model, data = ((m.T * p) @ m - mean[:, None] * mean)[off], torch.cov(v.double().T)[off]
    return (model @ data / (data @ data)).item(), torch.corrcoef(torch.stack([model, data]))[0, 1].item()


def run(job):
    """One job in one thread: train, and measure on `held` or test images."""
    (kind, name, seed, floor, rate, batch, times, steps, options) = job
    torch.set_num_threads(1)
    full, test = (binarize(x, 7.5 / 16) for x in digits())
    v, held = (full, test) if kind in ("final", "size") else (full[:1200], full[1200:])
    start = time.process_time()
    rbm = train(v, seed, batch, times, floor, rate, steps, **options)
    seconds = time.process_time() - start
    with torch.no_grad(): own, other = (rbm.log_prob(x) for x in (v, held))
    slope, coefficient = correlations(rbm, v)
    return {"kind": kind, "name": name, "seed": seed, "floor": floor, "rate": rate, "batch": batch,
            "train": own.mean().item(),
            "held": other.mean().item(), "images": other.tolist(), "slope": slope,
            "coefficient": coefficient, "seconds": seconds}


def in_parallel(jobs, workers, title):
    """Results of all jobs, in the order of the jobs."""
    if workers == 1: return [run(job) for job in tqdm(jobs, title, disable=None)]
    with get_context("spawn").Pool(workers) as pool:
        return list(tqdm(pool.imap(run, jobs), title, len(jobs), disable=None))


def summary(rows):
    """Mean over images of the log-likelihood averaged over seeds, its error over images, the spread over
    seeds, and the rest.
    """
    estimate = Estimate.of(torch.tensor([r["images"] for r in rows], dtype=torch.float64).mean(0))
    mean = {name: statistics.mean(r[name] for r in rows)
            for name in ("train", "slope", "coefficient", "seconds")}
    return {"floor": rows[0]["floor"], "batch": rows[0]["batch"], "seeds": len(rows),
            "test": {"value": estimate.value, "stderr": estimate.stderr,
            "spread_over_seeds": statistics.stdev(r["held"] for r in rows)}, "train": mean["train"],
            "covariances": {
            "slope": mean["slope"], "coefficient": mean["coefficient"]}, "cpu_seconds": mean["seconds"]}


def main():
    parser = arguments(__doc__, RESULTS / "meanfield.json")
    parser.add_argument("--workers", type=int, default=1,
                        help="processes, each with one thread (default 1)")
    parser.add_argument(
        "--seeds",
        type=int,
        default=3,
        help="final runs of each method, at least 2 (default 3); eight of the one that the book repeats",
    )
    parser.add_argument("--steps", type=int, default=2400,
                        help="updates of a final run; half as many to select (default 2400)")
    options = parser.parse_args()
    if options.seeds < 2 or options.steps < 2: parser.error("--seeds and --steps must be at least 2")
    half = options.steps // 2
    jobs = [("rate", "single, little noise", 100, 0.2, rate, 1, LITTLE, half, {}) for rate in RATES]
    jobs += [("floor", name, 100, floor, RATE, batch, times, half, o)
             for name, (batch, times, o) in METHODS.items() for floor in FLOORS]
    chosen = in_parallel(jobs, options.workers, "selection")
    best = {name: max((r for r in chosen if r["kind"] == "floor" and r["name"] == name),
                      key=lambda r: r["held"])["floor"] for name in METHODS}
    plain = ("proposal, s = 1/2", 0.5 / 17)                                # as it stands, nothing chosen
    full = {plain[0]: METHODS["proposal"], **METHODS}
    jobs = [("final", name, seed, best.get(name, plain[1]), RATE, batch, times, options.steps, o)
            for name, (batch, times, o) in full.items()
            for seed in range(REPEATS if name == REPEATED else options.seeds)]
    jobs += [("size", "little noise", seed, 0.2, RATE, batch, LITTLE, options.steps, {})
             for batch in SIZES for seed in range(2)]
    rows = in_parallel(jobs, options.workers, "final runs")
    data, test = (binarize(x, 7.5 / 16) for x in digits())
    independent = Estimate.of(independent_log_prob(test, base_rate(data)).double())
    held = independent_log_prob(data[1200:], base_rate(data[:1200])).mean().item()
    result = {
        **header("nats per image"),
        "settings": {
            "hidden": H,
            "terms": TERMS,
            "optimizer": "Adam",
            "rate": RATE,
            "decay_of_weights": DECAY,
            "steps": options.steps,
            "schedule": repr(LinearBeta()),
            "weight": "sigma^2",
            "train_images": len(data),
            "test_images": len(test),
            "selection": {"steps": half, "train_images": 1200, "held_out_images": 300},
        },
        "independent pixels": {
            "test": {"value": independent.value, "stderr": independent.stderr},
            "held_out": held,
        },
        "methods": {
            name: {
                **summary([r for r in rows if r["kind"] == "final" and r["name"] == name]),
                "times": times,
                "options": o,
            }
            for name, (batch, times, o) in full.items()
        },
        "batches": [
            summary([r for r in rows if r["kind"] == "size" and r["batch"] == batch]) for batch in SIZES
        ],
        "selection": [
            {k: r[k] for k in ("kind", "name", "floor", "rate", "batch", "train", "held", "seconds")}
            for r in chosen
        ],
    }
    for name, row in result["methods"].items():
        t, c = row["test"], row["covariances"]
        print(
            f"{name:32} floor {row['floor']:.2f}  train {row['train']:7.2f}  test {t['value']:7.2f} ± "
            f"{t['stderr']:.2f} (images), "
            f"over seeds {t['spread_over_seeds']:.2f}; covariances: slope {c['slope']:.2f}, coefficient "
            f"{c['coefficient']:.2f}; {row['cpu_seconds']:.0f} s"
        )
    write(options.out, result)


if __name__ == "__main__":
    main()
