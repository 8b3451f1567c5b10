"""The table of platforms: its rows are found, and decide what is lowered."""

import jax
import jax.numpy as jnp
import pytest

from capsjax.runtime import platforms
from capsjax.runtime.platforms import PLATFORMS, by_platform, platform


def test_a_platform_is_found_by_each_of_its_names_in_jax():
    assert platform("cpu") is PLATFORMS["cpu"]
    assert platform(jax.default_backend()) is PLATFORMS["cpu"]
    assert platform("gpu") is platform("cuda") is PLATFORMS["cuda"]
    assert platform("one that nobody has heard of") is PLATFORMS["tpu"]


@pytest.mark.parametrize("name", PLATFORMS)
def test_each_row_decides_what_is_lowered_for_its_platform(monkeypatch, name):
    rows = {
        name: row._replace(block_bytes=700 + n)
        for n, (name, row) in enumerate(PLATFORMS.items())
    }
    monkeypatch.setattr(platforms, "PLATFORMS", rows)
    add = jax.jit(
        lambda x: by_platform(lambda x, platform: x + platform.block_bytes, x)
    )
    program = add.trace(jnp.zeros(())).lower(lowering_platforms=(name,))
    added = [f"{row.block_bytes:e}" for row in rows.values()]
    found = [number for number in added if number in program.as_text()]
    assert found == [f"{rows[name].block_bytes:e}"]


@pytest.mark.parametrize(
    ("num_examples", "votes_bytes", "form"),
    [
        (4, 2**30, "votes"),
        (8, 2**20, "votes"),
        (8, 2**30, "votes_free"),
        (16, 2**10, "votes_free"),
    ],
)
def test_the_form_of_routing_depends_on_examples_and_votes(
    num_examples, votes_bytes, form
):
    assert PLATFORMS["cpu"].routing_form(num_examples, votes_bytes) == form
