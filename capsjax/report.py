"""Runs side by side: ``python -m capsjax.report runs/mnist-*``.

Runs of one recipe are gathered over their seeds: mean and sample standard deviation of
the test accuracy, of the last network and of the best by validation loss; and of the
latter the share of the classes that were found, where an image shows several. They must
agree in everything but the seed.
"""

import argparse
import itertools
import math
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from capsjax import config as configs
from capsjax.workdir import Workdir, WorkdirError, differences

# What does not change what is learnt.
_INDIFFERENT = ("seed", "eval_batch_size", "max_gigabytes", "tensorboard")


class Finished(NamedTuple):
    """What is on disk of a run that has ended.

    Attributes:
        path: Its folder.
        recipe: Experiment and variant.
        config: Of ``config.json``.
        best: Test accuracy of the best network by validation loss.
        last: Test accuracy of the last.
        found: Share of the classes that the best found, where an image shows several.
        epochs: Done.
        seconds: Spent in steps and evaluations.
        num_parameters: How many numbers the weights are.
        curve: Epoch and accuracy of every validation.
    """

    path: pathlib.Path
    recipe: str
    config: dict[str, Any]
    best: float
    last: float
    found: float | None
    epochs: int
    seconds: float
    num_parameters: int
    curve: list[tuple[int, float]]


def read_run(path: str | pathlib.Path) -> Finished:
    """Reads a run that has ended.

    Raises:
        WorkdirError: If there is none in the folder, or it has not ended.
    """
    workdir = Workdir(path)
    # With the defaults of the fields that were invented after it was written.
    config = configs.to_dict(workdir.read_config())
    if not workdir.result.exists():
        raise WorkdirError(f"{path} has not ended: there is no result.json in it.")
    result, lines = workdir.read_json(workdir.result), workdir.read_metrics()
    try:
        run = Finished(
            path=pathlib.Path(path),
            recipe="-".join(filter(None, (config["experiment"], config["variant"]))),
            config=config,
            best=result["test"]["accuracy"],
            last=result["test_of_last"]["accuracy"],
            found=result["test"].get("label_accuracy"),
            epochs=result.get("epochs_done", result["num_epochs"]),
            seconds=result["seconds"],
            num_parameters=result["num_parameters"],
            curve=[
                (line["epoch"], line["accuracy"])
                for line in lines
                if line["kind"] == "validation"
            ],
        )
        is_extended = result["num_epochs"] < config["num_epochs"]
        # That they are numbers: of a damaged file anything may come.
        math.fsum([run.best, run.last, run.seconds, run.num_parameters])
        math.fsum(number for point in run.curve for number in point)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise WorkdirError(f"{path} is damaged: {error!r}.") from error
    if is_extended:
        raise WorkdirError(f"{path} has not ended: it goes on for more epochs.")
    return run


def gather(runs: Sequence[Finished]) -> dict[str, list[Finished]]:
    """Groups runs by recipe.

    Raises:
        WorkdirError: If runs of one recipe differ in more than the seed, or have the
            same seed.
    """
    groups: dict[str, list[Finished]] = {}
    for run in runs:
        group = groups.setdefault(run.recipe, [])
        if group:
            different = [
                line
                for name, line in differences(group[0].config, run.config)
                if name not in _INDIFFERENT
            ]
            if different:
                raise WorkdirError(
                    f"{group[0].path} and {run.path} are both {run.recipe}, but can't "
                    f"be averaged: {'; '.join(different)}. Report on them apart."
                )
        for other in group:
            if other.config["seed"] == run.config["seed"]:
                raise WorkdirError(
                    f"{other.path} and {run.path} have the same seed, "
                    f"{run.config['seed']}: they are no two samples."
                )
        group.append(run)
    return groups


def _mean_and_deviation(values: Sequence[float]) -> str:
    mean = f"{100 * statistics.mean(values):.2f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {100 * statistics.stdev(values):.2f}"


def table(groups: dict[str, list[Finished]]) -> str:
    """A Markdown table with one row a recipe."""
    heads = [
        "recipe",
        "data",
        "seeds",
        "epochs",
        "test accuracy, best by validation, %",
    ]
    heads += ["test accuracy, last, %", "minutes", "parameters"]
    runs = itertools.chain.from_iterable(groups.values())
    if has_several := any(run.found is not None for run in runs):
        heads += ["classes found, best by validation, %"]
    rule = "| --- " * 4 + "| --: " * (len(heads) - 4) + "|"
    lines = [f"| {' | '.join(heads)} |", rule]
    for recipe, group in groups.items():
        seeds = sorted(run.config["seed"] for run in group)
        seconds = statistics.mean(run.seconds for run in group)
        cells = [
            recipe,
            group[0].config["data"]["name"],
            ", ".join(map(str, seeds)),
            ", ".join(map(str, sorted({run.epochs for run in group}))),
            _mean_and_deviation([run.best for run in group]),
            _mean_and_deviation([run.last for run in group]),
            f"{seconds / 60:.1f}",
            f"{group[0].num_parameters:,}",
        ]
        if has_several:
            found = [run.found for run in group if run.found is not None]
            cells.append(_mean_and_deviation(found) if found else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: prints the table, and returns the exit code."""
    parser = argparse.ArgumentParser(
        "capsjax.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workdirs", nargs="+", metavar="DIR", help="folders of runs")
    parser.add_argument("--figure", help="file to draw the validation curves into")
    arguments = parser.parse_args(argv)
    try:
        groups = gather([read_run(path) for path in arguments.workdirs])
        print(table(groups))
        if any(len(group) > 1 for group in groups.values()):
            print("\n± is the sample standard deviation over the seeds.")
        if arguments.figure:
            from capsjax import plots

            curves = {r: [run.curve for run in g] for r, g in groups.items()}
            plots.save(plots.validation_curves(curves), arguments.figure)
    except (WorkdirError, OSError, ValueError) as error:
        print(f"capsjax.report: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
