"""Attention without votes: its numbers against held votes, its memory, its maps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from marks import variants
from votes import UNOPTIMISED, assert_close

from capsjax.routings import InvertedAttention, SelfAttention
from capsjax.runtime import platforms

B, I, J, D, C = 16, 37, 3, 4, 2  # noqa: E741
ALGORITHMS = {"self": SelfAttention(), "inverted": InvertedAttention(3)}


OWN = {SelfAttention: "bias", InvertedAttention: "score"}


@pytest.fixture(params=ALGORITHMS)
def value(request):
    return ALGORITHMS[request.param]


@pytest.fixture
def drawn(value):
    """Draws capsules, weight, initial logits, and the algorithm's own parameter."""
    normal = np.random.default_rng(0).normal
    own = (I, J) if OWN[type(value)] == "bias" else (D,)
    shapes = (B, I, C), (I, J, D, C), (B, I, J), own
    return [normal(size=shape).astype(np.float32) for shape in shapes]


def route(value, form, capsules, weight, start, own):
    """Returns poses and activations."""
    return dataclasses.replace(value, form=form).from_capsules(
        *(capsules, weight),
        parameters={OWN[type(value)]: jnp.asarray(own)},
        initial_logit=start,
    )[:2]


def with_gradients(function, operands):
    """Returns the results of a function, and the gradients of their sines' sum."""

    def loss(*operands):
        results = function(*operands)
        return sum(jnp.sum(jnp.sin(x)) for x in results), results

    places = tuple(range(len(operands)))
    run = jax.jit(jax.grad(loss, places, has_aux=True), compiler_options=UNOPTIMISED)
    gradients, results = run(*operands)
    return [np.asarray(x) for x in (*results, *gradients)]


def exact(value, operands):
    with jax.enable_x64(True):
        operands = [jnp.asarray(x, jnp.float64) for x in operands]
        return with_gradients(functools.partial(route, value, "votes"), operands)


def free(value):
    return functools.partial(route, value, "votes_free")


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.numerics
def test_results_and_all_gradients_equal_those_of_held_votes(drawn, value, is_shared):
    operands = list(drawn)
    if is_shared:
        operands[2] = operands[2][0]
    assert_close(with_gradients(free(value), operands), exact(value, operands), 2e-5)


@pytest.mark.parametrize("platform", ["cpu", *variants("cuda")])
def test_block_size_and_platform_change_nothing(drawn, monkeypatch, value, platform):
    row = platforms.platform(platform)._replace(block_bytes=2**10)
    monkeypatch.setattr(platforms, "PLATFORMS", {"cpu": row})
    operands = [drawn[0][:3], drawn[1], drawn[2][:3], drawn[3]]
    assert_close(with_gradients(free(value), operands), exact(value, operands), 2e-5)


def test_zero_capsules_give_zero_poses_and_finite_gradients(drawn, value):
    operands = [np.zeros_like(drawn[0]), *drawn[1:]]
    pose, _, *gradients = with_gradients(free(value), operands)
    np.testing.assert_array_equal(pose, np.zeros_like(pose))
    assert all(np.isfinite(x).all() for x in gradients)


def test_mapped_examples_are_a_batch(drawn, value):
    expected = exact(value, drawn)
    mapped = jax.vmap(free(value), (0, None, 0, None))
    assert_close(with_gradients(mapped, drawn), expected, 2e-5)
    capsules, weight, start, own = drawn
    halves = [x.reshape(2, B // 2, *x.shape[1:]) for x in (capsules, start)]
    two = with_gradients(mapped, [halves[0], weight, halves[1], own])
    two = [x.reshape(e.shape) for x, e in zip(two, expected, strict=True)]
    assert_close(two, expected, 2e-5)


def test_mapped_batches_of_one_keep_their_own_queries(drawn, value):
    capsules, weight, _, own = drawn

    def route_one(capsules):
        return free(value)(capsules[None], weight, None, own)[0][0]

    mapped = jax.jit(jax.vmap(route_one))(capsules)
    batch = jax.jit(free(value))(capsules, weight, None, own)[0]
    np.testing.assert_allclose(mapped, batch, rtol=1e-4, atol=1e-5)


def test_mapped_weights_share_the_capsules(drawn, value):
    capsules, weight, start, own = drawn
    weights = np.stack([weight, 2 * weight])
    mapped = jax.jit(jax.vmap(free(value), (None, 0, None, None)))
    results = [np.asarray(x)[1] for x in mapped(capsules, weights, start, own)]
    assert_close(results, exact(value, [capsules, 2 * weight, start, own])[:2], 2e-5)


@pytest.mark.parametrize("check_vma", [True, False])
def test_a_sharded_function_s_gradients_equal_one_device_s(drawn, value, check_vma):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    over, same = P("data"), P()
    function = jax.shard_map(
        free(value),
        mesh=mesh,
        in_specs=(over, same, over, same),
        out_specs=over,
        check_vma=check_vma,
    )
    assert_close(with_gradients(function, drawn), exact(value, drawn), 2e-5)


def test_memory_is_a_fraction_of_the_votes(value):
    case = dict(b=128, i=500, j=8, d=16, c=8)
    axes = ("bic", "ijdc", "ij", "ij" if isinstance(value, SelfAttention) else "d")
    shapes = [[case[axis] for axis in own] for own in axes]
    arrays = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]

    def loss(*operands):
        return sum(jnp.sum(x) for x in route(value, "auto", *operands))

    program = jax.jit(jax.grad(loss, (0, 1))).lower(*arrays).compile()
    votes_bytes = 4 * 128 * 500 * 8 * 16
    assert program.memory_analysis().temp_size_in_bytes < votes_bytes / 2

    def one(capsules, *rest):
        return sum(jnp.sum(x) for x in route(value, "auto", capsules[None], *rest))

    # One gradient of the weight for all mapped examples, not one for each.
    mapped = jax.vmap(one, (0, None, None, None))
    program = jax.jit(jax.grad(lambda *x: mapped(*x).sum(), 1)).lower(*arrays).compile()
    assert program.memory_analysis().temp_size_in_bytes < votes_bytes / 2
