"""Two processes on loopback train, stop, resume and die like one."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zlib

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils
from kill_and_resume import outcome
from marks import variants
from places import ROOT
from tiny import TINY_MODEL, digits

from capsjax import train
from capsjax.runtime import hosts as hosts_module
from capsjax.runtime.hosts import (
    Hosts,
    HostsError,
    _is_loopback,
    advice,
    join,
    require_same,
)

RECIPE = (
    "--config=experiments/mnist.py:smoke",
    "--config.num_epochs=2",
    "--config.batch_size=40",
    "--config.steps_per_dispatch=5",
    "--config.data.num_train=1000",
    "--config.data.num_validation=200",
    *TINY_MODEL,
    "--config.optimizer.learning_rate=3e-3",
)
HEARTBEAT = 10
# Gloo's messages about its connections. Its threads write piece by piece, each into the
# other's line.
_GLOO = re.compile(
    r"\[Gloo\] Rank |is connected to|peer ranks\.|\d+"
    r"|Expected number of connected peer ranks is :"
)


@pytest.mark.parametrize(
    ("hosts", "message"),
    [
        (Hosts("off", num_processes=2), "--distributed=off, but"),
        (Hosts(process_id=1), "go together"),
        (Hosts("on", "here", 2, 0), "--coordinator_address=here must be HOST:PORT"),
        (Hosts("on", "here:", 2, 0), "must be HOST:PORT, as 10"),
        (Hosts("on", "here:1234", 2, 2), "--process_id=2 must be below --num_proc.*=2"),
    ],
)
def test_flags_that_do_not_fit_together_are_refused(hosts, message):
    with pytest.raises(HostsError, match=message):
        join(hosts)


@pytest.mark.parametrize("error", [KeyError("job-name"), TypeError("None\n  is not")])
def test_an_incomplete_scheduler_is_refused(monkeypatch, error):
    """JAX fails so in a Kubernetes pod without a job, or without the right to ask."""

    def initialize(*_, **__):
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    message = (
        rf"\({type(error).__name__}: .*\)\. If there are none, give --distributed=off"
    )
    with pytest.raises(HostsError, match=message) as caught:
        join(Hosts())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("message", "reported"),
    [
        ("INTERNAL: Gloo all-reduce failed: Connection closed by peer", "has gone, or"),
        ("UNAVAILABLE: failed to connect to all addresses", "has gone, or"),
        ("INTERNAL: NCCL operation ncclGroupEnd() failed", "has gone, or"),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.", "not enough memory"),
        ("INTERNAL: the compiler is in a bad mood", "error: INTERNAL: the compiler"),
    ],
)
def test_only_errors_that_another_process_may_cause_are_reported_so(
    monkeypatch, capsys, message, reported
):
    def fail(*_, **__):
        raise jax.errors.JaxRuntimeError(f"{message}\nand more")

    monkeypatch.setattr(train, "complete", fail)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(os, "_exit", sys.exit)
    config = f"--config={ROOT}/experiments/mnist.py:smoke"
    with pytest.raises(SystemExit, match="1"):
        train.main(["train", config, "--distributed=off"])
    (line,) = capsys.readouterr().err.splitlines()
    assert reported in line
    assert ("has gone" in line) == ("has gone" in reported)


def test_processes_of_different_runs_are_refused(monkeypatch):
    def gather(mine):
        return np.stack([mine, [mine[0], others_step]])

    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(multihost_utils, "process_allgather", gather)
    others_step = zlib.crc32(b"20")
    require_same({"the recipe": "paper", "the step": 20})
    others_step = zlib.crc32(b"10")
    with pytest.raises(
        HostsError, match=r"differ in the step\. Start all with the same"
    ):
        require_same({"the recipe": "paper", "the step": 20})


def test_a_process_without_a_scheduler_is_alone():
    # In a subprocess: this process has used JAX already.
    code = "from capsjax.runtime.hosts import *; join(Hosts()); print(is_writer()); "
    alone = python("-c", code + "join(Hosts('on'))")
    out, err = alone.communicate()
    assert out == "True\n"
    assert "HostsError: there is no scheduler here" in err


def test_a_process_that_has_computed_is_alone_without_a_scheduler(monkeypatch):
    """An experiment file may compute when it is imported."""
    jax.devices()
    join(Hosts())
    monkeypatch.setattr(hosts_module, "_has_scheduler", lambda: True)
    with pytest.raises(HostsError, match="the experiment file computes with JAX when"):
        join(Hosts())


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["SLURM", *variants("Open MPI")])
def test_processes_meet_under_a_scheduler(scheduler):
    """Simulates only a scheduler's variables: there is no scheduler to run."""
    number = free_port() % 4096  # The port depends on the job's number.

    def variables(process):
        if scheduler == "SLURM":
            return {
                "SLURM_JOB_ID": str(number),
                "SLURM_STEP_NODELIST": "localhost",
                "SLURM_NTASKS": "2",
                "SLURM_PROCID": str(process),
                "SLURM_LOCALID": str(process),
            }
        return {
            "OMPI_MCA_orte_hnp_uri": f"{number * 4096}.0;tcp://127.0.0.1:1",
            "OMPI_COMM_WORLD_SIZE": "2",
            "OMPI_COMM_WORLD_RANK": str(process),
            "OMPI_COMM_WORLD_LOCAL_RANK": str(process),
        }

    code = "import jax; from capsjax.runtime.hosts import *; join(Hosts()); "
    code += "print(jax.process_count(), is_writer())"
    pair = [python("-c", code, **variables(process)) for process in range(2)]
    printed = ended(pair, 0)
    assert [out.splitlines()[-1] for out, _ in printed] == ["2 True", "2 False"]


