"""Routing algorithms: from the votes of the lower capsules to the upper capsules.

An algorithm is a small frozen value, handed to a layer. ``ROUTINGS`` maps the name in a
config to its class; a new algorithm is a new file and a new line there.
"""

from collections.abc import Callable, Mapping

from capsjax.routings.algorithm import Parameter, Routed, Routing
from capsjax.routings.dynamic import DynamicRouting

__all__ = ["ROUTINGS", "DynamicRouting", "Parameter", "Routed", "Routing"]

ROUTINGS: Mapping[str, Callable[..., Routing]] = {"dynamic": DynamicRouting}
