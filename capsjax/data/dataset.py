"""The one type that every data set becomes: arrays, checked once."""

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32, UInt8, UInt64

from capsjax.data.arrays import (
    as_images,
    as_labels,
    as_names,
    require_names,
    require_same_number,
)
from capsjax.data.disk import ImagesOnDisk
from capsjax.data.errors import DatasetError
from capsjax.data.preparation import Preparation

# The most file names in an identity.
_MOST_FILES = 100


class Batch(NamedTuple):
    """Some images and their labels, on the host (NumPy) or on a device (JAX).

    Attributes:
        image: Pixels from 0 to 255; ``augment.scale_to_unit`` makes them floats.
        label: The class of each image, or ``[*batch n]``, true for each class shown.
        source: The parts that overlap in an image, each alone, in class order; None
            without overlap.

    Examples:
        >>> import numpy as np
        >>> from capsjax.data import Dataset
        >>> few = Dataset("few", np.zeros((3, 8, 8), np.uint8), np.array([0, 2, 1]))
        >>> batch = few.batch(np.array([1, 2]))
        >>> batch.image.shape, batch.label.tolist()
        ((2, 8, 8, 1), [2, 1])
    """

    image: UInt8[Any, "*batch h w c"]
    label: Int32[Any, "*batch"] | Bool[Any, "*batch n"]
    source: UInt8[Any, "*batch s h w c"] | None = None


