"""The plain recipe from start to end."""

from accelerator_parts.points import Part
from accelerator_parts.training import Trained, recipe, shrink

from capsjax.runtime.interrupt import Interrupted


def run(part: Part) -> None:
    part.need_accelerator()
    part.run({"mnist.py:plain, seed 0": lambda: plain(part)})


def plain(part: Part) -> dict:
    config = recipe()
    if part.quick:
        shrink(config)
        config.num_epochs = 2
    # Some seconds to save what it has; the parent waits no longer than the share.
    limit = max(1, part.seconds_left - 4)
    run = Trained(config, part.scratch / "plain", seconds=limit, limit=limit)
    validations = [row for row in run.rows if row["kind"] == "validation"]
    figures = {
        "num_epochs": config.num_epochs,
        "epochs_done": len(validations),
        "seconds": run.seconds,
        "compile_seconds": run.compile_seconds,
        "seconds_after_compilation": run.seconds - run.compile_seconds,
        "validation_accuracy": [row["accuracy"] for row in validations],
    }
    if isinstance(run.result, Interrupted):
        return figures | {"error": "interrupted: the part's time was over"}
    return figures | {"test": run.result["test"]}
