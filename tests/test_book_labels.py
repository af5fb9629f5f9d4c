"""The index of equations as data, and each of its stops."""
import sys

import pytest

from bookmaker import ALPHA, BETA, ROOT, save
from labels import collect, enclosing, hidden, public_name, users

sys.path[:0] = [str(ROOT / "book"), str(ROOT / "scripts")]

CHAPTERS = ["foundations/alpha", "models/beta"]


def problems(root, alpha=ALPHA, beta=BETA):
    save(root, "foundations/alpha", alpha)
    save(root, "models/beta", beta)
    return collect(root, CHAPTERS)[1]


def change(cells, number, old, new):
    """The cells with one of them (counted from 1) changed."""
    assert old in cells[number - 1]
    return [c.replace(old, new) if i == number else c for i, c in enumerate(cells, 1)]


def test_a_right_book_has_no_problems(tmp_path):
    assert problems(tmp_path) == []
    table, _ = collect(tmp_path, CHAPTERS)
    assert list(table) == ["eq-alpha-square", "eq-beta-double"]
    square = table["eq-alpha-square"]
    assert square.statement == "y = x^2" and [c.function for c in square.code] == ["square"]
    assert [c.text for c in square.checks] == ["three squared", "by hand"]


@pytest.mark.parametrize("cells, number, old, new, place, what", [
    (ALPHA, 4, "# [eq-alpha-square]", "# [eq-alpha-sqare]", "cell 4 (id c4)",
     "label eq-alpha-sqare is unknown"),
    (ALPHA, 4, "The square [eq-alpha-square]", "The square [eq-other]", "cell 4 (id c4)",
     "label eq-other is unknown"),
    (ALPHA, 5, "[eq-alpha-square]", "[eq-alpha-cube]", "cell 5 (id c5)",
     "label eq-alpha-cube is unknown"),
    (ALPHA, 4, "  # [eq-alpha-square]", "", "cell 3 (id c3)", "equation eq-alpha-square has no code"),
    (ALPHA, 4, "#| export", "#| notest", "cell 3 (id c3)", "equation eq-alpha-square has no code"),
    (ALPHA, 3, "$$ (eq-alpha-square)", "$$ (eq-alpha-square)\n\n$$ y $$ (eq-beta-double)",
     "nbs/models/beta.ipynb, cell 3 (id c3)",
     "label eq-beta-double is already defined in nbs/foundations/alpha.ipynb, cell 3"),
])
def test_each_stop_names_file_cell_and_label(tmp_path, cells, number, old, new, place, what):
    found = problems(tmp_path, alpha=change(cells, number, old, new))
    assert any(place in p and what in p and p.startswith("nbs/") for p in found), found


@pytest.mark.parametrize("old, new", [("# check [eq-beta-double] and", "# check"),
                                      ("# check", "# compare"),
                                      ("# check", "#| eval: false\n# check"),
                                      ("# check", "#| hide\n# check")])
def test_equation_without_check_stops(tmp_path, old, new):
    found = problems(tmp_path, beta=change(BETA, 5, old, new))
    assert any("nbs/models/beta.ipynb, cell 3 (id c3): equation eq-beta-double has no check" in p
               for p in found), found


def test_module_out_of_step_stops(tmp_path):
    assert problems(tmp_path) == []
    (tmp_path / "rbmdiff/models/beta.py").write_text("")
    assert any("not found in rbmdiff/models/beta.py; run 'make export'" in p
               for p in collect(tmp_path, CHAPTERS)[1])


GAMMA = ["code|#| default_exp models.beta",
         "markdown|# Gamma\n\n> Grows cell by cell.\n\n$$ y = 2 x $$ (eq-gamma-double)\n\n$$ z = 3 x $$ "
         "(eq-gamma-triple)",
         "code|#| export\nclass A:\n    def __init__(self, x):\n        self.x = x",
         "code|#| export\ndef other(x): return 2 * x  # [eq-gamma-double]\n\n@patch\ndef double(self: "
         "A):\n"
         "    y = 2 * self.x  # [eq-gamma-double]\n    return y",
         "code|#| export\n@patch(as_prop=True)\ndef triple(self: A):\n    return 3 * self.x  # "
         "[eq-gamma-triple]",
         "code|# check [eq-gamma-double] and [eq-gamma-triple]: by hand\nassert A(1).double() == 2 and "
         "A(1).triple == 3"]


