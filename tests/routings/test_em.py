"""EM routing beside its transcription, and its own laws."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from em import em
from jax.test_util import check_grads

from capsjax import CapsNet, DenseCaps, EMRouting
from capsjax.losses import LOSSES, fitting_loss

B, I, J, D = 2, 7, 4, 5  # noqa: E741


@pytest.fixture(scope="module")
def drawn():
    """Draws votes, activations, both parameters, and initial logits."""
    random = np.random.default_rng(0)
    return {
        "votes": random.normal(size=(B, I, J, D)),
        "activation": random.uniform(0.1, 1, size=(B, I)),
        # Large enough to matter at these temperatures.
        "beta_u": random.normal(size=J),
        "beta_a": 0.3 * random.normal(size=J),
        "initial_logit": random.normal(size=(B, I, J)),
    }


def split(drawn):
    """Returns votes and activation, and the rest as an algorithm takes it."""
    arrays = {name: jnp.asarray(array, jnp.float32) for name, array in drawn.items()}
    parameters = {name: arrays.pop(name) for name in ("beta_u", "beta_a")}
    operands = arrays.pop("votes"), arrays.pop("activation")
    return operands, {"parameters": parameters, **arrays}


def expected_of(drawn, number, rounds, **options):
    """Returns the transcription's results for one example."""
    names = {"beta_u": "beta_u", "beta_a": "beta_a", "initial_logit": "logit"}
    rest = {names[name]: drawn[name] for name in names if name in drawn}
    if "logit" in rest:
        rest["logit"] = rest["logit"][number]
    one = drawn["votes"][number], drawn["activation"][number]
    return em(*one, rounds, **rest, **options)


@pytest.mark.parametrize("mass", ["relative", "sum"])
@pytest.mark.parametrize("rounds", [1, 2, 3])
@pytest.mark.numerics
def test_it_follows_procedure_1(drawn, rounds, mass):
    operands, rest = split(drawn)
    # At the paper's temperature, the sum of so few inputs would hardly matter.
    own: dict = {"final_inverse_temperature": 0.01 if mass == "relative" else 0.5}
    routed = EMRouting(num_iterations=rounds, mass=mass, **own)(*operands, **rest)
    for n in range(B):
        expected = expected_of(drawn, n, rounds, relative=mass == "relative", **own)
        for a, e in zip(routed, expected, strict=True):
            np.testing.assert_allclose(a[n], e, rtol=2e-5, atol=1e-6)


def test_gradients_are_slopes(drawn):
    route = EMRouting(num_iterations=3)

    def result(votes, activation, beta_u, beta_a, initial_logit):
        parameters = {"beta_u": beta_u, "beta_a": beta_a}
        return route(
            *(votes, activation), parameters=parameters, initial_logit=initial_logit
        )

    with jax.enable_x64(True):
        one = {name: a[0] if a.ndim > 1 else a for name, a in drawn.items()}
        check_grads(jax.jit(result), tuple(one.values()), order=1, atol=1e-6)


def test_a_loop_gives_the_numbers_of_written_out_rounds(drawn):
    operands, rest = split(drawn)
    written = EMRouting(num_iterations=5)
    loop = dataclasses.replace(written, unroll=False)
    for a, e in zip(loop(*operands, **rest), written(*operands, **rest), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6)
    programs = [
        jax.jit(functools.partial(route, **rest)).lower(*operands).as_text()
        for route in (written, loop)
    ]
    assert ["stablehlo.while" in program for program in programs] == [False, True]


def test_shifting_all_votes_shifts_the_poses_alone(drawn):
    (votes, activation), rest = split(drawn)
    shift = 2 * rest["initial_logit"][:, :1, :, None]
    expected, actual = (
        EMRouting()(v, activation, **rest) for v in (votes, votes + shift)
    )
    np.testing.assert_allclose(actual.pose, expected.pose + shift[:, 0], rtol=1e-4)
    np.testing.assert_allclose(actual.activation, expected.activation, rtol=1e-5)
    np.testing.assert_allclose(actual.coupling, expected.coupling, rtol=1e-4)


def test_negated_votes_negate_the_poses_alone(drawn):
    (votes, activation), rest = split(drawn)
    expected, actual = (EMRouting()(v, activation, **rest) for v in (votes, -votes))
    np.testing.assert_array_equal(actual.pose, -expected.pose)
    np.testing.assert_array_equal(actual.activation, expected.activation)


