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
        if interrupt.signal is not None:
            # No unwinding: it would wait for a save that the user does not want.
            os.write(2, b"stopped at once; the last checkpoint is whole\n")
            os._exit(128 + number)
        interrupt.signal = signal.Signals(number)

    before = {
        number: signal.signal(number, note)
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
