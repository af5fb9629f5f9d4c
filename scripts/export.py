"""Notebooks to package: nbdev_export, nbdev_clean, `@patch` methods folded into their classes, stubs of
the rooms.

In a notebook a class grows cell by cell: `@patch` (fastcore) adds a method beside its equation. In the
package the same method stands in the class, so that help, editors and type checkers see one flat class
and fastcore is not needed. Run from the root of the project.
"""
import ast
from pathlib import Path
import re
import subprocess
import sys
import textwrap

MARK = "# %%"
WIDTH = 105
KINDS = {"cls_method": "@classmethod", "as_prop": "@property", "static_method": "@staticmethod"}


def patched(node: ast.stmt) -> ast.expr | None:
    """The `@patch` of a function, or None."""
    for decorator in getattr(node, "decorator_list", []):
        name = decorator.func if isinstance(decorator, ast.Call) else decorator
        if isinstance(name, ast.Name) and name.id == "patch": return decorator
    return None


def owner(function: ast.FunctionDef) -> str:
    """Name of the class that a patched function belongs to: the annotation of its first argument."""
    arguments = [*function.args.posonlyargs, *function.args.args]
    if not arguments or not isinstance(arguments[0].annotation, ast.Name):
        raise ValueError(
            f"line {function.lineno}: "
            f"the first argument of the patched {function.name} must name its class"
        )
    return arguments[0].annotation.id


def statements(function: ast.FunctionDef) -> list[str]:
    """What a function does, without its docstring."""
    return [ast.dump(node) for node in function.body[ast.get_docstring(function) is not None:]]


def method(function: ast.FunctionDef, lines: list[str]) -> str:
    """Source of a patched function as a method: without `@patch`, its first argument without annotation.
    """
    patch, first = patched(function), [*function.args.posonlyargs, *function.args.args][0]
    source = {number: lines[number - 1]
              for number in range(function.decorator_list[0].lineno, function.end_lineno + 1)}
    row = source[first.lineno].encode()
    head, tail = row[:first.col_offset], row[first.annotation.end_col_offset:]
    source[first.lineno] = (head + first.arg.encode() + tail).decode()
    options = [k.arg for k in getattr(patch, "keywords", []) if k.value.value is True]
    source[patch.lineno] = "".join(KINDS[o] for o in options if o in KINDS)
    if "set_prop" in options: source[patch.lineno] = f"@{function.name}.setter"
    text = textwrap.indent("\n".join(line for n, line in source.items() if line or n > function.lineno),
                           "    ")
    moved = ast.parse(f"class _:\n{text}").body[0].body[0]
    if statements(moved) == statements(function): return text
    raise ValueError(
        f"line {function.lineno}: {function.name} holds a string over several lines, "
        "which would be indented"
    )


def fold(text: str) -> str:
    """A module in which patched functions have become methods, each below the mark of its cell."""
    tree, lines = ast.parse(text), text.split("\n")
    classes = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef)}
    moved: dict[str, list[str]] = {}
    gone: set[int] = set()
    for node in tree.body:
        if not patched(node): continue
        name = owner(node)
        if name not in classes or classes[name].lineno > node.lineno:
            raise ValueError(
                f"line {node.lineno}: {node.name} patches {name}, which is not defined above it"
            )
        if classes[name].body[0].lineno == classes[name].lineno:
            raise ValueError(
                f"line {classes[name].lineno}: class {name} must not stand on one line, it is patched"
            )
        first = node.decorator_list[0].lineno
        mark = next((line for line in reversed(lines[:first]) if line.startswith(MARK)), MARK)
        methods = moved.setdefault(name, [])
        again = any(m.startswith(f"    {mark}\n") for m in methods)
        methods.append(("" if again else f"    {mark}\n") + method(node, lines))
        gone.update(range(first, node.end_lineno + 1))
    ends = {classes[name].end_lineno: "\n\n".join(["", *methods]) for name, methods in moved.items()}
    kept = [line + ends.get(n, "") for n, line in enumerate(lines, 1) if n not in gone]
    return without_empty_cells("\n".join(kept)) if moved else text


def without_empty_cells(text: str) -> str:
    """The module without the marks of cells of which nothing is left, and without empty lines below a
    mark.
    """
    head, *cells = text.split(f"\n{MARK}")
    split = [cell.split("\n", 1) for cell in cells]
    full = [f"{mark}\n{code.strip(chr(10))}" for mark, code in split if code.strip()]
    return f"\n\n{MARK}".join([head.rstrip(), *full]) + "\n"


def narrow(text: str) -> str:
    """The module with its first lines, the docstring and `__all__`, wrapped at `WIDTH` characters."""
    head, mark, rest = text.partition(f"\n{MARK} ../")
    first, *others = head.split("\n", 1)
    if first.startswith('"""') and first.endswith('"""') and len(first) > WIDTH:
        first = "\n".join([*textwrap.wrap(first[:-3], WIDTH), '"""'])
    head = "\n".join([first, *others])
    listed = re.search(r"^__all__ = \[(.*?)\]$", head, re.MULTILINE | re.DOTALL)
    if listed:
        names = f"__all__ = [{' '.join(listed[1].split())}]"
        lines = textwrap.wrap(names, WIDTH, subsequent_indent=" " * 11)
        head = head[:listed.start()] + "\n".join(lines) + head[listed.end():]
    return head + mark + rest


def write_stubs(package: Path) -> None:
    """Write the stub of every room, the list of its modules; `lazy_loader` reads it, and so do editors.
    """
    for room in sorted(path.parent for path in package.glob("*/__init__.py")):
        modules = sorted(path.stem for path in room.glob("*.py") if path.stem != "__init__")
        names = [f"{m} as {m}" for m in modules]
        line = f"from . import {', '.join(names)}"
        if len(line) > WIDTH:
            line = "\n    ".join(["from . import (", *(f"{n}," for n in names)]) + "\n)"
        (room / "__init__.pyi").write_text(line + "\n", "utf8")


def main() -> int:
    """Export, clean and fold in the current folder; 1 if a module cannot be folded."""
    for command in ("nbdev_export", "nbdev_clean"):
        subprocess.run([Path(sys.executable).with_name(command)], check=True)
    for path in sorted(Path("rbmdiff").rglob("*.py")):
        text = path.read_text("utf8")
        try:
            folded = narrow(fold(text))
        except ValueError as error:
            print(f"{path}: {error}", file=sys.stderr)
            return 1
        if folded != text: path.write_text(folded, "utf8")
    write_stubs(Path("rbmdiff"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
