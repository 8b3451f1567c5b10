"""One training run, from its start or its last checkpoint to its result.

The training step is in ``capsjax.training.step``.
"""

import collections
import contextlib
import functools
import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from capsjax import config as configs
from capsjax.data import Dataset
from capsjax.models import num_parameters
from capsjax.runtime.console import Progress, say, warn
from capsjax.runtime.devices import parallel, replicated
from capsjax.runtime.hosts import (
    agree_to_stop,
    is_writer,
    require_same,
    wait_for_all,
)
from capsjax.runtime.interrupt import Interrupt, Interrupted, noticed
from capsjax.runtime.platforms import platform
from capsjax.storage import history
from capsjax.storage.checkpoints import Checkpoints
from capsjax.storage.files import WorkdirError, write_json
from capsjax.storage.metrics import MetricWriter
from capsjax.storage.provenance import provenance
from capsjax.storage.run import Run, load_run
from capsjax.storage.workdir import Workdir
from capsjax.training.evaluation import drawing_limit, evaluate, make_eval_step
from capsjax.training.feed import Feed
from capsjax.training.finetuning import Start, read_start
from capsjax.training.objective import Metrics
from capsjax.training.outcomes import Call, OutcomeReader, epoch_of
from capsjax.training.sets import named_after
from capsjax.training.state import TrainState, first_state, init_state
from capsjax.training.step import is_slow_in_a_loop, make_train_chunk, make_train_step
from capsjax.training.task import Task, make_task, wherever


def train(
    config: configs.Config,
    workdir: Workdir | str | os.PathLike[str],
    datasets: Sequence[Dataset] | None = None,
    *,
    on_metrics: Callable[[dict[str, Any]], None] | None = None,
) -> Run:
    """Trains, or resumes training; at the end evaluates on the test images.

    Args:
        config: The config of the run.
        workdir: Its folder. All checks pass before anything is written there.
        datasets: The images to train on and to test, ``(train, test)``, or ``(train,
            validation, test)``; None to load the images that the config names. The
            other fields of ``config.data`` apply to them, too.
        on_metrics: Called with each record that ``metrics.jsonl`` gets. An exception in
            it ends the run, which resumes from its last checkpoint.

    Returns:
        The run, as ``capsjax.load_run`` opens it; ``result`` has its metrics.

    Raises:
        Interrupted: If a signal stopped the run, after it has saved. It is a
            ``KeyboardInterrupt``.
        ConfigError: If a field is wrong, or does not fit the data or the devices, or
            ``JAX_DISABLE_JIT`` is set.
        DatasetError: If the data can't be found or read.
        WorkdirError: If the folder is in use, holds another run or can't be written.
        CheckpointError: If a checkpoint can't be read or written.
        FloatingPointError: If a loss or gradient is not finite.
        HostsError: If the processes do not share one run.

    Examples:
        >>> import contextlib
        >>> import tempfile
        >>> import numpy as np
        >>> from capsjax.config import Config, Data
        >>> from capsjax.data import Dataset
        >>> from capsjax.models import BaselineCNN
        >>> from capsjax.training import train
        >>> few = Dataset("few", np.zeros((8, 4, 4), np.uint8), np.arange(8) % 2)
        >>> model = BaselineCNN(conv_features=(2,), conv_kernel=3, hidden_features=())
        >>> config = Config(num_epochs=1, batch_size=8, model=model, test=False)
        >>> config.data = Data(num_validation=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with contextlib.redirect_stdout(None):  # Without its log.
        ...         run = train(config, f"{folder}/run", (few, few))
        >>> run.step, run.result["epochs_done"]
        (1, 1)
    """
    workdir = workdir if isinstance(workdir, Workdir) else Workdir(workdir)
    complete(config, workdir, datasets, on_metrics=on_metrics)
    return load_run(workdir.path, config=config)


