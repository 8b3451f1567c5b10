"""The devices of all processes, and what a function mapped over devices must know.

The one place that maps a step over them.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "device"

Tree = TypeVar("Tree")


class DeviceError(OSError):
    """JAX has no device to compute on; the message says which was asked for."""


def require_devices() -> None:
    """Starts JAX's devices, so that what is wrong with them is one line.

    Raises:
        DeviceError: If there are none of the platform that is asked for.
    """
    try:
        jax.devices()
    # A platform that is unknown, has no plugin or no device: each fails in its own way.
    except (RuntimeError, AssertionError, ValueError) as error:
        asked: Any = jax.config
        text = str(error).strip()
        reason = f" ({text.splitlines()[0][:200]})" if text else ""
        if not asked.jax_platforms:
            raise DeviceError(f"JAX can't start a device{reason}.") from error
        raise DeviceError(
            f"JAX finds no device of JAX_PLATFORMS={asked.jax_platforms}{reason}. "
            "Leave JAX_PLATFORMS out to take what is there, or set it to cpu."
        ) from error


def parallel(step: Callable[..., Any], *, donate: bool = False) -> Any:
    """Maps ``step(state, share)`` over all devices.

    The state is one replicated copy, never stacked; of the shares, each device gets its
    own along the first axis. The step itself must reduce over ``AXIS`` what it returns:
    without a ``pmean`` the answer of one device would be taken for that of all.

    Since JAX 0.8 ``jax.pmap`` is ``jit`` of ``shard_map``.

    Args:
        step: A pure function of the state and one device's share of the data.
        donate: Whether the state's memory is given to the new state. The one passed in
            can't be used again.
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
    """Where the state lives: the same on each device."""
    return NamedSharding(_mesh(), PartitionSpec())


def sharded() -> NamedSharding:
    """Where shares live: each on its own device, along the first axis."""
    return NamedSharding(_mesh(), PartitionSpec(AXIS))


def my_shares(array: np.ndarray, *, axis: int = 0) -> np.ndarray:
    """Splits an axis evenly over all devices; the shares of this process's, first.

    Args:
        array: The same on all processes.
        axis: Which one; the axis of the devices comes before all others.
    """
    shape, devices = array.shape, _devices()
    split = array.reshape(*shape[:axis], len(devices), -1, *shape[axis + 1 :])
    here = jax.process_index()
    mine = [n for n, device in enumerate(devices) if device.process_index == here]
    return np.moveaxis(split, axis, 0)[mine[0] : mine[-1] + 1]


def spread(shares: Tree) -> Tree:
    """Puts the shares of this process's devices beside those of the others.

    Only a compiled program needs that: a function mapped by ``parallel`` does it.
    """
    if jax.process_count() == 1:
        return shares
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(sharded(), array), shares
    )


def _mesh() -> Mesh:
    return Mesh(np.asarray(_devices()), (AXIS,))


def _devices() -> list[Any]:
    """Those of a process side by side: the order of JAX's own list is its affair."""
    return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
