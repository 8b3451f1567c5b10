"""JAX's own switches in the environment: 64 bits, and no compilation."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from places import ROOT, TESTS
from tiny import digits, tiny

from capsjax.data import load
from capsjax.training import train

TRAIN = """
import sys
import jax

jax.config.update("jax_num_cpu_devices", 4)
import test_environment

length = test_environment.trained(sys.argv[1])
print(length.tolist())
"""


def python(code, *arguments, **environment):
    folders = ROOT, TESTS / "helpers", TESTS / "runtime"
    path = os.pathsep.join(map(str, folders))
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", **environment},
    )


def trained(path):
    """Returns lengths by a run of ten steps, all of it in 32 bits."""
    run = train(tiny(), path)
    length = run.predict(load(digits(), "test").image[:20]).length
    types = {str(x.dtype) for x in jax.tree.leaves((run.params, length))}
    assert types == {"float32"}
    return length


def losses(path):
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.slow
def test_a_run_with_64_bits_equals_the_run_without(tmp_path):
    length = trained(tmp_path / "usual")
    done = python(TRAIN, tmp_path / "wide", JAX_ENABLE_X64="1")
    assert done.returncode == 0, done.stderr
    wide_length = json.loads(done.stdout.splitlines()[-1])
    # With 64 bits the learning rate is rounded later: not the same bits.
    wide_losses = losses(tmp_path / "wide")
    np.testing.assert_allclose(wide_losses, losses(tmp_path / "usual"), rtol=1e-4)
    np.testing.assert_allclose(wide_length, length, atol=1e-4)


LAYERS = """
import jax, jax.numpy as jnp, numpy as np
from capsjax import DynamicRouting, routing, squash, margin_loss, reconstruction_loss
from capsjax.data import augment
from capsjax.layers import Convolution, DenseCaps, PrimaryCaps
from capsjax.models import BaselineCNN, CapsNet, prepare
from capsjax.ops import split_mask

image = np.random.default_rng(0).uniform(size=(2, 12, 12, 4)).astype("float32")
network = CapsNet(
    image_shape=(12, 12, 4), num_classes=3, conv_features=4, conv_kernel=3,
    primary_types=2, primary_dim=4, primary_kernel=3, class_dim=4,
    decoder_features=(8,), routing=DynamicRouting(bias=0.1),
)
baseline = BaselineCNN(
    image_shape=(12, 12, 4), num_classes=3, conv_features=(4,), hidden_features=(8,)
)

def everything():
    found = []
    for module in (Convolution(4, 3), PrimaryCaps(2, 4, 3), network, baseline):
        # Zeros without a type have 64 bits there, and so have NumPy's arrays.
        weights = module.init(jax.random.key(0), jnp.zeros(image.shape))
        found.append((weights, module.apply(weights, image)))
        found.append(module.apply(weights, image.astype(float)))
        found.append(jax.grad(
            lambda w: sum(x.sum() for x in jax.tree.leaves(module.apply(w, image)))
        )(weights))
    weights = network.init(jax.random.key(0), image)
    found.append(prepare(network, weights, batch_size=2)(image))
    for batch in (2, 20):
        capsules = np.full((batch, 7, 4), 0.1, "float32")
        layer = DenseCaps(3, 4, DynamicRouting(bias=0.1))
        weights = layer.init(jax.random.key(0), capsules)
        found.append((weights, layer.apply(weights, capsules).pose))
    found.append(routing(np.ones((2, 5, 3, 4), "float32")))
    found.append(squash(np.ones((2, 4), "float32")))
    found.append(margin_loss(np.full((2, 3), 0.5, "float32"), np.array([0, 2])))
    found.append(reconstruction_loss(jnp.asarray(image), jnp.asarray(image)))
    found.append(split_mask(jnp.array([[1.0, 0, 1]], "float32"), 2))
    return found

found = jax.tree.leaves(jax.eval_shape(everything))
assert {str(x.dtype) for x in found} == {"float32"}
shifts = augment.draw_shifts(jax.random.key(0), 50, 2)
augment.apply_shifts(image, np.zeros((2, 2), np.int64), 2)
print(np.asarray(shifts).tolist())
"""


@pytest.mark.slow
def test_layers_and_losses_are_float32_with_64_bits_and_draw_the_same():
    usual, wide = python(LAYERS), python(LAYERS, JAX_ENABLE_X64="1")
    assert wide.returncode == usual.returncode == 0, wide.stderr + usual.stderr
    assert wide.stdout == usual.stdout


def test_training_without_compilation_is_refused_in_one_line(tmp_path):
    run = [sys.executable, "-m", "capsjax.train", "--config", "capsjax:mnist:smoke"]
    done = subprocess.run(
        [*run, f"--workdir={tmp_path / 'run'}"],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_JIT": "1"},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("capsjax.train: error: JAX_DISABLE_JIT is set")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