def complete(
    config: configs.Config,
    workdir: Workdir,
    datasets: Sequence[Dataset] | None = None,
    *,
    on_metrics: Callable[[dict[str, Any]], None] | None = None,
    command: str = "",
    may_exit: bool = False,
) -> dict[str, Any]:
    """Trains a run to its end, like :func:`train`, without opening it.

    Args:
        config: As in ``train``, like the next three.
        workdir: The run's folder.
        datasets: Images in memory.
        on_metrics: A function of each record.
        command: The command that started the run, for ``result.json``.
        may_exit: True if a second Ctrl-C may end the process: for a command only.

    Returns:
        The content of ``result.json``.
    """
    # Check config, data and folder; nothing is written yet.
    configs.validate(config)
    if jax.config.values["jax_disable_jit"]:
        raise configs.ConfigError(
            "JAX_DISABLE_JIT is set. Unset it: a step that is not compiled takes "
            "minutes."
        )
    config = workdir.keep_start(config)
    if datasets is not None:
        config = named_after(config, datasets)
    task = make_task(config, workdir.split_rule(), datasets)
    _require_countable(config, len(task.train_set))
    about = task.about()
    workdir.check(config, task.sets)
    start = None if workdir.has_saved else read_start(config, task.model, workdir)
    result = _finished(config, workdir)
    # Compare the processes before the first of them writes.
    same_config, same_images = wherever(config, task)
    require_same(
        {
            "their configuration": same_config,
            "their images": same_images,
            "the weights that they start from": start and start.about(),
            "whether the run has ended": result is None,
        }
    )
    if result is not None:
        say(f"{workdir.path} is finished; its result stays.")
        return result
    # JAX itself passes SIGTERM on between several processes.
    signals = (signal.SIGINT,) if jax.distributed.is_initialized() else None
    with (
        noticed(signals, may_exit=may_exit) as interrupt,
        contextlib.ExitStack() as stack,
    ):
        if is_writer():
            stack.enter_context(workdir.locked())
            # Another run may have locked the folder first: check again.
            workdir.check(config, task.sets)
        wait_for_all("the folder is this run's")
        run = Trainer(
            *(config, task, about, workdir, stack, interrupt), start, on_metrics
        )
        agree_to_stop(interrupt, run.num_chunks)
        # Train, epoch by epoch.
        while not run.has_ended and interrupt.signal is None:
            before = run.step
            run.train_epoch()
            if run.step > before and run.step % run.steps_per_epoch == 0:
                run.validate_and_save()
        # Test, or save for a later start.
        if run.has_ended:
            with contextlib.suppress(_InterruptedError):
                return run.finish(command)
        run.save_interrupted()
    assert interrupt.signal is not None
    raise Interrupted(interrupt.signal)


class _InterruptedError(Exception):
    """A signal to stop arrived during the test."""


