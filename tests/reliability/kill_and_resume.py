"""Kills a small real run at random moments and compares what it comes to.

    python tests/reliability/kill_and_resume.py --kills 20

Runs are started, killed with SIGKILL and resumed until they end, again and again until
there were so many kills. Each must end with the weights, the optimizer's state, the
metrics and the result of a run that was never killed, to the bit; only the clock may
differ. First of all, two runs that are not killed must agree, each of which compiles
its own programs. It prints in what each kill fell, as the disk shows it.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import jax
import numpy as np

# As a script, too, which finds only what is beside it.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "helpers"))
from places import ROOT
from tiny import TINY_MODEL, digits

from capsjax.models.network import bind
from capsjax.storage.checkpoints import Checkpoints
from capsjax.storage.workdir import Workdir
from capsjax.training.state import init_state

RECIPE = (
    "--config=experiments/mnist.py:smoke",
    "--config.num_epochs=4",
    "--config.steps_per_dispatch=4",
    "--config.data.num_train=1000",
    "--config.data.num_validation=200",
    *TINY_MODEL,
)
CLOCK = {"images_per_second", "seconds", "command"}


def start(workdir, cache):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "PYTHONUNBUFFERED": "1",
    }
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "capsjax.train", *RECIPE),
            *(f"--config.data.name={digits()}", f"--workdir={workdir}"),
        ],
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


def like_of(workdir):
    """A state of the form that the run's checkpoints have."""
    config = workdir.read_config()
    about = workdir.read_json(workdir.dataset)
    image_shape, num_classes = tuple(about["image_shape"]), len(about["class_names"])
    model = bind(config.model, image_shape, num_classes)
    steps_per_epoch = config.data.num_train // config.batch_size
    optimizer = config.optimizer.make(config.num_epochs * steps_per_epoch)
    shapes = jax.eval_shape(lambda: init_state(model, optimizer, config))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        shapes,
    )


def outcome(path):
    """Everything that must not depend on when a run was killed."""
    workdir = Workdir(path)

    def timeless(row):
        return {name: value for name, value in row.items() if name not in CLOCK}

    like = like_of(workdir)
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


class Kill(NamedTuple):
    """In what a process was when it was killed."""

    phase: str  # start-up, step, save or evaluation
    has_checkpoint: bool


def killed_in(path, out):
    """Tells it from what the process printed and what it left on disk."""
    workdir = Workdir(path)
    folders = workdir.checkpoints.glob("*") if workdir.checkpoints.exists() else ()
    names = [folder.name for folder in folders]
    saved = {int(name) for name in names if name.isdigit()}
    resumed = re.search(r"going on after step (\d+)", out)
    begun = int(resumed[1]) if resumed else 0
    text = workdir.metrics.read_text() if workdir.metrics.exists() else ""
    rows = [json.loads(line) for line in text.split("\n")[:-1]]
    if "compiling" not in out or not rows or rows[-1]["step"] <= begun:
        return Kill("start-up", bool(saved))
    kind, step = rows[-1]["kind"], rows[-1]["step"]
    config = workdir.read_config()
    steps_per_epoch = config.data.num_train // config.batch_size
    is_saving = any("tmp" in name for name in names)
    if is_saving or (kind == "validation" and step not in saved):
        return Kill("save", bool(saved))
    ends_run = step == config.num_epochs * steps_per_epoch
    if ends_run or (kind == "train" and step % steps_per_epoch == 0):
        return Kill("evaluation", bool(saved))
    return Kill("step", bool(saved))


def wait_for_checkpoint(process, path):
    while process.poll() is None:
        if any(folder.name.isdigit() for folder in path.glob("checkpoints/*")):
            return
        time.sleep(0.01)


def different(one, other):
    return [
        name
        for name in {**one, **other}
        if name not in one
        or name not in other
        or not np.array_equal(one[name], other[name])
    ]


def kill_and_resume(num_kills, seed, *, tell=print):
    """Raises SystemExit if a run that was killed comes to something else.

    Every other kill waits for a checkpoint first, so that some of a few fall after one.
    """
    random_moment = random.Random(seed)
    folder = pathlib.Path(tempfile.mkdtemp())
    cache = folder / "cache"
    finish(folder / "first", folder / "cache of the first")
    seconds = finish(folder / "whole", cache)
    whole = outcome(folder / "whole")
    if names := different(outcome(folder / "first"), whole):
        raise SystemExit(f"two runs that were not killed differ in {names}")
    tell(f"two whole runs agree; {seconds:.1f} s each")
    kills, runs = [], 0
    while len(kills) < num_kills:
        runs += 1
        workdir = folder / f"run{runs}"
        while len(kills) < num_kills:
            share = random_moment.uniform(0, 1.05)
            process = start(workdir, cache)
            if len(kills) % 2:
                wait_for_checkpoint(process, workdir)
                share /= 2
            try:
                process.wait(share * seconds)
            except subprocess.TimeoutExpired:
                process.kill()
            out, _ = process.communicate()
            if process.returncode != -9:
                if process.returncode:
                    raise SystemExit(f"ended with {process.returncode}:\n{out}")
                break
            kills.append(killed_in(workdir, out))
            last = (out.splitlines() or ["-"])[-1]
            tell(f"kill {len(kills):3}, run {runs}, in {kills[-1].phase}: {last}")
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
    phases = collections.Counter(kill.phase for kill in kills)
    by_phase = ", ".join(f"{count} in {phase}" for phase, count in phases.most_common())
    late = sum(kill.has_checkpoint for kill in kills)
    print(
        f"{len(kills)} kills ({by_phase}; {late} after a checkpoint) in {runs} runs, "
        f"seed {arguments.seed}: all equal to the bit"
    )


if __name__ == "__main__":
    main()
