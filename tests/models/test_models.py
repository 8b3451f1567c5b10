import functools
import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import errors, nnx
from marks import variants
from programs import apply, draw
from tiny import tiny_cnn

from capsjax import DynamicRouting
from capsjax import config as configs
from capsjax.losses import AutoLoss, fitting_loss
from capsjax.models import NETWORKS, BaselineCNN, CapsNet, num_parameters, prepare
from capsjax.models.network import bind, can_draw, init_variables
from capsjax.ops import mask_longest, split_mask

SMALL = {"conv_features": 8, "primary_types": 2, "decoder_features": (16,)}


def parameter_count(model):
    return num_parameters(
        jax.eval_shape(
            model.init, jax.random.key(0), jnp.zeros((1, *model.image_shape))
        )
    )


def test_the_papers_geometry_has_8215568_parameters():
    assert parameter_count(CapsNet((28, 28, 1), 10)) == 8_215_568


def test_the_routing_bias_adds_160_parameters():
    model = CapsNet((28, 28, 1), 10, routing=DynamicRouting(bias=0.1))
    assert parameter_count(model) == 8_215_568 + 160


@pytest.mark.parametrize(
    ("shape", "num_classes"),
    [((17, 24, 3), 4), pytest.param((33, 20, 2), 2, marks=pytest.mark.variant)],
)
def test_any_image_and_class_count_works(key, shape, num_classes):
    model = CapsNet(shape, num_classes, **SMALL)
    image = jax.random.uniform(key, (2, *shape))
    params = jax.jit(model.init)(key, image)
    routed, drawn = jax.jit(model.apply)(params, image)
    assert routed.pose.shape == (2, num_classes, 16)
    assert routed.activation.shape == (2, num_classes)
    assert drawn.shape == image.shape


def test_a_network_without_a_decoder_draws_nothing_and_may_share_its_matrices(key):
    model = CapsNet(
        (17, 17, 1), 4, share_weight=True, **{**SMALL, "decoder_features": None}
    )
    assert not can_draw(model)
    assert can_draw(model.clone(decoder_features=()))
    image = jax.random.uniform(key, (2, 17, 17, 1))
    variables = init_variables(model, key)
    assert set(variables["params"]) == {
        "conv",
        "conv_bias",
        "primary_caps",
        "class_caps",
    }
    assert variables["params"]["class_caps"]["weight"].shape == (4, 16, 8)
    routed, drawn = jax.eval_shape(model.apply, variables, image)
    assert (routed.pose.shape, drawn) == ((2, 4, 16), None)


def test_the_baseline_with_steps_has_smaller_features(key):
    model = tiny_cnn((17, 17, 1), conv_strides=(2, 3), conv_padding="VALID")
    params = jax.eval_shape(model.init, key, jnp.zeros((1, 17, 17, 1)))["params"]
    # 17 to 7, and 7 to 1.
    assert params["Dense_0"]["kernel"].shape == (8, 16)
    with pytest.raises(ValueError, match=r"conv_strides must be empty, .* got \(2,\)"):
        model.clone(conv_strides=(2,)).init(key, jnp.zeros((1, 17, 17, 1)))


@pytest.mark.parametrize("kind", [CapsNet, BaselineCNN])
def test_no_images_have_no_answers(key, kind):
    model = kind((17, 17, 1), 3, conv_features=(4,) if kind is BaselineCNN else 4)
    params = jax.eval_shape(model.init, key, jnp.zeros((1, 17, 17, 1)))
    found = jax.eval_shape(model.apply, params, jnp.zeros((0, 17, 17, 1)))
    assert {leaf.shape[0] for leaf in jax.tree.leaves(found)} == {0}
    assert len(jax.tree.leaves(found)) == (1 if kind is BaselineCNN else 3)


def test_too_small_an_image_is_refused_with_the_smallest_size(key):
    model = CapsNet((16, 28, 1), 10, **SMALL)
    with pytest.raises(ValueError, match=r"16x28 is too small .* smallest is 17x17"):
        model.init(key, jnp.zeros((1, 16, 28, 1)))
    smallest = CapsNet((17, 17, 1), 10, **SMALL)
    jax.eval_shape(smallest.init, key, jnp.zeros((1, 17, 17, 1)))


