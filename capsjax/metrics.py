"""What a run tells: JSON lines for programs, a bar or plain lines for people."""

import json
import os
import pathlib
import sys
import threading
import time
from typing import Any

import tqdm

from capsjax.hosts import is_writer
from capsjax.workdir import write_text, writing

_SECONDS_BETWEEN_LINES = 4
_SECONDS_OF_SILENCE = 8


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


class Progress:
    """A bar over the steps of an epoch on a terminal, plain lines anywhere else.

    Args:
        title: What stands before the bar.
        total: Steps in all.
        initial: Steps done before.
    """

    def __init__(self, title: str, *, total: int, initial: int = 0):
        self._title, self._total, self._initial = title, total, initial
        self._done, self._text = initial, ""
        self._start = self._last = time.monotonic()
        self._bar = None
        self._ended = threading.Event()
        if not is_writer():
            return
        if sys.stderr.isatty():
            self._bar = tqdm.tqdm(
                desc=title,
                total=total,
                initial=initial,
                leave=False,
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {remaining} left{postfix}",
            )
        else:
            threading.Thread(target=self._tick, daemon=True).start()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._bar is not None:
            self._bar.close()

    def advance_to(self, done: int, text: str = "") -> None:
        """So many steps are done; the text says how it goes."""
        self._done, self._text = done, text
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(done - self._bar.n)
        elif is_writer() and time.monotonic() - self._last > _SECONDS_BETWEEN_LINES:
            self._print()

    def _tick(self) -> None:
        # A chunk of steps may take longer than a reader is patient.
        while not self._ended.wait(1):
            if time.monotonic() - self._last > _SECONDS_OF_SILENCE:
                self._print()

    def _print(self) -> None:
        self._last = time.monotonic()
        parts = [self._text] if self._text else []
        if steps := self._done - self._initial:
            rate = (self._last - self._start) / steps
            left = tqdm.tqdm.format_interval(rate * (self._total - self._done))
            parts.append(f"{left} left")
        parts = parts or ["working"]
        say(f"{self._title}, {self._done} of {self._total}: {', '.join(parts)}")


def say(text: str) -> None:
    """Prints a line for people, above a progress bar if there is one; one process."""
    if is_writer():
        _print(text, sys.stderr if sys.stderr.isatty() else sys.stdout)


def warn(text: str) -> None:
    """Prints a warning, beside what a program may read; one process."""
    if is_writer():
        _print(f"warning: {text}", sys.stderr)


def fail(text: str) -> None:
    """Prints an error; every process its own."""
    _print(text, sys.stderr)


def _print(text: str, file: Any) -> None:
    try:
        tqdm.tqdm.write(text, file=file)
        file.flush()
    except OSError:
        # Nobody listens, as after Ctrl-C in `train | tee log`. The run goes on; what
        # is still to be written must not fail as the interpreter ends, either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


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
