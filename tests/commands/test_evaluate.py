"""Evaluates and draws a run."""

import json

import diagnostics as reference
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from capsjax import evaluate, load_run, squash
from capsjax.analysis import inspection
from capsjax.analysis.diagnosis import calibrate, diagnose
from capsjax.analysis.evaluation import evaluate_run
from capsjax.analysis.images import load_validation_set
from capsjax.data import load, loading
from capsjax.diagnostics import class_probability
from capsjax.runtime.devices import parallel
from capsjax.training import evaluation as whole_set

pytestmark = pytest.mark.slow  # together a minute


@pytest.fixture(scope="module")
def run(tiny_run):
    return load_run(tiny_run)


@pytest.fixture(scope="module")
def few():
    return load("mnist", "test").subset(np.arange(200))


def test_it_measures_what_training_measures(run, few):
    step = parallel(whole_set.make_eval_step(run.model, run.loss))
    expected = whole_set.evaluate(step, run.params, few, batch_size=64)
    actual = evaluate_run(run, few)
    assert actual.metrics.known() == pytest.approx(expected.known(), rel=1e-4)
    assert actual.confusion.sum() == 200
    assert np.trace(actual.confusion) == round(200 * expected.accuracy)
    assert (actual.confusion.sum(1) == np.bincount(few.label, minlength=10)).all()


def test_a_row_of_the_confusion_is_the_label(run, few):
    evaluation = evaluate_run(run, few)
    label, predicted = few.label, evaluation.prediction.label
    row, column = label[0], predicted[0]
    count = ((label == row) & (predicted == column)).sum()
    assert evaluation.confusion[row, column] == count


def test_primary_capsules_are_watched_over_all_images(run, few):
    diagnosis = diagnose(run, few)
    assert (diagnosis.num_images, diagnosis.sizes) == (200, {"class_caps": (50, 10)})
    image = jnp.asarray(few.image) / 255
    capsules = run.model.apply(run.params, image, method=run.model.primary)
    length = np.linalg.norm(capsules, axis=-1).reshape(200, -1)
    routed = run.model.apply(run.params, image, method=run.model.encode)
    known = np.ones(length.shape, bool), np.ones((200, 10), bool)
    own = (np.asarray(routed.coupling), *known)
    measures = diagnosis.layers["class_caps"]
    for name in ("t_score", "bonding", "dynamics"):
        expected = getattr(reference, name)(*own)
        assert measures[name] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert measures["dead_inputs"] == reference.dead(length, known[0]).sum()
    assert measures["saturated_inputs"] == (length.min(0) >= 0.95).sum()
    assert diagnosis.accuracy == (run.predict(few.image).label == few.label).mean()
    assert sum(diagnosis.trees.num_examples.values()) == 200
    # Of dynamic routing, equal couplings are those of one round.
    one = inspection.predictions_by_rounds(run, few, (1,))[1]
    assert diagnosis.uniform_accuracy == (one.argmax(-1) == few.label).mean()


def test_a_measure_does_not_depend_on_the_batches(run, few, monkeypatch):
    whole = diagnose(run, few)
    monkeypatch.setattr("capsjax.analysis.diagnosis._COUPLINGS_AT_ONCE", 40 * 500)
    parts = diagnose(run, few)
    for name, value in whole.layers["class_caps"].items():
        assert parts.layers["class_caps"][name] == pytest.approx(value, rel=1e-3), name
    counts = [one.histogram["class_caps"] for one in (whole, parts)]
    np.testing.assert_array_equal(*counts)
    assert whole.trees.count == parts.trees.count


def test_the_temperature_is_of_the_validation_images(run, few):
    validation = load_validation_set(run)
    assert len(validation) == 100
    prediction = run.predict(few.image)
    calibration = calibrate(run, validation, few, prediction)
    length = run.predict(validation.image).activation
    losses = [
        reference.mean_loss(length, validation.label, factor * calibration.temperature)
        for factor in (0.9, 1, 1.1)
    ]
    assert losses[1] == min(losses)
    p = class_probability(prediction.activation, "length", calibration.temperature)
    expected = reference.calibration_error(np.asarray(p), few.label, 15)
    assert float(calibration.fitted.expected_error) == pytest.approx(expected, rel=1e-4)