def test_an_image_of_another_shape_is_refused(key):
    model = CapsNet((28, 28, 1), 10, **SMALL)
    with pytest.raises(
        ValueError, match=r"images of shape \(28, 28, 1\), got \(28, 28, 3"
    ):
        model.init(key, jnp.zeros((1, 28, 28, 3)))


def test_inference_reconstructs_from_the_longest_capsule(key):
    model = CapsNet((17, 17, 1), 4, **SMALL)
    image = jax.random.uniform(key, (5, 17, 17, 1))
    params = jax.jit(model.init)(key, image)
    routed, drawn = apply(model, params, image)
    mask = np.eye(4, dtype=np.float32)[np.argmax(routed.activation, axis=-1)]
    np.testing.assert_array_equal(mask_longest(routed.activation), mask)
    _, expected = apply(model, params, image, mask)
    np.testing.assert_array_equal(drawn, expected)
    _, from_other = apply(model, params, image, np.roll(mask, 1, axis=-1))
    assert np.abs(from_other - drawn).max() > 0


def test_a_mask_lets_through_as_many_of_the_longest_as_its_count():
    length = jnp.array([[0.3, 0.9, 0.1, 0.5], [0.2, 0.2, 0.2, 0.2]])
    assert mask_longest(length, 2).tolist() == [[0, 1, 0, 1], [1, 1, 0, 0]]
    each = mask_longest(length, jnp.array([3, 0]))
    assert each.tolist() == [[1, 1, 0, 1], [0, 0, 0, 0]]


def test_a_mask_is_split_in_the_order_of_the_classes():
    mask = jnp.array([[0.0, 1, 0, 1], [1, 0, 0, 1]])
    expected = [[[0, 1, 0, 0], [0, 0, 0, 1]], [[1, 0, 0, 0], [0, 0, 0, 1]]]
    assert split_mask(mask, 2).tolist() == expected


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        (
            "model",
            "cnnn",
            f"must be one of {', '.join(NETWORKS)}, got 'cnnn'; did you mean cnn?",
        ),
        ("model.routing", "emm", "must be one of dynamic, uniform, "),
        ("model.decoder_init", "he", "must be one of glorot_uniform, he_normal, "),
    ],
)
def test_an_unknown_name_in_a_config_is_refused_with_its_field(field, text, message):
    with pytest.raises(configs.ConfigError) as refused:
        configs.override(configs.Config(), [(field, text)])
    assert str(refused.value).startswith(f"config.{field} {message}")
    assert repr(text) in str(refused.value)


def test_an_unknown_initializer_of_a_network_is_refused_with_the_known_ones(key):
    network = CapsNet((17, 17, 1), 3, decoder_init="he", **SMALL)
    with pytest.raises(ValueError, match="unknown initializer 'he'; choose from glo"):
        jax.eval_shape(functools.partial(init_variables, network), key)


def test_class_capsules_start_short_enough_to_learn():
    # At lengths of 0.5 the first epochs make half as many errors again.
    model = bind(configs.Config().model, (28, 28, 1), 10)
    image = jax.random.uniform(jax.random.key(1), (2, 28, 28, 1))
    params = jax.jit(model.init)(jax.random.key(0), image)
    length = jax.jit(lambda p, x: model.apply(p, x, method=model.encode))(params, image)
    assert 1e-4 < length.activation.mean() < 0.2


SHAPE = (9, 12, 2)
SMALLEST = CapsNet(
    SHAPE,
    3,
    conv_features=6,
    conv_kernel=3,
    primary_types=2,
    primary_dim=4,
    primary_kernel=3,
    class_dim=5,
    decoder_features=(7, 11),
    # Long capsules and biases that matter.
    conv_init="normal(0.3)",
    primary_init="normal(0.3)",
    weight_init="normal(1.0)",
    bias_init="normal(0.3)",
)


def smallest(key, **fields):
    """Makes a network of 24 primary capsules, its weights, and two images."""
    model = SMALLEST.clone(**fields)
    image = jax.random.uniform(key, (2, *SHAPE))
    return model, jax.jit(model.init)(key, image), image


def drawn_weights(key, model):
    """Draws weights of the network's shapes, of which all matter."""
    shapes = jax.eval_shape(functools.partial(init_variables, model), key)
    return jax.tree.map(lambda leaf: 0.4 * draw(key, *leaf.shape), shapes)


