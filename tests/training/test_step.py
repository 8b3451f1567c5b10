"""One training step, several in one call, and what they may not depend on."""

import dataclasses
import functools
import os
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from marks import first_of, variants
from places import ROOT, TESTS
from tiny import digits, made, pairs, tiny, tiny_cnn

from capsjax import config as configs
from capsjax.data import augment, crop, load
from capsjax.losses import MarginLoss, fitting_loss
from capsjax.models.network import activation_kind, bind
from capsjax.runtime.devices import AXIS, _devices, my_shares, parallel, replicated
from capsjax.training.evaluation import evaluate, make_eval_step
from capsjax.training.feed import stack_batches
from capsjax.training.objective import image_metrics
from capsjax.training.step import (
    _augmented,
    make_train_chunk,
    make_train_step,
)


def fitting(config, model):
    return fitting_loss(config.loss, activation_kind(model))


def chunk_of(model, optimizer, config, class_weight=None):
    """The program of several steps with the loss of the config."""
    loss = fitting(config, model)
    return make_train_chunk(
        make_train_step(model, optimizer, config, loss, class_weight, num_steps=10)
    )


def mapped(step, devices):
    """``parallel``, also over the first devices only."""
    if devices == jax.device_count():
        return parallel(step)
    return jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=None,
        devices=jax.devices()[:devices],
    )


def batches(steps, devices, config, dataset=None):
    by_four = stack_batches(
        dataset or load(digits(), "test"),
        range(steps),
        batch_size=config.batch_size,
        seed=config.seed,
    )

    def split(array):
        whole = array.swapaxes(0, 1).reshape(steps, -1, *array.shape[3:])
        shares = whole.reshape(steps, devices, -1, *array.shape[3:])
        return shares.swapaxes(0, 1)

    return jax.tree.map(split, by_four)


def gradients_and_moments(devices, num_parts=1):
    """The gradients of the first of three steps, Adam's moments after the last."""
    config = tiny(num_parts=num_parts)
    config.batch_size = 24
    model, adam, state = made(config)
    # A trace that forgets at once holds the gradients.
    optimizer = optax.chain(optax.trace(decay=0.0), adam)
    state = state._replace(opt_state=optimizer.init(state.params))
    step = mapped(chunk_of(model, optimizer, config), devices)
    stacked, kept = batches(3, devices, config), {}
    for n in range(3):
        state, outcome = step(
            state, jax.tree.map(lambda a, n=n: a[:, n : n + 1], stacked)
        )
        if n == 0:
            kept["gradient"] = optax.tree.get(state.opt_state, "trace")
    for name in ("mu", "nu"):
        kept[name] = optax.tree.get(state.opt_state, name)
    kept["loss"] = outcome.metrics.loss
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(kept)
    }


def on_eight_devices(path):
    """In a process of its own: this one has four."""
    code = "import sys, numpy, test_step; "
    code += "numpy.savez(sys.argv[1], **test_step.gradients_and_moments(8))"
    subprocess.run(
        [sys.executable, "-c", code, path],
        check=True,
        cwd=TESTS / "training",
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, TESTS / "helpers"))),
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "8",
            "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        },
    )
    return dict(np.load(path))


@pytest.fixture(scope="module")
def on_one_device():
    return gradients_and_moments(1)


@pytest.mark.parametrize("devices", [2, *variants(3, 4, 8)])
def test_any_number_of_devices_trains_like_one(devices, on_one_device, tmp_path):
    # Gradients and moments, not losses: a missing pmean leaves the first losses as
    # they are.
    several = (
        on_eight_devices(tmp_path / "eight.npz")
        if devices == 8
        else gradients_and_moments(devices)
    )
    require_close(several, on_one_device)


def test_the_gradient_of_a_batch_is_the_mean_of_its_parts(on_one_device):
    require_close(gradients_and_moments(2, num_parts=3), on_one_device)


def require_close(found, expected):
    assert len(expected) > 25
    assert found.keys() == expected.keys()
    for name, a in expected.items():
        scale = np.abs(a).max()
        np.testing.assert_allclose(
            found[name], a, rtol=1e-4, atol=1e-5 * scale, err_msg=name
        )


