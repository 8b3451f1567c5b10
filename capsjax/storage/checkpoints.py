"""Saves and restores the state of a run; the only file that knows Orbax.

The two latest checkpoints are kept, to go on from the newer, and the best by validation
loss, the run's result. A checkpoint is used whole or not at all: each step has a record
of its leaves, their types, shapes and checksums, sealed by another checksum. The next
step takes the place of a damaged one.
"""

import contextlib
import errno
import json
import logging
import math
import os
import pathlib
import re
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from capsjax.runtime.console import warn
from capsjax.runtime.hosts import is_writer, require_same, wait_for_all
from capsjax.runtime.paths import exists

State = TypeVar("State")

_NUM_LATEST = 2
# The training run may take this long to delete a step from under a reader.
_SECONDS_TO_DELETE = 0.2
_STEP = re.compile("0|[1-9][0-9]*", re.ASCII)
# A killed save, or a half-deleted step.
_LEFT_OVER = re.compile(r"[0-9]+\.(deleted|orbax-checkpoint-tmp.*)", re.ASCII)
# Errors of disk, memory or permissions, which may pass: the file can be whole.
_PASSING = {
    *(errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM),
    *(errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT),
}


class CheckpointError(Exception):
    """A checkpoint can't be read or written; the message names it and the reason."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint differs from the saved state; another step may be whole."""


class _Save(NamedTuple):
    """A save that runs in the background.

    Attributes:
        step: The step being saved.
        response: Orbax's handle.
        obsolete: The steps to delete once this one is on disk.
    """

    step: int
    response: Any
    obsolete: set[int]


