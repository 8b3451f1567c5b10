"""The table "the same network, another routing", made from finished runs.

A row of the table has the runs of one variant of ``experiments/routings.py``. The files
beside this repository's table have a JSON object a line: a finished run reduced to its
numbers (``reduced``), or the speed of a row (``benchmarks/routings_speed.py``).
"""

import json
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from capsjax.analysis.comparison import read_run
from capsjax.storage.files import WorkdirError
from capsjax.storage.workdir import Workdir, differences

# The test images, and the same after random affine maps.
PLAIN, AFFINE = "mnist", "affine_mnist_28"
# Differences with a larger p are called noise.
SIGNIFICANT = 0.05
# Parts of an evaluation that are too large to keep, or name a folder.
_DROPPED = ("classes", "confusion", "commonest_confusions", "runs", "command")


class Column(NamedTuple):
    """A column of numbers.

    Attributes:
        head: Its head.
        value: Finds the number in a line of results; None if it is not there.
        form: How a number is printed.
        is_compared: True to compare the rows: a lower number is better.
    """

    head: str
    value: Callable[[Mapping[str, Any]], float | None]
    form: str = ".2f"
    is_compared: bool = False


def _at(*path: str, factor: float = 1.0) -> Callable[[Mapping[str, Any]], float | None]:
    def value(record: Mapping[str, Any]) -> float | None:
        for name in path:
            record = (record or {}).get(name)  # pyright: ignore[reportAssignmentType]
        return None if record is None else factor * record  # pyright: ignore

    return value


def _error(*path: str) -> Callable[[Mapping[str, Any]], float | None]:
    accuracy = _at(*path)

    def value(record: Mapping[str, Any]) -> float | None:
        right = accuracy(record)
        return None if right is None else 100 * (1 - right)

    return value


COLUMNS = (
    Column("parameters", _at("result", "num_parameters"), ",.0f"),
    Column("test error, %", _error("evaluations", PLAIN, "accuracy"), is_compared=True),
    Column(
        "affine error, %", _error("evaluations", AFFINE, "accuracy"), is_compared=True
    ),
    Column(
        "error with uniform couplings, %",
        _error("evaluations", PLAIN, "routing", "uniform_swap", "accuracy"),
    ),
    Column("T-score", _at("evaluations", PLAIN, "routing", "t_score")),
    Column("dead, %", _at("evaluations", PLAIN, "routing", "dead", factor=100), ".1f"),
    Column(
        "starved, %", _at("evaluations", PLAIN, "routing", "starved", factor=100), ".1f"
    ),
    Column("images/s, training", _at("speed", "train_images_per_second"), ",.0f"),
    Column("images/s, inference", _at("speed", "images_per_second"), ",.0f"),
    Column(
        "temporary MB, training",
        _at("speed", "train_temporary_bytes", factor=1e-6),
        ",.0f",
    ),
)


def reduced(path: str | pathlib.Path) -> dict[str, Any]:
    """Reduces a finished run to a line of results: config, result and evaluations.

    Args:
        path: The run's folder, after ``capsjax.evaluate`` on each data set.

    Raises:
        WorkdirError: If the folder has no run, or the run has not ended.
    """
    config, workdir = read_run(path).config, Workdir(path)
    evaluations = {}
    for file in sorted(workdir.figures.rglob("evaluation.json")):
        about = workdir.read_json(file)
        kept = {name: one for name, one in about.items() if name not in _DROPPED}
        evaluations[about["data"]["name"]] = kept
    return {
        "row": config["variant"],
        "seed": config["seed"],
        "config": config,
        "result": workdir.read_json(workdir.result),
        "evaluations": evaluations,
    }


