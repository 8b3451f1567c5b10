"""Losses and accuracy over a whole data set, every image counted exactly once.

    python -m capsjax.evaluate --workdir runs/mnist-seed0

prints what the run's best network makes of the test images, and draws it. Several runs
are an ensemble: the lengths of their class capsules (or their probabilities) are
averaged. ``--data`` names another data set of the same classes and image shape, or the
folder where the images are: of IDX archives, or of pictures with one subfolder for each
class. Its test split is taken, or else all of its images.
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


@command("capsjax.evaluate", WorkdirError, CheckpointError, ValueError)
def main(argv: Sequence[str] | None = None) -> int:
    """The command line: evaluates, draws, and returns the exit code."""
    parser = argparse.ArgumentParser(
        "capsjax.evaluate",
        description="What a run's best network makes of the test images.",
    )
    parser.add_argument(
        "--workdir",
        nargs="+",
        required=True,
        metavar="DIR",
        help="the folder of a trained run; several are an ensemble",
    )
    parser.add_argument(
        "--data",
        metavar="NAME",
        help="another data set of the same form and classes, or a folder of one",
    )
    parser.add_argument(
        "--no-figures", action="store_true", help="only print, write nothing"
    )
    arguments = parser.parse_args(argv)
    keep_compiled_programs()
    require_devices()
    runs = [load_run(path) for path in arguments.workdir]
    dataset = load_test_set(runs, arguments.data)
    answer(f"{len(dataset)} test images of {dataset.name}")
    for note in dataset.notes:
        warn(note)
    for run in () if arguments.data else runs:
        if told := run.workdir.other_images({"test": dataset}):
            warn(f"{run.workdir.path} {told}")
    members, lines = [], []
    for run in runs:
        is_alone = len(runs) == 1
        members.append(evaluate_run(run, dataset, looks_inside=is_alone))
        what = f"{run.workdir.path}, step {run.step}, learnt {run.config.data.name}"
        result = summary(members[-1].metrics, len(dataset))
        lines.append(what if is_alone else f"{what}: {result}")
    evaluation = members[0]
    if len(runs) > 1:
        lines.append(f"all {len(runs)} together:")
        evaluation = evaluate_ensemble(runs, dataset, members)
    written: list[str] = []
    try:
        answer(*lines, *summary_lines(dataset, evaluation))
    finally:  # What has been computed is kept, also if nobody reads it.
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
    """Writes the numbers and the figures; returns lines that say where."""
    folder = runs[0].workdir.figures
    if len(runs) > 1:
        folder /= "ensemble"
    if data:
        folder /= re.sub(r"[^\w.-]+", "-", data).strip(".-")
    folder.mkdir(parents=True, exist_ok=True)
    words = ["python", "-m", "capsjax.evaluate", *(argv or sys.argv[1:])]
    about = record(runs, dataset, evaluation) | {"command": shlex.join(words)}
    write_json(folder / "evaluation.json", about)
    lines = [f"{folder / 'evaluation.json'} has these numbers, and what made them"]
    if len(runs) == 1:
        from capsjax.analysis import figures

        written = figures.draw(
            *(runs[0], dataset, evaluation.prediction, evaluation.confusion),
            *(evaluation.by_rounds, folder),
        )
        lines.append(f"{len(written)} figures in {folder}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
