"""Four ways to compute a convolution and its gradients, as matrix products or not.

``tiles`` is the form that saves multiplications:

**Phases.** A convolution of stride ``s`` is one of stride 1 over an image whose
``s x s`` blocks of pixels have become channels, with the kernel cut up likewise.

**Evaluation and interpolation.** A 1-D convolution with ``k`` taps and ``m`` outputs
reads ``n = m + k - 1`` pixels. Its transpose multiplies a polynomial with ``k``
coefficients by one with ``m``, and the product is fixed by its values at ``n`` points:
evaluate both, multiply point by point, interpolate. Transposing back gives
``y = C^T [(A x) * (B w)]``: ``B`` and ``C`` evaluate (a row holds the powers of a
point) and ``A`` is interpolation, transposed. In two dimensions they are Kronecker
products. Channels are summed at every point, so ``*`` is a matrix product per point.
A large output is cut into tiles of ``m x m``.

**Points.** The roots of unity make ``A`` a discrete Fourier transform, which loses no
accuracy. One point of each conjugate pair is enough, as all is real. A complex product
takes four real ones, or three by Gauss's trick, whose sums fold into the constant
matrices. Points that are mostly real (Toom and Cook's 0, infinity, 1, -1, ...) need
fewer products but amplify rounding up to four times: good enough for float32, too much
for bfloat16.

**Backward.** The form is bilinear, so the gradients take the same matrices transposed:
``dx = A^T [(C dy) * (B w)]`` and ``dw = B^T [(A x) * (C dy)]``.

PrimaryCaps (9 x 9, stride 2, 256 to 256 channels, 20 x 20 to 6 x 6) becomes 4 phases of
5 x 5 taps over 10 x 10 pixels, 1024 channels, one tile, 100 points. A tile and a pair
of channels take 900 products directly (36 outputs with 25 taps; 729 without the zeros
that fill the phases), 148 with the Fourier points and 118 with the Toom points.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from capsjax.kernels.varying import vary_alike

LAYOUT = ("NHWC", "HWIO", "NHWC")


class Plan(NamedTuple):
    """The choices for computing one convolution, known when it is traced.

    Attributes:
        form: ``"tiles"`` (see above), ``"patches"`` (every window becomes a row of one
            matrix), ``"ordinary"`` (left to XLA) or ``"phases"`` (left to XLA, after
            the first step of ``"tiles"`` has made the stride one).
        strides: Step of the window along each axis.
        padding: Pixels added (or removed, if negative) before and after each axis.
        operand_dtype: Type of the operands of the matrix products.
        tile: Outputs of one tile along each axis.
        points: ``"fourier"`` or ``"toom"``.
        kernel_first: Whether the kernel is the first operand of the patches' product:
            faster in bfloat16 if it was transposed before.
        part: Number of images that ``"tiles"`` takes at a time, so that what it makes
            of them stays in the processor's cache; 0 for all at once.
        rounds_results: Whether sums are rounded to ``operand_dtype``: half the memory
            traffic in bfloat16, which an accelerator needs.
    """

    form: Literal["tiles", "patches", "ordinary", "phases"]
    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    operand_dtype: np.dtype
    tile: tuple[int, int] = (1, 1)
    points: Literal["fourier", "toom"] = "fourier"
    precision: Any = None
    kernel_first: bool = False
    part: int = 0
    rounds_results: bool = False

    @property
    def sum_dtype(self) -> np.dtype:
        """Type of all sums: float32 or float64."""
        return np.promote_types(self.operand_dtype, np.float32)

    @property
    def result_dtype(self) -> np.dtype:
        """Type in which results are written to memory."""
        return self.operand_dtype if self.rounds_results else self.sum_dtype


# ---- constant matrices


# Found by trial: few products, and at most 2 times the Fourier points' rounding error
# up to eight points, 3 times for nine, 4 times for ten.
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
    """Chooses points, listing each conjugate pair once."""
    if kind == "toom" and count in _TOOM_POINTS:
        return _TOOM_POINTS[count]
    roots = (np.exp(2j * np.pi * k / count) for k in range(1, (count + 1) // 2))
    return (1.0, *[-1.0] * (count % 2 == 0), *roots)


def _axis_matrices(outputs: int, taps: int, kind: str):
    """Returns complex A, B, C along one axis, and each point's conjugate's index."""
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
    """Returns A, B and C of a tile: real, flat, one product per row.

    A complex product ``a b`` adds only ``2 Re(c a b)``, together with its conjugate.
    Gauss computes that by three real products, whose sums are folded in here, once.
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


def _matmul(a, b, contract=(-1, -2), result=None):
    """Multiplies batches of matrices; bfloat16 is fast on a CPU only into float32."""
    axes = ((a.ndim + contract[0],), (b.ndim + contract[1],))
    batch = tuple(range(a.ndim - 2))
    result = result or jnp.promote_types(a.dtype, jnp.float32)
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


