"""Whole builds of a small book: pages, links, stops, incremental builds, plain notebooks."""
import hashlib
import json
from pathlib import Path
import re
import shutil
import subprocess
import sys

import pytest

from bookmaker import BETA, ROOT, build, make_book, save
import folds
from forms import source
from test_book_offline import browse

CLOSED = '<details class="admonition hide above-input">'


def page(root: Path, name: str) -> str:
    return (root / f"book/_build/html/{name}.html").read_text()


def sources(root: Path) -> dict[str, str]:
    """Digest of every file outside book/_build."""
    files = [p for p in root.rglob("*") if p.is_file() and "_build" not in p.parts
             and "__pycache__" not in p.parts]
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_sources_stay_untouched(small_book, tmp_path):
    make_book(tmp_path)
    strip = lambda files, root: {k.removeprefix(str(root)): v for k, v in files.items()}
    assert strip(sources(small_book), small_book) == strip(sources(tmp_path), tmp_path)


def test_directives_are_gone_and_mapped(small_book):
    beta = page(small_book, "models/beta")
    assert (
        "#|" not in beta
        and "default_exp" not in beta
        and "hidden = 1" not in re.sub("<[^>]*>", "", beta)
    )
    assert "not run" in beta


def test_label_in_code_links_to_the_equation(small_book):
    assert 'id="equation-eq-alpha-square"' in page(small_book, "foundations/alpha")
    assert '[<a class="equation-label" href="#equation-eq-alpha-square">eq-alpha-square</a>]' in page(
        small_book, "foundations/alpha"
    )
    assert 'href="../foundations/alpha.html#equation-eq-alpha-square">eq-alpha-square</a>]' in page(
        small_book, "models/beta"
    )
    assert 'href="../foundations/alpha.html#equation-eq-alpha-square">eq-alpha-square</a>]' in page(
        small_book, "api/foundations.alpha"
    )


def test_equation_links_to_code_and_checks(small_book):
    line = re.search(r'<p class="equation-links">.*?</p>', page(small_book, "foundations/alpha"),
                     re.DOTALL)[0]
    assert 'href="#cell-c4"' in line and ">square<" in line and "rbmdiff/foundations/alpha.py:9" in line
    assert (
        'href="#cell-c5"' in line and 'href="../models/beta.html#cell-c5"' in line and "by hand" in line
    )
    assert 'id="cell-c4"' in page(small_book, "foundations/alpha") and 'id="cell-c5"' in page(
        small_book, "models/beta"
    )
    module = (small_book / "rbmdiff/foundations/alpha.py").read_text().split("\n")
    assert module[9 - 1].endswith("# [eq-alpha-square]")


def test_index_lists_number_label_statement_function_check(small_book):
    index = page(small_book, "equations")
    for wanted in ("(1.1)", "(2.1)", "eq-alpha-square", "y = x^2", ">square<", "three squared",
                   "z = 2 y", ">double<", "mathjax/tex-chtml.js"):
        assert wanted in index


def test_timings_and_environment(small_book):
    timings = json.loads((small_book / "book/_build/timings.json").read_text())
    assert set(timings["chapters"]) == {"foundations/alpha", "models/beta"} and timings["total"] > 0
    environment = page(small_book, "environment").replace("</span>", "<")
    assert ">numpy<" in environment and ">Beta<" in environment and ">models/beta<" not in environment


def test_folded_code_is_closed_and_its_output_open(small_book):
    alpha, beta = page(small_book, "foundations/alpha"), page(small_book, "models/beta")
    check = alpha[alpha.index('id="cell-c5"'):]
    fold, rest = check.split("</details>", 1)
    assert CLOSED in fold and "Show the check: three squared" in fold
    assert "assert" in fold and "cell_output" not in fold
    assert rest.index('class="cell_output') < rest.index("Exercises")     # the verdict stays
    for words in ("figure", "private", "imports", "files"):
        words = folds.CONTENT[words]
        assert beta.count(f">Show {words}<") == beta.count(f">Hide {words}<") == 1
    assert alpha.count(CLOSED) == 2 and beta.count(CLOSED) == 5
    assert 'src="../_static/folds.js' in beta and 'href="../_static/forms.css' in beta


def test_a_folded_check_is_run_and_indexed(small_book):
    assert "three squared" in page(small_book, "equations")
    done = json.loads((small_book / "book/_build/executed/foundations/alpha.json").read_text())
    assert done["cells"][4]["outputs"][0]["text"] == "9\n" and done["cells"][6]["outputs"]


def test_exercises_are_numbered_and_look_like_exercises(small_book):
    alpha = page(small_book, "foundations/alpha")
    assert '<div class="exercise admonition">' in alpha
    assert '<div class="dropdown solution admonition">' in alpha
    assert ">Exercise 1.1<" in alpha and ">Solution 1.1<" in alpha and "See Exercise 1.1." in alpha
    solved = alpha[alpha.index(">Solution 1.1<"):]
    fold = re.search(r"<details.*?</details>", solved, re.DOTALL)[0]
    assert "Show the code of the solution" in fold and "nine is 9" in fold
    assert not re.search(r"(Exercise|Solution) \d+(?![.\d])", re.sub("<[^>]*>", "", alpha))


def test_a_link_opens_the_fold_it_leads_to(small_book, tmp_path):
    address = (small_book / "book/_build/html/foundations/alpha.html").as_uri()
    shown = {place: browse(f"{address}#{place}", tmp_path)[0]
             for place in ("cell-c5", "cell-c4", "exercises")}
    opened = {cell: text.count(f"{CLOSED[:-1]} open") for cell, text in shown.items()}
    assert opened == {"cell-c5": 1, "cell-c4": 0, "exercises": 0}
    assert '<summary aria-label="Toggle' not in shown["exercises"]  # a fold is read by its own words


