"""Measures time and memory of the rows of experiments/routings.py, one at a time.

    python benchmarks/routings_speed.py --repeats 10

Compiles the training step of every row, with augmentation and Adam, and the class
capsules of images, in batches of 128. Runs the programs of all rows in turn, so that
other work on the machine disturbs all alike; the least time counts. Temporary memory is
the compiler's: what a step needs besides its operands and results. Writes
benchmarks/results/routings/speed.jsonl anew.
"""

import argparse
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from routing import compile_function, environment, measure
from routings_search import RESULTS, add_line, experiment

from capsjax.data import Batch
from capsjax.losses import fitting_loss
from capsjax.models.network import activation_kind, bind
from capsjax.runtime.devices import AXIS
from capsjax.training.state import init_state
from capsjax.training.step import make_train_step


def programs(config, batch_size: int):
    """Compiles a training step and inference, for random images."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (batch_size, 28, 28, 1), np.uint8)
    label = rng.integers(0, 10, batch_size).astype(np.int32)
    model = bind(config.model, (28, 28, 1), 10)
    optimizer = config.optimizer.make(4290)
    state = jax.jit(functools.partial(init_state, model, optimizer, config))()
    loss = fitting_loss(config.loss, activation_kind(model))
    step = make_train_step(model, optimizer, config, loss, num_steps=4290)
    # One device, as the trainer has it, without the copies of a mapped program.
    mapped = jax.vmap(step, (None, 0), axis_name=AXIS, out_axes=None)
    share = jax.tree.map(lambda array: jnp.asarray(array)[None], Batch(image, label))
    encode = functools.partial(model.apply, method=model.encode)
    pixels = jnp.asarray(image, jnp.float32) / 255
    return {
        "train": compile_function(mapped, state, share),
        "inference": compile_function(
            lambda params, pixels: encode(params, pixels).activation,
            *(state.params, pixels),
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--rows", nargs="+", help="rows to measure; all by default")
    add("--repeats", type=int, default=10)
    add("--batch", type=int, default=128)
    add("--results", type=pathlib.Path, default=RESULTS / "speed.jsonl")
    arguments = parser.parse_args()
    routings = experiment()
    compiled = {
        (row, work): program
        for row in arguments.rows or routings.ROWS
        for work, program in programs(routings.get_config(row), arguments.batch).items()
    }
    times = measure(compiled, arguments.repeats)
    arguments.results.unlink(missing_ok=True)
    for row in dict.fromkeys(row for row, _ in compiled):
        train, inference = (
            1e3 * arguments.batch / min(times[row, work])
            for work in ("train", "inference")
        )
        memory = [
            compiled[row, work].temporary_bytes for work in ("train", "inference")
        ]
        speed = {
            "train_images_per_second": train,
            "images_per_second": inference,
            "train_temporary_bytes": memory[0],
            "temporary_bytes": memory[1],
        }
        about = {"batch": arguments.batch, "repeats": arguments.repeats}
        line = {"row": row, "speed": speed, **about, "environment": environment()}
        add_line(arguments.results, line)
        print(
            f"{row}: {train:.0f} and {inference:.0f} images/s, {memory[0] / 1e6:.0f} MB"
        )


if __name__ == "__main__":
    main()
