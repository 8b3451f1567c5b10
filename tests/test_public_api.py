"""The public names and their signatures, so that a break is seen.

After a change on purpose, write them anew: ``python tests/test_public_api.py``.
"""

import inspect
import pathlib
import re

import flax.linen as nn

import capsjax

GOLDEN = pathlib.Path(__file__).with_name("public_api.txt")


def signature(value):
    parameters = inspect.signature(value).parameters.values()
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    # The last two are Flax's, of every module.
    hidden = ("self", "cls", "parent", "name") if is_module(value) else ("self", "cls")
    text = str(inspect.Signature([p for p in bare if p.name not in hidden]))
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def is_module(value):
    return inspect.isclass(value) and issubclass(value, nn.Module)


def described():
    for name in capsjax.__all__:
        value = getattr(capsjax, name)
        if inspect.isclass(value):
            yield f"{name}{signature(value)}"
            for method, function in sorted(vars(value).items()):
                if not method.startswith("_") and inspect.isfunction(function):
                    yield f"    .{method}{signature(function)}"
                elif not method.startswith("_") and isinstance(function, property):
                    yield f"    .{method}"
        elif callable(value):
            yield f"{name}{signature(value)}"
        else:
            yield f"{name} = {value if isinstance(value, str) else ', '.join(value)}"


def test_public_names_and_signatures_are_the_recorded_ones():
    assert list(described()) == GOLDEN.read_text().splitlines()


if __name__ == "__main__":
    GOLDEN.write_text("\n".join(described()) + "\n")
