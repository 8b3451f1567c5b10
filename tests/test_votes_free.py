"""The votes-free form against the plain one in float64, and under JAX's transforms."""

import functools
import math
import re
from typing import NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from capsjax.routings import DynamicRouting, votes_free
from capsjax.routings.dynamic import routing
from capsjax.routings.routed import cast_votes
from capsjax.routings.votes_free import Rounds, route_votes_free

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
    """Of capsules, weight and bias, and of a gradient of the poses."""

    def array(*shape):
        return jax.ShapeDtypeStruct(shape, np.float32)

    capsules = array(*case.batch, case.i, case.c)
    weight = array(case.i, case.j, case.d, case.c)
    bias = array(case.j, case.d) if case.has_bias else None
    return (capsules, weight, bias), array(*case.batch, case.j, case.d)


def draw(key, case: Case):
    """Numbers of these shapes, such that couplings are far from equal."""
    # One draw for all: each further shape would be compiled for a second.
    numbers = np.asarray(jax.random.normal(key, (2**18,))) / 2
    arrays, structure = jax.tree.flatten(shapes(case))
    drawn, end = [], 0
    for array in arrays:
        start, end = end, end + array.size
        drawn.append(jnp.asarray(numbers[start:end].reshape(array.shape)))
    assert end <= numbers.size
    return jax.tree.unflatten(structure, drawn)


def plain(rounds: Rounds):
    """The oracle: the votes, then the routing that a person can read in a minute."""
    return lambda capsules, weight, bias: (
        routing(cast_votes(capsules, weight), bias=bias, **rounds._asdict()).pose
    )


def without_votes(rounds: Rounds):
    return lambda capsules, weight, bias: route_votes_free(
        capsules, weight, bias, rounds
    )


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
    """Close relative to the largest: sums of both signs lose more than rounding."""
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        scale = np.abs(e).max()
        np.testing.assert_allclose(a / scale, e / scale, rtol=0, atol=rtol)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.numerics
def test_poses_and_all_gradients_are_those_of_the_plain_form(key, name):
    case = CASES[name]
    operands, gradient = draw(key, case)
    actual = pose_and_gradients(without_votes(case.rounds), operands, gradient)
    assert all(x.dtype == np.float32 for x in actual)
    assert_close(actual, exact(case.rounds, operands, gradient))


@pytest.mark.parametrize(
    ("platform", "block_bytes"),
    [(votes_free.CPU, 1), (votes_free.OTHER, 2**14), (votes_free.OTHER, 2**30)],
)
@pytest.mark.numerics
def test_the_size_of_the_blocks_and_the_platform_change_nothing(
    key, monkeypatch, platform, block_bytes
):
    case = CASES["blocks do not divide i"]._replace(rounds=rounds(3, nowhere=True))
    operands, gradient = draw(key, case)
    monkeypatch.setattr(votes_free, "CPU", platform._replace(block_bytes=block_bytes))
    actual = pose_and_gradients(without_votes(case.rounds), operands, gradient)
    assert_close(actual, exact(case.rounds, operands, gradient))


SINGULAR = Case((16,), 35, 3, 4, 2, rounds(3, nowhere=True), has_bias=False)


def test_zero_capsules_give_zero_poses_and_zero_gradients(key):
    (capsules, weight, bias), gradient = draw(key, SINGULAR)
    operands = jnp.zeros_like(capsules), weight, bias
    for result in compiled_once(without_votes, SINGULAR.rounds)(operands, gradient):
        if result is not None:
            np.testing.assert_array_equal(result, 0)


def test_no_examples_have_a_gradient_of_zero(key):
    operands, gradient = draw(key, SINGULAR._replace(batch=(0,)))
    pose, of_capsules, of_weight = pose_and_gradients(
        without_votes(SINGULAR.rounds), operands, gradient
    )
    assert len(pose) == len(of_capsules) == 0
    np.testing.assert_array_equal(of_weight, np.zeros_like(operands[1]))


@pytest.mark.parametrize("scale", [1e-12, 1e6])
@pytest.mark.numerics
def test_extreme_capsules_give_finite_poses_and_gradients(key, scale):
    (capsules, weight, bias), gradient = draw(key, SINGULAR)
    operands = scale * capsules, weight, bias
    for result in compiled_once(without_votes, SINGULAR.rounds)(operands, gradient):
        if result is not None:
            assert np.isfinite(result).all()


# The public door.

PUBLIC = Case((16,), 40, 3, 4, 2, rounds(3, nowhere=True))


def options(case_rounds: Rounds) -> DynamicRouting:
    return DynamicRouting(bias=0.1, **case_rounds._asdict())


def by_capsules(capsules, weight, bias):
    value = options(PUBLIC.rounds)
    return value.from_capsules(capsules, weight, parameters={"bias": bias}).pose


@pytest.mark.parametrize("batch", [(3,), (15,), (2, 8)])
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


