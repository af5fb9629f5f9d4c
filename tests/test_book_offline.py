"""The built pages ask nothing of the network: read as files, and opened in headless Chromium with its
requests recorded.
"""
from html.parser import HTMLParser
import json
from pathlib import Path
import re
import shutil
import subprocess

import pytest

from bookmaker import ROOT

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--disable-component-update", "--disable-sync",
         "--no-first-run", "--virtual-time-budget=10000", "--dump-dom"]
OUTSIDE = re.compile(r"(https?:)?//")
CSS = re.compile(r"url\(\s*['\"]?\s*((?:https?:)?//[^)'\"]*)|@import\s+['\"]((?:https?:)?//[^'\"]*)")
FETCHED = {"script": ["src"], "img": ["src", "srcset"], "iframe": ["src"], "source": ["src", "srcset"],
           "video": ["src", "poster"],
           "audio": ["src"], "embed": ["src"], "object": ["data"], "image": ["href"], "use": ["href"],
           "input": ["src"]}
LINKS = {"stylesheet", "preload", "modulepreload", "prefetch", "preconnect", "dns-prefetch", "icon",
         "manifest"}
CODE = re.compile(
    r"(?:fetch|import|importScripts|WebSocket|EventSource|sendBeacon)\(\s*['\"`](?:https?:)?//"
    r"|\.src\s*=\s*['\"`](?:https?:)?//|THEBE_JS_URL"
)


class Resources(HTMLParser):
    """Collects every outside address that a browser would load without being asked."""

    def __init__(self):
        super().__init__()
        self.found, self.inside = [], ""

    def handle_starttag(self, tag, attributes):
        given, self.inside = {k: v or "" for k, v in attributes}, tag
        wanted = FETCHED.get(tag, []) + (["href"] if tag == "link"
                                         and LINKS & set(given.get("rel", "").split()) else [])
        self.found += [given[a] for a in wanted if OUTSIDE.match(given.get(a, "").strip())]
        self.found += [m[0] for m in CSS.finditer(given.get("style", ""))]

    def handle_data(self, data):
        if self.inside == "style": self.found += [m[0] for m in CSS.finditer(data)]
        if self.inside == "script": self.found += [m[0] for m in CODE.finditer(data)]

    def handle_endtag(self, tag):
        self.inside = ""


def outside(text: str) -> list[str]:
    """Outside addresses that a page with this text would load."""
    reader = Resources()
    reader.feed(text)
    return reader.found


def pages(html: Path) -> list[Path]:
    found = [p for p in html.rglob("*.html") if "_static" not in p.parts]
    assert len(found) > 5
    return sorted(found)


@pytest.fixture(params=["small", "real"])
def html(request):
    """The pages of a small book and, if it has been built, of the book itself."""
    if request.param == "small": return request.getfixturevalue("small_book") / "book/_build/html"
    if not (ROOT / "book/_build/html/index.html").is_file():
        pytest.skip("the book has not been built: make book")
    return ROOT / "book/_build/html"


@pytest.mark.parametrize("text", ['<script src="https://a.example/x.js"></script>',
                                  '<link rel="stylesheet" href="//a.example/x.css">',
                                  '<img src="http://a.example/x.png">',
                                  '<p style="background: url(https://a.example/x.png)">',
                                  '<style>@import "https://a.example/x.css";</style>',
                                  '<script>fetch("https://a.example/x")</script>',
                                  '<svg><image href="https://a.example/x.png"/></svg>'])
def test_the_reader_finds_each_kind(text):
    assert outside(text)
    assert not outside(re.sub(r"(https?:)?//a\.example/", "", text))


def test_pages_name_no_outside_resource(html):
    found = {p.name: f for p in pages(html) if (f := outside(p.read_text("utf8")))}
    assert not found


def test_stylesheets_name_no_outside_resource(html):
    found = {p.name: m[0] for p in (html / "_static").rglob("*.css")
             if (m := CSS.search(p.read_text("utf8")))}
    assert not found


def browse(address: str, folder: Path) -> tuple[str, list[str]]:
    """The page as Chromium shows it, and the outside addresses that pages asked for (not those of the
    browser itself).
    """
    browser = (
        shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    )
    if not browser: pytest.skip("no chromium on this machine")
    log = folder / "net.json"
    done = subprocess.run([browser, *FLAGS, f"--user-data-dir={folder / 'profile'}",
                           f"--log-net-log={log}", address], capture_output=True, text=True, timeout=120)
    data = json.loads(log.read_text())
    start = data["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    asked = [e["params"] for e in data["events"] if e["type"] == start and "url" in e.get("params", {})]
    return done.stdout, [p["url"] for p in asked if p.get("initiator") != "not an origin"
                         and p["url"].startswith("http")]


def frames(folder: Path, addresses: list[str]) -> str:
    """One page that opens all of them."""
    (folder / "frames.html").write_text("".join(f'<iframe src="{a}" width="1200" height="900"></iframe>'
                                                for a in addresses))
    return (folder / "frames.html").as_uri()


def test_chromium_sees_a_request_where_there_is_one(tmp_path):
    (tmp_path / "bad.html").write_text(
        '<img src="http://a.example.invalid/x.png"><script>fetch("https://b.example.invalid/y")</script>'
    )
    _, asked = browse(frames(tmp_path, [(tmp_path / "bad.html").as_uri()]), tmp_path)
    assert sorted(asked) == ["http://a.example.invalid/x.png", "https://b.example.invalid/y"]


def test_chromium_sees_no_request(html, tmp_path):
    found = [page.as_uri() for page in pages(html)]
    for first in range(0, len(found), 8):
        folder = tmp_path / str(first)
        folder.mkdir()
        assert browse(frames(folder, found[first:first + 8]), folder)[1] == []


def test_maths_is_set_and_search_finds_without_a_server(small_book, tmp_path):
    html = small_book / "book/_build/html"
    shown, _ = browse((html / "foundations/alpha.html").as_uri(), tmp_path)
    assert "<mjx-container" in shown
    found, _ = browse((html / "search.html").as_uri() + "?q=square", tmp_path)
    assert "foundations/alpha.html" in found.split('id="search-results"')[1]