def cropped_model(config):
    return bind(config.model, (24, 24, 1), 10)


CASES = {
    "crops": (cropped_model, None),
    "several classes": (None, lambda: pairs(32)),
    "several classes and crops": (cropped_model, lambda: pairs(32)),
    "the baseline": (lambda _: tiny_cnn((28, 28, 1), dropout=0.0), None),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", first_of(("several classes",), CASES))
def test_other_tasks_train_on_four_devices_as_on_one(case):
    make, load_set = CASES[case]
    config = tiny()
    model, optimizer, state = made(config, make and make(config))
    dataset = load_set and load_set()
    step = chunk_of(model, optimizer, config)
    one, one_outcome = mapped(step, 1)(state, batches(3, 1, config, dataset))
    four, four_outcome = mapped(step, 4)(state, batches(3, 4, config, dataset))
    # Moments, not losses: a missing pmean leaves the first losses as they are.
    for name in ("mu", "nu"):
        for a, b in zip(
            jax.tree.leaves(optax.tree.get(one.opt_state, name)),
            jax.tree.leaves(optax.tree.get(four.opt_state, name)),
            strict=True,
        ):
            scale = np.abs(a).max()
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale)
    np.testing.assert_allclose(
        one_outcome.metrics.loss, four_outcome.metrics.loss, rtol=1e-5
    )


def test_dropout_repeats_with_the_step_and_differs_between_devices():
    config = tiny()
    config.augmentation = augment.NoAugmentation()
    model, optimizer, state = made(config, tiny_cnn(dropout=0.5))
    step, one = chunk_of(model, optimizer, config), batches(1, 1, config)
    # The same images on both devices.
    two = jax.tree.map(lambda a: np.concatenate([a, a]), one)

    def loss(devices, batch, number=0):
        start = state._replace(step=jnp.array(number))
        return mapped(step, devices)(start, batch)[1].metrics.loss.item()

    assert loss(1, one) == loss(1, one)
    assert loss(1, one) != pytest.approx(loss(1, one, 1), rel=1e-3)
    assert loss(1, one) != pytest.approx(loss(2, two), rel=1e-3)


def test_the_state_is_donated_and_never_stacked():
    config = tiny()
    model, optimizer, state = made(config)
    step = chunk_of(model, optimizer, config)
    state = jax.device_put(state, replicated())
    shapes = jax.tree.map(jnp.shape, state.params)
    new, _ = parallel(step, donate=True)(state, batches(1, 4, config))
    assert jax.tree.map(jnp.shape, new.params) == shapes
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


@pytest.mark.parametrize("process", [0, 1])
def test_shares_are_those_of_the_process_s_devices_in_any_order(monkeypatch, process):
    class Device(NamedTuple):
        process_index: int
        id: int

    listed = [Device(1, 5), Device(0, 3), Device(1, 4), Device(0, 2)]
    monkeypatch.setattr(jax, "devices", lambda: listed)
    monkeypatch.setattr(jax, "process_index", lambda: process)
    mine = my_shares(np.arange(24).reshape(3, 8), axis=1)
    expected = np.arange(8).reshape(2, 2, 2)[process]
    np.testing.assert_array_equal(mine[:, 0], expected)
    mesh = [Device(0, 2), Device(0, 3), Device(1, 4), Device(1, 5)]
    assert _devices() == mesh


@pytest.mark.numerics
@pytest.mark.parametrize("shape", [(28, 28, 1), (22, 22, 1)])
@pytest.mark.parametrize(
    "kind", [augment.Shift(), augment.Warp(elastic=1.0), augment.Photo()]
)
def test_changes_and_crops_depend_on_seed_and_step_only(kind, shape):
    batch = pairs(16).batch(np.arange(16))
    # The image is the second of its sources.
    batch = batch._replace(image=batch.source[:, 1])
    key = jax.random.fold_in(jax.random.key(0), 5)

    def augmented(devices):
        split = jax.tree.map(lambda a: a.reshape(devices, -1, *a.shape[1:]), batch)
        image, source = jax.pmap(
            lambda batch: _augmented(key, jnp.float32(0), batch, kind, shape),
            axis_name=AXIS,
            devices=jax.devices()[:devices],
        )(split)
        return image.reshape(16, *shape), source.reshape(16, 2, *shape)

    (one, one_source), (four, four_source) = augmented(1), augmented(4)
    np.testing.assert_array_equal(one, four)
    np.testing.assert_array_equal(one_source, four_source)
    # What is in an image changes as the image does.
    np.testing.assert_array_equal(one_source[:, 1], one)
    assert np.any(one_source[:, 0] != one)
    middle = crop.crop_middle(batch.image, shape)
    assert np.abs(255 * one - middle).max() > 1


