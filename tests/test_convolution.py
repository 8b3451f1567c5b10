"""capsjax.convolution against float64, and under every transformation of JAX."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from capsjax import convolution
from capsjax.convolution import (
    conv_general_dilated,
    convolve_prepared,
    prepare_kernel,
)

LAYOUT = ("NHWC", "HWIO", "NHWC")
FORMS = ("tiles", "patches", "phases")

# image, kernel, strides, padding
SHAPES = {
    "primary capsules": ((2, 20, 20, 16), (9, 9, 16, 8), (2, 2), "VALID"),
    "one tile, stride 1": ((3, 9, 9, 16), (5, 5, 16, 4), (1, 1), "VALID"),
    "same, several tiles": ((2, 13, 17, 16), (5, 5, 16, 4), (1, 1), "SAME"),
    "same, stride 2": ((2, 14, 11, 24), (7, 7, 24, 5), (2, 2), "SAME"),
    "stride 3, cropped": ((2, 30, 24, 16), (7, 7, 16, 8), (3, 3), [(0, 1), (-1, 2)]),
    "nothing square": ((2, 13, 18, 16), (5, 8, 16, 4), (2, 1), [(1, 2), (0, 3)]),
    "left-over pixels": ((1, 23, 22, 16), (9, 9, 16, 4), (2, 2), "VALID"),
    "first layer": ((2, 28, 28, 1), (9, 9, 1, 8), (1, 1), "VALID"),
    "first layer, colour": ((2, 15, 12, 3), (5, 5, 3, 8), (2, 2), [(1, 1), (2, 2)]),
    "small window": ((2, 8, 8, 20), (3, 3, 20, 8), (1, 1), "SAME"),
    "small window, stride 2": ((2, 9, 9, 20), (3, 3, 20, 8), (2, 2), "SAME"),
    "window smaller than stride": ((2, 9, 8, 20), (1, 1, 20, 8), (2, 2), "VALID"),
}


def draw(key, image_shape, kernel_shape, strides, padding):
    """A ReLU's output (its mean is not zero), a kernel and a gradient of the result."""
    image_key, kernel_key, gradient_key = jax.random.split(key, 3)
    image = jax.nn.relu(jax.random.normal(image_key, image_shape))
    kernel = jax.random.normal(kernel_key, kernel_shape)
    shape = jax.eval_shape(plain(strides, padding), image, kernel).shape
    return image, kernel, jax.random.normal(gradient_key, shape)


def plain(strides, padding, function=lax.conv_general_dilated, **options):
    """The function as Flax calls it."""
    return lambda image, kernel: function(
        image, kernel, strides, padding, dimension_numbers=LAYOUT, **options
    )


def value_and_gradients(function, image, kernel, gradient):
    value, pullback = jax.vjp(function, image, kernel)
    return value, *pullback(gradient.astype(value.dtype))


def exact(strides, padding, *operands):
    """JAX's own convolution and gradients, in float64."""
    with jax.enable_x64(True):
        operands = [jnp.asarray(np.asarray(x), jnp.float64) for x in operands]
        results = jax.jit(
            functools.partial(value_and_gradients, plain(strides, padding))
        )(*operands)
        return [np.asarray(x) for x in results]


def error(actual, expected) -> float:
    """Root mean square of the difference, relative to that of the expected."""
    difference = np.asarray(actual, np.float64) - np.asarray(expected, np.float64)
    return np.sqrt(np.mean(difference**2) / np.mean(np.square(expected)))


def slope(actual, expected) -> float:
    actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
    return np.sum(actual * expected) / np.sum(expected**2)


@pytest.mark.parametrize("case", SHAPES)
def test_values_and_gradients_are_those_of_the_direct_convolution(key, case):
    image_shape, kernel_shape, *how = SHAPES[case]
    operands = draw(key, image_shape, kernel_shape, *how)
    function = plain(*how, conv_general_dilated)
    actual = jax.jit(functools.partial(value_and_gradients, function))(*operands)
    for a, e in zip(actual, exact(*how, *operands), strict=True):
        assert a.dtype == jnp.float32
        assert error(a, e) < 3e-6  # with Toom's points; 1e-6 without


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", SHAPES)
def test_every_form_computes_every_shape(key, case, form, dtype):
    image_shape, kernel_shape, *how = SHAPES[case]
    image, kernel, gradient = draw(key, image_shape, kernel_shape, *how)
    plan = convolution._choose_plan(image_shape, kernel_shape, *how, dtype, form=form)
    value = convolution._forward(image, kernel, plan)
    gradients = convolution._backward(image, kernel, gradient, plan)
    expected = exact(*how, image, kernel, gradient)
    for a, e in zip((value, *gradients), expected, strict=True):
        assert error(a, e) < (3e-6 if dtype == np.float32 else 5e-3)


def windows(image, kernel_shape, stride):
    """All windows of one image as rows, by NumPy."""
    view = np.lib.stride_tricks.sliding_window_view(image, kernel_shape[:2], (0, 1))
    view = view[::stride, ::stride].transpose(0, 1, 3, 4, 2)
    return view.reshape(*view.shape[:2], -1)


def paper_reference(image, kernel, gradient, stride):
    """Value and gradients of a VALID convolution as float64 matrix products."""
    image, kernel, gradient = (
        np.asarray(x, np.float64) for x in (image, kernel, gradient)
    )
    rows = np.stack([windows(x, kernel.shape, stride) for x in image])
    rows, flat = rows.reshape(-1, rows.shape[-1]), kernel.reshape(-1, kernel.shape[3])
    gradient_rows = gradient.reshape(-1, kernel.shape[3])
    value = (rows @ flat).reshape(gradient.shape)
    kernel_gradient = (rows.T @ gradient_rows).reshape(kernel.shape)
    scattered = (gradient_rows @ flat.T).reshape(*gradient.shape[:3], *kernel.shape[:3])
    image_gradient = np.zeros_like(image)
    height, width = gradient.shape[1:3]
    for i, j in np.ndindex(kernel.shape[:2]):
        image_gradient[
            :, i : i + stride * height : stride, j : j + stride * width : stride
        ] += scattered[:, :, :, i, j]
    return value, image_gradient, kernel_gradient


# The tile of the rule changes with the batch, so two batches are needed.
@pytest.mark.parametrize("batch", [4, 40])
def test_primary_capsules_are_exact_at_the_paper_s_own_size(key, batch):
    how = (2, 2), "VALID"
    operands = draw(key, (batch, 20, 20, 256), (9, 9, 256, 256), *how)
    expected = paper_reference(*operands, 2)
    for dtype, bound in ((None, 5e-6), (jnp.bfloat16, 5e-3)):
        function = plain(*how, conv_general_dilated, compute_dtype=dtype)
        actual = jax.jit(functools.partial(value_and_gradients, function))(*operands)
        for a, e in zip(actual, expected, strict=True):
            assert a.dtype == jnp.float32
            assert error(a, e) < bound
            assert abs(slope(a, e) - 1) < (1e-6 if dtype is None else 1e-3)
