"""The pages that the build writes: map of chapters, environment table, reference of the package."""
import ast
from html import escape
from importlib.metadata import version
from importlib.util import find_spec
import inspect
import itertools
import json
import os
from pathlib import Path
import platform
import re
import sys
import textwrap

import yaml

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
from forms import source
from labels import module_of

ROOMS = {"foundations": "blue", "models": "vermilion", "sampling": "green", "learning": "purple",
         "diffusion": "orange", "bridge": "sky",
         "practice": "yellow"}
BOX, LANE = 250, 9  # width of a box of the map, distance of its lines


def title(nb: dict) -> str:
    """The title of a chapter."""
    text = next(source(c) for c in nb["cells"] if c["cell_type"] == "markdown"
                and source(c).startswith("# "))
    return text.split("\n")[0][2:].strip()


def stored_title(chapter: str) -> str:
    """The title of a chapter by its name."""
    path = Path(__file__).parent.parent / f"nbs/{chapter}.ipynb"
    return title(json.loads(path.read_text("utf8")))


def prerequisites(notebooks: dict[str, dict]) -> dict[str, list[str]]:
    """Chapter to the chapters that its own **Prerequisites** paragraph links to."""
    needs = {}
    for chapter, nb in notebooks.items():
        text = "\n\n".join(source(c) for c in nb["cells"] if c["cell_type"] == "markdown")
        paragraph = re.search(r"^\*\*Prerequisites\*\*(.*?)(?:\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
        links = re.findall(r"\]\(([^)#]+)\.ipynb", paragraph[1] if paragraph else "")
        targets = [os.path.normpath(os.path.join(os.path.dirname(chapter), link)) for link in links]
        needs[chapter] = [t for t in dict.fromkeys(targets) if t in notebooks and t != chapter]
    return needs


def direct(needs: dict[str, list[str]]) -> dict[str, list[str]]:
    """The prerequisites that are not already implied by another one."""
    def implied(chapter):
        return {c for p in needs[chapter] for c in [p, *implied(p)]}
    return {c: [p for p in ps if not any(p in implied(q) for q in ps if q != p)]
            for c, ps in needs.items()}


def chapter_map(notebooks: dict[str, dict]) -> str:
    """The map as an inline SVG figure: a column of boxes in reading order under the names of their
    parts; beside it one vertical line a chapter, from which arrows lead to all that build on it.
    """
    notebooks = {c: nb for c, nb in notebooks.items() if c.split("/")[0] in ROOMS}
    needs, colours = direct(prerequisites(notebooks)), palette()
    titles = {c: title(nb) for c, nb in notebooks.items()}
    places, heads, height = column(titles, parts())
    lane = lanes(needs, list(places))
    width = BOX + 12 + LANE * (1 + max(lane.values(), default=0))
    colour = {c: colours[ROOMS[c.split("/")[0]]] for c in needs}
    lines = "".join(line(c, needs, places, lane[c], colour[c]) for c in lane)
    boxes = "".join(box(c, places[c], colour[c]) for c in needs)
    words = "".join(f'<text class="part" x="2" y="{y}">{escape(name)}</text>' for name, y in heads)
    short = {c: name.split(":")[0] for c, name in titles.items()}
    said = ". ".join(f"{short[c]} needs {' and '.join(short[p] for p in needs[c]) or 'nothing'}"
                     for c in needs)
    return (
        f'<figure class="chapter-map"><div><svg viewBox="0 0 {width} {height}" width="{width}">'
        f"<desc>{escape(said)}.</desc>"
        f'<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        f'orient="auto"><path d="M0 0L8 4L0 8z" fill="context-stroke"/></marker></defs>'
        f"{words}{lines}{boxes}</svg></div>"
        f"<figcaption>Chapters in the order of the book. An arrow leads from a chapter to one that "
        f"builds on it; what an earlier arrow already implies is left out.</figcaption></figure>\n"
    )


def parts() -> dict[str, str]:
    """Chapter to the part of the book in which it stands."""
    toc = yaml.safe_load((Path(__file__).parent / "_toc.yml").read_text("utf8"))
    return {entry["file"]: part["caption"] for part in toc["parts"] for entry in part["chapters"]
            if "file" in entry}


def column(titles: dict[str, str], part: dict[str, str]) -> tuple[dict, list, int]:
    """Top, height and text of every box, the headings with their places, and the whole height."""
    places, heads, y = {}, [], 0
    for chapter, name in titles.items():
        head = part.get(chapter, chapter.split("/")[0].capitalize())
        if not heads or heads[-1][0] != head:
            y += 34 if heads else 18
            heads.append((head, y))
            y += 10
        wrapped = textwrap.wrap(name, 32)
        places[chapter] = (y, 16 * len(wrapped) + 12, wrapped)
        y += places[chapter][1] + 8
    return places, heads, y


def lanes(needs: dict[str, list[str]], order: list[str]) -> dict[str, int]:
    """A vertical line for every chapter that others need: the nearest one that is free all the way."""
    users = {c: [d for d in needs if c in needs[d]] for c in order}
    span = {c: [order.index(d) for d in [c, *users[c]]] for c in order if users[c]}
    found = {}
    for c in sorted(span, key=lambda c: max(span[c]) - min(span[c])):
        taken = {found[d] for d in found
                 if min(span[d]) <= max(span[c]) and min(span[c]) <= max(span[d])}
        found[c] = next(n for n in itertools.count() if n not in taken)
    return found


def line(chapter: str, needs: dict, places: dict, lane: int, colour: str) -> str:
    """From the foot of a box along its lane to the boxes of all chapters that need it."""
    x, y = BOX + 12 + LANE * lane, foot(places[chapter])
    drawn = ""
    for user in [c for c in needs if chapter in needs[c]]:
        top, height, _ = places[user]
        share = (needs[user].index(chapter) + 1) / (len(needs[user]) + 1)
        end = top + round((height - 8) * share)
        drawn += f'<path d="M{BOX} {y}H{x}V{end}H{BOX + 2}" marker-end="url(#head)"/>'
    return f'<g style="stroke: {colour}">{drawn}</g>'


def foot(place: tuple[int, int, list[str]]) -> int:
    """Where the line of a box begins: below all arrows that end at it."""
    return place[0] + place[1] - 4


def palette() -> dict[str, str]:
    """The colours of `foundations.plot`, read, not imported, because torch takes seconds to load."""
    tree = ast.parse(Path(find_spec("rbmdiff.foundations.plot").origin).read_text("utf8"))
    return next(ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign)
                and ast.unparse(n.targets[0]) == "COLORS")


