"""Reads IDX archives, MNIST's format: the shipped ones, and others in a folder."""

import contextlib
import gzip
import io
import math
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

from capsjax.data.dataset import Dataset, require_memory
from capsjax.data.errors import DatasetError, NotFoundError

MNIST_FOLDER = Path(__file__).parents[1] / "archives" / "mnist"

# How the files of each split begin; upstream calls the 10,000 test images "t10k".
_PREFIXES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val"),
    "test": ("t10k", "test"),
}
_SUFFIXES = ("-idx{}-ubyte.gz", "-idx{}-ubyte", ".idx{}-ubyte.gz", ".idx{}-ubyte")

_GZIP_MAGIC = b"\x1f\x8b"
_UNSIGNED_BYTE = 0x08
_MAX_AXES = 4
# A deflate stream expands to at most 1032 times its size (zlib's technical notes), so a
# header that states more is known to be wrong before any unpacking.
_MAX_COMPRESSION = 1032
_BLOCK_BYTES = 1 << 20


def load_mnist(split: str, *, max_bytes: int | None = None) -> Dataset:
    """Reads the MNIST archives that are part of the package.

    Args:
        split: "train" (60,000 images) or "test" (10,000).
        max_bytes: The most memory that the images may take.

    Returns:
        The images and labels in upstream's order.

    Raises:
        DatasetError: If the installed files are damaged or missing, or the images would
            take more than ``max_bytes``.
    """
    return load_idx_folder(MNIST_FOLDER, split, name="mnist", max_bytes=max_bytes)


def load_idx_folder(
    folder: Path, split: str, *, name: str | None = None, max_bytes: int | None = None
) -> Dataset:
    """Reads one split from a folder that is laid out like MNIST.

    The files are ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``,
    ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``, each with or without
    ``.gz``, with ``-`` or ``.`` before ``idx``. ``t10k`` may be ``test``, and the files
    of a validation split begin with ``validation``, ``valid`` or ``val``.

    Args:
        folder: The folder of the files.
        split: "train", "validation" or "test".
        name: Name of the data set; by default the folder's path.
        max_bytes: The most memory that the images may take.

    Returns:
        The images and labels in the files' order. The classes are called "0", "1" and
        so on up to the largest *training* label.

    Raises:
        NotFoundError: If the folder does not exist.
        DatasetError: If a file is missing or damaged, the counts of images and labels
            differ, a label is larger than every training label, or the images would
            take more than ``max_bytes``.
    """
    image_path = _find(folder, split, "images", 3)
    label_path = _find(folder, split, "labels", 1)
    image, label = _read_images(image_path, max_bytes), _read_labels(label_path)
    if len(image) != len(label):
        raise DatasetError(
            f"{image_path} holds {len(image)} images and {label_path} {len(label)} "
            "labels: these files do not belong together; get both from one source"
        )
    train_label = label
    if split != "train":
        train_label = _read_labels(_find(folder, "train", "labels", 1))
    num_classes = int(train_label.max()) + 1
    if label.max() >= num_classes:
        index = int((label >= num_classes).argmax())
        raise DatasetError(
            f"{label_path} has the label {label[index]} at index {index}, but the "
            f"training labels in {folder} only go from 0 to {num_classes - 1}: "
            "a class that is never trained cannot be recognised"
        )
    class_names = tuple(str(label) for label in range(num_classes))
    return Dataset(name or str(folder), image, label, class_names)


def has_idx_files(folder: Path, split: str) -> bool:
    """Returns whether a folder has the IDX archive with the images of that split."""
    return any((folder / name).is_file() for name in _file_names(split, "images", 3))


