"""Stops on signals: the first is noted, and the run ends after the current chunk."""

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator


class Interrupt:
    """The signal that stops the run, if one came.

    Attributes:
        noted: The first signal that came.
        signal: The signal that stops the run, set once all processes can stop.
        is_passed_on: Whether the other processes were notified.
    """

    def __init__(self):
        self.noted: signal.Signals | None = None
        self.signal: signal.Signals | None = None
        self.is_passed_on = False


class Interrupted(KeyboardInterrupt):
    """A signal stopped the run, which has saved its state.

    Attributes:
        exit_code: The code that shells expect after the signal: 130 for Ctrl-C.
    """

    def __init__(self, number: signal.Signals):
        super().__init__(f"stopped by {number.name}; all is saved")
        self.exit_code = 128 + number


@contextlib.contextmanager
def noticed(
    signals: tuple[signal.Signals, ...] | None = None, *, may_exit: bool
) -> Iterator[Interrupt]:
    """Notes the first of the signals; a SIGINT (Ctrl-C) after it stops at once.

    A later SIGTERM is ignored: schedulers send several, and then SIGKILL. Nothing is
    noted outside the main thread, where Python allows no signal handlers.

    Args:
        signals: By default SIGINT, SIGTERM and, where the system has it, SIGHUP, which
            comes when the terminal is closed. An ignored SIGHUP stays ignored, as after
            ``nohup``.
        may_exit: Whether the second SIGINT ends the process, even during a compilation:
            for commands. Otherwise, as in a notebook, it raises ``KeyboardInterrupt``
            as soon as Python can.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none.
    if signals is None:
        signals = (signal.SIGINT, signal.SIGTERM, *([hangup] if hangup else []))
    signals = tuple(
        number
        for number in signals
        if number != hangup or signal.getsignal(number) != signal.SIG_IGN
    )
    # Counts of signals, by the handler and by the watcher: while a device program runs,
    # the handler waits, and sees several as one.
    handled = watched = raised = 0

    def note(number: int) -> None:
        interrupt.noted = interrupt.noted or signal.Signals(number)

    def handle(number: int, frame: object) -> None:
        del frame
        nonlocal handled, raised
        handled += 1
        note(number)
        # Signals that came before it could run are handled as one, but watched singly.
        for _ in range(100):
            if not select.select([reader], [], [], 0)[0]:
                break
            time.sleep(0.001)
        is_repeated = max(handled, watched) > 1 + raised
        if is_repeated and number == signal.SIGINT and not may_exit:
            raised += 1  # The next one that is handled must not raise for this one.
            raise KeyboardInterrupt

    # Python's handlers wait until a compilation or a device program returns. But the
    # signal's number is written to a socket at once, where a thread reads it.
    reader, writer = socket.socketpair()
    writer.settimeout(0.0)
    before = {number: signal.signal(number, handle) for number in signals}
    pipe_before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        nonlocal watched
        while byte := reader.recv(1, socket.MSG_PEEK):
            number = byte[0]
            watched += number in signals
            reader.recv(1)  # Only after counting: an empty socket means all counted.
            if number not in signals:
                continue
            if watched == 1:
                note(number)
                _announce("stopping after these steps; Ctrl-C to stop at once")
            elif number == signal.SIGINT and may_exit:
                # Files on disk were written aside and renamed, or are cleared later.
                _announce("stopped")
                os._exit(128 + number)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield interrupt
    finally:
        signal.set_wakeup_fd(pipe_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.close()
        watcher.join()
        reader.close()


def _announce(text: str) -> None:
    # A pipe's other end may have died of the same Ctrl-C.
    with contextlib.suppress(OSError):
        os.write(2, f"\n{text}\n".encode())
