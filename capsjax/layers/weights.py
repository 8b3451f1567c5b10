"""What layers own for the votes of a grid: matrices and the algorithm's parameters.

Letters: ``p`` positions, in a window or on a map, ``t`` types of input capsules; an
input is ``i = (p t)``. What positions or types share has size one along that axis.
"""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from capsjax.initializers import PRIMARY_LENGTH, ScaledStart, initializer, scaled_votes
from capsjax.routings import Algorithm
from capsjax.routings.algorithm import parameter_shapes
from capsjax.votes import pose_side, pose_weight

Pose = Literal["vector", "matrix"]


class Sizes(NamedTuple):
    """Sizes of a layer's axes.

    Attributes:
        positions: Positions of the inputs.
        types: Types of capsules at each position.
        own: Positions and types that have weights of their own: one if all share them.
    """

    positions: int
    types: int
    own: tuple[int, int]

    @property
    def num_inputs(self) -> int:
        """Number of inputs of an output."""
        return self.positions * self.types

    def for_all(self, x: Array, axis: int) -> Array:
        """Repeats what inputs share along an axis of size ``own``, for all inputs."""
        *before, _ = x.shape[: axis + 1]
        behind = x.shape[axis + 1 :]
        x = x.reshape(*before, *self.own, *behind)
        x = jnp.broadcast_to(x, (*before, self.positions, self.types, *behind))
        return x.reshape(*before, self.num_inputs, *behind)


def make_matrices(
    layer: nn.Module,
    sizes: Sizes,
    dims: tuple[int, int, int],
    *,
    pose: Pose,
    weight_init: ScaledStart,
    routing: Algorithm,
    lengths: tuple[float, float],
) -> Float[Array, "i j d c"]:
    """Makes the parameter ``weight``, and returns it as a matrix for each pair.

    Args:
        layer: The layer, whose compact method calls.
        sizes: Sizes of the inputs' axes.
        dims: Number of outputs, their components, and the inputs' components.
        pose: ``vector`` for matrices of these components, ``matrix`` for matrices that
            poses of a square number of components are multiplied with.
        weight_init: Initializer of the matrices.
        routing: Says how large votes should be.
        lengths: Lengths of inputs and of squashed outputs at the start, for ``scaled``.

    Raises:
        ValueError: If the components are no square matrix, or their numbers differ.
    """
    j, d, c = dims
    input_length, length = lengths
    rows = c
    if pose == "matrix":
        if d != c:
            raise ValueError(
                f"dim must be the inputs' {c} components for pose='matrix', got {d}."
            )
        rows = pose_side(d)
        # A component of a vote sees one row of the pose.
        input_length /= math.sqrt(rows)
    rule = scaled_votes(input_length, routing.vote_deviation, length)
    start = initializer(weight_init, rule)
    num_own = math.prod(sizes.own)

    def draw(key, shape, dtype):
        # What inputs share starts like the matrices of one of them.
        whole = start(key, (sizes.num_inputs, j, d, rows), dtype)
        return whole[:num_own, :, : shape[-2]].reshape(shape)

    own = (rows, rows) if pose == "matrix" else (d, c)
    weight = layer.param("weight", draw, (*sizes.own, j, *own), jnp.float32)
    if pose == "matrix":
        weight = pose_weight(weight)
    return sizes.for_all(weight.reshape(num_own, j, d, c), 0)


def start_length(routing: Algorithm, dim: int, num_inputs: int) -> float:
    """Returns the length of the poses of convolutional capsules at the start.

    The mean of ``num_inputs`` independent votes is shorter than these by the root of
    their number. An algorithm without a size of votes squashes, and starts as long as
    primary capsules.
    """
    if routing.vote_deviation is None:
        return PRIMARY_LENGTH
    return routing.vote_deviation * math.sqrt(dim / num_inputs)


def make_parameters(
    layer: nn.Module, sizes: Sizes, dims: tuple[int, int, int], routing: Algorithm
) -> Mapping[str, Array]:
    """Makes the parameters that an algorithm declares, and returns them for all inputs.

    Args:
        layer: The layer, whose compact method calls.
        sizes: Sizes of the inputs' axes.
        dims: Number of outputs, their components, and the inputs' components.
        routing: The algorithm.
    """
    own_sizes = {"i": math.prod(sizes.own), **dict(zip("jdc", dims, strict=True))}
    shapes = parameter_shapes(routing, own_sizes)
    made = {}
    for name, declared in routing.declared_parameters.items():
        own = layer.param(name, declared.init, shapes[name], jnp.float32)
        if "i" in declared.axes:
            own = sizes.for_all(own, declared.axes.index("i"))
        made[name] = own
    return made
