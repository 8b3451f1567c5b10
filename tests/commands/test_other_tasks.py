"""Two classes in an image, crops, and the baseline: from training to prediction."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import digits, pairs, tiny, tiny_cnn

from capsjax import evaluate, load_run, train
from capsjax.analysis import figures, images
from capsjax.analysis.evaluation import (
    count_confusions,
    evaluate_ensemble,
    evaluate_run,
)
from capsjax.analysis.verdicts import verdicts
from capsjax.data import Dataset, load, loading
from capsjax.data.augment import Shift
from capsjax.routings import Routed
from capsjax.storage.workdir import Workdir
from capsjax.training.objective import measure

pytestmark = pytest.mark.slow  # they train one first


def trained(path, dataset, config):
    """The folder of a run on a data set of this process, and its result."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load", lambda *_, **__: dataset)
        result = train.train(config, Workdir(path)).result
    return path, result


def evaluated(path, dataset, *arguments):
    """The exit code of the command that evaluates, with a data set of this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load", lambda *_, **__: dataset)
        return evaluate.main(["--workdir", *map(str, path), *arguments])


def rows(path):
    return map(json.loads, (path / "metrics.jsonl").read_text().splitlines())


@pytest.fixture(scope="module")
def two_digits():
    return pairs(60)


@pytest.fixture(scope="module")
def capsules(tmp_path_factory, two_digits):
    """A run on pairs of digits, cropped from 28 pixels to 24."""
    config = tiny()
    config.data.crop, config.data.num_validation = 24, 20
    config.loss = dataclasses.replace(config.loss, reconstruction_weight=0.01)
    return trained(tmp_path_factory.mktemp("capsules"), two_digits, config)


@pytest.fixture(scope="module")
def corners():
    """The middle of digits: as small as the baseline is quick with."""
    digits = load("mnist", "test").subset(np.arange(60))
    image = np.ascontiguousarray(digits.image[:, 8:20, 8:20])
    return Dataset("corners", image, digits.label, digits.class_names)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory, corners):
    """A run of the baseline, its images cropped from 12 pixels to 8."""
    config = tiny()
    config.model, config.augmentation = tiny_cnn(), Shift(max_shift=1)
    config.data.crop, config.data.num_validation = 8, 20
    return trained(tmp_path_factory.mktemp("baseline"), corners, config)


def test_what_is_measured_of_several_classes_is_written_down(capsules):
    path, result = capsules
    losses = {"loss", "margin_loss", "reconstruction_loss"}
    fields = {*losses, "accuracy", "label_accuracy", "images_per_second"}
    for row in rows(path):
        assert set(row) - {"kind", "step", "epoch"} == fields
        whole = row["margin_loss"] + 0.01 * row["reconstruction_loss"]
        np.testing.assert_allclose(row["loss"], whole, rtol=1e-5)
        assert row["accuracy"] <= row["label_accuracy"]
    assert set(result["test"]) == {"step", *losses, "accuracy", "label_accuracy"}
    about = json.loads((path / "dataset.json").read_text())
    assert (about["image_shape"], about["num_shown"]) == ([28, 28, 1], 2)


def test_evaluation_of_several_classes_is_that_of_training(capsules, two_digits):
    path, result = capsules
    run = load_run(path)
    actual = evaluate_run(run, two_digits)
    assert actual.metrics.known() == pytest.approx(
        {k: v for k, v in result["test"].items() if k != "step"}, rel=1e-4
    )
    # Each class that is shown is in its row once.
    assert actual.confusion.sum() == 120
    np.testing.assert_array_equal(actual.confusion.sum(1), two_digits.label.sum(0))
    found = np.trace(actual.confusion) / 120
    np.testing.assert_allclose(found, actual.metrics.label_accuracy, rtol=1e-6)


def test_missed_classes_are_set_against_those_taken_for_them():
    label = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]], bool)
    length = np.array([[0.9, 0.8, 0, 0], [0.9, 0.8, 0, 0], [0.9, 0.8, 0, 0.1]])
    confusion = count_confusions(label, length.astype(np.float32))
    expected = np.zeros((4, 4), int)
    expected[0, 0] += 1
    expected[1, 1] += 2
    expected[2, 0] += 2
    expected[3, 1] += 1
    np.testing.assert_array_equal(confusion, expected)


def test_a_run_on_crops_takes_whole_images_and_sees_their_middle(capsules, two_digits):
    run = load_run(capsules[0])
    assert run.image_shape == (28, 28, 1)
    image = two_digits.image[:5]
    edged = np.full_like(image, 255)
    edged[:, 2:26, 2:26] = image[:, 2:26, 2:26]
    expected = run.model.apply(
        run.params,
        jnp.asarray(image[:, 2:26, 2:26]) / 255,
        method=run.model.encode,
    )
    for same in (image, edged):
        actual = run.predict(same)
        np.testing.assert_allclose(actual.pose, expected.pose, rtol=1e-3, atol=1e-6)
    assert run.draw(actual.pose, actual.label).shape == (5, 24, 24, 1)
    with pytest.raises(ValueError, match=r"must be of shape \(28, 28, 1\)"):
        run.predict(image[:, 2:26, 2:26])


def test_of_several_classes_the_longest_are_named(capsules, two_digits):
    run = load_run(capsules[0])
    prediction = run.predict(two_digits.image[:4])
    # As long as the capsules of digits that are there.
    length = prediction.activation * 0.6 / np.sort(prediction.activation)[:, -2:-1]
    prediction = prediction._replace(activation=length)
    for answer, length in zip(
        verdicts(run, prediction), prediction.activation, strict=True
    ):
        first, second = np.argsort(-length)[:2]
        assert answer["verdict"] == f"{first} and {second}"
        assert answer["label"] == str(first)


@pytest.mark.variant
def test_the_command_prints_both_figures_of_several_classes(
    capsules, two_digits, capsys
):
    path, result = capsules
    assert evaluated([path], two_digits) == 0
    out, err = capsys.readouterr()
    assert "60 test images of pairs" in out
    assert "other test images" not in err
    assert f"; {result['test']['label_accuracy']:.2%} of the classes found" in out
    names = {file.stem for file in (path / "figures").iterdir()}
    assert names == {
        *("samples", "confusion", "training", "rounds", "entropy", "overlaps"),
        *("measures", "mistakes", "evaluation"),
    }


def test_overlaps_are_right_ones_wrong_ones_and_what_is_not_there():
    label = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 1]], bool)
    length = np.array([[0.9, 0.8, 0, 0], [0.9, 0.8, 0, 0], [0.7, 0.1, 0, 0.8]])
    assert figures.overlap_columns(label, length.astype(np.float32)) == [
        (0, "right", (0, 1)),
        (2, "right", (0, 3)),
        (1, "wrong", (0, 1)),
        (1, "label", (1, 2)),
        (0, "requested", (0, 2)),
        (2, "requested", (0, 2)),
    ]


@pytest.mark.variant
def test_what_is_measured_of_the_baseline_is_written_down(baseline):
    path, result = baseline
    fields = {"loss", "cross_entropy", "accuracy", "images_per_second"}
    for row in rows(path):
        assert set(row) - {"kind", "step", "epoch"} == fields
        assert row["loss"] == row["cross_entropy"]
    assert set(result["test"]) == {"step", "loss", "cross_entropy", "accuracy"}


def test_the_baseline_predicts_probabilities_and_draws_nothing(baseline, corners):
    run = load_run(baseline[0])
    prediction = run.predict(corners.image[:5])
    assert prediction.pose is None
    np.testing.assert_allclose(prediction.activation.sum(-1), 1, rtol=1e-5)
    routed = run.model.apply(
        run.params, jnp.asarray(corners.image[:5, 2:10, 2:10]) / 255
    )
    expected = jax.nn.softmax(routed.activation)
    np.testing.assert_allclose(prediction.activation, expected, rtol=1e-4)
    assert run.activation_kind == "logit"
    (answer,) = verdicts(run, run.predict(corners.image[0]))
    assert answer["verdict"] == str(prediction.label[0])
    assert set(answer) == {"verdict", "label", "probabilities"}
    with pytest.raises(ValueError, match="draws nothing: BaselineCNN has no decode"):
        run.draw(np.zeros((1, 10, 4), np.float32), np.zeros(1, int))


def test_the_baseline_is_evaluated_without_capsules(baseline, corners, capsys):
    path, result = baseline
    evaluation = evaluate_run(load_run(path), corners)
    assert evaluation.metrics.known() == pytest.approx(
        {k: v for k, v in result["test"].items() if k != "step"}, rel=1e-4
    )
    assert evaluated([path], corners) == 0
    assert "capsules" not in capsys.readouterr().out
    names = {file.stem for file in (path / "figures").iterdir()}
    assert names == {
        "samples",
        "confusion",
        "training",
        "mistakes",
        "evaluation",
        "reliability",
    }


@pytest.mark.variant
def test_an_ensemble_averages_lengths(capsules, two_digits, capsys):
    path, _ = capsules
    run = load_run(path)
    member = evaluate_run(run, two_digits)
    prediction = member.prediction
    # Another network: the lengths of this one in another order.
    turned = prediction._replace(activation=np.roll(prediction.activation, 1, axis=1))
    both = evaluate_ensemble(
        [run, run], two_digits, [member, member._replace(prediction=turned)]
    )
    mean = (prediction.activation + turned.activation) / 2
    np.testing.assert_allclose(both.prediction.activation, mean, rtol=1e-6)
    expected = measure(
        *(run.model, run.params, Routed(None, jnp.asarray(mean), None)),
        jnp.zeros((60, 24, 24, 1)),
        jnp.asarray(two_digits.label),
        loss=run.loss,
        source=jnp.zeros((60, 2, 24, 24, 1)),
    )
    assert both.metrics.known() == pytest.approx(
        {k: float(v.mean()) for k, v in expected.known().items()}, rel=1e-5
    )
    assert both.confusion.sum() == 120
    assert evaluated([path, path], two_digits) == 0
    out = capsys.readouterr().out
    assert "all 2 together:\nloss " in out
    assert out.count(f"{path}, step {run.step}, learnt {digits()}: loss ") == 2


def test_an_ensemble_of_baselines_averages_probabilities(baseline, corners):
    path, result = baseline
    run = load_run(path)
    member = evaluate_run(run, corners)
    both = evaluate_ensemble([run, run], corners, [member, member])
    assert both.metrics.known() == pytest.approx(
        {k: v for k, v in result["test"].items() if k != "step"}, rel=1e-4
    )


def test_what_does_not_go_together_is_not_evaluated(
    capsules, baseline, two_digits, corners, capsys
):
    cases = [
        ([capsules[0]], corners, "its images are (12, 12, 1)"),
        (
            [capsules[0], baseline[0]],
            two_digits,
            "are no ensemble: the activations of the ",
        ),
    ]
    other = Dataset("other", two_digits.image, np.zeros(60, np.int32), tuple("abcd"))
    cases.append(([capsules[0]], other, "its classes are not those that were learnt"))
    label = np.eye(10, dtype=bool)[corners.label]
    many = Dataset("many", corners.image, label, corners.class_names)
    cases.append(([baseline[0]], many, "it shows several classes in an image"))
    for paths, dataset, message in cases:
        assert evaluated(paths, dataset) == 1
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error


def test_another_data_set_is_evaluated_and_named(capsules, two_digits, capsys):
    path, _ = capsules
    asked = []

    def load_set(*arguments, **options):
        asked.append(arguments)
        return Dataset(
            "other", two_digits.image, two_digits.label, two_digits.class_names
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "load", load_set)
        code = evaluate.main(["--workdir", str(path), "--data", "some/other"])
    assert code == 0
    assert asked == [("some/other", "test")]
    out = capsys.readouterr().out
    assert out.startswith(f"60 test images of other\n{path}, step ")
    assert (path / "figures" / "some-other" / "samples.png").exists()
