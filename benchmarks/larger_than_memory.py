"""Trains on more images than memory may hold, and measures what that costs.

    python benchmarks/larger_than_memory.py FOLDER                # 200,000 images
    python benchmarks/larger_than_memory.py FOLDER --steps 200    # of each training
    python benchmarks/larger_than_memory.py FOLDER --images 20000 \\
        --torch-python VENV/bin/python

Generates JPEGs of 256 x 256 pixels once in FOLDER, trains on them at 64 x 64 from disk
and from memory, and reads them by each path alone, and by PyTorch's DataLoader, which
decodes the files in each epoch. Prints one JSON object:

``formats``: processor microseconds an image, at random places: decoding, and reading
the pixels from array_record and from our cache.
``first``: processor seconds until the first step, per 1,000 images: with the decoding.
``again``: the same at the next start: from disk the cache is found.
``read``: processor seconds per 1,000 images, and images a second, by reading alone.
``train``: images a second in training, and the share of it in which the step waited.
``resident``: the most gigabytes of the process, beyond those of the same training on
1,000 images.

Compare processor seconds if other programs run.
"""

import argparse
import concurrent.futures
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIDE, SEEN, BATCH, CLASSES = 256, 64, 128, 10
FEW = 1_000


def write_images(folder: str, numbers: range) -> None:
    """Writes images whose coarse structure is noise, as large as photographs are."""
    import numpy as np
    from PIL import Image

    for number in numbers:
        path = Path(folder, f"class{number % CLASSES}", f"{number:07d}.jpg")
        if path.exists():
            continue
        coarse = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        image = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        image.save(path, quality=90)


def generate(folder: Path, num_images: int) -> None:
    """Writes the images that are missing, by all processors."""
    for number in range(CLASSES):
        (folder / f"class{number}").mkdir(parents=True, exist_ok=True)
    parts = [range(n, min(n + 2000, num_images)) for n in range(0, num_images, 2000)]
    with concurrent.futures.ProcessPoolExecutor() as pool:
        list(pool.map(write_images, [str(folder)] * len(parts), parts))


def processor_seconds() -> float:
    """Returns the seconds of this process and of its children that have ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    used = [resource.getrusage(kind) for kind in kinds]
    return sum(one.ru_utime + one.ru_stime for one in used)


def make_config(folder: str, placement: str, num_train: int):
    """Returns a small network's config, one epoch long."""
    from capsjax import config as configs
    from capsjax.models import CapsNet

    config = configs.Config(
        batch_size=BATCH, num_epochs=1, data_placement=placement, test=False
    )
    config.data = configs.Data(
        "image_folder", folder, image_size=SEEN, num_validation=0, num_train=num_train
    )
    config.model = CapsNet(
        conv_features=16,
        primary_types=4,
        primary_stride=6,
        class_dim=8,
        decoder_features=(),
    )
    return config


class _EnoughError(Exception):
    pass


