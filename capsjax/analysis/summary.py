"""An evaluation as lines to print and as a record to keep."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from capsjax.analysis.confusion import commonest_confusions
from capsjax.analysis.diagnosis import Calibration, Diagnosis
from capsjax.analysis.evaluation import MOST_KEPT_CLASSES, Evaluation
from capsjax.analysis.scores import Scores
from capsjax.data import Dataset
from capsjax.runtime.console import shortened
from capsjax.storage.provenance import provenance
from capsjax.storage.run import Run
from capsjax.training.objective import Metrics, several_in_words

_WIDEST_TABLE = 160  # Characters; the confusions of a wider one become words.
_MOST_LISTED = 30  # Classes, each with its line.
_MOST_NAMED = 10  # Classes or confusions, in words.
_MOST_KEPT_CONFUSIONS = 10_000  # Where the table is too large to keep.


def summary(metrics: Metrics, num_images: int) -> str:
    """Returns loss and accuracy in words."""
    wrong = round(num_images * (1 - metrics.accuracy))
    several = several_in_words(metrics.known())
    return (
        f"loss {metrics.loss:.6f}, accuracy {metrics.accuracy:.2%} "
        f"({wrong} wrong){several and f'; {several}'}"
    )


def summary_lines(dataset: Dataset, evaluation: Evaluation) -> Iterator[str]:
    """Yields the lines to print: few, even with many classes."""
    yield summary(evaluation.metrics, len(dataset))
    scores = evaluation.scores
    if scores.mean_average_precision is not None:
        yield (
            f"balanced accuracy {scores.balanced_accuracy:.2%}, average precision "
            f"{scores.mean_average_precision:.2%}: means over the classes"
        )
    elif scores.is_uneven:
        yield (
            f"balanced accuracy {scores.balanced_accuracy:.2%}: the mean of the "
            "classes' recall, which differ in size"
        )
    yield ""
    yield from _class_lines(dataset.class_names, evaluation.confusion, scores)
    yield ""
    if evaluation.diagnosis is not None:
        yield from _routing_lines(evaluation.diagnosis)
    if evaluation.calibration is not None:
        yield from _calibration_lines(evaluation.calibration)
    if evaluation.by_rounds is not None:
        each = (f"{n}: {share:.2%}" for n, share in evaluation.by_rounds.items())
        of = "weights as they are"
        if evaluation.num_compared < len(dataset):
            of += f", {evaluation.num_compared} of the images"
        yield f"accuracy by rounds of routing, {of}: {', '.join(each)}"
    if evaluation.changed is not None:
        each = (f"{n}: {share:.2%}" for n, share in evaluation.changed.items())
        yield f"predictions that other rounds change: {', '.join(each)}"


# Name, key of the measure, and its meaning.
_MEASURES = (
    ("T-score", "t_score", "0: equal couplings, 1: a tree"),
    ("bonding", "bonding", "mean largest coupling where active"),
    ("dynamics", "dynamics", "0: one tree for all images"),
    ("D-score", "d_score", "largest deviation of an output"),
    ("alive inputs", "alive_rate", "not always shorter than 0.01"),
    ("active inputs", "active_rate", "with a coupling above 1.5 / J"),
    ("active of the alive", "active_rate_of_alive", "the same, without dead inputs"),
    ("dead inputs", "dead_inputs", "always shorter than 0.01"),
    ("saturated inputs", "saturated_inputs", "never shorter than 0.95"),
    ("never active inputs", "never_active_inputs", "no coupling above 1.5 / J"),
    ("dead outputs", "dead_outputs", "always shorter than 0.01"),
    ("saturated outputs", "saturated_outputs", "never shorter than 0.95"),
    ("starved outputs", "starved_outputs", "get under 0.1 / J"),
)


def _routing_lines(diagnosis: Diagnosis) -> Iterator[str]:
    """Yields each measure of the routing with its value and its meaning."""
    of = f"measured on {diagnosis.num_images} of the images"
    for name, measures in diagnosis.layers.items():
        i, j = diagnosis.sizes[name]
        yield f"routing of {name}, {i} to {j} capsules: {of}"
        for title, key, meaning in _MEASURES:
            value = measures[key]
            text = f"{value:.0f}" if key.endswith("puts") else f"{value:.4f}"
            yield f"  {title:21}{text:>9}  {meaning}"
    distinct, number = diagnosis.trees.num_distinct, diagnosis.trees.num_examples
    if number:
        trees = f"{sum(distinct.values())} of {diagnosis.num_images}"
        bits = f"{np.mean([*diagnosis.trees.entropy.values()]):.2f}"
        yield f"  {'distinct parse trees':21}{trees:>9}  couplings rounded to tenths"
        yield f"  {'parse-tree entropy':21}{bits:>9}  bits, mean of the classes"
    swapped = f"{diagnosis.uniform_accuracy:.2%}"
    instead = f"accuracy with equal couplings; {diagnosis.accuracy:.2%} with its own"
    yield f"  {'uniform swap':21}{swapped:>9}  {instead}"


def _calibration_lines(calibration: Calibration) -> Iterator[str]:
    pair = calibration.as_is, calibration.fitted
    errors = [float(one.expected_error) for one in pair]
    yield (
        f"calibration: confidence and accuracy differ by {errors[0]:.2%} as they are, "
        f"by {errors[1]:.2%} at temperature {calibration.temperature:.4f}, fitted on "
        f"{calibration.num_validation} validation images"
    )


def _class_lines(
    class_names: Sequence[str],
    confusion: Int[np.ndarray, "n n"] | None,
    scores: Scores,
) -> Iterator[str]:
    """Yields each class's scores and confusions; only the worst of many classes."""
    names = [shortened(name, 20) for name in class_names]
    wide = max(5, *map(len, names))
    head = f"{'label':{wide}} images precision  recall      F1"
    columns = [scores.precision, scores.recall, scores.f1]
    if scores.balanced is not None and scores.average_precision is not None:
        head += " balanced average precision"
        columns += [scores.balanced, scores.average_precision]
    is_table = confusion is not None
    is_table &= len(head) + 1 + (wide + 1) * len(names) <= _WIDEST_TABLE
    shown: Any = range(len(names))
    if len(names) > _MOST_LISTED:
        shown = np.argsort(scores.recall, kind="stable")[:_MOST_NAMED]  # NaN is last.
        yield f"the {len(shown)} of {len(names)} classes that were found least:"
    yield head + "  taken for" * is_table
    if is_table:
        yield " " * (len(head) + 1) + "".join(f" {name:>{wide}}" for name in names)
    for k in shown:
        row = f"{names[k]:{wide}} {scores.num_images[k]:6}"
        for column, width in zip(columns, (9, 7, 7, 8, 17), strict=False):
            row += f" {_share(float(column[k])):>{width}}"
        if confusion is not None and is_table:
            cells = "".join(f" {count or '.':>{wide}}" for count in confusion[k])
            row = f"{row} {cells}"
        yield row
    if confusion is None or is_table:
        return
    if commonest := commonest_confusions(confusion, _MOST_NAMED):
        yield ""
        yield "taken for others most often:"
        for label, taken, count in commonest:
            yield f"{count:6} x {names[label]} as {names[taken]}"


