"""Build the book: every notebook executed, pages rendered by Jupyter Book, plain notebooks beside them.

Outputs are kept in book/_build/executed, and used again while the code of the chapter, the package, the
stored results and the versions stay as they are. `--execute` stops after the notebooks; `--incremental`
keeps the pages too, and renders only what changed. The sources are never written to: executed copies are
staged in book/_build/source and rendered from there.
"""
import argparse
from concurrent.futures import ThreadPoolExecutor
import copy
from functools import cache
import hashlib
import json
import os
from pathlib import Path
import platform
import re
import shutil
import subprocess
import sys
import time

from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
import nbformat
import yaml

BOOK = Path(__file__).resolve().parent
ROOT, BUILD = BOOK.parent, BOOK / "_build"
STAGE, HTML = BUILD / "source", BUILD / "html"
sys.path.insert(0, str(BOOK / "_ext"))
from forms import figure, for_book, for_jupyter, source
from labels import collect
from names import citations, names
import pages

INSTALL = """\
# Put the wheel of the package, which the page offers, beside this notebook; once the package is
# published, that is not needed. fastcore has @patch, which adds a method to a class in a later cell.
%pip install -q --find-links . --find-links .. rbmdiff fastcore"""
KERNEL = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "module://matplotlib_inline.backend_inline",
          "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--execute", action="store_true", help="run the notebooks, render nothing")
    parser.add_argument("--incremental", action="store_true", help="render only what changed")
    options = parser.parse_args()
    if not options.incremental:
        for place in (STAGE, HTML, BUILD / ".doctrees"):
            shutil.rmtree(place, ignore_errors=True)
    os.environ.update(KERNEL)
    start, chapters = time.perf_counter(), contents()
    notebooks = {c: json.loads((ROOT / f"nbs/{c}.ipynb").read_text("utf8")) for c in chapters}
    stop_on(collect(ROOT, chapters)[1])
    executed = execute_all(notebooks)
    stop_on([problem for c in chapters for problem in output_problems(c, executed[c])])
    timings = {c: executed[c]["seconds"] for c in chapters}
    if options.execute: return
    stage(notebooks, executed, timings)
    render()
    write_notebooks(notebooks, executed)
    report(timings, time.perf_counter() - start)


def contents() -> list[str]:
    """The chapters of _toc.yml, in order: the entries that are notebooks."""
    toc = yaml.safe_load((BOOK / "_toc.yml").read_text("utf8"))
    files = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    return [f for f in files if not (BOOK / f"{f}.md").is_file() and not f.startswith("api/")]


def chapter_numbers() -> dict[str, str]:
    """The number of every chapter in a numbered part of _toc.yml, as on the pages."""
    toc = yaml.safe_load((BOOK / "_toc.yml").read_text("utf8"))
    parts = [part for part in toc["parts"] if part.get("numbered")]
    files = [entry["file"] for part in parts for entry in part["chapters"]]
    return {file: str(n) for n, file in enumerate(files, 1)}


def stop_on(problems: list[str]) -> None:
    """End the build with a list of what is wrong, if anything is."""
    if problems: raise SystemExit("\n".join(f"ERROR: {p}" for p in problems))


def execute_all(notebooks: dict[str, dict]) -> dict[str, dict]:
    """Outputs and seconds of every chapter, as many at once as there are cores."""
    # in the form of the book before the threads start: Python 3.11 counts the depth of a syntax tree for
    # all threads at once, so that two that read code at the same time can fail
    pages = [nbformat.from_dict(for_book(nb)) for nb in notebooks.values()]
    with ThreadPoolExecutor(min(os.cpu_count(), 8)) as pool:
        return dict(zip(notebooks, pool.map(execute, notebooks, notebooks.values(), pages)))


def execute(chapter: str, nb: dict, node: nbformat.NotebookNode) -> dict:
    """Outputs and seconds of one chapter, from the last run if nothing that they rest on has changed.

    `node` is the chapter in the form of the book; its outputs are replaced.
    """
    stored, key = BUILD / f"executed/{chapter}.json", code_key(nb)
    if stored.is_file() and (last := json.loads(stored.read_text("utf8")))["key"] == key: return last
    start, error = time.perf_counter(), ""
    folder = {"metadata": {"path": str((ROOT / "nbs" / chapter).parent)}}
    client = NotebookClient(node, kernel_name="python3", timeout=600,
                            skip_cells_with_tag="skip-execution", resources=folder)
    try: client.execute()
    except (CellExecutionError, CellTimeoutError,
            # without terminal colours
            DeadKernelError) as failure: error = re.sub(r"\x1b\[[0-9;]*m", "", str(failure))
    seconds = round(time.perf_counter() - start, 1)
    print(f"{seconds:8.1f} s  {chapter}", flush=True)
    cells = [{k: c.get(k) for k in ("id", "metadata", "outputs", "execution_count")} for c in node.cells]
    result = {"key": key, "seconds": seconds, "error": error, "cells": cells}
    if not error: write(stored, json.dumps(result))
    return result


def code_key(nb: dict) -> str:
    """Changes with the code of the chapter, the package, a stored result, a version or the machine."""
    code = [source(c) + json.dumps(c["metadata"]) for c in nb["cells"] if c["cell_type"] == "code"]
    return hashlib.sha256("\0".join([*code, *surroundings()]).encode()).hexdigest()