class Checkpoints(Generic[State]):
    """The checkpoints of one run.

    Args:
        folder: Their folder; made if it does not exist, unless ``read_only``.
        read_only: Whether another process may be saving there.

    Raises:
        CheckpointError: If the folder can't be used, or can't be read now.
    """

    def __init__(self, folder: pathlib.Path, *, read_only: bool = False):
        # Silences Orbax's log, made for its developers; this file reports damage.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        _hush_abandoned_reads()
        self._folder, self._read_only = folder.absolute(), read_only
        self._steps: set[int] = set()
        self._saving: _Save | None = None
        self._losses: dict[int, float] = {}
        self._accuracies: dict[int, float] = {}
        self._unknown: set[int] = set()  # Steps that may have been the best.
        try:
            if not read_only:
                self._clear_away()
        except OSError as error:
            raise _explained(f"can't use {folder}", error) from error
        self._list_steps()

    def _clear_away(self) -> None:
        """Makes the folder and deletes a killed process's leftovers."""
        if is_writer():
            self._folder.mkdir(parents=True, exist_ok=True)
            for path in self._folder.iterdir():
                if _LEFT_OVER.fullmatch(path.name):
                    shutil.rmtree(path)
        wait_for_all("the folder of checkpoints is clear")

    def _list_steps(self) -> None:
        """Reads the steps and their validation from disk."""
        try:
            names = [entry.name for entry in os.scandir(self._folder) if entry.is_dir()]
        except FileNotFoundError:
            names = []
        except OSError as error:
            raise _explained(f"can't use {self._folder}", error) from error
        self._steps = {int(name) for name in names if _STEP.fullmatch(name)}
        for step in self.steps:
            try:
                record = self._record(step)
            except DamagedCheckpointError:
                self._unknown.add(step)
                continue
            self._note(step, record["loss"], record.get("accuracy"))

    @property
    def steps(self) -> list[int]:
        """The steps of all checkpoints, including one being saved, in order."""
        return sorted(self._steps)

    @property
    def latest(self) -> int | None:
        """The last saved step, if any."""
        return max(self._steps, default=None)

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and validation loss of the best checkpoint, if one was validated."""
        step = self._best(self._steps)
        return None if step is None else (step, self._losses[step])

    def _best(self, steps: Iterable[int]) -> int | None:
        """Returns the step with the smallest loss, the later of equal ones."""
        validated = [step for step in steps if step in self._losses]
        return min(validated, key=lambda k: (self._losses[k], -k), default=None)

    def accuracy(self, step: int) -> float | None:
        """Returns the validation accuracy of a saved step, if it was validated."""
        return self._accuracies.get(step)

    def save(
        self,
        step: int,
        state: State,
        *,
        loss: float | None = None,
        accuracy: float | None = None,
    ) -> None:
        """Starts to save in the background; ``wait`` waits for it.

        Args:
            step: Optimizer steps done.
            state: A pytree of arrays.
            loss: The validation loss; None if this step was not validated.
            accuracy: The validation accuracy, likewise.

        Raises:
            CheckpointError: If this or the previous checkpoint can't be written; the
                message names the step.
        """
        self.wait()
        leaves = _described(state)
        for name, checksum in _checksums(state).items():
            leaves[name]["crc32"] = checksum
        validated = {"loss": loss, "accuracy": accuracy}
        record: Any = {"step": step, **validated, "leaves": leaves}
        if step in self._steps and is_writer():  # A damaged step is saved again.
            self._delete(step)
        self._unknown.discard(step)
        self._note(step, loss, accuracy)
        context = ocp.Context()
        # Makes folders here, where a failure is an error; in the background Orbax's
        # other threads would wait for them.
        context.async_options.create_directories_asynchronously = False
        try:
            with context:
                response = ocp.save_checkpointables_async(
                    str(self._folder / str(step)),
                    {"state": state},
                    custom_metadata={**record, "crc32": _seal(record)},
                )
        except Exception as error:
            raise self._unsaved(step, error) from error
        steps = self._steps | {step}
        kept = {self._best(steps), *sorted(steps)[-_NUM_LATEST:]}
        self._steps = steps & kept
        self._saving = _Save(step, response, steps - kept)

    def _note(self, step: int, loss: float | None, accuracy: float | None) -> None:
        for known, value in ((self._losses, loss), (self._accuracies, accuracy)):
            if value is not None:
                known[step] = value

    def restore_latest(
        self, like: State, *, partly: bool = False
    ) -> tuple[int, State] | None:
        """Reads step and state of the newest whole checkpoint; None if there is none.

        Prints a line for each damaged one and, unless ``read_only``, renames it to
        ``damaged-<step>``.

        Args:
            like: A pytree of arrays or ``jax.ShapeDtypeStruct`` with the same form; the
                result goes to its devices.
            partly: Whether ``like`` may have fewer leaves than the saved state.

        Raises:
            CheckpointError: If all are damaged, or one can't be read now, or is whole
                but has another form.
            HostsError: If another process has read another step.
        """
        return self._first_whole(lambda step: -step, like, partly=partly)

    def restore_best(
        self, like: Any, *, partly: bool = False
    ) -> tuple[int, Any] | None:
        """Reads the best whole checkpoint by validation loss, else the newest.

        Otherwise like ``restore_latest``. With ``partly``, unread leaves need not be
        whole.

        Raises:
            CheckpointError: If all are damaged, or one can't be read now, or is whole
                but has another form.
            HostsError: If another process has read another step.
        """

        def rank(step: int) -> tuple[float, int]:
            unknown = -math.inf if step in self._unknown else math.inf
            return self._losses.get(step, unknown), -step

        return self._first_whole(rank, like, partly=partly)

    def _first_whole(
        self, rank: Callable[[int], Any], like: Any, *, partly: bool
    ) -> tuple[int, Any] | None:
        damaged: dict[int, DamagedCheckpointError] = {}
        while there := set(self.steps) - damaged.keys():
            step = min(there, key=rank)
            try:
                state = self.restore(step, like, partly=partly)
            except DamagedCheckpointError as error:
                if self._read_only and self._is_gone(step):
                    self._list_steps()
                else:
                    damaged[step] = error
                continue
            for error in damaged.values():
                warn(f"{error} Step {step} takes its place.")
            self._require_same(step)
            self._set_aside(damaged)
            return step, state
        if not damaged:
            self._require_same(0)
            return None
        raise CheckpointError(
            f"no whole checkpoint is left in {self._folder}: "
            f"{' '.join(map(str, damaged.values()))} Nothing was changed there; train "
            "again in another --workdir."
        )

    def _require_same(self, step: int) -> None:
        if not self._read_only:
            require_same({"the step to go on from": step})

    def _is_gone(self, step: int) -> bool:
        """Returns whether the training run deletes the step, file by file."""
        deadline = time.monotonic() + _SECONDS_TO_DELETE
        while (self._folder / str(step)).exists():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def restore(self, step: int, like: Any, *, partly: bool = False) -> Any:
        """Reads the state of one step; see ``restore_latest``.

        Raises:
            DamagedCheckpointError: If it differs from the saved state.
            CheckpointError: If it has another form, or can't be read now.
        """
        leaves = self._record(step)["leaves"]
        wanted = _described(like)
        different = [
            name
            for name in {**wanted, **({} if partly else leaves)}
            if _form(leaves.get(name)) != _form(wanted.get(name))
        ]
        if different:
            name = different[0]
            more = f", and {len(different) - 1} more" if len(different) > 1 else ""
            raise CheckpointError(
                f"the checkpoint of step {step} in {self._folder} is of another "
                f"network: {name} is {_form(leaves.get(name))} there, "
                f"{_form(wanted.get(name))} here{more}."
            )
        context = ocp.Context()
        context.pytree.loading.partial_load = partly
        state: Any = None
        failure = None
        try:
            with context:
                path = str(self._folder / str(step))
                loaded = ocp.load_checkpointables(path, {"state": like})
            state = loaded["state"]
        except Exception as error:
            failure = _unread(step, error)
        if failure is not None:
            raise failure
        for name, checksum in _checksums(state).items():
            if checksum != leaves[name]["crc32"]:
                raise _damaged(step, f"the numbers of {name} are not the saved ones")
        return state

    def _record(self, step: int) -> Any:
        """Reads the record of a step: its leaves and its validation."""
        committed = self._folder / str(step) / "commit_success.txt"
        try:
            if not exists(committed):
                raise FileNotFoundError(f"{committed.name} is missing")
            metadata: Any = ocp.checkpointables_metadata(str(committed.parent))
            record = dict(metadata.custom_metadata or {})
        except Exception as error:
            raise _unread(step, error) from error
        if record.pop("crc32", None) != _seal(record) or record.get("step") != step:
            raise _damaged(step, "its checksums are missing or damaged")
        return record

    def _set_aside(self, steps: Iterable[int]) -> None:
        """Renames damaged steps, for inspection, to make way for the next saves."""
        if self._read_only or not (steps := list(steps)):
            return
        for step in steps if is_writer() else ():
            aside = self._folder / f"damaged-{step}"
            try:
                shutil.rmtree(aside, ignore_errors=True)
                (self._folder / str(step)).rename(aside)
            except OSError as error:
                raise _explained(f"can't set step {step} aside", error) from error
        wait_for_all("damaged steps are out of the way")
        self._list_steps()

    def check(self) -> None:
        """Raises the error of a failed save, without waiting for a running one.

        Raises:
            CheckpointError: If the save failed; the message names the step.
        """
        with contextlib.suppress(TimeoutError):
            self._finish(timeout=0.0)

    def wait(self) -> None:
        """Waits until everything is on disk.

        Raises:
            CheckpointError: If the save failed; the message names the step.
        """
        self._finish(timeout=None)

    close = wait

    def _finish(self, *, timeout: float | None) -> None:
        """Ends the save in the background, and deletes the steps it makes obsolete.

        Raises:
            TimeoutError: If the save takes longer.
            CheckpointError: If the save failed.
        """
        if (save := self._saving) is None:
            return
        try:
            save.response.result(timeout)
        except Exception as error:
            if timeout is not None and isinstance(error, TimeoutError):
                raise
            self._saving = None
            raise self._unsaved(save.step, error) from error
        self._saving = None
        for step in sorted(save.obsolete) if is_writer() else ():
            self._delete(step)

    def _unsaved(self, step: int, error: Exception) -> CheckpointError:
        with contextlib.suppress(CheckpointError):
            self._list_steps()  # The obsolete steps still exist.
        return _explained(f"can't save step {step}", error)

    def _delete(self, step: int) -> None:
        """Deletes a step; renames it first, so that it stops being one at once."""
        path = self._folder / str(step)
        aside = path.with_suffix(".deleted")
        try:
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
        except OSError as error:
            warn(f"can't delete the checkpoint of step {step} ({_cause(error)}).")
        # Files that a reader holds on a network disk are deleted at the next start.
        shutil.rmtree(aside, ignore_errors=True)


def _leaves(tree: Any) -> Iterable[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def _described(tree: Any) -> dict[str, Any]:
    return {
        name: {"dtype": str(leaf.dtype), "shape": list(leaf.shape)}
        for name, leaf in _leaves(tree)
    }


def _form(described: dict[str, Any] | None) -> str:
    if described is None:
        return "not"
    return f"{described['dtype']}[{','.join(map(str, described['shape']))}]"


def _checksums(tree: Any) -> dict[str, int]:
    def numbers(leaf: Any) -> bytes:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        data = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        return data.tobytes()

    return {name: zlib.crc32(numbers(leaf)) for name, leaf in _leaves(tree)}


def _seal(record: Any) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yields the chain of causes, at whose end Orbax hides the reason."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _cause(error: BaseException) -> str:
    *_, error = _chain(error)
    if number := _number(error):
        return f"OSError: {os.strerror(number)}"
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first[:200]}"


def _hush_abandoned_reads() -> None:
    """Silences the reads that Orbax abandons when one array can't be read.

    Otherwise the interpreter would print a traceback for each at any later time.
    """
    logger = logging.getLogger("asyncio")
    if _is_wanted not in logger.filters:
        logger.addFilter(_is_wanted)
        before = sys.unraisablehook
        sys.unraisablehook = lambda failure: _is_abandoned(failure) or before(failure)


def _is_wanted(record: logging.LogRecord) -> bool:
    return "never retrieved" not in record.getMessage()


def _is_abandoned(failure: Any) -> bool:
    code = getattr(failure.object, "cr_code", None)
    return "orbax" in getattr(code, "co_filename", "") or (
        isinstance(failure.exc_value, RuntimeError)
        and "Event loop is closed" in str(failure.exc_value)
    )


def _explained(what: str, error: BaseException) -> CheckpointError:
    return CheckpointError(f"{what}: {_cause(error)}")


def _unread(step: int, error: BaseException) -> CheckpointError:
    """Returns the error of a read: passing, or damage."""
    if reason := next(filter(None, map(_passing, _chain(error))), ""):
        return CheckpointError(
            f"can't read the checkpoint of step {step} now ({reason}); it may be "
            "whole. Try again."
        )
    return _damaged(step, _cause(error))


def _passing(error: BaseException) -> str:
    """Returns the reason if an error may pass, so that the file can be whole, or ""."""
    number = _number(error) or getattr(error, "errno", None)
    is_out_of_memory = str(error).startswith("RESOURCE_EXHAUSTED") and number is None
    if isinstance(error, MemoryError) or is_out_of_memory:
        return "not enough memory"
    return os.strerror(number) if number in _PASSING else ""


def _number(error: BaseException) -> int | None:
    """Finds the system's error number in TensorStore's present and former messages."""
    found = re.search(r"\[(?:OS error |os_error_code=')(\d+)", str(error))
    return int(found[1]) if found else None


def _damaged(step: int, cause: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(
        f"The checkpoint of step {step} is damaged ({cause})."
    )
