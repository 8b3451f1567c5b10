"""CapsNet on smallNORB (Sabour et al. 2017, section 7).

    python -m capsjax.train --config experiments/smallnorb.py

Trains the network of MNIST on stereo pairs as two channels, scaled to 48x48 and cropped
to 32x32: at a random place in training, in the middle otherwise.

Variants: ``smoke``, a minute.

Results: docs/results.md
"""

from capsjax.config import Config, Data
from capsjax.config.recipes import choose, smoke
from capsjax.data.augment import Shift

PLAIN = Config(
    num_epochs=50,
    data=Data("smallnorb", image_size=48, num_validation=2_430, crop=32),
    augmentation=Shift(max_shift=0),
)

RECIPES = {
    "": PLAIN,
    "smoke": smoke(PLAIN),
}


def get_config(variant: str = "") -> Config:
    """Returns the recipe of that name; the plain one without a name."""
    return choose(RECIPES, variant, experiment="smallnorb")
