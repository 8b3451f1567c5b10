"""What training and evaluation need of a network, and how one is made."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from capsjax import config as configs
from capsjax.initializers import SCALED, Initializer, initializer, scaled_kernel
from capsjax.models.capsnet import CapsNet
from capsjax.models.cnn import BaselineCNN
from capsjax.routings import ROUTINGS, Algorithm

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
        routing=_make_routing(config),
        decoder_features=config.decoder_features,
        compute_dtype=config.compute_dtype,
        conv_init=start_or_scaled("conv") or scaled_kernel,
        primary_init=start_or_scaled("primary"),
        weight_init=start_or_scaled("weight"),
        decoder_init=start("decoder"),
        reconstruction_init=start("reconstruction"),
        bias_init=start("bias"),
    )


def _make_routing(config: configs.Model) -> Algorithm:
    """The algorithm of that name, of the fields that it has."""
    kind: Any = ROUTINGS[config.routing]
    bias = config.initializers.routing_bias if config.routing_bias else None
    options = {
        "num_iterations": config.num_iterations,
        "bias": bias,
        "none_of_the_above": config.none_of_the_above,
        "stop_gradient": config.stop_gradient,
    }
    own = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in options.items() if name in own})


def num_parameters(params: Any) -> int:
    """How many numbers the weights are."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
