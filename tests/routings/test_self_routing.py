"""Self-routing beside its transcription, and its own laws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from programs import apply, draw, init
from self_routing import self_routing

from capsjax import CapsNet, DenseCaps, SelfRouting
from capsjax.losses import MarginLoss, fitting_loss
from capsjax.models.network import init_variables

I, J, D, C = 7, 4, 5, 3  # noqa: E741


@pytest.fixture(scope="module")
def drawn():
    """Draws capsules, weight, activations, parameters and initial logits."""
    random = np.random.default_rng(0)
    shapes = {"route_weight": (I, J, C), "route_bias": (I, J)}
    parameters = {name: random.normal(size=shape) for name, shape in shapes.items()}
    return (
        random.normal(size=(2, I, C)),
        random.normal(size=(I, J, D, C)),
        random.uniform(0.1, 1, size=(2, I)),
        parameters,
        random.normal(size=(2, I, J)),
    )


def narrow(tree):
    return jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), tree)


@jax.jit
def route(capsules, weight, activation, parameters, logit=None, mask=None):
    own = {"parameters": parameters, "initial_logit": logit, "input_mask": mask}
    return SelfRouting().from_capsules(capsules, weight, activation, **own)


@pytest.mark.parametrize("has_logit", [True, False])
@pytest.mark.numerics
def test_it_follows_the_paper(drawn, has_logit):
    capsules, weight, activation, parameters, logit = drawn
    logit = logit if has_logit else None
    routed = route(*narrow((capsules, weight, activation, parameters, logit)))
    for n in range(2):
        expected = self_routing(
            *(capsules[n], weight, activation[n]),
            **parameters,
            logit=logit[n] if has_logit else None,
        )
        for actual, array in zip(routed, expected, strict=True):
            np.testing.assert_allclose(actual[n], array, rtol=1e-4, atol=1e-6)


def test_gradients_are_slopes(drawn):
    capsules, weight, activation, parameters, logit = drawn
    with jax.enable_x64(True):
        operands = capsules[0], weight, activation[0], parameters, logit[0]
        operands = jax.tree.map(jnp.asarray, operands)
        check_grads(lambda *x: route(*x)[:2], operands, order=1, atol=1e-6)


def test_activations_are_shares_of_the_inputs_activations(drawn):
    routed = route(*narrow(drawn))
    np.testing.assert_allclose(routed.activation.sum(-1), 1, rtol=1e-6)
    capsules, weight, activation, *rest = narrow(drawn)
    scaled = route(capsules, weight, activation / 50, *rest)
    for one, other in zip(scaled, routed, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_an_inactive_input_is_no_input(drawn):
    capsules, weight, activation, parameters, logit = narrow(drawn)
    few = jnp.where(jnp.arange(I)[None] < 5, activation, 0)
    operands = capsules, weight, few, parameters, logit
    expected = route(*narrow(drawn), jnp.arange(I) < 5)
    for one, other in zip(route(*operands)[:2], expected[:2], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_votes_that_agree_are_the_pose(drawn):
    capsules, weight, activation, *rest = narrow(drawn)
    capsules = jnp.broadcast_to(capsules[:, :1], capsules.shape)
    weight = jnp.broadcast_to(weight[:1], weight.shape)
    pose = route(capsules, weight, activation, *rest).pose
    expected = np.einsum("jdc,nc->njd", weight[0], capsules[:, 0])
    np.testing.assert_allclose(pose, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("least", [0, 1e-30, 1e-10])
def test_without_activations_all_is_zero_and_finite(drawn, least):
    capsules, weight, _, parameters, logit = narrow(drawn)
    # One output that no input wants.
    parameters["route_bias"] = parameters["route_bias"].at[:, 1].set(-1e6)

    def loss(*operands):
        routed = route(*operands)
        return routed.pose.sum() + jnp.sum(jnp.sin(routed.activation)), routed

    activation = jnp.full((2, I), least, jnp.float32)
    operands = 1e4 * capsules, weight, activation, parameters, logit
    found = jax.grad(loss, argnums=tuple(range(5)), has_aux=True)(*operands)
    for array in jax.tree.leaves(found):
        assert np.isfinite(array).all()
    if least < 1e-12:
        for array in (*jax.tree.leaves(found[0]), *found[1][:2]):
            np.testing.assert_array_equal(array, np.zeros_like(array))
    np.testing.assert_array_equal(found[1].pose[:, 1], np.zeros((2, D)))


def test_a_shared_matrix_is_a_matrix_of_every_input(drawn):
    capsules, weight, *rest = narrow(drawn)
    each = jnp.broadcast_to(weight[:1], weight.shape)
    expected = route(capsules, each, *rest)
    for one, other in zip(route(capsules, weight[0], *rest), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_layer_owns_the_network_that_makes_the_logits(drawn):
    capsules, _, activation, *_ = narrow(drawn)
    for deviation, least, most in ((0.0, 0, 0), (2.0, 1.5, 2.5)):
        layer = DenseCaps(J, D, SelfRouting(deviation=deviation))
        params = init(layer, jax.random.key(0), capsules, activation)
        own = params["params"]
        assert own["route_weight"].shape == (I, J, C)
        assert least <= np.std(own["route_weight"]) <= most
        np.testing.assert_array_equal(own["route_bias"], np.zeros((I, J)))
        routed = apply(layer, params, capsules, activation)
        is_equal = np.abs(routed.coupling - 1 / J).max() < 1e-6
        assert is_equal == (deviation == 0)
    with pytest.raises(ValueError, match="SelfRouting needs the inputs' activations"):
        layer.apply(params, capsules)


def test_bare_votes_are_refused_unless_they_come_with_logits(drawn):
    votes, activation = jnp.ones((2, I, J, D)), jnp.asarray(drawn[2], jnp.float32)
    message = "SelfRouting makes its logits of the input capsules, not of votes"
    with pytest.raises(ValueError, match=message):
        SelfRouting()(votes, activation)
    logit = jnp.zeros((I, J)).at[:, 0].set(np.log(3))
    routed = SelfRouting()(votes, activation, initial_logit=logit)
    expected = [0.5, *[1 / 6] * 3]
    np.testing.assert_allclose(routed.activation, [expected] * 2, rtol=1e-6)


def test_the_network_routes_by_the_lengths_of_its_primary_capsules(key):
    small: dict = {"conv_features": 4, "conv_kernel": 3, "primary_types": 2}
    small |= {"primary_dim": 4, "primary_kernel": 3, "decoder_features": (4,)}
    network = CapsNet((9, 9, 1), 3, routing=SelfRouting(), **small)
    variables = jax.jit(functools.partial(init_variables, network))(key)
    own = variables["params"]["class_caps"]
    own["route_bias"], own["route_weight"] = draw(key, 18, 3), jnp.zeros((18, 3, 4))
    image = jnp.abs(draw(key, 2, 9, 9, 1))

    @jax.jit
    def staged(variables):
        primary = network.apply(variables, image, method=network.primary)
        return primary, network.apply(variables, primary, method=network.route)

    primary, routed = staged(variables)
    length = np.linalg.norm(np.reshape(primary, (2, -1, 4)), axis=-1)
    coupling = jax.nn.softmax(own["route_bias"])
    expected = length @ coupling / length.sum(-1, keepdims=True)
    np.testing.assert_allclose(routed.activation, expected, rtol=1e-4)


def test_its_probabilities_are_no_lengths():
    with pytest.raises(ValueError, match="choose auto or spread"):
        fitting_loss(MarginLoss(), SelfRouting.activation_kind)
