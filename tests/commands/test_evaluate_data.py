"""Which images a run is evaluated on: its own, wherever they lie, or others."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image
from places import FIRST_EDITION
from tiny import idx_bytes

from capsjax import evaluate, train
from capsjax.analysis import figures, images
from capsjax.analysis.scores import class_scores
from capsjax.data import Dataset, load
from capsjax.storage.workdir import Workdir

pytestmark = pytest.mark.usefixtures("without_estimate")


@pytest.fixture
def run_path(tmp_path, monkeypatch):
    """A run on photos that are beside it, and its folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(FIRST_EDITION / "photos", "photos")
    return shutil.copytree(FIRST_EDITION / "folder", tmp_path / "run")


def evaluated(run_path, capsys, *arguments):
    """The exit code of the command, its output and its errors."""
    code = evaluate.main(["--workdir", str(run_path), "--no-figures", *arguments])
    return code, *capsys.readouterr()


def test_a_run_whose_photos_have_moved_names_where_it_looked(
    run_path, tmp_path, capsys
):
    pathlib.Path("photos").rename("moved")
    code, _, err = evaluated(run_path, capsys)
    assert code == 1
    assert f"{tmp_path}/photos cannot be read" in err
    assert err.endswith("If the images are elsewhere: --data FOLDER\n")


@pytest.mark.slow
def test_moved_photos_are_the_test_images_that_they_were(run_path, capsys):
    accuracy = json.loads((run_path / "result.json").read_text())["test"]["accuracy"]
    pathlib.Path("photos").rename("moved")
    code, out, err = evaluated(run_path, capsys, "--data", "moved/")
    assert (code, err) == (0, "")
    assert "9 test images of moved" in out
    assert f"accuracy {accuracy:.2%}" in out


@pytest.mark.slow
def test_moved_photos_go_on_with_the_training(run_path):
    pathlib.Path("photos").rename("moved")
    config = Workdir(run_path).read_config()
    config.data.path, config.num_epochs = "./moved/", 3
    assert train.train(config, Workdir(run_path)).result["epochs_done"] == 3
    assert Workdir(run_path).read_config().data.path == "./moved/"
    about = json.loads((run_path / "dataset.json").read_text())
    assert about["split_rule"] == "first_edition"
    assert set(about["splits"]["train"]) == {"num_images", "checksum", "files"}
    # From now on by the checksum.
    config.data.path, config.num_epochs = str(pathlib.Path("moved").resolve()), 4
    assert train.train(config, Workdir(run_path)).result["epochs_done"] == 4


@pytest.mark.variant
def test_the_test_split_of_another_folder_is_evaluated(run_path, capsys):
    for split, names in (
        ("train", ("blue", "green", "red")),
        ("Test", ("red", "blue")),
    ):
        for name in names:
            shutil.copytree(f"photos/{name}", f"other/{split}/{name}")
    code, out, err = evaluated(run_path, capsys, "--data", "other")
    assert (code, err) == (0, "")
    assert "24 test images of other" in out
    rows = {line.split()[0]: line.split()[1] for line in out.splitlines() if line}
    assert (rows["blue"], rows["green"], rows["red"]) == ("12", "0", "12")


@pytest.mark.slow
def test_all_images_of_a_folder_without_a_test_are_evaluated(run_path, capsys):
    # Fewer classes, so that the labels must be found by the classes' names.
    for number, name in enumerate(("green", "red")):
        shutil.copytree(f"photos/{name}", f"other/{name}")
        pathlib.Path(f"other/{name}/00.png").rename(f"other/{name}/new{number}.png")
    code, out, err = evaluated(run_path, capsys, "--data", "other")
    assert code == 0
    assert err.startswith(
        "warning: other has no folder for the test: all of its images"
    )
    assert "24 test images of other" in out
    rows = {line.split()[0]: line.split()[1] for line in out.splitlines() if line}
    assert (rows["blue"], rows["green"], rows["red"]) == ("0", "12", "12")


def test_other_classes_are_refused_in_a_line(run_path, capsys):
    shutil.copytree("photos", "other")
    pathlib.Path("other/red").rename("other/pink")
    code, out, err = evaluated(run_path, capsys, "--data", "other")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert "its classes are not those that were learnt there, which have no pink" in err


def test_idx_archives_are_evaluated_by_a_run_on_photos(run_path, capsys):
    pathlib.Path("digits").mkdir()
    for prefix in ("train", "t10k"):
        for name, array in (
            ("images-idx3", np.zeros((6, 16, 16))),
            ("labels-idx1", np.arange(6) % 3),
        ):
            path = pathlib.Path("digits", f"{prefix}-{name}-ubyte")
            path.write_bytes(idx_bytes(array))
    code, _, err = evaluated(run_path, capsys, "--data", "digits")
    assert code == 1
    assert "which have no 0, 1, 2" in err


