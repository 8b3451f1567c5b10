"""Maximum pooling against Flax's, whose gradient is JAX's own."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import first_of

from capsjax.kernels.pooling import max_pool

# Image and window; 7 pixels become 4.
SIZES = first_of([((2, 6, 7, 3), 2)], [((1, 7, 5, 2), 3), ((2, 4, 4, 1), 4)])


def flaxs(image, window):
    rows, columns = image.shape[-3:-1]
    edges = [(0, -rows % window), (0, -columns % window)]
    return nn.max_pool(image, (window, window), (window, window), edges)


def value_and_gradient(pool, window, image, gradient):
    value, pullback = jax.vjp(functools.partial(pool, window=window), image)
    return value, *pullback(gradient)


@pytest.mark.parametrize("size", SIZES)
def test_values_and_gradients_equal_flaxs_with_ties_too(size):
    shape, window = size
    rng = np.random.default_rng(0)
    # Few different numbers, after a ReLU: most squares have several largest pixels.
    image = np.maximum(rng.integers(-3, 3, shape), 0).astype(np.float32)
    image -= rng.integers(0, 2)
    found = jax.jit(functools.partial(value_and_gradient, max_pool, window))
    expected = jax.jit(functools.partial(value_and_gradient, flaxs, window))
    gradient = rng.normal(size=flaxs(image, window).shape).astype(np.float32)
    for a, e in zip(found(image, gradient), expected(image, gradient), strict=True):
        np.testing.assert_array_equal(a, e)


def test_its_program_has_no_slow_scatter():
    image = jnp.zeros((1, 4, 4, 1))
    gradient = jax.grad(lambda pool, image: pool(image, 2).sum(), argnums=1)

    def program(pool):
        return jax.jit(functools.partial(gradient, pool)).lower(image).as_text()

    assert "select_and_scatter" in program(flaxs)
    assert "select_and_scatter" not in program(max_pool)


def test_a_window_of_one_pixel_changes_nothing():
    image = jnp.arange(8.0).reshape(1, 2, 2, 2)
    assert max_pool(image, 1) is image


@pytest.mark.parametrize("window", [0, 16])
def test_a_window_that_no_byte_counts_is_refused(window):
    with pytest.raises(ValueError, match=f"window must be from 1 to 15 .* {window}"):
        max_pool(jnp.zeros((1, 4, 4, 1)), window)
