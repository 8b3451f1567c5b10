"""Calibration: whether a confidence of 80 % is right in 80 % of the cases.

Letters: ``n`` classes, ``m`` examples.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from capsjax.diagnostics.statistics import Statistics
from capsjax.losses import ActivationKind

# Between these the fit of a temperature searches.
_COLDEST, _HOTTEST = 1e-4, 1e4
_NUM_HALVINGS = 60


def class_probability(
    activation: Float[ArrayLike, "*batch n"],
    kind: ActivationKind,
    temperature: Float[ArrayLike, ""] | float = 1.0,
) -> Float[Array, "*batch n"]:
    r"""Turns the activations of classes that exclude each other into probabilities.

    .. math::
        p = softmax(z / T)

    with ``z = a`` for a logit or a length ``a``, and ``z = ln a`` for a probability.

    A temperature changes no prediction. With 1, logits give their softmax, and
    probabilities are divided by their sum. Lengths are no probabilities, and do not add
    up to one: their differences become ratios of probabilities, for which a temperature
    must be fitted. They are finite at a length of zero, unlike logarithms of lengths.

    Args:
        activation: Activations of the classes.
        kind: Their kind: ``"length"``, ``"probability"`` or ``"logit"``.
        temperature: ``T``, above 0, in units of ``z``.

    Examples:
        >>> import jax.numpy as jnp
        >>> from capsjax.diagnostics import class_probability
        >>> p = class_probability(jnp.array([0.9, 0.1]), "length", 0.2)
        >>> [f"{one:.3f}" for one in p]
        ['0.982', '0.018']

    References:
        Guo, Pleiss, Sun and Weinberger 2017, *On Calibration of Modern Neural
        Networks*, https://arxiv.org/abs/1706.04599.
    """
    return jax.nn.softmax(_logit(jnp.asarray(activation), kind) / temperature, axis=-1)


def _logit(
    activation: Float[Array, "*batch n"], kind: ActivationKind
) -> Float[Array, "*batch n"]:
    if kind != "probability":
        return activation
    # The logarithm of a probability that was rounded to zero is not finite.
    return jnp.log(jnp.maximum(activation, jnp.finfo(activation.dtype).tiny))


@functools.partial(jax.jit, static_argnames="kind")
def fit_temperature(
    activation: Float[ArrayLike, "m n"],
    label: Int[ArrayLike, " m"],
    kind: ActivationKind,
) -> Float[Array, ""]:
    r"""Fits the temperature with the highest mean log probability of the labels.

    The mean of ``-ln p_label`` is convex in ``1 / T``. Its slope, the mean of
    ``sum_n p_n z_n - z_label``, is zero at the best temperature, which is found by
    halving an interval.

    Args:
        activation: Activations of the classes, of validation images.
        label: The class of each image.
        kind: Kind of the activations.

    Returns:
        The temperature, from 0.0001 to 10,000: the lowest if all labels have the
        highest activation by far, the highest if the activations tell nothing.

    Examples:
        Three of four labels have the larger logit: a probability of 3/4 each, which the
        logits 1 and 0 give at ``T = 1 / ln 3``.

        >>> import jax.numpy as jnp
        >>> from capsjax.diagnostics import fit_temperature
        >>> logit = jnp.array([[1.0, 0.0]] * 4)
        >>> print(f"{fit_temperature(logit, jnp.array([0, 0, 0, 1]), 'logit'):.3f}")
        0.910

    References:
        Guo, Pleiss, Sun and Weinberger 2017, *On Calibration of Modern Neural
        Networks*, https://arxiv.org/abs/1706.04599.
    """
    z = _logit(jnp.asarray(activation), kind)
    own = jnp.take_along_axis(z, jnp.asarray(label)[:, None], axis=-1)[:, 0]

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        p = jax.nn.softmax(z / jnp.exp(middle), axis=-1)
        too_cold = jnp.mean(jnp.sum(p * z, axis=-1) - own) > 0
        return jnp.where(too_cold, middle, low), jnp.where(too_cold, high, middle)

    ends = jnp.log(jnp.array([_COLDEST, _HOTTEST], z.dtype))
    low, high = jax.lax.fori_loop(0, _NUM_HALVINGS, halve, (ends[0], ends[1]))
    return jnp.exp((low + high) / 2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reliability:
    r"""Confidences and accuracies of predictions, by confidence; ``+`` joins two.

    An example's confidence is the probability of its most probable class. The bin ``b``
    of ``B`` holds confidences above ``b / B`` and up to ``(b + 1) / B``.

    Attributes:
        confidence: Confidences of the examples in each bin.
        right: 1 where the most probable class is the label, else 0.

    Examples:
        >>> import jax.numpy as jnp
        >>> from capsjax.diagnostics import Reliability
        >>> probability = jnp.array([[0.9, 0.1]] * 4)
        >>> seen = Reliability.of(probability, jnp.array([0, 0, 1, 1]))
        >>> print(f"{seen.expected_error:.2f}")  # Sure by 0.9, right by half.
        0.40

    References:
        Guo, Pleiss, Sun and Weinberger 2017, section 2,
        https://arxiv.org/abs/1706.04599.
    """

    confidence: Statistics
    right: Statistics

    @classmethod
    def of(
        cls,
        probability: Float[ArrayLike, "m n"],
        label: Int[ArrayLike, " m"],
        *,
        num_bins: int = 15,
    ) -> "Reliability":
        """Sorts the predictions of one batch into bins.

        Args:
            probability: Probability of each class.
            label: The class of each example.
            num_bins: Number of equally wide bins, at least 1.
        """
        return _reliability(probability, label, num_bins=num_bins)

    def __add__(self, other: "Reliability") -> "Reliability":
        return Reliability(self.confidence + other.confidence, self.right + other.right)

    @property
    def expected_error(self) -> Float[Array, ""]:
        """Expected calibration error: the mean distance of confidence and accuracy.

        Bins are weighted by their number of examples; NaN without examples.
        """
        weight = self.right.weight
        distance = jnp.abs(self.right.mean - self.confidence.mean)
        return jnp.sum(weight * distance) / weight.sum()


# An eager call would compile every operation.
@functools.partial(jax.jit, static_argnames="num_bins")
def _reliability(
    probability: Float[Array, "m n"], label: Int[Array, " m"], *, num_bins: int
) -> Reliability:
    confidence = probability.max(-1)
    is_right = (probability.argmax(-1) == label).astype(probability.dtype)
    index = jnp.clip(jnp.ceil(confidence * num_bins) - 1, 0, num_bins - 1)
    is_here = index[:, None] == jnp.arange(num_bins, dtype=index.dtype)[None]
    by_bin = [
        Statistics.of(jnp.broadcast_to(values[:, None], is_here.shape), is_here)
        for values in (confidence, is_right)
    ]
    return Reliability(*by_bin)
