"""Is the package what the notebooks export, and are the notebooks clean? Prints what is wrong and exits
with 1.

Works on a copy, so that nothing in the tree changes, whatever git thinks of it.
"""
from collections import Counter
import filecmp
import json
from pathlib import Path
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = Path(__file__).resolve().parents[1]
EXPORT = ROOT / "scripts/export.py"
HAND_WRITTEN = ("__init__.py", "*/__init__.py", "__main__.py", "__init__.pyi", "py.typed")
HINT = "run `make export` and commit what it changes"


def exports_of(notebook: Path) -> list[str]:
    """The modules that a notebook names by `#| default_exp`."""
    cells = json.loads(notebook.read_text())["cells"]
    return [
        m for c in cells for m in re.findall(r"^#\|\s*default_exp\s+(\S+)", "".join(c["source"]), re.M)
    ]


def different(ours: Path, fresh: Path, pattern: str) -> list[str]:
    """Files below the two folders that are missing on one side or differ."""
    names = {p.relative_to(d) for d in (ours, fresh) for p in d.rglob(pattern)
             if ".ipynb_checkpoints" not in p.parts}
    same = lambda n: (
        (ours / n).is_file()
        and (fresh / n).is_file()
        and filecmp.cmp(ours / n, fresh / n, shallow=False)
    )
    return sorted(str(n) for n in names if not same(n))


def take_hand_written(package: Path, copy: Path) -> None:
    """Copy the files that no notebook exports; the export then writes nothing into them but the version.
    """
    for path in [p for pattern in HAND_WRITTEN for p in package.glob(pattern)]:
        target = copy / path.relative_to(package)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


def problems(root: Path = ROOT) -> list[str]:
    """One line for every notebook or module that is not as it should be."""
    modules = Counter(m for n in (root / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in n.parts
                      for m in exports_of(n))
    found = [f"two notebooks export the module {m}" for m, count in modules.items() if count > 1]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(root / "nbs", copy / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
        for name in ("settings.ini", "pyproject.toml"): shutil.copy(root / name, copy)
        take_hand_written(root / "rbmdiff", copy / "rbmdiff")
        subprocess.run([sys.executable, EXPORT], cwd=copy, check=True, stdout=subprocess.DEVNULL)
        for pattern in ("*.py", "*.pyi"):
            found += [f"rbmdiff/{n} is not what the notebooks export; {HINT}"
                      for n in different(root / "rbmdiff", copy / "rbmdiff", pattern)]
        found += [f"nbs/{n} is not clean; {HINT}"
                  for n in different(root / "nbs", copy / "nbs", "*.ipynb")]
    return found


if __name__ == "__main__":
    lines = problems(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT)
    print("\n".join(lines) if lines else "package and notebooks are in sync")
    sys.exit(1 if lines else 0)
