"""Laws of every routing algorithm, and of dynamic routing alone."""

import functools
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from algorithms import Given
from jax.sharding import Mesh, PartitionSpec
from jax.test_util import check_grads
from marks import first_of, variants
from programs import draw

from capsjax import ROUTINGS, DynamicRouting, routing
from capsjax.routings import (
    EMRouting,
    InvertedAttention,
    SelfAttention,
    SelfRouting,
    UniformRouting,
    VariationalBayesRouting,
)
from capsjax.routings.dynamic import REMATS

ALGORITHMS = {
    "dynamic": DynamicRouting(),
    "one round": DynamicRouting(num_iterations=1),
    "stopped": DynamicRouting(stop_gradient=True),
    "unrolled": DynamicRouting(unroll=True),
    "rematerialised": DynamicRouting(remat="full"),
    "nowhere": DynamicRouting(none_of_the_above=True),
    "uniform": UniformRouting(),
    "self-attention": Given(SelfAttention()),
    "inverted attention": Given(InvertedAttention()),
    "self-routing": Given(SelfRouting()),
    "em": Given(EMRouting()),
    "variational Bayes": Given(VariationalBayesRouting(2)),
}
VARIANTS = ("one round", "unrolled", "rematerialised", "nowhere")
QUICK = [value for name, value in ALGORITHMS.items() if name not in VARIANTS]
algorithms = pytest.mark.parametrize("route", first_of(QUICK, ALGORITHMS.values()))


def test_every_registered_algorithm_is_under_the_shared_laws():
    tested = {type(getattr(one, "algorithm", one)) for one in ALGORITHMS.values()}
    assert set(ROUTINGS.values()) <= tested


@algorithms
def test_couplings_of_an_input_sum_to_one(key, route):
    coupling = route(2 * draw(key, 3, 7, 4, 5)).coupling
    if route.couplings_sum_to_one:
        np.testing.assert_allclose(coupling.sum(-1), np.ones((3, 7)), rtol=1e-6)
    else:
        assert (coupling.sum(-1) < 1).all()


@algorithms
def test_the_order_of_inputs_does_not_matter(key, route):
    votes = draw(key, 7, 4, 5)
    expected = route(votes).pose
    actual = route(votes[::-1]).pose
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@algorithms
def test_permuting_outputs_permutes_poses(key, route):
    votes = draw(key, 7, 4, 5)
    assert route.follows_outputs
    order = np.array([2, 0, 3, 1])
    expected = route(votes).pose[order]
    actual = route(votes[:, order]).pose
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


def pose_and_gradient(route, votes):
    def loss(votes):
        routed = route(votes)
        return routed.pose.sum() + routed.activation.sum(), routed.pose

    gradient, pose = jax.jit(jax.grad(loss, has_aux=True))(votes)
    return pose, gradient


@algorithms
def test_zero_votes_give_zero_poses_and_zero_gradients(route):
    votes = np.zeros((3, 7, 4, 5), np.float32)
    pose, gradient = pose_and_gradient(route, votes)
    np.testing.assert_array_equal(pose, np.zeros((3, 4, 5)))
    if isinstance(route, (DynamicRouting, UniformRouting)):
        np.testing.assert_array_equal(gradient, votes)
    assert np.isfinite(gradient).all()  # Only one squash is flat at zero.


@algorithms
def test_identical_huge_and_lonely_votes_give_finite_poses_and_gradients(key, route):
    votes = draw(key, 7, 4, 5)
    of_one_input = np.where(np.arange(7)[:, None, None] == 2, votes, 0)
    votes = np.stack([np.ones_like(votes), 1e4 * votes, of_one_input])
    for array in pose_and_gradient(route, votes):
        assert np.isfinite(array).all()


