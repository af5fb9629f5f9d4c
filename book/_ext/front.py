"""What the first page takes from the chapters when the book is built: reading times and a figure.

The role ``{minutes}`models/energy, models/rbm` `` becomes a whole number. Words of the notebooks count,
at the usual 200 a minute; code, displayed equations and what is folded away do not. The directive
`{shown} bridge/score fig-score-frames` shows a figure of an executed chapter, with its own caption.
"""
from html import escape
import json
import math
from pathlib import Path
import re

from docutils import nodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

from forms import ADMONITION, MATH, figure, source

logger = logging.getLogger(__name__)
WORDS_A_MINUTE = 200
WORD = re.compile(r"[^\W_][\w'’.-]*")
TARGET = re.compile(r"\]\([^)]*\)|\{[\w:]+\}`[^`]*`|\$[^$]*\$")


def words(nb: dict) -> int:
    """The words that a reader of a chapter reads: no code, no equation, nothing folded."""
    text = "\n\n".join(source(c) for c in nb["cells"] if c["cell_type"] == "markdown")
    text = ADMONITION.sub(lambda m: "" if m[2] else m[3], MATH.sub("", text))
    return len(WORD.findall(TARGET.sub("", text)))


def picture(nb: dict, name: str) -> str:
    """The figure `name` of an executed notebook as HTML; empty if there is none."""
    shown = [o["data"] for c in nb["cells"] if figure(c)[0] == name for o in c.get("outputs", [])
             if "image/png" in o.get("data", {})]
    if not shown: return ""
    alt = next(figure(c)[2] for c in nb["cells"] if figure(c)[0] == name)
    code = "".join(shown[0]["image/png"]).replace("\n", "")
    still = (f'<img src="data:image/png;base64,{code}" alt="{escape(alt)}" '
             'style="max-width: 100%; height: auto">')
    return "".join(shown[0].get("text/html", still))


class Minutes(SphinxRole):
    """The role; a chapter that does not exist is a warning, and so stops the build."""

    def run(self) -> tuple[list[nodes.Node], list]:
        root = Path(self.env.app.srcdir, self.config.equations_root).resolve()
        count = 0
        for chapter in re.split(r",\s*", self.text):
            path = root / f"nbs/{chapter}.ipynb"
            self.env.note_dependency(str(path))
            if path.is_file(): count += words(json.loads(path.read_text("utf8")))
            else: logger.warning("no chapter %s", chapter, location=self.get_location())
        return [nodes.Text(str(math.ceil(count / WORDS_A_MINUTE)))], []


class Shown(SphinxDirective):
    """The directive; its content is the caption. A figure that does not exist is a warning."""
    required_arguments = 2
    has_content = True

    def run(self) -> list[nodes.Node]:
        chapter, name = self.arguments
        path = Path(self.env.app.srcdir, f"{chapter}.ipynb")
        self.env.note_dependency(str(path))
        found = picture(json.loads(path.read_text("utf8")), name) if path.is_file() else ""
        if not found: logger.warning("no figure %s in %s", name, chapter, location=self.get_location())
        caption = nodes.caption()
        self.state.nested_parse(self.content, self.content_offset, caption)
        return [nodes.figure("", nodes.raw("", found, format="html"), *caption.children,
                             classes=["front"])]


def setup(app) -> dict:
    app.add_role("minutes", Minutes())
    app.add_directive("shown", Shown)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
