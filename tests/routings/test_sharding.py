"""Arrays spread over several devices give the same values.

The mesh's axes are explicit, the default of ``jax.make_mesh``, or automatic.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithms import Given
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from marks import first_of, variants
from votes import UNOPTIMISED

from capsjax import (
    ROUTINGS,
    DynamicRouting,
    EMRouting,
    InvertedAttention,
    SelfAttention,
    SelfRouting,
    VariationalBayesRouting,
    routing,
)
from capsjax.layers import Convolution, DenseCaps, PrimaryCaps
from capsjax.models import CapsNet

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
    routing=DynamicRouting(2),
)
# Two rounds: a third makes the programs half as large again.
TWO = DynamicRouting(2)
ROUTING = DynamicRouting(2, bias=0.1, none_of_the_above=True)


def draw(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32) / 2


def layer(module, *shape):
    """Returns the layer as a function of weights and inputs, and both of them."""
    inputs = np.abs(draw(*shape))
    weights = jax.eval_shape(module.init, jax.random.key(0), inputs)
    weights = jax.tree.map(lambda leaf: draw(*leaf.shape) / 4, weights)
    return lambda weights, x: jax.tree.leaves(module.apply(weights, x)), weights, inputs


def votes(function, *batch):
    return function, draw(*batch, 24, 5, 6)


LOOP = functools.partial(routing, num_iterations=5, unroll=1)
BATCH, INPUTS = P("data"), P(None, "data")
# Each is drawn by the test that needs it.
CASES = {
    "votes, batch": ((votes, routing, 8), (BATCH,)),
    "votes, inputs": ((votes, ROUTING, 8), (INPUTS,)),
    "votes, loop, batch": ((votes, LOOP, 8), (BATCH,)),
    "votes, two batch axes": ((votes, routing, 4, 2), (BATCH,)),
    "votes, EM, batch": ((votes, Given(EMRouting()), 8), (BATCH,)),
    "votes, EM, inputs": ((votes, Given(EMRouting()), 8), (INPUTS,)),
    "votes, VB, batch": ((votes, Given(VariationalBayesRouting(2)), 8), (BATCH,)),
    "votes, VB, inputs": ((votes, Given(VariationalBayesRouting(2)), 8), (INPUTS,)),
    "votes-free, batch": ((layer, DenseCaps(5, 6, ROUTING), 16, 24, 8), ((), BATCH)),
    "votes-free, two batch axes": (
        (layer, DenseCaps(5, 6, TWO), 4, 4, 24, 8),
        ((), BATCH),
    ),
    "votes-free, inputs": (
        (layer, DenseCaps(5, 6, TWO), 16, 24, 8),
        (P("data"), INPUTS),
    ),
    "few examples, batch": ((layer, DenseCaps(5, 6, TWO), 4, 24, 8), ((), BATCH)),
    "few examples, inputs": (
        (layer, DenseCaps(5, 6, ROUTING), 2, 24, 8),
        ((), INPUTS),
    ),
    "convolution": ((layer, Convolution(8, 3, 2), 8, *IMAGE), ((), BATCH)),
    "primary capsules": ((layer, PrimaryCaps(2, 4, 3), 8, *IMAGE), ((), BATCH)),
    "network": ((layer, NETWORK, 8, *IMAGE), ((), BATCH)),
    "self-attention, batch": (
        (layer, DenseCaps(5, 6, SelfAttention()), 16, 24, 8),
        ((), BATCH),
    ),
    "inverted attention, inputs": (
        (layer, DenseCaps(5, 6, InvertedAttention()), 16, 24, 8),
        ((), INPUTS),
    ),
    "network, self-routing": (
        (layer, NETWORK.clone(routing=SelfRouting()), 8, *IMAGE),
        ((), BATCH),
    ),
    "network, EM": (
        (layer, NETWORK.clone(routing=EMRouting()), 64, *IMAGE),
        ((), BATCH),
    ),
}

QUICK = (
    *("votes-free, batch", "few examples, batch", "network"),
    *("self-attention, batch", "network, self-routing"),
)


@pytest.mark.parametrize("kind", [AxisType.Explicit, *variants(AxisType.Auto)])
@pytest.mark.parametrize("name", first_of(QUICK, CASES))
def test_values_and_gradients_equal_one_device_s(kind, name):
    (make, *how), specs = CASES[name]
    function, *operands = make(*how)

    def run(*operands):
        def loss(*operands):
            results = jax.tree.leaves(function(*operands))
            return sum(jnp.sum(jnp.sin(3 * x)) for x in results), results

        (_, results), gradients = jax.value_and_grad(
            loss, argnums=tuple(range(len(operands))), has_aux=True
        )(*operands)
        return results, gradients

    run = jax.jit(run, compiler_options=UNOPTIMISED)
    expected = jax.tree.leaves(run(*operands))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        spread = [
            jax.tree.map(
                lambda x, s=spec: jax.device_put(x, NamedSharding(mesh, P(*s))), x
            )
            for x, spec in zip(operands, specs, strict=True)
        ]
        actual = jax.tree.leaves(run(*spread))
    for one, other in zip(actual, expected, strict=True):
        assert one.shape == other.shape
        scale = np.abs(other).max()
        np.testing.assert_allclose(one / scale, other / scale, rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", ROUTINGS)
def test_a_layer_inside_a_sharded_function_gives_one_device_s_numbers(name):
    """Its weight is on both devices, and 16 examples on each: no votes on a CPU."""
    value = ROUTINGS[name]()
    module, capsules = DenseCaps(3, 4, value), jnp.asarray(draw(32, 12, 5))
    active = (jnp.abs(capsules[..., 0]),) if value.takes_activation else ()
    params = jax.jit(module.init)(jax.random.key(0), capsules, *active)

    def run(params, *operands):
        pose, activation, _ = module.apply(params, *operands)
        return pose, activation

    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    specs = P(), P("data"), *[P("data")] * len(active)
    sharded = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=P("data"))
    actual, expected = (jax.jit(f)(params, capsules, *active) for f in (sharded, run))
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6)


def test_the_arrays_own_mesh_is_enough():
    (make, *how), (_, spec) = CASES["votes-free, batch"]
    function, weights, inputs = make(*how)
    (expected, _) = jax.jit(function)(weights, inputs)
    mesh = jax.make_mesh((4,), ("data",))
    inputs = jax.device_put(inputs, NamedSharding(mesh, spec))
    weights = jax.device_put(weights, NamedSharding(mesh, P()))
    pose, _ = jax.jit(function)(weights, inputs)
    assert jax.typeof(pose).sharding.spec == P("data", None, None)
    np.testing.assert_allclose(pose, expected, rtol=1e-5, atol=1e-7)
