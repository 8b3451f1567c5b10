"""Images that show none, one or several of the classes: from training to prediction."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import tiny

from capsjax import evaluate, load_run, predict, report, train
from capsjax.analysis import figures
from capsjax.analysis.evaluation import evaluate_run
from capsjax.analysis.verdicts import verdicts
from capsjax.data import load
from capsjax.storage.workdir import Workdir
from capsjax.training.command_line import experiment

pytestmark = pytest.mark.slow  # they train one first

NAMES = ("over 7", "over 4", "odd", "zero")


def saved(path, image, label):
    """The name of a file whose images to train on are those to test."""
    arrays = {f"x_{split}": image for split in ("train", "test")}
    arrays |= {f"y_{split}": label for split in ("train", "test")}
    np.savez(path, class_names=np.array(NAMES), **arrays)
    return str(path)


@pytest.fixture(scope="module")
def digits():
    """Digits whose labels are traits: none, one, two or three of four."""
    digits = load("mnist", "test").subset(np.arange(60))
    by_digit = np.array([[k > 7, k > 4, k % 2 == 1, k == 0] for k in range(10)])
    return digits.image, by_digit[digits.label]


@pytest.fixture(scope="module")
def capsules(tmp_path_factory, digits):
    """The folder of a run of capsules with weights, and its test images."""
    folder = tmp_path_factory.mktemp("capsules")
    config = tiny()
    config.data.name = saved(folder / "traits.npz", *digits)
    config.data.num_validation, config.data.class_weights = 20, "balanced"
    train.train(config, Workdir(folder / "run"))
    return folder / "run", load(config.data.name, "test")


def test_different_numbers_of_classes_are_trained_judged_and_compared(capsules, capsys):
    path, traits = capsules
    result = json.loads((path / "result.json").read_text())
    assert {"accuracy", "per_label_accuracy"} < set(result["test"])
    assert "label_accuracy" not in result["test"]
    for line in (path / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert row["accuracy"] <= row["per_label_accuracy"]
    run = load_run(path)
    assert run.num_shown is None
    actual = evaluate_run(run, traits)
    assert actual.metrics.known() == pytest.approx(
        {k: v for k, v in result["test"].items() if k != "step"}, rel=1e-4
    )
    is_named = actual.prediction.activation >= 0.5
    assert result["test"]["accuracy"] == pytest.approx(
        (is_named == traits.label).all(1).mean()
    )
    assert result["test"]["per_label_accuracy"] == pytest.approx(
        (is_named == traits.label).mean()
    )
    assert actual.by_rounds[3] == pytest.approx(result["test"]["accuracy"])
    assert report.main([str(path)]) == 0
    out = capsys.readouterr().out
    assert "| labels right, best by validation, % |" in out
    assert f"first: capsjax.evaluate --workdir {path}." in out
    assert evaluate.main(["--workdir", str(path)]) == 0
    out = capsys.readouterr().out
    right = f"{result['test']['per_label_accuracy']:.2%} of the labels right"
    balanced = actual.scores.balanced_accuracy
    precision = actual.scores.mean_average_precision
    for words in (right, f"average precision {precision:.2%}: means over the classes"):
        assert words in out
    names = {one.stem for one in (path / "figures").iterdir()}
    assert names == {
        *("samples", "training", "rounds", "entropy", "measures", "labels"),
        "mistakes",
        "evaluation",
    }
    about = json.loads((path / "figures" / "evaluation.json").read_text())
    assert about["mean_average_precision"] == pytest.approx(precision)
    assert about["classes"]["odd"]["average_precision"] > 0
    assert about["confusion"] is None
    assert report.main([str(path)]) == 0
    out = capsys.readouterr().out
    assert f"| {100 * balanced:.2f} | {100 * precision:.2f} |\n" in out
    assert "capsjax.evaluate" not in out


def test_all_classes_of_at_least_a_half_are_named(capsules):
    path, traits = capsules
    run = load_run(path)
    prediction = run.predict(traits.image[:1])
    for length, answer in (
        ([0.5, 0.49, 0.9, 0.6], "odd and zero and over 7"),
        ([0.1, 0.49, 0.9, 0.6], "odd and zero"),
        ([0.1, 0.49, 0.9, 0.3], "odd"),
        ([0.1, 0.49, 0.4, 0.3], "no class"),
    ):
        activation = np.array([length], np.float32)
        (one,) = verdicts(run, prediction._replace(activation=activation))
        assert one["verdict"] == answer


def test_the_images_with_the_most_wrong_labels_come_first():
    label = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 0], [0, 0, 0]], bool)
    length = np.array(
        [[0.4, 0, 0], [0.9, 0.5, 0.1], [0.5, 0, 0.4], [0, 0.1, 0], [0.1, 0.2, 0.3]]
    )
    wrong, named = figures.most_wrong(label, length, is_counted=False)
    assert wrong.tolist() == [2, 3, 0]
    np.testing.assert_array_equal(named, length >= 0.5)
    # As many as are shown are named.
    wrong, _ = figures.most_wrong(label, length, is_counted=True)
    assert wrong.tolist() == [2]


EXPERIMENT = """
import dataclasses
from typing import ClassVar

