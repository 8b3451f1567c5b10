"""The table "the same network, another routing", made from finished runs.

A row of the table has the runs of one variant of ``experiments/routings.py``. The files
beside this repository's table have a JSON object a line: a finished run reduced to its
numbers (``reduced``), or the speed of a row (``benchmarks/routings_speed.py``).
"""

import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from capsjax.analysis.comparison import read_run
from capsjax.storage.files import WorkdirError
from capsjax.storage.workdir import Workdir, differences

# The test images after random affine maps.
AFFINE = "affine_mnist_28"
# Differences with a larger p are called noise.
SIGNIFICANT = 0.05
# Parts of an evaluation that are too large to keep, or name a folder.
_DROPPED = ("classes", "confusion", "commonest_confusions", "runs", "command")


class Column(NamedTuple):
    """A column of numbers.

    Attributes:
        head: Its head.
        path: Place of the number in a line of results.
        form: How a number is printed.
        factor: Factor of the number.
        of: Name beside the number of the whole of which it is printed as a share, in
            percent.
        is_error: True for the share of wrong answers in percent, where the line has the
            accuracy.
        is_compared: True to compare the rows: a lower number is better.
    """

    head: str
    path: tuple[str, ...]
    form: str = ".2f"
    factor: float | int = 1
    of: str | None = None
    is_error: bool = False
    is_compared: bool = False

    def value(self, record: Mapping[str, Any]) -> float | None:
        """Returns the number in a line of results; None if it is not there."""
        found: Any = record
        beside: Any = {}
        for name in self.path:
            beside = found
            found = found.get(name) if isinstance(found, Mapping) else None
        if found is None:
            return None
        if self.of is not None:
            return 100 * found / beside[self.of]
        return 100 * (1 - found) if self.is_error else float(self.factor * found)


_LAYER = ("evaluations", "test", "routing", "class_caps")
COLUMNS = (
    Column("parameters", ("result", "num_parameters"), ",.0f"),
    Column(
        "test error, %", ("result", "test", "accuracy"), is_error=True, is_compared=True
    ),
    Column(
        "affine error, %",
        ("evaluations", AFFINE, "accuracy"),
        is_error=True,
        is_compared=True,
    ),
    Column(
        "error with equal couplings, %",
        ("evaluations", "test", "uniform_swap", "uniform_accuracy"),
        is_error=True,
    ),
    Column("T-score", (*_LAYER, "t_score")),
    Column("dead inputs, %", (*_LAYER, "dead_inputs"), ".1f", of="inputs"),
    Column("starved outputs, %", (*_LAYER, "starved_outputs"), ".1f", of="outputs"),
    Column("images/s, training", ("speed", "train_images_per_second"), ",.0f"),
    Column("images/s, inference", ("speed", "images_per_second"), ",.0f"),
    Column("temporary MB, training", ("speed", "train_temporary_bytes"), ",.0f", 1e-6),
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
        is_own = file.parent == workdir.figures
        evaluations["test" if is_own else file.parent.name] = {
            name: one
            for name, one in workdir.read_json(file).items()
            if name not in _DROPPED
        }
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
            lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
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
        row, seed = run["row"], run["seed"]
        group = rows.setdefault(row, [])
        for other in group:
            if other["seed"] == seed:
                raise WorkdirError(
                    f"two runs of {row}, seed {seed}: they are no two samples."
                )
        first = group[0] if group else run
        for name, line in differences(first["config"], run["config"]):
            if name != "seed":
                seeds = f"{first['seed']} and {seed}"
                raise WorkdirError(f"runs of {row}, seeds {seeds}, differ: {line}.")
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
