"""Runs side by side: ``python -m capsjax.report runs/mnist-*``.

Runs of one recipe are gathered over their seeds: mean and sample standard deviation of
the test accuracy, of the last network and of the best by validation loss; and of the
latter the share of the classes that were found, where an image shows several. They must
agree in everything but the seed.

``--average data.path`` gathers over that field too, as over the folders of a cross
validation; ``--by model.num_iterations`` makes a row for each value of a field. Runs in
which a setting changed on the way are gathered only with those in which it did alike.
Of runs that were not tested the validation accuracy is told.
"""

import argparse
import sys
from collections.abc import Sequence

from capsjax.analysis.comparison import gather, name_of, notes, read_run, table
from capsjax.runtime.console import answer, command
from capsjax.storage.files import WorkdirError


@command("capsjax.report", WorkdirError, ValueError)
def main(argv: Sequence[str] | None = None) -> int:
    """The command line: prints the table, and returns the exit code."""
    parser = argparse.ArgumentParser(
        "capsjax.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workdirs", nargs="+", metavar="DIR", help="folders of runs")
    parser.add_argument("--figure", help="file to draw the validation curves into")
    for name, what in (
        ("average", "gather runs that differ in this field too, data.path say"),
        ("by", "make a row for each value of this field"),
    ):
        parser.add_argument(
            f"--{name}", action="append", default=[], metavar="FIELD", help=what
        )
    arguments = parser.parse_args(argv)
    runs = [read_run(path) for path in arguments.workdirs]
    groups = gather(runs, average=arguments.average, by=arguments.by)
    try:
        answer(*table(groups, arguments.by).splitlines(), *notes(groups))
    finally:
        if arguments.figure:
            from capsjax.analysis import plots

            curves = {
                name_of(row): [run.curve for run in groups[row]] for row in groups
            }
            plots.save(plots.validation_curves(curves), arguments.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
