"""Writes a run as a folder to share: weights, description and card, without code."""

import pathlib

import numpy as np

from capsjax import config as configs
from capsjax.exporting.card import card
from capsjax.models.variables import named
from capsjax.runtime.paths import exists, expanded
from capsjax.storage.files import WorkdirError, write_json, write_text, writing
from capsjax.storage.run import Run, load_run
from capsjax.storage.weights import write_weights
from capsjax.storage.workdir import Workdir

# Half a unit in the last place of float16; its smallest numbers are evenly spaced.
_HALF_RELATIVE, _HALF_ABSOLUTE = 2.0**-11, 2.0**-25


def export(
    run: Run,
    folder: pathlib.Path,
    *,
    half: bool = False,
    licence: str = "",
    note: str = "",
) -> list[pathlib.Path]:
    """Writes a folder that ``load_run`` opens, and opens it.

    It has the run's ``config.json``, ``dataset.json`` and ``result.json``, the weights
    that are evaluated in ``weights.safetensors``, and a card, ``README.md``.

    Args:
        run: The run.
        folder: The folder: a new one, or one from before, whose files are replaced.
        half: True to store weights in float16, which halves the file. The network
            computes in the same type as before.
        licence: Licence of the weights, for the card; empty if there is none yet.
        note: One more paragraph for the card, such as the accuracies of other seeds.

    Returns:
        The paths of the files.

    Raises:
        WorkdirError: If the folder holds other files, a weight is too large for
            float16, or a file can't be written.
    """
    workdir = Workdir(expanded(folder))
    if exists(workdir.path) and not workdir.path.is_dir():
        raise WorkdirError(f"{workdir.path} is a file: choose a folder for --output.")
    if exists(workdir.path) and not workdir.is_shared and any(workdir.path.iterdir()):
        raise WorkdirError(
            f"{workdir.path} holds other files: choose a new folder for --output, or "
            "one that this format has written."
        )
    about = run.workdir.read_json(run.workdir.dataset)
    text = card(run, half=half, licence=licence, note=note)
    with writing(workdir.path):
        workdir.path.mkdir(parents=True, exist_ok=True)
    write_weights(workdir.weights, run.params, step=run.step, half=half)
    write_json(workdir.dataset, about)
    paths = [workdir.weights, workdir.dataset]
    if run.result is not None:
        write_json(workdir.result, run.result)
        paths.append(workdir.result)
    else:
        workdir.result.unlink(missing_ok=True)
    readme = workdir.path / "README.md"
    write_text(readme, text)
    write_json(workdir.config, configs.to_dict(run.config))
    _require_same(run, load_run(workdir.path, config=run.config), half=half)
    return [*paths, readme, workdir.config]


def _require_same(run: Run, written: Run, *, half: bool) -> None:
    """Raises if the weights on disk are not the run's, but for rounding to float16."""
    relative, absolute = (_HALF_RELATIVE, _HALF_ABSOLUTE) if half else (0.0, 0.0)
    there = named(written.params)
    for name, array in named(run.params).items():
        if not np.allclose(there[name], array, relative, absolute):
            raise WorkdirError(
                f"{name} was not written as it is in {run.workdir.path}."
            )
