"""Capsules on the features of any network: primary poses, and a head of classes."""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from capsjax.bounds import Count, Weight
from capsjax.initializers import (
    PRIMARY_LENGTH,
    SCALED,
    ScaledStart,
    Start,
    before_squash,
    initializer,
    scaled_poses,
)
from capsjax.layers.capsules import PrimaryCaps
from capsjax.layers.class_caps import ClassCaps
from capsjax.layers.conv_caps import require_choices
from capsjax.layers.convolution import Convolution
from capsjax.layers.weights import Pose
from capsjax.ops import require_axes
from capsjax.routings import Algorithm, DynamicRouting, Routed
from capsjax.routings.algorithm import require_algorithm


class PrimaryPoses(nn.Module):
    """Primary capsules with poses and activations apart, as EM routing takes them.

    A linear convolution makes the poses, and one with a sigmoid the activations.

    Attributes:
        num_types: Kinds of capsules at each position.
        dim: Components of a pose.
        kernel_size: Height and width of the window that a capsule sees.
        stride: Step of that window.
        kernel_init: Initializer of the poses' kernel. ``scaled`` makes poses about 0.35
            long of features whose root mean square is one.
        bias_init: Initializer of both biases.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from capsjax import PrimaryPoses
        >>> layer = PrimaryPoses(num_types=4)
        >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 7, 7, 32)))
        >>> pose, activation = layer.apply(variables, jnp.ones((2, 7, 7, 32)))
        >>> pose.shape, activation.shape
        ((2, 7, 7, 4, 16), (2, 7, 7, 4))

    References:
        Hinton, Sabour and Frosst 2018, section 4, *Matrix Capsules with EM Routing*,
        https://openreview.net/forum?id=HJWLfGWRb.
    """

    num_types: Count
    dim: Count = 16
    kernel_size: Count = 1
    stride: Count = 1
    kernel_init: ScaledStart = SCALED
    bias_init: Start = "zeros"

    @nn.compact
    def __call__(
        self, image: Float[Array, "*batch h w n"]
    ) -> tuple[Float[Array, "*batch H W t c"], Float[Array, "*batch H W t"]]:
        """Computes poses and activations of every window.

        Raises:
            ValueError: If an axis is missing, or the image is smaller than a window.
        """
        rule = scaled_poses(self.dim, PRIMARY_LENGTH)
        kernel_init = initializer(self.kernel_init, rule)
        features = self.num_types * self.dim
        pose = self._convolve("pose", image, features, kernel_init)
        activation = self._convolve("activation", image, self.num_types, "lecun_normal")
        pose = pose.reshape(*pose.shape[:-1], self.num_types, self.dim)
        return pose, nn.sigmoid(activation)

    def _convolve(self, name: str, image: Array, features: int, start: Start) -> Array:
        result = Convolution(
            features, self.kernel_size, self.stride, kernel_init=start, name=name
        )(image)
        bias_init = initializer(self.bias_init)
        bias = self.param(f"{name}_bias", bias_init, (features,), jnp.float32)
        return result + jnp.broadcast_to(bias, result.shape)


