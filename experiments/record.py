"""CapsNet behind small convolutions on MNIST: as few errors as possible.

    python -m capsjax.train --config experiments/record.py

Trains class capsules on the stem of https://github.com/ttdoucet/mnist: 28x28 pixels
are warped, batches have 100, Adam's rate falls tenfold over ten epochs, and by a cosine
to a thousandth in an eleventh, in which images are only shifted. The recipes are drafts
of a search on validation images, ``benchmarks/mnist_record.py``: the last 10,000 of the
training images are held out, and no recipe tests.

Variants: ``half``, half as many channels; ``cnn`` and ``half_cnn``, the controls: the
mean over all positions and dense layers in place of the capsules, with as many
parameters as they have without the decoder; ``enlarged_cnn`` and ``enlarged_half_cnn``,
the same on images of 31x31 pixels, of which 28x28 are shown, like the source's crops;
``paper``, the paper's network with shifts; ``smoke``, half a minute.

Results: docs/mnist-record.md
"""

import dataclasses

from capsjax import CapsNet
from capsjax.config import Adam, Config, Data
from capsjax.config.recipes import choose
from capsjax.data.augment import Shift, Warp
from capsjax.layers import Stem
from capsjax.models import StemCapsNet, StemCNN

HALF = Stem(features=(64, 64, 128, 256))
HELD_OUT = Data(num_validation=10_000, validation_choice="last")

PLAIN = Config(
    num_epochs=11,
    batch_size=100,
    test=False,
    data=HELD_OUT,
    augmentation=Warp(last_shifted=1 / 11),
    model=StemCapsNet(),
    # Ten epochs of 500 steps. One of 60,000 images has 600.
    optimizer=Adam(
        learning_rate=4e-4,
        b2=0.99,
        schedule="exponential",
        decay_rate=0.1,
        decay_steps=5_000,
        floor=4e-8,
        last_cosine=1 / 11,
    ),
)
CNN = dataclasses.replace(PLAIN, model=StemCNN())
HALF_CNN = dataclasses.replace(
    PLAIN, model=StemCNN(stem=HALF, hidden_features=(5_400,))
)
# The source's crops of 25 pixels, scaled to 28, are 28 of 31; its bend moves a grid of
# 7 pixels by -1, 0 or 1 along each axis.
ENLARGED = {
    "data": dataclasses.replace(HELD_OUT, image_size=31, crop=28),
    "augmentation": Warp(
        max_shift=0,
        share_shifted=0.0,
        last_shifted=0.0,
        scale=0.0,
        shear=0.0,
        shift=0.0,
        elastic=0.8,
    ),
}

RECIPES = {
    "": PLAIN,
    "half": dataclasses.replace(PLAIN, model=StemCapsNet(stem=HALF)),
    "cnn": CNN,
    "half_cnn": HALF_CNN,
    "enlarged_cnn": dataclasses.replace(CNN, **ENLARGED),
    "enlarged_half_cnn": dataclasses.replace(HALF_CNN, **ENLARGED),
    "paper": dataclasses.replace(
        PLAIN,
        num_epochs=12,
        batch_size=128,
        augmentation=Shift(),
        model=CapsNet(),
        optimizer=Adam(learning_rate=0.003, b2=0.99),
    ),
    "smoke": dataclasses.replace(
        PLAIN,
        num_epochs=2,
        steps_per_dispatch=10,
        data=dataclasses.replace(HELD_OUT, num_train=2_000, num_validation=1_000),
        model=StemCapsNet(stem=Stem(features=(32, 32, 32, 64)), primary_types=8),
    ),
}


def get_config(variant: str = "") -> Config:
    """Returns the recipe of that name; the plain one without a name."""
    return choose(RECIPES, variant, experiment="record")
