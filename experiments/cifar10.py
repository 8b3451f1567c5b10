"""CapsNet on CIFAR-10 (Sabour et al. 2017, section 7).

    python -m capsjax.train --config experiments/cifar10.py --config.seed=0  # to 6
    python -m capsjax.evaluate --workdir runs/cifar10-seed*

Trains on crops of 24x24 pixels, with 64 types of primary capsules and a "none of the
above" class in the routing. The paper averages an ensemble of seven networks;
``evaluate`` averages the runs that it is given.

Variants: ``smoke``, a minute.

Results: docs/results.md
"""

from capsjax import CapsNet, DynamicRouting
from capsjax.config import Config, Data
from capsjax.config.recipes import choose, smoke
from capsjax.data.augment import Shift

PLAIN = Config(
    num_epochs=50,
    data=Data("cifar10", crop=24),
    augmentation=Shift(max_shift=0),
    model=CapsNet(primary_types=64, routing=DynamicRouting(none_of_the_above=True)),
)

RECIPES = {
    "": PLAIN,
    "smoke": smoke(PLAIN),
}


def get_config(variant: str = "") -> Config:
    """Returns the recipe of that name; the plain one without a name."""
    return choose(RECIPES, variant, experiment="cifar10")
