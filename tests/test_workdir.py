import io
import json
import os
import subprocess
import sys

import pytest

from capsjax import config as configs
from capsjax.metrics import MetricWriter, Progress
from capsjax.workdir import Workdir, WorkdirError, default_path, write_json


def test_the_default_folder_names_experiment_variant_and_seed():
    config = configs.Config(experiment="mnist", variant="smoke", seed=3)
    assert str(default_path(config)) == "runs/mnist-smoke-seed3"
    config.variant = ""
    assert str(default_path(config)) == "runs/mnist-seed3"


def test_another_configuration_is_refused_with_the_fields_that_differ(tmp_path):
    workdir = Workdir(tmp_path)
    write_json(workdir.config, configs.to_dict(configs.Config()))
    before = workdir.config.read_bytes()
    other = configs.Config(seed=4)
    other.model.num_iterations = 2
    told = "seed is 0 there, 4 here; model.num_iterations is 3 there, 2 here"
    with pytest.raises(WorkdirError, match=told):
        workdir.check(other)
    assert workdir.config.read_bytes() == before


def test_epochs_and_logging_may_change_and_tuples_are_lists(tmp_path):
    workdir = Workdir(tmp_path)
    config = configs.Config(num_epochs=2)
    config.model.decoder_features = (3, 4)
    write_json(workdir.config, configs.to_dict(config))
    config.num_epochs, config.tensorboard = 5, True
    workdir.check(config)


@pytest.mark.parametrize("damaged", ["", "[]", "{", "\xff"])
def test_a_damaged_configuration_is_told(tmp_path, damaged):
    workdir = Workdir(tmp_path)
    workdir.config.write_text(damaged)
    with pytest.raises(WorkdirError, match=r"config\.json"):
        workdir.check(configs.Config())


def test_a_folder_with_checkpoints_of_an_unknown_run_is_refused(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.checkpoints.mkdir()
    workdir.check(configs.Config())  # Killed as it began: nothing is lost.
    (workdir.checkpoints / "5").mkdir()
    with pytest.raises(WorkdirError, match=r"no config\.json"):
        workdir.check(configs.Config())


def test_a_second_process_is_refused_with_the_first_ones_number(tmp_path):
    code = (
        "import sys; from capsjax.workdir import Workdir\n"
        "with Workdir(sys.argv[1]).locked(): print('held', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as first:
        assert first.stdout.readline() == "held\n"
        told = f"in use by process {first.pid} on "
        with pytest.raises(WorkdirError, match=told), Workdir(tmp_path).locked():
            pass
        first.kill()
    with Workdir(tmp_path).locked():  # A dead process holds nothing.
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_place_is_told(tmp_path):
    tmp_path.chmod(0o500)
    with (
        pytest.raises(WorkdirError, match="can't write"),
        Workdir(tmp_path / "x").locked(),
    ):
        pass


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_after_the_restored_step_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = MetricWriter(path, step=0, tensorboard=None)
    for step in (10, 20, 30):
        writer.write("train", step=step, epoch=1, loss=1 / step)
    writer.close()
    with path.open("a") as file:
        file.write('{"step": "x"}\n[]\n{"kind": "train", "st')  # Torn by a crash.
    MetricWriter(path, step=20, tensorboard=None).close()
    assert [line["step"] for line in lines(path)] == [10, 20]


def test_tensorboard_gets_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboardX")
    writer = MetricWriter(tmp_path / "m.jsonl", step=0, tensorboard=tmp_path / "board")
    writer.write("validation", step=5, epoch=1, loss=0.25)
    writer.close()
    (events,) = (tmp_path / "board").iterdir()
    assert b"validation/loss" in events.read_bytes()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_bar_with_how_it_goes_and_the_time_left(monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    with Progress("epoch 2/3", total=20, initial=5) as progress:
        progress._bar.mininterval = 0
        progress.advance_to(15, "loss 0.5000, 99 images/s")
        shown = sys.stderr.getvalue()
    assert "epoch 2/3  75%|" in shown
    assert " left, loss 0.5000, 99 images/s" in shown


def test_elsewhere_plain_lines_come_at_least_every_ten_seconds(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with Progress("epoch 1/3", total=100) as progress:
        for done in range(5, 100, 5):  # A chunk every three seconds.
            now[0] += 3
            progress.advance_to(done, "loss 0.5")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "epoch 1/3, 10 of 100: loss 0.5, 00:54 left"
    assert len(lines) >= 19 * 3 / 10
