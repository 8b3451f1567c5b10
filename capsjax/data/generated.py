"""Makes new images in each epoch from another data set's images.

All random numbers of an epoch are drawn at once, from the run's seed and the epoch,
before any image is made. So each image depends on seed, epoch and index alone, and not
on its batch, the number of devices, or earlier calls.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from capsjax.data import warp
from capsjax.data.dataset import Batch, Dataset
from capsjax.data.errors import DatasetError
from capsjax.data.preparation import Preparation

# Draws the random numbers for each image of a data set, and returns a function that
# makes the images at given indices.
Recipe = Callable[[Dataset, np.random.Generator], Callable[[np.ndarray], Batch]]

# Last part of a random generator's seed, so that training images share no numbers with
# other purposes; the order of the images has no last part. Not 0, which NumPy does not
# distinguish from nothing.
_TRAINING, _FIXED = 1, 2


@dataclasses.dataclass(frozen=True, eq=False)
class Generated:
    """An endless data set: other images in each epoch, made on demand.

    It works like a ``Dataset`` without arrays; ``fixed`` makes one with arrays.

    Attributes:
        name: Name of the data set in messages.
        base: The images from which others are made, equally many in each epoch.
        recipe: How they are made.
        preparation: How a picture becomes an image of this set.
        stream: Seed of the random numbers; ``in_epoch`` sets it.

    Examples:
        >>> import numpy as np
        >>> from capsjax.data import load
        >>> pairs = load("multi_mnist", "train")
        >>> batch = pairs.in_epoch(seed=0, epoch=3).batch(np.arange(2))
        >>> batch.image.shape, batch.label.sum(axis=1).tolist()
        ((2, 36, 36, 1), [2, 2])

    References:
        Sabour, Frosst and Hinton 2017, section 6, https://arxiv.org/abs/1710.09829, for
        MultiMNIST.
    """

    name: str
    base: Dataset = dataclasses.field(repr=False)
    recipe: Recipe = dataclasses.field(repr=False)
    preparation: Preparation | None = None
    stream: tuple[int, int, int] = (0, 0, _FIXED)

    def __len__(self) -> int:
        return len(self.base)

    @property
    def is_on_disk(self) -> bool:
        """False: images are made from others in memory."""
        return False

    @property
    def is_multi_label(self) -> bool:
        """True if an image may show several classes."""
        return self._example.label.dtype == np.bool_

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and number of channels of each image."""
        height, width, channels = self._example.image.shape
        return height, width, channels

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name for each class."""
        return self.base.class_names

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.base.num_classes

    @property
    def main_class(self) -> Int[np.ndarray, " n"]:
        """The class of each base image, by which a split counts it."""
        return self.base.main_class

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on surprises in reading the base."""
        return self.base.notes

    def images_by_class(self) -> Int[np.ndarray, " classes"]:
        """Counts the base images of each class."""
        return self.base.images_by_class()

    def identity(self) -> dict[str, Any]:
        """Returns what distinguishes the base images from others."""
        return self.base.identity()

    def difference(self, before: Mapping[str, Any]) -> str | None:
        """Describes how the base images differ: see ``Dataset.difference``."""
        return self.base.difference(before)

    def batch(self, indices: Int[np.ndarray, "*batch"]) -> Batch:
        """Makes the images at ``indices``, in their order.

        They belong to the epoch that ``in_epoch`` chose, or else to ``fixed``.

        Raises:
            DatasetError: If pairs of classes are needed and all images have one class.
        """
        return _maker(self.recipe, self.base, self.stream)(indices)

    def subset(self, indices: Int[np.ndarray, " m"]) -> "Generated":
        """Returns the same set, made only from the base images at ``indices``."""
        return dataclasses.replace(self, base=self.base.subset(indices))

    def in_epoch(self, seed: int, epoch: int) -> "Generated":
        """Returns the data set with the images of one epoch of a run.

        Args:
            seed: The run's seed, at least 0.
            epoch: Number of earlier epochs.
        """
        return dataclasses.replace(self, stream=(seed, epoch, _TRAINING))

    def fixed(self) -> Dataset:
        """Makes one image from each base image, the same for every run.

        No epoch of training uses the same random numbers.
        """
        fixed = dataclasses.replace(self, stream=(0, 0, _FIXED))
        image, label, source = fixed.batch(np.arange(len(self)))
        return Dataset(
            self.name,
            image,
            label,
            self.class_names,
            source,
            preparation=self.preparation,
        )

    @functools.cached_property
    def _example(self) -> Batch:
        return self.batch(np.array(0))


def overlap(
    base: Dataset, rng: np.random.Generator, *, max_shift: int
) -> Callable[[np.ndarray], Batch]:
    """Lays another image of a different class over each image, as MultiMNIST does.

    Each of the two is moved by up to ``max_shift`` pixels along each axis (whole
    numbers, uniform) on a ground that is just large enough. The other image is uniform
    among the images of different classes. Sums of bright pixels stop at 255.

    Returns:
        A function that makes a batch: the labels are true for both classes, the sources
        are the two images alone, in class order.

    Raises:
        DatasetError: If all images have one class.

    References:
        Sabour, Frosst, Hinton 2017, section 6.1, https://arxiv.org/abs/1710.09829.
    """
    pair = np.stack([np.arange(len(base)), _draw_partners(base, rng)], axis=-1)
    by_class = np.argsort(base.label[pair], axis=-1)
    pair = np.take_along_axis(pair, by_class, axis=-1)
    corner = rng.integers(0, 2 * max_shift + 1, (len(base), 2, 2))

    def make(indices: Int[np.ndarray, "*batch"]) -> Batch:
        chosen = pair[indices]
        source = _placed(base.image[chosen], corner[indices], 2 * max_shift)
        first, second = source[..., 0, :, :, :], source[..., 1, :, :, :]
        label = np.zeros((*indices.shape, base.num_classes), np.bool_)
        np.put_along_axis(label, base.label[chosen], True, axis=-1)  # noqa: FBT003
        return Batch(first + np.minimum(second, 255 - first), label, source)

    return make


