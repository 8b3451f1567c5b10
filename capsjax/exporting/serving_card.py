"""The card of a network to serve: what goes in, what comes out, what it means."""

from collections.abc import Mapping
from typing import Any

from capsjax.data.preparation import DRAWN, Preparation
from capsjax.exporting.comparison import Comparison
from capsjax.exporting.functions import inputs, outputs
from capsjax.losses import PRESENT
from capsjax.models import num_parameters
from capsjax.runtime.console import printable
from capsjax.storage.provenance import provenance
from capsjax.storage.run import Run

_CHANNELS = {
    1: "grey",
    2: "grey; a pair of pictures makes the two channels",
    3: "red, green and blue",
    4: "red, green, blue and opacity",
}


def card(
    run: Run, format_name: str, weights: str, comparison: Comparison
) -> dict[str, Any]:
    """Returns the card as JSON.

    Args:
        run: The run.
        format_name: The format, which is also the suffix of the files.
        weights: The type in which weights are stored.
        comparison: The comparison with JAX.
    """
    given, found = inputs(run, 1), outputs(run)
    files = {
        f"{name}.{format_name}": {
            "inputs": _arrays(given[name]),
            "outputs": _arrays(one),
        }
        for name, one in found.items()
    }
    measured = (run.result or {}).get("test") or {}
    return {
        "format": format_name,
        "network": type(run.model).__name__,
        "num_parameters": num_parameters(run.params),
        "weights": weights,
        "data": run.config.data.name,
        "step": run.step,
        "test_accuracy": measured.get("accuracy"),
        "class_names": list(run.class_names),
        "num_shown": run.num_shown,
        "activation": "length" if run.activation_kind == "length" else "probability",
        "present": PRESENT,
        "drawing_limit": run.drawing_limit,
        "image_shape": list(run.model.image_shape),
        "preparation": run.preparation.to_json(),
        "files": files,
        "compared": comparison._asdict(),
        "made_by": provenance(),
    }


def _arrays(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Returns type and shape of each array; any number of images is a batch."""
    return {
        name: {"type": str(array.dtype), "shape": ["batch", *array.shape[1:]]}
        for name, array in arrays.items()
    }


def readme(run: Run, card: Mapping[str, Any], comparison: Comparison) -> str:
    """Returns the card as a page for people."""
    accuracy = card["test_accuracy"]
    measured = (
        "." if accuracy is None else f"; {accuracy:.2%} of the test images right."
    )
    lines = [
        f"# {card['network']} for {printable(card['data'])}",
        "",
        f"{card['num_parameters']:,} parameters, stored as {card['weights']}{measured}",
        "Exported by capsjax. `card.json` has all of this for programs.",
        "",
        "## Files",
        "",
        *(_about(name, part) for name, part in card["files"].items()),
        "",
        "## Images",
        "",
        *(f"{n}. {step}" for n, step in enumerate(_steps(run), 1)),
        "",
        "In Python, `capsjax.data.preparation.Preparation.from_json(card"
        '["preparation"]).apply("picture.png")` makes the bytes of a picture.',
        "",
        "## Answers",
        "",
        _answers(run),
        "",
        f"The classes, in order: {', '.join(map(printable, card['class_names']))}.",
        "",
        "## Check",
        "",
        f"{comparison}.",
    ]
    return "\n".join(lines) + "\n"


def _about(name: str, part: Mapping[str, Any]) -> str:
    given, found = (
        ", ".join(
            f"`{key}` {array['type']} [{', '.join(map(str, array['shape']))}]"
            for key, array in part[side].items()
        )
        for side in ("inputs", "outputs")
    )
    return f"- `{name}`: {given} -> {found}"


def _steps(run: Run) -> list[str]:
    """Describes the way from a picture to the network's input."""
    preparation = run.preparation
    height, width, channels = preparation.image_shape
    colours = _CHANNELS.get(channels, f"{channels} channels")
    steps = [
        "Turn the picture as its camera was held (EXIF), with 8 bits a channel: "
        f"{colours}."
    ]
    if preparation.is_drawn:
        steps += _drawn_steps(preparation)
    else:
        steps.append(
            f"Cut both sides equally to the proportion {width} : {height}, and scale "
            f"to {width} x {height} pixels (Pillow's `ImageOps.fit`, bicubic)."
        )
    if run.model.image_shape != run.image_shape:
        side = " x ".join(map(str, run.model.image_shape[1::-1]))
        steps.append(f"Cut out the middle, {side} pixels.")
    shape = ", ".join(map(str, run.model.image_shape))
    steps.append(f"Divide by 255: float32 from 0 to 1, [batch, {shape}].")
    return steps


def _drawn_steps(preparation: Preparation) -> list[str]:
    drawn = DRAWN[preparation.kind]
    frame = f"{drawn.frame} x {drawn.frame}"
    centre = ", its centre of mass in the middle" * drawn.is_centred
    steps = [
        f"Leave a picture that is made like {preparation.kind}'s images as it is: "
        f"{frame} pixels, light on black{centre}. Make any other so, from its "
        "brightness between 0 and 1:",
        "The ground is the median of the edge's pixels. The ink is the ground less the "
        "picture if the ground is above 0.5, else the picture less the ground. (From "
        "0.4 to 0.6, try both, and take the larger activation.)",
        "If no ink is above 0.1, the image is black. Else divide the ink by its "
        "maximum, limit it to 0 to 1, and keep the rows and columns from the first to "
        "the last with ink above 0.25.",
        f"Scale the longer side to {drawn.extent} pixels (Pillow's Lanczos), put 0 "
        "for what is below, and divide by the maximum again; round 255 times the ink "
        "to bytes.",
        f"Place it on black, {frame} pixels, its centre of mass in the middle as far "
        "as it fits.",
    ]
    size = (preparation.height, preparation.width)
    if size != (drawn.frame, drawn.frame):
        steps.append(
            f"Scale to {size[1]} x {size[0]} pixels (Pillow's `ImageOps.fit`)."
        )
    return steps


def _answers(run: Run) -> str:
    if run.activation_kind == "length":
        measure = "`activation` is the length of each class capsule, from 0 to 1."
    else:
        measure = "`activation` is the probability of each class."
    label = "`label` is the index of the largest one, and `drawing` its picture."
    if run.num_shown != 1:
        most = "" if run.num_shown is None else f", at most {run.num_shown}"
        rule = f"The image shows the classes with at least {PRESENT}{most}."
    elif run.activation_kind == "length":
        rule = (
            f"A class with at least {PRESENT} is there: if none is, the image shows "
            "none of them; if several are, it may show two."
        )
        if run.drawing_limit is not None:
            rule += (
                " If the drawing differs too much from the image, it shows none, "
                "either: `((image - drawing)**2).sum() / ((image - "
                f"image.mean())**2).sum()` is above {run.drawing_limit:.4f} (with "
                "several, for the brightest pixels of their drawings)."
            )
    else:
        rule = "Probabilities compare classes: the label is always one of them."
    return f"{measure} {label} {rule}"
