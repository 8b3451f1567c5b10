"""The votes-free form: its numbers against the plain form in float64, its memory."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import first_of, variants
from votes import (
    CASES,
    UNOPTIMISED,
    Case,
    assert_close,
    compiled_once,
    draw,
    exact,
    plain,
    pose_and_gradients,
    rounds,
    shapes,
    value_and_pullback,
    without_votes,
)

from capsjax.kernels import vote_blocks
from capsjax.kernels.dynamic_routing import Rounds
from capsjax.routings import DynamicRouting
from capsjax.runtime import platforms

QUICK = (
    "blocks do not divide i",
    "many outputs",
    "one round, stopped",
    "no batch axis",
)


@pytest.mark.parametrize("name", first_of(QUICK, CASES))
@pytest.mark.numerics
def test_poses_and_all_gradients_equal_the_plain_form_s(key, name):
    case = CASES[name]
    operands, gradient = draw(key, case)
    actual = pose_and_gradients(without_votes(case.rounds), operands, gradient)
    assert all(x.dtype == np.float32 for x in actual)
    assert_close(actual, exact(case.rounds, operands, gradient))


@pytest.mark.parametrize(
    ("platform", "size"),
    [
        ("cpu", {"block_bytes": 1}),
        ("cuda", {"block_bytes": 2**14}),
        ("cuda", {"block_bytes": 2**30}),
        # Four times four examples, and one more.
        ("cpu", {"one_input_bytes": 1}),
    ],
)
@pytest.mark.numerics
def test_block_size_and_platform_change_nothing(key, monkeypatch, platform, size):
    case = CASES["blocks do not divide i"]._replace(rounds=rounds(3, nowhere=True))
    operands, gradient = draw(key, case)
    monkeypatch.setattr(vote_blocks, "_FEWEST_EXAMPLES", 4)
    row = platforms.platform(platform)._replace(**size)
    monkeypatch.setattr(platforms, "PLATFORMS", {"cpu": row})
    actual = pose_and_gradients(without_votes(case.rounds), operands, gradient)
    assert_close(actual, exact(case.rounds, operands, gradient))


SINGULAR = Case((16,), 35, 3, 4, 2, rounds(3, nowhere=True), has_bias=False)


def test_zero_capsules_give_zero_poses_and_zero_gradients(key):
    (capsules, weight, bias), gradient = draw(key, SINGULAR)
    operands = jnp.zeros_like(capsules), weight, bias
    for result in compiled_once(without_votes, SINGULAR.rounds)(operands, gradient):
        if result is not None:
            np.testing.assert_array_equal(result, 0)


def test_the_weight_s_gradient_is_zero_without_examples(key):
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


# Memory. The sizes make every allowed array smaller than batch x i x j.

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
    """Maps over single examples by ``vmap``, with gradients summed over all."""
    function = DynamicRouting(**rounds._asdict()).from_capsules
    mapped = jax.vmap(lambda *operands: function(*operands).pose, in_axes=(0, None))
    return lambda capsules, weight, _: mapped(capsules, weight)


def each_mapped(rounds: Rounds):
    """Maps over single examples by ``vmap``, with each one's own gradients."""
    function = DynamicRouting(**rounds._asdict()).from_capsules

    def pose_and_gradient(capsules, weight, gradient):
        pose, pullback = jax.vjp(lambda x: function(x, weight).pose, capsules)
        return pose, *pullback(gradient)

    mapped = jax.vmap(pose_and_gradient, in_axes=(0, None, 0))
    return lambda operands, gradient: mapped(*operands[:2], gradient)


@pytest.mark.parametrize("stop", [False, *variants(True)])
@pytest.mark.parametrize(
    "make", [without_votes, *variants(sum_over_mapped, each_mapped)]
)
def test_no_array_as_large_as_the_logits_is_ever_made(stop, make):
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


@pytest.mark.slow
def test_temporary_memory_at_the_paper_s_size_is_a_tenth_of_the_plain_form_s():
    own, other = (
        compile_gradients(make, PAPER).memory_analysis().temp_size_in_bytes
        for make in (without_votes, plain)
    )
    assert own < other / 10
