"""The pages that the build writes: map, reference of the package; the front matter and the references.
"""
import ast
from html import unescape
import json
import re
import sys

from bookmaker import ROOT, notebook
from forms import source

sys.path.insert(0, str(ROOT / "book"))
import build
import glossary
import pages

MODULE = '''"""Summary line."""
__all__ = ["f", "Model", "Child", "Point"]
def f(x: Tensor, k=1) -> Tensor:
    """Of `x` [..., D] and 2**k [eq-a-b]; see https://a.example/b_c."""
def g(): pass
class _Base:
    def mean(self, v): "Old."
    def shared(self): "Of the base."
class Model(_Base):
    """A model."""
    def __init__(self, n: int): pass
    @classmethod
    def load(cls, path: str): "Read."
    def mean(self, v): "New."
    def silent(self, v): pass
    @property
    def sigma(self) -> Tensor: "Widths."
    @sigma.setter
    def sigma(self, value: Tensor): pass
    def __call__(self, x: Tensor) -> Tensor: "Apply."
    def _own(self): "Hidden."
class Child(Model):
    def mean(self, v): "Newest."
@dataclass
class Point:
    x: float
    y: float = 0.0
    unit: ClassVar[str] = "m"
'''


def chapters(**prerequisites):
    """Chapters by name, each with links to the ones that it needs."""
    return {f"models/{name}": notebook([f"markdown|# {name.title()}: more", "markdown|**Prerequisites** "
                                        + ", ".join(f"[x]({n}.ipynb)" for n in needs)])
            for name, needs in prerequisites.items()}


def test_prerequisites():
    books = chapters(a=[], b=["a"], c=["a", "b"], d=["a", "../other/none"])
    needs = pages.prerequisites(books)
    assert needs == {"models/a": [], "models/b": ["models/a"], "models/c": ["models/a", "models/b"],
                     "models/d": ["models/a"]}
    assert pages.direct(needs)["models/c"] == ["models/b"]


def test_map_has_a_link_a_caption_and_words_for_every_chapter():
    drawn = pages.chapter_map(chapters(a=[], b=["a"]))
    assert drawn.count("<a href=") == 2 and "<desc>A needs nothing. B needs A.</desc>" in drawn
    assert "<figcaption>" in drawn and drawn.count("marker-end") == 1
    assert "role=" not in drawn  # a picture may not hold links


def the_map() -> tuple[str, list[str]]:
    """The map of the book, and its chapters in order."""
    order = build.contents()
    return pages.chapter_map({c: json.loads((ROOT / f"nbs/{c}.ipynb").read_text("utf8"))
                              for c in order}), order


def test_map_shows_whole_titles_in_the_order_of_the_book():
    drawn, order = the_map()
    links = re.findall(r'<a href="([^"]+)\.html">.*?<text>(.*?)</text></a>', drawn)
    wanted = [chapter for chapter in order if chapter.split("/")[0] in pages.ROOMS]
    assert [chapter for chapter, _ in links] == wanted and "…" not in drawn
    for chapter, words in links:
        shown = " ".join(re.findall(r"<tspan[^>]*>(.*?)</tspan>", words))
        assert unescape(shown) == pages.stored_title(chapter)
    tops = [float(y) for y in re.findall(r'<rect class="room" x="0.5" y="(\d+)"', drawn)]
    assert tops == sorted(tops)


def behind_a_box(drawn: str) -> list[str]:
    """The paths that enter the column of the boxes."""
    width = int(re.search(r'<rect x="0.5" y="\d+" width="(\d+)"', drawn)[1])
    paths = re.findall(r'<path d="([^"]+)" marker-end', drawn)
    return [path for path in paths if any(float(x) < width for x in re.findall(r"[MH](\d+)", path))]


def test_no_line_of_the_map_is_behind_a_box_and_no_two_lie_on_each_other():
    drawn, _ = the_map()
    assert behind_a_box(drawn) == [] and behind_a_box(drawn.replace("H252", "H100", 1))
    lanes = {}
    for group in re.findall(r'<g style="stroke[^>]*>(.*?)</g>', drawn):
        for y, x, end in re.findall(r'M\d+ (\d+)H(\d+)V(\d+)', group):
            near = [lane for lane in lanes.get(x, []) if lane[0] != y
                    and min(int(y), int(end)) < lane[2] and lane[1] < max(int(y), int(end))]
            assert not near
            lanes.setdefault(x, []).append((y, min(int(y), int(end)), max(int(y), int(end))))


def test_lanes_that_would_overlap_stand_side_by_side():
    needs = {"a": [], "b": [], "c": ["a"], "d": ["b"], "e": ["d"]}
    found = pages.lanes(needs, list(needs))
    assert found["a"] != found["b"] and set(found) == {"a", "b", "d"}


def test_runtimes_stand_under_the_titles_of_chapters():
    shown = pages.environment({"models/rbm": 3.0})
    assert "| [The restricted Boltzmann machine](models/rbm.ipynb) | 3.0 |" in shown


def glossary_entries():
    return glossary.read((ROOT / "book/glossary.md").read_text("utf8"))


