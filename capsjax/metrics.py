"""The metrics of a run: one JSON object a line."""

import json
import os
import pathlib
import sys

from capsjax.workdir import write_text, writing


class MetricWriter:
    """Appends one JSON object a line to a file; to TensorBoard too, if asked.

    A line has ``kind`` (train, validation or test), ``step`` (optimizer steps done),
    ``epoch`` (of that step, from 1), ``images_per_second`` and the metrics, means over
    images: ``loss``, ``accuracy`` (0 to 1) and, as far as the network and the data have
    them, the others of :class:`capsjax.measure.Metrics`.

    Args:
        path: The file; None to write nothing.
        step: The run goes on from here: lines of later steps are dropped, and those of
            tests, which are made again at its end.
        tensorboard: A folder for TensorBoard's event files, or None.

    Raises:
        WorkdirError: If the file can't be read or written.
    """

    def __init__(
        self, path: pathlib.Path | None, *, step: int, tensorboard: pathlib.Path | None
    ):
        self._path = path
        self._summary = None
        if path is None:
            return
        with writing(path):
            if tensorboard is not None:
                import tensorboardX

                self._summary = tensorboardX.SummaryWriter(
                    str(tensorboard), purge_step=step + 1
                )
            if path.exists():
                kept = [
                    line
                    for line in path.read_text(errors="replace").splitlines()
                    if _is_kept(line, step)
                ]
                write_text(path, "".join(f"{line}\n" for line in kept))
            # Without a buffer, so that nothing is left to be written later.
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115, for the run

    def write(self, kind: str, *, step: int, epoch: int, **metrics: float) -> None:
        """Writes one line, on disk when this returns."""
        if self._path is None:
            return
        line = {"kind": kind, "step": step, "epoch": epoch, **metrics}
        with writing(self._path):
            self._append(f"{json.dumps(line, allow_nan=False)}\n".encode())
            if self._summary is not None:
                for name, value in metrics.items():
                    self._summary.add_scalar(f"{kind}/{name}", value, step)

    def _append(self, data: bytes) -> None:
        """Whole or not at all: on a full disk only the first half would fit."""
        end = os.fstat(self._file.fileno()).st_size
        try:
            while data:
                data = data[self._file.write(data) :]
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(end)
            raise

    def close(self) -> None:
        """Closes the files.

        Raises:
            WorkdirError: If what is left for TensorBoard can't be written.
        """
        if self._path is None:
            return
        with writing(self._path):
            self._file.close()
            if self._summary is not None:
                self._summary.close()


def _is_kept(text: str, step: int) -> bool:
    """Not so a line torn by a crash, as its step was not saved either."""
    try:
        line = json.loads(text)
        kind = line.pop("kind")
        # Of a damaged file anything may come.
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
