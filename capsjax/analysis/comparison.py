"""Compares runs in a table, averaged over their seeds."""

import itertools
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from capsjax import config as configs
from capsjax.runtime.console import shortened
from capsjax.storage import history
from capsjax.storage.files import WorkdirError
from capsjax.storage.workdir import Workdir, differences

# Fields without influence on the trained network, besides chance.
_INDIFFERENT = ("seed", "eval_batch_size", *configs.WITHOUT_EFFECT)

# Heads of the columns that only some runs have.
_OPTIONAL = {
    "found": "classes found",
    "labels_right": "labels right",
    "balanced": "balanced accuracy",
    "average_precision": "average precision",
}


class RunSummary(NamedTuple):
    """The stored facts of a finished run.

    Attributes:
        path: The run's folder.
        recipe: Experiment and variant.
        config: Content of ``config.json``.
        checksums: Checksums of the images, by split; empty if unknown.
        changes: Old values of settings that changed, with the step until which each
            held; empty if none matters.
        best: Test accuracy of the best network by validation loss; None if untested.
        last: Test accuracy of the last network, likewise.
        validated: Validation accuracy of the best network, if it was validated.
        found: Share of the classes that the best network found, if all images show the
            same number of several.
        labels_right: Share of the classes, in an image or not, on which the best
            network is right, if images show different numbers.
        balanced: Balanced accuracy of the best network on the test images, a mean over
            the classes; None unless ``capsjax.evaluate`` has computed it.
        average_precision: Average precision, likewise, if images show different
            numbers of classes.
        epochs: Number of finished epochs.
        seconds: Time spent in steps and evaluations.
        num_parameters: Number of parameters.
        curve: Epoch and accuracy of every validation.
    """

    path: pathlib.Path
    recipe: str
    config: dict[str, Any]
    checksums: dict[str, str]
    changes: tuple[str, ...]
    best: float | None
    last: float | None
    validated: float | None
    found: float | None
    labels_right: float | None
    balanced: float | None
    average_precision: float | None
    epochs: int
    seconds: float
    num_parameters: int
    curve: list[tuple[int, float]]

    @property
    def needs_balance(self) -> bool:
        """True if the accuracy alone hides how a run does on rare classes."""
        weights = self.config["data"].get("class_weights", "none")
        return self.labels_right is not None or weights != "none"

    @property
    def lacks_scores(self) -> bool:
        """True if an evaluation would add columns to the table."""
        return self.needs_balance and self.best is not None and self.balanced is None


def read_run(path: str | pathlib.Path, own: configs.Config | None = None) -> RunSummary:
    """Reads a finished run.

    Args:
        path: The run's folder.
        own: The config of the run's experiment file, if it has classes of its own.

    Raises:
        WorkdirError: If the folder has no run, or the run has not ended.
    """
    workdir = Workdir(path)
    # Fields newer than the file get their defaults.
    config = configs.to_dict(workdir.read_config(own))
    if workdir.is_untrained:
        raise WorkdirError(
            f"{path} has no training to report on: its weights were saved by save_run. "
            "capsjax.evaluate measures them."
        )
    if not workdir.result.exists():
        raise WorkdirError(f"{path} has not ended: it has no result.json.")
    result = workdir.read_json(workdir.result)
    lines = [] if workdir.is_shared else workdir.read_metrics("validation")
    try:
        is_tested = result["test"] is not None
        best, last = (
            (result[name] if is_tested else {}).get("accuracy")
            for name in ("test", "test_of_last")
        )
        curve = [
            (line["epoch"], line["accuracy"])
            for line in lines
            if line["kind"] == "validation"
        ]
        validation = result.get("validation") or {}
        checksums = _checksums(workdir)
        scores = _scores(workdir, (result["test"] or {}).get("step"), checksums)
        run = RunSummary(
            path=workdir.path,
            recipe="-".join(filter(None, (config["experiment"], config["variant"]))),
            config=config,
            checksums=checksums,
            changes=_changes(history.read(workdir), config),
            best=best,
            last=last,
            validated=validation.get("accuracy"),
            found=(result["test"] or {}).get("label_accuracy"),
            labels_right=(result["test"] or {}).get("per_label_accuracy"),
            balanced=scores.get("balanced_accuracy"),
            average_precision=scores.get("mean_average_precision"),
            epochs=result.get("epochs_done", result["num_epochs"]),
            seconds=result["seconds"],
            num_parameters=result["num_parameters"],
            curve=curve,
        )
        is_extended = result["num_epochs"] < config["num_epochs"]
        # Raises if a value is no number: a damaged file may hold anything.
        numbers: list[Any] = [run.seconds, run.num_parameters]
        numbers += [run.best, run.last] if is_tested else []
        numbers += [] if run.validated is None else [run.validated]
        math.fsum(numbers)
        math.fsum(number for point in run.curve for number in point)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise WorkdirError(f"{path} is damaged: {error!r}.") from error
    if is_extended:
        raise WorkdirError(f"{path} has not ended: its config has more epochs.")
    return run