def test_votes_that_agree_are_the_pose(drawn):
    (votes, activation), rest = split(drawn)
    pose = votes[:, 0]
    same = jnp.broadcast_to(pose[:, None], votes.shape)
    np.testing.assert_allclose(
        EMRouting()(same, activation, **rest).pose, pose, rtol=1e-5
    )


@pytest.mark.parametrize("mass", ["sum", "relative"])
def test_an_input_without_activation_counts_in_the_number_of_inputs_alone(drawn, mass):
    operands, rest = split(drawn)
    route = EMRouting(num_iterations=3, mass=mass)
    fewer = [array[:, 1:] for array in operands]
    less = {**rest, "initial_logit": rest["initial_logit"][:, 1:]}
    expected = route(*fewer, **less)
    inactive = operands[0], operands[1].at[:, 0].set(0)
    masked = route(*inactive, **rest, input_mask=jnp.arange(I) > 0)
    np.testing.assert_allclose(masked.pose, expected.pose, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(masked.activation, expected.activation, rtol=1e-5)
    present = route(*inactive, **rest)
    away = np.abs(present.activation - expected.activation).max()
    if mass == "sum":
        assert away < 1e-6
        np.testing.assert_allclose(present.pose, expected.pose, rtol=1e-5, atol=1e-6)
    else:
        assert away > 1e-3


def test_activations_of_the_inputs_matter(drawn):
    """Dividing ``c_ij a_i`` by its sum over the outputs cancels them."""
    (votes, activation), rest = split(drawn)
    expected, actual = (
        EMRouting()(votes, a, **rest) for a in (activation, activation[:, ::-1])
    )
    assert np.abs(actual.pose - expected.pose).max() > 0.1
    assert np.abs(actual.activation - expected.activation).max() > 1e-3


def test_the_first_round_shares_each_input_among_the_outputs(drawn):
    """Starting from 1 instead of 1 / J makes the first activations J times as sure."""
    (votes, activation), _ = split(drawn)
    routed = EMRouting(num_iterations=1)(votes, activation)
    np.testing.assert_array_equal(routed.coupling, np.full((B, I, J), 1 / J))
    mass = activation.sum(-1, keepdims=True) / J
    weight = activation / activation.sum(-1, keepdims=True)
    mean = np.einsum("bi,bijd->bjd", weight, votes)
    square = (votes - mean[:, None]) ** 2
    variance = np.einsum("bi,bijd->bjd", weight, square) + 5e-4
    z = -0.0005 * 100 * J / I * mass * np.log(variance).sum(-1) / 2
    np.testing.assert_allclose(routed.activation, 1 / (1 + np.exp(-z)), rtol=1e-5)


@pytest.mark.parametrize("rounds", [2, 3, 4])
def test_outputs_compete_for_each_input_in_every_round(drawn, rounds):
    (votes, activation), _ = split(drawn)
    coupling = EMRouting(num_iterations=rounds)(votes, activation).coupling
    np.testing.assert_allclose(coupling.sum(-1), 1, rtol=1e-6)
    assert np.abs(coupling - 1 / J).max() > 0.3


def test_the_relative_mass_makes_activations_independent_of_the_layer_s_size(drawn):
    (votes, activation), _ = split(drawn)
    more = [jnp.repeat(array, 3, axis=1) for array in (votes, activation)]
    for mass, is_same in (("relative", True), ("sum", False)):
        route = EMRouting(num_iterations=1, mass=mass, final_inverse_temperature=1.0)
        away = route(votes, activation).activation - route(*more).activation
        assert (np.abs(away).max() < 1e-5) == is_same


def without_votes(votes, activation, **rest):
    """Routes capsules that are votes for all outputs, by matrices of zeros and ones."""
    weight = jnp.eye(J * D).reshape(J, D, J * D)
    weight = jnp.broadcast_to(weight, (I, *weight.shape))
    route = EMRouting(num_iterations=3, form="votes_free")
    return route.from_capsules(votes.reshape(B, I, J * D), weight, activation, **rest)


@functools.cache
def finite(route):
    def loss(votes, activation, parameters):
        routed = route(votes, activation, parameters=parameters)
        scale = 1 + jnp.abs(votes).max()
        return jnp.sum(routed.pose / scale) + jnp.sum(routed.activation), routed

    return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))


