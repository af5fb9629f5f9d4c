"""The authoring forms and what becomes of them in Quarto and in plain notebooks; the two tables of
contents.
"""
import json
import re
import shutil
import subprocess
import sys

from nbclient import NotebookClient
import nbformat
from pybtex.database import Entry
import pytest
import yaml

from bookmaker import ALPHA, BETA, FIGURE, ROOT, notebook
import folds
from forms import (
    book_text,
    folded,
    for_book,
    for_jupyter,
    for_quarto,
    jupyter_text,
    quarto_text,
    source,
    split,
)
from names import authors, citations, names

CHAPTERS = sorted((ROOT / "nbs").rglob("*.ipynb"))
LEFTOVERS = re.compile(
    r"\{[\w:-]+\}`|:::\{admonition|^:class:|\$\$[ \t]*"
    r"\(eq-|^\(sec-[\w-]+\)=|^#\|\s*(export|exporti|hide|default_exp|slow|gpu|notest)\b",
    re.MULTILINE,
)


BOOKS = {path.relative_to(ROOT / "nbs").with_suffix("").as_posix(): json.loads(path.read_text("utf8"))
         for path in CHAPTERS}
LABELS = names(BOOKS, {}) | citations(ROOT / "book/references.bib")
NAMES = {"eq-a-b": "(7.3)", "fig-a-b": "Fig. 7.1", "sec-a-b": "Of heads", "neal2001": "Neal 2001",
         "hinton2002": "Hinton 2002", "ho2020": "Ho et al. 2020"}


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


@pytest.mark.parametrize("cell, what", [
    ("code|import math\n\nfrom torch import Tensor", "imports"),
    ("code|#| export\nimport math", "imports"),
    ("code|import math\nf64 = torch.float64", ""),
    ("code|#| export\ndef _inner(x): return x\n\n\n_TABLE = {}", "private"),
    ("code|#| export\nimport math\n_a, _b = 1, 2\n\"\"\"Two numbers.\"\"\"", "private"),
    ("code|#| export\nclass _Store:\n    pass", "private"),
    ("code|#| export\n@patch\ndef _hold(self: RBM): pass", "private"),
    ("code|#| export\n@patch(as_prop=True)\ndef size(self: _Store): return 1", "private"),
    ("code|#| export\n@patch\ndef energy(self: RBM): pass\n\n\n@patch\ndef _hold(self: RBM): pass", ""),
    ("code|#| export\n@patch\ndef __call__(self: Solver): pass", ""),
    ("code|#| export\nNAMES = ()", ""),
    ("code|#| export\n_a, b = 1, 2", ""),
    ("code|#| export\n_a[0] = public = 1", ""),
    ("code|#| export\nif True: _x = 1", ""),
    ("code|def _shown(x): return x", ""),
    ("code|# check [eq-a-b] and [eq-a-c]: by sums", "check"),
    ("code|# check that it runs", ""),
    ("code show-input|# check [eq-a-b]: by sums", ""),
    ("code hide-input|x = 1", "other"),
    ("code hide-cell|x = 1", "other"),
    ("code remove-cell|import math", ""),
    ("code|#| hide\nimport math", ""),
    ("code repository|x = stored()", "files"),
    ("code solution|x = 1", "solution"),
    ("code|# Exercise 4: a kind of its own\nx = 1", "solution"),
    ("figure|plt.plot([0, 1])", "figure"),
    ("code|%pip install x", ""),
    ("code|# only a remark", ""),
    ("code|x = 1", ""),
])
def test_what_is_folded(cell, what):
    made = notebook([cell])
    assert folded(made["cells"][0]) == what
    page, = for_book(made)["cells"]
    hidden = {"hide-input", "hide-cell"} & set(page["metadata"]["tags"])
    wanted = "hide-cell" if what == "solution" or "hide-cell" in cell else "hide-input"
    assert hidden == ({wanted} if what else set())
    if not what: return
    words = page["metadata"]["mystnb"]
    assert words["code_prompt_show"].startswith(f"Show {folds.CONTENT[what]}")
    assert words["code_prompt_hide"] == f"Hide {folds.CONTENT[what]}"


def test_the_fold_of_a_check_says_what_is_compared():
    for lines, text in (("# check [eq-a-b]: by sums", "by sums"),
                        ("# check [eq-a-b] and [eq-a-c]: by sums;\n# controls: a half\n# then",
                         "by sums; controls: a half"),
                        ("# check [eq-a-b]: by sums\n# a remark", "by sums")):
        assert folds.prompts(lines, "check") == (f"Show the check: {text}", "Hide the check")