def python(*arguments, **environment):
    own = {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **own, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(workdir, *arguments):
    return python(
        *("-m", "capsjax.train", *RECIPE, f"--config.data.name={digits()}"),
        *(f"--workdir={workdir}", *arguments),
        JAX_COMPILATION_CACHE_DIR=str(workdir.parent / "cache"),
    )


def start_pair(*workdirs):
    """Starts two processes in one folder, or in two."""
    port = free_port()
    return [
        start(
            workdirs[n % len(workdirs)],
            "--num_cpu_devices=2",
            f"--coordinator_address=127.0.0.1:{port}",
            "--num_processes=2",
            f"--process_id={n}",
            f"--heartbeat_seconds={HEARTBEAT}",
        )
        for n in range(2)
    ]


def start_one(workdir, devices):
    return [start(workdir, f"--num_cpu_devices={devices}")]


def ended(processes, code):
    """Waits until all have ended with this code; returns their output."""
    printed = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [code] * len(processes), (
        printed
    )
    return printed


def after_first_epoch(processes, workdir, since=0.0):
    """Waits until the second epoch has begun, with a checkpoint on disk."""
    after_step(processes, workdir, 25, since)


def after_step(processes, workdir, step, since=0.0):
    """Waits until a line of a later step has been written."""
    metrics, deadline = workdir / "metrics.jsonl", time.monotonic() + 200
    while time.monotonic() < deadline:
        assert all(process.poll() is None for process in processes)
        is_new = metrics.exists() and metrics.stat().st_mtime > since
        rows = metrics.read_text().splitlines() if is_new else []
        if any(json.loads(row)["step"] > step for row in rows):
            return
        time.sleep(0.02)
    raise AssertionError(f"there is no step after {step}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Trains an undisturbed pair; returns its folder and outcome."""
    workdir = tmp_path_factory.mktemp("hosts") / "whole"
    first, second = ended(start_pair(workdir), 0)
    assert "2 processes: when one of them dies" in first[0]
    assert not _GLOO.sub("", second[0]).strip()  # Only one process prints.
    return workdir, outcome(workdir)


def equal_to_rounding(one, other):
    last = [name for name in one if name.startswith(f"{2 * 1000 // 40}.")]
    assert len(last) > 20, one.keys()
    for name, value in one.items():
        if name in last:
            scale = np.abs(value).max() + 1e-30
            error = np.abs(np.asarray(value, float) - np.asarray(other[name], float))
            assert error.max() <= 2e-3 * scale, name
    for a, b in zip(one["metrics"], other["metrics"], strict=True):
        assert (a["kind"], a["step"]) == (b["kind"], b["step"])
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-4)


@pytest.mark.variant
def test_two_processes_train_like_one_with_equally_many_devices(whole):
    workdir = whole[0].parent / "one"
    ended(start_one(workdir, 4), 0)
    equal_to_rounding(outcome(workdir), whole[1])


@pytest.mark.variant
def test_all_stop_after_the_same_step_and_any_number_goes_on(whole):
    stopped = whole[0].parent / "stopped"
    processes = start_pair(stopped)
    after_first_epoch(processes, stopped)
    processes[1].send_signal(signal.SIGTERM)  # This one writes nothing.
    printed = ended(processes, 143)
    assert "The same command goes on from there" in printed[0][0]
    for devices in (1, 8):  # Fewer and more than the pair had.
        workdir = whole[0].parent / f"on{devices}"
        shutil.copytree(stopped, workdir)
        ended(start_one(workdir, devices), 0)
        equal_to_rounding(outcome(workdir), whole[1])
    ended(start_pair(stopped), 0)
    equal_to_rounding(outcome(stopped), whole[1])


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_devices_each_time(whole):
    """On four devices, then on one, then on two."""
    workdir = whole[0].parent / "moving"
    for devices, step in ((4, 5), (1, 25)):
        processes = start_one(workdir, devices)
        after_step(processes, workdir, step)
        processes[0].send_signal(signal.SIGTERM)
        ended(processes, 143)
    ended(start_one(workdir, 2), 0)
    equal_to_rounding(outcome(workdir), whole[1])


@pytest.mark.variant
def test_a_process_ends_if_the_other_is_killed_and_a_restart_goes_on_exactly(whole):
    """Kills the second, then the first, which writes and is the coordinator."""
    workdir, since = whole[0].parent / "killed", 0.0
    for killed in (1, 0):
        processes = start_pair(workdir)
        after_first_epoch(processes, workdir, since)
        processes[killed].kill()
        processes[killed].communicate()
        other, started = processes[1 - killed], time.monotonic()
        other.communicate(timeout=HEARTBEAT + 60)
        assert time.monotonic() - started < HEARTBEAT + 20
        assert other.returncode not in (0, 143)
        since = time.time()
    ended(start_pair(workdir), 0)
    one, other = outcome(workdir), whole[1]
    assert one.keys() == other.keys()
    for name in one:
        assert np.array_equal(one[name], other[name]), name


@pytest.mark.slow
def test_processes_with_different_folders_are_refused(whole):
    """Without a shared file system each would go on from its own checkpoint."""
    here, there = whole[0].parent / "here", whole[0].parent / "there"
    for folder in (here, there):
        shutil.copytree(whole[0], folder)
        (folder / "result.json").unlink()
    shutil.rmtree(there / "checkpoints" / "50")
    before = (here / "metrics.jsonl").read_bytes()
    first, second = start_pair(here, there)
    _, err = first.communicate(timeout=100)
    second.communicate(timeout=100)
    assert "error: the processes differ in the step to go on from. Start" in err
    assert first.returncode == 2
    assert second.returncode != 0
    assert (here / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("address", "name", "advised"),
    [
        ("10.0.0.1:1234", "127.0.1.1", ""),
        (None, "10.0.0.7", ""),
        (None, "127.0.1.1", "the name of this host, host-a, is 127.0.1.1, which only"),
        ("host-a:1", "127.0.1.1", "--coordinator_address=host-a:1 is 127.0.1.1, which"),
        ("localhost:1", "10.0.0.7", "--coordinator_address=localhost:1 is 127.0.0.1,"),
        ("[::1]:1", "10.0.0.7", "--coordinator_address=[::1]:1 is ::1, which only"),
    ],
)
def test_an_address_that_others_can_t_reach_is_reported(
    monkeypatch, address, name, advised
):
    known = {"host-a": name, "localhost": "127.0.0.1"}

    def getaddrinfo(host, *_, **__):
        return [(socket.AF_INET, 0, 0, "", (known.get(host, host), 0))]

    monkeypatch.setattr(socket, "gethostname", lambda: "host-a")
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert advice(address).startswith(f" Here {advised}" if advised else "")
    remedy = "--coordinator_address with an address that the others can reach"
    assert (remedy in advice(address)) == bool(advised)


def test_a_process_that_waits_in_vain_ends_in_one_line():
    code = """
from capsjax.runtime import hosts
hosts._SECONDS_TO_MEET = 1
hosts.join(hosts.Hosts("on", "127.0.0.1:%d", 2, 1))
"""
    process = python("-c", code % free_port())
    _, err = process.communicate(timeout=60)
    (line,) = [line for line in err.splitlines() if "capsjax" in line]
    assert "the other processes have not come to 127.0.0.1:" in line
    assert "which only this host can reach" in line
    assert process.returncode == 2


TWO_HOSTS = """
import sys
from capsjax.runtime.hosts import Hosts, join, require_same, wait_for_all
join(Hosts("on", "10.213.0.1:4567", 2, int(sys.argv[1])))
wait_for_all("they have met")
require_same({"the address": 1})
print("met", flush=True)
"""


@pytest.fixture
def two_networks():
    """Makes two hosts on a wire; each one's name resolves to its loopback address."""
    names = [f"capsjax-{os.getpid()}-{k}" for k in "ab"]
    steps = [
        *(["netns", "add", name] for name in names),
        f"-n {names[0]} link add wire type veth".split()
        + f"peer name wire netns {names[1]}".split(),
        *(["-n", name, "link", "set", "lo", "up"] for name in names),
        *(["-n", name, "link", "set", "wire", "up"] for name in names),
        *(
            ["-n", name, "addr", "add", f"10.213.0.{k + 1}/24", "dev", "wire"]
            for k, name in enumerate(names)
        ),
    ]
    try:
        if shutil.which("ip") is None or not _is_loopback(socket.gethostname()):
            pytest.skip("there is no ip, or this host's name has an address")
        for step in steps:
            done = subprocess.run(["ip", *step], stderr=subprocess.PIPE, check=False)
            if done.returncode:
                pytest.skip("no network may be made here")
        yield names
    finally:
        if shutil.which("ip"):
            for name in names:
                command = ["ip", "netns", "delete", name]
                subprocess.run(command, stderr=subprocess.DEVNULL, check=False)


def test_hosts_whose_names_resolve_to_loopback_addresses_meet(two_networks):
    pair = [
        subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, "-c", TWO_HOSTS, str(n)],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n, name in enumerate(two_networks)
    ]
    for out, _ in ended(pair, 0):
        assert out.splitlines()[-1] == "met"
