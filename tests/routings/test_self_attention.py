"""Self-attention routing beside its transcription, and its own laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from reference import softmax
from self_attention import exponential_squash, self_attention

from capsjax import DenseCaps
from capsjax.routings import SelfAttention

I, J, D = 7, 4, 5  # noqa: E741


@pytest.fixture(scope="module")
def drawn():
    """Draws votes, a bias, and initial logits."""
    normal = np.random.default_rng(0).normal
    return normal(size=(2, I, J, D)), 0.3 * normal(size=(I, J)), normal(size=(2, I, J))


@pytest.mark.parametrize("scale", [None, 0.4])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.numerics
def test_it_follows_the_paper(drawn, scale, has_bias):
    votes, bias, logit = drawn
    routed = SelfAttention(scale=scale)(
        votes.astype(np.float32),
        parameters={"bias": jnp.asarray(bias, jnp.float32)} if has_bias else {},
        initial_logit=logit.astype(np.float32),
    )
    for n in range(2):
        pose, coupling = self_attention(
            votes[n], scale=scale, bias=bias if has_bias else None, logit=logit[n]
        )
        np.testing.assert_allclose(routed.pose[n], pose, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(routed.coupling[n], coupling, rtol=1e-4, atol=1e-6)


def test_gradients_are_slopes(drawn):
    votes, bias, logit = (array if array.ndim == 2 else array[0] for array in drawn)

    def result(votes, bias, logit):
        routed = SelfAttention()(votes, parameters={"bias": bias}, initial_logit=logit)
        return routed[:2]

    with jax.enable_x64(True):
        check_grads(jax.jit(result), (votes, bias, logit), order=1, atol=1e-6)


def test_one_output_gets_all_of_every_input(drawn):
    votes = drawn[0][0, :, :1].astype(np.float32)
    routed = SelfAttention()(votes)
    np.testing.assert_array_equal(routed.coupling, np.ones((I, 1)))
    expected = exponential_squash(votes.astype(np.float64).sum(axis=(0, 1)))
    np.testing.assert_allclose(routed.pose[0], expected, rtol=1e-5)


def test_an_input_agrees_with_itself(drawn):
    votes = drawn[0][:, :1].astype(np.float32)
    coupling = SelfAttention()(votes).coupling[0, 0]
    square = np.sum(votes[0, 0].astype(np.float64) ** 2, axis=-1)
    np.testing.assert_allclose(coupling, softmax(square / np.sqrt(D)), rtol=1e-5)


def test_a_small_scale_sends_an_input_to_one_output(drawn):
    votes = drawn[0].astype(np.float32)
    coupling = SelfAttention(scale=1e-3)(votes).coupling
    np.testing.assert_allclose(coupling.max(-1), 1, rtol=1e-6)
    equal = SelfAttention(scale=1e6)(votes).coupling
    np.testing.assert_allclose(equal, 1 / J, rtol=1e-4)


def test_a_layer_owns_the_bias_and_may_do_without(drawn):
    capsules = jnp.asarray(drawn[0][..., 0], jnp.float32)
    for routing, shapes in (
        (SelfAttention(bias=0.1), {"bias": (I, 3), "weight": (I, 3, D, J)}),
        (SelfAttention(bias=None), {"weight": (I, 3, D, J)}),
    ):
        params = DenseCaps(3, D, routing).init(jax.random.key(0), capsules)["params"]
        assert {name: one.shape for name, one in params.items()} == shapes
        if "bias" in params:
            np.testing.assert_array_equal(params["bias"], np.full((I, 3), 0.1, "f4"))
