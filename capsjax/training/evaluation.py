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
from capsjax.losses import PRESENT, Loss, unexplained_variance
from capsjax.models import Network
from capsjax.models.network import can_draw
from capsjax.ops import mask_longest
from capsjax.routings import Routed
from capsjax.runtime.devices import AXIS, my_shares
from capsjax.training.objective import ClassWeight, Label, Metrics, measure

# Drawings of this share of the recognised images are within the limit; with fewer
# images the limit would be one image's.
_QUANTILE, _FEWEST_DRAWN = 0.999, 500


def make_eval_step(
    model: Network,
    loss: Loss,
    class_weight: ClassWeight | None = None,
) -> Callable[..., tuple[Metrics, Float[Array, "devices batch"] | None]]:
    """Makes the per-device function that evaluates a batch on all devices.

    The function takes the network's variables, one device's share of the batch and a
    factor for each image: 1 if it counts, 0 if it only fills the batch up. The loss is
    weighted by class as in ``measure``. The function returns the metrics, summed over
    the batch, and the drawing error of each image: its unexplained variance; -1 if the
    image does not count or its class is not recognised. They are None if the network is
    not trained to draw images of one class, or says by no length that none is there.
    """

    def eval_step(
        variables: Any, share: tuple[Batch, Float[Array, " batch"]]
    ) -> tuple[Metrics, Float[Array, "devices batch"] | None]:
        batch, counts = share
        image, source = middle(batch, model)
        routed: Any = model.apply(variables, image, method=model.encode)
        each = measure(
            *(model, variables, routed, image, batch.label),
            loss=loss,
            source=source,
            class_weight=class_weight,
        )
        sums = jax.lax.psum(
            jax.tree.map(lambda values: jnp.sum(values * counts), each), AXIS
        )
        error = None
        if (
            batch.label.ndim == 1
            and loss.activation_kind == "length"
            and "reconstruction_loss" in each.parts
        ):
            error = drawing_error(model, variables, routed, image, batch.label)
            error = jax.lax.all_gather(jnp.where(counts > 0, error, -1), AXIS)
        return sums, error

    return eval_step


def drawing_error(
    model: Network,
    variables: Any,
    routed: Routed,
    image: Float[Array, "batch h w c"],
    label: Label,
) -> Float[Array, " batch"]:
    """Compares each recognised image with what its class capsule draws.

    Returns:
        The unexplained variance; -1 if the longest capsule is another class's, or
        shorter than 0.5.
    """
    assert can_draw(model)
    mask = mask_longest(routed.activation)
    # The same drawing as in the loss: compiled, it is computed once.
    drawn = model.apply(variables, routed.pose, mask, method=model.decode)
    is_right = jnp.argmax(routed.activation, axis=-1) == label
    is_recognised = is_right & (jnp.max(routed.activation, axis=-1) >= PRESENT)
    error = unexplained_variance(drawn.astype(image.dtype), image)
    return jnp.where(is_recognised, error, -1)


def drawing_limit(errors: Sequence[np.ndarray]) -> float | None:
    """Returns the largest drawing error of an image that shows a known class.

    Args:
        errors: Drawing errors of validation images, as an evaluation gives them.

    Returns:
        Their quantile of 99.9 % over the recognised images; None if these are fewer
        than 500.
    """
    error = np.concatenate([np.ravel(one) for one in errors] or [np.empty(0)])
    error = error[error >= 0]
    return float(np.quantile(error, _QUANTILE)) if len(error) >= _FEWEST_DRAWN else None


def evaluate(
    eval_step: Callable[..., Any],
    variables: Any,
    dataset: Dataset,
    *,
    batch_size: int,
    advance: Callable[[int], None] = lambda images: None,
    errors: list[np.ndarray] | None = None,
) -> Metrics:
    """Returns the mean metrics over all images of a data set.

    Args:
        eval_step: The function from ``make_eval_step``, mapped over the devices.
        variables: The network's variables.
        dataset: The images.
        batch_size: Images in a batch over all devices; rounded up to equal shares. The
            last batch is filled up with images that do not count.
        advance: Called after each batch with the number of images done.
        errors: List that gets each batch's drawing errors, if there are any.
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
        summed, error = eval_step(variables, share)
        sums.append(summed)
        if errors is not None and error is not None:
            errors.append(error)
    read_last()
    if errors is not None:
        errors[:] = map(np.asarray, errors)
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
