"""The images whose drawings set the limit for those of no known class."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from tiny import made, tiny, tiny_cnn

from capsjax.data import Batch, load
from capsjax.losses import fitting_loss
from capsjax.models.network import activation_kind, bind, init_variables
from capsjax.runtime.devices import AXIS, parallel
from capsjax.training import evaluation
from capsjax.training.evaluation import drawing_limit, evaluate, make_eval_step


def test_each_recognised_image_counts_once_with_the_error_of_its_drawing(monkeypatch):
    monkeypatch.setattr(evaluation, "PRESENT", 0.05)  # Untrained capsules are short.
    config = tiny()
    model, _, state = made(config)
    digits = load("mnist", "test").subset(np.arange(37))
    image = digits.image / np.float32(255)
    encode, decode = (
        jax.jit(functools.partial(model.apply, method=method))
        for method in (model.encode, model.decode)
    )
    pose, length, _ = encode(state.params, image)
    longest = np.asarray(length.argmax(-1))
    drawn = decode(state.params, pose, np.eye(10, dtype="f4")[longest])
    error = ((image - drawn) ** 2).mean((1, 2, 3)) / image.var((1, 2, 3))
    is_long = np.asarray(length.max(-1)) >= 0.05
    assert 5 < is_long[5:].sum() < 32
    label = np.where(np.arange(37) < 5, longest + 1, longest) % 10
    dataset = dataclasses.replace(digits, label=label.astype(np.int32))
    # A recognised one is the last, which fills the batch up.
    last = 5 + np.flatnonzero(is_long[5:])[0]
    dataset = dataset.subset(np.append(np.delete(np.arange(37), last), last))
    errors = []
    step = parallel(make_eval_step(model, fitting_loss(config.loss, "length")))
    evaluate(step, state.params, dataset, batch_size=16, errors=errors)
    (found,) = np.concatenate(errors, axis=1).reshape(1, -1)
    assert len(found) == 48  # Filled up.
    expected = np.where(is_long, error, -1)[5:]
    np.testing.assert_allclose(
        np.sort(found[found >= 0]), np.sort(expected[expected >= 0]), rtol=1e-4
    )
    assert set(found[found < 0]) == {-1}


@pytest.mark.parametrize(
    "what", ["one class", "two classes", "no drawing", "no length"]
)
def test_there_are_none_where_no_class_is_no_answer(what):
    config = tiny()
    model, label = bind(config.model, (28, 28, 1), 10), np.zeros(8, np.int32)
    if what == "two classes":
        label = np.zeros((8, 10), bool)
    elif what == "no drawing":
        config.loss = dataclasses.replace(config.loss, reconstruction_weight=0.0)
    elif what == "no length":
        model = tiny_cnn()
    loss = fitting_loss(config.loss, activation_kind(model))
    params = jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))
    batch = Batch(np.zeros((8, 28, 28, 1), np.uint8), label)
    _, (_, errors) = jax.make_jaxpr(
        make_eval_step(model, loss), axis_env=[(AXIS, 2)], return_shape=True
    )(params, (batch, np.ones(8, np.float32)))
    if what == "one class":
        assert errors.shape == (2, 8)
    else:
        assert errors is None


def test_the_limit_lets_one_of_a_thousand_pass():
    error = np.linspace(0, 1, 1001).reshape(7, 11, 13)
    assert drawing_limit([*error, np.full(50, -1)]) == pytest.approx(0.999)
    few = functools.partial(np.full, fill_value=0.5)
    assert drawing_limit([few(499), np.full(50, -1)]) is None
    assert drawing_limit([few(250), few(250)]) == 0.5
    assert drawing_limit([]) is None
