"""Writes a trained network for other programs: ``python -m capsjax.export``.

    python -m capsjax.export --workdir runs/mnist-seed0 --format safetensors

``safetensors`` is a folder to share: weights without code, their description and a
card. ``capsjax.load_run`` and every command open it as a run. Without ``--workdir`` the
network for digits that comes with capsjax is written.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from capsjax.runtime.compile_cache import keep_compiled_programs
from capsjax.runtime.console import answer, command
from capsjax.runtime.devices import require_devices
from capsjax.runtime.paths import expanded
from capsjax.storage.checkpoints import CheckpointError
from capsjax.storage.files import WorkdirError
from capsjax.storage.pretrained import DIGITS
from capsjax.storage.run import load_run
from capsjax.training.command_line import Once, UsageError, add_experiment, experiment


class Format(NamedTuple):
    """What a format takes; its module in ``capsjax.exporting`` has the same name.

    Attributes:
        options: Options of the command that its ``export`` takes.
        extra: What to install for it: ``pip install 'capsjax[EXTRA]'``; empty if
            capsjax has all that it needs.
    """

    options: tuple[str, ...] = ()
    extra: str = ""


FORMATS = {
    "safetensors": Format(("half", "licence", "note")),
    "onnx": Format(("half", "int8"), extra="onnx"),
    "stablehlo": Format(extra="export"),
}
_OPTIONS = {option for one in FORMATS.values() for option in one.options}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "capsjax.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--workdir",
        action=Once,
        default=DIGITS,
        help="the folder of a trained run; default: the network for digits that comes "
        "with capsjax",
    )
    parser.add_argument("--format", action=Once, required=True, choices=FORMATS)
    parser.add_argument(
        "--output",
        action=Once,
        help="the folder to write; default: exports/<run>-<format>",
    )
    for name, what in (
        ("half", "store weights in float16, which halves the file"),
        ("int8", "store weights in 8 bits"),
    ):
        parser.add_argument(f"--{name}", action="store_true", help=what)
    for name, what in (
        ("licence", "the weights' licence, for the card"),
        ("note", "one more paragraph for the card"),
    ):
        parser.add_argument(
            f"--{name}", action=Once, metavar="TEXT", default="", help=what
        )
    add_experiment(parser)
    return parser


@command("capsjax.export", WorkdirError, CheckpointError, UsageError, ValueError)
def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, exports, and returns the exit code."""
    arguments = _parser().parse_args(argv)
    name, form = arguments.format, FORMATS[arguments.format]
    given = {option: value for option in _OPTIONS if (value := vars(arguments)[option])}
    for option in given.keys() - {*form.options}:
        takers = [one for one in FORMATS if option in FORMATS[one].options]
        raise UsageError(
            f"--{option} is for --format {' or '.join(takers)}, not for {name}."
        )
    keep_compiled_programs()
    require_devices()
    run = load_run(arguments.workdir, config=experiment(arguments.config))
    folder = arguments.output
    if folder is None:
        folder = f"exports/{run.workdir.path.resolve().name}-{name}"
    try:
        module = importlib.import_module(f"capsjax.exporting.{name}")
        paths = module.export(run, expanded(folder), **given)
    except ModuleNotFoundError as error:
        if not form.extra:
            raise
        raise UsageError(
            f"--format {name} needs {error.name}: pip install 'capsjax[{form.extra}]'"
        ) from error
    answer(*(f"{path}  {path.stat().st_size:,} bytes" for path in paths))
    return 0


if __name__ == "__main__":
    sys.exit(main())
