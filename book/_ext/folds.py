"""What is folded on the page: code that a reader can do without until he asks for it.

A kind is derived from the code of a cell, so that a notebook needs no tag: imports, private helpers,
checks, the code of figures, cells that read files of the repository, code of solutions. The tag
`show-input` keeps a cell open.
"""
import ast
import re

CHECK = re.compile(r"# check ((?:(?:,| and)?\s*\[eq-[\w-]+\])+)\s*:\s*(.*(?:(?<=[;,:])\n#.*)*)")
SOLUTION = re.compile(r"# (?:Exercise|Solution) [\d.]+\b")
PUBLIC = "__call__"   # of the methods between two underscores, the one that a caller knows
CONTENT = {"check": "the check", "imports": "the imports", "private": "the helpers",
           "figure": "the code of the figure", "files": "the code behind the stored results",
           "solution": "the code of the solution", "other": "the code"}


def kind(code: str, exported: bool, tags: list[str], figure: bool) -> str:
    """What is folded in a cell of code, a key of `CONTENT`; empty if the cell stays open."""
    if "show-input" in tags: return ""
    if CHECK.match(code): return "check"
    if "solution" in tags or SOLUTION.match(code): return "solution"
    if figure: return "figure"
    if "repository" in tags: return "files"
    if only_imports(code): return "imports"
    if exported and only_private(code): return "private"
    return "other" if {"hide-input", "hide-cell"} & set(tags) else ""


def prompts(code: str, what: str) -> tuple[str, str]:
    """The words of a closed and of an open fold; those of a check say what is compared."""
    check = CHECK.match(code)
    text = f": {' '.join(check[2].replace(chr(10) + '#', ' ').split())}" if check else ""
    return f"Show {CONTENT[what]}{text}", f"Hide {CONTENT[what]}"


def statements(code: str) -> list[ast.stmt]:
    """The statements of a cell; none if it is not plain Python."""
    try: return ast.parse(code).body
    except SyntaxError: return []


def only_imports(code: str) -> bool:
    """Does a cell import, and do nothing else?"""
    body = statements(code)
    return bool(body) and all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in body)


def only_private(code: str) -> bool:
    """Does a cell define private names, and nothing else?"""
    body = [node for node in statements(code) if not isinstance(node, (ast.Import, ast.ImportFrom))]
    return bool(body) and all(map(is_private, body))


def is_private(node: ast.stmt) -> bool:
    """Is a statement a text, or the definition of a private name or of a method of a private class?"""
    if isinstance(node, ast.Expr): return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.ClassDef): return node.name[0] == "_"
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return (node.name[0] == "_" and node.name != PUBLIC) or owner(node)[:1] == "_"
    if not isinstance(node, (ast.Assign, ast.AnnAssign)): return False
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    names = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
    return bool(names) and all(name[0] == "_" for name in names)


def owner(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """The class that a function is added to by `@patch`, or an empty text."""
    patched = any(ast.unparse(d).split("(")[0] == "patch" for d in function.decorator_list)
    first = [*function.args.posonlyargs, *function.args.args][:1]
    return ast.unparse(first[0].annotation) if patched and first and first[0].annotation else ""
