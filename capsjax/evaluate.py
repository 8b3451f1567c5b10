"""Evaluates a run's best network on the test images, each counted exactly once.

    python -m capsjax.evaluate --workdir runs/mnist-seed0

prints losses, accuracy and confusions, and draws figures. Several runs form an
ensemble: the lengths of their class capsules (or their probabilities) are averaged.
``--data`` names another data set with the same classes and image shape: also a file of
arrays, a table of pictures, or a folder of IDX archives or of pictures with one
subfolder for each class. Its test split is evaluated, or all pictures if it has none.
"""

import argparse
import re
import shlex
import sys
from collections.abc import Sequence

from capsjax.analysis.evaluation import Evaluation, evaluate_ensemble, evaluate_run
from capsjax.analysis.images import load_test_set
from capsjax.analysis.summary import record, summary, summary_lines
from capsjax.data import Dataset
from capsjax.runtime.compile_cache import keep_compiled_programs
from capsjax.runtime.console import answer, command, warn
from capsjax.runtime.devices import require_devices
from capsjax.storage.checkpoints import CheckpointError
from capsjax.storage.files import WorkdirError, write_json
from capsjax.storage.run import Run, load_run
from capsjax.training.command_line import (
    Once,
    UsageError,
    add_experiment,
    experiment,
)

_LONGEST_NAME = 60  # Characters in a folder's name, which has at most 255 bytes.


@command("capsjax.evaluate", WorkdirError, CheckpointError, UsageError, ValueError)
def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, evaluates, draws, and returns the exit code."""
    parser = argparse.ArgumentParser(
        "capsjax.evaluate",
        description="Evaluates a run's best network on the test images.",
    )
    parser.add_argument(
        "--workdir",
        action=Once,
        nargs="+",
        required=True,
        metavar="DIR",
        help="the folder of a trained run; several form an ensemble",
    )
    parser.add_argument(
        "--data",
        action=Once,
        metavar="NAME",
        help="another data set with the same image shape and classes: its name, its "
        "folder, FILE.npz or FILE.csv",
    )
    parser.add_argument(
        "--no-figures", action="store_true", help="only print, write nothing"
    )
    add_experiment(parser)
    arguments = parser.parse_args(argv)
    # Load runs and images.
    keep_compiled_programs()
    require_devices()
    own = experiment(arguments.config)
    runs = [load_run(path, config=own) for path in arguments.workdir]
    dataset = load_test_set(runs, arguments.data)
    answer(f"{len(dataset)} test images of {dataset.name}")
    for note in dataset.notes:
        warn(note)
    for run in runs if arguments.data is None else ():
        if problem := run.workdir.other_images({"test": dataset}):
            warn(f"{run.workdir.path} {problem}")
    # Evaluate each run, and all together.
    members, lines = [], []
    for run in runs:
        is_alone = len(runs) == 1
        members.append(evaluate_run(run, dataset, looks_inside=is_alone))
        origin = f"step {run.step}, learnt {run.config.data.name}"
        if run.workdir.is_untrained:
            origin = "weights of save_run"
        what = f"{run.workdir.path}, {origin}"
        result = summary(members[-1].metrics, len(dataset))
        lines.append(what if is_alone else f"{what}: {result}")
    evaluation = members[0]
    if len(runs) > 1:
        lines.append(f"all {len(runs)} together:")
        evaluation = evaluate_ensemble(runs, dataset, members)
    # Print and write the results.
    written: list[str] = []
    try:
        answer(*lines, *summary_lines(dataset, evaluation))
    finally:  # Write the results even if the reader of the output has gone.
        if not arguments.no_figures:
            written = _keep(runs, dataset, evaluation, arguments.data, argv)
    answer(*written)
    return 0


def _keep(
    runs: Sequence[Run],
    dataset: Dataset,
    evaluation: Evaluation,
    data: str | None,
    argv: Sequence[str] | None,
) -> list[str]:
    """Writes the numbers and the figures; returns lines with their places."""
    folder = runs[0].workdir.figures
    if len(runs) > 1:
        folder /= "ensemble"
    if data is not None:
        folder /= _folder_name(data)
    folder.mkdir(parents=True, exist_ok=True)
    words = ["python", "-m", "capsjax.evaluate", *(argv or sys.argv[1:])]
    about = record(runs, dataset, evaluation) | {"command": shlex.join(words)}
    write_json(folder / "evaluation.json", about)
    lines = [f"{folder / 'evaluation.json'} has these numbers and their origin"]
    if len(runs) == 1:
        from capsjax.analysis import figures

        written = figures.draw(runs[0], dataset, evaluation, folder)
        lines.append(f"{len(written)} figures in {folder}")
    return lines


def _folder_name(data: str) -> str:
    """Returns a name for the folder of the results on another data set."""
    name = re.sub(r"[^\w.-]+", "-", data).strip(".-")
    # Nothing is left of "..", and the run's own results are in the folder above.
    return name[-_LONGEST_NAME:] or "data"


if __name__ == "__main__":
    sys.exit(main())
