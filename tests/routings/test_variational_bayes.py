"""Variational Bayes routing beside its transcription, and its own laws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from variational_bayes import variational_bayes

from capsjax import DenseCaps, VariationalBayesRouting
from capsjax.losses import LOSSES, fitting_loss

B, I, J, D = 2, 7, 4, 5  # noqa: E741
PRIORS = {
    "prior_concentration": ("alpha0", 0.7),
    "prior_count": ("kappa0", 1.4),
    "prior_precision": ("psi0", 0.6),
    "prior_freedom": ("freedom", -0.5),
}


@pytest.fixture(scope="module")
def drawn():
    """Draws votes, activations, both parameters, and initial logits."""
    random = np.random.default_rng(0)
    return {
        "votes": random.normal(size=(B, I, J, D)),
        "activation": random.uniform(0.1, 1, size=(B, I)),
        "beta_u": random.normal(size=J),
        "beta_a": random.normal(size=J),
        "initial_logit": random.normal(size=(B, I, J)),
    }


def split(drawn):
    """Returns votes and activation, and the rest as an algorithm takes it."""
    arrays = {name: jnp.asarray(array, jnp.float32) for name, array in drawn.items()}
    parameters = {name: arrays.pop(name) for name in ("beta_u", "beta_a")}
    operands = arrays.pop("votes"), arrays.pop("activation")
    return operands, {"parameters": parameters, **arrays}


@pytest.mark.parametrize("priors", [(), PRIORS])
@pytest.mark.parametrize("rounds", [1, 2, 3])
@pytest.mark.numerics
def test_it_follows_the_paper(drawn, rounds, priors):
    operands, rest = split(drawn)
    own = {name: PRIORS[name][1] for name in priors}
    routed = VariationalBayesRouting(num_iterations=rounds, **own)(*operands, **rest)
    for n in range(B):
        expected = variational_bayes(
            *(drawn["votes"][n], drawn["activation"][n], rounds),
            beta_u=drawn["beta_u"],
            beta_a=drawn["beta_a"],
            logit=drawn["initial_logit"][n],
            **dict(PRIORS[name] for name in priors),
        )
        for a, e in zip(routed, expected, strict=True):
            np.testing.assert_allclose(a[n], e, rtol=3e-5, atol=2e-6)


def test_gradients_are_slopes(drawn):
    route = VariationalBayesRouting()

    def result(votes, activation, beta_u, beta_a, initial_logit):
        parameters = {"beta_u": beta_u, "beta_a": beta_a}
        return route(
            *(votes, activation), parameters=parameters, initial_logit=initial_logit
        )

    with jax.enable_x64(True):
        one = {name: a[0] if a.ndim > 1 else a for name, a in drawn.items()}
        check_grads(jax.jit(result), tuple(one.values()), order=1, atol=1e-6)


@pytest.mark.parametrize("deviation", [0.05, 1, 10, 1000])
def test_couplings_sum_to_one_for_votes_of_any_size(drawn, deviation):
    """Densities without their logarithms underflow from a deviation of 1 on."""
    (votes, activation), rest = split(drawn)
    wide = jnp.tile(deviation * votes, 4)[..., :16]
    routed = VariationalBayesRouting()(wide, activation, **rest)
    np.testing.assert_allclose(routed.coupling.sum(-1), 1, rtol=1e-6)
    assert all(np.isfinite(array).all() for array in routed)


def test_negated_votes_negate_the_poses_alone(drawn):
    (votes, activation), rest = split(drawn)
    route = VariationalBayesRouting()
    expected, actual = (route(v, activation, **rest) for v in (votes, -votes))
    np.testing.assert_array_equal(actual.pose, -expected.pose)
    np.testing.assert_array_equal(actual.activation, expected.activation)


def test_votes_that_agree_are_the_pose_but_for_the_prior(drawn):
    (votes, activation), rest = split(drawn)
    same = jnp.broadcast_to(votes[:, :1], votes.shape)
    routed = VariationalBayesRouting(prior_count=2.0)(same, activation, **rest)
    mass = jnp.einsum("bij,bi->bj", routed.coupling, activation)
    expected = (mass / (2 + mass))[..., None] * votes[:, 0]
    np.testing.assert_allclose(routed.pose, expected, rtol=1e-5, atol=1e-6)


def test_shifting_all_votes_moves_them_away_from_the_prior(drawn):
    (votes, activation), rest = split(drawn)
    route = VariationalBayesRouting()
    expected, actual = (route(v, activation, **rest) for v in (votes, votes + 2))
    assert np.abs(actual.coupling - expected.coupling).max() > 0.01


def test_an_input_without_activation_may_be_removed(drawn):
    (votes, activation), rest = split(drawn)
    less = {**rest, "initial_logit": rest["initial_logit"][:, 1:]}
    route = VariationalBayesRouting()
    expected = route(votes[:, 1:], activation[:, 1:], **less)
    actual = route(votes, activation.at[:, 0].set(0), **rest)
    np.testing.assert_allclose(actual.pose, expected.pose, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(actual.activation, expected.activation, rtol=1e-5)
    np.testing.assert_allclose(actual.coupling[:, 1:], expected.coupling, rtol=1e-5)


def test_activations_of_the_inputs_matter(drawn):
    (votes, activation), rest = split(drawn)
    expected, actual = (
        VariationalBayesRouting()(votes, a, **rest)
        for a in (activation, activation[:, ::-1])
    )
    assert np.abs(actual.pose - expected.pose).max() > 0.1
    assert np.abs(actual.activation - expected.activation).max() > 0.1


def test_the_first_round_shares_each_input_among_the_outputs(drawn):
    (votes, activation), _ = split(drawn)
    routed = VariationalBayesRouting(num_iterations=1)(votes, activation)
    np.testing.assert_array_equal(routed.coupling, np.full((B, I, J), 1 / J))
    mass = activation.sum(-1)[:, None, None] / J
    sums = jnp.einsum("bi,bijd->bjd", activation, votes) / J
    np.testing.assert_allclose(routed.pose, sums / (1 + mass), rtol=1e-5, atol=1e-6)


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


def test_values_and_gradients_are_finite_everywhere(drawn):
    (votes, activation), rest = split(drawn)
    run = finite(VariationalBayesRouting())
    one = jnp.zeros_like(activation).at[:, 0].set(1)
    for name, array in extreme(votes):
        for a in (activation, 0 * activation, one, 1e-8 * activation, 1e-8 * one):
            found = jax.tree.leaves(run(array, a, rest["parameters"]))
            assert all(np.isfinite(x).all() for x in found), name


def test_a_layer_owns_the_parameters_and_starts_with_logits_of_a_few_units(key):
    for inputs, outputs in ((200, 10), (50, 3)):
        capsules = jax.random.normal(key, (4, inputs, 8))
        capsules *= 0.35 / np.sqrt(8)
        activation = jnp.full((4, inputs), 0.35)
        layer = DenseCaps(outputs, 16, VariationalBayesRouting())
        params = layer.init(key, capsules, activation)
        shapes = {name: one.shape for name, one in params["params"].items()}
        assert shapes == {
            "weight": (inputs, outputs, 16, 8),
            "beta_u": (outputs,),
            "beta_a": (outputs,),
        }
        routed = layer.apply(params, capsules, activation)
        assert np.abs(routed.activation).max() < 10


def test_inputs_without_activations_are_refused():
    with pytest.raises(ValueError, match="VariationalBayesRouting needs the inputs' a"):
        VariationalBayesRouting()(jnp.ones((I, J, D)))


def test_a_loss_of_lengths_or_probabilities_is_refused():
    kind = VariationalBayesRouting.activation_kind
    assert type(fitting_loss(LOSSES["auto"](), kind)) is LOSSES["cross_entropy"]
    for word in ("margin", "spread"):
        message = f"config.loss={word} .* auto or cross_entropy"
        with pytest.raises(ValueError, match=message):
            fitting_loss(LOSSES[word](), kind)
