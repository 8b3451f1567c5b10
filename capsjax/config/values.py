"""Sections of a config as values: their fields, words, and form in JSON.

A section is a dataclass or a Flax module. A word chooses its class from a table:
``adamw`` from ``OPTIMIZERS``. A class in no table is a user's own.
"""

import dataclasses
import difflib
import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn

from capsjax import bounds
from capsjax.config.data import Data
from capsjax.config.optimizers import OPTIMIZERS, Optimizer
from capsjax.data.augment import AUGMENTATIONS, Augmentation
from capsjax.losses import LOSSES, Loss
from capsjax.models import NETWORKS
from capsjax.models.network import FROM_DATA
from capsjax.routings import ROUTINGS, Algorithm

_TABLES: tuple[tuple[type, Mapping[str, Any]], ...] = (
    (nn.Module, NETWORKS),
    (Algorithm, ROUTINGS),
    (Loss, LOSSES),
    (Optimizer, OPTIMIZERS),
    (Augmentation, AUGMENTATIONS),
    (Data, {}),
)
_BASES = tuple(base for base, _ in _TABLES)
# Keys in JSON for a section's class: a word from a table, or a user's own class.
_KIND, _OWN = "kind", "class"


class ConfigError(ValueError):
    """A field of a config has a value that is not allowed; the message names both.

    Examples:
        >>> from capsjax.config import Config, ConfigError, validate
        >>> try:
        ...     validate(Config(num_epochs=0))
        ... except ConfigError as error:
        ...     print(error)
        config.num_epochs must be at least 1, got 0.
    """


def is_section(value: Any) -> bool:
    """Returns True if a value has fields of its own."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def fields_of(section: Any) -> dict[str, Any]:
    """Returns the fields of a section, or of its class, and their annotations."""
    kind = section if isinstance(section, type) else type(section)
    hidden = ("parent", "name", *FROM_DATA) if issubclass(kind, nn.Module) else ()
    return {
        field.name: _hint(kind, field)
        for field in dataclasses.fields(kind)
        if field.init and field.name not in hidden
    }


def _hint(kind: type, field: dataclasses.Field) -> Any:
    """Evaluates an annotation; a text may need names from its own module."""
    if not isinstance(field.type, str):
        return field.type
    try:
        return eval(field.type, vars(sys.modules[kind.__module__]))
    except Exception:
        return Any


def paths(section: Any) -> list[str]:
    """Returns the dotted names of a section's fields; those of its sections follow."""
    names = [*fields_of(section)]
    for name in fields_of(section):
        if is_section(value := getattr(section, name)):
            names += [f"{name}.{one}" for one in paths(value)]
    return names


def replaced(section: Any, **values: Any) -> Any:
    """Returns a copy of a section with other values in some fields."""
    if isinstance(section, nn.Module):
        return section.clone(**values)
    return dataclasses.replace(section, **values)


def word_of(section: Any) -> str | None:
    """Returns the word for the class of a section; None if no table has it."""
    for word, kind in table_of(type(section)).items():
        if kind is type(section):
            return word
    return None


def is_own(section: Any) -> bool:
    """Returns True if a section is of a user's own class."""
    return word_of(section) is None and any(
        isinstance(section, base) and type(section) is not base for base, _ in _TABLES
    )


def table_of(kind: type) -> Mapping[str, Any]:
    """Returns the table of the classes that may replace this one."""
    for base, table in _TABLES:
        if issubclass(kind, base):
            return table
    return {}


def words(name: str) -> list[str]:
    """Returns the words that choose the section of that name."""
    tables = {"model": NETWORKS, "model.routing": ROUTINGS, "loss": LOSSES}
    tables |= {"optimizer": OPTIMIZERS, "augmentation": AUGMENTATIONS}
    return [*tables[name]]


