"""Networks: images in, class capsules and reconstructions out; and a baseline.

``NETWORKS`` maps the word in a config to a class. A new network needs a file and a line
there. The contract is in :mod:`capsjax.models.network`.
"""

from collections.abc import Mapping
from typing import Any

from capsjax.models.capsnet import CapsNet
from capsjax.models.cnn import BaselineCNN
from capsjax.models.efficient import EfficientCapsNet
from capsjax.models.network import Network, NetworkError, num_parameters, prepare
from capsjax.models.residual import ResidualCapsNet
from capsjax.models.stacked import StackedCapsNet
from capsjax.models.stem import StemCapsNet, StemCNN

__all__ = [
    "NETWORKS",
    "BaselineCNN",
    "CapsNet",
    "EfficientCapsNet",
    "Network",
    "NetworkError",
    "ResidualCapsNet",
    "StackedCapsNet",
    "StemCNN",
    "StemCapsNet",
    "num_parameters",
    "prepare",
]

NETWORKS: Mapping[str, type[Any]] = {
    "capsnet": CapsNet,
    "cnn": BaselineCNN,
    "efficient": EfficientCapsNet,
    "residual": ResidualCapsNet,
    "stacked": StackedCapsNet,
    "stem": StemCapsNet,
    "stem_cnn": StemCNN,
}
"""The networks, by the word that names each in a config."""
