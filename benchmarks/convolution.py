"""Times every form of the convolution, also the forms that the rule did not choose.

    python benchmarks/convolution.py --rows paper
    python benchmarks/convolution.py --rows all --json convolution.jsonl

All forms of a row are compiled first and then run in turn, so that other work on the
machine disturbs all alike; compare only within a row. `median` and `spread` (the middle
half) are wall time, `cpu` is the processor time of all threads, and `ratio` is the
median over the chosen form's median of the same type. XLA's own strided gradient is
timed on two images and scaled up (marked ~). `of limit` compares with the time that the
formula's multiplications would take at the rate of one large product of that type; more
than 100 % means fewer multiplications. `prepared` is the forward pass with a kernel
transformed before. The last table sums up the rule's choices. Set GLIBC_TUNABLES (to
anything) to time the usual memory allocator.
"""

import argparse
import functools
import json
import math
import os
import resource
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from capsjax.kernels import convolution

# batch, image, channels, kernel, stride, padding, output channels
PAPER = [(b, 20, 256, 9, 2, "VALID", 256) for b in (1, 4, 8, 16, 32, 64, 128, 256)]
FIRST = [
    (128, 28, 1, 9, 1, "VALID", 256),
    (64, 32, 3, 9, 1, "VALID", 256),
    (64, 28, 3, 3, 1, "SAME", 64),
]
OTHERS = [
    (128, 24, 256, 9, 2, "VALID", 256),
    (64, 32, 64, 3, 1, "SAME", 64),
    (64, 28, 128, 3, 2, "SAME", 128),
    (64, 16, 128, 5, 1, "SAME", 128),
    (64, 20, 16, 9, 1, "VALID", 128),
    (64, 28, 16, 7, 1, "SAME", 64),
    (64, 20, 24, 9, 2, "VALID", 128),
    (64, 24, 8, 5, 1, "SAME", 32),
    (64, 24, 16, 3, 1, "SAME", 32),
    (64, 24, 16, 5, 2, "SAME", 32),
    (64, 14, 128, 1, 1, "VALID", 256),
]
# capsjax.models.stem at full and at half width, and its sizes with a larger window.
STEM = [
    (100, 28, 1, 5, 1, "SAME", 128),
    (100, 28, 128, 3, 1, "SAME", 128),
    (100, 14, 128, 3, 1, "SAME", 128),
    (100, 14, 128, 3, 1, "SAME", 256),
    (100, 7, 256, 3, 1, "SAME", 256),
    (100, 7, 256, 3, 1, "SAME", 512),
    (100, 4, 512, 3, 1, "SAME", 512),
    (100, 28, 64, 3, 1, "SAME", 64),
    (100, 14, 64, 3, 1, "SAME", 64),
    (100, 14, 64, 3, 1, "SAME", 128),
    (100, 7, 128, 3, 1, "SAME", 128),
    (100, 7, 128, 3, 1, "SAME", 256),
    (100, 4, 256, 3, 1, "SAME", 256),
    (100, 28, 64, 5, 1, "SAME", 64),
    (100, 14, 128, 5, 1, "SAME", 128),
    (100, 7, 256, 5, 1, "SAME", 256),
    (100, 4, 512, 5, 1, "SAME", 512),
]
ROWS = {"paper": PAPER, "first": FIRST, "others": OTHERS, "stem": STEM}
ROWS["all"] = PAPER + FIRST + OTHERS + STEM

FORMS = {
    "tile f32": ("tiles", np.float32),
    "tile bf16": ("tiles", jnp.bfloat16),
    "other-tile f32": ("tiles", np.float32),
    "other-tile bf16": ("tiles", jnp.bfloat16),
    "patches f32": ("patches", np.float32),
    "patches bf16": ("patches", jnp.bfloat16),
    "XLA f32": ("ordinary", np.float32),
    "XLA bf16": ("ordinary", jnp.bfloat16),
}


def processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def forward(image, kernel, plan):
    return convolution._forward(image, kernel, plan)


def prepared(image, values, kernel_shape, plan):
    return convolution.FORMS[plan.form].apply(image, values, kernel_shape, plan)


def both(image, kernel, gradient, plan):
    value = convolution._forward(image, kernel, plan)
    return value, *convolution._backward(image, kernel, gradient, plan)


