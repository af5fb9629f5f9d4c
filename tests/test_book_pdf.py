"""The whole book as one PDF: what is joined, and what Chromium prints of it."""
import re
import shutil
import subprocess
import sys

import pytest

from bookmaker import ROOT

sys.path.insert(0, str(ROOT / "book"))
import pdf


@pytest.fixture(scope="module")
def book(small_book):
    """The small book joined to one page."""
    before = pdf.HTML
    pdf.HTML = small_book / "book/_build/html"
    yield pdf.joined(pdf.parts(small_book / "book/_toc.yml"))
    pdf.HTML = before


def test_every_page_is_joined_in_order(book):
    found = [tag["id"] for tag in book.select(".book-page[id]")]
    assert "book-contents" in book.select(".book-page")[1]["class"]        # after the landing page
    assert found[0] == "index" and found.index("foundations-alpha") < found.index("models-beta")
    assert {"notation", "equations", "errata", "references", "api-index", "api-models-beta"} < set(found)
    assert "(1.1)" in book.text and "Exercise 1.1" in book.text and "Fig. 2.1" in book.text


def test_anchors_are_unique_and_links_lead_to_them(book):
    anchors = [tag["id"] for tag in book.find_all(id=True)]
    assert len(anchors) == len(set(anchors))
    links = [tag["href"] for tag in book.select("a[href]")]
    assert any("alpha--equation-eq-alpha-square" in link for link in links)
    lost = [link for link in links if link.startswith("#") and link[1:] not in anchors]
    assert not lost
    assert all(re.match(r"#|https?:|mailto:", link) for link in links)
    places = [tag["src"] for tag in book.select("img[src]") if not tag["src"].startswith("data:")]
    assert places and all((pdf.HTML / place).is_file() for place in places)


def test_folded_code_is_left_out_and_its_output_stays(book):
    alpha = book.select_one("#foundations-alpha")
    assert "def square" in alpha.text and "assert square" not in alpha.text
    assert not alpha.select("details")
    assert alpha.select_one("#foundations-alpha--cell-c5").text.strip() == "9"
    assert "nine is" not in alpha.text                                    # code of a solution
    assert "It is" in alpha.select_one(".solution").text


def test_contents_name_chapters_and_sections(book):
    lines = [line.a.text for line in book.select(".book-contents p:has(a)")]
    assert "1. Alpha: the first" in lines and "1.1. A square" in lines and "2. Beta" in lines
    assert [line.text for line in book.select(".book-contents .part")][1:] == ["Rooms", "Reference"]


def test_the_book_is_printed_with_numbers_of_pages(small_book):
    if not any(map(shutil.which, pdf.BROWSERS)): pytest.skip("no chromium on this machine")
    done = subprocess.run([sys.executable, small_book / "book/pdf.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    printed = (small_book / "book/_build/rbmdiff.pdf").read_bytes()
    pages = pdf.count_pages(printed)
    assert printed.startswith(b"%PDF") and f"{pages} pages" in done.stdout and pages > 8
    starts = pdf.starts(printed)
    order = [starts[name] for name in ("index", "notation", "foundations-alpha", "models-beta",
                                       "references")]
    assert order == sorted(set(order)) and order[-1] <= pages
    assert b"/Outlines" in printed
    assert not (small_book / "book/_build/html/whole-book.html").exists()
