"""The code in docs/algorithms.md keeps the page's promises."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from places import ROOT

import capsjax


@pytest.fixture(scope="module")
def page():
    text = (ROOT / "docs" / "algorithms.md").read_text()
    names = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(block, names)
    return names


def test_interests_depend_on_the_history_alone(key, page):
    model = page["Interests"](num_items=50)
    history = jnp.array([[3, 7, 9, 4, 1, 8, 2, 5], [6, 2, 0, 0, 0, 0, 0, 0], [0] * 8])
    params = model.init(key, history)
    pose, length, _ = model.apply(params, history)
    assert (length > 0).sum(-1).tolist() == [3, 1, 0]
    alone = model.apply(params, history[1:2]).pose
    np.testing.assert_allclose(alone[0], pose[1], rtol=1e-5, atol=1e-7)

    def loss(params):
        return model.apply(params, history).activation.sum()

    gradient = jax.tree.leaves(jax.grad(loss)(params))
    assert all(np.isfinite(array).all() for array in gradient)
    assert all(np.abs(array).max() > 0 for array in gradient)


def test_the_page_s_algorithm_routes_by_angle(key, page):
    routing = page["CosineRouting"]()
    votes = 0.1 * jax.random.normal(key, (6, 3, 4))
    # The first input agrees with the first output, and is loud.
    agreeing = jnp.ones((6, 4))
    votes = votes.at[:, 0].set(agreeing)
    coupling = routing(votes).coupling
    assert (coupling[:, 0] > coupling[:, 1:].max(-1)).all()
    layer = capsjax.DenseCaps(3, 4, routing=routing)
    capsules = jax.random.normal(key, (2, 6, 5))
    params = layer.init(key, capsules)
    masked = layer.apply(params, capsules, input_mask=jnp.arange(6) < 4)
    short = {"params": {"weight": params["params"]["weight"][:4]}}
    np.testing.assert_allclose(
        masked.pose, layer.apply(short, capsules[:, :4]).pose, rtol=1e-5
    )
