import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from marks import variants
from programs import apply, draw, init

from capsjax import DynamicRouting
from capsjax.initializers import initializer
from capsjax.layers import Convolution, Decoder, DenseCaps, PrimaryCaps
from capsjax.routings import UniformRouting

normal = jax.nn.initializers.normal


def primary_caps(**options):
    return PrimaryCaps(num_types=3, dim=4, kernel_size=3, stride=2, **options)


def test_a_primary_capsule_is_neighbouring_channels_of_one_position(key):
    # Scrambled capsules: several peers reshape across positions instead.
    image = draw(key, 2, 9, 7, 5)
    layer = primary_caps(bias_init=normal(0.1))
    params = init(layer, key, image)
    capsules = apply(layer, params, image)
    assert capsules.shape == (2, 4, 3, 3, 4)
    kernel = np.asarray(params["params"]["conv"]["kernel"], np.float64)
    bias = np.asarray(params["params"]["bias"], np.float64)
    for row, column, kind in [(0, 0, 0), (3, 2, 1), (1, 2, 2)]:
        window = np.asarray(
            image[1, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
        )
        channels = slice(4 * kind, 4 * kind + 4)
        s = np.einsum("hwn,hwnc->c", window, kernel[..., channels]) + bias[channels]
        expected = reference.squash(s)
        actual = capsules[1, row, column, kind]
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_scale_and_activation_come_before_the_squash(key):
    image = draw(key, 1, 5, 5, 2)
    plain = primary_caps()
    params = init(plain, key, image)
    small = np.asarray(apply(primary_caps(scale=1 / 32), params, image))
    # At these lengths the squash is the square, so that 1/32 becomes 1/32^2.
    tiny = apply(plain, params, 1e-3 * image)
    assert np.linalg.norm(small, axis=-1).max() < 0.1
    np.testing.assert_allclose(
        apply(primary_caps(scale=1 / 32), params, 1e-3 * image), tiny / 32**2, rtol=1e-3
    )
    rectified = apply(primary_caps(activation=jax.nn.relu), params, image)
    assert rectified.min() == 0 > apply(plain, params, image).min()


def test_dense_caps_route_the_votes_of_their_matrices(key):
    capsules = draw(key, 2, 6, 4)
    layer = DenseCaps(3, 5, DynamicRouting(bias=0.1), normal(1.0))
    params = init(layer, key, capsules)
    weight = np.asarray(params["params"]["weight"], np.float64)
    assert weight.shape == (6, 3, 5, 4)
    assert params["params"]["bias"].shape == (3, 5)
    routed = apply(layer, params, capsules)
    for n in range(2):
        votes = np.zeros((6, 3, 5))
        for i in range(6):
            for j in range(3):
                votes[i, j] = weight[i, j] @ np.asarray(capsules[n, i], np.float64)
        pose, _ = reference.dynamic_routing(votes, 3, bias=np.full((3, 5), 0.1))
        np.testing.assert_allclose(routed.pose[n], pose, rtol=1e-4, atol=1e-6)


def test_permuting_input_capsules_with_their_matrices_changes_nothing(key):
    capsules = draw(key, 2, 20, 4)
    layer = DenseCaps(3, 5)
    params = init(layer, key, capsules)
    order = np.random.default_rng(0).permutation(20)
    permuted = {"params": {"weight": params["params"]["weight"][order]}}
    expected = apply(layer, params, capsules).pose
    actual = apply(layer, permuted, capsules[:, order]).pose
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-8)


def test_the_routing_is_a_value_and_changes_the_result(key):
    capsules = draw(key, 2, 20, 4)
    params = init(DenseCaps(3, 5, weight_init=normal(1.0)), key, capsules)
    one, three = (
        apply(DenseCaps(3, 5, DynamicRouting(num_iterations=n)), params, capsules).pose
        for n in (1, 3)
    )
    assert np.abs(one - three).max() > 0.01


def test_the_decoder_sees_only_what_the_mask_lets_through(key):
    pose = draw(key, 2, 4, 5)
    mask = jnp.array([[0.0, 1, 0, 0], [0, 0, 0, 1]])
    decoder = Decoder((6, 7, 2), (8,))
    params = init(decoder, key, pose, mask)
    drawn = apply(decoder, params, pose, mask)
    assert drawn.shape == (2, 6, 7, 2)
    assert (drawn > 0).all()
    assert (drawn < 1).all()
    elsewhere = pose * mask[..., None] + 100 * (1 - mask[..., None])
    np.testing.assert_array_equal(apply(decoder, params, elsewhere, mask), drawn)
    assert np.abs(apply(decoder, params, 1 + pose, mask) - drawn).max() > 1e-3


