"""What custom derivatives and primitives need inside sharded functions."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array


def vary_alike(*arrays: Array) -> list[Array]:
    """Makes arrays vary over the mesh axes that any of them varies over.

    Inside ``jax.shard_map(check_vma=True)`` JAX then sums the gradient of what the
    devices share, which a ``custom_vjp`` would have to do. ``jax.vmap`` makes no
    difference to it: what it does not map over stays shared.
    """
    varying = [jax.typeof(x).manual_axis_type.varying for x in arrays]
    missing = [frozenset.union(*varying) - own for own in varying]
    return [
        jax.lax.pcast(x, tuple(sorted(axes, key=str)), to="varying") if axes else x
        for x, axes in zip(arrays, missing, strict=True)
    ]


def spec_of(x: Array) -> tuple[Any, ...]:
    """Returns the mesh axes over which each axis of an array is spread, or None."""
    spec = tuple(jax.typeof(x).sharding.spec)
    return spec + (None,) * (x.ndim - len(spec))


def leave_sharding_to_xla(
    function: Callable[..., Any], out_specs: Any, *operands: Any
) -> Any:
    """Calls ``function(*operands)``; the compiler shards what is computed inside.

    Under explicit sharding, which is what ``jax.make_mesh`` makes, every operation must
    say how its result lies on the devices, and some that are needed here have no say:
    branches, products over a sharded axis. Elsewhere this is a plain call.

    Args:
        function: Of arrays, to a tree of arrays.
        out_specs: How each result lies on the devices: a ``PartitionSpec``, or a tree
            of them. :func:`spec_of` has those of the operands.
        operands: Arrays, or trees of them.
    """
    meshes = [jax.typeof(x).sharding.mesh for x in jax.tree.leaves(operands)]
    mesh = next((mesh for mesh in meshes if mesh.explicit_axes), None)
    if mesh is None:
        return function(*operands)
    with jax.sharding.use_abstract_mesh(mesh):
        automatic = jax.sharding.auto_axes(function, out_sharding=out_specs)
        return automatic(*operands)
