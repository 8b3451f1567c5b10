"""A command line with a config file: ``--config FILE[:VARIANT] --config.field=value``.

A config file is Python code, and runs.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from capsjax import config as configs


class UsageError(Exception):
    """The command line can't be understood; the message says what is allowed."""


def parse(argv: Sequence[str], about: str) -> tuple[configs.Config, str | None]:
    """The config with its overrides, and the work directory if one is named.

    ``--help`` prints and exits.

    Args:
        argv: The program's name and its arguments.
        about: What ``--help`` begins with.

    Raises:
        UsageError: If a flag, the file, its variant, or a field or value is wrong.
    """
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file(
        "config", None, "an experiment: FILE.py or FILE.py:VARIANT", flag_values=values
    )
    workdir = flags.DEFINE_string(
        "workdir",
        None,
        "the run's folder (default: runs/EXPERIMENT-VARIANT-seedSEED)",
        flag_values=values,
    )
    if not {"-h", "--help", "-help"}.isdisjoint(argv):
        print(about, "\nFlags:", _flags_help(), sep="\n")
        sys.exit(0)
    try:
        rest = values(list(argv))
        if len(rest) > 1:
            raise UsageError(f"unexpected arguments: {' '.join(rest[1:])}")
        config: Any = holder.value
    except (flags.Error, OSError) as error:
        raise UsageError(_last_line(error)) from error
    except (AttributeError, KeyError) as error:
        raise UsageError(f"unknown field of the config: {_innermost(error)}") from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    except UsageError:
        raise
    except Exception as error:
        # The file is the user's code: where it broke matters, our frames do not.
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise UsageError(
            f"the config file failed: {type(error).__name__}: {error} "
            f"({where.filename}, line {where.lineno})"
        ) from error
    if config is None:
        raise UsageError(
            "--config is missing; for example --config experiments/mnist.py"
        )
    if not isinstance(config, configs.Config):
        raise UsageError(
            "get_config() of the config file must return a capsjax.config.Config, got "
            f"{type(config).__name__}"
        )
    return config, os.fspath(workdir.value) if workdir.value else None


def _flags_help() -> str:
    return """  --config FILE.py[:VARIANT]   the experiment; required
  --config.FIELD=VALUE         overrides a field, e.g. --config.num_epochs=5 or
                               --config.optimizer.learning_rate=1e-4; the fields are
                               those of capsjax/config.py
  --workdir DIR                the run's folder; default
                               runs/<experiment>-<variant>-seed<seed>"""


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return [line for line in lines if line and not line.startswith("Pass --help")][-1]


def _innermost(error: BaseException) -> str:
    """The library nests the cause in the arguments of the error."""
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    return str(error.args[0]) if error.args else repr(error)
