"""Distinct parse trees, and the entropy of their frequencies."""

import math

import diagnostics as reference
import jax.numpy as jnp
import numpy as np
import pytest

from capsjax.diagnostics import ParseTrees, parse_tree


def trees(coupling, label, **options):
    found = parse_tree(jnp.asarray(coupling), jnp.asarray(label), **options)
    return ParseTrees.of(np.asarray(found), label)


@pytest.mark.parametrize("num_bins", [11, 3])
def test_trees_are_counted_by_class(num_bins):
    rng = np.random.default_rng(0)
    coupling = rng.dirichlet(np.full(3, 0.2), size=(60, 2)).astype(np.float32)
    label = rng.integers(0, 2, 60)
    found = trees(coupling, label, num_bins=num_bins)
    expected = reference.parse_trees(coupling.astype(np.float64), label, num_bins)
    assert found.num_distinct == {own: len(count) for own, count in expected.items()}
    assert max(found.num_distinct.values()) > 4
    for own, count in expected.items():
        share = np.array([*count.values()]) / sum(count.values())
        entropy = reference.entropy(share) / math.log(2)
        assert found.entropy[own] == pytest.approx(entropy)
    assert found.num_examples == {own: (label == own).sum() for own in (0, 1)}
    parts = [slice(20), slice(20, None)]
    first, second = (
        trees(coupling[part], label[part], num_bins=num_bins) for part in parts
    )
    assert (first + second).count == found.count


def test_couplings_are_rounded_to_the_nearest_level():
    own = np.array([0.0, 0.04, 0.06, 0.5, 0.96, 1.0], np.float32)
    coupling = np.stack([1 - own, own], axis=-1)[None]
    found = parse_tree(jnp.asarray(coupling), jnp.array([1]))
    assert found.tolist() == [[0, 0, 1, 5, 10, 10]]


def test_extreme_cases():
    uniform = trees(np.full((8, 3, 4), 0.25, np.float32), np.zeros(8, int))
    assert (uniform.num_distinct, uniform.entropy) == ({0: 1}, {0: 0})
    # Eight images, each with a tree of its own.
    coupling = np.arange(8)[:, None] >> np.arange(3) & 1
    coupling = np.stack([coupling, 1 - coupling], axis=-1).astype(np.float32)
    distinct = trees(coupling, np.zeros(8, int))
    assert (distinct.num_distinct, distinct.entropy) == ({0: 8}, {0: 3})
