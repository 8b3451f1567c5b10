"""Kills a small real run at random moments and compares what it comes to.

    python tests/kill_and_resume.py --kills 20

Runs are started, killed with SIGKILL and resumed until they end, again and again until
there were so many kills. Each must end with the weights, the optimizer's state, the
metrics and the result of a run that was never killed, to the bit; only the clock may
differ. First of all, two runs that are not killed must agree.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from capsjax.checkpoint import Checkpoints
from capsjax.data.augment import cropped_shape
from capsjax.models import make_model
from capsjax.step import init_state, make_optimizer
from capsjax.workdir import Workdir

ROOT = pathlib.Path(__file__).parents[1]
RECIPE = (
    "--config=experiments/mnist.py:smoke",
    "--config.num_epochs=4",
    "--config.steps_per_dispatch=4",
    "--config.data.num_train=1000",
    "--config.data.num_validation=1000",
    "--config.model.conv_features=16",
    "--config.model.primary_types=4",
    "--config.model.primary_stride=3",
)
CLOCK = {"images_per_second", "seconds", "command"}


def start(workdir, cache):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "XLA_FLAGS": "",
        "PYTHONUNBUFFERED": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "capsjax.train", *RECIPE, f"--workdir={workdir}"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(workdir, cache):
    """Runs to the end and returns the seconds that took."""
    started = time.monotonic()
    process = start(workdir, cache)
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{workdir} ended with {process.returncode}:\n{out}")
    return time.monotonic() - started


def outcome(path):
    """Everything that must not depend on when a run was killed."""
    workdir = Workdir(path)

    def timeless(row):
        return {name: value for name, value in row.items() if name not in CLOCK}

    config = workdir.read_config()
    about = workdir.read_json(workdir.dataset)
    image_shape, num_classes = tuple(about["image_shape"]), len(about["class_names"])
    shape = cropped_shape(image_shape, config.data.crop)
    model = make_model(config.model, shape, num_classes)
    steps_per_epoch = config.data.num_train // config.batch_size
    optimizer = make_optimizer(config.optimizer, config.num_epochs * steps_per_epoch)
    like = jax.jit(lambda: init_state(model, optimizer, config))()
    checkpoints = Checkpoints(workdir.checkpoints, read_only=True)
    states = {step: checkpoints.restore(step, like) for step in checkpoints.steps}
    checkpoints.close()
    leaves = {
        f"{step}{jax.tree_util.keystr(path)}": np.asarray(leaf)
        for step, state in states.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            state._replace(augment_key=jax.random.key_data(state.augment_key))
        )
    }
    rows = [json.loads(text) for text in workdir.metrics.read_text().splitlines()]
    return {
        "metrics": [timeless(row) for row in rows],
        "result": timeless(workdir.read_json(workdir.result)),
        "files": sorted(path.name for path in workdir.path.iterdir()),
        **leaves,
    }


def different(one, other):
    return [
        name
        for name in {**one, **other}
        if name not in one
        or name not in other
        or not np.array_equal(one[name], other[name])
    ]


def kill_and_resume(num_kills, seed, *, tell=print):
    """Raises SystemExit if a run that was killed comes to something else."""
    random_moment = random.Random(seed)
    folder = pathlib.Path(tempfile.mkdtemp())
    cache = folder / "cache"
    finish(folder / "first", cache)
    seconds = finish(folder / "whole", cache)
    whole = outcome(folder / "whole")
    if names := different(outcome(folder / "first"), whole):
        raise SystemExit(f"two runs that were not killed differ in {names}")
    tell(f"two whole runs agree; {seconds:.1f} s each")
    kills = runs = 0
    while kills < num_kills:
        runs += 1
        workdir = folder / f"run{runs}"
        while kills < num_kills:
            after = random_moment.uniform(0, 1.05 * seconds)
            process = start(workdir, cache)
            try:
                process.wait(after)
            except subprocess.TimeoutExpired:
                process.kill()
            out, _ = process.communicate()
            if process.returncode != -9:
                if process.returncode:
                    raise SystemExit(f"ended with {process.returncode}:\n{out}")
                break
            kills += 1
            last = (out.splitlines() or ["(start-up)"])[-1]
            tell(f"kill {kills:3}, run {runs}, after {after:4.1f} s: {last}")
        finish(workdir, cache)
        if names := different(outcome(workdir), whole):
            raise SystemExit(f"run {runs} differs in {names}; kept in {workdir}")
        tell(f"run {runs} equals a run that was not killed")
    shutil.rmtree(folder)
    return kills, runs


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    kills, runs = kill_and_resume(arguments.kills, arguments.seed)
    print(f"{kills} kills in {runs} runs, seed {arguments.seed}: all equal to the bit")


if __name__ == "__main__":
    main()
