"""Routing without votes: its numbers against held votes, its memory, its maps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from marks import slow, variants
from votes import UNOPTIMISED, assert_close

from capsjax.kernels import vote_blocks
from capsjax.routings import (
    EMRouting,
    InvertedAttention,
    SelfAttention,
    VariationalBayesRouting,
)
from capsjax.routings.competition import OverImage
from capsjax.runtime import platforms

B, I, J, D, C = 16, 37, 3, 4, 2  # noqa: E741
# EM's temperature is that of few inputs: their sum would hardly matter at its default.
ALGORITHMS = {
    "self": SelfAttention(),
    "inverted": InvertedAttention(3),
    "em": EMRouting(3, final_inverse_temperature=0.1),
    "variational_bayes": VariationalBayesRouting(),
}
OWN = {SelfAttention: "bias", InvertedAttention: "score"}


def own_parameter(value):
    """Returns the name and the axes of one of an algorithm's parameters."""
    name = OWN.get(type(value), "beta_u")
    return name, value.declared_parameters[name].axes


@pytest.fixture(
    params=["self", "inverted", *slow("em"), *variants("variational_bayes")]
)
def value(request):
    return ALGORITHMS[request.param]


@pytest.fixture
def drawn(value):
    """Draws capsules, weight, initial logits, and the algorithm's own parameter.

    The activations follow if it takes any.
    """
    sizes = {"i": I, "j": J, "d": D}
    own = tuple(sizes[axis] for axis in own_parameter(value)[1])
    random = np.random.default_rng(0)
    shapes = (B, I, C), (I, J, D, C), (B, I, J), own
    arrays = [random.normal(size=shape) for shape in shapes]
    if value.takes_activation:
        arrays.append(random.uniform(0.1, 1, size=(B, I)))
    return [array.astype(np.float32) for array in arrays]


