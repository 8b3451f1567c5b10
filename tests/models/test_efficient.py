"""Efficient-CapsNet beside its authors' numbers and a transcription in NumPy."""

import functools

import jax
import numpy as np
import pytest
import reference
from programs import draw
from self_attention import exponential_squash, self_attention

from capsjax import config as configs
from capsjax.losses import margin_loss
from capsjax.models import EfficientCapsNet, num_parameters, prepare
from capsjax.models.network import check_output, has_stages, init_variables
from capsjax.runtime.devices import AXIS

SHAPE = (13, 12, 2)
SMALL = EfficientCapsNet(
    SHAPE,
    3,
    conv_features=(3, 4),
    primary_types=5,
    primary_dim=4,
    class_dim=6,
    decoder_features=(7,),
)


def shapes_of(model):
    return jax.eval_shape(functools.partial(init_variables, model), jax.random.key(0))


def drawn_variables(key, model=SMALL):
    """Draws weights and statistics of the network's shapes, of which all matter."""
    shapes = shapes_of(model)
    variables = jax.tree.map(lambda leaf: 0.4 * draw(key, *leaf.shape), shapes)
    for statistics in variables["batch_stats"].values():
        statistics["norm"]["var"] = 0.5 + np.abs(statistics["norm"]["var"])
    return variables


def test_the_parameters_are_as_many_as_the_authors():
    # Their layers, counted by hand; the paper prints the sum of the first part.
    convolutions = 832 + 18_496 + 36_928 + 73_856
    norms = 2 * (32 + 64 + 64 + 128)
    depthwise, class_caps = 81 * 128 + 128, 10 * 16 * (8 * 16 + 1)
    encoder = convolutions + norms + depthwise + class_caps
    decoder = 161 * 512 + 513 * 1024 + 1025 * 784
    assert (encoder, decoder) == (161_824, 1_411_344)
    params = shapes_of(EfficientCapsNet((28, 28, 1), 10))["params"]
    assert num_parameters(params["decoder"]) == decoder
    assert num_parameters(params) == encoder + decoder


def encoded(variables, image, network):
    """Returns primary capsules [i, c] and poses [j, d] of one image, by loops."""
    own, hidden = variables["params"], image
    num_convs = len(network.conv_features) + 1
    for n in range(num_convs):
        layer = own[f"convs_{n}"]
        stride = 2 if n == num_convs - 1 else 1
        hidden = reference.convolve(hidden, layer["conv"]["kernel"], stride)
        hidden = np.maximum(0, hidden + layer["bias"])
        seen = variables["batch_stats"][f"convs_{n}"]["norm"]
        hidden = (hidden - seen["mean"]) / np.sqrt(seen["var"] + 0.001)
        hidden = hidden * layer["norm"]["scale"] + layer["norm"]["bias"]
    assert hidden.shape == own["primary_kernel"][:, :, 0].shape
    s = [
        np.sum(hidden[..., n] * own["primary_kernel"][..., 0, n])
        for n in range(hidden.shape[-1])
    ] + own["primary_bias"]
    dim = network.primary_dim
    starts = range(0, len(s), dim)
    capsules = [exponential_squash(s[start : start + dim]) for start in starts]
    dense = own["class_caps"]
    votes = [
        [matrix @ capsule for matrix in matrices]
        for matrices, capsule in zip(dense["weight"], capsules, strict=True)
    ]
    pose, _ = self_attention(votes, bias=dense["bias"])
    return np.stack(capsules), pose


def test_it_computes_the_equations_of_the_paper(key):
    variables, image = drawn_variables(key), np.abs(draw(key, 2, *SHAPE))
    routed = jax.jit(functools.partial(SMALL.apply, method=SMALL.encode))
    routed = routed(variables, image)
    primary = jax.jit(functools.partial(SMALL.apply, method=SMALL.primary))
    primary = primary(variables, image)
    assert primary.shape == (2, 1, 1, 5, 4)
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    for n in range(2):
        capsules, pose = encoded(exact, np.asarray(image[n], np.float64), SMALL)
        np.testing.assert_allclose(primary[n, 0, 0], capsules, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(routed.pose[n], pose, rtol=1e-4, atol=1e-6)
    lengths = np.linalg.norm(routed.pose, axis=-1)
    np.testing.assert_allclose(routed.activation, lengths, rtol=1e-5)
    # Statistics are variables beside the weights, for ``prepare`` too.
    prepared = prepare(SMALL, variables, batch_size=2)(image)
    np.testing.assert_allclose(prepared.pose, routed.pose, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(11, 11, 1), (12, 30, 3), (128, 96, 3)])
def test_the_depthwise_kernel_fits_the_last_map_of_any_image(shape):
    model = EfficientCapsNet(shape, 4)
    shapes = shapes_of(model)
    check_output(model, shapes)
    height, width = ((side - 11) // 2 + 1 for side in shape[:2])
    kernel = shapes["params"]["primary_kernel"]
    assert kernel.shape == (height, width, 1, 128)
    assert has_stages(model)
    window, step = model.primary_window
    # As many windows fit into the image as there are positions: one.
    assert [(side - window) // step for side in shape[:2]] == [0, 0]


def test_too_small_an_image_is_refused_with_the_smallest_size():
    message = r"10x28 is too small for 4 convolutions, .* smallest is 11x11\. Choose"
    with pytest.raises(ValueError, match=message):
        shapes_of(EfficientCapsNet((10, 28, 1), 10))
    shapes_of(EfficientCapsNet((9, 9, 1), 10, conv_features=(8, 8)))


def trained_on(devices, variables, image, label):
    """The gradient of a training step on so many devices, and the new statistics."""

    def step(variables, image, label):
        def loss(params):
            routed, kept = SMALL.apply(
                {**variables, "params": params},
                image,
                is_training=True,
                method=SMALL.encode,
                mutable=["batch_stats"],
            )
            return margin_loss(routed.activation, label).mean(), kept

        gradient, kept = jax.grad(loss, has_aux=True)(variables["params"])
        return jax.lax.pmean(gradient, AXIS), kept["batch_stats"]

    mapped = jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0, 0),
        out_axes=None,
        devices=jax.devices()[:devices],
    )
    image, label = (x.reshape(devices, -1, *x.shape[1:]) for x in (image, label))
    return mapped(variables, image, label)


def test_four_devices_have_the_gradient_and_the_statistics_of_one(key):
    variables, image = drawn_variables(key), np.abs(draw(key, 8, *SHAPE))
    label = np.arange(8) % 3
    one = trained_on(1, variables, image, label)
    four = trained_on(4, variables, image, label)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), four, one
    )
    gradient, statistics = one
    for name, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        is_used = "decoder" not in jax.tree_util.keystr(name)
        assert np.isfinite(leaf).all()
        assert (np.abs(leaf).max() > 0) == is_used, name
    # Keras's momentum of 0.99.
    first = variables["params"]["convs_0"]
    hidden = [reference.convolve(one, first["conv"]["kernel"]) for one in image]
    hidden = np.maximum(0, hidden + first["bias"])
    before = variables["batch_stats"]["convs_0"]["norm"]["mean"]
    np.testing.assert_allclose(
        statistics["convs_0"]["norm"]["mean"],
        0.99 * before + 0.01 * hidden.mean((0, 1, 2)),
        rtol=1e-4,
    )


def test_a_config_makes_it_with_another_routing():
    words = [("model", "efficient"), ("model.routing", "em")]
    model = configs.override(configs.Config(), words).model
    assert type(model) is EfficientCapsNet
    model = model.clone(image_shape=SHAPE, num_classes=3)
    check_output(model, shapes_of(model))
