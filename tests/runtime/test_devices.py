"""Arrays that vary over devices, and platforms without a device."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from places import FIRST_EDITION, ROOT

from capsjax.kernels.varying import vary_alike


def test_vary_alike_keeps_arrays_shared_under_vmap():
    # ``jax.vmap`` refuses a mapped result whose output axis is None.
    mapped = jax.vmap(vary_alike, in_axes=(0, None), out_axes=[0, None])
    each, shared = mapped(jnp.ones((3, 2)), jnp.ones(4))
    assert each.shape == (3, 2)
    assert shared.shape == (4,)


@pytest.mark.parametrize(
    ("command", "platform"),
    [
        ("train", "rocm"),
        ("evaluate", "nonsense"),
        pytest.param("predict", "rocm", marks=pytest.mark.variant),
    ],
)
def test_a_missing_platform_is_an_error_of_one_line(command, platform):
    arguments = {
        "train": ["--config", f"{ROOT}/experiments/mnist.py:smoke"],
        "evaluate": ["--workdir", str(FIRST_EDITION / "mnist")],
        "predict": ["--workdir", str(FIRST_EDITION / "mnist"), "nothing.png"],
    }[command]
    done = subprocess.run(
        [sys.executable, "-m", f"capsjax.{command}", *arguments],
        env={**os.environ, "JAX_PLATFORMS": platform, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    (line,) = done.stderr.splitlines()
    start = f"capsjax.{command}: error: JAX finds no device of JAX_PLATFORMS={platform}"
    assert line.startswith(start)
    assert line.endswith(
        "Leave JAX_PLATFORMS out to take what is there, or set it to cpu."
    )
    assert (done.returncode, done.stdout) == (1, "")


def test_report_needs_no_device():
    done = subprocess.run(
        [sys.executable, "-m", "capsjax.report", str(FIRST_EDITION / "mnist")],
        env={**os.environ, "JAX_PLATFORMS": "nonsense", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("| recipe ")
