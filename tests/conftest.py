"""Settings that every test shares: four simulated devices, strict ranks, one key."""

import os
import pathlib

# Most of the time goes into compiling, less than half of it without LLVM's optimiser.
# `XLA_FLAGS= python -m pytest` leaves it on, as .ci/run does for the numerics.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Many tests compile the same.
jax.config.update(
    "jax_compilation_cache_dir", str(pathlib.Path(__file__).parents[1] / ".jax_cache")
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)
