"""Damages checkpoints of a real run in every way."""

import collections
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from marks import first_of
from places import ROOT

from capsjax import config as configs
from capsjax import evaluate, train
from capsjax.runtime.interrupt import Interrupted
from capsjax.storage.checkpoints import (
    CheckpointError,
    Checkpoints,
    DamagedCheckpointError,
)
from capsjax.storage.files import WorkdirError, write_json
from capsjax.storage.run import load_run
from capsjax.storage.workdir import Workdir
from capsjax.training import trainer

pytestmark = pytest.mark.usefixtures("without_estimate")

OLD, NEW = 10, 20  # The steps of the run's checkpoints; the newer is better.


@pytest.fixture
def workdir(tiny_run, tmp_path):
    """Copies a run of two epochs, as if it had been stopped before its end."""
    return copied(tiny_run, tmp_path / "run")


def copied(run, path):
    shutil.copytree(run, path)
    (path / "result.json").unlink()
    return Workdir(path)


def bits(state):
    return state._replace(augment_key=jax.random.key_data(state.augment_key))


def largest(folder):
    return max(folder.rglob("d/*"), key=lambda path: path.stat().st_size)


def changed(path, change):
    path.write_bytes(change(path.read_bytes()))


def halved(path):
    changed(path, lambda data: data[: len(data) // 2])


def flipped(path, where):
    def flip(data):
        at = int(where * (len(data) - 8))
        return data[:at] + bytes(255 - b for b in data[at : at + 8]) + data[at + 8 :]

    changed(path, flip)


@pytest.fixture(scope="module")
def whole_state(tiny_run, tmp_path_factory):
    """The state from which the undamaged run goes on."""
    with pytest.MonkeyPatch.context() as patch:
        whole = copied(tiny_run, tmp_path_factory.mktemp("whole") / "run")
        return resumed(whole, patch)


def parameters(step):
    """Reads the parameters in a checkpoint of the undamaged run."""
    checkpoints = Checkpoints(step.parent, read_only=True)
    run = load_run(step.parents[1])
    restored = checkpoints.restore(int(step.name), {"params": run.params}, partly=True)
    checkpoints.close()
    return restored["params"]


STOPPING = "\n\nstopping after these steps; Ctrl-C to stop at once"
DAMAGES = {
    "data truncated": lambda step: halved(largest(step)),
    "data emptied": lambda step: largest(step).write_bytes(b""),
    "data deleted": lambda step: largest(step).unlink(),
    **{
        f"data flipped at {where}": lambda step, where=where: flipped(
            largest(step), where
        )
        for where in (0, 0.5, 1)
    },
    "manifest truncated": lambda step: halved(step / "state" / "manifest.ocdbt"),
    "manifest deleted": lambda step: (step / "state" / "manifest.ocdbt").unlink(),
    "tree truncated": lambda step: halved(step / "state" / "_METADATA"),
    "tree deleted": lambda step: (step / "state" / "_METADATA").unlink(),
    "metadata truncated": lambda step: halved(step / "_CHECKPOINT_METADATA"),
    "metadata emptied": lambda step: (step / "_CHECKPOINT_METADATA").write_bytes(b""),
    "metadata deleted": lambda step: (step / "_CHECKPOINT_METADATA").unlink(),
    "loss changed": lambda step: changed(
        step / "_CHECKPOINT_METADATA",
        lambda data: data.replace(b'"loss": ', b'"loss": 1'),
    ),
    "commit deleted": lambda step: (step / "commit_success.txt").unlink(),
    "state deleted": lambda step: shutil.rmtree(step / "state"),
    "emptied": lambda step: [
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in step.iterdir()
    ],
}


def resumed(workdir, monkeypatch):
    """Returns the state from which a run goes on, stopped before its first step."""
    states = []

    def introduce(self):
        states.append(self.state)
        signal.raise_signal(signal.SIGINT)

    config = workdir.read_config()
    config.num_epochs = 3
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_introduce", introduce)
        with pytest.raises(Interrupted):
            train.train(config, workdir)
    return states[0]


@pytest.mark.slow
@pytest.mark.parametrize("damage", first_of([*DAMAGES][::4], DAMAGES))
def test_the_newest_whole_step_is_used_with_one_warning(
    damage, tiny_run, workdir, whole_state, monkeypatch, capsys
):
    capsys.readouterr()
    params = {
        step: parameters(tiny_run / "checkpoints" / str(step)) for step in (OLD, NEW)
    }
    DAMAGES[damage](workdir.checkpoints / str(NEW))
    run = load_run(workdir.path)
    # Evaluation does not read the optimizer's state: the weights may be whole.
    assert run.step == OLD or "flipped" in damage
    jax.tree.map(np.testing.assert_array_equal, run.params, params[run.step])
    seen = capsys.readouterr().err
    state = resumed(workdir, monkeypatch)
    if "flipped" in damage and state.step == NEW:
        # These bytes are unused: the saved state is whole.
        jax.tree.map(np.testing.assert_array_equal, bits(state), bits(whole_state))
        assert damage == "data flipped at 1"
        return
    assert state.step == OLD
    for err in (capsys.readouterr().err, *([seen] if run.step == OLD else [])):
        (line,) = err.strip().removesuffix(STOPPING).splitlines()
        assert line.startswith(f"warning: The checkpoint of step {NEW} is damaged (")
        assert line.endswith(f"). Step {OLD} takes its place.")
    assert {row["step"] for row in lines(workdir)} == {5, OLD}
    # The step is set aside, and nothing is reported twice.
    assert (workdir.checkpoints / f"damaged-{NEW}").exists()
    assert resumed(workdir, monkeypatch).step == OLD
    assert "warning" not in capsys.readouterr().err


@pytest.mark.slow
def test_bytes_flipped_anywhere_are_found_or_unused(tiny_run, tmp_path, whole_state):
    """Flips bytes at many places in every data file of a step."""
    whole, found = bits(whole_state), collections.Counter()
    folder = tmp_path / "checkpoints"
    shutil.copytree(tiny_run / "checkpoints" / str(NEW), folder / str(NEW))
    checkpoints = Checkpoints(folder, read_only=True)
    files = sorted(path for path in (folder / str(NEW)).rglob("d/*"))
    assert len(files) > 1
    for path in files:
        before = path.read_bytes()
        for where in np.linspace(0, 1, 9):
            flipped(path, where)
            assert path.read_bytes() != before
            try:
                state = checkpoints.restore(NEW, whole_state)
            except DamagedCheckpointError:
                found[path] += 1
            else:
                jax.tree.map(np.testing.assert_array_equal, bits(state), whole)
            path.write_bytes(before)
    checkpoints.close()
    # Hardly any byte is unused.
    assert found[largest(folder)] >= 7
    assert sum(found.values()) > 0.5 * 9 * len(files)


def lines(workdir):
    return map(json.loads, workdir.metrics.read_text().splitlines())


def test_a_killed_save_s_leftovers_are_cleared_away(workdir, monkeypatch, capsys):
    step = workdir.checkpoints / str(NEW)
    step.rename(f"{step}.orbax-checkpoint-tmp")
    assert load_run(workdir.path).step == OLD
    assert resumed(workdir, monkeypatch).step == OLD
    assert "warning" not in capsys.readouterr().err
    assert [path.name for path in workdir.checkpoints.iterdir()] == [str(OLD)]


def test_a_deleted_step_counts_as_never_saved(workdir, monkeypatch):
    shutil.rmtree(workdir.checkpoints / str(NEW))
    assert load_run(workdir.path).step == OLD
    assert resumed(workdir, monkeypatch).step == OLD


def test_a_run_without_a_whole_step_is_one_error_and_unchanged(workdir, capsys):
    for step in (OLD, NEW):
        halved(largest(workdir.checkpoints / str(step)))
    before = sorted(workdir.path.rglob("*"))
    metrics = workdir.metrics.read_bytes()
    config = workdir.read_config()
    config.num_epochs = 3
    message = rf"no whole checkpoint is left in .*step {NEW} is.*step {OLD} is damaged"
    with pytest.raises(CheckpointError, match=message):
        train.train(config, workdir)
    assert sorted(workdir.path.rglob("*")) == before
    assert workdir.metrics.read_bytes() == metrics
    assert evaluate.main([f"--workdir={workdir.path}"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("capsjax.evaluate: error: no whole checkpoint is left in ")
    assert len(err.splitlines()) == 1


@pytest.mark.slow
def test_the_best_at_the_end_is_the_best_whole_step(workdir, capsys):
    config = workdir.read_config()
    halved(largest(workdir.checkpoints / str(NEW)))
    checkpoints = Checkpoints(workdir.checkpoints, read_only=True)
    assert checkpoints.best[0] == NEW  # Only reading finds the damage.
    checkpoints.close()
    result = train.train(config, workdir).result
    assert "step 20 is damaged" in capsys.readouterr().err
    assert result["test_of_last"]["step"] == NEW  # Made again, and whole.
    assert load_run(workdir.path).step == NEW


def test_a_network_of_another_form_is_not_taken_for_damage(workdir):
    run = load_run(workdir.path)
    wide = {"params": {"params": {"weight": np.zeros((3, 4), np.float32)}}}
    checkpoints = Checkpoints(workdir.checkpoints, read_only=True)
    with pytest.raises(CheckpointError, match=r"another network: .*params/weight is n"):
        checkpoints.restore_latest(wide, partly=True)
    with pytest.raises(CheckpointError, match=r"of another network: .* and \d+ more"):
        checkpoints.restore_latest({"params": run.params})
    checkpoints.close()


def test_another_configuration_is_refused_before_any_checkpoint_is_read(workdir):
    for step in (OLD, NEW):
        flipped(largest(workdir.checkpoints / str(step)), 0.5)
    config = workdir.read_config()
    config = configs.override(config, [("model.routing.num_iterations", "2")])
    with pytest.raises(WorkdirError, match="num_iterations is 3 there, 2 here"):
        train.train(config, workdir)


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints", "lock", "x/y"])
def test_no_link_may_lead_out_of_the_folder(name, workdir, tmp_path, monkeypatch):
    outside = tmp_path / "outside"
    path = workdir.path / name
    path.parent.mkdir(exist_ok=True)
    if path.exists():
        path.rename(outside)
    else:
        outside.write_text("theirs")
    path.symlink_to(outside)
    with pytest.raises(WorkdirError, match=f"{path.name} is a symbolic link to .*outs"):
        resumed(workdir, monkeypatch)
    with pytest.raises(WorkdirError, match="is a symbolic link"):
        load_run(workdir.path)


def test_the_folder_itself_may_be_a_link(workdir, tmp_path, monkeypatch):
    link = tmp_path / "link"
    link.symlink_to(workdir.path)
    assert resumed(Workdir(link), monkeypatch).step == NEW
    assert load_run(link).step == NEW


def test_a_full_disk_leaves_the_last_checkpoint(workdir):
    """A limit of 64 KiB on the size of files stands in for a full disk."""
    import resource

    checkpoints = Checkpoints(workdir.checkpoints)
    big = {"w": np.random.default_rng(0).random(2**20)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    try:
        checkpoints.save(30, big)
        with pytest.raises(CheckpointError, match="can't save"):
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    checkpoints.close()
    again = Checkpoints(workdir.checkpoints)
    assert again.steps == [OLD, NEW]
    again.close()
    assert {path.name for path in workdir.checkpoints.iterdir()} == {"10", "20"}


def test_an_unfinished_result_is_never_left(workdir, monkeypatch):
    def full(descriptor):
        del descriptor
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorkdirError, match=r"result\.json: No space left on device"):
        write_json(workdir.result, {})
    assert not workdir.result.exists()
    assert not list(pathlib.Path(workdir.path).glob(".result*"))


COMPILING = """
import sys
import jax, jax.numpy as jnp
from capsjax.storage.workdir import Workdir
from capsjax.training import trainer

def make_train_chunk(train_step, **_):
    def train_chunk(state, batches):
        x = batches.image.astype(jnp.float32).reshape(-1)[:64]
        for n in range(2000):  # Half a minute of XLA's time, in one call.
            x = jnp.sort(jnp.sin(x * n))
        new, outcome = train_step(state, jax.tree.map(lambda a: a[0], batches))
        return new._replace(step=new.step + x.sum().astype(int)), outcome
    return train_chunk

trainer.make_train_chunk = make_train_chunk
lowered = jax.stages.Lowered.compile
def compile(self, *options):
    print("XLA begins", flush=True)
    compiled = lowered(self, *options)
    print("XLA has ended", flush=True)
    return compiled
jax.stages.Lowered.compile = compile
workdir = Workdir(sys.argv[1])
config = workdir.read_config()
config.num_epochs = 3
trainer.complete(config, workdir, may_exit=True)
"""


@pytest.mark.slow
def test_two_ctrl_c_while_xla_compiles_leave_all_whole(
    workdir, whole_state, monkeypatch
):
    with subprocess.Popen(
        [sys.executable, "-c", COMPILING, workdir.path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "4",
            "JAX_ENABLE_COMPILATION_CACHE": "false",
            "XLA_FLAGS": "",
        },
    ) as process:
        assert any(line == "XLA begins\n" for line in process.stdout)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        assert any("stopping after these steps" in line for line in process.stderr)
        time.sleep(1)  # Python's own handlers would still wait.
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
    assert process.returncode == 130, err
    assert "XLA has ended" not in out
    assert load_run(workdir.path).step == NEW
    jax.tree.map(
        np.testing.assert_array_equal,
        bits(resumed(workdir, monkeypatch)),
        bits(whole_state),
    )
    assert not [path for path in workdir.path.rglob("*") if "tmp" in path.name]
