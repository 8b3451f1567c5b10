"""Small networks to export, and runs of them."""

import jax
import numpy as np

import capsjax
from capsjax import CapsNet
from capsjax.models.network import init_variables

IMAGE = (11, 12, 3)


def small(kind=CapsNet, **options):
    """A network whose every axis has another size."""
    fields = {
        "conv_features": 6,
        "conv_kernel": 3,
        "primary_types": 2,
        "primary_dim": 5,
        "primary_kernel": 3,
        "class_dim": 7,
        "decoder_features": (9, 8),
        **options,
    }
    return kind(IMAGE, 4, **fields)


def run_of(model, path):
    """A run with random variables: at the start, many are zero, and hide mistakes."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))

    def draw(one):
        if one.ndim < 2:  # Positive, as variances are.
            return rng.uniform(0.1, 0.4, one.shape).astype(np.float32)
        # Larger kernels make longer sums.
        scale = 1.5 / np.sqrt(np.prod(one.shape[:-1]))
        return rng.normal(0, scale, one.shape).astype(np.float32)

    variables = jax.tree.map(draw, shapes)
    for own in variables["params"].values():
        if "weight" in own:  # Of votes.
            own["weight"] = rng.normal(0, 0.7, own["weight"].shape).astype(np.float32)
    return capsjax.save_run(path / "run", model, variables)


def draw_images(number):
    """Images with dots in different density; the first is empty."""
    rng = np.random.default_rng(1)
    density = rng.uniform(size=(number, 1, 1, 1))
    image = rng.uniform(size=(number, *IMAGE)) < density
    image[0] = 0
    return image.astype(np.float32)
