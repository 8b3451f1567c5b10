"""Batches for each call of the device program, from the host or from the devices.

Several steps run in one call. The end of a call depends on the absolute step alone, so
a stopped run resumes with the same bits. The images of a call come from the host's
memory; or they are read ahead from disk; or all images lie on the devices as bytes and
a call brings only indices. All three give the same bits.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int

from capsjax import config as configs
from capsjax.data import Batch, Dataset, Generated, batch_indices
from capsjax.runtime.devices import my_shares, replicated, sharded, spread
from capsjax.runtime.platforms import platform
from capsjax.training.ahead import BatchesAhead


class Feed:
    """Hands the program of several training steps its batches.

    Args:
        config: The config of the run.
        dataset: The training images.
        is_idle: Returns True if the devices have nothing to do, so that a wait for
            images on disk is theirs.

    Attributes:
        steps_per_dispatch: Number of steps in a whole call.
    """

    def __init__(
        self,
        config: configs.Config,
        dataset: Dataset | Generated,
        *,
        is_idle: Callable[[], bool] = lambda: True,
    ):
        self._config, self._dataset = config, dataset
        self._steps_per_epoch = len(dataset) // config.batch_size
        self.steps_per_dispatch = steps_per_dispatch(config, self._steps_per_epoch)
        self._held = None
        if is_held(config, dataset):
            assert isinstance(dataset, Dataset)
            self._held = _hold(dataset)
        self._ahead = None
        if dataset.is_on_disk:
            self._ahead = BatchesAhead(
                functools.partial(
                    stack_batches,
                    dataset,
                    batch_size=config.batch_size,
                    seed=config.seed,
                ),
                place=dataset.name,
                num_steps=config.num_epochs * self._steps_per_epoch,
                num_ahead=self.steps_per_dispatch,
                is_idle=is_idle,
            )

    def close(self) -> None:
        """Ends reading ahead, if the images are on disk."""
        if self._ahead is not None:
            self._ahead.close()

    def next_steps(self, step: int) -> range:
        """Returns the steps of the next call: a whole chunk, or a single step."""
        end = chunk_end(
            step,
            steps_per_dispatch=self.steps_per_dispatch,
            steps_per_epoch=self._steps_per_epoch,
        )
        whole = end - step == self.steps_per_dispatch
        return range(step, end if whole else step + 1)

    def batches(self, steps: range) -> Batch:
        """Returns the batches of all devices, ``[device, step, image, ...]``.

        A separate program gathers images that lie on the devices, so the program of
        the steps is the same in both placements.
        """
        seed, size = self._config.seed, self._config.batch_size
        if self._ahead is not None:
            return spread(self._ahead.take(steps))
        if self._held is None:
            return spread(
                stack_batches(self._dataset, steps, batch_size=size, seed=seed)
            )
        indices = stack_indices(self._dataset, steps, batch_size=size, seed=seed)
        shares = my_shares(indices.astype(np.int32), axis=1)
        return _gather()(self._held, spread(shares))


@functools.cache
def _gather() -> Callable[[Batch, Int[Any, "device steps batch"]], Batch]:
    def gather(held: Batch, index: Int[Array, "device steps batch"]) -> Batch:
        return jax.tree.map(lambda a: a.at[index].get(mode="promise_in_bounds"), held)

    return jax.jit(
        gather, in_shardings=(replicated(), sharded()), out_shardings=sharded()
    )


def steps_per_dispatch(config: configs.Config, steps_per_epoch: int) -> int:
    """Returns the number of steps in one call.

    A choice left to the platform is a divisor of the epoch, if one is near: steps left
    over run in calls of a single step.
    """
    if config.steps_per_dispatch:
        return config.steps_per_dispatch
    most = platform(jax.default_backend()).steps_per_dispatch
    if steps_per_epoch <= most:
        return max(1, steps_per_epoch)
    divisors = (n for n in range(most, most // 2, -1) if steps_per_epoch % n == 0)
    return next(divisors, most)


def is_held(config: configs.Config, dataset: Dataset | Generated) -> bool:
    """Returns True if the training images lie on the devices.

    Raises:
        ConfigError: If the config demands it of images made anew in each epoch, or of
            images on disk, or demands images on disk of others.
    """
    if config.data_placement == "device" and dataset.is_on_disk:
        raise configs.ConfigError(
            f"config.data_placement=device, but the images of {dataset.name} exceed "
            "the memory that config.max_gigabytes allows; choose auto or disk."
        )
    if config.data_placement == "disk" and not dataset.is_on_disk:
        raise configs.ConfigError(
            f"config.data_placement=disk, but the images of {dataset.name} are in "
            "memory: only image files and sets of TFDS are read from disk while "
            "training; choose auto, host or device."
        )
    if config.data_placement == "device" and isinstance(dataset, Generated):
        raise configs.ConfigError(
            f"config.data_placement=device, but the images of {dataset.name} are made "
            "anew in each epoch, on the host; choose auto or host."
        )
    if config.data_placement != "auto":
        return config.data_placement == "device"
    most = platform(jax.default_backend()).largest_held_data_bytes
    is_in_memory = isinstance(dataset, Dataset) and not dataset.is_on_disk
    return is_in_memory and num_bytes(dataset) <= most


def num_bytes(dataset: Dataset | Generated) -> int:
    """Returns the bytes in memory of the images, their sources and their labels."""
    whole = dataset.base if isinstance(dataset, Generated) else dataset
    arrays = (whole.image, whole.label, whole.source)
    return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))


def chunk_end(step: int, *, steps_per_dispatch: int, steps_per_epoch: int) -> int:
    """Returns the end of the chunk that contains ``step``.

    Chunks are counted from the start of each epoch, and its last one ends with it.
    """
    done = step % steps_per_epoch
    end = (done // steps_per_dispatch + 1) * steps_per_dispatch
    return step - done + min(end, steps_per_epoch)


def stack_indices(
    dataset: Dataset | Generated, steps: range, *, batch_size: int, seed: int
) -> Int[np.ndarray, "steps batch"]:
    """Returns the indices of the images in the global batch of each step."""
    return np.stack(
        [batch_indices(len(dataset), batch_size, seed, step) for step in steps]
    )


def stack_batches(
    dataset: Dataset | Generated, steps: range, *, batch_size: int, seed: int
) -> Batch:
    """Returns this process's share of batches, ``[device, step, image, ...]``.

    Args:
        dataset: The training images.
        steps: The steps of the batches, all from one epoch.
        batch_size: Images in each batch, over all devices.
        seed: The seed of the run.
    """
    indices = stack_indices(dataset, steps, batch_size=batch_size, seed=seed)
    epoch = steps.start // (len(dataset) // batch_size)
    return dataset.in_epoch(seed, epoch).batch(my_shares(indices, axis=1))


def _hold(dataset: Dataset) -> Batch:
    """Puts the whole set on every device."""
    everything = Batch(dataset.image, dataset.label, dataset.source)
    return jax.tree.map(
        lambda whole: jax.make_array_from_callback(
            whole.shape, replicated(), lambda index: whole[index]
        ),
        everything,
    )
