"""Reads and keeps data sets from TensorFlow Datasets (TFDS) without TensorFlow."""

import contextlib
import dataclasses
import difflib
import hashlib
import importlib.util
import json
import os
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import array_record  # noqa: F401, TFDS imports it only after a download
import numpy as np
import PIL
import requests
import tensorflow_datasets as tfds
from absl import logging
from jaxtyping import UInt8
from PIL import Image

from capsjax.data.dataset import Dataset, checksum_of
from capsjax.data.disk import Details, Source, read_images
from capsjax.data.errors import DatasetError, NotFoundError
from capsjax.data.generated import RECIPES
from capsjax.data.images import fit, fit_channels
from capsjax.data.preparation import Preparation
from capsjax.data.readers import tfds_builders
from capsjax.data.readers.layout import is_prepared
from capsjax.runtime.paths import cache_folder, expanded

# TFDS's default, TFRecord, can neither be written nor read without TensorFlow.
_FILE_FORMAT = "array_record"
# Reading 60,000 images singly takes three times as long.
_BLOCK_SIZE = 512
# The other eye's image becomes another channel.
_SECOND_IMAGES = {"smallnorb": "image2"}
_TIMEOUT_SECONDS = 10


def load_tfds(
    name: str,
    split: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    image_size: int = 0,
    max_bytes: int = 2**33,
) -> Dataset:
    """Reads one split of an image classification set; prepares a twin's set first.

    Args:
        name: TFDS's name, with a configuration if need be: "emnist/letters"; or the
            path of a folder that TFDS prepared.
        split: "train", "validation" or "test"; "validation" is the test split of a set
            without one.
        data_dir: As in ``load``.
        image_size: Height and width to which images are scaled; 0 to leave them
            unchanged, if all have one size.
        max_bytes: The most memory that the images may take. Larger ones are decoded
            into the cache on disk, from which they are read.

    Returns:
        The images and labels in TFDS's order.

    Raises:
        DatasetError: As in ``load``.
    """
    folder = data_folder(data_dir)
    builder = _make_builder(name, folder)
    examples = _open(builder, _own_split(builder, split))
    if examples is None:
        prepare(name, data_dir=data_dir, may_use_tensorflow=False)
        builder = _make_builder(name, folder)
        examples = _open(builder, _own_split(builder, split))
    assert examples is not None, f"{name} was prepared in {folder} and is not there"
    with _quiet():
        source = _make_source(name, folder, builder, split, image_size, examples)
    return source.load(builder, max_bytes)


def has_validation(
    name: str, *, data_dir: str | os.PathLike[str] | None = None
) -> bool:
    """Returns whether a prepared set has a validation split besides its test split."""
    splits = _make_builder(name, data_folder(data_dir)).info.splits
    return {"validation", "test"} <= set(splits)


def prepare(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    may_use_tensorflow: bool = True,
) -> Path:
    """Downloads a data set and writes it in the form that ``load`` reads.

    TFDS writes into a folder with another name and renames it when it is whole, so that
    a failure or a kill leaves nothing that a later ``load`` could take for the set.

    Args:
        name: TFDS's name.
        data_dir: As in ``load``.
        may_use_tensorflow: Whether a set without a twin may be prepared, by stock code
            that imports TensorFlow. Only in a separate process.

    Returns:
        The folder of the prepared set.

    Raises:
        DatasetError: If the name is unknown, TensorFlow is needed, the source cannot be
            reached, or the download or the writing fails.
    """
    folder = data_folder(data_dir)
    builder = _make_builder(name, folder)
    if _is_prepared(builder):
        return Path(builder.data_path)
    is_twin = name in tfds_builders.TWINS
    if not is_twin and not (may_use_tensorflow and _has_tensorflow()):
        raise DatasetError(_how_to_prepare(name, folder))
    if not is_twin or tfds_builders.TWINS[name].is_downloaded:
        _check_reachable(builder)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        with _quiet():
            builder.download_and_prepare(file_format=_FILE_FORMAT)
    except Exception as error:
        if _is_prepared(_make_builder(name, folder)):
            # Another process was faster; its set is whole.
            return Path(builder.data_path)
        raise DatasetError(
            f"data set {name!r} could not be prepared in {builder.data_path}: "
            f"{_summary(error)}; nothing was kept of it, so simply try again"
        ) from error
    return Path(builder.data_path)


