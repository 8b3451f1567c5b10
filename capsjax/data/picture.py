"""Turns a picture into an image of a data set, as the set's preparation describes."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from capsjax.data.images import ImageError, count_frames, fit, read_image
from capsjax.data.preparation import DRAWN, Drawn, Preparation

# Share of the range from black to white: less is noise, not something drawn.
_FAINTEST = 0.1
_MOST_CHANNELS = 4


class UnclearGroundError(ImageError):
    """Foreground and background cannot be distinguished."""


def make_image(
    preparation: Preparation,
    picture: str | Path | Image.Image,
    *,
    invert: bool | None = None,
    notes: list[str] | None = None,
) -> UInt8[np.ndarray, "h w c"]:
    """Implements ``Preparation.apply``."""
    if preparation.is_drawn:
        grey = _read(preparation, picture, notes=notes).convert("L")
        return _made_as_drawn(preparation, np.asarray(grey), invert=invert)
    if invert is not None:
        raise ValueError(
            "invert is for drawn digits, and these pictures are taken unchanged"
        )
    if preparation.channels > _MOST_CHANNELS:
        raise ImageError(
            f"pictures can't have {preparation.channels} channels, as the images of "
            "this data set have."
        )
    if preparation.channels == 2:
        shape = (preparation.height, preparation.width, 1)
        pair = _read_pair(preparation, picture, notes)
        return np.concatenate([fit(one, shape) for one in pair], axis=-1)
    return fit(_read(preparation, picture, notes=notes), preparation.image_shape)


def _read(
    preparation: Preparation,
    picture: str | Path | Image.Image,
    *,
    frame: int = 0,
    notes: list[str] | None = None,
) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture
    return read_image(
        picture,
        scale=preparation.scale,
        frame=frame,
        keeps_transparency=preparation.channels == 4,
        notes=notes,
    )


def _read_pair(
    preparation: Preparation,
    picture: str | Path | Image.Image,
    notes: list[str] | None,
) -> list[Image.Image]:
    """Reads the left and the right one of two pictures in a file."""
    is_file = not isinstance(picture, Image.Image)
    if is_file and count_frames(picture) == 2:
        return [_read(preparation, picture, frame=frame) for frame in (0, 1)]
    both = _read(preparation, picture, notes=notes)
    height, width = preparation.height, preparation.width
    if both.width * height != 2 * width * both.height:
        raise ImageError(
            f"{picture if is_file else 'the picture'} has {both.width} x {both.height} "
            "pixels, and this network sees pairs: put the left and the right picture "
            f"side by side, {2 * width} x {height} pixels or in that proportion, or on "
            "the two pages of a TIFF file."
        )
    middle = both.width // 2
    return [both.crop((left, 0, left + middle, both.height)) for left in (0, middle)]


def _made_as_drawn(
    preparation: Preparation, grey: UInt8[np.ndarray, "H W"], *, invert: bool | None
) -> UInt8[np.ndarray, "h w 1"]:
    drawn = DRAWN[preparation.kind]
    if invert or not _is_made(preparation, grey):
        grey = _placed(grey.astype(np.float32) / 255, drawn, invert=invert)
    return fit(Image.fromarray(grey), preparation.image_shape)


def _is_made(preparation: Preparation, grey: UInt8[np.ndarray, "H W"]) -> bool:
    """Returns whether a picture is already made like the set's own images."""
    drawn, size = DRAWN[preparation.kind], (preparation.height, preparation.width)
    frame = (drawn.frame, drawn.frame)
    if grey.shape not in (frame, size) or _ground(grey / 255) > _FAINTEST:
        return False
    if not drawn.is_centred or not grey.any():
        return True
    # They are off by half a pixel at most; scaled ones by a little more.
    most = 0.5 if grey.shape == frame else 0.6
    off = [
        (middle + 0.5) / part * drawn.frame - 0.5 - drawn.frame / 2
        for middle, part in zip(_centre_of_mass(grey), grey.shape, strict=True)
    ]
    return max(map(abs, off)) < most + 1e-6


def _ground(grey: Float[np.ndarray, "H W"]) -> float:
    """Returns the brightness of a picture's edge, from 0 to 1."""
    edge = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    return float(np.median(edge))


def _centre_of_mass(ink: np.ndarray) -> list[float]:
    weight = ink.astype(np.float64)
    return [
        float((np.arange(n) * weight.sum(1 - axis)).sum() / weight.sum())
        for axis, n in enumerate(weight.shape)
    ]


def _placed(
    grey: Float[np.ndarray, "H W"], drawn: Drawn, *, invert: bool | None
) -> UInt8[np.ndarray, "frame frame"]:
    """Scales and places a drawing as MNIST's makers did."""
    ground = _ground(grey)
    if invert is None:
        if 0.4 < ground < 0.6:
            raise UnclearGroundError(
                "it is unclear whether this is drawn dark on light or light on dark "
                f"(the edge's brightness is {ground:.0%}); choose one by invert"
            )
        invert = ground > 0.5
    ink = ground - grey if invert else grey - ground
    result = np.zeros((drawn.frame, drawn.frame), np.uint8)
    if ink.max() < _FAINTEST:
        return result
    ink = np.clip(ink / ink.max(), 0, 1)
    rows, columns = (np.flatnonzero((ink > 0.25).any(axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = drawn.extent / max(ink.shape)
    height, width = (max(1, round(n * scale)) for n in ink.shape)
    resized = Image.fromarray(ink).resize((width, height), Image.Resampling.LANCZOS)
    ink = np.clip(np.asarray(resized), 0, None)
    ink = ink / ink.max()  # Makes a thin pen as bright as a thick one.
    starts = [
        int(np.clip(round(whole / 2 - middle), 0, whole - part))
        for whole, part, middle in zip(
            result.shape, ink.shape, _centre_of_mass(ink), strict=True
        )
    ]
    window = tuple(slice(s, s + n) for s, n in zip(starts, ink.shape, strict=True))
    result[window] = np.round(255 * ink)
    return result
