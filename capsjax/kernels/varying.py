"""Makes custom derivatives and primitives work inside sharded functions."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array


def vary_alike(*arrays: Array) -> list[Array]:
    """Makes arrays vary over the mesh axes that any of them varies over.

    Inside ``jax.shard_map(check_vma=True)`` JAX then sums the gradients of shared
    arrays, which a ``custom_vjp`` would otherwise have to do. Arrays that ``jax.vmap``
    does not map over stay shared.
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
    """Calls ``function(*operands)``, and lets the compiler shard its inner arrays.

    Under explicit sharding, the default of ``jax.make_mesh``, every operation must
    state the sharding of its result, and some have no argument for it: branches,
    products over a sharded axis. Without explicit sharding this is a plain call.

    Args:
        function: Takes arrays, returns a tree of arrays.
        out_specs: The sharding of each result: a ``PartitionSpec``, or a tree of them.
            :func:`spec_of` returns an operand's.
        operands: Arrays, or trees of them.
    """
    meshes = [jax.typeof(x).sharding.mesh for x in jax.tree.leaves(operands)]
    mesh = next((mesh for mesh in meshes if mesh.explicit_axes), None)
    if mesh is None:
        return function(*operands)
    with jax.sharding.use_abstract_mesh(mesh):
        automatic = jax.sharding.auto_axes(function, out_sharding=out_specs)
        return automatic(*operands)
