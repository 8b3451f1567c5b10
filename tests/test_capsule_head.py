"""Class capsules of a map or of tokens, on any network."""

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from marks import slow
from places import blocks
from programs import apply, draw, init

from capsjax import (
    ROUTINGS,
    CapsuleHead,
    ClassCaps,
    DenseCaps,
    DynamicRouting,
    EMRouting,
    PrimaryPoses,
    SelfAttention,
    UniformRouting,
    flatten_capsules,
)

QUICK = ("dynamic", "em")
EVERY = [*QUICK, *slow(*sorted({*ROUTINGS} - {*QUICK}))]


def features(key, *shape):
    return jnp.asarray(draw(key, *shape))


def shapes(params):
    return jax.tree.map(jnp.shape, params)


@pytest.mark.parametrize("name", EVERY)
def test_every_algorithm_heads_tokens_and_padding_sends_nothing(key, name):
    tokens = features(key, 2, 6, 5)
    head = CapsuleHead(3, 4, ROUTINGS[name](), "tokens", 2, 4)
    params = init(head, key, tokens)
    has_activation = "activation" in params["params"]["primary_caps"]
    assert has_activation == head.routing.takes_activation

    @jax.jit
    def masked(tokens, mask):
        return head.apply(params, tokens, mask=mask)

    mask = jnp.array([[True] * 4 + [False] * 2] * 2)
    expected = apply(head, params, tokens[:, :4])
    assert expected.pose.shape == (2, 3, 4)
    assert expected.activation.shape == (2, 3)
    found = masked(tokens.at[:, 4:].set(jnp.nan), mask)
    np.testing.assert_allclose(found.pose, expected.pose, atol=1e-5)
    np.testing.assert_allclose(found.activation, expected.activation, atol=1e-5)


def test_a_map_of_any_size_has_the_same_weights(key):
    head = CapsuleHead(3, 4, UniformRouting(), primary_types=2)
    params = init(head, key, features(key, 2, 3, 2, 5))
    assert shapes(params) == shapes(init(head, key, features(key, 1, 7, 4, 5)))
    wide = features(key, 2, 4, 3, 5)
    tokens = wide.reshape(2, 12, 5)
    expected = apply(head.clone(inputs="tokens"), params, tokens).pose
    np.testing.assert_allclose(apply(head, params, wide).pose, expected, atol=1e-6)


def test_matrices_of_each_position_make_the_layer_dense(key):
    capsules = 0.3 * features(key, 2, 3, 2, 2, 4)
    layer = ClassCaps(3, 5, share_positions=False)
    params = init(layer, key, capsules)
    weight = params["params"]["weight"]
    assert weight.shape == (6, 2, 3, 5, 4)
    flat = {"params": {**params["params"], "weight": weight.reshape(12, 3, 5, 4)}}
    dense = DenseCaps(3, 5, layer.routing)
    expected = apply(dense, flat, flatten_capsules(capsules)[0]).pose
    np.testing.assert_allclose(apply(layer, params, capsules).pose, expected, atol=1e-6)


def test_parameters_of_inputs_are_shared_as_the_matrices_are(key):
    capsules = 0.3 * features(key, 3, 2, 2, 4)
    layer = ClassCaps(3, 5, SelfAttention())
    params = init(layer, key, capsules)
    own = {name: one.shape for name, one in params["params"].items()}
    assert own == {"weight": (1, 2, 3, 5, 4), "bias": (2, 3)}
    bias = features(key, 2, 3)
    changed = {"params": {**params["params"], "bias": bias}}
    whole = {
        "weight": jnp.tile(params["params"]["weight"], (6, 1, 1, 1, 1)),
        "bias": jnp.tile(bias, (6, 1)),
    }
    alone = layer.clone(share_positions=False)
    expected = apply(alone, {"params": whole}, capsules).pose
    np.testing.assert_allclose(
        apply(layer, changed, capsules).pose, expected, atol=1e-6
    )


@pytest.mark.parametrize(("pose", "places"), [("vector", (0, 1)), ("matrix", (1, 3))])
def test_coordinates_are_added_to_two_components_of_the_votes(key, pose, places):
    # The mean of the votes is the pose, in one round of EM.
    capsules = features(key, 2, 4, 1, 4)
    share = jax.nn.softmax(features(key, 8)).reshape(2, 4, 1)
    layer = ClassCaps(3, 4, EMRouting(num_iterations=1), pose=pose)
    params = init(layer, key, capsules, share)
    plain = apply(layer, params, capsules, share).pose
    found = apply(layer.clone(coordinates=0.5), params, capsules, share).pose
    row, column = np.array([-0.25, 0.25]), np.array([-0.375, -0.125, 0.125, 0.375])
    added = np.zeros(4)
    added[places[0]] = 0.5 * np.sum(np.sum(share[..., 0], 1) * row)
    added[places[1]] = 0.5 * np.sum(np.sum(share[..., 0], 0) * column)
    np.testing.assert_allclose(found - plain, np.tile(added, (3, 1)), atol=1e-6)
    assert np.abs(added).max() > 0.01


