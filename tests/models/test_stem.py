"""Class capsules behind a stem, and the control without capsules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import first_of
from programs import draw

from capsjax import DynamicRouting, UniformRouting
from capsjax import config as configs
from capsjax.layers import Stem
from capsjax.models import StemCapsNet, StemCNN, num_parameters
from capsjax.models.network import check_output, has_stages, init_variables
from capsjax.runtime.devices import AXIS

# 7 x 6 pixels become 4 x 3, and then 2 x 2.
SHAPE = (7, 6, 2)
STEM = Stem(features=(3, 3, 5), pools=(1, 2, 2), first_kernel=5)
SMALL = StemCapsNet(
    SHAPE,
    3,
    STEM,
    primary_types=2,
    primary_dim=3,
    class_dim=4,
    routing=UniformRouting(),
    decoder_features=(7,),
)
CONTROL = StemCNN(SHAPE, 3, STEM, hidden_features=(6,))


def shapes_of(model):
    return jax.eval_shape(functools.partial(init_variables, model), jax.random.key(0))


def drawn_variables(key, model):
    """Draws weights and statistics of the network's shapes, of which all matter."""
    variables = jax.tree.map(lambda x: 0.4 * draw(key, *x.shape), shapes_of(model))
    for statistics in jax.tree.leaves(
        variables.get("batch_stats", {}), is_leaf=lambda x: "var" in x
    ):
        statistics["var"] = 0.5 + np.abs(statistics["var"])
    return jax.tree.map(lambda x: np.asarray(x, np.float64), variables)


def convolved(x, weights, name):
    """Convolves with zeros around, adds the bias and takes the ReLU, by loops."""
    kernel = weights[name]["kernel"]
    half = len(kernel) // 2
    padded = np.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
    sums = np.zeros((*x.shape[:3], kernel.shape[3]))
    for i, j in np.ndindex(*kernel.shape[:2]):
        sums += padded[:, i : i + x.shape[1], j : j + x.shape[2]] @ kernel[i, j]
    return np.maximum(sums + weights[f"{name}_bias"], 0)


def pooled(x, window):
    rows, columns = (range(0, size, window) for size in x.shape[1:3])
    square = [[x[:, i : i + window, j : j + window] for j in columns] for i in rows]
    largest = [[one.max(axis=(1, 2)) for one in row] for row in square]
    return np.array(largest).transpose(2, 0, 1, 3)


def expected_map(variables, image, stem, *, is_training):
    """Computes the last map, as the docstring of ``Stem`` says it."""
    weights, statistics = variables["params"], variables.get("batch_stats")

    def norm(x, name):
        if not stem.batch_norm:
            return x
        mean, var = statistics[name]["mean"], statistics[name]["var"]
        if is_training:
            mean, var = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
        x = (x - mean) / np.sqrt(var + 1e-5)
        return x * weights[name]["scale"] + weights[name]["bias"]

    x = convolved(image, weights, "first")
    for n, (features, pool) in enumerate(zip(stem.features, stem.pools, strict=True)):
        if features != x.shape[-1]:
            x = convolved(norm(x, f"widen{n}_norm"), weights, f"widen{n}")
        z = norm(pooled(x, pool), f"stage{n}_norm")
        x = convolved(z, weights, f"stage{n}") + (z if stem.residual else 0)
    return norm(x, "last_norm")


def squashed(s):
    length = np.linalg.norm(s, axis=-1, keepdims=True)
    return s * length / (1 + length**2)