def read(paths: Sequence[str | pathlib.Path]) -> list[dict[str, Any]]:
    """Reads lines of results from files, and reduces the runs in folders.

    Raises:
        WorkdirError: If a file can't be read, or a folder has no finished run.
    """
    records = []
    for path in map(pathlib.Path, paths):
        if path.is_dir():
            records.append(reduced(path))
            continue
        try:
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            # The lines of other tables, like a search's, say nothing here.
            records += [line for line in lines if "result" in line or "speed" in line]
        except (OSError, ValueError, TypeError) as error:
            raise WorkdirError(f"{path} has no lines of results: {error}.") from error
    return records


def table(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the lines of a Markdown table, and notes under it.

    Args:
        records: Lines of results, as ``read`` returns them.

    Raises:
        WorkdirError: If there is no run, or the runs of a row differ in more than the
            seed, or in nothing.
    """
    rows = _by_row(records)
    values = {
        column.head: {
            row: [one for record in group if (one := column.value(record)) is not None]
            for row, group in rows.items()
        }
        for column in COLUMNS
    }
    columns = [one for one in COLUMNS if any(values[one.head].values())]
    heads = ["routing", "seeds", *(column.head for column in columns)]
    lines = [f"| {' | '.join(heads)} |", f"| --- | --- {'| --: ' * len(columns)}|"]
    for row, group in rows.items():
        seeds = sorted(one["seed"] for one in group if "result" in one)
        cells = [_cell(column, row, values[column.head]) for column in columns]
        lines.append(f"| {' | '.join([row, ', '.join(map(str, seeds)), *cells])} |")
    return [*lines, "", *_notes(lines)]


def _by_row(
    records: Sequence[Mapping[str, Any]],
) -> dict[str, list[Mapping[str, Any]]]:
    """Returns the lines of each row that has runs, in the order of the runs."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for run in (record for record in records if "result" in record):
        group = rows.setdefault(run["row"], [])
        what = f"runs of {run['row']}, seed {run['seed']}"
        if any(other["seed"] == run["seed"] for other in group):
            raise WorkdirError(f"two {what}: they are no two samples.")
        for name, line in (
            differences(group[0]["config"], run["config"]) if group else ()
        ):
            if name != "seed":
                raise WorkdirError(f"{what} and {group[0]['seed']} differ: {line}.")
        group.append(run)
    if not rows:
        raise WorkdirError("there is no finished run to make a table of.")
    for record in records:
        if "speed" in record and record["row"] in rows:
            rows[record["row"]].append(record)
    return rows


def _cell(column: Column, row: str, values: Mapping[str, Sequence[float]]) -> str:
    own = values[row]
    if not own:
        return ""
    text = format(statistics.mean(own), column.form)
    if not column.is_compared:
        return text
    if len(own) > 1:
        text += f" ± {statistics.stdev(own):{column.form}}"
    best = min(filter(None, values.values()), key=statistics.mean)
    if own is best:
        return f"**{text}**"
    p = p_value(own, best)
    if p is None:
        return f"{text} ?"
    return text if p < SIGNIFICANT else f"{text} ≈"


def p_value(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Returns the p of Welch's t-test of two means; None with a single number."""
    if min(len(a), len(b)) < 2:
        return None
    if statistics.stdev(a) == statistics.stdev(b) == 0:
        return float(statistics.mean(a) == statistics.mean(b))
    # Imported here: it takes half a second.
    from scipy import stats

    test: Any = stats.ttest_ind(a, b, equal_var=False)
    return float(test.pvalue)


def _notes(lines: Sequence[str]) -> list[str]:
    text = "\n".join(lines)
    meanings = {
        "**": "**Bold**: the lowest mean of its column.",
        "≈": "≈: within the noise. The difference from the lowest mean may be chance: "
        f"p of Welch's t-test over the seeds is at least {SIGNIFICANT}, not corrected "
        "for the number of rows.",
        "?": "?: one seed here or in the lowest mean. Nothing is known about chance.",
        "±": "±: the sample standard deviation over the seeds.",
    }
    return [meaning for mark, meaning in meanings.items() if mark in text]
