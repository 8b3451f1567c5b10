"""Starts a run from another run's weights: ``init_from`` and ``freeze`` of a config."""

from typing import Any, NamedTuple

import jax
import numpy as np

from capsjax import config as configs
from capsjax.models import Network
from capsjax.models.network import init_variables
from capsjax.models.variables import checksum, fits, named
from capsjax.runtime.paths import expanded
from capsjax.storage.checkpoints import CheckpointError
from capsjax.storage.files import WorkdirError
from capsjax.storage.run import load_run
from capsjax.storage.workdir import Workdir


class Start(NamedTuple):
    """The weights that a run starts from.

    Attributes:
        run: The folder of the other run.
        step: Optimizer steps done with its weights.
        variables: Its variables, on the host.
        taken: Names of the variables that replace the random ones.
        anew: Names of the variables that start at random.
        num_taken: Number of the arrays that replace random ones.
        num_arrays: Number of all arrays of the network.
    """

    run: str
    step: int
    variables: Any
    taken: tuple[str, ...]
    anew: tuple[str, ...]
    num_taken: int
    num_arrays: int

    def __str__(self) -> str:
        anew = f"; {', '.join(self.anew)} start anew" if self.anew else ""
        return (
            f"{self.num_taken} of the network's {self.num_arrays} arrays start as "
            f"{self.run} has them after step {self.step}: "
            f"{', '.join(self.taken)}{anew}"
        )

    def about(self) -> dict[str, Any]:
        """Returns what ``history.json`` keeps, with a checksum of the weights."""
        return {**self._asdict(), "variables": checksum(self.variables)}


def read_start(
    config: configs.Config, model: Network, workdir: Workdir
) -> Start | None:
    """Reads the weights that ``config.init_from`` names; None if it names none.

    Raises:
        ConfigError: If there is no such run, none of its weights fits, or weights start
            anew that ``config.freeze`` names.
    """
    if not config.init_from:
        return None
    where = f"config.init_from={config.init_from}"
    if expanded(config.init_from).resolve() == workdir.path.resolve():
        raise configs.ConfigError(
            f"{where} is the folder of this run itself: choose another --workdir."
        )
    try:
        run = load_run(config.init_from, config=config)
    except (WorkdirError, CheckpointError) as error:
        raise configs.ConfigError(f"{where}: {error}") from error
    variables = jax.tree.map(np.asarray, run.params)
    own = named(jax.eval_shape(lambda: init_variables(model, jax.random.key(0))))
    other = named(variables)
    taken = [name for name in own if fits(own, other, name)]
    if not taken:
        raise configs.ConfigError(
            f"{where}: none of its weights has a name and shape of this network, "
            f"which has {', '.join(_short(own, own))}."
        )
    anew = [name for name in own if name not in taken]
    for name in anew:
        collection, part, *_ = name.split("/")
        if collection == "params" and part in config.freeze:
            there = f"{other[name].shape} there" if name in other else "not there"
            raise configs.ConfigError(
                f"config.freeze has {part!r}, which starts anew in spite of {where}: "
                f"{name} is {own[name].shape} in this network and {there}."
            )
    lists = _short(taken, own), _short(anew, own)
    return Start(config.init_from, run.step, variables, *lists, len(taken), len(own))


def check_freeze(config: configs.Config, variables: Any) -> None:
    """Raises if ``config.freeze`` names no weights of the network, or all of them.

    Raises:
        ConfigError: With the names that are allowed.
    """
    weights = variables["params"]
    there = f"the network has {', '.join(weights)}"
    for name in config.freeze:
        if name not in weights:
            raise configs.ConfigError(
                f"config.freeze has {name!r}, which names no weights: {there}."
            )
    if len(set(config.freeze)) < len(config.freeze):
        raise configs.ConfigError(
            f"config.freeze={','.join(config.freeze)} names weights twice."
        )
    if len(config.freeze) == len(weights):
        raise configs.ConfigError(
            f"config.freeze={','.join(config.freeze)} leaves nothing to train: {there}."
        )


def _short(names: Any, everything: Any) -> tuple[str, ...]:
    """Joins the names below one module where all of them are there."""
    short = []
    for name in names:
        for end in range(2, name.count("/") + 2):
            prefix = "/".join(name.split("/")[:end])
            below = [one for one in everything if f"{one}/".startswith(f"{prefix}/")]
            if all(one in names for one in below):
                short.append(prefix.removeprefix("params/"))
                break
    return tuple(dict.fromkeys(short))
