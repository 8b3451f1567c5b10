"""Compares runs in a table: ``python -m capsjax.report runs/mnist-*``.

Averages the runs of one recipe over their seeds. Prints mean and sample standard
deviation of the test accuracy, for the last network and for the best by validation
loss; for the latter also the share of the classes found, or of the labels right, if
images show several; and the validation accuracy, if runs were not tested. Runs with
class weights, or whose images show different numbers of classes, have a balanced
accuracy too, and an average precision, once ``capsjax.evaluate`` has computed them.
Runs of a recipe must agree in everything but the seed.

``--average data.path`` averages over that field too, for example over the folders of a
cross validation; ``--by model.routing.num_iterations`` makes a row for each value of a
field. ``--config`` may be given several times, for runs with classes of their own.
Runs whose settings changed are averaged only with runs of the same changes.

``--table routings`` compares the variants of ``experiments/routings.py`` instead. It
takes folders of runs, and files with a JSON object a line: runs reduced to their
numbers, and speeds, as ``benchmarks/results/routings`` has them.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence

from capsjax.analysis import routing_table
from capsjax.analysis.comparison import gather, name_of, notes, read_run, table
from capsjax.config import Config
from capsjax.runtime.console import answer, command
from capsjax.storage.files import WorkdirError
from capsjax.storage.workdir import Workdir
from capsjax.training.command_line import (
    Once,
    UsageError,
    add_experiment,
    experiment,
)


@command("capsjax.report", WorkdirError, UsageError, ValueError)
def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, prints the table, and returns the exit code."""
    parser = argparse.ArgumentParser(
        "capsjax.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workdirs", nargs="+", metavar="DIR", help="folders of runs")
    parser.add_argument(
        "--table",
        action=Once,
        choices=["routings"],
        help="make this table; DIR may then be a file of results, too",
    )
    parser.add_argument(
        "--figure", action=Once, help="file to draw the validation curves into"
    )
    for name, what in (
        ("average", "average runs that differ in this field too, e.g. data.path"),
        ("by", "make a row for each value of this field"),
    ):
        parser.add_argument(
            f"--{name}", action="append", default=[], metavar="FIELD", help=what
        )
    add_experiment(parser, action="append")
    arguments = parser.parse_args(argv)
    if arguments.table:
        answer(*routing_table.table(routing_table.read(arguments.workdirs)))
        return 0
    owns = [experiment(file) for file in arguments.config or [None]]
    runs = [read_run(path, _fitting(path, owns)) for path in arguments.workdirs]
    groups = gather(runs, average=arguments.average, by=arguments.by)
    try:
        answer(*table(groups, arguments.by).splitlines(), *notes(groups))
    finally:
        if arguments.figure is not None:
            from capsjax.analysis import plots

            curves = {
                name_of(row): [run.curve for run in groups[row]] for row in groups
            }
            plots.save(plots.validation_curves(curves), arguments.figure)
    return 0


def _fitting(path: str, owns: Sequence[Config | None]) -> Config | None:
    """Returns the config that has a run's own classes; the last one if none has."""
    for own in owns[:-1]:
        with contextlib.suppress(WorkdirError):
            Workdir(path).read_config(own)
            return own
    return owns[-1]


if __name__ == "__main__":
    sys.exit(main())
