"""Measures training on 1, 2, 4, ... devices, and counts what they send each other.

    python benchmarks/scaling.py                          # all GPUs of this machine
    python benchmarks/scaling.py --simulated 8            # devices simulated on a CPU
    python benchmarks/scaling.py --simulated 8 --hosts 2  # shared by two processes
    srun python benchmarks/scaling.py --join              # a cluster: one row

Trains the paper's network, or ``--config``, as the trainer does, on random images that
lie on the devices. Prints one table. Weak scaling gives each device ``--batch`` images
a step, strong scaling shares ``--batch`` times the most devices among all. Efficiency
is the rate for each device, by the rate of one device. The last columns check what a
user relies on, and the command fails if one is wrong:

* the collectives of one step, by their number and bytes: sums of gradients, batch
  statistics and metrics, and nothing else; gathering a batch makes none, so images
  never travel between devices;
* the weights after four steps beside those of the fewest devices: the largest
  difference, by the size of the weight's changes.

Simulated devices share this machine's cores, so their rates say nothing about devices.
"""

import argparse
import dataclasses
import functools
import json
import math
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time

FOLDER = pathlib.Path(__file__).resolve().parent
COLLECTIVE = re.compile(
    r" = (\([^)]*\)|\S+) "
    r"(all-reduce|all-gather|all-to-all|reduce-scatter|collective-\w+)(?:-start)?\("
)
ARRAY = re.compile(r"([a-z]+)(\d*)\[([\d,]*)\]")
CHECKED_STEPS = 4
# Sums in another order, after four steps of Adam.
LARGEST_DIFFERENCE = 1e-3


def collectives(program):
    """Returns the collectives of a compiled program: pairs of a name and bytes."""
    found = []
    for shape, name in COLLECTIVE.findall(program):
        size = 0
        for kind, bits, axes in ARRAY.findall(shape):
            each = 1 if kind == "pred" else int(bits) / 8
            size += each * math.prod(map(int, filter(None, axes.split(","))))
        found.append((name, int(size)))
    return found


# ---- one row, in its own processes


class Run:
    """A run of the trainer's parts on all devices that this process sees."""

    def __init__(self, options, batch_size):
        import jax
        import numpy as np

        from capsjax.data import Dataset
        from capsjax.losses import fitting_loss
        from capsjax.models.network import activation_kind, bind
        from capsjax.runtime.devices import parallel, replicated
        from capsjax.training.command_line import experiment
        from capsjax.training.feed import Feed
        from capsjax.training.state import init_state
        from capsjax.training.step import make_train_chunk, make_train_step

        config = dataclasses.replace(
            experiment(options.config),
            batch_size=batch_size,
            steps_per_dispatch=options.steps,
            data_placement="device",
        )
        rng = np.random.default_rng(0)
        number = batch_size * max(options.steps, CHECKED_STEPS)
        image = rng.integers(0, 256, (number, 28, 28, 1), np.uint8)
        label = rng.integers(0, 10, number).astype(np.int32)
        dataset = Dataset("random", image, label, tuple("0123456789"))
        model = bind(config.model, (28, 28, 1), 10)
        optimizer = config.optimizer.make(10_000)
        loss = fitting_loss(config.loss, activation_kind(model))
        step = make_train_step(model, optimizer, config, loss, num_steps=10_000)
        self.feed = Feed(config, dataset)
        self.steps = options.steps
        init = functools.partial(init_state, model, optimizer, config)
        self.state = jax.jit(init, out_shardings=replicated())()
        self.start = jax.tree.map(np.asarray, self.state.params)
        batches = self.feed.batches(range(self.steps))
        program = parallel(make_train_chunk(step), donate=True)
        self.program = program.lower(self.state, batches).compile()

    def call(self, number=0):
        steps = range(number, number + self.steps)
        self.state, outcome = self.program(self.state, self.feed.batches(steps))
        return outcome.metrics.loss.block_until_ready()

    def rate(self, batch_size, seconds):
        """Returns images a second, over calls that take about so many seconds."""
        self.call()
        started, images = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            self.call()
            images += self.steps * batch_size
        return images / (time.perf_counter() - started)


def gather_collectives():
    """Returns the collectives that gather a batch of images held by the devices."""
    import jax
    import numpy as np

    from capsjax.data import Batch
    from capsjax.training import feed

    def array(*shape, dtype=np.int32):
        return jax.ShapeDtypeStruct(shape, dtype)

    held = Batch(array(64, 28, 28, 1, dtype=np.uint8), array(64))
    index = array(jax.device_count(), 2, 8)
    return collectives(feed._gather().lower(held, index).compile().as_text())


def row(options):
    """Measures and checks one number of devices; the first process prints JSON."""
    import jax
    import numpy as np

    count, found = jax.device_count(), {}
    weak, strong = options.batch * count, options.batch * options.most
    for name, size in {"weak": weak, "strong": strong}.items():
        run = Run(options, size)
        if name == "strong":
            steps = collectives(run.program.as_text())
        found[name] = run.rate(size, options.seconds)
    # The same steps on any number of devices: one in each call.
    run = Run(argparse.Namespace(**vars(options) | {"steps": 1}), strong)
    for number in range(CHECKED_STEPS):
        run.call(number)
    change = jax.tree.map(
        lambda new, old: np.asarray(new) - old, run.state.params, run.start
    )
    if jax.process_index() == 0:
        flat = {f"{n}": leaf for n, leaf in enumerate(jax.tree.leaves(change))}
        if options.weights:
            np.savez(options.weights, **flat)
        about = {"devices": count, "hosts": jax.process_count()}
        about |= {"kind": jax.devices()[0].device_kind, "jax": jax.__version__}
        sent = {"collectives": steps, "gather_collectives": gather_collectives()}
        print(json.dumps(about | found | sent), flush=True)
    else:
        gather_collectives()


