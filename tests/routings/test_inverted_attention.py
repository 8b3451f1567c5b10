"""Inverted attention beside its transcription, and its own laws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inverted_attention import inverted_attention
from jax.test_util import check_grads
from programs import init

from capsjax import DenseCaps, InvertedAttention
from capsjax.losses import CrossEntropy, MarginLoss, fitting_loss

I, J, D = 7, 4, 5  # noqa: E741


@pytest.fixture(scope="module")
def drawn():
    """Draws votes, initial logits, and parameters."""
    normal = np.random.default_rng(0).normal
    names = ("scale", "offset", "score")
    parameters = {name: normal(size=D) for name in names} | {"score_bias": normal()}
    return normal(size=(2, I, J, D)), normal(size=(2, I, J)), parameters


def narrow(tree):
    return jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), tree)


@pytest.mark.parametrize("rounds", [1, 2, 4])
@pytest.mark.parametrize("has_logit", [True, False])
@pytest.mark.numerics
def test_it_follows_procedure_1(drawn, rounds, has_logit):
    votes, logit, parameters = drawn
    routed = InvertedAttention(rounds)(
        votes.astype(np.float32),
        parameters=narrow(parameters),
        initial_logit=logit.astype(np.float32) if has_logit else None,
    )
    for n in range(2):
        own = logit[n] if has_logit else None
        expected = inverted_attention(votes[n], rounds, logit=own, **parameters)
        for actual, array in zip(routed, expected, strict=True):
            np.testing.assert_allclose(actual[n], array, rtol=1e-4, atol=2e-6)


def test_gradients_are_slopes(drawn):
    votes, logit, parameters = drawn

    def result(votes, logit, parameters):
        routed = InvertedAttention()(votes, parameters=parameters, initial_logit=logit)
        return routed[:2]

    with jax.enable_x64(True):
        parameters = jax.tree.map(jnp.asarray, parameters)
        operands = votes[0], logit[0], parameters
        check_grads(jax.jit(result), operands, order=1, atol=1e-6)


def test_a_couplings_agreement_is_with_the_pose_of_the_round_before(drawn):
    votes, _, parameters = narrow(drawn)
    one, two = (InvertedAttention(n)(votes, parameters=parameters) for n in (1, 2))
    np.testing.assert_allclose(one.coupling, 1 / J, rtol=1e-6)
    agreement = np.einsum("nijd,njd->nij", votes, one.pose) / np.sqrt(D)
    expected = jax.nn.softmax(agreement, axis=-1)
    np.testing.assert_allclose(two.coupling, expected, rtol=1e-4)


def test_all_poses_are_equally_long_and_the_score_is_what_differs(drawn):
    votes = drawn[0].astype(np.float32)
    score = {"score": jnp.arange(D, dtype=jnp.float32)}
    routed = InvertedAttention()(votes, parameters=score)
    lengths = np.linalg.norm(routed.pose, axis=-1)
    np.testing.assert_allclose(lengths, np.sqrt(D), rtol=1e-3)
    np.testing.assert_allclose(routed.activation, routed.pose @ np.arange(D), rtol=1e-4)
    negated = InvertedAttention()(-votes, parameters=score)
    np.testing.assert_allclose(negated.activation, -routed.activation, rtol=1e-4)


def test_duplicating_every_input_changes_nothing(drawn):
    votes, _, parameters = narrow(drawn)
    route = functools.partial(InvertedAttention(), parameters=parameters)
    once, twice = route(votes), route(jnp.concatenate([votes, votes], axis=1))
    np.testing.assert_allclose(twice.activation, once.activation, atol=1e-3)


def test_a_layer_owns_a_layer_norm_and_a_score(drawn):
    capsules = drawn[0][..., 0].astype(np.float32)
    layer = DenseCaps(3, 16, InvertedAttention())
    own = init(layer, jax.random.key(0), capsules)["params"]
    assert own["weight"].shape == (I, 3, 16, J)
    np.testing.assert_array_equal(own["scale"], np.ones(16))
    np.testing.assert_array_equal(own["offset"], np.zeros(16))
    np.testing.assert_array_equal(own["score_bias"], 0)
    assert 0.05 < np.abs(own["score"]).mean() < np.abs(own["score"]).max() <= 0.25


def test_it_needs_its_score():
    message = "InvertedAttention needs its parameters, at least the score"
    with pytest.raises(ValueError, match=message):
        InvertedAttention()(jnp.ones((I, J, D)))


def test_lengths_have_no_meaning_so_the_margin_loss_is_refused():
    kind = InvertedAttention.activation_kind
    with pytest.raises(ValueError, match="choose auto or cross_entropy"):
        fitting_loss(MarginLoss(), kind)
    assert fitting_loss(CrossEntropy(), kind) == CrossEntropy()
