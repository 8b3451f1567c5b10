"""A 2-D convolution that trains fast on a CPU, where XLA's own does not.

XLA:CPU computes the gradient of a strided convolution about thirty times slower than
the convolution itself (``benchmarks/convolution.py``). This one uses matrix products,
which every processor does well, and fewer multiplications. Other platforms get the
ordinary convolution.

This file chooses a form by shape and platform, and differentiates it; the forms and
their mathematics are in :mod:`capsjax.kernels.convolution_forms`.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from capsjax.kernels.convolution_forms import FORMS, LAYOUT, Plan, ceil_div, output_size
from capsjax.kernels.varying import leave_sharding_to_xla, spec_of, vary_alike
from capsjax.runtime.platforms import Platform, by_platform, platform

_COMPUTE_DTYPES = (np.dtype(np.float32), np.dtype(jnp.bfloat16))
_INPUT_DTYPES = (*_COMPUTE_DTYPES, np.dtype(np.float64))


def _on(platform: Platform, plan: Plan, image_shape, kernel_shape) -> Plan:
    """Returns the plan unchanged for a CPU; otherwise one that leaves all to XLA."""
    if not platform.has_fast_convolution:
        return plan
    form = "ordinary"
    outputs = output_size(image_shape, kernel_shape, plan)
    if kernel_shape[2] < platform.fewest_convolved_channels:
        form = "patches"
    elif max(plan.strides) > 1 and any(map(operator.gt, kernel_shape, outputs)):
        # XLA takes the larger of gradient and kernel for the image, and then multiplies
        # the stride's zeros too: six times the work at the paper's size.
        form = "phases"
    return plan._replace(form=form, kernel_first=False, rounds_results=True)


def _form_forward(image, kernel, *, plan: Plan, platform: Platform):
    plan = _on(platform, plan, image.shape, kernel.shape)
    form = FORMS[plan.form]
    values = form.prepare(kernel, image.shape, plan)
    # All platforms' branches must return one type. The compiler never writes it to
    # memory if the next layer rounds it again.
    return form.apply(image, values, kernel.shape, plan).astype(plan.sum_dtype)


def _form_backward(image, kernel, gradient, *, plan: Plan, platform: Platform):
    plan = _on(platform, plan, image.shape, kernel.shape)
    return FORMS[plan.form].backward(image, kernel, gradient, plan)


@functools.partial(jax.jit, static_argnums=2, inline=True)
def _forward(image, kernel, plan: Plan):
    return by_platform(functools.partial(_form_forward, plan=plan), image, kernel)


@functools.partial(jax.jit, static_argnums=3, inline=True)
def _backward(image, kernel, gradient, plan: Plan):
    backward = functools.partial(_form_backward, plan=plan)
    return by_platform(backward, image, kernel, gradient)


def _keep_operands(image, kernel, plan: Plan):
    # Not the transforms: inside one jit the compiler shares them with the backward
    # pass, and elsewhere they would fill memory.
    return _forward(image, kernel, plan), (image, kernel)


def _differentiate(plan: Plan, operands, gradient):
    return _backward(*operands, gradient, plan)


_convolve = jax.custom_vjp(_forward, nondiff_argnums=(2,))
_convolve.defvjp(_keep_operands, _differentiate)


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


def _choose_form(batch, kernel_shape, outputs, strides, dtype, is_prepared) -> str:
    # Measured by benchmarks/convolution.py. The transforms cost more than they save
    # below eight channels, and the kernel's below 300 outputs. A prepared kernel saves
    # from 100 outputs on, but from 400 in bfloat16, whose products are fast.
    height, width, channels, _ = kernel_shape
    taps = max(ceil_div(kernel_shape, strides))
    fewest = 300
    if is_prepared:
        fewest = 400 if dtype == jnp.bfloat16 else 100
    if channels < 8 or batch * math.prod(outputs) < fewest or taps == 1:
        return "patches"
    # XLA's own is slow for gradients with strides, and for large windows.
    has_fast_gradient = is_prepared or max(strides) == 1
    is_small = channels < 32 and height * width <= 25
    if has_fast_gradient and (is_small or (is_prepared and taps == 2)):
        return "ordinary"
    return "tiles"


# Bytes of transformed images: more than the first leave the processor's cache, and up
# to the second stay in it. A part must have tiles enough to pay for reading the
# kernel's values once more.
_UNCACHED_BYTES, _CACHED_BYTES, _FEWEST_TILES = 64_000_000, 6_000_000, 100


def _choose_tiles(image_shape, kernel_shape, outputs, plan, is_prepared) -> Plan:
    """Chooses the tile, and how many images to take at a time."""
    batch = image_shape[0]
    taps = ceil_div(kernel_shape, plan.strides)
    channels = max(kernel_shape[2] * math.prod(plan.strides), kernel_shape[3])

    def tile_up_to(largest):
        return ceil_div(outputs, ceil_div(outputs, (largest, largest)))

    def bytes_of_image(tile):
        pixels = math.prod(m + k - 1 for m, k in zip(tile, taps, strict=True))
        number = math.prod(ceil_div(outputs, tile))
        return number * pixels * channels * plan.sum_dtype.itemsize

    # Large tiles save products; but a transformed kernel, which grows with the tile,
    # must be used for enough tiles to pay for making and reading it.
    tiles = batch * math.prod(ceil_div(outputs, (8, 8)))
    tile = tile_up_to(8 if tiles >= (16 if is_prepared else 64) else 3)
    if batch * bytes_of_image(tile) <= _UNCACHED_BYTES:
        return plan._replace(tile=tile)
    if max(taps) <= 3:
        # Beyond four, the transforms of the tiles cost more than the products saved.
        tile = tile_up_to(4)
    most = min(_CACHED_BYTES // bytes_of_image(tile), batch // 2)
    part = max((n for n in range(1, most + 1) if batch % n == 0), default=0)
    if part * math.prod(ceil_div(outputs, tile)) < _FEWEST_TILES:
        part = 0
    return plan._replace(tile=tile, part=part)


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
    """Chooses by shape; None if there is, or may be, no output."""
    height, width = map(operator.index, strides)
    strides = height, width
    padding = _padding_pairs(padding, image_shape, kernel_shape, strides)
    plan = Plan("patches", strides, padding, np.dtype(dtype), precision=precision)
    outputs = output_size(image_shape, kernel_shape, plan)
    if any(map(export.is_symbolic_dim, outputs)) or min(outputs) < 1:
        return None
    batch = image_shape[0]
    if export.is_symbolic_dim(batch):
        return plan._replace(form="ordinary")
    plan = plan._replace(
        form=_choose_form(
            batch, kernel_shape, outputs, strides, plan.operand_dtype, is_prepared
        ),
        points="toom" if plan.operand_dtype == np.float32 else "fourier",
        kernel_first=is_prepared and plan.operand_dtype == jnp.bfloat16,
    )
    return _choose_tiles(image_shape, kernel_shape, outputs, plan, is_prepared)


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

    Made for ``nn.Conv(conv_general_dilated=...)``. Two-dimensional convolutions in
    Flax's layout (``NHWC``, ``HWIO``), without dilation or groups, take a form chosen
    by their shape. Others are left to JAX, which ignores ``compute_dtype``.

    Reverse mode only: the gradient is a ``custom_vjp``, so ``jax.jvp`` fails.

    Args:
        lhs: Images.
        rhs: Kernel.
        window_strides: See JAX, like all arguments up to ``preferred_element_type``.
        padding: As in JAX, or an int, or one int for each axis.
        lhs_dilation: Left to JAX.
        rhs_dilation: Left to JAX.
        dimension_numbers: Layouts other than Flax's are left to JAX.
        feature_group_count: Left to JAX.
        batch_group_count: Left to JAX.
        precision: For platforms other than CPU, which has only one.
        preferred_element_type: Left to JAX.
        compute_dtype: Type of the multiplied numbers, ``float32`` or ``bfloat16``; by
            default the type of ``lhs``. Sums are float32, and so are the result and the
            gradients of float32 images. Only XLA's own convolution rounds the summed
            gradients to bfloat16, if that is the type.

    Returns:
        What JAX returns, to within rounding.

    Raises:
        ValueError: If ``compute_dtype`` is another type.
    """
    operand_dtype = _operand_dtype(compute_dtype, lhs)
    is_plain = (
        lhs.ndim == rhs.ndim == 4
        and len(window_strides) == 2
        and 0 not in (*lhs.shape, *rhs.shape)
        and lhs.shape[3] == rhs.shape[2]
        and lhs.dtype == rhs.dtype
        and lhs.dtype in _INPUT_DTYPES
        and set(lhs_dilation or (1,)) == set(rhs_dilation or (1,)) == {1}
        and feature_group_count == batch_group_count == 1
        and preferred_element_type is None
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
        == lax.conv_dimension_numbers(lhs.shape, rhs.shape, LAYOUT)
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
    image, kernel = vary_alike(image, kernel)
    batch, *_ = spec_of(image)
    convolve = functools.partial(_convolve, plan=plan)
    outputs = leave_sharding_to_xla(convolve, P(batch), image, kernel)
    return outputs.astype(lhs.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PreparedKernel:
    """A kernel transformed once, for many images; a pytree of one array.

    Attributes:
        values: The kernel, transformed for the plan's form.
        kernel_shape: The shape of the original kernel.
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
    """Transforms a kernel once, for every call of :func:`convolve_prepared`.

    The form suits JAX's default platform; a kernel prepared on a CPU works elsewhere,
    but not fast.
    """
    dtype = _operand_dtype(compute_dtype, kernel)
    plan = _choose_plan(
        image_shape, kernel.shape, window_strides, padding, dtype, is_prepared=True
    )
    if plan is None:
        raise ValueError(f"No output: image {image_shape}, kernel {kernel.shape}.")
    plan = _on(platform(jax.default_backend()), plan, image_shape, kernel.shape)
    kernel = kernel.astype(plan.sum_dtype)
    values = jax.jit(FORMS[plan.form].prepare, static_argnums=(1, 2))(
        kernel, tuple(image_shape), plan
    )
    return PreparedKernel(values, kernel.shape, plan)


def convolve_prepared(
    image: Float[Array, "n h w c"], prepared: PreparedKernel
) -> Float[Array, "n oh ow d"]:
    """Convolves for inference, without transforming the kernel again."""
    plan = prepared.plan
    outputs = FORMS[plan.form].apply(
        image.astype(plan.sum_dtype), prepared.values, prepared.kernel_shape, plan
    )
    return outputs.astype(image.dtype)
