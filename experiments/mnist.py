"""CapsNet on MNIST (Sabour, Frosst and Hinton 2017, section 5).

    python -m capsjax.train --config experiments/mnist.py

trains the paper's network for 12 epochs: cosine schedule from 0.003, Adam's b2 = 0.99.
Variants, ``experiments/mnist.py:NAME``, are frozen recipes:

notebook  Geron's ``extra_capsnets.ipynb``: 2 rounds, ReLU before the primary squash,
          mean squared error, batches of 50, no shifts.
paper     The paper's text: 3 rounds, summed squared error, shifts of up to 2 pixels.
          First weights (not in the text) as above, decay of the rate as in their code.
authors   Their released code: margin loss / 20, primary capsules / 32, all biases 0.1,
          truncated normals. They trained 640 epochs; this recipe trains 10.
one_round, no_reconstruction, one_round_no_reconstruction
          ``paper`` with 1 round of routing, without reconstruction, or both.
narrow    A quarter of the features and of the primary capsules, a small decoder: the
          network of 1 million parameters that comes with capsjax. Images are warped.
efficient Efficient-CapsNet (Mazzia, Salvetti and Chiaberge 2021): 161,824 parameters
          and a decoder, self-attention routing, batches of 16, rate 0.0005, first
          weights as in their code. They trained 150 epochs, x 0.97 after each; this
          recipe trains 20 with a cosine schedule, and bends no images.
cnn       The paper's baseline of 35.4 million parameters, Adam at 0.001, cosine.
smoke     A narrow network and a fifth of the images: half a minute on two cores.

Results: docs/results.md
"""

import dataclasses

from capsjax import CapsNet, DynamicRouting
from capsjax.config import Adam, Config
from capsjax.config.recipes import choose, smoke
from capsjax.data.augment import Shift, Warp
from capsjax.losses import AutoLoss
from capsjax.models import BaselineCNN, EfficientCapsNet

PAPER = Config(
    model=CapsNet(
        conv_init="normal(0.064)",
        primary_init="normal(0.0098)",
        weight_init="normal(0.02)",
    ),
    optimizer=Adam(schedule="exponential", floor=0.0),
)
ONE_ROUND = PAPER.model.clone(routing=DynamicRouting(num_iterations=1))
NO_RECONSTRUCTION = AutoLoss(reconstruction_weight=0.0)

RECIPES = {
    "": Config(num_epochs=12, optimizer=Adam(learning_rate=0.003, b2=0.99)),
    "notebook": Config(
        batch_size=50,
        augmentation=Shift(max_shift=0),
        model=CapsNet(
            routing=DynamicRouting(num_iterations=2),
            primary_relu=True,
            conv_init="glorot_uniform",
            primary_init="glorot_uniform",
            weight_init="normal(0.1)",
            decoder_init="glorot_uniform",
            reconstruction_init="glorot_uniform",
        ),
        loss=AutoLoss(reconstruction_reduction="mean"),
        optimizer=Adam(schedule="constant"),
    ),
    # The rows of the paper's table 1.
    "one_round_no_reconstruction": dataclasses.replace(
        PAPER, model=ONE_ROUND, loss=NO_RECONSTRUCTION
    ),
    "one_round": dataclasses.replace(PAPER, model=ONE_ROUND),
    "no_reconstruction": dataclasses.replace(PAPER, loss=NO_RECONSTRUCTION),
    "paper": PAPER,
    "authors": Config(
        model=CapsNet(
            primary_scale=1 / 32,
            routing=DynamicRouting(bias=0.1),
            conv_init="truncated_normal(0.05)",
            primary_init="truncated_normal(0.1)",
            weight_init="truncated_normal(0.1)",
            decoder_init="truncated_normal(0.1)",
            reconstruction_init="truncated_normal(0.1)",
            bias_init="constant(0.1)",
        ),
        loss=AutoLoss(weight=1 / 20),
        optimizer=Adam(schedule="exponential", floor=1e-6),
    ),
    "narrow": Config(
        num_epochs=12,
        augmentation=Warp(),
        model=CapsNet(conv_features=64, primary_types=8, decoder_features=(128, 256)),
        optimizer=Adam(learning_rate=0.003, b2=0.99),
    ),
    "efficient": Config(
        num_epochs=20,
        batch_size=16,
        augmentation=Warp(),
        model=EfficientCapsNet(
            weight_init="truncated_normal(0.0449)",
            reconstruction_init="glorot_uniform",
        ),
        optimizer=Adam(learning_rate=5e-4, floor=5e-5),
    ),
    "cnn": Config(model=BaselineCNN()),
    "smoke": smoke(Config()),
}


def get_config(variant: str = "") -> Config:
    """Returns the recipe of that name; the plain one without a name."""
    return choose(RECIPES, variant, experiment="mnist")
