"""A 2-D convolution that is fast where XLA's own is not: when it trains on a CPU.

XLA:CPU computes the gradient of a strided convolution about thirty times slower than
the convolution itself (``benchmarks/convolution.py``). Here the arithmetic is written
as matrix products, which every processor does well, and as fewer of them. Other
platforms get the ordinary convolution.

**Phases.** A convolution of stride ``s`` is one of stride 1 over an image whose
``s x s`` blocks of pixels have become channels, with the kernel cut up likewise.

**Evaluation and interpolation.** The 1-D convolution of ``k`` taps that has ``m``
outputs reads ``n = m + k - 1`` pixels. Its transpose multiplies a polynomial of ``k``
coefficients by one of ``m``, and such a product is fixed by its values at ``n`` points:
evaluate both, multiply point by point, interpolate. Transposing back gives
``y = C^T [(A x) * (B w)]``: ``B`` and ``C`` evaluate (a row holds the powers of a
point) and ``A`` is interpolation, transposed. In two dimensions they are Kronecker
products. Channels are summed at every point, so ``*`` is one matrix product a point.
A large output is cut into tiles of ``m x m``.

**Points.** The roots of unity make ``A`` a discrete Fourier transform, which loses no
accuracy. As all is real, one point of each conjugate pair is enough. A complex product
takes four real ones, or three by Gauss's trick, whose sums fold into the constant
matrices. Points that are mostly real (Toom and Cook's 0, infinity, 1, -1, ...) need
fewer products but amplify rounding up to four times: good enough for float32, too much
for bfloat16.

**Backward.** The form is bilinear, so the gradients take the same matrices transposed:
``dx = A^T [(C dy) * (B w)]`` and ``dw = B^T [(A x) * (C dy)]``.

PrimaryCaps (9 x 9, stride 2, 256 to 256 channels, 20 x 20 to 6 x 6) becomes 4 phases of
5 x 5 taps over 10 x 10 pixels, 1024 channels, one tile, 100 points. Of the 900 products
for a tile and a pair of channels (36 outputs of 25 taps; 729 without the zeros that
fill the phases), 148 are left with the Fourier points and 118 with the Toom points.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_COMPUTE_DTYPES = (np.dtype(np.float32), np.dtype(jnp.bfloat16))
_INPUT_DTYPES = (*_COMPUTE_DTYPES, np.dtype(np.float64))


class Plan(NamedTuple):
    """How one convolution is computed; known when it is traced.

    Attributes:
        form: ``"tiles"`` (see above), ``"patches"`` (every window becomes a row of one
            matrix) or ``"ordinary"`` (left to XLA); the first two are for a CPU.
        strides: Step of the window along each axis.
        padding: Pixels added (or removed, if negative) before and after each axis.
        operand_dtype: Type of what the matrix products multiply.
        tile: Outputs of one tile along each axis.
        points: ``"fourier"`` or ``"toom"``.
    """

    form: Literal["tiles", "patches", "ordinary"]
    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    operand_dtype: np.dtype
    tile: tuple[int, int] = (1, 1)
    points: Literal["fourier", "toom"] = "fourier"
    precision: Any = None

    @property
    def sum_dtype(self) -> np.dtype:
        """Type of everything that is not multiplied: float32, or float64."""
        return np.promote_types(self.operand_dtype, np.float32)


# ---- constant matrices


# Found by trying sets of this kind: few products and a rounding error, relative to the
# Fourier points', of at most 2 up to eight points, 3 for nine and 4 for ten.
_TOOM_POINTS = {
    3: (0, math.inf, 1),
    4: (0, math.inf, 1, -1),
    5: (0, math.inf, 1, -1, 2),
    6: (0, math.inf, 1, -1, 2, -0.5),
    7: (0, math.inf, 1, -1, 2, 1j),
    8: (0, math.inf, 1, -1, 2, -0.5, 1j),
    9: (0, math.inf, 1, -1, 1.9, -0.53, 0.53, 1j),
    10: (0, math.inf, 1, -1, 1.9, -0.53, 0.53, -1.9, 1j),
}


def _evaluation_points(count: int, kind: str) -> tuple:
    """Chooses points, of which each conjugate pair is listed once."""
    if kind == "toom" and count in _TOOM_POINTS:
        return _TOOM_POINTS[count]
    roots = (np.exp(2j * np.pi * k / count) for k in range(1, (count + 1) // 2))
    return (1.0, *[-1.0] * (count % 2 == 0), *roots)


def _axis_matrices(outputs: int, taps: int, kind: str):
    """A, B, C along one axis (complex), and the index of every point's conjugate."""
    size = outputs + taps - 1
    points, conjugate = [], []
    for point in _evaluation_points(size, kind):
        here = len(points)
        is_pair = np.imag(point) != 0
        points += [point, np.conj(point)] if is_pair else [point]
        conjugate += [here + 1, here] if is_pair else [here]

    def powers(degree):
        at_infinity = np.eye(degree)[-1]
        rows = [
            at_infinity if p == math.inf else np.power(p, np.arange(degree))
            for p in points
        ]
        return np.array(rows, np.complex128)

    b, c = powers(taps), powers(outputs)
    b_norm, c_norm = (np.linalg.norm(v, axis=1, keepdims=True) for v in (b, c))
    a = np.linalg.inv(powers(size)).T * b_norm * c_norm
    return (a, b / b_norm, c / c_norm), conjugate


