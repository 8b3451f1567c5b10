"""The network of *Dynamic Routing Between Capsules*."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from capsjax.initializers import Initializer, scaled_kernel
from capsjax.layers import (
    Convolution,
    Decoder,
    DenseCaps,
    PrimaryCaps,
)
from capsjax.ops import mask_longest
from capsjax.routings import Algorithm, DynamicRouting, Routed


class CapsNet(nn.Module):
    """The network of *Dynamic Routing Between Capsules*.

    A convolution with ReLU, primary capsules, class capsules by routing, and a decoder.
    Any image size, channel count and class count; at 28x28x1 with ten classes it has
    the paper's 8,215,568 parameters.

    Attributes:
        image_shape: Height, width and channels of an image.
        num_classes: Class capsules.
        conv_features: Channels of the first convolution.
        conv_kernel: Its height and width.
        primary_types: Kinds of primary capsules at each position.
        primary_dim: Components of a primary capsule.
        primary_kernel: Height and width of the primary capsules' window.
        primary_stride: Step of that window.
        primary_activation: Applied before the primary squash; None as in the paper.
        primary_scale: Factor of the primary capsules before bias and squash.
        class_dim: Components of a class capsule.
        routing: The routing algorithm, a value.
        decoder_features: Widths of the decoder's hidden layers.
        compute_dtype: ``float32``, or ``bfloat16`` for the operands of large products.
        conv_init: How the first convolution's kernel starts; by default scaled by its
            fan-in.
        primary_init: How the primary capsules' kernel starts; None as in
            ``PrimaryCaps``.
        weight_init: How the matrices ``W_ij`` start; None as in ``DenseCaps``.
        decoder_init: How the decoder's hidden kernels start.
        reconstruction_init: How the decoder's last kernel starts.
        bias_init: How all biases start but the routing's.

    References:
        Sabour, Frosst and Hinton 2017, section 4, https://arxiv.org/abs/1710.09829.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    conv_features: int = 256
    conv_kernel: int = 9
    primary_types: int = 32
    primary_dim: int = 8
    primary_kernel: int = 9
    primary_stride: int = 2
    primary_activation: Callable[[Array], Array] | None = None
    primary_scale: float = 1.0
    class_dim: int = 16
    routing: Algorithm = DynamicRouting()
    decoder_features: tuple[int, ...] = (512, 1024)
    compute_dtype: str = "float32"
    conv_init: Initializer = scaled_kernel
    primary_init: Initializer | None = None
    weight_init: Initializer | None = None
    decoder_init: Initializer = jax.nn.initializers.he_normal()
    reconstruction_init: Initializer = jax.nn.initializers.lecun_normal()
    bias_init: Initializer = jax.nn.initializers.zeros

    def setup(self):
        """Checks the image's size and makes the layers."""
        smallest = self.conv_kernel + self.primary_kernel - 1
        height, width, _ = self.image_shape
        if min(height, width) < smallest:
            raise ValueError(
                f"an image of {height}x{width} is too small for kernels of "
                f"{self.conv_kernel}x{self.conv_kernel} and then "
                f"{self.primary_kernel}x{self.primary_kernel}: the smallest is "
                f"{smallest}x{smallest}. Choose smaller kernels or larger images."
            )
        self.conv = Convolution(
            self.conv_features,
            self.conv_kernel,
            compute_dtype=self.compute_dtype,
            kernel_init=self.conv_init,
        )
        self.conv_bias = self.param(
            "conv_bias", self.bias_init, (self.conv_features,), jnp.float32
        )
        self.primary_caps = PrimaryCaps(
            self.primary_types,
            self.primary_dim,
            self.primary_kernel,
            self.primary_stride,
            activation=self.primary_activation,
            scale=self.primary_scale,
            compute_dtype=self.compute_dtype,
            kernel_init=self.primary_init,
            bias_init=self.bias_init,
        )
        self.class_caps = DenseCaps(
            self.num_classes, self.class_dim, self.routing, self.weight_init
        )
        self.decoder = Decoder(
            self.image_shape,
            self.decoder_features,
            self.compute_dtype,
            kernel_init=self.decoder_init,
            output_init=self.reconstruction_init,
            bias_init=self.bias_init,
        )

    def primary(
        self, image: Float[Array, "*batch h w c"]
    ) -> Float[Array, "*batch H W t d"]:
        """The primary capsules of images with pixels from 0 to 1.

        Raises:
            ValueError: If an image is not of ``image_shape``, or too small for the
            kernels.
            TypeError: If the pixels are not floating-point numbers, but bytes, say.
        """
        require_shape(image, self.image_shape)
        features = self.conv(image)
        features = nn.relu(features + jnp.broadcast_to(self.conv_bias, features.shape))
        return self.primary_caps(features)

    def encode(self, image: Float[Array, "*batch h w c"]) -> Routed:
        """The class capsules of images with pixels from 0 to 1.

        Raises:
            ValueError: As of ``primary``.
        """
        return self.route(self.primary(image))

    def route(self, primary: Float[Array, "*batch H W t d"]) -> Routed:
        """The class capsules that primary capsules vote for."""
        *batch, height, width, types, dim = primary.shape
        capsules = primary.reshape(*batch, height * width * types, dim)
        return self.class_caps(capsules)

    def decode(
        self, pose: Float[Array, "*batch n d"], mask: Float[Array, "*batch n"]
    ) -> Float[Array, "*batch h w c"]:
        """The images that the class capsules under the mask stand for."""
        return self.decoder(pose, mask)

    def __call__(
        self,
        image: Float[Array, "*batch h w c"],
        mask: Float[Array, "*batch n"] | None = None,
    ) -> tuple[Routed, Float[Array, "*batch h w c"]]:
        """Class capsules, and the image redrawn from the masked ones.

        Args:
            image: Pixels from 0 to 1.
            mask: Ones at the capsules to draw from: the label's in training; by default
                the longest one, as in inference.
        """
        routed = self.encode(image)
        if mask is None:
            mask = mask_longest(routed.activation)
        return routed, self.decode(routed.pose, mask)


def require_shape(image: Array, image_shape: tuple[int, int, int]) -> None:
    """Raises a ValueError if the images are not of that shape."""
    if image.shape[-3:] != tuple(image_shape):
        raise ValueError(
            f"the network is for images of shape {tuple(image_shape)}, got "
            f"{image.shape[-3:]}."
        )
