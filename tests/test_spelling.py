"""One spelling in the prose of the book: -ise, colour, centre; titles of works and code keep theirs."""
import json
import re

import pytest

from bookmaker import ROOT
from forms import source

NOT_PROSE = re.compile(r"```.*?```|`[^`]*`|\$\$.*?\$\$(?: \([\w-]+\))?|\$[^$\n]+\$|\]\([^)]*\)"
                       r"|(?<!\*)\*[^*\n]+\*(?!\*)|[Nn]ormalizing flows", re.DOTALL)
AMERICAN = re.compile(
    r"\b(?!(?:over|re|down|up)?siz|pri[sz]e|seiz|horizon)[a-z]+iz(?:e[drs]?|ers|ing|ations?)\b"
    r"|\b(?:colors?|gray|centers?|centered|behaviors?|neighbors?|model(?:ing|ed)|favors?)\b",
    re.IGNORECASE)
NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))
PAGES = [*sorted((ROOT / "book").glob("*.md")), ROOT / "README.md", *NOTEBOOKS]


def american(text):
    """Words of the other spelling in a text, outside of code, maths, addresses and titles in italics."""
    return AMERICAN.findall(NOT_PROSE.sub(" ", text))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_prose_has_one_spelling(path):
    text = path.read_text("utf8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        prose = [source(cell) for cell in cells if cell["cell_type"] == "markdown"]
        text = "\n\n".join(cell.split("## References")[0] for cell in prose)
    assert american(text) == []


def test_the_other_spelling_is_seen():
    assert american("We minimize and normalized the color of normalizing flows, *Minimizing color*, "
                    "`optimizer`, $\\text{color}$, of one size.") == ["minimize", "normalized", "color"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_sigmoid_is_written_in_one_way(path):
    assert "varsigma" not in path.read_text("utf8")
