"""Stopping when asked: a signal is noted, and the run ends at the next whole step."""

import contextlib
import os
import signal
from collections.abc import Iterator


class Interrupt:
    """Whether, and by which signal, the run was asked to stop."""

    def __init__(self):
        self.signal: signal.Signals | None = None

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that a signal ended: 130 for Ctrl-C."""
        return 0 if self.signal is None else 128 + self.signal


@contextlib.contextmanager
def noticed() -> Iterator[Interrupt]:
    """Notes SIGINT (Ctrl-C) and SIGTERM; the second one ends the process at once."""
    interrupt = Interrupt()

    def note(number, _):
        interrupt.signal = signal.Signals(number)
        # The second one is left to the kernel: Python would only see it once the
        # device program returns.
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        os.write(2, b"\nstopping after these steps; once more to stop at once\n")

    before = {
        number: signal.signal(number, note)
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
