"""An evaluation as lines to print and as a record to keep."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from capsjax.analysis.confusion import commonest_confusions
from capsjax.analysis.evaluation import (
    MOST_KEPT_CLASSES,
    Evaluation,
    Scores,
    class_scores,
)
from capsjax.analysis.inspection import DEAD, SATURATED
from capsjax.data import Dataset
from capsjax.runtime.console import shortened
from capsjax.storage.provenance import provenance
from capsjax.storage.run import Run
from capsjax.training.objective import (
    Metrics,
)

_WIDEST_TABLE = 160  # Characters; the confusions of a wider one become words.
_MOST_LISTED = 30  # Classes, each with its line.
_MOST_NAMED = 10  # Classes or confusions, in words.
_MOST_KEPT_CONFUSIONS = 10_000  # Where the table is too large to keep.


def summary(metrics: Metrics, num_images: int) -> str:
    """Returns loss and accuracy in words."""
    wrong = round(num_images * (1 - metrics.accuracy))
    several = ""
    if metrics.label_accuracy is not None:
        several = f"; {metrics.label_accuracy:.2%} of the classes found"
    return (
        f"loss {metrics.loss:.6f}, accuracy {metrics.accuracy:.2%} "
        f"({wrong} wrong){several}"
    )


def summary_lines(dataset: Dataset, evaluation: Evaluation) -> Iterator[str]:
    """Yields the lines to print: few, even with many classes."""
    yield summary(evaluation.metrics, len(dataset))
    scores = class_scores(evaluation.confusion)
    if scores.is_uneven:
        yield (
            f"balanced accuracy {scores.balanced_accuracy:.2%}: the mean of the "
            "classes' recall, which differ in size"
        )
    yield ""
    yield from _class_lines(dataset.class_names, evaluation.confusion, scores)
    yield ""
    for what, lengths in (
        ("primary", evaluation.primary),
        ("class", evaluation.classes),
    ):
        if lengths is not None:
            yield (
                f"{len(lengths.longest)} {what} capsules: {lengths.num_dead} dead "
                f"(never longer than {DEAD}), {lengths.num_saturated} saturated (never "
                f"shorter than {SATURATED})"
            )
    if evaluation.by_rounds is not None:
        each = (f"{n}: {share:.2%}" for n, share in evaluation.by_rounds.items())
        of = "weights as they are"
        if evaluation.num_compared < len(dataset):
            of += f", {evaluation.num_compared} of the images"
        yield f"accuracy by rounds of routing, {of}: {', '.join(each)}"


def _class_lines(
    class_names: Sequence[str], confusion: Int[np.ndarray, "n n"], scores: Scores
) -> Iterator[str]:
    """Yields each class's scores and confusions; only the worst of many classes."""
    names = [shortened(name, 20) for name in class_names]
    wide = max(5, *map(len, names))
    head = f"{'label':{wide}} images precision  recall      F1"
    is_table = len(head) + 1 + (wide + 1) * len(names) <= _WIDEST_TABLE
    shown: Any = range(len(names))
    if len(names) > _MOST_LISTED:
        shown = np.argsort(scores.recall, kind="stable")[:_MOST_NAMED]  # NaN is last.
        yield f"the {len(shown)} of {len(names)} classes that were found least:"
    yield head + "  taken for" * is_table
    if is_table:
        yield " " * (len(head) + 1) + "".join(f" {name:>{wide}}" for name in names)
    shares = [[_share(value) for value in values.tolist()] for values in scores[1:]]
    for k in shown:
        precision, recall, f1 = (column[k] for column in shares)
        row = f"{names[k]:{wide}} {scores.num_images[k]:6} "
        row += f"{precision:>9} {recall:>7} {f1:>7}"
        if is_table:
            cells = "".join(f" {count or '.':>{wide}}" for count in confusion[k])
            row = f"{row} {cells}"
        yield row
    commonest = commonest_confusions(confusion, _MOST_NAMED)
    if not is_table and commonest:
        yield ""
        yield "taken for others most often:"
        for label, taken, count in commonest:
            yield f"{count:6} x {names[label]} as {names[taken]}"


def _share(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.2%}"


def record(
    runs: Sequence[Run], dataset: Dataset, evaluation: Evaluation
) -> dict[str, Any]:
    """Returns all numbers of an evaluation, the content of ``evaluation.json``."""
    by_rounds, confusion = evaluation.by_rounds or {}, evaluation.confusion
    is_small = len(confusion) <= MOST_KEPT_CLASSES
    names = dataset.class_names
    scores = class_scores(confusion)
    by_class = {
        name: [None if np.isnan(value) else float(value) for value in values]
        for name, values in scores._asdict().items()
    }
    return {
        "data": {"name": dataset.name, **dataset.identity()},
        "runs": [{"path": str(run.workdir.path), "step": run.step} for run in runs],
        **evaluation.metrics.known(),
        "balanced_accuracy": scores.balanced_accuracy,
        "classes": {
            class_name: {
                "num_images": int(scores.num_images[k]),
                **{name: by_class[name][k] for name in ("precision", "recall", "f1")},
            }
            for k, class_name in enumerate(dataset.class_names)
        },
        "accuracy_by_rounds": {str(n): share for n, share in by_rounds.items()},
        "confusion": confusion.tolist() if is_small else None,
        "commonest_confusions": [
            {"label": names[label], "taken_for": names[taken], "images": count}
            for label, taken, count in commonest_confusions(
                confusion, _MOST_NAMED if is_small else _MOST_KEPT_CONFUSIONS
            )
        ],
        **provenance(),
    }
