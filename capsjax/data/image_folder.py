"""A person's own images: a folder with one subfolder for each class."""

import hashlib
import math
import os
from pathlib import Path

import numpy as np

from capsjax.data.dataset import Dataset, DatasetError
from capsjax.data.image_file import ImageError, fit, is_grey, read_image
from capsjax.paths import expanded

_LAYOUT = "it must have one subfolder for each class, with that class's images"
# What desktops leave in folders of images; names that begin with a dot are skipped too.
_NO_IMAGES = ("Thumbs.db", "desktop.ini")
_TEST_SHARE = 0.1

# The files of each class.
Files = dict[str, list[Path]]


def load_image_folder(
    path: str | os.PathLike, split: str, *, image_size: int, max_bytes: int
) -> Dataset:
    """Reads one split of a folder of images into memory.

    Args:
        path: A folder with one subfolder for each class, whose name is the class's. Or
            one with such folders ``train`` and ``test``. Without these about a tenth of
            each class's images, at least one, is the test split: those whose names have
            the smallest hashes, so that further images move almost none of the others
            from one split to the other.
        split: "train" or "test".
        image_size: The height and width to which images are scaled; of images that are
            not square the middle is taken.
        max_bytes: The most memory that the images may take.

    Returns:
        The images in the order of the classes, then of the files' names; of one channel
        if all files of both splits are grey, else of three. The classes are in the
        order of their names.

    Raises:
        DatasetError: The folder is missing or laid out otherwise, a class has too few
            images, a file is not an image or damaged, the images would take more than
            ``max_bytes``, or ``image_size`` is below 1.
    """
    if image_size < 1:
        raise DatasetError(
            f"image_size is {image_size}: a folder of images needs the height and "
            "width to which they are scaled, such as 32"
        )
    folder = expanded(path)
    try:
        splits = _find_splits(folder)
        every_file = [file for files in splits.values() for file in _flat(files)]
        # A list, so that what is no image is found before hours of reading.
        channels = 1 if all([is_grey(file) for file in every_file]) else 3
        shape = (image_size, image_size, channels)
        _require_memory(folder, len(_flat(splits[split])), shape, max_bytes)
        return _read(str(folder), splits[split], tuple(splits["train"]), shape)
    except ImageError as error:
        raise DatasetError(
            f"{str(error).removesuffix('.')}; replace the file or take it away"
        ) from error
    except OSError as error:
        raise DatasetError(
            f"the folder {error.filename or folder} cannot be read "
            f"({error.strerror or error}): check the path and that you may read it"
        ) from error


def _find_splits(folder: Path) -> dict[str, Files]:
    names = ("train", "test")
    if all((folder / name).is_dir() for name in names):
        train, test = (_find_classes(folder / name) for name in names)
        if unknown := sorted(test.keys() - train.keys()):
            raise DatasetError(
                f"{folder / 'test' / unknown[0]} has no images to train on: there must "
                f"be a folder {folder / 'train' / unknown[0]}"
            )
        return {"train": train, "test": test}
    splits = {"train": {}, "test": {}}
    for name, files in _find_classes(folder).items():
        if len(files) < 2:
            raise DatasetError(
                f"{folder / name} has a single image: a class needs one to train on "
                "and another one to test"
            )
        splits["train"][name], splits["test"][name] = _divide(files)
    return splits


def _find_classes(folder: Path) -> Files:
    folders = [entry for entry in _visible(folder) if entry.is_dir()]
    classes = {entry.name: _visible(entry) for entry in folders}
    if not classes:
        raise DatasetError(f"{folder} has no subfolders: {_LAYOUT}")
    for name, entries in classes.items():
        if not entries:
            raise DatasetError(f"{folder / name} has no images: add some, or remove it")
        for entry in entries:
            if entry.is_dir():
                raise DatasetError(f"{entry} is a folder within a class: {_LAYOUT}")
    return classes


def _visible(folder: Path) -> list[Path]:
    return sorted(
        entry
        for entry in folder.iterdir()
        if not entry.name.startswith(".") and entry.name not in _NO_IMAGES
    )


def _divide(files: list[Path]) -> tuple[list[Path], list[Path]]:
    """Divides a class's files into those to train on and those to test."""
    by_hash = sorted(files, key=_hash_of_name)
    num_test = sum(_hash_of_name(file) < _TEST_SHARE for file in files)
    num_test = min(max(num_test, 1), len(files) - 1)
    return sorted(by_hash[num_test:]), sorted(by_hash[:num_test])


def _hash_of_name(file: Path) -> float:
    """A number from 0 to 1 that looks random, and is the same on every machine."""
    digest = hashlib.sha256(os.fsencode(file.name)).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _flat(files: Files) -> list[Path]:
    return [file for of_class in files.values() for file in of_class]


def _require_memory(
    folder: Path, num_images: int, shape: tuple[int, int, int], max_bytes: int
) -> None:
    num_bytes = num_images * math.prod(shape)
    if num_bytes > max_bytes:
        height, width, channels = shape
        raise DatasetError(
            f"the {num_images:,} images of {folder} at {height} x {width} x {channels} "
            f"would take {num_bytes / 1e9:.1f} GB of memory, and at most "
            f"{max_bytes / 1e9:.1f} GB are allowed: choose a smaller image_size"
        )


def _read(
    name: str, files: Files, class_names: tuple[str, ...], shape: tuple[int, int, int]
) -> Dataset:
    image = np.empty((len(_flat(files)), *shape), np.uint8)
    for row, file in zip(image, _flat(files), strict=True):
        row[...] = fit(read_image(file, scale="own"), shape)
    label = [class_names.index(of) for of in files for _ in files[of]]
    names = [f"{file.parent.name}/{file.name}" for file in _flat(files)]
    return Dataset(
        name, image, np.array(label, np.int32), class_names, files=np.array(names)
    )