def require_field(path: str, section: Any, name: str) -> None:
    """Raises if a section does not have a field.

    Raises:
        ConfigError: With the section's fields, and the kinds that have that field.
    """
    fields = fields_of(section) if is_section(section) else {}
    if name in fields:
        return
    near = difflib.get_close_matches(name, fields, n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    known = f" It has {', '.join(fields)}." if fields else ""
    kind = word_of(section)
    which = path if kind is None else f"{path}={kind}"
    others = [
        word
        for word, other in table_of(type(section)).items()
        if name in fields_of(other)
    ]
    if others:
        hint = f"; {path}={' or '.join(others)} has."
    raise ConfigError(f"{which} has no field {name}{hint}{known}")


def require_known(path: str, section: Any) -> None:
    """Raises for an attribute that is no field: a config file may set a misspelt one.

    Raises:
        ConfigError: With the attribute and the existing fields.
    """
    flaxs_own = ("parent", "name", "scope", *FROM_DATA)
    for name in vars(section):
        is_flaxs = isinstance(section, nn.Module) and name in flaxs_own
        if not (name.startswith("_") or is_flaxs):
            require_field(path, section, name)


def check(path: str, section: Any) -> None:
    """Checks the type and range of every field, also in sections within.

    Raises:
        ConfigError: With the field, its value and the allowed values.
    """
    require_known(path, section)
    for name, hint in fields_of(section).items():
        value, where = getattr(section, name), f"{path}.{name}"
        if is_section(value):
            check(where, value)
            continue
        if isinstance(value, _BASES):
            raise ConfigError(
                f"{where}: {type(value).__name__} must be a dataclass. Write "
                "@dataclasses.dataclass(frozen=True) above its class."
            )
        if isinstance(hint, type) and (table := table_of(hint)):
            kinds = ", ".join(f"{kind.__name__}()" for kind in table.values())
            raise ConfigError(
                f"{where} must be a value, such as one of {kinds}, got {value!r}."
            )
        try:
            bounds.require(value, hint, where)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if not _is_plain(value):
            raise ConfigError(
                f"{where} must be a number, a text, true or false, a tuple of these or "
                f"a section, got {value!r}: it is written into config.json."
            )
    if not isinstance(section, nn.Module) and hasattr(section, "check"):
        try:
            section.check()
        except ValueError as error:
            raise ConfigError(f"{path}.{error}") from error


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def assigned(section: Any, path: str, names: Sequence[str], text: str) -> Any:
    """Returns a copy of a section in which one field has the value in a text.

    Args:
        section: The section.
        path: Name of the section.
        names: Names of the sections on the way to the field, then of the field.
        text: A value, or the word that chooses the kind of a section.

    Raises:
        ConfigError: With the field, the text and the allowed values.
    """
    name, *rest = names
    require_field(path, section, name)
    value, where = getattr(section, name), f"{path}.{name}"
    if rest:
        value = assigned(value, where, rest, text)
    elif is_section(value):
        value = chosen(value, where, text)
    else:
        hint = fields_of(section)[name]
        if hint is Any and type(value) in (bool, int, float, str):
            hint = type(value)
        try:
            value = bounds.parse(text, hint, where)
            bounds.require(value, hint, where)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    try:
        return replaced(section, **{name: value})
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def chosen(section: Any, path: str, word: str) -> Any:
    """Returns the kind of section that a word chooses, to replace another.

    Returns the section itself if it is of this kind. Otherwise fields that both inherit
    from a common base, like ``learning_rate``, keep their values, and others get their
    defaults.

    Raises:
        ConfigError: With the existing words.
    """
    table = table_of(type(section))
    if word not in table:
        there = f"one of {', '.join(table)}" if table else "set field by field"
        near = difflib.get_close_matches(word, table, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise ConfigError(f"{path} must be {there}, got {word!r}{hint}")
    kind = table[word]
    if type(section) is kind:
        return section
    bases = set(kind.__mro__) & set(type(section).__mro__)
    common = {name for base in bases for name in inspect.get_annotations(base)}
    kept = fields_of(kind).keys() & fields_of(section).keys() & common
    return kind(**{name: getattr(section, name) for name in kept})


def to_json(section: Any) -> dict[str, Any]:
    """Returns a section as nested plain values, with a word for its class."""
    word = word_of(section)
    values: dict[str, Any] = {}
    if word is not None:
        values[_KIND] = word
    elif is_own(section):
        values[_OWN] = type(section).__name__
    for name in fields_of(section):
        value = getattr(section, name)
        values[name] = to_json(value) if is_section(value) else value
    return values


def from_json(template: Any, values: Any, path: str) -> Any:
    """Makes a section from the values of ``to_json``, also of older editions.

    Args:
        template: The section to replace. It must have the class of a user's own
            section, whose missing fields get the template's values.
        values: The nested plain values, perhaps without newer fields.
        path: Name of the section.

    Raises:
        ConfigError: If a field or the kind is unknown.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must be an object with fields, got {values!r}.")
    values, names = dict(values), {*values}
    if _KIND in values:
        template = chosen(template, path, str(values.pop(_KIND)))
    elif _OWN in values and (own := values.pop(_OWN)) != type(template).__name__:
        other = type(template).__name__
        if is_own(template):
            raise ConfigError(
                f"{path} is {own} in the run, and {other} in the experiment file: "
                "name the file and the variant with which the run was trained."
            )
        raise ConfigError(
            f"{path} is {own}, a class that capsjax does not have: open the run with "
            "its experiment file, --config FILE or load_run(..., config=...)."
        )
    elif is_own(template) and _OWN not in names:
        template = Data()  # Only the data of capsjax itself has neither key.
    section = template if is_own(template) else type(template)()
    fields = fields_of(section)
    if unknown := sorted(values.keys() - fields.keys()):
        raise ConfigError(f"{path} has unknown fields: {', '.join(unknown)}.")
    read = {}
    for name, value in values.items():
        if is_section(here := getattr(template, name)):
            value = from_json(here, value, f"{path}.{name}")
        elif isinstance(value, list):
            value = tuple(value)
        else:
            # Check before the class does, which may raise an error of its own.
            try:
                bounds.require(value, fields[name], f"{path}.{name}")
            except ValueError as error:
                raise ConfigError(str(error)) from error
        read[name] = value
    try:
        return replaced(section, **read)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
