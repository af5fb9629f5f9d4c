"""What `make check` refuses: hand edits, stale modules, unclean notebooks, two notebooks with one
module.
"""
import json
from pathlib import Path
import shutil
import subprocess
import sys

import pytest

from check_sync import EXPORT, problems

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def tree(tmp_path):
    """A small project that is in sync: the first chapter only."""
    (tmp_path / "nbs/foundations").mkdir(parents=True)
    shutil.copy(ROOT / "nbs/foundations/core.ipynb", tmp_path / "nbs/foundations")
    for name in ("settings.ini", "pyproject.toml"): shutil.copy(ROOT / name, tmp_path)
    subprocess.run([sys.executable, EXPORT], cwd=tmp_path, check=True)
    assert problems(tmp_path) == []
    return tmp_path


def test_hand_edit(tree):
    with (tree / "rbmdiff/foundations/core.py").open("a") as module: module.write("# a hand edit\n")
    assert [p for p in problems(tree) if p.startswith("rbmdiff/foundations/core.py")]


def test_stale_module(tree):
    (tree / "rbmdiff/foundations/old.py").write_text("x = 1\n")
    assert [p for p in problems(tree) if p.startswith("rbmdiff/foundations/old.py")]


def test_missing_module(tree):
    (tree / "rbmdiff/foundations/core.py").unlink()
    assert [p for p in problems(tree) if p.startswith("rbmdiff/foundations/core.py")]


def test_unclean_notebook(tree):
    path = tree / "nbs/foundations/core.ipynb"
    notebook = json.loads(path.read_text())
    next(c for c in notebook["cells"] if c["cell_type"] == "code")["execution_count"] = 7
    path.write_text(json.dumps(notebook, indent=1))
    assert [p for p in problems(tree) if p.startswith("nbs/foundations/core.ipynb")]


def test_two_notebooks_with_one_module(tree):
    shutil.copy(tree / "nbs/foundations/core.ipynb", tree / "nbs/foundations/twin.ipynb")
    assert "two notebooks export the module foundations.core" in problems(tree)


def test_hand_written_files_are_kept(tree):
    hand = {"__init__.py": '"""Doc."""\nimport math\n\n__version__ = "0.1.0"\nroot = math.sqrt\n',
            "__main__.py": "x = 1\n",
            "__init__.pyi": "x: int\n", "foundations/__init__.py": "from . import core\n",
            "py.typed": ""}
    for name, text in hand.items(): (tree / "rbmdiff" / name).write_text(text)
    assert problems(tree) == []
    subprocess.run([sys.executable, EXPORT], cwd=tree, check=True)
    assert {name: (tree / "rbmdiff" / name).read_text() for name in hand} == hand


def test_version_of_another_time(tree):
    (tree / "rbmdiff/__init__.py").write_text('"""Doc."""\n__version__ = "0.0.9"\n')
    assert [p for p in problems(tree) if p.startswith("rbmdiff/__init__.py")]
    subprocess.run([sys.executable, EXPORT], cwd=tree, check=True)
    assert (tree / "rbmdiff/__init__.py").read_text() == '"""Doc."""\n__version__ = "0.1.0"\n'


def test_stub_of_a_room_is_exported(tree):
    stub = tree / "rbmdiff/foundations/__init__.pyi"
    assert stub.read_text() == "from . import core as core\n"
    stub.write_text("")
    assert [p for p in problems(tree) if p.startswith("rbmdiff/foundations/__init__.pyi")]
