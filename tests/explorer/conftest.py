"""One browser for all tests here; none is needed to build a page."""

import os
import shutil

import chromium
import pytest


def lacking(reason):
    """Skips a test on a person's machine; fails where all must be tested."""
    if os.environ.get("CAPSJAX_NEEDS_BROWSER"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def wat2wasm():
    program = shutil.which("wat2wasm")
    return program or lacking("no wat2wasm here: it comes with wabt")


@pytest.fixture(scope="session")
def tab():
    if chromium.PROGRAM is None:
        names = ", ".join(chromium.NAMES)
        lacking(f"no Chromium here: none of {names} is installed")
    with chromium.browse() as tab:
        yield tab
