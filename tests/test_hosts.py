"""Two processes on loopback train, stop, resume and die like one run."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from kill_and_resume import outcome

from capsjax.hosts import Hosts, HostsError, is_writer, join

ROOT = pathlib.Path(__file__).parents[1]
RECIPE = (
    "--config=experiments/mnist.py:smoke",
    "--config.num_epochs=2",
    "--config.batch_size=40",
    "--config.steps_per_dispatch=4",
    "--config.data.num_train=1000",
    "--config.data.num_validation=1000",
    "--config.model.conv_features=16",
    "--config.model.primary_types=4",
    "--config.model.primary_stride=3",
    "--config.optimizer.learning_rate=3e-3",
)
HEARTBEAT = 10


@pytest.mark.parametrize(
    ("hosts", "told"),
    [
        (Hosts("off", num_processes=2), "--distributed=off, but"),
        (Hosts(process_id=1), "go together"),
        (Hosts("on"), "there is no scheduler here"),
    ],
)
def test_what_does_not_go_together_is_told(hosts, told):
    with pytest.raises(HostsError, match=told):
        join(hosts)


def test_without_a_scheduler_a_process_is_alone():
    join(Hosts())
    join(Hosts("off"))
    assert is_writer()
    assert not jax.distributed.is_initialized()


def start(workdir, *arguments):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(workdir.parent / "cache")
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "capsjax.train", *RECIPE),
            *(f"--workdir={workdir}", *arguments),
        ],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_pair(workdir):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        start(
            workdir,
            "--num_cpu_devices=2",
            f"--coordinator_address=127.0.0.1:{port}",
            "--num_processes=2",
            f"--process_id={n}",
            f"--heartbeat_seconds={HEARTBEAT}",
        )
        for n in range(2)
    ]


def start_one(workdir):
    return [start(workdir, "--num_cpu_devices=4")]


def ended(processes, code):
    """What they printed, once all have ended with this code."""
    printed = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [code] * len(processes), (
        printed
    )
    return printed


def after_first_epoch(processes, workdir):
    """Waits until a second epoch has begun, its first checkpoint on disk."""
    metrics, deadline = workdir / "metrics.jsonl", time.monotonic() + 200
    while time.monotonic() < deadline:
        assert all(process.poll() is None for process in processes)
        rows = metrics.read_text().splitlines() if metrics.exists() else []
        if any(json.loads(row)["step"] > 25 for row in rows):
            return
        time.sleep(0.02)
    raise AssertionError("there is no second epoch")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a pair comes to that is left alone, and its folder."""
    workdir = tmp_path_factory.mktemp("hosts") / "whole"
    first, second = ended(start_pair(workdir), 0)
    assert "2 processes: when one of them dies" in first[0]
    lines = [line for line in second[0].splitlines() if "[Gloo]" not in line]
    assert lines == []  # Only one process talks.
    return workdir, outcome(workdir)


def equal_to_rounding(one, other):
    for name, value in one.items():
        if name.startswith("50"):
            scale = np.abs(value).max() + 1e-30
            error = np.abs(np.asarray(value, float) - np.asarray(other[name], float))
            assert error.max() <= 2e-3 * scale, name
    for a, b in zip(one["metrics"], other["metrics"], strict=True):
        assert (a["kind"], a["step"]) == (b["kind"], b["step"])
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-4)


@pytest.mark.slow
def test_two_processes_train_like_one_with_as_many_devices(whole):
    workdir = whole[0].parent / "one"
    ended(start_one(workdir), 0)
    equal_to_rounding(outcome(workdir), whole[1])


@pytest.mark.slow
@pytest.mark.parametrize("told", [0, 1])
def test_all_stop_after_the_same_step_and_one_or_two_go_on(whole, told):
    workdir = whole[0].parent / f"stopped{told}"
    processes = start_pair(workdir)
    after_first_epoch(processes, workdir)
    processes[told].send_signal(signal.SIGTERM)
    printed = ended(processes, 143)
    assert "The same command goes on from there" in printed[0][0]
    ended((start_one, start_pair)[told](workdir), 0)
    equal_to_rounding(outcome(workdir), whole[1])


@pytest.mark.slow
def test_when_one_is_killed_the_other_ends_and_a_restart_goes_on_exactly(whole):
    workdir = whole[0].parent / "killed"
    processes = start_pair(workdir)
    after_first_epoch(processes, workdir)
    processes[1].kill()
    killed = time.monotonic()
    out, err = processes[0].communicate(timeout=HEARTBEAT + 60)
    (workdir.parent / "killed.log").write_text(out + err)
    assert time.monotonic() - killed < HEARTBEAT + 20
    assert processes[0].returncode not in (0, 143)
    ended(start_pair(workdir), 0)
    one, other = outcome(workdir), whole[1]
    assert one.keys() == other.keys()
    for name in one:
        assert np.array_equal(one[name], other[name]), name
