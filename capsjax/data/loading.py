"""The one door to every data set: a name becomes a ``Dataset``."""

import dataclasses
import os
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from capsjax.data.dataset import Dataset, checksums, require_memory
from capsjax.data.errors import DatasetError
from capsjax.data.generated import RECIPES, Generated
from capsjax.data.preparation import LARGEST_SIDE, Preparation
from capsjax.data.readers import npz
from capsjax.data.readers.idx import has_idx_files, load_idx_folder, load_mnist
from capsjax.data.readers.layout import is_prepared
from capsjax.data.sampling import BY_CLASS
from capsjax.runtime.paths import expanded

_SPLITS = ("train", "validation", "test")
_IMAGE_FOLDER = "image_folder"
# Sets with a reader of their own: a new one is a function and a line here.
READERS: dict[str, Callable[..., Dataset]] = {"mnist": load_mnist}


def load(
    name: str,
    split: str = "train",
    *,
    data_dir: str | os.PathLike[str] | None = None,
    path: str | os.PathLike[str] = "",
    image_size: int = 0,
    max_bytes: int = 2**33,
    split_rule: str = BY_CLASS,
    preparation: Preparation | None = None,
    skip_bad_files: bool = False,
    choose: Callable[[Dataset], Dataset] | None = None,
) -> Dataset | Generated:
    """Loads one split of a data set.

    Args:
        name: One of these:

            - "mnist", which is part of the package;
            - made from MNIST: "multi_mnist", two digits one over the other;
              "expanded_mnist", a digit anywhere on 40 x 40 pixels; "affine_mnist", also
              turned, slanted and scaled, which is *not* affNIST; "affine_mnist_28", the
              same on 28 x 28 pixels;
            - "image_folder", a folder of images at ``path`` with one subfolder for each
              class: see ``load_image_folder``;
            - the path of a folder with four IDX archives laid out like MNIST's
              ("./mnist" for a folder called mnist);
            - the path of a folder of array_record files that TensorFlow Datasets
              prepared, beside their ``features.json`` and ``dataset_info.json``;
            - the path of a file of arrays that ends in ".npz": see ``load_npz``;
            - the path of a table of image files that ends in ".csv": see
              ``load_image_csv``;
            - "affnist", which has only a test split, or the name of an image
              classification set in TensorFlow Datasets, "cifar10" or "emnist/letters";
              "validation" is the test split of a set without one.
        split: "train", "test", or "validation" if ``has_validation``. Train on the
            first, choose the model by the last or by a ``split_validation`` of the
            first, and look at "test" last. "all" of image files has every image.
        data_dir: Folder of the sets from TensorFlow Datasets; by default
            ``$CAPSJAX_DATA_DIR``, else ``~/.cache/capsjax/tfds``.
        path: The folder of "image_folder".
        image_size: Height and width to which images are scaled, after they are cut to
            squares; 0 to leave them unchanged, if all have one size.
        max_bytes: The most memory that the images may take. Larger image files and sets
            of TensorFlow Datasets are decoded once into ``~/.cache/capsjax/images``,
            and read from there where they are indexed. 0 does so with any.
        split_rule: "by_class"; or "first_edition", which knows only the splits
            ``train`` and ``test`` of an image folder.
        preparation: How image files become images, instead of ``image_size`` and the
            files' own kind: as in another split or set.
        skip_bad_files: Whether unreadable image files are left out.
        choose: Takes some of a split's images, before any is read, by their labels and
            the names of their files. For image files with a ``preparation``.

    Returns:
        The images and labels, always in the same order. Sets made from MNIST are
        ``Generated`` for training; ``fixed()`` turns any into a ``Dataset``, and leaves
        a test set unchanged.

    Raises:
        DatasetError: If the name or split is unknown, a file is missing or damaged, a
            download fails, the set is not for image classification, an argument does
            not fit it, or images of another kind would take more than ``max_bytes``.
            The message names the remedy.

    Examples:
        >>> from capsjax.data import load
        >>> digits = load("mnist", "test")
        >>> len(digits), digits.image_shape, digits.label[:5].tolist()
        (10000, (28, 28, 1), [7, 2, 1, 0, 4])
    """
    are_files = are_image_files(name)
    if split not in _SPLITS and not (are_files and split == "all"):
        raise DatasetError(f"there is no split {split!r}: it must be 'train' or 'test'")
    if split == "validation" and not has_validation(name, path, data_dir=data_dir):
        raise DatasetError(
            f"data set {name!r} has no split 'validation': it must be 'train' or 'test'"
        )
    if not name:
        raise DatasetError("the name of the data set is empty: give one, as 'mnist'")
    if not 0 <= image_size <= LARGEST_SIDE:
        raise DatasetError(
            f"image_size is {image_size}: it must be at least 0, at most {LARGEST_SIDE}"
        )
    if name == _IMAGE_FOLDER and not path:
        raise DatasetError(
            f"an {_IMAGE_FOLDER!r} needs the path of its folder: "
            "--config.data.path=FOLDER, or path= in Python"
        )
    if path and name != _IMAGE_FOLDER:
        raise DatasetError(
            f"data set {name!r} and path {str(path)!r} do not go together: only an "
            f"{_IMAGE_FOLDER!r} has a path"
        )
    if are_files:
        return _load_files(
            name,
            path,
            split,
            split_rule,
            image_size=image_size,
            max_bytes=max_bytes,
            preparation=preparation,
            skip_bad_files=skip_bad_files,
            choose=choose,
        )
    if name in RECIPES:
        return _generate(name, split, image_size, max_bytes)
    whole = _load_whole(name, split, data_dir, image_size, max_bytes)
    return _resized(whole, image_size, max_bytes)


