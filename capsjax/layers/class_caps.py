"""Class capsules over a map of capsules."""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from capsjax.bounds import Count, Scale, Weight
from capsjax.initializers import CLASS_LENGTH, PRIMARY_LENGTH, SCALED, ScaledStart
from capsjax.layers.conv_caps import (
    InputActivation,
    input_activation,
    require_choices,
)
from capsjax.layers.weights import Pose, Sizes, make_matrices, make_parameters
from capsjax.ops import flatten_capsules, require_axes
from capsjax.routings import Algorithm, DynamicRouting, Routed
from capsjax.routings.algorithm import require_algorithm
from capsjax.votes import pose_side


class ClassCaps(nn.Module):
    r"""Class capsules: routes all capsules of a map to one capsule for each class.

    .. math::
        \hat u_{j|hwt} = W_{tj} u_{hwt} + f \, (y_h, x_w, 0, \ldots, 0), \quad
        v_j = routing_j(\hat u)

    ``f`` is ``coordinates``, and ``y``, ``x`` are the row and the column. Without
    ``share_positions`` the matrices are ``W_hwtj``.

    Attributes:
        num_capsules: Output capsules.
        dim: Components of an output capsule.
        routing: The algorithm, a value with its hyperparameters inside.
        share_positions: True to share the matrices of a type among all positions: the
            layer then takes maps of any size, and a type votes alike everywhere.
        coordinates: Factor of the row and the column that are added to two components
            of each vote, so that shared matrices know the position; 0 for none. Rows
            and columns count from -0.5 to 0.5 over the map. They are added to the first
            two entries of the right-hand column of a matrix, and to the first two
            components of a vector.
        pose: ``vector``, or ``matrix``: see :class:`capsjax.ConvCaps`.
        input_activation: Activations of the inputs if none are given and the algorithm
            takes them: ``length`` for the lengths of the poses; ``given`` refuses that.
        weight_init: Initializer of ``W``; ``scaled`` fits it to the sizes, as in
            :class:`capsjax.DenseCaps`.
        input_length: Root mean square length of the input capsules at the start, for
            ``scaled``.
        start_length: Root mean square length of squashed outputs at the start.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from capsjax import ClassCaps
        >>> layer = ClassCaps(num_capsules=10, dim=16)
        >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 7, 7, 2, 8)))
        >>> layer.apply(variables, jnp.ones((2, 5, 5, 2, 8))).pose.shape
        (2, 10, 16)

    References:
        Hinton, Sabour and Frosst 2018, section 4, *Matrix Capsules with EM Routing*,
        https://openreview.net/forum?id=HJWLfGWRb.
    """

    start_length: ClassVar[float] = CLASS_LENGTH

    num_capsules: Count
    dim: Count
    routing: Algorithm = DynamicRouting(bias=0.1)
    share_positions: bool = True
    coordinates: Weight = 0.0
    pose: Pose = "vector"
    input_activation: InputActivation = "given"
    weight_init: ScaledStart = SCALED
    input_length: Scale = PRIMARY_LENGTH

    @nn.compact
    def __call__(
        self,
        capsules: Float[Array, "*batch h w t c"],
        activation: Float[Array, "*batch h w t"] | None = None,
        *,
        input_mask: Bool[Array, "*batch h w t"] | None = None,
        with_couplings: bool = False,
        **competition: Any,
    ) -> Routed:
        """Routes all capsules of the map.

        Args:
            capsules: The map of input capsules.
            activation: Presence of the input capsules, from 0 to 1, if the algorithm
                takes it.
            input_mask: False for capsules that send nothing.
            with_couplings: True to return couplings whatever the algorithm's ``form``.
            competition: ``initial_logit``, ``output_mask`` and ``compete``: see
                :class:`capsjax.routings.Algorithm`.

        Returns:
            Poses ``[*batch, j, d]``, activations ``[*batch, j]`` in the algorithm's
            ``activation_kind``, and, with couplings, ``[*batch, i, j]`` for the inputs
            ``i = (h w t)``.

        Raises:
            TypeError: If ``routing`` is no value of an algorithm.
            ValueError: If the arrays do not fit the algorithm.
        """
        require_algorithm(self.routing)
        require_choices(self)
        require_axes("capsules", capsules, "hwtc")
        activation = input_activation(
            self.routing, self.input_activation, capsules, activation
        )
        h, w, t, c = capsules.shape[-4:]
        sizes = Sizes(h * w, t, (1 if self.share_positions else h * w, t))
        dims = self.num_capsules, self.dim, c
        weight = make_matrices(
            self,
            sizes,
            dims,
            pose=self.pose,
            weight_init=self.weight_init,
            routing=self.routing,
            lengths=(self.input_length, self.start_length),
        )
        if self.coordinates:
            # A component that is one, and its matrices hold the coordinates.
            widths = [(0, 0)] * (capsules.ndim - 1) + [(0, 1)]
            capsules = jnp.pad(capsules, widths, constant_values=1)
            column = coordinate_votes((h, w, t), self.dim, self.pose, self.coordinates)
            column = jnp.broadcast_to(column[:, None, :, None], (*weight.shape[:-1], 1))
            weight = jnp.concatenate([weight, column], -1)
            dims = self.num_capsules, self.dim, c + 1
        if input_mask is not None:
            _, input_mask = flatten_capsules(input_mask[..., None], input_mask)
        capsules, activation = flatten_capsules(capsules, activation)
        routing = self.routing.with_couplings() if with_couplings else self.routing
        return routing.from_capsules(
            capsules,
            weight,
            activation,
            parameters=make_parameters(self, sizes, dims, self.routing),
            input_mask=input_mask,
            **competition,
        )


def coordinate_votes(
    sides: tuple[int, int, int], dim: int, pose: Pose, factor: float
) -> Float[Array, "i d"]:
    """Returns what coordinates add to the votes of a map ``[h, w, t]``.

    Raises:
        ValueError: If votes have a single component, or are no square matrices.
    """
    h, w, t = sides
    if dim < 2:
        raise ValueError(f"dim must be at least 2 for coordinates, got {dim}.")
    side = pose_side(dim) if pose == "matrix" else 1
    places = (side - 1, 2 * side - 1) if pose == "matrix" else (0, 1)
    grid = jnp.zeros((h, w, t, dim), jnp.float32)
    for place, count, shape in zip(places, (h, w), ((h, 1, 1), (w, 1)), strict=True):
        centred = (jnp.arange(count, dtype=jnp.float32) + 0.5) / count - 0.5
        centred = jnp.broadcast_to(centred.reshape(shape), (h, w, t))
        grid = grid.at[..., place].set(factor * centred)
    return grid.reshape(h * w * t, dim)
