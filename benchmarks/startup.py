"""Times an import, and from typing the command to the first optimizer step.

    python benchmarks/startup.py
    python benchmarks/startup.py --imports    # nothing else
    python benchmarks/startup.py --repeats 5 --config experiments/mnist.py:paper

Every start is a process of its own, in a new run's folder. A call has one step, so the
first line of metrics is the first step. A cold start has an empty folder for compiled
programs (files of Python and its packages may be in memory); a warm start has the
folder that the cold one filled. The import of capsjax is the processor time that
follows JAX's own, with compiled sources.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

IMPORT = """
import time
start = time.process_time()
import jax
after = time.process_time()
import capsjax
print(after - start, time.process_time() - after)
"""


def seconds_to_import():
    """Returns the processor seconds of JAX's import, and of capsjax's after it."""
    environment = {**os.environ}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    run = subprocess.run(
        [sys.executable, "-c", IMPORT],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return map(float, run.stdout.split())


def seconds_to_first_step(config, folder, number):
    workdir = folder / f"run{number}"
    command = [sys.executable, "-m", "capsjax.train", f"--config={config}"]
    command += ["--config.steps_per_dispatch=1", f"--workdir={workdir}"]
    metrics, start = workdir / "metrics.jsonl", time.perf_counter()
    process = subprocess.Popen(
        command,
        env=os.environ | {"XDG_CACHE_HOME": str(folder / "cache")},
        stdout=subprocess.DEVNULL,
    )
    try:
        while not (metrics.exists() and metrics.read_bytes().endswith(b"\n")):
            if process.poll() is not None:
                sys.exit(f"{' '.join(command)} ended with {process.returncode}")
            time.sleep(0.01)
        return time.perf_counter() - start
    finally:
        process.kill()
        process.wait()


def show(times, *, digits):
    print("| | seconds, median | all |\n| --- | --: | --- |")
    for kind, seconds in times.items():
        every = ", ".join(f"{s:.{digits}f}" for s in seconds)
        print(f"| {kind} | {statistics.median(seconds):.{digits}f} | {every} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="experiments/mnist.py")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--imports", action="store_true", help="time imports only")
    arguments = parser.parse_args()
    os.chdir(pathlib.Path(__file__).parents[1])
    times = {"import jax": [], "import capsjax": []}
    seconds_to_import()  # Compiles the sources.
    for _ in range(arguments.repeats):
        for seconds, one in zip(times.values(), seconds_to_import(), strict=True):
            seconds.append(one)
    show(times, digits=3)
    if arguments.imports:
        return
    times = {"cold start": [], "warm start": []}
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as name:
            for number, kind in enumerate(times):
                folder = pathlib.Path(name)
                times[kind].append(
                    seconds_to_first_step(arguments.config, folder, number)
                )
    show(times, digits=1)


if __name__ == "__main__":
    main()
