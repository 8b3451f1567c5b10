"""CapsNet on Fashion-MNIST (Xiao, Rasul and Vollgraf 2017).

    python -m capsjax.train --config experiments/fashion_mnist.py

The plain recipe of ``experiments/mnist.py``, unchanged but for the data and ten epochs.
Any folder of four IDX archives will do, for instance that of Debian's package
``dataset-fashion-mnist``: ``--config.data.name=FOLDER``.

Variants: ``smoke``, a minute.

Results: 90.74 %, loss 0.075418, the last checkpoint and the best by validation
(91.08 %); seed 0, float32, commit 528f7c8, 52 minutes of one core of an Intel Xeon
beside other work. ``smoke``: 79.86 % in half a minute. No other test evaluation was
made.
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
