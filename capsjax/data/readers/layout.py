"""The layout of image files: their labels, and the splits that they belong to."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from capsjax.runtime.paths import expanded

_TEST_SHARE = 0.1
# Names of the splits, in upper or lower case.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


class LabelledFile(NamedTuple):
    """An image file and its label.

    Attributes:
        label: The index of its class, or of each of its classes.
        path: The file.
        name: Its name in messages and in the data set's identity, the same wherever the
            files lie.
    """

    label: int | tuple[int, ...]
    path: Path
    name: str

    @property
    def classes(self) -> tuple[int, ...]:
        """The indices of all its classes."""
        return (self.label,) if isinstance(self.label, int) else self.label


class Layout(NamedTuple):
    """The classes and splits of image files.

    Attributes:
        place: The folder or the file that describes them, for messages.
        class_names: The names of the classes.
        splits: The files of "train", "test", and "validation" if there are any.
        notes: Sentences on surprises in the layout.
        is_multi_label: Whether a label is the indices of several classes.
    """

    place: Path
    class_names: tuple[str, ...]
    splits: dict[str, list[LabelledFile]]
    notes: tuple[str, ...] = ()
    is_multi_label: bool = False

    def files_of(self, split: str) -> list[LabelledFile]:
        """Returns the files of a split; of "all", by label and then by path."""
        if split != "all":
            return self.splits.get(split, [])
        return sorted(file for part in self.splits.values() for file in part)


F = TypeVar("F", Path, LabelledFile)


def divide(files: Sequence[F]) -> tuple[list[F], list[F]]:
    """Divides a class's files, by the hashes of their names, into training and test.

    About a tenth are test files, at least one and never all; further files move almost
    none of the others. The order stays.

    Args:
        files: At least two files, whose names differ.
    """
    shares = [_hash(file.name) for file in files]
    num_test = sum(share < _TEST_SHARE for share in shares)
    num_test = min(max(num_test, 1), len(files) - 1)
    order = sorted(range(len(files)), key=shares.__getitem__)
    test = {*order[:num_test]}
    parts = ([], [])
    for number, file in enumerate(files):
        parts[number in test].append(file)
    return parts


def _hash(name: str) -> float:
    """Returns a number from 0 to 1 that looks random, equal on every machine."""
    digest = hashlib.sha256(os.fsencode(name)).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def is_prepared(folder: str | os.PathLike[str]) -> bool:
    """Returns whether a folder has array_record files that TFDS prepared."""
    place = expanded(folder)
    names = ("features.json", "dataset_info.json")
    return all(os.path.isfile(place / name) for name in names)


def shortened(names: Iterable[str], most: int = 10) -> str:
    """Lists names, and counts those beyond ``most``."""
    first, rest = list(names)[:most], list(names)[most:]
    return ", ".join(first) + (f" and {len(rest)} more" if rest else "")
