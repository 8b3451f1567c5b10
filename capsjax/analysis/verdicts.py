"""Puts into words what a network sees in a picture."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from capsjax.data.picture import UnclearGroundError
from capsjax.data.preparation import DRAWN, Preparation
from capsjax.storage.prediction import Prediction
from capsjax.storage.run import Run
from capsjax.training.objective import PRESENT

# Data sets whose classes are digits.
_DIGITS = (*DRAWN, "svhn_cropped")


def verdicts(
    run: Run, prediction: Prediction, error: Float[np.ndarray, " n"] | None = None
) -> list[dict[str, Any]]:
    """Returns a verdict for each image, with every class's length or probability.

    Args:
        run: The run.
        prediction: The prediction for some images.
        error: Their drawing errors, if the run has a ``drawing_limit``: an image beyond
            it shows no class.
    """
    kind = run.activation_kind
    limit = None if error is None else run.drawing_limit
    result = []
    for n, activation in enumerate(prediction.activation):
        order = np.argsort(-activation, kind="stable")
        names = [run.class_names[k] for k in order]
        numbers = {
            name: round(float(activation[k]), 4)
            for name, k in zip(names, order, strict=True)
        }
        answer: dict[str, Any] = {"verdict": names[0], "label": names[0]}
        # The losses of probabilities and logits compare classes: one of them is there.
        if kind == "length" or run.num_shown != 1:
            answer["num_present"] = int((activation >= PRESENT).sum())
            if error is not None and limit is not None:
                answer["drawing_error"] = round(float(error[n]), 4)
                answer["drawing_limit"] = round(limit, 4)
                if error[n] > limit:
                    answer["num_present"] = 0
            answer["verdict"] = _verdict(run, names, answer["num_present"])
        answer["lengths" if kind == "length" else "probabilities"] = numbers
        result.append(answer)
    return result


def _verdict(run: Run, names: Sequence[str], num_present: int) -> str:
    """Names the classes present, given the names from the longest capsule on."""
    one, several = nouns(run)
    if num_present == 0:
        return f"no {one}"
    if run.num_shown != 1:
        return " and ".join(names[: min(num_present, run.num_shown or num_present)])
    if num_present == 1:
        return names[0]
    return f"{names[0]}, or two {several}? ({names[0]} and {names[1]})"


def nouns(run: Run) -> tuple[str, str]:
    """Returns the noun for one class of a run, and for several."""
    are_digits = run.config.data.name in _DIGITS
    return ("digit", "digits") if are_digits else ("class", "classes")


def numbers_name(answer: dict[str, Any]) -> str:
    """Returns the name of an answer's numbers: ``lengths`` or ``probabilities``."""
    return "lengths" if "lengths" in answer else "probabilities"


def judge(
    run: Run, path: str, *, invert: bool | None, notes: list[str] | None = None
) -> dict[str, Any]:
    """Reads a picture, prepares it like the run's images, and names its class.

    Args:
        run: The run.
        path: The picture's file.
        invert: True if the picture is dark on light; None to find out.
        notes: List that gets sentences on changes to the picture.

    Raises:
        ImageError: If the picture can't be read.
    """
    image = np.stack([*_prepared(run.preparation, path, invert=invert, notes=notes)])
    prediction, error = run.predict(image), None
    if run.drawing_limit is not None:
        error = run.drawing_error(image, prediction)
    answers = verdicts(run, prediction, error)

    def largest(answer: dict[str, Any]) -> float:
        return max(answer[numbers_name(answer)].values())

    return {"file": path, **max(answers, key=largest)}


def _prepared(
    preparation: Preparation, path: str, *, invert: bool | None, notes: list[str] | None
) -> Iterator[UInt8[np.ndarray, "h w c"]]:
    """Prepares a picture; in both ways if its ground is unclear."""
    try:
        yield preparation.apply(path, invert=invert, notes=notes)
    except UnclearGroundError:
        yield preparation.apply(path, invert=True)
        yield preparation.apply(path, invert=False)
