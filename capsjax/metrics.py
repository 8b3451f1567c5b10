"""What a run tells: JSON lines for programs, a bar or plain lines for people."""

import json
import os
import pathlib
import sys
import time
from typing import Any

import tqdm

from capsjax.workdir import write_text

# A chunk of steps takes a few seconds on a small machine: so a line comes every ten.
_SECONDS_BETWEEN_LINES = 4


class MetricWriter:
    """Appends one JSON object a line to a file; to TensorBoard too, if asked.

    A line has ``kind`` (train, validation or test), ``step`` (optimizer steps done),
    ``epoch`` (of that step, from 1) and the metrics: ``loss``, ``margin_loss`` and
    ``reconstruction_loss`` (means over images, the latter two not weighted),
    ``accuracy`` (0 to 1) and ``images_per_second``.

    Args:
        path: The file.
        step: Lines of later steps are dropped: the run goes on from here.
        tensorboard: A folder for TensorBoard's event files, or None.

    Raises:
        ValueError: If TensorBoard is asked for and the extra is not installed.
    """

    def __init__(
        self, path: pathlib.Path, *, step: int, tensorboard: pathlib.Path | None
    ):
        self._summary = (
            None if tensorboard is None else _open_summary(tensorboard, step)
        )
        if path.exists():
            lines = [
                line for line in path.read_text().splitlines() if _step(line) <= step
            ]
            write_text(path, "".join(f"{line}\n" for line in lines))
        self._file = open(path, "a")  # noqa: SIM115, open as long as the run

    def write(self, kind: str, *, step: int, epoch: int, **metrics: float) -> None:
        """Writes one line, on disk when this returns."""
        line = {"kind": kind, "step": step, "epoch": epoch, **metrics}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._summary is not None:
            for name, value in metrics.items():
                self._summary.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Closes the files."""
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
        self._title, self._total, self._done = title, total, initial
        self._start = self._last = time.monotonic()
        self._initial = initial
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm.tqdm(
                desc=title,
                total=total,
                initial=initial,
                leave=False,
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {remaining} left{postfix}",
            )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance_to(self, done: int, text: str) -> None:
        """So many steps are done; the text says how it goes."""
        self._done = done
        now = time.monotonic()
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(done - self._bar.n)
        elif now - self._last > _SECONDS_BETWEEN_LINES:
            self._last = now
            rate = (now - self._start) / (self._done - self._initial)
            left = tqdm.tqdm.format_interval(rate * (self._total - self._done))
            text = f"{text}, {left} left" if text else f"{left} left"
            say(f"{self._title}, {self._done} of {self._total}: {text}")


def say(text: str) -> None:
    """Prints a line for people, above a progress bar if there is one."""
    tqdm.tqdm.write(text, file=sys.stderr if sys.stderr.isatty() else sys.stdout)
    sys.stdout.flush()


def _step(line: str) -> int | float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # A line torn by a crash: of a step that was not saved.


def _open_summary(folder: pathlib.Path, step: int) -> Any:
    try:
        import tensorboardX
    except ImportError:
        raise ValueError(
            "config.tensorboard needs tensorboardX: pip install 'capsjax[tensorboard]'."
        ) from None
    return tensorboardX.SummaryWriter(str(folder), purge_step=step + 1)