def test_every_term_of_the_glossary_has_one_sentence_and_a_chapter():
    entries, order = glossary_entries(), build.contents()
    names = [name for terms, _ in entries for name in terms]
    assert len(entries) >= 60 and len(names) == len(set(names))
    assert [terms for terms, chapter in entries if chapter not in order] == []
    assert [t[0].lower() for t, _ in entries] == sorted(t[0].lower() for t, _ in entries)


def test_a_term_without_a_link_has_no_chapter():
    text = "```{glossary}\na\nb\n  Of [B](models/b.ipynb), [C](models/c.ipynb).\n\nc\n  None.\n```\n"
    assert glossary.read(text) == [(["a", "b"], "models/b"), (["c"], "")]


def files_of(folder, module):
    """The pages of a package of one module."""
    (folder / "rbmdiff/models").mkdir(parents=True)
    (folder / "rbmdiff/models/a.py").write_text(module)
    return pages.reference(folder, {"models/a": notebook(["code|#| default_exp models.a",
                                                          "markdown|# The letter A"])})


def test_reference_page(tmp_path):
    files = files_of(tmp_path, MODULE)
    page = files["api/models.a.md"]
    assert re.findall(r"^##+ (.*)$", page, re.MULTILINE) == [
        "f", "Model", "Model.load", "Model.mean", "Model.silent", "Model.sigma", "Model.__call__",
        "Child", "Child.mean", "Point"]
    assert (
        "f(x: Tensor, k=1) -> Tensor\n" in page
        and "class Model(n: int)\n" in page
        and "@classmethod\nload(path: str)" in page
    )
    assert (
        "New." in page
        and "Old." not in page
        and "[The letter A](../models/a.ipynb)" in page
        and "rbmdiff/models/a.py:3" in page
    )
    assert r"Of `x` \[..., D\] and 2\*\*k \[eq-a-b\]; see https://a.example/b_c." in page
    assert "[models.a](models.a.md): Summary line." in files["api/index.md"]


def test_a_property_is_shown_by_its_reading_half(tmp_path):
    page = files_of(tmp_path, MODULE)["api/models.a.md"]
    assert "@property\nsigma: Tensor\n```\n\nWidths." in page and "setter" not in page


def test_inherited_methods_are_named_and_the_constructor_is_that_of_the_base(tmp_path):
    page = files_of(tmp_path, MODULE)["api/models.a.md"]
    child = page[page.index("## Child"):page.index("## Point")]
    assert "class Child(n: int)\n" in child and "Newest." in child and "New.\n" not in child
    assert (
        "Inherited from `Model`: `load`, `silent`, `sigma`, `__call__`.\n\nInherited: `shared`.\n"
        in child
    )
    assert page[:page.index("## Child")].count("Inherited: `shared`.") == 1
    assert "@dataclass\nclass Point(x: float, y: float = 0.0)" in page[page.index("## Point"):]


def test_long_signatures_are_folded():
    node = ast.parse("def f(" + ", ".join(f"argument_{i}: int" for i in range(12)) + "): pass").body[0]
    assert max(map(len, pages.signature(node, {}).split("\n"))) <= 100


def test_an_overloaded_function_is_listed_once():
    tree = ast.parse("__all__ = ['f']\n@overload\ndef f(x: int) -> int: ...\n@overload\ndef f(x: str) "
                     "-> str: ...\ndef f(x): 'Doc.'")
    assert [ast.get_docstring(n) for n in pages.public(tree)] == ["Doc."]


def test_every_chapter_stands_after_its_prerequisites_of_which_it_has_at_most_six():
    """The workshop stands at the back, to be looked up: outside it, no chapter asks for it."""
    order = build.contents()
    needs = pages.prerequisites({c: json.loads((ROOT / f"nbs/{c}.ipynb").read_text("utf8"))
                                 for c in order})
    assert [(c, p) for c in order for p in needs[c] if order.index(p) > order.index(c)] == []
    assert [c for c in order if len(needs[c]) > 6] == []
    workshop = [order.index(c) for c in order if c.startswith("foundations/")]
    assert workshop == list(range(len(order)))[-len(workshop):]


def test_every_citation_is_in_the_references():
    text = "".join(source(c) for p in (ROOT / "nbs").rglob("*.ipynb")
                   for c in json.loads(p.read_text("utf8"))["cells"])
    cited = {key.strip() for keys in re.findall(r"\{cite:p\}`([^`]+)`", text) for key in keys.split(",")}
    entries = (ROOT / "book/references.bib").read_text("utf8")
    known = re.findall(r"^@\w+\{(\w+),", entries, re.MULTILINE)
    assert cited <= set(known) and len(known) == len(set(known))


def test_every_reference_has_author_title_year():
    for key, body in re.findall(
        r"^@\w+\{(\w+),(.*?)^\}",
        (ROOT / "book/references.bib").read_text("utf8"),
        re.MULTILINE | re.DOTALL,
    ):
        assert "title = " in body and "author = " in body and re.search(r"year = \{\d{4}\}", body), key
