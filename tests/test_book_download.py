"""A downloaded notebook and the wheel beside it are all that a reader needs."""
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys
import venv

import pytest

from bookmaker import ROOT, notebook

sys.path.insert(0, str(ROOT / "book"))
import build
from forms import for_jupyter
from names import citations, names

CHAPTER = "bridge/limit"
RUN = """
import sys, nbformat
from nbclient import NotebookClient
nb = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(nb, kernel_name="python3", timeout=600).execute()
nbformat.write(nb, sys.argv[2])
"""


@pytest.fixture(scope="module")
def plain():
    """The plain notebook of every chapter, without outputs."""
    numbers = build.chapter_numbers()
    books = {c: json.loads((ROOT / f"nbs/{c}.ipynb").read_text("utf8")) for c in build.contents()}
    labels = names(books, numbers) | citations(ROOT / "book/references.bib")
    return {c: for_jupyter(nb, build.INSTALL, labels, numbers.get(c, "")) for c, nb in books.items()}


def test_no_plain_notebook_uses_a_name_that_it_lacks(plain, tmp_path):
    for chapter, nb in plain.items():
        cells = [cell for cell in nb["cells"] if cell["id"] != "install"]
        (tmp_path / f"{chapter.replace('/', '-')}.ipynb").write_text(json.dumps(nb | {"cells": cells}))
    lacks = notebook(["code|x = 1", "code|print(x, root)"])
    (tmp_path / "lacks.ipynb").write_text(json.dumps(lacks))
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821",
                           "--output-format", "concise", tmp_path], capture_output=True, text=True)
    found = [Path(line).name for line in done.stdout.splitlines() if "F821" in line]
    assert len(found) == 1 and found[0].startswith("lacks.ipynb:") and found[0].endswith("`root`")


def run(*command, **kwargs):
    done = subprocess.run(command, capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_downloaded_notebook_runs_in_a_fresh_environment(plain, tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    pip = [tmp_path / "env/bin/python", "-m", "pip", "--disable-pip-version-check"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["PIP_CONSTRAINT"] = str(ROOT / "constraints.txt")
    environment["PATH"] = f"{tmp_path / 'env/bin'}{os.pathsep}{environment['PATH']}"
    environment["JUPYTER_PATH"] = str(tmp_path / "env/share/jupyter")
    tools = subprocess.run([*pip, "install", "--quiet", "ipykernel", "nbclient"], capture_output=True,
                           text=True, env=environment)
    if tools.returncode: pytest.skip(f"no package index is reachable: {tools.stderr.strip()[-200:]}")
    folder = tmp_path / "downloads"
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".git", ".venv", "book", "dist", "build",
                                                                "*.egg-info", "_proc"))
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, source, env=environment)
    shutil.rmtree(source)
    (folder / "chapter.ipynb").write_text(json.dumps(plain[CHAPTER]))
    python = tmp_path / "env/bin/python"
    run(python, "-c", RUN, "chapter.ipynb", "done.ipynb", cwd=folder, env=environment)
    cells = json.loads((folder / "done.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code) and len(code) > 10
    where = run(python, "-c", "import rbmdiff; print(rbmdiff.__file__)", cwd=folder, env=environment)
    assert str(tmp_path) in where
