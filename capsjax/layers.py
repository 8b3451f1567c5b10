"""Layers that own weights: the mathematics is in ``ops`` and ``routings``.

Weights are float32, with ``JAX_ENABLE_X64`` too. They start by a name from
:mod:`capsjax.initializers`, or by a function of key, shape and type.

Letters: ``h w`` position, ``t`` capsule type, ``i`` input capsules with ``c``
components, ``j`` output capsules with ``d``.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import Array, Float

from capsjax.bounds import ComputeType, Count, Scale, Widths
from capsjax.initializers import (
    CLASS_LENGTH,
    PRIMARY_LENGTH,
    SCALED,
    Initializer,
    ScaledStart,
    Start,
    initializer,
    scaled_primary,
    scaled_votes,
)
from capsjax.kernels.convolution import (
    conv_general_dilated,
    convolve_prepared,
    prepare_kernel,
)
from capsjax.ops import require_axes, require_unit_scale, squash
from capsjax.routings import Algorithm, DynamicRouting, Routed
from capsjax.routings.algorithm import parameter_shapes, require_algorithm


class Convolution(nn.Module):
    """A convolution, fast on every backend.

    Uses the variable ``prepared/kernel`` without another transformation, if
    :func:`capsjax.models.prepare` made it.

    Attributes:
        features: Output channels.
        kernel_size: Height and width of the kernel.
        stride: Step of the window.
        compute_dtype: Type of the product's operands; sums and result are float32.
        kernel_init: Initializer of the kernel.
        padding: ``VALID`` for none; ``SAME`` for zeros around, so that a stride of 1
            keeps the size.
    """

    features: Count
    kernel_size: Count
    stride: Count = 1
    compute_dtype: ComputeType = "float32"
    kernel_init: Start = "he_normal"
    padding: str = "VALID"

    @nn.compact
    def __call__(
        self, image: Float[Array, "*batch h w c"]
    ) -> Float[Array, "*batch H W C"]:
        """Convolves images, channels last, in the type of the kernel.

        Raises:
            TypeError: If the images are not floating-point numbers.
            ValueError: If an axis is missing, or an image is smaller than the kernel.
        """
        require_unit_scale("image", image)
        require_axes("image", image, "hwc")
        sides = [n for n in image.shape[-3:-1] if not export.is_symbolic_dim(n)]
        if self.padding == "VALID" and any(n < self.kernel_size for n in sides):
            raise ValueError(
                f"image must be at least as large as the kernel, {self.kernel_size}x"
                f"{self.kernel_size}, got shape {image.shape}."
            )
        *batch, height, width, channels = image.shape
        shape = (self.kernel_size, self.kernel_size, channels, self.features)
        kernel = self.param("kernel", initializer(self.kernel_init), shape, jnp.float32)
        # With JAX_ENABLE_X64 even jnp.zeros has 64 bits.
        image = jnp.asarray(image, kernel.dtype)
        image = image.reshape(math.prod(batch), height, width, channels)
        strides = (self.stride, self.stride)
        if self.is_mutable_collection("prepared") and not self.is_initializing():
            prepared = prepare_kernel(
                kernel,
                image.shape,
                strides,
                self.padding,
                compute_dtype=self.compute_dtype,
            )
            self.put_variable("prepared", "kernel", prepared)
        if self.has_variable("prepared", "kernel"):
            result = convolve_prepared(image, self.get_variable("prepared", "kernel"))
        else:
            result = conv_general_dilated(
                image,
                kernel,
                strides,
                self.padding,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                compute_dtype=self.compute_dtype,
            )
        return result.reshape(*batch, *result.shape[1:])


class PrimaryCaps(nn.Module):
    """Primary capsules: a convolution whose channels are grouped into poses.

    ``u = squash(activation(scale * conv(image) + bias))``. Capsule type ``t`` at one
    position holds the neighbouring channels ``t c .. t c + c - 1`` of that position.

    Attributes:
        num_types: Kinds of capsules at each position.
        dim: Components of a capsule.
        kernel_size: Height and width of the window that a capsule sees.
        stride: Step of that window.
        activation: Function applied before the squash; None as in the paper.
        scale: Factor of the convolution's result; 1 as in the paper.
        compute_dtype: Type of the convolution's operands; its sums are float32.
        kernel_init: Initializer of the kernel. ``scaled`` makes the capsules start
            about ``start_length`` long at any size, on features like the paper's first
            convolution: see ``initializers.scaled_primary``.
        bias_init: Initializer of the bias.
        start_length: Root mean square length of the capsules at the start.

    References:
        Sabour, Frosst and Hinton 2017, section 4, https://arxiv.org/abs/1710.09829.
    """

    start_length: ClassVar[float] = PRIMARY_LENGTH

    num_types: Count = 32
    dim: Count = 8
    kernel_size: Count = 9
    stride: Count = 2
    activation: Callable[[Array], Array] | None = None
    scale: Scale = 1.0
    compute_dtype: ComputeType = "float32"
    kernel_init: ScaledStart = SCALED
    bias_init: Start = "zeros"

    @nn.compact
    def __call__(
        self, image: Float[Array, "*batch h w n"]
    ) -> Float[Array, "*batch H W t c"]:
        """Computes the capsules of every window of the image.

        Raises:
            TypeError: If the image is not floating-point numbers.
            ValueError: If an axis is missing, or the image is smaller than a window.
        """
        features = self.num_types * self.dim
        s = Convolution(
            features,
            self.kernel_size,
            self.stride,
            self.compute_dtype,
            initializer(self.kernel_init, scaled_primary(self.dim, self.scale)),
            name="conv",
        )(image)
        bias = self.param("bias", initializer(self.bias_init), (features,), jnp.float32)
        s = self.scale * s + jnp.broadcast_to(bias, s.shape)
        if self.activation is not None:
            s = self.activation(s)
        return squash(s.reshape(*s.shape[:-1], self.num_types, self.dim))


class DenseCaps(nn.Module):
    """Fully connected capsules: one matrix ``W_ij`` for each pair, then routing.

    Attributes:
        num_capsules: Output capsules.
        dim: Components of an output capsule.
        routing: The algorithm, a value with its hyperparameters inside.
        share_weight: True to share one matrix ``W_j`` among all inputs: the layer then
            takes any number of inputs.
        weight_init: Initializer of ``W``. Its scale decides whether and how fast the
            network learns: too large, and every length saturates at one; too small, and
            lengths and gradients start near zero. ``scaled`` makes the capsules start
            about ``start_length`` long for any number of inputs, outputs and
            components, or the votes as large as the algorithm's ``vote_deviation``: see
            ``initializers.scaled_votes``.
        input_length: Root mean square length of the input capsules at the start, for
            ``scaled``. The default fits the paper's primary capsules; above another
            ``DenseCaps``, set that layer's ``start_length``.
        start_length: Root mean square length of the capsules at the start.

    References:
        Sabour, Frosst and Hinton 2017, section 4, https://arxiv.org/abs/1710.09829.
    """

    start_length: ClassVar[float] = CLASS_LENGTH

    num_capsules: Count
    dim: Count
    routing: Algorithm = DynamicRouting()
    weight_init: ScaledStart = SCALED
    input_length: float = PRIMARY_LENGTH
    share_weight: bool = False

    @nn.compact
    def __call__(
        self,
        capsules: Float[Array, "*batch i c"],
        activation: Float[Array, "*batch i"] | None = None,
        **competition: Any,
    ) -> Routed:
        """Routes the votes of the input capsules to the output capsules.

        Args:
            capsules: The input capsules.
            activation: Presence of each input capsule, if the algorithm takes it.
            competition: ``initial_logit``, ``input_mask``, ``output_mask`` and
                ``compete``: see :class:`capsjax.routings.Algorithm`.

        Raises:
            TypeError: If ``routing`` is no value of an algorithm.
            ValueError: If the capsules lack an axis, or the arrays do not fit the
                algorithm.
        """
        require_algorithm(self.routing)
        require_axes("capsules", capsules, "ic")
        i, c = capsules.shape[-2:]
        size = {"i": i, "j": self.num_capsules, "d": self.dim, "c": c}
        scaled = scaled_votes(self.input_length, self.routing.vote_deviation)
        start = initializer(self.weight_init, scaled)
        shape = (i, self.num_capsules, self.dim, c)
        if self.share_weight:
            # The shared matrix starts like one of ``i`` matrices.
            def start_one(key, shape, dtype):
                return start(key, (i, *shape), dtype)[0]

            weight = self.param("weight", start_one, shape[1:], jnp.float32)
        else:
            weight = self.param("weight", start, shape, jnp.float32)
        shapes = parameter_shapes(self.routing, size)
        parameters = {
            name: self.param(name, own.init, shapes[name], jnp.float32)
            for name, own in self.routing.declared_parameters.items()
        }
        return self.routing.from_capsules(
            capsules, weight, activation, parameters=parameters, **competition
        )


class Decoder(nn.Module):
    """Draws an image from the capsules that a mask lets through.

    Attributes:
        image_shape: Height, width and channels of the image.
        features: Widths of the hidden layers.
        compute_dtype: Type of the products' operands; sums and result are float32.
        kernel_init: Initializer of the hidden layers' kernels.
        output_init: Initializer of the last layer's kernel.
        bias_init: Initializer of the biases.

    References:
        Sabour, Frosst and Hinton 2017, section 4.1, https://arxiv.org/abs/1710.09829.
    """

    image_shape: tuple[int, int, int]
    features: Widths = (512, 1024)
    compute_dtype: ComputeType = "float32"
    kernel_init: Start = "he_normal"
    output_init: Start = "lecun_normal"
    bias_init: Start = "zeros"

    @nn.compact
    def __call__(
        self, pose: Float[Array, "*batch j d"], mask: Float[Array, "*batch j"]
    ) -> Float[Array, "*batch h w c"]:
        """Draws pixels from 0 to 1; ignores poses where the mask is zero.

        Raises:
            ValueError: If an axis is missing, the mask does not fit the poses, or
                ``image_shape`` lacks a number.
        """
        if len(self.image_shape) != 3:
            raise ValueError(
                "image_shape must be (height, width, channels), got "
                f"{self.image_shape}."
            )
        require_axes("pose", pose, "jd")
        if mask.shape[-1:] != pose.shape[-2:-1]:
            raise ValueError(
                "mask must have one number for each capsule, [*batch, j] = "
                f"{pose.shape[:-1]}, got shape {mask.shape}."
            )
        masked = pose * mask[..., None]
        hidden = masked.reshape(*masked.shape[:-2], math.prod(masked.shape[-2:]))
        dense = functools.partial(
            make_dense, compute_dtype=self.compute_dtype, bias_init=self.bias_init
        )
        for features in self.features:
            hidden = nn.relu(dense(features, kernel_init=self.kernel_init)(hidden))
        height, width, channels = self.image_shape
        size = height * width * channels
        pixels = dense(size, kernel_init=self.output_init)(hidden)
        return nn.sigmoid(pixels).reshape(*hidden.shape[:-1], *self.image_shape)


def make_dense(
    features: int,
    *,
    compute_dtype: str,
    kernel_init: str | Initializer,
    bias_init: str | Initializer,
) -> nn.Dense:
    """Makes a fully connected layer.

    Args:
        features: Output units.
        compute_dtype: Type of the product's operands; sums and result are float32.
        kernel_init: Initializer of the kernel.
        bias_init: Initializer of the bias.
    """
    return nn.Dense(
        features,
        kernel_init=initializer(kernel_init),
        bias_init=initializer(bias_init),
        dot_general=functools.partial(_dot_general, dtype=compute_dtype),
    )


def _dot_general(lhs: Array, rhs: Array, *arguments: Any, dtype: str, **options: Any):
    """Multiplies operands of that type into float32, the only fast way on a CPU."""
    options["preferred_element_type"] = jnp.promote_types(lhs.dtype, jnp.float32)
    if dtype != "float32":
        lhs, rhs = lhs.astype(dtype), rhs.astype(dtype)
    return jax.lax.dot_general(lhs, rhs, *arguments, **options)
