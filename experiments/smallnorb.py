"""CapsNet on smallNORB (Sabour et al. 2017, section 7).

    python -m capsjax.train --config experiments/smallnorb.py

Trains the network of MNIST on stereo pairs as two channels, scaled to 48x48 and cropped
to 32x32: at a random place in training, in the middle otherwise.

Variants: ``smoke``, a minute.

Results: docs/results.md
"""

from capsjax.config import Config, Data, Optimizer, make_smoke, require_variant

VARIANTS = ("", "smoke")


def get_config(variant: str = "") -> Config:
    """The recipe of that name; the plain one without a name."""
    require_variant(variant, VARIANTS, "smallnorb")
    config = Config(experiment="smallnorb", variant=variant)
    config.num_epochs = 50
    config.data = Data(
        name="smallnorb", image_size=48, num_validation=2_430, max_shift=0, crop=32
    )
    config.optimizer = Optimizer(learning_rate=0.001)
    if variant == "smoke":
        make_smoke(config)
    return config
