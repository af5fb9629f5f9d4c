"""The way in: the first page, the book in ten minutes, the README, and the numbers that they state."""
from copy import deepcopy
import json
import re
import sys

import pytest

from bookmaker import ROOT, notebook
from forms import folded, source

sys.path.insert(0, str(ROOT / "book"))
import front
import pages

TEN = ROOT / "nbs/start/ten_minutes.ipynb"


def stored(name):
    return json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())


def results():
    """What the pages state: text as printed, and the stored numbers behind it."""
    small, large = ({row["name"]: row for row in stored(name)["rows"]}
                    for name in ("comparison", "bridge_mnist"))
    proposal = stored("meanfield")["methods"]["proposal, s = 1/2"]["test"]
    bound, machine = small["CD-1, by the bound"], large["PCD-1, 120 epochs"]
    pairs = {"-18.95 ± 0.22": (bound["value"], bound["noise"]),
             "-28.6 ± 0.5": (proposal["value"], proposal["stderr"]),
             "-18.7 ± 0.2": (stored("recovery")["methods"]["CD-1"]["test"], small["CD-1"]["stderr"]),
             "-84.2 ± 0.2": (machine["value"], machine["stderr_images"])}
    for text, row in (("-25.2 ± 0.2", small["independent pixels"]),
                      ("-21.2 ± 0.3", small["diffusion, tilted MLP, small"]),
                      ("-17.4 ± 0.3", small["diffusion, tilted MLP"]),
                      ("-100.0 ± 0.3", large["diffusion, tilted MLP"])):
        pairs[text] = row["value"], row["stderr"]
    nets = {(row["data"], row["name"]): row for row in stored("autoregressive")["rows"]}
    for text, name in (("-16.8 ± 0.3", ("digits", "NADE")),
                       ("-19.2 ± 0.3", ("digits", "NADE, 838 parameters")),
                       ("-85.8 ± 0.2", ("mnist", "MADE 2000"))):
        pairs[text] = nets[name]["value"], nets[name]["stderr"]
    return pairs


def plain(text):
    return text.replace("−", "-").replace(r"\pm", "±").replace("$", "")


@pytest.mark.parametrize("page", ("README.md", "book/index.md"))
def test_results_are_the_stored_ones(page):
    text = " ".join(plain((ROOT / page).read_text("utf8")).split())
    for stated, numbers in results().items():
        assert stated in text, stated
        for shown, x in zip(stated.split(" ± "), numbers):
            assert f"{x:.{len(shown.split('.')[1])}f}" == shown
    small = {row["name"]: row for row in stored("comparison")["rows"]}
    assert f"{small['CD-1, by the bound']['exact']:.2f}" == "-18.70" and "-18.70" in text
    weights = small["diffusion, tilted MLP"]["parameters"] / small["CD-1"]["parameters"]
    assert round(weights) == 85 and "85 times" in text


def cells(kind):
    return [c for c in json.loads(TEN.read_text("utf8"))["cells"] if c["cell_type"] == kind]


def test_ten_minutes_are_ten_minutes():
    assert front.words(json.loads(TEN.read_text("utf8"))) <= 900
    shown = [source(c) for c in cells("code") if not folded(c)]
    assert sum(len(code.rstrip().split("\n")) for code in shown) < 60
    assert len(shown[0].rstrip().split("\n")) == 12 and shown[0].count("RBM(") == 1
    assert not any(source(c).startswith("#|") for c in cells("code"))              # no module


def test_five_differences_are_those_of_the_chapter():
    text = plain("".join(source(c) for c in cells("markdown")))
    chapter = json.loads((ROOT / "nbs/bridge/score.ipynb").read_text("utf8"))
    score = plain("".join(source(c) for c in chapter["cells"] if c["cell_type"] == "markdown"))
    rows = {re.split(r" *\| *", line)[1]: line for line in text.split("\n") if line.startswith("| ")}
    theirs = {re.split(r" *\| *", line)[1]: line for line in score.split("\n") if line.startswith("| ")}
    for ours, other in (("latent variables", "latent variables"), ("sampling", "sampling"),
                        ("the way back", "way back from them"), ("objective", "objective")):
        numbers = re.findall(r"\d+\.?\d*", rows[ours])
        assert numbers and set(numbers) <= set(re.findall(r"\d+\.?\d*", theirs[other])), ours


def test_words_that_are_read():
    nb = notebook(["# One two\n\n$$ x = y $$ (eq-a-b)\n\nThree {eq}`eq-a-b` [four](../a/b.ipynb) $z$.",
                   ":::{admonition} Solution 1\n:class: dropdown\nNot read.\n:::",
                   "code|not = 'read'"])
    assert front.words(nb) == 4


def test_picture_of_an_executed_chapter():
    nb = deepcopy(notebook(["figure|plot()"]))
    assert front.picture(nb, "fig-beta-line") == ""                                # not executed
    nb["cells"][0]["outputs"] = [{"data": {"image/png": "AA==\n"}}]
    assert 'src="data:image/png;base64,AA=="' in front.picture(nb, "fig-beta-line")
    nb["cells"][0]["metadata"]["mystnb"]["image"] = {"alt": 'A "rising" line'}
    assert 'alt="A &quot;rising&quot; line"' in front.picture(nb, "fig-beta-line")
    nb["cells"][0]["outputs"] = [{"data": {"image/png": "AA==", "text/html": ["<p>", "moves"]}}]
    assert front.picture(nb, "fig-beta-line") == "<p>moves"                    # what moves goes first
    assert front.picture(nb, "fig-other") == ""


def test_pages_without_a_room_are_not_on_the_map():
    books = {name: notebook([f"markdown|# {name}"]) for name in ("models/a", "start/b")}
    assert pages.chapter_map(books).count("<a href=") == 1


def test_first_page_has_the_figure_and_the_minutes(small_book):
    page = (small_book / "book/_build/html/index.html").read_text()
    assert re.search(r'<figure class="[^"]*front[^"]*"[^>]*>\s*<img src="data:image/png;base64,', page)
    assert page.count("<td class=\"text-right\"><p>1</p></td>") == 3
    assert "https://download.pytorch.org/whl/cpu" in re.sub("<[^>]*>", "", page)
