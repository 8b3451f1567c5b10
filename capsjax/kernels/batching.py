"""Rules for ``jax.vmap`` over functions that have a batch axis of their own."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import export, lax
from jax.custom_batching import custom_vmap
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array


def merge_mapped(function: Callable, in_axes, out_axes) -> Callable:
    """Makes examples that ``jax.vmap`` maps over part of the function's own batch.

    Otherwise each mapped example would be a batch of one: short vectors, and blocks
    sized without regard to the number of examples.

    Args:
        function: Takes arrays, returns an array or a tuple of arrays.
        in_axes: The batch axis of each array; None for one that all examples share.
        out_axes: The batch axis of each result; None for a sum over the examples. Sums
            are made for one mapped example after the other. So is everything if an
            array is mapped that all examples share.
    """
    mergeable = custom_vmap(function)
    # A derivative of the gradient is transposed, and a ``custom_vmap`` can't be.
    differentiable = jax.custom_jvp(mergeable)
    differentiable.defjvp(lambda arrays, tangents: jax.jvp(function, arrays, tangents))

    @mergeable.def_vmap
    def map_over(size: int, is_mapped: list[bool], *arrays: Array):
        def merge(x, axis, is_mapped):
            if axis is None:
                return x
            x = x if is_mapped else jnp.broadcast_to(x, (size, *x.shape))
            return lax.collapse(jnp.moveaxis(x, 0, axis), axis, axis + 2)

        def part(axis, merged, summed):
            if axis is None:
                return summed
            before, after = merged.shape[:axis], merged.shape[axis + 1 :]
            return jnp.moveaxis(merged.reshape(*before, size, -1, *after), axis, 0)

        shared = [axis is None for axis in in_axes]
        if not size or any(map(operator.and_, is_mapped, shared)):
            results = map_one_by_one(mergeable, is_mapped, arrays)
        else:
            merged = mergeable(*map(merge, arrays, in_axes, is_mapped))
            summed = merged
            if None in jax.tree.leaves(out_axes, is_leaf=_is_none):
                summed = map_one_by_one(mergeable, is_mapped, arrays)
            results = jax.tree.map(part, out_axes, merged, summed, is_leaf=_is_none)
        return results, jax.tree.map(lambda _: True, results)

    return differentiable


def primitive_over_examples(
    function: Callable[..., Any],
    type_of: Callable[..., Any],
    *,
    shared: Sequence[int],
    optional: int,
) -> Primitive:
    """Makes a primitive, which ``jax.vmap`` maps before the gradient is taken.

    A ``custom_vjp`` mapped over examples would make a gradient of a shared array for
    each, to be summed after, and would not know how many there are.

    Args:
        function: Takes arrays and static options, returns an array. The first axis of
            the result and of all arrays that are not shared is the batch.
        type_of: Returns the abstract result, given the abstract arrays.
        shared: Places of arrays without a batch axis. If one of these is mapped, all is
            computed for one mapped example after the other.
        optional: Place of an array that may be missing, and whose first axis may be one
            if all examples share it.
    """
    primitive = Primitive(function.__name__.strip("_"))

    def derive(arrays, tangents, **options):
        tangents = tuple(map(ad.instantiate_zeros, tangents))
        return jax.jvp(lambda *x: function(*x, **options), arrays, tangents)

    def map_over(arrays, axes, **options):
        is_mapped = [axis is not None for axis in axes]
        arrays = [
            x if axis is None else jnp.moveaxis(x, axis, 0)
            for x, axis in zip(arrays, axes, strict=True)
        ]

        def bind(*arrays):
            return primitive.bind(*arrays, **options)

        if any(is_mapped[place] for place in shared):
            return map_one_by_one(bind, is_mapped, arrays), 0
        size = next(len(x) for x, y in zip(arrays, is_mapped, strict=True) if y)
        batch = arrays[0].shape[int(is_mapped[0])]

        def merge(place, x, is_own):
            is_of_all = place == optional and not is_own and len(x) == 1
            if place in shared or is_of_all:
                return x
            own = x.shape[1 + is_own :]
            x = jnp.broadcast_to(x, (size, batch, *own))
            return lax.collapse(x, 0, 2)

        merged = map(merge, range(len(arrays)), arrays, is_mapped)
        result = bind(*merged)
        return result.reshape(size, batch, *result.shape[1:]), 0

    primitive.def_abstract_eval(type_of)
    primitive.def_impl(function)
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
    ad.primitive_jvps[primitive] = derive
    batching.primitive_batchers[primitive] = map_over
    return primitive


def in_parts(function: Callable, size: int, in_axes, out_axes) -> Callable:
    """Makes a function that takes at most ``size`` examples at a time.

    Args:
        function: Takes arrays, returns an array or a tuple of arrays.
        size: The most examples at a time. Parts are of equal size, but for the last.
        in_axes: The batch axis of each array; None for one that all examples share.
        out_axes: The batch axis of each result; None for a sum over the examples. The
            sums have the shapes of the shared arrays, in their order.
    """
    mapped = {n: axis for n, axis in enumerate(in_axes) if axis is not None}
    axes, tree = jax.tree.flatten(out_axes, is_leaf=_is_none)
    joined = {n: axis for n, axis in enumerate(axes) if axis is not None}
    summed = [n for n, axis in enumerate(axes) if axis is None]

    def compute(*arrays: Array) -> Any:
        batch = next(arrays[n].shape[axis] for n, axis in mapped.items())
        if export.is_symbolic_dim(batch) or batch <= size:
            return function(*arrays)

        def cut(start: int, stop: int) -> dict[int, Array]:
            return {
                n: lax.slice_in_dim(arrays[n], start, stop, axis=axis)
                for n, axis in mapped.items()
            }

        def call(own: dict[int, Array]) -> list[Array]:
            given = (own.get(n, x) for n, x in enumerate(arrays))
            return tree.flatten_up_to(function(*given))

        def add(sums: dict[int, Array], own: dict[int, Array]):
            results = call(own)
            sums = {n: sums[n] + results[n] for n in summed}
            return sums, {n: results[n] for n in joined}

        # Equal parts, one after the other.
        part = -(-batch // -(-batch // size))
        end = batch // part * part
        parts = {}
        for n, x in cut(0, end).items():
            axis = mapped[n]
            x = x.reshape(*x.shape[:axis], -1, part, *x.shape[axis + 1 :])
            parts[n] = jnp.moveaxis(x, axis, 0)
        shared = [x for n, x in enumerate(arrays) if n not in mapped]
        zeros = {n: jnp.zeros_like(x) for n, x in zip(summed, shared, strict=False)}
        results, stacks = lax.scan(add, zeros, parts)
        for n, axis in joined.items():
            stack = jnp.moveaxis(stacks[n], 0, axis)
            results[n] = lax.collapse(stack, axis, axis + 2)
        # The rest.
        if end < batch:
            for n, x in enumerate(call(cut(end, batch))):
                if n in joined:
                    results[n] = jnp.concatenate([results[n], x], joined[n])
                else:
                    results[n] += x
        return tree.unflatten(results[n] for n in range(len(axes)))

    return compute


def map_one_by_one(
    function: Callable, is_mapped: Sequence[bool], arrays: Sequence[Array]
) -> Any:
    """Computes ``jax.vmap`` over the first axes, one element after the other.

    A ``jax.vmap`` inside the function, or outside of it, still works.
    """

    def one(mapped):
        mapped = iter(mapped)
        own = zip(arrays, is_mapped, strict=True)
        return function(*(next(mapped) if is_own else x for x, is_own in own))

    return lax.map(one, [x for x, y in zip(arrays, is_mapped, strict=True) if y])


def _is_none(x) -> bool:
    return x is None
