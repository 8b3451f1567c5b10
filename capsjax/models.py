"""Whole networks: an image in, class capsules and a reconstruction out; a baseline."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from capsjax import config as configs
from capsjax.initializers import SCALED, Initializer, initializer, scaled_kernel
from capsjax.layers import (
    Convolution,
    Decoder,
    DenseCaps,
    PrimaryCaps,
    make_dense,
)
from capsjax.routings import ROUTINGS, DynamicRouting, Routed, Routing


def mask_longest(
    activation: Float[Array, "*batch n"], count: int | Int[Array, "*batch"] = 1
) -> Float[Array, "*batch n"]:
    """One at the ``count`` most active capsules, zero elsewhere: the mask of inference.

    Of equally active ones it is the first.
    """
    # The mask has no gradient, and JAX's of a sort fails under explicit sharding.
    activation = jax.lax.stop_gradient(activation)
    rank = jnp.argsort(jnp.argsort(-activation, axis=-1), axis=-1)
    count = jnp.broadcast_to(jnp.asarray(count), activation.shape[:-1])
    return (rank < count[..., None]).astype(jnp.float32)


def split_mask(
    mask: Float[Array, "*batch n"], count: int
) -> Float[Array, "*batch s n"]:
    """A mask for each of the ``count`` capsules that a mask lets through, in order."""
    _, index = jax.lax.top_k(mask, count)  # Of equal values the first.
    return jax.nn.one_hot(index, mask.shape[-1], dtype=jnp.float32)


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
    routing: Routing = DynamicRouting()
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
        _require_shape(image, self.image_shape)
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
        _require_shape(image, self.image_shape)
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


Network = CapsNet | BaselineCNN


def prepare(
    model: Network, params: Any, *, batch_size: int
) -> Callable[[Float[Array, "batch h w c"]], Any]:
    """Compiles inference, without the decoder, of kernels that are transformed once.

    Training can't do that: its weights change with every step.

    Args:
        model: The network.
        params: Its weights.
        batch_size: Images at a time; others work, but may be slower.

    Returns:
        A function from images, with pixels from 0 to 1, to class capsules, or the
        baseline's log-probabilities.
    """
    method = model.encode if isinstance(model, CapsNet) else model.__call__

    @jax.jit
    def transform(params):
        image = jnp.zeros((batch_size, *model.image_shape), jnp.float32)
        return model.apply(params, image, method=method, mutable=["prepared"])[1]

    encode = jax.jit(functools.partial(model.apply, method=method))
    return functools.partial(encode, {**params, **transform(params)})


def make_model(
    config: configs.Model, image_shape: tuple[int, int, int], num_classes: int
) -> Network:
    """The network that a config describes, for images of that shape.

    Raises:
        ValueError: If the config names a routing or an initialiser that is not there.
    """
    init = config.initializers

    def start(field: str) -> Initializer:
        try:
            return initializer(getattr(init, field))
        except ValueError as error:
            raise ValueError(f"config.model.initializers.{field}: {error}") from error

    def start_or_scaled(field: str) -> Initializer | None:
        if getattr(init, field) == SCALED:
            return None
        try:
            return start(field)
        except ValueError as error:
            raise ValueError(f"{str(error)[:-1]}, or {SCALED}.") from error

    if config.name == "cnn":
        return BaselineCNN(
            image_shape=image_shape,
            num_classes=num_classes,
            dropout=config.dropout,
            compute_dtype=config.compute_dtype,
            bias_init=start("bias"),
        )
    if config.routing not in ROUTINGS:
        raise ValueError(
            f"config.model.routing must be one of {sorted(ROUTINGS)}, got "
            f"{config.routing!r}."
        )
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
        conv_init=start_or_scaled("conv") or scaled_kernel,
        primary_init=start_or_scaled("primary"),
        weight_init=start_or_scaled("weight"),
        decoder_init=start("decoder"),
        reconstruction_init=start("reconstruction"),
        bias_init=start("bias"),
    )


def num_parameters(params: Any) -> int:
    """How many numbers the weights are."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _require_shape(image: Array, image_shape: tuple[int, int, int]) -> None:
    if image.shape[-3:] != tuple(image_shape):
        raise ValueError(
            f"the network is for images of shape {tuple(image_shape)}, got "
            f"{image.shape[-3:]}."
        )
