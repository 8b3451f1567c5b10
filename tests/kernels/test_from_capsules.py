"""``DynamicRouting.from_capsules``, alone and under JAX's transformations."""

import dataclasses
import functools
import math
import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from marks import variants
from votes import (
    UNOPTIMISED,
    Case,
    assert_close,
    draw,
    exact,
    plain,
    pose_and_gradients,
    rounds,
    shapes,
    value_and_pullback,
)

from capsjax.kernels.dynamic_routing import Rounds
from capsjax.routings import DynamicRouting
from capsjax.routings.dynamic import routing
from capsjax.votes import cast_votes

# Two rounds: a third makes programs half as large again, and nothing that is new here.
PUBLIC = Case((16,), 40, 3, 4, 2, rounds(2, nowhere=True))


def options(case_rounds: Rounds) -> DynamicRouting:
    return DynamicRouting(bias=0.1, **case_rounds._asdict())


def by_capsules(capsules, weight, bias):
    value = options(PUBLIC.rounds)
    return value.from_capsules(capsules, weight, parameters={"bias": bias}).pose


@pytest.mark.parametrize("batch", [(3,), *variants((15,)), (2, 8)])
def test_from_capsules_routes_the_votes_of_the_capsules(key, batch):
    case = PUBLIC._replace(batch=batch)
    operands, gradient = draw(key, case)
    expected = exact(case.rounds, operands, gradient)
    assert_close(pose_and_gradients(by_capsules, operands, gradient), expected)
    routed = options(case.rounds).from_capsules(
        *operands[:2], parameters={"bias": operands[2]}
    )
    assert routed.coupling is None
    np.testing.assert_allclose(routed.pose, expected[0], rtol=1e-5, atol=1e-6)
    lengths = np.linalg.norm(expected[0], axis=-1)
    np.testing.assert_allclose(routed.activation, lengths, rtol=1e-5)


def test_the_form_that_holds_the_votes_has_couplings_and_forward_mode(key):
    (capsules, weight, bias), _ = draw(key, PUBLIC)
    value = dataclasses.replace(options(PUBLIC.rounds), form="votes")
    expected = routing(
        cast_votes(capsules, weight), bias=bias, **PUBLIC.rounds._asdict()
    ).coupling
    by_form = functools.partial(
        value.from_capsules, weight=weight, parameters={"bias": bias}
    )
    np.testing.assert_array_equal(by_form(capsules).coupling, expected)
    step = 1e-2 * capsules
    forward = jax.jit(lambda *x: jax.jvp(lambda x: by_form(x).pose, x[:1], x[1:]))
    pose, change = forward(capsules, step)
    ends = by_form(capsules + step / 2).pose - by_form(capsules - step / 2).pose
    np.testing.assert_allclose(change, ends, atol=2e-5 * np.abs(pose).max())


def test_float64_is_routed_in_float64(key):
    drawn = draw(key, PUBLIC)
    actual = exact(PUBLIC.rounds, *drawn, make=lambda _: by_capsules)
    assert all(x.dtype == np.float64 for x in actual)
    assert_close(actual, exact(PUBLIC.rounds, *drawn), rtol=1e-13)


def test_bfloat16_is_routed_in_float32(key):
    operands, gradient = draw(key, PUBLIC)
    operands = tuple(x.astype(jnp.bfloat16) for x in operands)
    wide = tuple(x.astype(jnp.float32) for x in operands)
    pose, *gradients = pose_and_gradients(by_capsules, operands, gradient)
    assert pose.dtype == np.float32
    assert all(x.dtype == jnp.bfloat16 for x in gradients)
    expected = pose_and_gradients(by_capsules, wide, gradient)
    assert_close([pose], expected[:1])
    gradients = [x.astype(np.float32) for x in gradients]
    assert_close(gradients, expected[1:], rtol=2**-8)


@pytest.mark.parametrize(
    ("capsules", "weight"),
    [
        ((16, 5, 2), (6, 3, 4, 2)),
        ((16, 5, 2), (5, 3, 4, 3)),
        ((16, 5, 2), (5, 3, 8)),
        ((2,), (5, 3, 4, 2)),
        ((16, 5, 2), (5, 0, 4, 2)),
    ],
)
def test_arrays_that_do_not_fit_are_refused(capsules, weight):
    for value in (DynamicRouting(), DynamicRouting(form="votes")):
        # Without the tests' shape checks, as a user would call it.
        function = value.from_capsules.__wrapped__
        with pytest.raises(ValueError, match=re.escape(str(weight))):
            function(value, jnp.ones(capsules), jnp.ones(weight))


