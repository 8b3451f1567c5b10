"""The code in docs/algorithms.md, and the numbers in docs/routing.md."""

import re
import runpy

import jax
import numpy as np
import pytest
from places import ROOT
from programs import apply, draw, init

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
    history = np.array([[3, 7, 9, 4, 1, 8, 2, 5], [6, 2, 0, 0, 0, 0, 0, 0], [0] * 8])
    params = init(model, key, history)
    pose, length, _ = jax.tree.map(np.asarray, apply(model, params, history))
    assert (length > 0).sum(-1).tolist() == [3, 1, 0]
    alone = apply(model, params, history[1:2]).pose
    np.testing.assert_allclose(alone[0], pose[1], rtol=1e-5, atol=1e-7)

    def loss(params):
        return model.apply(params, history).activation.sum()

    gradient = jax.tree.leaves(jax.jit(jax.grad(loss))(params))
    assert all(np.isfinite(array).all() for array in gradient)
    assert all(np.abs(array).max() > 0 for array in gradient)


def test_the_page_s_algorithm_routes_by_angle(key, page):
    routing = page["CosineRouting"]()
    votes = 0.1 * draw(key, 6, 3, 4)
    # The first input agrees with the first output, and is loud.
    votes[:, 0] = 1
    coupling = np.asarray(jax.jit(routing)(votes).coupling)
    assert (coupling[:, 0] > coupling[:, 1:].max(-1)).all()
    layer = capsjax.DenseCaps(3, 4, routing=routing)
    capsules = draw(key, 2, 6, 5)
    params = init(layer, key, capsules)
    masked = jax.jit(layer.apply)(params, capsules, input_mask=np.arange(6) < 4)
    short = {"params": {"weight": params["params"]["weight"][:4]}}
    np.testing.assert_allclose(
        masked.pose, apply(layer, short, capsules[:, :4]).pose, rtol=1e-5
    )


def test_the_numbers_beside_the_picture_are_what_its_script_computes():
    text = (ROOT / "docs" / "routing.md").read_text()
    rows = re.findall(r"^\| `(\w+)`((?: \| -?\d\.\d\d){5}) \|$", text, re.M)
    assert [word for word, _ in rows] == list(capsjax.ROUTINGS)
    script = runpy.run_path(str(ROOT / "docs" / "figures" / "routing.py"))
    points = script["scene"]()
    for word, cells in rows:
        routed = script["route"](capsjax.ROUTINGS[word](), points)
        found = script["numbers"](points, routed)
        expected = [float(cell) for cell in cells.split(" | ")[1:]]
        np.testing.assert_allclose(found, expected, atol=0.006, err_msg=word)


def test_every_algorithm_has_its_row_of_equations():
    text = (ROOT / "docs" / "routing.md").read_text()
    rows = re.search(r"\| word \| logit.*?\n\n", text, re.S)[0]
    assert re.findall(r"^\| `(\w+)`", rows, re.M) == list(capsjax.ROUTINGS)
