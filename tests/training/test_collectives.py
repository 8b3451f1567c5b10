"""What devices send each other, counted in the compiled programs."""

import jax
import numpy as np
import pytest
from places import ROOT
from tiny import digits, made, tiny

from capsjax.data import load
from capsjax.layers import Stem
from capsjax.losses import fitting_loss
from capsjax.models import StemCapsNet
from capsjax.models.network import activation_kind, bind
from capsjax.runtime.devices import parallel
from capsjax.training.feed import Feed
from capsjax.training.step import make_train_chunk, make_train_step


@pytest.fixture
def scaling(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import scaling

    return scaling


def small_stem(config):
    network = StemCapsNet(stem=Stem(features=(4, 4, 4, 4)), primary_types=2)
    return bind(network, (28, 28, 1), 10)


@pytest.mark.parametrize(
    "make", [None, pytest.param(small_stem, marks=pytest.mark.slow)]
)
def test_devices_sum_gradients_statistics_and_metrics_alone(scaling, make):
    config = tiny()
    model, optimizer, state = made(config, make and make(config))
    loss = fitting_loss(config.loss, activation_kind(model))
    step = make_train_step(model, optimizer, config, loss, num_steps=1)
    program = parallel(make_train_chunk(step))
    batches = Feed(config, load(digits(), "test")).batches(range(5))
    found = scaling.collectives(program.lower(state, batches).compile().as_text())
    assert {name for name, _ in found} == {"all-reduce"}
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params["params"]))
    others = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params)) - weights
    # Statistics: the batch's two, and a test that all devices hold the same.
    numbers = sum(size for _, size in found)
    assert weights < numbers <= weights + 6 * others + 100


def test_gathering_a_batch_sends_nothing_between_devices(scaling):
    assert scaling.gather_collectives() == []


def test_collectives_are_found_with_their_bytes(scaling):
    replicated = jax.sharding.NamedSharding(jax.make_mesh((4,), ("x",)), jax.P())
    split = jax.sharding.NamedSharding(replicated.mesh, jax.P("x"))
    gather = jax.jit(lambda a: a, in_shardings=split, out_shardings=replicated)
    text = gather.lower(np.zeros((8, 3), np.float32)).compile().as_text()
    assert scaling.collectives(text) == [("all-gather", 96)]
