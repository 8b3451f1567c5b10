"""Every public name has an example in its docstring, which a test runs."""

import doctest

import pytest

import capsjax
from capsjax import diagnostics

# These are values, which have no docstring of their own.
NAMES = sorted({*capsjax.__all__} - {"DEVICE_AXIS", "ROUTINGS"})
PUBLIC = [(capsjax, name) for name in NAMES]
PUBLIC += [(diagnostics, name) for name in diagnostics.__all__]


@pytest.mark.parametrize(("module", "name"), PUBLIC)
def test_the_example_of_a_public_name_prints_what_it_says(module, name):
    value = getattr(module, name)
    [example] = [
        one
        for one in doctest.DocTestFinder(recurse=False).find(value, name, globs={})
        if one.examples
    ]
    printed = []
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(example, out=printed.append)
    assert not runner.failures, "".join(printed)
