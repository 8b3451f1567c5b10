"""Training: ``python -m capsjax.train --config experiments/mnist.py``.

The step is a pure function of one device's share of a batch. Several steps run in one
call of the device program; where such a chunk ends depends on the absolute step alone,
so that a run that was stopped goes on exactly as if it had not been.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, Key

from capsjax import config as configs
from capsjax.checkpoint import CheckpointError, Checkpoints
from capsjax.compilation import keep_compiled_programs
from capsjax.data import (
    Batch,
    Dataset,
    DatasetError,
    batch_indices,
    load,
    split_validation,
)
from capsjax.data.augment import apply_shifts, draw_shifts, scale_to_unit
from capsjax.evaluate import Metrics, evaluate, image_metrics, make_eval_step
from capsjax.flags import UsageError, parse
from capsjax.interrupt import Interrupt, noticed
from capsjax.metrics import MetricWriter, Progress, say
from capsjax.models import CapsNet, make_model
from capsjax.parallel import AXIS, parallel, replicated
from capsjax.workdir import Workdir, WorkdirError, default_path, write_json

_MOST_PARAMETERS = 2**30


class TrainState(NamedTuple):
    """Everything that the next step depends on, besides the data.

    Attributes:
        step: Optimizer steps done.
        augment_key: Of which each step folds its own key.
        params: The network's weights.
        opt_state: The optimizer's.
        average: The moving average of the weights, if the recipe wants one.
    """

    step: Int[Array, ""]
    augment_key: Key[Array, ""]
    params: Any
    opt_state: Any
    average: Any

    @property
    def evaluated(self) -> Any:
        """The weights that are evaluated: the average, if there is one."""
        return self.params if self.average is None else self.average


def make_optimizer(
    config: configs.Optimizer, num_steps: int
) -> optax.GradientTransformation:
    """Adam with the learning rate's schedule over so many steps."""
    rate = config.learning_rate
    after = max(1, num_steps - config.warmup_steps)
    schedule = {
        "constant": lambda: optax.constant_schedule(rate),
        "exponential": lambda: optax.exponential_decay(
            rate, config.decay_steps, config.decay_rate, end_value=config.floor
        ),
        "cosine": lambda: optax.cosine_decay_schedule(
            rate, after, alpha=config.floor / rate
        ),
    }[config.schedule]()
    if config.warmup_steps:
        rise = optax.linear_schedule(0.0, rate, config.warmup_steps)
        schedule = optax.join_schedules([rise, schedule], [config.warmup_steps])
    return optax.adam(schedule, config.b1, config.b2, config.eps)


def init_state(
    model: CapsNet, optimizer: optax.GradientTransformation, config: configs.Config
) -> TrainState:
    """The state before the first step: a function of the seed."""
    init_key, augment_key = jax.random.split(jax.random.key(config.seed))
    params = model.init(init_key, jnp.zeros((1, *model.image_shape)))
    average = jax.tree.map(jnp.copy, params) if config.optimizer.average else None
    step = jnp.zeros((), jnp.int32)
    return TrainState(step, augment_key, params, optimizer.init(params), average)


def make_train_step(
    model: CapsNet, optimizer: optax.GradientTransformation, config: configs.Config
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """One update, as a function of the state and one device's share of the batch.

    It runs under ``AXIS``, over which gradients and metrics are averaged.
    """

    def loss_fn(params, image, label):
        mask = jax.nn.one_hot(label, model.num_classes)
        each = image_metrics(model, params, image, label, loss=config.loss, mask=mask)
        means = jax.tree.map(jnp.mean, each)
        return means.loss, means

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.augment_key, state.step)
        image = scale_to_unit(_shifted(key, batch.image, config.data.max_shift))
        grads, metrics = jax.grad(loss_fn, has_aux=True)(
            state.params, image, batch.label
        )
        grads, metrics = jax.lax.pmean((grads, metrics), AXIS)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if config.optimizer.average:
            decay = _average_decay(state.step, config.optimizer.average)
            average = optax.incremental_update(params, average, 1 - decay)
        return TrainState(
            state.step + 1, state.augment_key, params, opt_state, average
        ), metrics

    return train_step


