"""Recipes: a dict of configs by variant, in a file that ``--config`` names."""

import copy
import dataclasses
import difflib
import pathlib
import re
from collections.abc import Mapping, Sequence

from capsjax.config.sections import Config
from capsjax.config.values import replaced
from capsjax.runtime.paths import expanded

# Prefix of ``--config capsjax:NAME``.
_PACKAGED = "capsjax"


def choose(recipes: Mapping[str, Config], variant: str, *, experiment: str) -> Config:
    """Returns a copy of a recipe, which carries its experiment and variant.

    Args:
        recipes: The recipes of the experiment; the plain one has the empty name.
        variant: Name of the recipe.
        experiment: Name of the experiment, for the default work directory.

    Raises:
        ValueError: If no recipe has that name, with the existing names.

    Examples:
        >>> from capsjax.config import Config
        >>> from capsjax.config.recipes import choose
        >>> recipes = {"": Config(), "long": Config(num_epochs=100)}
        >>> choose(recipes, "long", experiment="mine").num_epochs
        100
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
    """Shrinks a recipe to about a minute: a narrow network, few images, two epochs.

    Args:
        recipe: A recipe whose network has the fields ``conv_features`` and
            ``primary_types``, as ``CapsNet`` has.

    Examples:
        >>> from capsjax.config import Config
        >>> from capsjax.config.recipes import smoke
        >>> recipe = smoke(Config(num_epochs=30))
        >>> recipe.num_epochs, recipe.data.num_train, recipe.model.conv_features
        (2, 10000, 64)
    """
    return dataclasses.replace(
        recipe,
        num_epochs=2,
        batch_size=50,
        steps_per_dispatch=20,
        data=dataclasses.replace(recipe.data, num_train=10_000, num_validation=2_000),
        model=replaced(recipe.model, conv_features=64, primary_types=8),
    )


# ---- the files of recipes


class RecipeError(Exception):
    """An unknown name of a recipe; the message lists the existing ones."""


def packaged_recipes() -> dict[str, pathlib.Path]:
    """Returns the paths of the recipes that come with capsjax, by name.

    They are inside an installed package, and beside it in a checkout.
    """
    package = pathlib.Path(__file__).parents[1]
    for folder in (package / "experiments", package.parent / "experiments"):
        if paths := sorted(folder.glob("*.py")):
            return {path.stem: path for path in paths}
    return {}


def with_paths(argv: Sequence[str]) -> list[str]:
    """Replaces the name of a recipe in ``--config`` by its path.

    ``--config capsjax:mnist:smoke`` stands for the variant ``smoke`` of the recipe
    ``mnist`` that comes with capsjax; ``~`` for the home folder.

    Args:
        argv: The command line.

    Raises:
        RecipeError: If no recipe of that name comes with capsjax.
    """
    result = list(argv)
    for n, argument in enumerate(argv):
        flag = re.fullmatch(r"(--?config)(=(.*))?", argument, re.DOTALL)
        if flag is None:
            continue
        if flag[2] is not None:
            result[n] = f"{flag[1]}={_located(flag[3])}"
        elif n + 1 < len(argv):
            result[n + 1] = _located(argv[n + 1])
    return result


def packaged_hint(argv: Sequence[str]) -> str:
    """Names the recipe of capsjax that a missing file of ``experiments/`` means."""
    recipes = "|".join(packaged_recipes())
    match = re.search(rf"experiments/({recipes})\.py(:\w+)?", " ".join(argv))
    if match is None:
        return ""
    return (
        f"; outside a checkout the recipe is --config "
        f"{_PACKAGED}:{match[1]}{match[2] or ''}"
    )


def _located(value: str) -> str:
    name, colon, variant = value.partition(":")
    if name != _PACKAGED or not colon:
        return f"{expanded(name)}{colon}{variant}" if name.startswith("~") else value
    name, colon, variant = variant.partition(":")
    there = packaged_recipes()
    if name not in there:
        near = difflib.get_close_matches(name, there, n=1)
        hint = f"did you mean {_PACKAGED}:{near[0]}? " if near else ""
        raise RecipeError(
            f"{_PACKAGED}:{name} is no recipe: {hint}Choose from {', '.join(there)}."
        )
    return f"{there[name]}{colon}{variant}"