def test_a_fold_keeps_what_its_author_wrote():
    nb = notebook(["figure|plt.plot([0, 1])", "code mine|import math"])
    nb["cells"][1]["metadata"]["mystnb"] = {"code_prompt_show": "Show three lines"}
    drawn, imports = (c["metadata"] for c in for_book(nb)["cells"])
    assert drawn["mystnb"].items() >= FIGURE["mystnb"].items()
    assert "code_prompt_show" not in FIGURE["mystnb"]
    assert imports["tags"] == ["mine", "hide-input"]
    assert imports["mystnb"]["code_prompt_show"] == "Show three lines"


def test_a_folded_cell_is_run_and_is_open_in_plain_notebooks():
    cells = notebook(["code|# check [eq-a-b]: by sums\nx = 1", "code|import math",
                      "code solution|y = 2"])
    assert not any("skip-execution" in c["metadata"]["tags"] for c in for_book(cells)["cells"])
    for cell in for_jupyter(cells, "%pip", {})["cells"]:
        assert cell["cell_type"] == "code" and cell["metadata"] == {}


def test_half_of_the_code_is_folded():
    shown, all_lines = 0, 0
    for path in CHAPTERS:
        for cell in json.loads(path.read_text("utf8"))["cells"]:
            if cell["cell_type"] != "code": continue
            lines = sum(bool(line.strip()) for line in source(cell).split("\n"))
            all_lines += lines
            shown += 0 if folded(cell) else lines
    assert shown < 0.6 * all_lines


def pictures_without_words(nb):
    """Ids of the cells that end in a figure and say neither what it shows nor how it looks."""
    ends = [c for c in nb["cells"] if c["cell_type"] == "code" and source(c).rstrip().endswith("\nfig")]
    kept = [(c["id"], c["metadata"].get("mystnb", {})) for c in ends]
    return [name for name, m in kept if not (m.get("figure", {}).get("caption") and m.get("image"))]


def test_every_picture_has_words_before_it_is_drawn():
    assert [name for nb in BOOKS.values() for name in pictures_without_words(nb)] == []
    cell = {"cell_type": "code", "id": "c1", "metadata": {}, "source": "fig, ax = figure()\nfig\n"}
    assert pictures_without_words({"cells": [cell]}) == ["c1"]


def test_exercises_have_the_number_of_the_chapter_and_a_class():
    text = (":::{admonition} Exercise 2\nAs in Exercise 1.\n:::\n\n"
            ":::{admonition} Solution 2\n:class: dropdown\n"
            "See Exercise 12, Exercise 3.4, Exercises.\n:::\n\n"
            ":::{admonition} Derivation\n:class: dropdown\nSo.\n:::")
    assert book_text(text, "7") == (
        ":::{admonition} Exercise 7.2\n:class: exercise\nAs in Exercise 7.1.\n:::\n\n"
        ":::{admonition} Solution 7.2\n:class: dropdown solution\n"
        "See Exercise 7.12, Exercise 3.4, Exercises.\n:::\n\n"
        ":::{admonition} Derivation\n:class: dropdown\nSo.\n:::")
    assert ":::{admonition} Exercise 2\n:class: exercise\n" in book_text(text, "")
    cell, = for_book(notebook(["code|# Exercise 1: by hand\nx = 1"]), number="7")["cells"]
    assert cell["source"] == "# Exercise 7.1: by hand\nx = 1"


@pytest.mark.parametrize("given, quarto, jupyter", [
    ("$$ y $$ (eq-a-b)", "$$ y $$ {#eq-a-b}", r"$$ y \tag{7.3}$$"),
    ("$$ y $$\n\ntext $$ z $$ (eq-a-b)", "$$ y $$\n\ntext $$ z $$ {#eq-a-b}",
     "$$ y $$\n\ntext $$ z \\tag{7.3}$$"),
    ("by {eq}`eq-a-b`", "by @eq-a-b", "by (7.3)"),
    ("see {numref}`fig-a-b`", "see @fig-a-b", "see Fig. 7.1"),
    ("in {ref}`sec-a-b`", "in @sec-a-b", "in Of heads"),
    ("(sec-a-b)=\n\n## Head", "## Head {#sec-a-b}", '<a id="sec-a-b"></a>\n\n## Head'),
    ("{cite:p}`neal2001,hinton2002`", "[@neal2001; @hinton2002]", "(Neal 2001; Hinton 2002)"),
    ("{cite:t}`neal2001, ho2020` show", "@neal2001; @ho2020 show", "Neal (2001), Ho et al. (2020) show"),
    (":::{admonition} Derivation\n:class: dropdown\nSo $x$.\n:::",
     '::: {.callout-note title="Derivation" collapse="true"}\nSo $x$.\n:::',
     "<details><summary><b>Derivation</b></summary>\n\nSo $x$.\n\n</details>"),
    (":::{admonition} Exercise 1\nDo it.\n:::", '::: {.callout-note title="Exercise 1"}\nDo it.\n:::',
     "**Exercise 1**\n\nDo it."),
    ("[Core](../foundations/core.ipynb), `code`, $x$", "[Core](../foundations/core.ipynb), `code`, $x$",
     "[Core](../foundations/core.ipynb), `code`, $x$"),
])
def test_each_form(given, quarto, jupyter):
    assert quarto_text(given) == quarto and jupyter_text(given, NAMES) == jupyter


