"""The wheel alone: installed without nbdev and Jupyter, it imports every module and runs its command;
a downloaded notebook runs beside it."""
from importlib.metadata import distributions
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys
import venv

from packaging.specifiers import SpecifierSet
import pytest

from test_book_download import plain_notebooks

ROOT = Path(__file__).resolve().parents[1]
DEPENDENCIES = ["torch", "numpy", "matplotlib", "scikit-learn", "safetensors", "tqdm", "lazy-loader",
                "pooch"]

ENVIRONMENT = {**os.environ, "PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
CHAPTER = "bridge/limit"
RUN = """
import sys, nbformat
from nbclient import NotebookClient
nb = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(nb, kernel_name="python3", timeout=600).execute()
nbformat.write(nb, sys.argv[2])
"""
IMPORT_ALL = """
import importlib, pkgutil, sys, rbmdiff
for module in pkgutil.walk_packages(rbmdiff.__path__, "rbmdiff."): importlib.import_module(module.name)
tools = {"nbdev", "fastcore", "execnb", "IPython", "ipykernel", "jupyter_core", "pytest", "numba"}
foreign = tools & set(sys.modules)
assert not foreign, f"imported: {sorted(foreign)}"
assert "site-packages" in rbmdiff.__file__, rbmdiff.__file__
print(rbmdiff.__version__)
"""


def run(*command, **kwargs):
    done = subprocess.run(command, capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """An environment that holds the wheel and what it asks for, nothing else; and a folder outside the
    tree.
    """
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".git", ".venv", "book", "dist", "build",
                                                                "*.egg-info", "_proc"))
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, source)
    venv.create(folder / "env", with_pip=True)
    wheel, = folder.glob("*.whl")
    shutil.rmtree(source)
    run(folder / "env/bin/pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check",
        wheel, env=ENVIRONMENT)
    return folder


def test_wheel_imports_every_module_without_nbdev_or_jupyter(empty):
    version = run(empty / "env/bin/python", "-c", IMPORT_ALL, cwd=empty).strip()
    assert f'__version__ = "{version}"\n' in (ROOT / "rbmdiff/__init__.py").read_text()


def test_installed_packages_are_only_what_a_user_needs(empty):
    installed = run(empty / "env/bin/pip", "list", "--format=freeze",
                    "--disable-pip-version-check").lower()
    assert not [name for name in ("nbdev", "fastcore", "ipython", "jupyter", "sphinx", "pytest", "numba")
                if f"\n{name}" in installed]


def test_command_runs(empty):
    assert "train" in run(empty / "env/bin/rbmdiff", "--help", cwd=empty)
    assert "train" in run(empty / "env/bin/python", "-m", "rbmdiff", "--help", cwd=empty)


def test_stubs_and_the_mark_of_types_are_in_the_wheel(empty):
    package = next((empty / "env/lib").glob("python*/site-packages/rbmdiff"))
    installed = {str(path.relative_to(package)) for path in package.rglob("*")
                 if path.suffix in (".pyi", ".typed")}
    assert installed == {"py.typed"} | {str(path.relative_to(ROOT / "rbmdiff"))
                                        for path in (ROOT / "rbmdiff").rglob("*.pyi")}
    assert "RBM" in run(empty / "env/bin/python", "-c",
                        "import rbmdiff; print(rbmdiff.RBM.__name__, *dir(rbmdiff))", cwd=empty)


def test_a_downloaded_notebook_and_the_wheel_are_all_that_a_reader_needs(empty):
    """Its first cell installs the wheel beside it."""
    environment = {k: v for k, v in ENVIRONMENT.items() if k != "PYTHONPATH"}
    environment["PATH"] = f"{empty / 'env/bin'}{os.pathsep}{environment['PATH']}"
    environment["JUPYTER_PATH"] = str(empty / "env/share/jupyter")
    python = empty / "env/bin/python"
    pip = python, "-m", "pip", "--disable-pip-version-check"
    run(*pip, "uninstall", "--quiet", "--yes", "rbmdiff", env=environment)
    run(*pip, "install", "--quiet", "ipykernel", "nbclient", env=environment)
    (empty / "chapter.ipynb").write_text(json.dumps(plain_notebooks()[CHAPTER]))
    run(python, "-c", RUN, "chapter.ipynb", "done.ipynb", cwd=empty, env=environment)
    cells = json.loads((empty / "done.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code) and len(code) > 10
    where = run(python, "-c", "import rbmdiff; print(rbmdiff.__file__)", cwd=empty, env=environment)
    assert str(empty / "env") in where


def test_run_time_dependencies_are_explained():
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    assert all(f"| {name} |" in contributing for name in DEPENDENCIES)


def test_every_pinned_package_runs_on_the_oldest_python():
    """A current Debian has Python 3.11.2; a pin that wants 3.11.5 makes both commands fail there."""
    wanted = {d.name: SpecifierSet(d.metadata["Requires-Python"] or "") for d in distributions()}
    assert [name for name, python in wanted.items() if "3.11.0" not in python] == []
    assert "3.11.0" not in SpecifierSet(">=3.11.5")
