"""Weights in one file, ``weights.safetensors``: arrays by name, and no code.

An array's name is its path in the variables of the network: ``params/conv/kernel``.
"""

import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from capsjax.models import Network
from capsjax.models.network import NetworkError, init_variables
from capsjax.models.variables import checksum, named, nested, require_variables
from capsjax.runtime.paths import require_file
from capsjax.storage.files import WorkdirError, write_bytes

# A text in the file's header. One only: the library writes several in random order, and
# the same weights shall make the same file.
_ABOUT = "capsjax"


def write_weights(
    path: pathlib.Path, variables: Any, *, step: int, half: bool = False
) -> None:
    """Writes the variables of a network, whole or not at all.

    Args:
        path: The file.
        variables: The variables, as Flax nests them.
        step: Optimizer steps done with them.
        half: True to store weights in float16. Batch statistics, whose variances may be
            tiny, keep their type.

    Raises:
        WorkdirError: If a weight is too large for float16, or the file can't be
            written.
    """
    # The library reads memory as it lies, whatever the strides are.
    arrays = {name: np.asarray(a, order="C") for name, a in named(variables).items()}
    if half:
        for name, array in arrays.items():
            if name.startswith("params/") and array.dtype == np.float32:
                with np.errstate(over="ignore"):
                    arrays[name] = array.astype(np.float16)
                if not np.isfinite(arrays[name]).all():
                    raise WorkdirError(
                        f"{name} has {np.abs(array).max():g}, and float16 ends at "
                        f"{np.finfo(np.float16).max:g}: write float32."
                    )
    from safetensors.numpy import save  # Late: training does without.

    about = {"step": step, "checksum": checksum(arrays)}
    write_bytes(path, save(arrays, {_ABOUT: json.dumps(about)}))


def read_weights(
    path: str | os.PathLike[str],
) -> tuple[int | None, dict[str, np.ndarray]]:
    """Reads all arrays of a file by name, and runs nothing that it holds.

    Returns:
        The optimizer steps done with them, None if capsjax has not written the file;
        and the arrays in the types of the file.

    Raises:
        WorkdirError: If the file can't be read, is damaged, or is no safetensors file.
    """
    from safetensors import SafetensorError, safe_open  # Late: training does without.

    try:
        require_file(path)
        with safe_open(path, "np") as file:
            about = (file.metadata() or {}).get(_ABOUT)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise WorkdirError(f"can't read {path}: {error.strerror or error}.") from error
    except (SafetensorError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise WorkdirError(
            f"{path} is damaged, or no safetensors file: {error}."
        ) from error
    if about is None:
        return None, arrays
    try:
        about = json.loads(about)
        step, wanted = int(about["step"]), about["checksum"]
    except (ValueError, KeyError, TypeError) as error:
        raise WorkdirError(f"{path} is damaged: its header has {about!r}.") from error
    if checksum(arrays) != wanted:
        raise WorkdirError(f"{path} is damaged: its numbers are not the written ones.")
    return step, arrays


def read_variables(path: pathlib.Path, network: Network) -> tuple[int, Any]:
    """Reads the variables of a network, in the types in which it computes.

    Returns:
        The optimizer steps done with them, 0 if unknown; and the variables on the host.

    Raises:
        WorkdirError: If the file can't be read, or its arrays are not of this network.
    """
    step, arrays = read_weights(path)
    own = named(jax.eval_shape(lambda: init_variables(network, jax.random.key(0))))
    for name, array in arrays.items():
        if name in own:
            arrays[name] = in_type_of(own[name], array)
    try:
        require_variables(network, arrays)
    except NetworkError as error:
        raise WorkdirError(f"{path}: {error}") from error
    return step or 0, nested(arrays)


def in_type_of(own: Any, array: np.ndarray) -> np.ndarray:
    """Casts floats of any width to the type of a network's variable."""
    are_floats = all(jnp.issubdtype(a.dtype, jnp.floating) for a in (own, array))
    return array.astype(own.dtype) if are_floats else array
