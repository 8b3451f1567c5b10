"""Losses and gradients that are not finite are never applied, and are reported."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import digits, made, tiny

import capsjax.training.step
from capsjax import config as configs
from capsjax import train
from capsjax.data import batch_indices, load, split_validation, take_share
from capsjax.data.augment import NoAugmentation
from capsjax.losses import fitting_loss
from capsjax.runtime.devices import parallel
from capsjax.storage.checkpoints import Checkpoints
from capsjax.storage.workdir import Workdir
from capsjax.training import outcomes, trainer
from capsjax.training.feed import stack_batches
from capsjax.training.objective import Metrics, measure
from capsjax.training.step import (
    make_train_chunk,
    make_train_step,
    parts,
)

pytestmark = pytest.mark.usefixtures("without_estimate")

BAD_STEP = 6  # From 0: second of the second epoch, second of its chunk.


@jax.custom_jvp
def bomb(x):
    """Returns zero, with a slope that is not a number."""
    return 0 * x


bomb.defjvp(lambda x, t: (0 * x[0], jnp.nan * t[0]))

POISONS = {
    "margin loss": lambda metrics, params: metrics._replace(
        loss=metrics.loss + jnp.inf,
        parts={**metrics.parts, "margin_loss": metrics.loss + jnp.inf},
    ),
    "gradient of params/class_caps/weight": lambda metrics, params: metrics._replace(
        loss=metrics.loss + bomb(params["params"]["class_caps"]["weight"].sum())
    ),
}


def poison(monkeypatch, config, change, bad_steps=(BAD_STEP,)):
    """Spoils these steps' losses on the first of four devices."""
    train_set, _ = split_validation(load(digits(), "train"), config.data.num_validation)
    train_set = take_share(train_set, config.data.num_train)
    share = config.batch_size // 4
    first = [
        batch_indices(len(train_set), config.batch_size, config.seed, step)[:share]
        for step in bad_steps
    ]
    sums = train_set.image[np.array(first)].sum((1, 2, 3, 4), dtype=np.int32)

    def poisoned(model, params, routed, image, label, **options):
        metrics = measure(model, params, routed, image, label, **options)
        total = jnp.round(image * 255).astype(jnp.int32).sum()
        return jax.lax.cond(
            (total == sums).any(), lambda: change(metrics, params), lambda: metrics
        )

    monkeypatch.setattr(capsjax.training.step, "measure", poisoned)
    return train_set


def recipe(**options):
    config = tiny(**options)
    config.augmentation = NoAugmentation()
    return config


@pytest.mark.slow
@pytest.mark.parametrize("part", POISONS)
def test_a_bad_step_changes_nothing_but_the_count(monkeypatch, part):
    config = recipe()
    config.optimizer = dataclasses.replace(config.optimizer, average=0.9)
    train_set = poison(monkeypatch, config, POISONS[part])
    model, optimizer, state = made(config)
    loss = fitting_loss(config.loss, "length")
    train_step = make_train_step(model, optimizer, config, loss, num_steps=10)
    program = parallel(make_train_chunk(train_step))
    steps = range(BAD_STEP - 1, BAD_STEP + 2)
    batches = stack_batches(train_set, steps, batch_size=8, seed=0)
    together, outcome = program(state, batches)
    assert np.asarray(outcome.is_finite).all(-1).tolist() == [True, False, True]
    names = parts(state.params, outcome.metrics)
    good = dict(zip(names, outcome.is_finite[1].tolist(), strict=True))
    assert not good[part]
    for n in range(3):
        before = state
        one = jax.tree.map(lambda a, n=n: a[:, n : n + 1], batches)
        state, _ = program(before, one)
        assert state.step == before.step + 1
        changed = [
            not np.array_equal(a, b)
            for a, b in zip(
                jax.tree.leaves((before.params, before.opt_state, before.average)),
                jax.tree.leaves((state.params, state.opt_state, state.average)),
                strict=True,
            )
        ]
        assert any(changed) == (n != 1)
    # A chunk gives the same as single steps.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        together.params,
        state.params,
    )


