"""A network of seconds, on a part of MNIST."""

import atexit
import functools
import gzip
import os
import pathlib
import shutil
import struct
import tempfile

import jax
import numpy as np

from capsjax import DynamicRouting
from capsjax import config as configs
from capsjax.data import Dataset, load
from capsjax.models import BaselineCNN, CapsNet
from capsjax.models.network import bind
from capsjax.training.state import init_state


def idx_bytes(array, *, shape=None, type_code=8):
    """An IDX file as the format's page describes it; the header may be a lie."""
    shape = array.shape if shape is None else shape
    header = struct.pack(f">HBB{len(shape)}I", 0, type_code, len(shape), *shape)
    return header + array.astype(np.uint8).tobytes()


@functools.cache
def digits():
    """The folder of MNIST's first 1,400 images to train on and its first 200 to test.

    It is read and tested in a fiftieth of the time, by subprocesses too, and is gone at
    the end of this process.
    """
    folder = tempfile.mkdtemp(prefix="digits-")
    os.chmod(folder, 0o755)  # For whoever a test becomes.
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for split, prefix, number in (("train", "train", 1_400), ("test", "t10k", 200)):
        few = load("mnist", split).subset(np.arange(number))
        files = {"images-idx3": few.image[..., 0], "labels-idx1": few.label}
        for name, array in files.items():
            path = pathlib.Path(folder, f"{prefix}-{name}-ubyte.gz")
            path.write_bytes(gzip.compress(idx_bytes(array), compresslevel=1))
    return folder


# ``tiny_model`` on a command line.
TINY_MODEL = (
    "--config.model.conv_features=8",
    "--config.model.primary_types=2",
    "--config.model.primary_stride=4",
    "--config.model.class_dim=4",
    "--config.model.decoder_features=(16,)",
    # Its program is traced and lowered in half the time.
    "--config.model.routing.form=votes",
)


def tiny_model(**options):
    """A network of 30,784 parameters."""
    return CapsNet(
        conv_features=8,
        primary_types=2,
        primary_stride=4,
        class_dim=4,
        decoder_features=(16,),
        **{"routing": DynamicRouting(form="votes"), **options},
    )


def tiny(**options):
    """A run of seconds: two epochs of five steps, each epoch in one call."""
    fields = {"num_epochs": 2, "batch_size": 8, "steps_per_dispatch": 5, **options}
    config = configs.Config(**fields)
    config.data = configs.Data(digits(), num_train=40, num_validation=50)
    config.model = tiny_model()
    config.optimizer = configs.Adam(learning_rate=3e-3)
    return config


def made(config, model=None):
    """The network (the config's by default), its optimizer and its first state."""
    if model is None:
        model = bind(config.model, (28, 28, 1), 10)
    optimizer = config.optimizer.make(10)
    state = jax.jit(lambda: init_state(model, optimizer, config))()
    return model, optimizer, state


def tiny_cnn(image_shape=(28, 28, 1), **options):
    """The baseline, narrow."""
    return BaselineCNN(
        image_shape, 10, conv_features=(4, 8), hidden_features=(16, 12), **options
    )


def pairs(number, split="test"):
    """Digits of MNIST in pairs, one laid over the other, with both kept."""
    digits = load("mnist", split)
    index = np.random.default_rng(0).integers(len(digits), size=(4 * number, 2))
    # Less than, so that the sources are in the order of the classes.
    is_pair = digits.label[index[:, 0]] < digits.label[index[:, 1]]
    index = index[is_pair][:number]
    label = np.zeros((number, 10), bool)
    np.put_along_axis(label, digits.label[index], values=True, axis=1)
    source = digits.image[index]
    return Dataset("pairs", source.max(1), label, digits.class_names, source)
