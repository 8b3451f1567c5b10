"""The network that comes with capsjax."""

import json
import re
import runpy
import shutil

import jax
import numpy as np
import pytest
from PIL import Image, ImageDraw
from places import ROOT

import capsjax
from capsjax import predict
from capsjax.analysis.images import load_test_set
from capsjax.analysis.verdicts import judge
from capsjax.data import load

MEGABYTES = 2.0


@pytest.fixture(scope="module")
def run():
    return capsjax.load_pretrained("mnist")


def test_it_is_small_and_reads_digits(run):
    files = [path for path in run.workdir.path.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MEGABYTES * 1e6
    digits = load("mnist", "test").subset(np.arange(64))
    assert (run.predict(digits.image).label == digits.label).mean() > 0.95


def photograph(seed):
    """Light and shade of many sizes, darker to the edge, as in a photograph."""
    rng = np.random.default_rng(seed)
    total = np.zeros((96, 128))
    for size in (2, 4, 8, 16, 32):
        patches = rng.random((max(1, size * 3 // 4), size), np.float32)
        patches = Image.fromarray(patches).resize((128, 96), Image.Resampling.BICUBIC)
        total += np.asarray(patches) / size**0.5
    total -= np.abs(np.linspace(-1, 1, 128)) + np.abs(np.linspace(-1, 1, 96))[:, None]
    total -= total.min()
    return Image.fromarray((255 * total / total.max()).astype(np.uint8))


def strokes(width, ink, ground):
    """A seven drawn by hand."""
    picture = Image.new("L", (280, 280), ground)
    line = [(70, 66), (200, 66), (180, 110), (158, 160), (140, 225)]
    ImageDraw.Draw(picture).line(line, fill=ink, width=width, joint="curve")
    return picture


def test_a_photograph_is_no_digit_however_long_a_capsule_is(run, tmp_path, capsys):
    pictures = {
        "photograph.png": photograph(10),
        "thin.png": strokes(8, 30, 250),
        "thick.png": strokes(40, 255, 0),
    }
    for name, picture in pictures.items():
        picture.save(tmp_path / name)
    paths = [str(tmp_path / name) for name in pictures]
    assert predict.main(["--json", *paths]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["verdict"] for one in told] == ["no digit", "7", "7"]
    assert [one["num_present"] for one in told] == [0, 1, 1]
    first = told[0]
    assert first["lengths"][first["label"]] > 0.7
    assert first["drawing_error"] > first["drawing_limit"] > told[1]["drawing_error"]
    assert first["drawing_limit"] == round(run.drawing_limit, 4)
    assert predict.main(paths) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[1].endswith("no digit (capsule 0 draws something else)")
    assert rows[2].endswith("  7")
    # From Python.
    image = np.stack([run.preparation.apply(path) for path in paths])
    assert run.predict(image).present.any(-1).all()
    assert run.present(image).any(-1).tolist() == [False, True, True]
    assert run.present(image[1]).argmax(-1) == 7


def test_two_digits_are_drawn_by_both_capsules(run):
    image = load("mnist", "test").image[:2].max(0)  # A 7 and a 2.
    prediction = run.predict(image)
    activation = np.full((1, 10), 0.1, np.float32)
    activation[0, [7, 2]] = 0.6, 0.5
    prediction = prediction._replace(activation=activation)
    both = run.draw(np.repeat(prediction.pose, 2, 0), np.array([7, 2])).max(0)
    x = image.astype(np.float64) / 255
    expected = ((x - both) ** 2).sum() / ((x - x.mean()) ** 2).sum()
    error = run.drawing_error(image, prediction)
    np.testing.assert_allclose(error, [expected], rtol=1e-4)


@pytest.mark.parametrize("limit", [None, "0.7", True, [1], float("nan")])
def test_without_a_limit_lengths_alone_decide(limit, tmp_path):
    folder = shutil.copytree(
        capsjax.load_pretrained("mnist").workdir.path, tmp_path / "m"
    )
    result = json.loads((folder / "result.json").read_text())
    for split in ("validation", "validation_of_last"):
        result[split]["drawing_limit"] = limit
    if limit is None:
        result["validation"] = "from elsewhere"
        del result["validation_of_last"]
    (folder / "result.json").write_text(json.dumps(result))
    run = capsjax.load_run(folder)
    assert run.drawing_limit is None
    picture = tmp_path / "photograph.png"
    photograph(10).save(picture)
    answer = judge(run, str(picture), invert=None)
    assert answer["verdict"] == "0"
    assert "drawing_error" not in answer
    assert run.present(run.preparation.apply(picture)).sum() == 1


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(ValueError, match=r"no network 'minst' .*: choose from mnist"):
        capsjax.load_pretrained("minst")


def test_predict_needs_no_folder(tmp_path, capsys):
    digits = load("mnist", "test")
    Image.fromarray(np.pad(digits.image[0, ..., 0], 8)).save(tmp_path / "digit.png")
    Image.new("L", (40, 30), 255).save(tmp_path / "empty.png")
    paths = [str(tmp_path / name) for name in ("digit.png", "empty.png")]
    assert predict.main(["--json", *paths]) == 0
    told = json.loads(capsys.readouterr().out)
    verdicts = [one["verdict"] for one in told]
    assert verdicts == [str(digits.label[0]), "no digit"]


def test_the_card_states_its_results(run):
    card = (run.workdir.path / "README.md").read_text()
    for split in ("test", "validation"):
        (row,) = re.findall(rf"^\| {split} accuracy \| (.*) \|$", card, re.M)
        measured = run.result[split]
        if measured is None:
            assert row == "not measured"
        else:
            assert row.startswith(f"{measured['accuracy']:.2%}, loss ")
    assert f"recipe | mnist:narrow, seed {run.config.seed}, step {run.step}" in card


@pytest.mark.variant
def test_rounding_to_float16_changes_no_label(run):
    """A network of float32 weights that float16 rounds to these has the same labels."""
    generator = np.random.default_rng(0)

    def unrounded(array):
        half = np.asarray(array).astype(np.float16)
        within = generator.uniform(-0.5, 0.5, array.shape)
        other = (array + within * np.spacing(np.abs(half))).astype(np.float32)
        return np.where(other.astype(np.float16) == half, other, array)

    digits = load_test_set([run], None)
    labels = run.predict(digits.image).label
    other = capsjax.load_pretrained("mnist")
    other.params = jax.tree.map(unrounded, run.params)
    np.testing.assert_array_equal(other.predict(digits.image).label, labels)
    # The result was measured with the weights before they were rounded.
    if (measured := run.result["test"]) is not None:
        assert np.mean(labels == digits.label) == pytest.approx(measured["accuracy"])


@pytest.mark.variant
def test_the_limit_is_that_of_the_validation_images_and_spares_the_test_images(run):
    script = runpy.run_path(str(ROOT / "docs" / "figures" / "drawing_limit.py"))
    assert run.drawing_limit == pytest.approx(script["measure"](run), rel=1e-4)
    digits = load_test_set([run], None)
    prediction = run.predict(digits.image)
    is_lost = prediction.present.any(-1) & ~run.present(digits.image).any(-1)
    assert is_lost.mean() < 0.003
