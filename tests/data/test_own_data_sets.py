"""The code in docs/data-sets.md does what the page says."""

import re
import textwrap

import numpy as np
import pytest
from places import ROOT
from tiny import tiny

from capsjax import config as configs
from capsjax.data import loading
from capsjax.training.trainer import train


@pytest.fixture
def page(monkeypatch):
    text = (ROOT / "docs" / "data-sets.md").read_text()
    names = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(textwrap.dedent(block), names)
    monkeypatch.setitem(loading.READERS, "bars", names["load_bars"])
    return names


def test_a_reader_and_a_line_make_a_data_set(page, tmp_path):
    dataset = loading.load("bars", "test", image_size=14)
    assert dataset.image_shape == (14, 14, 1)
    config = tiny()
    config.data = configs.Data("bars", num_train=40, num_validation=20)
    result = train(config, tmp_path).result
    assert np.isfinite(result["test"]["loss"])
    assert page["dataset"].num_classes == 2
