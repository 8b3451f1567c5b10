"""One program where there would be dozens: each operation outside of jit is one too."""

import functools

import jax
import numpy as np


def draw(key, *shape):
    """Draws standard normal numbers by NumPy, which compiles nothing."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    return rng.normal(size=shape).astype(np.float32)


@functools.lru_cache(maxsize=16)
def _jitted(module, method):
    """``jit`` itself compiles again for each look-up of a method."""
    return jax.jit(getattr(module, method))


def init(module, key, *inputs):
    """Returns the first weights of a module."""
    return _jitted(module, "init")(key, *inputs)


def apply(module, weights, *inputs):
    return _jitted(module, "apply")(weights, *inputs)