def in_float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("routing.num_iterations", "1"),
        ("routing", "uniform"),
        ("primary_relu", "true"),
        ("primary_scale", "0.5"),
        ("routing.bias", "0.5"),
        ("routing.none_of_the_above", "true"),
        ("decoder_features", "(8,)"),
    ],
)
def test_a_network_computes_by_the_fields_of_its_config(key, field, text):
    config = configs.Config(model=SMALLEST.clone(image_shape=(0, 0, 0), num_classes=0))
    config = configs.override(config, [(f"model.{field}", text)])
    model = bind(config.model, SHAPE, 3)
    image = np.abs(draw(key, 2, *SHAPE))
    params = drawn_weights(key, model)
    mask = np.eye(3, dtype=np.float32)[[0, 2]]
    routed, drawn = jax.jit(model.apply)(params, image, mask)
    weights = in_float64(params["params"])
    assert weights["conv"]["kernel"].shape == (3, 3, 2, 6)
    assert weights["primary_caps"]["conv"]["kernel"].shape == (3, 3, 6, 8)
    assert weights["class_caps"]["weight"].shape == (24, 3, 5, 4)
    assert ("bias" in weights["class_caps"]) == (field == "routing.bias")
    widths = [len(layer["bias"]) for layer in weights["decoder"].values()]
    hidden = (8,) if field == "decoder_features" else (7, 11)
    assert widths == [*hidden, 9 * 12 * 2]
    for n in range(2):
        pose = reference.encode(weights, in_float64(image[n]), model)
        np.testing.assert_allclose(routed.pose[n], pose, rtol=1e-5, atol=1e-6)
        pixels = reference.decode(weights, pose, mask[n]).reshape(SHAPE)
        np.testing.assert_allclose(drawn[n], pixels, rtol=1e-5, atol=1e-6)
        if field != "decoder_features":
            other = reference.encode(weights, in_float64(image[n]), SMALLEST)
            assert np.abs(pose - other).max() > 0.01


def test_stop_gradient_changes_the_gradient_and_nothing_else(key):
    value, gradient = {}, {}
    for stop in (False, True):
        model, params, image = smallest(key, routing=DynamicRouting(stop_gradient=stop))

        def total(params, model=model, image=image):
            return model.apply(params, image, method=model.encode).activation.sum()

        value[stop], gradient[stop] = jax.jit(jax.value_and_grad(total))(params)
    np.testing.assert_allclose(value[True], value[False], rtol=1e-6)
    weights = in_float64(params["params"])
    direction = np.random.default_rng(0).normal(size=(24, 3, 5, 4))

    def total_after(step):
        moved = {"weight": weights["class_caps"]["weight"] + step * direction}
        poses = [
            reference.encode(
                {**weights, "class_caps": moved}, in_float64(one), SMALLEST
            )
            for one in image
        ]
        return np.linalg.norm(poses, axis=-1).sum()

    slope = (total_after(1e-5) - total_after(-1e-5)) / 2e-5
    through, stopped = (
        np.vdot(gradient[stop]["params"]["class_caps"]["weight"], direction)
        for stop in (False, True)
    )
    np.testing.assert_allclose(through, slope, rtol=1e-4)
    assert abs(stopped / slope - 1) > 0.01


def test_the_compute_type_reaches_every_large_product(key):
    single, params, image = smallest(key)
    mixed, _, _ = smallest(key, compute_dtype="bfloat16")
    features = jax.random.uniform(key, (2, 7, 10, 6))
    pose, mask = jax.random.normal(key, (2, 3, 5)), jnp.ones((2, 3))
    for product in (
        lambda net: net.conv(image),
        lambda net: net.primary_caps(features),
        lambda net: net.decode(pose, mask),
    ):
        expected, actual = (
            np.asarray(jax.jit(functools.partial(net.apply, method=product))(params))
            for net in (single, mixed)
        )
        assert actual.dtype == np.float32
        assert 1e-4 < np.abs(actual - expected).max() / np.abs(expected).max() < 0.03


