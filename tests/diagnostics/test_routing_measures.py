"""Measures of couplings against their definitions in float64, and in known cases."""

import functools
import math
import operator

import diagnostics as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import first_of

from capsjax import DynamicRouting, SelfAttention
from capsjax.diagnostics import (
    RoutingStatistics,
    Statistics,
    coupling_entropy,
    is_changed,
    uniformly,
)

NUM_IMAGES, NUM_INPUTS, NUM_OUTPUTS = 12, 5, 4
WAYS = ["plain", "nowhere", "masks"]


@pytest.fixture(autouse=True)
def _in_float64():
    with jax.enable_x64(True):
        yield


def case(way, seed=0):
    """Returns couplings, activations and masks of images, by name."""
    rng = np.random.default_rng(seed)
    nowhere, sends, gets = (
        way == "nowhere",
        np.ones((NUM_IMAGES, NUM_INPUTS), bool),
        np.ones((NUM_IMAGES, NUM_OUTPUTS), bool),
    )
    if way == "masks":
        sends = rng.random((NUM_IMAGES, NUM_INPUTS)) < 0.7
        gets = (
            np.arange(NUM_OUTPUTS) < rng.integers(2, NUM_OUTPUTS, NUM_IMAGES)[:, None]
        )
        sends[:, 1] = False  # An input that is masked everywhere.
        sends[3] = False  # An image without inputs.
    logit = 3 * rng.normal(size=(NUM_IMAGES, NUM_INPUTS, NUM_OUTPUTS + nowhere))
    logit[:, 0] = 0  # Never active.
    of_outputs = logit[..., :NUM_OUTPUTS]
    of_outputs[~np.broadcast_to(gets[:, None], of_outputs.shape)] = -np.inf
    c = np.exp(logit) / np.exp(logit).sum(-1, keepdims=True)
    c = c[..., nowhere:] * sends[..., None]
    own = rng.random((NUM_IMAGES, NUM_INPUTS)) * (np.arange(NUM_INPUTS) != 2) + 0.005
    return {
        "coupling": c,
        "input_activation": np.where(sends, own, np.nan),  # Whatever padding holds.
        "output_activation": rng.random((NUM_IMAGES, NUM_OUTPUTS)),
        "sends": sends,
        "gets": gets,
        "nowhere": nowhere,
    }


def statistics(way, part=slice(None), **changes):
    known = {**case(way), **changes}
    names = ("coupling", "input_activation", "output_activation")
    arrays = [known[name][part] for name in names]
    masks = {}
    if way == "masks":
        masks["input_mask"] = known["sends"][part]
        masks["output_mask"] = known["gets"][part]
    return RoutingStatistics.of(*arrays, **masks, none_of_the_above=known["nowhere"])


def assert_alike(found, expected, **tolerances):
    leaves = [jax.tree.leaves(one) for one in (found, expected)]
    for one, two in zip(*leaves, strict=True):
        np.testing.assert_allclose(one, two, **tolerances)


@pytest.mark.parametrize("way", WAYS)
def test_measures_are_those_of_their_definitions(way):
    found, known = statistics(way), case(way)
    sends, gets = known["sends"], known["gets"]
    own = (known["coupling"], sends, gets)
    nowhere = {"nowhere": known["nowhere"]}
    dead = reference.dead(known["input_activation"], sends)
    activity = reference.activity(*own, **nowhere)
    alive = ~dead[sends.any(0)]
    shares = reference.shares(known["coupling"], known["input_activation"], sends, gets)
    deviation = [
        known["output_activation"][gets[:, j], j].std()
        for j in range(NUM_OUTPUTS)
        if gets[:, j].any()
    ]
    expected = {
        "t_score": reference.t_score(*own, **nowhere),
        "d_score": max(deviation),
        "alive_rate": alive.mean(),
        "active_rate": activity.mean(),
        "active_rate_of_alive": activity[alive].mean(),
        "bonding": reference.bonding(*own, **nowhere),
        "dynamics": reference.dynamics(*own, **nowhere),
    }
    measures = found.measures()
    for name, value in expected.items():
        assert 0.01 < value < 1.5, name
        np.testing.assert_allclose(measures[name], value, rtol=1e-12, err_msg=name)
    assert np.flatnonzero(dead).tolist() == [2]
    np.testing.assert_array_equal(found.is_dead, dead)
    is_there = ~np.isnan(shares)
    np.testing.assert_allclose(found.share.mean[is_there], shares[is_there], rtol=1e-12)
    starved = np.where(is_there, shares, 1) < 0.1 / float(found.num_choices)
    assert measures["dead_inputs"] == 1
    assert measures["never_active_inputs"] == (activity == 0).sum() > 0
    assert measures["starved_outputs"] == starved.sum()


@pytest.mark.parametrize("way", first_of(["masks"], WAYS))
def test_batches_add_up_to_the_whole(way):
    whole = statistics(way)
    parts = [
        statistics(way, part)
        for part in (slice(0, 1), slice(1, 4), slice(4, NUM_IMAGES))
    ]
    added = functools.reduce(operator.add, parts)
    assert_alike(added, whole, rtol=1e-12, atol=1e-14)


def test_a_batch_of_any_axes_is_one_of_examples():
    known = case("plain")
    shapes = {
        name: known[name].shape for name in known if name.endswith(("ing", "tion"))
    }
    folded = {
        name: known[name].reshape(3, 4, *shape[1:]) for name, shape in shapes.items()
    }
    assert_alike(statistics("plain", **folded), statistics("plain"), rtol=1e-15)


