"""Whole networks: an image in, class capsules and a reconstruction out; a baseline."""

from capsjax.models.capsnet import CapsNet
from capsjax.models.cnn import BaselineCNN
from capsjax.models.network import Network, make_model, num_parameters, prepare

__all__ = [
    "BaselineCNN",
    "CapsNet",
    "Network",
    "make_model",
    "num_parameters",
    "prepare",
]
