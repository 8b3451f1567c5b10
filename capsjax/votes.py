"""Votes: the lower capsules' predictions of the capsules above, and windows of a grid.

Letters: ``i`` input capsules with ``c`` components, ``j`` output capsules with ``d``;
``h w`` a grid, ``H W`` the windows that slide over it, ``k`` the positions in a window.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Shaped

Padding = Literal["VALID", "SAME"]


def cast_votes(
    capsules: Float[Array, "*batch i c"], weight: Float[Array, "*i j d c"]
) -> Float[Array, "*batch i j d"]:
    """Returns each lower capsule's prediction of each upper: ``u_hat_j|i = W_ij u_i``.

    Args:
        capsules: The lower capsules.
        weight: ``W_ij`` for each pair, or ``W_j``, shared by all lower capsules.

    References:
        Sabour, Frosst and Hinton 2017, Eq. 2.
    """
    wide = jnp.promote_types(capsules.dtype, jnp.float32)
    # The other order of operands takes three times as long on a CPU for one example.
    inputs = "i" if weight.ndim == 4 else ""
    return jnp.einsum(
        f"...ic,{inputs}jdc->...ijd", capsules, weight, preferred_element_type=wide
    )


def pose_side(dim: int) -> int:
    """Returns the side of the square matrix that a pose of ``dim`` components is.

    Raises:
        ValueError: If ``dim`` is no square.
    """
    side = math.isqrt(dim)
    if side**2 != dim:
        raise ValueError(
            f"dim must be a square for pose='matrix', such as 16 for 4x4, got {dim}."
        )
    return side


def pose_weight(matrix: Float[Array, "*any n n"]) -> Float[Array, "*any d c"]:
    """Returns the weight that multiplies pose matrices: ``V = M W`` for ``u`` of ``M``.

    A capsule of ``n^2`` components holds the matrix ``M`` row by row.

    References:
        Hinton, Sabour and Frosst 2018, section 2.
    """
    *any_, n, _ = matrix.shape
    weight = jnp.einsum("...xy,rs->...rysx", matrix, jnp.eye(n, dtype=matrix.dtype))
    return weight.reshape(*any_, n * n, n * n)


# ---- windows


def num_windows(size: int, kernel_size: int, stride: int, padding: Padding) -> int:
    """Returns the number of windows along a side of a grid."""
    if padding == "SAME":
        return -(-size // stride)
    return (size - kernel_size) // stride + 1


def pad_grid(
    grid: Shaped[Array, "..."], kernel_size: int, stride: int, *, behind: int
) -> Shaped[Array, "..."]:
    """Adds zeros around a grid, so that windows with ``padding="SAME"`` fit.

    Args:
        grid: ``[*batch, h, w, *rest]``.
        kernel_size: Side of a window.
        stride: Step between windows.
        behind: Number of axes behind the grid's, in ``rest``.
    """
    widths = [(0, 0)] * grid.ndim
    for axis in (grid.ndim - behind - 2, grid.ndim - behind - 1):
        size = grid.shape[axis]
        count = num_windows(size, kernel_size, stride, "SAME")
        missing = max((count - 1) * stride + kernel_size - size, 0)
        widths[axis] = (missing // 2, missing - missing // 2)
    return jnp.pad(grid, widths)


def gather_windows(
    grid: Shaped[Array, "..."], kernel_size: int, stride: int, *, behind: int
) -> Shaped[Array, "..."]:
    """Returns the windows of a grid, a row of positions each: ``[*batch, H, W, k, _]``.

    Position ``k = row * kernel_size + column`` of a window.

    Args:
        grid: ``[*batch, h, w, *rest]``.
        kernel_size: Side of a window.
        stride: Step between windows.
        behind: Number of axes behind the grid's, in ``rest``.
    """
    axes = grid.ndim - behind - 2, grid.ndim - behind - 1

    def every(x, axis, start):
        count = num_windows(grid.shape[axis], kernel_size, stride, "VALID")
        end = start + (count - 1) * stride + 1
        return lax.slice_in_dim(x, start, end, stride, axis)

    rows = [every(grid, axes[0], row) for row in range(kernel_size)]
    positions = [every(x, axes[1], n) for x in rows for n in range(kernel_size)]
    return jnp.stack(positions, axes[1] + 1)


def fold_windows(
    windows: Shaped[Array, "..."],
    kernel_size: int,
    stride: int,
    combine: Callable[[Array, Array], Array],
    initial: float,
    *,
    behind: int,
) -> Shaped[Array, "..."]:
    """Combines what all windows have of each position: ``[*batch, h, w, *rest]``.

    With a sum, this is the transpose of :func:`gather_windows`.

    Args:
        windows: ``[*batch, H, W, k, *rest]``.
        kernel_size: Side of a window.
        stride: Step between windows.
        combine: Combines two arrays, such as ``jnp.maximum``.
        initial: The value that changes nothing, at positions without windows.
        behind: Number of axes behind the positions, in ``rest``.
    """
    axis = windows.ndim - behind - 1
    value = jnp.asarray(initial, windows.dtype)

    def place(n):
        one = lax.index_in_dim(windows, n, axis, keepdims=False)
        config = [(0, 0, 0)] * one.ndim
        for own, start in zip(
            (axis - 2, axis - 1), divmod(n, kernel_size), strict=True
        ):
            config[own] = (start, kernel_size - 1 - start, stride - 1)
        return lax.pad(one, value, config)

    return functools.reduce(combine, map(place, range(kernel_size**2)))
