"""Sphinx extension: every term of the glossary is an entry of the index that leads to its chapter, so
that the search puts this chapter first.

The glossary is an ordinary `{glossary}`; the first link of a definition names the chapter of the term.
"""
from pathlib import Path
import re

from sphinx import addnodes
from sphinx.transforms.post_transforms import SphinxPostTransform

BLOCK = re.compile(r"^```\{glossary\}\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([\w/-]+)\.(?:ipynb|md)(?:#[\w-]+)?\)")


def read(text: str) -> list[tuple[list[str], str]]:
    """The entries of a glossary: their terms, and the page that the definition links to first."""
    block = BLOCK.search(text)
    found, terms = [], []
    for line in block[1].split("\n") if block else []:
        if not line.strip() or line.startswith(":"): continue
        if not line.startswith(" "):
            terms = [*terms, line.strip()]
            continue
        if terms: found.append((terms, ""))
        terms = []
        link = LINK.search(line)
        if link and found and not found[-1][1]: found[-1] = (found[-1][0], link[1])
    return found


def update(app, env) -> list[str]:
    """Terms by page, read afresh; the pages whose terms have changed are written again."""
    page = Path(app.srcdir, "glossary.md")
    terms = {}
    for names, doc in read(page.read_text("utf8") if page.is_file() else ""):
        terms.setdefault(doc, []).extend(names)
    last = getattr(env, "glossary_terms", {})
    env.glossary_terms = terms
    entries = env.domaindata["index"]["entries"]
    for doc in terms.keys() & env.found_docs:
        own = [e for e in entries.get(doc, []) if e[2] != ""]
        entries[doc] = [*own, *map(index_entry, terms[doc])]
    return sorted(doc for doc in env.found_docs if last.get(doc) != terms.get(doc))


def index_entry(term: str) -> tuple:
    """A main entry of the index at the top of a page."""
    return ("single", term, "", "main", None)


class ChapterTerms(SphinxPostTransform):
    """The terms of a page, where the search looks for them."""
    default_priority = 6

    def run(self) -> None:
        terms = self.env.glossary_terms.get(self.env.docname, [])
        if terms: self.document.insert(0, addnodes.index(entries=[index_entry(t) for t in terms]))


def rank(app, config) -> None:
    """How the search ranks pages."""
    config.html_search_scorer = str(Path(__file__).with_name("scorer.js"))


def setup(app) -> dict:
    app.connect("config-inited", rank)
    app.add_post_transform(ChapterTerms)
    app.connect("env-get-updated", update, priority=910)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