import optax

from capsjax.config import Adam, Config, Data
from capsjax.data.augment import NoAugmentation
from capsjax.losses import Loss
from capsjax.models import BaselineCNN


@dataclasses.dataclass(frozen=True)
class Sigmoids(Loss):
    name: ClassVar[str] = "sigmoids"
    activation_kind: ClassVar[str] = "logit"
    takes_several: ClassVar[bool] = True

    def __call__(self, activation, label):
        return self.by_class(activation, label).sum(-1)

    def by_class(self, activation, label):
        return optax.sigmoid_binary_cross_entropy(activation, label)


def get_config(variant=""):
    return Config(
        experiment="sigmoids",
        num_epochs=2,
        batch_size=8,
        steps_per_dispatch=5,
        data=Data(num_train=40, num_validation=20, class_weights="balanced"),
        model=BaselineCNN(conv_features=(4, 8), hidden_features=(16, 12)),
        optimizer=Adam(learning_rate=3e-3),
        augmentation=NoAugmentation(),
        loss=Sigmoids(),
    )
"""


@pytest.mark.variant
def test_a_logit_loss_of_several_labels_goes_through_every_command(
    tmp_path, digits, capsys
):
    file, path = tmp_path / "sigmoids.py", tmp_path / "run"
    file.write_text(EXPERIMENT)
    image, label = digits
    # As small as the baseline is quick with.
    image = np.ascontiguousarray(image[:, 8:20, 8:20])
    name = saved(tmp_path / "traits.npz", image, label)
    own, place = ["--config", str(file)], ["--workdir", str(path)]
    flags = [f"--config.data.name={name}", "--distributed=off"]
    assert train.main(["train", *own, *place, *flags]) == 0
    # Training and validation are weighted, tests are not.
    for line in (path / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert (row["loss"] == row["sigmoids"]) == (row["kind"] == "test")
    result = json.loads((path / "result.json").read_text())["test"]
    run = load_run(path, config=experiment(str(file)))
    unit = jnp.asarray(image) / 255
    logit = run.model.apply(run.params, unit, method=run.model.encode).activation
    probability = np.asarray(jax.nn.sigmoid(logit))
    error = -np.log(np.where(label, probability, 1 - probability))
    is_named = np.asarray(logit) >= 0
    expected = {
        "loss": error.sum(-1).mean(),
        "sigmoids": error.sum(-1).mean(),
        "accuracy": (is_named == label).all(-1).mean(),
        "per_label_accuracy": (is_named == label).mean(),
    }
    assert result == pytest.approx({"step": run.step, **expected}, rel=1e-4)
    # Evaluate and compare it.
    capsys.readouterr()
    assert evaluate.main([*own, *place]) == 0
    out = capsys.readouterr().out
    assert f"{result['per_label_accuracy']:.2%} of the labels right" in out
    assert {one.stem for one in (path / "figures").iterdir()} == {
        *("samples", "training", "labels", "mistakes", "evaluation")
    }
    about = json.loads((path / "figures" / "evaluation.json").read_text())
    assert about["loss"] == pytest.approx(result["loss"], rel=1e-4)
    assert report.main([*own, str(path)]) == 0
    cells = capsys.readouterr().out.splitlines()[2].split(" | ")
    scores = (about["balanced_accuracy"], about["mean_average_precision"])
    assert cells[-2:] == [f"{100 * scores[0]:.2f}", f"{100 * scores[1]:.2f} |"]
    # Predict pictures.
    pictures = [str(tmp_path / f"{k}.png") for k in range(10)]
    for picture, one in zip(pictures, image, strict=False):
        Image.fromarray(one[..., 0]).save(picture)
    assert predict.main([*own, *place, "--json", *pictures]) == 0
    answers = json.loads(capsys.readouterr().out)
    for answer, one, shown in zip(answers, probability, is_named, strict=False):
        by_name = dict(zip(NAMES, one.tolist(), strict=True))
        assert answer["probabilities"] == pytest.approx(by_name, abs=1e-3)
        named = {name for name, is_shown in zip(NAMES, shown, strict=True) if is_shown}
        assert set(answer["verdict"].split(" and ")) == (named or {"no class"})
