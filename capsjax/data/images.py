"""Reads image files of every kind with the same care, wherever they come from."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from capsjax.data.preparation import Scale
from capsjax.runtime.paths import expanded, require_file

# Without formats that Pillow hands to other programs, as it does PostScript.
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
_MOST_PIXELS = 50_000_000
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# Files that desktops leave in folders of images; names with a leading dot are skipped
# too.
_NO_IMAGES = ("Thumbs.db", "desktop.ini")


class ImageError(ValueError):
    """An image can't be read."""


def is_visible(name: str) -> bool:
    """Returns whether a file or folder of that name is meant to be read."""
    return not name.startswith(".") and name not in _NO_IMAGES


class Header(NamedTuple):
    """The kind of an image file, known before its pixels are read.

    Attributes:
        is_grey: Whether it has no colour.
        is_deep: Whether its grey has more than 8 bits.
    """

    is_grey: bool
    is_deep: bool


def read_header(path: str | Path) -> Header:
    """Reads the kind of an image file; damage in its pixels goes unnoticed.

    Raises:
        ImageError: If it can't be read, is no image or is too large.
    """
    with _opened(path) as image:
        is_deep = _is_deep(image)
        is_grey = is_deep or image.mode in ("1", "L", "LA", "La")
        return Header(is_grey, is_deep)


def is_grey(path: str | Path) -> bool:
    """Returns whether an image file has no colour.

    Raises:
        ImageError: As in ``read_header``.
    """
    return read_header(path).is_grey


def count_frames(path: str | Path) -> int:
    """Counts the images in a file.

    Raises:
        ImageError: If it can't be read.
    """
    with _opened(path) as image:
        return getattr(image, "n_frames", 1)


def read_image(
    path: str | Path,
    *,
    scale: Scale = "type",
    frame: int = 0,
    keeps_transparency: bool = False,
    notes: list[str] | None = None,
) -> Image.Image:
    """Reads an image file, upright, with 8 bits a channel.

    Transparency becomes white, or black if the visible part is light. Only the upper 8
    bits are read from colour with 16 bits a channel.

    Args:
        path: The file.
        scale: The black and the white of grey with more than 8 bits.
        frame: Number of the image in the file.
        keeps_transparency: Whether the image stays transparent.
        notes: Takes a line on each part of the file that is not read.

    Returns:
        An image in mode RGB, or RGBA if it keeps its transparency.

    Raises:
        ImageError: If it can't be read, is no image or is too large.
    """
    with _opened(path) as image:
        if notes is not None:
            notes += [f"{path} {what}" for what in _left_out(image, frame, scale)]
        if frame:
            image.seek(frame)
            _require_size(path, image)
        upright = ImageOps.exif_transpose(image)
        if _is_deep(image):
            upright = _eight_bits(upright, _black_and_white(image, scale))
        if keeps_transparency:
            return upright.convert("RGBA")
        if not upright.has_transparency_data:
            return upright.convert("RGB")
        transparent = upright.convert("RGBA")
    ground = "black" if _is_light(transparent) else "white"
    behind = Image.new("RGBA", transparent.size, ground)
    return Image.alpha_composite(behind, transparent).convert("RGB")


def read_extremes(path: str | Path) -> tuple[float, float, bool]:
    """Returns darkest and brightest pixel of deep grey, and whether all are integers.

    Raises:
        ImageError: If the file can't be read.
    """
    with _opened(path) as image:
        pixels = _deep_pixels(image)
        return float(pixels.min()), float(pixels.max()), image.mode != "F"


def fit(
    image: Image.Image, image_shape: tuple[int, int, int]
) -> UInt8[np.ndarray, "h w c"]:
    """Scales an image to a height, width and number of channels, 1, 3 or 4.

    Both sides are cut equally if the image is too wide or too high for the shape.
    """
    height, width, channels = image_shape
    converted = image.convert(_MODES[channels])
    fitted = np.asarray(ImageOps.fit(converted, (width, height)), np.uint8)
    return fitted.reshape(image_shape)


def fit_channels(
    image: UInt8[np.ndarray, "h w c"], image_shape: tuple[int, int, int]
) -> UInt8[np.ndarray, "H W c"]:
    """Scales an image of any number of channels as ``fit`` does, each alone."""
    if image.shape == image_shape:
        return image
    size = (*image_shape[:2], 1)
    channels = np.moveaxis(image, -1, 0)
    fitted = [fit(Image.fromarray(np.ascontiguousarray(c)), size) for c in channels]
    return np.concatenate(fitted, axis=-1)