@pytest.mark.parametrize(
    "case",
    first_of(
        [({}, True), ({}, False)],
        [({"residual": False}, False), ({"batch_norm": False}, True)],
    ),
)
def test_both_networks_compute_their_equations(key, case):
    fields, is_training = case
    stem = Stem(**{**vars(STEM), **fields})
    image = np.abs(draw(key, 4, *SHAPE)).astype(np.float64)
    for model, name in ((SMALL, "conv_stem"), (CONTROL, "stem")):
        model = model.clone(stem=stem)
        variables = drawn_variables(key, model)
        own = {kind: tree[name] for kind, tree in variables.items() if name in tree}
        features = expected_map(own, image, stem, is_training=is_training)
        weights = variables["params"]
        if name == "conv_stem":
            primary = weights["primary_caps"]
            s = features @ primary["conv"]["kernel"][0, 0] + primary["bias"]
            u = squashed(s.reshape(4, -1, 2, 3)).reshape(4, -1, 3)
            votes = np.einsum("ijdc,nic->nijd", weights["class_caps"]["weight"], u)
            pose = squashed(votes.sum(axis=1) / 3)
            expected = np.linalg.norm(pose, axis=-1)
        else:
            hidden, output = weights["Dense_0"], weights["Dense_1"]
            mean = features.mean(axis=(1, 2))
            hidden = np.maximum(mean @ hidden["kernel"] + hidden["bias"], 0)
            expected = hidden @ output["kernel"] + output["bias"]

        # The statistics are those of all devices: two, simulated.
        @functools.partial(jax.vmap, axis_name=AXIS)
        def encode(image, model=model, variables=variables):
            routed, _ = model.apply(
                jax.tree.map(jnp.float32, variables),
                image,
                is_training=is_training,
                method="encode",
                mutable=["batch_stats"],
            )
            return routed.activation

        found = jax.jit(encode)(jnp.float32(image.reshape(2, 2, *SHAPE)))
        np.testing.assert_allclose(
            np.reshape(found, (4, -1)), expected, rtol=2e-4, atol=2e-5
        )


def test_the_stem_has_the_parameters_of_its_source_and_the_control_as_many():
    capsules, control = (kind((28, 28, 1), 10) for kind in (StemCapsNet, StemCNN))
    params = shapes_of(capsules)["params"]
    # Kernels and biases of seven convolutions, scales and biases of seven norms.
    channels = [(128, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)]
    kernels = 26 * 128 + sum((9 * c + 1) * d for c, d in channels)
    norms = 2 * (sum(c for c, _ in channels) + 512)
    assert num_parameters(params["conv_stem"]) == kernels + norms
    without_decoder = num_parameters(params) - num_parameters(params["decoder"])
    difference = num_parameters(shapes_of(control)["params"]) / without_decoder - 1
    assert abs(difference) < 0.01


def test_at_the_digits_size_1024_primary_capsules_start_as_long_as_the_papers(key):
    stem = Stem(features=(8, 8, 16, 32))
    model = StemCapsNet((28, 28, 1), 10, stem, routing=DynamicRouting())
    variables = jax.jit(functools.partial(init_variables, model))(key)
    image = jax.random.uniform(key, (1, 8, 28, 28, 1))

    @functools.partial(jax.vmap, axis_name=AXIS)
    def primary(image):
        return model.apply(
            variables, image, is_training=True, method="primary", mutable="batch_stats"
        )[0]

    (capsules,) = jax.jit(primary)(image)
    assert capsules.shape == (8, 4, 4, 64, 8)
    length = np.sqrt(np.mean(np.sum(np.square(capsules), axis=-1)))
    assert length == pytest.approx(0.35, rel=0.15)


def test_they_fulfil_the_contract_and_a_command_line_sets_their_sizes():
    for word, has_capsules in (("stem", True), ("stem_cnn", False)):
        config = configs.override(
            configs.Config(),
            [
                ("model", word),
                ("model.stem.features", "4,6"),
                ("model.stem.pools", "1,3"),
            ],
        )
        assert configs.from_dict(configs.to_dict(config)) == config
        model = config.model.clone(image_shape=(9, 9, 1), num_classes=3)
        check_output(model, shapes_of(model))
        assert has_stages(model) == has_capsules
    assert model.stem.step == 3


def test_a_stem_with_a_stage_too_many_is_refused():
    config = configs.override(configs.Config(), [("model", "stem")])
    config = configs.override(config, [("model.stem.pools", "1,2,2")])
    with pytest.raises(configs.ConfigError, match=r"config.model.stem.pools must have"):
        configs.validate(config)