@algorithms
def test_negated_votes_negate_poses_and_keep_couplings(key, route):
    votes = draw(key, 3, 7, 4, 5)
    expected, actual = route(votes), route(-votes)
    np.testing.assert_allclose(actual.pose, -expected.pose, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(actual.coupling, expected.coupling, rtol=1e-5)
    if route.activation_kind != "logit":
        np.testing.assert_allclose(actual.activation, expected.activation, rtol=1e-5)


@algorithms
def test_an_example_does_not_depend_on_its_batch_mates(key, route):
    votes = draw(key, 3, 7, 4, 5)
    batched = route(votes)
    for n in range(3):
        alone = route(votes[n])
        np.testing.assert_allclose(batched.pose[n], alone.pose, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(batched.coupling[n], alone.coupling, rtol=1e-5)


@algorithms
def test_a_batch_of_one_keeps_its_axis(key, route):
    routed = jax.eval_shape(route, draw(key, 1, 6, 3, 5))
    assert routed.pose.shape == (1, 3, 5)
    assert routed.activation.shape == (1, 3)
    assert routed.coupling.shape == (1, 6, 3)


@algorithms
def test_any_number_of_batch_axes_gives_the_same(key, route):
    votes = draw(key, 3, 7, 4, 5)
    nested = route(votes[:, None])
    flat = route(votes)
    np.testing.assert_array_equal(nested.pose[:, 0], flat.pose)


@algorithms
@pytest.mark.numerics
def test_float32_equals_float64_to_rounding(key, route):
    votes = draw(key, 3, 7, 4, 5)
    single = route(votes)
    with jax.enable_x64(True):
        double = route(np.asarray(votes, np.float64))
        assert double.pose.dtype == double.coupling.dtype == jnp.float64
    np.testing.assert_allclose(single.pose, double.pose, rtol=1e-5, atol=1e-6)


@algorithms
def test_poses_and_lengths_are_float32_for_bfloat16_votes(key, route):
    votes = draw(key, 7, 4, 5).astype(jnp.bfloat16)
    routed = route(votes)
    assert {array.dtype for array in routed} == {jnp.dtype(jnp.float32)}
    expected = route(votes.astype(np.float32))
    np.testing.assert_array_equal(routed.pose, expected.pose)
    np.testing.assert_array_equal(routed.coupling, expected.coupling)


@algorithms
def test_activation_is_the_length_of_the_pose(key, route):
    if not route.activation_is_length:
        return
    routed = route(draw(key, 3, 7, 4, 5))
    expected = np.linalg.norm(np.asarray(routed.pose, np.float64), axis=-1)
    np.testing.assert_allclose(routed.activation, expected, rtol=1e-6)
    assert routed.activation.max() <= 1 + 2**-22


@pytest.mark.parametrize("num_iterations", [1, *variants(2), 3, 5])
@pytest.mark.parametrize("none_of_the_above", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.numerics
def test_routing_follows_procedure_1(key, num_iterations, none_of_the_above, has_bias):
    votes = draw(key, 2, 12, 4, 5)
    bias = 0.3 * draw(key, 4, 5) if has_bias else None
    options = {"none_of_the_above": none_of_the_above}
    routed = routing(votes, num_iterations=num_iterations, bias=bias, **options)
    for n in range(2):
        pose, coupling = reference.dynamic_routing(
            votes[n],
            num_iterations,
            bias=None if bias is None else np.asarray(bias, np.float64),
            **options,
        )
        np.testing.assert_allclose(routed.pose[n], pose, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(routed.coupling[n], coupling, rtol=1e-5)


@pytest.mark.numerics
def test_routing_follows_procedure_1_at_the_papers_size(key):
    votes = 0.1 * draw(key, 2, 1152, 10, 16)
    routed = routing(votes)
    for n in range(2):
        pose, _ = reference.dynamic_routing(votes[n], 3)
        np.testing.assert_allclose(routed.pose[n], pose, rtol=1e-4, atol=1e-6)


def test_one_round_is_the_uniform_average(key):
    votes = np.asarray(draw(key, 7, 4, 5), np.float64)
    expected = np.stack([reference.squash(s) for s in votes.mean(0) * 7 / 4])
    actual = routing(votes.astype(np.float32), num_iterations=1)
    np.testing.assert_allclose(actual.pose, expected, rtol=1e-5)
    np.testing.assert_allclose(actual.coupling, np.full((7, 4), 0.25), rtol=1e-6)


def test_couplings_normalised_over_inputs_would_be_noticed(key):
    # The field's signature bug is a softmax over i: it must differ visibly.
    coupling = routing(draw(key, 7, 4, 5)).coupling
    assert np.abs(coupling.sum(-2) - 1).max() > 0.1


def test_none_of_the_above_takes_a_share(key):
    votes = draw(key, 7, 4, 5)
    coupling = routing(votes, none_of_the_above=True).coupling
    assert (coupling.sum(-1) < 0.999).all()
    assert (coupling > 0).all()


FORMS = [*({"remat": remat} for remat in REMATS), {"unroll": 2}, {"unroll": True}]
# One that computes rounds again and one without a loop.
FORMS_WITH_STOP = [{"remat": "none"}, {"remat": "full"}, {"unroll": True}]


@pytest.mark.parametrize(
    ("stop_gradient", "forms"), [(False, FORMS), (True, FORMS_WITH_STOP)]
)
@pytest.mark.numerics
def test_all_forms_of_the_loop_give_the_same_values_and_gradients(
    key, stop_gradient, forms
):
    votes = draw(key, 2, 9, 4, 5)

    def loss_and_gradient(form):
        def loss(votes):
            routed = routing(
                votes, num_iterations=4, stop_gradient=stop_gradient, **form
            )
            return jnp.sum(jnp.sin(3 * routed.pose))

        return jax.jit(jax.value_and_grad(loss))(votes)

    expected, expected_gradient = loss_and_gradient(forms[0])
    for form in forms[1:]:
        value, gradient = loss_and_gradient(form)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


def test_a_loop_is_one_loop_and_an_unrolled_one_is_none():
    votes = jnp.ones((6, 3, 4))

    def loops(unroll):
        form = functools.partial(routing, num_iterations=4, unroll=unroll)
        return len(re.findall(r"\b(?:scan|while)\[", str(jax.make_jaxpr(form)(votes))))

    assert loops(1) == 1
    text = jax.jit(functools.partial(routing, unroll=True)).lower(votes).as_text()
    assert "stablehlo.while" not in text


def test_a_loop_and_no_loop_are_two_programs(key):
    """``True == 1``: once the second call got the first one's program."""
    votes = draw(key, 2, 5, 3, 4)

    def has_loop(unroll):
        form = functools.partial(routing, num_iterations=4, unroll=unroll)
        return "stablehlo.while" in jax.jit(form).lower(votes).as_text()

    assert [has_loop(1), has_loop(True)] == [True, False]
    assert DynamicRouting(unroll=True) != DynamicRouting(unroll=1)


def test_rematerialising_keeps_fewer_residuals(key):
    votes = draw(key, 4, 30, 5, 6)

    def residual_size(remat):
        _, pullback = jax.vjp(lambda v: routing(v, remat=remat).pose, votes)
        return sum(leaf.size for leaf in jax.tree.leaves(pullback))

    assert residual_size("full") <= votes.size < residual_size("none")
    assert residual_size("body") < residual_size("none")


def test_gradient_flows_through_every_round():
    votes = np.random.default_rng(0).normal(size=(6, 3, 4))
    with jax.enable_x64(True):
        check_grads(jax.jit(lambda v: routing(v).pose), (votes,), order=1, atol=1e-6)


@pytest.mark.numerics
def test_stopped_gradient_equals_the_gradient_with_fixed_couplings(key):
    votes = draw(key, 6, 3, 4)
    bias = jnp.full((3, 4), 0.1)
    coupling = routing(votes, bias=bias).coupling

    def fixed(votes, bias):
        s = jnp.einsum("ij,ijd->jd", coupling, votes) + bias
        n = jnp.linalg.norm(s, axis=-1, keepdims=True)
        return jnp.sum(jnp.sin(s * n / (1 + n**2)))

    def stopped(votes, bias):
        return jnp.sum(jnp.sin(routing(votes, bias=bias, stop_gradient=True).pose))

    expected = jax.jit(jax.grad(fixed, (0, 1)))(votes, bias)
    actual = jax.jit(jax.grad(stopped, (0, 1)))(votes, bias)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)

    def flowing(votes):
        return jnp.sum(jnp.sin(routing(votes, bias=bias).pose))

    assert np.abs(jax.jit(jax.grad(flowing))(votes) - actual[0]).max() > 1e-2


def test_numpy_votes_are_accepted(key):
    votes = np.random.default_rng(0).normal(size=(6, 3, 4)).astype(np.float32)
    np.testing.assert_array_equal(routing(votes).pose, routing(jnp.asarray(votes)).pose)


def _loss(votes):
    return jnp.sum(jnp.sin(routing(votes).pose))


def test_routing_works_under_jit_vmap_and_pmap(key):
    votes = draw(key, 4, 9, 3, 5)
    expected, expected_gradient = routing(votes), jax.jit(jax.grad(_loss))(votes)
    for transform in (jax.jit, jax.vmap, jax.pmap):
        actual = transform(routing)(votes)
        np.testing.assert_allclose(actual.pose, expected.pose, rtol=1e-5, atol=1e-7)
    for transform in (jax.vmap, jax.pmap):
        gradient = jax.jit(transform(jax.grad(_loss)))(votes)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("route", QUICK)
def test_every_algorithm_works_under_vmap_and_shard_map(key, route):
    votes = draw(key, 8, 9, 3, 5)

    def value_and_gradient(votes):
        def loss(votes):
            routed = route(votes)
            return jnp.sum(jnp.sin(routed.pose)) + routed.activation.sum(), routed

        gradient, routed = jax.grad(loss, has_aux=True)(votes)
        return *routed, gradient

    mesh = Mesh(np.array(jax.devices()), ("data",))
    over = PartitionSpec("data")
    spread = functools.partial(
        jax.shard_map, value_and_gradient, mesh=mesh, in_specs=over, out_specs=over
    )
    expected = jax.jit(value_and_gradient)(votes)
    for function in (
        jax.vmap(value_and_gradient),
        spread(check_vma=False),
        spread(check_vma=True),
    ):
        for a, e in zip(jax.jit(function)(votes), expected, strict=True):
            np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("check_vma", [False, True])
def test_routing_works_under_shard_map(key, check_vma):
    votes = draw(key, 8, 9, 3, 5)
    bias = jnp.full((3, 5), 0.1)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    over = PartitionSpec("data")

    def pose(votes, bias):
        return routing(votes, bias=bias, none_of_the_above=True).pose

    sharded = jax.shard_map(
        pose,
        mesh=mesh,
        in_specs=(over, PartitionSpec()),
        out_specs=over,
        check_vma=check_vma,
    )

    def pose_and_gradients(function):
        def loss(votes, bias):
            pose = function(votes, bias)
            return jnp.sum(jnp.sin(pose)), pose

        gradients, pose = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(votes, bias)
        return pose, *gradients

    actual, expected = pose_and_gradients(sharded), pose_and_gradients(pose)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6)


def test_routing_keeps_the_sharding_of_the_batch(key):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        votes = jax.device_put(
            draw(key, 8, 9, 3, 5),
            jax.NamedSharding(mesh, PartitionSpec("data")),
        )
        for array in jax.jit(routing)(votes):
            assert jax.typeof(array).sharding.spec[0] == "data"


WRONG = {
    "num_iterations=0": "num_iterations must be a Python int of at least 1.*got 0",
    "num_iterations=-1": "num_iterations must be a Python int of at least 1.*got -1",
    "num_iterations=2.0": "num_iterations must be a Python int of at least 1.*got 2.0",
    "num_iterations=True": "num_iterations must be a Python int .*got True",
    "num_iterations=jnp.arange(3)": "num_iterations must be a Python int",
    "unroll=0": "unroll must be a Python int of at least 1",
    "remat='some'": "remat must be one of .*got 'some'",
    "bias=jnp.zeros((4, 3))": r"bias must have the votes' axes \[j, d\] = \(3, 4\)",
}


def test_wrong_arguments_are_refused_without_the_shape_checking_hook():
    """Runs in a subprocess: the hook would catch some of them first."""
    lines = [
        "import jax, jax.numpy as jnp, capsjax",
        "votes = jnp.ones((2, 5, 3, 4))",
        "def attempt(call):",
        "    try: call()",
        "    except ValueError as error: print(error)",
        *(f"attempt(lambda: capsjax.routing(votes, {wrong}))" for wrong in WRONG),
        "routed = jax.jit(lambda n: capsjax.routing(votes, num_iterations=n))",
        "attempt(lambda: routed(3))",
        "attempt(lambda: capsjax.routing(votes[0, 0]))",
        "attempt(lambda: capsjax.routing(votes[:, :0]))",
        "attempt(lambda: capsjax.routing(votes.astype(int)))",
        "attempt(lambda: capsjax.DynamicRouting()(votes, jnp.ones((2, 5))))",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    expected = [
        *WRONG.values(),
        "num_iterations must be a Python int .*known when the function is traced",
        r"votes must have the axes \[\*batch, i, j, d\].*got shape \(3, 4\)",
        r"at least one of each; got shape \(2, 0, 3, 4\)",
        "votes must be floating-point numbers, got int32",
        "DynamicRouting does not use activations of the inputs",
    ]
    messages = done.stdout.splitlines()
    assert len(messages) == len(expected), done.stdout
    for line, pattern in zip(messages, expected, strict=True):
        assert re.search(pattern, line), line


def test_eager_calls_compile_once(key):
    votes = draw(key, 2, 5, 3, 4)
    routing(votes)
    with jax.log_compiles(False), jax.check_tracer_leaks(False):
        from capsjax.routings.algorithm import _route

        before = _route._cache_size()
        routing(votes + 1)
        assert _route._cache_size() == before


def test_the_bias_is_declared_for_the_layer_to_own():
    declared = DynamicRouting(bias=0.1).declared_parameters["bias"]
    assert declared.axes == "jd"
    np.testing.assert_array_equal(
        declared.init(None, (2, 3)), np.full((2, 3), 0.1, "f4")
    )
    assert DynamicRouting().declared_parameters == {}