@functools.cache
def _bilinear_matrices(outputs, taps, kind: str):
    """A, B and C of a tile: real, flat, one product a row.

    Of a complex product ``a b`` only ``Re(c a b)`` is wanted, twice: for the conjugate.
    Gauss computes it by three real products, whose sums are done here, once.
    """
    (first, u_conjugate), (second, v_conjugate) = (
        _axis_matrices(m, k, kind) for m, k in zip(outputs, taps, strict=True)
    )
    rows = []
    for u, v in np.ndindex(len(u_conjugate), len(v_conjugate)):
        conjugate = (u_conjugate[u], v_conjugate[v])
        a, b, c = (np.kron(x[u], y[v]) for x, y in zip(first, second, strict=True))
        if conjugate == (u, v):
            rows.append((a.real, b.real, c.real))
        elif conjugate > (u, v):
            real, imag = 2 * c.real, -2 * c.imag
            rows.append((a.real + a.imag, b.real, real + imag))
            rows.append((a.real, b.imag - b.real, imag))
            rows.append((a.imag, b.real + b.imag, -real))
    return tuple(np.array(matrix) for matrix in zip(*rows, strict=True))


# ---- tiles


def _matmul(a, b, contract=(-1, -2)):
    """Batched matrix product; in bfloat16 only a float32 result is fast."""
    axes = ((a.ndim + contract[0],), (b.ndim + contract[1],))
    batch = tuple(range(a.ndim - 2))
    result = jnp.promote_types(a.dtype, jnp.float32)
    return lax.dot_general(a, b, (axes, (batch, batch)), preferred_element_type=result)


def _constant_matmul(matrix: np.ndarray, x):
    """Applies a constant matrix to the leading axis."""
    flat = _matmul(jnp.asarray(matrix, x.dtype), x.reshape(x.shape[0], -1))
    return flat.reshape(-1, *x.shape[1:])


def _pad(image, padding):
    """Adds zeros around the image, or removes pixels where the number is negative."""
    edges = [(low, high, 0) for low, high in padding]
    return lax.pad(image, jnp.zeros((), image.dtype), [(0, 0, 0), *edges, (0, 0, 0)])


class _Tiling(NamedTuple):
    """Sizes along each axis: outputs, tiles, outputs and pixels of a tile, taps."""

    outputs: tuple[int, int]
    tiles: tuple[int, int]
    tile: tuple[int, int]
    pixels: tuple[int, int]
    taps: tuple[int, int]


