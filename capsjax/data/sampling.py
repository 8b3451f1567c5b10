"""Divides images: into splits, and into the batches of a training run."""

import functools

import numpy as np
from jaxtyping import Bool, Int

from capsjax.data.dataset import Dataset
from capsjax.data.errors import DatasetError
from capsjax.data.generated import Generated

# The split has its own seed, so that runs with different seeds choose their model by
# the same images. The value is the paper's year; a test pins the selected images.
_VALIDATION_SEED = 2017
# Follows the seed when a share of the training images is drawn.
_SUBSET = 1

# The rule by which images are held out for validation, and others are trained on. A run
# keeps its first rule.
BY_CLASS, FIRST_EDITION = "by_class", "first_edition"
SPLIT_RULES = (BY_CLASS, FIRST_EDITION)

# With this many images of a class, chance gives each split its share within a tenth.
_PLENTY = 100


def split_validation(
    dataset: Dataset | Generated,
    num_validation: int,
    rule: str = BY_CLASS,
    choice: str = "drawn",
) -> tuple[Dataset | Generated, Dataset | None]:
    """Takes a validation split from training images, the same one for every run.

    Each class gives its share, rounded: at least one image if it has two and enough are
    held out, and never its last one. Images are drawn from all classes alike if each
    class's share is 100 images or more on both sides of the split, and always under the
    rule "first_edition": chance then gives every class its share, and MNIST's split
    stays unchanged. An image with several classes counts for the rarest.

    Args:
        dataset: The training images; never the test images.
        num_validation: Number of images to hold out, drawn without replacement.
        rule: "by_class" or "first_edition".
        choice: "drawn", as above, or "last" for the last images, whatever their class.

    Returns:
        The remaining images and the held-out ones, each in their original order. The
        held-out images are the same in every epoch, and None if ``num_validation`` is
        0.

    Raises:
        DatasetError: If ``num_validation`` is negative, or leaves no image, or none of
            a class, to train on.
    """
    main_class = dataset.main_class
    _, group, count = np.unique(main_class, return_inverse=True, return_counts=True)
    most = len(dataset) - (1 if rule == FIRST_EDITION else len(count))
    if num_validation != 0 and not 0 <= num_validation <= most:
        why = "" if rule == FIRST_EDITION else ", so that each class keeps an image"
        raise DatasetError(
            f"cannot hold out {num_validation} images for validation from the "
            f"{len(dataset)} of data set {dataset.name!r}: give a number from 0 to "
            f"{most}{why}"
        )
    if num_validation == 0:
        return dataset, None
    share = count * num_validation / len(dataset)
    rng = np.random.default_rng(_VALIDATION_SEED)
    if choice == "last":
        held_out = np.arange(len(dataset)) >= len(dataset) - num_validation
        _require_every_class(dataset, group[~held_out], len(count))
    elif rule == FIRST_EDITION or np.minimum(share, count - share).min() >= _PLENTY:
        held_out = np.zeros(len(dataset), bool)
        held_out[rng.permutation(len(dataset))[:num_validation]] = True
    else:
        least = np.minimum(count - 1, 1)
        held_out = _draw_by_class(group, num_validation, least, count - 1, rng)
    return (
        dataset.subset(np.flatnonzero(~held_out)),
        dataset.subset(np.flatnonzero(held_out)).fixed(),
    )


def _require_every_class(
    dataset: Dataset | Generated, kept: Int[np.ndarray, " n"], num_groups: int
) -> None:
    if np.unique(kept).size < num_groups:
        raise DatasetError(
            f"the last images of data set {dataset.name!r} are all those of a class: "
            "no image of it would remain to train on. Hold out fewer images, or drawn "
            "ones."
        )