def test_every_initializer_of_a_config_reaches_its_own_weights(key):
    _, params, _ = smallest(
        key,
        conv_init="constant(1)",
        primary_init="constant(2)",
        weight_init="constant(3)",
        decoder_init="constant(4)",
        reconstruction_init="constant(5)",
        bias_init="constant(6)",
        routing=DynamicRouting(bias=7.0),
    )
    values = jax.tree.map(lambda leaf: np.unique(leaf).tolist(), params["params"])
    assert values == {
        "conv": {"kernel": [1]},
        "conv_bias": [6],
        "primary_caps": {"conv": {"kernel": [2]}, "bias": [6]},
        "class_caps": {"weight": [3], "bias": [7]},
        "decoder": {
            "Dense_0": {"kernel": [4], "bias": [6]},
            "Dense_1": {"kernel": [4], "bias": [6]},
            "Dense_2": {"kernel": [5], "bias": [6]},
        },
    }


def test_every_initializer_of_the_baseline_reaches_its_own_weights(key):
    model = tiny_cnn(
        (6, 6, 1),
        kernel_init="constant(1)",
        output_init="constant(2)",
        bias_init="constant(3)",
    )
    params = jax.jit(model.init)(key, jnp.zeros((1, 6, 6, 1)))["params"]
    assert jax.tree.map(lambda leaf: np.unique(leaf).tolist(), params) == {
        "conv0": {"kernel": [1]},
        "conv0_bias": [3],
        "conv1": {"kernel": [1]},
        "conv1_bias": [3],
        "Dense_0": {"kernel": [1], "bias": [3]},
        "Dense_1": {"kernel": [1], "bias": [3]},
        "Dense_2": {"kernel": [2], "bias": [3]},
    }


def test_bfloat16_changes_products_but_not_parameters_or_results(key):
    image = jax.random.uniform(key, (2, 17, 17, 1))
    single = CapsNet((17, 17, 1), 4, **SMALL)
    mixed = CapsNet((17, 17, 1), 4, compute_dtype="bfloat16", **SMALL)
    params = jax.jit(mixed.init)(key, image)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    routed, drawn = jax.jit(mixed.apply)(params, image)
    expected, expected_drawn = jax.jit(single.apply)(params, image)
    assert routed.pose.dtype == drawn.dtype == jnp.float32
    np.testing.assert_allclose(routed.pose, expected.pose, rtol=0.1, atol=1e-2)
    np.testing.assert_allclose(drawn, expected_drawn, atol=1e-2)
    assert np.abs(routed.pose - expected.pose).max() > 0


@pytest.mark.parametrize("compute_dtype", ["float32", *variants("bfloat16")])
def test_a_prepared_network_answers_as_an_unprepared_one(key, compute_dtype):
    model = CapsNet((20, 20, 3), 4, compute_dtype=compute_dtype, **SMALL)
    image = jax.random.uniform(key, (50, 20, 20, 3))
    params = jax.jit(model.init)(key, image)
    expected = jax.jit(lambda p, x: model.apply(p, x, method=model.encode))(
        params, image
    )
    predict = prepare(model, params, batch_size=50)
    np.testing.assert_allclose(predict(image).pose, expected.pose, rtol=1e-4, atol=1e-6)
    one = predict(image[:1]).activation
    np.testing.assert_allclose(one, expected.activation[:1], rtol=0.02, atol=1e-3)
    assert "prepared" not in params


def test_a_prepared_baseline_answers_as_an_unprepared_one(key):
    model = tiny_cnn((12, 10, 3))
    image = jax.random.uniform(key, (50, 12, 10, 3))
    params = jax.jit(model.init)(key, image)
    expected = jax.jit(model.apply)(params, image)
    routed = prepare(model, params, batch_size=50)(image)
    np.testing.assert_allclose(
        routed.activation, expected.activation, rtol=1e-4, atol=1e-5
    )
    assert (routed.pose, routed.coupling) == (None, None)


@pytest.mark.slow
def test_the_network_is_an_nnx_module_through_flaxs_bridge(key):
    image = jax.random.uniform(key, (2, 17, 17, 1))
    network = CapsNet((17, 17, 1), 4, **SMALL)
    model = nnx.bridge.ToNNX(network, rngs=nnx.Rngs(0))
    nnx.bridge.lazy_init(model, image)
    assert isinstance(model, nnx.Module)
    # All weights are its parameters, and nothing else is.
    graph, weights, others = nnx.split(model, nnx.Param, ...)
    params = nnx.to_pure_dict(weights)
    shapes = jax.eval_shape(network.init, key, image)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    # It computes what the Linen module computes, and has the same gradient.
    call = nnx.jit(lambda net, image: net(image))
    for actual, expected in zip(
        jax.tree.leaves(call(model, image)),
        jax.tree.leaves(jax.jit(network.apply)({"params": params}, image)),
        strict=True,
    ):
        np.testing.assert_array_equal(actual, expected)

    def error(drawn):
        return jnp.sum((drawn - image) ** 2)

    gradient = nnx.to_pure_dict(
        nnx.jit(nnx.grad(lambda net: error(net(image)[1])))(model)
    )
    expected = jax.jit(
        jax.grad(lambda p: error(network.apply({"params": p}, image)[1]))
    )
    expected = expected(params)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
        gradient,
        expected,
    )
    assert np.abs(gradient["conv"]["kernel"]).max() > 0
    # Other weights of the NNX module are those that compute.
    other = nnx.merge(graph, jax.tree.map(jnp.zeros_like, weights), others)
    assert not call(other, image)[0].pose.any()


