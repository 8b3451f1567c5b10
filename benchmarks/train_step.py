"""Times the whole training step, its parts, and peers that do the same work.

    python benchmarks/train_step.py             # ours: the step, and its parts
    python benchmarks/train_step.py --peers --json train_step.jsonl
    python benchmarks/train_step.py --tables train --devices 1 2 --batch 128
    python benchmarks/train_step.py --quick     # about a minute
    python benchmarks/train_step.py --check     # do all compute the same?

The peers are plain JAX, written in the simplest way, and PyTorch, which needs an
environment of its own:

    python -m venv torch && torch/bin/pip install torch==2.13.0 numpy
    export TORCH_PYTHON=torch/bin/python        # or --torch-python

Every row of a table is a process of its own, and the rows are timed in turn, round by
round, while the others sleep; compare only within a table. The network is the paper's,
images are random bytes; a step is everything from fetching the batch to Adam, and ours
also shifts the images. `ms` is one step's, `cpu ms` the processor time of all threads,
`images/s` the rate, all medians over the rounds; `spread` is the middle half.

`GLIBC_TUNABLES` applies to all rows but the rows of the table `pages`.

`of limit` compares with the time that the formulas' multiplications would take at the
rate of one large product in the same type, or the bytes at the memory's rate, whichever
is longer; both are rows of the same table. More than 100 % means fewer multiplications
than in the formulas.
"""

import argparse
import itertools
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

FOLDER = pathlib.Path(__file__).resolve().parent
BATCHES = {"train": (50, 128, 256), "layers": (50, 128, 256), "routing": (128,)}
BATCHES |= {"inference": (128, 1), "pages": (128,), "stem": (100,), "networks": (32,)}
NETWORKS = ("efficient", "stacked", "matrix", "photos")
STEM_WIDTHS = (128, 64)  # The full and the half width of experiments/record.py.
TYPED_PARTS = ("conv", "primary", "decoder")
OTHER_PARTS = ("shift", "warp", "elastic", "squash", "routing", "adam")
DTYPES = ("float32", "bfloat16")
# Programs that run in PyTorch's environment.
TORCH = {"torch": "torch_capsnet.py", "torch routing": "torch_routings.py"}
TORCH |= {"torch network": "torch_networks.py"}
# Large pages, and freed memory kept: what glibc does without privilege.
LARGE = "glibc.malloc.hugetlb=1"
KEPT = f"{LARGE}:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold={2**40}"
PAGES = {"usual pages": "", "large pages": LARGE, "large pages, kept": KEPT}


class Contender(NamedTuple):
    """A row: its name, the worker's arguments, and its number of rounds."""

    name: str
    options: dict
    program: str = "capsjax"
    rounds: int = 1000
    tunables: str | None = None  # None keeps the environment's.

    def environment(self):
        return {} if self.tunables is None else {"GLIBC_TUNABLES": self.tunables}

    def command(self, torch_python):
        script = [sys.executable, FOLDER / "worker.py", "--program", self.program]
        if self.program in TORCH:
            script = [torch_python, FOLDER / "peers" / TORCH[self.program]]
        flags = [
            part
            for name, value in self.options.items()
            for part in ([f"--{name}"] if value is True else [f"--{name}", str(value)])
        ]
        return [*map(str, script), *flags]


class Worker:
    """A running contender: ready to be timed, or failed."""

    def __init__(self, contender, torch_python, seconds):
        self.contender, self.timings = contender, []
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            contender.command(torch_python),
            env=os.environ | contender.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.ready = self._answer()
        if self.ready:
            self.calls = max(1, round(seconds / self.ready["call_seconds"]))

    def _answer(self):
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def time(self):
        print("run", self.calls, file=self.process.stdin, flush=True)
        self.timings.append(self._answer())
        return self.timings[-1]

    def failure(self):
        self.errors.seek(0)
        lines = self.errors.read().splitlines() or ["it printed nothing"]
        return next((line for line in lines if "Error: " in line), lines[-1])

    def close(self):
        self.process.stdin.close()
        self.process.wait()

    def result(self):
        """Returns the figures of one step."""
        steps = self.calls * self.ready.get("steps", 1)
        each = [t["seconds"] / steps for t in self.timings]
        seconds = statistics.median(each)
        low, _, high = statistics.quantiles(each, n=4) if len(each) > 1 else 3 * each
        cpu = (t["cpu_seconds"] / steps for t in self.timings)
        return self.ready | {
            "contender": self.contender.name,
            "program": self.contender.program,
            "options": self.contender.options,
            "seconds": seconds,
            "spread": (high - low) / seconds,
            "images_per_second": self.ready.get("images", 0) / seconds,
            "each": each,
            "cpu_seconds": statistics.median(cpu),
            "peak_mb": self.timings[-1]["peak_mb"],
        }


