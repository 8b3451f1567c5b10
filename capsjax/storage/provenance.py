"""Collects the versions, device and commit behind a number."""

import importlib.metadata
import os
import pathlib
import platform
import subprocess
from typing import Any

import jax


def provenance() -> dict[str, Any]:
    """Returns versions, device and commit for ``result.json``.

    The version of a package that is not installed is None: capsjax runs from a
    checkout, too.
    """
    devices = jax.devices()
    folder = pathlib.Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        # Inside another repository, as when installed, its commit would be wrong.
        git("ls-files", "--error-unmatch", "train.py")
        described = git("describe", "--always", "--dirty", "--abbrev=40")
    except (OSError, subprocess.CalledProcessError):
        described = None
    return {
        "versions": {
            "python": platform.python_version(),
            **{
                name: _version(name)
                for name in ("capsjax", "jax", "jaxlib", "flax", "optax")
            },
        },
        "device": f"{len(devices)} x {devices[0].device_kind}, {os.cpu_count()} cores",
        "commit": described,
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
