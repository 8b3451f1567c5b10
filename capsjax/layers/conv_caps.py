"""Convolutional capsules: each window of a map of capsules votes for those above it."""

import dataclasses
import functools
import typing
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from capsjax import bounds
from capsjax.bounds import Count, Scale
from capsjax.initializers import (
    PRIMARY_LENGTH,
    SCALED,
    ScaledStart,
    before_squash,
)
from capsjax.layers.weights import Pose, Sizes, make_matrices, make_parameters
from capsjax.ops import require_axes, safe_norm, squash
from capsjax.routings import Algorithm, DynamicRouting, Routed, over_outputs
from capsjax.routings.algorithm import require_algorithm
from capsjax.routings.competition import OverImage
from capsjax.votes import Padding, gather_windows, pad_grid

Compete = Literal["window", "image"]
Norm = Literal["none", "layer", "batch"]
InputActivation = Literal["given", "length"]


class ConvCaps(nn.Module):
    r"""Convolutional capsules: routes the capsules of each window of a map.

    .. math::
        \hat u_{j|kt} = W_{ktj} u_{kt}, \quad
        v_j = routing_j(\hat u)

    An output of type ``j`` at a position gets these votes of the types ``t`` at the
    positions ``k`` of its window. All windows share the matrices. The layer's result is
    a map of capsules with activations from 0 to 1, the input of the next layer. Logits
    of an algorithm pass a sigmoid.

    A stack needs capsules that do not shrink from layer to layer: squashed outputs
    start ``start_length`` long, which is what the next layer expects, and the default
    ``routing`` has a bias, without which deep stacks do not learn (Peer et al.). The
    bias is a field of the algorithm: ``routing=DynamicRouting()`` has none.

    Attributes:
        num_types: Kinds of output capsules at each position.
        dim: Components of an output capsule.
        kernel_size: Height and width of a window.
        stride: Step of the window.
        padding: ``VALID`` for windows inside the map; ``SAME`` for windows around every
            ``stride``-th position: outside the map there is nothing that votes.
        routing: The algorithm, a value with its hyperparameters inside.
        compete: ``window`` if the outputs at a position compete for an input, ``image``
            if the outputs of all windows that hold the input do.
        norm: ``layer`` to normalise over the capsules of a position, ``batch`` over the
            batch and the positions, with running averages; ``none`` for neither.
            Normalises poses, and logits of activations; lengths are squashed after it.
        residual: True to add the input capsules to the poses, and to average the
            activations, if the algorithm takes any. Needs a map of the same shape.
        pose: ``vector`` for matrices ``W`` of ``dim`` rows; ``matrix`` for poses that
            are square matrices ``M`` and votes ``M W``, with a root of the weights.
        share_types: True to share the matrices of a position among the input types.
        input_activation: Activations of the inputs if none are given and the algorithm
            takes them: ``length`` for the lengths of the poses; ``given`` refuses that.
        drop_edge: True to leave out rows and columns that no window holds, instead of
            refusing the map.
        axis_name: Name of the axis of devices whose batch statistics are averaged:
            ``capsjax.DEVICE_AXIS`` in a network for capsjax's training.
        weight_init: Initializer of ``W``; ``scaled`` fits it to the sizes, as in
            :class:`capsjax.DenseCaps`.
        input_length: Root mean square length of the input capsules at the start, for
            ``scaled``.
        start_length: Root mean square length of squashed outputs at the start.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from capsjax import ConvCaps
        >>> layer = ConvCaps(num_types=4, dim=8, kernel_size=3, stride=2)
        >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 7, 7, 2, 8)))
        >>> layer.apply(variables, jnp.ones((2, 7, 7, 2, 8))).pose.shape
        (2, 3, 3, 4, 8)

    References:
        Hinton, Sabour and Frosst 2018, section 4, *Matrix Capsules with EM Routing*,
        https://openreview.net/forum?id=HJWLfGWRb. Peer, Stabinger and
        Rodriguez-Sanchez 2021, *Limitation of capsule networks*, Pattern Recognition
        Letters 144.
    """

    start_length: ClassVar[float] = PRIMARY_LENGTH

    num_types: Count
    dim: Count
    kernel_size: Count = 3
    stride: Count = 1
    padding: Padding = "VALID"
    routing: Algorithm = DynamicRouting(bias=0.1)
    compete: Compete = "window"
    norm: Norm = "none"
    residual: bool = False
    pose: Pose = "vector"
    share_types: bool = False
    input_activation: InputActivation = "given"
    drop_edge: bool = False
    axis_name: str | None = None
    weight_init: ScaledStart = SCALED
    input_length: Scale = PRIMARY_LENGTH

    @nn.compact
    def __call__(
        self,
        capsules: Float[Array, "*batch h w t c"],
        activation: Float[Array, "*batch h w t"] | None = None,
        *,
        input_mask: Bool[Array, "*batch h w t"] | None = None,
        is_training: bool = False,
        with_couplings: bool = False,
    ) -> Routed:
        """Routes the capsules of every window.

        Args:
            capsules: The map of input capsules.
            activation: Presence of the input capsules, from 0 to 1, if the algorithm
                takes it.
            input_mask: False for capsules that send nothing.
            is_training: True to normalise by the statistics of this batch.
            with_couplings: True to return couplings, which need the memory of the votes
                divided by ``dim``.

        Returns:
            Poses ``[*batch, H, W, j, d]``, activations ``[*batch, H, W, j]``, and, with
            couplings, ``[*batch, H, W, i, j]`` for the inputs ``i = (k t)`` of a
            window.

        Raises:
            TypeError: If ``routing`` is no value of an algorithm.
            ValueError: If the windows do not fit the map, or the arrays do not fit the
                algorithm.
        """
        require_algorithm(self.routing)
        require_choices(self)
        require_axes("capsules", capsules, "hwtc")
        self._require_windows(*capsules.shape[-4:-2])
        activation = input_activation(
            self.routing, self.input_activation, capsules, activation
        )
        t, c = capsules.shape[-2:]
        sizes = Sizes(self.kernel_size**2, t, (self.kernel_size**2, t))
        if self.share_types:
            sizes = sizes._replace(own=(self.kernel_size**2, 1))
        dims = self.num_types, self.dim, c
        weight = make_matrices(
            self,
            sizes,
            dims,
            pose=self.pose,
            weight_init=self.weight_init,
            routing=self.routing,
            lengths=(self.input_length, self.start_length),
        )
        routing = self.routing.with_couplings() if with_couplings else self.routing
        compete = over_outputs
        if self.compete == "image":
            compete = OverImage(self.kernel_size, self.stride)
        routed = routing.from_capsules(
            self._windows(capsules, behind=2),
            weight,
            None if activation is None else self._windows(activation, behind=1),
            parameters=make_parameters(self, sizes, dims, self.routing),
            input_mask=self._mask(capsules, input_mask),
            compete=compete,
        )
        pose, presence = self._finish(
            routed, capsules, activation, is_training=is_training
        )
        return Routed(pose, presence, routed.coupling if with_couplings else None)

    def _require_windows(self, *sides: int) -> None:
        if self.padding == "SAME":
            return
        for side in sides:
            map_of = f"a map of {'x'.join(map(str, sides))} capsules"
            if side < self.kernel_size:
                raise ValueError(
                    f"{map_of} is smaller than a window: kernel_size is "
                    f"{self.kernel_size}."
                )
            rest = (side - self.kernel_size) % self.stride
            if rest and not self.drop_edge:
                raise ValueError(
                    f"{map_of} has {rest} more along a side than windows of "
                    f"{self.kernel_size} in steps of {self.stride} reach: change "
                    "kernel_size or stride, take padding='SAME', or leave them out "
                    "with drop_edge=True."
                )

    def _windows(self, grid: Array, *, behind: int) -> Array:
        """Returns the windows' inputs, ``[*batch, H, W, (k t), ...]``."""
        own = self.kernel_size, self.stride
        if self.padding == "SAME":
            grid = pad_grid(grid, *own, behind=behind)
        windows = gather_windows(grid, *own, behind=behind)
        axis = windows.ndim - behind - 1
        shape = windows.shape
        k, t = shape[axis : axis + 2]
        return windows.reshape(*shape[:axis], k * t, *shape[axis + 2 :])

    def _mask(self, capsules: Array, input_mask: Array | None) -> Array | None:
        """Returns which inputs of the windows send anything; None if all do."""
        *_, h, w, t, _ = capsules.shape
        if input_mask is None:
            whole = self.kernel_size == 1 or self.padding == "VALID"
            if whole:
                return None
            input_mask = jnp.ones((h, w, t), bool)
        return self._windows(input_mask, behind=1)

    def _finish(
        self,
        routed: Routed,
        capsules: Array,
        activation: Array | None,
        *,
        is_training: bool,
    ) -> tuple[Array, Array]:
        """Returns poses and activations after the sum and the norm."""
        pose, presence = routed.pose, routed.activation
        is_length = self.routing.activation_is_length
        has_norm = self.norm != "none"
        normalise = functools.partial(self._normalise, is_training=is_training)
        if self.residual:
            if pose.shape != capsules.shape:
                raise ValueError(
                    "residual=True needs outputs of the inputs' shape [h, w, t, c] = "
                    f"{capsules.shape[-4:]}, got {pose.shape[-4:]}: take stride 1, "
                    "padding='SAME', and the inputs' num_types and dim."
                )
            pose = pose + capsules
        if has_norm:
            length = self.start_length
            length = before_squash(length) if is_length else length
            *position, j, d = pose.shape
            flat = pose.reshape(*position, j * d)
            flat = normalise("pose_norm", flat, length / d**0.5)
            pose = flat.reshape(*position, j, d)
        if is_length and (self.residual or has_norm):
            pose = squash(pose)
            presence = safe_norm(pose)
        if self.routing.activation_kind == "logit":
            if has_norm:
                presence = normalise("logit_norm", presence, 1.0)
            presence = nn.sigmoid(presence)
        if self.residual and activation is not None:
            presence = (presence + activation) / 2
        return pose, presence

    def _normalise(
        self, name: str, x: Array, scale: float, *, is_training: bool
    ) -> Array:
        start = nn.initializers.constant(scale)
        if self.norm == "layer":
            return nn.LayerNorm(scale_init=start, name=name)(x)
        return nn.BatchNorm(
            use_running_average=not is_training,
            momentum=0.9,
            axis_name=self.axis_name,
            scale_init=start,
            name=name,
        )(x)


def require_choices(layer: Any) -> None:
    """Raises if a field that has a choice of words holds another.

    Raises:
        ValueError: With the field, the word and the choice.
    """
    for field in dataclasses.fields(layer):
        if typing.get_origin(field.type) is Literal:
            bounds.require(getattr(layer, field.name), field.type, field.name)


def input_activation(
    routing: Algorithm,
    choice: InputActivation,
    capsules: Float[Array, "*batch c"],
    activation: Any,
) -> Any:
    """Returns the activations of a layer's inputs; None if the algorithm takes none.

    Raises:
        ValueError: If the algorithm takes some, none are given and lengths were not
            chosen, or if it takes none and some are given.
    """
    name = type(routing).__name__
    if activation is None and routing.takes_activation:
        if choice == "given":
            raise ValueError(
                f"{name} needs activations of the inputs: give activation, or set "
                "input_activation='length' to take the lengths of the poses."
            )
        return safe_norm(capsules)
    if activation is not None and not routing.takes_activation:
        raise ValueError(
            f"{name} does not use activations of the inputs: leave out activation."
        )
    return activation
