import re
from typing import Annotated, Any, Literal

import pytest

from capsjax.bounds import Count, Decay, Share, Widths, above, parse, require

ALLOWED = [
    (3, int),
    (3, Count),
    (3, float),
    (None, float | None),
    (0.5, Share | None),
    ((1, 2), Widths),
    ("a", Literal["a", "b"]),
    (len, Any),
    ("text", int | bool),
]


@pytest.mark.parametrize(("value", "hint"), ALLOWED)
def test_allowed_values_pass(value, hint):
    require(value, hint, "field")


REFUSED = [
    (3.0, int, "field must be a whole number, got 3.0."),
    (True, int, "field must be a whole number, got True."),
    (1, bool, "field must be true or false, got 1."),
    (None, float, "field must be a finite number, got None."),
    (float("inf"), float, "field must be a finite number, got inf."),
    (10**400, float, "field must be a finite number, got 1000"),
    (float("nan"), Share | None, "field must be a finite number, got nan."),
    (1.5, Share | None, "field must be from 0 to 1, got 1.5."),
    (1.0, Decay, "field must be at least 0, below 1, got 1.0."),
    (0, Count, "field must be from 1 to 65536, got 0."),
    (2**32, int, "field must be below 2^32, got 4294967296."),
    ([5], Widths, "field must be a tuple of whole numbers, got [5]."),
    ((5, 0), Widths, "field must be at most 100 integers from 1 to 65536, got (5, 0)."),
    ("c", Literal["a", "b"], "field must be one of a, b, got 'c'."),
    (0.0, Annotated[float, above(0)], "field must be above 0, got 0.0."),
    (2.0, Annotated[float, above(0, 1)], "field must be above 0, at most 1, got 2.0."),
]


@pytest.mark.parametrize(("value", "hint", "message"), REFUSED)
def test_other_values_are_refused_with_what_is_allowed(value, hint, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        require(value, hint, "field")


def test_texts_become_values():
    assert parse("none", float | None, "field") is None
    assert parse("1e-3", Share | None, "field") == 1e-3
    assert parse("(4, 8)", Widths, "field") == (4, 8)
    assert parse("4,", Widths, "field") == (4,)
    assert parse("T", bool, "field") is True
    assert parse("none", str, "field") == "none"
    with pytest.raises(ValueError, match="field must be a whole number, got 'none'"):
        parse("none", int, "field")


def test_of_several_types_whole_numbers_come_first():
    assert parse("1", int | bool, "field") == 1
    assert parse("1", int | bool, "field") is not True
    assert parse("true", bool | int, "field") is True
    message = "field must be a whole number or true or false, got 'x'"
    with pytest.raises(ValueError, match=message):
        parse("x", int | bool, "field")
