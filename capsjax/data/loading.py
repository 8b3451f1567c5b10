"""The one door to every data set: a name becomes a ``Dataset``."""

import dataclasses
import os
import types
from collections.abc import Callable

import numpy as np

from capsjax.data.dataset import (
    Dataset,
    DatasetError,
    checksums,
    require_memory,
)
from capsjax.data.generated import RECIPES, Generated
from capsjax.data.preparation import LARGEST_SIDE, Preparation
from capsjax.data.readers.idx import has_idx_files, load_idx_folder, load_mnist
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
    data_dir: str | os.PathLike | None = None,
    path: str | os.PathLike = "",
    image_size: int = 0,
    max_bytes: int = 2**33,
    split_rule: str = BY_CLASS,
    preparation: Preparation | None = None,
    skip_bad_files: bool = False,
) -> Dataset | Generated:
    """Loads one split of a data set into memory.

    Args:
        name: One of these:

            - "mnist", which is part of the package;
            - made of it: "multi_mnist", two digits one over the other;
              "expanded_mnist", a digit anywhere on 40 x 40 pixels; "affine_mnist", also
              turned, slanted and scaled, which is *not* affNIST;
            - "image_folder", a folder of images at ``path`` with one subfolder for each
              class: see ``load_image_folder``;
            - the path of a folder with four IDX archives laid out as MNIST's are
              ("./mnist" for one called so);
            - "affnist", which has a test split only, or the name of an image
              classification set in TensorFlow Datasets, "cifar10" or "emnist/letters";
              where it has no test split, "validation" is it.
        split: "train", "test", or "validation" if ``has_validation``. Train on the
            first, choose the model by the last or by a ``split_validation`` of the
            first, and look at "test" last. "all" of an image folder has every image.
        data_dir: Where sets from TensorFlow Datasets are kept; without it
            ``$CAPSJAX_DATA_DIR``, else ``~/.cache/capsjax/tfds``.
        path: The folder of "image_folder".
        image_size: The height and width to which images are scaled, after what makes
            them not square has been cut off; 0 to leave them as they are, which must
            be of one size then.
        max_bytes: The most memory that the images may take.
        split_rule: "by_class"; or "first_edition", under which an image folder has no
            other splits than ``train`` and ``test``.
        preparation: How the files of an image folder become images, in place of
            ``image_size`` and of what they are: as those of another split or set do.
        skip_bad_files: Whether files of an image folder that can't be read are left
            out.

    Returns:
        The images and labels, always in the same order. What is made of MNIST is
        ``Generated`` to train on; ``fixed()`` of any is a ``Dataset``, and of one to
        test it is the same.

    Raises:
        DatasetError: The name or split is unknown, a file is missing or damaged, a
            download fails, the set is not one of image classification, an argument
            does not go with it, or the images would take more than ``max_bytes``. The
            message says what to do.
    """
    if split not in _SPLITS and (name, split) != (_IMAGE_FOLDER, "all"):
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
    if bool(path) != (name == _IMAGE_FOLDER):
        raise DatasetError(
            f"data set {name!r} and path {str(path)!r} do not go together: the path is "
            f"that of an {_IMAGE_FOLDER!r}, which needs it"
        )
    # Image files and TFDS take time to import, which other sets need not wait for.
    if name == _IMAGE_FOLDER:
        from capsjax.data.readers.image_folder import load_image_folder

        return load_image_folder(
            path,
            split,
            image_size=image_size,
            max_bytes=max_bytes,
            split_rule=split_rule,
            preparation=preparation,
            skip_bad_files=skip_bad_files,
        )
    if name in RECIPES:
        return _generate(name, split, image_size, max_bytes)
    whole = _load_whole(name, split, data_dir, image_size, max_bytes)
    return _resized(whole, image_size, max_bytes)


