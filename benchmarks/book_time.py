"""Seconds of `make test` and `make book` in a fresh clone, environment included, and the slowest
chapters.

    python3.11 benchmarks/book_time.py [--out FILE]

Needs what the two commands need: Python 3.11, make, git and a package index.
"""
import json
import os
from pathlib import Path
import subprocess
import tempfile
import time

from record import RESULTS, arguments, write

ROOT = Path(__file__).resolve().parents[1]


def timed(command, folder):
    """Seconds that `command` takes in `folder`; stops if it fails."""
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdin=subprocess.DEVNULL)
    return round(time.perf_counter() - start, 1)


def main():
    parser = arguments(__doc__, RESULTS / "book_time.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "rbmdiff"
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        seconds = {"make test, cold": timed(["make", "test"], clone),
                   "make book": timed(["make", "book"], clone),
                   "make book, again": timed(["make", "book"], clone)}
        subprocess.run(["make", "clean"], cwd=clone, check=True, stdout=subprocess.DEVNULL)
        seconds["make book, cold"] = timed(["make", "book"], clone)
        assert not subprocess.check_output(["git", "status", "--porcelain"],
                                           cwd=clone), "the tree is not clean"
        chapters = json.loads((clone / "book/_build/timings.json").read_text())["chapters"]
    slowest = dict(sorted(chapters.items(), key=lambda item: -item[1])[:3])
    results = {"command": "python3.11 benchmarks/book_time.py", "cpus": os.cpu_count(),
               "seconds": seconds, "slowest chapters": slowest}
    write(args.out, results)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
