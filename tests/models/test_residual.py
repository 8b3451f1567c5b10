"""The residual network: its sizes, its batch statistics, its place in a config."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capsjax import DEVICE_AXIS
from capsjax import config as configs
from capsjax.models import ResidualCapsNet, num_parameters
from capsjax.models.network import bind, check_output, init_variables

TINY = {"widths": (4, 8), "primary_types": 2, "primary_dim": 4, "class_dim": 4}


def shapes(network):
    """The shapes of its variables, by name."""
    init = functools.partial(init_variables, network)
    return jax.eval_shape(init, jax.random.key(0))


@pytest.mark.parametrize(
    ("shape", "num_classes"), [((128, 128, 3), 5), ((28, 28, 1), 10), ((33, 70, 4), 2)]
)
def test_it_fits_any_image_and_its_weights_grow_with_channels_and_classes_only(
    shape, num_classes
):
    network = ResidualCapsNet(shape, num_classes)
    variables = shapes(network)
    check_output(network, variables)
    stem = 7 * 7 * shape[-1] * 32
    # Two kernels of 3 x 3 a block, and a shortcut where the width changes; a scale and
    # an offset after each of them.
    blocks, norms = 2 * 9 * 32 * 32, 32 + 2 * 32
    for narrow, wide in ((32, 64), (64, 128), (128, 256)):
        blocks += 9 * narrow * wide + 9 * wide * wide + narrow * wide
        norms += 3 * wide
    head = 256 * 256 + 256 + num_classes * 32 * 8 * 16
    expected = stem + blocks + 2 * norms + head
    assert num_parameters(variables["params"]) == expected


def test_each_stage_but_the_first_halves_the_image():
    network = ResidualCapsNet((128, 96, 3), 5, widths=(4, 8, 16), num_blocks=2)

    def inside(variables):
        image = jnp.zeros((2, 128, 96, 3))
        return network.apply(
            *(variables, image), method="encode", capture_intermediates=True
        )[1]["intermediates"]

    seen = jax.eval_shape(inside, shapes(network))
    found = [seen[f"Convolution_{n}"]["__call__"][0].shape for n in (0, 4, 9, 14)]
    sizes = [(32, 24, 4), (32, 24, 4), (16, 12, 8), (8, 6, 16)]
    assert found == [(2, *size) for size in sizes]


@functools.cache
def tiny():
    network = ResidualCapsNet((12, 12, 3), 3, stem_stride=2, stem_kernel=3, **TINY)
    return network, jax.jit(functools.partial(init_variables, network))(
        jax.random.key(1)
    )


def test_a_block_starts_as_its_shortcut(key):
    network, variables = tiny()
    image = jax.random.uniform(key, (2, 12, 12, 3))

    def encode(variables):
        return network.apply(variables, image, method="encode").activation

    expected = jax.jit(encode)(variables)
    # The second kernel of the first block.
    params = dict(variables["params"])
    params["Convolution_2"] = jax.tree.map(lambda x: x + 1, params["Convolution_2"])
    np.testing.assert_array_equal(
        jax.jit(encode)({**variables, "params": params}), expected
    )


@pytest.mark.slow
@pytest.mark.numerics
def test_batch_statistics_are_those_of_all_devices(key):
    network, variables = tiny()
    image = jax.random.uniform(key, (8, 12, 12, 3))

    def trained(number):
        encode = functools.partial(
            network.apply, is_training=True, mutable=["batch_stats"], method="encode"
        )
        routed, moved = jax.pmap(
            encode,
            axis_name=DEVICE_AXIS,
            in_axes=(None, 0),
            devices=jax.devices()[:number],
        )(variables, image.reshape(number, -1, 12, 12, 3))
        return routed.activation.reshape(8, -1), moved

    one, moved = trained(1)
    assert np.abs(moved["batch_stats"]["BatchNorm_0"]["mean"]).max() > 0
    for number in (2, 4):
        many, also = trained(number)
        np.testing.assert_allclose(many, one, rtol=1e-4, atol=1e-7)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
            *(jax.tree.map(lambda x: x[-1], tree) for tree in (also, moved)),
        )


def test_flags_choose_it_and_set_its_fields():
    flags = [
        ("model", "residual"),
        ("model.widths", "(8,16)"),
        ("model.num_blocks", "2"),
    ]
    config = configs.override(configs.Config(), flags)
    assert config.model == ResidualCapsNet(widths=(8, 16), num_blocks=2)
    bound = bind(config.model, (64, 64, 3), 4)
    assert (bound.image_shape, bound.num_classes) == ((64, 64, 3), 4)


def test_no_stages_are_refused():
    with pytest.raises(ValueError, match=r"^widths must have a number for each stage"):
        shapes(ResidualCapsNet((12, 12, 3), 3, widths=()))
