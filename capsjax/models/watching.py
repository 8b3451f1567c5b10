"""Watches the capsule layers inside any network: what goes in and what comes out."""

import collections
import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from capsjax.diagnostics import RoutingStatistics
from capsjax.models.network import Network
from capsjax.ops import safe_norm
from capsjax.routings import Algorithm, Routed, over_outputs
from capsjax.routings.competition import Compete


class WatchedLayer(NamedTuple):
    """The routing of a layer, for some images.

    Axes of ``batch`` are images, and in a convolutional layer windows.

    Attributes:
        coupling: The couplings.
        input_activation: Activations of the inputs, or the lengths of their poses if
            the algorithm takes no activations; the mean length of their votes if a
            layer casts the votes itself.
        output_activation: Activations of the outputs, logits as their softmax.
        input_mask: False for padding; None if there is none.
        output_mask: False for outputs that get nothing; None if all do.
        none_of_the_above: True if an input's couplings with the outputs need not sum to
            one.
    """

    coupling: Float[Array, "*batch i j"]
    input_activation: Float[Array, "*batch i"]
    output_activation: Float[Array, "*batch j"]
    input_mask: Bool[Array, "*batch i"] | None
    output_mask: Bool[Array, "*batch j"] | None
    none_of_the_above: bool

    def statistics(self) -> RoutingStatistics:
        """Computes the statistics of the routing."""
        return RoutingStatistics.of(
            *self[:3],
            input_mask=self.input_mask,
            output_mask=self.output_mask,
            # A compiled function has returned it as an array.
            none_of_the_above=bool(self.none_of_the_above),
        )


def watch(
    network: Network,
    variables: Any,
    image: Float[Array, "n h w c"],
    *,
    compete: Compete | None = None,
) -> tuple[Routed, dict[str, WatchedLayer]]:
    """Computes the class capsules of images, and watches the layers that make them.

    A layer is a Flax module with an algorithm in its field ``routing``, which its
    ``__call__`` calls. The algorithm holds the votes meanwhile, for the couplings.

    Args:
        network: The network.
        variables: Its weights and other variables.
        image: Pixels from 0 to 1.
        compete: Replaces the competition of every layer.

    Returns:
        The class capsules, and the layers by their names, in order.
    """
    # A compiled function returns a dict in the order of its keys.
    layers: dict[str, WatchedLayer] = collections.OrderedDict()

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        algorithm = getattr(module, "routing", None)
        is_layer = context.method_name == "__call__"
        is_layer &= isinstance(algorithm, Algorithm)
        if not is_layer or hasattr(algorithm, _MARK):
            return call(*args, **kwargs)

        def note(layer: WatchedLayer) -> None:
            layers["/".join(module.path)] = layer

        # The layer alone knows its windows, masks and weights, and the algorithm gets
        # them all. A bound module refuses other values in its fields.
        object.__setattr__(module, "routing", _watching(algorithm, note, compete))
        try:
            return call(*args, **kwargs)
        finally:
            object.__setattr__(module, "routing", algorithm)

    with nn.intercept_methods(intercept):
        routed: Any = network.apply(variables, image, method=network.encode)
    return routed, layers


_MARK = "_is_watching"


def _watching(
    algorithm: Any, note: Callable[[WatchedLayer], None], compete: Compete | None
) -> Algorithm:
    """Returns the same algorithm, which notes what it routes."""
    held = algorithm.with_couplings()

    def noted(routed: Routed, activation: Any, how: dict[str, Any]) -> Routed:
        upper = routed.activation
        if algorithm.activation_kind == "logit":
            upper = jax.nn.softmax(upper, axis=-1)

        def mask(name: str, like: Array) -> Array | None:
            known = how.get(name)
            return None if known is None else jnp.broadcast_to(known, like.shape)

        is_split = how.get("compete", over_outputs) is over_outputs
        is_split &= algorithm.couplings_sum_to_one
        assert routed.coupling is not None  # With the votes held, there are some.
        layer = WatchedLayer(
            *(routed.coupling, activation, upper),
            mask("input_mask", activation),
            mask("output_mask", upper),
            not is_split,
        )
        note(layer)
        return routed

    def replaced(how: dict[str, Any]) -> dict[str, Any]:
        return how if compete is None else {**how, "compete": compete}

    class Watching(type(algorithm)):
        def from_capsules(self, capsules, weight, activation=None, **how):  # type: ignore[override]
            routed = held.from_capsules(capsules, weight, activation, **replaced(how))
            own = safe_norm(capsules) if activation is None else activation
            return noted(routed, own, how)

        def __call__(self, votes, activation=None, **how):  # type: ignore[override]
            routed = held(votes, activation, **replaced(how))
            own = safe_norm(votes).mean(-1) if activation is None else activation
            return noted(routed, own, how)

    setattr(Watching, _MARK, True)
    watching = copy.copy(algorithm)
    object.__setattr__(watching, "__class__", Watching)
    return watching
