"""Whole networks: an image in, class capsules and a reconstruction out."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from capsjax import config as configs
from capsjax.initializers import initializer
from capsjax.layers import Convolution, Decoder, DenseCaps, Initializer, PrimaryCaps
from capsjax.routings import ROUTINGS, DynamicRouting, Routed, Routing


def mask_longest(activation: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
    """One at the most active capsule, zero elsewhere: the mask of inference."""
    return jax.nn.one_hot(jnp.argmax(activation, axis=-1), activation.shape[-1])


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
        conv_init: How the first convolution's kernel starts.
        primary_init: How the primary capsules' kernel starts.
        weight_init: How the matrices ``W_ij`` start.
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
    routing: Routing = DynamicRouting()
    decoder_features: tuple[int, ...] = (512, 1024)
    compute_dtype: str = "float32"
    conv_init: Initializer = jax.nn.initializers.normal(0.064)
    primary_init: Initializer = jax.nn.initializers.normal(0.0098)
    weight_init: Initializer = jax.nn.initializers.normal(0.02)
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
        self.conv_bias = self.param("conv_bias", self.bias_init, (self.conv_features,))
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
        """
        if image.shape[-3:] != tuple(self.image_shape):
            raise ValueError(
                f"the network is for images of shape {tuple(self.image_shape)}, got "
                f"{image.shape[-3:]}."
            )
        features = self.conv(image)
        features = nn.relu(features + jnp.broadcast_to(self.conv_bias, features.shape))
        return self.primary_caps(features)

    def encode(self, image: Float[Array, "*batch h w c"]) -> Routed:
        """The class capsules of images with pixels from 0 to 1.

        Raises:
            ValueError: As of ``primary``.
        """
        primary = self.primary(image)
        capsules = primary.reshape(*primary.shape[:-4], -1, primary.shape[-1])
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


def prepare(
    model: CapsNet, params: Any, *, batch_size: int
) -> Callable[[Float[Array, "batch h w c"]], Routed]:
    """A compiled ``encode`` whose kernels have been transformed once, for inference.

    Training can't do that: its weights change with every step.

    Args:
        model: The network.
        params: Its weights.
        batch_size: Images at a time; others work, but may be slower.

    Returns:
        A function from images, with pixels from 0 to 1, to class capsules.
    """

    @jax.jit
    def transform(params):
        image = jnp.zeros((batch_size, *model.image_shape))
        return model.apply(params, image, method=model.encode, mutable=["prepared"])[1]

    encode = jax.jit(functools.partial(model.apply, method=model.encode))
    return functools.partial(encode, {**params, **transform(params)})


def make_model(
    config: configs.Model, image_shape: tuple[int, int, int], num_classes: int
) -> CapsNet:
    """The network that a config describes, for images of that shape.

    Raises:
        ValueError: If the config names a routing or an initialiser that is not there.
    """
    if config.routing not in ROUTINGS:
        raise ValueError(
            f"config.model.routing must be one of {sorted(ROUTINGS)}, got "
            f"{config.routing!r}."
        )
    init = config.initializers

    def start(field: str) -> Initializer:
        try:
            return initializer(getattr(init, field))
        except ValueError as error:
            raise ValueError(f"config.model.initializers.{field}: {error}") from error

    return CapsNet(
        image_shape=image_shape,
        num_classes=num_classes,
        conv_features=config.conv_features,
        conv_kernel=config.conv_kernel,
        primary_types=config.primary_types,
        primary_dim=config.primary_dim,
        primary_kernel=config.primary_kernel,
        primary_stride=config.primary_stride,
        primary_activation=nn.relu if config.primary_relu else None,
        primary_scale=config.primary_scale,
        class_dim=config.class_dim,
        routing=ROUTINGS[config.routing](
            num_iterations=config.num_iterations,
            bias=init.routing_bias if config.routing_bias else None,
            none_of_the_above=config.none_of_the_above,
            stop_gradient=config.stop_gradient,
        ),
        decoder_features=config.decoder_features,
        compute_dtype=config.compute_dtype,
        conv_init=start("conv"),
        primary_init=start("primary"),
        weight_init=start("weight"),
        decoder_init=start("decoder"),
        reconstruction_init=start("reconstruction"),
        bias_init=start("bias"),
    )
