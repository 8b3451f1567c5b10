"""Classifies pictures: ``python -m capsjax.predict --workdir DIR image.png``.

Without ``--workdir`` the network for digits that comes with capsjax answers.

A picture is prepared like the run's own images. A network for MNIST's digits gets a
digit light on dark, its longer side 20 of 28 pixels, its centre of mass in the middle.
If foreground and background cannot be told apart, both ways are tried, and the longer
capsule counts. Whatever capsules are long, it is no digit if they draw something else.
Every other network gets the middle of the picture, scaled. All pictures
in a folder are read, and in its subfolders.
"""

import argparse
import contextlib
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from capsjax.analysis.verdicts import judge, numbers_name
from capsjax.data.images import ImageError, is_visible
from capsjax.losses import PRESENT
from capsjax.runtime.compile_cache import keep_compiled_programs
from capsjax.runtime.console import answer, command, fail, json_text, printable, warn
from capsjax.runtime.devices import require_devices
from capsjax.runtime.paths import expanded
from capsjax.storage.checkpoints import CheckpointError
from capsjax.storage.files import WorkdirError
from capsjax.storage.pretrained import DIGITS
from capsjax.storage.run import load_run
from capsjax.training.command_line import (
    Once,
    UsageError,
    add_experiment,
    experiment,
)

_NAME = "capsjax.predict"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        _NAME,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files or folders")
    parser.add_argument(
        "--workdir",
        action=Once,
        default=DIGITS,
        help="the folder of a trained run; default: the network for digits that comes "
        "with capsjax",
    )
    parser.add_argument(
        "--invert",
        action=argparse.BooleanOptionalAction,
        help="the picture is dark on light (or not); default: judged by its edge",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    add_experiment(parser)
    return parser


@command(_NAME, WorkdirError, CheckpointError, UsageError)
def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, predicts, and returns the exit code."""
    arguments = _parser().parse_args(argv)
    keep_compiled_programs()
    require_devices()
    run = load_run(arguments.workdir, config=experiment(arguments.config))
    if arguments.invert is not None and not run.preparation.is_drawn:
        option = "--invert" if arguments.invert else "--no-invert"
        raise WorkdirError(
            f"{option} is for networks of MNIST's digits: the network of "
            f"{arguments.workdir} takes pictures as they are."
        )
    files, bad = _find_files(arguments.images)
    with _json_array() if arguments.json else _table(files) as write:
        for path in bad:
            fail(f"{_NAME}: error: the folder {path} has no pictures.")
        # One by one: large pictures may not fit in memory together.
        for file in files:
            notes = []
            try:
                write(judge(run, file, invert=arguments.invert, notes=notes))
            except ImageError as error:
                bad.append(file)
                fail(f"{_NAME}: error: {error}")
            for note in notes:
                warn(note)
    return 1 if bad else 0


def _find_files(paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the given files and the files in given folders; and empty folders."""
    files, empty = [], []
    for path in paths:
        if not os.path.isdir(expanded(path)):
            files.append(path)
            continue
        inside = []
        for folder, folders, names in os.walk(expanded(path), onerror=_raise):
            folders[:] = sorted(filter(is_visible, folders))
            inside += [os.path.join(folder, n) for n in sorted(names) if is_visible(n)]
        files += inside
        if not inside:
            empty.append(path)
    return files, empty


def _raise(error: OSError) -> None:
    raise error


Writer = Callable[[dict[str, Any]], None]


@contextlib.contextmanager
def _table(files: Sequence[str]) -> Iterator[Writer]:
    """Prints a line for each answer at once."""
    wide = max(len(printable(name)) for name in ["image", *files])
    is_begun = False

    def write(entry: dict[str, Any]) -> None:
        nonlocal is_begun
        kind = numbers_name(entry)
        if not is_begun:
            head = {"lengths": "longest capsules", "probabilities": "most probable"}
            answer(f"{'image':{wide}}  {head[kind]:18}  answer")
            is_begun = True
        longest = list(entry[kind].items())[:3]
        lengths = "  ".join(f"{name} {length:.2f}" for name, length in longest)
        line = f"{printable(entry['file']):{wide}}  {lengths:18}  {entry['verdict']}"
        if entry.get("num_present") == 0:
            # 0.4968 stands there as 0.50.
            reason = f"none reaches {PRESENT:g}"
            if longest[0][1] >= PRESENT:
                reason = f"capsule {longest[0][0]} draws something else"
            line += f" ({reason})"
        answer(line)

    yield write


@contextlib.contextmanager
def _json_array() -> Iterator[Writer]:
    """Prints an object for each answer, in an array that stays valid after an error."""
    comma = ""

    def write(entry: dict[str, Any]) -> None:
        nonlocal comma
        lines = textwrap.indent(json_text(entry, indent=2), "  ").split("\n")
        # The line break comes first: a printed object is whole before the next begins.
        answer(comma, *lines, end="")
        comma = ","

    answer("[", end="")
    try:
        yield write
    finally:
        answer("", "]")


if __name__ == "__main__":
    sys.exit(main())
