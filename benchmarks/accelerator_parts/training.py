"""Runs the real trainer, for a while or to its end, and reads what it wrote."""

import contextlib
import os
import pathlib
import runpy
import signal
import statistics
import threading
import time
from typing import Any

import jax
from jax.extend import backend

from capsjax import config as configs
from capsjax import train
from capsjax.runtime.interrupt import Interrupted, noticed
from capsjax.storage.files import WorkdirError
from capsjax.storage.workdir import Workdir

ROOT = pathlib.Path(__file__).resolve().parents[2]
_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


def recipe(variant: str = "") -> configs.Config:
    """A recipe of ``experiments/mnist.py``, without the command line's parser."""
    return runpy.run_path(str(ROOT / "experiments" / "mnist.py"))["get_config"](variant)


def shrink(config: configs.Config) -> None:
    """Makes a run one of seconds on a CPU."""
    # A whole number of calls an epoch, as the last steps are compiled one by one.
    config.batch_size, config.steps_per_dispatch = 50, 10
    config.data.num_train, config.data.num_validation = 1000, 200
    config.model = config.model.clone(
        conv_features=8, primary_types=2, primary_stride=4, decoder_features=(16,)
    )


class Trained:
    """What a run did: the rows of its metrics, and what they took.

    Attributes:
        result: What ``train`` returned: a result, or what interrupted it.
        rows: The lines of ``metrics.jsonl``.
        seconds: From start to end.
        compile_seconds: Of them in XLA's compiler, or in reading what it has kept.
        memory_bytes: What the largest program held: arguments and temporaries.
        stream: Images a second between two lines of the metrics, with everything that
            the trainer does in between; None of a run that was too short.
    """

    def __init__(
        self,
        config: configs.Config,
        folder: pathlib.Path,
        *,
        seconds: float,
        limit: float,
        trace: pathlib.Path | None = None,
    ):
        self.compile_seconds, self.memory_bytes, self.stream = 0.0, 0, None
        self._before = {id(one) for one in backend.get_backend().live_executables()}
        self._batch, self._trace = config.batch_size, trace
        self._error: Exception | None = None
        workdir = Workdir(folder)
        ended = threading.Event()
        watcher = threading.Thread(
            target=self._watch, args=(workdir, ended, seconds, limit), daemon=True
        )
        started = time.monotonic()
        jax.monitoring.register_event_duration_secs_listener(self._count)
        watcher.start()
        try:
            # The watcher may be late: outside of the run its signal does nothing.
            with noticed((signal.SIGINT,), may_exit=True):
                try:
                    self.result: Any = train.train(config, workdir).result
                except Interrupted as interrupted:
                    self.result = interrupted
                finally:
                    ended.set()
                    watcher.join()
        finally:
            jax.monitoring.unregister_event_duration_listener(self._count)
        self.seconds = time.monotonic() - started
        if self._error is not None:
            raise self._error
        self.rows = list(workdir.read_metrics())

    def _count(self, event: str, seconds: float, **_: Any) -> None:
        if event == _COMPILE_EVENT:
            self.compile_seconds += seconds

    def _watch(
        self, workdir: Workdir, ended: threading.Event, seconds: float, limit: float
    ) -> None:
        """Interrupts the run after some seconds of steps, as Ctrl-C would."""
        try:
            self._look_on(workdir, ended, seconds, time.monotonic() + limit)
        except Exception as error:  # Whatever it is, the run must end.
            self._error = error
        if not ended.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    def _look_on(
        self, workdir: Workdir, ended: threading.Event, seconds: float, latest: float
    ) -> None:
        while not (first := _steps(workdir)) and time.monotonic() < latest:
            if ended.wait(0.02):
                return
        begun, last = time.monotonic(), first
        with contextlib.suppress(Exception):  # Not every backend tells of its programs.
            self.memory_bytes = self._largest_program()
        if self._trace is not None:
            jax.profiler.start_trace(str(self._trace))
            ended.wait(min(seconds, 1.0))
            jax.profiler.stop_trace()
        while not ended.wait(0.02):
            now = time.monotonic()
            if len(rows := _steps(workdir)) > len(last) and first:
                last = rows
                steps = last[-1] - first[-1]
                self.stream = steps * self._batch / (now - begun)
            has_enough = now - begun > seconds and len(last) >= len(first) + 2
            if has_enough or now > latest:
                return

    def _largest_program(self) -> int:
        largest = 0
        for program in backend.get_backend().live_executables():
            if id(program) in self._before:
                continue
            stats = program.get_compiled_memory_stats()
            held = stats.argument_size_in_bytes + stats.temp_size_in_bytes
            held += stats.output_size_in_bytes - stats.alias_size_in_bytes
            largest = max(largest, held)
        return largest

    @property
    def images_per_second(self) -> float:
        """The median of what the run wrote of its steps, without the first line."""
        rates = [
            row["images_per_second"] for row in self.rows if row["kind"] == "train"
        ]
        if len(rates) < 2:
            raise ValueError("the time was over before a second line of metrics")
        return statistics.median(rates[1:])


def _steps(workdir: Workdir) -> list[int]:
    try:
        rows = workdir.read_metrics()
    except WorkdirError:  # There is no line yet.
        return []
    return [row["step"] for row in rows if row["kind"] == "train"]
