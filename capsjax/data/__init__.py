"""Data sets as arrays in memory: one door, one type, one order of batches."""

from capsjax.data.dataset import Batch, Dataset
from capsjax.data.errors import DatasetError, NotFoundError
from capsjax.data.generated import Generated
from capsjax.data.loading import has_validation, load
from capsjax.data.sampling import (
    BY_CLASS,
    FIRST_EDITION,
    batch_indices,
    split_validation,
    take_share,
)

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