# ---- who takes part


def limits(arguments):
    """Returns the rows that measure the machine."""
    rows = [Contender("memory", {"work": "memory"})]
    # Rows without a type of their own are compared with float32.
    for dtype in dict.fromkeys(["float32", *arguments.dtypes]):
        options = {"work": "gemm", "dtype": dtype}
        rows.append(Contender(f"product {dtype}, jax", options))
        if arguments.peers:
            rows.append(Contender(f"product {dtype}, torch", options, "torch"))
    return rows


def layers(arguments, batch):
    """Returns rows for the step and its parts, which keep memory like in a step."""
    rows = []
    for dtype in arguments.dtypes:
        options = {"batch": batch, "dtype": dtype}
        step = options | {"work": "train", "steps": arguments.steps}
        rows.append(Contender(f"capsjax {dtype}", step))
        for part in TYPED_PARTS:
            work = options | {"work": part}
            rows.append(Contender(f"{part} {dtype}", work, tunables=KEPT))
    for part in OTHER_PARTS:
        rows.append(Contender(part, {"batch": batch, "work": part}, tunables=KEPT))
    return rows


def pages(arguments, batch):
    options = {"work": "train", "batch": batch, "steps": arguments.steps}
    return [
        Contender(
            f"capsjax {dtype}, {name}",
            options | {"dtype": dtype},
            tunables=value,
        )
        for dtype in arguments.dtypes
        for name, value in PAGES.items()
    ]


def stems(arguments, batch):
    """Returns rows for networks behind a stem, the rates that it is measured by."""
    rows = []
    for width in STEM_WIDTHS:
        for dtype in arguments.dtypes:
            options = {"work": "train", "batch": batch, "dtype": dtype, "stem": width}
            chunk = options | {"steps": arguments.steps}
            rows.append(Contender(f"capsjax {dtype}, width {width}", chunk))
            if arguments.peers:
                name = f"torch {dtype}, width {width}"
                rows.append(Contender(name, options, "torch"))
    return rows


def networks(arguments, batch):
    """Returns rows for steps of the other networks."""
    rows = []
    for network in NETWORKS:
        options = {"network": network, "batch": batch}
        own = options | {"work": "network", "steps": arguments.steps}
        rows.append(Contender(f"capsjax, {network}", own))
        for way in (False, True)[: arguments.peers * (2 - arguments.quick)]:
            name = f"torch, {network}" + ", compiled" * way
            peer = options | ({"compile": True} if way else {})
            rows.append(Contender(name, peer, "torch network"))
    return rows


def ours(arguments, work, batch):
    options = {"work": work, "batch": batch}
    rows, dtypes = [], arguments.dtypes[: 1 if work == "routing" else None]
    for dtype in dtypes:
        typed = options | {"dtype": dtype}
        if work != "train":
            rows.append(Contender(f"capsjax {dtype}", typed))
        if work == "inference":
            prepared = typed | {"prepared": True}
            rows.append(Contender(f"capsjax {dtype}, prepared", prepared))
        for devices in arguments.devices if work == "train" else ():
            many = typed | {"devices": devices}
            end = "" if devices == 1 else f", {devices} devices"
            chunk = many | {"steps": arguments.steps}
            rows.append(Contender(f"capsjax {dtype}{end}", chunk))
            rows.append(Contender(f"capsjax {dtype}{end}, 1 step a call", many))
    return rows