def test_couplings_are_those_of_the_network(run, few):
    image = few.image[:5] / np.float32(255)
    routed = inspection.couplings(run, image)
    rounds = run.model.routing.num_iterations
    assert routed.coupling.shape[0] == rounds
    np.testing.assert_allclose(routed.coupling[0], 0.1, rtol=1e-6)
    np.testing.assert_allclose(routed.coupling.sum(-1), 1, rtol=1e-5)
    assert (routed.entropy <= np.log2(10) + 1e-6).all()
    np.testing.assert_allclose(routed.entropy[0], np.log2(10), rtol=1e-6)
    assert routed.measures[0]["t_score"] == pytest.approx(0, abs=1e-6)
    assert routed.measures[-1]["t_score"] > 1e-5
    # All shares together are the length of the winner before the squash.
    length = routed.share[-1].sum(-1)
    squashed = jnp.linalg.norm(squash(length[:, None]), axis=-1)
    expected = run.predict(few.image[:5]).length.max(-1)
    np.testing.assert_allclose(squashed, expected, rtol=1e-4)


def test_rounds_are_those_of_another_routing(run, few):
    trained = run.model.routing.num_iterations
    named = inspection.predictions_by_rounds(run, few, (1, trained))
    np.testing.assert_array_equal(
        named[trained].argmax(-1), run.predict(few.image).label
    )
    # One round is the average of the votes; the next adds what agrees with its pose.
    image = jnp.asarray(few.image[:5]) / 255
    primary = run.model.apply(run.params, image, method=run.model.primary)
    weight = run.params["params"]["class_caps"]["weight"]
    capsules = primary.reshape(5, -1, primary.shape[-1])
    votes = np.einsum("nic,ijdc->nijd", capsules, weight)
    pose = squash(votes.mean(1) * votes.shape[1] / 10)
    right = (np.linalg.norm(pose, axis=-1).argmax(-1) == few.label[:5]).mean()
    assert (named[1][:5].argmax(-1) == few.label[:5]).mean() == right
    change = inspection.couplings(run, image, 2).logit_change
    expected = np.abs(np.einsum("nijd,njd->nij", votes, pose)).mean()
    assert change.shape == (2,)
    np.testing.assert_allclose(change[0], expected, rtol=1e-4)


def test_the_middle_of_a_tweak_is_the_reconstruction(run, few):
    label, _, pose = run.predict(few.image[:1])
    rows = inspection.tweaked(run, pose[0, label[0]], label[0], low=-0.5, high=0.5)
    assert rows.shape == (run.model.class_dim, 11, 28, 28, 1)
    expected = run.draw(pose, label)[0]
    for row in rows:
        np.testing.assert_allclose(row[5], expected, atol=1e-5)
    assert np.abs(rows[:, 0] - rows[:, -1]).max() > 0


def test_the_command_prints_and_draws(tiny_run, capsys, monkeypatch):
    few = load("mnist", "test").subset(np.arange(300))
    monkeypatch.setattr(loading, "load", lambda *_, **__: few)
    assert evaluate.main(["--workdir", str(tiny_run)]) == 0
    printed, warned = capsys.readouterr()
    assert "300 test images" in printed
    assert "capsules:" in printed
    assert "accuracy by rounds of routing" in printed
    folder = tiny_run / "figures"
    names = {path.stem for path in folder.iterdir()}
    assert names >= {
        *("samples", "reconstructions", "training", "confusion"),
        *("mistakes", "entropy", "couplings", "rounds", "measures", "reliability"),
    }
    assert any(name.startswith("tweak-") for name in names)
    about = json.loads((folder / "evaluation.json").read_text())
    assert f"accuracy {about['accuracy']:.2%}" in printed
    assert (about["data"]["name"], about["data"]["num_images"]) == ("mnist", 300)
    assert about["runs"][0]["path"] == str(tiny_run)
    assert {"commit", "device", "versions", "command", "loss"} <= set(about)
    assert about["accuracy_by_rounds"]["3"] == pytest.approx(about["accuracy"])
    assert about["changed_by_rounds"]["3"] == 0
    assert about["routing"]["class_caps"]["t_score"] >= 0
    assert about["uniform_swap"]["uniform_accuracy"] <= 1
    assert about["calibration"]["num_validation"] == 100
    assert "T-score" in printed
    assert f"temperature {about['calibration']['temperature']:.4f}" in printed
    # They are not those that the run began with.
    message = "is of other test images: there were 200 and are 300"
    assert warned == f"warning: {tiny_run} {message}\n"
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            assert min(image.size) > 200
            assert np.ptp(np.asarray(image.convert("L"))) > 100


def test_errors_are_reported_in_a_line(tmp_path, capsys):
    assert evaluate.main(["--workdir", str(tmp_path / "none")]) == 1
    assert "error: " in (error := capsys.readouterr().err)
    assert "holds no run" in error
    assert not (tmp_path / "none").exists()
