"""``jax.export`` of layers and networks, for a batch of any size and other devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from marks import first_of

from capsjax import DynamicRouting, routing
from capsjax.layers import Convolution, DenseCaps, PrimaryCaps
from capsjax.models import BaselineCNN, CapsNet

IMAGE = (12, 12, 4)
NETWORK = CapsNet(
    image_shape=IMAGE,
    num_classes=3,
    conv_features=4,
    conv_kernel=3,
    primary_types=2,
    primary_dim=4,
    primary_kernel=3,
    class_dim=4,
    decoder_features=(8,),
)
CNN = BaselineCNN(
    image_shape=IMAGE, num_classes=3, conv_features=(4, 4), hidden_features=(8, 6)
)
ROUTING = DynamicRouting(bias=0.1, none_of_the_above=True)
CASES = {
    "capsules": (DenseCaps(5, 6), (24, 8), None),
    "capsules, bias, none of the above": (DenseCaps(5, 6, ROUTING), (24, 8), None),
    "primary capsules": (PrimaryCaps(2, 4, 3, 2), IMAGE, None),
    "convolution": (Convolution(8, 3), IMAGE, None),
    "convolution, bfloat16": (Convolution(8, 3, 2, "bfloat16"), IMAGE, None),
    "network": (NETWORK, IMAGE, None),
    "network in bfloat16": (NETWORK.clone(compute_dtype="bfloat16"), IMAGE, None),
    "encoder": (NETWORK, IMAGE, "encode"),
    "baseline": (CNN, IMAGE, None),
}


def draw(*shape):
    return np.random.default_rng(0).uniform(size=shape).astype(np.float32)


def export_any_batch(function, shape, **options):
    (batch,) = export.symbolic_shape("b")
    inputs = jax.ShapeDtypeStruct((batch, *shape), np.float32)
    return export.export(jax.jit(function), **options)(inputs)


QUICK = ("capsules", "convolution", "baseline")


@pytest.mark.parametrize(
    "name",
    first_of(QUICK, CASES),
)
def test_an_exported_module_takes_any_batch_and_gives_what_the_module_gives(name):
    module, shape, method = CASES[name]
    weights = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, *shape)))

    @jax.jit
    def function(x):
        routed = module.apply(weights, x, method=method)
        return jax.tree.leaves(routed)

    exported = export_any_batch(function, shape)
    # Read again, as whoever serves it does.
    exported = export.deserialize(exported.serialize())
    for batch in (1, 3, 20):  # By votes, and votes-free.
        inputs = draw(batch, *shape)
        for actual, expected in zip(
            exported.call(inputs), function(inputs), strict=True
        ):
            assert actual.shape == expected.shape
            tolerance = 2e-3 if "bfloat16" in name else 1e-5
            scale = np.abs(expected).max()
            np.testing.assert_allclose(
                actual / scale, expected / scale, rtol=0, atol=tolerance
            )
    for_a_gpu = export_any_batch(function, shape, platforms=["cuda"])
    assert for_a_gpu.platforms == ("cuda",)


@pytest.mark.slow
def test_gradients_are_exported_for_any_batch():
    layer = DenseCaps(5, 6)
    weights = jax.jit(layer.init)(jax.random.key(0), jnp.zeros((1, 24, 8)))

    def loss(x):
        return jnp.sum(layer.apply(weights, x).activation)

    exported = export_any_batch(jax.grad(loss), (24, 8))
    for batch in (1, 20):
        inputs = draw(batch, 24, 8)
        expected = jax.jit(jax.grad(loss))(inputs)
        scale = np.abs(expected).max()
        actual = exported.call(inputs)
        np.testing.assert_allclose(actual / scale, expected / scale, rtol=0, atol=5e-6)


def test_votes_are_routed_for_any_batch():
    exported = export_any_batch(lambda votes: routing(votes).pose, (9, 4, 5))
    votes = draw(3, 9, 4, 5)
    np.testing.assert_allclose(
        exported.call(votes), routing(votes).pose, rtol=1e-5, atol=1e-7
    )


def test_a_convolution_is_exported_for_images_of_any_size():
    layer = Convolution(4, 3)
    weights = jax.jit(layer.init)(jax.random.key(0), jnp.zeros((1, *IMAGE)))
    batch, height = export.symbolic_shape("b, h", constraints=["h >= 3"])
    shape = jax.ShapeDtypeStruct((batch, height, 12, 4), np.float32)
    run = jax.jit(lambda x: layer.apply(weights, x))
    exported = export.export(run)(shape)
    image = draw(2, 9, 12, 4)
    np.testing.assert_allclose(exported.call(image), run(image), rtol=1e-5, atol=1e-5)
