"""A disk that is full, or write-protected."""

import json
import resource
import shutil

import pytest
from kill_and_resume import different, outcome
from marks import variants
from places import ROOT
from rights import as_nobody, public_folder
from tiny import TINY_MODEL, digits

from capsjax import train
from capsjax.storage.files import WorkdirError
from capsjax.storage.run import load_run
from capsjax.storage.workdir import Workdir

pytestmark = pytest.mark.slow  # They train a run first.

ARGUMENTS = (
    "train",
    "--distributed=off",
    f"--config={ROOT}/experiments/mnist.py:smoke",
    "--config.batch_size=8",
    "--config.steps_per_dispatch=1",
    "--config.data.num_train=160",
    "--config.data.num_validation=50",
    *TINY_MODEL,
)


def run(workdir, epochs):
    own = [f"--config.data.name={digits()}", f"--config.num_epochs={epochs}"]
    return train.main([*ARGUMENTS, *own, f"--workdir={workdir}"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Trains a run for one epoch, and a copy for a second one."""
    folder = tmp_path_factory.mktemp("disk")
    assert run(folder / "first", 1) == 0
    shutil.copytree(folder / "first", folder / "whole")
    assert run(folder / "whole", 2) == 0
    return folder


def size_of_lines(workdir):
    """Returns the size of the lines that stay when the run goes on."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return sum(len(line) + 1 for line in lines if json.loads(line)["kind"] != "test")


@pytest.mark.parametrize(
    "full_at", ["checkpoint", *variants("config.json", "metrics.jsonl")]
)
def test_a_full_disk_stops_a_run_that_then_goes_on_exactly(full_at, folder, capsys):
    """A limit on the size of files stands in for a full disk."""
    workdir = folder / full_at
    shutil.copytree(folder / "first", workdir)
    before = {
        name: (workdir / name).read_bytes() for name in ("config.json", "result.json")
    }
    limit = {
        "config.json": 500,
        "metrics.jsonl": size_of_lines(workdir) + 100,
        "checkpoint": 2**16,
    }[full_at]
    assert len(before["config.json"]) < size_of_lines(workdir)
    capsys.readouterr()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        code = run(workdir, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 1
    what = "save" if full_at == "checkpoint" else f"write {workdir}/{full_at}"
    assert line.startswith(f"capsjax.train: error: can't {what}")
    # No file is half written, and whole files are still whole.
    *lines, rest = (workdir / "metrics.jsonl").read_text().split("\n")
    assert rest == ""
    assert all(json.loads(line)["kind"] for line in lines)
    assert (workdir / "result.json").read_bytes() == before["result.json"]
    json.loads((workdir / "config.json").read_text())
    assert load_run(workdir).step == 20
    # A half-written checkpoint is cleared away when the run goes on.
    names = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert names <= {"20", "40.orbax-checkpoint-tmp"}
    assert not list(workdir.glob(".*"))
    assert run(workdir, 2) == 0
    names = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert names == {"20", "40"}
    assert different(outcome(workdir), outcome(folder / "whole")) == []


def test_a_write_protected_run_can_still_be_used(tiny_run, capsys):
    with public_folder() as folder:
        workdir = Workdir(folder / "run")
        shutil.copytree(tiny_run, workdir.path)
        config = workdir.read_config()
        files = [workdir.path, *workdir.path.rglob("*")]
        for path in files:
            path.chmod(0o555 if path.is_dir() else 0o444)
        with as_nobody():
            assert load_run(workdir.path).step == 20
            assert train.train(config, workdir).result["test"]["step"] == 20
            assert f"{workdir.path} is finished" in capsys.readouterr().out
            config.num_epochs = 3
            message = f"can't write {workdir.path}: Permission denied"
            with pytest.raises(WorkdirError, match=message):
                train.train(config, workdir)
        assert [workdir.path, *workdir.path.rglob("*")] == files
