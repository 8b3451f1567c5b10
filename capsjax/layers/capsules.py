"""The paper's two layers of capsules: primary, and fully connected."""

from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from capsjax.bounds import ComputeType, Count, Scale
from capsjax.initializers import (
    CLASS_LENGTH,
    PRIMARY_LENGTH,
    SCALED,
    ScaledStart,
    Start,
    initializer,
    scaled_primary,
    scaled_votes,
)
from capsjax.layers.convolution import Convolution
from capsjax.ops import flatten_capsules, require_axes, safe_norm, squash
from capsjax.routings import Algorithm, DynamicRouting, Routed
from capsjax.routings.algorithm import parameter_shapes, require_algorithm


class PrimaryCaps(nn.Module):
    r"""Primary capsules: a convolution whose channels are grouped into poses.

    .. math::
        u_{hwt} = squash(f(g \, (K * x)_{hwt} + b_t))

    ``f`` is ``activation``, if there is one, and ``g`` is ``scale``. Capsule type ``t``
    at one position holds the neighbouring channels ``t c .. t c + c - 1`` of that
    position.

    Attributes:
        num_types: Kinds of capsules at each position.
        dim: Components of a capsule.
        kernel_size: Height and width of the window that a capsule sees.
        stride: Step of that window.
        activation: Function applied before the squash; None as in the paper.
        scale: Factor of the convolution's result; 1 as in the paper.
        compute_dtype: Type of the convolution's operands; its sums are float32.
        kernel_init: Initializer of the kernel. ``scaled`` makes the capsules start
            about ``start_length`` long at any size, on features like the paper's first
            convolution: see ``initializers.scaled_primary``.
        bias_init: Initializer of the bias.
        start_length: Root mean square length of the capsules at the start.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from capsjax import PrimaryCaps
        >>> layer = PrimaryCaps(num_types=4, dim=8, kernel_size=3)
        >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 9, 9, 16)))
        >>> layer.apply(variables, jnp.ones((2, 9, 9, 16))).shape
        (2, 4, 4, 4, 8)

    References:
        Sabour, Frosst and Hinton 2017, section 4, https://arxiv.org/abs/1710.09829.
    """

    start_length: ClassVar[float] = PRIMARY_LENGTH

    num_types: Count = 32
    dim: Count = 8
    kernel_size: Count = 9
    stride: Count = 2
    activation: Callable[[Array], Array] | None = None
    scale: Scale = 1.0
    compute_dtype: ComputeType = "float32"
    kernel_init: ScaledStart = SCALED
    bias_init: Start = "zeros"

    @nn.compact
    def __call__(
        self, image: Float[Array, "*batch h w n"]
    ) -> Float[Array, "*batch H W t c"]:
        """Computes the capsules of every window of the image.

        Raises:
            TypeError: If the image is not floating-point numbers.
            ValueError: If an axis is missing, or the image is smaller than a window.
        """
        features = self.num_types * self.dim
        s = Convolution(
            features,
            self.kernel_size,
            self.stride,
            self.compute_dtype,
            initializer(self.kernel_init, scaled_primary(self.dim, self.scale)),
            name="conv",
        )(image)
        bias = self.param("bias", initializer(self.bias_init), (features,), jnp.float32)
        s = self.scale * s + jnp.broadcast_to(bias, s.shape)
        if self.activation is not None:
            s = self.activation(s)
        return squash(s.reshape(*s.shape[:-1], self.num_types, self.dim))


class DenseCaps(nn.Module):
    r"""Fully connected capsules: one matrix ``W_ij`` for each pair, then routing.

    .. math::
        \hat u_{j|i} = W_{ij} u_i, \quad
        v_j = routing_j(\hat u)

    Attributes:
        num_capsules: Output capsules.
        dim: Components of an output capsule.
        routing: The algorithm, a value with its hyperparameters inside.
        share_weight: True to share one matrix ``W_j`` among all inputs: the layer then
            takes any number of inputs.
        weight_init: Initializer of ``W``. Its scale decides whether and how fast the
            network learns: too large, and every length saturates at one; too small, and
            lengths and gradients start near zero. ``scaled`` makes the capsules start
            about ``start_length`` long for any number of inputs, outputs and
            components, or the votes as large as the algorithm's ``vote_deviation``: see
            ``initializers.scaled_votes``.
        input_length: Root mean square length of the input capsules at the start, for
            ``scaled``. The default fits the paper's primary capsules; above another
            ``DenseCaps``, set that layer's ``start_length``.
        start_length: Root mean square length of the capsules at the start.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from capsjax import DenseCaps, DynamicRouting
        >>> layer = DenseCaps(num_capsules=10, dim=16, routing=DynamicRouting())
        >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 32, 8)))
        >>> layer.apply(variables, jnp.ones((2, 32, 8))).pose.shape
        (2, 10, 16)

    References:
        Sabour, Frosst and Hinton 2017, section 4, and Eq. 2 for the votes,
        https://arxiv.org/abs/1710.09829.
    """

    start_length: ClassVar[float] = CLASS_LENGTH

    num_capsules: Count
    dim: Count
    routing: Algorithm = DynamicRouting()
    weight_init: ScaledStart = SCALED
    input_length: float = PRIMARY_LENGTH
    share_weight: bool = False

    @nn.compact
    def __call__(
        self,
        capsules: Float[Array, "*batch i c"],
        activation: Float[Array, "*batch i"] | None = None,
        **competition: Any,
    ) -> Routed:
        """Routes the votes of the input capsules to the output capsules.

        Args:
            capsules: The input capsules.
            activation: Presence of each input capsule, if the algorithm takes it.
            competition: ``initial_logit``, ``input_mask``, ``output_mask`` and
                ``compete``: see :class:`capsjax.routings.Algorithm`.

        Raises:
            TypeError: If ``routing`` is no value of an algorithm.
            ValueError: If the capsules lack an axis, or the arrays do not fit the
                algorithm.
        """
        require_algorithm(self.routing)
        require_axes("capsules", capsules, "ic")
        i, c = capsules.shape[-2:]
        size = {"i": i, "j": self.num_capsules, "d": self.dim, "c": c}
        scaled = scaled_votes(self.input_length, self.routing.vote_deviation)
        start = initializer(self.weight_init, scaled)
        shape = (i, self.num_capsules, self.dim, c)
        if self.share_weight:
            # The shared matrix starts like one of ``i`` matrices.
            def start_one(key, shape, dtype):
                return start(key, (i, *shape), dtype)[0]

            weight = self.param("weight", start_one, shape[1:], jnp.float32)
        else:
            weight = self.param("weight", start, shape, jnp.float32)
        shapes = parameter_shapes(self.routing, size)
        parameters = {
            name: self.param(name, own.init, shapes[name], jnp.float32)
            for name, own in self.routing.declared_parameters.items()
        }
        return self.routing.from_capsules(
            capsules, weight, activation, parameters=parameters, **competition
        )


def route_map(layer: DenseCaps, capsules: Float[Array, "*batch h w t c"]) -> Routed:
    """Routes a map of capsules by a layer, with their lengths as activations."""
    flat, _ = flatten_capsules(capsules)
    return layer(flat, safe_norm(flat) if layer.routing.takes_activation else None)