def measured(coupling, own=None):
    """Returns the measures of couplings [8, 4, 4], by inputs of one length."""
    c = jnp.asarray(coupling, jnp.float64)
    own = jnp.full(c.shape[:2], 0.5) if own is None else own
    return RoutingStatistics.of(c, own, c.mean(1)).measures()


UNIFORM = np.full((8, 4, 4), 0.25)


def test_uniform_couplings_are_no_tree_and_no_bond():
    found = measured(UNIFORM)
    for name in ("t_score", "d_score", "active_rate", "bonding", "dynamics"):
        np.testing.assert_allclose(found[name], 0, atol=1e-15, err_msg=name)
    assert (found["never_active_inputs"], found["starved_outputs"]) == (4, 0)
    assert (found["alive_rate"], found["dead_outputs"]) == (1, 0)


def test_one_hot_couplings_are_a_tree_static_or_not():
    static = measured(np.tile(np.eye(4), (8, 1, 1)))
    assert (static["t_score"], static["bonding"], static["active_rate"]) == (1, 1, 1)
    assert (static["dynamics"], static["d_score"]) == (0, 0)
    # Each of four outputs in turn: the deviation is a random tree's, sqrt(3) / 4.
    turning = measured(np.stack([np.roll(np.eye(4), k, axis=1) for k in range(8)]))
    assert (turning["t_score"], turning["bonding"]) == (1, 1)
    np.testing.assert_allclose(turning["dynamics"], 1, rtol=1e-12)


def test_all_to_one_output_starves_the_others():
    found = measured(np.tile(np.eye(4)[:1], (8, 4, 1)))
    assert (found["starved_outputs"], found["dead_outputs"]) == (3, 3)
    assert found["saturated_outputs"] == 1


def test_one_image_has_no_dynamics():
    found = RoutingStatistics.of(jnp.eye(3)[None], jnp.ones((1, 3)), jnp.ones((1, 3)))
    measures = found.measures()
    assert (measures["dynamics"], measures["d_score"], measures["bonding"]) == (0, 0, 1)


def test_dead_inputs_are_short_and_constant():
    # The last but one is as short in the mean, but it differs between the images.
    own = np.tile([0.0, 0.009, 0.0, 0.3], (8, 1))
    own[0, 2] = 0.06
    assert own[:, 2].mean() < 0.01
    found = measured(UNIFORM, jnp.asarray(own))
    assert (found["dead_inputs"], found["alive_rate"]) == (2, 0.5)
    found = measured(UNIFORM, jnp.zeros((8, 4)))
    assert found["alive_rate"] == 0
    assert math.isnan(found["active_rate_of_alive"])
    assert measured(UNIFORM, jnp.full((8, 4), 0.95))["saturated_inputs"] == 4


def test_a_single_output_is_no_choice():
    one = jnp.ones((2, 3, 1))
    found = RoutingStatistics.of(one, one[..., 0], one[:, 0]).measures()
    assert math.isnan(found["t_score"])
    assert found["bonding"] == 0


def test_the_entropy_counts_the_share_for_none():
    c = jnp.array([[0.5, 0.5], [0.25, 0.25], [0.0, 0.0], [1.0, 0.0]])
    ln2 = math.log(2)
    np.testing.assert_allclose(coupling_entropy(c)[0], ln2)
    found = coupling_entropy(c, none_of_the_above=True)
    np.testing.assert_allclose(found, [ln2, 1.5 * ln2, 0, 0])


def test_statistics_of_values_far_from_zero_keep_their_digits():
    # A sum of squares in float32 would lose all of the variance.
    values = (1e4 + np.random.default_rng(0).normal(size=(300, 2))).astype(np.float32)
    parts = [jnp.asarray(part) for part in np.split(values, 3)]
    added = functools.reduce(
        operator.add, [Statistics.of(p, jnp.ones_like(p)) for p in parts]
    )
    np.testing.assert_allclose(
        added.deviation, values.astype(np.float64).std(0), rtol=1e-3
    )
    nothing = Statistics.of(parts[0], jnp.zeros_like(parts[0]))
    assert nothing.deviation.tolist() == nothing.mean.tolist() == [0, 0]
    assert_alike(nothing + added, added)


@pytest.mark.parametrize("algorithm", [DynamicRouting(3), SelfAttention()])
def test_the_uniform_swap_replaces_the_couplings_of_any_algorithm(algorithm):
    rng = np.random.default_rng(0)
    votes = jnp.asarray(rng.normal(size=(3, 5, 4, 2)))
    routed = algorithm(votes, compete=uniformly)
    np.testing.assert_allclose(routed.coupling, 0.25, rtol=1e-15)
    assert np.ptp(algorithm(votes).coupling) > 0.1
    if isinstance(algorithm, DynamicRouting):
        expected = algorithm.with_rounds(1)(votes).pose
        np.testing.assert_allclose(routed.pose, expected, rtol=1e-12)


def test_a_prediction_is_changed_if_any_class_differs():
    first = jnp.array([[1, 0, 0], [0, 1, 1], [0, 0, 0]])
    second = jnp.array([[1, 0, 0], [0, 1, 0], [0, 0, 0]])
    assert is_changed(first, second).tolist() == [False, True, False]
