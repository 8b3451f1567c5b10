"""Turns arrays of any origin into images, labels and names, or names their fault.

Every function takes the place and the name of the array for its one line: ``data set
'dots'`` and ``image``, or the path of a file and ``x_train``.
"""

from collections.abc import Iterable, Sequence, Sized
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, UInt8

from capsjax.data.errors import DatasetError

# Numbers stand in for missing class names up to here: a label far above would be a
# mistake, and its names would fill the memory.
_MOST_NUMBERED = 100_000


def as_images(array: Any, place: str, name: str) -> UInt8[np.ndarray, "n h w c"]:
    """Returns images ``[n, h, w]`` with an axis of one channel, and others unchanged.

    Floats and other integers are refused instead of converted: only their owner knows
    which value is white.

    Raises:
        DatasetError: If the array is not uint8 with three or four axes, is empty, or
            has its channels first.
    """
    what = f"{place}: {name}"
    image = _as_array(array, what)
    if image.dtype != np.uint8:
        raise DatasetError(
            f"{what} is {image.dtype}, and pixels must be uint8, from 0 to 255: "
            f"{_remedy_of_pixels(image, name)}"
        )
    if image.ndim == 3:
        image = image[..., np.newaxis]
    if image.ndim != 4:
        raise DatasetError(
            f"{what} has the shape {image.shape}, and must be [n, h, w] or [n, h, w, c]"
        )
    if not image.size:
        raise DatasetError(
            f"{what} is empty: it has the shape {image.shape}, and every axis must be "
            "at least 1"
        )
    _, first, height, width = image.shape
    if first in (1, 3) and height == width > 4:
        raise DatasetError(
            f"{what} has the shape {image.shape}, with channels first, and must be "
            f"[n, h, w, c]: pass {name}.transpose(0, 2, 3, 1)"
        )
    return image


def as_labels(
    array: Any, place: str, name: str
) -> Int32[np.ndarray, " n"] | Bool[np.ndarray, "n classes"]:
    """Returns labels of any integer type as int32 ``[n]``, and rows of bool unchanged.

    A column ``[n, 1]`` of integers becomes ``[n]``.

    Raises:
        DatasetError: If the array has another type or number of axes, or a label is
            negative or above int32.
    """
    what = f"{place}: {name}"
    label = _as_array(array, what)
    is_integer = np.issubdtype(label.dtype, np.integer)
    if is_integer and label.ndim == 2 and label.shape[1] == 1:
        label = label[:, 0]
    if (label.dtype == bool, is_integer, label.ndim) not in (
        (False, True, 1),
        (True, False, 2),
    ):
        allowed = "integers [n], or bool [n, classes] for several classes an image"
        raise DatasetError(
            f"{what} is {label.dtype} with the shape {label.shape}, and must be "
            f"{allowed}{_remedy_of_labels(label, name)}"
        )
    if not is_integer or (label.dtype == np.int32 and not (label < 0).any()):
        return label
    is_wrong = (label < 0) | (label > np.iinfo(np.int32).max)
    if is_wrong.any():
        index = int(is_wrong.argmax())
        raise DatasetError(
            f"{what} is {label[index]} at index {index}: a label is the number of its "
            "class, from 0 on"
        )
    return label.astype(np.int32)


def as_names(names: Any, place: str, label: np.ndarray) -> tuple[str, ...]:
    """Returns the names of the classes; their numbers if there are no names.

    Args:
        names: Texts, each another one; none, or None, for numbers.
        place: The place of the names, for the message.
        label: The labels, whose largest or whose columns give the number of classes.

    Raises:
        DatasetError: If a name is no text or there twice, or a label is too large to
            go without names.
    """
    what = f"{place}: class_names"
    if isinstance(names, str | bytes) or not isinstance(names, Iterable | None):
        raise DatasetError(f"{what} is {names!r}, and must be a sequence of texts")
    result: dict[str, None] = {}
    for index, name in enumerate(() if names is None else names):
        if not isinstance(name, str) or not name:
            found = " ".join(repr(name).split())[:60]
            raise DatasetError(
                f"{what} has {found} at index {index}: every name must be a text that "
                "is not empty"
            )
        if name in result:
            raise DatasetError(f"{what} has {name!r} twice: each class needs its own")
        result[str(name)] = None
    return tuple(result) or _numbers(place, label)


