"""What the pages call an equation, a figure, a section, a work: for the notebooks beside them."""
from collections import Counter
from pathlib import Path

from pybtex.database import Entry, Person, parse_file
from pybtex.richtext import Text

from forms import MATH, SECTION, figure, source


def names(notebooks: dict[str, dict], numbers: dict[str, str]) -> dict[str, str]:
    """Label to what the reader sees: `(7.3)`, `Fig. 7.3`, the title of a section."""
    found, count = {}, Counter()
    for chapter, nb in notebooks.items():
        number = numbers.get(chapter, "")
        for label in equations(nb):
            count[number, "equation"] += 1
            found[label] = f"({place(number, count[number, 'equation'])})"
        for label in figures(nb):
            count[number, "figure"] += 1
            found[label] = f"Fig. {place(number, count[number, 'figure'])}"
        found |= sections(nb)
    return found


def place(chapter: str, n: int) -> str:
    """`7.3`; without the number of the chapter where it has none."""
    return f"{chapter}.{n}" if chapter else str(n)


def markdown(nb: dict) -> list[str]:
    """The sources of the markdown cells."""
    return [source(cell) for cell in nb["cells"] if cell["cell_type"] == "markdown"]


def equations(nb: dict) -> list[str]:
    """The labels of the equations of a notebook, in order."""
    return [label for text in markdown(nb) for _, label in MATH.findall(text) if label]


def figures(nb: dict) -> list[str]:
    """The names of the figures of a notebook, in order."""
    return [name for cell in nb["cells"] if cell["cell_type"] == "code" and (name := figure(cell)[0])]


def sections(nb: dict) -> dict[str, str]:
    """The labels of the sections of a notebook and their titles."""
    return {label: heading.lstrip("# ") for text in markdown(nb)
            for label, heading in SECTION.findall(text)}


def citations(bibliography: Path) -> dict[str, str]:
    """Key to authors and year of every work of a BibTeX file: `Hinton 2002`, `Neal et al. 2001`."""
    return {key: f"{authors(entry)} {entry.fields['year']}"
            for key, entry in parse_file(bibliography).entries.items()}


def authors(entry: Entry) -> str:
    """Who wrote a work: one name, two, or the first `et al.`; its title if it says no name."""
    who = [family(person) for person in entry.persons.get("author", [])]
    if not who: return str(Text.from_latex(entry.fields["title"]))
    return f"{who[0]} et al." if len(who) > 2 or who[-1] == "others" else " and ".join(who)


def family(person: Person) -> str:
    """The family name of a person."""
    return str(Text.from_latex(" ".join([*person.prelast_names, *person.last_names])))
