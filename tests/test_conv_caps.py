"""Convolutional capsules: windows, who competes, and a stack of layers."""

import dataclasses
from typing import Literal

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx
from marks import slow
from places import blocks
from programs import apply, draw, init

from capsjax import (
    ROUTINGS,
    ClassCaps,
    ConvCaps,
    DenseCaps,
    DynamicRouting,
    EMRouting,
    SelfRouting,
    UniformRouting,
    VariationalBayesRouting,
    flatten_capsules,
    squash,
)
from capsjax.layers.conv_caps import require_choices
from capsjax.routings.competition import OverImage, over_outputs
from capsjax.votes import cast_votes, gather_windows, pad_grid, pose_weight

QUICK, REST = ("dynamic", "em"), sorted({*ROUTINGS} - {"dynamic", "em"})
EVERY = [*QUICK, *slow(*REST)]


def inputs(key, *shape):
    """Capsules [*shape, c] about as long as primary ones, and activations."""
    capsules = 0.3 * draw(key, *shape)
    activation = np.abs(np.tanh(5 * capsules[..., 0]))
    return jnp.asarray(capsules), jnp.asarray(activation)


def own(routing, activation):
    return activation if routing.takes_activation else None


# ---- windows


@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 2), (2, 1), (2, 3)])
def test_position_k_of_a_window_is_row_by_row(kernel_size, stride):
    grid = np.arange(2 * 8 * 7 * 3).reshape(2, 8, 7, 3)
    windows = gather_windows(jnp.asarray(grid), kernel_size, stride, behind=1)
    for n, row, column, k in np.ndindex(windows.shape[:-1]):
        h, w = row * stride + k // kernel_size, column * stride + k % kernel_size
        np.testing.assert_array_equal(windows[n, row, column, k], grid[n, h, w])
    sides = [(size - kernel_size) // stride + 1 for size in (8, 7)]
    assert windows.shape[1:3] == tuple(sides)


def test_same_padding_has_a_window_for_every_strideth_position():
    grid = jnp.ones((5, 6, 1))
    for stride, shape in ((1, (5, 6)), (2, (3, 3)), (3, (2, 2))):
        windows = gather_windows(
            pad_grid(grid, 3, stride, behind=1), 3, stride, behind=1
        )
        assert windows.shape == (*shape, 9, 1)
        assert windows.sum((2, 3)).min() >= 4  # Each holds a part of the map.


# ---- one layer


def test_a_position_routes_the_votes_of_its_window(key):
    capsules, _ = inputs(key, 2, 5, 6, 2, 4)
    layer = ConvCaps(3, 5, kernel_size=3, stride=1)
    params = init(layer, key, capsules)
    weight, bias = (params["params"][name] for name in ("weight", "bias"))
    assert weight.shape == (9, 2, 3, 5, 4)
    assert (bias == 0.1).all()  # The default of a layer that stacks.
    routed = apply(layer, params, capsules)
    assert routed.pose.shape == (2, 3, 4, 3, 5)
    assert routed.coupling is None
    for n, row, column in ((0, 0, 0), (1, 2, 3), (1, 1, 0)):
        votes = [
            np.einsum(
                "jdc,c->jd", weight[3 * r + c, t], capsules[n, row + r, column + c, t]
            )
            for r in range(3)
            for c in range(3)
            for t in range(2)
        ]
        pose, _ = reference.dynamic_routing(votes, 3, bias=np.asarray(bias))
        np.testing.assert_allclose(routed.pose[n, row, column], pose, atol=2e-5)
        length = np.linalg.norm(pose, axis=-1)
        np.testing.assert_allclose(routed.activation[n, row, column], length, atol=2e-5)


@pytest.mark.parametrize("name", EVERY)
def test_every_algorithm_routes_windows_and_padding_sends_nothing(key, name):
    routing = ROUTINGS[name]()
    capsules, activation = inputs(key, 3, 3, 2, 4)
    layer = ConvCaps(3, 4, 3, padding="SAME", routing=routing)
    given = capsules, own(routing, activation)
    params = init(layer, key, *given)
    routed = apply(layer, params, *given)
    weight = params["params"]["weight"].reshape(18, 3, 4, 4)
    others = {k: v for k, v in params["params"].items() if k != "weight"}
    # The corner's window: only its lower right four positions are on the map.
    here = np.isin(np.arange(18) // 2, (4, 5, 7, 8))
    axes = {k: one.axes for k, one in routing.declared_parameters.items()}
    expected = routing.from_capsules(
        capsules[:2, :2].reshape(8, 4),
        weight[here],
        None if given[1] is None else given[1][:2, :2].reshape(8),
        parameters={k: v[here] if "i" in axes[k] else v for k, v in others.items()},
    )
    presence = expected.activation
    if routing.activation_kind == "logit":
        presence = jax.nn.sigmoid(presence)
    np.testing.assert_allclose(routed.pose[0, 0], expected.pose, atol=1e-5)
    np.testing.assert_allclose(routed.activation[0, 0], presence, atol=1e-5)


def test_a_mask_silences_capsules_whatever_they_are(key):
    capsules, activation = inputs(key, 4, 4, 2, 4)
    mask = jnp.asarray(draw(key, 4, 4, 2) > -1)
    layer = ConvCaps(3, 4, 2, routing=EMRouting())
    params = init(layer, key, capsules, activation)

    @jax.jit
    def poses(capsules):
        return layer.apply(params, capsules, activation, input_mask=mask).pose

    expected = poses(capsules)
    assert not mask.all()
    absent = jnp.where(mask[..., None], capsules, jnp.nan)
    np.testing.assert_array_equal(poses(absent), expected)


def test_shared_types_have_one_matrix_for_each_position(key):
    capsules, _ = inputs(key, 4, 4, 3, 4)
    layer = ConvCaps(2, 5, 2, 2, share_types=True)
    params = init(layer, key, capsules)
    weight = params["params"]["weight"]
    assert weight.shape == (4, 1, 2, 5, 4)
    whole = {"params": {**params["params"], "weight": jnp.repeat(weight, 3, 1)}}
    expected = apply(layer.clone(share_types=False), whole, capsules).pose
    np.testing.assert_array_equal(apply(layer, params, capsules).pose, expected)


@pytest.mark.parametrize("layer", [ConvCaps(3, 4, 2), ClassCaps(3, 4)])
def test_couplings_are_returned_on_request(key, layer):
    capsules, _ = inputs(key, 2, 4, 4, 2, 4)
    layer = layer.clone(routing=DynamicRouting(form="votes_free"))
    params = init(layer, key, capsules)
    assert apply(layer, params, capsules).coupling is None
    routed = jax.jit(lambda x: layer.apply(params, x, with_couplings=True))(capsules)
    shape = (2, 3, 3, 8, 3) if isinstance(layer, ConvCaps) else (2, 32, 3)
    assert routed.coupling.shape == shape
    np.testing.assert_allclose(routed.coupling.sum(-1), 1, rtol=1e-5)


# ---- matrix poses


def test_a_matrix_pose_is_multiplied_from_the_right(key):
    poses, matrix = map(jnp.asarray, (draw(key, 6, 4, 4), draw(key, 6, 3, 4, 4)))
    votes = cast_votes(poses.reshape(6, 16), pose_weight(matrix))
    for i, j in np.ndindex(6, 3):
        expected = poses[i] @ matrix[i, j]
        np.testing.assert_allclose(
            votes[i, j].reshape(4, 4), expected, rtol=1e-4, atol=1e-5
        )


def test_matrix_poses_need_a_root_of_the_weights(key):
    capsules, activation = inputs(key, 4, 4, 2, 16)
    layer = ConvCaps(3, 16, 2, pose="matrix", routing=EMRouting())
    params = jax.eval_shape(layer.init, key, capsules, activation)["params"]
    assert params["weight"].shape == (4, 2, 3, 4, 4)


# ---- who competes


def brute_force(logit, kernel_size, stride, size):
    """Couplings of the windows [H, W, k, t, j] of a map of ``size``."""
    e, total = np.exp(np.float64(logit)), np.zeros((*size, logit.shape[-2]))

    def position(row, column, k):
        return (row * stride + k // kernel_size, column * stride + k % kernel_size)

    for row, column, k in np.ndindex(e.shape[:3]):
        total[position(row, column, k)] += e[row, column, k].sum(-1)
    for row, column, k in np.ndindex(e.shape[:3]):
        e[row, column, k] /= total[position(row, column, k)][:, None]
    return e


@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (3, 2), (2, 2)])
def test_an_input_is_shared_among_all_windows_that_hold_it(key, kernel_size, stride):
    logit = 3 * draw(key, 2, 3, 4, kernel_size**2, 2, 5)
    over_image = OverImage(kernel_size, stride)
    flat = jnp.asarray(logit.reshape(2, 3, 4, -1, 5))
    found = np.asarray(jax.jit(over_image)(flat)).reshape(logit.shape)
    size = [(n - 1) * stride + kernel_size for n in (3, 4)]
    for n in range(2):
        expected = brute_force(logit[n], kernel_size, stride, size)
        np.testing.assert_allclose(found[n], expected, rtol=1e-4, atol=1e-7)
    if kernel_size == stride:
        np.testing.assert_allclose(
            found.reshape(flat.shape), over_outputs(flat), rtol=1e-5
        )


def test_competition_over_the_image_has_finite_gradients(key):
    logit = 30 * draw(key, 3, 3, 18, 4)
    weight = draw(key, 3, 3, 18, 4)

    def total(logit):
        return jnp.sum(weight * OverImage(3, 1)(logit))

    found = jax.jit(jax.grad(total))(jnp.asarray(logit))
    assert np.isfinite(found).all()
    assert np.abs(found).max() > 0
    # A shift of all logits changes nothing.
    assert abs(found.sum()) < 1e-4


@pytest.mark.parametrize("name", EVERY)
def test_every_algorithm_lets_the_whole_image_compete(key, name):
    routing = ROUTINGS[name]()
    capsules, activation = inputs(key, 4, 4, 2, 4)
    layer = ConvCaps(3, 4, 3, padding="SAME", routing=routing, compete="image")
    given = capsules, own(routing, activation)
    params = init(layer, key, *given)
    routed = jax.jit(lambda *x: layer.apply(params, *x, with_couplings=True))(*given)
    coupling = np.asarray(routed.coupling).reshape(4, 4, 9, 2, 3)
    total = np.zeros((6, 6, 2))
    for row, column, k in np.ndindex(4, 4, 9):
        total[row + k // 3, column + k % 3] += coupling[row, column, k].sum(-1)
    np.testing.assert_allclose(total[1:-1, 1:-1], 1, rtol=1e-5)
    assert total.sum() == pytest.approx(32, rel=1e-5)  # Nothing from the padding.


# ---- norm and residual


@pytest.mark.slow
def test_batch_statistics_move_in_training_and_are_used_after_it(key):
    capsules, _ = inputs(key, 4, 5, 5, 2, 4)
    layer = ConvCaps(3, 4, 3, norm="batch")
    variables = init(layer, key, capsules)

    @jax.jit
    def train(variables):
        options = {"is_training": True, "mutable": ["batch_stats"]}
        return layer.apply(variables, capsules, **options)

    routed, changed = train(variables)
    plain = init(layer.clone(norm="none"), key, capsules)["params"]
    pose = np.asarray(apply(layer.clone(norm="none"), {"params": plain}, capsules).pose)
    mean, sd = pose.mean((0, 1, 2)), pose.std((0, 1, 2))
    own = variables["params"]["pose_norm"]
    # Lengths start as the next layer expects them, about.
    s = (pose - mean) / np.sqrt(sd**2 + 1e-5) * np.asarray(own["scale"]).reshape(3, 4)
    np.testing.assert_allclose(routed.pose, squash(s), atol=1e-4)
    assert np.sqrt((routed.activation**2).mean()) == pytest.approx(0.35, abs=0.05)
    stats = changed["batch_stats"]["pose_norm"]
    np.testing.assert_allclose(stats["mean"], 0.1 * mean.ravel(), atol=1e-5)
    after = apply(layer, {**variables, **changed}, capsules)
    assert np.abs(after.pose - routed.pose).max() > 0.01


@pytest.mark.parametrize(
    "routing", [UniformRouting(bias=0.1), *slow(EMRouting(), VariationalBayesRouting())]
)
def test_a_layer_norm_and_a_sum_keep_a_deep_stack_alive(key, routing):
    class Stack(nn.Module):
        @nn.compact
        def __call__(self, pose, activation):
            lengths = []
            for _ in range(4):
                layer = ConvCaps(
                    2, 4, 3, 1, "SAME", routing, norm="layer", residual=True
                )
                pose, activation, _ = layer(pose, own(routing, activation))
                lengths.append(jnp.sqrt(jnp.mean(jnp.sum(pose**2, -1))))
            return jnp.stack(lengths), activation

    given = inputs(key, 2, 4, 4, 2, 4)
    params = init(Stack(), key, *given)
    lengths, activation = apply(Stack(), params, *given)
    np.testing.assert_allclose(lengths, 0.35, atol=0.07)
    assert 0 < activation.min() < activation.max() < 1


def test_capsules_of_a_stack_start_as_long_as_the_next_layer_expects(key):
    pose, _ = inputs(key, 2, 9, 9, 4, 8)
    pose = 0.35 * pose / jnp.linalg.norm(pose, axis=-1, keepdims=True)
    for n in range(3):
        layer = ConvCaps(4, 8, 3, routing=UniformRouting(bias=0.0))
        pose = apply(layer, init(layer, jax.random.key(n), pose), pose).pose
        length = np.linalg.norm(pose, axis=-1)
        assert np.sqrt((length**2).mean()) == pytest.approx(0.35, abs=0.07)


# ---- refusals


@pytest.mark.parametrize(
    ("layer", "given", "message"),
    [
        (
            ConvCaps(2, 4, 3, 2),
            (False, 6, 5),
            "a map of 6x5 capsules has 1 more along a side than windows of 3 in steps",
        ),
        (ConvCaps(2, 4, 3), (False, 5, 2), "map of 5x2 .* smaller than a window: kern"),
        (
            ConvCaps(2, 4, routing=EMRouting()),
            (False, 5, 5),
            "EMRouting needs activations of the inputs: give activation, or set inp",
        ),
        (
            ClassCaps(2, 4, routing=SelfRouting()),
            (False, 5, 5),
            "SelfRouting needs activations of the inputs: give activation, or set inp",
        ),
        (
            ConvCaps(2, 4),
            (True, 5, 5),
            "DynamicRouting does not use activations of the inputs: leave out activ",
        ),
        (ConvCaps(2, 6, pose="matrix"), (False, 5, 5), "dim must be the inputs' 4 com"),
        (ConvCaps(2, 4, residual=True), (False, 5, 5), "residual=True needs outputs o"),
        (ClassCaps(2, 1, coordinates=1.0), (False, 5, 5), "dim must be at least 2 for"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(key, layer, given, message):
    has_activation, h, w = given
    capsules = jnp.zeros((h, w, 2, 4))
    activation = jnp.zeros((h, w, 2)) if has_activation else None
    with pytest.raises((ValueError, TypeError), match=message) as refused:
        jax.eval_shape(layer.init, key, capsules, activation)
    assert "\n" not in str(refused.value)


def test_a_word_outside_of_a_fields_choice_is_refused_with_the_choice():
    @dataclasses.dataclass
    class Layer:
        compete: Literal["window", "image"] = "windows"

    with pytest.raises(ValueError, match="compete must be one of window, image, got"):
        require_choices(Layer())


def test_lengths_are_activations_where_the_layer_says_so(key):
    capsules, _ = inputs(key, 3, 3, 2, 4)
    layer = ConvCaps(2, 4, routing=EMRouting(), input_activation="length")
    params = init(layer, key, capsules)
    lengths = jnp.linalg.norm(capsules, axis=-1)
    expected = apply(layer, params, capsules, lengths).pose
    np.testing.assert_allclose(apply(layer, params, capsules).pose, expected, atol=1e-6)


def test_left_out_rows_change_nothing(key):
    capsules, _ = inputs(key, 6, 6, 2, 4)
    layer = ConvCaps(2, 4, 3, 2, drop_edge=True)
    params = init(layer, key, capsules)
    expected = apply(layer, params, capsules[:5, :5]).pose
    assert expected.shape == (2, 2, 2, 4)
    np.testing.assert_allclose(apply(layer, params, capsules).pose, expected, rtol=1e-6)


# ---- in other people's networks


class Own(nn.Module):
    """A network of somebody else's, with two layers of capsules above a convolution."""

    @nn.compact
    def __call__(self, image, is_training=False):
        features = nn.relu(nn.Conv(8, (3, 3))(image))
        capsules = squash(features.reshape(*features.shape[:-1], 2, 4))
        routed = ConvCaps(3, 4, 3, norm="batch")(capsules, is_training=is_training)
        return DenseCaps(5, 6)(*flatten_capsules(routed.pose))


@pytest.mark.slow
def test_a_network_of_nnx_keeps_its_state_in_bytes(key):
    image = draw(key, 2, 6, 6, 1)

    def made(seed):
        model = nnx.bridge.ToNNX(Own(), rngs=nnx.Rngs(seed))
        nnx.bridge.lazy_init(model, image)
        return model

    model, other = made(0), made(1)
    model(image, is_training=True, mutable=["batch_stats"])
    routed = model(image)
    assert routed.activation.shape == (2, 5)
    state = nnx.to_pure_dict(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    stored = flax.serialization.msgpack_serialize(jax.tree.map(np.asarray, state))
    restored = nnx.state(other, (nnx.Param, nnx.BatchStat))
    read = jax.tree.map(jnp.asarray, flax.serialization.msgpack_restore(stored))
    nnx.replace_by_pure_dict(restored, read)
    assert np.abs(other(image).pose - routed.pose).max() > 1e-4
    nnx.update(other, restored)
    np.testing.assert_array_equal(other(image).pose, routed.pose)


def test_the_stacks_of_the_page_have_ten_classes(key):
    found = {}
    for code in blocks("stacking.md"):
        exec(code, found)
    image = jnp.zeros((2, 28, 28, 1))
    for name in ("Stack", "MatrixCapsules"):
        network = found[name]()
        routed, _ = jax.eval_shape(network.init_with_output, key, image)
        assert routed.pose.shape == (2, 10, 16)
