"""Losses and accuracy over a whole data set, every image counted exactly once."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from capsjax.data import Batch, Dataset
from capsjax.data.augment import scale_to_unit
from capsjax.data.crop import crop_middle
from capsjax.losses import Loss
from capsjax.models import Network
from capsjax.runtime.devices import AXIS, my_shares
from capsjax.training.objective import ClassWeight, Metrics, image_metrics


def make_eval_step(
    model: Network,
    loss: Loss,
    class_weight: ClassWeight | None = None,
) -> Callable[..., Metrics]:
    """Makes the per-device function that sums a batch's metrics over all devices.

    The function takes the network's variables, one device's share of the batch and a
    factor for each image: 1 if it counts, 0 if it only fills the batch up. The loss is
    weighted by class as in ``measure``.
    """

    def eval_step(
        variables: Any, share: tuple[Batch, Float[Array, " batch"]]
    ) -> Metrics:
        batch, counts = share
        image, source = middle(batch, model)
        each = image_metrics(
            *(model, variables, image, batch.label),
            loss=loss,
            source=source,
            class_weight=class_weight,
        )
        return jax.lax.psum(
            jax.tree.map(lambda values: jnp.sum(values * counts), each), AXIS
        )

    return eval_step


def evaluate(
    eval_step: Callable[..., Metrics],
    variables: Any,
    dataset: Dataset,
    *,
    batch_size: int,
    advance: Callable[[int], None] = lambda images: None,
) -> Metrics:
    """Returns the mean metrics over all images of a data set.

    Args:
        eval_step: The function from ``make_eval_step``, mapped over the devices.
        variables: The network's variables.
        dataset: The images.
        batch_size: Images in a batch over all devices; rounded up to equal shares. The
            last batch is filled up with images that do not count.
        advance: Called after each batch with the number of images done.
    """
    devices = jax.device_count()
    batch_size = -(-min(batch_size, len(dataset)) // devices) * devices
    sums: list[Metrics] = []

    def read_last() -> None:
        sums[-1] = jax.tree.map(np.asarray, sums[-1])
        advance(min(len(sums) * batch_size, len(dataset)))

    for start in range(0, len(dataset), batch_size):
        indices = np.arange(start, start + batch_size)
        counts = (indices < len(dataset)).astype(np.float32)
        mine = my_shares(np.minimum(indices, len(dataset) - 1))
        # Gathered while the devices compute the batch before.
        share = (dataset.batch(mine), my_shares(counts))
        if sums:
            read_last()
        sums.append(eval_step(variables, share))
    read_last()
    return means(sums, len(dataset))


def middle(batch: Batch, model: Network) -> tuple[Array, Array | None]:
    """Crops images and their sources for the network; scales pixels to 0 to 1."""
    source = batch.source
    if source is not None:
        source = scale_to_unit(crop_middle(source, model.image_shape))
    return scale_to_unit(crop_middle(batch.image, model.image_shape)), source


def means(sums: Sequence[Metrics], num_images: int) -> Metrics:
    """Returns the means over all images, given the sums over each batch."""
    # Summed in float64: each image weighs the same in a set of any size.
    return jax.tree.map(
        lambda *parts: float(np.sum(parts, dtype=np.float64) / num_images), *sums
    )
