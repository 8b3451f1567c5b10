"""Measures of a routing and of its predictions, from the literature.

::

    seen = RoutingStatistics.of(routed.coupling, input_activation, routed.activation)
    seen += RoutingStatistics.of(...)  # The next batch.
    seen.t_score, seen.bonding, seen.dynamics

All functions of arrays are pure, and ``jax.jit`` compiles them. The statistics of a
batch are as large as the couplings of one example, and add up: a whole test set is
measured batch by batch.
"""

from capsjax.diagnostics.calibration import (
    Reliability,
    class_probability,
    fit_temperature,
)
from capsjax.diagnostics.parse_trees import ParseTrees, parse_tree
from capsjax.diagnostics.routing import (
    RoutingStatistics,
    coupling_entropy,
    is_changed,
    uniformly,
)
from capsjax.diagnostics.statistics import Statistics

__all__ = [
    "ParseTrees",
    "Reliability",
    "RoutingStatistics",
    "Statistics",
    "class_probability",
    "coupling_entropy",
    "fit_temperature",
    "is_changed",
    "parse_tree",
    "uniformly",
]