@cache
def surroundings() -> tuple[str, ...]:
    """What the outputs of every chapter rest on beside its own code."""
    files = [*(ROOT / "rbmdiff").rglob("*.py"), *(ROOT / "benchmarks/results").glob("*"),
             ROOT / "constraints.txt"]
    read = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files) if path.is_file()]
    return *read, sys.version, platform.platform()


def output_problems(chapter: str, run: dict) -> list[str]:
    """A cell that failed, that warned, or that shows a figure without caption or alternative text."""
    problems = []
    for number, cell in enumerate(run["cells"], 1):
        place, outputs = f"nbs/{chapter}.ipynb, cell {number} (id {cell['id']})", cell["outputs"] or []
        images = [o for o in outputs if any(kind.startswith("image/") for kind in o.get("data", {}))]
        _, caption, alt = figure(cell)
        if any(o["output_type"] == "error" for o in outputs):
            problems.append(f"{place} failed\n{run['error']}")
        if any(o.get("name") == "stderr" and "Warning" in o["text"] for o in outputs):
            problems.append(
                f"{place} warned: "
                + "".join(o["text"] for o in outputs if o.get("name") == "stderr").strip()
            )
        if images and not caption:
            problems.append(f"{place}: figure without caption (mystnb: figure: caption)")
        if images and not alt:
            problems.append(f"{place}: figure without alternative text (mystnb: image: alt)")
    if run["error"] and not problems: problems.append(f"nbs/{chapter}.ipynb failed\n{run['error']}")
    return problems


def stage(notebooks: dict, executed: dict, timings: dict) -> None:
    """Write everything that Jupyter Book reads; leave unchanged files alone and remove those of earlier
    builds.
    """
    own = [p for kind in ("*.md", "*.bib", "*.png", "_static/*") for p in BOOK.glob(kind)]
    files = {p.relative_to(BOOK).as_posix(): p.read_bytes() for p in own}
    numbers = chapter_numbers()
    for chapter, nb in notebooks.items():
        depth = "../" * chapter.count("/")
        links = {"This chapter as a notebook": f"{depth}notebooks/{chapter}.ipynb"}
        for wheel in wheels():
            links["the package as a wheel"] = f"{depth}notebooks/{wheel.name}"
        page = for_book(nb, links, numbers.get(chapter, ""))
        files[f"{chapter}.ipynb"] = json.dumps(with_outputs(page, executed[chapter]), indent=1)
    files["map.html"] = pages.chapter_map(notebooks)
    files["environment-table.txt"] = pages.environment(timings)
    files |= pages.reference(ROOT, notebooks)
    for name, content in files.items(): write(STAGE / name, content)
    for path in [p for p in STAGE.rglob("*") if p.is_file()
                 and p.relative_to(STAGE).as_posix() not in files]:
        path.unlink()


def write_notebooks(notebooks: dict, executed: dict) -> None:
    """The plain notebooks beside the pages, and the wheel from which they install the package."""
    numbers = chapter_numbers()
    labels = names(notebooks, numbers) | citations(BOOK / "references.bib")
    for chapter, nb in notebooks.items():
        run = with_outputs(copy.deepcopy(nb), executed[chapter])
        plain = for_jupyter(run, INSTALL, labels, numbers.get(chapter, ""))
        text = json.dumps(plain, indent=1, ensure_ascii=False)
        write(HTML / f"notebooks/{chapter}.ipynb", f"{text}\n")
    for wheel in wheels():
        write(HTML / "notebooks" / wheel.name, wheel.read_bytes())


def wheels() -> list[Path]:
    """The wheel of the package, if it has been built."""
    return sorted((ROOT / "dist").glob("*.whl"))[-1:]


def with_outputs(nb: dict, run: dict) -> dict:
    """The notebook with its outputs; progress bars and other lines on stderr are left out."""
    for cell, done in zip(nb["cells"], run["cells"], strict=True):
        if cell["cell_type"] == "code":
            cell["outputs"] = [o for o in done["outputs"] or [] if o.get("name") != "stderr"]
            cell["execution_count"] = done["execution_count"]
    return nb


def render() -> None:
    """Jupyter Book, every warning an error. After a failure the next build reads every page again."""
    command = [Path(sys.executable).with_name("jupyter-book"), "build", STAGE, "--path-output", BOOK,
               "--config", BOOK / "_config.yml", "--toc", BOOK / "_toc.yml", "-W", "-n", "--keep-going",
               "-q"]
    if subprocess.run(command).returncode:
        shutil.rmtree(BUILD / ".doctrees", ignore_errors=True)
        raise SystemExit("ERROR: the book was not built")


def report(timings: dict[str, float], seconds: float) -> None:
    """Print what took long and store it."""
    stored = {"chapters": timings, "total": round(seconds, 1), "python": platform.python_version()}
    write(BUILD / "timings.json", json.dumps(stored, indent=1) + "\n")
    for chapter, value in sorted(timings.items(), key=lambda item: -item[1])[:3]:
        print(f"slowest {value:6.1f} s  {chapter}")
    print(f"book built in {seconds:.1f} s: {HTML / 'index.html'}")


def write(path: Path, content: str | bytes) -> None:
    """Write a file unless it already holds this content, so that its time of change means something."""
    data = content if isinstance(content, bytes) else content.encode()
    if path.is_file() and path.read_bytes() == data: return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


if __name__ == "__main__":
    main()
