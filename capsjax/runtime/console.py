"""Prints everything that people and programs read: lines, errors, a progress bar.

Every text passes :func:`printable` before it is printed or drawn. :func:`answer` writes
results and nothing else; a result that can't be written is an error. Lines of
:func:`say`, :func:`warn` and :func:`fail` may be lost without harm.
"""

import contextlib
import errno
import functools
import json
import math
import os
import sys
import threading
import time
import unicodedata
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import tqdm

from capsjax.runtime.hosts import is_writer

_SECONDS_BETWEEN_LINES = 4
_SECONDS_OF_SILENCE = 8
# Characters that an ASCII terminal lacks and that have a plain form.
_PLAIN = {"±": "+-", "\u00d7": "x", "\u2026": "...", "\u2013": "-", "\u2212": "-"}
# Format characters that change no direction and that scripts and emoji need.
_JOINERS = "\u200c\u200d"
# The error after which a stream was given up.
_broken: weakref.WeakKeyDictionary[Any, OSError] = weakref.WeakKeyDictionary()


class OutputError(OSError):
    """Results can't be written to the standard output."""


# ---- texts


def printable(text: str, encoding: str | None = None) -> str:
    r"""Makes a text harmless for a terminal or a figure, and encodable.

    Control characters, line breaks, marks of direction and lone surrogates become
    escapes like ``\x1b``; an undecodable byte of a file name becomes ``\xe9``.

    Args:
        text: One line, perhaps with names from elsewhere.
        encoding: The stream's encoding. Characters that it lacks are replaced too,
            ``±`` by ``+-``. None if all characters can be shown.
    """
    if text.isascii() and text.isprintable():
        return text
    safe = "".join(map(_harmless, text))
    if encoding is None:
        return safe
    return "".join(_encodable(character, encoding) for character in safe)


