"""Crops, mirrors and recolours photographs: the mathematics.

All is computed in integers. Then the bytes of an image do not depend on the program
around it, in which XLA may fuse a product with a sum. What is drawn at random for each
image is in ``capsjax.data.augment``.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Integer, Num

# Places and sizes are multiples of one over this, factors of one over that.
PLACES, FACTORS = 1024, 256


class Changes(NamedTuple):
    """The changes of each image.

    Attributes:
        start: Upper left corner of the part to show: shares of height and width, in
            units of ``1 / PLACES``.
        side: Height and width of the part, in the same units; ``start + side`` is at
            most ``PLACES``.
        is_mirrored: True to swap left and right.
        factors: Brightness, contrast and saturation, in units of ``1 / FACTORS``, up to
            2.
    """

    start: Int[Array, "batch 2"]
    side: Int[Array, "batch 2"]
    is_mirrored: Bool[Array, " batch"]
    factors: Int[Array, "batch 3"]


def crop(
    image: Num[Array, "batch h w c"],
    start: Int[Array, "batch 2"],
    side: Int[Array, "batch 2"],
    is_mirrored: Bool[Array, " batch"],
) -> Num[Array, "batch h w c"]:
    """Enlarges a part of each image to the size of the image.

    The new pixel ``n`` of ``N`` along an axis shows the place ``start (N - 1) +
    side n`` of the old image, between the two nearest pixels.

    Args:
        image: Unsigned bytes.
        start: See ``Changes``, like the next two.
        side: Height and width of the part.
        is_mirrored: True to swap left and right.
    """
    _, height, width, _ = image.shape
    row, column = jnp.arange(height)[None], jnp.arange(width)[None]
    column = jnp.where(is_mirrored[:, None], width - 1 - column, column)
    changed = image.astype(jnp.int32)
    for axis, (number, size) in enumerate(((row, height), (column, width))):
        place = start[:, axis, None] * (size - 1) + side[:, axis, None] * number
        # Rows first, then columns as rows.
        changed = jnp.swapaxes(_between(changed, place), 1, 2)
    return _rounded(changed, PLACES**2).astype(image.dtype)


def recolour(
    image: Num[Array, "batch h w c"], factors: Int[Array, "batch 3"]
) -> Num[Array, "batch h w c"]:
    """Changes the saturation of each image, then its contrast, then its brightness.

    ``x' = g + saturation (x - g)`` for each pixel's grey ``g``, its luma; then
    ``x'' = m + contrast (x' - m)`` for the image's mean grey ``m``; then
    ``brightness x''``, cut to bytes. Images without three channels keep their
    saturation, and the mean of the channels is their grey.

    Args:
        image: Unsigned bytes.
        factors: See ``Changes``.
    """
    brightness, contrast, saturation = factors.T[..., None, None, None]
    pixel = image.astype(jnp.int32)
    if image.shape[-1] == 3:
        # ITU-R BT.601, in units of 1 / 256.
        red, green, blue = jnp.split(pixel, 3, axis=-1)
        grey = _rounded(77 * red + 150 * green + 29 * blue, 256)
        changed = FACTORS * grey + saturation * (pixel - grey)
    else:
        grey = _mean(pixel, 3)
        changed = FACTORS * pixel
    # Axis by axis, because the sum over a large image is above 32 bits.
    mean = FACTORS * _mean(_mean(grey, 2), 1)
    changed = mean + _rounded(contrast * (changed - mean), FACTORS)
    changed = _rounded(brightness * changed, FACTORS**2)
    return jnp.clip(changed, 0, 255).astype(image.dtype)


def _between(
    image: Int[Array, "batch h w c"], place: Int[Array, "batch H"]
) -> Int[Array, "batch H w c"]:
    """Interpolates between rows, times ``PLACES``."""
    above, share = place // PLACES, (place % PLACES)[..., None, None]
    below = jnp.minimum(above + 1, image.shape[1] - 1)

    @jax.vmap
    def rows(image, number):
        return image.at[number].get(mode="promise_in_bounds")

    return (PLACES - share) * rows(image, above) + share * rows(image, below)


def _mean(numbers: Integer[Array, "..."], axis: int) -> Integer[Array, "..."]:
    return _rounded(numbers.sum(axis, keepdims=True), numbers.shape[axis])


def _rounded(numbers: Integer[Array, "..."], unit: int) -> Integer[Array, "..."]:
    """Divides and rounds to the nearest integer."""
    return (numbers + unit // 2) // unit
