"""Capsule networks with dynamic routing for JAX."""

from typing import TYPE_CHECKING, Any

from capsjax.losses import margin_loss, reconstruction_loss
from capsjax.ops import safe_norm, squash, tweak_pose
from capsjax.routings import ROUTINGS, DynamicRouting, Routed
from capsjax.routings.dynamic import routing

if TYPE_CHECKING:
    from capsjax.storage.run import load_run

__all__ = [
    "ROUTINGS",
    "DynamicRouting",
    "Routed",
    "load_run",
    "margin_loss",
    "reconstruction_loss",
    "routing",
    "safe_norm",
    "squash",
    "tweak_pose",
]


def __getattr__(name: str) -> Any:
    # The functions need no Flax and no Orbax; who opens a run waits for them.
    if name == "load_run":
        from capsjax.storage.run import load_run

        return load_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
