"""Turns, slants, scales, moves and bends images: the mathematics.

Points are (row, column) in pixels from the middle of the image; rows count down. What
is drawn at random for each image is in ``capsjax.data.augment``.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num


def matrices(
    turn: Float[Any, " n"], slant: Float[Any, " n"], scale: Float[Any, "n 2"]
) -> Float[Any, "n 2 2"]:
    """Returns the matrices that scale points, then slant them, then turn them.

    Args:
        turn: Angles in radians, counter-clockwise as seen; arrays of NumPy or JAX.
        slant: Pixels to the right for each pixel down.
        scale: Factors along the rows and along the columns.
    """
    xp = turn.__array_namespace__()
    cos, sin = xp.cos(turn), xp.sin(turn)
    tall, wide = scale[:, 0], scale[:, 1]
    down = [cos * tall - sin * slant * tall, -sin * wide]
    right = [sin * tall + cos * slant * tall, cos * wide]
    return xp.stack([xp.stack(down, axis=-1), xp.stack(right, axis=-1)], axis=-2)


def inverses(matrix: Float[Array, "n 2 2"]) -> Float[Array, "n 2 2"]:
    """Inverts matrices by the formula, which inverts an identity exactly."""
    a, b, c, d = matrix.reshape(-1, 4).T
    rows = [jnp.stack([d, -b], axis=-1), jnp.stack([-c, a], axis=-1)]
    return jnp.stack(rows, axis=-2) / (a * d - b * c)[:, None, None]


def coarse(numbers: Float[Array, "*any"], steps: int) -> Float[Array, "*any"]:
    """Rounds to multiples of ``1 / steps``, a power of two.

    A few bits each make products and sums exact. Then the bytes of an image do not
    depend on the program around it, in which XLA may fuse a product with a sum.
    """
    return jnp.round(numbers * steps) / steps


def warp(
    image: Num[Array, "batch h w c"],
    back: Float[Array, "batch 2 2"],
    shift: Float[Array, "batch 2"],
    bend: Float[Array, "batch 2 h w"] | None = None,
) -> Num[Array, "batch h w c"]:
    """Maps each image by a matrix about its middle, then moves it.

    Places are rounded to 1/256 of a pixel.

    Args:
        image: Unsigned bytes; 0 is the background.
        back: The inverse of the matrix: it maps points of the new image to those of the
            old one.
        shift: Pixels down and to the right.
        bend: Pixels down and to the right by which the place of the old image differs
            that each pixel of the new one shows; None for no bend.

    Returns:
        Bytes, interpolated between the four nearest pixels and rounded; all around the
        old image is 0. Identities and whole shifts give the very bytes.
    """
    _, height, width, _ = image.shape
    middle = (height - 1) / 2, (width - 1) / 2
    # Move the new pixels back, then map them back.
    down = (jnp.arange(height) - middle[0])[None, :, None] - _each(shift[:, 0])
    right = (jnp.arange(width) - middle[1])[None, None] - _each(shift[:, 1])
    a, b, c, d = map(_each, back.reshape(-1, 4).T)
    row, column = a * down + b * right, c * down + d * right
    if bend is not None:
        row, column = row + bend[:, 0], column + bend[:, 1]
    row, column = coarse(row, 256) + middle[0], coarse(column, 256) + middle[1]
    return jnp.round(_between(image, row, column)).astype(image.dtype)


def bends(
    noise: Float[Array, "batch 2 p q"], height: int, width: int, smoothness: float | int
) -> Float[Array, "batch 2 h w"]:
    """Smooths noise of ``noise_shape`` into fields that bend images.

    Args:
        noise: Independent normal numbers of variance 1.
        height: Height of the images.
        width: Width of the images.
        smoothness: Standard deviation in pixels of the bell that smooths the noise.

    Returns:
        Fields whose numbers are normal of variance 1, alike over a few ``smoothness``.
    """
    rows, columns = (_bells(size, smoothness) for size in (height, width))
    return jnp.einsum("hp,nipq,wq->nihw", rows, noise, columns, precision="highest")


def noise_shape(
    height: int, width: int, smoothness: float | int
) -> tuple[int, int, int]:
    """Returns the shape of the noise that ``bends`` takes for one image."""
    return 2, len(_knots(height, smoothness)), len(_knots(width, smoothness))


def _knots(size: int, smoothness: float | int) -> Float[np.ndarray, " p"]:
    """Places the noise ``smoothness`` apart; further knots would hardly be felt."""
    reach = math.ceil((size - 1) / 2 / smoothness) + 2
    return np.arange(-reach, reach + 1) * smoothness + (size - 1) / 2


def _bells(size: int, smoothness: float | int) -> Float[np.ndarray, "size p"]:
    """Returns each pixel's weights of the knots, whose squares sum to 1."""
    distance = (np.arange(size)[:, None] - _knots(size, smoothness)[None]) / smoothness
    weight = np.exp(-(distance**2) / 2)
    weight /= np.linalg.norm(weight, axis=-1, keepdims=True)
    return weight.astype(np.float32)


def _between(
    image: Num[Array, "batch h w c"],
    row: Float[Array, "batch H W"],
    column: Float[Array, "batch H W"],
) -> Float[Array, "batch H W c"]:
    """Interpolates linearly along both axes; all around an image is 0."""
    _, height, width, _ = image.shape
    # From the border of zeros on all is 0.
    row, column = jnp.clip(row, -1, height), jnp.clip(column, -1, width)
    top, left = (jnp.floor(at).astype(jnp.int32) for at in (row, column))
    padded = jnp.pad(image, ((0, 0), (1, 2), (1, 2), (0, 0)))

    @jax.vmap
    def pixels(padded, top, left):
        return padded.at[top + 1, left + 1].get(mode="promise_in_bounds")

    # Weights by the distance, not f and 1 - f: XLA may compute a place twice, rounded
    # differently, and a floor that does not belong to its f is a pixel off, as in
    # jax.scipy.ndimage.map_coordinates. Gathers take 0.4 ms for 128 x 28 x 28 bytes on
    # two cores, as that does; products with matrices of weights take 11.
    between = jnp.zeros((*row.shape, image.shape[-1]), jnp.float32)
    for i in (top, top + 1):
        for j in (left, left + 1):
            weight = _near(row - i) * _near(column - j)
            between += weight[..., None] * pixels(padded, i, j)
    return between


def _near(distance: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """Returns a weight: 1 at the place, 0 from one pixel on."""
    return jnp.maximum(0, 1 - jnp.abs(distance))


def _each(numbers: Float[Array, " batch"]) -> Float[Array, "batch 1 1"]:
    """Gives numbers, one for each image, the axes of its pixels."""
    return numbers[:, None, None]