def _is_light(image: Image.Image) -> bool:
    opacity = np.asarray(image.getchannel("A"), np.float64)
    brightness = np.asarray(image.convert("L"), np.float64)
    if opacity.min() >= 128:  # No ground shows through.
        return False
    return bool((opacity * brightness).sum() > 127 * opacity.sum())


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """Opens the file, and turns every exception of reading into one error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Too large images are refused below.
            require_file(expanded(path))
            # Not by its name: Pillow would map a TIFF file into memory, and mix up its
            # pixels when turning it.
            with (
                open(expanded(path), "rb") as file,
                Image.open(file, formats=_FORMATS) as image,
            ):
                _require_size(path, image)
                yield image
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(
            f"{path} is not an image that can be read: it must be "
            f"{', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}."
        ) from None
    except Exception as error:  # A decoder may raise anything for a damaged file.
        reason = getattr(error, "strerror", None) or error or type(error).__name__
        raise ImageError(f"can't read {path}: {reason}.") from error


def _require_size(path: str | Path, image: Image.Image) -> None:
    """Refuses large images before decoding: a small file may claim to be a huge one."""
    width, height = image.size
    if width * height > _MOST_PIXELS:
        raise ImageError(
            f"{path} has {width} x {height} pixels; at most {_MOST_PIXELS:,} are read."
        )


def _left_out(image: Any, frame: int, scale: Scale) -> Iterator[str]:
    """Yields the parts of the file that are not read, in words that follow its name."""
    num_frames = getattr(image, "n_frames", 1)
    if num_frames > 1 and not frame:
        yield f"has {num_frames} frames: only the first is read"
    num_read = len(image.getbands())
    # TIFF alone can have bands that Pillow skips.
    num_bands = getattr(image, "tag_v2", {}).get(277, num_read)
    if num_bands > num_read:
        yield f"has {num_bands} bands: only the first {num_read} are read"
    if not _is_deep(image) and any(";16" in str(tile[3]) for tile in image.tile):
        yield "has 16 bits a channel: only the upper 8 are read"
    if scale == "type" and _is_deep(image) and _black_and_white(image, scale) == "own":
        yield "has pixels without a common range: its own brightest becomes white"


def _is_deep(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;")


def _deep_pixels(image: Image.Image) -> Float[np.ndarray, "h w"]:
    pixels = np.asarray(image, np.float64)
    if not np.isfinite(pixels).all():
        raise ValueError("some of its pixels are not finite numbers")
    return pixels


def _black_and_white(image: Image.Image, scale: Scale) -> Scale:
    """Returns the two numbers of a scale for this file; "own" if its type has no range.

    Nobody uses the full range of 32-bit integers, and floats have none but 0 to 1.
    """
    if scale != "type":
        return scale
    if image.mode.startswith("I;") or (image.mode == "I" and image.format != "TIFF"):
        (bits, *_) = getattr(image, "tag_v2", {}).get(258, (16,))
        return 0.0, 2.0**bits - 1
    low, high = map(float, image.getextrema())  # pyright: ignore[reportArgumentType]
    white = 2.0**16 - 1 if image.mode == "I" else 1.0
    return (0.0, white) if low >= 0 and high <= white else "own"


def _eight_bits(image: Image.Image, scale: Scale) -> Image.Image:
    """Scales deep grey to 8 bits, which Pillow would cut off at 255."""
    pixels = _deep_pixels(image)
    if isinstance(scale, str):
        black, white = min(0, pixels.min()), max(pixels.max(), 1e-9)
    else:
        black, white = scale
    share = np.clip((pixels - black) / (white - black), 0, 1)
    return Image.fromarray(np.uint8(np.round(255 * share)))


def common_scale(least: float, most: float, *, are_integers: bool) -> Scale:
    """Returns one scale for all images of a set, made from their extremes.

    Integers from zero on: black is 0, and white the most that their bits hold, 4095 if
    the brightest pixel needs 12. Floats from 0 to 1: black is 0, white is 1. The
    extremes themselves are black and white if less than a quarter of that range is
    used, or pixels lie outside it.

    Args:
        least: The darkest pixel of all images.
        most: The brightest pixel.
        are_integers: Whether no image holds floats.
    """
    white = 2 ** max(8, int(most).bit_length()) - 1 if are_integers else 1
    is_used = white == 255 or most - least >= white / 4
    if least >= 0 and most <= white and is_used:
        return 0.0, float(white)
    return least, most if most > least else least + 1
