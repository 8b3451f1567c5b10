"""The order of things in a run, and a real run on real digits."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from marks import variants
from places import ROOT
from tiny import TINY_MODEL, digits, made, tiny

from capsjax import config as configs
from capsjax import load_run, train
from capsjax.data import load, loading
from capsjax.losses import margin_loss
from capsjax.runtime.interrupt import Interrupted
from capsjax.storage import checkpoints
from capsjax.storage.checkpoints import CheckpointError, Checkpoints
from capsjax.storage.files import WorkdirError
from capsjax.storage.workdir import Workdir
from capsjax.training import task, trainer
from capsjax.training.objective import Metrics

pytestmark = pytest.mark.usefixtures("without_estimate")


def run(config, path):
    return train.train(config, Workdir(path)).result


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
    train_chunk = trainer.Trainer._train_chunk

    def train_and_interrupt(self):
        metrics = train_chunk(self)
        if self.step >= stop_at:
            signal.raise_signal(signal.SIGINT)
        return metrics

    with monkeypatch.context() as patch:
        if stop_at == 0:
            introduce = lambda self: signal.raise_signal(signal.SIGINT)  # noqa: E731
            patch.setattr(trainer.Trainer, "_introduce", introduce)
        patch.setattr(trainer.Trainer, "_train_chunk", train_and_interrupt)
        with pytest.raises(KeyboardInterrupt) as caught:
            run(config, path)
    assert isinstance(caught.value, Interrupted)
    return caught.value


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run, not to be changed, and what it printed."""
    path = tmp_path_factory.mktemp("finished") / "run"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        run(tiny(tensorboard=True), path)
    return path, printed.getvalue()


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run."""
    return pathlib.Path(shutil.copytree(finished[0], tmp_path / "run"))


@pytest.mark.variant
def test_resuming_equals_not_stopping_bit_for_bit(tmp_path, monkeypatch):
    config = tiny(steps_per_dispatch=3)
    run(config, tmp_path / "whole")
    # Before the first step, in an epoch, at its end, and twice at once.
    for stop_at in (0, 4, 4, 5):
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


@pytest.mark.slow
def test_a_run_goes_on_where_nobody_reads_what_it_prints(tmp_path, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as nobody, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", nobody)
        outcome = interrupted_run(tiny(steps_per_dispatch=3), tmp_path, 3, monkeypatch)
    assert outcome.exit_code == 130
    assert (tmp_path / "checkpoints" / "3").exists()


@pytest.mark.parametrize("how", [*variants("deleted"), "moved"])
def test_a_folder_that_goes_away_stops_the_run_at_the_next_save(
    tmp_path, monkeypatch, how
):
    workdir, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    train_chunk = trainer.Trainer._train_chunk

    def train_and_take_away(self):
        metrics = train_chunk(self)
        if self.step == 6:  # In the second epoch.
            self.checkpoints.wait()
            workdir.rename(elsewhere)
            if how == "deleted":
                shutil.rmtree(elsewhere)
        return metrics

    monkeypatch.setattr(trainer.Trainer, "_train_chunk", train_and_take_away)
    message = "run was deleted, moved or replaced while the run was in it"
    with pytest.raises(WorkdirError, match=message):
        run(dataclasses.replace(tiny(), steps_per_dispatch=1), workdir)
    assert not workdir.exists()
    if how == "moved":  # It goes on there.
        monkeypatch.undo()
        result = run(dataclasses.replace(tiny(), steps_per_dispatch=1), elsewhere)
        assert result["test_of_last"]["step"] == 10


@pytest.mark.slow
def test_any_path_names_a_folder(copied):
    result = json.loads((copied / "result.json").read_text())
    for path in (str(copied), copied, Workdir(copied)):
        assert train.train(tiny(), path).result == result


def test_a_save_that_fails_is_reported_with_its_step_before_the_epoch_ends(
    tmp_path, monkeypatch
):
    class Failed:
        def result(self, timeout):
            raise OSError(28, "No space left on device")

    steps = []
    train_chunk = trainer.Trainer._train_chunk

    def train_and_note(self):
        steps.append(self.step)
        return train_chunk(self)

    monkeypatch.setattr(trainer.Trainer, "_train_chunk", train_and_note)
    save = "save_checkpointables_async"
    monkeypatch.setattr(checkpoints.ocp, save, lambda *_, **__: Failed())
    with pytest.raises(CheckpointError, match=r"can't save step 5: OSError.*No space"):
        run(tiny(steps_per_dispatch=3), tmp_path)
    assert steps == [0, 3, 4, 5]


def test_a_rate_that_rises_to_the_end_of_the_run_is_a_warning(
    tmp_path, monkeypatch, capsys
):
    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer.Trainer, "train_epoch", stop)
    for warmup_steps, message in (
        (9, ""),
        (
            10,
            "warning: config.optimizer.warmup_steps=10 is not below the 10 steps of "
            "the run: the rate never reaches config.optimizer.learning_rate=0.003\n",
        ),
    ):
        config = tiny()
        config.optimizer = dataclasses.replace(
            config.optimizer, warmup_steps=warmup_steps
        )
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / str(warmup_steps))
        assert capsys.readouterr().err == message


def test_a_run_leaves_what_it_promises(finished):
    path, message = finished
    assert "compiling" in message
    assert "epoch 1/2: validation loss" in message
    assert "(improved)" in message
    assert (path / "tensorboard").exists()
    assert json.loads((path / "config.json").read_text())["num_epochs"] == 2
    result = json.loads((path / "result.json").read_text())
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
        for row in lines(path, kind):
            assert set(row) == fields | {"accuracy", "images_per_second"}
            loss = row["margin_loss"] + 0.0005 * row["reconstruction_loss"]
            np.testing.assert_allclose(row["loss"], loss, rtol=1e-5)
    assert [row["epoch"] for row in lines(path, "validation")] == [1, 2]
    validation = {row["step"]: row["loss"] for row in lines(path, "validation")}
    assert result["test"]["step"] == min(validation, key=validation.get)


@pytest.mark.slow
def test_balanced_classes_weigh_training_and_validation_and_not_the_test(tmp_path):
    config = tiny()
    config.num_epochs, config.data.class_weights = 1, "balanced"
    config.data.num_train = 48
    config.loss = dataclasses.replace(config.loss, reconstruction_weight=0.0)
    result = run(config, tmp_path)
    assert result["test"]["loss"] == result["test"]["margin_loss"]
    learnt = task.make_task(config)
    num_images = np.bincount(learnt.train_set.label, minlength=10)
    assert num_images.min() < num_images.max()
    opened = load_run(tmp_path)
    image, label = learnt.validation_set.image, learnt.validation_set.label
    loss = margin_loss(opened.predict(image).length, label)
    weight = 48 / (10 * num_images[label])
    (row,) = lines(tmp_path, "validation")
    assert row["loss"] == pytest.approx(float(np.mean(weight * loss)), rel=1e-4)
    assert row["margin_loss"] == pytest.approx(float(np.mean(loss)), rel=1e-4)
    config.data.class_weights = "none"
    message = "data.class_weights is 'balanced' there, 'none' here"
    with pytest.raises(WorkdirError, match=message):
        run(config, tmp_path)


def test_a_finished_run_prints_its_result_and_can_be_extended(copied, capsys):
    first = json.loads((copied / "result.json").read_text())
    assert run(tiny(), copied) == first
    assert "is finished" in capsys.readouterr().out
    config = tiny()
    config.num_epochs = 3
    result = run(config, copied)
    assert result["test_of_last"]["step"] == 15
    assert "going on after step 10 of 15" in capsys.readouterr().out


def test_a_run_goes_on_with_its_own_images_only(copied, monkeypatch):
    before = {path: path.read_bytes() for path in copied.glob("*.json*")}

    def load_others(*arguments, **options):
        dataset = load(*arguments, **options)
        return dataclasses.replace(dataset, image=255 - dataset.image)

    monkeypatch.setattr(loading, "load", load_others)
    config = tiny()
    config.num_epochs = 3
    message = "is of other train images: pixels, labels or names are not what they were"
    with pytest.raises(WorkdirError, match=message):
        run(config, copied)
    assert {path: path.read_bytes() for path in before} == before


def test_the_result_is_the_best_by_validation_and_tests_come_last(
    tmp_path, monkeypatch
):
    config = tiny()
    config.num_epochs, config.steps_per_dispatch = 3, 5
    read, evaluated = [], []
    real_batch, real_evaluate = trainer.Dataset.batch, trainer.evaluate

    def batch(self, indices):
        read.append(len(self))
        return real_batch(self, indices)

    def evaluate(step, params, dataset, **options):
        """Takes few images; by the validation the second epoch is the best."""
        weights = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params)]
        evaluated.append((len(dataset), weights, len(read)))
        few = dataset.subset(np.arange(48))
        metrics = real_evaluate(step, params, few, **options)
        if len(dataset) == 50:
            metrics = metrics._replace(loss=(0.3, 0.2, 0.4)[len(evaluated) - 1])
        return metrics

    monkeypatch.setattr(trainer, "evaluate", evaluate)
    monkeypatch.setattr(trainer.Dataset, "batch", batch)
    result = run(config, tmp_path)

    sizes, weights, before = zip(*evaluated, strict=True)
    assert sizes == (50, 50, 50, 200, 200)
    assert weights[3:] == (weights[2], weights[1])
    assert set(read[before[3] :]) == {48}
    last, best = lines(tmp_path, "test")
    assert (last["step"], best["step"]) == (15, 10)
    for found, row in ((result["test"], best), (result["test_of_last"], last)):
        assert (found["step"], found["loss"]) == (row["step"], row["loss"])
    # The last would be chosen if the test images had a say.
    assert last["loss"] < best["loss"]


def test_without_validation_the_last_checkpoint_is_the_result(tmp_path):
    config = tiny()
    config.data.num_validation = 0
    result = run(config, tmp_path)
    assert result["test"] == result["test_of_last"]
    assert result["test"]["step"] == 10
    assert lines(tmp_path, "validation") == []


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.undo()  # Memory is estimated here.
    folder = tmp_path / "run"
    wrong = [
        ({"batch_size": 30}, "batch_size=30 can't be shared evenly by 4 devices"),
        ({"num_parts": 3}, "by 4 devices in 3 parts; choose a multiple of 12"),
        (
            {"batch_size": 10_000},
            "batch_size=10000 is more than the 40 training images",
        ),
    ]
    for fields, message in wrong:
        config = tiny()
        for name, value in fields.items():
            setattr(config, name, value)
        with pytest.raises(configs.ConfigError, match=message):
            run(config, folder)
    config = tiny()
    config.data.num_validation = 60_000
    with pytest.raises(configs.ConfigError, match=r"num_validation=60000 leaves none"):
        run(config, folder)
    config = tiny()
    config.model = config.model.clone(conv_features=2**16, primary_types=2**10)
    with pytest.raises(
        configs.ConfigError, match=r"max_gigabytes=16.0: training needs"
    ):
        run(config, folder)
    config = tiny()
    config.num_epochs = 2**31 // 5 + 1
    with pytest.raises(configs.ConfigError, match=r"num_epochs=429496730 are 2,147,"):
        run(config, folder)
    config = tiny()
    config.model = config.model.clone(conv_kernel=25)
    with pytest.raises(configs.ConfigError, match="the smallest is 33x33"):
        run(config, folder)
    assert not folder.exists()


def ending(path, **options):
    """What a run ends with that stops at any validation."""
    config = tiny(stop_at=1e-3, **options)
    config.data.num_validation = 100  # In which there is every class.
    result = run(config, path)
    del result["seconds"]
    return result


def test_a_run_ends_with_the_first_epoch_that_is_good_enough(
    tmp_path, monkeypatch, capsys
):
    accuracies = iter([0.4, 0.5, 0.6])
    monkeypatch.setattr(
        trainer, "evaluate", lambda *_, **__: Metrics(1.0, next(accuracies), None, {})
    )
    config = tiny(stop_at=0.5)
    config.num_epochs = 3
    result = run(config, tmp_path)
    assert result["test_of_last"] == {"step": 10, "loss": 1.0, "accuracy": 0.6}
    assert (result["epochs_done"], result["num_epochs"]) == (2, 3)
    assert [row["epoch"] for row in lines(tmp_path, "validation")] == [1, 2]
    assert "at least config.stop_at=0.5: the run ends" in capsys.readouterr().out
    assert run(config, tmp_path) == result


def test_a_run_that_was_never_good_enough_reports_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        trainer, "evaluate", lambda *_, **__: Metrics(1.0, 0.4, None, {})
    )
    run(tiny(stop_at=0.5), tmp_path)
    message = (
        "stop_at=0.5 was not reached: after the last epoch validation accuracy is 40"
    )
    assert message in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_was_good_enough_and_then_killed_ends_the_same(
    tmp_path, monkeypatch
):
    whole = ending(tmp_path / "whole")
    assert whole["test_of_last"]["step"] == 5

    def killed(self, command):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "finish", killed)
        with pytest.raises(RuntimeError, match="killed"):
            ending(tmp_path / "parts")
    assert ending(tmp_path / "parts") == whole
    rows = [lines(tmp_path / name, "train") for name in ("whole", "parts")]
    assert without_clock(rows[0]) == without_clock(rows[1])


def test_fewer_epochs_than_are_done_are_refused(tmp_path, monkeypatch):
    config = tiny(steps_per_dispatch=3)
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
    assert trainer._finished(tiny(), workdir) is None


def command(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "capsjax.train", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
    )


SMALL = (
    "--config=experiments/mnist.py:smoke",
    "--config.model.conv_features=16",
    "--config.model.primary_types=4",
    "--config.optimizer.learning_rate=3e-3",
    "--config.model.primary_stride=3",
)


def after_first_line(process, workdir):
    metrics, deadline = workdir / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_sigterm_saves_and_ends_with_143(tmp_path):
    process = command(
        *(SMALL[0], *TINY_MODEL, "--config.num_epochs=1000", f"--workdir={tmp_path}"),
        *(f"--config.data.name={digits()}", "--config.data.num_train=1000"),
        "--config.data.num_validation=200",
    )
    after_first_line(process, tmp_path)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 143, out + err
    assert "The same command goes on from there" in out
    assert not (tmp_path / "result.json").exists()
    step = lines(tmp_path, "train")[-1]["step"]
    assert f"stopped after step {step} of" in out
    assert (tmp_path / "checkpoints" / str(step) / "commit_success.txt").exists()


@pytest.mark.variant
def test_the_command_learns_real_digits_and_goes_on_after_ctrl_c(tmp_path):
    arguments = (*SMALL, f"--workdir={tmp_path}")
    first = command(*arguments, XLA_FLAGS="")
    after_first_line(first, tmp_path)
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=120)
    assert first.returncode == 130, out + err
    assert "The same command goes on from there" in out
    assert not (tmp_path / "result.json").exists()
    second = command(*arguments, XLA_FLAGS="")
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
