"""Signals: the first is noted, and a later Ctrl-C ends the process at once."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from capsjax.runtime import interrupt as module
from capsjax.runtime.interrupt import noticed

# Holds no lock and returns to Python after minutes, as XLA's compiler may.
BUSY = "hashlib.pbkdf2_hmac('sha256', b'', b'salt', 10**9)"


def start(work, *, may_exit=True, before=""):
    code = f"""
import hashlib, signal, sys, time
{before}
from capsjax.runtime.hosts import agree_to_stop
from capsjax.runtime.interrupt import Interrupted, noticed
with noticed(may_exit={may_exit}) as interrupt:
    print("ready", flush=True)
    {work}
agree_to_stop(interrupt, 0)
sys.exit(Interrupted(interrupt.signal).exit_code)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def ended(process):
    _, err = process.communicate(timeout=30)
    return process.returncode, err


@pytest.mark.parametrize(
    ("number", "code"),
    [
        ("SIGINT", 130),
        ("SIGHUP", 129),
        pytest.param("SIGTERM", 143, marks=pytest.mark.variant),
    ],
)
def test_a_signal_is_noted_and_becomes_the_exit_code(number, code):
    process = start("while not interrupt.noted: time.sleep(0.01)")
    process.send_signal(getattr(signal, number))
    returncode, err = ended(process)
    assert returncode == code
    assert err.strip() == "stopping after these steps; Ctrl-C to stop at once"


@pytest.mark.parametrize(
    ("first", "code"),
    [("SIGTERM", 130), pytest.param("SIGINT", 130, marks=pytest.mark.variant)],
)
def test_ctrl_c_after_a_signal_stops_at_once_within_a_long_call(first, code):
    process = start(BUSY)
    process.send_signal(getattr(signal, first))
    while "stopping" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGTERM)  # Schedulers may repeat themselves.
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert ended(process)[0] == code


@pytest.mark.parametrize("number_of_signals", [1, 2])
def test_it_stops_even_if_nobody_reads_its_lines(number_of_signals):
    """After Ctrl-C in ``train | tee log``, tee is dead too."""
    work = """
    from capsjax.runtime.console import say, warn
    while not interrupt.noted: time.sleep(0.01)
    say("saved"), warn("as it is"), say("the same command goes on")
    print("this is in the buffer as the interpreter ends")
    while not interrupt.noted or NUMBER == 2: time.sleep(0.01)
    """.replace("NUMBER", str(number_of_signals))
    process = start(work)
    process.stdout.close()
    process.stderr.close()
    for _ in range(number_of_signals):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    assert process.wait(timeout=30) == 130


def test_signal_handlers_are_restored_afterwards():
    # A shell may have started the tests with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.getsignal(signal.SIGINT)
    threads = threading.active_count()
    with noticed(may_exit=True) as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt.noted == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is before
    assert threading.active_count() <= threads  # Others may end meanwhile.
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_other_signals_and_other_threads_are_left_alone():
    received = []
    before = signal.signal(signal.SIGUSR1, lambda *_: received.append(1))
    try:
        with noticed(may_exit=True) as interrupt:
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.05)
            assert (interrupt.noted, received) == (None, [1])
    finally:
        signal.signal(signal.SIGUSR1, before)

    def work():
        with noticed(may_exit=True) as interrupt:
            assert interrupt.noted is None

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_an_ignored_hangup_stays_ignored():
    """``nohup`` ignores it."""
    ignored = "signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    process = start("while not interrupt.noted: time.sleep(0.01)", before=ignored)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 143


def test_a_second_ctrl_c_outside_a_command_raises_and_the_process_goes_on():
    """It must not end a notebook's kernel with all its variables."""
    work = """
    try:
        print("working", flush=True)
        while True: time.sleep(0.01)
    except KeyboardInterrupt:
        print("variables are still here", flush=True)
    """
    process = start(work, may_exit=False)
    assert process.stdout.readline() == "working\n"
    process.send_signal(signal.SIGINT)
    while "stopping" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "variables are still here\n"
    assert ended(process)[0] == 130


def test_two_ctrl_c_that_python_handles_as_one_count_as_two(monkeypatch):
    """The second comes before the first is handled, and is counted only afterwards."""
    main = threading.main_thread().ident

    def send_another(text):
        os.kill(os.getpid(), signal.SIGINT)
        is_over = time.monotonic() + 5
        while time.monotonic() < is_over:
            if sys._current_frames()[main].f_code.co_name == "handle":
                return

    monkeypatch.setattr(module, "_announce", send_another)
    # Sent by another thread: Python handles its own signal before anything else.
    killer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))

    def work():
        with noticed(may_exit=False):
            killer.start()
            try:  # The call releases Python's lock.
                hashlib.pbkdf2_hmac("sha256", b"", b"salt", 10**6)
                time.sleep(0.5)
            finally:  # No further interrupt comes.
                time.sleep(0.1)
                cleaned.append(1)

    cleaned = []
    with pytest.raises(KeyboardInterrupt):
        work()
    killer.join()
    assert cleaned
