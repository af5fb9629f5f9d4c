"""The whole book as one PDF: the built pages joined to one page, which Chromium prints.

Numbers are those of the screen, for they stand in the pages. Links between pages become links inside the
PDF; folded code is left out, derivations and solutions are open. The book is printed twice: the first
print says on which page every chapter starts, the second has these numbers in its contents.
"""
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
import tempfile

from bs4 import BeautifulSoup, Tag
import yaml

BOOK = Path(__file__).resolve().parent
HTML = BOOK / "_build/html"
PDF = BOOK / "_build/rbmdiff.pdf"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer",
         "--disable-background-networking", "--allow-file-access-from-files",
         "--generate-pdf-document-outline", "--virtual-time-budget=60000"]
LOST = "details.hide, .headerlink, .plain-notebook, script, .toctree-wrapper, button"
FRAME = """<!DOCTYPE html>
<html lang="en" data-theme="light" data-mode="light"><head><meta charset="utf-8"></head>
<body class="whole-book"><main class="bd-main"><article class="bd-article"></article></main></body>
</html>
"""
FIT = """\
// What is wider than the paper is set smaller, once the maths is set: all is measured, then changed.
function fit() {
  const boxes = [...document.querySelectorAll("div.math, table, pre")];
  const shares = boxes.map((box) => {
    const wide = [box, ...box.querySelectorAll("mjx-math")].map((part) => part.scrollWidth);
    return box.parentElement.clientWidth / Math.max(...wide);
  });
  boxes.forEach((box, i) => {
    if (shares[i] < 1) box.style.fontSize = `${Math.floor(97 * shares[i])}%`;
  });
}
addEventListener("load", () => MathJax.startup.promise.then(fit));
"""


def main() -> None:
    if not (HTML / "index.html").is_file(): raise SystemExit("ERROR: no pages; run 'make book' first")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None: raise SystemExit(f"ERROR: no browser to print with: {', '.join(BROWSERS)}")
    book = joined(parts(BOOK / "_toc.yml"))
    with tempfile.TemporaryDirectory() as folder:
        page, printed = HTML / "whole-book.html", Path(folder) / "book.pdf"
        try:
            for _ in range(2):  # the second time with the numbers of pages
                page.write_text(str(book), "utf8")
                print_page(browser, page, printed, Path(folder))
                enter_pages(book, starts(printed.read_bytes()))
        finally: page.unlink(missing_ok=True)
        shutil.move(printed, PDF)
    size = PDF.stat().st_size / 2**20
    print(f"{PDF}: {count_pages(PDF.read_bytes())} pages, {size:.1f} MB")


def parts(toc: Path) -> list[tuple[str, list[str]]]:
    """Captions of the parts and the pages in them, in order of reading; the landing page comes first."""
    contents = yaml.safe_load(toc.read_text("utf8"))
    return [("", [contents["root"]])] + [
        (part["caption"], [page for entry in part["chapters"] for page in below(entry)])
        for part in contents["parts"]
    ]


def below(entry: dict) -> list[str]:
    """A page of the contents and the pages under it."""
    pages = [entry["file"]] if "file" in entry else []
    if "glob" in entry:
        pages = sorted(path.relative_to(HTML).with_suffix("").as_posix()
                       for path in HTML.glob(f"{entry['glob']}.html"))
    return list(dict.fromkeys([*pages, *(p for e in entry.get("sections", []) for p in below(e))]))


def joined(contents: list[tuple[str, list[str]]]) -> BeautifulSoup:
    """One page with all of them, the contents after the first."""
    pages = {name: read(HTML / f"{name}.html") for _, names in contents for name in names}
    book = BeautifulSoup(FRAME, "html.parser")
    fill_head(book, pages)
    articles = {name: article(page, name, set(pages)) for name, page in pages.items()}
    article_of_book = book.select_one("article")
    first, *rest = articles.values()
    for section in (first, list_of_contents(contents, articles), *rest):
        article_of_book.append(section)
    return book


def read(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text("utf8"), "html.parser")


def fill_head(book: BeautifulSoup, pages: dict[str, BeautifulSoup]) -> None:
    """Title, stylesheets and maths of the pages; the rules of print from the start, and what sets wide
    things smaller by them.
    """
    seen = set()
    for name, page in pages.items():
        for tag in page.select("title, link[rel=stylesheet], script"):
            place = tag.get("href") or tag.get("src") or ""
            if tag.name == "script" and "mathjax" not in f"{place}{tag.string}".lower(): continue
            for key in ("href", "src"):
                if tag.get(key): tag[key] = resolved(tag[key], name)
            text = str(tag) if tag.name != "title" else tag.name
            if text in seen: continue
            seen.add(text)
            book.head.append(tag)
    paper = (HTML / "_static/print.css").read_text("utf8").replace("@media print", "@media all")
    for kind, text in (("style", paper), ("script", FIT)):
        tag = book.new_tag(kind)
        tag.string = text
        book.head.append(tag)


