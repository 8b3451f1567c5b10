"""Paths that are no ordinary files, and names of places that mislead."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image
from places import FIRST_EDITION

from capsjax import evaluate, explore, export, load_run, predict, report, train
from capsjax.analysis import figures
from capsjax.data import DatasetError, load
from capsjax.data.images import ImageError, read_image
from capsjax.storage.files import WorkdirError
from capsjax.storage.pretrained import DIGITS
from capsjax.storage.weights import read_weights

COMMANDS = evaluate, explore, export, predict, report, train
READERS = {
    "x.png": (read_image, ImageError),
    "x.csv": (lambda path: load(path, image_size=8), DatasetError),
    "x.npz": (load, DatasetError),
    "x.safetensors": (read_weights, WorkdirError),
}


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_and_a_device_are_refused_instead_of_waited_for(name, tmp_path):
    read, kind = READERS[name]
    path = tmp_path / name
    os.mkfifo(path)
    with pytest.raises(kind, match=f"{name}.*it is a pipe or a device, and must be"):
        read(str(path))
    path.unlink()
    path.symlink_to("/dev/zero")  # It never ends.
    with pytest.raises(kind, match="it is a pipe or a device"):
        read(str(path))


def test_a_folder_of_photos_with_a_pipe_names_it(tmp_path):
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.eye(9, dtype=np.uint8)).save(tmp_path / name)
    os.mkfifo(tmp_path / "a" / "2.png")
    with pytest.raises(DatasetError, match=r"can't read .*a/2\.png: it is a pipe"):
        load("image_folder", path=tmp_path, image_size=8)
    options = {"image_size": 8, "skip_bad_files": True}
    assert len(load("image_folder", "all", path=tmp_path, **options)) == 4


@pytest.mark.slow
@pytest.mark.usefixtures("without_estimate")
def test_a_data_set_named_by_dots_leaves_the_run_s_own_results(
    tmp_path, monkeypatch, capsys
):
    shutil.copytree(FIRST_EDITION / "folder", tmp_path / "run")
    shutil.copytree(FIRST_EDITION / "photos", tmp_path / "photos")
    monkeypatch.setattr(figures, "draw", lambda *_: [])
    own = tmp_path / "run" / "figures" / "evaluation.json"
    own.parent.mkdir()
    own.write_text("{}")
    monkeypatch.chdir(tmp_path / "photos")
    for data, folder in ((".", "data"), ("./" * 200, "data"), ("../" * 99, None)):
        code = evaluate.main(["--workdir", "../run", "--data", data])
        assert code == (folder is None)
        assert own.read_text() == "{}"
        assert folder is None or (own.parent / folder / own.name).exists()
    name = evaluate._folder_name("photos/" + "x" * 300)
    assert len(name) <= 60
    assert pathlib.Path(name).name == name


@pytest.mark.parametrize(
    "words",
    [
        ["predict", ""],
        ["predict", "--workdir", "", "a.png"],
        ["evaluate", "--workdir", ""],
        ["evaluate", "--workdir", "run", "--data", ""],
        ["export", "--workdir", "run", "--format", "safetensors", "--output", ""],
        ["explore", "--workdir", "run", "--output", ""],
        ["report", ""],
        ["report", "run", "--figure", ""],
        ["train", "--config=capsjax:mnist:smoke", "--workdir="],
    ],
    ids=" ".join,
)
def test_the_empty_path_of_an_unset_variable_is_refused(
    words, tmp_path, monkeypatch, capsys
):
    shutil.copytree(FIRST_EDITION / "folder", tmp_path / "run")
    shutil.copytree(FIRST_EDITION / "photos", tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    name, *arguments = words
    main = {module.__name__: module.main for module in COMMANDS}[f"capsjax.{name}"]
    assert main([name, *arguments] if name == "train" else arguments) == 1
    assert capsys.readouterr().err == (
        f"capsjax.{name}: error: a path is empty: write . for the current folder\n"
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_an_export_into_a_file_is_refused_before_it_is_made(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for form in export.FORMATS:
        arguments = ["--format", form, "--output", str(tmp_path / "file")]
        assert export.main(arguments) == 1
        assert f"{tmp_path}/file is a file: choose" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_card_takes_a_text_in_another_encoding(tmp_path):
    note = os.fsdecode(b"caf\xe9")
    arguments = ["--format", "safetensors", "--output", str(tmp_path), "--note", note]
    assert export.main(arguments) == 0
    assert r"caf\xe9" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    "value", [[1], {"test": "x"}, {"test": {"accuracy": "x"}}, {"validation": [2]}]
)
def test_a_result_that_is_none_is_not_shown(value, tmp_path):
    run = shutil.copytree(DIGITS, tmp_path / "run")
    (run / "result.json").write_text(json.dumps(value))
    assert load_run(run).result is None
    output = ["--workdir", str(run), "--output"]
    assert export.main([*output, f"{tmp_path}/out", "--format", "safetensors"]) == 0
    assert (
        "| test accuracy | not measured |" in (tmp_path / "out/README.md").read_text()
    )
    assert explore.main([*output, f"{tmp_path}/page.html", "--no-open"]) == 0


def test_a_figure_is_the_very_file_that_was_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = str(FIRST_EDITION / "folder")
    assert report.main([run, "--figure", "figure"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["figure"]
    with Image.open("figure") as image:
        assert image.format == "PNG"
    assert report.main([run, "--figure", str(tmp_path)]) == 1
    assert report.main([run, "--figure", "x.doc"]) == 1
    assert "x.doc must end in .png, .svg or .pdf" in capsys.readouterr().err


@pytest.mark.parametrize("command", [evaluate, explore, export, predict])
def test_a_run_is_named_once(command, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(["--workdir", "a", "--workdir", "b"])
    assert "--workdir is given twice" in capsys.readouterr().err
