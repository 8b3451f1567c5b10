"""What a trained network sees: ``python -m capsjax.predict --workdir DIR image.png``.

A grey network gets the image as MNIST's were made: light strokes on a dark ground, the
longer side of what is drawn 20 of 28 pixels, the centre of mass in the middle. Where it
is not plain whether it is dark on light, both are tried, and the longer capsule counts.
A colour network, or one of an image folder, gets the middle of the image, scaled.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from capsjax.checkpoint import CheckpointError
from capsjax.compilation import keep_compiled_programs
from capsjax.data.image_file import ImageError, fit, read_image
from capsjax.models import BaselineCNN
from capsjax.run import Prediction, Run, load_run
from capsjax.workdir import WorkdirError

# Half way between the lengths that training asks of absent and present capsules.
PRESENT = 0.5
# Of the brightness from black to white: less is noise, not something drawn.
_FAINTEST = 0.1


class UnclearGroundError(ImageError):
    """It is not plain what is drawn, and what is the ground."""


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
        UnclearGroundError: If ``invert`` is None and the edge is neither dark nor
            light.
    """
    height, width, channels = image_shape
    if channels not in (1, 3):
        raise ImageError(f"this network is for images of {channels} channels.")
    if channels == 1:
        grey = np.asarray(image.convert("L"), np.float32) / 255
        return _like_mnist(grey, (height, width), invert=invert)[..., None]
    return fit(image, image_shape)


def _like_mnist(
    grey: Float[np.ndarray, "h w"], size: tuple[int, int], *, invert: bool | None
) -> UInt8[np.ndarray, "H W"]:
    edge = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    ground = float(np.median(edge))
    if invert is None:
        if 0.4 < ground < 0.6:
            raise UnclearGroundError(
                "it is not plain whether this is drawn dark on light or light on dark "
                f"(the edge's brightness is {ground:.0%}); say which by invert"
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
        keep_compiled_programs()
        run = load_run(arguments.workdir)
    except (WorkdirError, CheckpointError, OSError) as error:
        return _fail(error)
    # One after the other, so that large ones need not fit in memory together.
    answers = [_answer(run, path, invert=arguments.invert) for path in arguments.images]
    told = [answer for answer in answers if answer is not None]
    if arguments.json:
        print(json.dumps(told, indent=2))
    elif told:
        wide = max(len("image"), *(len(line["file"]) for line in told))
        kind = _kind(told[0])
        head = {"lengths": "longest capsules", "probabilities": "most probable"}[kind]
        print(f"{'image':{wide}}  {head:18}  answer")
        for line in told:
            longest = list(line[kind].items())[:3]
            lengths = "  ".join(f"{name} {length:.2f}" for name, length in longest)
            print(f"{line['file']:{wide}}  {lengths:18}  {line['verdict']}")
    return int(len(told) < len(answers))


def _kind(told: dict[str, Any]) -> str:
    return "lengths" if "lengths" in told else "probabilities"


def _answer(run: Run, path: str, *, invert: bool | None) -> dict[str, Any] | None:
    """What is told of an image; None, with a line that says why, if it can't be."""
    try:
        image = read_image(path)
        fitted = _fitted(run, image, invert=invert)
    except ImageError as error:
        _fail(error)
        return None
    told = verdicts(run, run.predict(np.stack(fitted)))
    return {"file": path, **max(told, key=lambda one: max(one[_kind(one)].values()))}


def _fitted(run: Run, image: Image.Image, *, invert: bool | None) -> list[np.ndarray]:
    """As the run's own images were made; both ways where the ground is not plain."""
    if run.config.data.name == "image_folder":
        return [fit(image, run.image_shape)]
    try:
        return [fit_image(image, run.image_shape, invert=invert)]
    except UnclearGroundError:
        both = (True, False)
        return [fit_image(image, run.image_shape, invert=ground) for ground in both]


def _fail(error: Exception) -> int:
    print(f"capsjax.predict: error: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
