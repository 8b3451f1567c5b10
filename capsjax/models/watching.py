"""Watches the capsule layers inside any network: what goes in and what comes out."""

import inspect
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from capsjax.diagnostics import RoutingStatistics
from capsjax.models.network import Network, NetworkError
from capsjax.ops import safe_norm
from capsjax.routings import Algorithm, Routed
from capsjax.routings.competition import Compete


class WatchedLayer(NamedTuple):
    """The routing of a layer, for some images.

    Attributes:
        coupling: The couplings.
        input_activation: Activations of the inputs, or the lengths of their poses if
            the algorithm takes no activations.
        output_activation: Activations of the outputs, logits as their softmax.
        none_of_the_above: True if an input may be sent to none of the outputs.
    """

    coupling: Float[Array, "n i j"]
    input_activation: Float[Array, "n i"]
    output_activation: Float[Array, "n j"]
    none_of_the_above: bool

    def statistics(self) -> RoutingStatistics:
        """Computes the statistics of the routing."""
        *arrays, nowhere = self
        return RoutingStatistics.of(*arrays, none_of_the_above=nowhere)


def watch(
    network: Network,
    variables: Any,
    image: Float[Array, "n h w c"],
    *,
    compete: Compete | None = None,
) -> tuple[Routed, dict[str, WatchedLayer]]:
    """Computes the class capsules of images, and watches the layers that make them.

    A layer is a Flax module with an algorithm in its field ``routing``, whose
    ``__call__`` takes capsules ``[n, i, c]`` and returns a ``Routed``. Layers that
    return no couplings are left out.

    Args:
        network: The network. If it has a field ``routing``, that algorithm returns
            couplings.
        variables: Its weights and other variables.
        image: Pixels from 0 to 1.
        compete: Replaces the competition of every layer.

    Returns:
        The class capsules, and the layers by their names, in order.

    Raises:
        NetworkError: If a layer takes no ``compete``.
    """
    routing = getattr(network, "routing", None)
    if isinstance(routing, Algorithm):
        copied: Any = network
        network = copied.clone(routing=routing.with_couplings())
    layers: dict[str, WatchedLayer] = {}

    def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        is_layer = isinstance(getattr(module, "routing", None), Algorithm)
        if not is_layer or context.method_name != "__call__":
            return call(*args, **kwargs)
        if compete is not None:
            _require_compete(module)
            kwargs = {**kwargs, "compete": compete}
        routed = call(*args, **kwargs)
        capsules, activation, *_ = *args, kwargs.get("activation")
        layer = _watched(module.routing, routed, capsules, activation)
        if layer is not None:
            layers["/".join(module.path)] = layer
        return routed

    with nn.intercept_methods(note):
        routed: Any = network.apply(variables, image, method=network.encode)
    return routed, layers


def _require_compete(module: Any) -> None:
    parameters = inspect.signature(type(module).__call__).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    if "compete" not in parameters and inspect.Parameter.VAR_KEYWORD not in kinds:
        raise NetworkError(
            f"{type(module).__name__}.__call__ must have the argument compete, for "
            f"another competition; it has {', '.join(parameters)}."
        )


def _watched(
    algorithm: Algorithm, routed: Any, capsules: Array, activation: Array | None
) -> WatchedLayer | None:
    if not isinstance(routed, Routed) or routed.coupling is None:
        return None
    if activation is None:
        activation = safe_norm(capsules)
    if activation.shape != routed.coupling.shape[:-1]:
        return None  # Its inputs are windows of a grid.
    upper = routed.activation
    if algorithm.activation_kind == "logit":
        upper = jax.nn.softmax(upper, axis=-1)
    nowhere = not algorithm.couplings_sum_to_one
    return WatchedLayer(routed.coupling, activation, upper, nowhere)