def test_map_is_drawn_from_prerequisites(small_book):
    drawn = page(small_book, "map")
    assert (
        "Alpha needs nothing. Beta needs Alpha." in drawn
        and 'href="models/beta.html"' in drawn
        and "<figcaption>" in drawn
    )


def test_plain_notebook_stands_beside_the_page(small_book):
    plain = json.loads((small_book / "book/_build/html/notebooks/models/beta.ipynb").read_text())
    install = "%pip install -q --find-links . --find-links .. rbmdiff fastcore"
    assert plain["cells"][0]["source"].endswith(install)
    wheel = "rbmdiff-1.0-py3-none-any.whl"
    for file in ("models/beta.ipynb", wheel):
        assert f'href="../notebooks/{file}"' in page(small_book, "models/beta")
    assert (small_book / f"book/_build/html/notebooks/{wheel}").read_bytes() == b"wheel"
    text = "\n".join(source(cell) for cell in plain["cells"])
    for wanted in ("from (1.1) in A square, (Hinton 2002); see Fig. 2.1.", r"z = 2 y \tag{2.1}$$",
                   "*Fig. 2.1. A line.*", "print('stored', 1 + 1)\n```\n\n```text\nstored 2\n```"):
        assert wanted in text


def check_numbers(root: Path) -> None:
    """The equations and figures of every plain notebook have the numbers of the page beside it."""
    folder = root / "book/_build/html/notebooks"
    plain = sorted(folder.rglob("*.ipynb"))
    assert plain
    for path in plain:
        nb = json.loads(path.read_text("utf8"))
        text = "\n".join(source(cell) for cell in nb["cells"] if cell["cell_type"] == "markdown")
        written = re.findall(r"\\tag\{([\d.]+)\}", text), re.findall(r"^\*Fig\. ([\d.]+)\. ", text, re.M)
        shown = page(root, path.relative_to(folder).with_suffix("").as_posix())
        numbers = (re.findall(r'<span class="eqno">\(([\d.]+)\)', shown),
                   re.findall(r'<span class="caption-number">Fig\. ([\d.]+) ', shown))
        assert written == numbers


def test_plain_notebooks_have_the_numbers_of_the_pages(small_book):
    check_numbers(small_book)


def test_plain_notebooks_have_the_numbers_of_the_book():
    if not (ROOT / "book/_build/html/index.html").is_file():
        pytest.skip("the book has not been built: make book")
    check_numbers(ROOT)


def test_incremental_builds_stop_and_recover(small_book):
    wrong = [c.replace("check [eq-beta-double] and", "check [eq-beta-treble] and") for c in BETA]
    try:
        save(small_book, "models/beta", wrong)
        for _ in range(2):  # a stop is not forgotten by a second try
            done = build(small_book, "--incremental")
            assert (
                done.returncode
                and "nbs/models/beta.ipynb, cell 5 (id c5): label eq-beta-treble is unknown"
                in done.stderr
            )
            assert "equation eq-beta-double has no check" in done.stderr

        save(small_book, "models/beta", [c.replace("by hand", "three doubled") for c in BETA])
        done = build(small_book, "--incremental")
        assert done.returncode == 0, done.stdout + done.stderr
        # the index, and the page of the equation, which has not changed itself
        for name in ("equations", "foundations/alpha"):
            assert "three doubled" in page(small_book, name) and "by hand" not in page(small_book, name)

        # the extension stops by itself too, although no page is read anew
        save(small_book, "models/beta", wrong)
        render = subprocess.run([sys.executable, "-c", "import build; build.render()"],
                                cwd=small_book / "book", capture_output=True, text=True)
        assert render.returncode and "label eq-beta-treble is unknown" in render.stderr
    finally:
        save(small_book, "models/beta", BETA)
        done = build(small_book, "--incremental")
    assert (
        done.returncode == 0
        and "by hand" in page(small_book, "equations")
        and "three doubled" not in page(small_book, "equations")
    )


def test_outputs_are_used_again_until_what_they_rest_on_changes(small_book, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(small_book, root, ignore=shutil.ignore_patterns(".doctrees", "html"))
    results = root / "benchmarks/results"
    results.mkdir(parents=True)

    def executed():
        done = build(root, "--execute")
        assert done.returncode == 0, done.stdout + done.stderr
        return {line.split()[-1] for line in done.stdout.splitlines() if " s  " in line}

    both = {"foundations/alpha", "models/beta"}
    assert executed() == set() and not (root / "book/_build/html").exists()
    (results / "numbers.json").write_text("{}")
    assert executed() == both and executed() == set()
    module = root / "rbmdiff/foundations/alpha.py"
    module.write_text(module.read_text() + "# changed\n")
    assert executed() == both
    save(root, "models/beta", [c.replace("by hand", "three doubled") for c in BETA])
    assert executed() == {"models/beta"}
    save(root, "models/beta", [c.replace("assert", "assert False, ") for c in BETA])
    done = build(root, "--execute")
    assert done.returncode and "nbs/models/beta.ipynb" in done.stderr


def test_figure_without_caption_stops(small_book, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(small_book, root, ignore=shutil.ignore_patterns(".doctrees", "html"))
    save(root, "models/beta", BETA, {"mystnb": {"figure": {"name": "fig-beta-line"}}})
    done = build(root, "--incremental")
    assert (
        done.returncode
        and "nbs/models/beta.ipynb, cell 8 (id c8): figure without caption" in done.stderr
    )
    assert "cell 8 (id c8): figure without alternative text" in done.stderr
