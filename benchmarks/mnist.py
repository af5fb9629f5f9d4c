"""An RBM with 500 hidden units on MNIST, through the command line: likelihood from both sides, and the
time to -90 nats.

    python benchmarks/mnist.py --data DIR [--runs runs] [--out FILE] [--dreams book/dreams.png]

DIR is the folder of the four MNIST files. Two runs: `quick` (20 epochs) shows how soon the averaged
machine passes -90 nats on the test images, by AIS with 100 chains and 4000 temperatures after every
second epoch, which is not counted in the training time; `full` (120 epochs) gives the likelihood, by AIS
and reverse AIS with 200 chains and 20000 temperatures. The test images are binarised once, at random;
the training images anew in every epoch. `starts` has the test log-likelihood by reverse AIS from
different starts, and the picture shows sixty samples of the machine. A finished run is not trained
again.
"""
import json
from pathlib import Path
import time

import torch

from rbmdiff.foundations.data import base_rate, binarize_stochastic
from rbmdiff.learning.partition import ais, log_likelihood, reverse_ais
from rbmdiff.practice import cli, runs
from rbmdiff.sampling.gibbs import gibbs
from record import RESULTS, arguments, versions, write

FULL = "--lr 0.2 --average 0.9995 --epochs 120"
EVALUATE = "--chains 200 --temperatures 20000"
LOOK = dict(n_chains=100, n_temperatures=4000)
STEPS = 1000, 10_000
DREAM = "--n 60 --steps 1000 --columns 10"


def command(line):
    """Run `rbmdiff` with the words of `line`, and stop if it fails."""
    print("rbmdiff", line, flush=True)
    if code := cli.main(line.split()): raise SystemExit(code)


def quick(data, folder):
    """Train for 20 epochs; the curve of test log-likelihood against seconds of training."""
    run = runs.prepare(folder, {"data": "mnist", "data_folder": str(data), "epochs": 20})
    state, base, curve = run.state, base_rate(run.x), []
    for epoch in run.fit(progress=False):
        if epoch % 2: continue
        machine = state.averaged_model()
        log_z = ais(machine, generator=epoch, base=base, **LOOK)
        fit = log_likelihood(machine, run.held_out, log_z)
        curve.append({"epoch": epoch, "seconds": state.seconds, "test": fit.value,
                      "stderr_log_z": log_z.stderr})
        print(curve[-1], flush=True)
    passed = next((c["seconds"] for c in curve if c["test"] - 2 * c["stderr_log_z"] > -90), None)
    return {"curve": curve, "seconds_to_minus_90": passed, "look": LOOK,
            "threads": torch.get_num_threads()}


def full(data, folder):
    """Train for 120 epochs, resumable, and evaluate: options, seconds and results."""
    if not (folder / "model.safetensors").is_file():
        command(f"train --out {folder} --resume" if folder.exists()
                else f"train mnist --data-folder {data} --out {folder} {FULL}")
    last = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
    start = time.perf_counter()
    command(f"evaluate {folder} {EVALUATE}")
    results = json.loads((folder / "results.json").read_text())
    return {
        "command": f"rbmdiff train mnist --data-folder DIR --out RUN {FULL}; rbmdiff evaluate RUN "
                   f"{EVALUATE}",
        "training_seconds": last["seconds"],
        "evaluation_seconds": time.perf_counter() - start,
        "threads": torch.get_num_threads(),
        **{name: results[name] for name in ("log_z", "log_likelihood")},
    }


def starts(folder):
    """Test log-likelihood of the run in `folder` by reverse AIS whose chains begin in different places.
    """
    run = runs.resume(folder)
    x, test, state, found = run.x, run.held_out, run.state, []
    machine, base, g = runs.load_run(folder)[0].to(x.device), base_rate(x), state.generator
    train = x[torch.randperm(len(x), generator=g, device=x.device)[:LOOK["n_chains"]]]
    begins = {"training images": binarize_stochastic(train, g), "test images": test[:LOOK["n_chains"]],
              "persistent chains": state.carry["chains"]}
    for name, v in begins.items():
        for steps in STEPS:
            log_z = reverse_ais(machine, gibbs(machine, v, steps, g), LOOK["n_temperatures"], g,
                                base=base)
            fit = log_likelihood(machine, test, log_z)
            found.append({"start": name, "steps": steps, "test": fit.value,
                          "stderr_log_z": log_z.stderr})
            print(found[-1], flush=True)
    return found


def main():
    parser = arguments(__doc__, RESULTS / "mnist.json")
    parser.add_argument("--data", type=Path, required=True, help="folder of the four MNIST files")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the two runs are kept")
    parser.add_argument("--dreams", type=Path, default=Path("book/dreams.png"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = {"command": "python benchmarks/mnist.py --data DIR", "versions": versions(),
               "units": "nats per image",
               "quick": quick(args.data, args.runs / "mnist-quick"),
               "full": full(args.data, args.runs / "mnist"),
               "starts": starts(args.runs / "mnist")}
    command(f"sample {args.runs / 'mnist'} {DREAM} --out {args.dreams}")
    write(args.out, results)


if __name__ == "__main__":
    main()