@dataclasses.dataclass(frozen=True, eq=False, init=False)
class Dataset:
    """Images and labels in memory; images that exceed it are on disk.

    Attributes:
        name: Name of the data set in messages.
        image: Pixels from 0 to 255, uint8 ``[n h w c]``; grey images ``[n h w]`` get
            an axis of one channel. Images on disk are read where they are indexed.
        label: Each image's index into ``class_names``, ``[n]`` of any integer type,
            kept as int32; or bool ``[n classes]`` if images show several classes, or
            none.
        class_names: One name for each class; by default "0", "1" and so on, up to the
            largest label or for each column of bool labels.
        source: The overlapping parts of each image, each alone, in class order: uint8
            ``[n s h w c]``. None if images do not all show ``s`` classes.
        files: Class and name of each image's file, ``cats/1.png``, ``[n]``; None if
            images are no files.
        checksum: Checksum of the bytes of each image, uint64 ``[n]``; None to use the
            pixels'.
        preparation: How a picture becomes an image of this set; None to scale it at
            most.
        notes: Sentences on surprises in reading the set.

    Raises:
        DatasetError: If there is no image, the arrays have another type or rank, their
            counts differ, a label has no class name, a class name is no text or there
            twice, or the preparation makes images of another shape.

    Examples:
        >>> import numpy as np
        >>> from capsjax.data import Dataset
        >>> image, label = np.zeros((3, 8, 8), np.uint8), np.array([0, 1, 1])
        >>> dataset = Dataset("shapes", image, label, ("disc", "square"))
        >>> len(dataset), dataset.image_shape, dataset.num_classes
        (3, (8, 8, 1), 2)
    """

    name: str
    # Plain types: they are checked below, for everyone and with clearer messages. The
    # images may be ``ImagesOnDisk``, which is indexed alike.
    image: np.ndarray = dataclasses.field(repr=False)
    label: np.ndarray = dataclasses.field(repr=False)
    class_names: tuple[str, ...]
    source: np.ndarray | None = dataclasses.field(repr=False)
    files: np.ndarray | None = dataclasses.field(repr=False)
    preparation: Preparation | None
    checksum: np.ndarray | None = dataclasses.field(repr=False)
    notes: tuple[str, ...] = dataclasses.field(repr=False)

    def __init__(
        self,
        name: str,
        image: Any,
        label: Any,
        class_names: Any = (),
        source: np.ndarray | None = None,
        files: np.ndarray | None = None,
        preparation: Preparation | None = None,
        checksum: np.ndarray | None = None,
        notes: tuple[str, ...] = (),
    ):
        place = f"data set {name!r}"
        if not isinstance(image, ImagesOnDisk):
            image = as_images(image, place, "image")
        label = as_labels(label, place, "label")
        require_same_number(image, label, place, "image and label")
        class_names = as_names(class_names, place, label)
        require_names(label, class_names, place, "label")
        values = (name, image, label, class_names, source, files, preparation)
        values += (checksum, notes)
        for field, value in zip(dataclasses.fields(self), values, strict=True):
            object.__setattr__(self, field.name, value)  # It is frozen for others.
        self._check_source()
        made = self.preparation and self.preparation.image_shape
        if made not in (None, self.image_shape):
            raise DatasetError(
                f"{place}: its images are {self.image_shape}, but its preparation "
                f"makes {made}"
            )

    def _check_source(self):
        if self.source is None:
            return
        if self.source.dtype != np.uint8 or self.source.ndim != 5:
            raise DatasetError(
                f"data set {self.name!r}: source is {self.source.dtype} with the shape "
                f"{self.source.shape}, and must be uint8 with the axes [n s h w c]"
            )
        n, s, *shape = self.source.shape
        expected = (len(self), self.image_shape)
        if (n, tuple(shape)) != expected or not self.is_multi_label:
            raise DatasetError(
                f"data set {self.name!r}: source has the shape {self.source.shape}, "
                f"which does not fit images {self.image.shape} and labels "
                f"{self.label.shape}"
            )
        if (self.label.sum(axis=1) != s).any():
            raise DatasetError(
                f"data set {self.name!r}: there are {s} sources for each image, so "
                f"each must show {s} classes"
            )

    def __len__(self) -> int:
        return len(self.image)

    @property
    def is_on_disk(self) -> bool:
        """True if the images are read from disk while they are used."""
        return isinstance(self.image, ImagesOnDisk)

    @property
    def is_multi_label(self) -> bool:
        """True if an image may show several classes."""
        return self.label.dtype == np.bool_

    @property
    def num_shown(self) -> int | None:
        """Number of classes in each image; None if it differs between images."""
        if not self.is_multi_label:
            return 1
        return None if self.source is None else self.source.shape[1]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and number of channels of each image."""
        height, width, channels = self.image.shape[1:]
        return height, width, channels

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def main_class(self) -> Int[np.ndarray, " n"]:
        """The class of each image, by which a split counts it.

        The rarest of several classes counts; ``num_classes`` for an image that shows
        none.
        """
        if not self.is_multi_label:
            return self.label
        num_images = np.where(self.label, self.label.sum(axis=0), len(self) + 1)
        shows_any = self.label.any(axis=1)
        return np.where(shows_any, num_images.argmin(axis=1), self.num_classes)

    def images_by_class(self) -> Int[np.ndarray, " classes"]:
        """Counts the images that show each class."""
        if self.is_multi_label:
            return self.label.sum(axis=0)
        return np.bincount(self.label, minlength=self.num_classes)

    def identity(self) -> dict[str, Any]:
        """Returns what distinguishes these images from others, in any folder.

        It holds the number of images, a checksum over classes, labels, file names and
        the bytes of each image, and at most 100 of the file names.
        """
        files = self._file_names
        digest = hashlib.blake2b(repr(self.class_names).encode(), digest_size=16)
        digest.update("\0".join(files).encode(errors="surrogateescape"))
        checksum = (
            checksums(np.asarray(self.image))
            if self.checksum is None
            else self.checksum
        )
        for array in (self.label, checksum.astype("<u8")):
            digest.update(np.ascontiguousarray(array).data)
        identity = {"num_images": len(self), "checksum": digest.hexdigest()}
        if not files:
            return identity
        step = -(-len(files) // _MOST_FILES)
        return {**identity, "files": files[::step]}

    def difference(self, before: Mapping[str, Any]) -> str | None:
        """Describes how these images differ from others; None if they are the same.

        Args:
            before: The others' ``identity``, from now or from the first edition.
        """
        if "fingerprint" in before:
            is_same = before["fingerprint"] == self._first_fingerprint()
        else:
            is_same = before.get("checksum") == self.identity()["checksum"]
        return None if is_same else self._what_changed(before)

    @property
    def _file_names(self) -> list[str]:
        return [] if self.files is None else self.files.tolist()

    def _first_fingerprint(self) -> str:
        """Computes the first edition's fingerprint in ``dataset.json``."""
        digest = hashlib.sha256(repr((self.class_names, self._file_names)).encode())
        for array in (self.image, self.label):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]

    def _what_changed(self, before: Mapping[str, Any]) -> str:
        files, num_before = before.get("files"), before.get("num_images")
        was = {*map(str, files)} if isinstance(files, list) else set()
        has = {*self._file_names}
        # An identity holds only some of many names.
        new = has - was if num_before in (len(was), None) else set()
        changes = [
            f"{min(names)} {word}"
            + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            for word, names in (("is gone", was - has), ("is new", new))
            if names
        ]
        if not changes and type(num_before) is int and num_before != len(self):
            changes = [f"there were {num_before} and are {len(self)}"]
        return "; ".join(changes) or "pixels, labels or names are not what they were"

    def batch(self, indices: Int[np.ndarray, "*batch"]) -> Batch:
        """Returns the images and labels at ``indices``, in their order."""
        source = None if self.source is None else self.source[indices]
        return Batch(self.image[indices], self.label[indices], source)

    def subset(self, indices: Int[np.ndarray, " m"]) -> "Dataset":
        """Returns a data set with the images at ``indices``, in their order."""
        arrays = {
            name: array if array is None else array[indices]
            for name in ("label", "source", "files", "checksum")
            for array in [getattr(self, name)]
        }
        image: Any = self.image
        image = image.subset(indices) if self.is_on_disk else image[indices]
        return dataclasses.replace(self, image=image, **arrays)

    def in_epoch(self, seed: int, epoch: int) -> "Dataset":
        """Returns itself: these images are the same in every epoch, for every seed."""
        del seed, epoch
        return self

    def fixed(self) -> "Dataset":
        """Returns itself: see ``Generated.fixed``."""
        return self


def require_memory(
    name: str, num_images: int, image_shape: tuple[int, ...], max_bytes: int
) -> None:
    """Refuses images that would take too much memory, before any is made.

    Raises:
        DatasetError: If they would take more than ``max_bytes``.
    """
    if max_bytes == 0:
        raise DatasetError(
            f"the images of {name} can't be read from disk while training, as image "
            "files and sets of TFDS can: they must be held in memory"
        )
    num_bytes = num_images * math.prod(image_shape)
    if num_bytes > max_bytes:
        size = " x ".join(map(str, image_shape))
        raise DatasetError(
            f"the {num_images:,} images of {name} at {size} would take "
            f"{num_bytes / 1e9:.3g} GB of memory, and at most {max_bytes / 1e9:.3g} GB "
            "are allowed: choose a smaller image_size, or allow for more"
        )


def checksums(image: UInt8[np.ndarray, "n ..."]) -> UInt64[np.ndarray, " n"]:
    """Returns a checksum of each image's pixels."""
    rows = np.ascontiguousarray(image).reshape(len(image), -1)
    digests = b"".join(
        hashlib.blake2b(row.data, digest_size=8).digest() for row in rows
    )
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def checksum_of(content: bytes) -> int:
    """Returns a checksum of 64 bits."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
