"""Variables of a network by name: their check, and their exchange between networks."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from capsjax.models.network import Network, NetworkError, init_variables


def named(variables: Any) -> dict[str, Any]:
    """Returns the arrays of nested variables by name: ``params/conv/kernel``."""
    return dict(flatten_dict(variables, sep="/"))


def nested(arrays: Mapping[str, Any]) -> Any:
    """Returns nested variables, from the arrays by name: the inverse of ``named``."""
    return unflatten_dict(dict(arrays), sep="/")


def checksum(variables: Any) -> str:
    """Returns a checksum of the names and numbers of nested variables."""
    digest = hashlib.blake2b(digest_size=16)
    for name, array in sorted(named(variables).items()):
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def fits(own: Mapping[str, Any], other: Mapping[str, Any], name: str) -> bool:
    """Returns True if both have a variable of that name, in one shape."""
    return name in other and other[name].shape == own[name].shape


def replace_fitting(variables: Any, others: Any) -> Any:
    """Replaces each variable of which another tree has one of that name and shape."""
    own, other = named(variables), named(others)
    new = {name: other[name] if fits(own, other, name) else own[name] for name in own}
    return nested(new)


def require_variables(network: Network, variables: Any) -> None:
    """Raises if variables are not of a network.

    Raises:
        NetworkError: With the first name, shape or type that differs.
    """
    name = type(network).__name__
    shapes = jax.eval_shape(lambda: init_variables(network, jax.random.key(0)))
    wanted, there = named(shapes), named(variables)
    for one in {**wanted, **there}:
        if one not in there or one not in wanted:
            word = "no" if one in wanted else "unknown"
            raise NetworkError(
                f"the variables have {word} {one}: {name} has {', '.join(wanted)}."
            )
        for what in ("shape", "dtype"):
            right, found = getattr(wanted[one], what), getattr(there[one], what, None)
            if found != right:
                raise NetworkError(
                    f"{one} of {name} must have the {what} {right}, got {found}."
                )
        if not np.isfinite(np.asarray(there[one], np.float64)).all():
            raise NetworkError(f"{one} of {name} has numbers that are not finite.")
