"""The whole training step as the trainer runs it, its data included."""

import collections
import functools

import jax
import worker
from accelerator_parts.points import Part
from accelerator_parts.training import Trained, recipe, shrink

from capsjax.runtime.devices import parallel
from capsjax.training.feed import stack_batches

# In order of worth: the best batch, the recipe's, and one between.
POINTS = [(2048, "bfloat16"), (2048, "float32"), (128, "bfloat16"), (128, "float32")]
MORE = [(512, "bfloat16"), (512, "float32")]


def run(part: Part) -> None:
    part.need_accelerator()
    kernels = functools.partial(longest_kernels, part, *POINTS[0])
    if part.quick:
        points = {"float32, batch 50": lambda: measure(part, 50, "float32")}
        kernels = functools.partial(longest_kernels, part, 50, "float32")
        points |= {"kernels": kernels, "lowered for CUDA": lowered}
    else:
        of = {f"{d}, batch {b}": (b, d) for b, d in POINTS + MORE}
        points = {n: functools.partial(measure, part, *of[n]) for n in of}
        names = list(points)
        names.insert(1, "kernels")  # Of the first point's program, compiled by then.
        points = {n: points.get(n, kernels) for n in names}
    part.run(points)


def trained(part: Part, batch: int, dtype: str, **options) -> Trained:
    config = recipe()
    config.bad_numbers = "skip"
    if part.quick:
        shrink(config)
    # Batches of 128 in float32 are the recipe itself, the program of which the part
    # "plain" then finds compiled.
    if (batch, dtype) != (128, "float32"):
        config.num_epochs, config.data.num_validation = 1000, 0
    config.batch_size = batch
    config.model = config.model.clone(compute_dtype=dtype)
    seconds = 0.5 if part.quick else 3
    folder = part.scratch / f"step-{dtype}-{batch}{'-traced' * bool(options)}"
    limit = max(5, part.seconds_left)
    return Trained(config, folder, seconds=seconds, limit=limit, **options)


def measure(part: Part, batch: int, dtype: str) -> dict:
    run = trained(part, batch, dtype)
    stats = jax.devices()[0].memory_stats() or {}
    return {
        "batch": batch,
        "dtype": dtype,
        "images_per_second": run.images_per_second,
        "images_per_second_with_saves": run.stream,
        "compile_seconds": run.compile_seconds,
        "memory_bytes": run.memory_bytes,
        # Of all points so far.
        "peak_bytes_in_use": stats.get("peak_bytes_in_use"),
    }


def longest_kernels(part: Part, batch: int, dtype: str) -> dict:
    """Where the device's time goes: its ten longest kernels and their shares."""
    folder = part.scratch / "trace"
    trained(part, batch, dtype, trace=folder)
    (path,) = folder.rglob("*.xplane.pb")
    data = jax.profiler.ProfileData.from_file(str(path))
    on_device = [plane for plane in data.planes if plane.name.startswith("/device:")]
    planes = on_device or [p for p in data.planes if p.name == "/host:CPU"]
    seconds, count = collections.Counter(), collections.Counter()
    for plane in planes:
        for line in plane.lines:
            # Of a GPU these are its streams; other lines sum these up.
            if on_device and not line.name.startswith("Stream"):
                continue
            for event in line.events:
                if on_device or any(name == "hlo_op" for name, _ in event.stats):
                    seconds[event.name] += event.duration_ns / 1e9
                    count[event.name] += 1
    total = sum(seconds.values())
    if not total:
        names = [f"{p.name}: {[line.name for line in p.lines]}" for p in data.planes]
        raise ValueError(f"no kernels in the trace; its planes: {names}")
    return {
        "batch": batch,
        "dtype": dtype,
        "total_seconds": total,
        "kernels": [
            {"name": name, "share": one / total, "count": count[name], "seconds": one}
            for name, one in seconds.most_common(10)
        ],
    }


def lowered() -> dict:
    """The paper's step, both types: what XLA would get on a GPU."""
    sizes = {}
    for dtype in ("float32", "bfloat16"):
        config = worker.make_config(128, dtype)
        model, optimizer, state = worker.make_state(config)
        step = worker.make_chunk(model, optimizer, config)
        batches = stack_batches(worker.random_data(), range(2), batch_size=128, seed=0)
        exported = jax.export.export(jax.jit(parallel(step)), platforms=["cuda"])(
            state, batches
        )
        sizes[dtype] = exported.mlir_module().count("stablehlo.convolution")
    if not all(sizes.values()):
        raise ValueError(f"no convolution for CUDA: {sizes}")
    return {"convolutions": sizes}