def test_an_unknown_label_is_no_name():
    with pytest.raises(KeyError, match="eq-a-c"):
        jupyter_text("by {eq}`eq-a-c`", NAMES)


def test_names_are_numbers_titles_authors(tmp_path):
    books = {"foundations/alpha": notebook(ALPHA),
             "models/beta": notebook([*BETA, "$$ a $$ (eq-beta-b)"])}
    assert names(books, {"foundations/alpha": "3", "models/beta": "4"}) == {
        "eq-alpha-square": "(3.1)", "sec-alpha-square": "A square", "eq-beta-double": "(4.1)",
        "eq-beta-b": "(4.2)", "fig-beta-line": "Fig. 4.1"}
    assert names(books, {"models/beta": "1"})["eq-alpha-square"] == "(1)"
    works = citations(ROOT / "book/references.bib")
    assert works["hinton2002"] == "Hinton 2002" and works["kingma2023"] == "Kingma and Gao 2023"
    assert works["carreira2005"] == "Carreira-Perpiñán and Hinton 2005"
    assert works["hang2023"] == "Hang et al. 2023" and works["ho2020"] == "Ho et al. 2020"
    assert authors(Entry("misc", {"title": r"{\"U}ber uns"})) == "Über uns"


def test_sections_of_the_same_notebook_are_links():
    cells = notebook(["(sec-a-b)=\n\n## Of heads\n\nsee {ref}`sec-a-b`"])
    assert texts(for_jupyter(cells, "%pip", NAMES))[1].endswith("see [Of heads](#sec-a-b)")


def test_quarto_filter_on_a_made_notebook():
    done = subprocess.run([sys.executable, ROOT / "book/quarto_filter.py"],
                          input=json.dumps(notebook(BETA)), capture_output=True, text=True, check=True)
    assert texts(json.loads(done.stdout)) == [
        "#| include: false\n",
        "# Beta\n\n> A second one.\n\n**Prerequisites** [Alpha](../foundations/alpha.ipynb)",
        "$$ z = 2 y $$ {#eq-beta-double}\n\nfrom @eq-alpha-square in @sec-alpha-square, [@hinton2002]; "
        "see @fig-beta-line.",
        "def double(y): return 2 * y  # [eq-beta-double]",
        '#| code-fold: true\n#| code-summary: "Show the check: by hand"\n'
        "# check [eq-beta-double] and [eq-alpha-square]: by hand\nassert double(3) == 6",
        "#| eval: false\nraise SystemExit('not run')",
        "#| include: false\nhidden = 1",
        '#| code-fold: true\n#| code-summary: "Show the code of the figure"\n#| label: fig-beta-line\n'
        '#| fig-cap: "A line."\n#| fig-alt: "A rising line"\n'
        "from matplotlib import pyplot as plt\nplt.plot([0, 1]);",
        '#| code-fold: true\n#| code-summary: "Show the helpers"\ndef _half(y): return y / 2',
        '#| code-fold: true\n#| code-summary: "Show the imports"\nfrom pathlib import Path',
        "import json",
        '#| code-fold: true\n#| code-summary: "Show the code behind the stored results"\n'
        "print('stored', 1 + 1)"]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_no_form_is_left_over(path):
    nb = json.loads(path.read_text("utf8"))
    for made in (for_quarto(nb), for_jupyter(nb, "", LABELS)):
        left = [m[0] for text in texts(made) for m in LEFTOVERS.finditer(text)]
        assert not left
    assert not any(line.startswith("#|") for text in texts(for_jupyter(nb, "", LABELS))
                   for line in text.split("\n"))


def as_quarto_reads(nb):
    """The text that Quarto hands to pandoc: markdown cells, and code in fences."""
    return "\n\n".join(source(c) if c["cell_type"] == "markdown" else f"```python\n{source(c)}\n```"
                       for c in for_quarto(nb)["cells"])


def pandoc(text):
    """What pandoc makes of a text, and its warnings, but for the labels that are Quarto's to resolve."""
    if not shutil.which("pandoc"): pytest.skip("no pandoc on this machine")
    works = f"--bibliography={ROOT / 'book/references.bib'}"
    done = subprocess.run(["pandoc", "--from=markdown", "--to=html", "--mathml", "--citeproc", works],
                          input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"\[WARNING\] (.*(?:\n  .*)*)", done.stderr)
    label = re.compile(r"Citeproc: citation (eq|fig|sec)-\S+ not found")
    return done.stdout, [warning for warning in found if not label.match(warning)]


