"""The authoring forms of CONTRIBUTING.md and what becomes of them: in the book, in Quarto, in a plain
notebook.

A notebook is its JSON as a dictionary; every function returns a new one. Only the standard library is
used, so that Quarto can run its filter with any Python.
"""
import copy
import json
import re

import folds

DIRECTIVE = re.compile(r"#\|\s*([\w-]+)\s*:?\s*(.*?)\s*$")
MATH = re.compile(r"\$\$(.+?)\$\$(?:[ \t]*\((eq-[\w-]+)\))?", re.DOTALL)
ROLE = re.compile(r"\{(eq|numref|ref|cite:p|cite:t)\}`([^`]+)`")
SECTION = re.compile(r"^\((sec-[\w-]+)\)=\n+(#+ .*)$", re.MULTILINE)
ADMONITION = re.compile(r"^:::\{admonition\} ([^\n]*)\n(:class: dropdown\n)?(.*?)^:::[ \t]*$",
                        re.MULTILINE | re.DOTALL)
EXERCISE = re.compile(r"^(:::\{admonition\} (Exercise|Solution) \d+)[ \t]*\n(:class: dropdown\n)?",
                      re.MULTILINE)
CITED = re.compile(r"\b(Exercise|Solution) (\d+)(?!\d|\.\d)")
PRINTED = ("text/markdown", "image/png", "image/gif", "image/svg+xml", "text/html", "text/plain")
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


def folded(cell: dict) -> str:
    """What is folded in a cell of code, a key of `folds.CONTENT`; empty if it is open or removed."""
    directives, code = split(source(cell))
    tags = cell["metadata"].get("tags", [])
    if directives.keys() & {"hide", "default_exp"} or "remove-cell" in tags: return ""
    return folds.kind(code, exported(directives), tags, bool(figure(cell)[1]))


def for_book(nb: dict, links: dict[str, str] | None = None, number: str = "") -> dict:
    """For Jupyter Book: directives become cell tags, and code folds. `links`, words to address, lead to
    what can be downloaded; `number` is that of the chapter.
    """
    nb = copy.deepcopy(nb)
    for cell in nb["cells"]:
        if cell["cell_type"] == "code": book_cell(cell, number)
        elif cell["cell_type"] == "markdown": cell["source"] = book_text(source(cell), number)
    title = next((c for c in nb["cells"] if c["cell_type"] == "markdown" and source(c).startswith("# ")),
                 None)
    if title and links:  # after the title and the summary
        paragraphs = source(title).split("\n\n")
        files = [f'<a href="{address}" download>{words}</a>' for words, address in links.items()]
        paragraphs.insert(2, f'<p class="plain-notebook">{" · ".join(files)}</p>')
        title["source"] = "\n\n".join(paragraphs)
    return nb


def book_cell(cell: dict, number: str) -> None:
    """Give a cell of code the tags that Jupyter Book knows, and a fold its words."""
    what, (directives, code) = folded(cell), split(source(cell))
    if what == "solution": code = numbered(code, number)
    tags = cell["metadata"].setdefault("tags", [])
    if directives.keys() & {"hide", "default_exp"}: tags.append("remove-cell")
    if skipped(directives): tags.append("skip-execution")
    cell["source"] = code
    if not what: return
    fold = "hide-cell" if what == "solution" else "hide-input"
    if not {"hide-input", "hide-cell"} & set(tags): tags.append(fold)
    closed, opened = folds.prompts(code, what)
    words = {"code_prompt_show": closed, "code_prompt_hide": opened}
    cell["metadata"]["mystnb"] = words | cell["metadata"].get("mystnb", {})


def book_text(text: str, number: str) -> str:
    """A markdown cell whose exercises and solutions have the number of the chapter and their own class.
    """
    def classes(m):
        dropdown = "dropdown " if m[3] else ""
        return f"{m[1]}\n:class: {dropdown}{m[2].lower()}\n"
    return numbered(EXERCISE.sub(classes, text), number)


def numbered(text: str, number: str) -> str:
    """`Exercise 2` as `Exercise 7.2`, in a chapter with a `number`."""
    return CITED.sub(rf"\1 {number}.\2", text) if number else text


def for_quarto(nb: dict) -> dict:
    """For Quarto: its cell options, cross-references, callouts and citations."""
    nb = copy.deepcopy(nb)
    for cell in nb["cells"]:
        if cell["cell_type"] == "code":
            cell["source"] = "\n".join([*quarto_options(cell), split(source(cell))[1]])
        elif cell["cell_type"] == "markdown": cell["source"] = quarto_text(source(cell))
    return nb


def quarto_options(cell: dict) -> list[str]:
    """The `#|` lines that Quarto wants for the directives, the fold and the figure of a code cell."""
    (directives, code), (name, caption, alt) = split(source(cell)), figure(cell)
    options = {"include": "false"} if directives.keys() & {"hide", "default_exp"} else {}
    if skipped(directives): options["eval"] = "false"
    if what := folded(cell):
        words = folds.prompts(code, what)[0]
        options |= {"code-fold": "true", "code-summary": json.dumps(words, ensure_ascii=False)}
    if name:
        options |= {"label": name, "fig-cap": json.dumps(caption, ensure_ascii=False),
                    "fig-alt": json.dumps(alt, ensure_ascii=False)}
    return [f"#| {key}: {value}" for key, value in options.items()]


