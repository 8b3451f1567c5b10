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

from capsjax.config import Config, Optimizer, make_smoke, require_variant

VARIANTS = ("", "smoke")


def get_config(variant: str = "") -> Config:
    """The recipe of that name; the plain one without a name."""
    require_variant(variant, VARIANTS, "multimnist")
    config = Config(experiment="multimnist", variant=variant)
    config.num_epochs = 18
    config.data.name, config.data.max_shift = "multi_mnist", 0  # It shifts by itself.
    config.optimizer = Optimizer(learning_rate=0.001, b2=0.99)
    if variant == "smoke":
        make_smoke(config)
    return config