def data_folder(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Returns the folder of the prepared sets.

    It is not TFDS's own folder, which may hold the same set in a form that only
    TensorFlow can read.
    """
    if data_dir is None:
        data_dir = os.environ.get("CAPSJAX_DATA_DIR") or None
    if data_dir is None:
        return cache_folder() / "tfds"
    return expanded(data_dir)


def _make_builder(name: str, folder: Path) -> tfds.core.DatasetBuilder:
    try:
        with _quiet():
            if name in tfds_builders.TWINS:
                return tfds_builders.make_twin(name)(data_dir=str(folder))
            if name and is_prepared(name):
                return tfds.builder_from_directory(str(expanded(name)))
            return tfds.builder(name, data_dir=str(folder))
    except tfds.core.DatasetNotFoundError as error:
        raise NotFoundError(_unknown_name(name)) from error
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and not _has_tensorflow():
            raise DatasetError(_how_to_prepare(name, folder)) from error
        raise DatasetError(
            f"TensorFlow Datasets cannot open {name!r} in {folder}: "
            f"{_summary(error)}; correct the name, or delete the set's folder there "
            "if it is damaged"
        ) from error


def _is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    with _quiet():
        return builder.is_prepared()


def _own_split(builder: Any, split: str) -> str:
    known = builder.info.splits
    if split == "test" and "test" not in known and "validation" in known:
        return "validation"
    return split


def _open(builder: Any, split: str) -> Sequence[Any] | None:
    """Returns the examples of a split, or None if the set is not prepared."""
    try:
        with _quiet():
            return builder.as_data_source(split)
    except Exception as error:
        if not _is_prepared(builder):
            return None
        raise _not_opened(builder, split, error) from error


def _not_opened(
    builder: tfds.core.DatasetBuilder, split: str, error: Exception
) -> DatasetError:
    if isinstance(error, NotImplementedError):
        return DatasetError(
            f"{builder.data_path} holds data set {builder.name!r} in a format that "
            f"only TensorFlow can read, not {_FILE_FORMAT}: delete that folder, or "
            "name another one by data_dir or CAPSJAX_DATA_DIR"
        )
    if split not in builder.info.splits:
        return DatasetError(
            f"data set {builder.name!r} has no split {split!r}, only "
            f"{', '.join(builder.info.splits)}"
        )
    return _unreadable(builder, error)


def _make_source(
    name: str,
    folder: Path,
    builder: tfds.core.DatasetBuilder,
    split: str,
    image_size: int,
    examples: Sequence[Any],
) -> "_Source":
    image_keys, label_key = _images_and_label(name, builder.info)
    features: Any = builder.info.features
    height, width, channels = features[image_keys[0]].shape
    has_one_size = None not in (height, width)
    num_channels = channels * len(image_keys)
    if not has_one_size and not image_size:
        raise DatasetError(
            f"the images of data set {name!r} have several sizes: give the "
            "height and width to scale them to by image_size, for example 32"
        )
    size = (image_size, image_size) if image_size else (height, width)
    return _Source(
        *(name, folder, _own_split(builder, split), tuple(image_keys), label_key),
        image_shape=(size[0], size[1], num_channels),
        own_shape=(height, width, channels) if has_one_size else None,
        num_images=len(examples),
        examples=examples,
    )


@dataclasses.dataclass
class _Source(Source):
    """The images of a split of a set.

    Attributes:
        name: TFDS's name.
        folder: The folder of the sets.
        split: TFDS's split.
        image_keys: Names of the features whose images become one.
        label_key: Name of the label.
        image_shape: Height, width and channels of an image as it is returned.
        own_shape: Height, width and channels of each feature's image; None if they
            have several sizes.
        num_images: Number of images.
        examples: The set's own examples; None where they are not open yet, as in a
            process that the source was sent to.
    """

    name: str
    folder: Path
    split: str
    image_keys: tuple[str, ...]
    label_key: str
    image_shape: tuple[int, int, int]
    own_shape: tuple[int, int, int] | None
    num_images: int
    examples: Any

    def __len__(self) -> int:
        return self.num_images

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "examples": None}

    def read(
        self, numbers: range, keep: Callable[[UInt8[np.ndarray, "h w c"]], None]
    ) -> Details:
        """Reads images; notes their labels, and the checksums of their originals."""
        label, checksum = [], []
        for example in self._read_examples(numbers):
            images = [example[key] for key in self.image_keys]
            checksum.append(checksum_of(b"".join(map(bytes, images))))
            label.append(int(example[self.label_key]))
            keep(np.concatenate(list(map(self._scaled, images)), axis=-1))
        return {"label": label, "checksum": checksum}

    def _read_examples(self, numbers: range) -> Iterator[tfds_builders.Example]:
        builder = None
        if self.examples is None:
            builder = _make_builder(self.name, self.folder)
            self.examples = _open(builder, self.split)
        for start in range(0, len(numbers), _BLOCK_SIZE):
            try:
                block = numbers[start : start + _BLOCK_SIZE]
                with _quiet():
                    examples = _examples_at(self.examples, block)
            except Exception as error:
                builder = builder or _make_builder(self.name, self.folder)
                raise _unreadable(builder, error) from error
            yield from examples

    def fingerprint(self) -> str:
        """Returns a digest of the set's files, their sizes and times, and the rest."""
        builder = _make_builder(self.name, self.folder)
        rest = (builder.info.full_name, self.split, self.image_keys, self.label_key)
        how = [*rest, self.image_shape, PIL.__version__, tfds.__version__]
        digest = hashlib.blake2b(json.dumps(how).encode(), digest_size=16)
        for path in sorted(Path(builder.data_path).iterdir()):
            status = path.stat()
            about = f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}\0"
            digest.update(about.encode(errors="surrogateescape"))
        return digest.hexdigest()

    def load(self, builder: tfds.core.DatasetBuilder, max_bytes: int) -> Dataset:
        """Reads all images."""
        image, details = read_images(
            self, self.image_shape, place=self.name, max_bytes=max_bytes
        )
        # The builder's name: ``name`` may have a version, as "mnist:3.0.1".
        height, width, _ = self.own_shape or self.image_shape
        own_shape = (height, width, self.image_shape[-1])
        preparation = Preparation.of(builder.name, own_shape)
        features: Any = builder.info.features
        return Dataset(
            self.name,
            image,
            np.array([label for part in details for label in part["label"]], np.int32),
            tuple(features[self.label_key].names),
            checksum=np.array([n for part in details for n in part["checksum"]], "u8"),
            preparation=preparation.resized(self.image_shape),
        )

    def _scaled(self, image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "H W c"]:
        shape = (*self.image_shape[:2], image.shape[-1])
        if self.own_shape is None:
            return _scaled(image, shape)
        return fit_channels(image, shape)


