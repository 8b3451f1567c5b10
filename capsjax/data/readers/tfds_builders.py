"""Twins of stock TensorFlow Datasets builders, which prepare without TensorFlow.

A stock builder needs TensorFlow only to open its downloads and to encode images. Its
twin is a subclass that does these two itself: name, version, features, checksums and
keys, and so the prepared files and their order, are the stock builder's.

A new twin is one function that reads the source files, and its line in ``TWINS``. A set
that TFDS lacks also needs our own stock builder, like ``AffNist``.
"""

import functools
import gzip
import io
import itertools
import tarfile
import types
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.io
import tensorflow_datasets as tfds
from jaxtyping import Integer, UInt8
from PIL import Image

from capsjax.data.dataset import Dataset
from capsjax.data.readers.idx import load_idx_folder, load_mnist, read_idx

# Debian's package dataset-fashion-mnist puts the archives here.
FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")

Example = dict[str, Any]
Builder = tfds.core.GeneratorBasedBuilder
# Takes the builder (for its info) and TFDS's download manager (which compares
# checksums), and returns the examples of each split in the stock builder's order.
Reader = Callable[
    [Builder, tfds.download.DownloadManager], dict[str, Iterable[Example]]
]


def read_mnist(
    builder: Builder, download_manager: tfds.download.DownloadManager
) -> dict[str, Iterable[Example]]:
    """Reads the package's own archives; nothing is downloaded."""
    del builder, download_manager
    return _examples_of_sets(load_mnist)


