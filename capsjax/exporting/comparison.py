"""Compares exported functions with JAX, on real images, before they are written."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8

from capsjax.analysis.images import load_test_set, some_images
from capsjax.data import DatasetError
from capsjax.data.augment import scale_to_unit
from capsjax.data.crop import crop_middle
from capsjax.exporting.errors import ExportError
from capsjax.exporting.functions import functions
from capsjax.runtime.console import warn
from capsjax.storage.files import WorkdirError
from capsjax.storage.run import Run

_NUM_IMAGES, _NUM_TOGETHER = 200, 50
# Smallest share of images that must get the same label.
_SAME_LABELS = 0.95


class Comparison(NamedTuple):
    """The distance of exported functions from JAX.

    Attributes:
        images: The images, in words.
        num_images: Their number.
        num_same_labels: Number of images that get the label that JAX gives.
        differences: The largest difference of each output. Differences from numbers
            above 1 count as shares of the largest one.
    """

    images: str
    num_images: int
    num_same_labels: int
    differences: dict[str, float]

    def __str__(self) -> str:
        each = ", ".join(f"{key} {off:.1e}" for key, off in self.differences.items())
        return (
            f"{self.num_same_labels} of {self.num_images} labels as in JAX on "
            f"{self.images}; largest differences: {each}"
        )


def compare(
    run: Run,
    exported: Mapping[str, Callable[..., Mapping[str, Any]]],
    *,
    tolerance: float,
) -> Comparison:
    """Compares what a format made of the functions of a run with the functions.

    Args:
        run: The run.
        exported: The functions by name, from arrays in order to arrays by name.
        tolerance: The largest difference that is allowed.

    Raises:
        ExportError: If an output differs by more or is not a number, or more than one
            label in twenty differs.
    """
    images, what = _images(run)
    network, classes = jax.jit(functions(run)["network"]), np.eye(run.model.num_classes)
    differences: dict[str, Any] = {}
    num_same = 0
    for start in range(0, len(images), _NUM_TOGETHER):
        image = np.asarray(scale_to_unit(images[start : start + _NUM_TOGETHER]))
        expected = {name: np.asarray(one) for name, one in network(image).items()}
        found = [exported["encode"](image), exported["network"](image)]
        if "decode" in exported:
            mask = classes[expected["label"]].astype(np.float32)
            found.append(exported["decode"](expected["pose"], mask))
        is_same = found[1]["label"] == expected["label"]
        num_same += int(is_same.sum())
        for name, array in (pair for part in found for pair in part.items()):
            if name != "label":
                # Another label is another drawing.
                rows = is_same if name == "drawing" else slice(None)
                off = _difference(np.asarray(array)[rows], expected[name][rows])
                differences[name] = np.maximum(differences.get(name, 0), off)
    for name, off in differences.items():
        if not off <= tolerance:
            raise ExportError(
                f"the {name} of the exported network differs by {off:.2g} from JAX on "
                f"{what}, and may by {tolerance:g}: nothing is written."
            )
    if num_same < _SAME_LABELS * len(images):
        raise ExportError(
            f"{len(images) - num_same} labels of the exported network differ from JAX "
            f"on {what}: nothing is written."
        )
    differences = {name: float(off) for name, off in differences.items()}
    return Comparison(what, len(images), num_same, differences)


def _difference(array: np.ndarray, expected: np.ndarray) -> Any:
    scale = np.maximum(1, np.abs(expected).max(initial=0))
    return np.abs(array - expected).max(initial=0) / scale


def _images(run: Run) -> tuple[UInt8[np.ndarray, "n h w c"], str]:
    """Returns test images as the network sees them, or random ones; and their name."""
    try:
        dataset = some_images(load_test_set([run], None), _NUM_IMAGES)
    except (DatasetError, WorkdirError) as error:
        warn(f"random images take the place of test images: {error}")
        shape = (_NUM_IMAGES, *run.model.image_shape)
        image = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
        return image, f"{_NUM_IMAGES} random images"
    image = np.asarray(crop_middle(np.asarray(dataset.image), run.model.image_shape))
    return image, f"{len(image)} test images of {dataset.name}"
