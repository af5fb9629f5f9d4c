"""`import rbmdiff` is quick, lists rooms and main names, and loads each when it is used."""
import ast
import importlib
from pathlib import Path
import pkgutil
import subprocess
import sys

import pytest

import rbmdiff

PACKAGE = Path(rbmdiff.__file__).parent
ROOMS = ["bridge", "diffusion", "foundations", "learning", "models", "practice", "sampling"]


def in_stub(folder: Path) -> dict[str, str]:
    """Names in the stub of a package, each with the module that it comes from ("" for a submodule)."""
    tree = ast.parse((folder / "__init__.pyi").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module or "" for node in imports for alias in node.names}


def fresh(*lines: str) -> str:
    """What the lines print in a process of their own."""
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


MAIN = {name: module for name, module in in_stub(PACKAGE).items() if module}


@pytest.mark.parametrize("name", MAIN)
def test_main_name_is_what_its_module_holds(name):
    assert getattr(rbmdiff, name) is getattr(importlib.import_module(f"rbmdiff.{MAIN[name]}"), name)


def test_a_name_stays_what_it_is_when_modules_of_that_name_are_loaded():
    names = sorted(set(MAIN) & {module.name.split(".")[-1]
                                for module in pkgutil.walk_packages(rbmdiff.__path__, "rbmdiff.")})
    assert {"deis", "elbo", "gibbs", "train"} <= set(names)
    lines = ["import importlib, pkgutil, rbmdiff",
             f"early = [getattr(rbmdiff, name) for name in {names}]",
             "for m in pkgutil.walk_packages(rbmdiff.__path__, 'rbmdiff.'): "
             "importlib.import_module(m.name)",
             f"print(all(map(callable, early)), early == [getattr(rbmdiff, name) for name in {names}])"]
    assert fresh(*lines) == "True True"


def test_dir_lists_rooms_and_main_names():
    assert dir(rbmdiff) == rbmdiff.__all__ == sorted(in_stub(PACKAGE))
    assert [name for name, module in in_stub(PACKAGE).items() if not module] == ROOMS
    assert {"RBM", "gibbs", "ais", "cd_gradient", "train", "LinearBeta", "deis", "UNet", "Mixture",
            "Estimate"} <= set(MAIN)


@pytest.mark.parametrize("room", ROOMS)
def test_room_lists_its_modules(room):
    modules = sorted(module.name for module in pkgutil.iter_modules([str(PACKAGE / room)]))
    assert in_stub(PACKAGE / room) == dict.fromkeys(modules, ""), (
        f"rbmdiff/{room}/__init__.pyi must list the modules of the room"
    )
    assert dir(getattr(rbmdiff, room)) == modules


def test_modules_are_reached_from_the_top():
    assert fresh("import rbmdiff", "print(rbmdiff.models.rbm.RBM is rbmdiff.RBM, "
                                   "rbmdiff.models.rbm.__name__)") == "True rbmdiff.models.rbm"


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="nonsense"): _ = rbmdiff.nonsense
    with pytest.raises(AttributeError, match="nonsense"): _ = rbmdiff.models.nonsense


def test_import_loads_nothing():
    loaded = fresh("import sys", "import rbmdiff", "print(*sys.modules)").split()
    heavy = {"torch", "numpy", "scipy", "matplotlib", "sklearn", "tqdm", "pooch"}
    assert not heavy & set(loaded)
    assert [name for name in loaded if name.startswith("rbmdiff")] == ["rbmdiff"]


def test_import_is_quick():
    """Under 50 ms more than starting Python: best of seven, measured inside the process."""
    lines = (
        "import time",
        "start = time.perf_counter()",
        "import rbmdiff",
        "print(time.perf_counter() - start)",
    )
    assert min(float(fresh(*lines)) for _ in range(7)) < 0.05


def test_module_runs_as_the_command():
    done = subprocess.run([sys.executable, "-m", "rbmdiff", "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in ("usage: rbmdiff", "train", "sample", "evaluate"))


def test_types_are_marked():
    assert (PACKAGE / "py.typed").is_file()
