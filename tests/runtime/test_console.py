"""The text that reaches a terminal, and streams that can't be written."""

import io
import json
import os
import subprocess
import sys

import pytest
from marks import variants

from capsjax.runtime import console


def test_text_of_every_script_stays_as_it_is():
    for text in ("plain, ± 0.3 %", "ça, 猫, кот", "قط", "न्‍य", "👩‍🔬", "a\u202fb c"):
        assert console.printable(text) == text
        assert console.printable(text, "utf-8") == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mred\x07", r"a\x1b[31mred\x07"),
        ("two\nlines\r\tand\x85more\u2028", r"two\nlines\r\tand\x85more\u2028"),
        ("exe.\u202egnp", r"exe.\u202egnp"),
        ("\u2066a\u2069\ufeff", r"\u2066a\u2069\ufeff"),
        (os.fsdecode(b"caf\xe9"), r"caf\xe9"),
        ("\ud800", r"\ud800"),
        ("\x9b31m", r"\x9b31m"),
    ],
)
def test_characters_that_a_terminal_would_obey_are_escaped(text, shown):
    assert console.printable(text) == shown


def test_characters_that_an_encoding_lacks_are_written_plainly():
    assert console.printable("99.6 ± 0.3 … é", "ascii") == r"99.6 +- 0.3 ... \xe9"
    assert console.printable("99.6 ± 0.3 … é", "latin-1") == "99.6 ± 0.3 ... é"
    assert console.printable("🐈", "ascii") == r"\U0001f408"


def test_long_names_are_cut_in_their_middle():
    assert console.shortened("short") == "short"
    assert console.shortened("a" * 20 + "b" * 20, 11) == "aaaa...bbbb"
    assert console.shortened("\n" * 20, 11) == r"\n\n...\n\n"


def test_json_is_read_by_strict_parsers():
    value = {os.fsdecode(b"caf\xe9"): [float("nan"), 1.5, "é\n"], "n": ("\ud800", None)}
    text = console.json_text(value)
    assert text.isascii()
    read = json.loads(text, parse_constant=pytest.fail)
    assert read == {r"caf\xe9": [None, 1.5, "é\n"], "n": [r"\ud800", None]}


class Stream(io.StringIO):
    def __init__(self, encoding):
        super().__init__()
        self._encoding = encoding

    encoding = property(lambda self: self._encoding)


def test_every_line_is_written_in_the_encoding_of_its_stream(monkeypatch):
    monkeypatch.setattr("sys.stdout", Stream("ascii"))
    monkeypatch.setattr("sys.stderr", Stream("utf-8"))
    console.answer("± a\nb", "second")
    console.say("log é")
    console.warn("é\x1b")
    console.fail("±")
    assert sys.stdout.getvalue() == "+- a\\nb\nsecond\nlog \\xe9\n"
    assert sys.stderr.getvalue() == "warning: é\\x1b\n±\n"


COMMAND = """
import sys
from capsjax.runtime import console

@console.command("the command", ValueError)
def main():
    if "help" in sys.argv:
        print("help")
        sys.exit(0)
    console.warn("a note")
    console.say("how it goes")
    if "error" in sys.argv: raise ValueError("two\\nlines")
    if "answer" in sys.argv: console.answer("the result")
    return 0

sys.exit(main())
"""


def shell(redirect, *words):
    line = f'"$0" -c "$1" {" ".join(words)} {redirect}'
    return subprocess.run(
        ["bash", "-c", line, sys.executable, COMMAND],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_command_prints_results_and_log_apart_from_warnings_and_errors():
    done = shell("", "answer")
    assert (done.returncode, done.stdout) == (0, "how it goes\nthe result\n")
    assert done.stderr == "warning: a note\n"
    done = shell("", "error")
    assert (done.returncode, done.stdout) == (1, "how it goes\n")
    assert done.stderr == "warning: a note\nthe command: error: two\\nlines\n"


@pytest.mark.parametrize(
    ("redirect", "reason"),
    [
        (">/dev/full", "No space left on device"),
        (">&-", "the standard output is closed"),
        ("| true", "Broken pipe"),
    ],
)
def test_results_that_can_t_be_written_are_an_error_of_one_line(redirect, reason):
    # The pipe's reader ends long before Python has started; Python's code is kept.
    done = shell(f"{redirect}; exit ${{PIPESTATUS[0]}}", "answer")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[-1] == f"the command: error: can't write the results: {reason}"
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_log_that_can_t_be_written_is_no_error():
    done = shell(">/dev/full")
    assert done.returncode == 0
    full = "can't write the log: No space left on device; it ends here."
    assert done.stderr.splitlines() == ["warning: a note", f"warning: {full}"]
    assert shell(">&-").returncode == 0


def test_help_that_can_t_be_written_is_an_error():
    done = shell(">/dev/full", "help")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("the command: error: ")
    assert line.endswith("No space left on device")


@pytest.mark.parametrize("redirect", ["2>/dev/full", *variants("0>&- 2>&-")])
def test_errors_that_can_t_be_written_leave_results_and_exit_code(redirect):
    done = shell(redirect, "answer")
    assert (done.returncode, done.stdout) == (0, "how it goes\nthe result\n")
    done = shell(redirect, "error")
    assert (done.returncode, done.stdout) == (1, "how it goes\n")


def test_no_file_gets_the_number_of_a_stream_that_is_closed(tmp_path):
    code = COMMAND.replace("return 0", "return int(open('f', 'w').fileno() < 3)")
    done = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, code],
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0


def test_ctrl_c_ends_a_command_without_a_traceback():
    @console.command("the command")
    def main():
        raise KeyboardInterrupt

    assert main() == 130
