"""Looks inside a network: ``python -m capsjax.explore [--workdir RUN]``.

Writes one HTML file, with the network inside, and opens it in a browser. Draw a digit
and watch the class capsules, what they would draw, and how the routing agrees on them.
The file needs no server and no connection: send it to anybody. Without ``--workdir`` it
shows the network of MNIST's digits that comes with capsjax.
"""

import argparse
import sys
import webbrowser
from collections.abc import Sequence

from capsjax.explorer.page import ExplorerError, make_page
from capsjax.runtime.compile_cache import keep_compiled_programs
from capsjax.runtime.console import answer, command, warn
from capsjax.runtime.devices import require_devices
from capsjax.storage.checkpoints import CheckpointError
from capsjax.storage.files import WorkdirError
from capsjax.storage.pretrained import DIGITS
from capsjax.storage.run import load_run
from capsjax.training.command_line import Once, UsageError, add_experiment, experiment


@command("capsjax.explore", ExplorerError, WorkdirError, CheckpointError, UsageError)
def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, writes the page, and returns the exit code."""
    parser = argparse.ArgumentParser(
        "capsjax.explore",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--workdir",
        action=Once,
        default=DIGITS,
        metavar="RUN",
        help="the folder of a trained run; default: the network for digits that comes "
        "with capsjax",
    )
    parser.add_argument(
        "--output",
        action=Once,
        default="explorer.html",
        metavar="FILE",
        help="the page to write",
    )
    parser.add_argument(
        "--no-open", action="store_true", help="write the page, open no browser"
    )
    add_experiment(parser)
    arguments = parser.parse_args(argv)
    keep_compiled_programs()
    require_devices()
    run = load_run(arguments.workdir, config=experiment(arguments.config))
    page = make_page(run)
    if page.note:
        warn(page.note)
    path = page.write(arguments.output)
    answer(f"{path} shows {run.workdir.path}; it needs no connection and no server")
    if not arguments.no_open:
        webbrowser.open(path.as_uri())
    return 0


if __name__ == "__main__":
    sys.exit(main())
