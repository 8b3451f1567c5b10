"""The network of *Dynamic Routing Between Capsules*."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from capsjax.bounds import ComputeType, Count, Scale, Widths
from capsjax.initializers import (
    SCALED,
    ScaledStart,
    Start,
    initializer,
    scaled_kernel,
)
from capsjax.layers import (
    Convolution,
    Decoder,
    DenseCaps,
    PrimaryCaps,
    route_map,
)
from capsjax.models.network import UNKNOWN_SHAPE, require_data, require_shape
from capsjax.ops import mask_longest
from capsjax.routings import Algorithm, DynamicRouting, Routed
from capsjax.routings.algorithm import require_algorithm


class CapsNet(nn.Module):
    """The network of *Dynamic Routing Between Capsules*.

    A convolution with ReLU, primary capsules, class capsules by routing, and a decoder.
    It fits any image size, channel count and class count; at 28x28x1 with ten classes
    it has the paper's 8,215,568 parameters.

    Attributes:
        image_shape: Height, width and channels of an image. In a config the data set
            fills in this field and the next.
        num_classes: Number of class capsules.
        conv_features: Channels of the first convolution.
        conv_kernel: Height and width of its kernel.
        primary_types: Kinds of primary capsules at each position.
        primary_dim: Components of a primary capsule.
        primary_kernel: Height and width of the primary capsules' window.
        primary_stride: Step of that window.
        primary_relu: True for a ReLU before the primary squash, as in the notebook.
        primary_scale: Factor of the primary capsules before bias and squash.
        class_dim: Components of a class capsule.
        routing: The routing algorithm, a value.
        decoder_features: Widths of the decoder's hidden layers; None for no decoder.
        compute_dtype: ``float32``, or ``bfloat16`` for the operands of large products.
        conv_init: Initializer of the first convolution's kernel. ``scaled``, here and
            in the next two, starts a network of any size with capsules as long as the
            paper's.
        primary_init: Initializer of the primary capsules' kernel.
        weight_init: Initializer of the matrices ``W_ij``.
        decoder_init: Initializer of the decoder's hidden kernels.
        reconstruction_init: Initializer of the decoder's last kernel.
        bias_init: Initializer of all biases but the routing's.
        share_weight: True to share the class capsules' matrices among all primary ones.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from capsjax import CapsNet
        >>> network = CapsNet((28, 28, 1), 10, conv_features=16, primary_types=2)
        >>> init = jax.jit(network.init_with_output)
        >>> (routed, drawn), _ = init(jax.random.key(0), jnp.zeros((2, 28, 28, 1)))
        >>> routed.activation.shape, drawn.shape
        ((2, 10), (2, 28, 28, 1))

    References:
        Sabour, Frosst and Hinton 2017, section 4, https://arxiv.org/abs/1710.09829.
    """

    image_shape: tuple[int, int, int] = UNKNOWN_SHAPE
    num_classes: int = 0
    conv_features: Count = 256
    conv_kernel: Count = 9
    primary_types: Count = 32
    primary_dim: Count = 8
    primary_kernel: Count = 9
    primary_stride: Count = 2
    primary_relu: bool = False
    primary_scale: Scale = 1.0
    class_dim: Count = 16
    routing: Algorithm = DynamicRouting()
    decoder_features: Widths | None = (512, 1024)
    compute_dtype: ComputeType = "float32"
    conv_init: ScaledStart = SCALED
    primary_init: ScaledStart = SCALED
    weight_init: ScaledStart = SCALED
    decoder_init: Start = "he_normal"
    reconstruction_init: Start = "lecun_normal"
    bias_init: Start = "zeros"
    share_weight: bool = False

    def setup(self):
        """Checks the image's size and makes the layers."""
        require_data(self)
        require_algorithm(self.routing)
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
            kernel_init=initializer(self.conv_init, scaled_kernel),
        )
        self.conv_bias = self.param(
            "conv_bias",
            initializer(self.bias_init),
            (self.conv_features,),
            jnp.float32,
        )
        self.primary_caps = PrimaryCaps(
            self.primary_types,
            self.primary_dim,
            self.primary_kernel,
            self.primary_stride,
            activation=nn.relu if self.primary_relu else None,
            scale=self.primary_scale,
            compute_dtype=self.compute_dtype,
            kernel_init=self.primary_init,
            bias_init=self.bias_init,
        )
        self.class_caps = DenseCaps(
            self.num_classes,
            self.class_dim,
            self.routing,
            self.weight_init,
            share_weight=self.share_weight,
        )
        if self.decoder_features is not None:
            self.decoder = Decoder(
                self.image_shape,
                self.decoder_features,
                self.compute_dtype,
                kernel_init=self.decoder_init,
                output_init=self.reconstruction_init,
                bias_init=self.bias_init,
            )

    @property
    def draws(self) -> bool:
        """True if there is a decoder."""
        return self.decoder_features is not None

    @property
    def primary_window(self) -> tuple[int, int]:
        """Side in pixels of a primary capsule's window, and the step to the next."""
        return self.conv_kernel + self.primary_kernel - 1, self.primary_stride

    def primary(
        self, image: Float[Array, "*batch h w c"]
    ) -> Float[Array, "*batch H W t d"]:
        """Computes the primary capsules of images with pixels from 0 to 1.

        Raises:
            ValueError: If an image is not of ``image_shape``, or too small for the
                kernels.
            TypeError: If the pixels are not floating-point numbers.
        """
        require_shape(image, self.image_shape)
        features = self.conv(image)
        features = nn.relu(features + jnp.broadcast_to(self.conv_bias, features.shape))
        return self.primary_caps(features)

    def encode(
        self, image: Float[Array, "*batch h w c"], *, is_training: bool = False
    ) -> Routed:
        """Computes the class capsules of images with pixels from 0 to 1.

        Args:
            image: The images.
            is_training: Makes no difference: nothing in the network is random.

        Raises:
            ValueError: On the same images as ``primary``.
            TypeError: On the same images as ``primary``.
        """
        del is_training
        return self.route(self.primary(image))

    def route(self, primary: Float[Array, "*batch H W t d"]) -> Routed:
        """Computes the class capsules that primary capsules vote for."""
        return route_map(self.class_caps, primary)

    def decode(
        self, pose: Float[Array, "*batch n d"], mask: Float[Array, "*batch n"]
    ) -> Float[Array, "*batch h w c"]:
        """Draws images from the class capsules that the mask lets through."""
        return self.decoder(pose, mask)

    def __call__(
        self,
        image: Float[Array, "*batch h w c"],
        mask: Float[Array, "*batch n"] | None = None,
    ) -> tuple[Routed, Float[Array, "*batch h w c"] | None]:
        """Computes class capsules, and redraws the image from the masked ones.

        Args:
            image: Pixels from 0 to 1.
            mask: Ones at the capsules to draw from: the label's in training; by default
                the longest one, as in inference.

        Returns:
            The class capsules, and the drawing; None without a decoder.
        """
        routed = self.encode(image)
        if not self.draws:
            return routed, None
        if mask is None:
            mask = mask_longest(routed.activation)
        return routed, self.decode(routed.pose, mask)