def test_the_couplings_come_from_a_method_of_their_own(key):
    (capsules, weight, bias), _ = draw(key, PUBLIC)
    value = options(PUBLIC.rounds)
    expected = routing(
        cast_votes(capsules, weight), bias=bias, **PUBLIC.rounds._asdict()
    ).coupling
    actual = value.coupling_from_capsules(capsules, weight, parameters={"bias": bias})
    np.testing.assert_array_equal(actual, expected)


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
    value = DynamicRouting()
    for function in (value.from_capsules, value.coupling_from_capsules):
        # Past the shape checks of the tests, as a user would call it.
        with pytest.raises(ValueError, match=re.escape(str(weight))):
            function.__wrapped__(value, jnp.ones(capsules), jnp.ones(weight))


def test_forward_mode_is_refused_for_what_it_is(key):
    operands, _ = draw(key, PUBLIC)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(by_capsules, operands, operands)


@pytest.mark.parametrize("outer", [jax.jacfwd, jax.jacrev])
def test_the_gradient_has_derivatives_of_either_mode(key, outer):
    case = PUBLIC._replace(batch=(10,), i=3, j=2, d=2)
    operands, gradient = draw(key, case)

    def second(function):
        def inner(weight):
            capsules, _, bias = operands
            return jnp.sum(function(capsules, weight, bias) * gradient)

        run = jax.jit(outer(jax.grad(inner)), compiler_options=UNOPTIMISED)
        return np.asarray(run(operands[1]))

    assert_close([second(by_capsules)], [second(plain(case.rounds))], rtol=1e-5)


# The transformations of JAX.


def over_capsules(function):
    return jax.vmap(function, in_axes=(0, None, None))


@pytest.mark.parametrize("batch", [(12,), (3, 16)])
def test_vmap_over_capsules_is_a_batch_axis(key, batch):
    operands, gradient = draw(key, PUBLIC._replace(batch=batch))
    actual = pose_and_gradients(over_capsules(by_capsules), operands, gradient)
    assert_close(actual, exact(PUBLIC.rounds, operands, gradient))


def test_vmap_over_two_axes_of_capsules(key):
    operands, gradient = draw(key, PUBLIC._replace(batch=(3, 5)))
    function = over_capsules(over_capsules(by_capsules))
    actual = pose_and_gradients(function, operands, gradient)
    assert_close(actual, exact(PUBLIC.rounds, operands, gradient))


def over_weights(function):
    return jax.vmap(function, in_axes=(None, 0, 0))


def over_weights_inside_capsules(function):
    return jax.vmap(over_weights(function), in_axes=(0, None, None), out_axes=1)


@pytest.mark.parametrize("mapped", [over_weights, over_weights_inside_capsules])
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


@pytest.mark.parametrize("batch", [(), (16,)])
def test_mapped_gradients_are_those_of_each_example(key, batch):
    operands, gradient = draw(key, PUBLIC._replace(batch=(3, *batch)))
    capsules, *shared = operands
    run = jax.vmap(value_and_pullback(by_capsules), in_axes=((0, None, None), 0))
    actual = [np.asarray(x) for x in jax.jit(run)(operands, gradient)]
    each = [exact(PUBLIC.rounds, (capsules[n], *shared), gradient[n]) for n in range(3)]
    assert_close(actual, [np.stack(x) for x in zip(*each, strict=True)])


def test_mapped_gradients_of_no_examples(key):
    operands, gradient = draw(key, PUBLIC._replace(batch=(0, 16)))
    run = jax.vmap(value_and_pullback(by_capsules), in_axes=((0, None, None), 0))
    results = jax.eval_shape(run, operands, gradient)
    assert [len(x) for x in results] == [0, 0, 0, 0]


def test_gradients_in_every_direction_of_the_poses(key):
    (capsules, *shared), gradient = draw(key, PUBLIC._replace(batch=(2,)))
    directions = jnp.eye(gradient.size).reshape(-1, *gradient.shape)
    actual = jax.jacrev(by_capsules)(capsules, *shared)
    expected = [
        exact(PUBLIC.rounds, (capsules, *shared), direction)[1]
        for direction in directions
    ]
    assert_close([actual.reshape(-1, *capsules.shape)], [np.stack(expected)])


def test_vmap_over_everything_is_one_by_one(key):
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
    )(capsules.reshape(4, 16, 40, 2), weight, bias, gradient.reshape(4, 16, 3, 4))
    assert_close([own.reshape(64, 40, 2), *shared], expected)


def shard(function, in_specs, out_specs, *, check_vma):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=check_vma
    )


@pytest.mark.parametrize("check_vma", [False, True])
@pytest.mark.parametrize("mapped", [lambda function: function, over_capsules])
def test_a_sharded_function_has_the_gradients_of_one_device(key, check_vma, mapped):
    operands, gradient = draw(key, SHARDED)
    specs = P("data"), P(), P()
    function = shard(mapped(by_capsules), specs, P("data"), check_vma=check_vma)
    actual = pose_and_gradients(function, operands, gradient)
    assert_close(actual, exact(SHARDED.rounds, operands, gradient))


