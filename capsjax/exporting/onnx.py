"""Writes a network as ONNX files, for onnxruntime and everything that reads them."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnxruntime

from capsjax.exporting.comparison import compare
from capsjax.exporting.errors import ExportError
from capsjax.exporting.onnx_graph import Storage
from capsjax.exporting.onnx_network import models
from capsjax.exporting.serving_folder import require_folder, write_folder
from capsjax.storage.run import Run

# The largest difference from JAX that is allowed.
_TOLERANCE: Mapping[Storage, float] = {"float32": 1e-4, "float16": 1e-2, "int8": 0.2}


def export(
    run: Run, folder: pathlib.Path, *, half: bool = False, int8: bool = False
) -> list[pathlib.Path]:
    """Writes ``encode.onnx``, ``decode.onnx``, ``network.onnx`` and a card.

    :func:`capsjax.exporting.functions.functions` describes the three. Each takes a
    batch of any size. Nothing is written unless onnxruntime computes what JAX computes,
    on test images of the run.

    Args:
        run: The run.
        folder: The folder: new, empty, or with an earlier export.
        half: True to store weights as float16, in half the bytes.
        int8: True to store weights as int8 with a scale for each channel, in a quarter
            of the bytes. Both compute in float32.

    Returns:
        The paths of the files.

    Raises:
        ExportError: If the network or its routing has no form in ONNX, the results
            differ from JAX, the folder holds something else, or both types are chosen.
        WorkdirError: If a file can't be written.
    """
    if half and int8:
        raise ExportError("half and int8 are both True: choose one type of the weights")
    storage: Storage = "float16" if half else "int8" if int8 else "float32"
    require_folder(folder)
    files = {
        name: model.SerializeToString() for name, model in models(run, storage).items()
    }
    exported = {name: _function(content) for name, content in files.items()}
    comparison = compare(run, exported, tolerance=_TOLERANCE[storage])
    return write_folder(run, folder, files, comparison, suffix="onnx", weights=storage)


def _function(content: bytes) -> Callable[..., dict[str, Any]]:
    """Opens a file in onnxruntime; its inputs and outputs keep their order."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    taken = [one.name for one in session.get_inputs()]
    given = [one.name for one in session.get_outputs()]

    def function(*arrays: np.ndarray) -> dict[str, Any]:
        results = session.run(None, dict(zip(taken, arrays, strict=True)))
        return dict(zip(given, results, strict=True))

    return function
