"""Layers of capsules as ONNX operators: a map of capsules is ``[b, (h w), t, c]``.

Letters: ``b`` batch, ``n`` windows of a map, ``k`` positions in a window, ``t`` types
of input capsules with ``c`` components, an input is ``i = (k t)``; ``j`` output
capsules with ``d`` components.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from capsjax.exporting.onnx_graph import Value
from capsjax.exporting.onnx_layers import as_factor, convolve
from capsjax.exporting.onnx_routing import (
    Inputs,
    Windows,
    multiply_each,
    route,
    squash,
)
from capsjax.layers.class_caps import coordinate_votes
from capsjax.layers.weights import Pose
from capsjax.models import StackedCapsNet
from capsjax.routings import Algorithm
from capsjax.votes import gather_windows, num_windows, pad_grid, pose_side

_EPSILON = 1e-6  # Of a layer norm in Flax.


class Grid(NamedTuple):
    """The axes of a map of capsules."""

    height: int
    width: int
    types: int
    dim: int

    @property
    def size(self) -> int:
        """Number of capsules."""
        return self.height * self.width * self.types


def primary_capsules(
    features: Value,
    layer: Mapping[str, Any],
    grid: Grid,
    *,
    stride: int = 1,
) -> Value:
    """Adds squashed primary capsules."""
    s = convolve(
        *(features, "primary_caps/conv", layer["conv"], layer["bias"]), stride=stride
    )
    return squash(_as_map(s, grid.types, grid.dim))


def primary(
    routing: Algorithm,
    features: Value,
    layer: Mapping[str, Any],
    grid: Grid,
    *,
    stride: int = 1,
) -> tuple[Value, Value | None]:
    """Adds the primary capsules that an algorithm takes, perhaps with activations."""
    if not routing.takes_activation:
        return primary_capsules(features, layer, grid, stride=stride), None
    pose, activation = (
        convolve(
            *(features, f"primary_caps/{name}", layer[name], layer[f"{name}_bias"]),
            stride=stride,
        )
        for name in ("pose", "activation")
    )
    activation = _as_map(activation.apply("Sigmoid"), grid.types, 1)
    return _as_map(pose, grid.types, grid.dim), activation.reshape(0, 0, grid.types)


def _as_map(features: Value, types: int, dim: int) -> Value:
    return features.transpose(0, 2, 3, 1).reshape(0, -1, types, dim)


def route_capsules(
    routing: Algorithm,
    layer: Mapping[str, np.ndarray],
    capsules: Value,
    i: int,
) -> dict[str, Value]:
    """Adds a fully connected layer of capsules ``[b, i, c]``."""
    own = dict(layer)
    weight = own.pop("weight")
    j, d, c = weight.shape[-3:]
    # Each capsule times its matrices: a product for each input, with the batch inside.
    # Shared matrices have a first axis of 1.
    votes = multiply_each(capsules, "class_caps/weight", weight.reshape(-1, j * d, c))
    votes = votes.reshape(0, 0, j, d).transpose(1, 2, 0, 3)
    size = {"i": i, "j": j, "d": d}
    pose, activation = route(routing, Inputs(capsules, votes, size, own))
    return {"pose": pose, "activation": activation}


def class_capsules(
    routing: Algorithm,
    layer: Mapping[str, Any],
    capsules: Value,
    presence: Value | None,
    grid: Grid,
    *,
    pose: Pose = "vector",
    coordinates: float = 0.0,
) -> dict[str, Value]:
    """Adds a :class:`capsjax.ClassCaps` on a map."""
    capsules = capsules.reshape(0, grid.size, grid.dim)
    if presence is not None:
        presence = presence.reshape(0, 1, grid.size, 1)
    own = "class_caps", layer, routing, capsules, presence
    inputs = _inputs(*own, grid.height * grid.width, pose=pose)
    if coordinates:
        terms = coordinate_votes(grid[:3], inputs.size["d"], pose, coordinates)
        # A component that is one, as in the layer.
        one_more = capsules.apply("Pad", np.array([0, 0, 0, 0, 0, 1]), 1.0)
        inputs = inputs._replace(
            votes=inputs.votes + np.asarray(terms), capsules=one_more
        )
    found, activation = route(routing, inputs)
    return {"pose": found, "activation": activation}


def convolve_capsules(
    network: StackedCapsNet,
    name: str,
    layer: Mapping[str, Any],
    seen: Mapping[str, Any],
    sizes: tuple[int, int, int],
    capsules: Value,
    presence: Value | None,
    grid: Grid,
) -> tuple[Value, Value | None, Grid]:
    """Adds a layer of convolutional capsules of a stack.

    Args:
        network: The stack.
        name: The layer's name.
        layer: Its weights.
        seen: Its batch statistics.
        sizes: Types of its capsules, side of a window, and stride.
        capsules: The map of capsules below it.
        presence: Their activations, if the algorithm takes any.
        grid: The axes of that map.

    Returns:
        The map, its activations, and its axes.
    """
    types, kernel, stride = sizes
    # The number of the position below each position of each window; -1 for padding.
    places = 1 + jnp.arange(grid.height * grid.width)
    places = places.reshape(grid.height, grid.width)
    if network.padding == "SAME":
        places = pad_grid(places, kernel, stride, behind=0)
    places = np.asarray(gather_windows(places, kernel, stride, behind=0)) - 1
    k = kernel**2
    places = places.reshape(-1, k)
    windows = Windows(places, grid.types, competes=network.compete == "image")

    def gather(x: Value, *shape: int) -> Value:
        if places.min() < 0:
            # One more position of zeros: the last.
            widths = [0] * (2 * (2 + len(shape)))
            widths[-1 - len(shape)] = 1
            x = x.apply("Pad", np.array(widths))
        index = places % (1 + grid.height * grid.width)
        x = x.apply("Gather", index.astype(np.int64).ravel(), axis=1)
        return x.reshape(-1, k * grid.types, *shape[1:])

    below = gather(capsules, grid.types, grid.dim)
    if presence is not None:
        presence = gather(presence, grid.types).reshape(-1, 1, k * grid.types, 1)
    own = name, layer, network.routing, below, presence
    inputs = _inputs(*own, k, pose=network.pose)
    pose, activation = route(network.routing, inputs._replace(windows=windows))
    pose, activation = _finish(network, layer, seen, pose, activation, types)
    height, width = (
        num_windows(side, kernel, stride, network.padding)
        for side in (grid.height, grid.width)
    )
    grid = Grid(height, width, types, network.dim)
    pose = pose.reshape(-1, grid.height * grid.width, types, network.dim)
    if not network.routing.takes_activation:
        return pose, None, grid
    return pose, activation.reshape(-1, grid.height * grid.width, types), grid


def _finish(
    network: StackedCapsNet,
    layer: Mapping[str, Any],
    seen: Mapping[str, Any],
    pose: Value,
    activation: Value,
    types: int,
) -> tuple[Value, Value]:
    """Adds the norm of a layer; see ``capsjax.ConvCaps``."""

    def norm(name: str, x: Value) -> Value:
        own = layer[name]
        if network.norm == "batch":
            factor, shift = as_factor(own, seen[name])
            return x * factor + shift
        scale = own["scale"], own["bias"]
        return x.apply("LayerNormalization", *scale, axis=-1, epsilon=_EPSILON)

    has_norm = network.norm != "none"
    if has_norm:
        pose = norm("pose_norm", pose.reshape(0, types * network.dim))
        pose = pose.reshape(0, types, network.dim)
        if network.routing.activation_is_length:
            pose = squash(pose)
            activation = pose.norm().reshape(0, types)
    if network.routing.activation_kind == "logit":
        if has_norm:
            activation = norm("logit_norm", activation)
        activation = activation.apply("Sigmoid")
    return pose, activation


def _inputs(
    name: str,
    layer: Mapping[str, Any],
    routing: Algorithm,
    capsules: Value,
    presence: Value | None,
    positions: int,
    *,
    pose: Pose,
) -> Inputs:
    """Casts the votes of inputs ``[b, i, c]``, whose positions may share matrices."""
    own = {part: one for part, one in layer.items() if not part.endswith("_norm")}
    weight = own.pop("weight")
    p, t, j, rows, c = weight.shape
    d, i = (rows**2 if pose == "matrix" else rows), positions * t
    weight = weight.reshape(p * t, j, rows, c)
    if pose == "matrix":
        # V = M W for the matrix M of a pose.
        side = pose_side(d)
        matrices = capsules.reshape(-1, p * t, side, side)
        weight = weight.transpose(0, 2, 1, 3).reshape(p * t, side, j * side)
        votes = matrices @ capsules.graph.weight(f"{name}/weight", weight, axis=0)
        votes = votes.reshape(-1, i, side, j, side).transpose(0, 3, 1, 2, 4)
        votes = votes.reshape(0, 0, 0, d)
    else:
        shared = capsules.reshape(-1, p * t, c)
        votes = multiply_each(shared, f"{name}/weight", weight.reshape(-1, j * d, c))
        votes = votes.transpose(1, 0, 2).reshape(-1, i, j, d).transpose(0, 2, 1, 3)

    def for_all(one: np.ndarray) -> np.ndarray:
        one = np.broadcast_to(
            one.reshape(p, t, *one.shape[1:]), (positions, t, *one.shape[1:])
        )
        return one.reshape(i, *one.shape[2:])

    axes = {part: one.axes for part, one in routing.declared_parameters.items()}
    own = {
        part: for_all(one) if "i" in axes[part] else one for part, one in own.items()
    }
    return Inputs(capsules, votes, {"i": i, "j": j, "d": d}, own, presence, prefix=name)