def _harmless(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    is_dangerous = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    return _escaped(character) if is_dangerous else character


def _encodable(character: str, encoding: str) -> str:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return _PLAIN.get(character) or _escaped(character)
    return character


def _escaped(character: str) -> str:
    if character in _JOINERS:
        return character
    return character.encode("unicode_escape").decode("ascii")


def shortened(text: str, most: int = 30) -> str:
    """Returns the text printable, its middle cut out if it exceeds ``most``."""
    text = printable(text)
    if len(text) <= most:
        return text
    end = (most - 3) // 2
    return f"{text[: most - 3 - end]}...{text[len(text) - end :]}"


def json_text(value: Any, *, indent: int | None = None) -> str:
    r"""Returns JSON that every parser reads: pure ASCII, no NaN, no lone surrogates.

    Numbers that are not finite become null, undecodable bytes in a name ``\xe9``.
    """
    return json.dumps(_for_json(value), indent=indent, allow_nan=False)


def _for_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {_for_json(name): _for_json(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_for_json(one) for one in value]
    if isinstance(value, str):
        return "".join(
            _harmless(character) if "\ud800" <= character <= "\udfff" else character
            for character in value
        )
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- lines


def answer(*lines: str, end: str = "\n") -> None:
    """Prints results, if any, to the standard output, where programs read them.

    Args:
        lines: The results.
        end: Text after the last line.

    Raises:
        OutputError: If the disk is full, nobody reads, or writing fails otherwise.
    """
    if not lines:
        return
    if sys.stdout is None:
        raise OutputError("can't write the results: the standard output is closed")
    try:
        _write(lines, sys.stdout, end)
    except OSError as error:
        raise OutputError(f"can't write the results: {error.strerror}") from error


def say(*lines: str) -> None:
    """Prints progress, above a progress bar if there is one; in one process only."""
    if is_writer():
        _try_to_write(lines, sys.stderr if _is_terminal(sys.stderr) else sys.stdout)


def warn(*lines: str) -> None:
    """Prints a warning to the standard error; in one process only."""
    if is_writer():
        _try_to_write((f"warning: {lines[0]}", *lines[1:]), sys.stderr)


def fail(*lines: str) -> None:
    """Prints an error to the standard error, in every process."""
    _try_to_write(lines, sys.stderr)


def _try_to_write(lines: tuple[str, ...], file: Any) -> None:
    if file is None:  # Closed before the start.
        return
    is_known = file in _broken
    try:
        _write(lines, file)
    except OSError as error:
        # The run goes on without a reader, as after Ctrl-C in `train | tee log`.
        if not is_known and file is sys.stdout and error.errno != errno.EPIPE:
            warn(f"can't write the log: {error.strerror}; it ends here.")


def _write(lines: tuple[str, ...], file: Any, end: str = "\n") -> None:
    if file in _broken:
        raise _broken[file]
    encoding = getattr(file, "encoding", None)
    text = "\n".join(printable(line, encoding) for line in lines)
    with _noting_failure(file):
        tqdm.tqdm.write(text, file=file, end=end)
        file.flush()


@contextlib.contextmanager
def _noting_failure(file: Any) -> Iterator[None]:
    """Gives up a stream that fails, so that the interpreter's end does not fail too."""
    try:
        yield
    except OSError as error:
        _broken[file] = error
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
        raise


def _is_terminal(file: Any) -> bool:
    return file is not None and file.isatty()


# ---- commands


def command(name: str, *errors: type[Exception]) -> Callable[..., Any]:
    """Makes a function that returns an exit code the ``main`` of a command.

    Prints an ``OSError`` or one of ``errors`` in one line and returns 1; returns 130
    after Ctrl-C.

    Args:
        name: Printed before an error.
        errors: Exceptions whose messages are for the user.
    """

    def decorate(main: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(main)
        def wrapped(*arguments: Any, **options: Any) -> int:
            _open_closed_streams()
            try:
                try:
                    return main(*arguments, **options)
                finally:
                    _flush()
            except (OSError, *errors) as error:
                fail(f"{name}: error: {error}")
                return 1
            except KeyboardInterrupt:
                return 130

        return wrapped

    return decorate


def _open_closed_streams() -> None:
    """Opens closed standard streams, before a file of the run gets their numbers.

    Otherwise a library that writes to number 2 would write into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # Takes the lowest free number.
    if sys.stderr is None:
        # For the whole process.
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _flush() -> None:
    """Flushes the output of ``--help``, whose failure nobody else would report."""
    if sys.stdout is not None:
        try:
            with _noting_failure(sys.stdout):
                sys.stdout.flush()
        except OSError as error:
            raise OutputError(f"can't write the results: {error.strerror}") from error


# ---- progress


class Progress:
    """A bar over the steps of an epoch on a terminal, plain lines anywhere else.

    Args:
        title: Text before the bar.
        total: Number of all steps.
        initial: Number of steps done before.
    """

    def __init__(self, title: str, *, total: int, initial: int = 0):
        self._title, self._total, self._initial = printable(title), total, initial
        self._done, self._text = initial, ""
        self._start = self._last = time.monotonic()
        self._bar = None
        self._ended, self._one_at_a_time = threading.Event(), threading.Lock()
        if not is_writer():
            return
        if _is_terminal(sys.stderr):
            self._bar = tqdm.tqdm(
                desc=self._title,
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
        """Shows that ``done`` steps are done, with a text, like the loss."""
        self._done, self._text = done, text
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(done - self._bar.n)
        elif is_writer():
            self._print_after(_SECONDS_BETWEEN_LINES)

    def _tick(self) -> None:
        # A chunk of steps may outlast a reader's patience.
        while not self._ended.wait(1):
            self._print_after(_SECONDS_OF_SILENCE)

    def _print_after(self, seconds: int) -> None:
        """Prints a line if the last one is older than some seconds, in any thread."""
        with self._one_at_a_time:
            if time.monotonic() - self._last > seconds:
                self._last = time.monotonic()
                self._print()

    def _print(self) -> None:
        parts = [self._text] if self._text else []
        if steps := self._done - self._initial:
            rate = (self._last - self._start) / steps
            left = tqdm.tqdm.format_interval(rate * (self._total - self._done))
            parts.append(f"{left} left")
        parts = parts or ["working"]
        say(f"{self._title}, {self._done} of {self._total}: {', '.join(parts)}")
