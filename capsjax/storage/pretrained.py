"""Networks that come with capsjax, each in a folder of ``capsjax/pretrained``."""

import pathlib

from capsjax.storage.run import Run, load_run

_FOLDER = pathlib.Path(__file__).parents[1] / "pretrained"
# What commands open without --workdir.
DIGITS = _FOLDER / "mnist"


def load_pretrained(name: str) -> Run:
    """Opens a trained network that comes with capsjax.

    Args:
        name: ``mnist``: a CapsNet of a million parameters for handwritten digits. The
            ``README.md`` in its folder, ``run.workdir.path``, has recipe and accuracy.

    Raises:
        ValueError: If no network has that name, with the existing names.

    Examples:
        >>> from capsjax import load_pretrained
        >>> from capsjax.data import load
        >>> digits = load("mnist", "test")
        >>> prediction = load_pretrained("mnist").predict(digits.image[:5])
        >>> print(prediction.label, digits.label[:5])
        [7 2 1 0 4] [7 2 1 0 4]
    """
    there = sorted(path.name for path in _FOLDER.iterdir() if path.is_dir())
    if name not in there:
        raise ValueError(
            f"no network {name!r} comes with capsjax: choose from {', '.join(there)}."
        )
    return load_run(_FOLDER / name)