def quarto_text(text: str) -> str:
    """A markdown cell in Quarto's forms."""
    def role(m):
        works = "; ".join(f"@{key.strip()}" for key in m[2].split(","))
        return f"[{works}]" if m[1] == "cite:p" else works

    def admonition(m):
        folded = ' collapse="true"' if m[2] else ""
        return f'::: {{.callout-note title="{m[1]}"{folded}}}\n{m[3]}:::'

    text = MATH.sub(lambda m: f"$${m[1]}$$" + (f" {{#{m[2]}}}" if m[2] else ""), text)
    return ROLE.sub(role, ADMONITION.sub(admonition, SECTION.sub(r"\2 {#\1}", text)))


def for_jupyter(nb: dict, install: str, names: dict[str, str], number: str = "") -> dict:
    """For Jupyter and Colab: no directives, plain markdown, and a first cell that installs the package.

    `names` has what a reader sees for a label or a work: `(7.3)`, `Fig. 7.3`, `Hinton 2002`.
    """
    first = {"cell_type": "code", "id": "install", "metadata": {}, "execution_count": None,
             "outputs": [], "source": install}
    sections = [label for cell in nb["cells"] for label, _ in SECTION.findall(source(cell))]
    here = names | {label: f"[{names[label]}](#{label})" for label in sections}
    cells = [plain for cell in copy.deepcopy(nb["cells"]) for plain in jupyter_cells(cell, here, number)]
    return {**nb, "cells": [first, *cells]}


def jupyter_cells(cell: dict, names: dict[str, str], number: str) -> list[dict]:
    """The plain cells that stand for one cell: none for `default_exp`, two for a figure and its caption.
    """
    if cell["cell_type"] != "code":
        return [{**cell, "source": jupyter_text(source(cell), names, number)}]
    (directives, code), (name, caption, _) = split(source(cell)), figure(cell)
    if folded(cell) == "solution": code = numbered(code, number)
    if not code.strip(): return []
    words = f"*{names[name]}. {jupyter_text(caption, names, number)}*" if caption else ""
    if skipped(directives) or "repository" in cell["metadata"].get("tags", []):
        return [shown(cell, code, words)]
    plain = {**cell, "source": code, "metadata": {}, "outputs": [], "execution_count": None}
    return [plain] + ([markdown(f"{cell['id']}-caption", words)] if words else [])


def shown(cell: dict, code: str, caption: str) -> dict:
    """A markdown cell with the code of a cell that is not run, its stored outputs and a caption."""
    texts, pictures = [f"```python\n{code}\n```"], {}
    for n, output in enumerate(cell.get("outputs", [])):
        kind, content = printed(output)
        if kind.startswith("image/"):
            file = f"{cell['id']}-{n}.{kind[6:9]}"
            pictures[file] = {kind: content.strip()}
            content = f"![{figure(cell)[2]}](attachment:{file})"
        elif kind in ("", "text/plain"): content = f"```text\n{content.rstrip()}\n```"
        texts.append(content)
    made = markdown(cell["id"], "\n\n".join([*texts, caption]).rstrip())
    return made | ({"attachments": pictures} if pictures else {})


def printed(output: dict) -> tuple[str, str]:
    """The form of an output that a markdown cell shows best, and its content."""
    if output["output_type"] == "stream": return "", "".join(output["text"])
    kind = next(k for k in (*PRINTED, *output["data"]) if k in output["data"])
    return kind, "".join(output["data"][kind])


def markdown(identity: str, text: str) -> dict:
    """A markdown cell."""
    return {"cell_type": "markdown", "id": identity, "metadata": {}, "source": text}


def jupyter_text(text: str, names: dict[str, str], number: str = "") -> str:
    """A markdown cell in the forms that every Jupyter front end shows."""
    def role(m):
        if m[1] not in ("cite:p", "cite:t"): return names[m[2]]
        works = [names[key.strip()] for key in m[2].split(",")]
        if m[1] == "cite:p": return f"({'; '.join(works)})"
        return ", ".join("{} ({})".format(*work.rsplit(" ", 1)) for work in works)

    def admonition(m):
        if m[2]: return f"<details><summary><b>{m[1]}</b></summary>\n\n{m[3]}\n</details>"
        return f"**{m[1]}**\n\n{m[3].rstrip()}"

    def equation(m):
        return f"$${m[1]}" + (rf"\tag{{{names[m[2]].strip('()')}}}" if m[2] else "") + "$$"

    text = MATH.sub(equation, numbered(text, number))
    return ROLE.sub(role, ADMONITION.sub(admonition, SECTION.sub(r'<a id="\1"></a>\n\n\2', text)))
