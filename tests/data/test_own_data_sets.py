"""The code in docs/data-sets.md does what the page says."""

import pathlib
import re
import textwrap

import numpy as np
import pytest
from PIL import Image
from places import ROOT
from tiny import tiny

from capsjax import config as configs
from capsjax.data import loading
from capsjax.training.trainer import train

pytestmark = pytest.mark.usefixtures("without_estimate")


@pytest.fixture
def page(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "data-sets.md").read_text()
    names = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(textwrap.dedent(block), names)
    monkeypatch.setitem(loading.READERS, "bars", names["load_bars"])
    (names["table"],) = re.findall(r"```csv\n(.*?)```", text, re.S)
    return names


@pytest.mark.slow
def test_a_reader_and_a_line_make_a_data_set(page, tmp_path):
    dataset = loading.load("bars", "test", image_size=14)
    assert dataset.image_shape == (14, 14, 1)
    config = tiny()
    config.data = configs.Data("bars", num_train=40, num_validation=20)
    result = train(config, tmp_path).result
    assert np.isfinite(result["test"]["loss"])


def test_arrays_files_and_tables_are_data_sets(page):
    dataset = page["dataset"]
    assert dataset.is_multi_label
    assert dataset.num_classes == 2
    own = loading.load("own.npz", "test")
    assert (len(own), own.class_names) == (90, ("ant", "bee", "cat"))
    pathlib.Path("labels.csv").write_text(page["table"])
    pathlib.Path("photos").mkdir()
    for number in range(1, 5):
        Image.new("L", (9, 9)).save(f"photos/{number}.jpg")
    for split, label in (("train", [0, 1]), ("validation", [0]), ("test", [1])):
        dataset = loading.load("labels.csv", split, image_size=8)
        assert dataset.label.tolist() == label
    assert dataset.class_names == ("ant", "bee")
