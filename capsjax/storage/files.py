"""Files that are whole or not there."""

import contextlib
import json
import os
import pathlib
import secrets
from collections.abc import Iterator
from typing import Any

ASIDE = ".aside"  # How the names of files end that are not yet whole.


class WorkdirError(Exception):
    """A work directory can't be used for this run; the message says what to do."""


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file whole or not at all: aside first, then renamed."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """As ``write_bytes``."""
    write_bytes(path, text.encode())


def write_bytes(path: pathlib.Path, data: bytes) -> None:
    """Writes a file whole or not at all: aside first, then renamed.

    Raises:
        WorkdirError: If it can't be written.
    """
    aside = None
    with writing(path):
        try:
            # Not tempfile's, whose files are for the user alone whatever the umask.
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
    """Tells what can't be written, and why, in the words of a ``WorkdirError``."""
    try:
        yield
    except OSError as error:
        raise WorkdirError(f"can't write {path}: {error.strerror}.") from error
