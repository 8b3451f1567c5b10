"""Images that are learnt at once: a bar at a height that names the class."""

import functools

import numpy as np

from capsjax.data import Dataset


@functools.cache
def bars(number, num_classes=3, *, seed=0):
    """A data set of the classes in turn, each a bright bar in noise."""
    rng = np.random.default_rng([seed, number, num_classes])
    image = rng.integers(0, 60, (number, 28, 28, 1), np.uint8)
    label = np.arange(number, dtype=np.int32) % num_classes
    for one, k in zip(image, label, strict=True):
        one[4 + 6 * k : 8 + 6 * k] = 250
    return Dataset("bars", image, label, tuple("abcdefgh"[:num_classes]))
