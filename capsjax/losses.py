"""Losses of capsule networks: one value per example, in float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Shaped

from capsjax.ops import require_unit_scale


def margin_loss(
    length: Float[ArrayLike, "*batch n"],
    label: Shaped[ArrayLike, "..."],
    *,
    present: float = 0.9,
    absent: float = 0.1,
    down_weight: float = 0.5,
) -> Float[Array, "*batch"]:
    r"""Asks for a long capsule of each class that is there, short ones of the others.

    .. math::
        L = \sum_n T_n \max(0, m^+ - |v_n|)^2
            + \lambda (1 - T_n) \max(0, |v_n| - m^-)^2

    Args:
        length: Lengths of the class capsules, from 0 to 1.
        label: The class of each example, an integer; or, where several may be in one
            image, a multi-hot row ``[*batch, n]`` of zeros and ones (or booleans).
        present: ``m+``, the length above which a present class costs nothing.
        absent: ``m-``, the length below which an absent class costs nothing.
        down_weight: ``lambda``, the weight of absent classes. It keeps the first steps
            from shrinking all capsules.

    Returns:
        The loss of each example, summed over classes (not averaged, as some do).

    Raises:
        ValueError: If the label is neither one integer nor one row per example.
        TypeError: If the lengths are not floating-point numbers.

    References:
        Sabour, Frosst and Hinton 2017, Eq. 4, https://arxiv.org/abs/1710.09829.
    """
    require_unit_scale("length", length)
    length = jnp.asarray(length)
    is_present = _multi_hot(jnp.asarray(label), length.shape)
    length = length.astype(jnp.promote_types(length.dtype, jnp.float32))
    too_short = jnp.maximum(0, present - length) ** 2
    too_long = jnp.maximum(0, length - absent) ** 2
    loss = is_present * too_short + down_weight * (1 - is_present) * too_long
    return jnp.sum(loss, axis=-1)


def reconstruction_loss(
    reconstruction: Float[Array, "..."],
    image: Float[Array, "..."],
    *,
    reduction: str = "sum",
) -> Float[Array, "*batch"]:
    """Squared error of a reconstruction, summed over pixels as in the paper.

    Args:
        reconstruction: What the decoder drew, ``[*batch, h, w, c]`` from 0 to 1.
        image: What it should have drawn, of the same shape.
        reduction: ``"sum"`` over pixels and channels; ``"mean"`` as the notebook does
            (784 times smaller for a digit).

    Returns:
        The error of each example.

    Raises:
        ValueError: If ``reduction`` is neither, or the shapes differ.
        TypeError: If either is not floating-point numbers, but bytes, say.

    References:
        Sabour, Frosst and Hinton 2017, section 4.1, https://arxiv.org/abs/1710.09829.
    """
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}.")
    if reconstruction.shape != image.shape:
        raise ValueError(
            f"reconstruction and image must have one shape, got {reconstruction.shape} "
            f"and {image.shape}."
        )
    require_unit_scale("reconstruction", reconstruction)
    require_unit_scale("image", image)
    wide = jnp.promote_types(reconstruction.dtype, jnp.float32)
    error = (reconstruction.astype(wide) - image.astype(wide)) ** 2
    return getattr(jnp, reduction)(error, axis=(-3, -2, -1))


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
