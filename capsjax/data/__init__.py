"""Data sets as arrays in memory: one door, one type, one order of the batches."""

from capsjax.data.dataset import Batch, Dataset, DatasetError
from capsjax.data.generated import Generated
from capsjax.data.order import batch_indices, split_validation
from capsjax.data.source import load

__all__ = [
    "Batch",
    "Dataset",
    "DatasetError",
    "Generated",
    "batch_indices",
    "load",
    "split_validation",
]
