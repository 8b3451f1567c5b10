"""One browser for all tests here; none is needed to build a page."""

import os

import chromium
import pytest


@pytest.fixture(scope="session")
def tab():
    if chromium.PROGRAM is None:
        reason = f"no Chromium here: none of {', '.join(chromium.NAMES)} is installed"
        if os.environ.get("CAPSJAX_NEEDS_BROWSER"):
            pytest.fail(reason)
        pytest.skip(reason)
    with chromium.browse() as tab:
        yield tab
