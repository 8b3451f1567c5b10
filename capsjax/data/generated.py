"""Images made anew in each epoch from those of another data set.

The random numbers of an epoch are drawn for all of its images at once, from the run's
seed and the epoch, before any image is made. So each image is a function of seed, epoch
and index alone: of neither the batch that it is in, nor the number of devices, nor what
came before.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from capsjax.data.dataset import Batch, Dataset, DatasetError
from capsjax.data.preparation import Preparation

# Draws what happens to each image of a data set, and returns what makes the images at
# the indices that it is given.
Recipe = Callable[[Dataset, np.random.Generator], Callable[[np.ndarray], Batch]]

# The last part of what a random generator starts from, so that no image of training is
# drawn from the numbers of another purpose; the order of the images has none. Not 0,
# which NumPy doesn't tell from nothing.
_TRAINING, _FIXED = 1, 2


@dataclasses.dataclass(frozen=True, eq=False)
class Generated:
    """An endless data set: other images in each epoch, made when they are asked for.

    It does what a ``Dataset`` does, but has no arrays; ``fixed`` makes one that has.

    Attributes:
        name: What the data set is called in messages.
        base: The images from which others are made, as many of them in each epoch.
        recipe: How.
        preparation: How a picture becomes such an image.
        stream: What the random numbers start from; ``in_epoch`` sets it.
    """

    name: str
    base: Dataset = dataclasses.field(repr=False)
    recipe: Recipe = dataclasses.field(repr=False)
    preparation: Preparation | None = None
    stream: tuple[int, int, int] = (0, 0, _FIXED)

    def __len__(self) -> int:
        return len(self.base)

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may show several classes."""
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
        """How many classes there are."""
        return self.base.num_classes

    @property
    def main_class(self) -> Int[np.ndarray, " n"]:
        """The class of each base image, by which a split counts it."""
        return self.base.main_class

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person might not expect of how the base was read."""
        return self.base.notes

    def images_by_class(self) -> Int[np.ndarray, " classes"]:
        """Counts the base images of each class."""
        return self.base.images_by_class()

    def identity(self) -> dict[str, Any]:
        """What tells the base images from others."""
        return self.base.identity()

    def difference(self, before: Mapping[str, Any]) -> str | None:
        """How the base images differ from others: see ``Dataset.difference``."""
        return self.base.difference(before)

    def batch(self, indices: Int[np.ndarray, "*batch"]) -> Batch:
        """Makes the images at ``indices``, in their order.

        They are those of the epoch that ``in_epoch`` was given, else ``fixed``'s.

        Raises:
            DatasetError: Images of several classes are needed, and there are none.
        """
        return _maker(self.recipe, self.base, self.stream)(indices)

    def subset(self, indices: Int[np.ndarray, " m"]) -> "Generated":
        """Returns the same of the base images at ``indices``, and of no others."""
        return dataclasses.replace(self, base=self.base.subset(indices))

    def in_epoch(self, seed: int, epoch: int) -> "Generated":
        """Returns the data set whose images are those of this epoch of a run.

        Args:
            seed: The seed of the run, at least 0.
            epoch: How many epochs came before this one.
        """
        return dataclasses.replace(self, stream=(seed, epoch, _TRAINING))

    def fixed(self) -> Dataset:
        """Makes one image of each base image: the same ones for every run.

        They are drawn from other numbers than those of every epoch of training.
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
    """Lays over each image another one, of a different class, as MultiMNIST does.

    Each of the two is moved by up to ``max_shift`` pixels along each axis (whole
    numbers, uniform) on a ground that is just large enough. The other image is uniform
    among those of different classes. Where both are bright, the sum stops at 255.

    Returns:
        What makes a batch: the labels are true for both classes, the sources are the
        two images alone, in the order of their classes.

    Raises:
        DatasetError: All images are of one class.

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
        What makes a batch of images that are ``2 * max_shift`` pixels wider and higher;
        all places are equally likely.

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

    Uniform and independent: a turn of up to 20 degrees, a slant of up to 0.2, a scale
    from 0.8 to 1.2 along each axis, and the place among those where all that is drawn
    is in sight. It is a stand-in: affNIST has 32 transformations of each digit that
    only its files tell, and its ranges are known here from memory. What a network makes
    of these images must never be called a result on affNIST.

    Returns:
        What makes a batch of images of ``size`` by ``size`` pixels.

    References:
        affNIST, https://www.cs.toronto.edu/~tijmen/affNIST/.
    """
    angle = np.radians(rng.uniform(-20, 20, len(base)))
    slant = rng.uniform(-0.2, 0.2, len(base))
    scale = rng.uniform(0.8, 1.2, (len(base), 2))
    cos, sin, one, zero = np.cos(angle), np.sin(angle), slant * 0 + 1, slant * 0
    turned = np.array([[cos, -sin], [sin, cos]])
    sheared = np.array([[one, zero], [slant, one]])
    matrix = np.einsum("abn,bcn,nc->nac", turned, sheared, scale)
    place = rng.random((len(base), 2))

    def make(indices: Int[np.ndarray, "*batch"]) -> Batch:
        channels = base.image_shape[-1]
        image = np.zeros((*indices.shape, size, size, channels), np.uint8)
        for at, index in np.ndenumerate(indices):
            image[at] = _deformed(base.image[index], matrix[index], place[index], size)
        return Batch(image, base.label[indices])

    return make


# What each name makes of MNIST.
RECIPES: dict[str, Recipe] = {
    "multi_mnist": functools.partial(overlap, max_shift=4),
    "expanded_mnist": functools.partial(expand, max_shift=6),
    "affine_mnist": functools.partial(deform, size=40),
}


# Two, because at the end of an epoch the next one may be asked for ahead of its time.
@functools.lru_cache(maxsize=2)
def _maker(
    recipe: Recipe, base: Dataset, stream: tuple[int, int, int]
) -> Callable[[np.ndarray], Batch]:
    return recipe(base, np.random.default_rng(stream))


def _draw_partners(base: Dataset, rng: np.random.Generator) -> Int[np.ndarray, " n"]:
    """Draws another image for each, uniformly among those of other classes."""
    order = np.argsort(base.label, kind="stable")
    num_same = np.bincount(base.label)[base.label]
    if num_same.max() == len(base):
        raise DatasetError(
            f"there are no pairs of different classes: the {len(base)} images of data "
            f"set {base.name!r} are all of one class; take more of them"
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
    """Maps the image by ``matrix``; a ``place`` of 0 is first and of 1 last to fit."""
    # Not above: it takes a fifth of a second.
    from scipy import ndimage

    ink = np.argwhere(image.any(axis=-1)) @ matrix.T
    # Between pixels it is interpolated linearly, so what is drawn ends a pixel further.
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
