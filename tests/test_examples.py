"""Every public name has an example in its docstring, which a test runs."""

import doctest

import pytest

import capsjax

# These are values, which have no docstring of their own.
NAMES = sorted({*capsjax.__all__} - {"DEVICE_AXIS", "ROUTINGS"})


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_a_public_name_prints_what_it_says(name):
    value = getattr(capsjax, name)
    [example] = [
        one
        for one in doctest.DocTestFinder(recurse=False).find(value, name, globs={})
        if one.examples
    ]
    printed = []
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(example, out=printed.append)
    assert not runner.failures, "".join(printed)