@pytest.mark.slow
def test_the_run_stops_with_step_part_and_batch(tmp_path, monkeypatch):
    config = recipe()
    train_set = poison(monkeypatch, config, POISONS["margin loss"])
    message = r"step 7 of 10: not finite: margin loss\. Its update was not applied"
    with pytest.raises(FloatingPointError, match=message):
        train.train(config, Workdir(tmp_path))
    kept = np.load(tmp_path / "bad_batches" / "step-7.npz")
    np.testing.assert_array_equal(kept["image"], train_set.image[kept["index"]])
    np.testing.assert_array_equal(kept["label"], train_set.label[kept["index"]])
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.steps == [5]
    checkpoints.close()
    # The same run goes on without that update if the config has "skip".
    config.bad_numbers = "skip"
    result = train.train(config, Workdir(tmp_path)).result
    assert result["test_of_last"]["step"] == 10


@pytest.mark.slow
def test_a_skipped_step_is_a_warning_and_no_metrics(tmp_path, monkeypatch, capsys):
    config = recipe(bad_numbers="skip")
    config.steps_per_dispatch = 1
    poison(monkeypatch, config, POISONS["gradient of params/class_caps/weight"])
    train.train(config, Workdir(tmp_path))
    err = capsys.readouterr().err
    assert (
        "warning: step 7 of 10: not finite: gradient of params/class_caps/weight" in err
    )
    assert err.count("warning") == 1
    rows = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    steps = [row["step"] for row in rows if row["kind"] == "train"]
    assert steps == [1, 2, 3, 4, 5, 6, 8, 9, 10]


@pytest.mark.slow
def test_a_run_that_skips_everything_stops(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(outcomes, "_MOST_SKIPPED", 4)
    monkeypatch.setattr(outcomes, "_MOST_BAD_BATCHES", 2)
    config = recipe(bad_numbers="skip")
    poison(monkeypatch, config, POISONS["margin loss"], bad_steps=(5, 6, 7, 8))
    with pytest.raises(FloatingPointError, match=r"step 9 .* These were 4 in a row"):
        train.train(config, Workdir(tmp_path))
    assert len(list((tmp_path / "bad_batches").iterdir())) == 2
    err = capsys.readouterr().err
    assert f"its batch is in {tmp_path}/bad_batches/step-7.npz" in err
    assert f"its batch is not kept: there are 2 in {tmp_path}/bad_batches" in err


@pytest.mark.slow
def test_bad_numbers_are_reported_even_if_the_batch_can_t_be_kept(
    tmp_path, monkeypatch
):
    config = recipe()
    poison(monkeypatch, config, POISONS["margin loss"])
    (tmp_path / "bad_batches").write_text("a file in the place of a folder")
    message = r"not finite: margin loss\..* its batch could not be kept \(.*File exists"
    with pytest.raises(FloatingPointError, match=message):
        train.train(config, Workdir(tmp_path))


@pytest.mark.parametrize(
    "optimizer",
    [
        configs.Adam(eps=1e-30),
        configs.AdamW(eps=1e-30, weight_decay=1.0),
        configs.Lion(weight_decay=1.0),
        configs.SGD(momentum=0.999, nesterov=True),
        configs.SGD(clip_norm=1e30),
    ],
    ids=repr,
)
def test_no_update_overflows_within_the_config_s_bounds(optimizer):
    fastest = dataclasses.replace(optimizer, learning_rate=1000.0, schedule="constant")
    optimizer = fastest.make(10)
    # The largest square is finite; the smallest one underflows to zero.
    size = jnp.array([0.0, 1e-38, 1e-30, 1e-20, 1.0, 1e10, 1.8e19])
    state = optimizer.init(size)
    for gradient in (size, -size, 0 * size, size[::-1], 0 * size):
        update, state = optimizer.update(gradient, state, size)
        assert jnp.isfinite(update).all()
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_a_validation_loss_that_is_not_a_number_is_never_the_best(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(
        trainer, "evaluate", lambda *_, **__: Metrics(np.nan, 0.0, None, {})
    )
    with pytest.raises(FloatingPointError, match="the validation loss is nan"):
        train.train(recipe(), Workdir(tmp_path))
    assert list((tmp_path / "checkpoints").iterdir()) == []
