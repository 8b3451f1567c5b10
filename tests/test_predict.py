"""A person's own images, made such as MNIST's were."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from capsjax import load_run, predict
from capsjax.run import Prediction


def drawing(size=(300, 200), box=(200, 20, 260, 160), width=4, ground="white"):
    """An ellipse, off centre."""
    image = Image.new("RGB", size, ground)
    ink = "black" if ground == "white" else "white"
    ImageDraw.Draw(image).ellipse(box, outline=ink, width=width)
    return image


def test_a_folder_that_can_t_be_looked_into_is_told(capsys):
    assert predict.main(["--workdir", "x" * 5000, "image.png"]) == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("capsjax.predict: error: ")
    assert "name too long" in told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lengths", "verdict"),
    [
        ({7: 0.9}, "7"),
        ({7: 0.4}, "no digit"),
        ({7: 0.9, 2: 0.6}, "7, or two digits? (7 and 2)"),
    ],
)
def test_lengths_decide_how_many_digits_there_are(tiny_run, lengths, verdict):
    length = np.full((1, 10), 0.05, np.float32)
    for label, value in lengths.items():
        length[0, label] = value
    pose = np.zeros((1, 10, 4), np.float32)
    told = predict.verdicts(
        load_run(tiny_run), Prediction(length.argmax(-1), length, pose)
    )
    assert told[0]["verdict"] == verdict
    assert next(iter(told[0]["lengths"])) == told[0]["label"] == "7"


@pytest.mark.slow
def test_the_command_prints_a_table_or_json(tiny_run, tmp_path, capsys):
    paths = [str(tmp_path / f"{name}.png") for name in "ab"]
    for path in paths:
        drawing().save(path)
    assert predict.main(["--workdir", str(tiny_run), *paths]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("image")
    assert [line.split()[0] for line in lines] == paths
    assert predict.main(["--workdir", str(tiny_run), "--json", *paths]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["file"] for one in told] == paths
    assert len(told[0]["lengths"]) == 10


@pytest.mark.slow
def test_errors_name_the_file(tiny_run, tmp_path, capsys):
    (tmp_path / "text.png").write_text("no image")
    drawing().save(tmp_path / "good.png")
    good = str(tmp_path / "good.png")
    for name, message in (
        ("text.png", "not an image"),
        ("missing.png", "No such file"),
    ):
        path = str(tmp_path / name)
        assert predict.main(["--workdir", str(tiny_run), path, good]) == 1
        out, error = capsys.readouterr()
        assert path in error
        assert message in error
        assert good in out  # One bad image does not take away the others' answers.
    assert predict.main(["--workdir", "nowhere", good]) == 1
    assert "nowhere holds no run" in capsys.readouterr().err


@pytest.mark.slow
def test_where_the_ground_is_not_plain_the_longer_capsule_counts(tiny_run, tmp_path):
    image = drawing(ground="white").point(lambda value: 128 if value > 128 else 60)
    image.save(tmp_path / "grey.png")
    run = load_run(tiny_run)
    both = [run.preparation.apply(image, invert=invert) for invert in (True, False)]
    longest = run.predict(np.stack(both)).length.max()
    told = predict._answer(run, str(tmp_path / "grey.png"), invert=None)
    assert max(told["lengths"].values()) == pytest.approx(longest, abs=1e-4)
