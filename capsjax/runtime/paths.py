"""Paths that a user names, on the command line, in a config or in the environment."""

import os
import pathlib


def expanded(path: str | os.PathLike[str]) -> pathlib.Path:
    """A path with ``~`` and ``~user`` replaced by the home folder.

    A shell does that only where a word begins: not in ``--workdir=~/run``.

    Args:
        path: As the user spelt it. ``~name`` stays if there is no user of that name.

    Raises:
        FileNotFoundError: If there is no home folder for ``~``.
    """
    name = os.path.expanduser(os.fspath(path))
    if name == "~" or name.startswith(f"~{os.sep}"):
        raise FileNotFoundError(
            f"there is no home folder for {name}: write the whole path, or ./{name} "
            "for a folder of that name"
        )
    return pathlib.Path(name)


def cache_folder() -> pathlib.Path:
    """Where downloads and compiled programs are kept: ``~/.cache/capsjax``.

    ``$XDG_CACHE_HOME`` names another folder than ``~/.cache``.
    """
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "capsjax"
