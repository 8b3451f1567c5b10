"""CapsNet on Fashion-MNIST (Xiao, Rasul and Vollgraf 2017).

    python -m capsjax.train --config experiments/fashion_mnist.py

Trains the plain recipe of ``experiments/mnist.py`` on other data, for ten epochs. Any
folder of four IDX archives will do, for instance the one in Debian's package
``dataset-fashion-mnist``: ``--config.data.name=FOLDER``.

Variants: ``smoke``, a minute.

Results: docs/results.md
"""

from capsjax.config import Config, Optimizer, make_smoke, require_variant

VARIANTS = ("", "smoke")


def get_config(variant: str = "") -> Config:
    """The recipe of that name; the plain one without a name."""
    require_variant(variant, VARIANTS, "fashion_mnist")
    config = Config(experiment="fashion_mnist", variant=variant)
    config.num_epochs = 10
    config.data.name = "fashion_mnist"
    config.optimizer = Optimizer(learning_rate=0.003, b2=0.99)
    if variant == "smoke":
        make_smoke(config)
    return config
