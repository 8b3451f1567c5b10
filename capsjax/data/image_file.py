"""Image files of any kind, read with the same care wherever they come from."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from capsjax.paths import expanded

# Not those that Pillow hands to other programs, as it does PostScript.
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
_MOST_PIXELS = 50_000_000


class ImageError(ValueError):
    """An image can't be read."""


def read_image(path: str | Path) -> Image.Image:
    """Opens an image file, upright, without transparency.

    What is transparent becomes white; or black, where what can be seen is light.

    Raises:
        ImageError: If it can't be read, is no image or is too large.
    """
    with _opened(path) as image:
        upright = _eight_bits(ImageOps.exif_transpose(image))
        if not upright.has_transparency_data:
            return upright.convert("RGB")
        transparent = upright.convert("RGBA")
    ground = "black" if _is_light(transparent) else "white"
    behind = Image.new("RGBA", transparent.size, ground)
    return Image.alpha_composite(behind, transparent).convert("RGB")


def _is_light(image: Image.Image) -> bool:
    opacity = np.asarray(image.getchannel("A"), np.float64)
    brightness = np.asarray(image.convert("L"), np.float64)
    if opacity.min() >= 128:  # There is no ground to be seen through.
        return False
    return bool((opacity * brightness).sum() > 127 * opacity.sum())


def is_grey(path: str | Path) -> bool:
    """Whether an image file has no colour, as its header tells.

    Raises:
        ImageError: As of ``read_image``, but what is damaged may go unnoticed.
    """
    with _opened(path) as image:
        return image.mode in ("1", "L", "LA") or _is_deep(image)


def fit(
    image: Image.Image, image_shape: tuple[int, int, int]
) -> UInt8[np.ndarray, "h w c"]:
    """Scales an image to a height, width and number of channels, 1 or 3.

    What is too wide or too high for the shape is cut off, the same on both sides.
    """
    height, width, channels = image_shape
    converted = image.convert("L" if channels == 1 else "RGB")
    fitted = np.asarray(ImageOps.fit(converted, (width, height)), np.uint8)
    return fitted.reshape(image_shape)


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """Opens the file, and turns what reading can raise into one error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # What is too large is refused below.
            with Image.open(expanded(path), formats=_FORMATS) as image:
                _require_size(path, image)
                yield image
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(
            f"{path} is not an image that can be read: it must be "
            f"{', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}."
        ) from None
    except Exception as error:  # Of a damaged file a decoder may raise anything.
        reason = getattr(error, "strerror", None) or error or type(error).__name__
        raise ImageError(f"can't read {path}: {reason}.") from error


def _require_size(path: str | Path, image: Image.Image) -> None:
    """Before anything is decoded: a small file may claim to be a huge image."""
    width, height = image.size
    if width * height > _MOST_PIXELS:
        raise ImageError(
            f"{path} has {width} x {height} pixels; at most {_MOST_PIXELS:,} are read."
        )


def _is_deep(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Deeper pixels scaled by their own range, which Pillow would cut off at 255."""
    if not _is_deep(image):
        return image
    pixels = np.asarray(image, np.float64)
    if not np.isfinite(pixels).all():
        raise ValueError("some of its pixels are not finite numbers")
    low, high = min(0, pixels.min()), max(pixels.max(), 1e-9)
    return Image.fromarray(np.uint8(np.round(255 * (pixels - low) / (high - low))))
