"""Layers that own weights: the mathematics is in ``ops`` and ``routings``.

Weights are float32, with ``JAX_ENABLE_X64`` too. They start by a name from
:mod:`capsjax.initializers`, or by a function of key, shape and type.

Letters: ``h w`` position, ``t`` capsule type, ``i`` input capsules with ``c``
components, ``j`` output capsules with ``d``.
"""

from capsjax.layers.capsules import DenseCaps, PrimaryCaps
from capsjax.layers.convolution import Convolution
from capsjax.layers.decoder import Decoder, make_dense
from capsjax.layers.stem import ConvStem, Stem

__all__ = [
    "ConvStem",
    "Convolution",
    "Decoder",
    "DenseCaps",
    "PrimaryCaps",
    "Stem",
    "make_dense",
]
