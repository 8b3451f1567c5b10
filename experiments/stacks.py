"""Stacks of capsule layers on MNIST.

    python -m capsjax.train --config experiments/stacks.py

trains primary capsules, one layer of convolutional capsules and class capsules by
dynamic routing, with a bias: a stack of two routed layers. Variants,
``experiments/stacks.py:NAME``:

three     Two layers of convolutional capsules: three routed layers.
matrix    Matrix capsules with EM routing (Hinton, Sabour and Frosst 2018), the small
          network: 64 features, 8, 16 and 16 types of 4x4 poses, spread loss. 68,754
          parameters for the five classes of smallNORB in pairs of images.
matrix_full
          The full one, 32 of all: 317,194 parameters there.
smoke, three_smoke
          A fifth of the images, two epochs.
"""

import dataclasses

from capsjax import EMRouting
from capsjax.config import Adam, Config
from capsjax.config.recipes import choose
from capsjax.models import StackedCapsNet

TWO = Config(
    num_epochs=12,
    model=StackedCapsNet(),
    optimizer=Adam(learning_rate=0.003, b2=0.99),
)
THREE = dataclasses.replace(
    TWO,
    model=TWO.model.clone(
        layer_types=(16, 16), layer_kernels=(3, 3), layer_strides=(2, 1)
    ),
)
MATRIX = Config(
    num_epochs=12,
    batch_size=64,
    model=StackedCapsNet(
        conv_features=64,
        primary_types=8,
        primary_kernel=1,
        dim=16,
        layer_types=(16, 16),
        layer_kernels=(3, 3),
        layer_strides=(2, 1),
        padding="VALID",
        drop_edge=True,
        compete="image",
        pose="matrix",
        share_positions=True,
        coordinates=1.0,
        routing=EMRouting(),
    ),
    optimizer=Adam(learning_rate=0.003),
)


def few(recipe: Config) -> Config:
    """Shortens a recipe to two epochs of a fifth of the images."""
    data = dataclasses.replace(recipe.data, num_train=10_000, num_validation=2_000)
    return dataclasses.replace(
        recipe, num_epochs=2, batch_size=50, steps_per_dispatch=20, data=data
    )


RECIPES = {
    "": TWO,
    "three": THREE,
    "matrix": MATRIX,
    "matrix_full": dataclasses.replace(
        MATRIX,
        model=MATRIX.model.clone(
            conv_features=32, primary_types=32, layer_types=(32, 32)
        ),
    ),
    "smoke": few(TWO),
    "three_smoke": few(THREE),
}


def get_config(variant: str = "") -> Config:
    """Returns the recipe of that name; the plain one without a name."""
    return choose(RECIPES, variant, experiment="stacks")