def test_primary_poses_are_linear_and_activations_probabilities(key):
    image = features(key, 2, 5, 5, 3)
    layer = PrimaryPoses(2, 4, 3, 2)
    params = init(layer, key, image)
    pose, activation = apply(layer, params, image)
    assert (pose.shape, activation.shape) == ((2, 2, 2, 2, 4), (2, 2, 2, 2))
    doubled, _ = apply(layer, params, 2 * image)
    np.testing.assert_allclose(doubled, 2 * pose, rtol=1e-5)
    assert 0 < activation.min() < 0.5 < activation.max() < 1


@pytest.mark.parametrize(
    ("name", "length"), [("dynamic", (0.3, 0.4)), ("em", (0.3, 0.4))]
)
def test_primary_capsules_of_normalised_features_start_about_035_long(
    key, name, length
):
    tokens = features(key, 4, 20, 64)
    head = CapsuleHead(3, 4, ROUTINGS[name](), "tokens")
    params = init(head, key, tokens)
    (_, state) = head.apply(params, tokens, capture_intermediates=True, mutable=True)
    made = state["intermediates"]["primary_caps"]["__call__"][0]
    pose = made[0] if name == "em" else made
    low, high = length
    assert low < np.sqrt(np.mean(np.sum(np.square(pose), -1))) < high


@pytest.mark.parametrize(
    ("head", "shape", "mask", "message"),
    [
        (CapsuleHead(3), (4, 5), None, r"features must have the axes \[\*batch, h, w"),
        (
            CapsuleHead(3, inputs="tokens", coordinates=1.0),
            (2, 4, 5),
            None,
            "coordinates are those of a map: set coordinates=0 for inputs='tokens', g",
        ),
        (CapsuleHead(3), (4, 4, 5), (4,), r"mask must have .* \(4, 4\), got shape"),
        (CapsuleHead(3, pose="matrix"), (4, 4, 5), None, "dim must be the inputs' 8 c"),
        (
            CapsuleHead(3, 8, pose="matrix"),
            (4, 4, 5),
            None,
            "dim must be a square for pose='matrix', such as 16 for 4x4, got 8",
        ),
    ],
)
def test_what_does_not_fit_is_one_clear_line(key, head, shape, mask, message):
    mask = None if mask is None else jnp.ones(mask, bool)
    with pytest.raises(ValueError, match=message) as refused:
        jax.eval_shape(lambda: head.init(key, jnp.zeros(shape), mask=mask))
    assert "\n" not in str(refused.value)


class Own(nn.Module):
    """A convolutional network of somebody else's."""

    @nn.compact
    def __call__(self, image):
        features = nn.relu(nn.Conv(8, (3, 3), strides=2)(image))
        routing = DynamicRouting(num_iterations=2)
        return CapsuleHead(4, 6, routing, primary_types=2)(features)


def test_a_network_of_nnx_with_a_head_keeps_its_weights_in_bytes(key):
    image = features(key, 2, 6, 6, 1)

    def made(seed):
        model = nnx.bridge.ToNNX(Own(), rngs=nnx.Rngs(seed))
        nnx.bridge.lazy_init(model, image)
        return model

    model, other = made(0), made(1)
    expected = model(image).pose
    state = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    stored = flax.serialization.msgpack_serialize(jax.tree.map(np.asarray, state))
    restored = nnx.state(other, nnx.Param)
    read = jax.tree.map(jnp.asarray, flax.serialization.msgpack_restore(stored))
    nnx.replace_by_pure_dict(restored, read)
    assert np.abs(other(image).pose - expected).max() > 1e-6
    nnx.update(other, restored)
    np.testing.assert_array_equal(other(image).pose, expected)


@pytest.mark.variant
def test_the_examples_of_the_page_learn():
    in_linen, in_nnx = blocks("capsule-head.md")
    found = {}
    exec(in_linen, found)
    routed, label = found["routed"], found["labels"][-100:]
    assert routed.pose.shape == (100, 10, 16)
    assert (routed.activation.argmax(-1) == label).mean() > 0.7
    exec(in_nnx, found)
    assert (found["length"].argmax(-1) == label).mean() > 0.7
