"""The step, the order of things in a run, and a real run on real digits."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import tiny_model

from capsjax import config as configs
from capsjax import evaluate, train
from capsjax.checkpoint import Checkpoints
from capsjax.data import Batch, load
from capsjax.models import make_model
from capsjax.parallel import AXIS, parallel
from capsjax.workdir import Workdir

ROOT = pathlib.Path(__file__).parents[1]


def tiny(**options):
    """A run of seconds: two epochs of five steps, in chunks of three and of one."""
    config = configs.Config(num_epochs=2, batch_size=8, steps_per_dispatch=3, **options)
    config.data = configs.Data(num_train=40, num_validation=50)
    config.model = tiny_model()
    config.optimizer.learning_rate = 3e-3
    return config


def made(config):
    model = make_model(config.model, (28, 28, 1), 10)
    optimizer = train.make_optimizer(config.optimizer, 10)
    state = jax.jit(lambda: train.init_state(model, optimizer, config))()
    return model, optimizer, state


def mapped(step, devices):
    """``parallel`` over the first devices only."""
    return jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=None,
        devices=jax.devices()[:devices],
    )


def batches(steps, devices, config):
    return train.stack_batches(
        load("mnist", "test"),
        range(steps),
        batch_size=config.batch_size,
        seed=config.seed,
        devices=devices,
    )


def test_four_devices_train_like_one():
    config = tiny()
    model, optimizer, state = made(config)
    step = train.make_train_chunk(train.make_train_step(model, optimizer, config))
    one, one_metrics = mapped(step, 1)(state, batches(3, 1, config))
    four, four_metrics = mapped(step, 4)(state, batches(3, 4, config))
    # Moments, not losses: a missing pmean leaves the first losses as they are.
    for name in ("mu", "nu"):
        for a, b in zip(
            jax.tree.leaves(optax.tree.get(one.opt_state, name)),
            jax.tree.leaves(optax.tree.get(four.opt_state, name)),
            strict=True,
        ):
            scale = np.abs(a).max()
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale)
    np.testing.assert_allclose(one_metrics.loss, four_metrics.loss, rtol=1e-5)


def test_the_state_is_donated_and_never_stacked():
    config = tiny()
    model, optimizer, state = made(config)
    step = train.make_train_chunk(train.make_train_step(model, optimizer, config))
    state = jax.device_put(state, train.replicated())
    shapes = jax.tree.map(jnp.shape, state.params)
    new, _ = parallel(step, donate=True)(state, batches(1, 4, config))
    assert jax.tree.map(jnp.shape, new.params) == shapes
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_shifts_depend_on_seed_and_step_only():
    images = load("mnist", "test").batch(np.arange(16)).image
    key = jax.random.fold_in(jax.random.key(0), 5)

    def shifted(devices):
        split = images.reshape(devices, -1, 28, 28, 1)
        return jax.pmap(
            lambda image: train._shifted(key, image, 2),
            axis_name=AXIS,
            devices=jax.devices()[:devices],
        )(split).reshape(images.shape)

    np.testing.assert_array_equal(shifted(1), shifted(4))
    assert np.abs(shifted(1).astype(int) - images).max() > 0


def test_several_steps_in_one_call_equal_single_steps():
    config = tiny()
    model, optimizer, state = made(config)
    step = mapped(
        train.make_train_chunk(train.make_train_step(model, optimizer, config)), 1
    )
    stacked = batches(3, 1, config)
    together, metrics = step(state, stacked)
    for n in range(3):
        state, one = step(state, Batch(*(array[:, n : n + 1] for array in stacked)))
        np.testing.assert_allclose(one.loss[0], metrics.loss[n], rtol=1e-5)
    for a, b in zip(
        jax.tree.leaves(together.params), jax.tree.leaves(state.params), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps_per_dispatch", [1, 3, 5, 100])
def test_where_a_chunk_ends_depends_on_the_absolute_step_alone(steps_per_dispatch):
    options = {"steps_per_dispatch": steps_per_dispatch, "steps_per_epoch": 13}
    ends = {train.chunk_end(step, **options) for step in range(39)}
    assert {13, 26, 39} <= ends
    for step in range(39):
        end = train.chunk_end(step, **options)
        assert step < end <= min(step + steps_per_dispatch, (step // 13 + 1) * 13)
        assert all(
            train.chunk_end(within, **options) == end for within in range(step, end)
        )


def test_the_schedules_end_where_they_should():
    for schedule, last in [
        ("constant", 1e-3),
        ("cosine", 1e-6),
        ("exponential", 1e-3 / 4),
    ]:
        config = configs.Optimizer(
            schedule=schedule,
            decay_rate=0.5,
            decay_steps=50,
            floor=1e-6,
            warmup_steps=10,
        )
        optimizer = train.make_optimizer(config, 110)
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


def test_the_average_follows_the_weights_and_is_what_is_evaluated():
    config = tiny()
    config.optimizer.average = 0.9
    model, optimizer, state = made(config)
    step = train.make_train_chunk(train.make_train_step(model, optimizer, config))
    expected, new = state.params, state
    for n in range(3):
        stacked = Batch(*(array[:, n : n + 1] for array in batches(3, 1, config)))
        new, _ = mapped(step, 1)(new, stacked)
        decay = min(0.9, (1 + n) / (10 + n))
        expected = jax.tree.map(
            lambda a, p, decay=decay: decay * a + (1 - decay) * p, expected, new.params
        )
    for a, b in zip(
        jax.tree.leaves(new.evaluated), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert state._replace(average=None).evaluated is state.params


def test_evaluation_counts_every_image_exactly_once():
    config = tiny()
    model, _, state = made(config)
    dataset = load("mnist", "test").subset(np.arange(103))
    step = parallel(evaluate.make_eval_step(model, config.loss))
    image = jnp.asarray(dataset.image, jnp.float32) / 255
    each = evaluate.image_metrics(
        model,
        state.params,
        image,
        jnp.asarray(dataset.label),
        loss=config.loss,
        mask=None,
    )
    expected = [np.mean(np.asarray(values, np.float64)) for values in each]
    for batch_size in (7, 32, 103, 500):
        actual = evaluate.evaluate(step, state.params, dataset, batch_size=batch_size)
        np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_nothing_is_drawn_where_nobody_asked_for_it():
    config = tiny()
    config.loss.reconstruction_weight = 0.0
    model, _, state = made(config)
    images = jnp.zeros((2, 28, 28, 1))
    params = jax.tree.map(lambda leaf: leaf, state.params)
    del params["params"]["decoder"]
    metrics = evaluate.image_metrics(
        model, params, images, jnp.zeros(2, int), loss=config.loss, mask=None
    )
    assert metrics.reconstruction_loss.tolist() == [0, 0]
    assert metrics.loss.tolist() == metrics.margin_loss.tolist()


def test_the_step_masks_by_label_and_weighs_as_the_recipe_says():
    config = tiny()
    config.data.max_shift = 0
    config.loss = configs.Loss(margin_weight=0.05, reconstruction_weight=0.3)
    # Long capsules, so that it matters which of them is drawn.
    config.model.initializers = configs.Initializers(
        primary="normal(0.3)", weight="normal(1.0)", decoder="normal(1.0)"
    )
    model, optimizer, state = made(config)
    step = train.make_train_chunk(train.make_train_step(model, optimizer, config))
    stacked = batches(1, 1, config)
    image = jnp.asarray(stacked.image[0, 0], jnp.float32) / 255
    label = stacked.label[0, 0]

    def error(mask):
        _, drawn = model.apply(state.params, image, mask)
        return np.sum((np.asarray(drawn) - image) ** 2, axis=(1, 2, 3)).mean()

    _, metrics = mapped(step, 1)(state, stacked)
    by_label = error(jnp.eye(10)[label])
    np.testing.assert_allclose(metrics.reconstruction_loss[0], by_label, rtol=1e-5)
    assert abs(error(None) - by_label) > 1e-4 * by_label
    weighted = 0.05 * metrics.margin_loss + 0.3 * metrics.reconstruction_loss
    np.testing.assert_allclose(metrics.loss, weighted, rtol=1e-5)


def test_the_whole_step_lowers_for_gpu_and_tpu():
    config = configs.Config(batch_size=4)
    model, optimizer, state = made(config)
    step = parallel(
        train.make_train_chunk(train.make_train_step(model, optimizer, config))
    )
    exported = jax.export.export(jax.jit(step), platforms=["cuda", "tpu"])(
        state, batches(2, 4, config)
    )
    assert "stablehlo.convolution" in exported.mlir_module()


def run(config, path):
    return train.train(config, Workdir(path))


def lines(path, kind):
    rows = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["kind"] == kind]


def without_clock(rows):
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]


def last_state(path, config):
    checkpoints = Checkpoints(path / "checkpoints")
    state = checkpoints.restore(checkpoints.latest, made(config)[2])
    checkpoints.close()
    return state._replace(augment_key=jax.random.key_data(state.augment_key))


def interrupted_run(config, path, stop_at, monkeypatch):
    """Starts a run that gets a SIGINT once it has taken so many steps."""
    train_chunk = train._Run._train_chunk

    def train_and_interrupt(self):
        metrics = train_chunk(self)
        if self.step >= stop_at:
            signal.raise_signal(signal.SIGINT)
        return metrics

    with monkeypatch.context() as patch:
        if stop_at == 0:
            introduce = lambda self: signal.raise_signal(signal.SIGINT)  # noqa: E731
            patch.setattr(train._Run, "_introduce", introduce)
        patch.setattr(train._Run, "_train_chunk", train_and_interrupt)
        return run(config, path)


def test_resuming_equals_not_stopping_bit_for_bit(tmp_path, monkeypatch):
    config = tiny()
    run(config, tmp_path / "whole")
    # Before the first step, in an epoch, at its end, in the next, and twice at once.
    for stop_at in (0, 3, 4, 4, 5, 8):
        outcome = interrupted_run(config, tmp_path / "parts", stop_at, monkeypatch)
        assert outcome.exit_code == 130
    run(config, tmp_path / "parts")
    for kind in ("train", "validation", "test"):
        expected = without_clock(lines(tmp_path / "whole", kind))
        assert without_clock(lines(tmp_path / "parts", kind)) == expected
        assert expected
    jax.tree.map(
        np.testing.assert_array_equal,
        last_state(tmp_path / "whole", config),
        last_state(tmp_path / "parts", config),
    )


def test_a_run_leaves_what_it_promises(tmp_path, capsys):
    result = run(tiny(tensorboard=True), tmp_path)
    told = capsys.readouterr().out
    assert "compiling" in told
    assert "epoch 1/2: validation loss" in told
    assert "(improved)" in told
    assert (tmp_path / "tensorboard").exists()
    assert json.loads((tmp_path / "config.json").read_text())["num_epochs"] == 2
    assert result == json.loads((tmp_path / "result.json").read_text())
    assert result["num_parameters"] > 1000
    assert set(result["versions"]) == {
        "python",
        "capsjax",
        "jax",
        "jaxlib",
        "flax",
        "optax",
    }
    fields = {"kind", "step", "epoch", "loss", "margin_loss", "reconstruction_loss"}
    for kind in ("train", "validation", "test"):
        for row in lines(tmp_path, kind):
            assert set(row) == fields | {"accuracy", "images_per_second"}
            loss = row["margin_loss"] + 0.0005 * row["reconstruction_loss"]
            np.testing.assert_allclose(row["loss"], loss, rtol=1e-5)
    assert [row["epoch"] for row in lines(tmp_path, "validation")] == [1, 2]
    validation = {row["step"]: row["loss"] for row in lines(tmp_path, "validation")}
    assert result["test"]["step"] == min(validation, key=validation.get)


def test_a_finished_run_prints_its_result_and_can_be_extended(tmp_path, capsys):
    first = run(tiny(), tmp_path)
    capsys.readouterr()
    assert run(tiny(), tmp_path) == first
    assert "is finished" in capsys.readouterr().out
    config = tiny()
    config.num_epochs = 3
    result = run(config, tmp_path)
    assert result["test_of_last"]["step"] == 15
    assert "going on after step 10 of 15" in capsys.readouterr().out


def test_without_validation_the_last_checkpoint_is_the_result(tmp_path):
    config = tiny()
    config.data.num_validation = 0
    result = run(config, tmp_path)
    assert result["test"] == result["test_of_last"]
    assert result["test"]["step"] == 10
    assert lines(tmp_path, "validation") == []


def test_what_does_not_fit_is_told_before_anything_is_written(tmp_path):
    folder = tmp_path / "run"
    wrong = [
        ({"batch_size": 30}, "batch_size=30 can't be shared evenly by 4 devices"),
        (
            {"batch_size": 10_000},
            "batch_size=10000 is more than the 40 training images",
        ),
    ]
    for fields, told in wrong:
        config = tiny()
        for name, value in fields.items():
            setattr(config, name, value)
        with pytest.raises(configs.ConfigError, match=told):
            run(config, folder)
    config = tiny()
    config.data.num_validation = 60_000
    with pytest.raises(configs.ConfigError, match=r"num_validation=60000 leaves none"):
        run(config, folder)
    config = tiny()
    config.model.conv_features = 10**10
    with pytest.raises(configs.ConfigError, match=r"parameters; at most"):
        run(config, folder)
    config = tiny()
    config.model.conv_kernel = 25
    with pytest.raises(configs.ConfigError, match="the smallest is 33x33"):
        run(config, folder)
    assert not folder.exists()


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path):
    config = tiny()
    config.optimizer.learning_rate = 1e20
    config.loss.reconstruction_weight = 1e30
    with pytest.raises(FloatingPointError, match=r"the training loss is .* after step"):
        run(config, tmp_path)


def test_a_validation_loss_that_is_not_a_number_is_never_the_best(tmp_path):
    config = tiny()
    config.steps_per_dispatch = 5
    config.data.num_train = 8  # One step an epoch: its loss is that before the update.
    config.optimizer.learning_rate = 1e30
    with pytest.raises(FloatingPointError, match=r"the validation loss is nan"):
        run(config, tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_fewer_epochs_than_are_done_are_refused(tmp_path, monkeypatch):
    config = tiny()
    interrupted_run(config, tmp_path, 8, monkeypatch)
    config.num_epochs = 1
    with pytest.raises(
        configs.ConfigError, match=r"num_epochs=1 is less than the 1\.6"
    ):
        run(config, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["num_epochs"] == 2


@pytest.mark.parametrize("damaged", ["", "{", "{}", '{"num_epochs": 2}', "[]"])
def test_a_damaged_result_is_made_again(tmp_path, damaged):
    workdir = Workdir(tmp_path)
    workdir.result.write_text(damaged)
    assert train._finished(tiny(), workdir) is None


def command(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "capsjax.train", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        **options,
    )


SMALL = (
    "--config=experiments/mnist.py:smoke",
    "--config.model.conv_features=16",
    "--config.model.primary_types=4",
    "--config.optimizer.learning_rate=3e-3",
    "--config.model.primary_stride=3",
)


def test_the_command_learns_real_digits_and_goes_on_after_ctrl_c(tmp_path):
    arguments = (*SMALL, f"--workdir={tmp_path}")
    first = command(*arguments)
    deadline = time.monotonic() + 120
    metrics = tmp_path / "metrics.jsonl"
    while (
        not (metrics.exists() and metrics.read_text()) and time.monotonic() < deadline
    ):
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=120)
    assert first.returncode == 130, out + err
    assert "The same command goes on from there" in out
    assert not (tmp_path / "result.json").exists()
    second = command(*arguments)
    out, err = second.communicate(timeout=280)
    assert second.returncode == 0, out + err
    assert "going on after step" in out
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["test"]["accuracy"] > 0.9
    assert "test accuracy 9" in out
    third = command(*arguments, "--config.seed=1")
    out, err = third.communicate(timeout=60)
    assert third.returncode == 1
    assert "seed is 0 there, 1 here" in err
    assert "Traceback" not in err
