"""Reads the outcomes of training steps: writes their metrics, reports bad numbers."""

import io
import time
from typing import Any, NamedTuple

import numpy as np

from capsjax import config as configs
from capsjax.data import Dataset, Generated, batch_indices
from capsjax.runtime.console import warn
from capsjax.runtime.hosts import is_writer
from capsjax.storage.files import WorkdirError, write_bytes
from capsjax.storage.metrics import MetricWriter
from capsjax.storage.workdir import Workdir
from capsjax.training.state import split_weights
from capsjax.training.step import Outcome, parts

_MOST_SKIPPED = 100  # Steps skipped in a row, after which a run fails.
_MOST_BAD_BATCHES = 10  # Files.


class Call(NamedTuple):
    """A call of the device program whose outcome has not been read."""

    steps: range
    outcome: Outcome
    started: float


class OutcomeReader:
    """Reads the outcomes of a run's calls, oldest first."""

    def __init__(
        self,
        config: configs.Config,
        workdir: Workdir,
        train_set: Dataset | Generated,
        writer: MetricWriter,
    ):
        self._config, self._workdir = config, workdir
        self._train_set, self._writer = train_set, writer
        self._steps_per_epoch = len(train_set) // config.batch_size
        self._skipped_in_a_row = 0
        self._read_at = 0.0  # Time at which the last outcome was read.

    def read(self, call: Call, variables: Any) -> dict[str, float]:
        """Waits for a call and writes the mean metrics of its good steps.

        Args:
            call: The call.
            variables: The network's variables, for their names.

        Returns:
            The metrics; none if the numbers of all steps were bad.

        Raises:
            FloatingPointError: If a number is not finite, and the config stops then.
            ConfigError: If batch statistics differ between the devices.
        """
        steps, outcome, started = call
        is_finite = np.asarray(outcome.is_finite)
        weights, others = split_weights(variables, self._config.freeze)
        if not np.asarray(outcome.is_shared).all():
            raise self._unshared([name for name in others if name != "params"])
        seconds = -max(started, self._read_at)
        self._read_at = time.monotonic()
        seconds += self._read_at
        is_good = np.all(is_finite, axis=-1)
        for n in np.flatnonzero(~is_good).tolist():
            named = zip(parts(weights, outcome.metrics), is_finite[n], strict=True)
            self._bad_numbers(steps[n], [name for name, good in named if not good])
        if not is_good.any():
            return {}
        self._skipped_in_a_row = int(is_good[::-1].argmax())
        means = {
            name: float(np.mean(np.asarray(values)[is_good], dtype=np.float64))
            for name, values in outcome.metrics.known().items()
        }
        means["images_per_second"] = len(steps) * self._config.batch_size / seconds
        epoch = epoch_of(steps.stop, self._steps_per_epoch)
        self._writer.write("train", step=steps.stop, epoch=epoch, **means)
        return means

    def _unshared(self, collections: list[str]) -> configs.ConfigError:
        return configs.ConfigError(
            f"{', '.join(collections)} of {type(self._config.model).__name__} differ "
            "between the devices, each of which saw its share of the batch only. Give "
            "each nn.BatchNorm axis_name=capsjax.DEVICE_AXIS, so that its statistics "
            "cover the whole batch."
        )

    def _bad_numbers(self, step: int, bad: list[str]) -> None:
        """Reports a step whose update was skipped; raises if the config says "stop"."""
        num_steps = self._config.num_epochs * self._steps_per_epoch
        message = (
            f"step {step + 1} of {num_steps}: not finite: {', '.join(bad[:3])}"
            + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
            + f". Its update was not applied; {self._keep_batch(step)}."
        )
        self._skipped_in_a_row += 1
        if (
            self._config.bad_numbers == "skip"
            and self._skipped_in_a_row < _MOST_SKIPPED
        ):
            warn(message)
            return
        remedy = (
            "Try a lower learning rate, or --config.bad_numbers=skip to skip these "
            "steps."
            if self._config.bad_numbers == "stop"
            else f"These were {_MOST_SKIPPED} in a row: try a lower learning rate."
        )
        raise FloatingPointError(
            f"{message} The checkpoints in {self._workdir.path} are from earlier "
            f"steps. {remedy}"
        )

    def _keep_batch(self, step: int) -> str:
        """Saves the batch of a bad step; returns a phrase with its path or an error."""
        folder = self._workdir.bad_batches
        path = folder / f"step-{step + 1}.npz"
        if not is_writer():
            return f"for its batch see {folder}"
        try:
            folder.mkdir(exist_ok=True)
            others = set(folder.glob("*.npz")) - {path}
            if len(others) >= _MOST_BAD_BATCHES:
                return f"its batch is not kept: there are {len(others)} in {folder}"
            seed, epoch = self._config.seed, step // self._steps_per_epoch
            index = batch_indices(
                len(self._train_set), self._config.batch_size, seed, step
            )
            batch = self._train_set.in_epoch(seed, epoch).batch(index)._asdict()
            arrays = {name: a for name, a in batch.items() if a is not None}
            file = io.BytesIO()
            np.savez_compressed(file, index=index, **arrays)
            write_bytes(path, file.getvalue())
        except (OSError, WorkdirError) as error:
            return f"its batch could not be kept ({error})"
        return f"its batch is in {path}"


def epoch_of(step: int, steps_per_epoch: int) -> int:
    """Returns the epoch of a step, from 1."""
    return max(0, step - 1) // steps_per_epoch + 1
