"""Writes a network as StableHLO, which JAX calls without capsjax and without Flax."""

import pathlib
from typing import Any

import flatbuffers  # noqa: F401, jax.export imports it only when it writes.
import jax
from jax import export as jax_export

from capsjax.exporting.comparison import compare
from capsjax.exporting.errors import ExportError
from capsjax.exporting.functions import functions, inputs
from capsjax.exporting.serving_folder import require_folder, write_folder
from capsjax.storage.run import Run

_PLATFORMS = ("cpu", "cuda", "tpu")
_TOLERANCE = 1e-4


def export(run: Run, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes ``encode``, ``decode``, ``network`` as ``.stablehlo`` files, and a card.

    :func:`capsjax.exporting.functions.functions` describes the three. Each takes a
    batch of any size, and runs on a CPU, an NVIDIA GPU and a TPU::

        network = jax.export.deserialize(bytearray(path.read_bytes()))
        network.call(image)["label"]

    Nothing is written unless the files compute what the network computes, on test
    images of the run.

    Args:
        run: The run. Its network may be of any class.
        folder: The folder: new, empty, or with an earlier export.

    Returns:
        The paths of the files.

    Raises:
        ExportError: If the network can't be traced for a batch of any size, the results
            differ, or the folder holds something else.
        WorkdirError: If a file can't be written.
    """
    require_folder(folder)
    (batch,) = jax_export.symbolic_shape("batch")
    given, files, exported = inputs(run, batch), {}, {}
    for name, function in functions(run).items():
        export_for_all = jax_export.export(jax.jit(function), platforms=_PLATFORMS)
        try:
            made: Any = export_for_all(*given[name].values())
        except Exception as error:  # A network of others may raise anything.
            reason = str(error).strip().split("\n")[0]
            raise ExportError(
                f"{name} of {type(run.model).__name__} can't be traced for a batch of "
                f"any size: {reason}"
            ) from error
        files[name] = bytes(made.serialize())
        exported[name] = jax_export.deserialize(bytearray(files[name])).call
    comparison = compare(run, exported, tolerance=_TOLERANCE)
    return write_folder(run, folder, files, comparison, suffix="stablehlo")