def has_validation(
    name: str,
    path: str | os.PathLike[str] = "",
    *,
    data_dir: str | os.PathLike[str] | None = None,
) -> bool:
    """Returns whether a data set has a validation split besides its test split.

    Args:
        name: As in ``load``; a set from TensorFlow Datasets must be prepared.
        path: As in ``load``.
        data_dir: As in ``load``.

    Raises:
        DatasetError: If the name is unknown.
    """
    if are_image_files(name):
        return "validation" in own_splits(name, path)
    if _is_own(name):
        return False
    if _is_file(name, ".npz"):
        return npz.has_validation(expanded(name))
    if _is_folder(name) and not is_prepared(name):
        return has_idx_files(expanded(name), "validation")
    return import_tfds_reader(name).has_validation(name, data_dir=data_dir)


def may_name_a_place(name: str) -> bool:
    """Returns whether the name of a data set may be no more than its files' place."""
    return not _is_own(name)


def names_a_file(name: str) -> bool:
    """Returns whether a name is the path of a file, not of a folder."""
    return _is_file(name, ".npz") or _is_file(name, ".csv")


def are_image_files(name: str) -> bool:
    """Returns whether a data set is a folder or a table of image files."""
    return name == _IMAGE_FOLDER or _is_file(name, ".csv")


def can_be_on_disk(name: str) -> bool:
    """Returns whether images may be read from disk while training: files, and TFDS."""
    is_held = _is_own(name) or _is_file(name, ".npz")
    is_held |= _is_folder(name) and not is_prepared(name)
    return are_image_files(name) or not is_held


def find_pictures(name: str) -> tuple[str, str] | None:
    """Returns name and path, as in ``load``, of a folder or a table of image files.

    Args:
        name: A name as in ``load``, or the path of a folder of images.

    Returns:
        None if it names another data set.
    """
    if _is_file(name, ".csv"):
        return name, ""
    if _is_own(name) or not os.path.isdir(folder := expanded(name)):
        return None
    has_archives = any(has_idx_files(folder, split) for split in _SPLITS)
    return None if has_archives or is_prepared(name) else (_IMAGE_FOLDER, name)


def own_splits(name: str, path: str | os.PathLike[str]) -> set[str]:
    """Returns the splits that a folder or a table of image files names itself.

    Args:
        name: As in ``load``.
        path: As in ``load``.

    Raises:
        DatasetError: If the table is none, or two folders are one split.
    """
    # Image files and TFDS take time to import, which other sets do not need.
    from capsjax.data.readers import folder_layout, image_csv

    if name != _IMAGE_FOLDER:
        return image_csv.own_splits(expanded(name))
    folder = expanded(path)
    return set(folder_layout.own_splits(folder) if folder.is_dir() else ())


def _is_own(name: str) -> bool:
    return name in (*READERS, _IMAGE_FOLDER, *RECIPES)


def _is_file(name: str, suffix: str) -> bool:
    is_named_so = name.lower().endswith(suffix)
    return is_named_so and not os.path.isdir(expanded(name))


