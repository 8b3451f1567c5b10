"""Losses and accuracy over a whole data set, every image counted exactly once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from capsjax import config as configs
from capsjax.data import Batch, Dataset
from capsjax.data.augment import scale_to_unit
from capsjax.losses import margin_loss, reconstruction_loss
from capsjax.models import CapsNet, mask_longest
from capsjax.parallel import AXIS, share


class Metrics(NamedTuple):
    """What is measured of images: means over them, or sums.

    Attributes:
        loss: The weighted sum of the two that is minimised.
        margin_loss: Margin loss, not weighted.
        reconstruction_loss: Squared error of the reconstruction, not weighted; 0 if its
            weight is 0, as nothing is drawn then.
        accuracy: The share of images whose longest capsule is their label's.
    """

    loss: Float[Array | float, "*batch"]
    margin_loss: Float[Array | float, "*batch"]
    reconstruction_loss: Float[Array | float, "*batch"]
    accuracy: Float[Array | float, "*batch"]


def image_metrics(
    model: CapsNet,
    params: Any,
    image: Float[Array, "batch h w c"],
    label: Array,
    *,
    loss: configs.Loss,
    mask: Float[Array, "batch n"] | None,
) -> Metrics:
    """Losses and correctness of each image.

    Args:
        model: The network.
        params: Its weights.
        image: Pixels from 0 to 1.
        label: The class of each image.
        loss: Weights and margins.
        mask: The capsules to reconstruct from: the label's in training; None for the
            longest one, as in inference.
    """
    routed: Any = model.apply(params, image, method=model.encode)
    length = routed.activation
    if mask is None:
        mask = mask_longest(length)
    margin = margin_loss(
        length,
        label,
        present=loss.present,
        absent=loss.absent,
        down_weight=loss.down_weight,
    )
    error = jnp.zeros_like(margin)
    if loss.reconstruction_weight:
        drawn: Any = model.apply(params, routed.pose, mask, method=model.decode)
        error = reconstruction_loss(
            drawn, image, reduction=loss.reconstruction_reduction
        )
    return Metrics(
        loss=loss.margin_weight * margin + loss.reconstruction_weight * error,
        margin_loss=margin,
        reconstruction_loss=error,
        accuracy=(jnp.argmax(length, axis=-1) == label).astype(jnp.float32),
    )


def make_eval_step(model: CapsNet, loss: configs.Loss) -> Callable[..., Metrics]:
    """The sums of the metrics of a batch over all devices, as a per-device function.

    The returned function takes the weights, one device's share of the batch and, for
    each of its images, 1 if it counts and 0 if it only fills the batch up.
    """

    def eval_step(params: Any, share: tuple[Batch, Float[Array, " batch"]]) -> Metrics:
        batch, counts = share
        image = scale_to_unit(batch.image)
        each = image_metrics(model, params, image, batch.label, loss=loss, mask=None)
        return jax.lax.psum(
            jax.tree.map(lambda values: jnp.sum(values * counts), each), AXIS
        )

    return eval_step


def evaluate(
    eval_step: Callable[..., Metrics],
    params: Any,
    dataset: Dataset,
    *,
    batch_size: int,
    advance: Callable[[int], None] = lambda images: None,
) -> Metrics:
    """Means of the metrics over all images of a data set.

    Args:
        eval_step: What ``make_eval_step`` made, mapped over the devices.
        params: The network's weights.
        dataset: The images.
        batch_size: Images at once over all devices; rounded up to a whole share each.
            The last batch is filled up with images that do not count.
        advance: Told how many images are done, after each batch.
    """
    devices = jax.local_device_count()
    batch_size = -(-min(batch_size, len(dataset)) // devices) * devices
    sums = np.zeros(len(Metrics._fields))
    for start in range(0, len(dataset), batch_size):
        indices = np.arange(start, start + batch_size)
        counts = (indices < len(dataset)).astype(np.float32)
        batch = dataset.batch(np.minimum(indices, len(dataset) - 1))
        # Summed in float64: each image weighs the same, however many there are.
        sums += np.asarray(eval_step(params, share((batch, counts))), np.float64)
        advance(min(start + batch_size, len(dataset)))
    return Metrics(*(sums / len(dataset)).tolist())