@pytest.mark.parametrize("batch", [(), *variants((3,)), (2, 3)])
@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        (Convolution(4, 3, 2), [(9, 9, 2)]),
        (primary_caps(bias_init=normal(0.1)), [(9, 9, 2)]),
        (DenseCaps(3, 5, DynamicRouting(bias=0.1), normal(1.0)), [(6, 4)]),
        (DenseCaps(3, 5, UniformRouting(), normal(1.0)), [(6, 4)]),
        (DenseCaps(3, 5, weight_init=normal(1.0), share_weight=True), [(6, 4)]),
        (Decoder((6, 7, 2), (8,), bias_init=normal(0.1)), [(4, 5), (4,)]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_take_any_number_of_batch_axes(key, layer, shapes, batch):
    inputs = [draw(key, *batch, *shape) for shape in shapes]
    params = init(layer, key, *inputs)
    # The batch adds no weights.
    alone = jax.eval_shape(layer.init, key, *(jnp.zeros(shape) for shape in shapes))
    assert shapes_of(params) == shapes_of(alone)
    found = [np.asarray(x) for x in jax.tree.leaves(apply(layer, params, *inputs))]
    assert found
    assert all(leaf.shape[: len(batch)] == batch for leaf in found)
    for index in np.ndindex(batch):
        one = jax.tree.leaves(apply(layer, params, *(x[index] for x in inputs)))
        for actual, expected in zip(found, one, strict=True):
            np.testing.assert_allclose(actual[index], expected, rtol=1e-5, atol=1e-6)


def shapes_of(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_images_of_another_float_type_are_taken_in_that_of_the_kernel(key, dtype):
    image = draw(key, 2, 9, 9, 2).astype(dtype)
    layer = primary_caps()
    params = init(layer, key, image)
    capsules = apply(layer, params, image)
    assert capsules.dtype == params["params"]["conv"]["kernel"].dtype == jnp.float32
    expected = apply(layer, params, image.astype(jnp.float32))
    np.testing.assert_array_equal(capsules, expected)


def test_the_scale_is_of_the_convolution_and_not_of_the_bias(key):
    # In the authors' code one round of routing makes it the 32nd part.
    image = draw(key, 9, 7, 5)
    layer = primary_caps(scale=1 / 32, bias_init=normal(0.1))
    params = init(layer, key, image)
    kernel = np.asarray(params["params"]["conv"]["kernel"], np.float64)
    bias = np.asarray(params["params"]["bias"], np.float64)
    s = reference.convolve(np.asarray(image, np.float64), kernel, 2) / 32 + bias
    expected = np.apply_along_axis(reference.squash, -1, s.reshape(4, 3, 3, 4))
    actual = apply(layer, params, image)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "deviation", "beyond", "longest"),
    [
        ("normal(0.1)", 0.1, 0.317311, (0.4, 0.7)),
        # Drawn again beyond 0.2 and not made wider for it, as TensorFlow's: the
        # deviation is sqrt(1 - 4 density(2) / 0.954500) times 0.1.
        ("truncated_normal(0.1)", 0.0879626, 0.284768, (0.1999, 0.2000001)),
    ],
)
def test_weights_are_drawn_by_the_initializer_of_that_name(
    key, name, deviation, beyond, longest
):
    num_drawn = 400_000
    drawn = np.asarray(initializer(name)(key, (num_drawn,)), np.float64)
    # All within five standard errors, and this is one key.
    assert abs(drawn.mean()) < 5 * deviation / num_drawn**0.5
    assert abs(drawn.std() / deviation - 1) < 5 / (2 * num_drawn) ** 0.5
    share = np.mean(np.abs(drawn) > 0.1)
    assert abs(share - beyond) < 5 * (beyond * (1 - beyond) / num_drawn) ** 0.5
    assert longest[0] < np.abs(drawn).max() < longest[1]


@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        (
            PrimaryCaps(
                2, 4, 3, kernel_init="constant(0.5)", bias_init="constant(0.25)"
            ),
            [(5, 5, 1)],
        ),
        (DenseCaps(3, 5, weight_init="constant(0.5)"), [(6, 4)]),
        (
            Decoder((2, 2, 1), (8,), "float32", "constant(0.5)", "constant(0.75)"),
            [(4, 5), (4,)],
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_an_initializer_is_taken_by_name_or_as_a_function(key, layer, shapes):
    inputs = [jnp.ones(shape) for shape in shapes]
    named = init(layer, key, *inputs)
    functions = {
        field: initializer(getattr(layer, field))
        for field in ("kernel_init", "output_init", "weight_init", "bias_init")
        if hasattr(layer, field)
    }
    made = init(layer.clone(**functions), key, *inputs)
    jax.tree.map(np.testing.assert_array_equal, made, named)
    values = {float(leaf.ravel()[0]) for leaf in jax.tree.leaves(named)}
    assert (
        values
        == {
            PrimaryCaps: {0.5, 0.25},
            DenseCaps: {0.5},
            Decoder: {0.5, 0.75, 0.0},
        }[type(layer)]
    )


def test_the_rule_named_scaled_is_the_default_of_capsules_alone(key):
    image, capsules = jnp.ones((9, 9, 2)), jnp.ones((6, 4))
    for layer, inputs, field in (
        (primary_caps(), image, "kernel_init"),
        (DenseCaps(3, 5), capsules, "weight_init"),
    ):
        scaled = layer.clone(**{field: "scaled"})
        jax.tree.map(
            np.testing.assert_array_equal,
            init(scaled, key, inputs),
            init(layer, key, inputs),
        )
    with pytest.raises(ValueError, match="unknown initializer 'scaled'; choose from"):
        Convolution(4, 3, kernel_init="scaled").init(key, image)
