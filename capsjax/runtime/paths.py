"""Paths that a user names, on the command line, in a config or in the environment."""

import os
import pathlib


def expanded(path: str | os.PathLike[str]) -> pathlib.Path:
    """Replaces ``~`` and ``~user`` by the home folder.

    A shell does so only at the beginning of a word: not in ``--workdir=~/run``.

    Args:
        path: The path as the user wrote it. ``~name`` stays if no user has that name.

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
    """Returns the folder of downloads and compiled programs: ``~/.cache/capsjax``.

    ``$XDG_CACHE_HOME`` replaces ``~/.cache``.
    """
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "capsjax"