def contend(
    folder: str, placement: str, work: str, num_train: int, most_steps: int
) -> dict:
    """Does the work of one process; returns its numbers."""
    from capsjax.data import workers
    from capsjax.training import ahead, feed
    from capsjax.training.sets import make_sets
    from capsjax.training.trainer import train

    made = []

    class Noted(ahead.BatchesAhead):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(self)

    feed.BatchesAhead = Noted
    config = make_config(folder, placement, num_train)
    row: dict = {"workers": workers._num_processors()}
    if work == "read":
        begun, used = time.monotonic(), processor_seconds()
        train_set, *_ = make_sets(config, "by_class", None)
        row["images"] = len(train_set)
        row["start_seconds"] = time.monotonic() - begun
        row["start_processor_seconds"] = processor_seconds() - used
        config.steps_per_dispatch = 1
        batches = feed.Feed(config, train_set)
        begun, used = time.monotonic(), processor_seconds()
        num_steps = len(train_set) // BATCH
        for step in range(num_steps):
            batches.batches(range(step, step + 1))
        row["seconds"] = time.monotonic() - begun
        row["processor_seconds"] = processor_seconds() - used
        row["read"] = num_steps * BATCH
        batches.close()
    else:
        seen = []

        def note(record):
            seen.append(record)
            if record["step"] >= most_steps:
                raise _EnoughError

        enough = contextlib.suppress(_EnoughError)
        with tempfile.TemporaryDirectory() as workdir, enough:
            train(config, Path(workdir, "run"), on_metrics=note)
        rates = [one["images_per_second"] for one in seen if one["kind"] == "train"]
        row["images_per_second"] = len(rates) / sum(1 / rate for rate in rates)
        row["losses"] = [one["loss"] for one in seen]
        if made:
            row["waiting"] = made[-1].waited / made[-1].seconds
    row["resident"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return row


def measure_formats(folder: str) -> dict:
    """Returns processor microseconds an image, by each way to read it."""
    import numpy as np
    from array_record.python.array_record_module import (
        ArrayRecordReader,
        ArrayRecordWriter,
    )

    from capsjax.data import load
    from capsjax.data.preparation import Preparation

    preparation = Preparation.of("image_folder", (SEEN, SEEN, 3))
    files = sorted(Path(folder).glob("*/*.jpg"))[:FEW]
    pixels = np.stack([preparation.apply(file) for file in files])
    path = str(Path(os.environ["XDG_CACHE_HOME"], "pixels.array_record"))
    writer = ArrayRecordWriter(path, "group_size:1,uncompressed")
    for image in pixels:
        writer.write(image.tobytes())
    writer.close()
    reader = ArrayRecordReader(path, "readahead_buffer_size:0")
    ours = load("image_folder", path=folder, image_size=SEEN, max_bytes=0).image

    def array_record(index):
        found = reader.read(index.tolist())
        return np.stack([np.frombuffer(one, np.uint8) for one in found])

    def decoded(index):
        return np.stack([preparation.apply(files[number]) for number in index])

    ways = {"decoded": decoded, "array_record": array_record, "cache": ours.__getitem__}
    index = np.random.default_rng(0).integers(0, FEW, (8, BATCH))
    used = {}
    for name, read in ways.items():
        read(index[0])
        begun = time.process_time()
        for one in index:
            read(one)
        used[name] = round((time.process_time() - begun) / index.size * 1e6, 1)
    return used


def run(
    folder: Path, placement: str, work: str, num_train: int = 0, most_steps: int = 10**9
) -> dict:
    """Starts a process for some work; returns its numbers."""
    numbers = map(str, (num_train, most_steps))
    arguments = [str(folder), "--contender", placement, work, *numbers]
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    row = json.loads(done.stdout.splitlines()[-1])
    print(placement, work, num_train, row, file=sys.stderr)
    return row


def per_thousand(row: dict, what: str, images: str) -> float:
    return round(1000 * row[what] / row[images], 4)


def main() -> None:
    """Generates, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--torch-python", help="a Python that has torch and Pillow")
    parser.add_argument("--steps", type=int, default=10**9, help="of each training")
    parser.add_argument("--contender", nargs=4, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.contender:
        placement, work, *numbers = chosen.contender
        if work == "formats":
            print(json.dumps(measure_formats(str(chosen.folder))))
            return
        row = contend(str(chosen.folder), placement, work, *map(int, numbers))
        print(json.dumps(row))
        return
    photos = chosen.folder / f"{chosen.images}"
    generate(photos, chosen.images)
    os.environ["XDG_CACHE_HOME"] = str(chosen.folder / f"cache-{time.time_ns()}")
    found: dict = {"images": chosen.images, "load": os.getloadavg()}
    for placement in ("disk", "host"):
        first, again = (run(photos, placement, "read") for _ in range(2))
        found["workers"] = first["workers"]
        found[placement] = {
            "first": per_thousand(first, "start_processor_seconds", "images"),
            "again": per_thousand(again, "start_processor_seconds", "images"),
            "read": per_thousand(again, "processor_seconds", "read"),
            "read_images_per_second": round(again["read"] / again["seconds"]),
        }
    found["formats"] = run(photos, "disk", "formats")
    few = run(photos, "host", "train", FEW)
    trained = {
        placement: run(photos, placement, "train", most_steps=chosen.steps)
        for placement in ("disk", "host")
    }
    if chosen.steps < 10**9:
        found["steps"] = chosen.steps
    assert trained["disk"]["losses"] == trained["host"]["losses"]
    for placement, row in trained.items():
        found[placement]["train_images_per_second"] = round(row["images_per_second"])
        found[placement]["waiting"] = row.get("waiting")
        beyond = row["resident"] - few["resident"]
        found[placement]["resident_gigabytes"] = round(beyond, 3)
    found["model_resident_gigabytes"] = round(few["resident"], 3)
    if chosen.torch_python:
        loader = Path(__file__).parent / "peers" / "torch_loader.py"
        numbers = map(str, (SEEN, BATCH, found["workers"], 2))
        done = subprocess.run(
            [chosen.torch_python, str(loader), str(photos), *numbers],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        epoch = json.loads(done.stdout)[-1]
        found["torch"] = {
            "read": per_thousand(epoch, "processor_seconds", "images"),
            "read_images_per_second": round(epoch["images"] / epoch["seconds"]),
        }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
