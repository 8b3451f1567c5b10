"""Collects the versions, device and commit behind a number."""

import importlib.metadata
import os
import pathlib
import platform
import subprocess
from typing import Any

import jax

from capsjax.runtime.paths import cache_folder

# Packages whose versions decide what a number or an error is.
_PACKAGES = ("capsjax", "jax", "jaxlib", "flax", "optax")


def provenance() -> dict[str, Any]:
    """Returns versions, device and commit for ``result.json``.

    The version of a package that is not installed is None: capsjax runs from a
    checkout, too.
    """
    folder = pathlib.Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments],
            cwd=folder,
            capture_output=True,
            encoding="utf-8",
            check=True,
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
            **{name: _version(name) for name in _PACKAGES},
        },
        "device": _device(),
        "commit": described,
    }


def installation() -> list[str]:
    """Returns what a report of an error needs, in lines: versions, devices, cache."""
    more = ("orbax-checkpoint", "numpy", "tensorflow-datasets")
    versions = {name: _version(name) or "not installed" for name in _PACKAGES + more}
    try:
        cache = str(cache_folder())
    except FileNotFoundError as error:
        cache = str(error)
    return [
        *(f"{name} {version}" for name, version in versions.items()),
        f"python {platform.python_version()} on {platform.platform()}",
        f"devices {_device()}",
        f"cache {cache}",
    ]


def _device() -> str:
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind}, {os.cpu_count()} cores"


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
