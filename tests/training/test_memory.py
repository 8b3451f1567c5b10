"""Estimates how much memory a run needs."""

import dataclasses
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import variants
from places import ROOT
from tiny import made, pairs

from capsjax import config as configs
from capsjax.data import Batch, load
from capsjax.losses import MarginLoss, fitting_loss
from capsjax.models.network import activation_kind, bind
from capsjax.runtime import devices
from capsjax.runtime.devices import parallel
from capsjax.training.feed import stack_batches
from capsjax.training.memory import Memory, estimate_memory, peak_bytes
from capsjax.training.state import init_state
from capsjax.training.step import make_train_chunk, make_train_step

MEGABYTE = jnp.zeros(2**18)


def peak(function, *operands):
    return peak_bytes(jax.make_jaxpr(function)(*operands).jaxpr) / 2**20


def test_what_is_used_again_stays_and_what_is_not_goes():
    def chain(x):
        return jnp.sin(jnp.sin(jnp.sin(x)))

    def fork(x):
        first = jnp.sin(x)
        second = jnp.sin(first)
        return first + jnp.sin(second)

    assert peak(chain, MEGABYTE) == 2
    assert peak(fork, MEGABYTE) == 3
    assert peak(lambda x: jnp.sin(x).sum() + x, MEGABYTE) == pytest.approx(1, abs=1e-4)


def test_what_a_loop_or_a_branch_needs_inside_is_counted():
    def wide(x):
        return jnp.concatenate([x, x, x]).reshape(3, -1).sum(0)

    def loop(x):
        return jax.lax.fori_loop(0, 3, lambda _, x: wide(x), x)

    def branch(x):
        return jax.lax.cond(x[0] > 0, wide, jnp.sin, x)

    inside = peak(wide, MEGABYTE)
    assert inside >= 6
    assert peak(loop, MEGABYTE) == pytest.approx(inside, abs=0.01)
    assert peak(branch, MEGABYTE) == pytest.approx(inside, abs=0.01)


def test_state_and_data_are_counted_to_the_byte():
    config = configs.Config(batch_size=8, steps_per_dispatch=3)
    config.optimizer = dataclasses.replace(config.optimizer, average=0.9)
    model = bind(config.model, (28, 28, 1), 10)
    sets = [pairs(10), load("mnist", "test").subset(np.arange(7))]
    memory = estimate_memory(model, MarginLoss(), config, sets)
    num_parameters = 8_215_568
    # Weights, two moments and the average on each of four devices.
    assert memory.state == pytest.approx(4 * 4 * 4 * num_parameters / 1e9, rel=1e-5)
    image, pair = 28 * 28 + 4, 3 * 28 * 28 + 10
    batches = 2 * 3 * 8 * pair
    assert memory.data * 1e9 == pytest.approx(10 * pair + 7 * image + batches)
    assert str(Memory(1.0, 2.0, 0.25)).startswith("3.25 GB (weights and optimizer 1.00")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["capsnet", *variants("cnn")])
def test_a_step_of_the_papers_networks_needs_what_is_estimated(name):
    config = configs.Config(steps_per_dispatch=1)
    config = configs.override(config, [("model", name)])
    dataset = load("mnist", "test").subset(np.arange(config.batch_size))
    model, optimizer, state = made(config)
    loss = fitting_loss(config.loss, activation_kind(model))
    estimated = estimate_memory(model, loss, config, [dataset])
    step = make_train_chunk(
        make_train_step(model, optimizer, config, loss, num_steps=1)
    )
    program = parallel(step, donate=True)
    batches = stack_batches(dataset, range(1), batch_size=config.batch_size, seed=0)
    compiled = program.lower(state, batches).compile()
    # Of each of the four devices.
    needed = 4 * compiled.memory_analysis().temp_size_in_bytes / 1e9
    assert needed / 2 < estimated.step < 2 * needed


@pytest.mark.slow
def test_a_step_with_a_thousand_classes_needs_little_beside_its_state(monkeypatch):
    monkeypatch.setattr(devices, "_devices", lambda: jax.devices()[:1])
    recipes = runpy.run_path(str(ROOT / "experiments" / "folder.py"))
    config = recipes["get_config"]("smoke")
    model = bind(config.model, (32, 32, 3), 1000)
    loss = fitting_loss(config.loss, activation_kind(model))
    optimizer = config.optimizer.make(1)
    state = jax.eval_shape(lambda: init_state(model, optimizer, config))
    step = make_train_step(model, optimizer, config, loss, num_steps=1)
    shape = (1, 4, config.batch_size, 32, 32, 3)
    batches = Batch(
        jax.ShapeDtypeStruct(shape, jnp.uint8),
        jax.ShapeDtypeStruct(shape[:3], jnp.int32),
    )
    program = parallel(make_train_chunk(step), donate=True)
    memory = program.lower(state, batches).compile().memory_analysis()
    # Weights, 311 MB, and Adam's two moments. Beside them: the weights' gradient and
    # two more arrays of their size.
    assert memory.argument_size_in_bytes == pytest.approx(933e6, rel=1e-3)
    assert memory.temp_size_in_bytes < 1e9