def _is_folder(name: str) -> bool:
    return os.path.isdir(expanded(name)) or _can_only_be_a_path(name)


def import_tfds_reader(name: str) -> types.ModuleType:
    """Imports the reader of TensorFlow Datasets: late, as that takes seconds.

    Raises:
        DatasetError: If a package that it needs is not installed.
    """
    try:
        from capsjax.data.readers import tfds
    except ModuleNotFoundError as error:
        raise DatasetError(
            f"data set {name!r} is read by TensorFlow Datasets, and {error.name} is "
            "not installed: pip install tensorflow-datasets array-record (array-record "
            "has no wheel for Windows)"
        ) from error
    return tfds


def _load_files(
    name: str, path: str | os.PathLike[str], split: str, split_rule: str, **options: Any
) -> Dataset:
    from capsjax.data.readers.image_csv import load_image_csv
    from capsjax.data.readers.image_folder import load_image_folder

    if name == _IMAGE_FOLDER:
        return load_image_folder(path, split, split_rule=split_rule, **options)
    return load_image_csv(expanded(name), split, **options)


def _load_whole(
    name: str,
    split: str,
    data_dir: str | os.PathLike[str] | None,
    image_size: int,
    max_bytes: int,
) -> Dataset:
    if name in READERS:
        dataset = READERS[name](split, max_bytes=max_bytes)
        preparation = Preparation.of(name, dataset.image_shape)
        return dataclasses.replace(dataset, preparation=preparation)
    if _is_file(name, ".npz"):
        return npz.load_npz(expanded(name), split, max_bytes=max_bytes)
    suffix = os.path.splitext(name)[1].lower()
    if suffix == ".npy" or (suffix and os.path.isfile(expanded(name))):
        raise DatasetError(
            f"{name} is no file that is read: arrays come as FILE.npz, made by "
            "np.savez('FILE.npz', x_train=..., y_train=..., x_test=..., y_test=...), "
            "pictures as FILE.csv or as a folder"
        )
    if _is_folder(name) and not is_prepared(name):
        return load_idx_folder(expanded(name), split, max_bytes=max_bytes)
    return import_tfds_reader(name).load_tfds(
        name, split, data_dir=data_dir, image_size=image_size, max_bytes=max_bytes
    )


def _can_only_be_a_path(name: str) -> bool:
    # One separator is not enough: "emnist/letters" is a configuration of a set.
    parts = name.replace(os.sep, "/").split("/")
    return os.path.isabs(name) or name.startswith((".", "~")) or len(parts) > 2


def _generate(
    name: str, split: str, image_size: int, max_bytes: int
) -> Dataset | Generated:
    base = load_mnist(split, max_bytes=max_bytes)
    generated = Generated(name, base, RECIPES[name])
    height, width, _ = generated.image_shape
    if image_size not in (0, height):
        raise DatasetError(
            f"image_size is {image_size}, but data set {name!r} is made at {height} x "
            f"{width}: leave image_size at 0"
        )
    preparation = Preparation.of(name, generated.image_shape)
    generated = dataclasses.replace(generated, preparation=preparation)
    if split == "test":
        # The overlapping parts are kept too.
        source = generated.batch(np.array(0)).source
        num_images = len(base) * (1 if source is None else 1 + len(source))
        require_memory(name, num_images, generated.image_shape, max_bytes)
    # The test set has one image for each digit, always the same.
    return generated.fixed() if split == "test" else generated


def _resized(dataset: Dataset, image_size: int, max_bytes: int) -> Dataset:
    shape = (image_size, image_size)
    if image_size == 0 or dataset.image.shape[1:3] == shape:
        return dataset
    from capsjax.data.images import fit_channels

    shape_of_each = (*shape, dataset.image_shape[-1])
    require_memory(dataset.name, len(dataset), shape_of_each, max_bytes)
    image = np.empty((len(dataset), *shape_of_each), np.uint8)
    for index, pixels in enumerate(dataset.image):
        image[index] = fit_channels(pixels, shape_of_each)
    preparation = dataset.preparation and dataset.preparation.resized(image.shape[1:])
    # The checksum is of the original: images stay the same at every size.
    checksum = dataset.checksum
    if checksum is None:
        checksum = checksums(dataset.image)
    return dataclasses.replace(
        dataset, image=image, preparation=preparation, checksum=checksum
    )
