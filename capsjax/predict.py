"""What a trained network sees: ``python -m capsjax.predict --workdir DIR image.png``.

A grey network gets the image as MNIST's were made: light strokes on a dark ground, the
longer side of what is drawn 20 of 28 pixels, the centre of mass in the middle. A colour
network gets the middle of the image, scaled.
"""

import argparse
import json
import pathlib
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from capsjax.checkpoint import CheckpointError
from capsjax.compilation import keep_compiled_programs
from capsjax.models import BaselineCNN
from capsjax.run import Prediction, Run, load_run
from capsjax.workdir import WorkdirError

# Half way between the lengths that training asks of absent and present capsules.
PRESENT = 0.5
# Not those that Pillow hands to other programs, as it does PostScript.
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
_MOST_PIXELS = 50_000_000
# Of the brightness from black to white: less is noise, not something drawn.
_FAINTEST = 0.1


class ImageError(ValueError):
    """An image can't be read, or not be told apart from its ground."""


def read_image(path: str | pathlib.Path) -> Image.Image:
    """Opens an image file, upright, without transparency (which becomes white).

    Raises:
        ImageError: If it can't be read, is no image or is too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # What is too large is refused below.
            with Image.open(path, formats=_FORMATS) as image:
                _require_size(path, image)
                upright = _eight_bits(ImageOps.exif_transpose(image)).convert("RGBA")
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
    white = Image.new("RGBA", upright.size, "white")
    return Image.alpha_composite(white, upright).convert("RGB")


def _require_size(path: str | pathlib.Path, image: Image.Image) -> None:
    """Before anything is decoded: a small file may claim to be a huge image."""
    width, height = image.size
    if width * height > _MOST_PIXELS:
        raise ImageError(
            f"{path} has {width} x {height} pixels; at most {_MOST_PIXELS:,} are read."
        )


def _eight_bits(image: Image.Image) -> Image.Image:
    """Deeper pixels scaled by their own range, which Pillow would cut off at 255."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;"):
        return image
    pixels = np.asarray(image, np.float64)
    low, high = min(0, pixels.min()), max(pixels.max(), 1e-9)
    return Image.fromarray(np.uint8(np.round(255 * (pixels - low) / (high - low))))


def fit_image(
    image: Image.Image, image_shape: tuple[int, int, int], *, invert: bool | None = None
) -> UInt8[np.ndarray, "h w c"]:
    """Makes any image one for the network.

    Args:
        image: Of any size.
        image_shape: Height, width and channels that the network takes. With one
            channel the image is centred and scaled as MNIST was; with three it is
            scaled and its edges are cut off.
        invert: For one channel, whether the image is dark on light; None to tell by the
            brightness of its edge.

    Raises:
        ImageError: If ``invert`` is None and the edge is neither dark nor light.
    """
    height, width, channels = image_shape
    if channels not in (1, 3):
        raise ImageError(f"this network is for images of {channels} channels")
    if channels == 1:
        grey = np.asarray(image.convert("L"), np.float32) / 255
        return _like_mnist(grey, (height, width), invert=invert)[..., None]
    return np.asarray(ImageOps.fit(image, (width, height)), np.uint8)


def _like_mnist(
    grey: Float[np.ndarray, "h w"], size: tuple[int, int], *, invert: bool | None
) -> UInt8[np.ndarray, "H W"]:
    edge = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    ground = float(np.median(edge))
    if invert is None:
        if 0.4 < ground < 0.6:
            raise ImageError(
                "it is not plain whether this is drawn dark on light or light on dark "
                f"(the edge's brightness is {ground:.0%}); say --invert or --no-invert"
            )
        invert = ground > 0.5
    ink = ground - grey if invert else grey - ground
    result = np.zeros(size, np.uint8)
    if ink.max() < _FAINTEST:
        return result
    ink = np.clip(ink / ink.max(), 0, 1)
    rows, columns = (np.flatnonzero((ink > 0.25).any(axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = min(size) * 20 / 28 / max(ink.shape)
    height, width = (max(1, round(n * scale)) for n in ink.shape)
    drawn = Image.fromarray(ink).resize((width, height), Image.Resampling.LANCZOS)
    ink = np.clip(np.asarray(drawn), 0, None)
    ink = ink / ink.max()  # a thin pen is as bright as a thick one
    centre = [
        (np.arange(n) * ink.sum(1 - axis)).sum() / ink.sum()
        for axis, n in enumerate(ink.shape)
    ]
    starts = [
        int(np.clip(round(whole / 2 - middle), 0, whole - part))
        for whole, part, middle in zip(size, ink.shape, centre, strict=True)
    ]
    window = tuple(slice(s, s + n) for s, n in zip(starts, ink.shape, strict=True))
    result[window] = np.round(255 * ink)
    return result


def verdicts(run: Run, prediction: Prediction) -> list[dict[str, Any]]:
    """For each image: what it shows, in words, and every class's length.

    Of the baseline it is every class's probability.
    """
    is_baseline = isinstance(run.model, BaselineCNN)
    result = []
    for length in prediction.length:
        order = np.argsort(-length, kind="stable")
        names = [run.class_names[k] for k in order]
        num_present = int((length >= PRESENT).sum())
        numbers = {
            name: round(float(length[k]), 4)
            for name, k in zip(names, order, strict=True)
        }
        result.append(
            {"verdict": names[0], "label": names[0], "probabilities": numbers}
            if is_baseline
            else {
                "verdict": _verdict(run, names, num_present),
                "label": names[0],
                "num_present": num_present,
                "lengths": numbers,
            }
        )
    return result


def _verdict(run: Run, names: Sequence[str], num_present: int) -> str:
    """Who is present, given the classes from the longest capsule on."""
    are_digits = run.class_names == tuple("0123456789")
    noun, nouns = ("digit", "digits") if are_digits else ("class", "classes")
    if run.num_shown is not None and run.num_shown > 1:
        return " and ".join(names[: run.num_shown])
    if num_present == 0:
        return f"no {noun}"
    if num_present == 1:
        return names[0]
    return f"{names[0]}, or two {nouns}? ({names[0]} and {names[1]})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "capsjax.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--workdir", required=True, help="the folder of a trained run")
    parser.add_argument(
        "--invert",
        action=argparse.BooleanOptionalAction,
        help="it is dark on light (or is not); told by the image's edge if not said",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: predicts, and returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        read = [read_image(path) for path in arguments.images]
        keep_compiled_programs()
        run = load_run(arguments.workdir)
        fitted = []
        for path, image in zip(arguments.images, read, strict=True):
            try:
                fitted.append(
                    fit_image(image, run.image_shape, invert=arguments.invert)
                )
            except ImageError as error:
                raise ImageError(f"{path}: {error}.") from error
    except (ImageError, WorkdirError, CheckpointError) as error:
        print(f"capsjax.predict: error: {error}", file=sys.stderr)
        return 1
    told = verdicts(run, run.predict(np.stack(fitted)))
    told = [{"file": f, **v} for f, v in zip(arguments.images, told, strict=True)]
    if arguments.json:
        print(json.dumps(told, indent=2))
        return 0
    wide = max(len("image"), *(len(line["file"]) for line in told))
    kind = "lengths" if "lengths" in told[0] else "probabilities"
    head = {"lengths": "longest capsules", "probabilities": "most probable"}[kind]
    print(f"{'image':{wide}}  {head:18}  answer")
    for line in told:
        longest = list(line[kind].items())[:3]
        lengths = "  ".join(f"{name} {length:.2f}" for name, length in longest)
        print(f"{line['file']:{wide}}  {lengths:18}  {line['verdict']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