def route(value, form, capsules, weight, start, own, *activation):
    """Returns poses and activations."""
    return dataclasses.replace(value, form=form).from_capsules(
        *(capsules, weight, *activation),
        parameters={own_parameter(value)[0]: jnp.asarray(own)},
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


@pytest.mark.parametrize("is_shared", [*variants(False), True])
@pytest.mark.parametrize("platform", ["cpu", *variants("cuda")])
def test_block_size_and_platform_change_nothing(
    drawn, monkeypatch, value, platform, is_shared
):
    monkeypatch.setattr(vote_blocks, "_FEWEST_EXAMPLES", 2)
    sizes = {"block_bytes": 2**10, "one_input_bytes": 1}
    row = platforms.platform(platform)._replace(**sizes)
    monkeypatch.setattr(platforms, "PLATFORMS", {"cpu": row})
    capsules, weight, start, own, *rest = drawn
    # Twice two examples, and one more.
    start = start[0] if is_shared else start[:5]
    operands = [capsules[:5], weight, start, own, *(x[:5] for x in rest)]
    assert_close(with_gradients(free(value), operands), exact(value, operands), 2e-5)


@pytest.mark.parametrize("name", [*slow("em"), *variants("variational_bayes")])
def test_second_derivatives_equal_those_of_held_votes(name):
    value = dataclasses.replace(ALGORITHMS[name], num_iterations=2)
    random = np.random.default_rng(0)
    shapes = (2, 5, 2), (5, 2, 3, 2), (2, 5, 2), (2,), (2, 5)

    def slopes(form, *operands):
        def loss(*operands):
            results = route(value, form, *operands)
            return sum(jnp.sum(jnp.sin(x)) for x in results)

        return jax.grad(loss, (0, 1, 3, 4))(*operands)

    with jax.enable_x64(True):
        operands = [random.uniform(0.1, 1, size=shape) for shape in shapes]
        actual, expected = (
            with_gradients(functools.partial(slopes, form), operands)
            for form in ("votes_free", "votes")
        )
    assert_close(actual, expected, 1e-9)


@pytest.mark.parametrize("has_start", [*variants(False), True])
@pytest.mark.parametrize("name", ["em", *variants("variational_bayes")])
@pytest.mark.slow
def test_windows_share_inputs_as_with_held_votes(name, has_start):
    value = ALGORITHMS[name]
    random = np.random.default_rng(0)
    shapes = (2, 3, 4, 18, C), (18, J, D, C), (J,), (2, 3, 4, 18, J)
    operands = [random.normal(size=s).astype(np.float32) for s in shapes]
    operands = operands if has_start else operands[:-1]
    activation = random.uniform(0.1, 1, size=(2, 3, 4, 18)).astype(np.float32)
    operands.insert(2, activation)

    def route(form, capsules, weight, activation, own, start=None):
        return dataclasses.replace(value, form=form).from_capsules(
            *(capsules, weight, activation),
            parameters={"beta_u": own},
            initial_logit=start,
            compete=OverImage(3, 1),
        )[:2]

    found = with_gradients(functools.partial(route, "votes_free"), operands)
    with jax.enable_x64(True):
        operands = [jnp.asarray(x, jnp.float64) for x in operands]
        expected = with_gradients(functools.partial(route, "votes"), operands)
    assert_close(found, expected, 2e-5)


def test_zero_capsules_give_zero_poses_and_finite_gradients(drawn, value):
    operands = [np.zeros_like(drawn[0]), *drawn[1:]]
    pose, _, *gradients = with_gradients(free(value), operands)
    np.testing.assert_array_equal(pose, np.zeros_like(pose))
    assert all(np.isfinite(x).all() for x in gradients)


def test_mapped_examples_are_a_batch(drawn, value):
    expected = exact(value, drawn)
    capsules, weight, start, own, *rest = drawn
    mapped = jax.vmap(free(value), (0, None, 0, None, *[0] * len(rest)))
    assert_close(with_gradients(mapped, drawn), expected, 2e-5)
    halves = [x.reshape(2, B // 2, *x.shape[1:]) for x in (capsules, start, *rest)]
    operands = [halves[0], weight, halves[1], own, *halves[2:]]
    two = with_gradients(mapped, operands)
    two = [x.reshape(e.shape) for x, e in zip(two, expected, strict=True)]
    assert_close(two, expected, 2e-5)


def test_mapped_batches_of_one_keep_their_own_queries(drawn, value):
    capsules, weight, _, own, *rest = drawn

    def route_one(capsules, *rest):
        rest = (x[None] for x in rest)
        return free(value)(capsules[None], weight, None, own, *rest)[0][0]

    mapped = jax.jit(jax.vmap(route_one))(capsules, *rest)
    batch = jax.jit(free(value))(capsules, weight, None, own, *rest)[0]
    np.testing.assert_allclose(mapped, batch, rtol=1e-4, atol=1e-5)


def test_mapped_weights_share_the_capsules(drawn, value):
    capsules, weight, *rest = drawn
    weights = np.stack([weight, 2 * weight])
    mapped = jax.jit(jax.vmap(free(value), (None, 0, *[None] * len(rest))))
    results = [np.asarray(x)[1] for x in mapped(capsules, weights, *rest)]
    assert_close(results, exact(value, [capsules, 2 * weight, *rest])[:2], 2e-5)


@pytest.mark.parametrize("check_vma", [True, False])
def test_a_sharded_function_s_gradients_equal_one_device_s(drawn, value, check_vma):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    over, same = P("data"), P()
    function = jax.shard_map(
        free(value),
        mesh=mesh,
        in_specs=(over, same, over, same, *[over] * len(drawn[4:])),
        out_specs=over,
        check_vma=check_vma,
    )
    assert_close(with_gradients(function, drawn), exact(value, drawn), 2e-5)


def test_memory_is_a_fraction_of_the_votes(value):
    case = dict(b=128, i=500, j=8, d=16, c=8)
    axes = ["bic", "ijdc", "ij", own_parameter(value)[1]]
    axes += ["bi"] * value.takes_activation
    shapes = [[case[axis] for axis in own] for own in axes]
    arrays = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]

    def loss(*operands):
        return sum(jnp.sum(x) for x in route(value, "auto", *operands))

    program = jax.jit(jax.grad(loss, (0, 1))).lower(*arrays).compile()
    most = 4 * 128 * 500 * 8 * 16 / 1.5  # The votes take half as much again.
    assert program.memory_analysis().temp_size_in_bytes < most

    def one(capsules, *rest):
        *rest, last = rest
        last = last[None] if value.takes_activation else last
        return sum(
            jnp.sum(x) for x in route(value, "auto", capsules[None], *rest, last)
        )

    # One gradient of the weight for all mapped examples, not one for each.
    mapped = jax.vmap(one, [0 if "b" in own else None for own in axes])
    program = jax.jit(jax.grad(lambda *x: mapped(*x).sum(), 1)).lower(*arrays).compile()
    assert program.memory_analysis().temp_size_in_bytes < most
