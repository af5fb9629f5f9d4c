"""The command line: runs, samples, evaluations, and bad input that ends in one clear line."""
import gzip
import json
import os
from pathlib import Path
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors
import torch

import rbmdiff
from rbmdiff.foundations.core import read_tensors, write_tensors
from rbmdiff.foundations.data import base_rate, independent_log_prob, load, write_idx
from rbmdiff.foundations.train import spaced
from rbmdiff.models.rbm import RBM
from rbmdiff.practice import runs
from rbmdiff.practice.cli import main, parser
from rbmdiff.practice.runs import OPTIONS

SMALL = ["--hidden", "3", "--epochs", "2", "--look", "100", "--quiet"]


def bits(n=60, d=9, seed=0):
    return np.random.default_rng(seed).integers(0, 2, (n, d)).astype(np.uint8)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a data file and a run trained on it."""
    folder = tmp_path_factory.mktemp("cli")
    np.save(folder / "bits.npy", bits())
    assert main(["train", str(folder / "bits.npy"), "--out", str(folder / "run"), *SMALL]) == 0
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """The same, copied, as the current folder."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    text = (tmp_path / "run/run.json").read_text().replace(str(made), str(tmp_path))
    (tmp_path / "run/run.json").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(capsys, line, code=0):
    """Run a command line; its output, and errors."""
    capsys.readouterr()
    assert main(line.split()) == code
    return capsys.readouterr()


