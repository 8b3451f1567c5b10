"""Losses and accuracy of images."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from capsjax.losses import PRESENT, ActivationKind, Loss, reconstruction_loss
from capsjax.models import Network
from capsjax.models.network import can_draw
from capsjax.ops import mask_longest, split_mask
from capsjax.routings import Routed

Label = Int[Array, " batch"] | Bool[Array, "batch n"]
# Factors of the loss by the image's class; or, where images show several, by class, for
# absent and for present ones.
ClassWeight = Float[np.ndarray, " n"] | Float[np.ndarray, "2 n"]


class Metrics(NamedTuple):
    """Losses and accuracies, per image or reduced; None where one does not apply.

    Attributes:
        loss: The loss that is minimised: the weighted sum of ``parts``, in which
            classes may have weights.
        accuracy: 1 if the verdict is exactly the image's class or classes: see
            ``verdict``.
        label_accuracy: The share of an image's classes in the verdict, if all images
            show the same number of several classes.
        parts: The unweighted parts of the loss, by name: the loss of the class
            capsules, and ``reconstruction_loss`` if its weight is above 0, summed over
            the classes if each is drawn alone.
        per_label_accuracy: The share of all classes, in the image or not, on which the
            verdict is right, if images show different numbers of classes.
    """

    loss: Float[Array | float, "*batch"]
    accuracy: Float[Array | float, "*batch"]
    label_accuracy: Float[Array | float, "*batch"] | None
    parts: dict[str, Any]
    per_label_accuracy: Float[Array | float, "*batch"] | None = None

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
    class_weight: ClassWeight | None = None,
) -> Metrics:
    """Computes losses and correctness of each image, as in inference.

    Args:
        model: The network.
        variables: Its weights and other variables.
        image: Pixels from 0 to 1.
        label: The class of each image, or true for each of its classes.
        loss: The loss, which fits the network.
        source: Images of single classes, as for ``measure``.
        class_weight: As for ``measure``.
    """
    routed: Any = model.apply(variables, image, method=model.encode)
    return measure(
        *(model, variables, routed, image, label),
        loss=loss,
        source=source,
        class_weight=class_weight,
    )


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


def balanced_label_weights(
    num_shown: Int[np.ndarray, " n"], num_images: int
) -> Float[np.ndarray, "2 n"]:
    """Returns weights that make the images with and without a class count alike.

    Args:
        num_shown: Number of images that show each class.
        num_images: Number of all images, ``N``.

    Returns:
        In float32 ``N / (2 N_absent)`` in the first row and ``N / (2 N_present)`` in
        the second, for each class: the mean over the images is 1. The weights of a
        class that all images show, or none, are 1.
    """
    number = np.stack([num_images - num_shown, num_shown])
    weight = num_images / (2 * np.maximum(number, 1))
    return np.where(number.all(axis=0), weight, 1).astype(np.float32)


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
    class_weight: ClassWeight | None = None,
    progress: Float[Array, ""] | None = None,
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
            With them, all images show the same number of classes.
        mask: The capsules to draw from: the label's in training; None for those of the
            verdict, as in inference.
        class_weight: Factors of the loss: of the whole loss by the image's class; or,
            if images show several classes, of each class's term of the loss of the
            class capsules. None for none.
        progress: Share of the run's steps that are done, in training; else None.
    """
    pose, activation, _ = routed
    counted: Any = {"kind": loss.activation_kind, "is_counted": source is not None}
    if progress is None:
        own = loss(activation, label)
    else:
        own = loss.in_training(activation, label, progress)
    charged = own
    if class_weight is not None and label.ndim > 1:
        factor = jnp.where(label, class_weight[1], class_weight[0])
        charged = jnp.sum(factor * loss.by_class(activation, label), axis=-1)
    total, parts = loss.weight * charged, {loss.name: own}
    if pose is not None and loss.reconstruction_weight and can_draw(model):
        if mask is None:
            mask = verdict(activation, label, **counted)
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
    if class_weight is not None and label.ndim == 1:
        total = total * jnp.asarray(class_weight)[label]
    accuracy, label_accuracy, per_label_accuracy = found(activation, label, **counted)
    return Metrics(total, accuracy, label_accuracy, parts, per_label_accuracy)


def verdict(
    activation: Float[Array, "batch n"],
    label: Label,
    *,
    kind: ActivationKind,
    is_counted: bool,
) -> Float[Array, "batch n"]:
    """Returns one at each class that is named, zero elsewhere.

    Args:
        activation: The activations of the class capsules.
        label: The class of each image, or true for each of its classes.
        kind: The kind of the activations.
        is_counted: True if all images show the same number of classes.

    Returns:
        The most active class of an image with one class, and as many as it shows if
        they are counted; otherwise all whose length or probability is at least 0.5, or
        whose logit is at least 0.
    """
    if label.ndim == 1 or is_counted:
        count = 1 if label.ndim == 1 else jnp.sum(label, axis=-1)
        return mask_longest(activation, count)
    least = 0 if kind == "logit" else PRESENT
    return jax.lax.stop_gradient(activation >= least).astype(jnp.float32)


def found(
    activation: Float[Array, "batch n"],
    label: Label,
    *,
    kind: ActivationKind,
    is_counted: bool,
) -> tuple[
    Float[Array, " batch"], Float[Array, " batch"] | None, Float[Array, " batch"] | None
]:
    """Computes the accuracies of each image, as in ``Metrics``: see ``verdict``."""
    if label.ndim == 1:
        is_right = jnp.argmax(activation, axis=-1) == label
        return is_right.astype(jnp.float32), None, None
    named = verdict(activation, label, kind=kind, is_counted=is_counted)
    if is_counted:
        count = jnp.sum(label, axis=-1)
        taken = jnp.sum(named * label, axis=-1)
        is_right = (taken == count).astype(jnp.float32)
        return is_right, taken / jnp.maximum(count, 1), None
    is_right = (named == label).astype(jnp.float32)
    return jnp.min(is_right, axis=-1), None, jnp.mean(is_right, axis=-1)


def several_in_words(metrics: Mapping[str, Any]) -> str:
    """Returns the accuracy by label in words; empty if images show one class.

    Args:
        metrics: The metrics by name.
    """
    for name, what in (
        ("label_accuracy", "of the classes found"),
        ("per_label_accuracy", "of the labels right"),
    ):
        if metrics.get(name) is not None:
            return f"{metrics[name]:.2%} {what}"
    return ""
