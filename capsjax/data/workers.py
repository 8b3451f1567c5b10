"""Reads ahead in threads and decodes in processes: the one file that knows Grain.

It is imported late: that takes a second, which images in memory need not wait for.
"""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from capsjax.data.errors import DatasetError

T = TypeVar("T")

# A process takes seconds to start.
_FEWEST_FOR_PROCESSES = 4096


def require_grain(place: str) -> None:
    """Raises if Grain is not installed.

    Raises:
        DatasetError: With the name of the images.
    """
    if importlib.util.find_spec("grain") is None:
        raise DatasetError(
            f"the images of {place} exceed the memory that is allowed, so Grain reads "
            "them from disk, and it is not installed: pip install grain, choose a "
            "smaller image_size, or allow for more memory"
        )


class Ahead(Generic[T]):
    """An iterator over the values of a function, some of which are computed ahead.

    Args:
        function: Called with ``first``, ``first + 1`` and so on, by several threads at
            once. An exception in it is raised where its value is due.
        first: The first argument.
        stop: The end of the arguments.
        num_ahead: Number of values computed ahead.
        num_threads: Number of threads.
    """

    def __init__(
        self,
        function: Callable[[int], T],
        first: int,
        stop: int,
        *,
        num_ahead: int,
        num_threads: int = 4,
    ):
        grain = _grain()
        options = grain.ReadOptions(
            num_threads=min(num_threads, num_ahead), prefetch_buffer_size=num_ahead
        )
        source = _Values(function, range(first, stop))
        self._values = iter(grain.MapDataset.source(source).to_iter_dataset(options))

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        (value,) = next(self._values)
        return value

    def close(self) -> None:
        """Ends the threads; without it Grain prints tracebacks at the exit."""
        self._values.close()


def in_processes(
    function: Callable[[int], T], arguments: Sequence[int], num_images: int
) -> Iterator[T]:
    """Yields the values of a function for each argument, in their order.

    Worker processes compute them, one for each processor that this process may use.
    This process does it alone if there is little to do, or if a worker could not import
    the main module without running it: a script may lack the guard ``if __name__ ==
    "__main__"``.

    Args:
        function: The function, which must pickle.
        arguments: Its arguments.
        num_images: Number of images that the function decodes in all calls, to judge
            whether processes are worth their start.
    """
    num_workers = min(_num_processors(), len(arguments))
    is_long = num_images >= _FEWEST_FOR_PROCESSES
    if num_workers < 2 or not is_long or not _main_is_guarded():
        yield from map(function, arguments)
        return
    grain = _grain()
    options = grain.MultiprocessingOptions(
        num_workers=num_workers, per_worker_buffer_size=1
    )
    values = iter(
        grain.MapDataset.source(_Values(function, arguments))
        # One call at a time in each process.
        .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
        .mp_prefetch(options)
    )
    try:
        for (value,) in values:
            yield value
    finally:
        values.close()  # pyright: ignore[reportAttributeAccessIssue]


class _Values(Generic[T]):
    """The values of a function as a source of Grain's, each in a tuple.

    Grain skips None.
    """

    def __init__(self, function: Callable[[int], T], arguments: Sequence[int]):
        self._function, self._arguments = function, arguments

    def __len__(self) -> int:
        return len(self._arguments)

    def __getitem__(self, number: Any) -> tuple[T]:
        return (self._function(self._arguments[int(number)]),)


def _grain() -> ModuleType:
    import grain
    from absl import flags

    # Outside of an absl application Grain fails at flags that are not parsed.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    return grain


def _num_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _main_is_guarded() -> bool:
    """Returns True if a process can import the main module without running it."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    if file is None:  # A notebook, which is not imported.
        return True
    try:
        return "__name__ ==" in Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
