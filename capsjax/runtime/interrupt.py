"""Stopping when asked: a signal is noted, and the run ends at the next whole chunk."""

import contextlib
import os
import select
import signal
import socket
import threading
import time
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


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, and has saved what it had.

    Attributes:
        exit_code: What a shell expects of a process that the signal ended: 130 for
            Ctrl-C.
    """

    def __init__(self, number: signal.Signals):
        super().__init__(f"stopped by {number.name}; all is saved")
        self.exit_code = 128 + number


@contextlib.contextmanager
def noticed(
    signals: tuple[signal.Signals, ...] | None = None, *, may_exit: bool
) -> Iterator[Interrupt]:
    """Notes the first of the signals; a SIGINT (Ctrl-C) after it stops at once.

    A SIGTERM after it is ignored: schedulers send several, and then SIGKILL. Outside
    the main thread, where Python allows no signal handlers, nothing is noted.

    Args:
        signals: By default SIGINT, SIGTERM and, where the system has it, SIGHUP, which
            comes when the terminal is closed. A SIGHUP that is ignored stays so, as
            after ``nohup``.
        may_exit: Whether the second SIGINT ends the process, also in the middle of a
            compilation: for commands. Elsewhere, as in a notebook, it raises
            ``KeyboardInterrupt`` as soon as Python can.
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
    # How many came, as seen by the handler and by the watcher: while a device program
    # runs, the handler waits, and sees several as one.
    handled = watched = raised = 0

    def note(number: int) -> None:
        interrupt.noted = interrupt.noted or signal.Signals(number)

    def handle(number: int, frame: object) -> None:
        del frame
        nonlocal handled, raised
        handled += 1
        note(number)
        # Several that came before it could run are handled as one, and watched as many.
        for _ in range(100):
            if not select.select([reader], [], [], 0)[0]:
                break
            time.sleep(0.001)
        is_repeated = max(handled, watched) > 1 + raised
        if is_repeated and number == signal.SIGINT and not may_exit:
            raised += 1  # By one that is handled on its own later, not once more.
            raise KeyboardInterrupt

    # Python's handlers wait until a compilation or a device program returns. The number
    # of the signal is written to a socket at once, where a thread reads it.
    reader, writer = socket.socketpair()
    writer.settimeout(0.0)
    before = {number: signal.signal(number, handle) for number in signals}
    pipe_before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        nonlocal watched
        while byte := reader.recv(1, socket.MSG_PEEK):
            number = byte[0]
            watched += number in signals
            reader.recv(1)  # What is no longer there is counted.
            if number not in signals:
                continue
            if watched == 1:
                note(number)
                _tell("stopping after these steps; Ctrl-C to stop at once")
            elif number == signal.SIGINT and may_exit:
                # What is on disk was written aside and renamed, or is cleared away
                # later.
                _tell("stopped")
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


def _tell(text: str) -> None:
    # A pipe's other end may have died of the same Ctrl-C.
    with contextlib.suppress(OSError):
        os.write(2, f"\n{text}\n".encode())
