"""Verifies and measures everything on one GPU, in at most six minutes.

    python3 benchmarks/accelerator.py --output FOLDER
    python3 benchmarks/accelerator.py --output FOLDER --parts step torch
    python3 benchmarks/accelerator.py --quick        # tiny, on a CPU, a minute
    python3 benchmarks/accelerator.py --quick --runs # whole runs too: three minutes

Prints one table last, and leaves three files in FOLDER: `accelerator.json` with the
commit, the versions, the device, every record and every failure; `records.jsonl`, the
records as they come; and `log.txt`, the output of the parts. Ends with 1 if anything
failed or is wrong; not if a target is missed, or time was too short for some points.

How to carry it to a machine without a network: a checkout of the repository is enough,
not installed, even one that can't be written (then name a folder by --output). That
machine's python3 must have jax, flax, optax, orbax-checkpoint, jaxtyping, scipy,
pillow, matplotlib, tqdm and absl-py. MNIST is in the checkout; tensorflow-datasets,
array-record and tensorboardX are not needed, and ml_collections only for
`python -m capsjax.train`:

    pip download --no-deps ml_collections            # here; a wheel is a zip archive
    python3 -m zipfile -e ml_collections-*.whl site  # there
    PYTHONPATH=$PWD:site python3 -m capsjax.train --config experiments/mnist.py

Name the commit by --commit if the repository's .git or git itself stays behind.
PyTorch is looked for in the same python3, or in --torch-python, or $TORCH_PYTHON.

The parts, each in a process of its own, in this order:

    correctness  every function, value and gradient, against float64 on the CPU; a
                 smoke training, stopped by SIGKILL and resumed; evaluate and predict
    ceilings     a product of 8192 and a copy: the least time of a step
    step         the training step as the trainer runs it, and its longest kernels
    routing      its forms alone: time and temporary memory
    torch        the same network and step in PyTorch
    plain        the recipe mnist.py:plain, from start to end

A part has its share of the time, and takes its points in order of worth. A part that is
not done in time is ended, which costs its current point and all later ones. Unused time
goes to the next part. `--seconds` sets the time to share.
"""

import argparse
import concurrent.futures
import contextlib
import datetime
import importlib
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

FOLDER = pathlib.Path(__file__).resolve().parent
# The shares in seconds, and the modules of accelerator_parts.
SHARES = {"correctness": 75, "ceilings": 15, "step": 140}
SHARES |= {"routing": 40, "torch": 50, "plain": 40}
MODULES = {name: name for name in SHARES} | {
    "routing": "routing_forms",
    "torch": "torch_peer",
}
PACKAGES = ("jax", "jaxlib", "jax-cuda13-plugin", "flax", "optax", "orbax-checkpoint")
PACKAGES += ("numpy", "torch", "triton", "nvidia-cudnn-cu13", "nvidia-cublas")


def environment(scratch: pathlib.Path, *, quick: bool) -> dict[str, str]:
    """Returns the environment of all processes, for any place of checkout and home.

    The sources come from this checkout. Memory is allocated on demand, because
    processes share the card. Caches lie in the scratch folder.
    """
    given = dict(os.environ)
    platforms = given.get("JAX_PLATFORMS")
    if platforms and "cpu" not in platforms.split(","):
        given["JAX_PLATFORMS"] = f"{platforms},cpu"  # The reference is computed there.
    if quick:
        # Nothing runs for long: half of the time would go into LLVM's optimiser.
        unoptimised = "--xla_backend_optimization_level=0"
        given["XLA_FLAGS"] = f"{given.get('XLA_FLAGS', '')} {unoptimised}".strip()
    path = [str(FOLDER.parent), *filter(None, [given.get("PYTHONPATH")])]
    caches = {
        "JAX_COMPILATION_CACHE_DIR": "jax",
        "TORCHINDUCTOR_CACHE_DIR": "inductor",
        "TRITON_CACHE_DIR": "triton",
        "MPLCONFIGDIR": "matplotlib",
        "XDG_CACHE_HOME": "cache",
    }
    return {
        **given,
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        **{name: str(scratch / folder) for name, folder in caches.items()},
    }


class Processes:
    """The running parts, each in a process group with all that it starts."""

    def __init__(self):
        self.lock, self.running, self.has_ended = threading.Lock(), set(), False

    def start(self, command: list[str], **options: Any) -> subprocess.Popen:
        with self.lock:
            if self.has_ended:
                raise RuntimeError("interrupted")
            process = subprocess.Popen(command, start_new_session=True, **options)
            self.running.add(process)
        return process

    def end(self, process: subprocess.Popen) -> None:
        """Ends the group, even if its first process has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self.running.discard(process)

    def end_all(self) -> None:
        with self.lock:
            self.has_ended = True
        for process in list(self.running):
            self.end(process)


def run_part(
    processes: Processes,
    command: list[str],
    log: pathlib.Path,
    *,
    seconds: float,
    environment: dict[str, str],
) -> dict[str, Any]:
    """Runs a part's process and all that it starts; ends them when time is over."""
    started = time.monotonic()
    with open(log, "wb") as file:
        process = processes.start(command, stdout=file, stderr=file, env=environment)
        try:
            code = process.wait(max(0, seconds))
            ended = "done" if code == 0 else f"ended with {code}"
        except subprocess.TimeoutExpired:
            ended = f"killed after {seconds:.0f} s"
        finally:
            processes.end(process)
    return {
        "seconds": round(time.monotonic() - started, 1),
        "ended": ended,
        "printed": log.read_text(errors="replace"),
    }