def article(page: BeautifulSoup, name: str, names: set[str]) -> Tag:
    """The text of a page, its anchors and links made unique in the book."""
    text = page.select_one("article.bd-article")
    text.name, text.attrs = "section", {"class": "book-page", "id": slug(name)}
    for lost in text.select(LOST):
        if not lost.decomposed: lost.decompose()
    for tag in text.find_all(True):
        if tag.get("id"): tag["id"] = anchor(name, tag["id"])
        if tag.get("src"): tag["src"] = resolved(tag["src"], name)
        for key in ("href", "aria-labelledby", "marker-end"):
            if tag.get(key): tag[key] = linked(tag[key], key, name, names)
        if tag.get("href") == "": del tag["href"]
    return text


def slug(name: str) -> str:
    """The anchor of a page."""
    return name.replace("/", "-").replace(".", "-")


def anchor(name: str, identity: str) -> str:
    """The anchor of a place on a page."""
    return f"{slug(name)}--{identity}" if identity else slug(name)


def resolved(address: str, name: str) -> str:
    """An address on a page as seen from the top of the book; addresses outside stay."""
    if re.match(r"[a-z]+:|//|#", address): return address
    return os.path.normpath(os.path.join(os.path.dirname(name), address))


def linked(value: str, key: str, name: str, names: set[str]) -> str:
    """A link of a page in the whole book: to an anchor, outside, or nowhere (empty)."""
    if key == "aria-labelledby": return anchor(name, value)
    if key == "marker-end": return re.sub(r"#([\w-]+)", lambda m: f"#{anchor(name, m[1])}", value)
    if value.startswith("#"): return f"#{anchor(name, value[1:])}"
    page, _, place = resolved(value, name).partition("#")
    if page.removesuffix(".html") in names: return f"#{anchor(page.removesuffix('.html'), place)}"
    return value if re.match(r"(https?|mailto):", value) else ""


def list_of_contents(contents: list, articles: dict[str, Tag]) -> Tag:
    """Parts, chapters and sections with room for the numbers of their pages."""
    lines = ["<section class='book-page book-contents'><h1>Contents</h1>"]
    for caption, names in contents:
        if caption: lines.append(f"<p class='part'>{caption}</p>")
        for name in names:
            levels = ["h1"] if name.startswith("api/") else ["h1", "h2"]
            for heading in articles[name].find_all(levels):
                kind, place = ("chapter", slug(name)) if heading.name == "h1" else (
                    "part-of-chapter", heading.parent["id"])
                lines.append(f"<p class='{kind}'><a href='#{place}'>{heading.decode_contents()}</a>"
                             "<span class='page'></span></p>")
    return BeautifulSoup("".join([*lines, "</section>"]), "html.parser").section


def print_page(browser: str, page: Path, pdf: Path, profile: Path) -> None:
    """Have the browser print a page to a file."""
    pdf.unlink(missing_ok=True)
    done = subprocess.run([browser, *FLAGS, f"--user-data-dir={profile}", f"--print-to-pdf={pdf}",
                           page.as_uri()], capture_output=True, text=True, timeout=3600)
    if not pdf.is_file(): raise SystemExit(f"ERROR: nothing was printed\n{done.stderr}")


def page_objects(pdf: bytes) -> list[bytes]:
    """The numbers of the page objects of a PDF of Chromium, in order."""
    return re.findall(rb"^(\d+) 0 obj\s*<</Type /Page\b", pdf, re.MULTILINE)


def count_pages(pdf: bytes) -> int:
    """How many pages a PDF has."""
    return len(page_objects(pdf))


def starts(pdf: bytes) -> dict[str, int]:
    """Anchor to the number of its page."""
    number = {identity: n for n, identity in enumerate(page_objects(pdf), 1)}
    return {name.decode(): number[identity]
            for name, identity in re.findall(rb"/([\w-]+) \[(\d+) 0 R /XYZ", pdf)}


def enter_pages(book: BeautifulSoup, pages: dict[str, int]) -> None:
    """Write the numbers of pages into the contents."""
    for line in book.select(".book-contents p:has(> a)"):
        line.select_one(".page").string = str(pages.get(line.a["href"][1:], ""))


if __name__ == "__main__":
    sys.exit(main())
