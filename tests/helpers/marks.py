"""Marks for some of a test's parameters."""

import pytest


def variants(*values):
    """Marks values that show the same as others: for ``pytest -m variant``, by hand."""
    return [pytest.param(value, marks=pytest.mark.variant) for value in values]


def slow(*values):
    """Marks values that the quick tests leave to the slow ones."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def first_of(first, values):
    """Returns all values, and marks all but the ``first`` ones as variants."""
    return [*first, *variants(*(value for value in values if value not in first))]
