"""Losses of capsule networks: one value per example, in float32.

The functions are the mathematics. The classes hold a recipe's weights and margins:
values for the section ``loss`` of a config, where ``LOSSES`` maps a word to each.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Shaped

from capsjax.bounds import Share, Weight
from capsjax.ops import require_axes, require_unit_scale

ActivationKind = Literal["length", "probability", "logit"]
# The least length or probability of a class that is present: half way between the
# margin loss's lengths of absent and present capsules.
PRESENT = 0.5


def margin_loss(
    length: Float[ArrayLike, "*batch n"],
    label: Shaped[ArrayLike, "..."],
    *,
    present: float = 0.9,
    absent: float = 0.1,
    down_weight: float = 0.5,
) -> Float[Array, "*batch"]:
    r"""Rewards long capsules for the classes that are present, short ones for others.

    .. math::
        L = \sum_n T_n \max(0, m^+ - |v_n|)^2
            + \lambda (1 - T_n) \max(0, |v_n| - m^-)^2

    Args:
        length: Lengths of the class capsules, from 0 to 1.
        label: The class of each example, an integer; or, if an image may show several,
            a multi-hot row ``[*batch, n]`` of zeros and ones (or booleans).
        present: ``m+``, the length above which a present class costs nothing.
        absent: ``m-``, the length below which an absent class costs nothing.
        down_weight: ``lambda``, the weight of absent classes. It keeps the first steps
            from shrinking all capsules.

    Returns:
        The loss of each example, summed over classes, not averaged.

    Raises:
        ValueError: If the label is neither one integer nor one row per example, or the
            lengths have no axis of classes.
        TypeError: If the lengths are not floating-point numbers.

    Examples:
        >>> import jax.numpy as jnp
        >>> from capsjax import margin_loss
        >>> loss = margin_loss(jnp.array([[0.95, 0.3]]), jnp.array([0]))
        >>> print(f"{loss[0]:.2f}")  # 0.5 * (0.3 - 0.1)^2
        0.02

    References:
        Sabour, Frosst and Hinton 2017, Eq. 4, https://arxiv.org/abs/1710.09829.
    """
    terms = _margin_terms(
        length, label, present=present, absent=absent, down_weight=down_weight
    )
    return jnp.sum(terms, axis=-1)


def spread_loss(
    probability: Float[ArrayLike, "*batch n"],
    label: Shaped[ArrayLike, "..."],
    *,
    margin: Float[ArrayLike, ""] = 0.9,
) -> Float[Array, "*batch"]:
    r"""Rewards a label's activation that exceeds each other one by a margin.

    .. math::
        L = \sum_{n \neq t} \max(0, m - (a_t - a_n))^2

    Args:
        probability: Activations of the class capsules, from 0 to 1.
        label: The class ``t`` of each example, an integer.
        margin: ``m``. The paper raises it from 0.2 to 0.9 during training.

    Returns:
        The loss of each example, summed over classes.

    Raises:
        ValueError: If the label is not one integer per example, or the activations have
            no axis of classes.
        TypeError: If the activations are not floating-point numbers.

    Examples:
        >>> import jax.numpy as jnp
        >>> from capsjax.losses import spread_loss
        >>> loss = spread_loss(jnp.array([[0.8, 0.3]]), jnp.array([0]))
        >>> print(f"{loss[0]:.2f}")  # (0.9 - (0.8 - 0.3))^2
        0.16

    References:
        Hinton, Sabour and Frosst 2018, Eq. 3, *Matrix Capsules with EM Routing*,
        https://openreview.net/forum?id=HJWLfGWRb.
    """
    require_unit_scale("probability", probability)
    require_axes("probability", probability, "n")
    probability, own = _own(probability, label)
    num_classes = probability.shape[-1]
    is_label = jax.nn.one_hot(label, num_classes, dtype=probability.dtype)
    each = jnp.maximum(0, margin - (own[..., None] - probability)) ** 2
    return jnp.sum((1 - is_label) * each, axis=-1)


def cross_entropy(
    logit: Float[ArrayLike, "*batch n"], label: Shaped[ArrayLike, "..."]
) -> Float[Array, "*batch"]:
    r"""Computes the negative log probability of the label, given logits.

    .. math::
        L = -\ln softmax(z)_t = \ln \sum_n e^{z_n} - z_t

    Args:
        logit: ``z``, one value for each class, of any size.
        label: The class ``t`` of each example, an integer.

    Returns:
        The loss of each example, in nats.

    Raises:
        ValueError: If the label is not one integer per example, or the logits have no
            axis of classes.

    Examples:
        >>> import jax.numpy as jnp
        >>> from capsjax.losses import cross_entropy
        >>> loss = cross_entropy(jnp.array([[2.0, 2.0]]), jnp.array([0]))
        >>> print(f"{loss[0]:.3f}")  # ln 2
        0.693
    """
    require_axes("logit", logit, "n")
    logit = jnp.asarray(logit)
    wide = logit.astype(jnp.promote_types(logit.dtype, jnp.float32))
    return -_own(jax.nn.log_softmax(wide), label)[1]


def reconstruction_loss(
    reconstruction: Shaped[ArrayLike, "..."],
    image: Shaped[ArrayLike, "..."],
    *,
    reduction: str = "sum",
) -> Float[Array, "*batch"]:
    """Computes the squared error of a reconstruction, summed over pixels by default.

    Args:
        reconstruction: Output of the decoder, ``[*batch, h, w, c]`` from 0 to 1.
        image: The image to reconstruct, of the same shape.
        reduction: ``"sum"`` over pixels and channels, as in the paper; ``"mean"`` as in
            the notebook (784 times smaller for a digit).

    Returns:
        The error of each example.

    Raises:
        ValueError: If ``reduction`` is neither, or the shapes differ or lack an axis.
        TypeError: If either array is not floating-point numbers.

    Examples:
        >>> import jax.numpy as jnp
        >>> from capsjax import reconstruction_loss
        >>> drawn, image = jnp.zeros((1, 28, 28, 1)), jnp.ones((1, 28, 28, 1))
        >>> print(reconstruction_loss(drawn, image))
        [784.]

    References:
        Sabour, Frosst and Hinton 2017, section 4.1, https://arxiv.org/abs/1710.09829.
    """
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}.")
    require_unit_scale("reconstruction", reconstruction)
    require_unit_scale("image", image)
    reconstruction, image = jnp.asarray(reconstruction), jnp.asarray(image)
    if reconstruction.shape != image.shape:
        raise ValueError(
            f"reconstruction and image must have one shape, got {reconstruction.shape} "
            f"and {image.shape}."
        )
    require_axes("image", image, "hwc")
    wide = jnp.promote_types(reconstruction.dtype, jnp.float32)
    error = (reconstruction.astype(wide) - image.astype(wide)) ** 2
    return getattr(jnp, reduction)(error, axis=(-3, -2, -1))


def unexplained_variance(
    reconstruction: Float[ArrayLike, "*batch h w c"],
    image: Float[ArrayLike, "*batch h w c"],
) -> Float[Array, "*batch"]:
    r"""Computes the share of an image's variance that a reconstruction leaves over.

    .. math::
        e = \frac{\sum_p (x_p - \hat x_p)^2}{\sum_p (x_p - \bar x)^2}

    It is 0 for an equal image, and 1 for the image's mean in all pixels. Unlike the
    squared error it does not depend on the amount of ink or contrast.

    Args:
        reconstruction: Output of the decoder.
        image: The image, of the same shape.

    Returns:
        The share for each example, 0 or more. It is 1 for an image of one colour, in
        which there is nothing to explain.
    """
    drawn, image = jnp.asarray(reconstruction), jnp.asarray(image)
    pixels = (-3, -2, -1)
    error = jnp.sum((image - drawn) ** 2, axis=pixels)
    deviation = image - jnp.mean(image, axis=pixels, keepdims=True)
    spread = jnp.sum(deviation**2, axis=pixels)
    return jnp.where(spread > 0, error / jnp.where(spread > 0, spread, 1), 1)


@dataclasses.dataclass(frozen=True)
class Loss(abc.ABC):
    r"""A loss of the class capsules, and the weight of the reconstruction loss.

    .. math::
        L = w C + r \sum_p (x_p - \hat x_p)^2

    with the loss ``C`` of the class capsules, ``w`` the ``weight`` and ``r`` the
    ``reconstruction_weight``. A loss of your own is a frozen subclass that computes
    ``C`` when it is called.

    Attributes:
        weight: Weight of the loss of the class capsules.
        reconstruction_weight: Weight of the reconstruction's squared error; at 0 the
            network draws nothing in training.
        reconstruction_reduction: ``sum`` or ``mean`` over the pixels.
        name: Name of the loss of the class capsules among the metrics.
        activation_kind: The kind of activation that the loss compares.
        takes_several: True if an image may show several classes.

    Examples:
        >>> import dataclasses
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from capsjax.losses import Loss
        >>> @dataclasses.dataclass(frozen=True)
        ... class SquaredError(Loss):
        ...     name = "squared_error"
        ...     activation_kind = "length"
        ...
        ...     def __call__(self, activation, label):
        ...         shown = jax.nn.one_hot(label, activation.shape[-1])
        ...         return jnp.sum((activation - shown) ** 2, axis=-1)
        >>> print(SquaredError()(jnp.array([[1.0, 0.5]]), jnp.array([0])))
        [0.25]
    """

    weight: Weight = 1.0
    reconstruction_weight: Weight = 0.0005
    reconstruction_reduction: Literal["sum", "mean"] = "sum"

    name: ClassVar[str]
    activation_kind: ClassVar[ActivationKind]
    takes_several: ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(
        self, activation: Float[Array, "*batch n"], label: Shaped[Array, "..."]
    ) -> Float[Array, "*batch"]:
        """Computes the loss of each example, not weighted."""

    def in_training(
        self,
        activation: Float[Array, "*batch n"],
        label: Shaped[Array, "..."],
        progress: Float[Array, ""],
    ) -> Float[Array, "*batch"]:
        """Computes the loss of each example in a step of training.

        Args:
            activation: The activations of the class capsules.
            label: The class of each example, or its classes.
            progress: Share of the run's steps that are done, from 0 to 1. It changes
                nothing, unless a loss has a schedule.
        """
        del progress
        return self(activation, label)

    def by_class(
        self, activation: Float[Array, "*batch n"], label: Shaped[Array, "..."]
    ) -> Float[Array, "*batch n"]:
        """Computes each class's term of the loss, which is their sum.

        Where an image may show several classes, ``config.data.class_weights`` weights
        these terms. A loss that is no such sum leaves this method alone.

        Raises:
            NotImplementedError: If the loss is no sum over the classes.
        """
        raise NotImplementedError(f"{type(self).__name__} is no sum over the classes")

    @property
    def is_by_class(self) -> bool:
        """True if ``by_class`` has the terms of the loss."""
        return type(self).by_class is not Loss.by_class


@dataclasses.dataclass(frozen=True)
class MarginLoss(Loss):
    """The margin loss, for lengths: :func:`capsjax.margin_loss` has the equation.

    Attributes:
        present: Length above which a present class costs nothing.
        absent: Length below which an absent class costs nothing.
        down_weight: Weight of absent classes.

    Examples:
        >>> import jax.numpy as jnp
        >>> from capsjax.losses import MarginLoss
        >>> loss = MarginLoss(reconstruction_weight=0.0)
        >>> print(f"{loss(jnp.array([[0.95, 0.3]]), jnp.array([0]))[0]:.2f}")
        0.02

    References:
        Sabour, Frosst and Hinton 2017, Eq. 4, https://arxiv.org/abs/1710.09829.
    """

    present: Share = 0.9
    absent: Share = 0.1
    down_weight: Weight = 0.5

    name: ClassVar[str] = "margin_loss"
    activation_kind: ClassVar[ActivationKind] = "length"
    takes_several: ClassVar[bool] = True

    def check(self) -> None:
        """Compares the margins.

        Raises:
            ValueError: If ``absent`` is above ``present``.
        """
        if self.absent > self.present:
            raise ValueError(
                f"absent must be at most present={self.present}, got {self.absent}."
            )

    def __call__(
        self, activation: Float[Array, "*batch n"], label: Shaped[Array, "..."]
    ) -> Float[Array, "*batch"]:
        """Computes the margin loss of each example."""
        return margin_loss(activation, label, **self._margins)

    def by_class(
        self, activation: Float[Array, "*batch n"], label: Shaped[Array, "..."]
    ) -> Float[Array, "*batch n"]:
        """Computes each class's term of the margin loss."""
        return _margin_terms(activation, label, **self._margins)

    @property
    def _margins(self) -> dict[str, float]:
        names = ("present", "absent", "down_weight")
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class SpreadLoss(Loss):
    """The spread loss, for probabilities.

    :func:`capsjax.losses.spread_loss` has the equation. In training, the margin rises
    with the steps of the run: from ``first_margin`` by equal amounts to ``margin``. A
    constant margin has both alike.

    Attributes:
        margin: Distance by which the label's probability should exceed each other one.
        first_margin: That distance in the first step of training.

    Examples:
        >>> import jax.numpy as jnp
        >>> from capsjax.losses import SpreadLoss
        >>> probability, label = jnp.array([[0.8, 0.5]]), jnp.array([0])
        >>> loss = SpreadLoss()
        >>> start = loss.in_training(probability, label, jnp.float32(0))
        >>> print(f"{start[0]:.2f} {loss(probability, label)[0]:.2f}")
        0.00 0.36

    References:
        Hinton, Sabour and Frosst 2018, Eq. 3, *Matrix Capsules with EM Routing*,
        https://openreview.net/forum?id=HJWLfGWRb.
    """

    margin: Share = 0.9
    first_margin: Share = 0.2

    name: ClassVar[str] = "spread_loss"
    activation_kind: ClassVar[ActivationKind] = "probability"

    def __call__(
        self, activation: Float[Array, "*batch n"], label: Shaped[Array, "..."]
    ) -> Float[Array, "*batch"]:
        """Computes the spread loss of each example."""
        return spread_loss(activation, label, margin=self.margin)

    def in_training(
        self,
        activation: Float[Array, "*batch n"],
        label: Shaped[Array, "..."],
        progress: Float[Array, ""],
    ) -> Float[Array, "*batch"]:
        """Computes the spread loss of each example, with the margin of the step."""
        margin = self.first_margin + (self.margin - self.first_margin) * progress
        return spread_loss(activation, label, margin=margin)


