"""The index of equations as data: which label is stated where, coded where, checked where, and what is wrong.

It is read from the notebooks alone, in milliseconds, so it is always right: the build reads it before it executes
anything, and the Sphinx extension `equations` reads it again and shows it on the pages.
"""
import ast
from dataclasses import dataclass, field
import json
from pathlib import Path
import re

from forms import MATH, exported, skipped, source, split

LABEL = re.compile(r"\[(eq-[\w-]+)\]")
MARK = re.compile(r"#((?:,?\s*\[eq-[\w-]+\])+)\s*$")
CHECK = re.compile(r"# check ((?:(?:,| and)?\s*\[eq-[\w-]+\])+)\s*:\s*(.*)")


@dataclass(frozen=True)
class Cell:
    """A cell of a chapter; `number` counts all cells from 1. Prints as a place that an author can find."""
    chapter: str
    number: int
    id: str

    def __str__(self) -> str:
        return f"nbs/{self.chapter}.ipynb, cell {self.number} (id {self.id})"


@dataclass(frozen=True)
class Code:
    """The exported line that implements an equation."""
    cell: Cell
    function: str
    file: str
    line: int


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
    """All labelled equations of the chapters, in order, and the list of everything that is wrong with them."""
    table, problems, books = {}, [], [(c, json.loads((root / f"nbs/{c}.ipynb").read_text("utf8"))) for c in chapters]
    for chapter, nb in books:
        for cell, data in cells(chapter, nb, "markdown"):
            for statement, label in MATH.findall(source(data)):
                if label in table: problems.append(f"{cell}: label {label} is already defined in {table[label].cell}")
                elif label: table[label] = Equation(label, cell, statement.strip())
    for chapter, nb in books:
        for cell, data in cells(chapter, nb, "code"):
            problems += read_code(root, module_of(nb), cell, source(data), table)
    for e in table.values():
        if not e.code: problems.append(f"{e.cell}: equation {e.label} has no code: no exported line ends in '# [{e.label}]'")
        if not e.checks: problems.append(f"{e.cell}: equation {e.label} has no check: no cell that is run and shown "
                                         f"begins with '# check [{e.label}]: …'")
    return table, problems


def cells(chapter: str, nb: dict, kind: str) -> list[tuple[Cell, dict]]:
    """The cells of one kind with their places."""
    return [(Cell(chapter, i, c.get("id", "none")), c) for i, c in enumerate(nb["cells"], 1) if c["cell_type"] == kind]


def module_of(nb: dict) -> str:
    """File of the module that a notebook exports, such as rbmdiff/models/rbm.py; empty if it exports none."""
    names = [split(source(c))[0].get("default_exp") for c in nb["cells"] if c["cell_type"] == "code"]
    name = next(filter(None, names), None)
    return f"rbmdiff/{name.replace('.', '/')}.py" if name else ""


def read_code(root: Path, module: str, cell: Cell, text: str, table: dict[str, Equation]) -> list[str]:
    """Enter the code or the check of one code cell into the table; return what is wrong with it."""
    directives, body = split(text)
    unknown = [label for label in dict.fromkeys(LABEL.findall(body)) if label not in table]
    check = CHECK.match(body)
    if exported(directives): problems = enter_code(root, module, cell, body, table)
    else: problems = []
    if check and not exported(directives) and not skipped(directives) and "hide" not in directives:
        for label in LABEL.findall(check[1]):
            if label in table: table[label].checks.append(Check(cell, check[2].strip()))
    return problems + [f"{cell}: label {label} is unknown: no equation of the book defines it" for label in unknown]


def enter_code(root: Path, module: str, cell: Cell, body: str, table: dict[str, Equation]) -> list[str]:
    """Enter every marked line of an exported cell, with its line in the module."""
    lines, start = body.split("\n"), None
    for number, line in enumerate(lines, 1):
        mark = MARK.search(line)
        if not mark: continue
        start = start or cell_start(root / module, cell.id)
        if not start: return [f"{cell}: not found in {module}; run 'make export'"]
        for label in LABEL.findall(mark[1]):
            if label in table: table[label].code.append(Code(cell, enclosing(body, number), module, start + number - 1))
    return []


def cell_start(module: Path, identity: str) -> int | None:
    """Line of the module at which the code of an exported cell begins."""
    lines = module.read_text("utf8").split("\n") if module.is_file() else []
    return next((i + 2 for i, line in enumerate(lines) if line.startswith("# %%") and line.endswith(f" #{identity}")), None)


def enclosing(body: str, line: int) -> str:
    """Name of the function around a line, after its class if that is public; the target of the assignment if there is none."""
    nodes = [n for n in ast.walk(ast.parse(body)) if getattr(n, "lineno", line + 1) <= line <= getattr(n, "end_lineno", 0)]
    named = sorted((n for n in nodes if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))), key=lambda n: n.lineno)
    targets = [n.targets[0] for n in nodes if isinstance(n, ast.Assign)]
    public = [n.name for n in named if n is named[-1] or not n.name.startswith("_")]
    return ".".join(public) or (ast.unparse(targets[0]) if targets else "module")
