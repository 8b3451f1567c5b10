import errno
import fcntl
import io
import json
import os
import re
import resource
import shutil
import stat
import subprocess
import sys

import numpy as np
import pytest
from rights import as_nobody, public_folder

from capsjax import config as configs
from capsjax.analysis.comparison import read_run
from capsjax.config import former
from capsjax.data import Dataset
from capsjax.runtime.console import Progress
from capsjax.storage.checkpoints import Checkpoints
from capsjax.storage.files import WorkdirError, write_bytes, write_json
from capsjax.storage.metrics import MetricWriter
from capsjax.storage.run import load_run
from capsjax.storage.workdir import Workdir, default_path


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
    other = configs.override(other, [("model.routing.num_iterations", "2")])
    message = "seed is 0 there, 4 here; model.routing.num_iterations is 3 there, 2 here"
    with pytest.raises(WorkdirError, match=message):
        workdir.check(other)
    assert workdir.config.read_bytes() == before


def test_epochs_and_logging_may_change_and_tuples_are_lists(tmp_path):
    workdir = Workdir(tmp_path)
    config = configs.Config(num_epochs=2)
    config.model = config.model.clone(decoder_features=(3, 4))
    write_json(workdir.config, configs.to_dict(config))
    config.num_epochs, config.tensorboard = 5, True
    workdir.check(config)


def images(*numbers, value=0):
    """A test split of files."""
    image = np.full((len(numbers), 1, 1, 1), value, np.uint8)
    files = np.array([f"cats/{number}.png" for number in numbers])
    label = np.zeros(len(numbers), np.int32)
    return {"test": Dataset("cats", image, label, ("cats",), files=files)}


def identities(sets):
    return {"splits": {name: one.identity() for name, one in sets.items()}}


def test_a_run_of_the_first_edition_keeps_how_it_started(tmp_path):
    workdir, config = Workdir(tmp_path), configs.Config()
    assert workdir.keep_start(config) == config  # There is no run yet.
    there = configs.Config()
    there.model = there.model.clone(**former.INITIALIZERS)
    write_json(workdir.config, configs.to_dict(there))
    assert workdir.keep_start(config) == there
    workdir.check(workdir.keep_start(config))
    # What is not the default of then and now is another run.
    for field, value in (("weight_init", "normal(0.3)"), ("decoder_init", "zeros")):
        other = configs.Config()
        other.model = other.model.clone(**{field: value})
        with pytest.raises(WorkdirError, match=rf"{field} is .*{re.escape(value)}"):
            workdir.check(workdir.keep_start(other))
    there.model = there.model.clone(weight_init="normal(0.3)")
    write_json(workdir.config, configs.to_dict(there))
    message = r"weight_init is 'normal\(0.3\)' there, 'scaled"
    with pytest.raises(WorkdirError, match=message):
        workdir.check(workdir.keep_start(config))
    workdir.config.write_text("{")
    assert workdir.keep_start(config) == config  # ``check`` finds the damage later.


def test_a_run_goes_on_with_its_own_images_only(tmp_path):
    workdir, config = Workdir(tmp_path), configs.Config()
    workdir.check(config, images(1, 2))  # There is no run yet.
    write_json(workdir.config, configs.to_dict(config))
    write_json(workdir.dataset, identities(images(1, 2)))
    workdir.check(config, images(1, 2))
    with pytest.raises(
        WorkdirError,
        match=r"of other test images: cats/1.png is gone; cats/3.png is new and 1 more",
    ):
        workdir.check(config, images(2, 3, 4))
    with pytest.raises(
        WorkdirError, match="pixels, labels or names are not what they were"
    ):
        workdir.check(config, images(1, 2, value=1))
    with pytest.raises(WorkdirError, match=r"cats/3.png is new\. Put them back"):
        workdir.check(config, images(1, 2, 3))
    for message in ("{", "3", "{}", '{"splits": 3}', '{"splits": {"test": [[]]}}'):
        workdir.dataset.write_text(message)
        workdir.check(config, images(1, 2))
    workdir.dataset.write_text('{"splits": {"test": {"files": [[]]}}}')
    with pytest.raises(WorkdirError, match=r"\[\] is gone"):
        workdir.check(config, images(1))


