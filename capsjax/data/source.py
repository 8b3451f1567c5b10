"""The one door to every data set: a name becomes a ``Dataset``."""

import os
from pathlib import Path

from capsjax.data.dataset import Dataset, DatasetError
from capsjax.data.idx import load_idx_folder, load_mnist

_SPLITS = ("train", "test")


def load(
    name: str,
    split: str = "train",
    *,
    path: str = "",
    image_size: int = 0,
    data_dir: str | os.PathLike | None = None,
) -> Dataset:
    """Loads one split of a data set into memory.

    Args:
        name: "mnist", which is part of the package; the path of a folder with four IDX
            archives laid out as MNIST's are ("./mnist" for one called so); or the name
            of an image classification set in TensorFlow Datasets, "cifar10" or
            "emnist/letters".
        split: "train" or "test". Train on the first, choose the model by a
            ``split_validation`` of it, and look at the second last.
        path: The folder of an ``image_folder``.
        image_size: Images are scaled to this height and width; 0 leaves them.
        data_dir: Where sets from TensorFlow Datasets are kept; without it
            ``$CAPSJAX_DATA_DIR``, else ``~/.cache/capsjax/tfds``.

    Returns:
        The images and labels, always in the same order.

    Raises:
        DatasetError: The name or split is unknown, a file is missing or damaged, a
            download fails, or the set is not one of image classification. The message
            says what to do.
    """
    if split not in _SPLITS:
        raise DatasetError(f"there is no split {split!r}: it must be 'train' or 'test'")
    if not name:
        raise DatasetError("the name of the data set is empty: give one, as 'mnist'")
    if name == "mnist":
        return load_mnist(split)
    folder = Path(os.path.expanduser(name))
    if os.path.isdir(folder) or _can_only_be_a_path(name):
        return load_idx_folder(folder, split)
    from capsjax.data.tfds_source import load_tfds

    return load_tfds(name, split, data_dir=data_dir)


def _can_only_be_a_path(name: str) -> bool:
    # A separator alone does not tell: "emnist/letters" is a configuration of a set.
    return os.path.isabs(name) or name.startswith((".", "~")) or name.count(os.sep) > 1
