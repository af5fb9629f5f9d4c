"""All pages in Chromium, on a wide screen and on a phone: nothing is cut, nothing is squashed, no page
scrolls sideways; what scrolls inside itself shows a bar and can be reached by the keyboard. And axe-core
finds nothing.
"""
from importlib.util import find_spec
import json
from pathlib import Path
from urllib.parse import quote

import pytest

from bookmaker import ROOT
from browser import TESTS, ask, pages

WIDE, PHONE = 1400, 420
TEN = ["index.html", "map.html", "equations.html", "glossary.html", "environment.html", "search.html",
       "api/models.rbm.html", "start/ten_minutes.html", "models/rbm.html", "bridge/comparison.html"]
SMALL = ["index.html", "map.html", "equations.html", "api/index.html", "models/beta.html"]
FITS_ALWAYS = {"equation", "output", "squashed", "outside", "page", "no bar", "no focus"}
FITS = {WIDE: FITS_ALWAYS | {"code"}, PHONE: FITS_ALWAYS}
LONG = "x" * 300
RED = "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' width='400' height='100'/>"
SCROLL = "overflow-x: auto; white-space: pre"
DEFECTS = {"code": f'<pre style="{SCROLL}">{LONG}</pre>',
           "output": f'<div class="cell_output"><pre style="{SCROLL}">{LONG}</pre></div>',
           "equation": f'<mjx-container display style="display: block; {SCROLL}">{LONG}</mjx-container>',
           "table": f'<div class="result-table" style="{SCROLL}">{LONG}</div>',
           "squashed": f'<img src="{RED}" style="width: 200px; height: 200px">',
           "outside": f'<p style="white-space: pre">{LONG}</p>',
           "page": '<div style="width: 2000px; height: 1px"></div>',
           "no bar": "<style>pre::-webkit-scrollbar { height: 0 }</style>"
                     f'<pre style="{SCROLL}">{LONG}</pre>',
           "no focus": f'<pre style="{SCROLL}">{LONG}</pre>'}
GOOD = f"""<pre style="white-space: pre-wrap; overflow-wrap: anywhere">{LONG}</pre><p>{'x ' * 900}</p>
<img src="{RED}" style="width: 200px">"""


ROOMS = ["", "api", "start", "models", "sampling", "learning", "diffusion", "bridge", "practice",
         "foundations"]


def whole_book() -> Path:
    """The pages of the book itself; the test is skipped if it has not been built."""
    html = ROOT / "book/_build/html"
    if not (html / "index.html").is_file(): pytest.skip("the book has not been built: make book")
    return html


@pytest.fixture(scope="module", params=["small", *(f"{room}/" for room in ROOMS)])
def part(request):
    """A folder and the names of pages in it: all of a small book; then the book, room by room."""
    if request.param == "small":
        html = request.getfixturevalue("small_book") / "book/_build/html"
        return html, pages(html)
    html = whole_book()
    return html, [page for page in pages(html) if f"{page.rpartition('/')[0]}/" == request.param]


def article(body: str) -> str:
    """A page with this body."""
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>x</title>'
    return f"{head}<article>{body}</article>"


def kinds(found: list[str]) -> set[str]:
    """The kinds of what was found."""
    return {text.split(":")[0] for text in found}


def measured(folder: Path, names: list[str], tmp_path: Path) -> list[dict]:
    """What does not fit on pages at each width: pairs of the width and a text, as `found`."""
    jobs = [{"page": page, "width": WIDE, "widths": list(FITS)} for page in names]
    return ask(folder, jobs, [TESTS / "measure.js"], tmp_path / "profile")


def test_each_defect_is_found(tmp_path):
    for name, body in {**DEFECTS, "good": GOOD}.items():
        (tmp_path / f"{name}.html").write_text(article(body))
    for answer in measured(tmp_path, [f"{name}.html" for name in [*DEFECTS, "good"]], tmp_path):
        name = answer["page"].removesuffix(".html")
        if name == "good": assert answer["found"] == []
        for width in FITS:
            found = kinds([text for at, text in answer["found"] if at == width])
            assert name == "good" or name in found, answer


def test_the_rooms_are_the_whole_book():
    html = whole_book()
    assert {page.rpartition("/")[0] for page in pages(html)} == set(ROOMS)


