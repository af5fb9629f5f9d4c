"""The authoring forms and what becomes of them in Quarto and in plain notebooks; the two tables of
contents.
"""
import json
import re
import subprocess
import sys

from nbclient import NotebookClient
import nbformat
import pytest
import yaml

from bookmaker import ALPHA, BETA, ROOT, notebook
from forms import for_book, for_jupyter, for_quarto, jupyter_text, quarto_text, source, split

CHAPTERS = sorted((ROOT / "nbs").rglob("*.ipynb"))
LEFTOVERS = re.compile(
    r"\{(eq|numref|ref|cite:p|doc|cite)\}`|:::\{|^:class:|\$\$ "
    r"\(eq-|^\(sec-[\w-]+\)=|^#\|\s*(export|exporti|hide|default_exp|slow|gpu|notest)\b",
    re.MULTILINE,
)


def texts(nb):
    return [source(c) for c in nb["cells"]]


def test_split():
    assert split("#| export\n#| eval: false\n\nx = 1\n#| not a directive") == (
        {"export": "", "eval": "false"},
        "x = 1\n#| not a directive",
    )
    assert split("#| default_exp models.rbm") == ({"default_exp": "models.rbm"}, "")


def test_for_book_maps_directives_to_tags():
    cells = for_book(notebook(["code|#| default_exp a.b", "code|#| hide\nx = 1",
                               "code|#| eval: false\ny", "code|#| slow\nz",
                               "code|#| export\nw"]))["cells"]
    assert [c["metadata"]["tags"] for c in cells] == [["remove-cell"], ["remove-cell"],
                                                      ["skip-execution"], ["skip-execution"], []]
    assert [c["source"] for c in cells] == ["", "x = 1", "y", "z", "w"]


@pytest.mark.parametrize("given, quarto, jupyter", [
    ("$$ y $$ (eq-a-b)", "$$ y $$ {#eq-a-b}", r"$$ y \tag{eq-a-b}$$"),
    ("$$ y $$\n\ntext $$ z $$ (eq-a-b)", "$$ y $$\n\ntext $$ z $$ {#eq-a-b}",
     "$$ y $$\n\ntext $$ z \\tag{eq-a-b}$$"),
    ("by {eq}`eq-a-b`", "by @eq-a-b", "by (eq-a-b)"),
    ("see {numref}`fig-a-b`", "see @fig-a-b", "see *fig-a-b*"),
    ("in {ref}`sec-a-b`", "in @sec-a-b", "in [sec-a-b](#sec-a-b)"),
    ("(sec-a-b)=\n\n## Head", "## Head {#sec-a-b}", '<a id="sec-a-b"></a>\n\n## Head'),
    ("{cite:p}`neal2001,hinton2002`", "[@neal2001; @hinton2002]", "[neal2001,hinton2002]"),
    (":::{admonition} Derivation\n:class: dropdown\nSo $x$.\n:::",
     '::: {.callout-note title="Derivation" collapse="true"}\nSo $x$.\n:::',
     "<details><summary><b>Derivation</b></summary>\n\nSo $x$.\n\n</details>"),
    (":::{admonition} Exercise 1\nDo it.\n:::", '::: {.callout-note title="Exercise 1"}\nDo it.\n:::',
     "**Exercise 1**\n\nDo it."),
    ("[Core](../foundations/core.ipynb), `code`, $x$", "[Core](../foundations/core.ipynb), `code`, $x$",
     "[Core](../foundations/core.ipynb), `code`, $x$"),
])
def test_each_form(given, quarto, jupyter):
    assert quarto_text(given) == quarto and jupyter_text(given) == jupyter


def test_quarto_filter_on_a_made_notebook():
    done = subprocess.run([sys.executable, ROOT / "book/quarto_filter.py"],
                          input=json.dumps(notebook(BETA)), capture_output=True, text=True, check=True)
    assert texts(json.loads(done.stdout)) == [
        "#| include: false\n",
        "# Beta\n\n> A second one.\n\n**Prerequisites** [Alpha](../foundations/alpha.ipynb)",
        "$$ z = 2 y $$ {#eq-beta-double}\n\nfrom @eq-alpha-square in @sec-alpha-square, [@hinton2002]; "
        "see @fig-beta-line.",
        "def double(y): return 2 * y  # [eq-beta-double]",
        "# check [eq-beta-double] and [eq-alpha-square]: by hand\nassert double(3) == 6",
        "#| eval: false\nraise SystemExit('not run')",
        "#| include: false\nhidden = 1",
        '#| label: fig-beta-line\n#| fig-cap: "A line."\n#| fig-alt: "A rising line"\nfrom matplotlib '
        'import pyplot as plt\nplt.plot([0, 1]);']


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_no_form_is_left_over(path):
    nb = json.loads(path.read_text("utf8"))
    for made in (for_quarto(nb), for_jupyter(nb, "")):
        left = [m[0] for text in texts(made) for m in LEFTOVERS.finditer(text)]
        assert not left
    assert not any(line.startswith("#|") for text in texts(for_jupyter(nb, ""))
                   for line in text.split("\n"))


def test_plain_notebook_runs_from_top_to_bottom(tmp_path):
    for cells in (ALPHA, BETA):
        plain = nbformat.from_dict(for_jupyter(notebook(cells), "%pip --version"))
        nbformat.validate(plain)
        NotebookClient(plain, kernel_name="python3",
                       resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert plain.cells[-1].source == "*fig-beta-line. A line.*"
    assert "```python\nraise SystemExit('not run')\n```" in texts(plain)


def test_cells_that_read_the_repository_are_shown_but_not_run_in_plain_notebooks():
    nb = notebook(["code|x = open('benchmarks/results/x.json')"])
    nb["cells"][0]["metadata"]["tags"] = ["repository"]
    assert texts(for_jupyter(nb, "%pip"))[1:] == [
        "```python\nx = open('benchmarks/results/x.json')\n```"
    ]


def test_quarto_has_the_same_chapters_in_the_same_order():
    book = [(p["caption"], [f"nbs/{c['file']}.ipynb" for c in p["chapters"]])
            for p in yaml.safe_load((ROOT / "book/_toc.yml").read_text())["parts"]]
    quarto = yaml.safe_load((ROOT / "_quarto.yml").read_text())
    parts = [(p["part"], p["chapters"]) for p in quarto["book"]["chapters"] if isinstance(p, dict)]
    assert parts == [(caption, files) for caption, files in book if (ROOT / files[0]).is_file()]
    assert all((ROOT / f).is_file() for _, files in parts for f in files)
    assert quarto["execute"] == {"enabled": False} and quarto["book"]["chapters"][0] == "index.qmd"
    assert all((ROOT / f).is_file() for f in [*quarto["ipynb-filters"], quarto["bibliography"],
                                              "index.qmd", *quarto["book"]["appendices"]])
