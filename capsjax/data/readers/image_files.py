"""Reads image files whose labels and splits are known, wherever they are written."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL
from jaxtyping import Bool, Int32, UInt8

from capsjax.data.dataset import Dataset, checksum_of
from capsjax.data.disk import Details, Source, read_images, remembered
from capsjax.data.errors import DatasetError
from capsjax.data.images import (
    ImageError,
    common_scale,
    read_extremes,
    read_header,
)
from capsjax.data.preparation import Preparation, Scale
from capsjax.data.readers.layout import LabelledFile, Layout, shortened
from capsjax.data.sampling import BY_CLASS, FIRST_EDITION
from capsjax.runtime.console import Progress

_MOST_NAMED = 10  # bad files
_MOST_NOTES = 3
_FILES_BETWEEN = 1000  # steps of the progress bar

T = TypeVar("T")


def read_files(
    layout: Layout,
    split: str,
    *,
    image_size: int,
    max_bytes: int,
    split_rule: str = BY_CLASS,
    preparation: Preparation | None = None,
    skip_bad_files: bool = False,
    choose: Callable[[Dataset], Dataset] | None = None,
) -> Dataset:
    """Reads one split of image files.

    Args:
        layout: The files.
        split: The split, or "all" for the images of all splits.
        image_size: Height and width to which images are scaled, after they are cut to
            squares.
        max_bytes: The most memory that the images may take. Larger ones are decoded
            into the cache on disk, from which they are read.
        split_rule: "first_edition" scales each image's grey of more than 8 bits alone.
        preparation: How a file becomes an image; ``image_size`` is then not needed. If
            None, images have one channel if all files of all splits are grey, else
            three, and the training files determine one scale for all files with more
            than 8 bits.
        skip_bad_files: Whether files that can't be read are left out.
        choose: Takes some of the images, before any is read: it gets a data set of one
            pixel an image, and returns its subset.

    Returns:
        The images, in the layout's order.

    Raises:
        DatasetError: If files are no images or damaged, the cache can't be written, or
            ``image_size`` is below 1.
    """
    if image_size < 1 and preparation is None:
        raise DatasetError(
            f"image_size is {image_size}: image files need the height and width to "
            "which they are scaled, for example 32"
        )
    reader = _Reader(layout, split, skip_bad_files=skip_bad_files)
    if preparation is None:
        preparation = reader.find_preparation(image_size, split_rule, max_bytes)
    if choose is not None:
        reader.choose(choose)
    return reader.read(preparation, max_bytes)


@dataclasses.dataclass(frozen=True)
class _Source(Source):
    """The images of a split's files."""

    files: Sequence[LabelledFile]
    preparation: Preparation

    def __len__(self) -> int:
        return len(self.files)

    def read(
        self, numbers: range, keep: Callable[[UInt8[np.ndarray, "h w c"]], None]
    ) -> Details:
        """Reads images; notes those that can be read, and why others can't.

        Texts on a file are split at its path: it may lie elsewhere at the next start.
        """
        good, checksum, bad, notes = [], [], [], []
        for number in numbers:
            path = self.files[number].path
            reasons: dict[Path, str] = {}
            of_file: list[str] = []
            pixels = _tried(self.preparation.apply, path, reasons, notes=of_file)
            notes += [(number, note.split(str(path))) for note in of_file]
            if pixels is None:
                bad.append((number, reasons[path].split(str(path))))
                continue
            keep(pixels)
            good.append(number)
            checksum.append(checksum_of(path.read_bytes()))
        return {"good": good, "checksum": checksum, "notes": notes, "bad": bad}

    def still_holds(self, details: Details) -> bool:
        """Returns whether the files that could not be read still can't be."""
        files = [self.files[number].path for number, _ in details["bad"]]
        return all(_tried(self.preparation.apply, file, {}) is None for file in files)

    def fingerprint(self) -> str:
        """Returns a digest of the files' names, sizes and times, and their decoding."""
        return _fingerprint(self.files, self.preparation.to_json())


def _fingerprint(files: Sequence[LabelledFile], how: Any) -> str:
    """Returns a digest of files' names, sizes, times and rights, and of a value."""
    how = json.dumps([how, PIL.__version__])
    digest = hashlib.blake2b(how.encode(), digest_size=16)
    for file in files:
        try:
            status = os.stat(file.path)
            state = (status.st_size, status.st_mtime_ns, status.st_mode)
        except OSError:  # The reader reports it.
            state = None
        digest.update(f"{file.name}\0{state}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _tried(
    read: Callable[..., T], file: Path, bad: dict[Path, str], **options: Any
) -> T | None:
    """Reads a file; notes the reason and returns None if it can't."""
    if file in bad:
        return None
    try:
        return read(file, **options)
    except ImageError as error:
        reason = str(error).removesuffix(".")
        bad[file] = reason if str(file) in reason else f"{file}: {reason}"
        return None


def _find_scale(deep: Sequence[Path], bad: dict[Path, str]) -> Scale:
    """Returns one scale for all files with more than 8 bits, by training files."""
    found = [_tried(read_extremes, file, bad) for file in deep]
    known = [extremes for extremes in found if extremes is not None]
    if not known:
        return "type"
    least, most, are_integers = zip(*known, strict=True)
    return common_scale(min(least), max(most), are_integers=all(are_integers))


