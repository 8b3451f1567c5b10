"""Reads arrays that NumPy saved: ``np.savez(FILE.npz, x_train=images, ...)``."""

import math
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from capsjax.data.arrays import (
    as_images,
    as_labels,
    as_names,
    require_names,
    require_same_number,
)
from capsjax.data.dataset import Dataset
from capsjax.data.errors import DatasetError, NotFoundError
from capsjax.data.readers.layout import shortened
from capsjax.runtime.paths import require_file

_READ = (
    *(f"{axis}_{split}" for split in ("train", "validation", "test") for axis in "xy"),
    "class_names",
)
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def load_npz(path: Path, split: str, *, max_bytes: int | None = None) -> Dataset:
    """Reads one split from a file of arrays.

    ``x_train``, ``x_test`` and, if there are images for it, ``x_validation`` hold
    images, ``y_train`` and so on their labels, and ``class_names`` the names of the
    classes, if they have names. A note names the arrays that have other names.

    Args:
        path: The file.
        split: "train", "validation" or "test"; only its arrays and the training labels
            are read.
        max_bytes: The most memory that an array may take.

    Returns:
        The images and labels in the file's order. Without ``class_names`` the classes
        are called "0", "1" and so on, up to the largest *training* label.

    Raises:
        NotFoundError: If there is no file.
        DatasetError: If the file is damaged, lacks an array of the split, or holds
            objects, which are never read; or an array is too large or does not fit.
    """
    place = str(path)
    with _opened(path) as archive:
        there = _names(archive)
        x, y = f"x_{split}", f"y_{split}"
        if missing := [name for name in (x, y) if name not in there]:
            raise DatasetError(
                f"{path} has no {' and no '.join(missing)}: the {split} split needs "
                f"{x} and {y}. It has {shortened(there) or 'no array'}"
            )

        def read(name: str) -> np.ndarray:
            return _read(archive, path, name, max_bytes)

        label = as_labels(read(y), place, y)
        # A file without training images may still be evaluated.
        train, train_label = y, label
        if split != "train" and "y_train" in there:
            train, train_label = "y_train", as_labels(read("y_train"), place, "y_train")
        if label.ndim != train_label.ndim:
            raise DatasetError(
                f"{path}: {y} is {label.dtype} and {train} {train_label.dtype}: both "
                "must be integers, or both bool"
            )
        names = read("class_names") if "class_names" in there else None
        class_names = as_names(names, place, train_label)
        require_names(train_label, class_names, place, train)
        if names is None:
            _require_trained(label, class_names, place, y)
        require_names(label, class_names, place, y)
        image = as_images(read(x), place, x)
    require_same_number(image, label, place, f"{x} and {y}")
    notes = ()
    if others := [name for name in there if name not in _READ]:
        notes = (
            f"{path} has arrays that are not read: {shortened(others)}; those with "
            f"these names are: {', '.join(_READ)}",
        )
    return Dataset(place, image, label, class_names, notes=notes)


def has_validation(path: Path) -> bool:
    """Returns whether a file has images for validation.

    Raises:
        DatasetError: If it can't be read.
    """
    with _opened(path) as archive:
        return "x_validation" in _names(archive)


def _require_trained(
    label: np.ndarray, class_names: tuple[str, ...], place: str, name: str
) -> None:
    if label.ndim == 1 and label.max(initial=0) >= len(class_names):
        index = int((label >= len(class_names)).argmax())
        raise DatasetError(
            f"{place}: {name} is {label[index]} at index {index}, but y_train only "
            f"goes to {len(class_names) - 1}: a class that is never trained cannot be "
            "recognised"
        )


def _opened(path: Path) -> zipfile.ZipFile:
    """Opens the file; turns every exception of that into one error."""
    try:
        require_file(path)
        return zipfile.ZipFile(path)
    except FileNotFoundError as error:
        raise NotFoundError(
            f"there is no {os.path.abspath(path)}: correct the path"
        ) from error
    except OSError as error:
        raise DatasetError(
            f"{path} cannot be read ({error.strerror or error}): check what it is and "
            "that you may read it"
        ) from error
    except Exception as error:  # A damaged directory may raise almost anything.
        with path.open("rb") as file:
            start = file.read(len(npy.MAGIC_PREFIX))
        if start == npy.MAGIC_PREFIX:
            what = "is a single array: save all arrays in one file by np.savez"
        elif start.startswith(b"PK"):
            what = f"is damaged or not whole ({error}): copy or save it again"
        else:
            what = "is no .npz file: save its arrays by np.savez"
        raise DatasetError(f"{path} {what}") from error


def _names(archive: zipfile.ZipFile) -> list[str]:
    names = archive.namelist()
    return [name.removesuffix(".npy") for name in names if name.endswith(".npy")]


def _read(
    archive: zipfile.ZipFile, path: Path, name: str, max_bytes: int | None
) -> np.ndarray:
    """Reads an array, whose header is compared with its size first."""
    what = f"{path}: {name}"
    member = f"{name}.npy"
    try:
        with archive.open(member) as file:
            shape, dtype = _header(file)
            num_bytes = math.prod(shape) * dtype.itemsize
            num_there = archive.getinfo(member).file_size - file.tell()
        if dtype.hasobject:
            raise DatasetError(
                f"{what} holds objects, which are never read, since they may run "
                "programs: save numbers, or texts with dtype=str"
            )
        if num_bytes != num_there:
            raise ValueError(f"its header states {num_bytes} bytes, not {num_there}")
        if max_bytes is not None and num_bytes > max_bytes:
            raise DatasetError(
                f"{what} would take {num_bytes / 1e9:.3g} GB of memory, and at most "
                f"{max_bytes / 1e9:.3g} GB are allowed: allow for more"
            )
        with archive.open(member) as file:
            return npy.read_array(file, allow_pickle=False)
    except DatasetError:
        raise
    except Exception as error:  # The decoders raise almost anything for damage.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DatasetError(
            f"{what} is damaged ({reason}): copy or save the file again"
        ) from error


def _header(file: Any) -> tuple[tuple[int, ...], np.dtype]:
    version = npy.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"its format {version} is not known")
    shape, _, dtype = _HEADERS[version](file)
    return shape, dtype
