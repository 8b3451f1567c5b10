"""Runs from a checkout without the packages that MNIST does not need."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from places import TESTS

from capsjax.data import load

CACHE = jax.config.jax_compilation_cache_dir  # pyright: ignore
# Makes imports of the packages fail, and hides an installed capsjax.
HIDE = """
import importlib.metadata, sys

HIDDEN = {"ml_collections", "tensorflow_datasets", "array_record", "tensorboardX",
          "beartype", "importlib_resources"}

class Hider:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hider())
real_version = importlib.metadata.version

def version(name):
    if name == "capsjax" or name in HIDDEN:
        raise importlib.metadata.PackageNotFoundError(name)
    return real_version(name)

importlib.metadata.version = version
"""
TRAIN_AND_USE = """
from tiny import tiny
from capsjax import evaluate, predict, train
from capsjax.storage.workdir import Workdir

train.train(tiny(experiment="tiny"), Workdir("run"))
assert evaluate.main(["--workdir", "run", "--no-figures"]) == 0
assert predict.main(["--workdir", "run", "--json", "digit.png"]) == 0
"""
COMMANDS = """
from capsjax import train
from capsjax.data import DatasetError, load, prepare

assert train.main(["train", "--config", "experiments/mnist.py"]) == 2
try:
    load("cifar10")
except DatasetError as error:
    print(error, file=sys.stderr)
try:
    prepare.main(["omniglot"])
except SystemExit as end:
    print(end.code, file=sys.stderr)
"""


def run(code, folder):
    return subprocess.run(
        [
            sys.executable,
            "-c",
            HIDE + f"sys.path.append({str(TESTS / 'helpers')!r})\n" + code,
        ],
        cwd=folder,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": CACHE},
        check=True,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_mnist_is_trained_evaluated_and_predicted_without_them(tmp_path):
    digit = load("mnist", "test").image[0, ..., 0]
    Image.fromarray(np.pad(digit, 8)).save(tmp_path / "digit.png")
    out = run(TRAIN_AND_USE, tmp_path).stdout
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["versions"]["capsjax"] is None
    assert result["versions"]["jax"] is not None
    assert result["test"]["step"] == 10
    assert f"accuracy {result['test']['accuracy']:.2%}" in out
    assert '"file": "digit.png"' in out


def test_errors_name_the_missing_package_and_how_to_install_it(tmp_path):
    error = run(COMMANDS, tmp_path).stderr
    assert "the command line needs ml_collections: pip install ml_collections" in error
    missing = "array_record is not installed: pip install tensorflow-datasets"
    for name in ("cifar10", "omniglot"):
        message = f"data set '{name}' is read by TensorFlow Datasets, and {missing}"
        assert message in error
