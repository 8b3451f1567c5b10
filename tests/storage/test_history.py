"""What changed on the way of a run, and a run that is not tested."""

import json

import numpy as np
import pytest
from tiny import tiny

from capsjax import config as configs
from capsjax import train
from capsjax.storage import history
from capsjax.storage.files import write_json
from capsjax.storage.workdir import Workdir
from capsjax.training import trainer

pytestmark = pytest.mark.usefixtures("without_estimate")


@pytest.fixture
def workdir(tmp_path):
    return Workdir(tmp_path)


def stages(workdir):
    read = json.loads(workdir.history.read_text())
    return [
        (stage["step"], stage["num_epochs"], stage["bad_numbers"]) for stage in read
    ]


def record(workdir, step, **settings):
    history.record(workdir, configs.Config(**settings), step)
    return stages(workdir)


def test_a_stage_begins_where_a_setting_changes(workdir):
    assert record(workdir, 0, num_epochs=2) == [(0, 2, "stop")]
    assert record(workdir, 7, num_epochs=2) == [(0, 2, "stop")]
    longer = [(0, 2, "stop"), (10, 6, "stop")]
    assert record(workdir, 10, num_epochs=6) == longer
    assert record(workdir, 10, num_epochs=6) == longer
    assert record(workdir, 10, num_epochs=6, tensorboard=True) == longer
    skips = record(workdir, 15, num_epochs=6, bad_numbers="skip")
    assert skips == [*longer, (15, 6, "skip")]


def test_what_was_computed_and_is_lost_does_not_count(workdir):
    record(workdir, 0, num_epochs=2)
    record(workdir, 10, num_epochs=6)
    # Killed before a step was saved, and then it is to be longer still.
    assert record(workdir, 10, num_epochs=8) == [(0, 2, "stop"), (10, 8, "stop")]
    # The checkpoint of step 10 is damaged.
    assert record(workdir, 5, num_epochs=8) == [(0, 2, "stop"), (5, 8, "stop")]
    assert record(workdir, 0, num_epochs=8) == [(0, 8, "stop")]


@pytest.mark.parametrize("damaged", [None, "", "{}", "[]", '[{"step": "0"}]', "[3]"])
def test_a_former_run_has_the_history_of_its_results(workdir, damaged):
    write_json(workdir.config, configs.to_dict(configs.Config(num_epochs=9)))
    before = {"num_epochs": 2, "test_of_last": {"step": 10}}
    message = {"num_epochs": 6, "test_of_last": {"step": 30}, "tested_before": [before]}
    write_json(workdir.result, message)
    if damaged is not None:
        workdir.history.write_text(damaged)
    expected = [(0, 2, "stop"), (10, 6, "stop"), (30, 9, "stop")]
    assert record(workdir, 31, num_epochs=9) == expected
    workdir.history.unlink()
    workdir.result.unlink()
    assert record(workdir, 31, num_epochs=9) == [(0, 9, "stop")]


@pytest.mark.variant
def test_an_extended_run_has_two_stages_before_its_end_and_in_its_result(
    workdir, monkeypatch
):
    config = tiny()
    assert [one["step"] for one in train.train(config, workdir).result["history"]] == [
        0
    ]
    config.num_epochs = 3
    with monkeypatch.context() as patch:
        patch.setattr(
            trainer.Trainer, "train_epoch", lambda self: 1 / 0
        )  # As if killed.
        with pytest.raises(ZeroDivisionError):
            train.train(config, workdir)
    assert stages(workdir) == [(0, 2, "stop"), (10, 3, "stop")]
    result = train.train(config, workdir).result
    assert stages(workdir) == [(0, 2, "stop"), (10, 3, "stop")]
    assert result["history"] == json.loads(workdir.history.read_text())


@pytest.mark.slow
def test_the_test_images_can_be_left_alone_and_looked_at_later(workdir, monkeypatch):
    looked_at = []
    real_evaluate = trainer.evaluate

    def evaluate(step, params, dataset, **options):
        looked_at.append(len(dataset))
        few = dataset.subset(np.arange(32))
        return real_evaluate(step, params, few, **options)

    monkeypatch.setattr(trainer, "evaluate", evaluate)
    config = tiny(test=False)
    result = train.train(config, workdir).result
    assert looked_at == [50, 50]
    assert (result["test"], result["test_of_last"]) == (None, None)
    rows = [json.loads(line) for line in workdir.metrics.read_text().splitlines()]
    validations = [row for row in rows if row["kind"] == "validation"]
    best = min(validations, key=lambda row: row["loss"])
    for name in ("step", "loss", "accuracy"):
        assert result["validation"][name] == best[name]
        assert result["validation_of_last"][name] == validations[-1][name]
    assert train.train(config, workdir).result == result  # It is finished.
    config.test = True
    tested = train.train(config, workdir).result
    assert looked_at[2:] == [200] * (1 + (best["step"] != 10))
    assert tested["test"]["step"] == best["step"]
    assert tested["validation"] == result["validation"]
    assert tested["tested_before"] == []
    config.test = False
    assert train.train(config, workdir).result == tested  # What is known stays known.


def test_the_command_prints_the_validation_of_a_run_that_is_not_tested(
    tmp_path, monkeypatch, capsys
):
    validated = {"accuracy": 0.5, "loss": 1.0, "step": 10}
    outcomes = [
        {"test": None, "validation": validated},
        {"test": None, "validation": None},
    ]
    monkeypatch.setattr(train, "complete", lambda *_, **__: outcomes.pop(0))
    monkeypatch.setattr(train, "keep_compiled_programs", lambda: None)
    file = tmp_path / "recipe.py"
    file.write_text("from capsjax.config import Config\nget_config = Config\n")
    for line in (
        "validation accuracy 50.00%, loss 1.000000 (step 10; ",
        "trained, and neither validated nor tested (",
    ):
        words = [f"--config={file}", "--config.test=false", "--distributed=off"]
        assert train.main(["train", *words]) == 0
        assert capsys.readouterr().out.startswith(line)
