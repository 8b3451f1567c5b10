"""What a trained network sees: ``python -m capsjax.predict --workdir DIR image.png``.

A picture is prepared as the run's own images were. A network of MNIST's digits gets
them light on dark, the longer side of what is drawn 20 of 28 pixels, the centre of mass
in the middle; where it is not plain whether a picture is dark on light, both are tried,
and the longer capsule counts. Every other network gets the middle of the picture,
scaled. Of a folder all pictures are read, those in its subfolders too.
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
from capsjax.runtime.compile_cache import keep_compiled_programs
from capsjax.runtime.console import answer, command, fail, json_text, printable, warn
from capsjax.runtime.devices import require_devices
from capsjax.runtime.paths import expanded
from capsjax.storage.checkpoints import CheckpointError
from capsjax.storage.files import WorkdirError
from capsjax.storage.run import load_run

_NAME = "capsjax.predict"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        _NAME,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files or folders")
    parser.add_argument("--workdir", required=True, help="the folder of a trained run")
    parser.add_argument(
        "--invert",
        action=argparse.BooleanOptionalAction,
        help="it is dark on light (or is not); told by the image's edge if not said",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    return parser


@command(_NAME, WorkdirError, CheckpointError)
def main(argv: Sequence[str] | None = None) -> int:
    """The command line: predicts, and returns the exit code."""
    arguments = _parser().parse_args(argv)
    keep_compiled_programs()
    require_devices()
    run = load_run(arguments.workdir)
    if arguments.invert is not None and not run.preparation.is_drawn:
        option = "--invert" if arguments.invert else "--no-invert"
        raise WorkdirError(
            f"{option} is for networks of MNIST's digits: that of {arguments.workdir} "
            "takes pictures as they are."
        )
    files, bad = _find_files(arguments.images)
    with _json_array() if arguments.json else _table(files) as write:
        for path in bad:
            fail(f"{_NAME}: error: the folder {path} has no pictures.")
        # One after the other, so that large ones need not fit in memory together.
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
    """The files that are given and those within folders; and folders without any."""
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
    """Prints a line for each answer, as soon as it is there."""
    wide = max(len(printable(name)) for name in ["image", *files])
    is_begun = False

    def write(told: dict[str, Any]) -> None:
        nonlocal is_begun
        kind = numbers_name(told)
        if not is_begun:
            head = {"lengths": "longest capsules", "probabilities": "most probable"}
            answer(f"{'image':{wide}}  {head[kind]:18}  answer")
            is_begun = True
        longest = list(told[kind].items())[:3]
        lengths = "  ".join(f"{name} {length:.2f}" for name, length in longest)
        answer(f"{printable(told['file']):{wide}}  {lengths:18}  {told['verdict']}")

    yield write


@contextlib.contextmanager
def _json_array() -> Iterator[Writer]:
    """Prints an object for each answer, in an array that is valid however it ends."""
    comma = ""

    def write(told: dict[str, Any]) -> None:
        nonlocal comma
        lines = textwrap.indent(json_text(told, indent=2), "  ").split("\n")
        # The line break comes first: what is there is whole before the next begins.
        answer(comma, *lines, end="")
        comma = ","

    answer("[", end="")
    try:
        yield write
    finally:
        answer("", "]")


if __name__ == "__main__":
    sys.exit(main())