def test_the_baseline_has_the_papers_35_million_parameters():
    convolutions = [
        5 * 5 * 1 * 256 + 256,
        5 * 5 * 256 * 256 + 256,
        5 * 5 * 256 * 128 + 128,
    ]
    dense = [28 * 28 * 128 * 328 + 328, 328 * 192 + 192, 192 * 10 + 10]
    count = sum(convolutions) + sum(dense)
    assert round(count / 1e6, 1) == 35.4  # The paper, section 5.
    config = configs.override(configs.Config(), [("model", "cnn")])
    model = bind(config.model, (28, 28, 1), 10)
    assert parameter_count(model) == count == 35_445_522


def test_the_baseline_is_convolutions_hidden_layers_and_a_softmax(key):
    model = tiny_cnn((9, 7, 2), bias_init=jax.nn.initializers.normal(0.5))
    image = jax.random.normal(key, (3, 9, 7, 2))
    variables = jax.jit(model.init)(key, image)
    weights = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64), variables["params"]
    )
    hidden = np.asarray(image, np.float64)
    for n in (0, 1):
        kernel, bias = weights[f"conv{n}"]["kernel"], weights[f"conv{n}_bias"]
        padded = np.pad(hidden, ((0, 0), (2, 2), (2, 2), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), (1, 2))
        hidden = np.einsum("nhwcyx,yxcd->nhwd", windows, kernel) + bias
        hidden = np.maximum(hidden, 0)
    hidden = hidden.reshape(3, -1)
    for n in (0, 1, 2):
        layer = weights[f"Dense_{n}"]
        hidden = hidden @ layer["kernel"] + layer["bias"]
        hidden = np.maximum(hidden, 0) if n < 2 else hidden
    actual = jax.jit(model.apply)(variables, image)
    np.testing.assert_allclose(actual.activation, hidden, rtol=1e-4, atol=1e-5)
    assert (actual.pose, actual.coupling) == (None, None)
    # The softmax is part of the loss.
    loss = fitting_loss(AutoLoss(), model.activation_kind)
    softmax = np.exp(hidden) / np.exp(hidden).sum(-1, keepdims=True)
    for label in (0, 9):
        each = loss(actual.activation, jnp.full(3, label))
        np.testing.assert_allclose(each, -np.log(softmax[:, label]), rtol=1e-4)


def hidden_of(model, variables, image, *, is_training=False, rngs=None):
    """Computes the last hidden units, after the dropout, and the logits."""

    def captured(variables, image, rngs):
        return model.apply(
            variables,
            image,
            capture_intermediates=lambda module, _: isinstance(module, nn.Dropout),
            rngs=rngs,
            is_training=is_training,
        )

    routed, state = jax.jit(captured)(variables, image, rngs)
    (hidden,) = state["intermediates"]["Dropout_0"]["__call__"]
    return np.asarray(hidden), np.asarray(routed.activation)