FORMS = re.compile(r"\{[\w:-]+\}<code|:::|:class:|\{#(?!eq-)|\$\$|\{\.callout|\((eq|sec)-[\w-]+\)")


@pytest.mark.parametrize("chapter", BOOKS)
def test_pandoc_leaves_no_form_over(chapter):
    made, warnings = pandoc(as_quarto_reads(BOOKS[chapter]))
    assert not warnings
    text = re.sub(r"<pre.*?</pre>|<annotation.*?</annotation>", "", made, flags=re.DOTALL)
    assert not FORMS.findall(text)


@pytest.mark.parametrize("wrong", ["by {cite:x}`hinton2002`", "::: {.callout-note\nSo.\n:::",
                                   "$$ a $$ (eq-a-b)", "$$ \\frac{a $$", "by @nobody1999"])
def test_pandoc_finds_a_form_that_is_left_over(wrong):
    made, warnings = pandoc(wrong)
    assert warnings or FORMS.search(made)


def test_plain_notebook_runs_from_top_to_bottom(tmp_path):
    labels = names({"alpha": notebook(ALPHA), "beta": notebook(BETA)}, {"beta": "2"}) | NAMES
    for cells in (ALPHA, BETA):
        plain = nbformat.from_dict(for_jupyter(notebook(cells), "%pip --version", labels))
        nbformat.validate(plain)
        NotebookClient(plain, kernel_name="python3",
                       resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert "*Fig. 2.1. A line.*" in texts(plain)
    assert "```python\nraise SystemExit('not run')\n```" in texts(plain)


def test_cells_that_read_the_repository_are_shown_but_not_run_in_plain_notebooks():
    nb = notebook(["code|x = open('benchmarks/results/x.json')"])
    nb["cells"][0]["metadata"]["tags"] = ["repository"]
    assert texts(for_jupyter(nb, "%pip", {}))[1:] == [
        "```python\nx = open('benchmarks/results/x.json')\n```"
    ]


def test_the_outputs_of_cells_that_are_not_run_travel_as_markdown():
    nb = notebook(["code repository|show(table)", "figure|draw()"])
    table, drawn = nb["cells"]
    drawn["metadata"] = FIGURE | {"tags": ["repository"]}
    table["outputs"] = [
        {"output_type": "stream", "name": "stdout", "text": ["two\n", "lines\n"]},
        {"output_type": "execute_result", "data": {"text/plain": "a", "text/html": "<b>a</b>",
                                                   "text/markdown": "| a |\n|---|"}},
        {"output_type": "display_data", "data": {"text/plain": "3"}}]
    drawn["outputs"] = [{"output_type": "display_data", "data": {"text/plain": "<Figure>",
                                                                 "image/png": "AAAA\n"}}]
    plain = for_jupyter(nb, "%pip", {"fig-beta-line": "Fig. 2.1"})
    nbformat.validate(nbformat.from_dict(plain))
    _, table, drawn = plain["cells"]
    assert table["source"] == ("```python\nshow(table)\n```\n\n```text\ntwo\nlines\n```\n\n"
                               "| a |\n|---|\n\n```text\n3\n```")
    assert drawn["source"] == ("```python\ndraw()\n```\n\n![A rising line](attachment:c2-0.png)\n\n"
                               "*Fig. 2.1. A line.*")
    assert drawn["attachments"] == {"c2-0.png": {"image/png": "AAAA"}} and "attachments" not in table


def test_quarto_has_the_same_chapters_in_the_same_order():
    parts = yaml.safe_load((ROOT / "book/_toc.yml").read_text())["parts"]
    files = {p["caption"]: [f"nbs/{c['file']}.ipynb" for c in p["chapters"]] for p in parts}
    book = [(caption, [f for f in chapters if (ROOT / f).is_file()])
            for caption, chapters in files.items()]
    quarto = yaml.safe_load((ROOT / "_quarto.yml").read_text())
    parts = [(p["part"], p["chapters"]) for p in quarto["book"]["chapters"] if isinstance(p, dict)]
    assert parts == [(caption, chapters) for caption, chapters in book if chapters]
    assert sorted(str(p.relative_to(ROOT)) for p in CHAPTERS) == sorted(f for _, c in parts for f in c)
    assert all((ROOT / f).is_file() for _, files in parts for f in files)
    assert quarto["execute"] == {"enabled": False} and quarto["book"]["chapters"][0] == "index.qmd"
    assert all((ROOT / f).is_file() for f in [*quarto["ipynb-filters"], quarto["bibliography"],
                                              "index.qmd", *quarto["book"]["appendices"]])