def test_forward_mode_is_refused_by_its_name(key):
    operands, _ = draw(key, PUBLIC)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(by_capsules, operands, operands)


@pytest.mark.slow
@pytest.mark.parametrize("outer", [jax.jacfwd, *variants(jax.jacrev)])
def test_the_gradient_has_derivatives_in_either_mode(key, outer):
    case = PUBLIC._replace(batch=(10,), i=3, j=2, d=2)
    operands, gradient = draw(key, case)

    def second(function):
        def inner(weight):
            capsules, _, bias = operands
            return jnp.sum(function(capsules, weight, bias) * gradient)

        run = jax.jit(outer(jax.grad(inner)), compiler_options=UNOPTIMISED)
        return np.asarray(run(operands[1]))

    assert_close([second(by_capsules)], [second(plain(case.rounds))], rtol=1e-5)


# ---- JAX's transformations


def over_capsules(function):
    return jax.vmap(function, in_axes=(0, None, None))


@pytest.mark.parametrize("batch", [(12,), *variants((3, 16))])
def test_vmap_over_capsules_equals_a_batch_axis(key, batch):
    operands, gradient = draw(key, PUBLIC._replace(batch=batch))
    actual = pose_and_gradients(over_capsules(by_capsules), operands, gradient)
    assert_close(actual, exact(PUBLIC.rounds, operands, gradient))


@pytest.mark.slow
def test_vmap_over_two_axes_of_capsules(key):
    operands, gradient = draw(key, PUBLIC._replace(batch=(3, 5)))
    function = over_capsules(over_capsules(by_capsules))
    actual = pose_and_gradients(function, operands, gradient)
    assert_close(actual, exact(PUBLIC.rounds, operands, gradient))


def over_weights(function):
    return jax.vmap(function, in_axes=(None, 0, 0))


def over_weights_inside_capsules(function):
    return jax.vmap(over_weights(function), in_axes=(0, None, None), out_axes=1)


@pytest.mark.parametrize(
    "mapped", [over_weights_inside_capsules, *variants(over_weights)]
)
def test_vmap_over_weights_shares_the_capsules(key, mapped):
    drawn = [draw(k, PUBLIC) for k in jax.random.split(key, 3)]
    (_, *own), gradient = jax.tree.map(lambda *x: jnp.stack(x), *drawn)
    capsules = drawn[0][0][0]
    actual = pose_and_gradients(mapped(by_capsules), (capsules, *own), gradient)
    each = [
        exact(PUBLIC.rounds, (capsules, *w), gradient) for (_, *w), gradient in drawn
    ]
    pose, of_capsules, *of_own = (np.stack(x) for x in zip(*each, strict=True))
    assert_close(actual, [pose, of_capsules.sum(0), *of_own])


@pytest.mark.parametrize("batch", [*variants(()), (16,)])
def test_mapped_gradients_equal_each_example_s_own(key, batch):
    operands, gradient = draw(key, PUBLIC._replace(batch=(3, *batch)))
    capsules, *shared = operands
    run = jax.vmap(value_and_pullback(by_capsules), in_axes=((0, None, None), 0))
    actual = [np.asarray(x) for x in jax.jit(run)(operands, gradient)]
    each = [exact(PUBLIC.rounds, (capsules[n], *shared), gradient[n]) for n in range(3)]
    assert_close(actual, [np.stack(x) for x in zip(*each, strict=True)])


def test_mapped_gradients_without_examples_are_empty(key):
    operands, gradient = draw(key, PUBLIC._replace(batch=(0, 16)))
    run = jax.vmap(value_and_pullback(by_capsules), in_axes=((0, None, None), 0))
    results = jax.eval_shape(run, operands, gradient)
    assert [len(x) for x in results] == [0, 0, 0, 0]


def test_gradients_in_every_direction_of_the_poses(key):
    (capsules, *shared), gradient = draw(key, PUBLIC._replace(batch=(2,)))
    directions = jnp.eye(gradient.size).reshape(-1, *gradient.shape)
    actual = jax.jit(jax.jacrev(by_capsules))(capsules, *shared)
    expected = [
        exact(PUBLIC.rounds, (capsules, *shared), direction)[1]
        for direction in directions
    ]
    assert_close([actual.reshape(-1, *capsules.shape)], [np.stack(expected)])


