"""What every chapter has, and the limits of its cells (CONTRIBUTING, "What a chapter is")."""
import ast
import json
import re

import pytest

import bookmaker  # puts book/_ext on the path
from folds import only_imports

ROOT = bookmaker.ROOT
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def cells(path, kind):
    return ["".join(c["source"]) for c in json.loads(path.read_text())["cells"]
            if c["cell_type"] == kind]


CHAPTERS = [p for p in NOTEBOOKS if p.parent.name != "start"]      # all but pages without a module
name = lambda p: f"{p.parent.name}/{p.stem}"


@pytest.fixture(params=CHAPTERS, ids=name)
def chapter(request):
    return request.param


@pytest.fixture(params=NOTEBOOKS, ids=name)
def page(request):
    return request.param


def test_module_is_named_like_the_notebook(chapter):
    assert cells(chapter, "code")[0].strip() == f"#| default_exp {chapter.parent.name}.{chapter.stem}"


def test_opening_and_closing(chapter):
    text = cells(chapter, "markdown")
    assert re.match(r"# .+\n\n> .+", text[0]), "title cell: '# Title', a blank line, '> summary'"
    assert all(f"**{word}**" in "\n".join(text[:3])
               for word in ("You will learn", "Prerequisites", "Symbols"))
    headings = re.findall(r"^## (.+)$", "\n".join(text), re.M)
    assert headings[-3].startswith("Summary") and headings[-2:] == ["Exercises", "References"]


def test_exercises_have_folded_solutions(chapter):
    text = "\n".join(cells(chapter, "markdown"))
    exercises, solutions = (re.findall(rf"^:::\{{admonition\}} {word} (\d)$", text, re.M)
                            for word in ("Exercise", "Solution"))
    assert (
        exercises == solutions == [str(n + 1) for n in range(len(exercises))]
        and 3 <= len(exercises) <= 6
    )
    assert len(re.findall(r"^:::\{admonition\} Solution \d\n:class: dropdown$", text,
                          re.M)) == len(solutions)


def test_cells_are_short(page):
    for source in cells(page, "code"):
        lines = source.rstrip().split("\n")
        code = lines[lines.index("---", 1) + 1:] if lines[0] == "---" else lines
        assert len(code) <= 25 or only_imports("\n".join(code)), f"{len(code)} lines: {code[:3]}"
        assert max(map(len, lines)) <= 105, max(lines, key=len)


def test_no_cell_ends_in_a_string(page):
    """The notebook would show it as a result."""
    for source in cells(page, "code"):
        code = source.split("\n---\n", 1)[1] if source.startswith("---\n") else source
        last = ast.parse(code).body[-1:]
        assert not last or not isinstance(getattr(last[0], "value", None), ast.Constant) \
            or not isinstance(last[0], ast.Expr), ast.unparse(last[0])


def test_checks_name_their_equations_and_assert(page):
    for source in cells(page, "code"):
        if source.startswith("# check"):
            assert re.match(r"# check (\[eq-[\w-]+\] ?)+: \S", source), source[:80]
            assert "assert" in source, source[:80]