def make_train_chunk(train_step: Callable) -> Callable:
    """Several steps in one: the batches are stacked along a first axis."""

    def train_chunk(state: TrainState, batches: Batch) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(train_step, state, batches)

    return train_chunk


def chunk_end(step: int, *, steps_per_dispatch: int, steps_per_epoch: int) -> int:
    """The step at which the chunk that ``step`` is in ends.

    Chunks are counted from the start of each epoch and end with it at the latest.
    """
    done = step % steps_per_epoch
    end = (done // steps_per_dispatch + 1) * steps_per_dispatch
    return step - done + min(end, steps_per_epoch)


def stack_batches(
    dataset: Dataset, steps: range, *, batch_size: int, seed: int, devices: int
) -> Batch:
    """The batches of these steps, ``[device, step, image, ...]``."""
    indices = np.stack(
        [batch_indices(len(dataset), batch_size, seed, step) for step in steps]
    )
    by_device = indices.reshape(len(steps), devices, -1).swapaxes(0, 1)
    flat = dataset.batch(by_device.ravel())
    return Batch(*(array.reshape(*by_device.shape, *array.shape[1:]) for array in flat))


def train(
    config: configs.Config, workdir: Workdir, *, command: str = ""
) -> dict[str, Any] | Interrupt:
    """Trains, or goes on training; at the end evaluates on the test images.

    Args:
        config: The run.
        workdir: Its folder; nothing is written there before everything is checked.
        command: How it was started, for ``result.json``.

    Returns:
        What ``result.json`` holds; or what interrupted the run.

    Raises:
        ConfigError: If a field is wrong, or does not fit the data or the devices.
        DatasetError: If the data can't be had.
        WorkdirError: If the folder is in use, holds another run or can't be written.
        CheckpointError: If a checkpoint can't be read or written.
        FloatingPointError: If the loss is no longer a number.
    """
    configs.validate(config)
    task = _make_task(config)
    with noticed() as interrupt, contextlib.ExitStack() as stack:
        stack.enter_context(workdir.locked())
        workdir.check(config)
        if (result := _finished(config, workdir)) is not None:
            say(f"{workdir.path} is finished; its result stays.")
            return result
        run = _Run(config, task, workdir, stack)
        while run.step < run.num_steps and interrupt.signal is None:
            before = run.step
            run.train_epoch(interrupt)
            if run.step > before and run.step % run.steps_per_epoch == 0:
                run.validate_and_save()
        if run.step < run.num_steps:
            run.save_interrupted()
            return interrupt
        return run.finish(command)


class _Task(NamedTuple):
    """What is learnt, checked before anything is written."""

    train_set: Dataset
    validation_set: Dataset | None
    test_set: Dataset
    model: CapsNet


def _make_task(config: configs.Config) -> _Task:
    data, devices = config.data, jax.local_device_count()
    if config.batch_size % devices:
        raise configs.ConfigError(
            f"config.batch_size={config.batch_size} can't be shared evenly by "
            f"{devices} devices; choose a multiple of {devices}."
        )
    if config.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise configs.ConfigError(
            "config.tensorboard needs tensorboardX: pip install 'capsjax[tensorboard]'."
        )
    train_set, test_set = load(data.name, "train"), load(data.name, "test")
    if test_set.image_shape != train_set.image_shape:
        raise DatasetError(
            f"{data.name}: the test images are {test_set.image_shape}, the training "
            f"images {train_set.image_shape}: they must be of one shape."
        )
    if data.num_validation >= len(train_set):
        raise configs.ConfigError(
            f"config.data.num_validation={data.num_validation} leaves none of the "
            f"{len(train_set)} training images."
        )
    train_set, validation_set = split_validation(train_set, data.num_validation)
    for field, wanted in (
        ("data.num_train", data.num_train),
        ("batch_size", config.batch_size),
    ):
        if wanted > len(train_set):
            raise configs.ConfigError(
                f"config.{field}={wanted} is more than the {len(train_set)} training "
                "images that there are."
            )
        if field == "data.num_train" and wanted:
            train_set = train_set.subset(np.arange(wanted))
    height, width, _ = train_set.image_shape
    if data.max_shift >= min(height, width):
        raise configs.ConfigError(
            f"config.data.max_shift={data.max_shift} moves images of {height}x{width} "
            "out of sight."
        )
    try:
        model = make_model(config.model, train_set.image_shape, train_set.num_classes)
        init_key = jax.eval_shape(lambda: jax.random.key(0))
        image = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)
        params = jax.eval_shape(model.init, init_key, image)
    except ValueError as error:
        raise configs.ConfigError(str(error)) from error
    if num_parameters(params) > _MOST_PARAMETERS:
        raise configs.ConfigError(
            f"config.model has {num_parameters(params):,} parameters; at most "
            f"{_MOST_PARAMETERS:,} are allowed."
        )
    return _Task(train_set, validation_set, test_set, model)