def _checksums(workdir: Workdir) -> dict[str, str]:
    try:
        splits = workdir.read_json(workdir.dataset)["splits"]
        return {
            name: str(split.get("checksum") or split["fingerprint"])
            for name, split in splits.items()
        }
    except (WorkdirError, KeyError, TypeError, AttributeError):
        return {}  # The file is missing, damaged or too old.


def _scores(
    workdir: Workdir, step: int | None, checksums: Mapping[str, str]
) -> dict[str, float]:
    """Reads the scores of ``evaluation.json``.

    Args:
        workdir: The run's folder.
        step: The step of the tested network.
        checksums: Checksums of the run's images, by split.

    Returns:
        The known scores by name; none if the file is missing or damaged, or is on
        another step or other images.
    """
    try:
        about = workdir.read_json(workdir.figures / "evaluation.json")
        is_own = [one["step"] for one in about["runs"]] == [step]
        is_own &= about["data"]["checksum"] == checksums["test"]
    except (WorkdirError, KeyError, TypeError):
        return {}
    names = ("balanced_accuracy", "mean_average_precision")
    known = {name: about.get(name) for name in names if is_own}
    return {name: one for name, one in known.items() if isinstance(one, float)}


def _changes(
    stages: Sequence[history.Stage], config: Mapping[str, Any]
) -> tuple[str, ...]:
    """Describes the changes of settings that matter during the run."""
    matters = [name for name in configs.RECORDED if name not in _INDIFFERENT]
    if config["optimizer"]["schedule"] != "cosine":
        matters.remove("num_epochs")  # A step does not depend on the steps after it.
    changes = []
    for before, after in itertools.pairwise(stages):
        changed = [
            f"{name} {before[name]} until step {after['step']}"
            for name in matters
            if before.get(name) != after.get(name) and name in before
        ]
        changes += [", ".join(changed)] * bool(changed)
    return tuple(changes)


def value_of(config: Mapping[str, Any], field: str) -> Any:
    """Returns the value of a field, named as on the command line: ``data.path``.

    Raises:
        WorkdirError: If the field does not exist, with the names of existing ones.
    """
    value: Any = config
    path = "config"
    for name in field.removeprefix("config.").split("."):
        if not isinstance(value, dict) or name not in value:
            there = f" It has {', '.join(value)}." if isinstance(value, dict) else ""
            raise WorkdirError(f"{path} has no field {name}.{there}")
        value, path = value[name], f"{path}.{name}"
    if isinstance(value, dict):
        raise WorkdirError(f"{path} is a section: name one of {', '.join(value)}.")
    return tuple(value) if isinstance(value, list) else value


class Row(NamedTuple):
    """The common properties of the runs in a row of the table.

    Attributes:
        recipe: Their recipe.
        by: Their values of the fields named by ``--by``.
        changes: Their changes of settings, as in :class:`RunSummary`.
    """

    recipe: str
    by: tuple[Any, ...] = ()
    changes: tuple[str, ...] = ()


def gather(
    runs: Sequence[RunSummary],
    *,
    average: Sequence[str] = (),
    by: Sequence[str] = (),
) -> dict[Row, list[RunSummary]]:
    """Groups runs into rows.

    Args:
        runs: The runs, in any order.
        average: Fields besides the seed in which runs in one row may differ.
        by: Fields whose values divide a recipe into rows.

    Raises:
        WorkdirError: If runs in one row differ in another field, or in nothing.
    """
    ignored = {*_INDIFFERENT, *(field.removeprefix("config.") for field in average)}
    groups: dict[Row, list[RunSummary]] = {}
    for run in runs:
        values = tuple(value_of(run.config, field) for field in by)
        group = groups.setdefault(Row(run.recipe, values, run.changes), [])
        if group:
            first = group[0]
            is_same_data = first.checksums and first.checksums == run.checksums
            different = [
                line
                for name, line in differences(first.config, run.config)
                if name not in ignored and not (is_same_data and name in configs.PLACES)
            ]
            if different:
                raise WorkdirError(
                    f"{first.path} and {run.path} are both {run.recipe}, but can't "
                    f"be averaged: {'; '.join(different)}. Report on each alone, or "
                    "name the field after --by (a row for each value) or --average."
                )
        for other in group:
            if all(
                value_of(other.config, field) == value_of(run.config, field)
                for field in ("seed", *average)
            ):
                also = "".join(
                    f", {field} {value_of(run.config, field)}" for field in average
                )
                raise WorkdirError(
                    f"{other.path} and {run.path} have the same seed, "
                    f"{run.config['seed']}{also}: they are no two samples."
                )
        group.append(run)
    return dict(sorted(groups.items(), key=lambda item: _order(item[0], groups)))