def small_batch(batch, row, name):
    """Returns the batch to time: small if XLA's gradient takes minutes."""
    _, _, channels, kernel, stride, *_ = row
    hopeless = stride > 1 and channels * kernel > 1000
    return min(batch, 2) if name.startswith("XLA") and hopeless else batch


def other_tile(outputs, tile):
    """Returns the tile that the rule did not take; None if it had no choice."""
    largest = 3 if max(tile) > 3 else 8
    other = convolution.ceil_div(
        outputs, convolution.ceil_div(outputs, (largest, largest))
    )
    return None if other == tile else other


def compile_form(row, name, pass_name):
    batch, size, channels, window, stride, padding, features = row
    form, dtype = FORMS[name]
    full = (batch, size, size, channels)
    kernel_shape = (window, window, channels, features)
    plan = convolution._choose_plan(
        full,
        kernel_shape,
        (stride, stride),
        padding,
        dtype,
        is_prepared=pass_name == "prepared",
    )
    is_other = name.startswith("other")
    chosen, plan = plan.form == form and not is_other, plan._replace(form=form)
    outputs = convolution.output_size(full, kernel_shape, plan)
    if is_other:
        plan = plan._replace(tile=other_tile(outputs, plan.tile))
        if plan.tile is None:
            return None
    if pass_name == "forward + backward":
        batch = small_batch(batch, row, name)
    image_key, kernel_key, gradient_key = jax.random.split(jax.random.key(0), 3)
    image = jax.nn.relu(jax.random.normal(image_key, (batch, *full[1:])))
    kernel = jax.random.normal(kernel_key, kernel_shape)
    operands, function = [image, kernel], forward
    if pass_name == "prepared":
        operands[1] = convolution.FORMS[form].prepare(kernel, full, plan)
        function = functools.partial(prepared, kernel_shape=kernel_shape)
    if pass_name == "forward + backward":
        shape = (batch, *outputs, features)
        operands.append(jax.random.normal(gradient_key, shape))
        function = both
    function = functools.partial(function, plan=plan)
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*operands).compile()
    seconds = time.perf_counter() - start
    return {
        "run": lambda: jax.block_until_ready(compiled(*operands)),
        "scale": row[0] / batch,
        "chosen": chosen,
        "tile": plan.tile if form == "tiles" else None,
        "compile_ms": 1e3 * seconds,
        "temporary_mb": compiled.memory_analysis().temp_size_in_bytes / 1e6,
        "wall": [],
        "cpu": [],
    }


def product_rates():
    """Returns the multiplications per second of a large product in each type."""
    rates = {}
    for name, dtype in (("f32", np.float32), ("bf16", jnp.bfloat16)):
        square = jnp.ones((2048, 2048), dtype)
        product = functools.partial(jnp.dot, preferred_element_type=np.float32)
        product = jax.jit(product).lower(square, square).compile()
        seconds = []
        for _ in range(10):
            start = time.perf_counter()
            jax.block_until_ready(product(square, square))
            seconds.append(time.perf_counter() - start)
        rates[name] = 2048**3 / min(seconds)
    return rates


def multiplications(row, pass_name):
    """Counts the formula's multiplications; each of two gradients takes as many."""
    batch, size, channels, window, stride, padding, features = row
    shape, kernel = (batch, size, size, channels), (window, window, channels, features)
    plan = convolution._choose_plan(
        shape, kernel, (stride, stride), padding, np.float32
    )
    outputs = math.prod(convolution.output_size(shape, kernel, plan))
    passes = 3 if pass_name == "forward + backward" else 1
    return passes * batch * outputs * math.prod(kernel)


def measure(row, pass_name, seconds, rates):
    forms = {name: compile_form(row, name, pass_name) for name in FORMS}
    forms = {name: form for name, form in forms.items() if form is not None}
    for form in forms.values():
        form["run"]()
    end = time.perf_counter() + seconds
    repeats = 0
    while repeats < 3 or (repeats < 30 and time.perf_counter() < end):
        repeats += 1
        for form in forms.values():
            form["run"]()  # Brings its memory to hand, as in a training loop.
            cpu, wall = processor_seconds(), time.perf_counter()
            form["run"]()
            form["wall"].append(time.perf_counter() - wall)
            form["cpu"].append(processor_seconds() - cpu)
    work = multiplications(row, pass_name)
    results = {name: summary(form) for name, form in forms.items()}
    for name, result in results.items():
        result["limit_ms"] = 1e3 * work / rates[name.split()[1]]
    return results


