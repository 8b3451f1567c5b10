"""Recipes of an experiment: a dict of configs by the name of the variant."""

import copy
import dataclasses
from collections.abc import Mapping

from capsjax.config.sections import Config
from capsjax.config.values import replaced


def choose(recipes: Mapping[str, Config], variant: str, *, experiment: str) -> Config:
    """Returns a copy of the recipe of that name, which carries both names.

    Args:
        recipes: The recipes of the experiment; the plain one has the empty name.
        variant: Name of the recipe.
        experiment: Name of the experiment, for the default work directory.

    Raises:
        ValueError: If there is no such recipe, naming those that there are.
    """
    if variant not in recipes:
        named = ", ".join(name for name in recipes if name)
        raise ValueError(
            f"unknown variant {variant!r} of experiments/{experiment}.py; choose from "
            f"{named}, or none"
        )
    recipe = copy.deepcopy(recipes[variant])
    return dataclasses.replace(recipe, experiment=experiment, variant=variant)


def smoke(recipe: Config) -> Config:
    """Shrinks a recipe to about a minute: a narrow network, few images, two epochs."""
    return dataclasses.replace(
        recipe,
        num_epochs=2,
        batch_size=50,
        steps_per_dispatch=20,
        data=dataclasses.replace(recipe.data, num_train=10_000, num_validation=2_000),
        model=replaced(recipe.model, conv_features=64, primary_types=8),
    )
