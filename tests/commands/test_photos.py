"""Photographs go through all commands, by their recipe."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from capsjax import evaluate, predict
from capsjax.storage.run import load_run
from capsjax.storage.workdir import Workdir
from capsjax.training.command_line import parse
from capsjax.training.trainer import train

pytestmark = pytest.mark.slow  # they train one first


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Noisy pictures, red and wide, green and high, blue and small."""
    path, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for channel, (label, height, width, number) in enumerate(
        [("red", 30, 60, 24), ("green", 60, 40, 16), ("blue", 20, 20, 40)]
    ):
        (path / label).mkdir()
        for n in range(number):
            picture = rng.integers(0, 130, (height, width, 3), np.uint8)
            picture[..., channel] += 100
            Image.fromarray(picture).save(path / label / f"{n}.png")
    return path


def config_of(folder, *flags):
    arguments = [
        *(
            "train",
            "--config=experiments/photos.py:smoke",
            f"--config.data.path={folder}",
        ),
        *("--config.data.image_size=32", "--config.model.widths=(8,16)", *flags),
    ]
    return parse(arguments, "").config


@pytest.fixture(scope="module")
def run_path(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    train(config_of(folder, "--config.num_epochs=12"), Workdir(path))
    return path


def test_it_learns_and_counts_each_class_alike(run_path):
    stored = json.loads((run_path / "config.json").read_text())
    assert stored["augmentation"]["kind"] == "photo"
    assert stored["data"]["class_weights"] == "balanced"
    result = json.loads((run_path / "result.json").read_text())
    assert result["test"]["accuracy"] == 1


def test_evaluate_and_predict_open_its_run(run_path, folder, capsys):
    run = ["--workdir", str(run_path)]
    assert evaluate.main([*run, "--no-figures"]) == 0
    assert "100.00%" in capsys.readouterr().out
    assert predict.main([*run, "--json", str(folder / "blue" / "0.png")]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["label"] == "blue"


@pytest.mark.variant
def test_a_resumed_run_equals_one_that_was_not_stopped_bit_for_bit(folder, tmp_path):
    # The schedules would differ by their last step.
    flags = ["--config.optimizer.schedule=constant", "--config.data.num_validation=0"]
    for name, number in (("parts", 1), ("parts", 2), ("whole", 2)):
        config = config_of(folder, *flags, f"--config.num_epochs={number}")
        train(config, Workdir(tmp_path / name))
    runs = [load_run(tmp_path / name) for name in ("parts", "whole")]
    jax.tree.map(np.testing.assert_array_equal, *(run.params for run in runs))
