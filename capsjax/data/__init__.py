"""Data sets as arrays in memory: one door, one type, one order of the batches."""

from capsjax.data.dataset import Batch, Dataset, DatasetError, NotFoundError
from capsjax.data.generated import Generated
from capsjax.data.order import (
    BY_CLASS,
    FIRST_EDITION,
    batch_indices,
    split_validation,
    take_share,
)
from capsjax.data.source import has_validation, load

__all__ = [
    "BY_CLASS",
    "FIRST_EDITION",
    "Batch",
    "Dataset",
    "DatasetError",
    "Generated",
    "NotFoundError",
    "batch_indices",
    "has_validation",
    "load",
    "split_validation",
    "take_share",
]
