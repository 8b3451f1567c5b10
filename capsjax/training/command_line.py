"""A command line with a config file: ``--config FILE[:VARIANT] --config.field=value``.

A config file is Python code, and runs.
"""

import argparse
import collections
import dataclasses
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple, SupportsIndex

from absl import flags

from capsjax import config as configs
from capsjax.config.recipes import RecipeError, packaged_hint, with_paths
from capsjax.runtime.console import answer
from capsjax.runtime.hosts import Hosts

# Beyond these XLA fails in ways of its own.
_MOST_CPU_DEVICES, _MOST_PROCESSES, _SECONDS_OF_A_DAY = 1024, 2**16, 86_400


class UsageError(Exception):
    """A wrong command line; the message names what is allowed."""


class Command(NamedTuple):
    """The values of a command line.

    Attributes:
        config: The config with its overrides.
        workdir: The work directory, if one is named.
        num_cpu_devices: Number of devices to divide the processor into, if given.
        hosts: Flags for finding the other processes.
    """

    config: configs.Config
    workdir: str | None
    num_cpu_devices: int | None
    hosts: Hosts


def parse(argv: Sequence[str], about: str) -> Command:
    """Parses the command line; ``--help`` prints and exits.

    Args:
        argv: The program's name and its arguments.
        about: First lines of ``--help``.

    Raises:
        UsageError: If a flag, the file, its variant, or a field or value is wrong.
    """
    values = flags.FlagValues()
    if not {"-h", "--help", "-help"}.isdisjoint(argv):
        answer(*about.splitlines(), "", "Flags:", *_flags_help().splitlines())
        sys.exit(0)
    try:
        argv = with_paths(argv)
    except RecipeError as error:
        raise UsageError(str(error)) from error
    argv, assignments = _split_overrides(argv)
    _require_once(argv)
    parser = _config_parser()
    try:
        holder = flags.DEFINE(parser, "config", None, "", values)
        workdir = flags.DEFINE_string("workdir", None, "", flag_values=values)
        num_cpu_devices = flags.DEFINE_integer(
            "num_cpu_devices", None, "", 1, _MOST_CPU_DEVICES, flag_values=values
        )
        hosts = _define_hosts(values)
        rest = values(list(argv))
        if len(rest) > 1:
            raise UsageError(f"unexpected arguments: {' '.join(rest[1:])}")
        config: Any = holder.value
        # A missing file only shows on first use.
        getattr(config, "seed", None)
    except UsageError:
        raise
    except configs.ConfigError as error:
        raise UsageError(str(error)) from error
    except flags.UnrecognizedFlagError as error:
        raise UsageError(_unknown(error.flagname) or _last_line(error)) from error
    except (flags.Error, OSError) as error:
        hint = packaged_hint(argv) if "No such file" in str(error) else ""
        raise UsageError(f"{_last_line(error)}{hint}") from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    except SyntaxError as error:
        raise UsageError(f"the config file is not Python: {error}") from error
    except dataclasses.FrozenInstanceError as error:
        where = traceback.extract_tb(error.__traceback__)[-2]
        raise UsageError(
            f"the config file failed: {error}: a section is a value; put another one "
            "in its place, for example config.optimizer = Adam(learning_rate=0.001) "
            f"({where.filename}, line {where.lineno})"
        ) from error
    except AttributeError as error:
        if "has no attribute 'get_config'" not in str(error):
            raise _failed(error) from error
        raise UsageError(
            "the config file has no function get_config(), which returns the "
            "capsjax.config.Config of the experiment"
        ) from error
    except Exception as error:
        # The file is the user's code: name the line that failed, not our frames.
        raise _failed(error) from error
    if config is None:
        raise UsageError(
            "--config is missing; for example --config experiments/mnist.py, or "
            "--config capsjax:mnist for the recipe that comes with capsjax"
        )
    if not isinstance(config, configs.Config):
        raise UsageError(
            "get_config() of the config file must return a capsjax.config.Config, got "
            f"{type(config).__name__}"
        )
    try:
        config = configs.override(config, assignments)
    except configs.ConfigError as error:
        raise UsageError(str(error)) from error
    return Command(
        config,
        workdir.value,
        num_cpu_devices.value,
        Hosts(**{name: holder.value for name, holder in hosts.items()}),
    )


class Once(argparse.Action):
    """Stores the value of an option, which may be given once."""

    def __call__(self, parser, namespace, values, option_string=None):
        """Stores the value; ends the program at a second one."""
        if getattr(namespace, self.dest) is not self.default:
            parser.error(f"{option_string} is given twice")
        setattr(namespace, self.dest, values)


def add_experiment(
    parser: argparse.ArgumentParser, action: type[argparse.Action] | str = Once
) -> None:
    """Adds ``--config`` to a command that opens runs."""
    parser.add_argument(
        "--config",
        action=action,
        metavar="FILE[:VARIANT]",
        help="the experiment file, if it puts classes of its own into the config",
    )