def box(chapter: str, place: tuple[int, int, list[str]], colour: str) -> str:
    """A chapter: a link with its whole title."""
    y, height, wrapped = place
    text = "".join(f'<tspan x="16" y="{y + 18 + 16 * i}">{escape(part)}</tspan>'
                   for i, part in enumerate(wrapped))
    return (
        f'<a href="{chapter}.html"><rect x="0.5" y="{y}" width="{BOX - 1}" height="{height}" rx="4"/>'
        f'<rect class="room" x="0.5" y="{y}" width="7" height="{height}" style="fill: {colour}"/>'
        f"<text>{text}</text></a>"
    )


def environment(timings: dict[str, float]) -> str:
    """Two tables in markdown: what the book ran on, and how long each chapter took."""
    rows = [("Python", platform.python_version()),
            *((name, version(name)) for name in ("torch", "numpy", "matplotlib", "scikit-learn")),
            ("processor", f"{platform.machine()}, {os.cpu_count()} cores"),
            ("threads a chapter", os.environ.get("OMP_NUM_THREADS", "default"))]
    table = "| what | value |\n|---|---|\n" + "".join(f"| {a} | {b} |\n" for a, b in rows)
    seconds = "".join(f"| [{stored_title(c)}]({c}.ipynb) | {s:.1f} |\n" for c, s in timings.items())
    total = f"| **all, one after the other** | **{sum(timings.values()):.1f}** |\n"
    return f"{table}\n| chapter | seconds |\n|---|---:|\n{seconds}{total}"


def reference(root: Path, notebooks: dict[str, dict]) -> dict[str, str]:
    """File name to markdown: one page a module, and one that lists them."""
    modules = {chapter: module for chapter, nb in notebooks.items() if (module := module_of(nb))
               and (root / module).is_file()}
    files, entries = {}, ""
    for chapter, module in modules.items():
        tree = ast.parse((root / module).read_text("utf8"))
        name = module.removeprefix("rbmdiff/")[:-3].replace("/", ".")
        classes = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef)}
        summary = " ".join(plain(ast.get_docstring(tree) or "").split("\n\n")[0].split())
        files[f"api/{name}.md"] = (
            f"# {name}\n\n{summary}\n\nChapter: [{title(notebooks[chapter])}](../{chapter}.ipynb).\n\n"
            + "".join(entry(node, module, classes) for node in public(tree))
        )
        entries += f"- [{name}]({name}.md): {summary}\n"
    files["api/index.md"] = (
        f"# Reference of the package\n\nEvery public name, from the docstrings of the package "
        f"`rbmdiff`.\n\n{entries}"
    )
    return files


