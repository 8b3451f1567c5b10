"""Starts a run from other weights: ``init_from``, its names, ``freeze`` of a config."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from capsjax import config as configs
from capsjax.data.readers.layout import shortened
from capsjax.models import Network
from capsjax.models.network import init_variables
from capsjax.models.variables import checksum, fits, named, nested
from capsjax.runtime.paths import expanded
from capsjax.storage.checkpoints import CheckpointError
from capsjax.storage.files import WorkdirError
from capsjax.storage.run import load_run
from capsjax.storage.weights import in_type_of, read_weights
from capsjax.storage.workdir import Workdir


class Start(NamedTuple):
    """The weights that a run starts from.

    Attributes:
        run: The folder of the other run, or the file.
        step: Optimizer steps done with its weights; None if unknown.
        variables: Its variables, on the host.
        taken: Names of the variables that replace the random ones.
        anew: Names of the variables that start at random.
        num_taken: Number of the arrays that replace random ones.
        num_arrays: Number of all arrays of the network.
    """

    run: str
    step: int | None
    variables: Any
    taken: tuple[str, ...]
    anew: tuple[str, ...]
    num_taken: int
    num_arrays: int

    def __str__(self) -> str:
        anew = f"; {', '.join(self.anew)} start anew" if self.anew else ""
        when = "" if self.step is None else f" after step {self.step}"
        return (
            f"{self.num_taken} of the network's {self.num_arrays} arrays start as "
            f"{self.run} has them{when}: "
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
        ConfigError: If there is no such run or file, none of its weights fits,
            ``config.init_names`` does not fit the file or the network, or weights start
            anew that ``config.freeze`` names.
    """
    if not config.init_from:
        return None
    where = f"config.init_from={config.init_from}"
    if expanded(config.init_from).resolve() == workdir.path.resolve():
        raise configs.ConfigError(
            f"{where} is the folder of this run itself: choose another --workdir."
        )
    own = named(jax.eval_shape(lambda: init_variables(model, jax.random.key(0))))
    try:
        step, other = _read(config, own)
    except (WorkdirError, CheckpointError) as error:
        raise configs.ConfigError(f"{where}: {error}") from error
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
    return Start(config.init_from, step, nested(other), *lists, len(taken), len(own))


def _read(
    config: configs.Config, own: Mapping[str, Any]
) -> tuple[int | None, dict[str, np.ndarray]]:
    """Reads the step and the arrays of a run or a file, by the network's names."""
    path = expanded(config.init_from)
    if path.is_dir() or (path.suffix != ".safetensors" and not path.is_file()):
        if config.init_names:
            raise configs.ConfigError(
                "config.init_names is for a file of weights, and config.init_from="
                f"{config.init_from} is a folder."
            )
        run = load_run(path, config=config)
        return run.step, named(jax.tree.map(np.asarray, run.params))
    step, arrays = read_weights(path)
    if names := config.init_names:
        arrays = dict(_translated(entry, arrays, own) for entry in names)
        if len(arrays) < len(names):
            raise configs.ConfigError("config.init_names has an array of ours twice.")
    arrays = {name: arrays[name] for name in own if name in arrays}
    for name, array in arrays.items():
        arrays[name] = array = in_type_of(own[name], array)
        if array.dtype != own[name].dtype:
            raise WorkdirError(f"{name} must be {own[name].dtype}, got {array.dtype}.")
        if not np.isfinite(array).all():
            raise WorkdirError(f"{name} has numbers that are not finite.")
    return step, arrays


_ENTRY = re.compile(r"(\S+)\s*=\s*(\S+)(?:\s+([A-Za-z]+)->([A-Za-z]+))?")


def _translated(
    entry: str, arrays: Mapping[str, np.ndarray], own: Mapping[str, Any]
) -> tuple[str, np.ndarray]:
    """Returns the name and the array that an entry of ``config.init_names`` means."""
    where = f"config.init_names has {entry!r}"
    match = _ENTRY.fullmatch(entry)
    if match is None:
        raise configs.ConfigError(
            f"{where}: write OURS = THEIRS, or OURS = THEIRS oihw->hwio to transpose."
        )
    ours, theirs, axes, order = match.groups()
    name = ours if ours in own else f"params/{ours}"
    if name not in own:
        names = shortened([one.removeprefix("params/") for one in own], len(own))
        raise configs.ConfigError(f"{where}: the network has no {ours}, but {names}.")
    if theirs not in arrays:
        raise configs.ConfigError(
            f"{where}: the file has no {theirs}, but {shortened(arrays)}."
        )
    array = arrays[theirs]
    if axes is not None:
        if sorted(axes) != sorted(order) or not len(axes) == len({*axes}) == array.ndim:
            raise configs.ConfigError(
                f"{where}: {axes}->{order} must have each of {array.ndim} letters once "
                f"on both sides, as {theirs} is {array.shape}."
            )
        array = array.transpose([axes.index(letter) for letter in order])
    if array.shape != own[name].shape:
        raise configs.ConfigError(
            f"{where}: {ours} is {own[name].shape} in this network, and {theirs} is "
            f"{array.shape}{' so transposed' if axes else ''}."
        )
    return name, array


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
