"""Twins of stock TensorFlow Datasets builders, which prepare without TensorFlow.

A stock builder needs TensorFlow only to open its downloads and to encode images. Its
twin is a subclass that does these two by itself: the name, version, features,
checksums and keys, and so the prepared files and their order, are the stock builder's.

A new twin is one function that reads the source files, and its line in ``TWINS``.
"""

import io
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from PIL import Image

from capsjax.data.dataset import Dataset
from capsjax.data.idx import load_mnist

Example = dict[str, Any]
Builder = tfds.core.GeneratorBasedBuilder
# Given the builder (for its info) and TFDS's download manager (which compares
# checksums), it tells the examples of each split, in the stock builder's order.
Reader = Callable[
    [Builder, tfds.download.DownloadManager], dict[str, Iterable[Example]]
]


def read_mnist(
    builder: Builder, download_manager: tfds.download.DownloadManager
) -> dict[str, Iterable[Example]]:
    """Reads the archives that are part of the package; nothing is downloaded."""
    del builder, download_manager
    return {split: _examples(load_mnist(split)) for split in ("train", "test")}


class Twin(NamedTuple):
    """What a twin does by itself.

    Attributes:
        read: Reads the source files.
        is_downloaded: Whether they come from the network.
    """

    read: Reader
    is_downloaded: bool = True


TWINS = {"mnist": Twin(read_mnist, is_downloaded=False)}


def make_twin(name: str) -> type[Builder]:
    """Makes the builder class for a name in ``TWINS``."""
    stock, read = tfds.builder_cls(name), TWINS[name].read

    def split_generators(self, dl_manager):
        splits = read(self, dl_manager)
        return {split: _encoded(examples) for split, examples in splits.items()}

    attributes = {
        "name": name,
        "__module__": __name__,
        # The stock class finds them next to its own module. Asking it for them also
        # makes it keep where that is, so that the twin inherits its description.
        "url_infos": stock.url_infos,
        "_split_generators": split_generators,
        "_generate_examples": lambda self, examples: examples,
    }
    # The stock class keeps the name in TFDS's register.
    options = {"skip_registration": True}
    return types.new_class(
        stock.__name__, (stock,), options, lambda d: d.update(attributes)
    )


def _examples(dataset: Dataset) -> Iterator[Example]:
    for image, label in zip(dataset.image, dataset.label, strict=True):
        yield {"image": image, "label": int(label)}


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
