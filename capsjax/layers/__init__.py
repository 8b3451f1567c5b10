"""Layers that own weights: the mathematics is in ``ops`` and ``routings``.

Weights are float32, with ``JAX_ENABLE_X64`` too. They start by a name from
:mod:`capsjax.initializers`, or by a function of key, shape and type.

Letters: ``h w`` position, ``k`` position in a window, ``t`` capsule type, ``i`` input
capsules with ``c`` components, ``j`` output capsules with ``d``.
"""

from capsjax.layers.capsule_head import CapsuleHead, PrimaryPoses
from capsjax.layers.capsules import DenseCaps, PrimaryCaps, route_map
from capsjax.layers.class_caps import ClassCaps
from capsjax.layers.conv_caps import ConvCaps
from capsjax.layers.convolution import Convolution
from capsjax.layers.decoder import Decoder, make_dense
from capsjax.layers.deconv_caps import DeconvCaps
from capsjax.layers.stem import ConvStem, Stem

__all__ = [
    "CapsuleHead",
    "ClassCaps",
    "ConvCaps",
    "ConvStem",
    "Convolution",
    "Decoder",
    "DeconvCaps",
    "DenseCaps",
    "PrimaryCaps",
    "PrimaryPoses",
    "Stem",
    "make_dense",
    "route_map",
]
