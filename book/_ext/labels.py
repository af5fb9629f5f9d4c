"""The index of equations as data: which label is stated where, coded where, checked where, and what is
wrong.

It is read from the notebooks alone, in milliseconds, so it is always right: the build reads it before it
executes anything, and the Sphinx extension `equations` reads it again and shows it on the pages.
"""
import ast
from dataclasses import dataclass, field, replace
import json
from pathlib import Path
import re

from folds import CHECK, owner
from forms import MATH, exported, skipped, source, split

LABEL = re.compile(r"\[(eq-[\w-]+)\]")
MARK = re.compile(r"#((?:,?\s*\[eq-[\w-]+\])+)\s*$")


@dataclass(frozen=True)
class Cell:
    """A cell of a chapter; `number` counts all cells from 1. Prints as a place that an author can find.
    """
    chapter: str
    number: int
    id: str

    def __str__(self) -> str:
        return f"nbs/{self.chapter}.ipynb, cell {self.number} (id {self.id})"


@dataclass(frozen=True)
class Code:
    """The exported line that implements an equation, in `function`; `public` is what a reader can call
    for it.
    """
    cell: Cell
    function: str
    file: str
    line: int
    public: str = ""


@dataclass(frozen=True)
class Check:
    """The cell that would fail if an equation were wrong."""
    cell: Cell
    text: str


@dataclass
class Equation:
    """A labelled equation: where it is stated, the maths, its code and its checks."""
    label: str
    cell: Cell
    statement: str
    code: list[Code] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)


def collect(root: Path, chapters: list[str]) -> tuple[dict[str, Equation], list[str]]:
    """All labelled equations of the chapters, in order, and the list of everything that is wrong with
    them.
    """
    table, problems, books = {}, [], [(c, json.loads((root / f"nbs/{c}.ipynb").read_text("utf8")))
                                      for c in chapters]
    for chapter, nb in books:
        for cell, data in cells(chapter, nb, "markdown"):
            for statement, label in MATH.findall(source(data)):
                if label in table:
                    problems.append(f"{cell}: label {label} is already defined in {table[label].cell}")
                elif label: table[label] = Equation(label, cell, statement.strip())
    for chapter, nb in books:
        for cell, data in cells(chapter, nb, "code"):
            problems += read_code(root, module_of(nb), cell, source(data), table)
    with_public(root, table)
    for e in table.values():
        if not e.code:
            problems.append(
                f"{e.cell}: equation {e.label} has no code: no exported line ends in '# [{e.label}]'"
            )
        if not e.checks:
            problems.append(f"{e.cell}: equation {e.label} has no check: no cell that is run and shown "
                                         f"begins with '# check [{e.label}]: …'")
    return table, problems


def cells(chapter: str, nb: dict, kind: str) -> list[tuple[Cell, dict]]:
    """The cells of one kind with their places."""
    return [(Cell(chapter, i, c.get("id", "none")), c) for i, c in enumerate(nb["cells"], 1)
            if c["cell_type"] == kind]


def module_of(nb: dict) -> str:
    """File of the module that a notebook exports, such as rbmdiff/models/rbm.py; empty if it exports
    none.
    """
    names = [split(source(c))[0].get("default_exp") for c in nb["cells"] if c["cell_type"] == "code"]
    name = next(filter(None, names), None)
    return f"rbmdiff/{name.replace('.', '/')}.py" if name else ""


def with_public(root: Path, table: dict[str, Equation]) -> None:
    """Name beside each line of code the public function that runs it."""
    modules = {}
    for e in table.values():
        for i, code in enumerate(e.code):
            if code.file not in modules: modules[code.file] = users((root / code.file).read_text("utf8"))
            e.code[i] = replace(code, public=public_name(modules[code.file], code.function, e.label))


def users(module: str) -> dict[str, tuple[set[str], str]]:
    """Functions, methods, classes and variables of a module: the names that each uses, its docstring."""
    found = {}

    def enter(name: str, nodes: list[ast.AST], docstring: str = "") -> None:
        inside = [n for node in nodes for n in ast.walk(node)]
        names = {n.id for n in inside if isinstance(n, ast.Name)}
        found[name] = (names | {n.attr for n in inside if isinstance(n, ast.Attribute)}, docstring)

    for node in ast.parse(module).body:
        if isinstance(node, ast.FunctionDef): enter(node.name, [node], ast.get_docstring(node) or "")
        if isinstance(node, ast.Assign): enter(ast.unparse(node.targets[0]), [node.value])
        if not isinstance(node, ast.ClassDef): continue
        enter(node.name, node.bases, ast.get_docstring(node) or "")
        for part in node.body:
            if isinstance(part, ast.FunctionDef):
                enter(f"{node.name}.{part.name}", [part], ast.get_docstring(part) or "")
    return found


