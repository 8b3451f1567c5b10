"""Runs the Python and bash blocks of a page in order, as its reader would.

Comments in the source of a page, which no reader sees, say what a test does otherwise:

    <!--- skip: next "hours of training" -->            does not run the next block
    <!--- shrink: steps=1500 => steps=3 -->              replaces text in the next block
    <!--- invisible-code-block: python
    images = np.zeros((2, 28, 28, 1), np.uint8)          what a page leaves open
    -->
"""

import os
import subprocess
import sys
import unittest

from places import ROOT
from sybil import Document, Region
from sybil.evaluators.python import PythonEvaluator
from sybil.evaluators.skip import Skipper
from sybil.parsers.markdown import CodeBlockParser, SkipParser
from sybil.parsers.markdown.lexers import DirectiveInHTMLCommentLexer

PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
)

# What stands on the PATH: this Python, and nothing that installs.
PROGRAMS = {
    "python": 'if [ "$1 $2" != "-m venv" ]; then exec "$PYTHON" "$@"; fi',
    "python3": 'exec python "$@"',
    "capsjax": 'exec python -m capsjax "$@"',
    "pip": "",
}


class ShrinkParser:
    """Replaces text in the next block, which must contain it."""

    def __call__(self, document):
        for found in DirectiveInHTMLCommentLexer("shrink")(document):
            before, arrow, after = found.lexemes["arguments"].partition(" => ")
            assert arrow, found.lexemes
            yield Region(found.start, found.end, (before, after), self.note)

    def note(self, example):
        example.document.shrinks.append(example.parsed)


def shrunk(document, source):
    """The block with what the comments above it replace."""
    for before, after in document.shrinks:
        assert before in source, f"nothing to shrink: {before!r} is not in the block"
        source = type(source)(
            source.replace(before, after), source.offset, source.line_offset
        )
    document.shrinks = []
    return source


def run_python(example):
    example.parsed = shrunk(example.document, example.parsed)
    PythonEvaluator()(example)


def run_bash(example):
    source = shrunk(example.document, example.parsed)
    commands = {*source.replace(".venv/bin/", "").splitlines()}
    if commands <= example.document.done:
        return
    example.document.done |= commands
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", source],
        capture_output=True,
        text=True,
        check=False,
    )
    output = f"{done.stdout}{done.stderr}"[-3000:]
    assert done.returncode == 0, f"{example.path}:{example.line}: {source}\n{output}"


def read(page):
    """A page of the checkout, with its blocks of Python and bash."""
    document = Document.parse(
        str(ROOT / page),
        CodeBlockParser("python", run_python),
        CodeBlockParser("bash", run_bash),
        ShrinkParser(),
        SkipParser(),
    )
    document.shrinks, document.done = [], set()
    return document


def code(document):
    """The blocks to run, and the skips: without other comments."""
    return [one for one in document if isinstance(one.parsed, str)]


def skips(document):
    """Each comment that skips something: (action, reason)."""
    return [one.parsed for one in document if isinstance(one.region.evaluator, Skipper)]


def run(page, folder, monkeypatch, done=()):
    """Runs the blocks of a page in a folder, and returns the commands.

    A block of nothing but commands that are ``done`` there is not run again.
    """
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    for name, text in PROGRAMS.items():
        path = programs / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    for name in ("experiments", "benchmarks"):
        link = folder / name
        if not link.exists():
            link.symlink_to(ROOT / name)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    monkeypatch.setenv("PYTHON", sys.executable)
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.setenv("BROWSER", "true")  # Opens nothing.
    document = read(page)
    document.done |= {*done}
    for example in document:
        try:
            example.evaluate()
        except unittest.SkipTest:
            document.shrinks = []
    return document.done
