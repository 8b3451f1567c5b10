"""The command ``capsjax``: ``capsjax train --config capsjax:mnist:smoke``.

``python -m capsjax`` is the same, where the command is not on the path.
"""

import importlib
import sys
from collections.abc import Sequence

from capsjax.runtime.console import answer, command, fail

COMMANDS = {
    "train": "train a network, or resume a run",
    "evaluate": "measure a trained network on the test images",
    "predict": "tell what pictures show",
    "report": "compare runs",
    "explore": "look inside a network, in a page",
    "export": "write a network for other programs",
}


@command("capsjax")
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the first argument names, and returns its exit code."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        answer("usage: capsjax COMMAND [options]", "")
        answer(*(f"  {one:9} {what}" for one, what in COMMANDS.items()), "")
        answer("capsjax COMMAND --help lists the options of a command.")
        answer("capsjax --version prints versions, devices and the cache's folder.")
        return 0
    if name == "--version":
        # Late: starts JAX's backend.
        from capsjax.storage.provenance import installation

        answer(*installation())
        return 0
    if name not in COMMANDS:
        fail(f"capsjax: error: {name!r} is no command: choose of {', '.join(COMMANDS)}")
        return 2
    run = importlib.import_module(f"capsjax.{name}").main
    # The training's flags begin with the program's name, like ``sys.argv``.
    return run(["capsjax train", *rest] if name == "train" else rest)


if __name__ == "__main__":
    sys.exit(main())
