"""The shape of the package (CONTRIBUTING, "Code"): flat classes, units as objects, one statement a line,
streams, objects of notebooks.
"""
import ast
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = [p for p in sorted((ROOT / "rbmdiff").rglob("*.py")) if p.name != "_modidx.py"]
KINDS = {"bernoulli", "spin", "gaussian", "relu", "potts", "binomial", "poisson", "discrete", "binary"}
INSIDE = {f"rbmdiff/foundations/{name}.py" for name in ("core", "kernels", "units")}
"""Where functions take what `as_generator` returned, and say so."""


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf8"))


def nodes(kind):
    """(path, node) for every node of a kind in the package."""
    return [(path.relative_to(ROOT).as_posix(), node)
            for path in MODULES for node in ast.walk(tree(path)) if isinstance(node, kind)]


def functions():
    """(path, function) for every public function and method, but not those inside a function."""
    for path in MODULES:
        classes = [node for node in tree(path).body if isinstance(node, ast.ClassDef)]
        for node in [n for body in (tree(path), *classes) for n in body.body]:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                yield path.relative_to(ROOT).as_posix(), node


def classes() -> dict[str, list[str]]:
    """Class to the names of its bases, over the whole package."""
    name = lambda base: ast.unparse(base).split("[")[0].split(".")[-1]
    return {node.name: [name(base) for base in node.bases] for _, node in nodes(ast.ClassDef)}


def depth(name: str, known: dict[str, list[str]]) -> int:
    return 1 + max((depth(base, known) for base in known[name] if base in known), default=0)


def joined(module: ast.Module) -> list[int]:
    """Lines of statements joined by commas, and of blocks on the line that opens them."""
    blocks = (ast.For, ast.While, ast.With, ast.Try)
    return [node.lineno for node in ast.walk(module)
            if (isinstance(node, ast.Expr) and isinstance(node.value, ast.Tuple))
            or (isinstance(node, blocks) and node.body[0].lineno == node.lineno)]


def resolves(function: ast.FunctionDef) -> bool:
    """Is `generator` replaced by what a call made of it, or only handed on, once?"""
    named = lambda node, of: [n for n in ast.walk(node) if isinstance(n, ast.Name)
                              and n.id == "generator" and isinstance(n.ctx, of)]
    replaced = any(isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
                   and any(named(target, ast.Store) for target in node.targets)
                   and named(node.value, ast.Load) for node in ast.walk(function))
    resolved = any(isinstance(node, ast.Call) and ast.unparse(node.func) == "as_generator"
                   for node in ast.walk(function))
    return replaced or resolved or len(named(function, ast.Load)) == 1


def test_no_private_class_is_the_base_of_one_child():
    children = Counter(base for bases in classes().values() for base in bases)
    assert [name for name in classes() if name.startswith("_") and children[name] == 1] == []


def test_no_class_is_deeper_than_four_of_ours():
    known = classes()
    assert {name: depth(name, known) for name in known if depth(name, known) > 4} == {}
    assert depth("Bernoulli", known) == 4                                  # control: the deepest is seen


def test_units_are_asked_what_they_are_and_not_compared_by_name():
    found = [f"{path}:{node.lineno}" for path, node in nodes(ast.Compare)
             for part in (node.left, *node.comparators)
             if isinstance(part, ast.Constant) and part.value in KINDS]
    assert len(found) <= 6, found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_one_statement_a_line_of_at_most_105_characters(path):
    assert joined(tree(path)) == []
    assert [i for i, line in enumerate(path.read_text("utf8").split("\n"), 1) if len(line) > 105] == []


@pytest.mark.parametrize("text", ("f(a), g(b)", "for x in y: f(x)", "with x: f(y)"))
def test_joined_statements_are_found(text):
    assert joined(ast.parse(text)) == [1] and joined(ast.parse("if bad: raise error")) == []


def test_what_a_notebook_defines_is_good_enough():
    """No isinstance with a class of the package: in a notebook that class is another one."""
    own = classes().keys() - {"Stored"}
    found = [f"{path}:{call.lineno}" for path, call in nodes(ast.Call)
             if ast.unparse(call.func) in ("isinstance", "issubclass") and len(call.args) == 2
             and {n.id for n in ast.walk(call.args[1]) if isinstance(n, ast.Name)} & own]
    assert found == []


def test_every_public_function_that_draws_takes_a_seed():
    drawing = [(path, f) for path, f in functions() if path not in INSIDE
               and "generator" in [a.arg for a in (*f.args.args, *f.args.kwonlyargs)]]
    assert len(drawing) > 50
    assert [f"{path}:{f.lineno} {f.name}" for path, f in drawing if not resolves(f)] == []


@pytest.mark.parametrize("body,good", (
    ("return g(x, generator)", True), ("return g(x, generator) + g(y, generator)", False),
    ("generator = as_generator(generator, x); return g(generator)", True),
    ("generator = generator or 3; return g(generator)", False)))
def test_seeds_used_twice_are_found(body, good):
    function, = ast.parse(f"def f(x, y, generator): {body}").body
    assert resolves(function) == good
