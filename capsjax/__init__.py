"""Capsule networks with dynamic routing for JAX."""

from capsjax.losses import margin_loss, reconstruction_loss
from capsjax.ops import safe_norm, squash
from capsjax.routings import ROUTINGS, DynamicRouting, Routed
from capsjax.routings.dynamic import routing

__all__ = [
    "ROUTINGS",
    "DynamicRouting",
    "Routed",
    "margin_loss",
    "reconstruction_loss",
    "routing",
    "safe_norm",
    "squash",
]
