"""Writes the table of stored results into book/environment.md: what was computed before the book was
built, by which command, on which device, with which PyTorch, and which chapters read it.

Run it after a result has been stored or a chapter has begun to read one; a test compares.
"""
from collections.abc import Iterator
import json
from pathlib import Path
import re

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "book/environment.md"
HEAD = "| file | command | device | PyTorch | read by |\n|---|---|---|---|---|\n"
TABLE = re.compile(re.escape(HEAD) + r"(?:\|.*\n)*")


def parts(stored: object) -> Iterator[dict]:
    """Every dictionary in a stored result, from the outside in."""
    if isinstance(stored, dict): yield stored
    inside = stored.values() if isinstance(stored, dict) else stored if isinstance(stored, list) else ()
    for value in inside: yield from parts(value)


def runs(stored: dict) -> list[tuple[str, str, str]]:
    """Command, device and version of PyTorch of every run that a file holds, each once."""
    found, command, torch = [], "", ""
    for part in parts(stored):
        torch = part.get("versions", {}).get("torch", part.get("torch", torch))
        command = part.get("command", command)
        if "device" in part: found.append((command, part["device"], torch))
        elif "command" in part and "made" not in part: found.append((command, "", torch))
    with_device = [run for run in found if run[1]]
    default = "cpu" if "cpus" not in stored else f"{stored.get('cpu', 'cpu')}, {stored['cpus']} cores"
    return list(dict.fromkeys(with_device or [(c, default, torch) for c, _, torch in found]))


def readers(root: Path, stem: str) -> list[str]:
    """The chapters with a code cell that reads a stored result."""
    named = re.compile(rf'["/]{stem}\.(json|safetensors)|for name in \([^)]*"{stem}"')
    chapters = []
    for path in sorted((root / "nbs").rglob("*.ipynb")):
        cells = json.loads(path.read_text("utf8"))["cells"]
        code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
        if any(named.search(text) for text in code):
            chapters.append(path.relative_to(root / "nbs").with_suffix("").as_posix())
    return chapters


def table(root: Path) -> str:
    """The table in Markdown, a row for each run; results that no chapter reads are left out."""
    text = HEAD
    for path in sorted((root / "benchmarks/results").glob("*.json")):
        chapters = ", ".join(f"[{chapter}]({chapter}.ipynb)" for chapter in readers(root, path.stem))
        if not chapters: continue
        for k, (command, device, torch) in enumerate(runs(json.loads(path.read_text("utf8")))):
            first = (f"`{path.name}`", chapters) if k == 0 else ("", "")
            text += f"| {first[0]} | `{command}` | {device} | {torch} | {first[1]} |\n"
    return text


if __name__ == "__main__":
    page = PAGE.read_text("utf8")
    PAGE.write_text(TABLE.sub(lambda _: table(ROOT), page), "utf8")
