"""Training: ``python -m capsjax.train --config experiments/mnist.py``.

Parses the command line, trains, and turns what happens into an exit code.
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
from capsjax.training.trainer import train


@command("capsjax.train")
def main(argv: Sequence[str]) -> int:
    """The command line: trains, and returns the exit code."""
    address = None
    try:
        asked = parse(argv, __doc__ or "")
        if asked.num_cpu_devices is not None:
            jax.config.update("jax_num_cpu_devices", asked.num_cpu_devices)
        address = asked.hosts.coordinator_address
        join(asked.hosts)
        keep_compiled_programs()
        require_devices()
        workdir = Workdir(asked.workdir or default_path(asked.config))
        command = shlex.join(sys.orig_argv)
        result = train(asked.config, workdir, command=command, may_exit=True)
    except (UsageError, HostsError, configs.ConfigError) as error:
        return _fail(error, 2)
    except (jax.errors.JaxRuntimeError, DeviceError) as error:
        told, is_alone = (
            str(error).splitlines()[0],
            not jax.distributed.is_initialized(),
        )
        if told.startswith("RESOURCE_EXHAUSTED"):
            told = (
                f"there is not enough memory ({told[:200]}): lower --config.batch_size."
            )
        elif not is_alone and may_be_of_another(error):
            told = (
                "another process of this run has gone, or can't be reached "
                f"({told[:200]}). Start all of them again: they go on from the last "
                f"checkpoint.{advice(address)}"
            )
        elif is_alone and not isinstance(error, DeviceError):
            raise
        return _fail(told, 1)
    except (
        *(DatasetError, WorkdirError, CheckpointError, FloatingPointError, OSError),
    ) as error:
        return _fail(error, 1)
    except Interrupted as interrupt:  # All stop after the same step.
        return interrupt.exit_code
    except KeyboardInterrupt:
        return _leave(130)
    except Exception:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        return _leave(1)
    kind = "test" if result["test"] else "validation"
    told = result[kind]
    if told is None:
        say(f"trained, and neither validated nor tested ({workdir.result})")
        return 0
    found = ""
    if "label_accuracy" in told:
        found = f" ({told['label_accuracy']:.2%} of the classes found)"
    say(
        f"{kind} accuracy {told['accuracy']:.2%}{found}, loss {told['loss']:.6f} "
        f"(step {told['step']}; {workdir.result})"
    )
    return 0


def _fail(error: Exception | str, code: int) -> int:
    fail(f"capsjax.train: error: {error}")
    return _leave(code)


def _leave(code: int) -> int:
    """Ends one of several processes, without the others; of a single one, nothing."""
    if jax.distributed.is_initialized():
        # An orderly exit would wait for the others, which wait for this one.
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv))
