"""The command ``capsjax.export``, and the folder that it writes to share."""

import json
import sys

import jax
import pytest
from tiny import tiny_model

import capsjax
from capsjax import config as configs
from capsjax import export
from capsjax.data.preparation import Preparation
from capsjax.models.network import init_variables
from capsjax.storage.files import write_json

MODEL = tiny_model().clone(image_shape=(28, 28, 1), num_classes=3)
FILES = {
    *("weights.safetensors", "config.json", "dataset.json", "result.json"),
    "README.md",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "digits"
    config = configs.Config(
        experiment="mnist", variant="few", seed=3, data=configs.Data("mnist")
    )
    capsjax.save_run(
        path,
        MODEL,
        init_variables(MODEL, jax.random.key(0)),
        preparation=Preparation.of("mnist", (28, 28, 1)),
        config=config,
    )
    test = {"accuracy": 0.9928, "loss": 0.0123}
    write_json(path / "result.json", {"test": test, "commit": "abc123"})
    about = json.loads((path / "dataset.json").read_text())
    # As if it had been trained.
    write_json(path / "dataset.json", {**about, "splits": {"train": {"checksum": "0"}}})
    return capsjax.load_run(path)


def write(run, *words):
    path = str(run.workdir.path)
    return export.main(["--workdir", path, "--format", "safetensors", *words])


def test_it_prints_the_files_and_the_card_says_what_they_are(run, tmp_path, capsys):
    folder = tmp_path / "folder"
    note = "Seeds 0, 1, 2: 99.3 %."
    words = ("--half", "--licence", "CC0", "--note", note)
    assert write(run, "--output", str(folder), *words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {path.name for path in folder.iterdir()} == FILES
    for name in FILES:
        size = (folder / name).stat().st_size
        assert f"{folder / name}  {size:,} bytes" in lines
    card = (folder / "README.md").read_text()
    for text in (
        "# CapsNet for mnist\n",
        "Its 3 classes are 0, 1, 2.",
        "| recipe | mnist:few, seed 3, step 0 |",
        "`model.conv_features=8`",
        "`model.routing.form=votes`",
        "| commit | abc123 |",
        "| test accuracy | 99.28%, loss 0.012300 (before the weights were rounded) |",
        "| validation accuracy | not measured |",
        "| weights | float16, to compute in float32 |",
        f"\n\n{note}\n\n",
        "python -m capsjax.predict --workdir FOLDER picture.png",
        "# uint8, [n, 28, 28, 1]",
        "scaled and centred, as the digits of mnist are.",
        "## Licence\n\nCC0\n",
    ):
        assert text in card, text


def test_the_licence_is_its_authors_to_name(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert write(run) == 0
    card = (tmp_path / "exports" / "digits-safetensors" / "README.md").read_text()
    assert card.endswith("The author of these weights has not named a licence here.\n")
    assert "before the weights were rounded" not in card


def test_other_files_are_not_written_over(run, tmp_path, capsys):
    (tmp_path / "README.md").write_text("mine")
    for folder in (tmp_path, run.workdir.path):
        assert write(run, "--output", str(folder)) == 1
        assert f"{folder} holds other files: choose a new" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--int8"], "--int8 is for --format onnx, not for safetensors."),
        (["--workdir", "nowhere"], "nowhere holds no run"),
    ],
)
def test_a_wrong_command_is_one_line(words, message, tmp_path, capsys):
    words = ["--format", "safetensors", "--output", str(tmp_path / "x"), *words]
    assert export.main(words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("capsjax.export: error: ")
    assert message in line
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("name", "extra"), [("onnx", "onnx"), ("stablehlo", "export")])
def test_a_missing_package_is_one_line(name, extra, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, f"capsjax.exporting.{name}", None)
    assert export.main(["--format", name]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f": pip install 'capsjax[{extra}]'")