def expand(
    base: Dataset, rng: np.random.Generator, *, max_shift: int
) -> Callable[[np.ndarray], Batch]:
    """Places each image at random on a larger black ground.

    Returns:
        A function that makes a batch of images, ``2 * max_shift`` pixels wider and
        higher; all places are equally likely.

    References:
        Sabour, Frosst, Hinton 2017, section 5.2, https://arxiv.org/abs/1710.09829.
    """
    corner = rng.integers(0, 2 * max_shift + 1, (len(base), 2))

    def make(indices: Int[np.ndarray, "*batch"]) -> Batch:
        image = _placed(base.image[indices], corner[indices], 2 * max_shift)
        return Batch(image, base.label[indices])

    return make


def deform(
    base: Dataset, rng: np.random.Generator, *, size: int
) -> Callable[[np.ndarray], Batch]:
    """Turns, shears, scales and places each image, much as affNIST's were made.

    These are uniform and independent: a turn of up to 20 degrees, a slant of up to 0.2,
    a scale from 0.8 to 1.2 along each axis, and the place among all that keep the whole
    drawing in sight, as far as there is room. It is a stand-in: only affNIST's files
    contain its 32 transformations of each digit, and its ranges are from memory. Never
    call a result on these images a result on affNIST.

    Returns:
        A function that makes a batch of images with ``size`` by ``size`` pixels.

    References:
        affNIST, https://www.cs.toronto.edu/~tijmen/affNIST/.
    """
    angle = np.radians(rng.uniform(-20, 20, len(base)))
    slant = rng.uniform(-0.2, 0.2, len(base))
    scale = rng.uniform(0.8, 1.2, (len(base), 2))
    matrix = warp.matrices(angle, slant, scale)
    place = rng.random((len(base), 2))

    def make(indices: Int[np.ndarray, "*batch"]) -> Batch:
        channels = base.image_shape[-1]
        image = np.zeros((*indices.shape, size, size, channels), np.uint8)
        for at, index in np.ndenumerate(indices):
            image[at] = _deformed(base.image[index], matrix[index], place[index], size)
        return Batch(image, base.label[indices])

    return make


# How each name's images are made from MNIST.
RECIPES: dict[str, Recipe] = {
    "multi_mnist": functools.partial(overlap, max_shift=4),
    "expanded_mnist": functools.partial(expand, max_shift=6),
    "affine_mnist": functools.partial(deform, size=40),
    "affine_mnist_28": functools.partial(deform, size=28),
}


# Two, because the next epoch may start before the end of this one.
@functools.lru_cache(maxsize=2)
def _maker(
    recipe: Recipe, base: Dataset, stream: tuple[int, int, int]
) -> Callable[[np.ndarray], Batch]:
    return recipe(base, np.random.default_rng(stream))


def _draw_partners(base: Dataset, rng: np.random.Generator) -> Int[np.ndarray, " n"]:
    """Draws another image for each, uniformly among the other classes' images."""
    order = np.argsort(base.label, kind="stable")
    num_same = np.bincount(base.label)[base.label]
    if num_same.max() == len(base):
        raise DatasetError(
            f"there are no pairs of different classes: the {len(base)} images of data "
            f"set {base.name!r} are all of one class; take more images"
        )
    first_same = np.searchsorted(base.label[order], base.label)
    drawn = rng.integers(0, len(base) - num_same)
    return order[np.where(drawn < first_same, drawn, drawn + num_same)]


def _placed(
    image: UInt8[np.ndarray, "*batch h w c"],
    corner: Int[np.ndarray, "*batch 2"],
    room: int,
) -> UInt8[np.ndarray, "*batch H W c"]:
    *batch, height, width, channels = image.shape
    placed = np.zeros((*batch, height + room, width + room, channels), np.uint8)
    for at in np.ndindex(*batch):
        row, column = corner[at]
        placed[at][row : row + height, column : column + width] = image[at]
    return placed


def _deformed(
    image: UInt8[np.ndarray, "h w c"],
    matrix: Float[np.ndarray, "2 2"],
    place: Float[np.ndarray, " 2"],
    size: int,
) -> UInt8[np.ndarray, "size size c"]:
    """Maps the image by ``matrix``; ``place`` 0 is the first to fit, 1 the last."""
    # Imported here: it takes a fifth of a second.
    from scipy import ndimage

    ink = np.argwhere(image.any(axis=-1)) @ matrix.T
    # Linear interpolation between pixels makes the drawing end a pixel further.
    reach = np.abs(matrix).sum(axis=-1)
    least, most = -1 - (ink.min(axis=0) - reach), size - (ink.max(axis=0) + reach)
    start = least + place * (most - least)
    inverse = np.linalg.inv(matrix)
    channels = [
        ndimage.affine_transform(
            channel.astype(np.float32),
            inverse,
            offset=-inverse @ start,
            output_shape=(size, size),
            order=1,
            mode="grid-constant",
        )
        for channel in np.moveaxis(image, -1, 0)
    ]
    return np.round(np.stack(channels, axis=-1)).astype(np.uint8)
