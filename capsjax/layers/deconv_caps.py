"""Deconvolutional capsules: a map of capsules votes for those of a larger map."""

import math
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from capsjax.bounds import Count, Scale
from capsjax.initializers import PRIMARY_LENGTH, SCALED, ScaledStart
from capsjax.layers.conv_caps import InputActivation, input_activation, require_choices
from capsjax.layers.weights import Sizes, make_matrices, make_parameters
from capsjax.ops import require_axes
from capsjax.routings import Algorithm, DynamicRouting, Routed, SelfRouting
from capsjax.routings.algorithm import require_algorithm
from capsjax.votes import cast_upsampled


class DeconvCaps(nn.Module):
    r"""Deconvolutional capsules: routes to a map ``stride`` times as high and wide.

    .. math::
        \hat u_{j|t} = \sum_k W_{ktj} u_{kt}, \quad
        v_j = routing_j(\hat u)

    A transposed convolution of the capsules of each input type ``t`` casts one vote of
    the type at each output position: the sum over the positions ``k`` whose windows
    hold it. The types' votes are routed there. In the last layer of a network that
    segments images, an output type is a class, and the activation says which class each
    pixel is of: background is a class, too.

    Attributes:
        num_types: Kinds of output capsules at each position.
        dim: Components of an output capsule.
        kernel_size: Height and width of a window, at least ``stride``. Multiples of the
            stride give each position equally many votes.
        stride: Factor between the sides of the maps.
        routing: The algorithm, a value with its hyperparameters inside. It must route
            votes: ``SelfRouting`` needs the poses.
        share_types: True to share the matrices of a position among the input types, as
            SegCaps does: the number of weights does not grow with the types.
        input_activation: Activations of the inputs if none are given and the algorithm
            takes them: ``length`` for the lengths of the poses; ``given`` refuses that.
            A vote's activation is the mean of the activations of the capsules that it
            adds up.
        weight_init: Initializer of ``W``; ``scaled`` fits it to the sizes, as in
            :class:`capsjax.DenseCaps`.
        input_length: Root mean square length of the input capsules at the start, for
            ``scaled``.
        start_length: Root mean square length of squashed outputs at the start.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from capsjax import DeconvCaps
        >>> capsules = jnp.full((2, 7, 7, 4, 8), 0.1)
        >>> layer = DeconvCaps(num_types=3, dim=16)
        >>> routed, _ = layer.init_with_output(jax.random.key(0), capsules)
        >>> routed.pose.shape, routed.activation.shape
        ((2, 14, 14, 3, 16), (2, 14, 14, 3))

    References:
        LaLonde and Bagci 2018, *Capsules for Object Segmentation*, section 3,
        https://arxiv.org/abs/1804.04241.
    """

    start_length: ClassVar[float] = PRIMARY_LENGTH

    num_types: Count
    dim: Count
    kernel_size: Count = 4
    stride: Count = 2
    routing: Algorithm = DynamicRouting(bias=0.1)
    share_types: bool = True
    input_activation: InputActivation = "given"
    weight_init: ScaledStart = SCALED
    input_length: Scale = PRIMARY_LENGTH

    @nn.compact
    def __call__(
        self,
        capsules: Float[Array, "*batch h w t c"],
        activation: Float[Array, "*batch h w t"] | None = None,
        *,
        with_couplings: bool = False,
    ) -> Routed:
        """Routes the votes for every position of the larger map.

        Args:
            capsules: The map of input capsules.
            activation: Presence of the input capsules, from 0 to 1, if the algorithm
                takes it.
            with_couplings: True to return couplings.

        Returns:
            Poses ``[*batch, H, W, j, d]``, activations ``[*batch, H, W, j]``, and, with
            couplings, ``[*batch, H, W, t, j]``, for ``H = stride h`` and
            ``W = stride w``.

        Raises:
            TypeError: If ``routing`` is no value of an algorithm.
            ValueError: If the kernel is smaller than the stride, the algorithm does not
                route votes, or the arrays do not fit it.
        """
        require_algorithm(self.routing)
        require_choices(self)
        require_axes("capsules", capsules, "hwtc")
        self._require_votes()
        activation = input_activation(
            self.routing, self.input_activation, capsules, activation
        )
        *_, t, c = capsules.shape
        own = 1 if self.share_types else t
        dims = self.num_types, self.dim, c
        weight = make_matrices(
            self,
            Sizes(self.kernel_size**2, own, (self.kernel_size**2, own)),
            dims,
            pose="vector",
            weight_init=self.weight_init,
            routing=self.routing,
            lengths=(self._input_length(t / own), self.start_length),
        )
        weight = weight.reshape(self.kernel_size**2, own, *weight.shape[1:])
        if activation is not None:
            activation = self._upsampled(activation)
        routed = self.routing(
            cast_upsampled(capsules, weight, self.stride),
            activation,
            parameters=make_parameters(self, Sizes(1, t, (1, own)), dims, self.routing),
        )
        return routed if with_couplings else routed._replace(coupling=None)

    def _require_votes(self) -> None:
        if self.kernel_size < self.stride:
            raise ValueError(
                f"kernel_size must be at least stride={self.stride}, so that every "
                f"position gets votes; got {self.kernel_size}."
            )
        if isinstance(self.routing, SelfRouting):
            raise ValueError(
                "routing must be an algorithm that routes votes, got SelfRouting(): it "
                "needs the pose of one capsule, and a vote here adds up several."
            )

    def _input_length(self, num_sharing: float) -> float:
        """Returns the length for the rule of layers in which each input votes alone."""
        added = self.kernel_size / self.stride  # Along a side, in a vote.
        if self.routing.vote_deviation is not None:
            return self.input_length * added
        # The rule counts kernel_size^2 inputs of each type that has own weights.
        return self.input_length * math.sqrt(num_sharing) / self.stride

    def _upsampled(
        self, activation: Float[Array, "*batch h w t"]
    ) -> Float[Array, "*batch H W t"]:
        """Returns the mean activation of the capsules that a vote adds up."""
        ones = jnp.ones((self.kernel_size**2, 1, 1, 1, 1), activation.dtype)
        total, count = (
            cast_upsampled(x[..., None], ones, self.stride)[..., 0, 0]
            for x in (activation, jnp.ones_like(activation))
        )
        return total / count