@pytest.mark.slow
def test_vmap_over_everything_equals_one_by_one(key):
    drawn = [draw(k, PUBLIC) for k in jax.random.split(key, 3)]
    operands, gradient = jax.tree.map(lambda *x: jnp.stack(x), *drawn)
    actual = pose_and_gradients(jax.vmap(by_capsules), operands, gradient)
    one_by_one = [exact(PUBLIC.rounds, *one) for one in drawn]
    assert_close(actual, [np.stack(x) for x in zip(*one_by_one, strict=True)])


SHARDED = PUBLIC._replace(batch=(64,))


def gradients_on_each_device(capsules, weight, bias, gradient):
    def loss(*operands):
        return jnp.sum(by_capsules(*operands) * gradient)

    return jax.grad(loss, argnums=(0, 1, 2))(capsules, weight, bias)


def test_pmap_adds_no_sum_over_devices(key):
    operands, gradient = draw(key, SHARDED)
    expected = exact(SHARDED.rounds, operands, gradient)[1:]

    def step(capsules, weight, bias, gradient):
        own, *shared = gradients_on_each_device(capsules, weight, bias, gradient)
        return own, *(jax.lax.psum(x, "data") for x in shared)

    capsules, weight, bias = operands
    own, *shared = jax.pmap(
        step, "data", in_axes=(0, None, None, 0), out_axes=(0, None, None)
    )(
        *(np.reshape(capsules, (4, 16, 40, 2)), weight, bias),
        np.reshape(gradient, (4, 16, 3, 4)),
    )
    assert_close([np.reshape(own, (64, 40, 2)), *shared], expected)


def shard(function, in_specs, out_specs, *, check_vma):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=check_vma
    )


@pytest.mark.parametrize("check_vma", [*variants(False), True])
@pytest.mark.parametrize(
    "mapped", [lambda function: function, *variants(over_capsules)]
)
def test_a_sharded_function_s_gradients_equal_one_device_s(key, check_vma, mapped):
    operands, gradient = draw(key, SHARDED)
    specs = P("data"), P(), P()
    function = shard(mapped(by_capsules), specs, P("data"), check_vma=check_vma)
    actual = pose_and_gradients(function, operands, gradient)
    assert_close(actual, exact(SHARDED.rounds, operands, gradient))


@pytest.mark.parametrize("check_vma", [*variants(False), True])
def test_gradients_mapped_inside_a_shard_equal_each_example_s_own(key, check_vma):
    operands, gradient = draw(key, SHARDED)
    run = jax.vmap(value_and_pullback(by_capsules), in_axes=((0, None, None), 0))

    def step(operands, gradient):
        pose, own, *shared = run(operands, gradient)
        shared = [x.sum(0) for x in shared]
        if not check_vma:
            shared = [jax.lax.psum(x, "data") for x in shared]
        return pose, own, *shared

    each, same = P("data"), P()
    specs = ((each, same, same), each), (each, each, same, same)
    function = shard(step, *specs, check_vma=check_vma)
    function = jax.jit(function, compiler_options=UNOPTIMISED)
    assert_close(
        function(operands, gradient), exact(SHARDED.rounds, operands, gradient)
    )


@pytest.mark.parametrize(
    ("check_vma", "weight_varies"), [(False, False), (True, False), (True, True)]
)
def test_gradients_inside_a_shard_are_summed_once(key, check_vma, weight_varies):
    operands, gradient = draw(key, SHARDED)
    expected = exact(SHARDED.rounds, operands, gradient)[1:]

    def step(capsules, weight, bias, gradient):
        if weight_varies:
            weight = jax.lax.pcast(weight, "data", to="varying")
        own, weight, bias = gradients_on_each_device(capsules, weight, bias, gradient)
        if weight_varies or not check_vma:
            weight = jax.lax.psum(weight, "data")
        if not check_vma:
            bias = jax.lax.psum(bias, "data")
        return own, weight, bias

    replicated = P("data"), P(), P()
    function = shard(step, (*replicated, P("data")), replicated, check_vma=check_vma)
    function = jax.jit(function, compiler_options=UNOPTIMISED)
    assert_close(function(*operands, gradient), expected)