def require_names(
    label: np.ndarray, class_names: Sequence[str], place: str, name: str
) -> None:
    """Refuses labels without a class name.

    Args:
        label: The labels, as ``as_labels`` returns them.
        class_names: The names of all classes.
        place: The place of the labels.
        name: The name of the labels there.

    Raises:
        DatasetError: If a label is too large, or the columns are not one for each name.
    """
    number = len(class_names)
    if label.ndim == 2:
        if label.shape[1] != number:
            raise DatasetError(
                f"{place}: {name} has columns for {label.shape[1]} classes, and there "
                f"are {number} class names"
            )
        return
    is_wrong = label >= number
    if is_wrong.any():
        index = int(is_wrong.argmax())
        raise DatasetError(
            f"{place}: {name} is {label[index]} at index {index}: with {number} class "
            f"names a label must be from 0 to {number - 1}"
        )


def require_same_number(
    image: Sized, label: np.ndarray, place: str, names: str
) -> None:
    """Refuses images and labels of different numbers.

    Args:
        image: The images.
        label: The labels.
        place: The place of both.
        names: The names of both there, in words.

    Raises:
        DatasetError: If the numbers differ.
    """
    if len(image) != len(label):
        raise DatasetError(
            f"{place} has {len(image)} images and {len(label)} labels ({names}): there "
            "must be one label for each image"
        )


def _numbers(place: str, label: np.ndarray) -> tuple[str, ...]:
    number = label.shape[1] if label.ndim == 2 else int(label.max(initial=-1)) + 1
    if number > _MOST_NUMBERED:
        raise DatasetError(
            f"{place}: the largest label is {number - 1}, which needs class_names "
            f"above {_MOST_NUMBERED:,} classes: number the classes from 0 on, without "
            "gaps"
        )
    return tuple(map(str, range(number)))


def _as_array(array: Any, what: str) -> np.ndarray:
    try:
        return np.asarray(array)
    except (TypeError, ValueError) as error:
        raise DatasetError(
            f"{what} is no array: its parts differ in shape or type ({error})"
        ) from error


def _first_index(is_wrong: np.ndarray) -> str:
    index = np.unravel_index(int(is_wrong.argmax()), is_wrong.shape)
    return f"[{', '.join(map(str, index))}]"


def _remedy_of_pixels(image: np.ndarray, name: str) -> str:
    """Returns the way to uint8, by the pixels' type and range."""
    if image.dtype == bool:
        return f"pass 255 * {name}.astype(np.uint8)"
    if not np.issubdtype(image.dtype, np.number) or np.iscomplexobj(image):
        return "pass numbers"
    if not image.size:
        return f"pass {name}.astype(np.uint8)"
    is_finite = np.isfinite(image)
    if not is_finite.all():
        where = _first_index(~is_finite)
        return f"{name}{where} is {image[np.nonzero(~is_finite)][0]}: replace it first"
    least, most = image.min(), image.max()
    is_float = np.issubdtype(image.dtype, np.floating)
    if least < 0 or most > 255:
        return f"they are from {least} to {most}: scale them to 0 to 255 first"
    if is_float and most <= 1:
        return (
            f"they are from {least:g} to {most:g}: pass "
            f"(255 * {name}).round().astype(np.uint8)"
        )
    return (
        f"pass {name}.round().astype(np.uint8)"
        if is_float
        else (f"pass {name}.astype(np.uint8)")
    )


def _remedy_of_labels(label: np.ndarray, name: str) -> str:
    """Returns the way to labels, if there is an obvious one, to end the sentence."""
    if label.dtype.kind in "US" and label.ndim == 1:
        return f": pass np.unique({name}, return_inverse=True)[1], and the names"
    if label.dtype.kind == "b" and label.ndim == 1:
        return f": pass {name}.astype(int)"
    if label.dtype.kind not in "iuf" or not label.size:
        return ""
    if label.dtype.kind == "f" and not (is_finite := np.isfinite(label)).all():
        return f": {name}{_first_index(~is_finite)} is {label[~is_finite][0]}"
    if label.ndim == 2 and ((label == 0) | (label == 1)).all():
        return f": pass {name}.astype(bool)"
    if label.ndim == 1 and (label == np.round(label)).all():
        return f": pass {name}.astype(int)"
    return ""
