"""The devices of one process: the one place that maps a step over them."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "device"

Tree = TypeVar("Tree")


def parallel(step: Callable[..., Any], *, donate: bool = False) -> Any:
    """Maps ``step(state, share)`` over all local devices.

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
        donate_argnums=(0,) if donate else (),
    )


def replicated() -> NamedSharding:
    """Where the state lives: the same on each local device."""
    mesh = Mesh(np.asarray(jax.local_devices()), (AXIS,))
    return NamedSharding(mesh, PartitionSpec())


def share(batch: Tree) -> Tree:
    """Splits the first axis of host arrays evenly over the local devices."""
    devices = jax.local_device_count()
    return jax.tree.map(
        lambda array: array.reshape(devices, -1, *array.shape[1:]), batch
    )
