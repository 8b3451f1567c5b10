"""Writes files whole or not at all."""

import contextlib
import json
import os
import pathlib
import secrets
from collections.abc import Iterator
from typing import Any

ASIDE = ".aside"  # Suffix of files that are not yet whole.


class WorkdirError(Exception):
    """A work directory can't be used for this run; the message names the remedy."""


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file whole or not at all: aside first, then renamed."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file as ``write_bytes`` does."""
    write_bytes(path, text.encode())


def write_bytes(path: pathlib.Path, data: bytes) -> None:
    """Writes a file whole or not at all: aside first, then renamed.

    Raises:
        WorkdirError: If it can't be written.
    """
    aside = None
    with writing(path):
        try:
            # Not tempfile, whose files are private to the user whatever the umask.
            aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}{ASIDE}")
            with open(aside, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        except OSError:
            if aside is not None:
                with contextlib.suppress(OSError):
                    aside.unlink()
            raise


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Turns an ``OSError`` into a ``WorkdirError`` that names the file and reason."""
    try:
        yield
    except OSError as error:
        raise WorkdirError(f"can't write {path}: {error.strerror}.") from error
