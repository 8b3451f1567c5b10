"""Votes-free routing: cases, the oracle in float64, and how both are compared."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from capsjax.kernels.dynamic_routing import Rounds, route_capsules
from capsjax.routings.dynamic import routing
from capsjax.votes import cast_votes

# Compiling takes most of these tests' time, and LLVM's optimiser most of that.
UNOPTIMISED = {"xla_backend_optimization_level": 0}


class Case(NamedTuple):
    batch: tuple[int, ...]
    i: int
    j: int
    d: int
    c: int
    rounds: Rounds
    has_bias: bool = True


def rounds(num_iterations=3, *, nowhere=False, stop=False) -> Rounds:
    return Rounds(num_iterations, nowhere, stop)


CASES = {
    "blocks do not divide i": Case((17,), 37, 5, 7, 4, rounds(3)),
    "the paper's capsules": Case((128,), 61, 10, 16, 8, rounds(3), has_bias=False),
    "many outputs": Case((5,), 6, 71, 3, 2, rounds(3, nowhere=True)),
    "one round": Case((16,), 40, 3, 4, 2, rounds(1)),
    "one round, stopped": Case((16,), 40, 3, 4, 2, rounds(1, stop=True)),
    "two rounds": Case((20,), 33, 4, 6, 5, rounds(2), has_bias=False),
    "three rounds, nowhere": Case((18,), 70, 6, 8, 3, rounds(3, nowhere=True)),
    "three, nowhere, stopped": Case(
        (18,), 35, 6, 8, 3, rounds(3, nowhere=True, stop=True)
    ),
    "five rounds": Case((16,), 34, 4, 5, 3, rounds(5)),
    "batch of one": Case((1,), 50, 3, 4, 2, rounds(3)),
    "one of everything": Case((1,), 1, 1, 1, 1, rounds(2, nowhere=True)),
    "no batch axis": Case((), 40, 3, 4, 2, rounds(3)),
    "two batch axes": Case((3, 7), 40, 3, 4, 2, rounds(3)),
}


def shapes(case: Case):
    """Returns shapes of capsules, weight, bias, and of a gradient of the poses."""

    def array(*shape):
        return jax.ShapeDtypeStruct(shape, np.float32)

    capsules = array(*case.batch, case.i, case.c)
    weight = array(case.i, case.j, case.d, case.c)
    bias = array(case.j, case.d) if case.has_bias else None
    return (capsules, weight, bias), array(*case.batch, case.j, case.d)


def draw(key, case: Case):
    """Draws numbers with these shapes that make couplings far from equal."""
    # By NumPy: each shape would take a second to compile.
    seed = np.asarray(jax.random.key_data(key))
    numbers = np.random.default_rng(seed).normal(size=2**18).astype(np.float32) / 2
    arrays, structure = jax.tree.flatten(shapes(case))
    drawn, end = [], 0
    for array in arrays:
        start, end = end, end + array.size
        drawn.append(jnp.asarray(numbers[start:end].reshape(array.shape)))
    assert end <= numbers.size
    return jax.tree.unflatten(structure, drawn)


def plain(rounds: Rounds):
    """Returns the oracle: votes, then the routing that one can read in a minute."""
    return lambda capsules, weight, bias: (
        routing(cast_votes(capsules, weight), bias=bias, **rounds._asdict()).pose
    )


def without_votes(rounds: Rounds):
    def route(capsules, weight, bias):
        if bias is None:
            bias = jnp.zeros(weight.shape[1:3], weight.dtype)
        return route_capsules(capsules, weight, bias, rounds=rounds)

    return route


def value_and_pullback(function):
    def run(operands, gradient):
        pose, pullback = jax.vjp(function, *operands)
        return pose, *pullback(gradient)

    return run


def pose_and_gradients(function, operands, gradient) -> list[np.ndarray]:
    run = jax.jit(value_and_pullback(function), compiler_options=UNOPTIMISED)
    return [np.asarray(x) for x in run(operands, gradient) if x is not None]


@functools.cache
def compiled_once(make, case_rounds: Rounds):
    run = value_and_pullback(make(case_rounds))
    return jax.jit(run, compiler_options=UNOPTIMISED)


def exact(case_rounds: Rounds, operands, gradient, make=plain) -> list[np.ndarray]:
    with jax.enable_x64(True):
        operands, gradient = jax.tree.map(
            lambda x: jnp.asarray(np.asarray(x), jnp.float64), (operands, gradient)
        )
        results = compiled_once(make, case_rounds)(operands, gradient)
        return [np.asarray(x) for x in results if x is not None]


def assert_close(actual, expected, rtol=2e-6):
    """Compares relative to the largest: sums of both signs lose more than rounding."""
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        scale = np.abs(e).max()
        np.testing.assert_allclose(a / scale, e / scale, rtol=0, atol=rtol)