def test_patched_methods_are_found_in_the_folded_class(tmp_path):
    from export import fold
    save(tmp_path, "models/beta", GAMMA)
    module = tmp_path / "rbmdiff/models/beta.py"
    module.write_text(fold(module.read_text()))
    table, wrong = collect(tmp_path, ["models/beta"])
    assert wrong == []
    other, double = table["eq-gamma-double"].code
    triple, = table["eq-gamma-triple"].code
    assert [code.function for code in (other, double, triple)] == ["other", "A.double", "A.triple"]
    lines = module.read_text().split("\n")
    assert lines[other.line - 1] == "def other(x): return 2 * x  # [eq-gamma-double]"
    assert lines[double.line - 1] == "        y = 2 * self.x  # [eq-gamma-double]"
    assert lines[triple.line - 1] == "        return 3 * self.x  # [eq-gamma-triple]"
    module.write_text(
        module.read_text().replace("        y = 2 * self.x", "        y = self.x + self.x")
    )
    assert any("not found in rbmdiff/models/beta.py; run 'make export'" in p
               for p in collect(tmp_path, ["models/beta"])[1])


def test_enclosing_names():
    body = "class A:\n    def f(self):\n        return 1\n\nB = {\n    'x': 1}"
    assert [enclosing(body, n) for n in (1, 3, 6)] == ["A", "A.f", "B"]
    patched = ("@patch(cls_method=True)\ndef load(cls: RBM, path):\n    return 1\n\n"
               "@patch\n@no_grad()\ndef f(self: Own): return 2\n")
    assert [enclosing(patched, n) for n in (3, 7)] == ["RBM.load", "Own.f"]


def test_outputs_that_stop():
    from build import output_problems
    cell = {"id": "c1", "metadata": {},
            "outputs": [{"output_type": "display_data", "data": {"image/svg+xml": ""}}]}
    captioned = {
        **cell,
        "metadata": {"mystnb": {"figure": {"caption": "A line."}, "image": {"alt": "A line"}}},
    }
    warned = {"id": "c1", "metadata": {}, "outputs": [{"output_type": "stream", "name": "stderr",
                                                       "text": "x.py:1: UserWarning: no"}]}
    failed = {"id": "c1", "metadata": {},
              "outputs": [{"output_type": "error", "ename": "E", "evalue": "", "traceback": []}]}
    count = [len(output_problems("models/beta", {"error": "", "cells": [c]}))
             for c in (captioned, cell, warned, failed)]
    assert count == [0, 2, 1, 1]
    assert (
        "nbs/models/beta.ipynb, cell 1 (id c1)"
        in output_problems("models/beta", {"error": "", "cells": [cell]})[0]
    )


def test_the_book_itself_has_no_problems():
    from build import contents
    assert collect(ROOT, contents())[1] == []


CALLERS = '''
def _helper(x): return x
def _deep(x): return _helper(x)
def first(x):
    """Some function."""
    return _deep(x)
def second(x):
    """The one [eq-a-b]."""
    return _deep(x)
def _solver(x): return x
solver = wrap(_solver)
class _Base:
    def _step(self): return 1
class Child(_Base):
    def __init__(self): pass
    def _inner(self): return 2
    def outer(self): return self._inner()
    def _asked(self): return 3
def _lost(x): return x
'''


@pytest.mark.parametrize("function, label, public", [
    ("first", "eq-a-b", "first"), ("_helper", "eq-a-b", "second"), ("_helper", "eq-c-d", "first"),
    ("_solver", "eq-a-b", "solver"), ("_Base._step", "eq-a-b", "Child"),
    ("Child.__init__", "eq-a-b", "Child"), ("Child._inner", "eq-a-b", "Child.outer"),
    ("Child._asked", "eq-a-b", "Child"), ("_lost", "eq-a-b", "")])
def test_private_code_is_named_after_the_public_function_that_runs_it(function, label, public):
    assert public_name(users(CALLERS), function, label) == public


def test_no_private_name_stands_under_an_equation_of_the_book():
    from build import contents
    table, _ = collect(ROOT, contents())
    names = [code.public for e in table.values() for code in e.code]
    assert not [name for name in names if not name or hidden(name)]
