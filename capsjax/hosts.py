"""Several processes, on one host or many, that train one network.

``jax.distributed`` finds the processes under SLURM, Open MPI, Kubernetes and on TPU
pods, and XLA adds up their gradients. Here is when that is asked for, which process
writes, and how all agree on the step to stop after.
"""

import dataclasses
import os
import re
import signal
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from capsjax.interrupt import Interrupt

# Words of the libraries that processes talk through, and of their timeouts.
_OF_OTHERS = re.compile(
    "gloo|nccl|coordination|heartbeat|barrier|connection|socket|peer|"
    "UNAVAILABLE|DEADLINE_EXCEEDED",
    re.IGNORECASE,
)


class HostsError(Exception):
    """The processes can't be brought together; the message says why."""


@dataclasses.dataclass(frozen=True)
class Hosts:
    """How this process finds the others.

    Attributes:
        distributed: ``on``, ``off``, or ``auto``: on if an address is given or JAX
            finds a scheduler (SLURM, Open MPI, Kubernetes, a TPU pod), also one that
            started a single process.
        coordinator_address: ``host:port`` of the process 0; the scheduler tells.
        num_processes: How many there are; the scheduler tells.
        process_id: Which one this is, from 0; the scheduler tells.
        heartbeat_seconds: So long after the last sign of life of one process all others
            are ended.
    """

    distributed: str = "auto"
    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    heartbeat_seconds: int = 100


def join(hosts: Hosts) -> None:
    """Meets the other processes, if there are any; before any other use of JAX.

    Raises:
        HostsError: If that is asked for and can't be done.
    """
    told = (hosts.coordinator_address, hosts.num_processes, hosts.process_id)
    if hosts.distributed == "off":
        if any(value is not None for value in told):
            raise HostsError(
                "--distributed=off, but --coordinator_address, --num_processes or "
                "--process_id is given."
            )
        return
    if 0 < told.count(None) < len(told):
        raise HostsError(
            "--coordinator_address, --num_processes and --process_id go together: give "
            "all of them, or none where a scheduler tells."
        )
    _check(hosts)
    try:
        jax.distributed.initialize(
            *told, heartbeat_timeout_seconds=hosts.heartbeat_seconds
        )
    except Exception as error:  # Of what a scheduler says, anything may be missing.
        is_alone = "coordinator_address should be defined" in str(error)
        if is_alone and hosts.distributed == "auto":
            return
        cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise HostsError(
            "there is no scheduler here that tells of other processes; give "
            "--coordinator_address, --num_processes and --process_id."
            if is_alone
            else f"can't meet the other processes ({cause}). If there are none, give "
            "--distributed=off."
        ) from error


def _check(hosts: Hosts) -> None:
    address, number = hosts.coordinator_address, hosts.process_id
    if address is not None and not re.fullmatch(r"\S+:[0-9]{1,5}", address):
        raise HostsError(
            f"--coordinator_address={address} must be HOST:PORT, as 10.0.0.1:1234."
        )
    if number is not None and number >= (hosts.num_processes or 0):
        raise HostsError(
            f"--process_id={number} must be below --num_processes="
            f"{hosts.num_processes}: the first is 0."
        )


def is_writer() -> bool:
    """Whether this process writes metrics, results and figures, and talks: only one."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Returns once every process has come to this point."""
    if jax.distributed.is_initialized():
        multihost_utils.sync_global_devices(what)


def require_same(values: Mapping[str, Any]) -> None:
    """Refuses processes that are not of one run: they would diverge, or wait forever.

    Args:
        values: What must be the same on all processes, by what it is called.

    Raises:
        HostsError: Naming what differs, on every process.
    """
    if not jax.distributed.is_initialized():
        return
    mine = [zlib.crc32(repr(value).encode()) for value in values.values()]
    gathered = multihost_utils.process_allgather(np.array(mine, np.uint32))
    is_same = (np.asarray(gathered) == gathered[0]).all(axis=0)
    if different := [
        name for name, same in zip(values, is_same, strict=True) if not same
    ]:
        raise HostsError(
            f"the processes differ in {' and '.join(different)}. Start all with the "
            "same flags and the same images, and with a --workdir that is the same "
            "folder for all of them."
        )


def may_be_of_another(error: Exception) -> bool:
    """Whether an error of the device program may come of a process that has gone."""
    return _OF_OTHERS.search(str(error)) is not None


def agree_to_stop(interrupt: Interrupt, turn: int) -> None:
    """Lets a signal count only once all processes can stop after the same steps.

    Args:
        interrupt: What this process was told; ``interrupt.signal`` is set when all
            stop, and not before.
        turn: How often this was called, by every process alike.
    """
    if not jax.distributed.is_initialized():
        interrupt.signal = interrupt.noted
        return
    if interrupt.noted is not None and not interrupt.is_passed_on:
        # JAX has a handler of its own for this one, which tells the others.
        interrupt.is_passed_on = True
        os.kill(os.getpid(), signal.SIGTERM)
    if multihost_utils.reached_preemption_sync_point(turn):
        interrupt.signal = interrupt.noted or signal.SIGTERM
