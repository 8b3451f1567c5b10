"""Capsule networks with dynamic routing for JAX.

``ROUTINGS`` maps the word in a config to a routing algorithm. ``DEVICE_AXIS`` names the
axis of the devices in a training step, for batch statistics over all of them.
``capsjax.diagnostics`` has measures of routing and of predictions.
"""

import importlib
from typing import TYPE_CHECKING, Any

from capsjax.losses import margin_loss, reconstruction_loss
from capsjax.ops import flatten_capsules, safe_norm, squash, tweak_pose
from capsjax.routings import (
    ROUTINGS,
    DynamicRouting,
    EMRouting,
    InvertedAttention,
    Routed,
    SelfAttention,
    SelfRouting,
    UniformRouting,
    VariationalBayesRouting,
)
from capsjax.routings.dynamic import routing
from capsjax.runtime.devices import AXIS as DEVICE_AXIS

if TYPE_CHECKING:
    from capsjax.layers import (
        CapsuleHead,
        ClassCaps,
        ConvCaps,
        Decoder,
        DeconvCaps,
        DenseCaps,
        PrimaryCaps,
        PrimaryPoses,
    )
    from capsjax.models import CapsNet
    from capsjax.storage.pretrained import load_pretrained
    from capsjax.storage.run import load_run
    from capsjax.storage.save_run import save_run
    from capsjax.training.memory import memory_estimate

__all__ = [
    "DEVICE_AXIS",
    "ROUTINGS",
    "CapsNet",
    "CapsuleHead",
    "ClassCaps",
    "ConvCaps",
    "Decoder",
    "DeconvCaps",
    "DenseCaps",
    "DynamicRouting",
    "EMRouting",
    "InvertedAttention",
    "PrimaryCaps",
    "PrimaryPoses",
    "Routed",
    "SelfAttention",
    "SelfRouting",
    "UniformRouting",
    "VariationalBayesRouting",
    "flatten_capsules",
    "load_pretrained",
    "load_run",
    "margin_loss",
    "memory_estimate",
    "reconstruction_loss",
    "routing",
    "safe_norm",
    "save_run",
    "squash",
    "tweak_pose",
]


# Imported on first use: the functions above need no Flax and no Orbax.
_HOMES = {
    "CapsNet": "capsjax.models",
    "CapsuleHead": "capsjax.layers",
    "ClassCaps": "capsjax.layers",
    "ConvCaps": "capsjax.layers",
    "Decoder": "capsjax.layers",
    "DeconvCaps": "capsjax.layers",
    "DenseCaps": "capsjax.layers",
    "PrimaryCaps": "capsjax.layers",
    "PrimaryPoses": "capsjax.layers",
    "load_pretrained": "capsjax.storage.pretrained",
    "load_run": "capsjax.storage.run",
    "memory_estimate": "capsjax.training.memory",
    "save_run": "capsjax.storage.save_run",
}


def __getattr__(name: str) -> Any:
    if name == "diagnostics":
        return importlib.import_module("capsjax.diagnostics")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