@dataclasses.dataclass(frozen=True)
class CrossEntropy(Loss):
    """The cross-entropy, for logits.

    :func:`capsjax.losses.cross_entropy` has the equation.

    Examples:
        >>> import jax.numpy as jnp
        >>> from capsjax.losses import CrossEntropy
        >>> loss = CrossEntropy()(jnp.array([[2.0, 2.0]]), jnp.array([0]))
        >>> print(f"{loss[0]:.3f}")
        0.693
    """

    name: ClassVar[str] = "cross_entropy"
    activation_kind: ClassVar[ActivationKind] = "logit"

    def __call__(
        self, activation: Float[Array, "*batch n"], label: Shaped[Array, "..."]
    ) -> Float[Array, "*batch"]:
        """Computes the cross-entropy of each example."""
        return cross_entropy(activation, label)


@dataclasses.dataclass(frozen=True)
class AutoLoss(Loss):
    """The loss that fits the network's activations, with its default margins.

    It stands for the margin loss for lengths, the spread loss for probabilities, and
    the cross-entropy for logits.

    Examples:
        >>> from capsjax.config import Config
        >>> from capsjax.losses import AutoLoss
        >>> Config(loss=AutoLoss(reconstruction_weight=0.0)).loss.weight
        1.0
    """

    def __call__(
        self, activation: Float[Array, "*batch n"], label: Shaped[Array, "..."]
    ) -> Float[Array, "*batch"]:
        """Raises, since ``fitting_loss`` must replace this loss first.

        Raises:
            TypeError: Always.
        """
        raise TypeError("AutoLoss is no loss yet; call fitting_loss first.")


