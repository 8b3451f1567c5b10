"""Class capsules behind a stack of small convolutions, and the same without capsules.

The stack is that of https://github.com/ttdoucet/mnist, which reaches about 25 errors in
11 epochs of MNIST. The second network is the control of the first: it answers whether
the capsules or the convolutions made a difference.
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from capsjax.bounds import ComputeType, Count, Widths
from capsjax.initializers import (
    PAPER_FEATURE,
    SCALED,
    ScaledStart,
    Start,
    initializer,
    scaled_primary,
)
from capsjax.layers import (
    ConvStem,
    Decoder,
    DenseCaps,
    PrimaryCaps,
    Stem,
    make_dense,
    route_map,
)
from capsjax.models.network import UNKNOWN_SHAPE, require_data, require_shape
from capsjax.routings import Algorithm, DynamicRouting, Routed
from capsjax.routings.algorithm import ActivationKind, require_algorithm


class StemCapsNet(nn.Module):
    r"""Capsules on the last map of a :class:`capsjax.layers.Stem`.

    .. math::
        u_{hwt} = squash(W_t x_{hw} + b_t)

    are the primary capsules at each position of the map, whose positions are kept.
    Class capsules follow by routing, and a decoder. At 28x28x1 with ten
    classes there are 1,024 primary capsules in 4x4 positions, and 7.7 million
    parameters, 1.4 million of them in the decoder.

    Attributes:
        image_shape: Height, width and channels of an image. In a config the data set
            fills in this field and the next.
        num_classes: Number of class capsules.
        stem: The convolutions' sizes.
        primary_types: Kinds of primary capsules at each position.
        primary_dim: Components of a primary capsule.
        class_dim: Components of a class capsule.
        routing: The routing algorithm, a value.
        decoder_features: Widths of the decoder's hidden layers.
        compute_dtype: ``float32``, or ``bfloat16`` for the operands of large products.
        conv_init: Initializer of the convolutions' kernels.
        primary_init: Initializer of the primary capsules' kernel. ``scaled``, here and
            in the next, starts capsules as long as the paper's.
        weight_init: Initializer of the matrices ``W_ij``.
        decoder_init: Initializer of the decoder's hidden kernels.
        reconstruction_init: Initializer of the decoder's last kernel.
        bias_init: Initializer of all biases but the routing's.

    Examples:
        >>> import functools
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from capsjax.layers import Stem
        >>> from capsjax.models import StemCapsNet
        >>> small = Stem(features=(8, 16), pools=(2, 2))
        >>> network = StemCapsNet((28, 28, 1), 10, small, primary_types=4)
        >>> init = functools.partial(network.init_with_output, method="encode")
        >>> image = jnp.zeros((2, 28, 28, 1))
        >>> routed, _ = jax.eval_shape(init, jax.random.key(0), image)
        >>> routed.pose.shape
        (2, 10, 16)

    References:
        https://github.com/ttdoucet/mnist has the convolutions.
    """

    image_shape: tuple[int, int, int] = UNKNOWN_SHAPE
    num_classes: int = 0
    stem: Stem = Stem()
    primary_types: Count = 64
    primary_dim: Count = 8
    class_dim: Count = 16
    routing: Algorithm = DynamicRouting()
    decoder_features: Widths = (512, 1024)
    compute_dtype: ComputeType = "float32"
    conv_init: Start = "he_normal"
    primary_init: ScaledStart = SCALED
    weight_init: ScaledStart = SCALED
    decoder_init: Start = "he_normal"
    reconstruction_init: Start = "lecun_normal"
    bias_init: Start = "zeros"

    def setup(self):
        """Makes the layers."""
        require_data(self)
        require_algorithm(self.routing)
        self.conv_stem = ConvStem(
            self.stem, self.compute_dtype, self.conv_init, self.bias_init
        )
        # Normalised features are larger than those of the paper's first convolution.
        scaled = scaled_primary(self.primary_dim, 1 / PAPER_FEATURE)
        self.primary_caps = PrimaryCaps(
            self.primary_types,
            self.primary_dim,
            kernel_size=1,
            stride=1,
            compute_dtype=self.compute_dtype,
            kernel_init=initializer(self.primary_init, scaled),
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

    @property
    def primary_window(self) -> tuple[int, int]:
        """The pixels pooled into one position, twice: they are the step to the next.

        The convolutions see more around them.
        """
        return self.stem.step, self.stem.step

    def primary(
        self, image: Float[Array, "*batch h w c"], *, is_training: bool = False
    ) -> Float[Array, "*batch H W t d"]:
        """Computes the primary capsules of images with pixels from 0 to 1.

        Args:
            image: The images.
            is_training: Normalises by the batch of all devices, and moves the averages
                that are used otherwise.

        Raises:
            ValueError: If an image is not of ``image_shape``, or the stem's numbers do
                not fit.
            TypeError: If the pixels are not floating-point numbers.
        """
        require_shape(image, self.image_shape)
        return self.primary_caps(self.conv_stem(image, is_training=is_training))

    def encode(
        self, image: Float[Array, "*batch h w c"], *, is_training: bool = False
    ) -> Routed:
        """Computes the class capsules of images with pixels from 0 to 1.

        Args:
            image: The images.
            is_training: As for ``primary``.

        Raises:
            ValueError: As ``primary``.
            TypeError: As ``primary``.
        """
        return self.route(self.primary(image, is_training=is_training))

    def route(self, primary: Float[Array, "*batch H W t d"]) -> Routed:
        """Computes the class capsules that primary capsules vote for."""
        return route_map(self.class_caps, primary)

    def decode(
        self, pose: Float[Array, "*batch n d"], mask: Float[Array, "*batch n"]
    ) -> Float[Array, "*batch h w c"]:
        """Draws images from the class capsules that the mask lets through."""
        return self.decoder(pose, mask)


class StemCNN(nn.Module):
    """The network :class:`capsjax.models.StemCapsNet` without capsules, its control.

    The same convolutions, then the mean over all positions, and dense layers. At
    28x28x1 with ten classes it has as many parameters, within 1 %, as that network has
    without its decoder, which does not classify.

    Attributes:
        image_shape: Height, width and channels of an image. In a config the data set
            fills in this field and the next.
        num_classes: Number of classes.
        stem: The convolutions' sizes.
        hidden_features: Widths of the hidden layers, with ReLU, before the softmax;
            ``()`` for none.
        compute_dtype: ``float32``, or ``bfloat16`` for the operands of large products.
        conv_init: Initializer of the kernels before a ReLU.
        output_init: Initializer of the kernel before the softmax.
        bias_init: Initializer of all biases.

    Examples:
        >>> import functools
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from capsjax.models import StemCNN, num_parameters
        >>> init = functools.partial(StemCNN((28, 28, 1), 10).init, method="encode")
        >>> image = jnp.zeros((1, 28, 28, 1))
        >>> variables = jax.eval_shape(init, jax.random.key(0), image)
        >>> num_parameters(variables["params"])
        6300746

    References:
        https://github.com/ttdoucet/mnist has the convolutions.
    """

    image_shape: tuple[int, int, int] = UNKNOWN_SHAPE
    num_classes: int = 0
    stem: Stem = Stem()
    hidden_features: Widths = (3008,)
    compute_dtype: ComputeType = "float32"
    conv_init: Start = "he_normal"
    output_init: Start = "lecun_normal"
    bias_init: Start = "zeros"

    activation_kind: ClassVar[ActivationKind] = "logit"

    @nn.compact
    def encode(
        self, image: Float[Array, "*batch h w c"], *, is_training: bool = False
    ) -> Routed:
        """Computes the logit of each class; there are no poses.

        Args:
            image: Pixels from 0 to 1.
            is_training: Normalises by the batch of all devices, and moves the averages
                that are used otherwise.

        Raises:
            ValueError: If an image is not of ``image_shape``, or the stem's numbers do
                not fit.
        """
        require_data(self)
        require_shape(image, self.image_shape)
        stem = ConvStem(
            self.stem, self.compute_dtype, self.conv_init, self.bias_init, name="stem"
        )
        hidden = jnp.mean(stem(image, is_training=is_training), axis=(-3, -2))
        options = {"compute_dtype": self.compute_dtype, "bias_init": self.bias_init}
        for features in self.hidden_features:
            layer = make_dense(features, kernel_init=self.conv_init, **options)
            hidden = nn.relu(layer(hidden))
        output = make_dense(self.num_classes, kernel_init=self.output_init, **options)
        return Routed(None, output(hidden), None)
