"""The decoder, which draws images from capsules."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from capsjax.bounds import ComputeType, Widths
from capsjax.initializers import (
    Initializer,
    Start,
    initializer,
)
from capsjax.ops import require_axes


class Decoder(nn.Module):
    r"""Draws an image from the capsules that a mask lets through.

    .. math::
        h_0 = (m_1 v_1, \ldots, m_J v_J), \quad
        h_l = relu(W_l h_{l-1} + b_l), \quad
        \hat x = sigmoid(W h_L + b)

    Attributes:
        image_shape: Height, width and channels of the image.
        features: Widths of the hidden layers.
        compute_dtype: Type of the products' operands; sums and result are float32.
        kernel_init: Initializer of the hidden layers' kernels.
        output_init: Initializer of the last layer's kernel.
        bias_init: Initializer of the biases.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from capsjax import Decoder
        >>> layer = Decoder(image_shape=(28, 28, 1), features=(32,))
        >>> pose, mask = jnp.ones((2, 10, 16)), jax.nn.one_hot(jnp.array([3, 7]), 10)
        >>> variables = layer.init(jax.random.key(0), pose, mask)
        >>> layer.apply(variables, pose, mask).shape
        (2, 28, 28, 1)

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
