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


# ---- transposed windows


def cast_upsampled(
    grid: Float[Array, "*batch h w t c"],
    weight: Float[Array, "k t_or_1 j d c"],
    stride: int,
) -> Float[Array, "*batch H W t j d"]:
    r"""Returns votes on a grid ``stride`` times as large: a transposed convolution.

    .. math::
        V_{o,tj} = \sum_{i, k:\; o = s\,i + k - l} W_{ktj} u_{it}

    for each axis of the grid, ``s`` the stride, ``k`` from 0 below the window's side
    ``K``, and ``l = \lfloor (K - s) / 2 \rfloor``: the transpose of a convolution with
    ``SAME`` padding.

    Args:
        grid: The lower capsules.
        weight: A matrix for each position ``k = row * K + column`` of a window, and
            for each type or for all.
        stride: Factor between the sides of the two grids, at most ``K``.
    """
    *batch, h, w, t, _ = grid.shape
    k, own, j, d, c = weight.shape
    side = math.isqrt(k)
    taps = -(-side // stride)
    # Row k = u stride + r of a window takes input m - u to output m stride + r: windows
    # of the inputs, and a product with the weights of the stride's remainders r.
    missing = taps * stride - side
    weight = weight.reshape(side, side, own, j, d, c)
    weight = jnp.pad(weight, [(0, missing)] * 2 + [(0, 0)] * 4)
    weight = weight.reshape(taps, stride, taps, stride, own, j, d, c)[::-1, :, ::-1]
    weight = weight.transpose(0, 2, 1, 3, 4, 5, 6, 7)
    weight = weight.reshape(taps**2, *weight.shape[2:])
    around = [(0, 0)] * len(batch) + [(taps - 1, taps - 1)] * 2 + [(0, 0)] * 2
    windows = gather_windows(jnp.pad(grid, around), taps, 1, behind=2)
    types = "t"
    if own == 1:
        weight, types = weight[:, :, :, 0], ""
    votes = jnp.einsum(
        f"...mnktc,kpq{types}jdc->...mpnqtjd",
        *(windows, weight),
        preferred_element_type=jnp.promote_types(grid.dtype, jnp.float32),
    )
    rows, columns = (stride * (size + taps - 1) for size in (h, w))
    votes = votes.reshape(*batch, rows, columns, t, j, d)
    first = (side - stride) // 2
    for axis, size in ((len(batch), h), (len(batch) + 1, w)):
        votes = lax.slice_in_dim(votes, first, first + stride * size, axis=axis)
    return votes
