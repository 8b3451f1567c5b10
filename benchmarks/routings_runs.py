"""Trains the rows of experiments/routings.py, and keeps their numbers.

    python benchmarks/routings_runs.py                    # seeds 0, 1, 2 of all rows
    python benchmarks/routings_runs.py --seeds 0 --rows dynamic_3 em_2

Trains, tests, and evaluates on the test images and on the same images after random
affine maps, seed by seed. Appends each run, reduced to its numbers, to
benchmarks/results/routings/runs.jsonl, and skips what stands there. A run that was
interrupted resumes from its folder. The table: ``python -m capsjax.report --table
routings benchmarks/results/routings/*.jsonl``
"""

import argparse
import dataclasses
import pathlib
import sys

import jax
from routings_search import RESULTS, add_line, experiment, read_lines

from capsjax.analysis.diagnosis import diagnose
from capsjax.analysis.evaluation import evaluate_run
from capsjax.analysis.images import load_test_set
from capsjax.analysis.routing_table import AFFINE, reduced
from capsjax.analysis.summary import record
from capsjax.runtime.compile_cache import keep_compiled_programs
from capsjax.storage.files import write_json
from capsjax.storage.run import Run
from capsjax.training.trainer import train


def evaluate(run: Run, data: str | None) -> None:
    """Evaluates a run like ``capsjax.evaluate``, without figures.

    Watches the routing of all images.
    """
    folder = run.workdir.figures / (data or "")
    folder.mkdir(parents=True, exist_ok=True)
    dataset = load_test_set([run], data)
    found = evaluate_run(run, dataset, looks_inside=False)
    if data is None:
        diagnosis = diagnose(run, dataset, most=len(dataset))
        found = found._replace(diagnosis=diagnosis)
    write_json(folder / "evaluation.json", record([run], dataset, found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--rows", nargs="+", help="rows to train; all by default")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--folder", type=pathlib.Path, default="runs", help="where runs are")
    add("--results", type=pathlib.Path, default=RESULTS / "runs.jsonl")
    arguments = parser.parse_args()
    keep_compiled_programs()
    routings = experiment()
    for seed in arguments.seeds:
        for row in arguments.rows or routings.ROWS:
            lines = read_lines(arguments.results)
            if (row, seed) in {(line["row"], line["seed"]) for line in lines}:
                continue
            config = dataclasses.replace(routings.get_config(row), seed=seed)
            try:
                run = train(config, arguments.folder / f"routings-{row}-seed{seed}")
            except FloatingPointError as error:
                print(f"{row}, seed {seed} failed: {error}", file=sys.stderr)
                continue
            for data in (None, AFFINE):
                evaluate(run, data)
            add_line(arguments.results, reduced(run.workdir.path))
            jax.clear_caches()


if __name__ == "__main__":
    main()
