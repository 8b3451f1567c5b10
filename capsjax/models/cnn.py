"""The paper's baseline, a convolutional network without capsules."""

import functools
import math
from typing import ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from capsjax.bounds import ComputeType, Count, Decay, Widths
from capsjax.initializers import Start, initializer
from capsjax.layers import Convolution, make_dense
from capsjax.models.network import UNKNOWN_SHAPE, require_data, require_shape
from capsjax.routings.algorithm import ActivationKind, Routed


class BaselineCNN(nn.Module):
    """The convolutional network that the paper compares CapsNet with.

    Convolutions with ReLU, hidden layers with ReLU, dropout, and a softmax. By default
    three convolutions keep the size of the image, and two hidden layers follow: at
    28x28x1 with ten classes it has the paper's 35.4 million parameters.

    Attributes:
        image_shape: Height, width and channels of an image. In a config the data set
            fills in this field and the next.
        num_classes: Number of classes.
        conv_features: Channels of each convolution.
        conv_kernel: Height and width of their kernels.
        hidden_features: Widths of the hidden layers.
        dropout: Share of the last hidden units that a training step drops.
        compute_dtype: ``float32``, or ``bfloat16`` for the operands of large products.
        kernel_init: Initializer of the kernels before a ReLU.
        output_init: Initializer of the kernel before the softmax.
        bias_init: Initializer of all biases.
        conv_strides: Step of each convolution's window; empty for steps of 1.
        conv_padding: ``SAME`` for zeros around the images, or ``VALID`` for none.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from capsjax.models import BaselineCNN, num_parameters
        >>> network, image = BaselineCNN((28, 28, 1), 10), jnp.zeros((1, 28, 28, 1))
        >>> num_parameters(jax.eval_shape(network.init, jax.random.key(0), image))
        35445522

    References:
        Sabour, Frosst and Hinton 2017, section 5, https://arxiv.org/abs/1710.09829.
    """

    image_shape: tuple[int, int, int] = UNKNOWN_SHAPE
    num_classes: int = 0
    conv_features: Widths = (256, 256, 128)
    conv_kernel: Count = 5
    hidden_features: Widths = (328, 192)
    dropout: Decay = 0.5
    compute_dtype: ComputeType = "float32"
    kernel_init: Start = "he_normal"
    output_init: Start = "lecun_normal"
    bias_init: Start = "zeros"
    conv_strides: Widths = ()
    conv_padding: Literal["SAME", "VALID"] = "SAME"

    activation_kind: ClassVar[ActivationKind] = "logit"

    @nn.compact
    def encode(
        self, image: Float[Array, "*batch h w c"], *, is_training: bool = False
    ) -> Routed:
        """Computes the logit of each class; there are no poses.

        Args:
            image: Pixels from 0 to 1.
            is_training: Drops some of the last hidden units, drawn from the rng
                ``dropout``.

        Raises:
            ValueError: If an image is not of ``image_shape``, or the number of strides
                is not the number of convolutions.
        """
        require_data(self)
        strides = self.conv_strides or (1,) * len(self.conv_features)
        if len(strides) != len(self.conv_features):
            raise ValueError(
                "conv_strides must be empty, or have a number for each of "
                f"conv_features={self.conv_features}; got {strides}."
            )
        require_shape(image, self.image_shape)
        hidden = image
        layers = zip(self.conv_features, strides, strict=True)
        for n, (features, stride) in enumerate(layers):
            hidden = Convolution(
                features,
                self.conv_kernel,
                stride,
                self.compute_dtype,
                initializer(self.kernel_init),
                padding=self.conv_padding,
                name=f"conv{n}",
            )(hidden)
            start = initializer(self.bias_init)
            bias = self.param(f"conv{n}_bias", start, (features,), jnp.float32)
            hidden = nn.relu(hidden + jnp.broadcast_to(bias, hidden.shape))
        hidden = hidden.reshape(*hidden.shape[:-3], math.prod(hidden.shape[-3:]))
        dense = functools.partial(
            make_dense, compute_dtype=self.compute_dtype, bias_init=self.bias_init
        )
        for features in self.hidden_features:
            hidden = nn.relu(dense(features, kernel_init=self.kernel_init)(hidden))
        hidden = nn.Dropout(self.dropout, deterministic=not is_training)(hidden)
        logits = dense(self.num_classes, kernel_init=self.output_init)(hidden)
        return Routed(None, logits, None)

    def __call__(
        self, image: Float[Array, "*batch h w c"], *, is_training: bool = False
    ) -> Routed:
        """Calls ``encode``."""
        return self.encode(image, is_training=is_training)
