"""Training from Python: on images in memory, with the run as the result."""

import dataclasses
import json

import numpy as np
import pytest
from bars import bars
from places import blocks
from tiny import tiny

import capsjax
from capsjax import config as configs
from capsjax.data import Dataset, DatasetError
from capsjax.data.augment import scale_to_unit
from capsjax.storage.files import WorkdirError
from capsjax.training import evaluation, train
from capsjax.training.sets import require_datasets

pytestmark = pytest.mark.usefixtures("without_estimate")

SETS = bars(45), bars(16)


def recipe(**fields):
    config = dataclasses.replace(tiny(), **fields)
    config.data = configs.Data(num_validation=-1)
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, and the records that it gave."""
    records = []
    path = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "_FEWEST_DRAWN", 1)
        patch.setattr(evaluation, "PRESENT", 0.0)  # Ten steps make no long capsules.
        return train(recipe(), path, SETS, on_metrics=records.append), records


def test_the_run_is_what_load_run_opens(trained):
    run, _ = trained
    loaded = capsjax.load_run(run.workdir.path)
    image = SETS[1].image
    np.testing.assert_array_equal(
        run.predict(image).activation, loaded.predict(image).activation
    )
    assert run.class_names == ("a", "b", "c")
    assert run.result == loaded.result == json.loads(run.workdir.result.read_text())
    assert run.result["test"]["step"] == run.step


def test_on_metrics_gets_each_record_of_the_file(trained):
    run, records = trained
    assert records == run.workdir.read_metrics()
    kinds = [record["kind"] for record in records]
    assert kinds == ["train", "validation", "train", "validation", "test"]


def test_each_validation_has_a_limit_for_drawings_and_the_run_its_best_one(trained):
    run, records = trained
    limits = {
        record["step"]: record["drawing_limit"]
        for record in records
        if record["kind"] == "validation"
    }
    assert len(limits) == 2
    assert all("drawing_limit" not in one for one in records if one["kind"] == "test")
    assert run.drawing_limit == run.result["validation"]["drawing_limit"]
    assert run.drawing_limit == limits[run.step] > 0


def test_features_are_the_capsules_of_the_network(trained):
    run, _ = trained
    image = SETS[1].image[:3]
    features = run.features(image)
    seen = scale_to_unit(image)
    primary = run.model.apply(run.params, seen, method=run.model.primary)
    routed = run.model.apply(run.params, seen, method=run.model.encode)
    expected = np.asarray(primary).reshape(3, -1, 8)
    np.testing.assert_allclose(features.primary, expected, rtol=2e-5, atol=1e-7)
    for name in ("pose", "activation"):
        values = getattr(features, name), getattr(routed, name)
        np.testing.assert_allclose(*values, rtol=2e-5, atol=1e-7)
    one = run.features(image[0])
    np.testing.assert_allclose(one.pose, features.pose[:1], rtol=2e-5, atol=1e-7)
    with pytest.raises(TypeError, match="images must be uint8"):
        run.features(seen)


def test_a_class_is_present_from_one_half_on(trained):
    run, _ = trained
    prediction = run.predict(SETS[1].image[:2])
    prediction = prediction._replace(activation=np.array([[0.5, 0.7, 0.49]]))
    assert prediction.present.tolist() == [[True, True, False]]


def test_the_labels_capsules_alone_are_drawn_from(trained):
    """Tweaked poses are drawn as they are."""
    run, _ = trained
    pose, label = run.predict(SETS[1].image[:3]).pose, np.array([2, 0, 1])
    own = pose[np.arange(3), label]
    np.testing.assert_array_equal(run.draw(own, label), run.draw(pose, label))
    moved = capsjax.tweak_pose(own[0]).reshape(-1, 4)
    assert run.draw(moved, np.full(44, 2)).shape == (44, 28, 28, 1)
    for poses, labels, message in (
        (pose[:, :2], label, r"pose must be \[n, 3, 4\], or \[n, 4\] .*\(3, 2, 4\)"),
        (own[0], label, r"pose must be .* got shape \(4,\)"),
        (pose, label[:2], r"label must be 3 integers, .* got int64 of shape \(2,\)"),
        (pose, label / 1, "label must be 3 integers, one for each pose; got float64"),
        (pose, label + 1, "label must be from 0 to 2; got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            run.draw(poses, labels)


def test_the_page_draws_what_each_component_means(trained):
    (block,) = [one for one in blocks("your-code.md") if "tweak_pose" in one]
    names = {"run": trained[0], "images": SETS[1].image}
    exec(block, names)
    assert names["drawn"].shape == (44, 28, 28, 1)


@pytest.mark.slow
def test_an_exception_in_on_metrics_ends_the_run_which_resumes(trained, tmp_path):
    whole, _ = trained

    def stop(record):
        if record["step"] == 10:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        train(recipe(), tmp_path, SETS, on_metrics=stop)
    resumed = train(recipe(), tmp_path, SETS)
    assert resumed.result["test"] == whole.result["test"]


def test_other_images_in_the_same_folder_are_refused(trained):
    run, _ = trained
    others = bars(45, seed=1), bars(16)
    with pytest.raises(WorkdirError, match="is of other train images: pixels, labels"):
        train(recipe(), run.workdir.path, others)


def test_images_to_validate_are_those_given(tmp_path):
    sets = bars(40), bars(12, seed=2), bars(16)
    run = train(recipe(num_epochs=1), tmp_path, sets)
    about = json.loads(run.workdir.dataset.read_text())["splits"]
    sizes = {name: one["num_images"] for name, one in about.items()}
    assert sizes == {"train": 40, "validation": 12, "test": 16}


def changed(**fields):
    return dataclasses.replace(bars(16), **fields)


several = np.eye(3, dtype=bool)[bars(16).label]
WRONG = [
    ((bars(40),), r"\(train, validation, test\), .* got \(Dataset\)"),
    (
        (bars(40), changed(image=np.zeros((16, 20, 20, 1), np.uint8))),
        r"the test images 'bars' have image_shape \(20, 20, 1\), .* \(28, 28, 1\)",
    ),
    ((bars(40), changed(label=several)), "'bars' have is_multi_label True, .* False"),
    (
        (bars(40), changed(class_names=("a", "c", "b"))),
        "'bars' have the classes a, c, b, and the training images have a, b, c",
    ),
]


@pytest.mark.parametrize(("datasets", "message"), WRONG)
def test_sets_that_are_not_alike_are_refused(tmp_path, datasets, message):
    with pytest.raises(DatasetError, match=message) as caught:
        train(recipe(), tmp_path / "run", datasets)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("datasets", "got"),
    [(SETS[0], "Dataset"), ((SETS[0], SETS[0].image), r"\(Dataset, ndarray\)")],
)
def test_what_is_no_data_set_is_named(datasets, got):
    with pytest.raises(DatasetError, match=f"each a capsjax.data.Dataset, got .*{got}"):
        require_datasets(datasets)


def test_the_last_classes_may_be_missing_from_the_test(tmp_path):
    two = Dataset("bars", bars(16, 2).image, bars(16, 2).label, ("a", "b"))
    run = train(recipe(num_epochs=1), tmp_path, (bars(45), two))
    assert run.class_names == ("a", "b", "c")


def test_memory_is_estimated_without_data():
    model = tiny().model.clone(image_shape=(28, 28, 1), num_classes=10)
    small, large = (capsjax.memory_estimate(model, n) for n in (8, 80))
    assert small.state == large.state > 0
    assert 5 < large.step / small.step < 10
    assert large.data == 2 * 80 * (28 * 28 + 4) / 1e9
    with pytest.raises(ValueError, match="batch must be a positive multiple of the 4"):
        capsjax.memory_estimate(model, 7)