LOSSES: Mapping[str, type[Loss]] = {
    "auto": AutoLoss,
    "margin": MarginLoss,
    "spread": SpreadLoss,
    "cross_entropy": CrossEntropy,
}


def fitting_loss(loss: Loss, kind: ActivationKind) -> Loss:
    """Returns the loss itself; replaces ``AutoLoss`` by the loss for that kind.

    Raises:
        ValueError: If the loss is for activations of another kind.
    """
    fitting: dict[str, type[Loss]] = {
        one.activation_kind: one for one in (MarginLoss, SpreadLoss, CrossEntropy)
    }
    for name in ("name", "activation_kind") * (not isinstance(loss, AutoLoss)):
        if not hasattr(loss, name):
            raise ValueError(f"config.loss: {type(loss).__name__} must have {name}.")
    if isinstance(loss, AutoLoss):
        return fitting[kind](**dataclasses.asdict(loss))
    if loss.activation_kind != kind:
        words = {value: word for word, value in LOSSES.items()}
        word = words.get(type(loss), type(loss).__name__)
        raise ValueError(
            f"config.loss={word} compares activations of the kind "
            f"{loss.activation_kind}, and the network's are of the kind {kind}: "
            f"choose auto or {words[fitting[kind]]}."
        )
    return loss


def _margin_terms(
    length: Shaped[ArrayLike, "*batch n"],
    label: Shaped[ArrayLike, "..."],
    *,
    present: float,
    absent: float,
    down_weight: float,
) -> Float[Array, "*batch n"]:
    """Returns each class's term of the margin loss."""
    require_unit_scale("length", length)
    require_axes("length", length, "n")
    length = jnp.asarray(length)
    is_present = _multi_hot(jnp.asarray(label), length.shape)
    length = length.astype(jnp.promote_types(length.dtype, jnp.float32))
    too_short = jnp.maximum(0, present - length) ** 2
    too_long = jnp.maximum(0, length - absent) ** 2
    return is_present * too_short + down_weight * (1 - is_present) * too_long


def _own(
    values: Float[ArrayLike, "*batch n"], label: Shaped[ArrayLike, "..."]
) -> tuple[Float[Array, "*batch n"], Float[Array, "*batch"]]:
    """Returns the values of all classes, and the value of the label's class."""
    values, label = jnp.asarray(values), jnp.asarray(label)
    is_one = jnp.issubdtype(label.dtype, jnp.integer)
    if label.shape != values.shape[:-1] or not is_one:
        raise ValueError(
            f"label must be integers of shape {values.shape[:-1]}, got {label.dtype} "
            f"of shape {label.shape}."
        )
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    own = jnp.take_along_axis(values, label[..., None], axis=-1)[..., 0]
    return values, own


def _multi_hot(
    label: Shaped[Array, "..."], shape: tuple[int, ...]
) -> Float[Array, "*batch n"]:
    if label.shape == shape:
        return label.astype(jnp.float32)
    if label.shape == shape[:-1] and jnp.issubdtype(label.dtype, jnp.integer):
        return jax.nn.one_hot(label, shape[-1], dtype=jnp.float32)
    raise ValueError(
        f"label must be integers of shape {shape[:-1]} or multi-hot rows of shape "
        f"{shape}, got {label.dtype} of shape {label.shape}."
    )
