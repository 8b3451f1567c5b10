"""Files that may not be read or written, also where the tests run as root."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator

import pytest

NOBODY = 65534


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read and write everything, so that this is not root; all threads."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        if not os.access(__file__, os.R_OK, effective_ids=True):
            pytest.skip("root's own folder is closed to others")
        yield
    finally:
        os.seteuid(0)


@contextlib.contextmanager
def public_folder() -> Iterator[pathlib.Path]:
    """A folder that everyone may look into; pytest's are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        path = pathlib.Path(name)
        path.chmod(0o755)
        yield path
