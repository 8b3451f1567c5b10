"""The capsule layers inside a network, watched from outside."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_model

from capsjax import DenseCaps, DynamicRouting, EMRouting, InvertedAttention, Routed
from capsjax.diagnostics import uniformly
from capsjax.layers import CapsuleHead, ConvCaps, DeconvCaps
from capsjax.models.network import bind, init_variables
from capsjax.models.watching import watch
from capsjax.routings import Algorithm


class Stack(nn.Module):
    """Two layers of capsules, each with an algorithm of its own."""

    first: Algorithm = DynamicRouting(none_of_the_above=True, form="votes")
    second: Algorithm = EMRouting(form="votes")
    image_shape: tuple[int, int, int] = (2, 3, 4)
    num_classes: int = 3

    @nn.compact
    def encode(self, image: Any, *, is_training: bool = False) -> Routed:
        capsules = image.reshape(len(image), 6, 4)
        lower = DenseCaps(5, 4, self.first, name="lower")(capsules)
        needs = self.second.takes_activation
        given = {"activation": lower.activation} if needs else {}
        return DenseCaps(3, 4, self.second, name="upper")(lower.pose, **given)


def watched(network, **options):
    image = jax.random.uniform(jax.random.key(0), (7, *network.image_shape))
    variables = init_variables(network, jax.random.key(1))
    whole = network.apply(variables, image, method=network.encode)
    routed, layers = watch(network, variables, image, **options)
    return whole, routed, layers


def test_every_layer_is_watched_and_changes_nothing():
    whole, routed, layers = watched(Stack())
    np.testing.assert_array_equal(routed.activation, whole.activation)
    assert [*layers] == ["lower", "upper"]
    lower, upper = layers.values()
    assert (lower.coupling.shape, upper.coupling.shape) == ((7, 6, 5), (7, 5, 3))
    assert (lower.none_of_the_above, upper.none_of_the_above) == (True, False)
    # The activations that the upper layer was given.
    np.testing.assert_array_equal(upper.input_activation, lower.output_activation)
    np.testing.assert_array_equal(upper.coupling, whole.coupling)
    assert upper.statistics().measures()["t_score"] >= 0


def test_a_network_with_the_field_routing_is_made_to_return_couplings():
    routing = DynamicRouting(form="votes_free")
    network = bind(tiny_model(routing=routing), (28, 28, 1), 3)
    # Shapes show it, and nothing is compiled.
    whole, _, layers = jax.eval_shape(lambda: watched(network))
    assert whole.coupling is None
    assert layers["class_caps"].coupling.shape == (7, 18, 3)


def test_logits_count_as_their_softmax():
    kinds = DynamicRouting(form="votes_free"), InvertedAttention(form="votes")
    _, routed, layers = watched(Stack(*kinds))
    expected = jax.nn.softmax(routed.activation, axis=-1)
    np.testing.assert_array_equal(layers["upper"].output_activation, expected)


def test_the_competition_of_every_layer_can_be_replaced():
    _, _, layers = watched(Stack(), compete=uniformly)
    lower, upper = layers.values()
    np.testing.assert_allclose(lower.coupling, 1 / 6, rtol=1e-6)
    np.testing.assert_allclose(upper.coupling, 1 / 3, rtol=1e-6)


class OfOthers(Stack):
    """A layer of windows, larger map, and a head that makes its capsules itself."""

    @nn.compact
    def encode(self, image: Any, *, is_training: bool = False) -> Routed:
        capsules = jnp.zeros((len(image), 5, 6, 2, 4))
        windows = ConvCaps(3, 4, padding="SAME", name="windows")(capsules)
        larger = DeconvCaps(2, 4, name="larger")(windows.pose)
        features = larger.pose.reshape(*larger.pose.shape[:3], 8)
        return CapsuleHead(3, 4, name="head")(features)


def test_layers_of_windows_and_heads_are_watched_too():
    whole, routed, layers = jax.eval_shape(lambda: watched(OfOthers()))
    assert routed.activation.shape == whole.activation.shape
    assert [*layers] == ["windows", "larger", "head"]
    windows, _, head = layers.values()
    assert windows.coupling.shape == (*windows.input_activation.shape, 3)
    assert windows.coupling.ndim == 5
    assert windows.input_mask.shape == windows.input_activation.shape
    assert head.coupling.shape[2:] == (3,)


class Careful(Stack):
    """Notes the algorithm of a layer after a call, and after one that fails."""

    @nn.compact
    def encode(self, image: Any, *, is_training: bool = False) -> Routed:
        layer = DenseCaps(3, 4, self.first, name="layer")
        capsules = image.reshape(len(image), 6, 4)
        routed = layer(capsules)
        assert layer.routing is self.first
        with pytest.raises(ValueError, match="input_mask must have the axes"):
            layer(capsules, input_mask=jnp.ones((2, 5), bool))
        assert layer.routing is self.first
        return routed


def test_a_layer_has_its_own_algorithm_again_after_a_call_and_after_an_error():
    _, _, layers = watched(Careful())
    assert [*layers] == ["layer"]
