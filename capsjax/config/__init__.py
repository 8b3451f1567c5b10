"""The config of a run: see :mod:`capsjax.config.sections`."""

from typing import Any

from capsjax.config import former
from capsjax.config.optimizers import OPTIMIZERS, SGD, Adam, AdamW, Lion, Optimizer
from capsjax.config.sections import (
    CHANGEABLE,
    PLACES,
    RECORDED,
    WITHOUT_EFFECT,
    Config,
    Data,
    from_dict,
    override,
    to_dict,
    validate,
)
from capsjax.config.values import ConfigError, is_own, paths, replaced, word_of, words

__all__ = [
    "CHANGEABLE",
    "OPTIMIZERS",
    "PLACES",
    "RECORDED",
    "SGD",
    "WITHOUT_EFFECT",
    "Adam",
    "AdamW",
    "Config",
    "ConfigError",
    "Data",
    "Lion",
    "Optimizer",
    "from_dict",
    "is_own",
    "override",
    "paths",
    "replaced",
    "to_dict",
    "validate",
    "word_of",
    "words",
]


def __getattr__(name: str) -> Any:
    if name in former.NAMES:
        raise ImportError(f"capsjax.config.{name} is {former.NAMES[name]} now.")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
