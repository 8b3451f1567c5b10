"""Windows, as far as Linux shows it: `tests/helpers/windows.py` takes things away."""

import ast
import json
import ntpath
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from places import TESTS
from tiny import TINY_MODEL, digits

import capsjax
from capsjax.data import load
from capsjax.training.command_line import UsageError, parse

CACHE = jax.config.jax_compilation_cache_dir  # pyright: ignore
REFUSALS = """
import capsjax
from capsjax.data import DatasetError, load

for name in ("cifar10", "affnist"):
    try:
        load(name)
    except DatasetError as error:
        print(error)
"""
COMMANDS = f"""
from capsjax.__main__ import main

train = [
    "train", "--config=capsjax:mnist", "--workdir=run", "--config.num_epochs=2",
    "--config.data.name={digits()}", "--config.data.num_train=320",
    "--config.data.num_validation=50", "--config.batch_size=32",
    *{TINY_MODEL!r},
]
assert main(train) == 0
# A second time, over the files of the first.
assert main([*train[:3], "--config.num_epochs=3", *train[4:]]) == 0
for arguments in (
    ["evaluate", "--workdir=run"],
    ["predict", "--workdir=run", "digit.png"],
    ["predict", "digit.png"],
    ["report", "run"],
    ["export", "--workdir=run", "--output=served", "--format=stablehlo"],
    ["export", "--workdir=run", "--output=shared", "--format=safetensors"],
    ["explore", "--workdir=run", "--output=page.html", "--no-open"],
):
    assert main(arguments) == 0, arguments
"""


def run(code, folder):
    start = (
        f"import sys; sys.path.append({str(TESTS / 'helpers')!r})\n"
        f"import windows; windows.simulate({str(folder)!r})\n"
    )
    environment = {
        "JAX_COMPILATION_CACHE_DIR": CACHE,
        "PYTHONIOENCODING": "cp1252",
        "PYTHONWARNDEFAULTENCODING": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", start + code],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        encoding="cp1252",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_data_sets_that_cannot_be_read_there_are_refused_in_one_line(tmp_path):
    cifar10, affnist = run(REFUSALS, tmp_path).splitlines()
    for name, line in (("cifar10", cifar10), ("affnist", affnist)):
        assert line.startswith(
            f"data set {name!r} is read by TensorFlow Datasets, and "
        )
        assert "array-record has no wheel for Windows" in line


def test_text_files_name_their_encoding_which_is_not_utf_8_there():
    for path in pathlib.Path(capsjax.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Call(ast.Attribute(attr="open" | "read_text"), [], []):
                    pytest.fail(f"{path}, line {node.lineno}: name the encoding")


@pytest.mark.variant
def test_a_network_is_trained_and_used_there(tmp_path):
    digit = load("mnist", "test").image[0, ..., 0]
    Image.fromarray(np.pad(digit, 8)).save(tmp_path / "digit.png")
    out = run(COMMANDS, tmp_path)
    result = json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))
    assert result["test"]["step"] == 30
    assert f"{result['test']['accuracy']:.2%}" in out
    assert (tmp_path / "page.html").stat().st_size > 100_000


def test_the_colon_of_a_drive_does_not_begin_a_variant(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "splitdrive", ntpath.splitdrive)
    monkeypatch.chdir(tmp_path)
    text = "import capsjax.config as c\ndef get_config(name=''):\n  "
    (tmp_path / "C:mine.py").write_text(
        f"{text}return c.Config(experiment=name.replace(':', '-'))\n"
    )
    for variant in ("", "smoke", "a:b"):
        file = ":".join(["C:mine.py", *([variant] if variant else [])])
        assert parse(["", f"--config={file}"], "").config.experiment == variant.replace(
            ":", "-"
        )
    with pytest.raises(UsageError, match="No such file"):
        parse(["", "--config=D:mine.py:smoke"], "")
