"""The site has every page, and its reference every public name."""

import json
import pathlib
import re
import tomllib

import pytest
import yaml
from places import ROOT

import capsjax

DOCS = ROOT / "docs"


def entries(nav):
    for entry in nav:
        for value in entry.values():
            yield from [value] if isinstance(value, str) else entries(value)


def test_every_page_has_its_place_in_the_navigation():
    config = tomllib.loads((ROOT / "zensical.toml").read_text())
    there = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    found = [*entries(config["project"]["nav"])]
    assert sorted(found) == sorted(there)


def test_the_reference_has_every_public_name_once():
    text = "".join(
        path.read_text() for path in pathlib.Path(DOCS).glob("reference/*.md")
    )
    names = re.findall(r"^::: capsjax\.(\w+)$", text, re.MULTILINE)
    assert sorted(names) == sorted(capsjax.__all__)


def text_of(page):
    """A page, or the Markdown of a notebook."""
    if page.suffix != ".ipynb":
        return page.read_text()
    cells = json.loads(page.read_text())["cells"]
    written = [cell["source"] for cell in cells if cell["cell_type"] == "markdown"]
    return "\n\n".join("".join(source) for source in written)


@pytest.mark.parametrize(
    "page",
    [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *DOCS.glob("*.ipynb")],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_every_relative_link_leads_to_a_file_and_a_heading(page):
    targets = re.findall(r"\]\((?!\w+:)([^)\s]+)\)", text_of(page))
    targets += re.findall(r"<!-- include: (\S+) -->", text_of(page))
    for target in targets:
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", text_of(file), re.M)
            anchors = [
                re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-")
                for heading in headings
            ]
            assert anchor in anchors, target


def test_the_readme_cites_as_the_citation_file_does():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cited["version"] == project["version"]
    (entry,) = re.findall(
        r"```bibtex\n(.*?)```", (ROOT / "README.md").read_text(), re.S
    )
    fields = dict(re.findall(r"^  (\w+) = \{(.*)\},?$", entry, re.M))
    assert fields == {
        "title": cited["title"],
        "author": " and ".join(f"{{{one['name']}}}" for one in cited["authors"]),
        "version": cited["version"],
        "year": str(cited["date-released"].year),
    }