def take_share(
    dataset: Dataset | Generated, num_images: int, rule: str = BY_CLASS
) -> Dataset | Generated:
    """Takes some of the training images, the same ones for every run.

    Each class gives its share, drawn at random and rounded, and at least one image if
    enough are taken. The rule "first_edition" takes the first images.

    Args:
        dataset: The training images.
        num_images: Number of images to take, from 1 to all.
        rule: "by_class" or "first_edition".

    Returns:
        The images in their original order.
    """
    if rule == FIRST_EDITION:
        return dataset.subset(np.arange(num_images))
    _, group, count = np.unique(
        dataset.main_class, return_inverse=True, return_counts=True
    )
    rng = np.random.default_rng((_VALIDATION_SEED, _SUBSET))
    taken = _draw_by_class(group, num_images, np.ones_like(count), count, rng)
    return dataset.subset(np.flatnonzero(taken))


def _draw_by_class(
    group: Int[np.ndarray, " n"],
    num_drawn: int,
    least: Int[np.ndarray, " g"],
    most: Int[np.ndarray, " g"],
    rng: np.random.Generator,
) -> Bool[np.ndarray, " n"]:
    """Draws images so that each group gives its share; returns which were drawn.

    Args:
        group: The group of each image, from 0 on; no group is empty.
        num_drawn: Number of images to draw.
        least: The fewest images from each group, if ``num_drawn`` is enough for them.
        most: The most images from each group, together at least ``num_drawn``.
        rng: Source of random numbers.
    """
    exact = np.bincount(group) * num_drawn / len(group)
    if least.sum() > num_drawn:
        least = np.zeros_like(least)
    number = np.clip(np.floor(exact).astype(int), least, most)
    # Chance decides between groups that are equally far from their share.
    by_chance = rng.permutation(len(number))
    while (short := num_drawn - number.sum()) != 0:
        is_free = number < most if short > 0 else number > least
        lack = np.where(is_free, np.sign(short) * (exact - number), -np.inf)
        number[by_chance[lack[by_chance].argmax()]] += np.sign(short)
    shuffled = rng.permutation(len(group))
    in_groups = shuffled[np.argsort(group[shuffled], kind="stable")]
    start = np.cumsum(np.bincount(group)) - np.bincount(group)
    place = np.arange(len(group)) - start[group[in_groups]]
    drawn = np.zeros(len(group), bool)
    drawn[in_groups] = place < number[group[in_groups]]
    return drawn


def batch_indices(
    num_examples: int, batch_size: int, seed: int, step: int
) -> Int[np.ndarray, " batch"]:
    """Returns the images in the global batch of a training step.

    They depend on the arguments alone, so that resuming needs only the step, and the
    number of devices does not matter. Each epoch is a new permutation, cut into
    ``num_examples // batch_size`` batches; the remainder is dropped, other images in
    each epoch.

    Args:
        num_examples: Number of all images.
        batch_size: Number of images in a batch, over all devices.
        seed: The run's seed, at least 0.
        step: Number of earlier batches.

    Returns:
        Distinct indices below ``num_examples``, read-only.

    Raises:
        DatasetError: If ``batch_size`` is not from 1 to ``num_examples``, or ``seed``
            or ``step`` is negative.
    """
    if not 1 <= batch_size <= num_examples:
        raise DatasetError(
            f"a batch of {batch_size} images cannot be drawn from {num_examples}: "
            f"the batch size must be from 1 to {num_examples}"
        )
    if seed < 0 or step < 0:
        raise DatasetError(f"seed ({seed}) and step ({step}) must be at least 0")
    epoch, position = divmod(step, num_examples // batch_size)
    start = position * batch_size
    return _permutation(num_examples, seed, epoch)[start : start + batch_size]


# Two, because the next epoch may start before the end of this one.
@functools.lru_cache(maxsize=2)
def _permutation(num_examples: int, seed: int, epoch: int) -> Int[np.ndarray, " n"]:
    permutation = np.random.default_rng((seed, epoch)).permutation(num_examples)
    permutation.flags.writeable = False
    return permutation
