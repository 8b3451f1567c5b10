"""Several processes, on one host or many, that train one network.

``jax.distributed`` finds the processes under SLURM, Open MPI, Kubernetes and on TPU
pods, and XLA adds up their gradients. This module starts ``jax.distributed``, picks the
process that writes, and makes all stop after the same step.
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

# Words in the errors of the libraries that connect processes, and in their timeouts.
_OF_OTHERS = re.compile(
    "gloo|nccl|coordination|heartbeat|barrier|connection|socket|peer|"
    "UNAVAILABLE|DEADLINE_EXCEEDED",
    re.IGNORECASE,
)
# How long a process waits for the others at the start.
_SECONDS_TO_MEET = 300


class HostsError(Exception):
    """The processes can't be brought together; the message names the reason."""


@dataclasses.dataclass(frozen=True)
class Hosts:
    """The settings by which this process finds the others.

    None leaves an attribute to the scheduler.

    Attributes:
        distributed: ``on``, ``off``, or ``auto``: on if an address is given or JAX
            finds a scheduler (SLURM, Open MPI, Kubernetes, a TPU pod), even for a
            single process.
        coordinator_address: ``host:port`` of process 0.
        num_processes: Number of processes.
        process_id: Number of this process, from 0.
        heartbeat_seconds: All processes end this long after the last heartbeat of one.
    """

    distributed: str = "auto"
    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    heartbeat_seconds: int = 100


def join(hosts: Hosts) -> None:
    """Meets the other processes, if there are any; before any other use of JAX.

    Raises:
        HostsError: If processes are requested and can't be met.
    """
    given = (hosts.coordinator_address, hosts.num_processes, hosts.process_id)
    if hosts.distributed == "off":
        if any(value is not None for value in given):
            raise HostsError(
                "--distributed=off, but --coordinator_address, --num_processes or "
                "--process_id is given."
            )
        return
    if 0 < given.count(None) < len(given):
        raise HostsError(
            "--coordinator_address, --num_processes and --process_id go together: give "
            "all of them, or none under a scheduler."
        )
    _check(hosts)
    try:
        with _limited_wait(hosts):
            jax.distributed.initialize(
                *given,
                heartbeat_timeout_seconds=hosts.heartbeat_seconds,
                initialization_timeout=_SECONDS_TO_MEET + 60,
            )
    except Exception as error:  # A scheduler's variables may be missing in any way.
        is_alone = "coordinator_address should be defined" in str(error)
        is_late = "must be called before any JAX calls" in str(error)
        # JAX looks for a scheduler only if nothing has been computed.
        is_alone |= is_late and given.count(None) == 3 and not _has_scheduler()
        if is_alone and hosts.distributed == "auto":
            return
        if is_late:
            raise HostsError(
                "the experiment file computes with JAX when it is imported, before "
                "this process has met the others. Compute inside its functions."
            ) from error
        cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise HostsError(
            "there is no scheduler here that names the other processes; give "
            "--coordinator_address, --num_processes and --process_id."
            if is_alone
            else f"can't meet the other processes ({cause}). If there are none, give "
            "--distributed=off."
        ) from error

    _name_this_host()


def _has_scheduler() -> bool:
    """Returns True if a scheduler's variables name other processes."""
    try:
        from jax._src.clusters import ClusterEnv
    except ImportError:  # It is no public name.
        return True
    kinds = ClusterEnv._cluster_types
    return any(kind.is_env_present() for kind in kinds if not kind.opt_in_only_method)


@contextlib.contextmanager
def _limited_wait(hosts: Hosts) -> Iterator[None]:
    """Ends the process in one line if the others do not come; JAX would abort it."""

    def give_up() -> None:
        where = hosts.coordinator_address or "the scheduler's address"
        print(
            f"capsjax.train: error: the other processes have not come to {where} "
            f"within {_SECONDS_TO_MEET} s.{advice(hosts.coordinator_address)}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)  # JAX waits in C++, which no exception reaches.

    timer = threading.Timer(_SECONDS_TO_MEET, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _name_this_host() -> None:
    """Lets Gloo, which adds up across CPUs, reach this process from other hosts.

    Gloo publishes the address of the host's own name, on many systems a loopback
    address. If so, this publishes the address that reaches the coordinator instead.
    """
    if not _is_loopback(socket.gethostname()):
        return
    # JAX has no setting for it. If its private module moves, ``advice`` remains.
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
    """Returns whether a name resolves to this host alone, or not at all."""
    try:
        known = socket.getaddrinfo(host, None)
        return all(ipaddress.ip_address(entry[4][0]).is_loopback for entry in known)
    except (OSError, ValueError):
        return True


def advice(coordinator_address: str | None) -> str:
    """Returns why other hosts can't reach this one and what to do; "" if they can.

    Args:
        coordinator_address: The flag's value; None under a scheduler.
    """
    name = socket.gethostname()
    host = (coordinator_address or "").rpartition(":")[0].strip("[]")
    if host and _is_loopback(host):
        what = f"--coordinator_address={coordinator_address}"
    elif not host and _is_loopback(name):
        host, what = name, f"the name of this host, {name},"
    else:
        return ""  # ``_name_this_host`` took care of it.
    return (
        f" Here {what} is {_address(host)}, which only this host can reach: if "
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
    """Returns True in the one process that writes files and prints."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Returns once every process has reached this point."""
    if jax.distributed.is_initialized():
        multihost_utils.sync_global_devices(what)


def require_same(values: Mapping[str, Any]) -> None:
    """Refuses processes that belong to different runs: they would diverge or hang.

    Args:
        values: Values that must agree on all processes, by name.

    Raises:
        HostsError: On every process, with the names of the values that differ.
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
    """Returns whether a lost process may have caused an error of the device program."""
    return _OF_OTHERS.search(str(error)) is not None


def agree_to_stop(interrupt: Interrupt, turn: int) -> None:
    """Lets a signal count only once all processes can stop after the same steps.

    Args:
        interrupt: Signals of this process; ``interrupt.signal`` is set once all stop.
        turn: Number of earlier calls, equal in every process.
    """
    if not jax.distributed.is_initialized():
        interrupt.signal = interrupt.noted
        return
    if interrupt.noted is not None and not interrupt.is_passed_on:
        # JAX's own handler of SIGTERM passes it on to the other processes.
        interrupt.is_passed_on = True
        os.kill(os.getpid(), signal.SIGTERM)
    if multihost_utils.reached_preemption_sync_point(turn):
        interrupt.signal = interrupt.noted or signal.SIGTERM
