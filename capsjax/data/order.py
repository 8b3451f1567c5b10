"""Which images go where: the validation split, and the batches of a training run."""

import functools

import numpy as np
from jaxtyping import Int

from capsjax.data.dataset import Dataset, DatasetError

# The split has a seed of its own, so that runs with different seeds choose their model
# by the same images. The value is the year of the paper; a test pins what it selects.
_VALIDATION_SEED = 2017


def split_validation(
    dataset: Dataset, num_validation: int
) -> tuple[Dataset, Dataset | None]:
    """Takes a validation split from training images, the same one for every run.

    Args:
        dataset: The training images; never the test images.
        num_validation: How many images to hold out, drawn without replacement.

    Returns:
        The remaining images and the held-out ones, each in their original order, the
        latter the same in every epoch. With ``num_validation=0``: all of the images,
        and None.

    Raises:
        DatasetError: ``num_validation`` is negative, or leaves nothing to train on.
    """
    if not 0 <= num_validation < len(dataset):
        raise DatasetError(
            f"cannot hold out {num_validation} images for validation from the "
            f"{len(dataset)} of data set {dataset.name!r}: give a number from 0 to "
            f"{len(dataset) - 1}"
        )
    if num_validation == 0:
        return dataset, None
    order = np.random.default_rng(_VALIDATION_SEED).permutation(len(dataset))
    held_out, remaining = np.split(order, [num_validation])
    return dataset.subset(np.sort(remaining)), dataset.subset(np.sort(held_out)).fixed()


def batch_indices(
    num_examples: int, batch_size: int, seed: int, step: int
) -> Int[np.ndarray, " batch"]:
    """Returns which images make up the global batch of a training step.

    It is a function of its arguments alone, so that resuming needs only the step, and
    the number of devices does not matter. Each epoch is a new permutation, cut into
    ``num_examples // batch_size`` batches; the remainder is dropped, other images in
    each epoch.

    Args:
        num_examples: How many images there are.
        batch_size: How many images make up a batch, over all devices.
        seed: The seed of the run, at least 0.
        step: How many batches came before this one.

    Returns:
        Distinct indices below ``num_examples``, read-only.

    Raises:
        DatasetError: ``batch_size`` is not from 1 to ``num_examples``, or ``seed`` or
            ``step`` is negative.
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


# Two, because at the end of an epoch the next one may be asked for ahead of its time.
@functools.lru_cache(maxsize=2)
def _permutation(num_examples: int, seed: int, epoch: int) -> Int[np.ndarray, " n"]:
    permutation = np.random.default_rng((seed, epoch)).permutation(num_examples)
    permutation.flags.writeable = False
    return permutation
