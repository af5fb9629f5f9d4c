"""A small book in a folder of its own, built with the real tools of book/."""
import json
from pathlib import Path
import re
import shutil
import subprocess
import sys

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "book" / "_ext"))

ALPHA = ["code|#| default_exp foundations.alpha",
         "markdown|# Alpha: the first\n\n> A line about it.\n\n**You will learn** one "
         "thing.\n\n**Prerequisites** None.",
         "markdown|(sec-alpha-square)=\n\n## A square\n\n$$\ny = x^2\n$$ (eq-alpha-square)\n\nText "
         "after {eq}`eq-alpha-square`.",
         'code|#| export\ndef square(x):\n    """The square [eq-alpha-square]."""\n    return x * x  # '
         '[eq-alpha-square]',
         "code|# check [eq-alpha-square]: three squared\nassert square(3) == 9\nprint(square(3))",
         "## Exercises\n\n:::{admonition} Exercise 1\nWhat is $3^2$? See Exercise 1.\n:::\n\n"
         ":::{admonition} Solution 1\n:class: dropdown\nIt is $9$.\n:::",
         "code solution|nine = square(3)\nprint('nine is', nine)"]
BETA = ["code|#| default_exp models.beta",
        "markdown|# Beta\n\n> A second one.\n\n**Prerequisites** [Alpha](../foundations/alpha.ipynb)",
        "markdown|$$ z = 2 y $$ (eq-beta-double)\n\nfrom {eq}`eq-alpha-square` in "
        "{ref}`sec-alpha-square`, {cite:p}`hinton2002`; see {numref}`fig-beta-line`.",
        "code|#| export\ndef double(y): return 2 * y  # [eq-beta-double]",
        "code|# check [eq-beta-double] and [eq-alpha-square]: by hand\nassert double(3) == 6",
        "code|#| eval: false\nraise SystemExit('not run')",
        "code|#| hide\nhidden = 1",
        "figure|from matplotlib import pyplot as plt\nplt.plot([0, 1]);",
        "code|#| export\ndef _half(y): return y / 2",
        "code|from pathlib import Path",
        "code show-input|import json",
        "code repository|print('stored', 1 + 1)"]
SHOWN = "{shown} models/beta fig-beta-line"
GLOSSARY = """# Glossary

```{glossary}
square
second power
  A number times itself. Chapter: [Alpha](foundations/alpha.ipynb).

straight line
  It has one slope. Chapter: [Beta](models/beta.ipynb).
```
"""
FIGURE = {"mystnb": {"figure": {"name": "fig-beta-line", "caption": "A line."},
                     "image": {"alt": "A rising line"}}}


def notebook(cells: list[str], metadata: dict = FIGURE) -> dict:
    """A notebook from `kind|source` lines; a `figure` is a code cell with `metadata`, `code TAG` one
    with a tag. Cell ids are c1, c2, …
    """
    made = []
    for number, cell in enumerate(cells, 1):
        known = re.match(r"(code|markdown|figure)(?: ([\w-]+))?\|", cell)
        kind, text = (known[1], cell[known.end():]) if known else ("markdown", cell)
        given = metadata if kind == "figure" else {"tags": [known[2]]} if known and known[2] else {}
        base = {"id": f"c{number}", "metadata": given, "source": text}
        made.append({"cell_type": "markdown", **base} if kind == "markdown" else
                    {"cell_type": "code", "outputs": [], "execution_count": None, **base})
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    return {"cells": made, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}


def save(root: Path, chapter: str, cells: list[str], metadata: dict = FIGURE) -> None:
    """Write a chapter and the module that nbdev would export from it."""
    path, module = root / f"nbs/{chapter}.ipynb", root / f"rbmdiff/{chapter}.py"
    for p in (path, module): p.parent.mkdir(parents=True, exist_ok=True)
    nb = notebook(cells, metadata)
    path.write_text(json.dumps(nb))
    exported = [c for c in nb["cells"] if c["cell_type"] == "code"
                and c["source"].startswith("#| export\n")]
    names = [c["source"].split("def ")[1].split("(")[0] for c in exported if "def " in c["source"]]
    names = [name for name in names if name[0] != "_"]
    module.write_text(f'"""Summary of {chapter}."""\n\n# %% auto #0\n__all__ = {names}\n\n' + "".join(
        f"# %% ../../nbs/{chapter}.ipynb #{c['id']}\n{c['source'].split(chr(10), 1)[1]}\n\n"
        for c in exported))


def make_book(root: Path) -> None:
    """Two chapters, the real configuration and the front matter of the book."""
    shutil.copytree(ROOT / "book", root / "book", ignore=shutil.ignore_patterns("_build", "__pycache__"))
    toc = (root / "book/_toc.yml").read_text()
    chapters = ("- caption: Rooms\n  numbered: true\n  chapters:\n"
                "  - file: foundations/alpha\n  - file: models/beta\n")
    start, end = toc.index("- caption: Models"), toc.index("- caption: Reference")
    front = toc[:start].replace("  - file: start/ten_minutes\n", "")
    back = re.sub(r" *- glob: api/(?!models|foundations).*\n", "", toc[end:])
    (root / "book/_toc.yml").write_text(front + chapters + back)
    # chapters that it does not have
    lost = r"\[([^\]]+)\]\((?:\w+/\w+\.ipynb|errata\.md)\)"
    for page in (root / f"book/{name}.md" for name in ("index", "how-to-read", "environment")):
        text = re.sub(lost, r"\1", page.read_text())
        text = re.sub(r"\{minutes\}`[^`]+`", "{minutes}`foundations/alpha, models/beta`", text)
        page.write_text(text.replace("{shown} bridge/score fig-score-frames", SHOWN))
    (root / "book/errata.md").write_text("# Errata of the sources\n\nThe small book has none.\n")
    (root / "dist").mkdir()
    (root / "dist/rbmdiff-1.0-py3-none-any.whl").write_bytes(b"wheel")
    (root / "book/glossary.md").write_text(GLOSSARY)
    save(root, "foundations/alpha", ALPHA)
    save(root, "models/beta", BETA)


def build(root: Path, *options: str) -> subprocess.CompletedProcess:
    """Run book/build.py of the small book."""
    return subprocess.run([sys.executable, root / "book/build.py", *options], capture_output=True,
                          text=True)