def data_of(name, path=""):
    config = configs.Config()
    config.data.name, config.data.path = name, path
    return config


@pytest.mark.parametrize(
    ("there", "here"),
    [
        (("image_folder", "photos"), ("image_folder", "/elsewhere/photos/")),
        (("./digits",), ("/elsewhere/digits/",)),
        (("digits",), ("~/digits",)),
    ],
)
def test_a_run_goes_on_where_the_same_images_are(tmp_path, there, here):
    workdir, sets = Workdir(tmp_path), images(1, 2)
    write_json(workdir.config, configs.to_dict(data_of(*there)))
    write_json(workdir.dataset, identities(sets))
    workdir.check(data_of(*here), sets)
    with pytest.raises(WorkdirError, match="is of other test images"):
        workdir.check(data_of(*here), images(1, 3))
    # Which images they were must be known.
    workdir.dataset.write_text("{}")
    with pytest.raises(WorkdirError, match=r"data\.(path|name) is .* there"):
        workdir.check(data_of(*here), sets)


@pytest.mark.parametrize("here", ["multi_mnist", "./mnist"])
def test_what_is_made_of_the_same_images_is_another_run(tmp_path, here):
    workdir, sets = Workdir(tmp_path), images(1, 2)
    write_json(workdir.config, configs.to_dict(data_of("mnist")))
    write_json(workdir.dataset, identities(sets))
    with pytest.raises(WorkdirError, match=r"data\.name is 'mnist' there"):
        workdir.check(data_of(here), sets)


def test_a_run_keeps_its_rule_of_division(tmp_path):
    workdir = Workdir(tmp_path)
    assert workdir.split_rule() == "by_class"  # There is no run.
    write_json(workdir.config, {})
    assert workdir.split_rule() == "by_class"  # It was killed as it began.
    for about, rule in (
        ({"splits": {}}, "first_edition"),
        ({"split_rule": "first_edition"}, "first_edition"),
        ({"split_rule": "by_class"}, "by_class"),
    ):
        write_json(workdir.dataset, about)
        assert workdir.split_rule() == rule
    write_json(workdir.dataset, {"split_rule": "by_size"})
    with pytest.raises(WorkdirError, match="the split_rule 'by_size': it must be one"):
        workdir.split_rule()
    (workdir.checkpoints / "5").mkdir(parents=True)
    for damaged in ("{", "[]", None):
        workdir.dataset.unlink() if damaged is None else workdir.dataset.write_text(
            damaged
        )
        with pytest.raises(WorkdirError, match="it can't be told which images the run"):
            workdir.split_rule()


@pytest.mark.parametrize("damaged", ["", "[]", "{", "\xff"])
def test_a_damaged_configuration_is_reported(tmp_path, damaged):
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
        "import sys; from capsjax.storage.workdir import Workdir\n"
        "with Workdir(sys.argv[1]).locked(): print('held', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as first:
        assert first.stdout.readline() == "held\n"
        message = f"in use by process {first.pid} on "
        with pytest.raises(WorkdirError, match=message), Workdir(tmp_path).locked():
            pass
        first.kill()
    with Workdir(tmp_path).locked():  # A dead process holds nothing.
        pass


def test_a_read_only_place_is_reported():
    with public_folder() as folder:
        folder.chmod(0o555)
        with (
            as_nobody(),
            pytest.raises(WorkdirError, match=r"can't write .*: Permission denied"),
            Workdir(folder / "x").locked(),
        ):
            pass


def test_what_a_killed_process_began_to_write_is_cleared_away(tmp_path, monkeypatch):
    workdir = Workdir(tmp_path)
    workdir.bad_batches.mkdir()
    (tmp_path / ".mine").write_text("")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: sys.exit("killed here"))
        for path in (workdir.config, workdir.metrics, workdir.bad_batches / "1.npz"):
            with pytest.raises(SystemExit):
                write_bytes(path, b"{}")
    assert len(list(tmp_path.rglob(".*"))) == 4
    with workdir.locked():
        pass
    assert {path.name for path in tmp_path.rglob("*")} == {
        "lock",
        ".mine",
        "bad_batches",
    }


