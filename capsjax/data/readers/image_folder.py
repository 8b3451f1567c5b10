"""Reads a user's own images: a folder with one subfolder for each class."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np

from capsjax.data.dataset import Dataset, checksum_of, require_memory
from capsjax.data.errors import DatasetError, NotFoundError
from capsjax.data.images import (
    ImageError,
    common_scale,
    read_extremes,
    read_header,
)
from capsjax.data.preparation import Preparation, Scale
from capsjax.data.readers.folder_layout import Layout, find_layout, shortened
from capsjax.data.sampling import BY_CLASS, FIRST_EDITION
from capsjax.runtime.paths import expanded

_MOST_NAMED = 10  # bad files
_MOST_NOTES = 3

T = TypeVar("T")


def load_image_folder(
    path: str | os.PathLike,
    split: str,
    *,
    image_size: int,
    max_bytes: int,
    split_rule: str = BY_CLASS,
    preparation: Preparation | None = None,
    skip_bad_files: bool = False,
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

    Returns:
        The images, ordered by class and then by file name. Classes are ordered by name.

    Raises:
        NotFoundError: If the folder does not exist.
        DatasetError: If the folder has another layout or lacks the split, a class has
            too few images, files are no images or damaged, the images would take more
            than ``max_bytes``, or ``image_size`` is below 1.
    """
    if image_size < 1 and preparation is None:
        raise DatasetError(
            f"image_size is {image_size}: a folder of images needs the height and "
            "width to which they are scaled, for example 32"
        )
    folder = expanded(path)
    try:
        layout = find_layout(folder, split_rule, needs_test=split != "all")
        if split != "all" and split not in layout.splits:
            raise DatasetError(
                f"{folder} has no folder for the {split} split: add one called "
                f"{split} beside the others"
            )
        reader = _Reader(folder, layout, split, skip_bad_files=skip_bad_files)
        if preparation is None:
            shape = reader.find_shape(image_size)
            require_memory(str(folder), reader.num_files, shape, max_bytes)
            preparation = Preparation.of("image_folder", shape)
            scale = "own" if split_rule == FIRST_EDITION else reader.find_scale()
            preparation = dataclasses.replace(preparation, scale=scale)
        require_memory(
            str(folder), reader.num_files, preparation.image_shape, max_bytes
        )
        return reader.read(preparation)
    except OSError as error:
        path = os.path.abspath(os.fsdecode(error.filename or folder))
        is_missing = isinstance(error, FileNotFoundError) and not folder.exists()
        raise (NotFoundError if is_missing else DatasetError)(
            f"the folder {path} cannot be read ({error.strerror or error}): check the "
            "path and that you may read it"
        ) from error


class _Reader:
    """Reads the files of a split, and collects the unreadable ones."""

    def __init__(
        self, folder: Path, layout: Layout, split: str, *, skip_bad_files: bool
    ):
        self.folder, self.layout, self.split = folder, layout, split
        self.files = layout.labelled_files(split)
        self.skip_bad_files = skip_bad_files
        self.deep: list[Path] = []  # Training files only.
        self.bad: dict[Path, str] = {}

    @property
    def num_files(self) -> int:
        """Number of files in the split."""
        return len(self.files)

    def find_shape(self, image_size: int) -> tuple[int, int, int]:
        """Returns one channel if all files of all splits are grey, else three."""
        training, are_grey = set(self.layout.files_of("train")), True
        for file in self.layout.files_of("all"):
            header = self._tried(read_header, file)
            if header is None:
                continue
            are_grey = are_grey and header.is_grey
            if header.is_deep and file in training:
                self.deep.append(file)
        return image_size, image_size, 1 if are_grey else 3

    def find_scale(self) -> Scale:
        """Returns one scale for all files with more than 8 bits, by training files."""
        found = [self._tried(read_extremes, file) for file in self.deep]
        known = [extremes for extremes in found if extremes is not None]
        if not known:
            return "type"
        least, most, are_integers = zip(*known, strict=True)
        return common_scale(min(least), max(most), are_integers=all(are_integers))

    def read(self, preparation: Preparation) -> Dataset:
        """Reads the images.

        Raises:
            DatasetError: If files can't be read and may not be skipped, or no image of
                a class can be read.
        """
        image = np.empty((self.num_files, *preparation.image_shape), np.uint8)
        notes: list[str] = []
        apply = functools.partial(preparation.apply, notes=notes)
        good: list[int] = []
        for number, (_, file) in enumerate(self.files):
            pixels = self._tried(apply, file)
            if pixels is not None:
                image[len(good)] = pixels
                good.append(number)
        if self.bad and not self.skip_bad_files:
            self._refuse(preparation)
        label = np.array([label for label, _ in self.files], np.int32)[good]
        self._require_every_class(label)
        files = [self.files[number][1] for number in good]
        return Dataset(
            str(self.folder),
            image[: len(good)],
            label,
            self.layout.class_names,
            # Objects take only as much memory as each name is long.
            files=np.array([_name(file) for file in files], object),
            checksum=np.array([checksum_of(f.read_bytes()) for f in files], "u8"),
            preparation=preparation,
            notes=tuple(self._notes(preparation.scale, notes)),
        )

    def _tried(self, read: Callable[[Path], T], file: Path) -> T | None:
        """Reads a file; notes the reason and returns None if it can't."""
        if file in self.bad:
            return None
        try:
            return read(file)
        except ImageError as error:
            reason = str(error).removesuffix(".")
            self.bad[file] = reason if str(file) in reason else f"{file}: {reason}"
            return None

    def _refuse(self, preparation: Preparation) -> None:
        """Raises an error that names all bad files, in the other splits too."""
        here = {file for _, file in self.files}
        for file in self.layout.files_of("all"):
            if file not in here:
                self._tried(preparation.apply, file)
        reasons = [*self.bad.values()]
        more = _and_more(len(reasons) - _MOST_NAMED, "files can't be read")
        what, them = (
            ("the file", "it")
            if len(reasons) == 1
            else (f"these {len(reasons)} files", "them")
        )
        raise DatasetError(
            f"{'; '.join([*reasons[:_MOST_NAMED], *more])}; replace {what} or take "
            f"{them} away, or set skip_bad_files (--config.data.skip_bad_files=true)"
        )

    def _require_every_class(self, label: np.ndarray) -> None:
        lost = set(range(len(self.layout.class_names))) - {*label.tolist()}
        if self.split == "train" and lost:
            name = self.layout.class_names[min(lost)]
            raise DatasetError(
                f"no image of class {name} in {self.folder} can be read: a class needs "
                "one to train on"
            )

    def _notes(self, scale: Scale, of_files: list[str]) -> Iterator[str]:
        """Yields sentences on surprises in reading."""
        yield from self.layout.notes
        if self.deep and not isinstance(scale, str):
            black, white = scale
            yield (
                f"{self.folder}: in grey of more than 8 bits {black:g} is black and "
                f"{white:g} white, in every image, by the training images"
            )
        yield from of_files[:_MOST_NOTES]
        yield from _and_more(len(of_files) - _MOST_NOTES, "files are read in part")
        if skipped := [file for _, file in self.files if file in self.bad]:
            yield (
                f"{self.folder}: {len(skipped)} {self.split} files can't be read and "
                f"are skipped: {shortened([_name(file) for file in skipped])}"
            )


def _name(file: Path) -> str:
    return f"{file.parent.name}/{file.name}"


def _and_more(number: int, what: str) -> list[str]:
    return [f"{number} more {what}"] if number > 0 else []
