"""Marks for some of the values that a test is run with."""

import pytest


def variants(*values):
    """Values that show what others show already: for ``pytest -m variant``, by hand."""
    return [pytest.param(value, marks=pytest.mark.variant) for value in values]


def first_of(first, values):
    """All values, of which all but the ``first`` ones are variants."""
    return [*first, *variants(*(value for value in values if value not in first))]