@pytest.mark.parametrize("check_vma", [False, True])
def test_gradients_mapped_inside_a_shard_are_those_of_each_example(key, check_vma):
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


@pytest.mark.parametrize("platforms", [("cuda",), ("tpu",), ("cpu", "cuda", "tpu")])
def test_poses_and_gradients_lower_for_every_platform(key, platforms):
    operands, gradient = draw(key, PUBLIC)

    run = jax.jit(value_and_pullback(by_capsules))
    exported = jax.export.export(run, platforms=platforms)(operands, gradient)
    assert exported.platforms == platforms


# Memory. The sizes make every array that is allowed smaller than batch x i x j.

LARGE = Case((256,), 200, 16, 8, 4, rounds(5), has_bias=False)
PAPER = Case((128,), 1152, 10, 16, 8, rounds(3), has_bias=False)


@functools.cache
def compile_gradients(make, case: Case):
    operands, gradient = shapes(case)
    function = make(case.rounds)
    run = function if make is each_mapped else value_and_pullback(function)
    run = jax.jit(run, compiler_options=UNOPTIMISED)
    return run.lower(operands, gradient).compile()


def sum_over_mapped(rounds: Rounds):
    """Of single examples that ``vmap`` maps over, with the gradients of all."""
    function = DynamicRouting(**rounds._asdict()).from_capsules
    mapped = jax.vmap(lambda *operands: function(*operands).pose, in_axes=(0, None))
    return lambda capsules, weight, _: mapped(capsules, weight)


def each_mapped(rounds: Rounds):
    """The same with the gradients of each example's own capsules."""
    function = DynamicRouting(**rounds._asdict()).from_capsules

    def pose_and_gradient(capsules, weight, gradient):
        pose, pullback = jax.vjp(lambda x: function(x, weight).pose, capsules)
        return pose, *pullback(gradient)

    mapped = jax.vmap(pose_and_gradient, in_axes=(0, None, 0))
    return lambda operands, gradient: mapped(*operands[:2], gradient)


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("make", [without_votes, sum_over_mapped, each_mapped])
def test_nothing_of_the_size_of_the_logits_is_ever_made(stop, make):
    case = LARGE._replace(rounds=rounds(5, stop=stop))
    program = compile_gradients(make, case)
    num_logits = math.prod(case.batch) * case.i * case.j
    shapes = set(re.findall(r"f32\[([\d,]+)\]", program.as_text()))
    sizes = {shape: math.prod(map(int, shape.split(","))) for shape in shapes}
    assert any(size >= num_logits / 10 for size in sizes.values())
    assert {s: n for s, n in sizes.items() if n >= num_logits} == {}
    votes_bytes = 4 * num_logits * case.d
    assert program.memory_analysis().temp_size_in_bytes < votes_bytes / 4


def test_temporary_memory_does_not_grow_with_the_rounds():
    temporaries = [
        compile_gradients(without_votes, LARGE._replace(rounds=r))
        .memory_analysis()
        .temp_size_in_bytes
        for r in (rounds(3), rounds(5))
    ]
    batch_j_d = math.prod(LARGE.batch) * LARGE.j * LARGE.d
    # A few numbers for each output component, none for each input capsule.
    assert temporaries[1] - temporaries[0] < 6 * 2 * 4 * batch_j_d


def test_temporary_memory_at_the_paper_s_size_is_a_tenth_of_the_plain_form_s():
    own, other = (
        compile_gradients(make, PAPER).memory_analysis().temp_size_in_bytes
        for make in (without_votes, plain)
    )
    assert own < other / 10


def test_a_few_examples_with_many_votes_do_not_hold_them():
    case = Case((8,), 8192, 8, 16, 1, rounds(3), has_bias=False)
    votes_bytes = 4 * math.prod((*case.batch, case.i, case.j, case.d))
    capsules, weight, _ = shapes(case)[0]
    route = jax.jit(DynamicRouting().from_capsules)
    program = route.lower(capsules, weight).compile(UNOPTIMISED)
    # Beside the blocks there is a copy of the weights: an eighth of the votes.
    assert program.memory_analysis().temp_size_in_bytes < votes_bytes / 3


def test_weights_mapped_inside_of_capsules_have_one_gradient_each():
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


@pytest.mark.parametrize(("batch", "holds"), [(8, True), (9, False)])
def test_the_poses_of_a_few_examples_come_from_votes_that_are_held(batch, holds):
    case = Case((batch,), 800, 8, 16, 1, rounds(3))
    capsules, weight, _ = shapes(case)[0]
    route = jax.jit(DynamicRouting().from_capsules)
    program = route.lower(capsules, weight).compile(UNOPTIMISED)
    votes_bytes = 4 * math.prod((batch, case.i, case.j, case.d))
    assert (program.memory_analysis().temp_size_in_bytes > votes_bytes) == holds
