"""CapsNet on Fashion-MNIST (Xiao, Rasul and Vollgraf 2017).

    python -m capsjax.train --config experiments/fashion_mnist.py

Trains the plain recipe of ``experiments/mnist.py`` on other data, for ten epochs. Any
folder of four IDX archives will do, for instance the one in Debian's package
``dataset-fashion-mnist``: ``--config.data.name=FOLDER``.

Variants: ``smoke``, a minute.

Results: docs/results.md
"""

from capsjax.config import Adam, Config, Data
from capsjax.config.recipes import choose, smoke

PLAIN = Config(
    num_epochs=10,
    data=Data("fashion_mnist"),
    optimizer=Adam(learning_rate=0.003, b2=0.99),
)

RECIPES = {
    "": PLAIN,
    "smoke": smoke(PLAIN),
}


def get_config(variant: str = "") -> Config:
    """Returns the recipe of that name; the plain one without a name."""
    return choose(RECIPES, variant, experiment="fashion_mnist")