def experiment(file: str | None) -> configs.Config | None:
    """Reads the config of an experiment file; None if no file is given.

    Raises:
        UsageError: If the file or its variant is wrong.
    """
    return None if file is None else parse(["", f"--config={file}"], "").config


def _failed(error: Exception) -> UsageError:
    where = traceback.extract_tb(error.__traceback__)[-1]
    return UsageError(
        f"the config file failed: {type(error).__name__}: {error} "
        f"({where.filename}, line {where.lineno})"
    )


def _config_parser() -> flags.ArgumentParser:
    """Imports ``config_flags`` late: ``capsjax.train.train`` does without it."""
    try:
        from ml_collections.config_flags import config_flags
    except ModuleNotFoundError as error:
        raise UsageError(
            f"the command line needs {error.name}: pip install ml_collections"
        ) from error

    class Parser(config_flags.ConfigFileFlagParser):
        def parse(self, path: str) -> Any:
            return super().parse(_FileAndVariant(path))

    return Parser("config")


class _FileAndVariant(str):
    r"""``FILE:VARIANT``, which ml_collections splits at the first colon.

    In ``C:\me\mnist.py:smoke`` that is the colon of the drive.
    """

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        drive, rest = os.path.splitdrive(self)
        file, *variant = str.split(rest, sep, maxsplit)
        return [drive + file, *variant]


def _define_hosts(values: flags.FlagValues) -> dict[str, flags.FlagHolder]:
    def integer(
        name: str, default: int | None, lowest: int, highest: int
    ) -> flags.FlagHolder:
        return flags.DEFINE_integer(
            name, default, "", lowest, highest, flag_values=values
        )

    return {
        "distributed": flags.DEFINE_enum(
            "distributed", "auto", ["auto", "on", "off"], "", flag_values=values
        ),
        "coordinator_address": flags.DEFINE_string(
            "coordinator_address", None, "", flag_values=values
        ),
        "num_processes": integer("num_processes", None, 1, _MOST_PROCESSES),
        "process_id": integer("process_id", None, 0, _MOST_PROCESSES - 1),
        "heartbeat_seconds": integer("heartbeat_seconds", 100, 1, _SECONDS_OF_A_DAY),
    }


def _flags_help() -> str:
    words = "".join(
        f"\n{'':31}{name}: {', '.join(configs.words(name))}"
        for name in ("model", "model.routing", "loss", "optimizer", "augmentation")
    )
    return f"""  --config FILE.py[:VARIANT]   the experiment; required; one that comes
                               with capsjax is capsjax:NAME, e.g. capsjax:mnist:smoke
  --config.FIELD=VALUE         sets a field, e.g. --config.num_epochs=5 or
                               --config.optimizer.learning_rate=1e-4
  --config.SECTION=WORD        chooses a section, whose fields may follow:
                               --config.optimizer=adamw
                               --config.optimizer.weight_decay=1e-4; words:{words}
  --workdir DIR                the run's folder; default
                               runs/<experiment>-<variant>-seed<seed>
  --num_cpu_devices N          divides the processor into N devices
  --distributed auto|on|off    several processes, found by SLURM, Open MPI, Kubernetes
                               or a TPU pod, or by these three, set for each process:
  --coordinator_address HOST:PORT  --num_processes N  --process_id I
  --heartbeat_seconds S        time until the others end after one dies; default 100"""


def _require_once(argv: Sequence[str]) -> None:
    """Raises if an option is given twice: only one value would count."""
    given = [re.fullmatch(r"--?([a-z]\w*)(=.*)?", one, re.DOTALL) for one in argv]
    names = collections.Counter(match[1] for match in given if match)
    for name, number in names.items():
        if number > 1:
            raise UsageError(f"--{name} is given {number} times; give it once")


def _unknown(option: str) -> str | None:
    """Names the field that an unknown option means if ``config.`` is missing."""
    for path in configs.paths(configs.Config()):
        if f".{path}".endswith(f".{option}"):
            return f"unknown option --{option}; did you mean --config.{path}?"
    return None


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    messages = [line for line in lines if line and not line.startswith("Pass --help")]
    return messages[-1].removeprefix("ValueError: ")


def _split_overrides(
    argv: Sequence[str],
) -> tuple[list[str], list[tuple[str, str]]]:
    """Splits ``--config.field=value`` from the other arguments.

    Also accepts ``--config.field value``, ``--config.field`` for true and
    ``--noconfig.field`` for false.

    Returns:
        The other arguments, and pairs of field name and text.
    """
    others, assignments = [], []
    arguments = collections.deque(argv)
    while arguments:
        argument = arguments.popleft()
        match = re.fullmatch(
            r"--?(no)?config\.([\w.]+)(=(.*))?", argument, flags=re.DOTALL
        )
        if match is None:
            others.append(argument)
            continue
        is_false, name, has_value, value = match.groups()
        if is_false:
            value = "false"
        elif not has_value:
            is_flag = not arguments or re.match("--?[A-Za-z]", arguments[0])
            value = "true" if is_flag else arguments.popleft()
        assignments.append((name, value))
    return others, assignments