def ceil_div(sizes, parts) -> tuple[int, int]:
    """Returns how many parts cover each axis."""
    return -(-sizes[0] // parts[0]), -(-sizes[1] // parts[1])


def output_size(image_shape, kernel_shape, plan: Plan) -> tuple[Any, Any]:
    """Returns the number of outputs along each axis."""
    height, width = (
        (size + sum(padding) - window) // stride + 1
        for size, window, stride, padding in zip(
            image_shape[1:3], kernel_shape[:2], plan.strides, plan.padding, strict=True
        )
    )
    return height, width


def _tiling(image_shape, kernel_shape, plan: Plan) -> _Tiling:
    outputs = output_size(image_shape, kernel_shape, plan)
    taps = ceil_div(kernel_shape, plan.strides)
    pixels = (plan.tile[0] + taps[0] - 1, plan.tile[1] + taps[1] - 1)
    return _Tiling(outputs, ceil_div(outputs, plan.tile), plan.tile, pixels, taps)


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
    axes = [*zip(tiling.tiles, tiling.tile, tiling.pixels, strict=True)]
    height, width = (
        max((tiles - 1) * tile + pixels, (tiles + 1) * tile if tiles > 1 else 0)
        for tiles, tile, pixels in axes
    )
    image = _image_phases(image, (height, width), plan)
    tiles = _cut_axis(_cut_axis(image, 1, *axes[0]), 4, *axes[1])
    tiles = tiles.transpose(2, 5, 0, 1, 4, 3, 6, 7)
    channels = math.prod(tiles.shape[5:])
    return tiles.reshape(math.prod(tiling.pixels), -1, channels)


def _cut_axis(x, axis: int, tiles: int, tile: int, pixels: int):
    """Cuts an axis into overlapping tiles: ``[..., tiles, pixels, ...]``.

    Only two slices, if that is possible: the gradient adds up as many images.
    """
    before, after = x.shape[:axis], x.shape[axis + 1 :]

    def cut(start, size, count):
        part = lax.slice_in_dim(x, start, start + size * count, axis=axis)
        return part.reshape(*before, count, size, *after)

    overlap = pixels - tile
    if overlap > tile or tiles == 1:
        each = [cut(n * tile, pixels, 1) for n in range(tiles)]
        return jnp.concatenate(each, axis)
    next_tile = cut(tile, tile, tiles)
    shared = lax.slice_in_dim(next_tile, 0, overlap, axis=axis + 1)
    return jnp.concatenate([cut(0, tile, tiles), shared], axis + 1)


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


def _in_parts(x, plan: Plan):
    return x.reshape(-1, plan.part, *x.shape[1:])


def _tiles_apply(image, kernel_values, kernel_shape, plan: Plan):
    tiling = _tiling(image.shape, kernel_shape, plan)
    a, _, c = _matrices(tiling, plan)

    def apply(image):
        image_values = _transform(a, _cut_tiles(image, tiling, plan), plan)
        products = _matmul(image_values, kernel_values)
        return _join_tiles(_constant_matmul(c.T, products), tiling)

    if not plan.part:
        return apply(image)
    outputs = lax.map(apply, _in_parts(image, plan))
    return outputs.reshape(-1, *outputs.shape[2:])


def _tiles_backward(image, kernel, gradient, plan: Plan):
    tiling = _tiling(image.shape, kernel.shape, plan)
    a, b, c = _matrices(tiling, plan)
    phases, to_kernel = jax.vjp(lambda w: _kernel_phases(w, plan), kernel)
    kernel_values = _transform(b, phases, plan)
    # XLA:CPU has no fast product of bfloat16 over the first axis of both. Turning the
    # few outputs and transforming them again is faster than turning their values.
    turns = plan.operand_dtype == jnp.bfloat16

    def differentiate(image, gradient):
        tiles, to_image = jax.vjp(lambda x: _cut_tiles(x, tiling, plan), image)
        image_values = _transform(a, tiles, plan)
        split = _split_tiles(gradient, tiling)
        values = _transform(c, split, plan)
        image_gradient = _matmul(values, kernel_values, (-1, -1))
        (image_gradient,) = to_image(_constant_matmul(a.T, image_gradient))
        if not turns:
            return image_gradient, _matmul(image_values, values, (-2, -2))
        turned = _transform(c, split.swapaxes(1, 2), plan)
        return image_gradient, _matmul(turned, image_values)

    if plan.part:

        def add(total, part):
            image_gradient, kernel_gradient = differentiate(*part)
            return total + kernel_gradient, image_gradient

        shape = (gradient.shape[-1], phases.shape[1])
        shape = (len(b), *(shape if turns else shape[::-1]))
        start, _ = vary_alike(jnp.zeros(shape, plan.sum_dtype), image)
        parts = _in_parts(image, plan), _in_parts(gradient, plan)
        kernel_gradient, image_gradient = lax.scan(add, start, parts)
        image_gradient = image_gradient.reshape(image.shape)
    else:
        image_gradient, kernel_gradient = differentiate(image, gradient)
    kernel_gradient = _constant_matmul(b.T, kernel_gradient)
    if turns:
        kernel_gradient = kernel_gradient.swapaxes(1, 2)
    return image_gradient, *to_kernel(kernel_gradient)


# ---- patches


def _patches(image, kernel_shape, plan: Plan):
    """Makes every window one row: ``[n, h, w, kh * kw * c]``."""
    kh, kw = kernel_shape[:2]
    (h, w), (sh, sw) = output_size(image.shape, kernel_shape, plan), plan.strides
    image = _pad(image, plan.padding)
    # One axis after the other, in as few slices as possible; copying whole windows is
    # three times faster than copying pixels that are a stride apart.
    if h + w < kh + kw:
        image = jnp.stack([image[:, :, sw * j : sw * j + kw] for j in range(w)], 1)
        image = jnp.stack([image[:, :, sh * i : sh * i + kh] for i in range(h)], 1)
        return image.reshape(-1, h, w, math.prod(image.shape[3:]))
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
    matrix = kernel.reshape(-1, kernel.shape[3]).astype(plan.operand_dtype)
    return matrix.T if plan.kernel_first else matrix


def _patches_apply(image, kernel_matrix, kernel_shape, plan: Plan):
    patches = _patches(image.astype(plan.operand_dtype), kernel_shape, plan)
    rows = patches.reshape(-1, patches.shape[-1])
    if plan.kernel_first:
        outputs = _matmul(kernel_matrix, rows, (-1, -1)).T
    else:
        outputs = _matmul(rows, kernel_matrix, result=plan.result_dtype)
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


def _ordinary_apply(image, kernel, kernel_shape, plan: Plan):
    del kernel_shape
    return lax.conv_general_dilated(
        image.astype(plan.operand_dtype),
        kernel,
        plan.strides,
        plan.padding,
        dimension_numbers=LAYOUT,
        precision=plan.precision,
        preferred_element_type=plan.result_dtype,
    )


def _ordinary_backward(image, kernel, gradient, plan: Plan):
    # One type throughout: JAX's own gradient of a convolution from bfloat16 to float32
    # multiplies float32.
    plan = plan._replace(rounds_results=True)

    def convolve(image, kernel):
        kernel = _ordinary_prepare(kernel, image.shape, plan)
        return _ordinary_apply(image, kernel, None, plan)

    _, pullback = jax.vjp(convolve, image, kernel)
    return pullback(gradient.astype(plan.operand_dtype))


# ---- phases


def _phases_prepare(kernel, image_shape, plan: Plan):
    phases = _kernel_phases(kernel, plan)
    taps = ceil_div(kernel.shape, plan.strides)
    phases = phases.reshape(*taps, *phases.shape[1:])
    return _ordinary_prepare(phases, image_shape, plan)


def _phases_apply(image, phases, kernel_shape, plan: Plan):
    outputs, taps = output_size(image.shape, kernel_shape, plan), phases.shape
    sizes = (outputs[0] + taps[0] - 1, outputs[1] + taps[1] - 1)
    image = _image_phases(image, sizes, plan).transpose(0, 1, 3, 2, 4, 5)
    image = image.reshape(*image.shape[:3], -1)
    plan = plan._replace(strides=(1, 1), padding=((0, 0), (0, 0)))
    return _ordinary_apply(image, phases, None, plan)


def _phases_backward(image, kernel, gradient, plan: Plan):
    plan = plan._replace(rounds_results=True)

    def convolve(image, kernel):
        phases = _phases_prepare(kernel, image.shape, plan)
        return _phases_apply(image, phases, kernel.shape, plan)

    _, pullback = jax.vjp(convolve, image, kernel)
    return pullback(gradient.astype(plan.operand_dtype))


# ---- all four


class _Form(NamedTuple):
    """One way to convolve: transform the kernel, apply it, differentiate."""

    prepare: Callable
    apply: Callable
    backward: Callable


FORMS = {
    "tiles": _Form(_tiles_prepare, _tiles_apply, _tiles_backward),
    "patches": _Form(_patches_prepare, _patches_apply, _patches_backward),
    "ordinary": _Form(_ordinary_prepare, _ordinary_apply, _ordinary_backward),
    "phases": _Form(_phases_prepare, _phases_apply, _phases_backward),
}
