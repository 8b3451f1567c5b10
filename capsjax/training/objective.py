"""Losses and accuracy of images."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from capsjax.losses import Loss, reconstruction_loss
from capsjax.models import Network
from capsjax.models.network import can_draw
from capsjax.ops import mask_longest, split_mask
from capsjax.routings import Routed

Label = Int[Array, " batch"] | Bool[Array, "batch n"]


class Metrics(NamedTuple):
    """Losses and accuracies, per image or reduced; None where one does not apply.

    Attributes:
        loss: The loss that is minimised: the weighted sum of ``parts``, times the
            weight of the image's class, if classes have weights.
        accuracy: 1 if the longest capsule is the label's. If an image shows several
            classes: 1 if its longest capsules are exactly the capsules of its classes.
        label_accuracy: The share of an image's classes whose capsules are among the
            longest, if images show several classes.
        parts: The unweighted parts of the loss, by name: the loss of the class
            capsules, and ``reconstruction_loss`` if its weight is above 0, summed over
            the classes if each is drawn alone.
    """

    loss: Float[Array | float, "*batch"]
    accuracy: Float[Array | float, "*batch"]
    label_accuracy: Float[Array | float, "*batch"] | None
    parts: dict[str, Any]

    def known(self) -> dict[str, Any]:
        """Returns the metrics that are not None, by name."""
        named = {**self._asdict(), **self.parts}
        del named["parts"]
        return {name: one for name, one in named.items() if one is not None}


def image_metrics(
    model: Network,
    variables: Any,
    image: Float[Array, "batch h w c"],
    label: Label,
    *,
    loss: Loss,
    source: Float[Array, "batch s h w c"] | None = None,
    class_weight: Float[np.ndarray, " n"] | None = None,
) -> Metrics:
    """Computes losses and correctness of each image, as in inference.

    Args:
        model: The network.
        variables: Its weights and other variables.
        image: Pixels from 0 to 1.
        label: The class of each image, or true for each of its classes.
        loss: The loss, which fits the network.
        source: Images of single classes, as for ``measure``.
        class_weight: Factors of the loss, by the image's class; None for none.
    """
    routed: Any = model.apply(variables, image, method=model.encode)
    each = measure(model, variables, routed, image, label, loss=loss, source=source)
    return weighted(each, label, class_weight)


def weighted(
    each: Metrics, label: Label, class_weight: Float[np.ndarray, " n"] | None
) -> Metrics:
    """Multiplies each image's loss by the weight of its class, if classes have any."""
    if class_weight is None:
        return each
    return each._replace(loss=each.loss * jnp.asarray(class_weight)[label])


def balanced_weights(num_images: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Returns weights that make all classes count alike, whatever their sizes.

    Args:
        num_images: Number of images of each class.

    Returns:
        ``N / (K N_class)`` in float32, for ``N`` images of ``K`` classes that have any:
        the mean over the images is 1. The weight of a class without images is 1.
    """
    is_shown = num_images > 0
    weight = num_images.sum() / (is_shown.sum() * np.maximum(num_images, 1))
    return np.where(is_shown, weight, 1).astype(np.float32)


def measure(
    model: Network,
    variables: Any,
    routed: Routed,
    image: Float[Array, "batch h w c"],
    label: Label,
    *,
    loss: Loss,
    source: Float[Array, "batch s h w c"] | None = None,
    mask: Float[Array, "batch j"] | None = None,
) -> Metrics:
    """Computes losses and correctness of each image, given its class capsules.

    Args:
        model: The network, whose decoder draws.
        variables: Its weights and other variables.
        routed: The class capsules; with poses of None nothing is drawn.
        image: Pixels from 0 to 1.
        label: The class of each image, or true for each of its classes.
        loss: The loss, which fits the network.
        source: An image of each shown class alone, in the order of the classes. The
            capsules under the mask, in the same order, are drawn one by one and
            compared with these, instead of all together with the image.
        mask: The capsules to draw from: the label's in training; None for the longest
            ones, as many as there are classes in the image, as in inference.
    """
    pose, activation, _ = routed
    own = loss(activation, label)
    total, parts = loss.weight * own, {loss.name: own}
    if pose is not None and loss.reconstruction_weight and can_draw(model):
        if mask is None:
            count = 1 if label.ndim == 1 else jnp.sum(label, axis=-1)
            mask = mask_longest(activation, count)
        if source is not None:
            mask = split_mask(mask, source.shape[1])
            pose = jnp.broadcast_to(pose[:, None], (*mask.shape, pose.shape[-1]))
        drawn = model.apply(variables, pose, mask, method=model.decode)
        error = reconstruction_loss(
            drawn,
            image if source is None else source,
            reduction=loss.reconstruction_reduction,
        )
        error = jnp.sum(error.reshape(len(own), -1), axis=-1)
        total = total + loss.reconstruction_weight * error
        parts["reconstruction_loss"] = error
    return Metrics(total, *found(activation, label), parts)


def found(
    activation: Float[Array, "batch n"], label: Label
) -> tuple[Float[Array, " batch"], Float[Array, " batch"] | None]:
    """Computes accuracy and label accuracy of each image, as in ``Metrics``."""
    if label.ndim == 1:
        is_right = jnp.argmax(activation, axis=-1) == label
        return is_right.astype(jnp.float32), None
    count = jnp.sum(label, axis=-1)
    taken = jnp.sum(mask_longest(activation, count) * label, axis=-1)
    return (taken == count).astype(jnp.float32), taken / jnp.maximum(count, 1)
