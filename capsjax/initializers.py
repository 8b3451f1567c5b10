"""Initial weights: by a name that fits into a config, or scaled to their layer.

``initializer("normal(0.1)")`` has the same deviation at any size. The three
``scaled_*`` rules, named ``scaled``, start a network of any size like the paper's. Each
multiplies a standard deviation chosen for the paper's network by a factor that is
exactly 1 at that network's sizes, so its first weights keep every bit. The paper gives
no initial weights; the deviations were chosen by validation on MNIST.
"""

import contextlib
import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from capsjax.bounds import Allowed

Initializer = Callable[..., Array]

SCALED = "scaled"  # Names the three rules.

# Root mean square lengths at the start of the paper's network, over 64 test digits of
# MNIST and seeds 0 to 2: 0.344, 0.356, 0.338 and 0.0096, 0.0102, 0.0086.
PRIMARY_LENGTH, CLASS_LENGTH = 0.35, 0.009
# Root mean square of the features before its primary capsules, by the same lengths:
# 0.0098^2 * 20736 * 8 * feature^2 = 0.35 / (1 - 0.35), the squared length unsquashed.
PAPER_FEATURE = 0.184

_PLAIN: Mapping[str, Callable[[], Initializer]] = {
    "glorot_uniform": jax.nn.initializers.glorot_uniform,
    "he_normal": jax.nn.initializers.he_normal,
    "lecun_normal": jax.nn.initializers.lecun_normal,
    "zeros": lambda: jax.nn.initializers.zeros,
}
_NUMBERED: Mapping[str, Callable[[float], Initializer]] = {
    "constant": jax.nn.initializers.constant,
    "normal": jax.nn.initializers.normal,
    # Cut at two standard deviations and not rescaled, like TensorFlow's.
    "truncated_normal": jax.nn.initializers.truncated_normal,
}


def initializer(
    start: str | Initializer, scaled: Initializer | None = None
) -> Initializer:
    """Finds an initializer by its name.

    Args:
        start: ``glorot_uniform``, ``he_normal``, ``lecun_normal``, ``zeros``, or, with
            a number, ``constant(0.1)``, ``normal(0.1)`` (mean zero, that standard
            deviation) or ``truncated_normal(0.1)``; or a function, which is returned.
        scaled: The rule for the name ``scaled``, if the layer has one.

    Raises:
        ValueError: If there is no initializer of that name.
    """
    if not isinstance(start, str):
        return start
    name = start
    if name == SCALED and scaled is not None:
        return scaled
    if name in _PLAIN:
        return _PLAIN[name]()
    match = re.fullmatch(r"(\w+)\(([\d.eE+-]+)\)", name, re.ASCII)
    if match and match[1] in _NUMBERED:
        with contextlib.suppress(ValueError):
            if math.isfinite(number := float(match[2])):
                return _NUMBERED[match[1]](number)
    known = _NAMES + f", {SCALED}" * (scaled is not None)
    raise ValueError(f"unknown initializer {name!r}; choose from {known}.")


def _is_name(start: Any, scaled: Initializer | None = None) -> bool:
    with contextlib.suppress(ValueError):
        return isinstance(start, str) and bool(initializer(start, scaled))
    return False


_NAMES = ", ".join([*_PLAIN, *(f"{name}(NUMBER)" for name in _NUMBERED)])
# Annotations of fields that hold an initializer: in a config, a name.
Start = Annotated[str | Initializer, Allowed(f"one of {_NAMES}", _is_name)]
ScaledStart = Annotated[
    str | Initializer,
    Allowed(
        f"one of {_NAMES}, {SCALED}",
        lambda start: _is_name(start, jax.nn.initializers.zeros),
    ),
]