def test_dropout_leaves_out_the_last_hidden_units_and_scales_the_others(key):
    # With these weights all units are above zero.
    starts = {"kernel_init": "normal(0.01)", "bias_init": "constant(5)"}
    model = tiny_cnn((9, 7, 2), dropout=0.25, **starts)
    image = jax.random.uniform(key, (1000, 9, 7, 2))
    variables = jax.jit(model.init)(key, image)
    whole, logits = hidden_of(model, variables, image)
    assert whole.shape == (1000, 12)
    assert whole.min() > 0
    drawn = {"is_training": True, "rngs": {"dropout": jax.random.key(1)}}
    left, dropped_logits = hidden_of(model, variables, image, **drawn)
    is_kept = left > 0
    np.testing.assert_allclose(left, np.where(is_kept, whole / 0.75, 0), rtol=1e-6)
    # Five standard deviations of 12,000 draws.
    assert abs(is_kept.mean() - 0.75) < 5 * (0.25 * 0.75 / 12_000) ** 0.5
    # Each image and each unit has draws of its own.
    assert 0 < np.ptp(is_kept.mean(0)) < 0.15
    assert len(np.unique(is_kept, axis=0)) > 200
    # The logits are those of the units that are left.
    last = in_float64(variables["params"]["Dense_2"])
    for hidden, actual in ((whole, logits), (left, dropped_logits)):
        expected = hidden @ last["kernel"] + last["bias"]
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_dropout_is_drawn_from_its_key_and_in_training_alone(key):
    model = tiny_cnn((9, 7, 2), dropout=0.25)
    image = jax.random.normal(key, (3, 9, 7, 2))
    variables = jax.jit(model.init)(key, image)

    def logits(seed=None, *, is_training=False, model=model):
        rngs = {} if seed is None else {"dropout": jax.random.key(seed)}
        call = functools.partial(model.apply, is_training=is_training)
        return jax.jit(call)(variables, image, rngs=rngs).activation

    np.testing.assert_array_equal(logits(), logits(1))
    one = logits(1, is_training=True)
    np.testing.assert_array_equal(one, logits(1, is_training=True))
    assert np.abs(one - logits(2, is_training=True)).max() > 0
    assert np.abs(one - logits()).max() > 0
    with pytest.raises(errors.InvalidRngError):
        logits(is_training=True)
    everything = tiny_cnn((9, 7, 2), dropout=0.0)
    trained = logits(1, is_training=True, model=everything)
    np.testing.assert_array_equal(trained, logits())


def test_the_baseline_of_a_config_has_its_dropout_and_compute_type(key):
    flags = {
        "model": "cnn",
        "model.dropout": "0.2",
        "model.compute_dtype": "bfloat16",
        "model.bias_init": "constant(0.1)",
    }
    config = configs.override(configs.Config(), list(flags.items()))
    model = bind(config.model, (6, 6, 1), 3)
    assert (model.dropout, model.compute_dtype) == (0.2, "bfloat16")
    image = jax.random.uniform(key, (4, 6, 6, 1))
    variables = jax.jit(model.init)(key, image)
    np.testing.assert_array_equal(variables["params"]["conv1_bias"], np.float32(0.1))
    exact = apply(model.clone(compute_dtype="float32"), variables, image).activation
    error = np.abs(apply(model, variables, image).activation - exact).max()
    assert 1e-4 < error / np.abs(exact).max() < 0.03
    drawn = {"is_training": True, "rngs": {"dropout": key}}
    hidden, _ = hidden_of(model, variables, image, **drawn)
    whole, _ = hidden_of(model, variables, image)
    is_kept = hidden > 0
    np.testing.assert_allclose(hidden[is_kept], whole[is_kept] / 0.8, rtol=1e-6)
    with pytest.raises(ValueError, match=r"images of shape \(6, 6, 1\), got \(6, 7, 1"):
        model.apply(variables, jnp.zeros((1, 6, 7, 1)))


def test_images_of_bytes_are_refused_as_scale_to_unit_would_say():
    """In a process of its own, without the tests' type checks."""
    code = """
import jax, numpy as np
from capsjax.layers import Convolution, PrimaryCaps
from capsjax.models import BaselineCNN, CapsNet
from capsjax.data.augment import scale_to_unit

image = np.full((1, 20, 20, 1), 128, np.uint8)
for module in (
    CapsNet((20, 20, 1), 3, conv_features=2, primary_types=1),
    BaselineCNN((20, 20, 1), 3, conv_features=(2,), hidden_features=(2,)),
    Convolution(2, 3),
    PrimaryCaps(1, 2, 3),
):
    weights = jax.jit(module.init)(jax.random.key(0), scale_to_unit(image))
    try:
        module.apply(weights, image)
    except TypeError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    expected = (
        "image is uint8, and must be floating-point numbers from 0 to 1: "
        "capsjax.data.augment.scale_to_unit makes them of uint8."
    )
    assert done.stdout.splitlines() == 4 * [expected]
