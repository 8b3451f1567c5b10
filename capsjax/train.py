"""Trains a network: ``python -m capsjax.train --config experiments/mnist.py``.

Parses the command line, trains, and turns the outcome into an exit code.
"""

import os
import shlex
import sys
import traceback
from collections.abc import Sequence

import jax

from capsjax import config as configs
from capsjax.data import DatasetError
from capsjax.runtime.compile_cache import keep_compiled_programs
from capsjax.runtime.console import command, fail, say
from capsjax.runtime.devices import DeviceError, require_devices
from capsjax.runtime.hosts import (
    HostsError,
    advice,
    join,
    may_be_of_another,
)
from capsjax.runtime.interrupt import Interrupted
from capsjax.storage.checkpoints import CheckpointError
from capsjax.storage.files import WorkdirError
from capsjax.storage.workdir import Workdir, default_path
from capsjax.training.command_line import UsageError, parse
from capsjax.training.objective import several_in_words
from capsjax.training.trainer import complete, train

__all__ = ["main", "train"]


@command("capsjax.train")
def main(argv: Sequence[str]) -> int:
    """Parses the command line, trains, and returns the exit code."""
    # Train.
    address = None
    try:
        command_line = parse(argv, __doc__ or "")
        if command_line.num_cpu_devices is not None:
            jax.config.update("jax_num_cpu_devices", command_line.num_cpu_devices)
        address = command_line.hosts.coordinator_address
        join(command_line.hosts)
        keep_compiled_programs()
        require_devices()
        path = command_line.workdir
        if path is None:
            path = default_path(command_line.config)
        workdir = Workdir(path)
        command = shlex.join(sys.orig_argv)
        result = complete(command_line.config, workdir, command=command, may_exit=True)
    # Turn failures into messages and exit codes.
    except (UsageError, HostsError, configs.ConfigError) as error:
        return _fail(error, 2)
    except (jax.errors.JaxRuntimeError, DeviceError) as error:
        message, is_alone = (
            str(error).splitlines()[0],
            not jax.distributed.is_initialized(),
        )
        if message.startswith("RESOURCE_EXHAUSTED"):
            message = (
                f"there is not enough memory ({message[:200]}): lower "
                "--config.batch_size."
            )
        elif not is_alone and may_be_of_another(error):
            message = (
                "another process of this run has gone, or can't be reached "
                f"({message[:200]}). Start all of them again: they resume from the "
                f"last checkpoint.{advice(address)}"
            )
        elif is_alone and not isinstance(error, DeviceError):
            raise
        return _fail(message, 1)
    except (
        *(DatasetError, WorkdirError, CheckpointError, FloatingPointError, OSError),
    ) as error:
        return _fail(error, 1)
    except Interrupted as interrupt:  # All processes stop after the same step.
        return interrupt.exit_code
    except KeyboardInterrupt:
        return _leave(130)
    except Exception:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        return _leave(1)
    # Print the result.
    kind = "test" if result["test"] else "validation"
    metrics = result[kind]
    if metrics is None:
        say(f"trained, and neither validated nor tested ({workdir.result})")
        return 0
    found = several_in_words(metrics)
    found = found and f" ({found})"
    say(
        f"{kind} accuracy {metrics['accuracy']:.2%}{found}, loss {metrics['loss']:.6f} "
        f"(step {metrics['step']}; {workdir.result})"
    )
    return 0


def _fail(error: Exception | str, code: int) -> int:
    fail(f"capsjax.train: error: {error}")
    return _leave(code)


def _leave(code: int) -> int:
    """Ends this process if it is one of several; returns the code if it is alone."""
    if jax.distributed.is_initialized():
        # An orderly exit would wait for the others, which wait for this one.
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv))
