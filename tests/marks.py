"""Marks for some of the values that a test is run with."""

import pytest


def slow(*values):
    """Values that the longer checks try too: variants of the others."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def slow_but(first, values):
    """All values, of which the quick tests try the ``first`` ones alone."""
    return [*first, *slow(*(value for value in values if value not in first))]
