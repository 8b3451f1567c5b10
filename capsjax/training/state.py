"""The state of a run: the inputs of its next step, besides the data."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, Key

from capsjax import config as configs
from capsjax.data.readers.layout import shortened
from capsjax.models import Network
from capsjax.models.network import init_variables
from capsjax.models.variables import named, replace_fitting
from capsjax.runtime.devices import replicated


class TrainState(NamedTuple):
    """All inputs of the next step, besides the data.

    Attributes:
        step: Optimizer steps done.
        augment_key: Key from which each step folds its own.
        params: The network's variables: its weights, under Flax's name ``params``, and
            other collections, for example batch statistics.
        opt_state: The optimizer's state.
        average: The moving average of the variables, if the recipe sets one.
    """

    step: Int[Array, ""]
    augment_key: Key[Array, ""]
    params: Any
    opt_state: Any
    average: Any

    @property
    def evaluated(self) -> Any:
        """Variables to evaluate: the average, if there is one."""
        return getattr(self, self.evaluated_name)

    @property
    def evaluated_name(self) -> str:
        """Name of the field whose variables are evaluated."""
        return "params" if self.average is None else "average"


def split_weights(variables: Any, frozen: Sequence[str] = ()) -> tuple[Any, Any]:
    """Splits the weights to train from the frozen weights and the other collections."""
    others = {name: one for name, one in variables.items() if name != "params"}
    weights = dict(variables["params"])
    if frozen:
        others["params"] = {name: weights.pop(name) for name in frozen}
    return {"params": weights}, others


def joined(weights: Any, others: Any) -> Any:
    """Joins what ``split_weights`` split."""
    return {**others, "params": {**others.get("params", {}), **weights["params"]}}


def init_state(
    model: Network,
    optimizer: optax.GradientTransformation,
    config: configs.Config,
    start: Any = None,
) -> TrainState:
    """Makes the state before the first step: a function of the seed and the start.

    Args:
        model: The network.
        optimizer: The optimizer.
        config: The config of the run.
        start: Variables of another run, which replace those of the same name and shape.
    """
    init_key, augment_key = jax.random.split(jax.random.key(config.seed))
    variables = init_variables(model, init_key)
    if start is not None:
        variables = replace_fitting(variables, start)
    average = jax.tree.map(jnp.copy, variables) if config.optimizer.average else None
    opt_state = optimizer.init(split_weights(variables, config.freeze)[0])
    step = jnp.zeros((), jnp.int32)
    return TrainState(step, augment_key, variables, opt_state, average)


def first_state(
    model: Network,
    optimizer: optax.GradientTransformation,
    config: configs.Config,
    start: Any = None,
) -> TrainState:
    """Makes the first state on all devices, and checks it.

    Args:
        model: As in ``init_state``, like the others.
        optimizer: The optimizer.
        config: The config of the run.
        start: Variables of another run.

    Raises:
        ConfigError: If a number is not finite, with the variable's name.
    """
    first = functools.partial(init_state, model, optimizer, config)
    state = jax.jit(first, out_shardings=replicated())(start)
    # On the host: a device would need one more program at every start.
    bad = [
        name
        for name, array in named(state.params).items()
        if jnp.issubdtype(array.dtype, jnp.inexact)
        and not np.isfinite(np.asarray(array)).all()
    ]
    if bad:
        raise configs.ConfigError(
            f"{type(model).__name__} starts with numbers that are not finite in "
            f"{shortened(bad)}: change its initializer."
        )
    return state