def scaled_kernel(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
    r"""Draws the kernel ``[h, w, c, features]`` of the first convolution.

    ``N(0, sigma^2)`` with ``sigma = 0.064 sqrt(81 / fan_in)`` and ``fan_in = h w c``:
    the variance of a feature, ``sigma^2 fan_in E[pixel^2]``, depends on neither the
    kernel's size nor the number of channels.
    """
    return _normal(0.064, math.sqrt(81 / _fan_in(shape)))(key, shape, dtype)


def scaled_primary(dim: int, scale: float = 1.0) -> Initializer:
    r"""Makes the rule for the kernel of primary capsules, ``[h, w, c, types dim]``.

    ``N(0, sigma^2)`` with ``sigma = 0.0098 sqrt(20736 * 8 / (fan_in dim)) / scale`` and
    ``fan_in = h w c``. A capsule before its squash has ``dim`` components of variance
    ``scale^2 sigma^2 fan_in E[feature^2]`` each. Its mean squared length is their sum,
    which depends on no size; the squash turns it into about ``PRIMARY_LENGTH``.

    Args:
        dim: Components of a capsule.
        scale: Factor by which the layer multiplies the convolution's result.
    """

    def draw(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
        factor = math.sqrt(20736 * 8 / (_fan_in(shape) * dim)) / scale
        return _normal(0.0098, factor)(key, shape, dtype)

    return draw


def scaled_votes(
    input_length: float = PRIMARY_LENGTH,
    vote_deviation: float | None = None,
    length: float = CLASS_LENGTH,
) -> Initializer:
    r"""Makes the rule for the matrices ``W_ij``, an array ``[i, j, d, c]``.

    ``N(0, sigma^2)`` with ``sigma = 0.02 (0.35 / input_length) sqrt(1152 * 16 / (I d))
    (J / 10) g(10 / 16) / g(J / d)`` for ``I`` inputs and ``J`` outputs of ``d``
    components, and ``g(x) = 1 + 2 * 0.095^3 x``.

    In the first round every coupling is ``1 / J`` and an output before its squash is
    ``s_j = sum_i W_ij u_i / J``: ``d`` components of variance
    ``sigma^2 I input_length^2 / J^2`` each. So its length is about 0.095 at any size.
    The squash turns it into ``|s|^2 / (1 + |s|^2)``, here ``CLASS_LENGTH``. The length
    enters squared: inputs or weights ten times shorter make outputs a hundred times
    shorter, and outputs of the next layer ten thousand times shorter.

    In each of two more rounds an output attracts the votes that agree with it, and
    grows by ``|s|^3 J / d`` of its length, to first order; ``g`` compensates that. It
    matters only for many outputs of few components (1.4 for 1,000 of 4).

    An algorithm without a squash wants votes of a certain size instead. Their
    components have the standard deviation ``sigma input_length``, hence
    ``sigma = vote_deviation / input_length``.

    Args:
        input_length: Root mean square length of the input capsules at the start.
        vote_deviation: Standard deviation of the votes' components; None for outputs
            that are squashed.
        length: Root mean square length of squashed outputs at the start.

    Raises:
        ValueError: If the input length is not a finite number above 0.
    """
    if not 0 < input_length < math.inf:
        raise ValueError(
            "input_length must be the root mean square length of the input capsules, "
            f"a finite number above 0; got {input_length}."
        )

    if vote_deviation is not None:
        return jax.nn.initializers.normal(vote_deviation / input_length)

    def draw(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
        i, j, d, _ = shape
        factor = math.sqrt(1152 * 16 / (i * d)) * (PRIMARY_LENGTH / input_length)
        factor *= (j / 10) * (_growth(10 / 16) / _growth(j / d))
        factor *= before_squash(length) / before_squash(CLASS_LENGTH)
        return _normal(0.02, factor)(key, shape, dtype)

    return draw


def before_squash(length: float) -> float:
    """Returns the length of a vector that the squash makes this long."""
    return math.sqrt(length / (1 - length))


def scaled_poses(dim: int, length: float) -> Initializer:
    r"""Makes the rule for a kernel ``[h, w, c, types dim]`` of poses ``length`` long.

    ``N(0, sigma^2)`` with ``sigma = length / sqrt(fan_in dim)`` and
    ``fan_in = h w c``, for features whose root mean square is one.
    """

    def draw(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
        factor = 1 / math.sqrt(_fan_in(shape) * dim)
        return _normal(length, factor)(key, shape, dtype)

    return draw


def _growth(outputs_per_component: float) -> float:
    """Returns the growth of an output 0.095 long in two rounds of routing."""
    return 1 + 2 * 0.095**3 * outputs_per_component


def _fan_in(shape: Any) -> int:
    """Returns the number of products in an output of ``[h, w, c, features]``."""
    return math.prod(shape[:-1])


def _normal(deviation: float, factor: float) -> Initializer:
    """Draws around zero, with the deviation of the paper's network times a factor."""
    return jax.nn.initializers.normal(deviation * factor)
