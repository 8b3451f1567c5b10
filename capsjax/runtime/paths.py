"""Paths that a user names, on the command line, in a config or in the environment."""

import errno
import os
import pathlib
import stat


def expanded(path: str | os.PathLike[str]) -> pathlib.Path:
    """Replaces ``~`` and ``~user`` by the home folder.

    A shell does so only at the beginning of a word: not in ``--workdir=~/run``.

    Args:
        path: The path as the user wrote it. ``~name`` stays if no user has that name.

    Raises:
        FileNotFoundError: If the path is empty, or there is no home folder for ``~``.
    """
    # An unset variable of a shell is empty, and pathlib would take the current folder.
    if not os.fspath(path):
        raise FileNotFoundError("a path is empty: write . for the current folder")
    name = os.path.expanduser(os.fspath(path))
    if name == "~" or name.startswith(f"~{os.sep}"):
        raise FileNotFoundError(
            f"there is no home folder for {name}: write the whole path, or ./{name} "
            "for a folder of that name"
        )
    return pathlib.Path(name)


def exists(path: str | os.PathLike[str]) -> bool:
    """Returns whether something is there; raises if that can't be found out.

    ``Path.exists`` returns False then, from Python 3.14 on: a run on a disk that fails
    for a moment would be taken for a new one.

    Args:
        path: The path, already expanded.

    Raises:
        OSError: If the system does not answer.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # A null character.
        return False
    return True


def require_file(path: str | os.PathLike[str]) -> None:
    """Raises if there is a pipe or a device: reading it may never end.

    A missing file, or a folder, is left to the function that opens it.

    Args:
        path: The path, already expanded.

    Raises:
        OSError: If there is neither a file nor a folder.
    """
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        reason = "it is a pipe or a device, and must be a file"
        raise OSError(errno.EINVAL, reason, os.fspath(path))


def cache_folder() -> pathlib.Path:
    """Returns the folder of downloads and compiled programs: ``~/.cache/capsjax``.

    ``$XDG_CACHE_HOME`` replaces ``~/.cache``.
    """
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "capsjax"
