"""CapsNet on CIFAR-10 (Sabour et al. 2017, section 7).

    python -m capsjax.train --config experiments/cifar10.py --config.seed=0  # to 6
    python -m capsjax.evaluate --workdir runs/cifar10-seed*

Trains on crops of 24x24 pixels, with 64 types of primary capsules and a "none of the
above" class in the routing. The paper averages an ensemble of seven networks;
``evaluate`` averages the runs that it is given.

Variants: ``smoke``, a minute.

Results: docs/results.md
"""

from capsjax.config import Config, Data, Model, Optimizer, make_smoke, require_variant

VARIANTS = ("", "smoke")


def get_config(variant: str = "") -> Config:
    """The recipe of that name; the plain one without a name."""
    require_variant(variant, VARIANTS, "cifar10")
    config = Config(experiment="cifar10", variant=variant)
    config.num_epochs = 50
    config.data = Data(name="cifar10", crop=24, max_shift=0)
    config.model = Model(primary_types=64, none_of_the_above=True)
    config.optimizer = Optimizer(learning_rate=0.001)
    if variant == "smoke":
        make_smoke(config)
    return config