def _ceil_div(sizes, parts) -> tuple[int, int]:
    return -(-sizes[0] // parts[0]), -(-sizes[1] // parts[1])


def _output_size(image_shape, kernel_shape, plan: Plan) -> tuple[int, int]:
    height, width = (
        (size + sum(padding) - window) // stride + 1
        for size, window, stride, padding in zip(
            image_shape[1:3], kernel_shape[:2], plan.strides, plan.padding, strict=True
        )
    )
    return height, width


def _tiling(image_shape, kernel_shape, plan: Plan) -> _Tiling:
    outputs = _output_size(image_shape, kernel_shape, plan)
    taps = _ceil_div(kernel_shape, plan.strides)
    pixels = (plan.tile[0] + taps[0] - 1, plan.tile[1] + taps[1] - 1)
    return _Tiling(outputs, _ceil_div(outputs, plan.tile), plan.tile, pixels, taps)


def _image_phases(image, sizes, plan: Plan):
    """Pads or crops to ``sizes`` blocks, splits the axes: ``[n, h, s, w, s, c]``."""
    (h, w), (sh, sw) = sizes, plan.strides
    needed = (h * sh, w * sw)
    starts = [low for low, _ in plan.padding]
    ends = [n - s - p for n, s, p in zip(needed, image.shape[1:3], starts, strict=True)]
    image = _pad(image, list(zip(starts, ends, strict=True)))
    return image.reshape(image.shape[0], h, sh, w, sw, image.shape[3])


def _kernel_phases(kernel, plan: Plan):
    """Splits the window axes into taps and phases: ``[tap, s * s * c, d]``."""
    (sh, sw), (kh, kw, c, d) = plan.strides, kernel.shape
    kernel = jnp.pad(kernel, ((0, -kh % sh), (0, -kw % sw), (0, 0), (0, 0)))
    kernel = kernel.reshape(-(-kh // sh), sh, -(-kw // sw), sw, c, d)
    return kernel.transpose(0, 2, 1, 3, 4, 5).reshape(-1, sh * sw * c, d)


def _cut_tiles(image, tiling: _Tiling, plan: Plan):
    """Puts the pixels of a tile first: ``[pixel, n * tile, s * s * c]``."""
    (th, tw), (mh, mw), (nh, nw) = tiling.tiles, tiling.tile, tiling.pixels
    sizes = ((th - 1) * mh + nh, (tw - 1) * mw + nw)
    image = _image_phases(image, sizes, plan)
    tiles = [
        image[:, i * mh : i * mh + nh, :, j * mw : j * mw + nw]
        for i, j in np.ndindex(th, tw)
    ]
    tiles = jnp.stack(tiles, axis=1) if len(tiles) > 1 else tiles[0][:, None]
    tiles = tiles.transpose(2, 4, 0, 1, 3, 5, 6)
    channels = math.prod(tiles.shape[4:])
    return tiles.reshape(nh * nw, -1, channels)


def _join_tiles(tiles, tiling: _Tiling):
    """Puts ``[output of a tile, n * tile, d]`` together: ``[n, h, w, d]``."""
    (th, tw), (mh, mw), (h, w) = tiling.tiles, tiling.tile, tiling.outputs
    image = tiles.reshape(mh, mw, -1, th, tw, tiles.shape[-1])
    image = image.transpose(2, 3, 0, 4, 1, 5)
    return image.reshape(-1, th * mh, tw * mw, tiles.shape[-1])[:, :h, :w]


def _split_tiles(image, tiling: _Tiling):
    """Undoes :func:`_join_tiles`, which is also its transpose."""
    (th, tw), (mh, mw), (h, w) = tiling.tiles, tiling.tile, tiling.outputs
    image = jnp.pad(image, ((0, 0), (0, th * mh - h), (0, tw * mw - w), (0, 0)))
    image = image.reshape(-1, th, mh, tw, mw, image.shape[-1])
    image = image.transpose(2, 4, 0, 1, 3, 5)
    return image.reshape(mh * mw, -1, image.shape[-1])


def _transform(matrix, x, plan: Plan):
    # The constants stay exact: rounded to bfloat16 they would bias the result.
    return _constant_matmul(matrix, x).astype(plan.operand_dtype)


def _matrices(tiling: _Tiling, plan: Plan):
    return _bilinear_matrices(tiling.tile, tiling.taps, plan.points)


def _tiles_prepare(kernel, image_shape, plan: Plan):
    _, b, _ = _matrices(_tiling(image_shape, kernel.shape, plan), plan)
    return _transform(b, _kernel_phases(kernel, plan), plan)


def _tiles_apply(image, kernel_values, kernel_shape, plan: Plan):
    tiling = _tiling(image.shape, kernel_shape, plan)
    a, _, c = _matrices(tiling, plan)
    image_values = _transform(a, _cut_tiles(image, tiling, plan), plan)
    products = _matmul(image_values, kernel_values)
    return _join_tiles(_constant_matmul(c.T, products), tiling)


def _tiles_backward(image, kernel, gradient, plan: Plan):
    tiling = _tiling(image.shape, kernel.shape, plan)
    a, b, c = _matrices(tiling, plan)
    tiles, to_image = jax.vjp(lambda x: _cut_tiles(x, tiling, plan), image)
    phases, to_kernel = jax.vjp(lambda w: _kernel_phases(w, plan), kernel)
    image_values = _transform(a, tiles, plan)
    kernel_values = _transform(b, phases, plan)
    values = _transform(c, _split_tiles(gradient, tiling), plan)

    image_gradient = _matmul(values, kernel_values, (-1, -1))
    kernel_gradient = _matmul(values.swapaxes(1, 2), image_values)
    kernel_gradient = _constant_matmul(b.T, kernel_gradient).swapaxes(1, 2)
    return (
        *to_image(_constant_matmul(a.T, image_gradient)),
        *to_kernel(kernel_gradient),
    )


# ---- patches


def _patches(image, kernel_shape, plan: Plan):
    """Makes every window one row: ``[n, h, w, kh * kw * c]``."""
    kh, kw = kernel_shape[:2]
    (h, w), (sh, sw) = _output_size(image.shape, kernel_shape, plan), plan.strides
    image = _pad(image, plan.padding)
    # One axis after the other: kh + kw slices instead of kh * kw.
    rows = [
        lax.slice_in_dim(image, j, j + sw * (w - 1) + 1, sw, axis=2) for j in range(kw)
    ]
    image = jnp.concatenate(rows, axis=-1)
    columns = [
        lax.slice_in_dim(image, i, i + sh * (h - 1) + 1, sh, axis=1) for i in range(kh)
    ]
    return jnp.concatenate(columns, axis=-1)


def _patches_prepare(kernel, image_shape, plan: Plan):
    del image_shape
    return kernel.reshape(-1, kernel.shape[3]).astype(plan.operand_dtype)


def _patches_apply(image, kernel_matrix, kernel_shape, plan: Plan):
    patches = _patches(image, kernel_shape, plan).astype(plan.operand_dtype)
    outputs = _matmul(patches.reshape(-1, patches.shape[-1]), kernel_matrix)
    return outputs.reshape(*patches.shape[:3], -1)


def _patches_backward(image, kernel, gradient, plan: Plan):
    patches, to_image = jax.vjp(lambda x: _patches(x, kernel.shape, plan), image)
    patches = patches.astype(plan.operand_dtype)
    gradient_rows = gradient.reshape(-1, gradient.shape[3]).astype(plan.operand_dtype)
    patch_columns = patches.reshape(-1, patches.shape[-1]).T
    kernel_gradient = _matmul(patch_columns, gradient_rows).reshape(kernel.shape)
    flat = _patches_prepare(kernel, image.shape, plan)
    image_gradient = _matmul(gradient_rows, flat, (-1, -1)).reshape(patches.shape)
    return *to_image(image_gradient), kernel_gradient


# ---- ordinary


def _ordinary_prepare(kernel, image_shape, plan: Plan):
    del image_shape
    return kernel.astype(plan.operand_dtype)


def _ordinary_apply(image, kernel, kernel_shape, plan: Plan, sum_dtype=None):
    del kernel_shape
    return lax.conv_general_dilated(
        image.astype(plan.operand_dtype),
        kernel,
        plan.strides,
        plan.padding,
        dimension_numbers=_LAYOUT,
        precision=plan.precision,
        preferred_element_type=sum_dtype or plan.sum_dtype,
    )


def _ordinary_backward(image, kernel, gradient, plan: Plan):
    # The products' type all through: JAX's own gradient of a convolution of bfloat16
    # into float32 multiplies float32.
    def convolve(image, kernel):
        kernel = _ordinary_prepare(kernel, image.shape, plan)
        return _ordinary_apply(image, kernel, None, plan, plan.operand_dtype)

    _, pullback = jax.vjp(convolve, image, kernel)
    return pullback(gradient.astype(plan.operand_dtype))


# ---- choosing and differentiating


class _Form(NamedTuple):
    """What is done with the kernel alone, with an image and that, and backward."""

    prepare: Callable
    apply: Callable
    backward: Callable


_FORMS = {
    "tiles": _Form(_tiles_prepare, _tiles_apply, _tiles_backward),
    "patches": _Form(_patches_prepare, _patches_apply, _patches_backward),
    "ordinary": _Form(_ordinary_prepare, _ordinary_apply, _ordinary_backward),
}


def _form_forward(image, kernel, plan: Plan):
    form = _FORMS[plan.form]
    values = form.prepare(kernel, image.shape, plan)
    return form.apply(image, values, kernel.shape, plan)


def _form_backward(image, kernel, gradient, plan: Plan):
    return _FORMS[plan.form].backward(image, kernel, gradient, plan)


def _by_platform(function, *operands, plan: Plan):
    ordinary = plan._replace(form="ordinary")
    return lax.platform_dependent(
        *operands,
        cpu=functools.partial(function, plan=plan),
        default=functools.partial(function, plan=ordinary),
    )


@functools.partial(jax.jit, static_argnums=2, inline=True)
def _forward(image, kernel, plan: Plan):
    return _by_platform(_form_forward, image, kernel, plan=plan)


@functools.partial(jax.jit, static_argnums=3, inline=True)
def _backward(image, kernel, gradient, plan: Plan):
    return _by_platform(_form_backward, image, kernel, gradient, plan=plan)


def _keep_operands(image, kernel, plan: Plan):
    # Not the transforms: inside one jit the compiler finds that those of the backward
    # pass are the same, and elsewhere they would fill memory.
    return _forward(image, kernel, plan), (image, kernel)


def _differentiate(plan: Plan, operands, gradient):
    return _backward(*operands, gradient, plan)


_convolve = jax.custom_vjp(_forward, nondiff_argnums=(2,))
_convolve.defvjp(_keep_operands, _differentiate)


def _vary_alike(x, other):
    """Makes ``x`` vary over the mesh axes that ``other`` varies over.

    Inside ``jax.shard_map(check_vma=True)`` JAX then sums the gradient of a kernel that
    all devices share; a ``custom_vjp`` has to arrange that itself. Padding by nothing
    changes nothing, but lets JAX do the cast; elsewhere it compiles to nothing.
    """
    scalar = lax.stop_gradient(other[(0,) * other.ndim])
    return lax.pad(x, scalar, [(0, 0, 0)] * x.ndim)


def _operand_dtype(compute_dtype, x) -> np.dtype:
    if compute_dtype is None:
        return np.dtype(x.dtype)
    if np.dtype(compute_dtype) not in _COMPUTE_DTYPES:
        raise ValueError(
            f"compute_dtype must be float32 or bfloat16, got {compute_dtype!r}."
        )
    return np.dtype(compute_dtype)


def _both_ends(padding) -> tuple[int, int]:
    low, high = (padding, padding) if isinstance(padding, int) else padding
    return operator.index(low), operator.index(high)


def _padding_pairs(padding, image_shape, kernel_shape, strides):
    if isinstance(padding, str):
        sizes = image_shape[1:3], kernel_shape[:2]
        padding = lax.padtype_to_pads(*sizes, strides, padding)
    height, width = (padding, padding) if isinstance(padding, int) else padding
    return _both_ends(height), _both_ends(width)


def _choose_form(batch, kernel_shape, outputs, strides, is_prepared) -> str:
    # Measured by benchmarks/convolution.py. Below eight channels the transforms cost
    # more than they save, and below 300 outputs that of the kernel does; where it has
    # been done before, below 100.
    height, width, channels, _ = kernel_shape
    taps = max(_ceil_div(kernel_shape, strides))
    fewest = 100 if is_prepared else 300
    if channels < 8 or batch * math.prod(outputs) < fewest or taps == 1:
        return "patches"
    # XLA's own is slow for large windows, and in the gradient of strides.
    little_to_save = channels < 32 and height * width <= 25
    little_to_save |= is_prepared and taps == 2
    if little_to_save and (is_prepared or max(strides) == 1):
        return "ordinary"
    return "tiles"


def _choose_tile(batch, outputs, is_prepared) -> tuple[int, int]:
    # Large tiles save products; but a transformed kernel, which grows with the tile,
    # must be used for enough tiles to pay for making and reading it.
    tiles = batch * math.prod(_ceil_div(outputs, (8, 8)))
    largest = 8 if tiles >= (16 if is_prepared else 32) else 3
    return _ceil_div(outputs, _ceil_div(outputs, (largest, largest)))


def _choose_plan(
    image_shape,
    kernel_shape,
    strides,
    padding,
    dtype,
    precision=None,
    *,
    is_prepared=False,
) -> Plan | None:
    """Chooses by shape; None if there is no output."""
    height, width = map(operator.index, strides)
    strides = height, width
    padding = _padding_pairs(padding, image_shape, kernel_shape, strides)
    plan = Plan("patches", strides, padding, np.dtype(dtype), precision=precision)
    outputs = _output_size(image_shape, kernel_shape, plan)
    if min(outputs) < 1:
        return None
    batch = image_shape[0]
    return plan._replace(
        form=_choose_form(batch, kernel_shape, outputs, strides, is_prepared),
        tile=_choose_tile(batch, outputs, is_prepared),
        points="toom" if plan.operand_dtype == np.float32 else "fourier",
    )


def conv_general_dilated(
    lhs: Float[Array, "..."],
    rhs: Float[Array, "..."],
    window_strides: Sequence[int],
    padding: Any,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    *,
    compute_dtype: Any = None,
) -> Float[Array, "..."]:
    """Convolves like :func:`jax.lax.conv_general_dilated`, and trains fast on a CPU.

    Made for ``nn.Conv(conv_general_dilated=...)``. Two-dimensional convolutions in the
    layout of Flax (``NHWC``, ``HWIO``), without dilation or groups, take a form chosen
    by their shape; others are left to JAX, and ``compute_dtype`` does nothing there.

    Reverse mode only: the gradient is a ``custom_vjp``, so ``jax.jvp`` fails.

    Args:
        lhs: Images.
        rhs: Kernel.
        window_strides: See JAX, like all arguments up to ``preferred_element_type``.
        padding: As in JAX, or an int, or one int for each axis.
        lhs_dilation: Left to JAX.
        rhs_dilation: Left to JAX.
        dimension_numbers: Others than those of Flax are left to JAX.
        feature_group_count: Left to JAX.
        batch_group_count: Left to JAX.
        precision: For platforms other than CPU, which has but one.
        preferred_element_type: Left to JAX.
        compute_dtype: Type of the numbers that are multiplied, ``float32`` or
            ``bfloat16``; by default that of ``lhs``. Sums are float32, and so are the
            result and the gradients of float32 images.

    Returns:
        What JAX returns, to within rounding.

    Raises:
        ValueError: If ``compute_dtype`` is another type.
    """
    operand_dtype = _operand_dtype(compute_dtype, lhs)
    is_plain = (
        lhs.ndim == rhs.ndim == 4
        and len(window_strides) == 2
        and lhs.size
        and rhs.size
        and lhs.shape[3] == rhs.shape[2]
        and lhs.dtype == rhs.dtype
        and lhs.dtype in _INPUT_DTYPES
        and set(lhs_dilation or (1,)) == set(rhs_dilation or (1,)) == {1}
        and feature_group_count == batch_group_count == 1
        and preferred_element_type is None
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
        == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _LAYOUT)
    )
    plan = None
    if is_plain:
        plan = _choose_plan(
            lhs.shape, rhs.shape, window_strides, padding, operand_dtype, precision
        )
    if plan is None:
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers,
            feature_group_count,
            batch_group_count,
            precision,
            preferred_element_type,
        )
    image, kernel = lhs.astype(plan.sum_dtype), rhs.astype(plan.sum_dtype)
    image, kernel = _vary_alike(image, kernel), _vary_alike(kernel, image)
    return _convolve(image, kernel, plan).astype(lhs.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PreparedKernel:
    """A kernel transformed once, for many images; a pytree of one array.

    Attributes:
        values: The kernel in the form that the plan asks for.
        kernel_shape: Its shape before.
        plan: How images are convolved with it.
    """

    values: Float[Array, "..."]
    kernel_shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    plan: Plan = dataclasses.field(metadata={"static": True})


def prepare_kernel(
    kernel: Float[Array, "kh kw c d"],
    image_shape: tuple[int, ...],
    window_strides: Sequence[int],
    padding: Any,
    *,
    compute_dtype: Any = None,
) -> PreparedKernel:
    """Does once what :func:`convolve_prepared` would do with the kernel every time.

    It is done for the platform that JAX uses by default; what is prepared on a CPU
    works elsewhere, but not fast.
    """
    dtype = _operand_dtype(compute_dtype, kernel)
    plan = _choose_plan(
        image_shape, kernel.shape, window_strides, padding, dtype, is_prepared=True
    )
    if plan is None:
        raise ValueError(f"No output: image {image_shape}, kernel {kernel.shape}.")
    if jax.default_backend() != "cpu":
        plan = plan._replace(form="ordinary")
    kernel = kernel.astype(plan.sum_dtype)
    values = jax.jit(_FORMS[plan.form].prepare, static_argnums=(1, 2))(
        kernel, tuple(image_shape), plan
    )
    return PreparedKernel(values, kernel.shape, plan)


def convolve_prepared(
    image: Float[Array, "n h w c"], prepared: PreparedKernel
) -> Float[Array, "n oh ow d"]:
    """Convolves without transforming the kernel again: for inference."""
    plan = prepared.plan
    outputs = _FORMS[plan.form].apply(
        image.astype(plan.sum_dtype), prepared.values, prepared.kernel_shape, plan
    )
    return outputs.astype(image.dtype)
