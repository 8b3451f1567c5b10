"""Lists the kernels that XLA compiles for a training step, on a machine without a GPU.

    pip install "jax[cuda13]"         # the compiler; no card and no driver is needed
    python benchmarks/gpu_program.py --batch 2048 --dtype bfloat16

Compiles the paper's step for an H100 and prints its kernels, each with its part of the
network, by the bytes that they move. The bytes of a row over the card's 3 TB/s are its
least time; a convolution's kind shows whether cuDNN computes it as a gradient. XLA can
try nothing here, and may choose other kernels on a card.
"""

import argparse
import functools
import math
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"  # Before JAX is imported: there is no card.

import jax
import jax.numpy as jnp
import numpy as np
import worker
from jax.experimental import topologies
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from capsjax.data import Batch
from capsjax.models.network import bind
from capsjax.runtime.devices import AXIS
from capsjax.training.state import init_state

STEPS = 8  # In one call; any number above one makes the same loop.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 19 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
ITEM_BYTES = {"pred": 1, "u8": 1, "bf16": 2, "s64": 8, "u64": 8, "f64": 8}
INSTRUCTION = re.compile(r"(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")
NO_KERNELS = ("parameter", "get-tuple-element", "tuple", "bitcast", "constant")


class Kernel(NamedTuple):
    """One instruction of the loop over the steps."""

    bytes: int
    name: str
    kind: str
    origin: str


def compile_step(batch: int, dtype: str) -> str:
    """Returns the optimised program of some steps in one call, as text."""
    config = worker.make_config(batch, dtype)
    model = bind(config.model, worker.IMAGE, worker.CLASSES)
    optimizer = config.optimizer.make(10_000)
    state = jax.eval_shape(functools.partial(init_state, model, optimizer, config))
    image = jax.ShapeDtypeStruct((STEPS, batch, *worker.IMAGE), jnp.uint8)
    batches = Batch(image, jax.ShapeDtypeStruct((STEPS, batch), jnp.int32), None)
    card = topologies.get_topology_desc(
        "h100", "cuda", target_config=H100, topology="1x1x1"
    )
    chunk = jax.shard_map(
        worker.make_chunk(model, optimizer, config),
        mesh=Mesh(np.array(card.devices[:1]), (AXIS,)),
        in_specs=(P(), P(None, AXIS)),
        out_specs=P(),
        check_vma=False,
    )
    return jax.jit(chunk, donate_argnums=0).lower(state, batches).compile().as_text()


def num_bytes(shapes: str) -> int:
    return sum(
        ITEM_BYTES.get(dtype, 4) * math.prod(int(n) for n in sizes.split(",") if n)
        for dtype, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    )


def kernels(program: str) -> Iterator[Kernel]:
    """Yields the kernels of the computation with the convolutions: the loop's body."""
    bodies = re.findall(r"^%?[\w.\-]+ \([^\n]*\{\n(.*?)^\}", program, re.M | re.S)
    body = max(bodies, key=lambda lines: lines.count("__cudnn$"))
    shape_of: dict[str, str] = {}
    for line in body.splitlines():
        if not (found := INSTRUCTION.match(line.strip())):
            continue
        name, shape, operation, rest = found.groups()
        shape_of[name] = shape
        if operation in NO_KERNELS:
            continue
        read = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
        target = re.search(r'custom_call_target="([^"]*)"', rest)
        origin = re.search(r'op_name="([^"]*)"', rest)
        yield Kernel(
            num_bytes(shape) + sum(num_bytes(shape_of.get(one, "")) for one in read),
            name,
            target[1] if target else operation,
            origin[1].partition("eval_jaxpr/")[2] if origin else "",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--rows", type=int, default=30)
    options = parser.parse_args()
    found = sorted(kernels(compile_step(options.batch, options.dtype)), reverse=True)
    total = sum(kernel.bytes for kernel in found)
    print(f"{len(found)} kernels a step; {total / 1e9:.1f} GB read and written\n")
    print("| MB | kernel | kind | part |\n| ---: | --- | --- | --- |")
    for kernel in found[: options.rows]:
        cells = kernel.name, kernel.kind, kernel.origin[-70:]
        print(f"| {kernel.bytes / 1e6:.0f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