class _Run:
    """One run in this process: task, state, and where it writes."""

    def __init__(
        self,
        config: configs.Config,
        task: _Task,
        workdir: Workdir,
        stack: contextlib.ExitStack,
    ):
        self.config, self.workdir = config, workdir
        self.train_set, self.validation_set, self.test_set, self.model = task
        self.steps_per_epoch = len(self.train_set) // config.batch_size
        self.num_steps = config.num_epochs * self.steps_per_epoch
        self.optimizer = make_optimizer(config.optimizer, self.num_steps)
        self.eval_step = parallel(make_eval_step(self.model, config.loss))
        self.chunks: dict[int, Callable] = {}  # by number of steps
        self.checkpoints: Checkpoints[TrainState] = Checkpoints(workdir.checkpoints)
        stack.callback(self.checkpoints.close)
        self.state = self._restored()
        self.step = int(self.state.step)
        if self.step > self.num_steps:
            raise configs.ConfigError(
                f"config.num_epochs={config.num_epochs} is less than the "
                f"{self.step / self.steps_per_epoch:g} epochs that are done in "
                f"{workdir.path}."
            )
        write_json(workdir.config, configs.to_dict(config))
        write_json(
            workdir.dataset,
            {
                "name": self.train_set.name,
                "image_shape": self.train_set.image_shape,
                "class_names": self.train_set.class_names,
            },
        )
        self.writer = MetricWriter(
            workdir.metrics,
            step=self.step,
            tensorboard=workdir.tensorboard if config.tensorboard else None,
        )
        stack.callback(self.writer.close)
        # Of now: by the end the sources may have changed.
        self.provenance = _provenance()
        self._introduce()

    @property
    def epoch(self) -> int:
        """The epoch of the last step done, from 1."""
        return max(0, self.step - 1) // self.steps_per_epoch + 1

    def _restored(self) -> TrainState:
        init = functools.partial(init_state, self.model, self.optimizer, self.config)
        if (latest := self.checkpoints.latest) is None:
            return jax.jit(init, out_shardings=replicated())()
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=replicated()
            ),
            jax.eval_shape(init),
        )
        return self.checkpoints.restore(latest, like)

    def _introduce(self) -> None:
        devices = jax.local_devices()
        validation = 0 if self.validation_set is None else len(self.validation_set)
        say(
            f"{self.train_set.name}: {len(self.train_set)} images to train on, "
            f"{validation} to validate; "
            f"{num_parameters(self.state.params):,} parameters; "
            f"{len(devices)} x {devices[0].device_kind}; {self.workdir.path}"
        )
        if self.step:
            say(
                f"going on after step {self.step} of {self.num_steps} "
                f"(epoch {self.epoch} of {self.config.num_epochs})"
            )

    def train_epoch(self, interrupt: Interrupt) -> None:
        """Trains to the end of the epoch, or of the chunk that is interrupted."""
        epoch = self.step // self.steps_per_epoch + 1
        end = epoch * self.steps_per_epoch
        # Before the progress bar, so that its rate is that of the training.
        self._compiled(self._next_chunk())
        with Progress(
            f"epoch {epoch}/{self.config.num_epochs}",
            total=self.steps_per_epoch,
            initial=self.steps_per_epoch - (end - self.step),
        ) as progress:
            while self.step < end and interrupt.signal is None:
                metrics = self._train_chunk()
                rate = metrics.pop("images_per_second")
                text = f"loss {metrics['loss']:.4f}, accuracy {metrics['accuracy']:.2%}"
                progress.advance_to(
                    self.step - end + self.steps_per_epoch,
                    f"{text}, {rate:.0f} images/s",
                )

    def _next_chunk(self) -> range:
        """The next steps to be taken in one call of the device program."""
        end = chunk_end(
            self.step,
            steps_per_dispatch=self.config.steps_per_dispatch,
            steps_per_epoch=self.steps_per_epoch,
        )
        whole = end - self.step == self.config.steps_per_dispatch
        return range(self.step, end if whole else self.step + 1)

    def _compiled(self, steps: range) -> Callable:
        """The program for so many steps: a whole chunk, or a single step."""
        if len(steps) not in self.chunks:
            say(f"compiling the training step ({len(steps)} in one call) ...")
            train_step = make_train_step(self.model, self.optimizer, self.config)
            program = parallel(make_train_chunk(train_step), donate=True)
            self.chunks[len(steps)] = program.lower(
                self.state, self._batches(steps)
            ).compile()
        return self.chunks[len(steps)]

    def _batches(self, steps: range) -> Batch:
        return stack_batches(
            self.train_set,
            steps,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            devices=jax.local_device_count(),
        )

    def _train_chunk(self) -> dict[str, float]:
        """Takes the next steps and writes down their mean metrics."""
        steps = self._next_chunk()
        program = self._compiled(steps)
        started = time.monotonic()
        self.state, stacked = program(self.state, self._batches(steps))
        means = {
            name: float(np.mean(values, dtype=np.float64))
            for name, values in zip(
                Metrics._fields, map(np.asarray, stacked), strict=True
            )
        }
        images = len(steps) * self.config.batch_size
        self.step = steps.stop
        self._require_finite("training", means["loss"])
        means["images_per_second"] = images / (time.monotonic() - started)
        self.writer.write("train", step=self.step, epoch=self.epoch, **means)
        return means

    def _require_finite(self, kind: str, loss: float) -> None:
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the {kind} loss is {loss} after step {self.step}; nothing of that "
                f"was saved in {self.workdir.path}. Try a lower learning rate."
            )

    def validate_and_save(self) -> None:
        """Ends an epoch."""
        if self.validation_set is None:
            self.checkpoints.save(self.step, self.state)
            return
        metrics = self._evaluate(
            "validation", self.validation_set, self.state.evaluated, self.step
        )
        best = self.checkpoints.best
        is_better = best is None or metrics.loss <= best[1]
        say(
            f"epoch {self.epoch}/{self.config.num_epochs}: validation loss "
            f"{metrics.loss:.6f}, accuracy {metrics.accuracy:.2%}"
            + (" (improved)" if is_better else "")
        )
        self.checkpoints.save(self.step, self.state, loss=float(metrics.loss))

    def save_interrupted(self) -> None:
        """Saves in the middle of an epoch and says how to go on."""
        if self.checkpoints.latest != self.step:
            self.checkpoints.save(self.step, self.state)
        self.checkpoints.wait()
        say(
            f"stopped after step {self.step} of {self.num_steps}, saved in "
            f"{self.workdir.path}. The same command goes on from there."
        )

    def finish(self, command: str) -> dict[str, Any]:
        """Evaluates the best and the last state on the test images, once each."""
        self.checkpoints.wait()
        last = self._tested(self.state, self.step)
        best = None
        if self.checkpoints.best is not None:
            step, _ = self.checkpoints.best
            best = last
            if step != self.step:
                state = self.checkpoints.restore(step, self.state)
                best = self._tested(state, step)
        result = {
            "test": best or last,
            "test_of_last": last,
            "num_parameters": num_parameters(self.state.params),
            "num_epochs": self.config.num_epochs,
            "seconds": round(self._seconds(), 1),
            "command": command,
            **self.provenance,
        }
        write_json(self.workdir.result, result)
        return result

    def _tested(self, state: TrainState, step: int) -> dict[str, Any]:
        metrics = self._evaluate("test", self.test_set, state.evaluated, step)
        return {"step": step, **metrics._asdict()}

    def _evaluate(self, kind: str, dataset: Dataset, params: Any, step: int) -> Metrics:
        started = time.monotonic()
        with Progress(kind, total=len(dataset)) as progress:
            metrics = evaluate(
                self.eval_step,
                params,
                dataset,
                batch_size=self.config.eval_batch_size,
                advance=progress.advance_to,
            )
        self._require_finite(kind, float(metrics.loss))
        rate = len(dataset) / (time.monotonic() - started)
        epoch = (step - 1) // self.steps_per_epoch + 1
        self.writer.write(
            kind, step=step, epoch=epoch, **metrics._asdict(), images_per_second=rate
        )
        return metrics

    def _seconds(self) -> float:
        """Spent in steps and evaluations, over all starts of the run."""
        total, step = 0.0, 0
        sizes = {
            "validation": len(self.validation_set or ()),
            "test": len(self.test_set),
        }
        for text in self.workdir.metrics.read_text().splitlines():
            line = json.loads(text)
            if line["kind"] == "train":
                images = (line["step"] - step) * self.config.batch_size
                step = line["step"]
            else:
                images = sizes[line["kind"]]
            total += images / line["images_per_second"]
        return total