def public_name(module: dict[str, tuple[set[str], str]], function: str, label: str) -> str:
    """The public name nearest to a function: itself, or one that uses it, first of all one whose
    docstring names the label; of a class, its constructor and `__call__`, the class.
    """
    near, seen = [function.replace(".__init__", "").replace(".__call__", "")], set()
    while near:
        public = [name for name in near if not hidden(name)]
        named = [name for name in public if f"[{label}]" in module.get(name, ((), ""))[1]]
        if public: return (named or public)[0]
        seen |= set(near)
        wanted = {next(part for part in name.split(".") if hidden(part)) for name in near}
        own = [name.split(".")[0] for name in near if "." in name]
        callers = [name for name, (uses, _) in module.items() if uses & wanted]
        near = [name.replace(".__init__", "").replace(".__call__", "") for name in [*callers, *own]]
        near = [name for name in dict.fromkeys(near) if name not in seen]
    return ""


def hidden(name: str) -> bool:
    """Is a name, or the class of a method, private?"""
    return any(part.startswith("_") for part in name.split("."))


def read_code(root: Path, module: str, cell: Cell, text: str, table: dict[str, Equation]) -> list[str]:
    """Enter the code or the check of one code cell into the table; return what is wrong with it."""
    directives, body = split(text)
    unknown = [label for label in dict.fromkeys(LABEL.findall(body)) if label not in table]
    check = CHECK.match(body)
    if exported(directives): problems = enter_code(root, module, cell, body, table)
    else: problems = []
    if check and not exported(directives) and not skipped(directives) and "hide" not in directives:
        for label in LABEL.findall(check[1]):
            if label in table: table[label].checks.append(Check(cell, check[2].split("\n")[0].strip()))
    return problems + [f"{cell}: label {label} is unknown: no equation of the book defines it"
                       for label in unknown]


def enter_code(root: Path, module: str, cell: Cell, body: str, table: dict[str, Equation]) -> list[str]:
    """Enter every marked line of an exported cell, with its line in the module."""
    rest = None
    for number, line in enumerate(body.split("\n"), 1):
        mark = MARK.search(line)
        if not mark: continue
        if rest is None: rest = cell_lines(root / module, cell.id)
        place = next((n for n, text in rest if text.strip() == line.strip()), None)
        if place is None: return [f"{cell}: not found in {module}; run 'make export'"]
        # a line may stand in a cell twice
        rest = [(n, text) for n, text in rest if n != place]
        for label in LABEL.findall(mark[1]):
            if label in table:
                table[label].code.append(Code(cell, enclosing(body, number), module, place))
    return []


def cell_lines(module: Path, identity: str) -> list[tuple[int, str]]:
    """The numbered lines of an exported cell in the module: a part of it may stand in the body of a
    class.
    """
    found, inside = [], False
    for number, line in enumerate(module.read_text("utf8").split("\n") if module.is_file() else [], 1):
        if line.lstrip().startswith("# %%"): inside = line.endswith(f" #{identity}")
        elif inside: found.append((number, line))
    return found


def enclosing(body: str, line: int) -> str:
    """Name of the function around a line, after its class; the target of the assignment if there is
    none.
    """
    nodes = [n for n in ast.walk(ast.parse(body))
             if getattr(n, "lineno", line + 1) <= line <= getattr(n, "end_lineno", 0)]
    named = sorted((n for n in nodes if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef,
                                                       ast.ClassDef))), key=lambda n: n.lineno)
    targets = [n.targets[0] for n in nodes if isinstance(n, ast.Assign)]
    return ".".join(qualified(n) for n in named) or (ast.unparse(targets[0]) if targets else "module")


def qualified(node: ast.FunctionDef | ast.ClassDef) -> str:
    """Name of a function or class; that of a method added by `@patch` with the class that its first
    argument names.
    """
    patched = "" if isinstance(node, ast.ClassDef) else owner(node)
    return f"{patched}.{node.name}" if patched else node.name
