"""What is printed, kept and drawn of 120 classes whose names are hostile."""

import io
import json
import sys

import numpy as np
import pytest
from PIL import Image
from tiny import idx_bytes, tiny

from capsjax import evaluate, load_run, train
from capsjax.analysis import figures
from capsjax.analysis.evaluation import count_confusions
from capsjax.data import Dataset, load, loading
from capsjax.data.augment import NoAugmentation
from capsjax.runtime.console import OutputError
from capsjax.storage.files import write_json
from capsjax.storage.workdir import Workdir

NUM_CLASSES = 120


@pytest.fixture(scope="module")
def run_path(tmp_path_factory):
    """A run of one epoch on noise; each class has two test images, sorted by class."""
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    for prefix, each in (("train", 3), ("t10k", 2)):
        label = np.repeat(np.arange(NUM_CLASSES), each)
        image = rng.integers(0, 256, (len(label), 24, 24))
        for name, array in (("images-idx3", image), ("labels-idx1", label)):
            (folder / f"{prefix}-{name}-ubyte").write_bytes(idx_bytes(array))
    config = tiny()
    config.num_epochs = 1
    config.data.name, config.data.num_validation = str(folder), NUM_CLASSES
    config.data.num_train, config.augmentation = 0, NoAugmentation()
    path = folder / "run"
    train.train(config, Workdir(path))
    about = json.loads((path / "dataset.json").read_text())
    about["class_names"] = [f"{k} $x\x1b[31m\n\udce9" for k in range(NUM_CLASSES)]
    write_json(path / "dataset.json", about)
    return path


@pytest.fixture
def test_set(run_path):
    """The test images, with the names that the run has."""
    dataset = load(str(run_path.parent), "test")
    names = load_run(run_path).class_names
    return Dataset(dataset.name, dataset.image, dataset.label, names)


@pytest.mark.variant
def test_all_is_bounded_and_harmless(run_path, test_set, monkeypatch, capsys):
    monkeypatch.setattr(loading, "load", lambda *_, **__: test_set)
    assert evaluate.main(["--workdir", str(run_path)]) == 0
    out = capsys.readouterr().out
    # 17 of them are the measures of the routing, for any number of classes.
    assert len(out.splitlines()) < 40 + 17
    assert max(map(len, out.splitlines())) < 200
    assert "the 10 of 120 classes that were found least:" in out
    assert r" as " in out.split("taken for others most often:")[1]
    assert r"$x\x1b[31m\n\xe9" in out
    assert not {"\x1b", "\udce9"} & set(out)
    about = json.loads((run_path / "figures" / "evaluation.json").read_text())
    assert about["confusion"] is None
    message = about["commonest_confusions"]
    wrong = round(240 * (1 - about["accuracy"]))
    assert sum(one["images"] for one in message) == wrong > 200
    assert [one["images"] for one in message] == sorted(
        (one["images"] for one in message), reverse=True
    )


@pytest.mark.slow
def test_an_ascii_terminal_gets_it_too(run_path, test_set, monkeypatch):
    class Ascii(io.StringIO):
        encoding = property(lambda self: "ascii")

    monkeypatch.setattr(loading, "load", lambda *_, **__: test_set)
    monkeypatch.setattr("sys.stdout", Ascii())
    assert evaluate.main(["--workdir", str(run_path), "--no-figures"]) == 0
    assert r"$x\x1b[31m\n\xe9" in sys.stdout.getvalue()


@pytest.mark.variant
def test_what_was_computed_is_kept_where_nobody_reads_it(
    run_path, test_set, monkeypatch, capsys
):
    monkeypatch.setattr(loading, "load", lambda *_, **__: test_set)
    kept = run_path / "figures" / "evaluation.json"
    kept.unlink(missing_ok=True)
    printed = []

    def answer(*lines):
        printed.append(lines)
        if len(printed) > 1:  # The reader goes away after the first line.
            raise OutputError("can't write the results: Broken pipe")

    monkeypatch.setattr(evaluate, "answer", answer)
    assert evaluate.main(["--workdir", str(run_path)]) == 1
    error = "capsjax.evaluate: error: can't write the results: Broken pipe\n"
    assert capsys.readouterr().err.endswith(error)
    assert json.loads(kept.read_text())["data"]["num_images"] == 240
    drawn = list(kept.parent.glob("*.png"))
    assert {"confusion", "samples", "mistakes"} < {path.stem for path in drawn}
    assert len(drawn) <= 30
    for path in drawn:
        with Image.open(path) as image:
            assert max(image.size) < 4000


def test_figures_show_all_parts_of_a_sorted_set():
    label = np.repeat(np.arange(NUM_CLASSES, dtype=np.int32), 2)
    names = tuple(map(str, range(NUM_CLASSES)))
    test_set = Dataset("sorted", np.zeros((240, 2, 2, 1), np.uint8), label, names)
    index = figures._some(test_set, 30)
    assert len(set(test_set.label[index])) == 30
    mixed = test_set.subset(np.arange(240)[::-1])
    np.testing.assert_array_equal(figures._some(mixed, 3), np.arange(3))


def test_confusion_counts_what_was_taken_for_what():
    label = np.array([0, 2, 2, 1], np.int32)
    length = np.array([[9, 1, 1], [1, 9, 1], [1, 9, 1], [1, 9, 1]], np.float32)
    expected = [[1, 0, 0], [0, 1, 0], [0, 2, 0]]
    np.testing.assert_array_equal(count_confusions(label, length), expected)
    several = np.eye(3, dtype=bool)[label]
    np.testing.assert_array_equal(count_confusions(several, length), expected)