class _Reader:
    """Reads the files of a split, and collects the unreadable ones."""

    def __init__(self, layout: Layout, split: str, *, skip_bad_files: bool):
        self.layout, self.split = layout, split
        self.place = layout.place
        self.files = layout.files_of(split)
        self.skip_bad_files = skip_bad_files
        self.deep: list[Path] = []  # Training files only.
        self.bad: dict[Path, str] = {}

    def find_preparation(
        self, image_size: int, split_rule: str, max_bytes: int
    ) -> Preparation:
        """Returns the preparation of all files, by a look at each.

        Images have one channel if all files of all splits are grey, else three. What
        was seen of many files is kept in the cache.
        """
        files = self.layout.files_of("all")

        def look() -> Details:
            return self._look_at(files, split_rule, image_size)

        if len(files) * image_size**2 <= max_bytes:
            seen = look()
        else:
            num_training = len(self.layout.files_of("train"))
            how = (image_size, split_rule, num_training)
            seen = remembered(_fingerprint(files, how), look)
        self.deep = [files[number].path for number in seen["deep"]]
        for number, reason in seen["bad"]:
            path = files[number].path
            self.bad[path] = str(path).join(reason)
        return Preparation.from_json(seen["preparation"])

    def _look_at(
        self, files: Sequence[LabelledFile], split_rule: str, image_size: int
    ) -> Details:
        """Returns the preparation, and the numbers of deep files and of bad ones."""
        training = {file.path for file in self.layout.files_of("train")}
        bad: dict[Path, str] = {}
        are_grey, deep = True, []
        with Progress(f"looking at {self.place}", total=len(files)) as progress:
            for number, (_, file, _) in enumerate(files):
                header = _tried(read_header, file, bad)
                if header is not None:
                    are_grey = are_grey and header.is_grey
                    if header.is_deep and file in training:
                        deep.append(number)
                if number % _FILES_BETWEEN == 0:
                    progress.advance_to(number)
        shape = (image_size, image_size, 1 if are_grey else 3)
        preparation = Preparation.of("image_folder", shape)
        scale: Scale = "own"
        if split_rule != FIRST_EDITION:
            scale = _find_scale([files[number].path for number in deep], bad)
        return {
            "preparation": dataclasses.replace(preparation, scale=scale).to_json(),
            "deep": deep,
            "bad": [
                (number, bad[file.path].split(str(file.path)))
                for number, file in enumerate(files)
                if file.path in bad
            ],
        }

    def choose(self, choose: Callable[[Dataset], Dataset]) -> None:
        """Keeps the files that ``choose`` takes, by their labels and names."""
        unread = Dataset(
            str(self.place),
            np.zeros((len(self.files), 1, 1, 1), np.uint8),
            self._labels(self.files),
            self.layout.class_names,
            files=np.arange(len(self.files)),
        )
        taken = choose(unread).files
        assert taken is not None
        self.files = [self.files[number] for number in taken]

    def read(self, preparation: Preparation, max_bytes: int) -> Dataset:
        """Reads the images.

        Raises:
            DatasetError: If files can't be read and may not be skipped, or no image of
                a class can be read.
        """
        image, details = read_images(
            _Source(self.files, preparation),
            preparation.image_shape,
            place=str(self.place),
            max_bytes=max_bytes,
        )
        for part in details:
            for number, reason in part["bad"]:
                path = self.files[number].path
                self.bad.setdefault(path, str(path).join(reason))
        if self.bad and not self.skip_bad_files:
            self._refuse(preparation)
        files = [self.files[number] for part in details for number in part["good"]]
        self._require_every_class(files)
        notes = [
            str(self.files[number].path).join(note)
            for part in details
            for number, note in part["notes"]
        ]
        checksum = [number for part in details for number in part["checksum"]]
        return Dataset(
            str(self.place),
            image,
            self._labels(files),
            self.layout.class_names,
            # Objects take only as much memory as each name is long.
            files=np.array([file.name for file in files], object),
            checksum=np.array(checksum, "u8"),
            preparation=preparation,
            notes=tuple(self._notes(preparation.scale, notes)),
        )

    def _labels(
        self, files: list[LabelledFile]
    ) -> Int32[np.ndarray, " n"] | Bool[np.ndarray, "n classes"]:
        if not self.layout.is_multi_label:
            return np.array([file.label for file in files], np.int32)
        label = np.zeros((len(files), len(self.layout.class_names)), np.bool_)
        for row, file in zip(label, files, strict=True):
            row[list(file.classes)] = True
        return label

    def _refuse(self, preparation: Preparation) -> None:
        """Raises an error that names all bad files, in the other splits too."""
        here = {file.path for file in self.files}
        for _, file, _ in self.layout.files_of("all"):
            if file not in here:
                _tried(preparation.apply, file, self.bad)
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

    def _require_every_class(self, good: list[LabelledFile]) -> None:
        before, after = (
            {label for file in files for label in file.classes}
            for files in (self.files, good)
        )
        if self.split == "train" and before - after:
            name = self.layout.class_names[min(before - after)]
            raise DatasetError(
                f"no image of class {name} in {self.place} can be read: a class needs "
                "one to train on"
            )
        if not good:
            raise DatasetError(
                f"no {self.split} image of {self.place} can be read: there must be one"
            )

    def _notes(self, scale: Scale, of_files: list[str]) -> Iterator[str]:
        """Yields sentences on surprises in reading."""
        yield from self.layout.notes
        if self.deep and not isinstance(scale, str):
            black, white = scale
            yield (
                f"{self.place}: in grey of more than 8 bits {black:g} is black and "
                f"{white:g} white, in every image, by the training images"
            )
        yield from of_files[:_MOST_NOTES]
        yield from _and_more(len(of_files) - _MOST_NOTES, "files are read in part")
        if skipped := [file.name for file in self.files if file.path in self.bad]:
            yield (
                f"{self.place}: {len(skipped)} {self.split} files can't be read and "
                f"are skipped: {shortened(skipped)}"
            )


def _and_more(number: int, what: str) -> list[str]:
    return [f"{number} more {what}"] if number > 0 else []
