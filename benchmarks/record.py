"""What every script here shares: its common options, what is recorded of a run, and the file of results.
"""
import argparse
import importlib.metadata
import json
from pathlib import Path
import platform
import shlex
import sys
import time

import rbmdiff

RESULTS = Path(__file__).parent / "results"


def arguments(doc: str, out: Path | None, threads: int | None = None) -> argparse.ArgumentParser:
    """A parser with `--out` and, where a number of `threads` is given, `--threads`; `doc` is shown whole
    by `--help`.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=out,
                        help=f"where to write the results (default {out.name if out else None})")
    if threads is not None:
        parser.add_argument("--threads", type=int, default=threads,
                            help=f"threads of PyTorch (default {threads})")
    return parser


def command(*without: str) -> str:
    """The command line that was given, but for the words `without`."""
    words = [word for word in sys.argv[1:] if word not in without]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python, PyTorch, `packages` as far as they are installed, and rbmdiff."""
    found = {"python": platform.python_version()}
    for name in ("torch", *packages):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | {"rbmdiff": rbmdiff.__version__}


def header(unit: str, *packages: str, without: tuple[str, ...] = ()) -> dict:
    """The first entries of a file of results: command, unit of the numbers, versions."""
    return {"command": command(*without), "unit": unit, "versions": versions(*packages)}


def write(path: Path, result: dict) -> None:
    """Write `result` as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1) + "\n"
    rbmdiff.foundations.core.replace_file(path, lambda temporary: Path(temporary).write_text(text))


def shortest(run, rounds: int) -> float:
    """Milliseconds of the shortest of `rounds` calls of `run`, after one that does not count."""
    return 1e3 * interleaved({"": run}, rounds)[""]


def interleaved(ways: dict, rounds: int) -> dict[str, float]:
    """Seconds of the shortest of `rounds` calls of each of the `ways`, in turns; the first turn does not
    count.
    """
    found = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            found[name].append(time.perf_counter() - start)
    return {name: min(seconds[1:]) for name, seconds in found.items()}
