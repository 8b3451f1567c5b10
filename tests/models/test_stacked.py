"""Stacks of capsule layers, and the matrix capsules of EM routing."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow, variants
from places import ROOT
from programs import draw, init
from tiny import digits

from capsjax import ROUTINGS, EMRouting, InvertedAttention, UniformRouting
from capsjax import config as configs
from capsjax.models import StackedCapsNet, num_parameters
from capsjax.models.network import bind, check_output, init_variables
from capsjax.runtime.devices import AXIS
from capsjax.training.trainer import train

SMALL = {"conv_features": 8, "primary_types": 2, "dim": 4, "layer_types": (3,)}


def recipe(variant):
    path = ROOT / "experiments" / "stacks.py"
    spec = importlib.util.spec_from_file_location("stacks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)


@pytest.mark.parametrize(
    ("variant", "expected"), [("matrix", 68_754), ("matrix_full", 317_194)]
)
def test_the_papers_networks_have_their_numbers_of_parameters(key, variant, expected):
    # Pairs of images of smallNORB, 32x32, and its five classes.
    model = bind(recipe(variant).model, (32, 32, 2), 5)
    image = jnp.zeros((1, 32, 32, 2))
    assert num_parameters(jax.eval_shape(model.init, key, image)) == expected


@pytest.mark.parametrize(
    "name",
    [
        *("em", *slow("variational_bayes")),
        *variants(*sorted({*ROUTINGS} - {"em", "variational_bayes", "self_attention"})),
    ],
)
def test_every_algorithm_makes_a_network_with_finite_gradients(key, name):
    options = {"routing": ROUTINGS[name](), "padding": "VALID", "drop_edge": True}
    options |= {"compete": "image", "pose": "matrix", "coordinates": 1.0}
    model = StackedCapsNet((12, 12, 1), 3, primary_kernel=1, **SMALL, **options)
    image = jnp.abs(jnp.asarray(draw(key, 2, 12, 12, 1)))
    variables = jax.jit(lambda: init_variables(model, key))()
    check_output(model, variables)

    @jax.jit
    def gradient(variables):
        return jax.grad(lambda own: model.apply(own, image).activation[:, 0].sum())(
            variables
        )

    found = jax.tree.leaves(gradient(variables))
    assert all(np.isfinite(one).all() for one in found)


def test_votes_of_each_layer_of_matrix_capsules_start_alike(key):
    # Shorter with every layer, the third layer's would lie below the least variance.
    model = bind(recipe("matrix").model, (32, 32, 2), 5)
    params = init(model, key, jnp.zeros((1, 32, 32, 2)))["params"]
    sd = [params[f"conv_caps{n}"]["weight"].std() for n in range(2)]
    sd.append(params["class_caps"]["weight"].std())
    # A component of a vote sums four products, with a row of half the pose's length.
    lengths = [0.35, 0.03 * np.sqrt(16 / 72), 0.03 * np.sqrt(16 / 144)]
    np.testing.assert_allclose(sd, 0.06 / np.array(lengths), rtol=0.05)
    assert params["class_caps"]["weight"].shape == (1, 16, 5, 4, 4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"layer_kernels": (3, 3)},
            r"layer_types, layer_kernels and layer_strides must have one number for "
            r"each layer, got \(16,\), \(3, 3\), \(2,\)",
        ),
        (
            {"padding": "VALID", "layer_kernels": (9,)},
            r"layer_kernels\[0\]=9 is larger than the map below it; .* are 20x20, 8x8, "
            "6x6. Choose",
        ),
        ({"conv_kernel": 21}, "conv_kernel=21 is larger than the map below it; .* 20x"),
        (
            {"padding": "VALID", "layer_kernels": (3,), "primary_kernel": 2},
            "a map of 7x7 capsules",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_one_clear_line(key, fields, message):
    model = StackedCapsNet((20, 20, 1), 3, **fields)
    if "7x7" in message:  # It fits, without a rest.
        jax.eval_shape(model.init, key, jnp.zeros((1, 20, 20, 1)))
        model = model.clone(layer_kernels=(4,))
    with pytest.raises(ValueError, match=message) as refused:
        jax.eval_shape(model.init, key, jnp.zeros((1, 20, 20, 1)))
    assert "\n" not in str(refused.value)


def test_flags_choose_and_set_a_stack():
    flags = [
        ("model", "stacked"),
        ("model.layer_types", "(4,5)"),
        ("model.routing", "em"),
        ("model.compete", "image"),
    ]
    model = configs.override(configs.Config(), flags).model
    assert (model.layer_types, model.routing) == ((4, 5), EMRouting())
    with pytest.raises(configs.ConfigError, match="padding must be one of VALID, SAME"):
        configs.validate(
            configs.override(configs.Config(model=model), [("model.padding", "same")])
        )


@pytest.mark.parametrize(
    "routing",
    [UniformRouting(bias=0.1), *slow(EMRouting()), *variants(InvertedAttention())],
)
def test_a_stack_with_batch_statistics_trains_and_is_opened_again(
    routing, tmp_path, without_estimate
):
    config = configs.Config(num_epochs=1, batch_size=8, steps_per_dispatch=5)
    config.data = configs.Data(digits(), num_train=40, num_validation=50)
    config.model = StackedCapsNet(
        **SMALL, layer_kernels=(3,), primary_stride=4, norm="batch", routing=routing
    )
    run = train(config, tmp_path)
    assert np.isfinite(run.result["test"]["loss"])
    mean = run.params["batch_stats"]["conv_caps0"]["pose_norm"]["mean"]
    assert np.abs(mean).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "routing", [UniformRouting(), EMRouting(), InvertedAttention()]
)
def test_batch_statistics_are_those_of_the_batch_of_all_devices(key, routing):
    fields = {"layer_kernels": (3,), "primary_stride": 3, "norm": "batch"}
    model = StackedCapsNet((12, 12, 1), 3, routing=routing, **SMALL | fields)
    variables = jax.jit(lambda: init_variables(model, key))()
    image = draw(key, 8, 12, 12, 1)

    def on(devices):
        """Activations of all images, and the statistics that each device has."""

        def apply(image):
            options = {"is_training": True, "mutable": ["batch_stats"]}
            routed, new = model.apply(variables, image, **options)
            return routed.activation, new["batch_stats"]

        mapped = jax.pmap(apply, AXIS, devices=jax.devices()[:devices])
        activation, statistics = mapped(image.reshape(devices, -1, *image.shape[1:]))
        return [activation.reshape(8, 3), *jax.tree.leaves(statistics)]

    one, four = on(1), on(4)
    for a, b in zip(one, four, strict=True):
        np.testing.assert_allclose(
            b, jnp.broadcast_to(a, b.shape), rtol=1e-4, atol=1e-6
        )


@pytest.mark.variant  # Minutes of two cores.
@pytest.mark.parametrize("variant", ["smoke", "three_smoke"])
def test_two_and_three_routed_layers_learn_digits(variant, tmp_path):
    config = recipe(variant)
    data = dataclasses.replace(config.data, num_train=6_000)
    # Four simulated devices share a batch.
    config = dataclasses.replace(config, data=data, batch_size=48, test=False)
    run = train(config, tmp_path)
    assert run.result["validation"]["accuracy"] > 0.9
