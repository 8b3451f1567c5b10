"""Routing algorithms: from the votes of the lower capsules to the upper capsules.

An algorithm is a small frozen value, handed to a layer. ``ROUTINGS`` maps the name in a
config to its class; a new algorithm is a new file and a new line there.
"""

from collections.abc import Callable, Mapping

from capsjax.routings.algorithm import Algorithm, Parameter, Routed
from capsjax.routings.competition import over_outputs
from capsjax.routings.dynamic import DynamicRouting
from capsjax.routings.em import EMRouting
from capsjax.routings.inverted_attention import InvertedAttention
from capsjax.routings.self_attention import SelfAttention
from capsjax.routings.self_routing import SelfRouting
from capsjax.routings.uniform import UniformRouting
from capsjax.routings.variational_bayes import VariationalBayesRouting

__all__ = [
    "ROUTINGS",
    "Algorithm",
    "DynamicRouting",
    "EMRouting",
    "InvertedAttention",
    "Parameter",
    "Routed",
    "SelfAttention",
    "SelfRouting",
    "UniformRouting",
    "VariationalBayesRouting",
    "over_outputs",
]

ROUTINGS: Mapping[str, Callable[..., Algorithm]] = {
    "dynamic": DynamicRouting,
    "uniform": UniformRouting,
    "self_attention": SelfAttention,
    "inverted_attention": InvertedAttention,
    "self_routing": SelfRouting,
    "em": EMRouting,
    "variational_bayes": VariationalBayesRouting,
}
"""The algorithms, by the word that names each in a config."""