def extreme(votes):
    yield "zero", jnp.zeros_like(votes)
    yield "identical", jnp.broadcast_to(votes[:, :1, :1], votes.shape)
    yield "nearly identical", 1 + 1e-6 * votes
    for power in (4, 10, 15, 18):
        yield f"1e{power}", 10.0**power * votes
        yield f"one at 1e{power}", votes.at[:, 0].multiply(10.0**power)
    yield "one output's at 1e18", votes.at[:, :, 0].multiply(1e18)


ROUTES = {"2": EMRouting(2), "3": EMRouting(3), "without votes": without_votes}


@pytest.mark.parametrize("name", ROUTES)
def test_values_and_gradients_are_finite_everywhere(drawn, name):
    (votes, activation), rest = split(drawn)
    run = finite(ROUTES[name])
    one = jnp.zeros_like(activation).at[:, 0].set(1)
    activations = (activation, 0 * activation, one, 1e-8 * activation, 1e-8 * one)
    for case, array in extreme(votes):
        for a in activations:
            found = jax.tree.leaves(run(array, a, rest["parameters"]))
            assert all(np.isfinite(x).all() for x in found), case


def test_an_output_with_one_vote_has_gradients_of_the_others_size(drawn):
    (votes, activation), rest = split(drawn)
    one = jnp.zeros_like(activation).at[:, 0].set(1)
    gradients, routed = finite(EMRouting())(votes, one, rest["parameters"])
    np.testing.assert_allclose(routed.pose, votes[:, 0], rtol=1e-5, atol=1e-6)
    assert np.abs(gradients[0]).max() < 10


def test_a_layer_owns_the_parameters_and_starts_no_output_at_an_end(key):
    for inputs, outputs in ((200, 10), (50, 3)):
        capsules = jax.random.normal(key, (4, inputs, 8))
        capsules *= 0.35 / np.sqrt(8)
        activation = jnp.full((4, inputs), 0.35)
        layer = DenseCaps(outputs, 16, EMRouting())
        params = layer.init(key, capsules, activation)
        shapes = {name: one.shape for name, one in params["params"].items()}
        assert shapes == {
            "weight": (inputs, outputs, 16, 8),
            "beta_u": (outputs,),
            "beta_a": (outputs,),
        }
        routed = layer.apply(params, capsules, activation)
        assert 0.2 < routed.activation.min() < routed.activation.max() < 0.8


def test_a_network_s_capsules_send_their_lengths(key):
    network = CapsNet(
        *((20, 20, 1), 3),
        conv_features=4,
        primary_types=2,
        class_dim=4,
        routing=EMRouting(),
        decoder_features=(8,),
    )
    image = jax.random.uniform(key, (2, 20, 20, 1))
    params = network.init(key, image)

    def poses(activation):
        primary = network.apply(params, image, method=network.primary)
        capsules = primary.reshape(2, -1, 8)
        layer = DenseCaps(3, 4, EMRouting())
        own = {"params": params["params"]["class_caps"]}
        return layer.apply(own, capsules, activation(capsules)).pose

    routed = network.apply(params, image, method=network.encode)
    lengths = poses(lambda capsules: jnp.linalg.norm(capsules, axis=-1))
    np.testing.assert_allclose(routed.pose, lengths, rtol=1e-4, atol=1e-6)
    assert routed.activation.shape == (2, 3)


WRONG = [
    ({}, "EMRouting needs the inputs' activations: give activation, "),
    (
        {"activation": np.ones(J)},
        r"activation must have the votes' axes \[\*batch, i\]",
    ),
    ({"activation": np.ones(I, int)}, "activation must be floating-point numbers, got"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_activations_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        EMRouting()(jnp.ones((I, J, D)), **arguments)


def test_a_loss_of_lengths_or_logits_is_refused():
    kind = EMRouting.activation_kind
    assert type(fitting_loss(LOSSES["auto"](), kind)) is LOSSES["spread"]
    for word in ("margin", "cross_entropy"):
        with pytest.raises(ValueError, match=f"config.loss={word} .* auto or spread"):
            fitting_loss(LOSSES[word](), kind)
