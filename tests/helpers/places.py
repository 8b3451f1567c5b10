"""Paths in the checkout."""

import pathlib

TESTS = pathlib.Path(__file__).parents[1]
ROOT = TESTS.parent
FIRST_EDITION = TESTS / "fixtures" / "first_edition"