def has_validation(
    name: str,
    path: str | os.PathLike = "",
    *,
    data_dir: str | os.PathLike | None = None,
) -> bool:
    """Whether a data set has a validation split of its own, besides one for the test.

    Args:
        name: As of ``load``; of a set of TensorFlow Datasets it is known once that is
            prepared.
        path: As of ``load``.
        data_dir: As of ``load``.

    Raises:
        DatasetError: The name is unknown.
    """
    if name == _IMAGE_FOLDER:
        from capsjax.data.readers.folder_layout import own_splits

        folder = expanded(path)
        return folder.is_dir() and "validation" in own_splits(folder)
    if _is_own(name):
        return False
    if _is_folder(name):
        return has_idx_files(expanded(name), "validation")
    return import_tfds_reader(name).has_validation(name, data_dir=data_dir)


def may_name_a_place(name: str) -> bool:
    """Whether the name of a data set may say no more than where its files are."""
    return not _is_own(name)


def names_images(name: str) -> bool:
    """Whether a name is that of a folder with images, and not with IDX archives."""
    return (
        not _is_own(name)
        and os.path.isdir(folder := expanded(name))
        and not any(has_idx_files(folder, split) for split in _SPLITS)
    )


def _is_own(name: str) -> bool:
    return name in (*READERS, _IMAGE_FOLDER, *RECIPES)


def _is_folder(name: str) -> bool:
    return os.path.isdir(expanded(name)) or _can_only_be_a_path(name)


def import_tfds_reader(name: str) -> types.ModuleType:
    """Imports what reads a set of TensorFlow Datasets: late, as that takes seconds.

    Raises:
        DatasetError: Something that it needs is not installed.
    """
    try:
        from capsjax.data.readers import tfds
    except ModuleNotFoundError as error:
        raise DatasetError(
            f"data set {name!r} is read by TensorFlow Datasets, and {error.name} is "
            "not installed: pip install tensorflow-datasets array-record"
        ) from error
    return tfds


def _load_whole(
    name: str,
    split: str,
    data_dir: str | os.PathLike | None,
    image_size: int,
    max_bytes: int,
) -> Dataset:
    if name in READERS:
        dataset = READERS[name](split, max_bytes=max_bytes)
        preparation = Preparation.of(name, dataset.image_shape)
        return dataclasses.replace(dataset, preparation=preparation)
    if _is_folder(name):
        return load_idx_folder(expanded(name), split, max_bytes=max_bytes)
    return import_tfds_reader(name).load_tfds(
        name, split, data_dir=data_dir, image_size=image_size, max_bytes=max_bytes
    )


def _can_only_be_a_path(name: str) -> bool:
    # A separator alone does not tell: "emnist/letters" is a configuration of a set.
    return os.path.isabs(name) or name.startswith((".", "~")) or name.count(os.sep) > 1


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
        # What is in an image is kept too.
        source = generated.batch(np.array(0)).source
        num_images = len(base) * (1 if source is None else 1 + len(source))
        require_memory(name, num_images, generated.image_shape, max_bytes)
    # Tested by one image of each digit, always the same.
    return generated.fixed() if split == "test" else generated


def _resized(dataset: Dataset, image_size: int, max_bytes: int) -> Dataset:
    shape = (image_size, image_size)
    if image_size == 0 or dataset.image.shape[1:3] == shape:
        return dataset
    from PIL import Image

    from capsjax.data.images import fit

    shape_of_each = (*shape, dataset.image_shape[-1])
    require_memory(dataset.name, len(dataset), shape_of_each, max_bytes)
    image = np.empty((len(dataset), *shape_of_each), np.uint8)
    for index, channel in np.ndindex(len(dataset), dataset.image_shape[-1]):
        pixels = Image.fromarray(dataset.image[index, ..., channel])
        image[index, ..., channel] = fit(pixels, (*shape, 1))[..., 0]
    preparation = dataset.preparation and dataset.preparation.resized(image.shape[1:])
    # They stay the same images at every size.
    checksum = dataset.checksum
    if checksum is None:
        checksum = checksums(dataset.image)
    return dataclasses.replace(
        dataset, image=image, preparation=preparation, checksum=checksum
    )
