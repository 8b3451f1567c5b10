"""Paths in the checkout, and the code on its pages."""

import pathlib
import re

TESTS = pathlib.Path(__file__).parents[1]
ROOT = TESTS.parent
FIRST_EDITION = TESTS / "fixtures" / "first_edition"


def blocks(page, language="python"):
    """The code in a language on a page of ``docs``, or on the README, in order."""
    text = (ROOT / "docs" / page).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)
