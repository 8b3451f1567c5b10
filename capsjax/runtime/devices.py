"""The devices of all processes, and the one place that maps a step over them."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "device"
"""Name of the axis over all devices, for ``axis_name`` of a batch normalisation."""

Tree = TypeVar("Tree")


class DeviceError(OSError):
    """JAX has no device to compute on; the message names the requested platform."""


def require_devices() -> None:
    """Starts JAX's devices, so that a failure is reported in one line.

    Raises:
        DeviceError: If the requested platform has no device.
    """
    try:
        jax.devices()
    # An unknown platform, a missing plugin, no device: each raises another type.
    except (RuntimeError, AssertionError, ValueError) as error:
        settings: Any = jax.config
        text = str(error).strip()
        reason = f" ({text.splitlines()[0][:200]})" if text else ""
        if not settings.jax_platforms:
            raise DeviceError(f"JAX can't start a device{reason}.") from error
        raise DeviceError(
            f"JAX finds no device of JAX_PLATFORMS={settings.jax_platforms}{reason}. "
            "Leave JAX_PLATFORMS out to take what is there, or set it to cpu."
        ) from error


def parallel(step: Callable[..., Any], *, donate: bool = False) -> Any:
    """Maps ``step(state, share)`` over all devices.

    The state is one replicated copy, never stacked; each device gets its own share
    along the first axis. The step itself must reduce its results over ``AXIS``: without
    a ``pmean`` one device's answer would be taken for everyone's.

    Since JAX 0.8 ``jax.pmap`` is ``jit`` of ``shard_map``.

    Args:
        step: A pure function of the state and one device's share of the data.
        donate: Whether the new state takes the memory of the old one, which then can't
            be used again.
    """
    return jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=None,  # pyright: ignore[reportArgumentType]
        devices=_devices(),
        donate_argnums=(0,) if donate else (),
    )


def replicated() -> NamedSharding:
    """Returns the sharding of the state: the same on each device."""
    return NamedSharding(_mesh(), PartitionSpec())


def sharded() -> NamedSharding:
    """Returns the sharding of shares: each on its own device, along the first axis."""
    return NamedSharding(_mesh(), PartitionSpec(AXIS))


def my_shares(array: np.ndarray, *, axis: int = 0) -> np.ndarray:
    """Splits an axis evenly over all devices; returns the shares of this process.

    The axis of the devices comes first in the result.

    Args:
        array: The same on all processes.
        axis: The axis to split.
    """
    shape, devices = array.shape, _devices()
    split = array.reshape(*shape[:axis], len(devices), -1, *shape[axis + 1 :])
    here = jax.process_index()
    mine = [n for n, device in enumerate(devices) if device.process_index == here]
    return np.moveaxis(split, axis, 0)[mine[0] : mine[-1] + 1]


def spread(shares: Tree) -> Tree:
    """Joins the shares of this process with the other processes' into global arrays.

    Only a compiled program needs it: a function mapped by ``parallel`` does it itself.
    """
    if jax.process_count() == 1:
        return shares
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(sharded(), array), shares
    )


def _mesh() -> Mesh:
    return Mesh(np.asarray(_devices()), (AXIS,))


def _devices() -> list[Any]:
    """Returns all devices, grouped by process: JAX promises no order."""
    return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