def read_idx_archives(
    builder: Builder, download_manager: tfds.download.DownloadManager
) -> dict[str, Iterable[Example]]:
    """Reads four IDX archives with MNIST's names, as KMNIST has."""
    prefixes = {"train": "train", "test": "t10k"}
    names = {
        split: (f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz")
        for split, prefix in prefixes.items()
    }
    paths = _download(builder, download_manager, itertools.chain(*names.values()))

    def examples(split):
        image, label = (read_idx(paths[name]) for name in names[split])
        yield from _examples(image[..., np.newaxis], label)

    return {split: examples(split) for split in names}


def read_fashion_mnist(
    builder: Builder, download_manager: tfds.download.DownloadManager
) -> dict[str, Iterable[Example]]:
    """Reads the archives that Debian's package installed, or downloads the same."""
    if FASHION_MNIST_FOLDER.is_dir():
        read = functools.partial(load_idx_folder, FASHION_MNIST_FOLDER)
        return _examples_of_sets(read)
    return read_idx_archives(builder, download_manager)


def read_cifar10(
    builder: Builder, download_manager: tfds.download.DownloadManager
) -> dict[str, Iterable[Example]]:
    """Reads the archive of CIFAR-10's binary version."""
    name = "cifar-10-binary.tar.gz"
    path = _download(builder, download_manager, [name])[name]
    with tarfile.open(path) as archive:
        files = {
            Path(member.name).name: file.read()
            for member in archive
            if (file := archive.extractfile(member)) is not None
        }
    class_names = files["batches.meta.txt"].decode().split("\n")
    features: Any = builder.info.features
    features["label"].names = [name for name in class_names if name]
    train = [files[f"data_batch_{number}.bin"] for number in range(1, 6)]
    content = {"train": b"".join(train), "test": files["test_batch.bin"]}

    def examples(split):
        record = np.frombuffer(content[split], np.uint8).reshape(-1, 1 + 3 * 32 * 32)
        image = record[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        for index, example in enumerate(_examples(image, record[:, 0])):
            yield {**example, "id": f"{split}_{index:05d}"}

    return {split: examples(split) for split in content}


def read_svhn_cropped(
    builder: Builder, download_manager: tfds.download.DownloadManager
) -> dict[str, Iterable[Example]]:
    """Reads SVHN's cropped digits, but not the split ``extra``.

    Its 531,131 images are too many for TFDS to sort without TensorFlow.
    """
    names = {"train": "train_32x32.mat", "test": "test_32x32.mat"}
    paths = _download(builder, download_manager, names.values())

    def examples(split):
        content = scipy.io.loadmat(paths[names[split]])
        # Upstream has class 10 for the digit 0.
        image, label = np.moveaxis(content["X"], -1, 0), content["y"].ravel() % 10
        for index, example in enumerate(_examples(image, label)):
            yield {**example, "id": f"{split}_{index:06d}"}

    return {split: examples(split) for split in names}


def read_smallnorb(
    builder: Builder, download_manager: tfds.download.DownloadManager
) -> dict[str, Iterable[Example]]:
    """Reads smallNORB's pairs of images, with their objects and viewpoints."""
    stems = {
        "train": "smallnorb-5x46789x9x18x6x2x96x96-training",
        "test": "smallnorb-5x01235x9x18x6x2x96x96-testing",
    }
    kinds = ("dat", "cat", "info")
    names = {
        split: [f"{stem}-{kind}.mat.gz" for kind in kinds]
        for split, stem in stems.items()
    }
    paths = _download(builder, download_manager, itertools.chain(*names.values()))

    def examples(split):
        pair, category, info = (_read_norb(paths[name]) for name in names[split])
        for (left, right), label, (instance, elevation, azimuth, lighting) in zip(
            pair[..., np.newaxis], category, info, strict=True
        ):
            yield {
                "image": left,
                "image2": right,
                "label_category": int(label),
                "instance": int(instance),
                "label_elevation": int(elevation),
                # Upstream has tens of degrees: 0, 2, ..., 34.
                "label_azimuth": int(azimuth) // 2,
                "label_lighting": int(lighting),
            }

    return {split: examples(split) for split in names}


class AffNist(Builder, skip_registration=True):
    """affNIST's test images, 32 affine transformations of each of MNIST's digits.

    The published file's layout is known only from code that reads it. This code has
    never read that file, and its checksum is unknown.

    References:
        https://www.cs.toronto.edu/~tijmen/affNIST/.
    """

    name = "affnist"
    VERSION = tfds.core.Version("1.0.0")
    URL = "https://www.cs.toronto.edu/~tijmen/affNIST/32x/transformed/test.mat.zip"

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="MNIST's test digits, turned, sheared, scaled and moved.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(40, 40, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://www.cs.toronto.edu/~tijmen/affNIST/",
        )


def read_affnist(
    builder: Builder, download_manager: tfds.download.DownloadManager
) -> dict[str, Iterable[Example]]:
    """Reads the archive of affNIST's test images."""
    path = Path(download_manager.download(AffNist.URL))
    if not zipfile.is_zipfile(path):
        # Without a checksum TFDS would accept the file the next time too.
        path.unlink()
        Path(f"{path}.INFO").unlink()
        raise ValueError(f"the file from {AffNist.URL} is not a zip archive")

    def examples():
        with zipfile.ZipFile(path) as archive:
            [name] = [name for name in archive.namelist() if name.endswith(".mat")]
            file = io.BytesIO(archive.read(name))
        content = scipy.io.loadmat(file)["affNISTdata"][0, 0]
        # Each column is an image.
        image = content["image"].T.reshape(-1, 40, 40, 1)
        yield from _examples(image, content["label_int"].ravel())

    return {"test": examples()}


class Twin(NamedTuple):
    """The twin's own part.

    Attributes:
        read: Reads the source files.
        is_downloaded: Whether the files come from the network.
    """

    read: Reader
    is_downloaded: bool = True


TWINS = {
    "affnist": Twin(read_affnist),
    "cifar10": Twin(read_cifar10),
    "fashion_mnist": Twin(
        read_fashion_mnist, is_downloaded=not FASHION_MNIST_FOLDER.is_dir()
    ),
    "kmnist": Twin(read_idx_archives),
    "mnist": Twin(read_mnist, is_downloaded=False),
    "smallnorb": Twin(read_smallnorb),
    "svhn_cropped": Twin(read_svhn_cropped),
}


def make_twin(name: str) -> type[Builder]:
    """Makes the builder class for a name in ``TWINS``."""
    stock = AffNist if name == AffNist.name else tfds.builder_cls(name)
    read = TWINS[name].read

    def split_generators(self, dl_manager):
        splits = read(self, dl_manager)
        return {split: _encoded(examples) for split, examples in splits.items()}

    attributes = {
        "name": name,
        "__module__": __name__,
        # The stock class finds them next to its own module. Reading them here also
        # makes it keep that place, so that the twin inherits its description.
        "url_infos": stock.url_infos,
        "_split_generators": split_generators,
        "_generate_examples": lambda self, examples: examples,
    }
    # The stock class keeps the name in TFDS's register.
    options = {"skip_registration": True}
    return types.new_class(
        stock.__name__, (stock,), options, lambda d: d.update(attributes)
    )


def _examples(
    image: UInt8[np.ndarray, "n h w c"], label: Integer[np.ndarray, " n"]
) -> Iterator[Example]:
    for pixels, index in zip(image, label, strict=True):
        yield {"image": pixels, "label": int(index)}


def _download(
    builder: Builder,
    download_manager: tfds.download.DownloadManager,
    names: Iterable[str],
) -> dict[str, Path]:
    """Downloads the named files of the stock builder; returns their paths."""
    urls = {url.rsplit("/", 1)[1]: url for url in builder.url_infos or ()}
    paths = download_manager.download({name: urls[name] for name in names})
    return {name: Path(path) for name, path in paths.items()}


def _examples_of_sets(load: Callable[[str], Dataset]) -> dict[str, Iterable[Example]]:
    sets = {split: load(split) for split in ("train", "test")}
    return {split: _examples(part.image, part.label) for split, part in sets.items()}


def _read_norb(path: Path) -> Integer[np.ndarray, "..."]:
    """Reads a matrix as https://cs.nyu.edu/~ylclab/data/norb-v1.0-small describes."""
    with gzip.open(path) as file:
        content = file.read()
    magic, num_axes = np.frombuffer(content, "<i4", 2)
    dtype = {0x1E3D4C55: np.dtype("u1"), 0x1E3D4C54: np.dtype("<i4")}[int(magic)]
    shape = np.frombuffer(content, "<i4", num_axes, offset=8)
    # The header has at least three sizes, however few axes.
    start = 8 + 4 * max(3, int(num_axes))
    return np.frombuffer(content, dtype, offset=start).reshape(shape)


def _encoded(examples: Iterable[Example]) -> Iterator[tuple[int, Example]]:
    for key, example in enumerate(examples):
        yield key, {name: _encode(value) for name, value in example.items()}


def _encode(value: Any) -> Any:
    return _png(value) if isinstance(value, np.ndarray) and value.ndim == 3 else value


def _png(image: UInt8[np.ndarray, "h w c"]) -> bytes:
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
    return file.getvalue()
