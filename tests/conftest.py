"""Settings that every test shares: four simulated devices, strict ranks, one key."""

import gc
import importlib.metadata
import os
import pathlib

# Most of the time goes into compiling: less than half of it without LLVM's optimiser,
# and half of that without XLA's newer emitters of fusions (a version that does not know
# a flag ends the process). `XLA_FLAGS= python -m pytest` compiles as users do, and
# .ci/run does so for the numerics.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    + " --xla_cpu_use_fusion_emitters=false"
    * importlib.metadata.version("jaxlib").startswith("0.10."),
)

import jax
import pytest

# Traced programs are many small objects that live long: a tenth of the time went into
# looking through them.
gc.set_threshold(100_000, 50, 1000)
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Many tests compile the same.
jax.config.update(
    "jax_compilation_cache_dir", str(pathlib.Path(__file__).parents[1] / ".jax_cache")
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Of the files that are done: they took gigabytes, for the collector to search."""
    yield
    jax.clear_caches()


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture
def without_estimate(monkeypatch):
    """Skips tracing a step for the memory it needs, which is a fifth of a tiny run."""
    monkeypatch.setattr("capsjax.training.task._is_beyond_memory", lambda *_: False)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> pathlib.Path:
    """The folder of a run of two epochs of ten steps, not to be changed."""
    from tiny import digits, tiny_model

    from capsjax import config as configs
    from capsjax import train
    from capsjax.storage.workdir import Workdir

    config = configs.Config(num_epochs=2, batch_size=32, steps_per_dispatch=5)
    config.experiment = "tiny"
    config.data = configs.Data(digits(), num_train=320, num_validation=100)
    config.model = tiny_model(
        conv_init="he_normal", primary_init="he_normal", weight_init="normal(0.3)"
    )
    config.optimizer = configs.Adam(learning_rate=3e-3)
    path = tmp_path_factory.mktemp("run")
    train.train(config, Workdir(path))
    return path
