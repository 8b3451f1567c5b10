"""The contract of routing algorithms: masks, log priors, all doors, a user's own."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from algorithms import parameters_of
from jax.test_util import check_grads
from marks import first_of, slow, variants
from programs import apply, draw, init

from capsjax import DenseCaps, DynamicRouting, routing, safe_norm, squash
from capsjax.routings import (
    Algorithm,
    EMRouting,
    InvertedAttention,
    Parameter,
    Routed,
    SelfAttention,
    SelfRouting,
    UniformRouting,
    VariationalBayesRouting,
)
from capsjax.routings.algorithm import AlgorithmError
from capsjax.votes import cast_votes

# Batch, inputs, outputs and their components, components of an input.
B, I, J, D, C = 18, 11, 4, 5, 3  # noqa: E741
# Two rounds: a third makes the programs half as large again.
ALGORITHMS = {
    "dynamic": DynamicRouting(2),
    "nowhere": DynamicRouting(2, none_of_the_above=True),
    "stopped": DynamicRouting(2, stop_gradient=True),
    "uniform": UniformRouting(),
    "self-attention": SelfAttention(),
    "inverted attention": InvertedAttention(),
    "self-routing": SelfRouting(),
    "em": EMRouting(),
    "variational Bayes": VariationalBayesRouting(2),
}


def by_votes(value, capsules, weight, **rest):
    needs = needed(value, capsules, weight)
    if isinstance(value, SelfRouting):
        # Votes do not show the capsules, whose logits must come with them.
        parts = "...ic,ijc->...ij", capsules, needs["parameters"]["route_weight"]
        logit = jnp.einsum(*parts)
        logit += jnp.broadcast_to(needs["parameters"]["route_bias"], logit.shape)
        rest["initial_logit"] = logit + rest.get("initial_logit", 0)
    return value(cast_votes(capsules, weight), **needs, **rest)


def by_capsules(value, capsules, weight, **rest):
    needs = needed(value, capsules, weight)
    return value.from_capsules(capsules, weight, **needs, **rest)


def without_votes(value, capsules, weight, **rest):
    return by_capsules(votes_free(value), capsules, weight, **rest)


# The same numbers through three doors.
DOORS = {"votes": by_votes, "capsules": by_capsules, "votes-free": without_votes}


def needed(value, capsules, weight):
    """Returns an algorithm's activation and parameters, made of its other inputs."""
    needs = {"parameters": parameters_of(value, weight)}
    if value.takes_activation:
        # Without its gradient, which would be NaN where the capsules are.
        own = jax.lax.stop_gradient(capsules[..., 0])
        needs["activation"] = jax.nn.sigmoid(own)
    return needs


def absent(value):
    return -np.inf if value.activation_kind == "logit" else 0


def votes_free(value):
    if not hasattr(value, "form"):
        return value
    return dataclasses.replace(value, form="votes_free")


QUICK = (
    *("dynamic by votes", "dynamic by votes-free", "uniform by capsules"),
    *("self-attention by votes-free", "inverted attention by votes"),
    "inverted attention by votes-free",
    *("self-routing by votes", "self-routing by capsules"),
    "em by capsules",
)
WAYS = {
    f"{name} by {door}": (value, DOORS[door])
    for name, value in ALGORITHMS.items()
    for door in DOORS
}
LATER = "variational Bayes by capsules"
FIRST = [name for name in WAYS if name != LATER]


@pytest.fixture(params=[*first_of(QUICK, FIRST), *slow(LATER)])
def way(request):
    """Returns an algorithm and the door that it is called through."""
    return WAYS[request.param]


ONES = [name for name in ALGORITHMS if name not in ("nowhere", "stopped")]


@pytest.fixture(params=first_of(ONES, ALGORITHMS))
def value(request):
    return ALGORITHMS[request.param]


@pytest.fixture(params=first_of(["votes", "votes-free"], DOORS))
def door(request):
    return DOORS[request.param]


@pytest.fixture
def drawn(key):
    """Draws capsules, weight, initial logits, and a gradient of the poses."""
    normal = np.random.default_rng(np.asarray(jax.random.key_data(key))).normal
    shapes = (B, I, C), (I, J, D, C), (B, I, J), (B, J, D)
    return [normal(size=shape).astype(np.float32) for shape in shapes]


