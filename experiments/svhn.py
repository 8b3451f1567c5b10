"""CapsNet on SVHN, cropped (Sabour et al. 2017, section 7).

    python -m capsjax.train --config experiments/svhn.py

Trains a small network: 64 channels, 16 types of primary capsules of 6 components, class
capsules of 8, on the 73,257 images of ``train`` alone.

Variants: ``smoke``, a minute.

Results: docs/results.md
"""

from capsjax.config import Config, Data, Model, Optimizer, make_smoke, require_variant

VARIANTS = ("", "smoke")


def get_config(variant: str = "") -> Config:
    """The recipe of that name; the plain one without a name."""
    require_variant(variant, VARIANTS, "svhn")
    config = Config(experiment="svhn", variant=variant)
    config.num_epochs = 20
    config.data = Data(name="svhn_cropped", max_shift=0)
    config.model = Model(conv_features=64, primary_types=16, primary_dim=6, class_dim=8)
    config.optimizer = Optimizer(learning_rate=0.001)
    if variant == "smoke":
        make_smoke(config)
    return config
