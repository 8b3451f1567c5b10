"""Several processes, on one host or many, that train one network.

``jax.distributed`` finds the processes under SLURM, Open MPI, Kubernetes and on TPU
pods, and XLA adds up their gradients. Here is when that is asked for, which process
writes, and how all agree on the step to stop after.
"""

import contextlib
import dataclasses
import functools
import ipaddress
import os
import re
import signal
import socket
import sys
import threading
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from capsjax.runtime.interrupt import Interrupt

# Words of the libraries that processes talk through, and of their timeouts.
_OF_OTHERS = re.compile(
    "gloo|nccl|coordination|heartbeat|barrier|connection|socket|peer|"
    "UNAVAILABLE|DEADLINE_EXCEEDED",
    re.IGNORECASE,
)


# After so long a process does not wait any more for the others to come.
_SECONDS_TO_MEET = 300


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
        with _limited_wait(hosts):
            jax.distributed.initialize(
                *told,
                heartbeat_timeout_seconds=hosts.heartbeat_seconds,
                initialization_timeout=_SECONDS_TO_MEET + 60,
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

    _name_this_host()


@contextlib.contextmanager
def _limited_wait(hosts: Hosts) -> Iterator[None]:
    """Ends the process in one line when the others do not come; JAX would abort it."""

    def give_up() -> None:
        where = hosts.coordinator_address or "the scheduler's address"
        print(
            f"capsjax.train: error: the other processes have not come to {where} "
            f"within {_SECONDS_TO_MEET} s.{advice(hosts.coordinator_address)}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)  # JAX waits in C++, where no exception gets.

    timer = threading.Timer(_SECONDS_TO_MEET, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _name_this_host() -> None:
    """Lets processes on other hosts find this one, between whose CPUs Gloo adds up.

    Gloo tells them the address of the host's own name, which on many systems is a
    loopback address. Then they are told the address from which the coordinator is
    reached.
    """
    if not _is_loopback(socket.gethostname()):
        return
    # JAX has no setting for it. Where it has moved, ``advice`` is what is left.
    with contextlib.suppress(ImportError, AttributeError):
        from jax._src import distributed, lib

        library: Any = lib
        library = library._jax
        address = _own_address(str(distributed.global_state.coordinator_address))
        if address is not None:
            library.make_gloo_tcp_collectives = functools.partial(
                library.make_gloo_tcp_collectives, hostname=address
            )


def _own_address(coordinator_address: str) -> str | None:
    """This host's address on the way to another; None if that is loopback too."""
    host, _, port = coordinator_address.rpartition(":")
    with contextlib.suppress(OSError, ValueError):
        known = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)
        family, kind, protocol, _, target = known[0]
        with socket.socket(family, kind, protocol) as way:
            way.connect(target)  # Sends nothing.
            address = str(way.getsockname()[0])
        return None if _is_loopback(address) else address
    return None


def _is_loopback(host: str) -> bool:
    """Whether a name is of this host alone, or of none."""
    try:
        known = socket.getaddrinfo(host, None)
        return all(ipaddress.ip_address(told[4][0]).is_loopback for told in known)
    except (OSError, ValueError):
        return True


def advice(coordinator_address: str | None) -> str:
    """What keeps other hosts from reaching this one, and what to do; or nothing.

    Args:
        coordinator_address: As it was given; None if a scheduler tells it.
    """
    name = socket.gethostname()
    host = (coordinator_address or "").rpartition(":")[0].strip("[]")
    if host and _is_loopback(host):
        what = f"--coordinator_address={coordinator_address}"
    elif not host and _is_loopback(name):
        host, what = name, f"the name of this host, {name},"
    else:
        return ""  # ``_name_this_host`` has seen to it.
    return (
        f" Here {what} is {_address(host)}, which only this host can reach: where "
        "there are several, give all of them --coordinator_address with an address "
        "that the others can reach, as 10.0.0.1:1234."
    )


def _address(host: str) -> str:
    try:
        return str(socket.getaddrinfo(host, None)[0][4][0])
    except OSError:
        return "no address"


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
