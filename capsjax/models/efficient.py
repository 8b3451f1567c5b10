"""The network of *Efficient-CapsNet: Capsule Network with Self-Attention Routing*."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from capsjax.bounds import ComputeType, Count, Widths
from capsjax.initializers import (
    SCALED,
    ScaledStart,
    Start,
    initializer,
)
from capsjax.layers import Convolution, Decoder, DenseCaps, route_map
from capsjax.models.network import UNKNOWN_SHAPE, require_data, require_shape
from capsjax.ops import exponential_squash
from capsjax.routings import Algorithm, Routed, SelfAttention
from capsjax.routings.algorithm import require_algorithm
from capsjax.runtime.devices import AXIS

LAST_STRIDE = 2
# Added to variances, as in the authors' code: Keras's default, like the momentum.
EPSILON = 1e-3
_FIRST_KERNEL, _KERNEL = 5, 3


class EfficientCapsNet(nn.Module):
    r"""The network of *Efficient-CapsNet*: few capsules of many convolutions.

    Convolutions with ReLU and then batch normalisation, 5x5 and 3x3, the last one with
    a stride of 2 and one channel for each component of a primary capsule. A depthwise
    convolution as large as their map then leaves one position:

    .. math::
        s_n = \sum_{hw} K_{hwn} x_{hwn} + b_n, \quad
        u = (1 - e^{-|s|}) \frac{s}{|s|}

    The class capsules follow by routing, and a decoder. At 28x28x1 with ten classes it
    has the paper's 161,824 parameters, and 1,411,344 more in the decoder.

    It fits any image of at least 11 pixels a side, and any channel and class count: the
    depthwise kernel grows with the image, to 55x55 for 120 pixels.

    Attributes:
        image_shape: Height, width and channels of an image. In a config the data set
            fills in this field and the next.
        num_classes: Number of class capsules.
        conv_features: Channels of each convolution but the last. The first has a 5x5
            kernel, the others, and the last one, 3x3.
        primary_types: Number of primary capsules.
        primary_dim: Components of a primary capsule.
        class_dim: Components of a class capsule.
        routing: The routing algorithm, a value.
        decoder_features: Widths of the decoder's hidden layers; None for no decoder.
        compute_dtype: ``float32``, or ``bfloat16`` for the operands of large products.
        conv_init: Initializer of the convolutions' kernels.
        primary_init: Initializer of the depthwise kernel ``[h, w, 1, n]``.
            ``glorot_uniform`` starts capsules of the paper's size about 0.35 long for
            images of any size.
        weight_init: Initializer of the matrices ``W_ij``. ``scaled`` fits the routing;
            the authors' is ``N(0, 2 / (I J c))``, here ``normal(0.0395)``.
        decoder_init: Initializer of the decoder's hidden kernels.
        reconstruction_init: Initializer of the decoder's last kernel.
        bias_init: Initializer of all biases but the routing's.

    Examples:
        >>> import functools
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from capsjax.models import EfficientCapsNet, num_parameters
        >>> network = EfficientCapsNet((28, 28, 1), 10)
        >>> init = functools.partial(network.init, method="encode")
        >>> image = jnp.zeros((1, 28, 28, 1))
        >>> variables = jax.eval_shape(init, jax.random.key(0), image)
        >>> sorted(variables), num_parameters(variables["params"])
        (['batch_stats', 'params'], 161824)

    References:
        Mazzia, Salvetti and Chiaberge 2021, section 3,
        https://arxiv.org/abs/2101.12491.
    """

    image_shape: tuple[int, int, int] = UNKNOWN_SHAPE
    num_classes: int = 0
    conv_features: Widths = (32, 64, 64)
    primary_types: Count = 16
    primary_dim: Count = 8
    class_dim: Count = 16
    routing: Algorithm = SelfAttention()
    decoder_features: Widths | None = (512, 1024)
    compute_dtype: ComputeType = "float32"
    conv_init: Start = "he_normal"
    primary_init: Start = "glorot_uniform"
    weight_init: ScaledStart = SCALED
    decoder_init: Start = "he_normal"
    reconstruction_init: Start = "lecun_normal"
    bias_init: Start = "zeros"

    def setup(self):
        """Checks the image's size and makes the layers."""
        require_data(self)
        require_algorithm(self.routing)
        kernels = (_FIRST_KERNEL, *(_KERNEL for _ in self.conv_features))
        smallest = 1 + sum(kernel - 1 for kernel in kernels)
        height, width, _ = self.image_shape
        if min(height, width) < smallest:
            raise ValueError(
                f"an image of {height}x{width} is too small for {len(kernels)} "
                f"convolutions, {_FIRST_KERNEL}x{_FIRST_KERNEL} and {_KERNEL}x"
                f"{_KERNEL}: the smallest is {smallest}x{smallest}. Choose fewer "
                "conv_features or larger images."
            )
        channels = self.primary_types * self.primary_dim
        strides = (*(1 for _ in self.conv_features), LAST_STRIDE)
        self.convs = [
            _NormedConvolution(
                features,
                kernel,
                stride,
                self.compute_dtype,
                self.conv_init,
                self.bias_init,
            )
            for features, kernel, stride in zip(
                (*self.conv_features, channels), kernels, strides, strict=True
            )
        ]
        sides = ((side - smallest) // LAST_STRIDE + 1 for side in (height, width))
        self.primary_kernel = self.param(
            "primary_kernel",
            initializer(self.primary_init),
            (*sides, 1, channels),
            jnp.float32,
        )
        self.primary_bias = self.param(
            "primary_bias", initializer(self.bias_init), (channels,), jnp.float32
        )
        self.class_caps = DenseCaps(
            self.num_classes, self.class_dim, self.routing, self.weight_init
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
        """A square within the image, and a step beyond it: there is one position."""
        height, width, _ = self.image_shape
        return min(height, width), max(height, width)

    def primary(
        self, image: Float[Array, "*batch h w c"], *, is_training: bool = False
    ) -> Float[Array, "*batch 1 1 t d"]:
        """Computes the primary capsules of images with pixels from 0 to 1.

        Args:
            image: The images.
            is_training: Normalises by the batch of all devices, and moves the averages
                that are used otherwise.

        Raises:
            ValueError: If an image is not of ``image_shape``, or too small for the
                convolutions.
            TypeError: If the pixels are not floating-point numbers.
        """
        require_shape(image, self.image_shape)
        hidden = image
        for conv in self.convs:
            hidden = conv(hidden, is_training=is_training)
        s = jnp.einsum("...hwn,hwn->...n", hidden, self.primary_kernel[:, :, 0])
        s = s + jnp.broadcast_to(self.primary_bias, s.shape)
        shape = (1, 1, self.primary_types, self.primary_dim)
        return exponential_squash(s.reshape(*s.shape[:-1], *shape))

    def encode(
        self, image: Float[Array, "*batch h w c"], *, is_training: bool = False
    ) -> Routed:
        """Computes the class capsules of images with pixels from 0 to 1.

        Args:
            image: The images.
            is_training: Normalises by the batch: see ``primary``.

        Raises:
            ValueError: On the same images as ``primary``.
            TypeError: On the same images as ``primary``.
        """
        return self.route(self.primary(image, is_training=is_training))

    def route(self, primary: Float[Array, "*batch 1 1 t d"]) -> Routed:
        """Computes the class capsules that primary capsules vote for."""
        return route_map(self.class_caps, primary)

    def decode(
        self, pose: Float[Array, "*batch n d"], mask: Float[Array, "*batch n"]
    ) -> Float[Array, "*batch h w c"]:
        """Draws images from the class capsules that the mask lets through."""
        return self.decoder(pose, mask)


class _NormedConvolution(nn.Module):
    """A convolution with bias, ReLU and then batch normalisation."""

    features: int
    kernel_size: int
    stride: int
    compute_dtype: ComputeType
    kernel_init: Start
    bias_init: Start

    @nn.compact
    def __call__(
        self, image: Float[Array, "*batch h w c"], *, is_training: bool
    ) -> Float[Array, "*batch H W n"]:
        hidden = Convolution(
            self.features,
            self.kernel_size,
            self.stride,
            self.compute_dtype,
            self.kernel_init,
            name="conv",
        )(image)
        start = initializer(self.bias_init)
        bias = self.param("bias", start, (self.features,), jnp.float32)
        hidden = nn.relu(hidden + jnp.broadcast_to(bias, hidden.shape))
        norm = nn.BatchNorm(
            not is_training,
            momentum=0.99,
            epsilon=EPSILON,
            axis_name=AXIS,
            name="norm",
        )
        return norm(hidden)
