"""The wheel alone: installed without nbdev and Jupyter, it imports every module and runs its command."""
from importlib.metadata import distributions
import os
from pathlib import Path
import shutil
import subprocess
import sys
import venv

from packaging.specifiers import SpecifierSet
import pytest

ROOT = Path(__file__).resolve().parents[1]
DEPENDENCIES = ["torch", "numpy", "matplotlib", "scikit-learn", "safetensors", "tqdm", "lazy-loader",
                "pooch"]

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
    environment = {**os.environ, "PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
    run(folder / "env/bin/pip", "install", "--quiet", "--disable-pip-version-check", wheel,
        env=environment)
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


def test_run_time_dependencies_are_explained():
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    assert all(f"| {name} |" in contributing for name in DEPENDENCIES)


def test_every_pinned_package_runs_on_the_oldest_python():
    """A current Debian has Python 3.11.2; a pin that wants 3.11.5 makes both commands fail there."""
    wanted = {d.name: SpecifierSet(d.metadata["Requires-Python"] or "") for d in distributions()}
    assert [name for name, python in wanted.items() if "3.11.0" not in python] == []
    assert "3.11.0" not in SpecifierSet(">=3.11.5")
