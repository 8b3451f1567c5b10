"""Ranges of hyperparameters, as types for their annotations.

``num_iterations: Rounds = 3`` declares type, range and default in one place. Code that
sets a field by its name, like the command line, checks it with :func:`require`.
"""

import contextlib
import math
import sys
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple


class Allowed(NamedTuple):
    """A range, for ``Annotated``.

    Attributes:
        words: The range, to follow "must be".
        holds: Returns whether a value lies in the range.
    """

    words: str
    holds: Callable[[Any], bool]


def at_least(low: float | int) -> Allowed:
    """Allows numbers from ``low`` on."""
    return Allowed(f"at least {low}", lambda value: value >= low)


def above(low: float | int, high: float | int = math.inf) -> Allowed:
    """Allows numbers above ``low``, up to ``high``."""
    words = f"above {low}" + (f", at most {high}" if high < math.inf else "")
    return Allowed(words, lambda value: low < value <= high)


def between(low: float | int, high: float | int) -> Allowed:
    """Allows numbers from ``low`` to ``high``."""
    return Allowed(f"from {low} to {high}", lambda value: low <= value <= high)


# Far wider than any layer; the product of three still fits into 64 bits.
_WIDEST = 2**16

Natural = Annotated[int, at_least(0)]
Positive = Annotated[int, at_least(1)]
Count = Annotated[int, between(1, _WIDEST)]
Size = Annotated[int, between(0, _WIDEST)]
Rounds = Annotated[int, between(1, 100)]
# Steps are counted on the device, in 32 bits.
Steps = Annotated[int, between(0, 2**31 - 1)]
Share = Annotated[float, between(0, 1)]
Weight = Annotated[float, at_least(0)]
Scale = Annotated[float, above(0)]
# A moving average with a decay of 1 would never move.
Decay = Annotated[float, Allowed("at least 0, below 1", lambda value: 0 <= value < 1)]
Widths = Annotated[
    tuple[int, ...],
    Allowed(
        f"at most 100 integers from 1 to {_WIDEST}",
        lambda value: len(value) <= 100 and all(1 <= n <= _WIDEST for n in value),
    ),
]
Names = tuple[str, ...]
ComputeType = Literal["float32", "bfloat16"]

_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a finite number",
    str: "a text",
    bool: "true or false",
}
_TRUE, _FALSE = ("true", "t", "1", "yes"), ("false", "f", "0", "no")


def require(value: Any, hint: Any, name: str) -> None:
    """Checks a value against its annotation.

    Checks ``int``, ``float``, ``str``, ``bool``, tuples of whole numbers or texts and
    ``Literal``, also with ``Annotated`` or ``| None``. Other types allow everything.

    Raises:
        ValueError: With the value and the allowed values.
    """
    kind, allowed, is_optional = _parts(hint)
    if value is None and is_optional:
        return
    choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
    if choices and value not in choices:
        one_of = ", ".join(map(str, choices))
        raise ValueError(f"{name} must be one of {one_of}, got {value!r}.")
    if not _is_of(value, kind):
        raise ValueError(f"{name} must be {_words(kind)}, got {value!r}.")
    numbers = value if type(value) is tuple else (value,)
    if any(type(n) is int and abs(n) >= 2**32 for n in numbers):
        raise ValueError(f"{name} must be below 2^32, got {value!r}.")
    for one in allowed:
        if not one.holds(value):
            raise ValueError(f"{name} must be {one.words}, got {value!r}.")


def parse(text: str, hint: Any, name: str) -> Any:
    """Reads a value from a command line by its annotation; ``none`` if it allows None.

    Raises:
        ValueError: If the text is not of that type.
    """
    kind, _, is_optional = _parts(hint)
    if is_optional and text.lower() == "none":
        return None
    if typing.get_origin(hint) in (typing.Union, types.UnionType) and kind is Any:
        # Whole numbers first: "1" is one of them, and a word for true, too.
        members = sorted(typing.get_args(hint), key=lambda one: one is not int)
        for member in members:
            with contextlib.suppress(ValueError):
                return parse(text, member, name)
        allowed = " or ".join(map(_words, members))
        raise ValueError(f"{name} must be {allowed}, got {text!r}.")
    try:
        if kind is bool and text.lower() in (*_TRUE, *_FALSE):
            return text.lower() in _TRUE
        if kind in (int, float):
            return kind(text)
        if _is_tuple(kind):
            parts = [part.strip() for part in text.strip("()[], ").split(",")]
            return tuple(_member(kind)(part) for part in parts if part or kind != Names)
    except ValueError:
        pass
    if kind in (int, float, bool) or _is_tuple(kind):
        raise ValueError(f"{name} must be {_words(kind)}, got {text!r}.")
    return text


def _parts(hint: Any) -> tuple[Any, list[Allowed], bool]:
    """Returns an annotation's plain type, its ranges, and True if it allows None."""
    allowed: list[Allowed] = []
    is_optional = False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = [one for one in typing.get_args(hint) if one is not type(None)]
        is_optional = len(kinds) < len(typing.get_args(hint))
        hint = kinds[0] if len(kinds) == 1 else Any
    if typing.get_origin(hint) is Annotated:
        hint, *rest = typing.get_args(hint)
        allowed = [one for one in rest if isinstance(one, Allowed)]
    return hint, allowed, is_optional


def _is_tuple(kind: Any) -> bool:
    return kind == Names or (
        typing.get_origin(kind) is tuple and set(typing.get_args(kind)) <= {int, ...}
    )


def _member(kind: Any) -> type:
    return typing.get_args(kind)[0]


def _is_of(value: Any, kind: Any) -> bool:
    if kind is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    if kind in _WORDS:
        return type(value) is kind
    if _is_tuple(kind):
        return type(value) is tuple and all(type(one) is _member(kind) for one in value)
    return True


def _words(kind: Any) -> str:
    of = "names" if kind == Names else "whole numbers"
    return _WORDS.get(kind, f"a tuple of {of}")
