"""Images in memory, or in a cache on disk if they exceed it: decided here alone.

A reader of files hands in its images as a source. Those that exceed the memory are
decoded and scaled once, into files of raw pixels that are read while training. Reading
an image there takes a hundredth of the time of decoding it, and less than reading it
from array_record (``docs/performance.md``).

The files of a cache are its parts, each written aside and renamed when it is whole. A
killed program leaves whole parts, with which the next one goes on.
"""

import abc
import bisect
import contextlib
import dataclasses
import errno
import json
import math
import os
import random
import secrets
import shutil
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Integer, UInt8, UInt32

from capsjax.data.errors import DatasetError
from capsjax.data.workers import in_processes, require_grain
from capsjax.runtime.console import Progress, say
from capsjax.runtime.paths import cache_folder

# A part has at least so many bytes, and a cache at most so many parts: a batch opens
# each part from which it has an image.
_LEAST_BYTES, _MOST_PARTS = 2**24, 64
_ASIDE = ".aside"  # Suffix of files that are not yet whole.
# A file aside is written all the time: nobody writes one that is older.
_SECONDS_TO_ABANDON = 3600

# Values for JSON that a source notes in reading some of its images.
Details = dict[str, Any]


class Source(abc.ABC):
    """Images of a reader, which can be read in parts by several processes.

    It must pickle if it has many images.
    """

    @abc.abstractmethod
    def __len__(self) -> int:
        """Returns the number of images."""

    @abc.abstractmethod
    def read(
        self, numbers: range, keep: Callable[[UInt8[np.ndarray, "h w c"]], None]
    ) -> Details:
        """Reads images, and calls ``keep`` with each in order that can be read."""

    def still_holds(self, details: Details) -> bool:
        """Returns whether the details from an earlier time are still true."""
        del details
        return True

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Returns letters and digits that change with the images, in any folder."""


def read_images(
    source: Source, image_shape: tuple[int, int, int], *, place: str, max_bytes: int
) -> tuple[Any, list[Details]]:
    """Reads the images of a source, into the cache if memory can't hold them.

    Args:
        source: The images.
        image_shape: Height, width and channels of each.
        place: Their place, for messages.
        max_bytes: The most memory that they may take.

    Returns:
        The images that could be read, in their order: an array ``[n h w c]``, or
        ``ImagesOnDisk``. And the source's details, part by part.

    Raises:
        DatasetError: If the cache can't be written.
    """
    if len(source) * math.prod(image_shape) > max_bytes:
        return _Cache(source, image_shape, place).read()
    image = np.empty((len(source), *image_shape), np.uint8)
    rows = iter(image)
    num_kept = 0

    def keep(pixels: UInt8[np.ndarray, "h w c"]) -> None:
        nonlocal num_kept
        next(rows)[:] = pixels
        num_kept += 1

    details = source.read(range(len(source)), keep)
    return image[:num_kept], [details]


def remembered(fingerprint: str, find: Callable[[], Details]) -> Details:
    """Returns what was found at an earlier start, or finds it and keeps it.

    Args:
        fingerprint: Letters and digits that change with what would be found.
        find: Finds it.
    """
    path = cache_folder() / "images" / f"{fingerprint}.json"
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        found = find()
    with contextlib.suppress(OSError):  # It saves time only.
        path.parent.mkdir(parents=True, exist_ok=True)
        with _aside(path) as file:
            file.write(json.dumps(found).encode())
    return json.loads(json.dumps(found))


class Part(NamedTuple):
    """A file with the pixels of some images, one after the other.

    Attributes:
        path: The file.
        checksum: Checksum of each image's pixels.
    """

    path: Path
    checksum: UInt32[np.ndarray, " n"]


class ImagesOnDisk:
    """Images on disk, indexed like an array ``[n h w c]``: what is indexed is read.

    Any number of threads and processes may read. Files are open only meanwhile.

    Attributes:
        shape: Number, height, width and channels.
    """

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(
        self,
        parts: tuple[Part, ...],
        image_shape: tuple[int, int, int],
        index: Int[np.ndarray, " n"] | None = None,
    ):
        self._parts, self._image_shape, self._index = parts, image_shape, index
        # The number of the first image of each part, and of the image after the last.
        self._starts = np.cumsum([0, *(len(part.checksum) for part in parts)]).tolist()

    def __len__(self) -> int:
        return self._starts[-1] if self._index is None else len(self._index)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Number, height, width and channels."""
        return len(self), *self._image_shape

    @property
    def folder(self) -> Path:
        """The folder of the cache."""
        return self._parts[0].path.parent

    def subset(self, indices: Int[np.ndarray, " m"]) -> "ImagesOnDisk":
        """Returns the images at ``indices``, none of which is read."""
        return ImagesOnDisk(self._parts, self._image_shape, self._rows(indices))

    def __getitem__(self, index: Any) -> UInt8[np.ndarray, "..."]:
        rows = self._rows(index)
        image = np.empty((rows.size, *self._image_shape), np.uint8)
        # One part after the other, each opened once.
        file, opened = None, -1
        with contextlib.ExitStack() as stack:
            for at in np.argsort(rows, axis=None, kind="stable").tolist():
                row = int(rows.flat[at])
                number = bisect.bisect_right(self._starts, row) - 1
                if number != opened:
                    stack.close()
                    file, opened = stack.enter_context(self._opened(number)), number
                self._read(
                    file, self._parts[number], row - self._starts[number], image[at]
                )
        return image.reshape(*rows.shape, *self._image_shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:  # noqa: FBT001
        del copy  # It is always one.
        return self[:].astype(dtype or np.uint8, copy=False)

    def _rows(self, index: Any) -> Integer[np.ndarray, "*indices"]:
        """Returns the rows of all parts together that an index means."""
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        index = np.asarray(index)
        if not np.issubdtype(index.dtype, np.integer):
            raise TypeError(
                "images on disk are indexed by integers, alone or in an array, or by a "
                f"slice, not by {index.dtype}"
            )
        if self._index is not None:
            return self._index[index]
        if index.size and not (-len(self) <= index.min() and index.max() < len(self)):
            raise IndexError(f"an index is out of range for {len(self)} images")
        return np.where(index < 0, index + len(self), index)

    def _opened(self, number: int) -> Any:
        path = self._parts[number].path
        try:
            # Read past Python's buffer, which would read more than an image.
            return open(path, "rb", buffering=0)
        except OSError as error:
            raise self._unreadable(path, error.strerror) from error

    def _read(
        self, file: Any, part: Part, number: int, image: UInt8[np.ndarray, "h w c"]
    ) -> None:
        try:
            file.seek(number * image.nbytes)
            num_read = file.readinto(image.data.cast("B"))
        except OSError as error:
            raise self._unreadable(part.path, error.strerror) from error
        if num_read != image.nbytes or zlib.crc32(image.data) != part.checksum[number]:
            raise self._unreadable(part.path, "it is damaged")

    def _unreadable(self, path: Path, reason: str | None) -> DatasetError:
        return DatasetError(
            f"can't read the images in {path}: {reason}; delete the folder "
            f"{self.folder}, and the next start makes it again"
        )


class _Cache:
    """The folder of a source's images, which is filled if it is not whole."""

    def __init__(self, source: Source, image_shape: tuple[int, int, int], place: str):
        require_grain(place)
        self._source, self._image_shape, self._place = source, image_shape, place
        self._num_bytes = len(source) * math.prod(image_shape)
        self._folder = cache_folder() / "images" / source.fingerprint()
        per_part = max(_LEAST_BYTES, self._num_bytes // _MOST_PARTS)
        per_part = -(-per_part // math.prod(image_shape))
        self._numbers = [
            range(start, min(start + per_part, len(source)))
            for start in range(0, len(source), per_part)
        ]

    def read(self) -> tuple[ImagesOnDisk, list[Details]]:
        """Returns the images and the source's details."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._remove_abandoned()
            self._fill()
            about = [self._read_about(number) for number in range(len(self._numbers))]
        except OSError as error:
            remedy = "set XDG_CACHE_HOME to another folder"
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                remedy = f"free {self._num_bytes / 1e9:.3g} GB there or {remedy}"
            raise DatasetError(
                f"can't keep the images of {self._place} in {self._folder}: "
                f"{error.strerror or error}; {remedy}; what is done stays done"
            ) from error
        parts = tuple(part for part, _ in about if len(part.checksum))
        return ImagesOnDisk(parts, self._image_shape), [one for _, one in about]

    def _read_about(self, number: int) -> tuple[Part, Details]:
        part = _PartFile(self._folder, number)
        try:
            about = json.loads(part.about.read_bytes())
            checksum = np.array(about["checksum"], np.uint32)
            return Part(part.pixels, checksum), about["details"]
        except (ValueError, KeyError) as error:
            raise DatasetError(
                f"{self._folder} is damaged ({error}); delete it, and the next start "
                "makes it again"
            ) from error

    def _fill(self) -> None:
        missing = [
            number for number in range(len(self._numbers)) if not self._has(number)
        ]
        size = f"{self._num_bytes / 1e9:.3g} GB"
        if not missing:
            say(f"{self._place}: {size} of images, read from {self._folder}")
            return
        num_images = sum(len(self._numbers[number]) for number in missing)
        self._require_room(num_images * math.prod(self._image_shape))
        say(
            f"{self._place}: {size} of images are decoded once, into {self._folder}, "
            "and read from there"
        )
        # Another process, perhaps on another host, may fill the same folder: by chance
        # they take other parts first, and each skips those that are there.
        random.Random(secrets.randbits(32)).shuffle(missing)
        write = _Writer(self._source, self._folder, self._numbers)
        done = len(self._source) - num_images
        with Progress(
            f"decoding {self._place}", total=len(self._source), initial=done
        ) as progress:
            for number, _ in zip(
                missing, in_processes(write, missing, num_images), strict=True
            ):
                done += len(self._numbers[number])
                progress.advance_to(done)

    def _has(self, number: int) -> bool:
        part = _PartFile(self._folder, number)
        if part.is_whole and not self._source.still_holds(self._read_about(number)[1]):
            part.about.unlink(missing_ok=True)
        return part.is_whole

    def _require_room(self, num_bytes: int) -> None:
        free = shutil.disk_usage(self._folder).free
        if num_bytes > free:
            raise DatasetError(
                f"the images of {self._place} exceed the memory that is allowed, and "
                f"{self._folder} has {free / 1e9:.3g} GB free, of the "
                f"{num_bytes / 1e9:.3g} GB that they take on disk: free them, set "
                "XDG_CACHE_HOME to another folder, or choose a smaller image_size"
            )

    def _remove_abandoned(self) -> None:
        """Removes what a killed process left unfinished."""
        for path in self._folder.glob(f"*{_ASIDE}"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _SECONDS_TO_ABANDON:
                    path.unlink()


class _PartFile(NamedTuple):
    """The two files of a part: its pixels, and what is known of them."""

    folder: Path
    number: int

    @property
    def pixels(self) -> Path:
        return self.folder / f"{self.number:03d}.pixels"

    @property
    def about(self) -> Path:
        return self.folder / f"{self.number:03d}.json"

    @property
    def is_whole(self) -> bool:
        # It is written last.
        return self.about.exists()


@dataclasses.dataclass(frozen=True)
class _Writer:
    """Decodes the images of a part and writes its files, in any process."""

    source: Source
    folder: Path
    numbers: list[range]

    def __call__(self, number: int) -> None:
        part = _PartFile(self.folder, number)
        if part.is_whole:
            return
        checksum = []
        with _aside(part.pixels) as file:

            def keep(pixels: UInt8[np.ndarray, "h w c"]) -> None:
                pixels = np.ascontiguousarray(pixels)
                checksum.append(zlib.crc32(pixels.data))
                file.write(pixels.data)

            details = self.source.read(self.numbers[number], keep)
        with _aside(part.about) as file:
            about = {"checksum": checksum, "details": details}
            file.write(json.dumps(about).encode())


@contextlib.contextmanager
def _aside(path: Path):
    """Opens a file that gets its name when it is whole, and is removed otherwise."""
    aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_ASIDE}")
    try:
        with open(aside, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
