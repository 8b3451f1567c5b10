"""Measures routing and its gradient where single examples are mapped over.

    python benchmarks/mapped_routing.py

At the paper's size. The first table compares votes-free routing with held votes. For
the second, each program is compiled twice, with the rule ``merge_mapped`` that makes
mapped examples part of the batch and without it. Time is the median of five runs, taken
in turn; memory is what the compiled program allocates for its temporaries.
"""

import statistics
import time

import jax
import jax.numpy as jnp

from capsjax import DynamicRouting
from capsjax.kernels import dynamic_routing

BATCH, INPUTS, OUTPUTS, DIM, INPUT_DIM = 128, 1152, 10, 16, 8
FREE, HELD = (DynamicRouting(form=form) for form in ("votes_free", "votes"))


def poses(capsules, weight, routing=FREE):
    """Poses of one example, or of several."""
    return routing.from_capsules(capsules, weight).pose


def loss(capsules, weight, target, routing=FREE):
    """A scalar of the poses."""
    return jnp.sum(poses(capsules, weight, routing) * target)


def operands():
    """Capsules, weight and a gradient of the poses."""
    keys = jax.random.split(jax.random.key(0), 3)
    u = 0.1 * jax.random.normal(keys[0], (BATCH, INPUTS, INPUT_DIM))
    w = 0.05 * jax.random.normal(keys[1], (INPUTS, OUTPUTS, DIM, INPUT_DIM))
    return u, w, jax.random.normal(keys[2], (BATCH, OUTPUTS, DIM))


def mapped_programs(routing):
    """Names, functions and their arguments, for one form of the routing."""
    u, w, t = operands()
    axes = (0, None, 0)

    def error(u, w, t):
        return loss(u, w, t, routing)

    def total(u, w, t):
        return jax.vmap(error, axes)(u, w, t).sum()

    one = jax.vmap(lambda u, w: poses(u, w, routing), (0, None))
    yield "vmap: poses", one, (u, w)
    yield "grad of a sum over vmap, by both", jax.grad(total, (0, 1)), (u, w, t)
    yield "vmap of grad, by capsules", jax.vmap(jax.grad(error), axes), (u, w, t)


def programs():
    """Names, functions and their arguments, to compile with and without the rule."""
    u, w, t = operands()
    mapped, axes = jax.vmap(loss, (0, None, 0)), (0, None, 0)

    yield "grad, nothing mapped", jax.grad(loss, 1), (u, w, t)
    total = jax.grad(lambda w, u, t: mapped(u, w, t).sum())
    yield "grad of vmap, by W", total, (w, u, t)
    yield "vmap of grad, by capsules", jax.vmap(jax.grad(loss), axes), (u, w, t)
    few = u[:16], w, t[:16]
    yield "the same, 16 examples", jax.vmap(jax.value_and_grad(loss), axes), few
    few = u[:8], w, t[:8]
    yield "vmap of grad, by W, 8 examples", jax.vmap(jax.grad(loss, 1), axes), few
    yield "jacrev of one example's poses", jax.jacrev(poses), (u[0], w)


def all_compiled(programs):
    """The programs as executables, by name, with their arguments."""
    return {
        name: (jax.jit(function).lower(*arguments).compile(), arguments)
        for name, function, arguments in programs
    }


def compiled(merges):
    """The programs as executables, with or without the rule."""
    rule = dynamic_routing.merge_mapped
    if not merges:
        dynamic_routing.merge_mapped = lambda function, in_axes, out_axes: function
    jax.clear_caches()
    try:
        return all_compiled(programs())
    finally:
        dynamic_routing.merge_mapped = rule


def seconds(program, arguments):
    """The time of one run."""
    started = time.perf_counter()
    jax.block_until_ready(program(*arguments))
    return time.perf_counter() - started


def main():
    """Prints a row for each program, in two tables."""
    show(
        "votes-free",
        "held votes",
        *map(all_compiled, map(mapped_programs, (FREE, HELD))),
    )
    show("with", "without", *map(compiled, (True, False)))


def show(first, second, *forms):
    """Prints the times and memory of two forms of the same programs."""
    print(f"| program | {first}: ms, MB | {second}: ms, MB | time | memory |")
    print("| --- | --: | --: | --: | --: |")
    for name in forms[0]:
        pairs = [form[name] for form in forms]
        for pair in pairs:
            seconds(*pair)
        times = zip(
            *([seconds(*pair) for pair in pairs] for _ in range(5)), strict=True
        )
        ms = [1e3 * statistics.median(each) for each in times]
        mb = [p.memory_analysis().temp_size_in_bytes / 1e6 for p, _ in pairs]
        cells = [f"{m:.0f}, {b:.0f}" for m, b in zip(ms, mb, strict=True)]
        ratios = f"{ms[1] / ms[0]:.2f} | {mb[1] / mb[0]:.2f}"
        print(f"| {name} | {cells[0]} | {cells[1]} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
