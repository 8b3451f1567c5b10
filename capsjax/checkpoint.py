"""Saving and restoring the state of a run; the only file that knows Orbax.

Kept are the latest checkpoint, from which a run goes on, and the best by validation
loss, which is its result.
"""

import logging
import pathlib
from typing import Any, Generic, TypeVar

from orbax.checkpoint import v1 as ocp

State = TypeVar("State")
_POLICIES = ocp.training.preservation_policies


class CheckpointError(Exception):
    """A checkpoint can't be read or written; the message says which and why."""


class Checkpoints(Generic[State]):
    """The checkpoints of one run.

    Args:
        folder: Where they are; made by the first ``save``.
        read_only: Whether another process may be saving there.
    """

    def __init__(self, folder: pathlib.Path, *, read_only: bool = False):
        # Its notes on every save are for Orbax's developers.
        logging.getLogger("absl").setLevel(logging.ERROR)
        # Orbax's own annotations of its policies contradict each other.
        always: Any = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
        latest_and_best: Any = _POLICIES.AnyPreservationPolicy(
            [
                _POLICIES.LatestN(1),
                # It keeps the largest metric.
                _POLICIES.BestN(
                    get_metric_fn=lambda metrics: -_loss(metrics),
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        self._checkpointer = ocp.training.Checkpointer(
            str(folder.absolute()),
            save_decision_policy=always,
            preservation_policy=latest_and_best,
            cleanup_tmp_directories=not read_only,
        )

    @property
    def steps(self) -> list[int]:
        """The steps at which there is a checkpoint, in order."""
        return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

    @property
    def latest(self) -> int | None:
        """The last step saved, if any."""
        return max(self.steps, default=None)

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and validation loss of the best, if one was validated."""
        losses = {
            checkpoint.step: float(_loss(checkpoint.metrics))
            for checkpoint in self._checkpointer.checkpoints
            if checkpoint.metrics
        }
        if not losses:
            return None
        # Of equal ones the later, as the preservation policy does.
        return min(losses.items(), key=lambda item: (item[1], -item[0]))

    def save(self, step: int, state: State, *, loss: float | None = None) -> None:
        """Starts to save in the background; ``wait`` waits for it.

        Args:
            step: Optimizer steps done.
            state: A pytree of arrays.
            loss: The validation loss; None if there was no validation at this step.

        Raises:
            CheckpointError: If this or the previous checkpoint can't be written.
        """
        metrics: Any = None if loss is None else {"loss": loss}
        try:
            self._checkpointer.save_checkpointables_async(
                step, {"state": state}, metrics=metrics, force=True, overwrite=True
            )
        except Exception as error:
            raise _explained(f"can't save step {step}", error) from error

    def restore(self, step: int, like: State, *, partly: bool = False) -> State:
        """Reads the state of a step.

        Args:
            step: One of ``steps``.
            like: A pytree of arrays or ``jax.ShapeDtypeStruct`` of the same form; the
                result goes to the devices that it names.
            partly: Whether ``like`` may have fewer leaves than what was saved.

        Raises:
            CheckpointError: If the checkpoint is damaged or of another form.
        """
        context = ocp.Context()
        context.pytree.loading.partial_load = partly
        try:
            with context:
                loaded = self._checkpointer.load_checkpointables(step, {"state": like})
        except Exception as error:
            raise _explained(
                f"can't read the checkpoint of step {step}", error
            ) from error
        return loaded["state"]

    def wait(self) -> None:
        """Waits until everything is on disk.

        Raises:
            CheckpointError: If it can't be written.
        """
        try:
            self._checkpointer.wait()
        except Exception as error:
            raise _explained("can't save", error) from error

    def close(self) -> None:
        """Waits, then frees what the saving holds."""
        self._checkpointer.close()


def _loss(metrics: Any) -> float:
    return metrics["loss"]


def _explained(what: str, error: BaseException) -> CheckpointError:
    """Orbax hides the reason at the end of a chain of causes."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # pyright: ignore[reportAssignmentType]
    return CheckpointError(f"{what}: {type(error).__name__}: {error}")
