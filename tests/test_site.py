"""The site has every page, and its reference every public name."""

import pathlib
import re
import tomllib

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
    # These two are values, which the module's own docstring explains.
    wanted = {*capsjax.__all__} - {"DEVICE_AXIS", "ROUTINGS"}
    assert sorted(names) == sorted(wanted)