def _scaled(
    image: UInt8[np.ndarray, "h w c"], shape: tuple[int, int, int]
) -> UInt8[np.ndarray, "H W c"]:
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    return fit(Image.fromarray(pixels), shape)


def _examples_at(source: Any, indices: range) -> list[tfds_builders.Example]:
    try:
        return source.__getitems__(list(indices))
    except TypeError:
        # The source of tfds.testing.mock_data can only be read one by one.
        return [source[index] for index in indices]


def _images_and_label(name: str, info: Any) -> tuple[list[str], str]:
    keys, features = info.supervised_keys, info.features
    if isinstance(keys, tuple) and len(keys) == 2 and set(keys) <= set(features):
        image_key, label_key = keys
        if _is_image(features[image_key]) and isinstance(
            features[label_key], tfds.features.ClassLabel
        ):
            second = _SECOND_IMAGES.get(info.name)
            return [image_key, *([second] if second else [])], label_key
    raise DatasetError(
        f"data set {name!r} is not for image classification: capsjax reads sets of "
        "8-bit images, grey or in colour, with one label each"
    )


def _is_image(feature: Any) -> bool:
    if not isinstance(feature, tfds.features.Image):
        return False
    shape: Any = feature.shape
    is_known = None not in shape or shape[-1] in (1, 3)
    return feature.np_dtype == np.uint8 and is_known


def _check_reachable(builder: tfds.core.DatasetBuilder) -> None:
    # Without a network TFDS tries for more than three minutes before it fails. Our own
    # builder has an address without a checksum.
    known = builder.url_infos or [str(getattr(builder, "URL", ""))]
    urls = [url for url in known if url.startswith("http")]
    downloads = Path(builder._data_dir_root) / "downloads" / builder.name
    if not urls or any(downloads.glob("*.INFO")):
        return
    try:
        requests.head(urls[0], timeout=_TIMEOUT_SECONDS)
    except requests.RequestException as error:
        raise DatasetError(
            f"data set {builder.name!r} cannot be downloaded, {urls[0]} cannot be "
            f"reached ({_summary(error)}): try again with a network, or prepare it "
            "on a machine that has one and copy the folder "
            f"{Path(builder._data_dir_root) / builder.name} to the same place here, or "
            "to another one and set CAPSJAX_DATA_DIR"
        ) from error


def _how_to_prepare(name: str, folder: Path) -> str:
    options = shlex.join([name, "--data_dir", str(folder)])
    install = "" if _has_tensorflow() else 'pip install "capsjax[tf]" && '
    return (
        f"data set {name!r} is not prepared in {folder}, and TensorFlow Datasets needs "
        f"TensorFlow for that (once; reading it needs none): {install}"
        f"python -m capsjax.data.prepare {options}"
    )


def _unknown_name(name: str) -> str:
    ours = {"mnist", "image_folder", *RECIPES, *tfds_builders.TWINS}
    known = ours.union(tfds.list_builders(with_community_datasets=False))
    near = difflib.get_close_matches(name.split("/")[0], sorted(known))
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    message = (
        f"unknown data set {name!r}: capsjax does not have it, there is no folder "
        f"of that name, and TensorFlow Datasets does not have it. {hint}"
        "Images of your own are FILE.npz, FILE.csv or a folder. The names are listed at https://www.tensorflow.org/datasets/catalog"
    )
    if not _has_tensorflow():
        message += '. Some of them need TensorFlow: pip install "capsjax[tf]"'
    return message


def _unreadable(builder: tfds.core.DatasetBuilder, error: Exception) -> DatasetError:
    return DatasetError(
        f"data set {builder.name!r} cannot be read from {builder.data_path}: "
        f"{_summary(error)}; delete that folder and prepare the set again"
    )


def _summary(error: BaseException) -> str:
    return textwrap.shorten(f"{type(error).__name__}: {error}", width=300)


def _has_tensorflow() -> bool:
    return importlib.util.find_spec("tensorflow") is not None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences TFDS's warnings, and keeps its prints off the standard output."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logging.set_verbosity(verbosity)
