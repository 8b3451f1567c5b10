"""Chooses the rate and the first weights of each row of experiments/routings.py.

    python benchmarks/routings_search.py

Trains every row with each of ``choices``, as many for each row, on a part of MNIST:
one epoch of 10,000 images, seed 0. Validation images measure the losses; no test image
is read. Prints the choice with the least loss of each row, for ``CHOSEN``. Keeps all
losses in benchmarks/results/routings/search.jsonl, and skips what stands there.
"""

import argparse
import dataclasses
import importlib.util
import json
import pathlib
import tempfile

from capsjax.config import Config
from capsjax.runtime.compile_cache import keep_compiled_programs
from capsjax.storage.provenance import provenance
from capsjax.storage.workdir import Workdir
from capsjax.training.trainer import complete

FOLDER = pathlib.Path(__file__).resolve().parent
RESULTS = FOLDER / "results" / "routings"


def read_lines(path: pathlib.Path) -> list[dict]:
    """Reads a file of one JSON object a line; there may be none yet."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def add_line(path: pathlib.Path, record: dict) -> None:
    """Appends a JSON object to a file, in one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def experiment():
    """Imports experiments/routings.py."""
    path = FOLDER.parent / "experiments" / "routings.py"
    spec = importlib.util.spec_from_file_location("routings", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def short(config: Config) -> Config:
    """Shortens a recipe to one epoch of a part of the images, without a test."""
    data = dataclasses.replace(config.data, num_train=10_000)
    return dataclasses.replace(config, num_epochs=1, data=data, test=False)


def best(tries: list[dict]) -> dict:
    """Returns the try with the least validation loss; NaN is no loss."""
    return min(tries, key=lambda one: one["loss"] if one["loss"] >= 0 else 1e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--rows", nargs="+", help="rows to search; all by default")
    arguments = parser.parse_args()
    keep_compiled_programs()
    routings, path = experiment(), arguments.results / "search.jsonl"
    rows = arguments.rows or [*routings.ROWS]
    there = {(one["row"], *one["choice"].values()) for one in read_lines(path)}
    for row in rows:
        for choice in routings.choices(row):
            if (row, *choice) in there:
                continue
            config = short(routings.recipe(row, choice))
            with tempfile.TemporaryDirectory() as folder:
                try:
                    metrics = complete(config, Workdir(folder))["validation"]
                except FloatingPointError:
                    metrics = {"loss": float("nan"), "accuracy": float("nan")}
            record = {name: metrics[name] for name in ("loss", "accuracy")}
            choice = choice._asdict()
            add_line(path, {"row": row, "choice": choice, **record, **provenance()})
    tries = read_lines(path)
    for row in rows:
        one = best([each for each in tries if each["row"] == row])
        choice = routings.Choice(**one["choice"])
        print(f'"{row}": {choice},  # loss {one["loss"]:.5f}, {one["accuracy"]:.2%}')


if __name__ == "__main__":
    main()
