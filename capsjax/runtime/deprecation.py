"""Marks what will go: what replaces it, and the version that it goes in."""

from collections.abc import Callable
from typing import Any, TypeVar

import typing_extensions

_Value = TypeVar("_Value", bound=Callable)


def deprecated(*, use: str, removed_in: str) -> Callable[[_Value], _Value]:
    """Makes a function or class warn where it is used: once a line, as Python does.

    ``tests/runtime/test_deprecation.py`` fails as long as it is there in that version.

    Args:
        use: What to use instead, in code.
        removed_in: The first version without it, a literal such as ``"0.4"``.
    """

    def decorate(value: _Value) -> _Value:
        # Typed as Any: made of literals, but not one to pyright.
        text: Any = f"{value.__qualname__} goes in capsjax {removed_in}: use {use}"
        return typing_extensions.deprecated(text)(value)

    return decorate