def test_nothing_is_cut_or_squashed_on_a_wide_screen_and_on_a_phone(part, tmp_path):
    html, names = part
    assert names
    wrong = [f"{a['page']} at {width}: {text}" for a in measured(html, names, tmp_path)
             for width, text in a["found"] if text.split(":")[0] in FITS[width]]
    assert not wrong, "\n".join(wrong)


def axe() -> str:
    """The script of axe-core, from whichever package brings it; without one the test is skipped."""
    for name in ("axe_core_python", "axe_playwright_python"):
        spec = find_spec(name)
        path = Path(spec.origin).with_name("axe.min.js") if spec and spec.origin else None
        if path and path.is_file(): return path.read_text("utf8")
    pytest.skip("no axe-core on this machine: pip install axe-core-python")


def violations(folder: Path, names: list[str], tmp_path: Path) -> list[str]:
    """What axe-core finds on pages, in both themes."""
    script = tmp_path / "axe.js"
    script.write_text(f"const AXE = {json.dumps(axe())};\n" + (TESTS / "axe.js").read_text())
    jobs = [{"page": page, "width": WIDE, "theme": theme} for page in names
            for theme in ("light", "dark")]
    answers = ask(folder, jobs, [script], tmp_path / "profile")
    return [f"{a['page']}, {a['theme']}: {text}" for a in answers for text in a["found"]]


def test_axe_finds_a_picture_without_words(tmp_path):
    (tmp_path / "bad.html").write_text(article(f'<h1>x</h1><img src="{RED}">'))
    assert "image-alt" in "".join(violations(tmp_path, ["bad.html"], tmp_path))


@pytest.mark.parametrize("page", SMALL)
def test_axe_finds_nothing_in_a_small_book(page, small_book, tmp_path):
    wrong = violations(small_book / "book/_build/html", [page], tmp_path)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", TEN)
def test_axe_finds_nothing(page, tmp_path):
    wrong = violations(whole_book(), [page], tmp_path)
    assert not wrong, "\n".join(wrong)


QUERIES = {"annealed importance sampling": "learning/partition", "AIS": "learning/partition",
           "partition function": "learning/partition",
           "contrastive divergence": "learning/contrastive", "PCD": "learning/contrastive",
           "probability flow": "diffusion/likelihood", "mean field": "sampling/means",
           "effective sample size": "sampling/diagnostics", "R-hat": "sampling/diagnostics",
           "dequantisation": "diffusion/networks", "gibbs sampling": "sampling/gibbs",
           "score matching": "learning/score_matching",
           "denoising score matching": "diffusion/objective",
           "ELBO": "diffusion/elbo", "DEIS": "diffusion/deis", "DDIM": "diffusion/ddpm",
           "tweedie": "diffusion/schedule", "free energy": "models/rbm", "gumbel": "bridge/gumbel",
           "recovery likelihood": "bridge/recovery"}


def first(folder: Path, queries: list[str], tmp_path: Path) -> dict[str, str]:
    """The page that the search of a book puts first for each query."""
    jobs = [{"page": f"search.html?q={quote(query)}", "query": query, "width": WIDE}
            for query in queries]
    answers = ask(folder, jobs, [TESTS / "search.js"], tmp_path / "profile")
    return {a["query"]: a["found"][0].removesuffix(".html") if a["found"] else "" for a in answers}


def test_the_search_puts_the_chapter_of_a_term_first(small_book, tmp_path):
    html = small_book / "book/_build/html"
    assert first(html, ["straight line", "qwxyz"], tmp_path) == {
        "straight line": "models/beta", "qwxyz": ""}


def test_the_search_puts_the_right_chapter_first(tmp_path):
    assert first(whole_book(), list(QUERIES), tmp_path) == QUERIES


def test_the_filter_of_the_index_shows_what_is_asked_for(small_book, tmp_path):
    square, double = "eq-alpha-square", "eq-beta-double"
    wanted = {"": ["", square, double], "double": ["1 equation", double],
              "Alpha": ["1 equation", square], "BETA double": ["1 equation", double],
              "qwxyz": ["0 equations"]}
    jobs = [{"page": "equations.html", "width": WIDE, "query": query} for query in wanted]
    answers = ask(small_book / "book/_build/html", jobs, [TESTS / "filter.js"], tmp_path / "profile")
    assert {a["query"]: a["found"] for a in answers} == wanted
