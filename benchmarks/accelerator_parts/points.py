"""What every part has: points in order of worth, a clock, and a file of records."""

import json
import math
import pathlib
import statistics
import time
import traceback
from collections.abc import Callable
from typing import Any

import jax


class Part:
    """One part in its own process.

    Every record is a line of JSON, written at once: what a killed part has measured
    stays. A point leaves a line when it begins and another when it ends, so that the
    parent knows where a part was killed, and what it left.

    Args:
        name: The part.
        records: The file that all parts append to.
        scratch: A folder for caches and runs, deleted at the end.
        seconds: The part's share; after it no point is begun.
        quick: Whether everything is tiny, and an accelerator not needed.
        has_runs: Whether correctness trains, kills and resumes whole runs.
        torch_python: The interpreter that has PyTorch.
    """

    def __init__(
        self,
        name: str,
        records: pathlib.Path,
        scratch: pathlib.Path,
        *,
        seconds: float,
        quick: bool,
        has_runs: bool,
        torch_python: str,
    ):
        self.name, self.records, self.scratch = name, records, scratch
        self.end = time.monotonic() + seconds
        self.quick, self.has_runs = quick, has_runs
        self.torch_python = torch_python

    @property
    def seconds_left(self) -> float:
        return self.end - time.monotonic()

    def write(self, **record: Any) -> None:
        line = json.dumps(finite({"part": self.name, **record}), allow_nan=False)
        with open(self.records, "a") as file:
            file.write(f"{line}\n")

    def need_accelerator(self) -> None:
        """Writes down the device; ends the part if JAX has found nothing but a CPU.

        JAX falls back to the CPU with a warning only, and the rest of the time would be
        spent on sizes that are not for one.
        """
        device = jax.devices()[0]
        memory = (device.memory_stats() or {}).get("bytes_limit")
        about = {"platform": device.platform, "kind": device.device_kind}
        self.write(about=about | {"count": jax.device_count(), "memory_bytes": memory})
        if device.platform == "cpu" and not self.quick:
            raise SystemExit("JAX sees no accelerator; --quick is for a CPU")

    def run(self, points: dict[str, Callable[[], dict[str, Any]]]) -> None:
        """Measures the points in their order, as long as there is time.

        Args:
            points: By name, functions that return the figures.
        """
        self.write(points=list(points))
        for name, measure in points.items():
            if self.seconds_left <= 0:
                break
            self.write(began=name)
            started = time.monotonic()
            try:
                figures = measure()
            except Exception as error:
                text = "".join(traceback.format_exception(error))
                self.write(point=name, error=first_line(error), traceback=text[-3000:])
            else:
                seconds = round(time.monotonic() - started, 2)
                self.write(point=name, point_seconds=seconds, **figures)


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0][:300]}"


def finite(value: Any) -> Any:
    """The value with texts for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {str(name): finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def seconds_of(call: Callable[[], Any], *, seconds: float) -> float:
    """Median time of a call; many are queued, so that the host's part is hidden.

    Args:
        call: Starts work on the device and returns what it makes.
        seconds: How long to measure, about.
    """

    def batch(times: int) -> float:
        started = time.perf_counter()
        for _ in range(times - 1):
            call()
        jax.block_until_ready(call())
        return (time.perf_counter() - started) / times

    batch(1)  # What is slow once only.
    times = min(1000, max(1, round(seconds / 5 / max(batch(2), 1e-6))))
    return statistics.median(batch(times) for _ in range(5))
