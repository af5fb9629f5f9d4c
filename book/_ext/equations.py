"""Sphinx extension: the index of equations. Labels in code lead to the equation, equations lead to code
and check.

The table comes from `labels.collect`, which reads the notebooks afresh in every build. Whenever it, or
the numbering, differs from the table of the last build, all pages are written again (not read again), so
that no link goes stale.
"""
import html
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from labels import LABEL, Cell, Equation, collect

logger = logging.getLogger(__name__)
FILTER = """<form class="equation-filter" hidden>
<label for="equation-filter">Show only equations with</label>
<input type="search" id="equation-filter" placeholder="name, label, function or check">
<output for="equation-filter"></output>
</form>"""  # works, and shows itself, by book.js


class equation_index(nodes.General, nodes.Element):
    """Place of the index; filled when the page is written."""


class EquationIndex(SphinxDirective):
    """`{equation-index}`: number, label, statement, functions and checks of every labelled equation."""

    def run(self) -> list[nodes.Node]:
        if not hasattr(self.env, "equation_indexes"): self.env.equation_indexes = set()
        self.env.equation_indexes.add(self.env.docname)
        # the maths inside makes Sphinx load MathJax on this page
        return [nodes.raw("", FILTER, format="html"), equation_index("", nodes.math_block())]


def update(app, env) -> list[str]:
    """Read the table, report what is wrong, and name the pages to write again: all of them if anything
    moved.
    """
    root = Path(app.srcdir, app.config.equations_root).resolve()
    chapters = [doc for doc in reading_order(env) if (root / f"nbs/{doc}.ipynb").is_file()]
    table, problems = collect(root, chapters)
    for problem in problems: logger.warning(problem, type="equations")
    state = (table, env.toc_fignumbers, env.toc_secnumbers)
    moved = getattr(env, "equations_state", None) != state
    env.equations, env.equations_state = table, state
    contents(env)
    return sorted(env.found_docs) if moved else []


def reading_order(env) -> list[str]:
    """The pages of the book from front to back."""
    def below(doc):
        return [doc] + [d for child in env.toctree_includes.get(doc, []) for d in below(child)]
    return list(dict.fromkeys(below(env.config.root_doc)))


def contents(env) -> None:
    """The chapters of the index in its right-hand contents."""
    for doc in getattr(env, "equation_indexes", set()):
        page = env.tocs[doc][0]
        heads = [nodes.reference("", title, internal=True, refuri=doc, anchorname=f"#{anchor}")
                 for anchor, title in headings(env).values()]
        items = [nodes.list_item("", addnodes.compact_paragraph("", "", head)) for head in heads]
        page[:] = [page[0], nodes.bullet_list("", *items)]


def headings(env) -> dict[str, tuple[str, str]]:
    """Chapter with equations to anchor and heading of its part of the index, in reading order."""
    chapters = dict.fromkeys(e.cell.chapter for e in env.equations.values())
    number = {c: ".".join(map(str, env.toc_secnumbers.get(c, {}).get("", ()))) for c in chapters}
    return {c: (nodes.make_id(f"equations-{c}"), f"{number[c]} {env.titles[c].astext()}".strip())
            for c in chapters}


class EquationLinks(SphinxPostTransform):
    """Anchors on cells, links under equations, and the index page."""
    default_priority = 5

    def run(self) -> None:
        self.table, self.doc = self.env.equations, self.env.docname
        places = {p.cell.number: p.cell for e in self.table.values() for p in (*e.code, *e.checks)
                  if p.cell.chapter == self.doc}
        for node in self.document.findall(nodes.container):
            cell = places.get(node.get("cell_index", -2) + 1)
            if cell and node.get("nb_element") == "cell_code": node["ids"].append(f"cell-{cell.id}")
        for node in list(self.document.findall(nodes.math_block)):
            if node.get("label") in self.table:
                node.parent.insert(node.parent.index(node) + 1, self.links(self.table[node["label"]]))
        for node in list(self.document.findall(nodes.emphasis)):
            if node.astext() == "Notation": node.replace_self(self.page("notation", node))
        for node in list(self.document.findall(equation_index)):
            node.replace_self([self.chapter(*where) for where in headings(self.env).items()])

    def link(self, cell: Cell, child: nodes.Node, title: str = "") -> nodes.reference:
        """Reference to a code cell of any page; `title` shows where the pointer rests."""
        page = (
            "" if cell.chapter == self.doc else self.app.builder.get_relative_uri(self.doc, cell.chapter)
        )
        more = {"reftitle": title} if title else {}
        return nodes.reference("", "", child, internal=True, refuri=f"{page}#cell-{cell.id}", **more)

    def page(self, name: str, child: nodes.Node) -> nodes.Node:
        """The child as a link to another page."""
        if name == self.doc or name not in self.env.found_docs: return child.deepcopy()
        uri = self.app.builder.get_relative_uri(self.doc, name)
        return nodes.reference("", "", child.deepcopy(), internal=True, refuri=uri)

    def links(self, equation: Equation) -> nodes.paragraph:
        """`code f · check what`: one line; file and lines are the titles of the links."""
        line = nodes.paragraph("", "", nodes.strong("", "code "), classes=["equation-links"])
        for i, name in enumerate(dict.fromkeys(code.public for code in equation.code)):
            places = [code for code in equation.code if code.public == name]
            where = f"{places[0].file}:{', '.join(str(code.line) for code in places)}"
            shown = nodes.literal("", name) if name else nodes.Text("cell")
            line += [nodes.Text(", " if i else ""), self.link(places[0].cell, shown, where)]
        line += [nodes.Text(" · "), nodes.strong("", "check ")]
        for i, check in enumerate(equation.checks):
            line += [nodes.Text("; " if i else ""), self.link(check.cell, nodes.Text(check.text))]
        return line

    def chapter(self, chapter: str, heading: tuple[str, str]) -> nodes.section:
        """The equations of one chapter under its heading."""
        entries = [self.entry(e) for e in self.table.values() if e.cell.chapter == chapter]
        return nodes.section("", nodes.title("", heading[1]), *entries, ids=[heading[0]],
                             classes=["equation-chapter"])

    def entry(self, equation: Equation) -> nodes.container:
        """One equation of the index: number and label, statement, links."""
        number = addnodes.pending_xref("", nodes.literal("", equation.label), refdomain="math",
                                       reftype="eq",
                                       reftarget=equation.label, refdoc=self.doc, refwarn=True)
        head = nodes.paragraph("", "", number, nodes.Text(" "), nodes.literal("", equation.label))
        statement = nodes.math_block(equation.statement, equation.statement, nowrap=False, number=None)
        return nodes.container("", head, statement, self.links(equation), classes=["equation-entry"])


def link_labels(app, page: str, template: str, context: dict, doctree) -> None:
    """Every known `[eq-…]` in code, in docstrings and in the API reference becomes a link to its
    equation.
    """
    def anchor(m):
        equation = app.env.equations.get(m[1])
        if equation is None: return m[0]
        target = (
            app.builder.get_relative_uri(page, equation.cell.chapter)
            if page != equation.cell.chapter
            else ""
        )
        return f'[<a class="equation-label" href="{html.escape(target)}#equation-{m[1]}">{m[1]}</a>]'
    if "body" in context: context["body"] = LABEL.sub(anchor, context["body"])


def setup(app) -> dict:
    app.add_config_value("equations_root", "../../..", "env")
    app.add_node(equation_index)
    app.add_directive("equation-index", EquationIndex)
    app.add_post_transform(EquationLinks)
    app.connect("env-get-updated", update, priority=900)  # after the numbering
    app.connect("html-page-context", link_labels)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