def summary(form):
    wall = [1e3 * form["scale"] * t for t in form.pop("wall")]
    low, median, high = statistics.quantiles(wall, n=4)
    form["cpu_ms"] = 1e3 * form["scale"] * statistics.median(form.pop("cpu"))
    form.pop("run")
    return form | {
        "median_ms": median,
        "spread_ms": high - low,
        "repeats": len(wall),
    }


def print_table(row, pass_name, results):
    print(
        f"\n**{name_of(row)}: {pass_name}**\n\n"
        "| form | median ms | spread | cpu ms | ratio | of limit | compile ms "
        "| temporary MB |\n| --- | --: | --: | --: | --: | --: | --: | --: |"
    )
    chosen = {n.split()[1]: r for n, r in results.items() if r["chosen"]}
    for name, r in results.items():
        best = chosen[name.split()[1]]
        scaled = "~" if r["scale"] > 1 else ""
        mark = " (chosen)" if r["chosen"] else ""
        print(
            f"| {name}{mark} | {scaled}{r['median_ms']:.1f} | {r['spread_ms']:.1f} "
            f"| {r['cpu_ms']:.0f} | {r['median_ms'] / best['median_ms']:.2f} "
            f"| {r['limit_ms'] / r['median_ms']:.0%} | {r['compile_ms']:.0f} "
            f"| {r['temporary_mb']:.0f} |",
            flush=True,
        )


def name_of(row):
    batch, size, channels, window, stride, padding, features = row
    return f"{batch} x {size}² x {channels}, {window}² / {stride} {padding}, {features}"


def print_choices(measured):
    """Prints the chosen form and all times, a line per row, pass and type."""
    print("\n| convolution | pass | type | chosen | ms | of limit | others, ms |")
    print("| --- | --- | --- | --- | --: | --: | --- |")
    for row, pass_name, results in measured:
        for dtype in ("f32", "bf16"):
            own = {n: r for n, r in results.items() if n.split()[1] == dtype}
            name, best = next((n, r) for n, r in own.items() if r["chosen"])
            others = ", ".join(
                f"{n.split()[0]} {r['median_ms']:.1f}"
                for n, r in own.items()
                if n != name
            )
            tile = f" {best['tile'][0]}²" if best["tile"] else ""
            print(
                f"| {name_of(row)} | {pass_name} | {dtype} | {name.split()[0]}{tile} "
                f"| {best['median_ms']:.1f} "
                f"| {best['limit_ms'] / best['median_ms']:.0%} | {others} |"
            )


def keep_memory():
    """Starts again with freed memory kept: otherwise fresh pages would be timed."""
    tunables = f"glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold={2**40}"
    if "GLIBC_TUNABLES" not in os.environ:
        environment = os.environ | {"GLIBC_TUNABLES": tunables}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def main():
    keep_memory()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", choices=ROWS, default="paper")
    parser.add_argument("--batch", type=int, help="only the rows of this batch")
    parser.add_argument("--seconds", type=float, default=4, help="per row and pass")
    parser.add_argument("--json", help="file to append one JSON object a form to")
    arguments = parser.parse_args()
    machine = {
        "jax": jax.__version__,
        "numpy": np.__version__,
        "backend": jax.default_backend(),
        "cores": len(os.sched_getaffinity(0)),
    }
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    rates = product_rates()
    listed = ", ".join(f"{name} {rate / 1e9:.0f} G/s" for name, rate in rates.items())
    print(f"multiplications in a large product: {listed}")
    measured = []
    for row in ROWS[arguments.rows]:
        if arguments.batch not in (None, row[0]):
            continue
        for pass_name in ("prepared", "forward", "forward + backward"):
            results = measure(row, pass_name, arguments.seconds, rates)
            measured.append((row, pass_name, results))
            print_table(row, pass_name, results)
            if arguments.json:
                with open(arguments.json, "a") as file:
                    for name, result in results.items():
                        line = {"row": row, "pass": pass_name, "form": name}
                        print(json.dumps(line | result | machine), file=file)
    print_choices(measured)


if __name__ == "__main__":
    main()