def join(options):
    """Finds the devices of a row, and the other processes."""
    import jax

    from capsjax.runtime.hosts import Hosts
    from capsjax.runtime.hosts import join as meet

    if options.simulated:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", options.simulated)
    if options.coordinator:
        meet(Hosts("on", options.coordinator, options.hosts, options.process))
    else:
        meet(Hosts())


# ---- all rows


def start(options, devices, folder):
    """Starts the processes of a row."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    hosts = min(options.hosts, devices)
    processes = []
    for process in range(hosts):
        command = [sys.executable, __file__, "--join", "--config", options.config]
        for name in ("batch", "steps", "seconds"):
            command += [f"--{name}", str(getattr(options, name))]
        command += ["--most", str(max(options.devices))]
        command += ["--weights", str(folder / f"{devices}.npz")]
        environment = dict(os.environ)
        if options.simulated:
            command += ["--simulated", str(devices // hosts)]
        else:
            seen = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
            seen = seen if seen != [""] else [str(n) for n in range(devices)]
            own = slice(process * devices // hosts, (process + 1) * devices // hosts)
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(seen[own])
        if hosts > 1:
            command += ["--coordinator", f"127.0.0.1:{port}", "--hosts", str(hosts)]
            command += ["--process", str(process)]
        processes.append(
            subprocess.Popen(
                command, stdout=subprocess.PIPE, text=True, env=environment
            )
        )
    return processes


def difference(path, reference):
    """Returns the largest difference of two weights' changes, by their size."""
    import numpy as np

    with np.load(path) as one, np.load(reference) as other:
        return max(
            float(np.linalg.norm(one[n] - other[n]) / np.linalg.norm(other[n]))
            for n in other
        )


def faults(result):
    """Returns the reasons for which a row is wrong."""
    found = []
    others = {name for name, _ in result["collectives"]} - {"all-reduce"}
    if others:
        found.append(f"a step has {', '.join(sorted(others))}")
    if result["gather_collectives"]:
        found.append("images travel between devices")
    if result["difference"] > LARGEST_DIFFERENCE:
        found.append("the weights differ")
    return found


def print_table(results):
    first = results[0]
    print(
        "\n| devices | processes | weak, images/s | efficiency | strong, images/s | "
        "efficiency | sums a step | MB | from gathering | weights differ by |"
    )
    print("| --: " * 10 + "|")
    for one in results:
        more = one["devices"] / first["devices"]
        cells = [one["devices"], one["hosts"]]
        for name in ("weak", "strong"):
            ratio = one[name] / first[name] / more
            cells += [f"{one[name]:,.0f}", f"{ratio:.0%}"]
        size = sum(size for _, size in one["collectives"])
        cells += [len(one["collectives"]), f"{size / 1e6:.2f}"]
        cells += [len(one["gather_collectives"]), f"{one['difference']:.0e}"]
        print("|", " | ".join(map(str, cells)), "|")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--devices", nargs="+", type=int, help="1, 2, 4, ... to all by default")
    add("--simulated", type=int, default=0, help="simulate so many, on the CPU")
    add("--hosts", type=int, default=1, help="processes that share the devices")
    add("--batch", type=int, default=128, help="images of each device in a step")
    add("--steps", type=int, default=11, help="steps in a call")
    add("--seconds", type=float, default=3, help="how long to time a row")
    mnist = str(FOLDER.parent / "experiments" / "mnist.py")
    add("--config", default=mnist, metavar="FILE[:VARIANT]", help="for 28x28 images")
    add("--json", type=pathlib.Path, help="file to append one JSON object a row to")
    add("--join", action="store_true", help="one row, on the devices of all processes")
    add("--most", type=int, default=8, help="devices that strong scaling goes up to")
    for name in ("weights", "coordinator"):
        add(f"--{name}", help=argparse.SUPPRESS)
    add("--process", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.join:
        join(options)
        return row(options)
    most = options.simulated or num_devices()
    options.devices = options.devices or [2**n for n in range(most.bit_length())]
    results, wrong = [], False
    try:
        with tempfile.TemporaryDirectory() as folder:
            for devices in options.devices:
                print(f"{devices} devices ...", file=sys.stderr, flush=True)
                result, found = measure(options, devices, pathlib.Path(folder), results)
                for fault in found:
                    wrong = True
                    print(f"WRONG, {devices} devices: {fault}", file=sys.stderr)
                if result is not None:
                    results.append(result)
    finally:  # Hours of rows stay if the next one is stopped.
        if results:
            print_table(results)
    return int(wrong)


def measure(options, devices, folder, before):
    """Returns a row, or None, and the reasons for which it is wrong; keeps it."""
    processes = start(options, devices, folder)
    printed = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        return None, ["it failed"]
    result = json.loads(printed[0].splitlines()[-1])
    first = before[0]["devices"] if before else devices
    result["difference"] = difference(
        folder / f"{devices}.npz", folder / f"{first}.npz"
    )
    if options.json:
        with options.json.open("a") as file:
            print(json.dumps(result), file=file)
    return result, faults(result)


def num_devices():
    """Counts the devices in another process, so that the rows' get the memory."""
    code = "import jax; print(jax.device_count())"
    return int(subprocess.check_output([sys.executable, "-c", code], text=True))


if __name__ == "__main__":
    sys.exit(main())