def peers(arguments, work, batch):
    rows, dtypes = [], arguments.dtypes[: 1 if work == "routing" else None]
    for dtype in dtypes:
        options = {"work": work, "batch": batch, "dtype": dtype}
        rows.append(Contender(f"torch {dtype}", options, "torch"))
        if not arguments.quick:
            options = options | {"compile": True}
            rows.append(Contender(f"torch {dtype}, compiled", options, "torch"))
    # XLA's gradient of the strided convolution takes a second for each image or two.
    batch = min(batch, 8) if work == "train" else batch
    options = {"work": work, "batch": batch}
    rounds = 2 if work == "train" else 1000
    return [*rows, Contender(f"plain JAX, batch {batch}", options, "plain", rounds)]


# ---- timing


def measure(rows, arguments):
    """Times all contenders in turn, in reverse order every other round."""
    workers = []
    try:
        for row in rows:
            print(f"starting {row.name}", file=sys.stderr)
            worker = Worker(row, arguments.torch_python, arguments.seconds)
            if worker.ready:
                workers.append(worker)
            else:
                print(f"{row.name} failed: {worker.failure()}", file=sys.stderr)
        for number in range(arguments.rounds):
            started = time.monotonic()
            for worker in workers[:: 1 - 2 * (number % 2)]:
                if number < worker.contender.rounds:
                    worker.time()
            seconds = time.monotonic() - started
            load = os.getloadavg()[0]
            print(
                f"round {number + 1}/{arguments.rounds}: {seconds:.1f} s, load {load}",
                file=sys.stderr,
            )
        return [worker.result() for worker in workers]
    finally:
        for worker in workers:
            worker.close()


def add_limits(results):
    """Adds to each result the least time that its work could take."""
    rate = {}
    for result in results:
        kind = result["options"].get("work")
        if kind in ("gemm", "memory"):
            key = result["options"].get("dtype", "memory")
            work = result["multiplications" if kind == "gemm" else "bytes"]
            rate[key] = max(rate.get(key, 0), work / result["seconds"])
    # A peer does not report its work: take ours, which is the same.
    for result in results:
        names = ("work", "stem", "network")
        same = {k: v for k, v in result["options"].items() if k in names}
        known = next(
            (r for r in results if same.items() <= r["options"].items()), result
        )
        scale = result.get("images", 1) / known.get("images", 1)
        result["multiplications"] = scale * known.get("multiplications", 0)
        result["bytes"] = scale * known.get("bytes", 0)
        dtype = result["options"].get("dtype", "float32")
        result["limit_seconds"] = max(
            result["multiplications"] / rate[dtype], result["bytes"] / rate["memory"]
        )


def ratio(reference, result):
    """Returns the ratio of images per second: the median over common rounds."""
    scale = reference["images"] / result["images"]
    pairs = zip(reference["each"], result["each"], strict=False)
    return scale * statistics.median(b / a for a, b in pairs)


