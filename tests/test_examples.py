"""The reference has every name that a guide imports, and an example of each."""

import doctest
import importlib
import re

import pytest
from places import ROOT

import capsjax

# These are values, which have no docstring of their own.
VALUES = {"capsjax.DEVICE_AXIS", "capsjax.ROUTINGS", "capsjax.models.NETWORKS"}
ENTRIES = sorted(
    name
    for page in ROOT.glob("docs/reference/*.md")
    for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
)
# Imports without an entry.
EXCEPTIONS = {
    "capsjax.bounds.Share": "a type, which the page explains where it annotates by it",
    "capsjax.data.dataset.require_memory": "for readers inside capsjax",
    "capsjax.initializers.PRIMARY_LENGTH": "a number, which a recipe fits a layer to",
}


def named(name):
    """The value of a dotted name: of a module, or in one."""
    module, _, last = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), last)
    except AttributeError:
        return importlib.import_module(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ENTRIES if name not in VALUES])
def test_the_example_of_an_entry_prints_what_it_says(name):
    [example] = [
        one
        for one in doctest.DocTestFinder(recurse=False).find(
            named(name), name, globs={}
        )
        if one.examples
    ]
    printed = []
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(example, out=printed.append)
    assert not runner.failures, "".join(printed)


def imports():
    """The dotted names that the guides and the recipes import, with their pages."""
    pages = [
        ROOT / "README.md",
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("experiments/*.py"),
    ]
    for page in pages:
        found = re.findall(
            r"^\s*from (capsjax[\w.]*) import (\([^)]*\)|.*)$",
            page.read_text(),
            re.MULTILINE,
        )
        for module, names in found:
            for name in re.findall(r"\w+", re.sub(r"#.*| as \w+", "", names)):
                yield f"{module}.{name}", page.name


def test_each_public_name_and_each_name_that_a_guide_imports_has_an_entry():
    there = [named(name) for name in ENTRIES]
    wanted = {f"capsjax.{name}": "capsjax.__all__" for name in capsjax.__all__}
    wanted |= {name: page for name, page in imports() if name not in EXCEPTIONS}
    missing = {
        name: page
        for name, page in wanted.items()
        if not any(named(name) is one for one in there)
    }
    assert not missing


def test_each_exception_is_imported_somewhere():
    assert {*EXCEPTIONS} <= {name for name, _ in imports()}
