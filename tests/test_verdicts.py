"""What chapters print: a check one line that says what agrees and by how much its control fails; results
in tables, never in text padded to columns, never a dict (CONTRIBUTING, "What a chapter is").
"""
import ast
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHELL = ("practice/cli", "practice/runs", "start/ten_minutes")
"""Pages that print as a terminal does."""
NOT_YET = ("foundations/plot",)
CHAPTERS = [path for path in sorted((ROOT / "nbs").glob("*/*.ipynb"))
            if f"{path.parent.name}/{path.stem}" not in SHELL + NOT_YET]


def sources(path):
    """The source of every code cell that is not exported, without the options above it."""
    for cell in json.loads(path.read_text("utf8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and "#| " not in source:
            yield source.split("\n---\n", 1)[1] if source.startswith("---\n") else source


def prints(source):
    """Every call of `print` in a cell."""
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name) and node.func.id == "print"]


def text(call):
    """The literal parts of what is printed."""
    return "".join(node.value for node in ast.walk(call)
                   if isinstance(node, ast.Constant) and isinstance(node.value, str))


def headings(source):
    """The column names that are written out, of every `Table` of a cell."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Table" and node.args:
            names = getattr(node.args[0], "elts", [])
            yield [name.value for name in names if isinstance(name, ast.Constant)]


def flaws(source):
    """What is wrong with the prints of a cell, in words; empty if nothing."""
    calls = prints(source)
    check = source.startswith("# check")
    found = ["a check prints one line"] if check and len(calls) != 1 else []
    if check and not all(text(call).startswith("✓ ") and "control" in text(call) for call in calls):
        found.append("the line of a check starts with ✓ and names its control")
    if any(len(set(names)) < len(names) for names in headings(source)):
        found.append("two columns of one name")
    for call in calls:
        widths = [text(node.format_spec) for node in ast.walk(call)
                  if isinstance(node, ast.FormattedValue) and node.format_spec]
        if any(width.lstrip("<>^+").lstrip("0")[:1].isdigit() for width in widths):
            found.append("padded columns")
        if len(call.args) != 1 or call.keywords or "\n" in text(call):
            found.append("several things in one print")
    return found


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_checks_end_in_a_verdict_and_results_stand_in_tables(chapter):
    found = {source.split("\n")[0]: flaws(source) for source in sources(chapter)}
    assert {first: flaw for first, flaw in found.items() if flaw} == {}


@pytest.mark.parametrize("source, words", [
    ("# check [eq-a]: x\nassert True", "one line"),
    ("# check [eq-a]: x\nprint(f'✓ a: {1}; control: 2')\nprint('b')", "one line"),
    ("# check [eq-a]: x\nprint('gap 1e-3, control 2')", "✓"),
    ("# check [eq-a]: x\nprint('✓ gap 1e-3')", "control"),
    ("Table(('a', 'b', 'a'), rows)", "one name"), ("Table(('a', 'b', *more), rows)", ""),
    ("print(f'{name:12} {x:.3f}')", "padded"), ("print(f'{x:9.3f}')", "padded"),
    ("print('a', {'b': 1})", "several"),
    ("print('a\\nb')", "several"), ("print(f'{x:.3f}')", ""),
    ("# check [eq-a]: x\nprint(f'✓ a: {1:.0e}; control (b): 2')", "")])
def test_control_of_the_test(source, words):
    assert words in " ".join(flaws(source)) if words else flaws(source) == []
