"""Makes Markdown of the docstrings: equations and cross-references."""

import re
import textwrap
from typing import Any

import griffe

from docs.site import mathml

_EQUATIONS = re.compile(r"^( *)\.\. math::\n((?:\1 +.*\n|\n)+)", re.MULTILINE)
# Names in equations, such as softmax, are upright; names of TeX follow a backslash, and
# the letters of a subscript are indices.
_NAME = re.compile(r"_\{[^{}]*\}|(?<![\\a-zA-Z])([a-zA-Z]{3,})")
_ROLE = re.compile(r":(?:class|func|meth|mod|attr):`~?([\w.]+)`")


class Markdown(griffe.Extension):
    """Changes each docstring after it was read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Replaces what Markdown does not know."""
        if obj.docstring:
            text = _EQUATIONS.sub(_equations, f"{obj.docstring.value}\n")
            obj.docstring.value = _ROLE.sub(r"[`\1`][\1]", text).rstrip("\n")


def _equations(found: re.Match[str]) -> str:
    """Returns the equations of a block, one below the other, as MathML."""
    text = _NAME.sub(_upright, textwrap.dedent(found[2]))
    each = re.split(r"\\quad|\\\\\n", text)
    lines = [mathml(one) for one in each if one.strip()]
    return "\n".join(["", *(found[1] + line for line in lines), "", ""])


def _upright(found: re.Match[str]) -> str:
    return rf"\mathrm{{{found[1]}}}" if found[1] else found[0]
