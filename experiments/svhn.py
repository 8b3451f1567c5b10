"""CapsNet on SVHN, cropped (Sabour et al. 2017, section 7).

    python -m capsjax.train --config experiments/svhn.py

Trains a small network: 64 channels, 16 types of primary capsules of 6 components, class
capsules of 8, on the 73,257 images of ``train`` alone.

Variants: ``smoke``, a minute.

Results: docs/results.md
"""

from capsjax import CapsNet
from capsjax.config import Config, Data
from capsjax.config.recipes import choose, smoke
from capsjax.data.augment import Shift

PLAIN = Config(
    num_epochs=20,
    data=Data("svhn_cropped"),
    augmentation=Shift(max_shift=0),
    model=CapsNet(conv_features=64, primary_types=16, primary_dim=6, class_dim=8),
)

RECIPES = {
    "": PLAIN,
    "smoke": smoke(PLAIN),
}


def get_config(variant: str = "") -> Config:
    """Returns the recipe of that name; the plain one without a name."""
    return choose(RECIPES, variant, experiment="svhn")