@pytest.fixture(scope="module")
def averaged():
    """A program of steps with an average, its batches, and states after each step."""
    config = tiny()
    config.optimizer = dataclasses.replace(config.optimizer, average=0.9)
    model, optimizer, state = made(config)
    step, stacked = mapped(chunk_of(model, optimizer, config), 1), batches(3, 1, config)
    states, losses = [state], []
    for n in range(3):
        one = jax.tree.map(lambda a, n=n: a[:, n : n + 1], stacked)
        state, outcome = step(state, one)
        states.append(state)
        losses.append(outcome.metrics.loss[0])
    return step, stacked, states, losses


def test_several_steps_in_one_call_equal_single_steps(averaged):
    step, stacked, states, losses = averaged
    together, outcome = step(states[0], stacked)
    np.testing.assert_allclose(losses, outcome.metrics.loss, rtol=1e-5)
    for a, b in zip(
        jax.tree.leaves((together.params, together.average)),
        jax.tree.leaves((states[-1].params, states[-1].average)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_schedules_end_where_they_should():
    for schedule, last in [
        ("constant", 1e-3),
        ("cosine", 1e-6),
        ("exponential", 1e-3 / 4),
    ]:
        adam = configs.Adam(
            schedule=schedule,
            decay_rate=0.5,
            decay_steps=50,
            floor=1e-6,
            warmup_steps=10,
        )
        optimizer = adam.make(110)
        params = jnp.ones(1)

        def update(state, _, optimizer=optimizer, params=params):
            updates, state = optimizer.update(jnp.ones(1), state, params)
            return state, updates[0]

        _, updates = jax.lax.scan(update, optimizer.init(params), length=111)
        # Adam's update of a constant gradient is the rate itself.
        rates = -np.asarray(updates)
        np.testing.assert_allclose(rates[0], 0, atol=1e-9)
        np.testing.assert_allclose(rates[5], 5e-4, rtol=1e-3)
        np.testing.assert_allclose(rates[10], 1e-3, rtol=1e-3)
        np.testing.assert_allclose(rates[110], last, rtol=2e-2)


def test_the_average_follows_the_weights_and_is_what_is_evaluated(averaged):
    states = averaged[2]
    expected = jax.tree.map(np.asarray, states[0].params)
    for n, state in enumerate(states[1:]):
        decay = min(0.9, (1 + n) / (10 + n))
        expected = jax.tree.map(
            lambda a, p, decay=decay: decay * a + (1 - decay) * np.asarray(p),
            *(expected, state.params),
        )
    for a, b in zip(
        jax.tree.leaves(states[-1].evaluated), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    first = states[0]
    assert first._replace(average=None).evaluated is first.params


def of_each(model, config, *arrays, **options):
    """Measures each image, all at once and without the steps of an evaluation."""
    loss = fitting(config, model)
    return jax.jit(functools.partial(image_metrics, model, loss=loss))(
        *arrays, **options
    )


def test_evaluation_counts_every_image_exactly_once():
    config = tiny()
    model, _, state = made(config)
    dataset = load(digits(), "test").subset(np.arange(103))
    step = parallel(make_eval_step(model, fitting(config, model)))
    image = np.float32(dataset.image) / 255
    each = of_each(model, config, state.params, image, dataset.label)
    expected = {k: np.asarray(v).mean() for k, v in each.known().items()}
    for batch_size in (7, 32, 103, 500):
        actual = evaluate(step, state.params, dataset, batch_size=batch_size)
        assert actual.known() == pytest.approx(expected, rel=1e-5)


def test_evaluation_looks_at_the_middle_and_draws_from_the_longest():
    config = tiny()
    model, _, state = made(config, cropped_model(config))
    dataset = pairs(10)
    step = parallel(make_eval_step(model, fitting(config, model)))
    actual = evaluate(step, state.params, dataset, batch_size=7)
    image = np.float32(dataset.image[:, 2:26, 2:26]) / 255
    source = np.float32(dataset.source[:, :, 2:26, 2:26]) / 255
    each = of_each(model, config, state.params, image, dataset.label, source=source)
    expected = {k: np.asarray(v).mean() for k, v in each.known().items()}
    assert actual.known() == pytest.approx(expected, rel=1e-5)
    assert set(expected) >= {"label_accuracy", "reconstruction_loss"}


# Long capsules, so that it matters where a digit is and which of them is drawn.
LONG = {
    "primary_init": "normal(0.3)",
    "weight_init": "normal(1.0)",
    "decoder_init": "normal(1.0)",
}


@dataclasses.dataclass(frozen=True)
class Paced(MarginLoss):
    """The share of the run's steps that are done."""

    def in_training(self, activation, label, progress):
        return progress + 0 * self(activation, label)


def test_the_step_masks_by_label_weighs_as_the_recipe_and_passes_the_progress():
    config = tiny()
    config.augmentation = augment.NoAugmentation()
    config.loss = Paced(weight=0.05, reconstruction_weight=0.3)
    config.model = config.model.clone(**LONG)
    model, optimizer, state = made(config)
    step = chunk_of(model, optimizer, config)
    stacked = batches(1, 1, config)
    image = np.float32(stacked.image[0, 0]) / 255
    label = stacked.label[0, 0]

    def error(mask):
        _, drawn = jax.jit(model.apply)(state.params, image, mask)
        return np.sum((np.asarray(drawn) - image) ** 2, axis=(1, 2, 3)).mean()

    metrics = mapped(step, 1)(state, stacked)[1].metrics
    by_label = error(np.eye(10, dtype="f4")[label])
    np.testing.assert_allclose(
        metrics.parts["reconstruction_loss"][0], by_label, rtol=1e-5
    )
    assert abs(error(None) - by_label) > 1e-4 * by_label
    weighted = (
        0.05 * metrics.parts["margin_loss"] + 0.3 * metrics.parts["reconstruction_loss"]
    )
    np.testing.assert_allclose(metrics.loss, weighted, rtol=1e-5)
    # The middle of the first of ten steps.
    np.testing.assert_allclose(metrics.parts["margin_loss"], 0.05, rtol=1e-6)


@pytest.mark.slow
def test_a_class_without_weight_teaches_nothing():
    config = tiny()
    model, optimizer, state = made(config)
    stacked = batches(1, 1, config)
    label = stacked.label[0, 0]
    params = {}
    for shown in (0, 1):
        weight = np.where(np.isin(np.arange(10), label), shown, 1).astype(np.float32)
        step = chunk_of(model, optimizer, config, weight)
        new, outcome = mapped(step, 1)(state, stacked)
        params[shown] = new.params
        expected = shown * (
            outcome.metrics.parts["margin_loss"]
            + 0.0005 * outcome.metrics.parts["reconstruction_loss"]
        )
        np.testing.assert_allclose(outcome.metrics.loss, expected, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, params[0], state.params)
    kernel = params[1]["params"]["conv"]["kernel"]
    assert np.any(kernel != state.params["params"]["conv"]["kernel"])


@pytest.mark.slow
def test_the_whole_step_lowers_for_gpu_and_tpu():
    config = configs.Config(batch_size=4)
    model, optimizer, state = made(config)
    step = jax.jit(parallel(chunk_of(model, optimizer, config)))
    operands = state, batches(2, 4, config)
    exported = jax.export.export(step, platforms=["cuda", "tpu"])(*operands)
    assert exported.platforms == ("cuda", "tpu")
    # The primary capsules' convolution is the compiler's there, forward and backward.
    assert exported.mlir_module().count("stablehlo.convolution") >= 2
    made_here = [
        leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(step, *operands))
    ]
    assert [aval.shape for aval in exported.out_avals] == made_here


def shifted_by_hand(image, shifts):
    padded = np.pad(image, ((0, 0), (2, 2), (2, 2), (0, 0)))
    pairs = zip(padded, np.asarray(shifts), strict=True)
    return np.stack([one[2 - y : 30 - y, 2 - x : 30 - x] for one, (y, x) in pairs])


def test_a_step_shifts_its_images_as_seed_and_step_say():
    config = tiny(seed=3)
    config.model = config.model.clone(**LONG)
    model, optimizer, state = made(config)
    stacked = batches(1, 1, config)
    step = mapped(chunk_of(model, optimizer, config), 1)
    metrics = step(state._replace(step=jnp.array(7)), stacked)[1].metrics
    _, augment_key = jax.random.split(jax.random.key(3))
    shifts = jax.random.randint(jax.random.fold_in(augment_key, 7), (8, 2), -2, 3)
    image, label = stacked.image[0, 0], stacked.label[0, 0]
    drawn_from = jax.jit(model.apply)

    def error(image):
        image = image / np.float32(255)
        _, drawn = drawn_from(state.params, image, np.eye(10, dtype="f4")[label])
        return np.sum((np.asarray(drawn) - image) ** 2, axis=(1, 2, 3)).mean()

    expected = error(shifted_by_hand(image, shifts))
    np.testing.assert_allclose(
        metrics.parts["reconstruction_loss"][0], expected, rtol=1e-5
    )
    assert abs(error(image) / expected - 1) > 1e-3


def test_evaluation_takes_each_image_alone_unshifted_and_without_its_label():
    config = tiny()
    config.model = config.model.clone(**LONG)
    model, _, state = made(config)
    dataset = load(digits(), "test").subset(np.arange(23))
    step = parallel(make_eval_step(model, fitting(config, model)))
    actual = evaluate(step, state.params, dataset, batch_size=8)
    encode, decode = (
        jax.jit(functools.partial(model.apply, method=method))
        for method in (model.encode, model.decode)
    )

    def expected(images, mask=None):
        """Margin loss, reconstruction loss and accuracy, image by image."""
        each = []
        for n, label in enumerate(dataset.label):
            image = images[n : n + 1] / np.float32(255)
            routed = encode(state.params, image)
            length = np.linalg.norm(np.asarray(routed.pose[0], np.float64), axis=-1)
            longest = int(length.argmax())
            shown = longest if mask is None else mask[n]
            drawn = decode(
                state.params, routed.pose, np.eye(10, dtype="f4")[None, shown]
            )
            costs = 0.5 * np.maximum(0, length - 0.1) ** 2
            costs[label] = max(0, 0.9 - length[label]) ** 2
            error = np.sum((np.asarray(drawn, np.float64) - image) ** 2)
            each.append((costs.sum(), error, longest == label))
        return np.mean(each, axis=0)

    margin, error, accuracy = expected(dataset.image)
    np.testing.assert_allclose(actual.parts["margin_loss"], margin, rtol=1e-5)
    np.testing.assert_allclose(actual.parts["reconstruction_loss"], error, rtol=1e-5)
    np.testing.assert_allclose(actual.loss, margin + 0.0005 * error, rtol=1e-5)
    np.testing.assert_allclose(actual.accuracy, accuracy, rtol=1e-6)
    # Were it otherwise, this would show.
    assert abs(expected(dataset.image, mask=dataset.label)[1] / error - 1) > 1e-3
    moved = shifted_by_hand(dataset.image, np.tile([1, -1], (23, 1)))
    assert abs(expected(moved)[0] / margin - 1) > 1e-3


@pytest.mark.slow
def test_bfloat16_trains_a_float32_state():
    losses = {}
    for dtype in ("float32", "bfloat16"):
        config = tiny()
        config.model = config.model.clone(compute_dtype=dtype)
        model, optimizer, state = made(config)
        step = chunk_of(model, optimizer, config)
        new, outcome = mapped(step, 1)(state, batches(5, 1, config))
        leaves = jax.tree.leaves((new.params, new.opt_state))
        assert {str(leaf.dtype) for leaf in leaves} <= {"float32", "int32"}
        losses[dtype] = np.asarray(outcome.metrics.loss)
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=2e-3)
    assert (losses["bfloat16"] != losses["float32"]).any()
