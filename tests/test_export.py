"""Folding: what `@patch` adds to a class in a later cell of a notebook stands in the class in the
package.
"""
import ast
import importlib.util
import inspect
import json
from pathlib import Path
import subprocess
import sys

import pytest

from bookmaker import notebook

SCRIPT = Path(__file__).parents[1] / "scripts/export.py"
spec = importlib.util.spec_from_file_location("export", SCRIPT)
export = importlib.util.module_from_spec(spec)
spec.loader.exec_module(export)

MODULE = '''"""Summary."""

# %% auto #0
__all__ = ['A', 'B', 'helper']

# %% ../nbs/a.ipynb #c1
import functools

# %% ../nbs/a.ipynb #c2
class A:
    """A class."""

    def __init__(self, x: int):
        self.x = x

# %% ../nbs/a.ipynb #c3
def helper(x: int) -> int:
    """Stays where it is."""
    return x + 1

@patch
def next(self: A, by: int = 1) -> int:
    """The next one.

    After an empty line, and [..., D].
    """
    return helper(self.x) + by - 1  # [eq-a-next]

# %% ../nbs/a.ipynb #c4
class B(A):
    pass

# %% ../nbs/a.ipynb #c5
@patch(as_prop=True)
def half(self: A) -> float:
    """Half of it."""
    return self.x / 2

@patch(set_prop=True)
def half(self: A, value: float) -> None:
    self.x = 2 * value

# %% ../nbs/a.ipynb #c6
@patch(cls_method=True)
def of(cls: A, text: str, *,
       base: int = 10) -> "A":
    """Read it."""
    return cls(int(text, base))

@patch
@functools.lru_cache(maxsize=2)
def slow(self: A) -> int: return self.x**2

# %% ../nbs/a.ipynb #c7
@patch
def only(self: B) -> str:
    return "π" + f"{self.x}"
'''


def folded(text=MODULE):
    """The folded module, executed: its source and its names."""
    source = export.fold(text)
    names = {}
    exec(source, names)
    return source, names


def test_methods_work_and_belong_to_their_class():
    _, names = folded()
    A, B = names["A"], names["B"]
    a = A(4)
    assert (a.next(), a.next(3), a.half, A.of("ff", base=16).x, a.slow(), B(3).only()) == (
        5,
        7,
        2.0,
        255,
        16,
        "π3",
    )
    a.half = 5.0
    assert a.x == 10.0
    assert (
        A.next.__qualname__ == "A.next"
        and A.of.__qualname__ == "A.of"
        and B.only.__qualname__ == "B.only"
    )
    assert isinstance(vars(A)["half"], property) and isinstance(vars(A)["of"], classmethod)
    assert type(vars(A)["slow"]).__name__ == "_lru_cache_wrapper" and isinstance(B.of("7"), B)
    assert not hasattr(A, "only") and "next" not in names and "patch" not in names


def test_docstrings_and_signatures_are_kept():
    A = folded()[1]["A"]
    assert inspect.getdoc(A.next) == "The next one.\n\nAfter an empty line, and [..., D]."
    assert str(inspect.signature(A.next)) == "(self, by: int = 1) -> int"
    assert str(inspect.signature(A.of)) == "(text: str, *, base: int = 10) -> 'A'"


def test_helper_stays_at_the_level_of_the_module():
    source, names = folded()
    tree = ast.parse(source)
    assert [n.name for n in tree.body
            if isinstance(n, ast.FunctionDef)] == ["helper"] and names["helper"](1) == 2
    assert "@patch" not in source and "\n# %% ../nbs/a.ipynb #c3\ndef helper" in source


def test_each_method_stands_below_the_mark_of_its_cell():
    lines = export.fold(MODULE).split("\n")
    marks = {n: line.split("#")[-1] for n, line in enumerate(lines) if line.lstrip().startswith("# %%")}

    def cell(text):
        number = next(n for n, line in enumerate(lines) if text in line)
        return marks[max(n for n in marks if n < number)]

    found = [cell(text) for text in ("def __init__", "def helper", "def next", "[eq-a-next]", "def half",
                                     "def of", "def slow", "def only")]
    assert found == ["c2", "c3", "c3", "c3", "c5", "c6", "c6", "c7"]
    # of a cell all of which has moved, one mark
    assert sum(line.strip() == "# %% ../nbs/a.ipynb #c5" for line in lines) == 1


