"""A network of any size starts as the paper's network starts, whose weights stay."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capsjax import config as configs
from capsjax.config import former
from capsjax.data import load
from capsjax.initializers import CLASS_LENGTH, PRIMARY_LENGTH
from capsjax.layers import DenseCaps, PrimaryCaps
from capsjax.models import CapsNet
from capsjax.models.network import bind, init_variables
from capsjax.ops import safe_norm

# Of the class capsules of the paper's network, over 64 digits and seeds 0 to 2.
PAPERS_MEAN_LENGTH = 0.0084


def digits(size=28, channels=1):
    """Eight digits with pixels from 0 to 1."""
    image = np.float32(load("mnist", "test").image[:8]) / 255
    if size != 28:
        image = np.asarray(jax.image.resize(image, (8, size, size, 1), "linear"))
    return jnp.asarray(np.repeat(image, channels, axis=-1))


def root_mean_square(length):
    return float(np.sqrt(np.mean(length**2)))


def starting_lengths(model, image):
    """The lengths of primary and class capsules at the start, over two seeds."""

    def lengths(key):
        params = model.init(key, image[:1])
        primary = model.apply(params, image, method=model.primary)
        routed = model.apply(params, primary, method=model.route)
        return safe_norm(primary), routed.activation

    both = [jax.jit(lengths)(jax.random.key(seed)) for seed in range(2)]
    return jax.tree.map(lambda *parts: np.stack(parts), *both)


@pytest.mark.slow
def test_the_papers_network_starts_at_the_very_bits_of_its_normal_weights(key):
    assert former.INITIALIZERS == {
        "conv_init": "normal(0.064)",
        "primary_init": "normal(0.0098)",
        "weight_init": "normal(0.02)",
    }
    default = CapsNet(decoder_features=(1,))
    assert default.conv_init == default.primary_init == default.weight_init == "scaled"
    normal, scaled = (
        jax.jit(functools.partial(init_variables, bind(network, (28, 28, 1), 10)))(key)
        for network in (default.clone(**former.INITIALIZERS), default)
    )
    direct = CapsNet((28, 28, 1), 10, decoder_features=(1,))
    of_flax = jax.jit(direct.init)(key, jnp.zeros((1, 28, 28, 1)))
    for variables in (scaled, of_flax):
        jax.tree.map(np.testing.assert_array_equal, variables, normal)


@pytest.mark.slow
def test_the_constants_are_the_lengths_of_the_papers_network():
    primary, classes = starting_lengths(CapsNet((28, 28, 1), 10), digits())
    assert root_mean_square(primary) == pytest.approx(PRIMARY_LENGTH, rel=0.15)
    assert root_mean_square(classes) == pytest.approx(CLASS_LENGTH, rel=0.3)
    assert float(classes.mean()) == pytest.approx(PAPERS_MEAN_LENGTH, rel=0.3)


NARROW = {"conv_features": 16, "primary_types": 2}
THIN = {"conv_features": 4, "primary_stride": 4}


# Where kernels are small, many primary capsules see nothing but the black ground.
@pytest.mark.parametrize(
    ("image", "options"),
    [
        ((28, 3), NARROW | {"conv_kernel": 3}),
        ((28, 1), NARROW | {"primary_dim": 4, "class_dim": 4, "primary_stride": 4}),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ((28, 1), {"conv_features": 512, "primary_types": 1}),
                ((64, 1), NARROW | {"conv_kernel": 5, "primary_kernel": 5}),
                ((28, 1), NARROW | {"primary_dim": 64, "primary_kernel": 3}),
                ((28, 1), THIN | {"primary_types": 64}),
                ((28, 1), NARROW | {"primary_scale": 1 / 32}),
            )
        ),
        *(
            pytest.param((28, 1), NARROW | kernels, marks=pytest.mark.variant)
            for first, second in [(9, 3), (3, 3), (3, 9), (5, 5), (9, 9)]
            for kernels in [{"conv_kernel": first, "primary_kernel": second}]
        ),
    ],
    ids=str,
)
def test_a_network_of_any_size_starts_with_capsules_as_long_as_the_papers(
    image, options
):
    image = digits(*image)
    primary, classes = starting_lengths(CapsNet(image.shape[1:], 10, **options), image)
    assert PRIMARY_LENGTH / 2 < root_mean_square(primary) < PRIMARY_LENGTH * 2
    assert PAPERS_MEAN_LENGTH / 3 < float(classes.mean()) < PAPERS_MEAN_LENGTH * 3


def start_stack(layers, num_inputs, dim, input_length):
    """The mean length of the last of several layers of capsules, over some seeds."""
    num_images, num_seeds = (4, 3) if num_inputs <= 4000 else (1, 1)

    def mean_length(key):
        input_key, *keys = jax.random.split(key, len(layers) + 1)
        pose = jax.random.normal(input_key, (num_images, num_inputs, dim))
        pose = input_length * pose / safe_norm(pose, keepdims=True)
        for layer, layer_key in zip(layers, keys, strict=True):
            pose = layer.init_with_output(layer_key, pose)[0].pose
        return safe_norm(pose).mean()

    starts = [jax.jit(mean_length)(jax.random.key(seed)) for seed in range(num_seeds)]
    return float(np.mean(starts))


@pytest.mark.parametrize(
    ("num_inputs", "dim", "num_capsules", "class_dim", "input_length"),
    [
        (8, 4, 10, 16, PRIMARY_LENGTH),
        (8, 4, 1000, 4, PRIMARY_LENGTH),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (8, 64, 2, 4, 0.9),
                (400, 8, 10, 64, 0.1),
                (4000, 8, 2, 4, PRIMARY_LENGTH),
            )
        ),
        *(
            pytest.param(*case, marks=pytest.mark.variant)
            for case in (
                (8, 8, 1000, 16, PRIMARY_LENGTH),
                (100, 4, 1000, 4, 0.01),
                (400, 8, 100, 4, 0.01),
                (100_000, 8, 10, 16, PRIMARY_LENGTH),
            )
        ),
    ],
)
def test_class_capsules_of_any_inputs_start_as_long_as_the_papers(
    num_inputs, dim, num_capsules, class_dim, input_length
):
    layer = DenseCaps(num_capsules, class_dim, input_length=input_length)
    start = start_stack([layer], num_inputs, dim, input_length)
    assert PAPERS_MEAN_LENGTH / 3 < start < PAPERS_MEAN_LENGTH * 3


@pytest.mark.parametrize(
    "hidden",
    [
        [(32, 12), (16, 8)],
        *(
            pytest.param(one, marks=pytest.mark.variant)
            for one in ([(32, 12)], [(8, 64)], [(64, 4)])
        ),
    ],
    ids=str,
)
def test_the_last_of_several_layers_starts_as_long_as_a_single_one(hidden):
    length, layers = PrimaryCaps.start_length, []
    for num_capsules, dim in [*hidden, (10, 16)]:
        layers.append(DenseCaps(num_capsules, dim, input_length=length))
        length = DenseCaps.start_length
    start = start_stack(layers, 392, 8, PrimaryCaps.start_length)
    assert PAPERS_MEAN_LENGTH / 3 < start < PAPERS_MEAN_LENGTH * 3


@pytest.mark.parametrize("length", [0.0, -1.0, float("nan"), float("inf")])
def test_an_input_length_that_is_none_is_refused(key, length):
    message = f"input_length must be .* a finite number above 0; got {length}"
    with pytest.raises(ValueError, match=message):
        DenseCaps(3, 4, input_length=length).init(key, jnp.ones((1, 5, 2)))


def test_only_what_has_a_size_to_scale_by_can_be_scaled(key):
    def init(**fields):
        network = CapsNet((28, 28, 1), 10, decoder_features=(1,), **fields)
        jax.eval_shape(functools.partial(init_variables, network), key)

    def require(**fields):
        configs.validate(configs.Config(model=CapsNet(**fields)))

    for start, fields, last in (
        (
            "scaled",
            ("decoder_init", "reconstruction_init", "bias_init"),
            r"truncated_normal\(NUMBER\)",
        ),
        ("scald", ("conv_init", "primary_init", "weight_init"), "scaled"),
    ):
        for field in fields:
            message = rf"unknown initializer '{start}'; choose from .*, {last}\."
            with pytest.raises(ValueError, match=message):
                init(**{field: start})
            message = (
                rf"^config\.model\.{field} must be one of .*, {last}, got '{start}'"
            )
            with pytest.raises(configs.ConfigError, match=message):
                require(**{field: start})
    for field in ("conv_init", "primary_init", "weight_init"):
        require(**{field: "scaled"})
