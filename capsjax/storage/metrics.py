"""Writes the metrics of a run: one JSON object a line."""

import contextlib
import json
import os
import pathlib
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from capsjax.runtime.console import warn
from capsjax.storage.files import write_text, writing


class MetricWriter:
    """Appends one JSON object a line to a file, and to TensorBoard on request.

    A line has ``kind`` (train, validation or test), ``step`` (optimizer steps done),
    ``epoch`` (the step's, from 1), ``images_per_second`` and the metrics, means over
    images: ``loss``, ``accuracy`` (0 to 1) and, if the network and the data have them,
    the others in :class:`capsjax.training.objective.Metrics`.

    Args:
        path: The file; None to write nothing.
        step: The step from which the run goes on. Lines of later steps are dropped, and
            lines of tests, which are made again at the end.
        tensorboard: A folder for TensorBoard's event files, or None.
        on_record: Called with each record once it is on disk, or None.

    Raises:
        WorkdirError: If the file can't be read or written.
    """

    def __init__(
        self,
        path: pathlib.Path | None,
        *,
        step: int,
        tensorboard: pathlib.Path | None,
        on_record: Callable[[dict[str, Any]], None] | None = None,
    ):
        self._path, self._tensorboard = path, tensorboard
        self._on_record = on_record
        self._events: _Events | None = None
        if path is None:
            return
        if tensorboard is not None:
            self._draw(lambda: setattr(self, "_events", _Events(tensorboard, step + 1)))
        with writing(path):
            if path.exists():
                kept = [
                    line
                    for line in path.read_text("utf-8", "replace").splitlines()
                    if _is_kept(line, step)
                ]
                write_text(path, "".join(f"{line}\n" for line in kept))
            # Unbuffered, so that nothing is left to write later.
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115, for the run

    def write(self, kind: str, *, step: int, epoch: int, **metrics: float) -> None:
        """Writes one line, on disk when this returns."""
        if self._path is None:
            return
        line = {"kind": kind, "step": step, "epoch": epoch, **metrics}
        with writing(self._path):
            self._append(f"{json.dumps(line, allow_nan=False)}\n".encode())
        if (events := self._events) is not None:
            named = {f"{kind}/{name}": value for name, value in metrics.items()}
            self._draw(lambda: events.add(named, step))
        if self._on_record is not None:
            self._on_record(line)

    def _append(self, data: bytes) -> None:
        """Appends all or nothing: on a full disk only the first half would fit."""
        end = os.fstat(self._file.fileno()).st_size
        try:
            while data:
                data = data[self._file.write(data) :]
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(end)
            raise

    def close(self) -> None:
        """Closes the files."""
        if self._path is not None:
            self._file.close()
        if self._events is not None:
            self._draw(self._events.close)

    def _draw(self, write: Callable[[], None]) -> None:
        """Writes for TensorBoard; warns and gives up at the first failure.

        The metrics file has the same numbers, and its failure stops the run.
        """
        try:
            write()
        except OSError as error:
            warn(
                f"can't write {self._tensorboard}: {error.strerror}; TensorBoard gets "
                "no more of this run."
            )
            if self._events is not None:
                with contextlib.suppress(OSError):
                    self._events.close()
            self._events = None


class _Events:
    """An event file of TensorBoard.

    ``tensorboardX.SummaryWriter`` writes in a thread, where an error prints a
    traceback, and later writes wait forever.

    Args:
        folder: Folder of the file.
        purge_step: Earlier files' values are hidden from this step on.

    Raises:
        OSError: Here and in every method, if the file can't be written.
    """

    def __init__(self, folder: pathlib.Path, purge_step: int):
        from tensorboardX import record_writer
        from tensorboardX.proto import event_pb2, summary_pb2

        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
        self._file = record_writer.RecordWriter(str(folder / name))
        # Typed as Any: these modules make their names when imported.
        self._event: Any = event_pb2
        self._summary: Any = summary_pb2
        self._write(file_version="brain.Event:2")
        start = self._event.SessionLog(status=self._event.SessionLog.START)
        self._write(step=purge_step, session_log=start)

    def add(self, values: dict[str, float], step: int) -> None:
        """Writes scalars, on disk when this returns."""
        summary = self._summary.Summary
        scalars = [
            summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
        ]
        self._write(step=step, summary=summary(value=scalars))

    def _write(self, **fields: Any) -> None:
        event = self._event.Event(wall_time=time.time(), **fields)
        self._file.write(event.SerializeToString())
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _is_kept(text: str, step: int) -> bool:
    """Returns whether to keep a line. False for a torn one: its step was not saved."""
    try:
        line = json.loads(text)
        kind = line.pop("kind")
        # A damaged file may hold anything.
        numbers = [line["step"], line["epoch"], line["images_per_second"]]
        are_finite = all(
            type(value) in (int, float) and abs(value) <= sys.float_info.max
            for value in line.values()
        )
        return (
            kind in ("train", "validation")
            and are_finite
            and min(numbers) > 0
            and line["step"] <= step
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
