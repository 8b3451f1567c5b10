"""Reads a user's own images: a folder with one subfolder for each class."""

import os
from collections.abc import Callable

from capsjax.data.dataset import Dataset
from capsjax.data.errors import DatasetError, NotFoundError
from capsjax.data.preparation import Preparation
from capsjax.data.readers.folder_layout import find_layout
from capsjax.data.readers.image_files import read_files
from capsjax.data.sampling import BY_CLASS
from capsjax.runtime.paths import expanded


def load_image_folder(
    path: str | os.PathLike[str],
    split: str,
    *,
    image_size: int,
    max_bytes: int,
    split_rule: str = BY_CLASS,
    preparation: Preparation | None = None,
    skip_bad_files: bool = False,
    choose: Callable[[Dataset], Dataset] | None = None,
) -> Dataset:
    """Reads one split of a folder of images into memory.

    Args:
        path: A folder with one subfolder for each class, named after it, or with a
            subfolder of classes for each split: see ``find_layout``.
        split: "train", "validation", "test", or "all" for the images of all splits.
        image_size: Height and width to which images are scaled, after they are cut to
            squares.
        max_bytes: The most memory that the images may take.
        split_rule: As in ``find_layout``.
        preparation: How a file becomes an image; ``image_size`` is then not needed. If
            None, images have one channel if all files of all splits are grey, else
            three, and the training files determine one scale for all files with more
            than 8 bits.
        skip_bad_files: Whether files that can't be read are left out.
        choose: As in ``read_files``.

    Returns:
        The images, ordered by class and then by file name. Classes are ordered by name.

    Raises:
        NotFoundError: If the folder does not exist.
        DatasetError: If the folder has another layout or lacks the split, a class has
            too few images, files are no images or damaged, the images would take more
            than ``max_bytes``, or ``image_size`` is below 1.
    """
    folder = expanded(path)
    try:
        layout = find_layout(folder, split_rule, needs_test=split != "all")
        if split != "all" and split not in layout.splits:
            raise DatasetError(
                f"{folder} has no folder for the {split} split: add one called "
                f"{split} beside the others"
            )
        return read_files(
            layout,
            split,
            image_size=image_size,
            max_bytes=max_bytes,
            split_rule=split_rule,
            preparation=preparation,
            skip_bad_files=skip_bad_files,
            choose=choose,
        )
    except OSError as error:
        path = os.path.abspath(os.fsdecode(error.filename or folder))
        is_missing = isinstance(error, FileNotFoundError) and not folder.exists()
        raise (NotFoundError if is_missing else DatasetError)(
            f"the folder {path} cannot be read ({error.strerror or error}): check the "
            "path and that you may read it"
        ) from error
