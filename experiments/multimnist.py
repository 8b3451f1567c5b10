"""CapsNet on MultiMNIST: two overlapping digits (Sabour et al. 2017, section 6).

    python -m capsjax.train --config experiments/multimnist.py

Makes pairs as training needs them, to the paper's description: an epoch shows each
training digit once as the first of a pair, with another partner and other shifts of up
to 4 pixels every time. So 18 epochs of 55,000 are a million pairs (the paper has 60
million). Validation and test pairs are fixed, one for each digit, and training uses
none of their digits. ``accuracy`` is the share of images with both digits right,
``label_accuracy`` the share of right digits. The rate is 0.001: with 0.003 the first
steps are too large for this many primary capsules.

Variants: ``smoke``, a minute.

Results: docs/results.md
"""

from capsjax.config import Adam, Config, Data
from capsjax.config.recipes import choose, smoke
from capsjax.data.augment import Shift

PLAIN = Config(
    num_epochs=18,
    data=Data("multi_mnist"),
    augmentation=Shift(max_shift=0),  # The data set shifts the digits.
    optimizer=Adam(learning_rate=0.001, b2=0.99),
)

RECIPES = {
    "": PLAIN,
    "smoke": smoke(PLAIN),
}


def get_config(variant: str = "") -> Config:
    """Returns the recipe of that name; the plain one without a name."""
    return choose(RECIPES, variant, experiment="multimnist")