def _plain(value: float | int) -> float | int | None:
    return None if np.isnan(value) else value


def _share(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.2%}"


def record(
    runs: Sequence[Run], dataset: Dataset, evaluation: Evaluation
) -> dict[str, Any]:
    """Returns all numbers of an evaluation, the content of ``evaluation.json``."""
    by_rounds, confusion = evaluation.by_rounds or {}, evaluation.confusion
    names, scores = dataset.class_names, evaluation.scores
    is_small = len(names) <= MOST_KEPT_CLASSES
    by_class = {
        name: [_plain(value) for value in values.tolist()]
        for name, values in scores._asdict().items()
        if values is not None
    }
    means = {"balanced_accuracy": _plain(scores.balanced_accuracy)}
    if scores.mean_average_precision is not None:
        means["mean_average_precision"] = _plain(scores.mean_average_precision)
    commonest = []
    if confusion is not None:
        most = _MOST_NAMED if is_small else _MOST_KEPT_CONFUSIONS
        commonest = commonest_confusions(confusion, most)
    return {
        "data": {"name": dataset.name, **dataset.identity()},
        "runs": [{"path": str(run.workdir.path), "step": run.step} for run in runs],
        **evaluation.metrics.known(),
        **means,
        "classes": {
            class_name: {name: values[k] for name, values in by_class.items()}
            for k, class_name in enumerate(names)
        },
        "accuracy_by_rounds": {str(n): share for n, share in by_rounds.items()},
        "changed_by_rounds": {
            str(n): share for n, share in (evaluation.changed or {}).items()
        },
        **_routing_record(evaluation.diagnosis, names),
        **_calibration_record(evaluation.calibration),
        "confusion": None if confusion is None or not is_small else confusion.tolist(),
        "commonest_confusions": [
            {"label": names[label], "taken_for": names[taken], "images": count}
            for label, taken, count in commonest
        ],
        **provenance(),
    }


def _routing_record(
    diagnosis: Diagnosis | None, names: Sequence[str]
) -> dict[str, Any]:
    if diagnosis is None:
        return {}
    trees, entropy = diagnosis.trees, diagnosis.trees.entropy
    number, distinct = trees.num_examples, trees.num_distinct
    return {
        "routing": {
            name: dict(zip(("inputs", "outputs"), diagnosis.sizes[name], strict=True))
            | {key: _plain(value) for key, value in measures.items()}
            for name, measures in diagnosis.layers.items()
        },
        "parse_trees": {
            names[k]: {"images": number[k], "distinct": distinct[k], "bits": entropy[k]}
            for k in sorted(number)
        },
        "uniform_swap": {
            "accuracy": diagnosis.accuracy,
            "uniform_accuracy": diagnosis.uniform_accuracy,
        },
        "num_watched": diagnosis.num_images,
    }


def _calibration_record(calibration: Calibration | None) -> dict[str, Any]:
    if calibration is None:
        return {}
    return {
        "calibration": {
            "temperature": calibration.temperature,
            "num_validation": calibration.num_validation,
            "expected_error": float(calibration.fitted.expected_error),
            "expected_error_as_is": float(calibration.as_is.expected_error),
        }
    }
