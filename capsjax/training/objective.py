"""What is measured of images: losses, and whether their classes were found."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from capsjax import config as configs
from capsjax.losses import margin_loss, reconstruction_loss
from capsjax.models import BaselineCNN, CapsNet, Network
from capsjax.ops import mask_longest, split_mask

_PARTS = ("margin_loss", "reconstruction_loss", "cross_entropy")

Label = Int[Array, " batch"] | Bool[Array, "batch n"]


class Metrics(NamedTuple):
    """Of each image, or means or sums over images; None where there is none.

    Attributes:
        loss: What is minimised: margin loss and reconstruction loss, weighted; or the
            baseline's cross-entropy; times the weight of the image's class, if classes
            have weights.
        accuracy: Whether the longest capsule is the label's; of images that show
            several classes, whether the longest capsules are exactly those of these.
        label_accuracy: Of images that show several: the share of their classes whose
            capsules are among the longest.
        margin_loss: Margin loss, not weighted.
        reconstruction_loss: Squared error of the reconstruction, not weighted; summed
            over the classes where each is drawn alone. None if its weight is 0, as
            nothing is drawn then.
        cross_entropy: The baseline's.
    """

    loss: Float[Array | float, "*batch"]
    accuracy: Float[Array | float, "*batch"]
    label_accuracy: Float[Array | float, "*batch"] | None = None
    margin_loss: Float[Array | float, "*batch"] | None = None
    reconstruction_loss: Float[Array | float, "*batch"] | None = None
    cross_entropy: Float[Array | float, "*batch"] | None = None

    def known(self) -> dict[str, Any]:
        """What there is, by name."""
        return {name: one for name, one in self._asdict().items() if one is not None}

    def parts(self) -> dict[str, Any]:
        """The losses that the loss is made of, by name."""
        return {name: one for name, one in self.known().items() if name in _PARTS}


def image_metrics(
    model: Network,
    params: Any,
    image: Float[Array, "batch h w c"],
    label: Label,
    *,
    loss: configs.Loss,
    source: Float[Array, "batch s h w c"] | None = None,
    mask: Float[Array, "batch n"] | None = None,
    kept: Bool[Array, "batch u"] | None = None,
    class_weight: Float[np.ndarray, " n"] | None = None,
) -> Metrics:
    """Losses and correctness of each image.

    Args:
        model: The network.
        params: Its weights.
        image: Pixels from 0 to 1.
        label: The class of each image, or true for each of its classes.
        loss: Weights and margins.
        source: As of ``measure``.
        mask: As of ``measure``.
        kept: The baseline's units that take part, in training; None for all.
        class_weight: What the loss of an image of each class is multiplied by; None
            for nothing.
    """
    if isinstance(model, BaselineCNN):
        log_probability: Any = model.apply(params, image, kept)
        each = measure_probability(log_probability, label)
    else:
        routed: Any = model.apply(params, image, method=model.encode)
        each = measure(
            *(model, params, routed.pose, routed.activation, image, label),
            loss=loss,
            source=source,
            mask=mask,
        )
    if class_weight is None:
        return each
    return each._replace(loss=each.loss * jnp.asarray(class_weight)[label])


def balanced_weights(num_images: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Weights with which every class counts alike, however many images show it.

    Args:
        num_images: Of each class.

    Returns:
        ``N / (K N_class)`` in float32, for ``N`` images of ``K`` classes that have any:
        the mean over the images is 1. It is 1 for a class without images.
    """
    is_shown = num_images > 0
    weight = num_images.sum() / (is_shown.sum() * np.maximum(num_images, 1))
    return np.where(is_shown, weight, 1).astype(np.float32)


def measure(
    model: CapsNet,
    params: Any,
    pose: Float[Array | np.ndarray, "batch j d"] | None,
    length: Float[Array, "batch j"],
    image: Float[Array, "batch h w c"],
    label: Label,
    *,
    loss: configs.Loss,
    source: Float[Array, "batch s h w c"] | None = None,
    mask: Float[Array, "batch j"] | None = None,
) -> Metrics:
    """Losses and correctness of each image, given its class capsules.

    Args:
        model: The network, which draws.
        params: Its weights.
        pose: Of the class capsules; None to draw nothing.
        length: Of the class capsules.
        image: Pixels from 0 to 1.
        label: The class of each image, or true for each of its classes.
        loss: Weights and margins.
        source: What each class of the image looks like alone, in the order of the
            classes. The capsules under the mask, in the same order, are drawn one by
            one and compared with these, instead of all together with the image.
        mask: The capsules to draw from: the label's in training; None for the longest
            ones, as many as there are classes in the image, as in inference.
    """
    margin = margin_loss(
        length,
        label,
        present=loss.present,
        absent=loss.absent,
        down_weight=loss.down_weight,
    )
    total, error = loss.margin_weight * margin, None
    if pose is not None and loss.reconstruction_weight:
        if mask is None:
            count = 1 if label.ndim == 1 else jnp.sum(label, axis=-1)
            mask = mask_longest(length, count)
        if source is not None:
            mask = split_mask(mask, source.shape[1])
            pose = jnp.broadcast_to(pose[:, None], (*mask.shape, pose.shape[-1]))
        drawn: Any = model.apply(params, pose, mask, method=model.decode)
        error = reconstruction_loss(
            drawn,
            image if source is None else source,
            reduction=loss.reconstruction_reduction,
        )
        error = jnp.sum(error.reshape(len(margin), -1), axis=-1)
        total = total + loss.reconstruction_weight * error
    return Metrics(
        total, *found(length, label), margin_loss=margin, reconstruction_loss=error
    )


def measure_probability(
    log_probability: Float[Array, "batch n"], label: Int[Array, " batch"]
) -> Metrics:
    """Cross-entropy and correctness of each image, given what the baseline made of it.

    Args:
        log_probability: The logarithm of each class's probability.
        label: The class of each image.
    """
    own = jnp.take_along_axis(log_probability, label[:, None], axis=-1)
    entropy = -own[:, 0]
    return Metrics(entropy, *found(log_probability, label), cross_entropy=entropy)


def found(
    activation: Float[Array, "batch n"], label: Label
) -> tuple[Float[Array, " batch"], Float[Array, " batch"] | None]:
    """Accuracy and label accuracy of each image, as of ``Metrics``."""
    if label.ndim == 1:
        is_right = jnp.argmax(activation, axis=-1) == label
        return is_right.astype(jnp.float32), None
    count = jnp.sum(label, axis=-1)
    taken = jnp.sum(mask_longest(activation, count) * label, axis=-1)
    return (taken == count).astype(jnp.float32), taken / jnp.maximum(count, 1)
