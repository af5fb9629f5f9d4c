"""The authoring forms of CONTRIBUTING.md and what becomes of them: in the book, in Quarto, in a plain
notebook.

A notebook is its JSON as a dictionary; every function returns a new one. Only the standard library is
used, so that Quarto can run its filter with any Python.
"""
import copy
import json
import re

DIRECTIVE = re.compile(r"#\|\s*([\w-]+)\s*:?\s*(.*?)\s*$")
MATH = re.compile(r"\$\$(.+?)\$\$(?:[ \t]*\((eq-[\w-]+)\))?", re.DOTALL)
ROLE = re.compile(r"\{(eq|numref|ref|cite:p)\}`([^`]+)`")
SECTION = re.compile(r"^\((sec-[\w-]+)\)=\n+(#+ .*)$", re.MULTILINE)
ADMONITION = re.compile(r"^:::\{admonition\} ([^\n]*)\n(:class: dropdown\n)?(.*?)^:::[ \t]*$",
                        re.MULTILINE | re.DOTALL)
SKIPPED = ("slow", "gpu")  # as in settings.ini; `eval: false` besides


def source(cell: dict) -> str:
    """Source of a cell as one string (notebook JSON also allows a list of lines)."""
    return cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])


def split(text: str) -> tuple[dict[str, str], str]:
    """The leading nbdev directives of a code cell, name to value, and the code without them."""
    lines = text.split("\n")
    first = next((i for i, line in enumerate(lines) if line.strip() and not DIRECTIVE.match(line)),
                 len(lines))
    found = [DIRECTIVE.match(line) for line in lines[:first]]
    return {m[1]: m[2] for m in found if m}, "\n".join(lines[first:])


def exported(directives: dict[str, str]) -> bool:
    """Does nbdev write a cell with these directives into the package?"""
    return bool(directives.keys() & {"export", "exporti", "exports"})


def skipped(directives: dict[str, str]) -> bool:
    """Is a cell with these directives shown without being run?"""
    return directives.get("eval") == "false" or bool(directives.keys() & set(SKIPPED))


def figure(cell: dict) -> tuple[str, str, str]:
    """Name, caption and alternative text of the figure of a cell; empty where missing."""
    options = cell.get("metadata", {}).get("mystnb", {})
    named, image = options.get("figure", {}), options.get("image", {})
    return (
        named.get("name", ""),
        " ".join(named.get("caption", "").split()),
        " ".join(image.get("alt", "").split()),
    )


def for_book(nb: dict, link: str = "") -> dict:
    """For Jupyter Book: directives become cell tags; `link` leads from the page to the plain notebook.
    """
    nb = copy.deepcopy(nb)
    for cell in nb["cells"]:
        if cell["cell_type"] != "code":
            continue
        directives, cell["source"] = split(source(cell))
        tags = cell["metadata"].setdefault("tags", [])
        if directives.keys() & {"hide", "default_exp"}: tags.append("remove-cell")
        if skipped(directives): tags.append("skip-execution")
    title = next((c for c in nb["cells"] if c["cell_type"] == "markdown" and source(c).startswith("# ")),
                 None)
    if title and link:  # after the title and the summary
        paragraphs = source(title).split("\n\n")
        paragraphs.insert(
            2, f'<p class="plain-notebook"><a href="{link}" download>This chapter as a notebook</a></p>'
        )
        title["source"] = "\n\n".join(paragraphs)
    return nb


def for_quarto(nb: dict) -> dict:
    """For Quarto: its cell options, cross-references, callouts and citations."""
    nb = copy.deepcopy(nb)
    for cell in nb["cells"]:
        if cell["cell_type"] == "code":
            cell["source"] = "\n".join([*quarto_options(cell), split(source(cell))[1]])
        elif cell["cell_type"] == "markdown": cell["source"] = quarto_text(source(cell))
    return nb


def quarto_options(cell: dict) -> list[str]:
    """The `#|` lines that Quarto wants for the directives and the figure of a code cell."""
    directives, (name, caption, alt) = split(source(cell))[0], figure(cell)
    options = {"include": "false"} if directives.keys() & {"hide", "default_exp"} else {}
    if skipped(directives): options["eval"] = "false"
    if name:
        options |= {"label": name, "fig-cap": json.dumps(caption, ensure_ascii=False),
                    "fig-alt": json.dumps(alt, ensure_ascii=False)}
    return [f"#| {key}: {value}" for key, value in options.items()]


def quarto_text(text: str) -> str:
    """A markdown cell in Quarto's forms."""
    def role(m):
        return (
            f"@{m[2]}"
            if m[1] != "cite:p"
            else "[" + "; ".join(f"@{key.strip()}" for key in m[2].split(",")) + "]"
        )

    def admonition(m):
        folded = ' collapse="true"' if m[2] else ""
        return f'::: {{.callout-note title="{m[1]}"{folded}}}\n{m[3]}:::'

    text = MATH.sub(lambda m: f"$${m[1]}$$" + (f" {{#{m[2]}}}" if m[2] else ""), text)
    return ROLE.sub(role, ADMONITION.sub(admonition, SECTION.sub(r"\2 {#\1}", text)))


def for_jupyter(nb: dict, install: str) -> dict:
    """For Jupyter and Colab: no directives, plain markdown, and a first cell that installs the package.
    """
    first = {"cell_type": "code", "id": "install", "metadata": {}, "execution_count": None,
             "outputs": [], "source": install}
    cells = [plain for cell in copy.deepcopy(nb["cells"]) for plain in jupyter_cells(cell)]
    return {**nb, "cells": [first, *cells]}


def jupyter_cells(cell: dict) -> list[dict]:
    """The plain cells that stand for one cell: none for `default_exp`, two for a figure and its caption.
    """
    if cell["cell_type"] != "code": return [{**cell, "source": jupyter_text(source(cell))}]
    (directives, code), (name, caption, _) = split(source(cell)), figure(cell)
    if not code.strip(): return []
    if skipped(directives) or "repository" in cell["metadata"].get("tags", []):  # shown, not run
        return [markdown(cell["id"], f"```python\n{code}\n```")]
    plain = {**cell, "source": code, "metadata": {}, "outputs": [], "execution_count": None}
    return [plain] + ([markdown(f"{cell['id']}-caption", f"*{name}. {jupyter_text(caption)}*")]
                      if caption else [])


def markdown(identity: str, text: str) -> dict:
    """A markdown cell."""
    return {"cell_type": "markdown", "id": identity, "metadata": {}, "source": text}


def jupyter_text(text: str) -> str:
    """A markdown cell in the forms that every Jupyter front end shows."""
    def role(m):
        return {"eq": f"({m[2]})", "numref": f"*{m[2]}*", "ref": f"[{m[2]}](#{m[2]})",
                "cite:p": f"[{m[2]}]"}[m[1]]

    def admonition(m):
        if m[2]: return f"<details><summary><b>{m[1]}</b></summary>\n\n{m[3]}\n</details>"
        return f"**{m[1]}**\n\n{m[3].rstrip()}"

    text = MATH.sub(lambda m: f"$${m[1]}" + (rf"\tag{{{m[2]}}}" if m[2] else "") + "$$", text)
    return ROLE.sub(role, ADMONITION.sub(admonition, SECTION.sub(r'<a id="\1"></a>\n\n\2', text)))
