"""Searches for the recipe of docs/mnist-record.md, on validation images only.

    python benchmarks/mnist_record.py --list
    python benchmarks/mnist_record.py --hours 2 --folder /tmp/record
    python benchmarks/mnist_record.py --only paper half

Trains each recipe of ``SEARCH`` with each of its seeds, one after the other, and
appends a line to ``benchmarks/results/mnist-record-search.json``. Runs that have a line
are skipped; a run that was stopped resumes from its checkpoint in ``--folder``, if that
still exists. So sessions of two hours on machines that are erased add up. No run tests.

A line's ``errors`` of 10,000 and ``loss`` (the loss of the class capsules, margin or
cross-entropy: compare within a kind) are those of the last epoch on the held-out
images, ``training_errors`` are per 10,000 augmented images of the last epoch.
"""

import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "mnist-record-search.json"

# Name: the variant of experiments/record.py, flags, seeds. A flag that serves for long
# becomes a field of the recipe.
SEARCH = {
    # What others' networks make of the same images.
    "paper": ("paper", [], (0, 1)),
    "enlarged_half_cnn": ("enlarged_half_cnn", [], (0, 1)),
    "enlarged_cnn": ("enlarged_cnn", [], (0,)),
    # The capsules, and their control.
    "half": ("half", [], (0, 1)),
    "half_cnn": ("half_cnn", [], (0, 1)),
    "half, last 2 epochs shifts": (
        "half",
        ["augmentation.last_shifted=0.1818"],
        (0,),
    ),
    "half, rotation 15, scale and shear 15 %": (
        "half",
        [f"augmentation.{name}" for name in ("rotation=15", "scale=.15", "shear=.15")],
        (0,),
    ),
    "half, elastic": ("half", ["augmentation.elastic=0.8"], (0,)),
    "half, batch 64": (
        "half",
        ["batch_size=64", "optimizer.decay_steps=7810"],
        (0,),
    ),
    "half, rate 1e-3": ("half", ["optimizer.learning_rate=1e-3"], (0,)),
    "half, average": ("half", ["optimizer.average=0.999"], (0,)),
    "half, reconstruction x10": ("half", ["loss.reconstruction_weight=0.005"], (0,)),
    "half, no reconstruction": ("half", ["loss.reconstruction_weight=0"], (0,)),
    "half, 1 round": ("half", ["model.routing.num_iterations=1"], (0,)),
    "half, uniform": ("half", ["model.routing=uniform"], (0,)),
    "half, self-attention": ("half", ["model.routing=self_attention"], (0,)),
    "half, 512 capsules of 8": ("half", ["model.primary_types=32"], (0,)),
    "half, 512 capsules of 16": (
        "half",
        ["model.primary_types=32", "model.primary_dim=16"],
        (0,),
    ),
}


def done(results):
    """Returns the recipes and seeds that have a line."""
    lines = results.read_text().splitlines() if results.exists() else []
    return {(one["recipe"], one["seed"]) for one in map(json.loads, lines)}


def command(name, seed, folder):
    variant, flags, _ = SEARCH[name]
    workdir = folder / f"{name.replace(' ', '-').replace(',', '')}-seed{seed}"
    return workdir, [
        *(sys.executable, "-m", "capsjax.train"),
        f"--config=experiments/record.py:{variant}",
        *(f"--config.{flag}" for flag in flags),
        f"--config.seed={seed}",
        f"--workdir={workdir}",
    ]


def line_of(name, seed, workdir, minutes):
    """Reads what a finished run wrote; its last epoch counts, not its best."""
    result = json.loads((workdir / "result.json").read_text())
    last = result["validation_of_last"]
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    train = [one for one in map(json.loads, lines) if one["kind"] == "train"]
    train = [one["accuracy"] for one in train if one["epoch"] == train[-1]["epoch"]]
    own = next((k for k in ("margin_loss", "cross_entropy") if k in last), "loss")
    commit = ["git", "rev-parse", "--short", "HEAD"]
    return {
        "recipe": name,
        "variant": SEARCH[name][0],
        "flags": SEARCH[name][1],
        "seed": seed,
        "errors": round(10_000 * (1 - last["accuracy"])),
        "loss": last[own],
        "training_errors": round(10_000 * (1 - sum(train) / len(train)), 1),
        "minutes": round(minutes, 1),
        "machine": f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}",
        "commit": subprocess.check_output(commit, cwd=ROOT, text=True).strip(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, default="/tmp/record")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--only", nargs="+", choices=SEARCH, help="recipes to train")
    parser.add_argument("--hours", type=float, help="start no run after that time")
    parser.add_argument("--list", action="store_true", help="only list what is left")
    arguments = parser.parse_args()
    begun = time.monotonic()
    for name in arguments.only or SEARCH:
        for seed in SEARCH[name][2]:
            if (name, seed) in done(arguments.results):
                continue
            workdir, flags = command(name, seed, arguments.folder)
            if arguments.list:
                print(" ".join(flags[1:]))
                continue
            started = time.monotonic()
            if arguments.hours and started - begun > 3600 * arguments.hours:
                return
            subprocess.run(flags, cwd=ROOT, check=True)
            minutes = (time.monotonic() - started) / 60
            line = line_of(name, seed, workdir, minutes)
            with arguments.results.open("a") as file:
                print(json.dumps(line), file=file)
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
