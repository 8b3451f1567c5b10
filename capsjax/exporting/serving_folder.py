"""The folder of a network to serve: its files and its card."""

import pathlib
from collections.abc import Mapping

from capsjax.exporting.comparison import Comparison
from capsjax.exporting.errors import ExportError
from capsjax.exporting.serving_card import card, readme
from capsjax.runtime.console import say
from capsjax.runtime.paths import exists
from capsjax.storage.files import (
    WorkdirError,
    write_bytes,
    write_json,
    write_text,
    writing,
)
from capsjax.storage.run import Run

_CARD = "card.json"


def require_folder(folder: pathlib.Path) -> None:
    """Raises if a folder can't be one, or holds something else than an earlier export.

    Raises:
        ExportError: With the folder.
    """
    if exists(folder) and not folder.is_dir():
        raise ExportError(f"{folder} is a file: choose a folder for --output.")
    if folder.is_dir() and any(folder.iterdir()) and not exists(folder / _CARD):
        raise ExportError(
            f"the folder {folder} holds files of something else: choose a new one, or "
            "one of an earlier export."
        )


def write_folder(
    run: Run,
    folder: pathlib.Path,
    files: Mapping[str, bytes],
    comparison: Comparison,
    *,
    suffix: str,
    weights: str = "float32",
) -> list[pathlib.Path]:
    """Writes the files of an export and their card, and reports the comparison.

    Args:
        run: The run.
        folder: The folder; made if it does not exist.
        files: The content of the file of each function, by name.
        comparison: The comparison with JAX.
        suffix: The files' suffix, which is also the name of the format.
        weights: The type in which weights are stored.

    Returns:
        The paths of all files.

    Raises:
        WorkdirError: If a file can't be written.
    """
    about = card(run, suffix, weights, comparison)
    text = readme(run, about, comparison)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{suffix}" for name in files]
    paths += [folder / "README.md", folder / _CARD]
    try:
        for path, content in zip(paths[:-2], files.values(), strict=True):
            write_bytes(path, content)
        write_text(paths[-2], text)
        write_json(paths[-1], about)
    except WorkdirError:
        for path in paths:  # Without a card the folder would be somebody else's.
            path.unlink(missing_ok=True)
        raise
    say(str(comparison))
    return paths
