"""How weights start, by names that fit into a config: ``normal(0.1)``, ``zeros``."""

import contextlib
import math
import re
from collections.abc import Callable, Mapping

import jax
from jaxtyping import Array

_PLAIN: Mapping[str, Callable[[], Callable[..., Array]]] = {
    "glorot_uniform": jax.nn.initializers.glorot_uniform,
    "he_normal": jax.nn.initializers.he_normal,
    "lecun_normal": jax.nn.initializers.lecun_normal,
    "zeros": lambda: jax.nn.initializers.zeros,
}
_SCALED: Mapping[str, Callable[[float], Callable[..., Array]]] = {
    "constant": jax.nn.initializers.constant,
    "normal": jax.nn.initializers.normal,
    # Cut at two standard deviations and not rescaled, as TensorFlow's is.
    "truncated_normal": jax.nn.initializers.truncated_normal,
}


def initializer(name: str) -> Callable[..., Array]:
    """The initialiser of that name.

    Args:
        name: ``glorot_uniform``, ``he_normal``, ``lecun_normal``, ``zeros``, or, with a
            number, ``constant(0.1)``, ``normal(0.1)`` (mean zero, that standard
            deviation) or ``truncated_normal(0.1)``.

    Raises:
        ValueError: If there is none.
    """
    if name in _PLAIN:
        return _PLAIN[name]()
    match = re.fullmatch(r"(\w+)\(([\d.eE+-]+)\)", name, re.ASCII)
    if match and match[1] in _SCALED:
        with contextlib.suppress(ValueError):
            if math.isfinite(number := float(match[2])):
                return _SCALED[match[1]](number)
    known = [*_PLAIN, *(f"{name}(NUMBER)" for name in _SCALED)]
    raise ValueError(f"unknown initializer {name!r}; choose from {', '.join(known)}.")