def read_idx(
    path: str | os.PathLike[str], *, max_bytes: int | None = None
) -> UInt8[np.ndarray, "..."]:
    """Reads one IDX file with unsigned bytes, compressed by gzip or not.

    The stated sizes are compared with the file's real size before memory is allocated,
    and no more bytes than stated are ever unpacked.

    Args:
        path: The file; its first bytes show whether it is compressed.
        max_bytes: The most memory that the array may take.

    Returns:
        The array, with as many axes as the file states (1 to 4).

    Raises:
        DatasetError: If the file is missing, unreadable or damaged, is not an IDX file
            with unsigned bytes, holds fewer or more bytes than its header states, or
            would take more than ``max_bytes``.
    """
    path = Path(path)
    with _explained(path), _opened(path) as (file, most):
        shape = _read_header(path, file)
        num_bytes = math.prod(shape)
        if num_bytes > most:
            raise _damaged(
                path, f"its header states {num_bytes} bytes of data, {shape}, too many"
            )
        if max_bytes is not None:
            require_memory(str(path), shape[0], shape[1:], max_bytes)
        content = _read_at_most(file, num_bytes + 1)
    if len(content) != num_bytes:
        found = "more" if len(content) > num_bytes else f"only {len(content)}"
        raise _damaged(
            path,
            f"its header states {num_bytes} bytes of data, {shape}; it has {found}",
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _read_images(path: Path, max_bytes: int | None) -> UInt8[np.ndarray, "n h w 1"]:
    return _read_non_empty(path, 3, max_bytes)[..., np.newaxis]


def _read_labels(path: Path) -> Int32[np.ndarray, " n"]:
    return _read_non_empty(path, 1).astype(np.int32)


def _read_non_empty(
    path: Path, num_axes: int, max_bytes: int | None = None
) -> UInt8[np.ndarray, "..."]:
    array = read_idx(path, max_bytes=max_bytes)
    if array.ndim != num_axes or not array.size:
        raise DatasetError(
            f"{path} holds an array with the shape {array.shape}: it must have "
            f"{num_axes} axes, none of them empty; are the files mixed up?"
        )
    return array


def _find(folder: Path, split: str, content: str, num_axes: int) -> Path:
    names = _file_names(split, content, num_axes)
    with _explained(folder):
        for name in names:
            if (folder / name).is_file():
                return folder / name
        listing = _listing(folder)
    raise DatasetError(
        f"the folder {folder} has no file {names[0]} (nor {', '.join(names[1:])}): "
        f"put the IDX archives there. It holds {listing}"
    )


def _file_names(split: str, content: str, num_axes: int) -> list[str]:
    return [
        f"{prefix}-{content}{suffix.format(num_axes)}"
        for prefix in _PREFIXES[split]
        for suffix in _SUFFIXES
    ]


def _listing(folder: Path, num_shown: int = 8) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    if not names:
        return "nothing"
    more = len(names) - num_shown
    return ", ".join(names[:num_shown]) + (f" and {more} more" if more > 0 else "")


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns every exception of reading into one error that names the remedy."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(
            f"there is no {os.path.abspath(path)}: correct the path"
        ) from error
    except EOFError as error:
        raise _damaged(path, "it ends before its compressed data does") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(path, f"it cannot be unpacked ({error})") from error
    except OSError as error:
        raise DatasetError(
            f"{path} cannot be read ({error.strerror or error}): check what it is and "
            "that you may read it"
        ) from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[io.BufferedIOBase, int]]:
    """Opens the file; yields it and the most bytes that it can hold."""
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        is_gzip = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        file.seek(0)
        if is_gzip:
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield unpacked, num_bytes * _MAX_COMPRESSION
        else:
            yield file, num_bytes


def _read_header(path: Path, file: io.BufferedIOBase) -> tuple[int, ...]:
    magic = file.read(4)
    if len(magic) < 4:
        raise _damaged(path, f"it has {len(magic)} bytes, too few for a header")
    zeros, type_code, num_axes = struct.unpack(">HBB", magic)
    if zeros or type_code != _UNSIGNED_BYTE or not 1 <= num_axes <= _MAX_AXES:
        raise DatasetError(
            f"{path} is not an IDX file of unsigned bytes: it begins with "
            f"{magic.hex(' ')}, but must begin with 00 00 08 and the number of axes, "
            f"01 to {_MAX_AXES:02d}; replace it by one that does"
        )
    sizes = file.read(4 * num_axes)
    if len(sizes) < 4 * num_axes:
        raise _damaged(path, "it ends within its header")
    return struct.unpack(f">{num_axes}I", sizes)


def _read_at_most(file: io.BufferedIOBase, num_bytes: int) -> bytearray:
    # In blocks, since read(num_bytes) allocates all memory before it sees any data.
    content = bytearray()
    while len(content) < num_bytes:
        block = file.read(min(_BLOCK_BYTES, num_bytes - len(content)))
        if not block:
            break
        content += block
    return content


def _damaged(path: Path, what: str) -> DatasetError:
    remedy = "get the file again from its source"
    if path.is_relative_to(MNIST_FOLDER):
        remedy = "install capsjax again"
    return DatasetError(f"{path} is damaged: {what}; {remedy}")
