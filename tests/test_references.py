"""Every number of a work, DOI or arXiv, has the form of one, and the chapters repeat it as it stands."""
import json
import re

import pytest

from bookmaker import ROOT
from forms import source

ENTRY = re.compile(r"^@\w+\{([\w-]+),\n(.*?)^\}", re.MULTILINE | re.DOTALL)
FIELD = re.compile(r"\b(doi|eprint|url) = \{([^}]*)\}")
DOI = re.compile(r"10\.\d{4,5}/[\w./():;-]+")
ARXIV = re.compile(r"(0[7-9]|[12]\d)(0[1-9]|1[0-2])\.\d{4,5}")
WORKS = {key: dict(FIELD.findall(text))
         for key, text in ENTRY.findall((ROOT / "book/references.bib").read_text("utf8"))}


def lines():
    """Chapter, line and keys of every line in a list of references that cites a work."""
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        for cell in json.loads(path.read_text("utf8"))["cells"]:
            if cell["cell_type"] != "markdown" or "## References" not in source(cell): continue
            for line in source(cell).split("\n"):
                keys = re.findall(r"\{cite:[pt]\}`([^`]+)`", line)
                if keys: yield path.stem, line, [key.strip() for key in ",".join(keys).split(",")]


def wrong(line, keys):
    """Numbers in a line of references that no work cited in it has."""
    known = {number.lower() for key in keys for number in WORKS[key].values()}
    found = re.findall(r"doi\.org/(10\.[^\s>]+?)>?\)(?=[\s,;:.]|$)", line)
    found += re.findall(r"arxiv\.org/abs/([\d.]+\d)", line)
    return [number for number in found if number.lower() not in known]


def test_numbers_have_the_form_of_numbers():
    text = (ROOT / "book/references.bib").read_text("utf8")
    assert len(WORKS) == text.count("\n@") + text.startswith("@") > 100
    for key, fields in WORKS.items():
        assert DOI.fullmatch(fields.get("doi", "10.1000/x")), key
        assert ARXIV.fullmatch(fields.get("eprint", "2001.00001")), key
    assert "note = {arXiv" not in text


def test_no_number_belongs_to_two_works():
    numbers = [number for fields in WORKS.values() for number in fields.values()]
    assert len(numbers) == len(set(numbers))


def test_chapters_repeat_the_numbers():
    seen = 0
    for chapter, line, keys in lines():
        assert not wrong(line, keys), f"{chapter}: {line}"
        seen += len(keys)
    assert seen > 100


@pytest.mark.parametrize("line", ["[doi](https://doi.org/10.1162/089976602760128019)",
                                  "[arXiv:2006.11240](https://arxiv.org/abs/2006.11240)"])
def test_another_number_is_found(line):
    assert wrong(line, ["hinton2002", "ho2020"])
