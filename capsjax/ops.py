"""Operations on poses: the safe norm, the squash, and the tweak that explains a pose.

A capsule's *pose* is a vector; its *length* is the probability that the capsule's
entity is present. Norm and squash are exact for lengths from 1e-16 to 1e18; their
gradient at the origin is zero, never NaN.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Shaped


@jax.custom_jvp
def _norm(x: Float[Array, "*batch d"]) -> Float[Array, "*batch 1"]:
    """Returns the norm over the last axis; ``custom_jvp`` takes no keywords."""
    # Squares of the vector itself would underflow below 1e-19 and overflow above 1e19.
    # A power of two scales without rounding; one whose reciprocal is subnormal would
    # flush to zero.
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True, initial=0)
    exponent = jnp.minimum(jnp.frexp(largest)[1] - 1, jnp.finfo(x.dtype).maxexp - 2)
    scale = jnp.ldexp(jnp.ones_like(largest), exponent)
    return scale * jnp.sqrt(jnp.sum((x / scale) ** 2, axis=-1, keepdims=True))


@_norm.defjvp
def _norm_jvp(primals, tangents):
    (x,), (x_dot,) = primals, tangents
    norm = _norm(x)
    # At the origin the slope is undefined; x / 1 defines it as zero.
    direction = x / jnp.where(norm > 0, norm, 1)
    return norm, jnp.sum(direction * x_dot, axis=-1, keepdims=True)


def _at_least_float32(
    x: Shaped[ArrayLike, "..."], name: str, axis: int = -1
) -> tuple[Array, jnp.dtype]:
    """Returns the array in float32 or float64, and the type of the result."""
    x = jnp.asarray(x)
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(
            f"{name} must have vectors along axis {axis}, got shape {x.shape}."
        )
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise ValueError(f"{name} must be real, got an array of type {x.dtype}.")
    wide = jnp.promote_types(x.dtype, jnp.float32)
    narrow = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else wide
    return x.astype(wide), narrow


def safe_norm(
    x: Shaped[ArrayLike, "..."], *, axis: int = -1, keepdims: bool = False
) -> Float[Array, "..."]:
    r"""Returns the Euclidean norm ``|x|``, with a zero gradient at the zero vector.

    It is computed as ``m * sqrt(sum((x / m)^2))`` with ``m`` the power of two below
    ``max |x_k|``. This is exact to float32 rounding for lengths from 1e-16 to 1e18,
    without the usual epsilon, which is 29 % off at length 1e-4. The gradient is
    ``x / |x|``.

    Args:
        x: Vectors along ``axis``. Types narrower than float32 are computed in float32.
        axis: The axis of the vectors' components.
        keepdims: Whether the result keeps that axis, with size one.

    Returns:
        Lengths of at least zero, in the type of ``x`` (float32 for integers).

    Raises:
        ValueError: If ``x`` has no such axis, or complex numbers.

    Examples:
        >>> import jax.numpy as jnp
        >>> from capsjax import safe_norm
        >>> print(safe_norm(jnp.array([[3.0, 4.0], [0.0, 0.0]])))
        [5. 0.]

    References:
        Sabour, Frosst and Hinton 2017, section 2, https://arxiv.org/abs/1710.09829, for
        the length as a probability.
    """
    x, dtype = _at_least_float32(x, "x", axis)
    norm = jnp.moveaxis(_norm(jnp.moveaxis(x, axis, -1)), -1, axis)
    return (norm if keepdims else jnp.squeeze(norm, axis)).astype(dtype)


def squash(s: Shaped[ArrayLike, "..."], *, axis: int = -1) -> Float[Array, "..."]:
    r"""Shrinks lengths below one, and keeps directions.

    .. math::
        v = \frac{|s|^2}{1 + |s|^2} \frac{s}{|s|}

    Short vectors shrink to almost nothing, long ones to just under one. It is computed
    as ``s * q / (1 + q^2)`` with ``q = min(|s|, 1 / |s|)``, so that nothing is divided
    by zero and no square overflows. The gradient at the zero vector is zero.

    Args:
        s: Vectors along ``axis``. Types narrower than float32 are computed in float32.
        axis: The axis of the vectors' components.

    Returns:
        Vectors with the same shape and type; their length is at most 1 + 2 ulp.

    Raises:
        ValueError: If ``s`` has no such axis, or complex numbers.

    Examples:
        >>> import jax.numpy as jnp
        >>> from capsjax import safe_norm, squash
        >>> print(f"{safe_norm(squash(jnp.array([3.0, 4.0]))):.4f}")  # 25 / 26
        0.9615

    References:
        Sabour, Frosst and Hinton 2017, Eq. 1, https://arxiv.org/abs/1710.09829.
    """
    s, dtype = _at_least_float32(s, "s", axis)
    return _squash(s, axis).astype(dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _squash(s: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    return s * _scale(safe_norm(s, axis=axis, keepdims=True))


def _scale(norm: Float[Array, "..."]) -> Float[Array, "..."]:
    q = _at_most_one(norm)
    return q / (1 + q * q)


def _at_most_one(norm: Float[Array, "..."]) -> Float[Array, "..."]:
    # Both branches of a where are differentiated: neither may be infinite.
    is_short = norm <= 1
    return jnp.where(is_short, norm, 1 / jnp.where(is_short, 1, norm))


@_squash.defjvp
def _squash_jvp(axis, primals, tangents):
    """Computes the gradient in half as many operations as automatic differentiation.

    Every operation counts: XLA:CPU computes the gradient of ``s`` again for each vote.
    """
    (s,), (s_dot,) = primals, tangents
    norm = safe_norm(s, axis=axis, keepdims=True)
    q, scale = _at_most_one(norm), _scale(norm)
    # The scale's own slope adds to the tangent along the vector.
    slope = jnp.where(norm <= 1, scale, -scale) * (1 - q * q) / (1 + q * q)
    direction = s / jnp.where(norm > 0, norm, 1)
    along = slope * jnp.sum(direction * s_dot, axis=axis, keepdims=True)
    return _squash(s, axis), scale * s_dot + along * direction


def exponential_squash(
    s: Shaped[ArrayLike, "..."], *, axis: int = -1
) -> Float[Array, "..."]:
    r"""Shrinks lengths below one: ``v = (1 - exp(-|s|)) * s / |s|``.

    Short vectors keep their length and long ones become just under one; the direction
    stays. It is exact at every length, with gradients too: those at the zero vector are
    the identity, and those of long vectors shrink like ``1 / |s|``.

    Args:
        s: Vectors along ``axis``. Types narrower than float32 are computed in float32.
        axis: The axis of the vectors' components.

    Returns:
        Vectors with the same shape and type; their length is at most 1 + 2 ulp.

    Raises:
        ValueError: If ``s`` has no such axis, or complex numbers.

    References:
        Mazzia, Salvetti and Chiaberge 2021, https://arxiv.org/abs/2101.12491.
    """
    s, dtype = _at_least_float32(s, "s", axis)
    return _exponential_squash(s, axis).astype(dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _exponential_squash(s: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    return s * _exponential_scale(safe_norm(s, axis=axis, keepdims=True))


def _exponential_scale(norm: Float[Array, "..."]) -> Float[Array, "..."]:
    is_zero = norm == 0
    return jnp.where(is_zero, 1, -jnp.expm1(-norm) / jnp.where(is_zero, 1, norm))


@_exponential_squash.defjvp
def _exponential_squash_jvp(axis, primals, tangents):
    """Computes the gradient without ``1 / |s|^2``, which would overflow."""
    (s,), (s_dot,) = primals, tangents
    norm = safe_norm(s, axis=axis, keepdims=True)
    scale = _exponential_scale(norm)
    direction = s / jnp.where(norm > 0, norm, 1)
    along = jnp.sum(direction * s_dot, axis=axis, keepdims=True)
    slope = jnp.exp(-norm) - scale
    return _exponential_squash(s, axis), scale * s_dot + slope * along * direction


def require_axes(name: str, x: Shaped[ArrayLike, "..."], axes: str) -> None:
    """Refuses an array that lacks axes.

    Args:
        name: Name of the array in the message.
        x: The array, which may have batch axes, too.
        axes: Letters of its last axes.

    Raises:
        ValueError: If it has fewer axes.
    """
    if jnp.ndim(x) < len(axes):
        raise ValueError(
            f"{name} must have the axes [*batch, {', '.join(axes)}], got shape "
            f"{jnp.shape(x)}."
        )


def require_unit_scale(
    name: str, x: Shaped[ArrayLike, "..."], *, scaled: bool = True
) -> None:
    """Refuses bytes if numbers from 0 to 1 are expected, or the other way round.

    Args:
        name: Name of the array in the message.
        x: Pixels, or lengths.
        scaled: Whether floating-point numbers from 0 to 1 are expected, or bytes.

    Raises:
        TypeError: If the array has another type.
    """
    dtype = jnp.result_type(x)
    if scaled and not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{name} is {dtype}, and must be floating-point numbers from 0 to 1: "
            "capsjax.data.augment.scale_to_unit makes them of uint8."
        )
    if not scaled and dtype != jnp.uint8:
        raise TypeError(f"{name} is {dtype}, and must be uint8: is it scaled already?")


def flatten_capsules(
    capsules: Shaped[ArrayLike, "*batch h w t c"],
    activation: Shaped[ArrayLike, "*batch h w t"] | None = None,
) -> tuple[Shaped[Array, "*batch i c"], Shaped[Array, "*batch i"] | None]:
    """Makes a list of a map of capsules: ``i = (h w t)``.

    ``dense_caps(*flatten_capsules(pose, activation))`` routes a map.

    Args:
        capsules: The map.
        activation: Activations of its capsules, if there are any.

    Returns:
        Capsules and activations, or None for these.

    Raises:
        ValueError: If an axis is missing.

    Examples:
        >>> import jax.numpy as jnp
        >>> from capsjax import flatten_capsules
        >>> capsules, _ = flatten_capsules(jnp.ones((2, 6, 6, 32, 8)))
        >>> capsules.shape
        (2, 1152, 8)
    """
    require_axes("capsules", capsules, "hwtc")
    capsules = jnp.asarray(capsules)
    *batch, h, w, t, c = capsules.shape
    if activation is not None:
        activation = jnp.asarray(activation).reshape(*batch, h * w * t)
    return capsules.reshape(*batch, h * w * t, c), activation


def tweak_pose(
    pose: Shaped[ArrayLike, "..."],
    *,
    low: float = -0.25,
    high: float = 0.25,
    num_steps: int = 11,
) -> Float[Array, "*batch d step d"]:
    """Moves a pose along each of its dimensions, one at a time.

    Decoded, the results show the meaning of each dimension: width, slant, a loop.

    Args:
        pose: Poses, ``[*batch, d]``.
        low: Added to a component at the first step.
        high: Added at the last step; the steps between are evenly spaced. The paper
            goes from -0.25 to 0.25 by 0.05.
        num_steps: Number of steps, at least 1.

    Returns:
        ``result[..., k, n, :]`` is the pose with the ``n``-th step added to its
        component ``k``.

    Raises:
        ValueError: If ``num_steps`` is less than 1, or a pose has no axis.

    Examples:
        >>> import jax.numpy as jnp
        >>> from capsjax import tweak_pose
        >>> tweak_pose(jnp.zeros(16)).shape  # 16 components, 11 steps
        (16, 11, 16)

    References:
        Sabour, Frosst and Hinton 2017, section 5.1 and figure 4,
        https://arxiv.org/abs/1710.09829.
    """
    pose, dtype = _at_least_float32(pose, "pose")
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
    steps = jnp.linspace(low, high, num_steps, dtype=pose.dtype)
    directions = jnp.eye(pose.shape[-1], dtype=pose.dtype)
    moves = directions[:, None, :] * steps[None, :, None]
    moves = jnp.broadcast_to(moves, (*pose.shape[:-1], *moves.shape))
    return (pose[..., None, None, :] + moves).astype(dtype)


def mask_longest(
    activation: Float[Array, "*batch n"], count: int | Int[Array, "*batch"] = 1
) -> Float[Array, "*batch n"]:
    """Returns one at the ``count`` most active capsules, zero elsewhere.

    This is the mask at inference. The first of equally active capsules wins.
    """
    require_axes("activation", activation, "n")
    # The mask has no gradient, and JAX's gradient of a sort fails under explicit
    # sharding.
    activation = jax.lax.stop_gradient(activation)
    rank = jnp.argsort(jnp.argsort(-activation, axis=-1), axis=-1)
    count = jnp.broadcast_to(jnp.asarray(count), activation.shape[:-1])
    return (rank < count[..., None]).astype(jnp.float32)


def split_mask(
    mask: Float[Array, "*batch n"], count: int
) -> Float[Array, "*batch s n"]:
    """Splits a mask of ``count`` capsules into a mask for each, in order."""
    _, index = jax.lax.top_k(mask, count)  # Equal values keep their order.
    return jax.nn.one_hot(index, mask.shape[-1], dtype=jnp.float32)
