"""Cuts out parts of images: at random for training, else in the middle."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Integer, Key, Num


def cropped_shape(image_shape: tuple[int, int, int], crop: int) -> tuple[int, int, int]:
    """Returns the shape of squares of ``crop`` pixels; of whole images for 0."""
    return (crop, crop, image_shape[2]) if crop else image_shape


def draw_corners(
    key: Key[Array, ""],
    num_images: int,
    image_shape: tuple[int, int, int],
    shape: tuple[int, int, int],
) -> Int[Array, "batch 2"]:
    """Draws the row and column of the upper left corner of each image's crop.

    Args:
        key: A function of the run's seed and the step, the same on every device.
        num_images: The number of images on *all* devices.
        image_shape: Height, width and channels of the images.
        shape: Height, width and channels of the crops, no larger.

    Returns:
        Whole numbers, uniform over all places at which the crop lies in the image.
    """
    num_places = np.subtract(image_shape[:2], shape[:2]) + 1
    return jax.random.randint(key, (num_images, 2), 0, num_places[None], jnp.int32)


def apply_crops(
    image: Num[Array | np.ndarray, "batch h w c"],
    corners: Integer[Array | np.ndarray, "batch 2"],
    shape: tuple[int, int, int],
) -> Num[Array, "batch H W c"]:
    """Cuts a window of the same shape out of each image.

    Args:
        image: Unsigned bytes or floats.
        corners: Row and column of the upper left corner; moved if the window leaves the
            image.
        shape: Height, width and channels of the windows, no larger than the images.
    """

    def window(image, corner):
        return jax.lax.dynamic_slice(image, (*corner, jnp.int32(0)), shape)

    return jax.vmap(window)(jnp.asarray(image), jnp.asarray(corners, jnp.int32))


def crop_middle(
    image: Num[Array | np.ndarray, "*batch h w c"], shape: tuple[int, int, int]
) -> Num[Array | np.ndarray, "*batch H W c"]:
    """Cuts out the middle of each image.

    Args:
        image: Unsigned bytes or floats.
        shape: Height, width and channels of the middle, no larger than the images.
    """
    height, width = image.shape[-3:-1]
    top, left = (height - shape[0]) // 2, (width - shape[1]) // 2
    return image[..., top : top + shape[0], left : left + shape[1], :]