def tree(folder):
    files = (path for path in sorted(Path(folder).rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# --- what the commands do

def test_a_run_holds_what_is_promised(place):
    assert {p.name for p in (place / "run").iterdir()} == {"run.json", "checkpoint.safetensors",
                                                           "log.jsonl", "samples.png",
                                                           "model.safetensors"}
    run = json.loads((place / "run/run.json").read_text())
    assert run["versions"]["rbmdiff"] == rbmdiff.__version__ and run["options"]["hidden"] == 3
    assert run["options"]["seed"] == 0
    assert run["options"].keys() == OPTIONS.keys() | {"data"}
    assert run["scale"] == {"kind": "states", "mean": 0.0, "spread": 1.0} and run["shape"] is None
    assert len(run["fingerprint"]) == 64 and run["beside"] == "../bits.npy"
    lines = [json.loads(line) for line in (place / "run/log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert all({"seconds", "reconstruction", "gap"} <= line.keys() for line in lines)
    machine = RBM.load(place / "run/model.safetensors")
    tensors, meta = read_tensors(place / "run/checkpoint.safetensors", "training state")
    assert machine.W.shape == (9, 3) and torch.equal(machine.W, tensors["average.W"])
    assert meta["epoch"] == 2
    assert (place / "run/samples.png").read_bytes().startswith(b"\x89PNG")


def test_help_and_version(capsys):
    assert "evaluate" in call(capsys, "--help").out and "--resume" in call(capsys, "train --help").out
    assert call(capsys, "--version").out.strip() == f"rbmdiff {rbmdiff.__version__}"
    for name in ("train", "sample", "evaluate"): assert "Gibbs" in call(capsys, f"{name} --help").out


def test_every_option_of_train_is_offered_and_explained(capsys):
    text = " ".join(call(capsys, "train --help").out.split())
    assert all("--" + name.replace("_", "-") in text for name in OPTIONS)
    given = vars(parser().parse_args(["train", "digits", "--out", "r"]))
    # defaults are resolved, not parsed
    assert not set(OPTIONS) & set(given)


def test_evaluate_is_exact_where_it_can_be(place, capsys):
    out = call(capsys, "evaluate run").out
    results = json.loads((place / "run/results.json").read_text())
    machine = RBM.load("run/model.safetensors").double()
    x = torch.from_numpy(np.load("bits.npy")).double()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        truth = {"train": machine.log_prob(x[order[:54]]).mean().item(),
                 "test": machine.log_prob(x[order[54:]]).mean().item()}
    for name, value in truth.items():
        entry = results["log_likelihood"][name]["exact"]
        assert entry["value"] == pytest.approx(value, abs=1e-9) and entry["stderr_log_z"] == 0
        error = entry["stderr_examples"]
        assert f"{name} log-likelihood {value:.2f} ± {error:.2f}, nats per example, exact" in out
        v, rest = x[order[:54]], x[order[:54] if name == "train" else order[54:]]
        alone = independent_log_prob(rest, base_rate(v)).mean().item()
        assert results["independent"][name]["value"] == pytest.approx(alone, abs=1e-9)
        assert f"independent units {alone:.2f} ± " in out
    assert results["log_likelihood"]["test"]["exact"]["n"] == 6 and "(6 examples)" in out
    assert results["interval"] == {} and results["notes"] == []
    assert "between" not in out and "effective" not in out


def test_evaluate_brackets_the_truth(place, capsys, monkeypatch):
    monkeypatch.setattr("rbmdiff.practice.runs.EXACT", 1)
    line = "evaluate run --chains 200 --temperatures 200 --steps 50"
    assert call(capsys, f"{line} --quiet") == ("", "")
    quiet = (place / "run/results.json").read_bytes()
    out = call(capsys, line).out
    loud = (place / "run/results.json").read_bytes()
    assert loud == quiet.replace(b'"quiet": true', b'"quiet": false')
    results = json.loads((place / "run/results.json").read_text())
    log_z = results["log_z"]
    with torch.no_grad(): truth = RBM.load("run/model.safetensors").double().log_partition().item()
    for name in ("AIS", "reverse AIS"):
        assert abs(log_z[name]["value"] - truth) < 4 * log_z[name]["stderr"] + 1e-5
        assert log_z[name]["stderr"] < 0.05
        z = log_z[name]
        assert z["ess"] == pytest.approx(200 / (1 + 199 * z["stderr"] ** 2))
        assert f"{z['ess']:.1f} of 200 chains effective" in out
    low, high = results["interval"]["test"]
    assert {low, high} == {entry["value"] for entry in results["log_likelihood"]["test"].values()}
    assert low <= high
    assert f"test log-likelihood between {low:.2f} and {high:.2f} ± " in out


def test_evaluate_on_other_data(place, capsys):
    np.save("other.npy", bits(seed=3))
    assert "other.npy log-likelihood" in call(capsys, "evaluate run other.npy").out


def draw_both(capsys):
    """The same samples in two shapes."""
    for name, columns in (("tall.png", 4), ("wide.png", 10)):
        call(capsys, f"sample run --n 10 --steps 3 --out {name} --columns {columns}")
    return "tall.png", "wide.png"


def test_samples_as_picture_and_as_states(place, capsys):
    call(capsys, "sample run --n 7 --steps 3 --out s.npy")
    states = np.load("s.npy")
    assert states.shape == (7, 9) and states.dtype == np.uint8 and set(np.unique(states)) <= {0, 1}
    before = (place / "run/samples.png").read_bytes()
    call(capsys, "sample run --n 30 --steps 3")
    assert (place / "run/samples.png").read_bytes() != before
    tall, wide = (struct.unpack(">II", Path(f).read_bytes()[16:24]) for f in draw_both(capsys))
    assert wide[0] / wide[1] > 5 > 3 > tall[0] / tall[1]
    call(capsys, "sample run --n 7 --steps 3 --out t.npy")
    assert (np.load("t.npy") == states).all()                                # same seed, same samples
    assert load("s.npy").train.shape == (7, 9)


@pytest.mark.parametrize("options",
                         ["--visible spin", "--visible gaussian", "--method cd --k 2", "--method exact",
                          "--no-centre", "--average 0",
                                     "--dtype float64", "--binarize stochastic",
                          "--momentum 0.5 --chains 7 --batch-size 13"])
def test_every_kind_of_run_trains_resumes_samples_and_evaluates(place, capsys, options):
    np.save("grey.npy", np.random.default_rng(1).random((60, 9)))
    line = f"train grey.npy --hidden 3 --quiet {options}"
    call(capsys, f"{line} --out whole --epochs 4")
    call(capsys, f"{line} --out cut --epochs 4")
    checkpoint, log = place / "cut/checkpoint.safetensors", place / "cut/log.jsonl"
    shutil.rmtree("cut")
    original, count = runs._append_log, []

    def stop(path, record):
        original(path, record)
        count.append(record.epoch)
        if record.epoch == 3: raise KeyboardInterrupt
    runs._append_log = stop
    try: err = call(capsys, f"{line} --out cut --epochs 4", 130).err
    finally: runs._append_log = original
    assert "interrupted after epoch 2 of 4; go on with: rbmdiff train --out cut --resume" in err
    assert len(log.read_text().splitlines()) == 3
    assert read_tensors(checkpoint, "training state")[1]["epoch"] == 2
    call(capsys, "train --out cut --resume --quiet")
    assert [json.loads(x)["epoch"] for x in log.read_text().splitlines()] == [1, 2, 3, 4]
    a, b = (RBM.load(f"{run}/model.safetensors").state_dict() for run in ("whole", "cut"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert a["W"].dtype == (torch.float64 if "float64" in options else torch.float32)
    call(capsys, "sample cut --n 5 --steps 2 --out s.npy"), call(capsys, "evaluate cut")


def kinds_of_data(kind, n=60, d=6):
    """Numbers of a kind, as an integer array where they are whole."""
    rng = np.random.default_rng(3)
    return {"potts(3)": np.eye(3, dtype=np.int16)[rng.integers(0, 3, (n, d // 3))].reshape(n, d),
            "binomial(4)": rng.integers(0, 5, (n, d)),
            "poisson": rng.poisson(3, (n, d)).astype(np.uint16),
            "relu": np.maximum(rng.normal(1, 1, (n, d)), 0),
            "spin": (2 * rng.integers(0, 2, (n, d)) - 1).astype(np.int8),
            "discrete((-1.0, 0.0, 1.0))": rng.integers(-1, 2, (n, d)),
            "binary((-0.5, 0.3))": rng.choice([-0.5, 0.3], (n, d)),
            "binary((0.0, 300.0))": 300 * rng.integers(0, 2, (n, d)),
            "bernoulli": rng.integers(0, 2, (n, d))}[kind]


TYPES = {"potts(3)": np.uint8, "binomial(4)": np.uint8, "poisson": np.uint8, "relu": np.float32,
         "spin": np.int8,
         "discrete((-1.0, 0.0, 1.0))": np.int8, "binary((-0.5, 0.3))": np.float32,
         "binary((0.0, 300.0))": np.uint16, "bernoulli": np.uint8}


@pytest.mark.parametrize("method", ["pcd", "cd", "exact"])
@pytest.mark.parametrize("kind", TYPES)
def test_every_kind_of_unit_is_trained_sampled_and_evaluated(place, capsys, kind, method):
    x = kinds_of_data(kind)
    np.save("x.npy", x)
    lr = "0.00001" if "300" in kind else "0.01"
    assert main(["train", "x.npy", "--visible", kind, "--binarize", "none", "--out", "r", *SMALL,
                 "--lr", lr, "--method", method]) == 0
    run = json.loads(Path("r/run.json").read_text())
    assert run["options"]["visible"] == kind and run["options"]["binarize"] == "none"
    rbm = RBM.load("r/model.safetensors")
    assert str(rbm.visible) == kind
    call(capsys, "sample r --n 9 --steps 3 --out s.npy")
    drawn = np.load("s.npy")
    assert drawn.dtype == TYPES[kind] and drawn.shape == (9, 6)
    rbm.visible.check("drawn", torch.from_numpy(drawn.astype(np.float32)))
    np.save("more.npy", np.concatenate([drawn] * 3).astype(drawn.dtype))
    out = call(capsys, "evaluate r more.npy").out                       # what is written can be read
    results = json.loads(Path("r/results.json").read_text())["log_likelihood"]
    v = torch.from_numpy(drawn.astype(np.float64))
    if "0.3" in kind: v = torch.tensor(rbm.visible.levels, dtype=torch.float64)[(v > 0).long()]
    truth = rbm.double().log_prob(v).mean().item()
    assert results["more.npy"]["exact"]["value"] == pytest.approx(truth, abs=1e-6)
    assert f"{truth:.2f}" in out
    call(capsys, "train --out r --resume --quiet")


def test_defaults_follow_from_the_unit(place, capsys):
    np.save("x.npy", kinds_of_data("poisson"))
    for kind, binarize, lr in (("poisson", "none", 0.01), ("relu", "none", 0.02),
                               ("gaussian", "none", 0.02), ("binomial(99)", "none", 0.3)):
        call(capsys, f"train x.npy --visible {kind} --out r-{kind} --hidden 2 --epochs 1 --quiet")
        options = json.loads(Path(f"r-{kind}/run.json").read_text())["options"]
        assert (options["binarize"], options["lr"]) == (binarize, lr)
    for name, x in (("shades", kinds_of_data("relu") / 9), ("states", kinds_of_data("spin"))):
        np.save("x.npy", x)
        call(capsys, f"train x.npy --visible spin --out r-{name} --hidden 2 --epochs 1 --quiet")
        options = json.loads(Path(f"r-{name}/run.json").read_text())["options"]
        assert options["binarize"] == ("threshold" if name == "shades" else "none")
        assert options["lr"] == 0.3


def test_numbers_stay_what_they_are_unless_they_are_pictures(place, capsys):
    x = kinds_of_data("poisson")
    np.save("x.npy", x)
    call(capsys, "train x.npy --visible gaussian --out r --hidden 2 --epochs 1 --lr 0.000001 --quiet")
    x = torch.from_numpy(x.astype(np.float64))
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))[:54]
    assert torch.allclose(RBM.load("r/model.safetensors").b.double(), x[order].mean(0), atol=1e-3)


def test_the_name_of_a_unit_may_be_spelt_in_other_ways(place, capsys):
    np.save("x.npy", kinds_of_data("potts(3)"))
    assert main(["train", "x.npy", "--visible", "potts( 3 )", "--out", "r", *SMALL]) == 0
    assert main(["train", "x.npy", "--visible", "potts(3)", "--out", "r", "--resume", "--quiet"]) == 0
    one_line(call(capsys, "train --visible potts(2) --out r --resume --quiet", 1).err,
             "--visible potts(2) is not what the run has, potts(3)")


def test_files_of_all_formats_give_the_same_machine(place, capsys):
    x = bits(seed=4)
    np.save("a.npy", x), np.savez("b.npz", x), write_idx("c-idx2-ubyte",
                                                         x), write_idx("d-idx2-ubyte.gz", x)
    for k, name in enumerate(("a.npy", "b.npz", "c-idx2-ubyte", "d-idx2-ubyte.gz")):
        call(capsys, f"train {name} --out r{k} --hidden 2 --epochs 1 --quiet")
    W = [RBM.load(f"r{k}/model.safetensors").W for k in range(4)]
    assert all(torch.equal(W[0], w) for w in W)


def test_resuming_a_finished_run_changes_nothing(place, capsys):
    before = tree("run")
    call(capsys, "train --out run --resume --quiet")
    assert tree("run") == before


def test_options_that_agree_may_be_repeated(place, capsys):
    call(capsys, "train bits.npy --out run --resume --hidden 3 --quiet")


@pytest.mark.parametrize("before, after, words",
                         [(True, False, "with numba, which is not installed"),
                          (False, True, "without numba"),
                                                  (True, True, ""), (False, False, "")])
def test_numba_that_comes_or_goes_is_said_in_one_line(place, capsys, monkeypatch, before, after, words):
    monkeypatch.setattr("rbmdiff.practice.runs.find_spec", lambda name: object() if before else None)
    call(capsys, "train bits.npy --out x --epochs 1 --hidden 2 --quiet")
    assert json.loads(Path("x/run.json").read_text())["numba"] is before
    monkeypatch.setattr("rbmdiff.practice.runs.find_spec", lambda name: object() if after else None)
    err = call(capsys, "train --out x --resume --quiet").err
    assert words in err and err.count("\n") == (1 if words else 0)
    assert err.startswith("rbmdiff: warning: x began" if words else "")


def test_numba_does_not_matter_in_double_precision(place, capsys, monkeypatch):
    monkeypatch.setattr("rbmdiff.practice.runs.find_spec", lambda name: object())
    call(capsys, "train bits.npy --out x --epochs 1 --hidden 2 --quiet --dtype float64")
    assert json.loads(Path("x/run.json").read_text())["numba"] is False


def test_only_what_others_need_is_public():
    assert set(rbmdiff.practice.cli.__all__) == {"main", "parser"}


def test_stale_temporary_files_are_cleared(place, capsys):
    (place / "run/checkpoint.safetensors.abc.tmp").write_bytes(b"half")
    call(capsys, "train --out run --resume --quiet")
    assert not list((place / "run").glob("*.tmp"))


def test_seed_matters_and_repeats(place, capsys):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        call(capsys, f"train bits.npy --out {name} --seed {seed} --hidden 3 --epochs 1 --quiet")
    W = {name: RBM.load(f"{name}/model.safetensors").W for name in "abc"}
    assert torch.equal(W["a"], W["b"]) and not torch.equal(W["a"], W["c"])


def test_without_a_terminal_there_is_no_bar_and_with_quiet_no_word(place, capsys):
    loud = call(capsys, "train bits.npy --out x --epochs 1 --hidden 2")
    assert loud.err == "" and "next: rbmdiff evaluate x" in loud.out
    assert call(capsys, "train bits.npy --out y --epochs 1 --hidden 2 --quiet") == ("", "")


# --- what is refused: files and folders (exit code 1)

def truncated_gzip():
    Path("t.gz").write_bytes(gzip.compress(struct.pack(">BBBBII", 0, 0, 8, 2, 100,
                                                       9) + bytes(900))[:-20])


def promising_idx(): Path("p.idx").write_bytes(struct.pack(">BBBBII", 0, 0, 8, 2, 100, 9) + bytes(10))
def below_a_file(): Path("wall").write_text("")
def not_empty(): Path("full").mkdir(), Path("full/mine.txt").write_text("precious")
def array(name, x): return lambda: np.save(name, x)
def cut(name): return lambda: Path(name).write_bytes(Path(name).read_bytes()[:-9])
def text(name, content): return lambda: Path(name).write_text(content)
def remove(name): return lambda: Path(name).unlink()
def other_shape(): write_tensors("run/checkpoint.safetensors", "training state",
                                 {**read_tensors("run/checkpoint.safetensors", "training state")[0],
                                 "model.W": torch.zeros(9, 4)},
                                 read_tensors("run/checkpoint.safetensors", "training state")[1])
def model_as_checkpoint(): shutil.copy("run/model.safetensors", "run/checkpoint.safetensors")
def nothing(): pass


def edit(**changes):
    def apply():
        run = json.loads(Path("run/run.json").read_text())
        run["options"].update(changes)
        Path("run/run.json").write_text(json.dumps(run))
    return apply


def forget(name):
    def apply():
        run = json.loads(Path("run/run.json").read_text())
        del run[name]
        Path("run/run.json").write_text(json.dumps(run))
    return apply


def spins(): np.save("s.npy", 2.0 * bits() - 1)
def not_one_hot(): np.save("p.npy", bits())
def one_colour_off():
    colours = np.eye(3, dtype=int)[np.random.default_rng(0).integers(0, 3, (40, 3))].reshape(40, 9)
    colours[0] = 0
    np.save("p.npy", colours)


REFUSED = {  # name: (what is prepared, command line, words of the message)
    "missing file": (nothing, "train gone.npy --out x", "gone.npy"),
    "not an IDX file": (text("a.idx", "hello there"), "train a.idx --out x",
                        "a.idx must not be empty, it holds a line of titles"),
    "truncated gzip": (truncated_gzip, "train t.gz --out x", "gzip"),
    "promises more than it holds": (promising_idx, "train p.idx --out x", "promises"),
    "damaged npy": (cut("bits.npy"), "train bits.npy --out x", "bits.npy"),
    "too little text as npy": (text("a.npy", "1 2 3"), "train a.npy --out x", "at least 20"),
    "one axis": (array("a.npy", bits()[0]), "train a.npy --out x", r"[N, D]"),
    "complex numbers": (array("a.npy", bits() * 1j), "train a.npy --out x", "complex"),
    "not a number": (array("a.npy", np.full((60, 9), np.nan)), "train a.npy --out x", "finite"),
    "outside the range": (array("a.npy", bits() * 7.0), "train a.npy --out x", "[0, 1]"),
    "no rows": (array("a.npy", bits()[:0]), "train a.npy --out x", "empty"),
    "too few rows": (array("a.npy", bits()[:5]), "train a.npy --out x", "at least 20"),
    "equal examples": (array("a.npy", np.ones((60, 9))), "train a.npy --out x --visible gaussian",
                       "all 54 are equal"),
    "copies of a gene": (array("a.npy", bits() + bits(seed=1)), "train a.npy --out x",
                         "whole numbers in [0, 2]: divide them"),
    "missing values": (text("a.csv", "1,0\n0,\n"), "train a.csv --out x", "without missing values"),
    "MNIST not there": (nothing, "train mnist --data-folder . --out x", "train-images"),
    "unwritable folder": (below_a_file, "train bits.npy --out wall/run", "Not a directory"),
    "existing run": (nothing, "train bits.npy --out run", "--resume"),
    "folder with other things": (not_empty, "train bits.npy --out full", "not empty"),
    "file as run": (below_a_file, "train --resume --out wall", "not a run"),
    "no such device": (nothing, "train bits.npy --out x --device warp", "--device warp"),
    "device not there": (nothing, "train bits.npy --out x --device cuda:99", "--device cuda:99"),
    "enumeration too large": (array("a.npy", bits(d=30)),
                              "train a.npy --out x --method exact --hidden 26", "at most 25"),
    "chains without pcd": (nothing, "train bits.npy --out x --method cd --chains 5",
                           "--chains has no effect with method cd"),
    "steps of an exact gradient": (nothing, "train bits.npy --out x --method exact --k 2",
                                   "--k has no effect with method exact"),
    "threshold of random bits": (nothing, "train digits --out x --binarize stochastic --threshold 0.3",
                                 "--threshold has no effect with binarize stochastic"),
    "threshold of states": (nothing, "train bits.npy --out x --threshold 0.3",
                            "--threshold has no effect: "),
    "random bits of bits": (nothing, "train bits.npy --out x --binarize stochastic",
                            "--binarize stochastic has no effect"),
    "folder of other data": (nothing, "train bits.npy --out x --data-folder .",
                             "--data-folder has no effect with data"),
    "nothing to fetch": (nothing, "train bits.npy --out x --download", "--download has an effect for"),
    "nothing to fetch again": (nothing, "train --resume --out run --download", "--download"),
    "nothing to fetch for an evaluation": (nothing, "evaluate run bits.npy --download", "--download"),
    "chains of an exact sum": (nothing, "evaluate run --chains 9", "--chains has no effect"),
    "steps of an exact sum": (nothing, "evaluate run --steps 9", "--steps has no effect"),
    "temperatures of an exact sum": (nothing, "evaluate run --temperatures 9", "--temperatures has no"),
    "seed of an exact sum": (nothing, "evaluate run --seed 9", "--seed has no effect"),
    "columns of an array": (nothing, "sample run --out a.npy --columns 3", "--columns has no effect"),
    "gaussian units, binary data": (nothing,
                                    "train bits.npy --out x --visible gaussian --binarize threshold",
                                    "--binarize"),
    "colours that are not one-hot": (not_one_hot, "train p.npy --out x --visible potts(3)",
                                     "one 1 in every 3 columns"),
    "a single row without colour": (one_colour_off, "train p.npy --out x --visible potts(3)",
                                    "p.npy must hold one 1 in every 3 columns"),
    "columns that are no whole colours": (nothing, "train bits.npy --out x --visible potts(4)",
                                          "multiple of 4"),
    "negative counts": (spins, "train s.npy --out x --visible poisson", "s.npy must hold whole numbers"),
    "more than the trials": (array("a.npy", 5 * bits()), "train a.npy --out x --visible binomial(4)",
                             "a.npy must hold only 0 or 1 or 2 or 3 or 4"),
    "grey values as counts": (nothing, "train digits --out x --visible poisson", "whole numbers"),
    "negative rectified": (spins, "train s.npy --out x --visible relu", "negative"),
    "spins for bits": (spins, "train s.npy --out x", "take spin units for -1 and 1 (--visible)"),
    "grey values as states": (nothing, "train digits --out x --binarize none",
                              "digits holds intensities, no states of bernoulli units"),
    "counts, binary data": (nothing, "train bits.npy --out x --visible poisson --binarize stochastic",
                            "--binarize"),
    "colours of another width": (array("a.npy", bits(d=4)), "evaluate run a.npy", "9 values"),
    "rate too large": (nothing, "train bits.npy --out x --lr 1e38 --epochs 9 --quiet", "learning rate"),
    "resume of nothing": (nothing, "train --resume --out gone", "not a run"),
    "resume with another option": (nothing, "train --resume --out run --lr 9", "--lr 9.0"),
    "resume with other data": (nothing, "train digits --resume --out run", "digits"),
    "resume after the data changed": (array("bits.npy", bits(seed=9)), "train --resume --out run",
                                      "fingerprint"),
    "checkpoint of another shape": (other_shape, "train --resume --out run", "[9, 4]"),
    "damaged safetensors": (cut("run/checkpoint.safetensors"), "train --resume --out run", "damaged"),
    "model as checkpoint": (model_as_checkpoint, "train --resume --out run", "training state"),
    "checkpoint lost": (remove("run/checkpoint.safetensors"), "train --resume --out run",
                        "no such file"),
    "JSON from elsewhere": (text("run/run.json", '{"name": "something", "version": 3}'),
                            "train --resume --out run", "not written by rbmdiff"),
    "list as JSON": (text("run/run.json", "[1, 2]"), "evaluate run", "not written by rbmdiff"),
    "damaged JSON": (text("run/run.json", '{"kind": "rbmdiff run", '), "evaluate run", "damaged"),
    "run of an earlier version": (forget("format"), "train --resume --out run", "format 1"),
    "machine of an earlier version": (forget("format"), "evaluate run", "format 1"),
    "options missing": (text("run/run.json",
                             '{"kind": "rbmdiff run", "format": 3, "options": {"lr": 1}}'),
                        "sample run", "lacks the options"),
    "list of options": (text("run/run.json", '{"kind": "rbmdiff run", "format": 3, "options": [1]}'),
                        "sample run", "lacks the options"),
    "options of a stranger": (edit(visible="quark"), "train --resume --out run", "quark"),
    "options of another machine": (edit(visible="relu"), "train --resume --out run", "model.log_sigma"),
    "sample without a checkpoint": (remove("run/checkpoint.safetensors"), "sample run", "no such file"),
    "damaged checkpoint": (cut("run/checkpoint.safetensors"), "sample run", "damaged"),
    "model as checkpoint, sampled": (model_as_checkpoint, "sample run", "must hold a training state"),
    "scale lost": (forget("scale"), "evaluate run", "damaged: 'scale'"),
    "fewer epochs than done": (nothing, "train --resume --out run --epochs 1", "at least 2"),
    "overwriting what is no run": (not_empty, "train bits.npy --out full --overwrite", "not a run"),
    "overwriting a stranger's run": (text("run/run.json", "{}"), "train bits.npy --out run --overwrite",
                                     "not a run"),
    "run of another width": (array("a.npy", bits(d=4)), "train a.npy --resume --out run", "fingerprint"),
    "unknown kind of picture": (nothing, "sample run --out a.gif", ".npy"),
    "sample into nowhere": (nothing, "sample run --out gone/a.png", "no such folder: gone"),
    "evaluate on another width": (array("a.npy", bits(d=4)), "evaluate run a.npy", "9 values"),
    "evaluate without data": (remove("bits.npy"), "evaluate run", "bits.npy"),
    "evaluate nothing": (nothing, "evaluate gone", "not a run")}


def one_line(err, words):
    assert err.count("\n") == 1 and err.startswith("rbmdiff"), err
    assert "Traceback" not in err and words in err, err


@pytest.mark.parametrize("name", REFUSED)
def test_refused(place, capsys, name):
    prepare, line, words = REFUSED[name]
    prepare()
    before = tree(".")
    shown = call(capsys, line, 1)
    one_line(shown.err, words)
    assert shown.out == ""
    # nothing is lost, nothing is left
    if name != "rate too large": assert tree(".") == before


# --- wrong usage (exit code 2)

WRONG = {
    "no command": ("", "required"), "unknown command": ("dream", "dream"),
    "no data": ("train --out x", "needs data"),
    "to and fro": ("train --out x --resume --overwrite", "take one"),
    "no folder": ("train digits", "--out"),
    "unknown option": ("train digits --out x --speed 3", "--speed"),
    "k of zero": ("train digits --out x --k 0", "--k"),
    "fractional k": ("train digits --out x --k 1.5", "--k"),
    "no hidden units": ("train digits --out x --hidden 0", "--hidden"),
    "no epochs": ("train digits --out x --epochs 0", "--epochs"),
    "negative batch": ("train digits --out x --batch-size -1", "--batch-size"),
    "unknown unit": ("train digits --out x --visible quark", "--visible"),
    "unit without its number": ("train digits --out x --visible potts", "--visible"),
    "unit with a wrong number": ("train digits --out x --visible potts(1)", "at least 2"),
    "unit with a bracket open": ("train digits --out x --visible potts(3", "--visible"),
    "unknown method": ("train digits --out x --method magic", "magic"),
    "half precision": ("train digits --out x --dtype float16", "float16"),
    "rate of zero": ("train digits --out x --lr 0", "--lr"),
    "rate that is no number": ("train digits --out x --lr fast", "--lr"),
    "rate nan": ("train digits --out x --lr nan", "--lr"),
    "momentum of one": ("train digits --out x --momentum 1", "--momentum"),
    "average of one": ("train digits --out x --average 1", "--average"),
    "negative decay": ("train digits --out x --weight-decay -1", "--weight-decay"),
    "threshold of one": ("train digits --out x --threshold 1", "--threshold"),
    "one checkpoint": ("train digits --out x --checkpoints 1", "--checkpoints"),
    "all checkpoints": ("train digits --out x --checkpoints all", "--checkpoints"),
    "negative seed": ("train digits --out x --seed -1", "--seed"),
    "no samples": ("sample run --n 0", "--n"),
    "one annealed chain": ("evaluate run --chains 1", "--chains"),
    "no temperatures": ("evaluate run --temperatures 0", "--temperatures"),
    "sample of nothing": ("sample", "RUN")}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_usage(tmp_path, monkeypatch, capsys, name):
    line, words = WRONG[name]
    monkeypatch.chdir(tmp_path)
    one_line(call(capsys, line, 2).err, words)
    assert list(tmp_path.iterdir()) == []


# --- what people brought (processes of their own where it matters)

COMMAND = [str(Path(sys.executable).with_name("rbmdiff"))]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}


def shell(line, cwd, command=COMMAND, **kwargs):
    """A command line in a process of its own."""
    return subprocess.run([*command, *line.split()], cwd=cwd, capture_output=True, text=True,
                          env=ENVIRONMENT, **kwargs)


def results(run="run"): return json.loads(Path(run, "results.json").read_text())


@pytest.mark.parametrize("command", [COMMAND, [sys.executable, "-m", "rbmdiff"],
                                     [sys.executable, "-m", "rbmdiff.practice.cli"]])
def test_every_way_to_the_command_ends_with_the_code_and_one_line(tmp_path, command):
    done = shell("train gone.npy --out x", tmp_path, command)
    assert done.returncode == 1 and done.stdout == ""
    one_line(done.stderr, "gone.npy")


def test_help_loads_no_library_and_takes_no_time(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "evaluate" in shell("--help", tmp_path).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.7
    code = "import sys, rbmdiff.practice.cli as c; c.main(['--help']); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT).returncode == 0


def test_interrupted_while_libraries_load(tmp_path):
    """Ctrl-C at some moments of the imports: one line, 130, nothing written."""
    code = ("import os, sys, threading, rbmdiff.practice.cli as c; seconds = float(sys.argv.pop(1)); "
            "threading.Timer(seconds, os.kill, (os.getpid(), 2)).start(); sys.exit(c.main())")
    for seconds in (0.1, 0.3, 0.6):
        line = f"{seconds} train digits --out run --epochs 9000"
        done = shell(line, tmp_path, [sys.executable, "-c", code])
        assert done.returncode == 130 and done.stderr == "rbmdiff: interrupted\n", (seconds, done.stderr)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("d", [1000, 571, 30, 16])
def test_data_that_are_no_image_are_trained_and_drawn(place, capsys, d):
    np.save("wide.npy", (np.random.default_rng(0).random((100, d)) < 0.05).astype(np.uint8))
    call(capsys, "train wide.npy --out wide --hidden 8 --epochs 2 --quiet")
    width, height = struct.unpack(">II", Path("wide/samples.png").read_bytes()[16:24])
    assert height > 150 and width > 900


def test_a_picture_that_cannot_be_drawn_is_a_warning(place, capsys, monkeypatch):
    def broken(*args, **kwargs): raise ValueError("cannot write\nempty image")
    monkeypatch.setattr("rbmdiff.practice.runs.image_grid", broken)
    err = call(capsys, "train bits.npy --out x --epochs 2 --hidden 2 --look 1 --quiet").err
    words = "rbmdiff: warning: samples.png is not drawn: cannot write empty image"
    assert set(err.splitlines()) == {words}
    assert Path("x/model.safetensors").exists() and not Path("x/samples.png").exists()
    one_line(call(capsys, "sample x --out a.png", 1).err, "cannot write empty image")    # asked for


def test_shapes_of_images_are_kept(place, capsys):
    np.save("strip.npy", np.random.default_rng(0).integers(0, 2, (60, 2, 7)))
    call(capsys, "train strip.npy --out x --epochs 1 --hidden 2 --quiet")
    assert json.loads(Path("x/run.json").read_text())["shape"] == [2, 7]
    for columns in (2, 10):
        call(capsys, f"sample x --n 10 --steps 1 --out {columns}.png --columns {columns}")
    tall, wide = (struct.unpack(">II", Path(f"{k}.png").read_bytes()[16:24]) for k in (2, 10))
    assert wide[0] / wide[1] > 10 > tall[0] / tall[1]


@pytest.mark.parametrize("kind", ["i1", "f8", "i8"])
def test_a_spin_machine_takes_spins_and_bits_from_any_file(place, capsys, kind):
    x = np.random.default_rng(0).choice([-1, 1], (200, 6)).astype(kind)
    np.save("pm.npy", x), np.savetxt("pm.csv", x, "%d", ","), np.save("bits01.npy", (x + 1) // 2)
    W = []
    for name in ("pm.npy", "pm.csv", "bits01.npy"):
        call(capsys, f"train {name} --visible spin --out r-{name} --hidden 4 --epochs 3 --quiet")
        W.append(RBM.load(f"r-{name}/model.safetensors").W)
    assert torch.equal(W[0], W[1]) and torch.equal(W[0], W[2])
    assert set(np.unique(np.load("pm.npy"))) == {-1, 1}


def test_whole_numbers_are_measured_like_floats(place, capsys):
    y = np.random.default_rng(1).integers(0, 100, (300, 6))
    np.save("gi.npy", y), np.save("gf.npy", y.astype(float))
    found = []
    for name in ("gi", "gf"):
        call(capsys, f"train {name}.npy --visible gaussian --out {name} --hidden 4 --epochs 5 --quiet")
        call(capsys, f"evaluate {name} --quiet")
        found.append(results(name)["log_likelihood"]["test"]["exact"]["value"])
    assert found[0] == found[1] == pytest.approx(-28.44, abs=0.01)


@pytest.mark.parametrize("unit", ["gaussian", "relu"])
def test_the_unit_of_measurement_does_not_matter(place, capsys, unit):
    """LL(s x) = LL(x) - D log s, and the same for units that know nothing of each other."""
    r = np.random.default_rng(0)
    x = r.normal(size=(400, 6)) @ r.normal(size=(6, 6))
    if unit == "relu": x = np.maximum(x, 0)
    s = np.array([1e-2, 1e3, 1, 1, 7.0, 1e-6])
    np.save("one.npy", x), np.save("other.npy", x * s + (1e4 * s if unit == "gaussian" else 0))
    found = []
    for name in ("one", "other"):
        call(capsys, f"train {name}.npy --visible {unit} --out {name} --hidden 4 --epochs 5 --quiet "
                     "--dtype float64")
        call(capsys, f"evaluate {name} --quiet")
        said = results(name)
        both = said["log_likelihood"]["test"]["exact"], said["independent"]["test"]
        found.append([e["value"] for e in both])
        v = torch.from_numpy(np.load(f"{name}.npy"))     # the file holds the machine for such data
        order = torch.randperm(400, generator=torch.Generator().manual_seed(0))[360:]
        with torch.no_grad(): own = RBM.load(f"{name}/model.safetensors").log_prob(v[order]).mean()
        assert own.item() == pytest.approx(both[0]["value"], abs=1e-5)
    for a, b in zip(*found): assert b - a == pytest.approx(-np.log(s).sum(), abs=1e-7)
    assert abs(np.log(s).sum()) > 2


def test_values_that_never_change_keep_their_unit_and_width(place, capsys):
    x = np.random.default_rng(0).normal(size=(100, 4))
    x[:, 2] = 7.5
    np.save("x.npy", x)
    call(capsys, "train x.npy --visible gaussian --out x --hidden 2 --epochs 30 --lr 0.1 --quiet")
    rbm = RBM.load("x/model.safetensors")
    assert rbm.sigma[2].item() == pytest.approx(1, abs=1e-6)
    assert rbm.b[2].item() == pytest.approx(7.5, abs=0.2)
    call(capsys, "evaluate x")


def test_rows_that_are_judged_are_drawn_from_all(place, capsys):
    """A sorted file: its first 10,000 rows are of one class."""
    r = np.random.default_rng(0)
    a, b = r.random((9000, 8)) < 0.02, r.random((9000, 8)) < 0.5
    np.savez("sorted.npz", train=np.concatenate([a, b]).astype(np.uint8), test=b[:99].astype(np.uint8))
    call(capsys, "train sorted.npz --out x --hidden 4 --epochs 2 --quiet")
    call(capsys, "evaluate x --quiet")
    entry = results("x")["log_likelihood"]["train"]["exact"]
    v = torch.from_numpy(np.load("sorted.npz")["train"]).double()
    with torch.no_grad(): log_p = RBM.load("x/model.safetensors").double().log_prob(v)
    error = log_p.std().item() * (1 / 10_000 - 1 / 18_000) ** 0.5       # without replacement
    assert abs(entry["value"] - log_p.mean().item()) < 4 * error and entry["n"] == 10_000
    assert abs(log_p[:10_000].mean().item() - log_p.mean().item()) > 20 * error        # control


def test_two_seeds_are_tested_on_the_same_rows(place):
    tests = [runs.prepare(f"s{seed}", {"data": "bits.npy", "seed": seed}).held_out for seed in (0, 1)]
    assert torch.equal(*tests)


def test_one_example_has_a_likelihood_without_an_error(place, capsys):
    np.save("one.npy", bits()[:1])
    out = call(capsys, "evaluate run one.npy").out
    entry = results()["log_likelihood"]["one.npy"]["exact"]
    v = torch.from_numpy(bits()[:1]).double()
    with torch.no_grad(): truth = RBM.load("run/model.safetensors").double().log_prob(v).item()
    assert entry["value"] == pytest.approx(truth, abs=1e-9) and entry["stderr_examples"] is None
    assert f"one.npy log-likelihood {truth:.2f}, nats per example, exact (1 example)" in out


def test_a_folder_of_the_name_of_a_data_set_changes_nothing(place, capsys):
    Path("digits").mkdir()
    call(capsys, "train digits --out second --epochs 1 --quiet")
    options = json.loads(Path("second/run.json").read_text())["options"]
    assert options["hidden"] == 16 and options["data"] == "digits"
    one_line(call(capsys, "train ./digits --out third", 1).err, "holds no data that can be read")


def test_a_run_finds_its_data_by_their_content(place, capsys, monkeypatch):
    before = call(capsys, "evaluate run").out
    Path("project").mkdir()
    for name in ("bits.npy", "run"): Path(name).rename(f"project/{name}")
    Path("project").rename("elsewhere")
    monkeypatch.chdir("elsewhere")
    assert call(capsys, "evaluate run").out == before                   # beside the run
    Path("bits.npy").rename("renamed.npy")
    one_line(call(capsys, "evaluate run", 1).err, "name the file where they are now")
    assert call(capsys, "evaluate run renamed.npy").out == before
    one_line(call(capsys, "train --resume --out run --epochs 3", 1).err, "no longer at")
    call(capsys, "train renamed.npy --resume --out run --epochs 60 --quiet")
    np.save("bits.npy", bits(seed=5))                                   # the old name, other data
    assert call(capsys, "evaluate run").out != before
    assert json.loads(Path("run/run.json").read_text())["options"]["data"].endswith("renamed.npy")
    err = call(capsys, "train bits.npy --resume --out run", 1).err
    one_line(err, "bits.npy holds other data than run")


def test_a_run_is_overwritten_only_when_told(place, capsys):
    call(capsys, "evaluate run --quiet")
    call(capsys, "train bits.npy --out run --overwrite --hidden 2 --epochs 1 --quiet")
    assert RBM.load("run/model.safetensors").W.shape == (9, 2) and not Path("run/results.json").exists()
    assert len(Path("run/log.jsonl").read_text().splitlines()) == 1
    forget("format")()
    call(capsys, "train bits.npy --out run --overwrite --hidden 2 --epochs 1 --quiet")


def test_a_run_is_prolonged(place, capsys):
    call(capsys, "train --resume --out run --epochs 5 --look 3 --quiet")
    lines = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5]
    options = json.loads(Path("run/run.json").read_text())["options"]
    assert (options["epochs"], options["look"], options["hidden"]) == (5, 3, 3)
    _, meta = read_tensors("run/checkpoint.safetensors", "training state")
    assert meta["groups"][0]["lr"] == 0 and meta["epoch"] == 5
    call(capsys, "train --resume --out run --epochs 5 --quiet")


def kept(run):
    """The counts of updates at which a run kept its machine."""
    tensors, _ = read_tensors(Path(run) / "checkpoint.safetensors", "training state")
    return sorted({int(name.split(".")[1]) for name in tensors if name.startswith("kept.")})


def test_a_run_keeps_machines_along_the_way_and_is_judged_by_them(place, capsys, monkeypatch):
    line = "train bits.npy --out way --hidden 3 --epochs 8 --batch-size 9 --quiet --checkpoints"
    call(capsys, f"{line} 6")
    assert kept("way") == spaced(48, 6)[:-1] == [0, 1, 4, 9, 21] and kept("run") == []
    assert "--checkpoints 7 is not what the run has, 6" in call(
        capsys, "train --out way --resume --checkpoints 7", 1).err
    call(capsys, "train --out way --resume --epochs 30 --quiet")
    assert kept("way") == sorted({*kept("way"), *spaced(48, 6)[:-1]}) and max(kept("way")) > 21
    assert "checkpoints" not in call(capsys, "evaluate way").out
    monkeypatch.setattr("rbmdiff.practice.runs.EXACT", 1)
    out = call(capsys, "evaluate way --chains 50 --temperatures 100 --steps 50").out
    with torch.no_grad(): truth = RBM.load("way/model.safetensors").double().log_partition().item()
    z = results("way")["log_z"]["checkpoints"]
    assert abs(z["value"] - truth) < 4 * z["stderr"] and z["stderr"] < 0.05 and z["n"] == 500
    found = results("way")
    assert found["notes"] == [] and len(found["interval"]["test"]) == 2
    seen = found["log_likelihood"]["test"]["checkpoints"]["value"]
    assert f"log Z {z['value']:.2f} ± {z['stderr']:.2f}, checkpoints, " in out
    assert re.search(rf"test log-likelihood {seen:.2f} ± .* nats per example, checkpoints \(6 exam", out)
    assert out.count("test log-likelihood") == 2 and out.count(", AIS and reverse AIS (6 exam") == 1


def test_a_run_of_before_there_were_checkpoints_goes_on(place, capsys):
    content = json.loads(Path("run/run.json").read_text())
    del content["options"]["checkpoints"]
    Path("run/run.json").write_text(json.dumps(content))
    call(capsys, "train --out run --resume --epochs 3 --quiet")
    assert json.loads(Path("run/run.json").read_text())["options"]["checkpoints"] == 0
    call(capsys, "evaluate run --quiet")


def test_a_run_is_used_before_its_end(place, capsys, monkeypatch):
    original = runs._append_log

    def stop(path, record):
        original(path, record)
        if record.epoch == 2: raise KeyboardInterrupt
    monkeypatch.setattr(runs, "_append_log", stop)
    call(capsys, "train bits.npy --out half --hidden 3 --epochs 4 --quiet", 130)
    for line in ("sample half --n 5 --steps 3 --out s.npy", "evaluate half"):
        shown = call(capsys, line)
        assert shown.err == "rbmdiff: warning: half has 1 of 4 epochs\n" and shown.out
    assert results("half")["epochs"] == 1 and not Path("half/model.safetensors").exists()
    words = "a folder: the machine of a run is model.safetensors in it"
    with pytest.raises(FileNotFoundError, match=words): RBM.load("half")


@pytest.mark.parametrize("error, words", [
    (MemoryError(), "error: out of memory"), (RuntimeError("a\nb"), "error: RuntimeError: a b"),
    (safetensors.SafetensorError("disk"), "error: SafetensorError: disk"),
    (KeyError("x"), "error: KeyError: 'x'"), (OSError(28, "No space left on device"), "No space left"),
    (AssertionError(), "error: AssertionError"), (RecursionError("deep"), "RecursionError: deep")])
def test_every_failure_is_one_line(place, capsys, monkeypatch, error, words):
    def fail(*args, **kwargs): raise error
    monkeypatch.setattr(runs, "prepare", fail)
    one_line(call(capsys, "train bits.npy --out x", 1).err, words)


@pytest.mark.parametrize("size", [1_000, 20_000])
def test_a_full_disk_is_one_line(place, size):
    np.save("b64.npy", bits(400, 64))

    def full(): resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    done = shell("train b64.npy --out fs --hidden 40 --epochs 4", place, preexec_fn=full)
    assert done.returncode == 1 and done.stdout == ""
    one_line(done.stderr, "File too large")
    assert not list(Path("fs").glob("*.tmp")) and not Path("fs/lock").exists()


def test_a_small_disk(place):
    """A disk of 200 kB: a few epochs fit, the rest does not."""
    Path("disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "none", "disk"]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount")
    try:
        np.save("b64.npy", bits(400, 64))
        done = shell("train b64.npy --out disk/run --hidden 300 --epochs 4", place)
        assert done.returncode == 1 and done.stdout == ""
        one_line(done.stderr, "disk/run")
    finally: subprocess.run(["umount", "disk"], check=True)


def test_output_that_cannot_be_written(place):
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "evaluate", "run"], stdout=full, stderr=subprocess.PIPE,
                              text=True, env=ENVIRONMENT)
    assert done.returncode == 1
    one_line(done.stderr, "No space left")


def test_two_processes_in_one_folder(place, capsys):
    """A running run is not resumed, not prolonged, not overwritten, not begun again, and goes on."""
    command = [*COMMAND, *"train digits --out two --epochs 100000 --quiet".split()]
    start = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    log = Path("two/log.jsonl")
    try:
        while start.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") > 1):
            time.sleep(0.01)
        busy = f"two is in use by process {start.pid} on {socket.gethostname()}"
        for line, words in (("train --resume --out two", busy),
                            ("train digits --out two", "holds a run"),
                            ("train --resume --out two --epochs 400000", busy),
                            ("train digits --out two --overwrite", busy)):
            one_line(call(capsys, line, 1).err, words)
        before = log.read_bytes().count(b"\n")
        time.sleep(0.5)
        assert start.poll() is None
    finally:
        start.send_signal(signal.SIGINT)
        said = start.communicate(timeout=60)[1]
    assert start.returncode == 130, said
    one_line(said, "go on with: rbmdiff train --out two --resume")
    epochs = [json.loads(line)["epoch"] for line in log.read_text().splitlines()]
    assert epochs == list(range(1, len(epochs) + 1)) and len(epochs) > before
    assert not Path("two/lock").exists()


def test_two_fresh_starts_in_one_folder(place):
    line = "train digits --out race --epochs 30 --quiet"
    command = [*COMMAND, *line.split()]
    both = [subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
            for _ in range(2)]
    said = [process.communicate(timeout=300)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1], said
    one_line("".join(said), "race")
    assert Path("race/log.jsonl").read_bytes().count(b"\n") == 30

