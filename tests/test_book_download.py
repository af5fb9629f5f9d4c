"""The plain notebooks, which readers download; tests/test_packaging.py runs one beside the wheel."""
import json
from pathlib import Path
import subprocess
import sys

from bookmaker import ROOT, notebook

sys.path.insert(0, str(ROOT / "book"))
import build
from forms import for_jupyter
from names import citations, names


def plain_notebooks():
    """The plain notebook of every chapter, without outputs."""
    numbers = build.chapter_numbers()
    books = {c: json.loads((ROOT / f"nbs/{c}.ipynb").read_text("utf8")) for c in build.contents()}
    labels = names(books, numbers) | citations(ROOT / "book/references.bib")
    return {c: for_jupyter(nb, build.INSTALL, labels, numbers.get(c, "")) for c, nb in books.items()}


def test_no_plain_notebook_uses_a_name_that_it_lacks(tmp_path):
    for chapter, nb in plain_notebooks().items():
        cells = [cell for cell in nb["cells"] if cell["id"] != "install"]
        (tmp_path / f"{chapter.replace('/', '-')}.ipynb").write_text(json.dumps(nb | {"cells": cells}))
    lacks = notebook(["code|x = 1", "code|print(x, root)"])
    (tmp_path / "lacks.ipynb").write_text(json.dumps(lacks))
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821",
                           "--output-format", "concise", tmp_path], capture_output=True, text=True)
    found = [Path(line).name for line in done.stdout.splitlines() if "F821" in line]
    assert len(found) == 1 and found[0].startswith("lacks.ipynb:") and found[0].endswith("`root`")