class Trainer:
    """One run in this process: its task, its state and its files."""

    def __init__(
        self,
        config: configs.Config,
        task: Task,
        about: dict[str, Any],
        workdir: Workdir,
        stack: contextlib.ExitStack,
        interrupt: Interrupt,
        start: Start | None = None,
        on_metrics: Callable[[dict[str, Any]], None] | None = None,
    ):
        self.config, self.workdir, self.interrupt = config, workdir, interrupt
        self.num_chunks = 0
        self.unread: collections.deque[Call] = collections.deque()
        self.train_set, self.validation_set, self.test_set, *_ = task
        self.model, self.loss = task.model, task.loss
        self.class_weight = task.class_weight
        self.steps_per_epoch = len(self.train_set) // config.batch_size
        self.num_steps = config.num_epochs * self.steps_per_epoch
        self.optimizer = config.optimizer.make(self.num_steps)
        self.feed = Feed(config, self.train_set, is_idle=self._devices_are_idle)
        stack.callback(self.feed.close)
        self.test_step = self.validation_step = parallel(
            make_eval_step(self.model, self.loss)
        )
        if self.class_weight is not None:
            self.validation_step = parallel(
                make_eval_step(self.model, self.loss, self.class_weight)
            )
        self.chunks: dict[int, Callable] = {}  # by number of steps
        # Restore the last checkpoint, or start anew.
        self.checkpoints: Checkpoints[TrainState] = Checkpoints(workdir.checkpoints)
        stack.callback(self.checkpoints.close)
        self.state, start = self._restored(start)
        self.step = int(self.state.step)
        if self.step > self.num_steps:
            raise configs.ConfigError(
                f"config.num_epochs={config.num_epochs} is less than the "
                f"{self.step / self.steps_per_epoch:g} epochs done in "
                f"{workdir.path}."
            )
        # Write the files that describe the run.
        self.history: list[history.Stage] = []
        if is_writer():
            begun = {} if start is None else {"init_from": start.about()}
            self.history = history.record(workdir, config, self.step, begun)
            write_json(workdir.config, configs.to_dict(config))
            write_json(workdir.dataset, about)
        self.writer = MetricWriter(
            workdir.metrics if is_writer() else None,
            step=self.step,
            tensorboard=workdir.tensorboard if config.tensorboard else None,
            on_record=on_metrics,
        )
        stack.callback(self.writer.close)
        self.reader = OutcomeReader(config, workdir, self.train_set, self.writer)
        # Read now: the sources may change during the run.
        self.provenance = provenance()
        self._introduce()

    @property
    def epoch(self) -> int:
        """Epoch of the last step done, from 1."""
        return epoch_of(self.step, self.steps_per_epoch)

    @property
    def has_ended(self) -> bool:
        """True if all epochs are done, or a validation reached ``stop_at``."""
        accuracy = self.checkpoints.accuracy(self.step)
        is_good = accuracy is not None and 0 < self.config.stop_at <= accuracy
        return is_good or self.step == self.num_steps

    def _restored(self, start: Start | None) -> tuple[TrainState, Start | None]:
        """Returns the last state saved, or a new one and the start that it has."""
        init = functools.partial(init_state, self.model, self.optimizer, self.config)
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=replicated()
            ),
            jax.eval_shape(init),
        )
        if (restored := self.checkpoints.restore_latest(like)) is not None:
            return restored[1], None
        # Checkpoints that can't be read may be in the folder.
        start = start or read_start(self.config, self.model, self.workdir)
        if start is not None:
            say(str(start))
        variables = None if start is None else start.variables
        return first_state(self.model, self.optimizer, self.config, variables), start

    def _introduce(self) -> None:
        devices = jax.devices()
        validation = 0 if self.validation_set is None else len(self.validation_set)
        say(
            f"{self.train_set.name}: {len(self.train_set)} images to train on, "
            f"{validation} to validate; "
            f"{len(devices)} x {devices[0].device_kind}; {self.workdir.path}"
        )
        if (num_processes := jax.process_count()) > 1:
            say(
                f"{num_processes} processes: when one of them dies, the others end "
                "soon after (--heartbeat_seconds); start all again to resume from the "
                "last checkpoint"
            )
        if self.step:
            say(
                f"going on after step {self.step} of {self.num_steps} "
                f"(epoch {self.epoch} of {self.config.num_epochs})"
            )
        optimizer = self.config.optimizer
        if optimizer.warmup_steps >= self.num_steps:
            warn(
                f"config.optimizer.warmup_steps={optimizer.warmup_steps} is not below "
                f"the {self.num_steps} steps of the run: the rate never reaches "
                f"config.optimizer.learning_rate={optimizer.learning_rate}"
            )

    def train_epoch(self) -> None:
        """Trains to the end of the epoch, or of the chunk that is interrupted."""
        epoch = self.step // self.steps_per_epoch + 1
        end = epoch * self.steps_per_epoch
        # Compile before the progress bar starts, to keep that time out of its rate.
        self._compiled(self.feed.next_steps(self.step))
        with Progress(
            f"epoch {epoch}/{self.config.num_epochs}",
            total=self.steps_per_epoch,
            initial=self.steps_per_epoch - (end - self.step),
        ) as progress:
            while self.step < end and self.interrupt.signal is None:
                metrics = self._train_chunk()
                self.checkpoints.check()
                self.num_chunks += 1
                agree_to_stop(self.interrupt, self.num_chunks)
                if not metrics:
                    continue
                rate = metrics["images_per_second"]
                text = f"loss {metrics['loss']:.4f}, accuracy {metrics['accuracy']:.2%}"
                progress.advance_to(
                    self.step - end + self.steps_per_epoch,
                    f"{text}, {rate:.0f} images/s",
                )
            self._read_outcomes()

    def _compiled(self, steps: range) -> Callable:
        """Returns the program of a call: of a whole chunk, or of a single step."""
        if len(steps) not in self.chunks:
            say(f"compiling the training step ({len(steps)} in one call) ...")
            lowered = self._lowered(steps)
            if is_slow_in_a_loop(lowered):
                say(
                    "the network has convolutions of XLA, which a CPU computes many "
                    "times as slowly in a loop: one step in one call"
                )
                self.feed.steps_per_dispatch = 1
                steps = steps[:1]
                lowered = self._lowered(steps, has_loop=False)
            self.chunks[len(steps)] = lowered.compile()
        return self.chunks[len(steps)]

    def _lowered(self, steps: range, *, has_loop: bool = True) -> jax.stages.Lowered:
        train_step = make_train_step(
            *(self.model, self.optimizer, self.config, self.loss),
            self.class_weight,
            num_steps=self.num_steps,
        )
        program = parallel(make_train_chunk(train_step, has_loop=has_loop), donate=True)
        return program.lower(self.state, self.feed.batches(steps))

    def _train_chunk(self) -> dict[str, float]:
        """Starts the next steps; returns the mean metrics of the last read, if any.

        On an accelerator the next call starts before the outcome of this one is read,
        so no step waits for the host.
        """
        steps = self.feed.next_steps(self.step)
        program, started = self._compiled(steps), time.monotonic()
        self.state, outcome = program(self.state, self.feed.batches(steps))
        self.step = steps.stop
        self.unread.append(Call(steps, outcome, started))
        return self._read_outcomes(platform(jax.default_backend()).calls_ahead)

    def _devices_are_idle(self) -> bool:
        """Returns True if all calls that were started have ended."""
        ended: Any = [call.outcome.is_shared for call in self.unread]
        return all(array.is_ready() for array in ended)

    def _read_outcomes(self, num_left: int = 0) -> dict[str, float]:
        """Reads the outcomes of calls, oldest first, until ``num_left`` are left."""
        means: dict[str, float] = {}
        while len(self.unread) > num_left:
            means = self.reader.read(self.unread.popleft(), self.state.params)
        return means

    def _require_finite(self, kind: str, loss: float) -> None:
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the {kind} loss is {loss} after step {self.step}, which was not "
                f"saved in {self.workdir.path}. Try a lower learning rate."
            )

    def validate_and_save(self) -> None:
        """Validates if there are images for it, and saves a checkpoint."""
        if self.validation_set is None:
            self._save()
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
        self._save(loss=float(metrics.loss), accuracy=float(metrics.accuracy))
        if self.has_ended and self.step < self.num_steps:
            say(f"that is at least config.stop_at={self.config.stop_at}: the run ends")

    def _save(self, **validated: float) -> None:
        self.workdir.require_held()
        self.checkpoints.save(self.step, self.state, **validated)

    def save_interrupted(self) -> None:
        """Saves in the middle of an epoch; prints the way to resume."""
        if self.checkpoints.latest != self.step:
            self._save()
        self.checkpoints.wait()
        place = f"after step {self.step} of {self.num_steps}"
        say(
            f"stopped {place if self.step else 'before the first step'}, saved in "
            f"{self.workdir.path}. The same command goes on from there."
        )

    def finish(self, command: str) -> dict[str, Any]:
        """Tests the best and the last state if the config wants it; writes the result.

        Args:
            command: The command that started the run.

        Returns:
            The content of ``result.json``.
        """
        self.checkpoints.wait()
        accuracy = self.checkpoints.accuracy(self.step) or 0.0
        if accuracy < self.config.stop_at:
            say(
                f"config.stop_at={self.config.stop_at} was not reached: after the last "
                f"epoch validation accuracy is {accuracy:.2%}"
            )
        # Test the last and the best state.
        last = best = None
        best_step = (self.checkpoints.best or [self.step])[0]
        if self.config.test:
            last = best = self._tested(self.state.evaluated, self.step)
            weights = {self.state.evaluated_name: self.state.evaluated}
            restored = self.checkpoints.restore_best(weights, partly=True)
            if restored is not None and restored[0] != self.step:
                best_step, weights = restored
                best = self._tested(weights[self.state.evaluated_name], best_step)
        # Write the result.
        result = {
            "test": best,
            "test_of_last": last,
            "tested_before": _tests_before(self.workdir),
            "validation": self._validated(best_step),
            "validation_of_last": self._validated(self.step),
            "history": self.history,
            "num_parameters": num_parameters(self.state.params["params"]),
            "num_epochs": self.config.num_epochs,
            "epochs_done": self.epoch,
            "seconds": round(self._seconds(), 1) if is_writer() else None,
            "command": command,
            **self.provenance,
        }
        if is_writer():
            write_json(self.workdir.result, result)
        return result

    def _validated(self, step: int) -> dict[str, Any] | None:
        """Returns the validation metrics of a step, if this process wrote them."""
        if not is_writer():
            return None
        for line in self.workdir.read_metrics():
            if line["kind"] == "validation" and line["step"] == step:
                without = ("kind", "epoch", "images_per_second")
                return {k: value for k, value in line.items() if k not in without}
        return None

    def _tested(self, params: Any, step: int) -> dict[str, Any]:
        metrics = self._evaluate("test", self.test_set, params, step)
        return {"step": step, **metrics.known()}

    def _evaluate(self, kind: str, dataset: Dataset, params: Any, step: int) -> Metrics:
        started = time.monotonic()

        def advance(done: int) -> None:
            progress.advance_to(done)
            # A test can be repeated; a validation belongs to the checkpoint.
            if kind == "test" and not jax.distributed.is_initialized():
                self.interrupt.signal = self.interrupt.noted
                if self.interrupt.signal is not None:
                    raise _InterruptedError

        errors: list[Any] = []
        with Progress(kind, total=len(dataset)) as progress:
            metrics = evaluate(
                self.test_step if kind == "test" else self.validation_step,
                params,
                dataset,
                batch_size=self.config.eval_batch_size,
                advance=advance,
                errors=errors if kind == "validation" else None,
            )
        self._require_finite(kind, float(metrics.loss))
        limit = drawing_limit(errors)
        drawn = {} if limit is None else {"drawing_limit": limit}
        rate = len(dataset) / (time.monotonic() - started)
        epoch = epoch_of(step, self.steps_per_epoch)
        self.writer.write(
            kind,
            step=step,
            epoch=epoch,
            **metrics.known(),
            **drawn,
            images_per_second=rate,
        )
        return metrics

    def _seconds(self) -> float:
        """Returns the time spent in steps and evaluations, over all starts."""
        total, step = 0.0, 0
        sizes = {
            "validation": len(self.validation_set or ()),
            "test": len(self.test_set),
        }
        for line in self.workdir.read_metrics():
            if line["kind"] == "train":
                images = (line["step"] - step) * self.config.batch_size
                step = line["step"]
            else:
                images = sizes[line["kind"]]
            total += images / line["images_per_second"]
        return total


def _require_countable(config: configs.Config, num_images: int) -> None:
    """Raises if the number of steps exceeds 32 bits, in which the device counts."""
    num_steps = config.num_epochs * (num_images // config.batch_size)
    if num_steps >= 2**31:
        raise configs.ConfigError(
            f"config.num_epochs={config.num_epochs} are {num_steps:,} steps; at most "
            "2^31 - 1 are allowed."
        )


def _finished(config: configs.Config, workdir: Workdir) -> dict[str, Any] | None:
    """Returns the stored result of a finished run, or None."""
    try:
        result = workdir.read_json(workdir.result)
        is_long_enough = result["num_epochs"] >= config.num_epochs
        is_whole = result["test"]["loss"] if result["test"] or config.test else True
    except (WorkdirError, KeyError, TypeError):
        return None
    return result if is_long_enough and is_whole else None


def _tests_before(workdir: Workdir) -> list[dict[str, Any]]:
    """Returns the test results of the shorter run that this run extends."""
    try:
        before = workdir.read_json(workdir.result)
        names = ("num_epochs", "test", "test_of_last")
        tested = [{name: before[name] for name in names}] if before["test"] else []
        return [*before["tested_before"], *tested]
    except (WorkdirError, KeyError, TypeError):
        return []