def test_folding_again_changes_nothing():
    once = export.fold(MODULE)
    assert once != MODULE and export.fold(once) == once


def test_a_module_without_patches_is_left_as_it_is():
    text = MODULE[:MODULE.index("@patch")]
    assert export.fold(text) == text


@pytest.mark.parametrize("text", [
    "# %% a #c1\n@patch\ndef f(self: A): pass\n\n# %% a #c2\nclass A: pass\n",          # defined below
    "# %% a #c1\n@patch\ndef f(self: A): pass\n",                                       # not defined
    # of another module
    "# %% a #c1\nfrom b import A\n\n# %% a #c2\n@patch\ndef f(self: A): pass\n",
])
def test_class_that_is_not_defined_above_is_refused(text):
    with pytest.raises(ValueError, match="f patches A, which is not defined above it"): export.fold(text)


@pytest.mark.parametrize("argument", ["", "self", "self: 'A'", "self: a.A"])
def test_patch_that_names_no_class_is_refused(argument):
    with pytest.raises(ValueError, match="first argument of the patched f must name its class"):
        export.fold(f"class A: pass\n\n@patch\ndef f({argument}): pass\n")


def test_class_on_one_line_is_refused():
    with pytest.raises(ValueError, match="line 2: class A must not stand on one line"):
        export.fold("# %% a #c0\nclass A: pass\n\n# %% a #c1\n@patch\ndef f(self: A): return 1\n")


def test_the_head_of_a_module_is_wrapped():
    names = [f"name_{i}" for i in range(40)]
    summary = " ".join(["word"] * 40)
    text = (f'"""{summary}."""\n\n# EDIT\n\n# %% auto #0\n__all__ = {names}\n\n'
            "# %% ../nbs/a.ipynb #c1\nx = 1\n")
    narrow = export.narrow(text)
    assert max(map(len, narrow.split("\n"))) <= 105 and export.narrow(narrow) == narrow
    found = {}
    exec(narrow, found)
    assert (
        found["__all__"] == names
        and found["x"] == 1
        and found["__doc__"].split() == ["word"] * 39 + ["word."]
    )
    assert "\n# EDIT\n" in narrow and narrow.endswith("\n# %% ../nbs/a.ipynb #c1\nx = 1\n")
    assert export.narrow(MODULE) == MODULE


def test_string_over_several_lines_is_refused():
    text = ('# %% a #c0\nclass A:\n    pass\n\n# %% a #c1\n@patch\n'
            'def f(self: A):\n    """Doc\n    string."""\n    return """a\nb"""\n')
    with pytest.raises(ValueError, match="f holds a string over several lines"): export.fold(text)
    names = folded(text.replace('"""a\nb"""', '("a\\n"\n            "b")'))[1]
    assert names["A"]().f() == "a\nb"


def test_marks_that_begin_alike_are_told_apart():
    cells = (f"# %% a #c{n}\n@patch\ndef f{n}(self: A): return {n}\n\n" for n in (10, 1, 11))
    lines = export.fold("# %% a #c0\nclass A:\n    pass\n\n" + "".join(cells)).split("\n")
    assert [line.strip() for line in lines if "# %%" in line] == [
        f"# %% a #c{n}" for n in (0, 10, 1, 11)
    ]


def test_error_names_the_module(tmp_path):
    (tmp_path / "nbs").mkdir()
    for name in ("settings.ini", "pyproject.toml"):
        (tmp_path / name).write_text((SCRIPT.parents[1] / name).read_text())
    cells = ["code|#| default_exp bad", "markdown|# Bad\n\n> Bad.",
             "code|#| export\n@patch\ndef f(self: Missing): pass"]
    (tmp_path / "nbs/bad.ipynb").write_text(json.dumps(notebook(cells)))
    done = subprocess.run([sys.executable, SCRIPT], cwd=tmp_path, capture_output=True, text=True)
    assert (
        done.returncode == 1
        and "rbmdiff/bad.py: line" in done.stderr
        and "f patches Missing" in done.stderr
    )


def test_stubs_of_the_rooms(tmp_path):
    for name in ("models/__init__.py", "models/rbm.py", "models/energy.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    export.write_stubs(tmp_path)
    assert (
        tmp_path / "models/__init__.pyi"
    ).read_text() == "from . import energy as energy, rbm as rbm\n"