@pytest.mark.parametrize(
    "platforms", [*variants(("cuda",), ("tpu",)), ("cpu", "cuda", "tpu")]
)
def test_poses_and_gradients_lower_for_every_platform(key, platforms):
    operands, gradient = draw(key, PUBLIC)

    run = jax.jit(value_and_pullback(by_capsules))
    exported = jax.export.export(run, platforms=platforms)(operands, gradient)
    assert exported.platforms == platforms


# ---- memory


def einsum_loop(votes, num_iterations=3):
    """Routes as one writes it first, to measure against."""
    logit = jax.lax.optimization_barrier(jnp.zeros(votes.shape[:-1]))
    for n in range(num_iterations):
        coupling = jax.nn.softmax(logit, axis=-1)
        s = jnp.einsum("bij,bijd->bjd", coupling, votes)
        square = jnp.sum(s * s, -1, keepdims=True)
        pose = square / (1 + square) * s / jnp.sqrt(square + 1e-9)
        if n + 1 < num_iterations:
            logit += jnp.einsum("bijd,bjd->bij", votes, pose)
    return pose


def temporary_bytes(function, *operands, gradient=None):
    """Returns the temporary memory as users compile it, without the tests' flags."""
    if gradient is not None:
        function, operands = value_and_pullback(function), (operands, gradient)
    program = jax.jit(function).lower(*operands).compile()
    return program.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("has_gradient", [False, True])
@pytest.mark.parametrize("batch", [*variants(1, 8), 16])
def test_capsules_take_no_more_memory_than_a_plain_loop(batch, has_gradient):
    case = Case((batch,), 2000, 8, 16, 8, rounds(3), has_bias=False)
    (capsules, weight, _), gradient = shapes(case)
    gradient = gradient if has_gradient else None

    def plain_loop(capsules, weight):
        return einsum_loop(jnp.einsum("bic,ijdc->bijd", capsules, weight))

    def own(capsules, weight):
        return DynamicRouting().from_capsules(capsules, weight).pose

    expected = temporary_bytes(plain_loop, capsules, weight, gradient=gradient)
    actual = temporary_bytes(own, capsules, weight, gradient=gradient)
    assert actual <= 1.1 * expected


@pytest.mark.parametrize("has_gradient", [False, True])
@pytest.mark.parametrize("num_iterations", [3, *variants(5)])
def test_votes_take_no_more_memory_than_a_plain_loop(num_iterations, has_gradient):
    votes = jax.ShapeDtypeStruct((16, 300, 10, 16), np.float32)
    gradient = jax.ShapeDtypeStruct((16, 10, 16), np.float32) if has_gradient else None
    own, plain_loop = (
        temporary_bytes(function, votes, gradient=gradient)
        for function in (
            lambda votes: routing(votes, num_iterations=num_iterations).pose,
            lambda votes: einsum_loop(votes, num_iterations),
        )
    )
    assert own <= 1.1 * plain_loop


def test_weights_mapped_inside_capsules_have_one_gradient_each():
    case = Case((64,), 100, 8, 8, 4, rounds(3))
    shared, gradient = shapes(case)
    capsules, *own = shared
    (*own, gradient) = (
        jax.ShapeDtypeStruct((3, *x.shape), x.dtype) for x in (*own, gradient)
    )
    run = value_and_pullback(over_weights_inside_capsules(by_capsules))
    run = jax.jit(run, compiler_options=UNOPTIMISED)
    program = run.lower((capsules, *own), gradient).compile()
    weight_bytes = 4 * 3 * math.prod((case.i, case.j, case.d, case.c))
    temporary = program.memory_analysis().temp_size_in_bytes
    assert temporary < math.prod(case.batch) / 8 * weight_bytes


@pytest.mark.parametrize(("batch", "holds"), [(15, True), (16, False)])
def test_few_examples_are_routed_by_held_votes(batch, holds):
    case = Case((batch,), 800, 8, 16, 1, rounds(3))
    capsules, weight, _ = shapes(case)[0]
    route = jax.jit(DynamicRouting().from_capsules)
    program = route.lower(capsules, weight).compile(UNOPTIMISED)
    votes_bytes = 4 * math.prod((batch, case.i, case.j, case.d))
    assert (program.memory_analysis().temp_size_in_bytes > votes_bytes) == holds
