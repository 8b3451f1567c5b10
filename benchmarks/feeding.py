"""Times training with images on the host or the device, and with calls started ahead.

    python benchmarks/feeding.py                           # the device of the platform
    python benchmarks/feeding.py --config experiments/mnist.py --repeats 5

Trains a recipe for three epochs in each way, all ways in turn, and times the last two.
Half a minute for each on two cores. Prints images a second as they come; at the end the
median, the range, and the ratio to the first way. These times choose ``calls_ahead``
and ``largest_held_data_bytes`` in capsjax/runtime/platforms.py.
"""

import argparse
import contextlib
import itertools
import statistics
import tempfile
import time

import jax

from capsjax import config as configs
from capsjax.runtime import platforms
from capsjax.runtime.compile_cache import keep_compiled_programs
from capsjax.training import train
from capsjax.training.command_line import experiment

NUM_EPOCHS = 3
WAYS = list(itertools.product(("host", "device"), (0, 1)))


def images_per_second(config, placement, calls_ahead):
    """Trains once, and returns the speed of the epochs after the first."""
    config = configs.override(
        config,
        [
            ("num_epochs", str(NUM_EPOCHS)),
            ("data.num_validation", "0"),
            ("test", "false"),
            ("data_placement", placement),
        ],
    )
    ends = {}

    def note(record):
        if record["kind"] == "train":
            ends[record["epoch"]] = record["step"], time.perf_counter()

    kept = platforms.PLATFORMS
    used = platforms.platform(jax.default_backend())
    platforms.PLATFORMS = {
        name: row._replace(calls_ahead=calls_ahead) if row is used else row
        for name, row in kept.items()
    }
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
            train(config, f"{folder}/run", on_metrics=note)
    finally:
        platforms.PLATFORMS = kept
    (first_step, start), (last_step, end) = ends[1], ends[NUM_EPOCHS]
    return (last_step - first_step) * config.batch_size / (end - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="experiments/mnist.py:smoke")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    keep_compiled_programs()
    config = experiment(arguments.config)
    speeds = {way: [] for way in WAYS}
    for _ in range(arguments.repeats):
        for way, found in speeds.items():
            found.append(images_per_second(config, *way))
            print(*way, f"{found[-1]:.0f} images/s", flush=True)
    print("| images on | calls ahead | images/s | range | ratio |")
    print("| --- | --: | --: | --- | --: |")
    first = statistics.median(speeds[WAYS[0]])
    for (placement, calls), found in speeds.items():
        middle, least, most = statistics.median(found), min(found), max(found)
        print(
            f"| {placement} | {calls} | {middle:.0f} | {least:.0f} to {most:.0f} | "
            f"{middle / first:.2f} |"
        )


if __name__ == "__main__":
    main()
