"""A run of every routing algorithm: trained, stopped, resumed, and opened again."""

import json

import jax
import numpy as np
import pytest
from marks import first_of
from PIL import Image
from tiny import tiny, tiny_model

from capsjax import ROUTINGS, evaluate, load_run, predict
from capsjax.data import load
from capsjax.training import train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_estimate")]


class Stopped(Exception):
    """Ends a run in the middle of its second epoch."""


def stop(record):
    if record["step"] > 5 and record["kind"] == "train":
        raise Stopped


@pytest.mark.parametrize("name", first_of(("self_routing",), ROUTINGS))
def test_a_run_resumes_exactly_and_every_command_opens_it(name, tmp_path, capsys):
    config = tiny()
    config.model = tiny_model(routing=ROUTINGS[name]())
    whole = train(config, tmp_path / "whole")
    parts = []
    with pytest.raises(Stopped):
        train(config, tmp_path / "parts", on_metrics=stop)
    train(config, tmp_path / "parts", on_metrics=parts.append)
    # It went on after the first epoch, and repeated only the second.
    assert [row["step"] for row in parts if row["kind"] == "train"] == [10]
    path = str(tmp_path / "parts")
    run = load_run(path)
    assert run.model.routing == config.model.routing
    jax.tree.map(np.testing.assert_array_equal, whole.params, run.params)
    results = [{**one.result, "seconds": 0} for one in (run, whole)]
    assert results[0] == results[1]

    capsys.readouterr()
    assert evaluate.main(["--workdir", path]) == 0
    assert f"{run.result['test']['accuracy']:.2%}" in capsys.readouterr().out
    digit = load("mnist", "test").image[0]
    Image.fromarray(digit[..., 0]).save(tmp_path / "digit.png")
    digit_path = str(tmp_path / "digit.png")
    assert predict.main(["--workdir", path, "--json", digit_path]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    expected = run.predict(digit[None])
    assert answer["label"] == run.class_names[expected.label[0]]
