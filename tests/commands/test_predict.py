"""Classifies a person's own images, made as MNIST's were."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from capsjax import ROUTINGS, CapsNet, load_run, predict
from capsjax import config as configs
from capsjax.analysis.verdicts import judge, numbers_name, verdicts
from capsjax.data.preparation import Preparation
from capsjax.storage.prediction import Prediction
from capsjax.storage.run import Run


def drawing(size=(300, 200), box=(200, 20, 260, 160), width=4, ground="white"):
    """An ellipse, off centre."""
    image = Image.new("RGB", size, ground)
    ink = "black" if ground == "white" else "white"
    ImageDraw.Draw(image).ellipse(box, outline=ink, width=width)
    return image


def test_a_folder_that_can_t_be_looked_into_is_reported(capsys):
    assert predict.main(["--workdir", "x" * 5000, "image.png"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("capsjax.predict: error: ")
    assert "name too long" in line


def verdict_of(lengths, *, data="mnist", num_shown=1, routing="dynamic"):
    """The verdict on an image whose ten class capsules have these activations."""
    length = np.full((1, 10), 0.05, np.float32)
    for label, value in lengths.items():
        length[0, label] = value
    run = object.__new__(Run)  # without a folder, and without weights
    run.class_names, run.num_shown = tuple("0123456789"), num_shown
    run.model = CapsNet(routing=ROUTINGS[routing]())
    run.config = configs.Config(data=configs.Data(data))
    pose = np.zeros((1, 10, 4), np.float32)
    (answer,) = verdicts(run, Prediction(length.argmax(-1), length, pose))
    numbers = list(answer[numbers_name(answer)].values())
    assert numbers == sorted(numbers)[::-1]
    return answer["verdict"]


def test_a_loss_that_compares_classes_does_not_decide_whether_one_is_there():
    for activations in ({7: 0.9}, {7: 0.4}, {7: 0.9, 2: 0.6}):
        assert verdict_of(activations, routing="em") == "7"
    assert verdict_of({7: 0.9, 2: 0.6}, routing="em", num_shown=None) == "7 and 2"
    assert verdict_of({7: 0.4}, routing="em", num_shown=None) == "no digit"


@pytest.mark.parametrize(
    ("data", "noun"),
    [
        *[("mnist", "digit"), ("expanded_mnist", "digit"), ("svhn_cropped", "digit")],
        # Ten classes that are called 0 to 9 may be anything.
        *[("archives/fashion", "class"), ("image_folder", "class")],
    ],
)
def test_lengths_decide_how_many_classes_there_are(data, noun):
    assert verdict_of({7: 0.9}, data=data) == "7"
    assert verdict_of({7: 0.4}, data=data) == f"no {noun}"
    plural = {"digit": "digits", "class": "classes"}[noun]
    two = f"7, or two {plural}? (7 and 2)"
    assert verdict_of({7: 0.9, 2: 0.6}, data=data) == two


@pytest.mark.parametrize(
    ("lengths", "verdict"),
    [
        ({}, "no digit"),
        ({7: 0.49}, "no digit"),
        ({7: 0.5}, "7"),
        ({7: 0.6, 2: 0.9}, "2 and 7"),
        ({7: 0.6, 2: 0.9, 1: 0.8}, "2 and 1"),
    ],
)
def test_of_pairs_those_that_are_present_are_named(lengths, verdict):
    assert verdict_of(lengths, data="multi_mnist", num_shown=2) == verdict


def test_where_the_number_differs_all_that_are_present_are_named():
    assert verdict_of({7: 0.6, 2: 0.9, 1: 0.8}, num_shown=None) == "2 and 1 and 7"


@pytest.mark.parametrize(
    ("length", "drawing", "reason"),
    [
        (0.4968, {}, "  no digit (none reaches 0.5)"),
        (0.9, {"drawing_error": 0.8}, "  no digit (capsule 3 draws something else)"),
    ],
)
def test_the_table_says_why_a_picture_shows_nothing(length, drawing, reason, capsys):
    entry = {"file": "a.png", "verdict": "no digit", "lengths": {"3": length}}
    with predict._table(["a.png"]) as write:
        write(entry | {"num_present": 0} | drawing)
    _, line = capsys.readouterr().out.splitlines()
    assert line.endswith(reason)


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
    answer = json.loads(capsys.readouterr().out)
    assert [one["file"] for one in answer] == paths
    assert len(answer[0]["lengths"]) == 10


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
    run.preparation = Preparation.of("mnist", run.image_shape)
    both = [run.preparation.apply(image, invert=invert) for invert in (True, False)]
    longest = run.predict(np.stack(both)).length.max()
    answer = judge(run, str(tmp_path / "grey.png"), invert=None)
    assert max(answer["lengths"].values()) == pytest.approx(longest, abs=1e-4)


@pytest.mark.slow
def test_a_folder_stands_for_the_pictures_within(tiny_run, tmp_path, capsys):
    for name in ("b/2.png", "b/10.png", "a/1.png", "a/.hidden/3.png", "a/.4.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        drawing().save(tmp_path / "in" / name)
    (tmp_path / "in" / "a" / "Thumbs.db").write_text("of a desktop")
    (tmp_path / "in" / "empty").mkdir()
    drawing().save(tmp_path / "alone.png")
    given = [str(tmp_path / name) for name in ("in", "alone.png")]
    assert predict.main(["--workdir", str(tiny_run), "--json", *given]) == 0
    files = [one["file"] for one in json.loads(capsys.readouterr().out)]
    inside = [f"{tmp_path}/in/{name}" for name in ("a/1.png", "b/10.png", "b/2.png")]
    assert files == [*inside, given[1]]
    empty = str(tmp_path / "in" / "empty")
    assert predict.main(["--workdir", str(tiny_run), "--json", empty, given[1]]) == 1
    printed = capsys.readouterr()
    assert [one["file"] for one in json.loads(printed.out)] == given[1:]
    assert f"the folder {empty} has no pictures" in printed.err


@pytest.mark.slow
@pytest.mark.parametrize("is_json", [False, True])
def test_what_there_is_stays_after_ctrl_c(
    tiny_run, tmp_path, capsys, monkeypatch, is_json
):
    paths = [str(tmp_path / f"{name}.png") for name in "abc"]
    for path in paths:
        drawing().save(path)
    answer, printed = judge, []

    def interrupted(run, path, **options):
        printed.append(capsys.readouterr().out)
        if path == paths[2]:
            raise KeyboardInterrupt
        return answer(run, path, **options)

    monkeypatch.setattr(predict, "judge", interrupted)
    options = ["--json"] * is_json
    assert predict.main(["--workdir", str(tiny_run), *options, *paths]) == 130
    # Each answer was there before the next picture was read.
    assert [paths[0] in printed[1], paths[1] in printed[2]] == [True, True]
    out = "".join(printed) + capsys.readouterr().out
    if is_json:
        assert [one["file"] for one in json.loads(out)] == paths[:2]
    else:
        assert [line.split()[0] for line in out.splitlines()[1:]] == paths[:2]


@pytest.mark.slow
def test_an_array_of_no_answers_is_valid_too(tiny_run, tmp_path, capsys):
    missing = str(tmp_path / "missing.png")
    assert predict.main(["--workdir", str(tiny_run), "--json", missing]) == 1
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.slow
def test_what_is_not_read_of_a_file_is_reported_beside_the_answer(
    tiny_run, tmp_path, capsys
):
    path = str(tmp_path / "moving.gif")
    drawing().save(path, save_all=True, append_images=[drawing(width=9)])
    assert predict.main(["--workdir", str(tiny_run), "--json", path]) == 0
    printed = capsys.readouterr()
    assert len(json.loads(printed.out)) == 1
    assert printed.err == f"warning: {path} has 2 frames: only the first is read\n"
