"""Watches a process that trains for thousands of epochs, and reads millions of lines.

    python benchmarks/long_run.py                    # 2,000 epochs, about ten minutes
    python benchmarks/long_run.py --epochs 200 --figure docs/figures/long-run.png

Trains a tiny network on 40 images, which validates and saves after every epoch. Notes
after each epoch the resident memory, open files and threads of the process, and the
bytes and files on its disk. Prints their medians over the epochs that follow the tenth
and over the last ones, and fails if one has grown: bytes by more than 5 %, the others
at all. Then writes the metrics of a run of 10 million steps, and
times ``capsjax.report`` on it.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np

from capsjax import CapsNet
from capsjax.config import Config, Data
from capsjax.data import Dataset
from capsjax.runtime.compile_cache import keep_compiled_programs
from capsjax.training.trainer import train

FOLDER = pathlib.Path(__file__).resolve().parent
FIRST = 10  # Epochs in which caches fill.
GROWTH = 1.05  # Of bytes.


def tiny_config(num_epochs):
    model = CapsNet(
        conv_features=8,
        primary_types=2,
        primary_stride=4,
        class_dim=4,
        decoder_features=(16,),
    )
    data = Data(num_validation=10)
    return Config(num_epochs=num_epochs, batch_size=8, data=data, model=model)


def some_images(split):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (50, 28, 28, 1), np.uint8)
    label = np.arange(50, dtype=np.int32) % 10
    return Dataset(split, image, label, tuple("0123456789"))


def watched(folder):
    """Returns what this process holds now, and what its folder does."""
    status = pathlib.Path("/proc/self/status").read_text()
    resident = next(x for x in status.splitlines() if x.startswith("VmRSS"))
    sizes = {}
    for place, _, names in os.walk(folder):
        for name in names:
            # An old checkpoint may be deleted at this moment.
            with contextlib.suppress(FileNotFoundError):
                sizes[place, name] = os.stat(os.path.join(place, name)).st_size
    return {
        "resident_mb": int(resident.split()[1]) / 1024,
        "open_files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "native_threads": len(os.listdir("/proc/self/task")),
        "files": len(sizes),
        "disk_kb": sum(
            size for (_, name), size in sizes.items() if name != "metrics.jsonl"
        )
        / 1024,
    }


def epochs(number, folder):
    """Trains, and returns what was watched after each epoch."""
    rows = []

    def on_metrics(record):
        if record["kind"] == "train" and record["epoch"] > len(rows):
            rows.append(watched(folder))

    sets = (some_images("train"), some_images("test"))
    started = time.monotonic()
    train(tiny_config(number), folder, sets, on_metrics=on_metrics)
    print(f"{number} epochs in {time.monotonic() - started:.0f} s", file=sys.stderr)
    return rows


def grown(rows):
    """Returns the names of what has grown since the tenth epoch."""
    size = max(FIRST, len(rows) // 20)
    early, late = rows[FIRST : FIRST + size], rows[-size:]
    found = []
    for name in rows[0]:
        before, after = (
            statistics.median(row[name] for row in part) for part in (early, late)
        )
        factor = GROWTH if name.endswith("b") else 1.0
        print(f"{name}: {before:,.0f} after epoch {FIRST}, {after:,.0f} at the end")
        if after > factor * before:
            found.append(name)
    return found


def seconds_of_report(folder, num_steps):
    """Writes metrics of so many steps into a finished run, and times its report."""
    path = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    line = next(line for line in lines if line["kind"] == "train")
    others = [line for line in lines if line["kind"] != "train"]
    step, ends = 0, [other["step"] for other in others if other["kind"] == "validation"]
    every = num_steps // len(ends)
    with path.open("w") as file:
        for number, end in enumerate(ends, 1):
            while step < number * every:
                step += 11
                record = line | {"step": step, "epoch": number}
                file.write(json.dumps(record) + "\n")
            own = [other for other in others if other["step"] == end]
            for other in own:
                file.write(json.dumps(other | {"step": step, "epoch": number}) + "\n")
    megabytes = path.stat().st_size / 1e6
    started = time.monotonic()
    command = [sys.executable, "-m", "capsjax.report", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    print(f"report of {num_steps:,} steps ({megabytes:.0f} MB): {seconds:.1f} s")
    return seconds


def draw(rows, path):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names = {"resident_mb": "resident memory, MB", "native_threads": "threads"}
    names |= {"open_files": "open files", "disk_kb": "disk without metrics, kB"}
    figure, axes = pyplot.subplots(2, 2, figsize=(8, 4), layout="constrained")
    for axis, (name, label) in zip(axes.flat, names.items(), strict=True):
        axis.plot(range(1, len(rows) + 1), [row[name] for row in rows], linewidth=0.8)
        axis.set(title=label, ylim=(0, None), xlabel="epoch")
    figure.savefig(path, dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=10_000_000)
    parser.add_argument("--figure", type=pathlib.Path, help="file to draw into")
    parser.add_argument("--json", type=pathlib.Path, help="file to write into")
    options = parser.parse_args()
    keep_compiled_programs()
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch, "run")
        rows = epochs(options.epochs, folder)
        found = grown(rows)
        seconds = seconds_of_report(folder, options.steps)
    if options.figure:
        draw(rows, options.figure)
    if options.json:
        last = {"epochs": len(rows), "report_seconds": seconds}
        last |= {"after_10": rows[FIRST], "at_the_end": rows[-1]}
        options.json.write_text(json.dumps(last, indent=1) + "\n")
    for name in found:
        print(f"WRONG: {name} has grown")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