def test_a_pipe_in_the_folder_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    message = r"config\.json is neither a file nor a folder"
    with pytest.raises(WorkdirError, match=message), Workdir(tmp_path).locked():
        pass
    with pytest.raises(WorkdirError, match=message):
        Workdir(tmp_path).check(configs.Config())
    with pytest.raises(WorkdirError, match=message):
        load_run(tmp_path)
    with pytest.raises(WorkdirError, match=message):
        read_run(tmp_path)


@pytest.mark.parametrize("content", ["[" * 100_000, "[1, 2", "9" * 5000])
def test_what_is_not_json_is_reported(tmp_path, content):
    workdir = Workdir(tmp_path)
    for path in (workdir.config, workdir.result):
        path.write_text(content)
        with pytest.raises(WorkdirError, match=rf"can't read .*{path.name}"):
            workdir.read_json(path)
    workdir.metrics.write_text(f"{content}\n")
    with pytest.raises(WorkdirError, match=r"can't read .*metrics\.jsonl"):
        workdir.read_metrics()


def test_metrics_of_one_kind_are_read_without_the_others(tmp_path):
    workdir = Workdir(tmp_path)
    lines = ['{"kind": "train", "step"', '{"kind": "validation", "step": 2}']
    workdir.metrics.write_text("\n".join([*lines, '{"kind": "tra']))
    assert workdir.read_metrics("validation") == [{"kind": "validation", "step": 2}]
    assert workdir.read_metrics("test") == []
    with pytest.raises(WorkdirError, match="can't read"):
        workdir.read_metrics()
    workdir.metrics.write_text("")
    with pytest.raises(WorkdirError, match="no line yet"):
        workdir.read_metrics("validation")


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


GOOD = {"epoch": 1, "loss": 0.5, "images_per_second": 9.0}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_after_the_restored_step_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = MetricWriter(path, step=0, tensorboard=None)
    for step in (10, 20, 30):
        writer.write("train", step=step, **GOOD)
    writer.close()
    with path.open("a") as file:
        file.write('{"step": "x"}\n[]\n{"kind": "train", "st')  # Torn by a crash.
    MetricWriter(path, step=20, tensorboard=None).close()
    assert [line["step"] for line in lines(path)] == [10, 20]


@pytest.mark.parametrize(
    "damage",
    [
        {"kind": "trial"},
        {"step": None},
        {"step": "5"},
        {"step": 0},
        {"epoch": True},
        {"loss": float("nan")},
        {"loss": [0.5]},
        {"loss": 10**400},
        {"images_per_second": 0},
        {"images_per_second": -1.0},
    ],
)
def test_damaged_lines_are_dropped(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    whole = {"kind": "train", "step": 5, **GOOD}
    path.write_text(f"{json.dumps(whole)}\n{json.dumps(whole | damage)}\n")
    MetricWriter(path, step=20, tensorboard=None).close()
    assert lines(path) == [whole]


@pytest.mark.parametrize("missing", ["kind", "step", "epoch", "images_per_second"])
def test_lines_that_lack_something_are_dropped(tmp_path, missing):
    path = tmp_path / "metrics.jsonl"
    line = {"kind": "train", "step": 5, **GOOD}
    del line[missing]
    path.write_text(json.dumps(line) + '\n"text"\n7\n' + "[" * 100_000)
    MetricWriter(path, step=20, tensorboard=None).close()
    assert lines(path) == []


def test_on_a_full_disk_no_line_is_torn(tmp_path):
    """No file may grow beyond a limit: of the second line there is room for half."""
    path = tmp_path / "metrics.jsonl"
    writer = MetricWriter(path, step=0, tensorboard=None)
    writer.write("train", step=10, **GOOD)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 30, limits[1]))
    try:
        message = r"can't write .*metrics\.jsonl: File too large"
        with pytest.raises(WorkdirError, match=message):
            writer.write("train", step=20, **GOOD)
        writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before


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


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_on_a_disk_without_locks_a_warning_is_all(
    tmp_path, monkeypatch, capsys, number
):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with Workdir(tmp_path).locked():
        assert capsys.readouterr().err == (
            f"warning: {tmp_path} can't be locked on this system: start no second "
            "process there.\n"
        )