def in_jit(door, value, capsules, weight, **competition):
    """Routes in one program."""
    return jax.jit(functools.partial(door, value))(capsules, weight, **competition)


def pose_and_gradients(door, value, gradient, operands, **competition):
    """Returns poses, activations, and gradients of capsules, weight, initial logits."""

    def weighted(capsules, weight, *start):
        if start:
            competition["initial_logit"] = start[0]
        routed = door(value, capsules, weight, **competition)
        loss = jnp.sum(routed.pose * gradient) + jnp.sum(routed.activation)
        return loss, routed[:2]

    places = tuple(range(len(operands)))
    found = jax.jit(jax.grad(weighted, places, has_aux=True))(*operands)
    return [np.asarray(array) for array in (*found[1], *found[0])]


def assert_close(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        assert np.isfinite(e).all()
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=2e-6 * (1 + np.abs(e).max()))


def test_a_masked_input_s_values_change_nothing(drawn, way):
    value, door = way
    capsules, weight, start, gradient = drawn
    mask = np.arange(I) < 7
    nan = np.float32("nan")
    spoilt = np.where(mask[:, None], capsules, nan)
    spoilt_start = np.where(mask[:, None], start, nan)
    actual = pose_and_gradients(
        *(door, value, gradient, (spoilt, weight, spoilt_start)),
        input_mask=np.broadcast_to(mask, (B, I)),
    )
    expected = pose_and_gradients(
        *(door, value, gradient, (capsules[:, :7], weight[:7], start[:, :7]))
    )
    assert_close(actual[:2], expected[:2])
    gradients = list(zip(actual[2:], expected[2:], (1, 0, 1), strict=True))
    if door is DOORS["votes"]:
        del gradients[1]  # The votes are NaN before routing, so the weight's is too.
    for a, e, axis in gradients:
        own, masked = np.split(a, [7], axis)
        assert_close([own], [e])
        np.testing.assert_array_equal(masked, np.zeros_like(masked))


def test_padded_sequences_are_routed_as_each_alone(drawn, way):
    value, door = way
    capsules, weight, _, _ = drawn
    length = np.arange(B) % I + 1
    mask = np.arange(I) < length[:, None]
    padded = np.where(mask[..., None], capsules, np.float32("nan"))
    routed = in_jit(door, value, padded, weight, input_mask=mask)
    for n in (0, B - 1):
        alone = in_jit(door, value, capsules[n, : length[n]], weight[: length[n]])
        assert_close([routed.pose[n], routed.activation[n]], alone[:2])


def test_a_masked_output_gets_nothing_and_the_others_its_share(drawn, way):
    value, door = way
    capsules, weight, start, gradient = drawn
    kept = np.array([0, 1, 3])
    spoilt = weight.copy()
    if door is DOORS["votes"]:
        spoilt[:, 2] = np.nan
    mask = np.isin(np.arange(J), kept)
    actual = pose_and_gradients(
        *(door, value, gradient, (capsules, spoilt, start)),
        output_mask=np.broadcast_to(mask, (B, J)),
    )
    expected = pose_and_gradients(
        *(door, value, gradient[:, kept]),
        (capsules, weight[:, kept], start[..., kept]),
    )
    np.testing.assert_array_equal(actual[0][:, 2], np.zeros((B, D)))
    np.testing.assert_array_equal(actual[1][:, 2], np.full(B, absent(value)))
    assert_close([actual[0][:, kept], actual[1][:, kept]], expected[:2])
    if door is DOORS["votes"]:
        return  # The weight is NaN before routing, and so is its gradient.
    assert_close([actual[2]], [expected[2]])
    np.testing.assert_array_equal(actual[3][:, 2], np.zeros((I, D, C)))
    np.testing.assert_array_equal(actual[4][..., 2], np.zeros((B, I)))
    assert_close([actual[3][:, kept], actual[4][..., kept]], expected[3:])


def test_an_example_that_is_all_masked_is_zero_and_finite(drawn, way):
    value, door = way
    capsules, weight, start, gradient = drawn
    input_mask, output_mask = np.ones((B, I), bool), np.ones((B, J), bool)
    input_mask[3] = output_mask[5] = False
    if isinstance(value, (DynamicRouting, UniformRouting)):
        value = dataclasses.replace(value, bias=0.1)
    found = pose_and_gradients(
        *(door, value, gradient, (capsules, weight, start)),
        input_mask=input_mask,
        output_mask=output_mask,
    )
    masked = found[1][[3, 5]]
    np.testing.assert_array_equal(masked, np.full_like(masked, absent(value)))
    found[1] = np.delete(found[1], [3, 5], axis=0)
    assert all(np.isfinite(array).all() for array in found)
    for array in (found[0], found[2], found[4]):
        np.testing.assert_array_equal(array[[3, 5]], np.zeros_like(array[:2]))
    assert np.abs(found[0][2]).max() > 0


