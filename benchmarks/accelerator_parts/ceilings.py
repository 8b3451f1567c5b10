"""What the device can do at most, and the least time that a training step takes."""

import functools

import jax
import jax.numpy as jnp
import worker
from accelerator_parts.points import Part, seconds_of

# Numbers of an image that pass through memory in a step, at least. In the type of the
# products: what the first convolution makes is written, read by the second and by two
# gradients, and its own gradient written and read. In float32: the primary capsules and
# their gradient, each written once and read three times, and the image.
TYPED = 6 * 20 * 20 * 256
OTHER = 2 * 4 * 9216 + 2 * 784
# Adam reads weights, gradients and two moments, and writes all but the gradients, which
# were written before.
OPTIMIZER = 8 * 8_215_568


def floor(dtype: str) -> dict[str, float]:
    """What a training step of the paper's network must compute and move."""
    size = 2 if dtype == "bfloat16" else 4
    return {
        "flop_of_image": 2 * worker.TRAIN,
        "bytes_of_image": size * TYPED + 4 * OTHER,
        "bytes_of_step": 4 * OPTIMIZER,
    }


def run(part: Part) -> None:
    part.need_accelerator()
    size, copied = (256, 2**20) if part.quick else (8192, 2**31)
    seconds = 0.05 if part.quick else 0.5

    def product(dtype, precision, size=size):
        # Zeros would be multiplied faster than other numbers.
        a, b = (worker.normal(size, size, seed=n).astype(dtype) for n in (0, 1))
        multiply = jax.jit(functools.partial(jnp.matmul, precision=precision))
        each = seconds_of(lambda: multiply(a, b), seconds=seconds)
        return {"seconds": each, "flop_per_second": 2 * size**3 / each}

    def copy():
        array = worker.normal(copied // 4)
        copy = jax.jit(jnp.copy)
        each = seconds_of(lambda: copy(array), seconds=seconds)
        return {"seconds": each, "bytes_per_second": 2 * array.nbytes / each}

    part.run(
        {
            "product bfloat16": lambda: product("bfloat16", None),
            "product float32": lambda: product("float32", None),
            "copy": copy,
            "step": lambda: {"floor": {d: floor(d) for d in ("bfloat16", "float32")}},
            # A tenth of the others' speed: of a quarter of the size.
            "product float32 highest": lambda: product("float32", "highest", size // 4),
        }
    )