@pytest.mark.slow
def test_labels_are_those_of_the_run_by_name(tiny_run):
    run = evaluate.load_run(tiny_run)
    digits = load("mnist", "test").subset(np.arange(30))
    turned = tuple(reversed(digits.class_names))
    other = Dataset("other", digits.image, 9 - digits.label, turned)
    same = images._with_classes_of(run, other)
    assert same.class_names == digits.class_names
    np.testing.assert_array_equal(same.label, digits.label)
    several = Dataset(
        "other", digits.image, np.eye(10, dtype=bool)[other.label], turned
    )
    np.testing.assert_array_equal(
        images._with_classes_of(run, several).label,
        np.eye(10, dtype=bool)[digits.label],
    )


@pytest.mark.slow
def test_pictures_are_evaluated_by_a_run_on_mnist(tiny_run, tmp_path, capsys):
    digits = load("mnist", "test").subset(np.arange(40))
    for index, (image, label) in enumerate(
        zip(digits.image, digits.label, strict=True)
    ):
        path = tmp_path / "pictures" / str(label) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)
    code, out, _ = evaluated(tiny_run, capsys, "--data", str(tmp_path / "pictures"))
    assert code == 0
    assert "40 test images of" in out
    run = evaluate.load_run(tiny_run)
    right = (run.predict(digits.image).label == digits.label).mean()
    assert f"accuracy {right:.2%}" in out


# Scores


def test_precision_recall_and_f1_are_those_of_their_definitions():
    confusion = np.array([[6, 2, 0, 0], [1, 3, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0]])
    scores = class_scores(confusion)
    assert scores.num_images.tolist() == [8, 4, 2, 0]
    np.testing.assert_allclose(scores.precision, [6 / 9, 3 / 5, np.nan, np.nan])
    np.testing.assert_allclose(scores.recall, [6 / 8, 3 / 4, 0, np.nan])
    precision, recall = scores.precision[:2], scores.recall[:2]
    f1 = 2 * precision * recall / (precision + recall)
    np.testing.assert_allclose(scores.f1, [*f1, 0, np.nan])
    assert scores.balanced_accuracy == pytest.approx((6 / 8 + 3 / 4 + 0) / 3)


@pytest.mark.parametrize(
    ("counts", "is_uneven"), [((10, 10), False), ((11, 10), False), ((12, 10), True)]
)
def test_classes_are_uneven_if_they_differ_by_more_than_a_tenth(counts, is_uneven):
    assert class_scores(np.diag(counts)).is_uneven == is_uneven


@pytest.mark.slow
def test_the_scores_of_each_class_are_printed_and_kept(run_path, capsys, monkeypatch):
    monkeypatch.setattr(figures, "draw", lambda *_: [])  # They take seconds.
    shutil.copytree("photos", "other")
    for number in range(6):
        pathlib.Path(f"other/green/{number:02}.png").unlink()
    arguments = ["--workdir", str(run_path), "--data", "other"]
    assert evaluate.main(arguments) == 0
    out = capsys.readouterr().out
    path = run_path / "figures" / "other" / "evaluation.json"
    about = json.loads(path.read_text())
    confusion = np.array(about["confusion"])
    recall = np.diag(confusion) / confusion.sum(1)
    assert [one["num_images"] for one in about["classes"].values()] == [12, 6, 12]
    assert [one["recall"] for one in about["classes"].values()] == recall.tolist()
    assert about["balanced_accuracy"] == pytest.approx(recall.mean())
    assert f"balanced accuracy {recall.mean():.2%}" in out
    [row] = [line for line in out.splitlines() if line.startswith("green")]
    assert f"{recall[1]:.2%}" in row.split()


@pytest.mark.variant
def test_a_table_of_image_files_is_evaluated(run_path, capsys):
    lines = ["path,label"]
    for number, name in enumerate(("green", "red")):
        shutil.copytree(f"photos/{name}", f"other/{number}")
        lines += [f"{number}/{file},{name}" for file in os.listdir(f"other/{number}")]
    table = pathlib.Path("other/labels.csv")
    table.write_text("\n".join(lines))
    code, out, err = evaluated(run_path, capsys, "--data", str(table))
    assert code == 0
    assert err.startswith(
        f"warning: {table} has no row for the test: all of its images"
    )
    assert f"24 test images of {table}" in out
    lines = [lines[0] + ",split", *(f"{line},Test" for line in lines[1:11])]
    table.write_text("\n".join(lines))
    code, out, err = evaluated(run_path, capsys, "--data", str(table))
    assert (code, err) == (0, "")
    assert f"10 test images of {table}" in out