def public(tree: ast.Module) -> list[ast.stmt]:
    """The functions and classes of a module that nbdev lists in `__all__`."""
    names = next((ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign)
                  and ast.unparse(n.targets[0]) == "__all__"), [])
    shown = [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name in names]
    # types of the function below
    return [n for n in shown if not any(ast.unparse(d) == "overload" for d in n.decorator_list)]


def entry(node: ast.FunctionDef | ast.ClassDef, module: str, classes: dict[str, ast.ClassDef],
          owner: str = "") -> str:
    """Heading, signature, docstring and place of a function or class, then its methods and the names of
    inherited ones.
    """
    heading = f"{'###' if owner else '##'} {owner}{node.name}"
    text = (f"{heading}\n\n```{{code-block}} python\n:class: signature\n\n"
            f"{signature(node, classes)}\n```\n\n"
            f"{plain(ast.get_docstring(node) or '')}\n\n<small>{module}:{node.lineno}</small>\n\n")
    if isinstance(node, ast.FunctionDef): return text
    own = [m for m in methods(node).values() if public_method(m)]
    return text + "".join(entry(m, module, {}, f"{node.name}.") for m in own) + inherited(node, classes)


def methods(node: ast.ClassDef) -> dict[str, ast.FunctionDef]:
    """The methods and properties in the body of a class by name; of a property only the reading half."""
    functions = [n for n in node.body if isinstance(n, ast.FunctionDef)]
    return {n.name: n for n in functions
            if not any(ast.unparse(d).endswith((".setter", ".deleter")) for d in n.decorator_list)}


def public_method(node: ast.FunctionDef) -> bool:
    """Is a method shown: one without underscore, or a documented `__call__`?"""
    return node.name[0] != "_" or (node.name == "__call__" and ast.get_docstring(node) is not None)


def bases(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> list[ast.ClassDef]:
    """The classes of the module that a class is derived from, the nearest first."""
    near = [classes[b.id] for b in node.bases if isinstance(b, ast.Name) and b.id in classes]
    return [c for base in near for c in (base, *bases(base, classes))]


def inherited(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> str:
    """One line a base of the module: the public methods that a class has from it."""
    text, seen = "", set(methods(node))
    for base in bases(node, classes):
        names = [name for name, m in methods(base).items() if public_method(m) and name not in seen]
        seen.update(names)
        where = "" if base.name[0] == "_" else f" from `{base.name}`"
        if names: text += f"Inherited{where}: {', '.join(f'`{name}`' for name in names)}.\n\n"
    return text


def signature(node: ast.FunctionDef | ast.ClassDef, classes: dict[str, ast.ClassDef]) -> str:
    """`f(x: Tensor) -> Tensor`, `x: Tensor` of a property, a class with the arguments of its
    constructor. Decorators above.
    """
    decorators = [f"@{ast.unparse(d)}" for d in node.decorator_list]
    if isinstance(node, ast.ClassDef): text = f"class {node.name}({constructor(node, classes)})"
    elif "@property" in decorators:
        text = node.name + (f": {ast.unparse(node.returns)}" if node.returns else "")
    else:
        text = f"{node.name}({arguments(node)})" + (f" -> {ast.unparse(node.returns)}" if node.returns
                                                    else "")
    return "\n".join(decorators + textwrap.wrap(text, 100, subsequent_indent="    "))


def constructor(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> str:
    """Arguments of the nearest `__init__`; where there is none, the annotated fields of the class."""
    init = next((c for c in (node, *bases(node, classes)) if "__init__" in methods(c)), None)
    if init: return arguments(methods(init)["__init__"])
    fields = [ast.unparse(n) for n in node.body if isinstance(n, ast.AnnAssign)]
    return ", ".join(field for field in fields if ": ClassVar" not in field)


def arguments(function: ast.FunctionDef) -> str:
    """The arguments that a caller gives."""
    return re.sub(r"^(self|cls)(, )?", "", ast.unparse(function.args))


def plain(docstring: str) -> str:
    """A docstring as markdown that shows its text as it stands; `code` and links keep their meaning."""
    pieces = re.split(r"(`[^`]+`|https?://[^\s)>,]+)", inspect.cleandoc(docstring))
    return "".join(p if i % 2 else re.sub(r"([\\*_$<>\[\]{}|#~^])", r"\\\1", p)
                   for i, p in enumerate(pieces))
