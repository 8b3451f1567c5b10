"""The same network, another routing: the rows of one table.

    python -m capsjax.train --config experiments/routings.py:dynamic_3
    python benchmarks/routings_runs.py             # all rows, three seeds
    python -m capsjax.report --table routings benchmarks/results/routings/*.jsonl

The network has two convolutions and one layer of ten class capsules, 1.07 million
parameters, and no decoder. Only the last layer differs between the variants, which are
named after the algorithm and its rounds:

cnn             Features, a hidden layer of 160 units and a softmax in place of
                primary capsules, the 10 x 16 components of class capsules and lengths.
uniform         No routing: all couplings are alike.
uniform_shared  The same with one matrix for each class, shared by all primary capsules.
smoke           ``dynamic_2`` on a part of the images: half a minute on two cores.

Each row has the loss that fits its activations. The rate and one other number of each
row were chosen on validation images by ``benchmarks/routings_search.py``, among as many
for each row. The other number is the scale of W's first values, or the CNN's dropout.

Results: docs/which-routing.md
"""

import dataclasses
from typing import NamedTuple

from capsjax import (
    CapsNet,
    DynamicRouting,
    EMRouting,
    InvertedAttention,
    SelfAttention,
    SelfRouting,
    UniformRouting,
    VariationalBayesRouting,
)
from capsjax.config import Adam, Config
from capsjax.config.recipes import choose
from capsjax.initializers import PRIMARY_LENGTH
from capsjax.models import BaselineCNN

NETWORK = CapsNet(conv_features=32, primary_types=16, decoder_features=None)
ROWS = {
    "cnn": BaselineCNN(
        conv_features=(32, 128),
        conv_kernel=9,
        conv_strides=(1, 2),
        conv_padding="VALID",
        hidden_features=(160,),
    ),
    "uniform": NETWORK.clone(routing=UniformRouting()),
    "uniform_shared": NETWORK.clone(routing=UniformRouting(), share_weight=True),
    "dynamic_2": NETWORK.clone(routing=DynamicRouting(num_iterations=2)),
    "dynamic_3": NETWORK.clone(routing=DynamicRouting(num_iterations=3)),
    "self_attention": NETWORK.clone(routing=SelfAttention()),
    "inverted_2": NETWORK.clone(routing=InvertedAttention(num_iterations=2)),
    "self_routing": NETWORK.clone(routing=SelfRouting()),
    "em_2": NETWORK.clone(routing=EMRouting(num_iterations=2)),
    "em_3": NETWORK.clone(routing=EMRouting(num_iterations=3)),
    "variational_bayes_3": NETWORK.clone(
        routing=VariationalBayesRouting(num_iterations=3)
    ),
}


class Choice(NamedTuple):
    """What a search chose for a row.

    Attributes:
        learning_rate: The highest rate.
        other: Factor of W's standard deviation, or the CNN's dropout.
    """

    learning_rate: float
    other: float


# What the search tries: all other numbers at the first rate, the best at the second.
RATES = (0.001, 0.003)
SCALES = (0.03, 0.1, 1 / 3, 1.0, 3.0, 10.0)
DROPOUTS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75)
# The scales of algorithms that want votes of a certain size are factors of this.
VOTE_DEVIATION = 0.1
# By benchmarks/routings_search.py: benchmarks/results/routings/search.jsonl
CHOSEN = {
    "cnn": Choice(0.003, 0.0),
    "uniform": Choice(0.003, 3.0),
    "uniform_shared": Choice(0.003, 0.1),
    "dynamic_2": Choice(0.003, 3.0),
    "dynamic_3": Choice(0.003, 3.0),
    "self_attention": Choice(0.003, 1 / 3),
    "inverted_2": Choice(0.003, 1.0),
    # The losses of all scales are equal: the scale has no effect here.
    "self_routing": Choice(0.003, 0.03),
    # The search's best, 0.003, did not learn in ten epochs: docs/which-routing.md.
    "em_2": Choice(0.001, 0.03),
    "em_3": Choice(0.001, 0.03),
    "variational_bayes_3": Choice(0.001, 1 / 3),
}


def recipe(row: str, choice: Choice) -> Config:
    """Returns the recipe of a row with a choice of rate and first weights."""
    model = ROWS[row]
    if isinstance(model, CapsNet):
        # The deviation that weight_init="scaled" has in this network, or votes of 0.1.
        fits = model.routing.vote_deviation is None
        scaled = 0.02 * 2**0.5 if fits else VOTE_DEVIATION / PRIMARY_LENGTH
        model = model.clone(weight_init=f"normal({scaled * choice.other:.4g})")
    else:
        model = model.clone(dropout=choice.other)
    optimizer = Adam(learning_rate=choice.learning_rate, b2=0.99)
    return Config(num_epochs=10, model=model, optimizer=optimizer)


RECIPES = {row: recipe(row, CHOSEN[row]) for row in ROWS}
RECIPES[""] = RECIPES["dynamic_3"]
RECIPES["smoke"] = dataclasses.replace(
    RECIPES["dynamic_2"],
    num_epochs=2,
    batch_size=50,
    steps_per_dispatch=20,
    data=dataclasses.replace(
        RECIPES["dynamic_2"].data, num_train=10_000, num_validation=2_000
    ),
)


def get_config(variant: str = "") -> Config:
    """Returns the recipe of a row."""
    return choose(RECIPES, variant, experiment="routings")
