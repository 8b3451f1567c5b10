"""One training run."""

from capsjax.training.trainer import train

__all__ = ["train"]