def test_a_lock_that_fails_for_another_cause_is_reported(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    message = "can't write .*: Input/output error"
    with pytest.raises(WorkdirError, match=message), Workdir(tmp_path).locked():
        pass


def test_windows_has_no_locks_and_needs_none_to_train(tmp_path):
    """What only POSIX has is missing; the libraries ask for it themselves."""
    code = """
import sys
import absl.flags, flax, jax, ml_collections.config_flags, numpy, optax, tqdm
from orbax.checkpoint import v1
for name in ("fcntl", "resource", "termios", "pwd", "grp", "pty"):
    sys.modules[name] = None
import signal
del signal.SIGHUP
import capsjax.evaluate, capsjax.predict, capsjax.report, capsjax.train
from capsjax.runtime.interrupt import noticed
from capsjax.storage.workdir import Workdir
with Workdir(sys.argv[1]).locked(), noticed(may_exit=True):
    print("held")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "held\n"
    assert "can't be locked on this system" in done.stderr


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced"])
def test_a_folder_that_goes_away_is_noticed(tmp_path, how):
    workdir = Workdir(tmp_path / "run")
    workdir.require_held()  # It does not hold it.
    with workdir.locked():
        workdir.require_held()
        workdir.path.rename(tmp_path / "elsewhere")
        if how == "deleted":
            shutil.rmtree(tmp_path / "elsewhere")
        if how == "replaced":
            workdir.path.mkdir()
            (workdir.path / "lock").write_text("process 1 on another")
        with pytest.raises(WorkdirError, match="was deleted, moved or replaced while"):
            workdir.require_held()
    workdir.require_held()


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_have_the_rights_that_the_umask_leaves(tmp_path, umask):
    before = os.umask(umask)
    try:
        workdir = Workdir(tmp_path / "run")
        with workdir.locked():
            write_json(workdir.result, {})
            write_bytes(workdir.path / "1.npz", b"")
            MetricWriter(workdir.metrics, step=0, tensorboard=None).close()
            checkpoints = Checkpoints(workdir.checkpoints)
            checkpoints.save(1, {"w": np.zeros(3)})
            checkpoints.wait()
    finally:
        os.umask(before)
    paths = [workdir.path, *workdir.path.rglob("*")]
    assert len(paths) > 12
    for path in paths:
        full = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == full & ~umask, path


@pytest.mark.parametrize("when", ["at the start", "later"])
def test_where_tensorboard_can_not_write_a_run_goes_on_without(tmp_path, capsys, when):
    pytest.importorskip("tensorboardX")
    board, reason = tmp_path / "board", "No space left on device"
    if when == "at the start":
        board.write_text("in the way")
        reason = "File exists"
    writer = MetricWriter(tmp_path / "m.jsonl", step=0, tensorboard=board)
    writer.write("train", step=10, **GOOD)
    if when == "later":
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, writer._events._file._writer.fileno())
        os.close(full)
    for step in (20, 30):
        writer.write("train", step=step, **GOOD)
    writer.close()
    message = f"can't write {board}: {reason}; TensorBoard gets no more of this run."
    assert capsys.readouterr().err == f"warning: {message}\n"
    assert [line["step"] for line in lines(tmp_path / "m.jsonl")] == [10, 20, 30]


def test_tensorboard_hides_what_a_run_takes_back(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    MetricWriter(tmp_path / "m.jsonl", step=7, tensorboard=tmp_path / "board").close()
    (events,) = (tmp_path / "board").iterdir()
    data, read = events.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        read.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    assert [(event.step, event.session_log.status) for event in read] == [
        (0, 0),
        (8, 1),
    ]


def test_a_lock_that_can_t_be_read_and_a_config_that_does_not_fit(tmp_path):
    workdir = Workdir(tmp_path)
    with workdir.locked():
        (tmp_path / "lock").unlink()
        (tmp_path / "lock").mkdir()
        with pytest.raises(WorkdirError, match=r"can't read .*lock: Is a directory\."):
            workdir.require_held()
    write_json(workdir.config, {**configs.to_dict(configs.Config()), "batch_size": 0})
    with pytest.raises(WorkdirError, match=r"config\.json does not fit: .*batch_size"):
        workdir.read_config()
