"""Chooses the rate and the first weights of each row of experiments/routings.py.

    python benchmarks/routings_search.py

Trains every row seven times on a part of MNIST, one epoch of 30,000 images, seed 0:
with each scale of W's first values (or dropout) at the lower rate, and with the best of
them at the higher rate. Validation images measure the losses; no test image is read.
Prints the choice with the least loss of each row, for ``CHOSEN``. Keeps all losses in
benchmarks/results/routings/search.jsonl, and does not repeat what stands there.
"""

import argparse
import dataclasses
import importlib.util
import json
import math
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
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def short(config: Config) -> Config:
    """Shortens a recipe to one epoch of half of the images, without a test."""
    data = dataclasses.replace(config.data, num_train=30_000)
    return dataclasses.replace(config, num_epochs=1, data=data, test=False)


def best(tries: list[dict]) -> dict:
    """Returns the try with the least validation loss; NaN is no loss."""
    return min(tries, key=lambda one: one["loss"] if one["loss"] >= 0 else math.inf)


def tried(path: pathlib.Path, row: str, choice, config: Config) -> dict:
    """Returns the record of a try: the one in the file, or a new one."""
    own = {"row": row, "choice": choice._asdict()}
    for line in read_lines(path):
        if line | own == line:
            return line
    with tempfile.TemporaryDirectory() as folder:
        try:
            metrics = complete(config, Workdir(folder))["validation"]
        except FloatingPointError:
            metrics = {"loss": math.nan, "accuracy": math.nan}
    record = {name: metrics[name] for name in ("loss", "accuracy")}
    add_line(path, own | record | provenance())
    return own | record


def search(routings, path: pathlib.Path, row: str) -> dict:
    """Returns a row's best try."""

    def attempt(rate: float, other: float) -> dict:
        choice = routings.Choice(rate, other)
        return tried(path, row, choice, short(routings.recipe(row, choice)))

    low, high = routings.RATES
    others = routings.DROPOUTS if row == "cnn" else routings.SCALES
    first = best([attempt(low, other) for other in others])
    return best([first, attempt(high, first["choice"]["other"])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--rows", nargs="+", help="rows to search; all by default")
    arguments = parser.parse_args()
    keep_compiled_programs()
    routings, path = experiment(), arguments.results / "search.jsonl"
    for row in arguments.rows or routings.ROWS:
        one = search(routings, path, row)
        choice = routings.Choice(**one["choice"])
        print(f'"{row}": {choice},  # loss {one["loss"]:.5f}, {one["accuracy"]:.2%}')


if __name__ == "__main__":
    main()
