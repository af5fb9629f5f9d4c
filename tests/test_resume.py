"""Training killed at random moments, or interrupted by Ctrl-C, ends where a whole run ends, bit by bit.

Importing PyTorch takes longer than the training here. One process imports all that is needed and forks a
child for every start; each child is a process of its own and is killed by SIGKILL. Ctrl-C is tested on
the installed command.
"""
import json
import os
from pathlib import Path
import random
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch

from rbmdiff.foundations.core import read_tensors

KILLS = int(os.environ.get("RBMDIFF_KILLS", "20"))
# the last kill leaves room, for a killer that gets no processor
EPOCHS, LAST, SEED = 8 * KILLS, 6 * KILLS, 2024
TRAIN = (f"train digits --out RUN --hidden 8 --epochs {EPOCHS} --batch-size 50 --look 50 "
         "--binarize stochastic --checkpoints 16 --quiet")
LAUNCHER = """
import json, os, sys
from rbmdiff.practice.cli import main
main("train digits --out warm --hidden 2 --epochs 1 --quiet".split())
for line in sys.stdin:
    pid = os.fork()
    if pid == 0: os._exit(main(json.loads(line)))
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
"""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}


class Launcher:
    """Starts of the command line, each a fresh process."""

    def __init__(self, folder):
        self.folder = folder
        self.process = subprocess.Popen([sys.executable, "-c", LAUNCHER], cwd=folder, env=ENVIRONMENT,
                                        text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def start(self, line):
        """Begin `line`; the process id."""
        print(json.dumps(shlex.split(line)), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def wait(self):
        """Wait for the end of what was started: its exit code, or minus the signal that ended it."""
        return os.waitstatus_to_exitcode(int(self.process.stdout.readline()))

    def close(self):
        self.process.stdin.close(), self.process.stdout.close(), self.process.wait(120)


@pytest.fixture(scope="module")
def launcher(tmp_path_factory):
    it = Launcher(tmp_path_factory.mktemp("resume"))
    yield it
    it.close()


@pytest.fixture(scope="module")
def whole(launcher):
    """An uninterrupted run, and the seconds that it took."""
    start = time.perf_counter()
    launcher.start(TRAIN.replace("RUN", "whole"))
    assert launcher.wait() == 0
    return launcher.folder / "whole", time.perf_counter() - start


def epochs(run):
    """Lines of the log that are whole."""
    path = run / "log.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def content(run):
    """All that must be equal in two runs: tensors of checkpoint and model, and the log without times."""
    checkpoint, _ = read_tensors(run / "checkpoint.safetensors", "training state")
    model, _ = read_tensors(run / "model.safetensors", "RBM")
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return checkpoint, model, [{k: v for k, v in line.items() if k != "seconds"} for line in log]


def assert_equal(run, whole):
    (a, b, log), (c, d, reference) = content(run), content(whole)
    for ours, theirs in ((a, c), (b, d)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert log == reference and [line["epoch"] for line in log] == list(range(1, EPOCHS + 1))
    assert not list(run.glob("*.tmp")) and not (run / "lock").exists()


def await_epoch(run, target, pid):
    """Return when the log has reached `target`, or when the process has ended."""
    while epochs(run) < target and alive(pid): time.sleep(0.0005)


def alive(pid):
    """Whether the process runs: it has neither ended nor been collected by its parent."""
    try: return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError): return False


def await_moment(run, epoch, seconds):
    """Wait for `seconds`, less if the log has reached `epoch` by then: a busy machine runs unevenly."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end and epochs(run) < epoch: time.sleep(0.0005)


@pytest.mark.skipif(not hasattr(os, "fork") or not Path("/proc").exists(), reason="needs fork and /proc")
def test_killed_at_random_moments_ends_bit_identical(launcher, whole):
    reference, seconds = whole
    rng, run, hits = random.Random(SEED), launcher.folder / "killed", []
    for _ in range(KILLS):
        # 0 more: at the start, or in its first epoch
        target = min(epochs(run) + rng.randrange(LAST // KILLS), LAST)
        resumable = (run / "run.json").exists()
        again = "train --out killed --resume --quiet"
        pid = launcher.start(again if resumable else TRAIN.replace("RUN", "killed"))
        await_epoch(run, target, pid)
        # anywhere in about three epochs
        delay = rng.random() * 3 * seconds / EPOCHS
        await_moment(run, min(epochs(run) + LAST // KILLS, LAST + 10), delay)
        assert alive(pid), f"the run ended before it was killed, {epochs(run)} epochs, target {target}"
        os.kill(pid, signal.SIGKILL)
        hits.append((epochs(run), round(1000 * delay, 1), launcher.wait()))
    print(f"seed {SEED}, (epochs in the log, ms after the target, exit) of each kill: {hits}")
    assert all(code == -signal.SIGKILL for *_, code in hits) and len(hits) == KILLS
    assert sum(epoch > 0 for epoch, *_ in hits) >= KILLS - 3
    assert len({epoch for epoch, *_ in hits}) > KILLS // 2
    assert not (run / "model.safetensors").exists()
    launcher.start("train --out killed --resume --quiet")
    assert launcher.wait() == 0
    assert_equal(run, reference)


def test_another_seed_ends_elsewhere(launcher, whole):
    """The control: the comparison can fail."""
    launcher.start(TRAIN.replace("RUN", "other") + " --seed 1")
    assert launcher.wait() == 0
    with pytest.raises(AssertionError): assert_equal(launcher.folder / "other", whole[0])


def heed_ctrl_c():
    """A shell's background jobs, these tests among them, may be told to ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_ends_with_a_checkpoint_and_says_how_to_go_on(launcher, whole):
    run, command = launcher.folder / "stopped", Path(sys.executable).with_name("rbmdiff")
    process = subprocess.Popen([command, *shlex.split(TRAIN.replace("RUN", "stopped"))],
                               cwd=launcher.folder, env=ENVIRONMENT, preexec_fn=heed_ctrl_c,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    await_epoch(run, 5, process.pid)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130 and out == "" and err.count("\n") == 1, err
    saved = read_tensors(run / "checkpoint.safetensors", "training state")[1]["epoch"]
    then = "go on with: rbmdiff train --out stopped --resume"
    said = int(re.search(rf"interrupted after epoch (\d+) of {EPOCHS}; {then}$", err)[1])
    # 1: interrupted just after the save
    assert 4 <= saved < EPOCHS and saved - said in (0, 1)
    launcher.start(err.split("go on with: rbmdiff ")[1].strip() + " --quiet")
    assert launcher.wait() == 0
    assert_equal(run, whole[0])
