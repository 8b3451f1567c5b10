"""Stopping when asked: a signal is noted, and the run ends at the next whole chunk."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator


class Interrupt:
    """Whether, and by which signal, the run was asked to stop.

    Attributes:
        noted: The first signal that came.
        signal: The signal after which the run stops, once it can.
        is_passed_on: Whether other processes were told.
    """

    def __init__(self):
        self.noted: signal.Signals | None = None
        self.signal: signal.Signals | None = None
        self.is_passed_on = False

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that a signal ended: 130 for Ctrl-C."""
        return 0 if self.signal is None else 128 + self.signal


@contextlib.contextmanager
def noticed(
    signals: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM),
) -> Iterator[Interrupt]:
    """Notes the first of the signals; a SIGINT (Ctrl-C) after it ends the process.

    A SIGTERM after it is ignored: schedulers send several, and then SIGKILL. Outside
    the main thread, where Python allows no signal handlers, nothing is noted.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def note(number, _=None):
        interrupt.noted = interrupt.noted or signal.Signals(number)

    # Python's handlers wait until a compilation or a device program returns. The number
    # of the signal is written to a pipe at once, where a thread reads it.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = {number: signal.signal(number, note) for number in signals}
    pipe_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(reader, signals, note), daemon=True)
    watcher.start()
    try:
        yield interrupt
    finally:
        signal.set_wakeup_fd(pipe_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writer)
        watcher.join()
        os.close(reader)


def _watch(reader: int, signals: tuple[signal.Signals, ...], note) -> None:
    is_noted = False
    while byte := os.read(reader, 1):
        number = byte[0]
        if number not in signals:
            continue
        if not is_noted:
            note(number)
            _tell("stopping after these steps; Ctrl-C to stop at once")
        elif number == signal.SIGINT:
            # What is on disk was written aside and renamed, or is cleared away later.
            _tell("stopped")
            os._exit(128 + number)
        is_noted = True


def _tell(text: str) -> None:
    # A pipe's other end may have died of the same Ctrl-C.
    with contextlib.suppress(OSError):
        os.write(2, f"\n{text}\n".encode())
