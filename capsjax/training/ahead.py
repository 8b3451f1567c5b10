"""Reads the batches of coming steps from disk while the devices compute."""

import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from capsjax.data import Batch
from capsjax.data.workers import Ahead
from capsjax.runtime.console import warn

# Waiting is judged after so many seconds, and reported above this share of them.
_SECONDS_TO_JUDGE, _MOST_WAITING = 20, 0.1


class BatchesAhead:
    """The batches of a run's steps, in order, read ahead by threads.

    Args:
        read: Reads this process's share of the batches of some steps, ``[device, step,
            image, ...]``.
        place: The place of the images, for messages.
        num_steps: Steps of the whole run.
        num_ahead: Number of steps to read ahead.
        is_idle: Returns True if the devices have nothing to do.

    Attributes:
        waited: Seconds in which the devices waited for a batch, without the first.
        seconds: Seconds since the first batch.
    """

    def __init__(
        self,
        read: Callable[[range], Batch],
        *,
        place: str,
        num_steps: int,
        num_ahead: int,
        is_idle: Callable[[], bool],
    ):
        self._read, self._place, self._is_idle = read, place, is_idle
        self._num_steps, self._num_ahead = num_steps, max(2, num_ahead)
        self._ahead: Ahead[Batch] | None = None
        self._next = -1  # The step of the next batch that is read ahead.
        # A step is compiled with its first batch, and then computed with it.
        self._last: tuple[range, Batch] | None = None
        self._lock = threading.Lock()
        self._reading = self._computing = 0.0  # Seconds of the threads.
        self._started: float | None = None
        self._is_judged = False
        self.waited = 0.0

    @property
    def seconds(self) -> float:
        """Seconds since the first batch."""
        return 0.0 if self._started is None else time.monotonic() - self._started

    def take(self, steps: range) -> Batch:
        """Returns the batches of steps, ``[device, step, image, ...]``.

        Raises:
            DatasetError: If they can't be read.
        """
        if self._last is not None and steps.start == self._last[0].start:
            known, batches = self._last
            if len(steps) <= len(known):
                return jax.tree.map(lambda a: a[:, : len(steps)], batches)
        self._last = None
        if steps.start != self._next:
            self._start(steps.start)
        batches: Any = None
        for number in range(len(steps)):
            one = self._wait_for_next()
            if batches is None:
                batches = jax.tree.map(
                    lambda a: np.empty((len(a), len(steps), *a.shape[2:]), a.dtype), one
                )
            for whole, part in zip(
                jax.tree.leaves(batches), jax.tree.leaves(one), strict=True
            ):
                whole[:, number] = part[:, 0]
        self._next = steps.stop
        self._last = steps, batches
        self._judge()
        return batches

    def close(self) -> None:
        """Ends the threads."""
        if self._ahead is not None:
            self._ahead.close()

    def _start(self, step: int) -> None:
        self.close()
        self._ahead = Ahead(
            self._timed_read, step, self._num_steps, num_ahead=self._num_ahead
        )

    def _timed_read(self, step: int) -> Batch:
        begun, computed = time.monotonic(), time.thread_time()
        batch = self._read(range(step, step + 1))
        with self._lock:
            self._reading += time.monotonic() - begun
            self._computing += time.thread_time() - computed
        return batch

    def _wait_for_next(self) -> Batch:
        assert self._ahead is not None
        begun = time.monotonic()
        batch = next(self._ahead)
        if self._started is None:  # Nothing could be read ahead of the first.
            self._started = time.monotonic()
        elif self._is_idle():
            self.waited += time.monotonic() - begun
        return batch

    def _judge(self) -> None:
        """Prints once what limits the steps, if they wait too long for images."""
        seconds = self.seconds
        if self._is_judged or seconds < _SECONDS_TO_JUDGE:
            return
        share = self.waited / seconds
        if share <= _MOST_WAITING:
            return
        self._is_judged = True
        limit, remedy = "the disk limits", "a faster one by XDG_CACHE_HOME"
        if self._computing > self._reading / 2:
            limit, remedy = "the processors limit", "more of them"
        warn(
            f"{self._place}: the steps wait {share:.0%} of the time for images, and "
            f"{limit}: give them {remedy}, or hold the images in memory "
            "(--config.max_gigabytes)"
        )