def _order(row: Row, rows: Mapping[Row, Any]) -> tuple[Any, ...]:
    """Sorts by first appearance of the recipe, then by value, numbers as numbers."""
    first = [other.recipe for other in rows].index(row.recipe)
    values = [
        (0, value, "") if isinstance(value, int | float) else (1, 0, str(value))
        for value in row.by
    ]
    return first, values, len(row.changes), row.changes


def _mean(values: Sequence[float | None]) -> str:
    """Returns mean and deviation in percent, or "" if a value is unknown."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return ""
    mean = f"{100 * statistics.mean(known):.2f}"
    if len(known) < 2:
        return mean
    return f"{mean} ± {100 * statistics.stdev(known):.2f}"


def _cell(value: Any) -> str:
    return shortened(str(value), 60).replace("|", "\\|")


def table(groups: Mapping[Row, Sequence[RunSummary]], by: Sequence[str] = ()) -> str:
    """Returns a Markdown table.

    Args:
        groups: The runs of each row.
        by: The fields named by ``--by``, for the head.
    """
    heads = [
        "recipe",
        *by,
        "data",
        "seeds",
        "epochs",
        "test accuracy, best by validation, %",
    ]
    heads += ["test accuracy, last, %", "minutes", "parameters"]
    all_runs = [*itertools.chain.from_iterable(groups.values())]
    optional = [
        name
        for name in _OPTIONAL
        if any(getattr(run, name) is not None for run in all_runs)
    ]
    if "balanced" in optional and not any(run.needs_balance for run in all_runs):
        optional.remove("balanced")
    heads += [f"{_OPTIONAL[name]}, best by validation, %" for name in optional]
    if is_untested := any(run.best is None for run in all_runs):
        heads += ["validation accuracy, best, %"]
    is_text = 4 + len(by)
    rule = "| --- " * is_text + "| --: " * (len(heads) - is_text) + "|"
    lines = [f"| {' | '.join(map(_cell, heads))} |", rule]
    for row, group in groups.items():
        seeds = sorted(run.config["seed"] for run in group)
        seconds = statistics.mean(run.seconds for run in group)
        cells = [
            f"{row.recipe} ({'; '.join(row.changes)})" if row.changes else row.recipe,
            *row.by,
            group[0].config["data"]["name"],
            ", ".join(map(str, dict.fromkeys(seeds))),
            ", ".join(map(str, sorted({run.epochs for run in group}))),
            _mean([run.best for run in group]),
            _mean([run.last for run in group]),
            f"{seconds / 60:.1f}",
            f"{group[0].num_parameters:,}",
        ]
        cells += [_mean([getattr(run, name) for run in group]) for name in optional]
        if is_untested:
            cells.append(_mean([run.validated for run in group]))
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join(lines)


def notes(groups: Mapping[Row, Sequence[RunSummary]]) -> list[str]:
    """Returns the lines under the table."""
    lines = []
    if any(len(group) > 1 for group in groups.values()):
        lines.append("± is the sample standard deviation over the runs of a row.")
    changed = [row for row in groups if row.changes]
    for row in changed:
        paths = ", ".join(str(run.path) for run in groups[row])
        lines.append(
            f"Not averaged with runs in which nothing changed: {paths} "
            f"({'; '.join(row.changes)})."
        )
    runs = [*itertools.chain.from_iterable(groups.values())]
    lacking = [run for run in runs if run.lacks_scores]
    if lacking:
        lines.append(
            "For balanced accuracy, and average precision where images show several "
            f"classes, first: capsjax.evaluate --workdir {lacking[0].path}"
            f"{', and so on' * (len(lacking) > 1)}."
        )
    if any(run.best is None for run in runs):
        lines.append("Runs without a test accuracy were not tested (config.test).")
    return ["", *lines] if lines else []


def name_of(row: Row) -> str:
    """Names a row by its recipe, values and changes."""
    return ", ".join(map(str, (row.recipe, *row.by, *row.changes)))
