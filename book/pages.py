"""The pages that the build writes: map of chapters, environment table, reference of the package."""
import ast
from html import escape
from importlib.metadata import version
from importlib.util import find_spec
import inspect
import os
from pathlib import Path
import platform
import re
import sys
import textwrap

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
from forms import source
from labels import module_of

ROOMS = {"foundations": "blue", "models": "vermilion", "sampling": "green", "learning": "purple",
         "diffusion": "orange", "bridge": "sky",
         "practice": "yellow"}
BOX, GAP, ROW = (178, 46), 26, 96


def title(nb: dict) -> str:
    """The title of a chapter."""
    text = next(source(c) for c in nb["cells"] if c["cell_type"] == "markdown"
                and source(c).startswith("# "))
    return text.split("\n")[0][2:].strip()


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


def rows(needs: dict[str, list[str]]) -> list[list[str]]:
    """Chapters by depth: each row needs only rows above it. Within a row, near the chapters that it
    needs.
    """
    def depth(chapter):
        return 1 + max(map(depth, needs[chapter]), default=-1)

    found = [[c for c in needs if depth(c) == d] for d in range(1 + max(map(depth, needs), default=-1))]
    place = {}
    for row in found:
        row.sort(key=lambda c: sum(place[p] for p in needs[c]) / max(len(needs[c]), 1))
        place |= {c: (i + 0.5) / len(row) for i, c in enumerate(row)}
    return found


def chapter_map(notebooks: dict[str, dict]) -> str:
    """The map as an inline SVG figure: boxes are links, colours are rooms, arrows are prerequisites."""
    notebooks = {c: nb for c, nb in notebooks.items() if c.split("/")[0] in ROOMS}
    needs, colours = direct(prerequisites(notebooks)), palette()
    levels = rows(needs)
    width = max([len(row) for row in levels] + [3]) * (BOX[0] + GAP) + GAP
    at = {c: (width * (i + 0.5) / len(row), 8 + r * ROW) for r, row in enumerate(levels)
          for i, c in enumerate(row)}
    arrows = "".join(arrow(at[p], at[c]) for c in needs for p in needs[c])
    boxes = "".join(box(c, title(notebooks[c]), colours[ROOMS[c.split("/")[0]]], *at[c]) for c in needs)
    names = {c: title(nb).split(":")[0] for c, nb in notebooks.items()}
    alt = ". ".join(f"{names[c]} needs {' and '.join(names[p] for p in needs[c]) or 'nothing'}"
                    for c in needs)
    rooms = [r for r in ROOMS if any(c.startswith(r + "/") for c in needs)]
    legend = " ".join(f'<span style="border-left: .5em solid {colours[ROOMS[r]]}">{r}</span>'
                      for r in rooms)
    return (
        f'<figure class="chapter-map"><div><svg viewBox="0 0 {width} '
        f'{len(levels) * ROW - ROW + BOX[1] + 16}" width="{width}" role="img" '
        f'aria-label="{escape(alt)}."><defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" '
        f'markerWidth="7" markerHeight="7" '
        f'orient="auto"><path d="M0 0L8 4L0 8z" '
        f'fill="context-stroke"/></marker></defs>{arrows}{boxes}</svg></div>'
        f"<figcaption>Chapters and what they need. An arrow leads from a chapter to one that builds on "
        f"it; what an earlier arrow already "
        f"implies is left out. Rooms: {legend}</figcaption></figure>\n"
    )


def palette() -> dict[str, str]:
    """The colours of `foundations.plot`, read, not imported, because torch takes seconds to load."""
    tree = ast.parse(Path(find_spec("rbmdiff.foundations.plot").origin).read_text("utf8"))
    return next(ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign)
                and ast.unparse(n.targets[0]) == "COLORS")


def arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    """A curve from the bottom of one box to the top of another."""
    (x0, y0), (x1, y1) = (start[0], start[1] + BOX[1]), end
    bend = (y1 - y0) / 2
    curve = f"M{x0:.0f} {y0:.0f}C{x0:.0f} {y0 + bend:.0f} {x1:.0f} {y1 - bend:.0f} {x1:.0f} {y1 - 2:.0f}"
    return f'<path d="{curve}" marker-end="url(#head)"/>'


def box(chapter: str, name: str, colour: str, x: float, y: float) -> str:
    """A chapter: a link with its title in at most two lines."""
    left = x - BOX[0] / 2
    lines = textwrap.wrap(name.split(":")[0], 22, max_lines=2, placeholder=" …")
    text = "".join(f'<tspan x="{x + 4:.0f}" dy="{18 if i else 0}">{escape(line)}</tspan>'
                   for i, line in enumerate(lines))
    return (
        f'<a href="{chapter}.html"><rect x="{left:.0f}" y="{y}" width="{BOX[0]}" height="{BOX[1]}" '
        f'rx="4"/>'
        f'<rect class="room" x="{left:.0f}" y="{y}" width="7" height="{BOX[1]}" style="fill: {colour}"/>'
        f'<text x="{x + 4:.0f}" y="{y + (28 if len(lines) == 1 else 19)}">{text}</text></a>'
    )


def environment(timings: dict[str, float]) -> str:
    """Two tables in markdown: what the book ran on, and how long each chapter took."""
    rows = [("Python", platform.python_version()),
            *((name, version(name)) for name in ("torch", "numpy", "matplotlib", "scikit-learn")),
            ("processor", f"{platform.machine()}, {os.cpu_count()} cores"),
            ("threads a chapter", os.environ.get("OMP_NUM_THREADS", "default"))]
    table = "| what | value |\n|---|---|\n" + "".join(f"| {a} | {b} |\n" for a, b in rows)
    seconds = "".join(f"| [{c}]({c}.ipynb) | {s:.1f} |\n" for c, s in timings.items())
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
    text = (f"{heading}\n\n```python\n{signature(node, classes)}\n```\n\n"
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
