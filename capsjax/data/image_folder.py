"""A person's own images: a folder with one subfolder for each class."""

import math
import os
from pathlib import Path

import numpy as np

from capsjax.data.dataset import Dataset, DatasetError, NotFoundError, checksum_of
from capsjax.data.image_file import ImageError, fit, is_grey, read_image
from capsjax.data.layout import Layout, find_layout
from capsjax.data.order import BY_CLASS
from capsjax.paths import expanded


def load_image_folder(
    path: str | os.PathLike,
    split: str,
    *,
    image_size: int,
    max_bytes: int,
    split_rule: str = BY_CLASS,
) -> Dataset:
    """Reads one split of a folder of images into memory.

    Args:
        path: A folder with one subfolder for each class, whose name is the class's, or
            with such folders for the splits: see ``find_layout``.
        split: "train", "validation", "test", or "all" for the images of all of them.
        image_size: The height and width to which images are scaled; of images that are
            not square the middle is taken.
        max_bytes: The most memory that the images may take.
        split_rule: As of ``find_layout``.

    Returns:
        The images in the order of the classes, then of the files' names; of one channel
        if all files of all splits are grey, else of three. The classes are in the
        order of their names.

    Raises:
        NotFoundError: There is no such folder.
        DatasetError: The folder is laid out otherwise or has no such split, a class has
            too few images, a file is not an image or damaged, the images would take
            more than ``max_bytes``, or ``image_size`` is below 1.
    """
    if image_size < 1:
        raise DatasetError(
            f"image_size is {image_size}: a folder of images needs the height and "
            "width to which they are scaled, such as 32"
        )
    folder = expanded(path)
    try:
        layout = find_layout(folder, split_rule, needs_test=split != "all")
        if split != "all" and split not in layout.splits:
            raise DatasetError(
                f"{folder} has no folder for the {split} split: one that is called "
                f"{split} is needed beside the others"
            )
        # A list, so that what is no image is found before hours of reading.
        channels = 1 if all([is_grey(file) for file in layout.files_of("all")]) else 3
        shape = (image_size, image_size, channels)
        _require_memory(folder, len(layout.files_of(split)), shape, max_bytes)
        return _read(str(folder), layout, split, shape)
    except ImageError as error:
        raise DatasetError(
            f"{str(error).removesuffix('.')}; replace the file or take it away"
        ) from error
    except OSError as error:
        path = os.path.abspath(os.fsdecode(error.filename or folder))
        is_missing = isinstance(error, FileNotFoundError) and not folder.exists()
        raise (NotFoundError if is_missing else DatasetError)(
            f"the folder {path} cannot be read ({error.strerror or error}): check the "
            "path and that you may read it"
        ) from error


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
    name: str, layout: Layout, split: str, shape: tuple[int, int, int]
) -> Dataset:
    files = layout.labelled_files(split)
    image = np.empty((len(files), *shape), np.uint8)
    for row, (_, file) in zip(image, files, strict=True):
        row[...] = fit(read_image(file, scale="own"), shape)
    return Dataset(
        name,
        image,
        np.array([label for label, _ in files], np.int32),
        layout.class_names,
        files=np.array([f"{file.parent.name}/{file.name}" for _, file in files]),
        checksum=np.array(
            [checksum_of(file.read_bytes()) for _, file in files], np.uint64
        ),
        notes=layout.notes,
    )