class CapsuleHead(nn.Module):
    """Class capsules on the feature map, or the tokens, of any network.

    A linear map turns the features of each position or token into ``primary_types``
    capsules, which are routed to the classes. For an algorithm that takes activations,
    a second linear map with a sigmoid makes them.

    Attributes:
        num_capsules: Output capsules, one for each class.
        dim: Components of an output capsule.
        routing: The algorithm, a value with its hyperparameters inside.
        inputs: ``map`` for features ``[*batch, h, w, n]``, ``tokens`` for
            ``[*batch, i, n]``.
        primary_types: Primary capsules at each position.
        primary_dim: Components of a primary capsule.
        share_positions: True to share the votes' matrices of a type among all
            positions: the head then takes maps of any size, or any number of tokens.
        coordinates: Factor of the positions that are added to the votes of a map; 0 for
            none: see :class:`capsjax.ClassCaps`.
        pose: ``vector``, or ``matrix``, for which ``primary_dim`` and ``dim`` are the
            same square: see :class:`capsjax.ConvCaps`.
        primary_init: Initializer of the first linear map. ``scaled`` makes capsules
            about 0.35 long of features whose root mean square is one, such as those
            after a layer norm.
        weight_init: Initializer of the votes' matrices.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from capsjax import CapsuleHead
        >>> head = CapsuleHead(num_capsules=5, inputs="tokens")
        >>> variables = head.init(jax.random.key(0), jnp.ones((1, 9, 64)))
        >>> head.apply(variables, jnp.ones((2, 16, 64))).pose.shape
        (2, 5, 16)

    References:
        Sabour, Frosst and Hinton 2017, section 4, https://arxiv.org/abs/1710.09829, for
        primary and class capsules. Hinton, Sabour and Frosst 2018, section 4, *Matrix
        Capsules with EM Routing*, https://openreview.net/forum?id=HJWLfGWRb, for
        activations, shared matrices and coordinates.
    """

    num_capsules: Count
    dim: Count = 16
    routing: Algorithm = DynamicRouting()
    inputs: Literal["map", "tokens"] = "map"
    primary_types: Count = 8
    primary_dim: Count = 8
    share_positions: bool = True
    coordinates: Weight = 0.0
    pose: Pose = "vector"
    primary_init: ScaledStart = SCALED
    weight_init: ScaledStart = SCALED

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "*batch n"],
        *,
        mask: Bool[Array, "..."] | None = None,
        with_couplings: bool = False,
        **competition: Any,
    ) -> Routed:
        """Routes the features to the class capsules.

        Args:
            features: A map ``[*batch, h, w, n]``, or tokens ``[*batch, i, n]``.
            mask: False for positions or tokens that are padding, ``[*batch, h, w]`` or
                ``[*batch, i]``: they send nothing, NaN or not.
            with_couplings: True to return couplings whatever the algorithm's ``form``.
            competition: ``initial_logit``, ``output_mask`` and ``compete``: see
                :class:`capsjax.routings.Algorithm`.

        Returns:
            Poses ``[*batch, j, d]``, activations ``[*batch, j]`` in the algorithm's
            ``activation_kind``, and couplings of the primary capsules, ``(h w t)`` or
            ``(i t)``, perhaps.

        Raises:
            TypeError: If ``routing`` is no value of an algorithm, or the features are
                not floating-point numbers.
            ValueError: If the arrays do not fit.
        """
        require_algorithm(self.routing)
        require_choices(self)
        has_tokens = self.inputs == "tokens"
        require_axes("features", features, "in" if has_tokens else "hwn")
        if mask is not None and mask.shape != features.shape[:-1]:
            raise ValueError(
                f"mask must have one entry for each position, {features.shape[:-1]}, "
                f"got shape {mask.shape}."
            )
        if has_tokens:
            if self.coordinates:
                raise ValueError(
                    "coordinates are those of a map: set coordinates=0 for "
                    f"inputs='tokens', got {self.coordinates}."
                )
            # A map of one column.
            features = jnp.expand_dims(features, -2)
            mask = None if mask is None else mask[..., None]
        if mask is not None:
            features = jnp.where(mask[..., None], features, 0)
            mask = jnp.broadcast_to(mask[..., None], (*mask.shape, self.primary_types))
        capsules, activation = self._primary(features)
        class_caps = ClassCaps(
            self.num_capsules,
            self.dim,
            self.routing,
            self.share_positions,
            self.coordinates,
            self.pose,
            weight_init=self.weight_init,
            name="class_caps",
        )
        return class_caps(
            capsules,
            activation,
            input_mask=mask,
            with_couplings=with_couplings,
            **competition,
        )

    def _primary(self, features: Array) -> tuple[Array, Array | None]:
        sizes = self.primary_types, self.primary_dim, 1, 1
        if self.routing.takes_activation:
            layer = PrimaryPoses(*sizes, self.primary_init, name="primary_caps")
            return layer(features)
        rule = scaled_poses(self.primary_dim, before_squash(PRIMARY_LENGTH))
        start = initializer(self.primary_init, rule)
        layer = PrimaryCaps(*sizes, kernel_init=start, name="primary_caps")
        return layer(features), None
