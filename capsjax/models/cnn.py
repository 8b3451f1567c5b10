"""The paper's baseline, a convolutional network without capsules."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from capsjax.initializers import Initializer
from capsjax.layers import (
    Convolution,
    make_dense,
)
from capsjax.models.capsnet import require_shape


class BaselineCNN(nn.Module):
    """The convolutional network that the paper compares with.

    Three convolutions with ReLU that keep the size of the image, two hidden layers with
    ReLU, dropout, and a softmax. At 28x28x1 with ten classes it has the paper's 35.4
    million parameters.

    Attributes:
        image_shape: Height, width and channels of an image.
        num_classes: Classes.
        conv_features: Channels of each convolution.
        conv_kernel: Their height and width.
        hidden_features: Widths of the hidden layers.
        dropout: The share of the last hidden units that a training step leaves out.
        compute_dtype: ``float32``, or ``bfloat16`` for the operands of large products.
        kernel_init: How the kernels before a ReLU start.
        output_init: How the kernel before the softmax starts.
        bias_init: How all biases start.

    References:
        Sabour, Frosst and Hinton 2017, section 5, https://arxiv.org/abs/1710.09829.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    conv_features: tuple[int, ...] = (256, 256, 128)
    conv_kernel: int = 5
    hidden_features: tuple[int, ...] = (328, 192)
    dropout: float = 0.5
    compute_dtype: str = "float32"
    kernel_init: Initializer = jax.nn.initializers.he_normal()
    output_init: Initializer = jax.nn.initializers.lecun_normal()
    bias_init: Initializer = jax.nn.initializers.zeros

    @nn.nowrap
    def draw_kept(self, key: Key[Array, ""], num_images: int) -> Bool[Array, "batch u"]:
        """Draws which of the last hidden units take part, for each image."""
        shape = (num_images, self.hidden_features[-1])
        return jax.random.bernoulli(key, 1 - self.dropout, shape)

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "*batch h w c"],
        kept: Bool[Array, "*batch u"] | None = None,
    ) -> Float[Array, "*batch n"]:
        """The logarithm of each class's probability.

        Args:
            image: Pixels from 0 to 1.
            kept: What ``draw_kept`` drew, in training; by default all units take part.

        Raises:
            ValueError: If an image is not of ``image_shape``.
        """
        require_shape(image, self.image_shape)
        hidden = image
        for n, features in enumerate(self.conv_features):
            hidden = Convolution(
                features,
                self.conv_kernel,
                compute_dtype=self.compute_dtype,
                kernel_init=self.kernel_init,
                padding="SAME",
                name=f"conv{n}",
            )(hidden)
            bias = self.param(f"conv{n}_bias", self.bias_init, (features,), jnp.float32)
            hidden = nn.relu(hidden + jnp.broadcast_to(bias, hidden.shape))
        hidden = hidden.reshape(*hidden.shape[:-3], math.prod(hidden.shape[-3:]))
        dense = functools.partial(
            make_dense, compute_dtype=self.compute_dtype, bias_init=self.bias_init
        )
        for features in self.hidden_features:
            hidden = nn.relu(dense(features, kernel_init=self.kernel_init)(hidden))
        if kept is not None:
            hidden = jnp.where(kept, hidden / (1 - self.dropout), 0)
        logits = dense(self.num_classes, kernel_init=self.output_init)(hidden)
        return nn.log_softmax(logits)