def read_records(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the records, without a line torn when its process was killed."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return records


def collect(name: str, run: dict[str, Any], records: list[dict[str, Any]]) -> dict:
    """Gathers a part's result: its records, its failures, and the points it left."""
    own = [record for record in records if record["part"] == name]
    points = next((r["points"] for r in reversed(own) if "points" in r), [])
    ended = [record["point"] for record in own if "point" in record]
    began = [record["began"] for record in own if "began" in record]
    failures = [
        {"point": r["point"], "error": r["error"]} for r in own if r.get("error")
    ]
    failures += [
        {"point": r["point"], "error": "the numbers are wrong"}
        for r in own
        if r.get("ok") is False
    ]
    failures += [
        {"point": point, "error": run["ended"]} for point in began if point not in ended
    ]
    is_late = run["ended"].startswith("killed")
    if run["ended"] != "done" and not (is_late and began):
        last = (run["printed"].strip().splitlines() or ["it printed nothing"])[-1]
        failures.append({"point": None, "error": f"{run['ended']}: {last}"})
    return run | {
        "printed": run["printed"][-3000:],
        "failures": failures,
        "left": [point for point in points if point not in (*ended, *began)],
        "records": own,
    }


def commit(given: str | None) -> str | None:
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return (
            given
            or subprocess.check_output(
                ["git", "describe", "--always", "--dirty", "--abbrev=40"],
                cwd=FOLDER,
                text=True,
                stderr=subprocess.DEVNULL,
            ).strip()
        )
    return None


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def machine() -> dict[str, Any]:
    about: dict[str, Any] = {"cores": len(os.sched_getaffinity(0))}
    query = "--query-gpu=name,memory.total,driver_version"
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        about["gpu"] = subprocess.check_output(
            ["nvidia-smi", query, "--format=csv,noheader"], text=True, timeout=20
        ).strip()
    return about


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="tiny sizes, for a CPU")
    add("--runs", action="store_true", help="whole runs in --quick too: two minutes")
    add("--output", type=pathlib.Path, default="runs/accelerator", metavar="FOLDER")
    add("--parts", nargs="+", choices=SHARES, default=list(SHARES), metavar="NAME")
    add("--seconds", type=float, help="of all parts together")
    add("--commit", help="the measured commit, if git is missing")
    add("--torch-python", default=os.environ.get("TORCH_PYTHON") or sys.executable)
    add("--part", choices=SHARES, help=argparse.SUPPRESS)  # In its own process.
    add("--scratch", type=pathlib.Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def command_of(
    name: str,
    options: argparse.Namespace,
    output: pathlib.Path,
    scratch: str,
    seconds: float,
) -> list[str]:
    command = [sys.executable, str(FOLDER / "accelerator.py"), "--part", name]
    command += ["--output", str(output), "--scratch", scratch]
    command += ["--seconds", str(seconds), *["--quick"][: options.quick]]
    command += ["--runs"][: options.runs]
    return [*command, "--torch-python", options.torch_python]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs all parts, and returns the content of the JSON file."""
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    records, log = output / "records.jsonl", output / "log.txt"
    for path in (records, log):
        path.write_text("")
    shares = {name: SHARES[name] for name in options.parts}
    # Quick parts may run beside other work, which must not end them.
    total = options.seconds or sum(shares.values()) * (4 if options.quick else 1)
    scale, started = total / sum(shares.values()), time.monotonic()
    ends = itertools.accumulate(scale * share for share in shares.values())
    latest = dict(zip(shares, ends, strict=True))
    result: dict[str, Any] = {
        "commit": commit(options.commit),
        "versions": versions(),
        "machine": machine(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "quick": options.quick,
        "parts": {},
    }

    processes = Processes()

    def run(name: str, scratch: str) -> dict[str, Any]:
        end = total if options.quick else latest[name]
        seconds = end - (time.monotonic() - started)
        print(f"{name}: at most {seconds:.0f} s ...", file=sys.stderr, flush=True)
        command = command_of(name, options, output, scratch, seconds)
        surroundings = environment(pathlib.Path(scratch), quick=options.quick)
        own_log = pathlib.Path(scratch, f"{name}.txt")
        done = run_part(
            *(processes, command, own_log),
            seconds=seconds,
            environment=surroundings,
        )
        # A killed part may leave a torn line: end it before the next part writes.
        with open(records, "a") as file:
            file.write("\n")
        return done

    # Figures are measured one after the other; quick ones mean nothing.
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch,
        concurrent.futures.ThreadPoolExecutor(2 if options.quick else 1) as pool,
    ):
        runs = {name: pool.submit(run, name, scratch) for name in shares}
        try:
            for name, future in runs.items():
                done = future.result()
                with open(log, "a") as file:
                    file.write(f"\n==== {name}\n{done['printed']}")
                result["parts"][name] = collect(name, done, read_records(records))
                # Write now: later parts may fail.
                write(output / "accelerator.json", result)
        except BaseException:  # Ctrl-C, too: nothing shall go on alone.
            pool.shutdown(wait=False, cancel_futures=True)
            processes.end_all()
            raise
    result["seconds"] = round(time.monotonic() - started, 1)
    write(output / "accelerator.json", result)
    return result


def write(path: pathlib.Path, result: dict[str, Any]) -> None:
    path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    if options.part:
        from accelerator_parts.points import Part

        part = Part(
            options.part,
            options.output / "records.jsonl",
            options.scratch,
            seconds=options.seconds,
            quick=options.quick,
            has_runs=options.runs or not options.quick,
            torch_python=options.torch_python,
        )
        importlib.import_module(f"accelerator_parts.{MODULES[options.part]}").run(part)
        return 0
    from accelerator_parts.table import print_table

    result = measure(options)
    print_table(result)
    return int(any(part["failures"] for part in result["parts"].values()))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