def print_table(title, results, columns):
    named = {result["contender"]: result for result in results}
    references = {head: named[name] for head, name in columns if name in named}
    heads = "contender | images/s | spread | ms | cpu ms | " + "".join(
        f"{head} | " for head in references
    )
    heads += "GFLOP/s | GB/s | of limit | compile s | peak MB"
    line = "| --- " + "| --: " * heads.count("|") + "|"
    print(f"\n**{title}**\n\n| {heads} |\n{line}")
    for r in results:
        cells = [r["contender"]]
        cells.append(f"{r['images_per_second']:.1f}" if "images" in r else "")
        cells += [f"{r['spread']:.0%}", f"{1e3 * r['seconds']:.1f}"]
        cells.append(f"{1e3 * r['cpu_seconds']:.1f}")
        cells += [
            f"{ratio(ref, r):.2f}" if "images" in r else ""
            for ref in references.values()
        ]
        rates = 2 * r["multiplications"], r["bytes"]
        cells += [f"{w / r['seconds'] / 1e9:.1f}" if w else "" for w in rates]
        cells += [f"{r['limit_seconds'] / r['seconds']:.0%}"]
        cells += [f"{max(0, r['compile_seconds']):.1f}", f"{r['peak_mb']:.0f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def run(table, batch, arguments):
    if table == "layers":
        rows = layers(arguments, batch)
        columns = [(f"of {d} step", f"capsjax {d}") for d in DTYPES]
        title = f"parts of a step, batch {batch}, forward and backward"
    elif table == "stem":
        rows = stems(arguments, batch)
        columns = [
            (f"our {d} {w} by it", f"capsjax {d}, width {w}")
            for w in STEM_WIDTHS
            for d in arguments.dtypes
        ]
        title = f"training behind a stem, batch {batch}"
    elif table == "networks":
        rows = networks(arguments, batch)
        columns = [(f"our {name} by it", f"capsjax, {name}") for name in NETWORKS]
        title = f"training of other networks, batch {batch}"
    elif table == "pages":
        rows = pages(arguments, batch)
        columns = [(f"usual {d} by it", f"capsjax {d}, usual pages") for d in DTYPES]
        title = f"training by memory allocator, batch {batch}"
    else:
        rows = ours(arguments, table, batch)
        if arguments.peers:
            rows += peers(arguments, table, batch)
        end = ", prepared" if table == "inference" else ""
        columns = [(f"our {d} by it", f"capsjax {d}{end}") for d in DTYPES]
        title = f"{table}, batch {batch}"
    results = measure(rows + limits(arguments), arguments)
    add_limits(results)
    versions = sorted({f"{r['program']} {r['version']}" for r in results})
    print(f"\n{', '.join(versions)}; {machine()}")
    print_table(title, results, columns)
    if arguments.json:
        with open(arguments.json, "a") as file:
            for result in results:
                about = {"table": table, "machine": machine()}
                print(json.dumps(about | result), file=file)


def machine():
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    python, processor = platform.python_version(), platform.machine()
    about = pathlib.Path("/proc/cpuinfo")
    for line in about.read_text().splitlines() if about.exists() else ():
        if line.startswith("model name"):
            processor = line.split(": ")[1]
    return f"Python {python}, {cores} cores of {processor}, load {load:.1f}"


def check(arguments):
    """Compares lengths and losses of all programs for the same weights and images."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"work": "check", "batch": 16, "file": f"{folder}/given.npz"}
        answers = {}
        for program in ("capsjax", "torch", "plain"):
            command = Contender("", options, program).command(arguments.torch_python)
            answers[program] = json.loads(subprocess.check_output(command))
    expected, worst = answers.pop("capsjax"), 0
    print(f"capsjax: losses of four steps {expected['loss']}")
    for program, answer in answers.items():
        pairs = zip(numbers(expected), numbers(answer), strict=True)
        error = max(abs(a - b) for a, b in pairs)
        print(f"{program}: the lengths and losses differ by at most {error:.1e}")
        worst = max(worst, error)
    return int(worst > 1e-4)


def numbers(answer):
    return [*itertools.chain(*answer["length"]), *answer["loss"]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add(
        "--tables",
        nargs="+",
        choices=BATCHES,
        help="by default train, layers and pages",
    )
    add("--batch", nargs="+", type=int, help="instead of the usual ones of each table")
    add("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    add("--devices", nargs="+", type=int, default=[1, 2], help="simulated devices")
    add("--steps", type=int, default=11, help="steps in one call, as the config has")
    add("--peers", action="store_true", help="PyTorch and plain JAX too; all tables")
    add("--torch-python", default=os.environ.get("TORCH_PYTHON", "python3"))
    add("--rounds", type=int, default=5)
    add("--seconds", type=float, default=1, help="how long to time a row in a round")
    add("--json", help="file to append one JSON object a row to")
    add("--quick", action="store_true", help="small, to see whether it works")
    add("--check", action="store_true", help="only compare what the peers compute")
    arguments = parser.parse_args()
    if arguments.check:
        sys.exit(check(arguments))
    if arguments.quick:
        arguments.rounds, arguments.seconds, arguments.steps = 2, 0.1, 2
        arguments.dtypes = arguments.dtypes[:1]
        arguments.batch = arguments.batch or [16]
    default = BATCHES if arguments.peers else ("train", "layers", "pages")
    for table in arguments.tables or default:
        for batch in arguments.batch or BATCHES[table]:
            run(table, batch, arguments)


if __name__ == "__main__":
    main()
