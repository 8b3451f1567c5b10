"""Runs of the first edition load, predict, are evaluated and go on: see the fixture."""

import json
import shutil

import numpy as np
import pytest
from places import FIRST_EDITION

from capsjax import config as configs
from capsjax import evaluate, load_run, report, train
from capsjax.config import former
from capsjax.data import load
from capsjax.storage.files import write_json
from capsjax.storage.workdir import Workdir

pytestmark = pytest.mark.usefixtures("without_estimate")

LENGTHS = np.load(FIRST_EDITION / "lengths.npz")


@pytest.fixture(params=["mnist", "folder"])
def run_path(request, tmp_path, monkeypatch):
    """A copy of the run, in a folder with the photos that it names."""
    shutil.copytree(FIRST_EDITION / "photos", tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(FIRST_EDITION / request.param, tmp_path / request.param)


def lengths(path):
    """What the run at ``path`` makes of the first 100 of its test images."""
    run = load_run(path)
    data = run.config.data
    test = load(data.name, "test", path=data.path, image_size=data.image_size)
    return run.predict(test.image[:100]).length


def test_it_predicts_what_the_first_edition_predicted(run_path):
    np.testing.assert_allclose(lengths(run_path), LENGTHS[run_path.name], rtol=1e-4)


def test_it_is_compared_with_others(run_path, capsys):
    test = json.loads((run_path / "result.json").read_text())["test"]
    assert report.main([str(run_path)]) == 0
    (row,) = capsys.readouterr().out.splitlines()[2:]
    _, data, _, epochs, accuracy, *_ = (cell.strip() for cell in row.split("|")[1:])
    assert (data, epochs) == (Workdir(run_path).read_config().data.name, "2")
    assert accuracy == f"{100 * test['accuracy']:.2f}"


@pytest.mark.slow
@pytest.mark.parametrize("run_path", ["mnist", "folder"], indirect=True)
def test_it_goes_on_as_the_first_edition_went_on(run_path):
    workdir = Workdir(run_path)
    config = workdir.read_config()
    config.num_epochs = 3
    # Weights that are saved start no more: let it be one of the defaults of then, which
    # the same command line goes on with the defaults of now.
    config.model = started = config.model.clone(**former.INITIALIZERS)
    write_json(workdir.config, configs.to_dict(config))
    config.model = started.clone(**dict.fromkeys(former.INITIALIZERS, "scaled"))
    result = train.train(config, workdir).result
    assert result["epochs_done"] == 3
    assert workdir.read_config().model == started
    # The order of the images, the split and the schedule are what they were: after a
    # step on other images the lengths differ in the second digit.
    expected = LENGTHS[f"{run_path.name}_resumed"]
    np.testing.assert_allclose(lengths(run_path), expected, rtol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("run_path", ["folder"], indirect=True)
def test_it_is_evaluated_on_the_images_that_it_was_tested_on(run_path, capsys):
    assert evaluate.main(["--workdir", str(run_path), "--no-figures"]) == 0
    out, err = capsys.readouterr()
    assert "of other test images" not in out + err
    test = json.loads((run_path / "result.json").read_text())["test"]
    assert f"accuracy {test['accuracy']:.2%}" in out