def test_couplings_of_masked_capsules_are_zero(drawn, value):
    capsules, weight, start, _ = drawn
    masks = {"input_mask": np.arange(I) < 7, "output_mask": np.arange(J) != 2}
    coupling = in_jit(
        *(DOORS["votes"], value, capsules, weight), initial_logit=start, **masks
    ).coupling
    coupling = np.asarray(coupling)
    np.testing.assert_array_equal(coupling[:, 7:], np.zeros((B, I - 7, J)))
    np.testing.assert_array_equal(coupling[..., 2], np.zeros((B, I)))
    if value.couplings_sum_to_one:
        np.testing.assert_allclose(coupling[:, :7].sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize("shape", [(B, I, J), *variants((1, I, J)), (I, J)])
def test_initial_logits_start_the_logits_of_procedure_1(drawn, door, shape):
    capsules, weight, start, _ = drawn
    start = start[0].reshape(shape) if len(shape) < 3 or shape[0] == 1 else start
    routed = in_jit(door, DynamicRouting(), capsules, weight, initial_logit=start)
    votes = np.einsum("ijdc,bic->bijd", weight, capsules)
    for n in (0, B - 1):
        own = np.broadcast_to(start, (B, I, J))[n]
        pose, _ = reference.dynamic_routing(votes[n], 3, logit=own)
        np.testing.assert_allclose(routed.pose[n], pose, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [*variants((B, I, J)), (I, J)])
def test_gradients_of_initial_logits_are_slopes(drawn, door, shape):
    def weighted(start):
        routed = door(DynamicRouting(), capsules, weight, initial_logit=start)
        return jnp.sum(routed.pose * gradient)

    with jax.enable_x64(True):
        drawn = [jnp.asarray(x, jnp.float64) for x in drawn]
        capsules, weight, start, gradient = drawn
        start = start if len(shape) == 3 else start[0]
        check_grads(
            jax.jit(weighted), (start,), 1, ["rev"], eps=1e-4, rtol=1e-6, atol=1e-6
        )


def test_mapped_examples_have_their_own_initial_logits(drawn):
    capsules, weight, start, _ = drawn
    route = functools.partial(DynamicRouting().from_capsules, weight=weight)
    batched = jax.jit(route)(capsules, initial_logit=start).pose
    mapped = jax.vmap(lambda u, b: route(u, initial_logit=b).pose)
    mapped = jax.jit(mapped)(capsules, start)
    np.testing.assert_allclose(mapped, batched, rtol=1e-6, atol=1e-7)
    shared = jax.vmap(lambda b: route(capsules[0], initial_logit=b).pose)
    shared = jax.jit(shared)(start)
    np.testing.assert_allclose(shared[0], mapped[0], rtol=1e-5, atol=1e-6)


def test_outputs_may_compete_in_groups(drawn):
    capsules, weight, _, _ = drawn
    votes = np.einsum("ijdc,bic->bijd", weight, capsules)

    def in_pairs(logit):
        pairs = logit.reshape(*logit.shape[:-1], 2, 2)
        return jax.nn.softmax(pairs, -1).reshape(logit.shape)

    routed = DynamicRouting()(votes, compete=in_pairs)
    np.testing.assert_allclose(routed.coupling.sum(-1), 2, rtol=1e-6)
    pairs = [routing(votes[:, :, n : n + 2]).pose for n in (0, 2)]
    np.testing.assert_allclose(routed.pose, np.concatenate(pairs, 1), rtol=1e-5)
    by_capsules = DynamicRouting().from_capsules(capsules, weight, compete=in_pairs)
    np.testing.assert_allclose(by_capsules.pose, routed.pose, rtol=1e-5, atol=1e-6)


WRONG = {
    "initial_logit": (np.zeros((B, I)), np.zeros((I, J), int)),
    "input_mask": (np.ones((B, J), bool), np.ones(I)),
    "output_mask": (np.ones((3, J), bool), np.ones(J, int)),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_array_that_does_not_fit_is_refused_by_its_name(drawn, door, name):
    of_wrong_shape, of_wrong_type = WRONG[name]
    drawn = [jnp.asarray(array) for array in drawn[:2]]
    with pytest.raises(ValueError, match=rf"{name} must have the axes \[\*batch, "):
        door(DynamicRouting(), *drawn, **{name: of_wrong_shape})
    with pytest.raises(ValueError, match=f"{name} must be .*, got "):
        door(DynamicRouting(), *drawn, **{name: of_wrong_type})


def test_shared_matrices_take_any_number_of_inputs(key):
    layer = DenseCaps(J, D, routing=UniformRouting(), share_weight=True)
    capsules = draw(key, B, I, C)
    params = init(layer, key, capsules)
    weight = params["params"]["weight"]
    assert weight.shape == (J, D, C)
    for number in (I, 1, 30):
        more = np.resize(capsules, (B, number, C))
        expected = jax.jit(squash)(np.einsum("jdc,bc->bjd", weight, more.sum(1)) / J)
        np.testing.assert_allclose(
            apply(layer, params, more).pose, expected, rtol=1e-4, atol=1e-6
        )


@dataclasses.dataclass(frozen=True)
class Loudest(Algorithm):
    """A user's own algorithm: the most active input decides."""

    activation_kind = "logit"
    takes_activation = True
    activation_is_length = False

    def route(self, votes, activation, parameters, competition):
        coupling = competition.couple(jnp.zeros_like(votes[..., 0]))
        loudest = jnp.argmax(activation, -1)
        pose = jnp.take_along_axis(votes, loudest[..., None, None, None], -3)[
            ..., 0, :, :
        ]
        return Routed(pose, activation.max(-1, keepdims=True) + pose[..., 0], coupling)


def test_a_user_s_own_algorithm_goes_into_a_layer(key):
    layer = DenseCaps(J, D, routing=Loudest())
    capsules = draw(key, B, I, C)
    activation = np.abs(draw(key, B, I))
    mask = np.arange(J) != 1
    params = init(layer, key, capsules, activation)
    routed = jax.jit(layer.apply)(params, capsules, activation, output_mask=mask)
    winner = np.argmax(activation, -1)
    votes = np.einsum("ijdc,bic->bijd", params["params"]["weight"], capsules)
    np.testing.assert_allclose(
        np.asarray(routed.pose)[:, 0], votes[np.arange(B), winner, 0], rtol=1e-5
    )
    assert (np.asarray(routed.activation)[:, 1] == -np.inf).all()
    with pytest.raises(ValueError, match="Loudest needs the inputs' activations"):
        apply(layer, params, capsules)


@dataclasses.dataclass(frozen=True)
class Careless(Algorithm):
    """Somebody's algorithm, with one mistake."""

    mistake: str

    @property
    def declared_parameters(self):
        declared = {"letter": Parameter("k", nn.initializers.ones)}
        return {
            "letter": {"gain": declared["letter"]},
            "initializer": {"gain": nn.initializers.ones},
        }.get(self.mistake, {})

    def route(self, votes, activation, parameters, competition):
        coupling = competition.start(votes)
        pose = jnp.einsum("...ij,...ijd->...jd", coupling, votes)
        if self.mistake == "pose alone":
            return pose
        if self.mistake == "swapped":
            return Routed(pose.swapaxes(-1, -2), safe_norm(pose), coupling)
        return Routed(pose, safe_norm(pose), coupling[..., :1])


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("pose alone", r"route of Careless must return a capsjax.Routed\("),
        ("swapped", r"must return a pose of shape \(2, 3, 4\) for .*, got \(2, 4, 3\)"),
        (
            "coupling",
            r"must return a coupling of shape \(2, 5, 3\) .*, got \(2, 5, 1\)",
        ),
        ("letter", r"gain of Careless must be declared as Parameter\(axes, init\)"),
        (
            "initializer",
            r"gain of Careless must be declared as Parameter\(axes, init\)",
        ),
    ],
)
def test_what_an_author_does_wrong_is_one_line(key, mistake, message):
    layer = DenseCaps(3, 4, Careless(mistake))
    with pytest.raises(AlgorithmError, match=message):
        jax.eval_shape(layer.init, key, jnp.zeros((2, 5, 2)))