def num_parameters(params: Any) -> int:
    """How many numbers the weights are."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _finished(config: configs.Config, workdir: Workdir) -> dict[str, Any] | None:
    """What the run came to, if it has ended and that can still be read."""
    try:
        result = workdir.read_json(workdir.result)
        is_whole = result["num_epochs"] >= config.num_epochs and result["test"]["loss"]
    except (WorkdirError, KeyError, TypeError):
        return None
    return result if is_whole else None


def _provenance() -> dict[str, Any]:
    """What made a number: versions, device, commit."""
    devices = jax.local_devices()
    folder = pathlib.Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        # Installed inside some other repository, its commit would be the wrong one.
        git("ls-files", "--error-unmatch", "train.py")
        described = git("describe", "--always", "--dirty", "--abbrev=40")
    except (OSError, subprocess.CalledProcessError):
        described = None
    return {
        "versions": {
            "python": platform.python_version(),
            **{
                name: importlib.metadata.version(name)
                for name in ("capsjax", "jax", "jaxlib", "flax", "optax")
            },
        },
        "device": f"{len(devices)} x {devices[0].device_kind}, {os.cpu_count()} cores",
        "commit": described,
    }


def _shifted(key: Key[Array, ""], image: Array, max_shift: int) -> Array:
    """Shifts this device's share, drawn for the batch of all devices.

    So the shifts are a function of seed and step, not of the number of devices.
    """
    if max_shift == 0:
        return image
    share = len(image)
    shifts = draw_shifts(key, share * jax.lax.axis_size(AXIS), max_shift)
    start = jax.lax.axis_index(AXIS) * share
    return apply_shifts(
        image, jax.lax.dynamic_slice_in_dim(shifts, start, share), max_shift
    )


def _average_decay(step: Array, decay: float) -> Array:
    """Short at first, so that the random start is soon forgotten."""
    return jnp.minimum(decay, (1 + step) / (10 + step))


def main(argv: Sequence[str]) -> int:
    """The command line: trains, and returns the exit code."""
    try:
        config, path = parse(argv, __doc__ or "")
        keep_compiled_programs()
        workdir = Workdir(path or default_path(config))
        outcome = train(config, workdir, command=shlex.join(sys.orig_argv))
    except (UsageError, configs.ConfigError) as error:
        return _fail(error, 2)
    except (DatasetError, WorkdirError, CheckpointError, FloatingPointError) as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return 130
    if isinstance(outcome, Interrupt):
        return outcome.exit_code
    test = outcome["test"]
    print(
        f"test accuracy {test['accuracy']:.2%}, loss {test['loss']:.6f} "
        f"(step {test['step']}; {workdir.result})"
    )
    return 0


def _fail(error: Exception, code: int) -> int:
    print(f"capsjax.train: error: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv))
