"""Evaluates and draws a run."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from capsjax import evaluate, load_run, squash
from capsjax.analysis import inspection
from capsjax.analysis.evaluation import evaluate_run
from capsjax.data import load, loading
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
    lengths = inspection.primary_lengths(run, few)
    capsules = run.model.apply(
        run.params, jnp.asarray(few.image) / 255, method=run.model.primary
    )
    all_lengths = np.linalg.norm(capsules, axis=-1)
    np.testing.assert_allclose(lengths.longest, all_lengths.max(0).ravel(), rtol=1e-4)
    np.testing.assert_allclose(lengths.shortest, all_lengths.min(0).ravel(), rtol=1e-4)


def test_dead_and_saturated_are_counted():
    longest = np.array([0.01, 0.5, 0.99])
    shortest = np.array([0.0, 0.1, 0.98])
    lengths = inspection.Lengths(longest, shortest)
    assert (lengths.num_dead, lengths.num_saturated) == (1, 1)


def test_couplings_are_those_of_the_network(run, few):
    image = few.image[:5] / np.float32(255)
    routed = inspection.couplings(run, image)
    rounds = run.model.routing.num_iterations
    assert routed.coupling.shape[0] == rounds
    np.testing.assert_allclose(routed.coupling[0], 0.1, rtol=1e-6)
    np.testing.assert_allclose(routed.coupling.sum(-1), 1, rtol=1e-5)
    assert (routed.entropy <= np.log2(10) + 1e-6).all()
    np.testing.assert_allclose(routed.entropy[0], np.log2(10), rtol=1e-6)
    # All shares together are the length of the winner before the squash.
    length = routed.share[-1].sum(-1)
    squashed = jnp.linalg.norm(squash(length[:, None]), axis=-1)
    expected = run.predict(few.image[:5]).length.max(-1)
    np.testing.assert_allclose(squashed, expected, rtol=1e-4)


def test_rounds_are_those_of_another_routing(run, few):
    trained = run.model.routing.num_iterations
    accuracy = inspection.accuracy_by_rounds(run, few, (1, trained))
    assert accuracy[trained] == (run.predict(few.image).label == few.label).mean()
    # One round is the average of the votes; the next adds what agrees with its pose.
    image = jnp.asarray(few.image[:5]) / 255
    primary = run.model.apply(run.params, image, method=run.model.primary)
    weight = run.params["params"]["class_caps"]["weight"]
    capsules = primary.reshape(5, -1, primary.shape[-1])
    votes = np.einsum("nic,ijdc->nijd", capsules, weight)
    pose = squash(votes.mean(1) * votes.shape[1] / 10)
    right = (np.linalg.norm(pose, axis=-1).argmax(-1) == few.label[:5]).mean()
    assert inspection.accuracy_by_rounds(run, few.subset(np.arange(5)), (1,)) == {
        1: pytest.approx(right)
    }
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
        *("mistakes", "entropy", "couplings", "rounds"),
    }
    assert any(name.startswith("tweak-") for name in names)
    about = json.loads((folder / "evaluation.json").read_text())
    assert f"accuracy {about['accuracy']:.2%}" in printed
    assert (about["data"]["name"], about["data"]["num_images"]) == ("mnist", 300)
    assert about["runs"][0]["path"] == str(tiny_run)
    assert {"commit", "device", "versions", "command", "loss"} <= set(about)
    assert about["accuracy_by_rounds"]["3"] == pytest.approx(about["accuracy"])
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
