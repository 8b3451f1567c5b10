import pathlib
import shutil
import signal
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import variants
from rights import as_nobody, public_folder

from capsjax.storage import checkpoints as module
from capsjax.storage.checkpoints import CheckpointError, Checkpoints


def state(value):
    return {"w": jnp.full((3, 4), float(value)), "key": jax.random.key(value)}


@pytest.fixture
def checkpoints(tmp_path):
    made = Checkpoints(tmp_path / "checkpoints")
    yield made
    made.close()


def like(tree):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=device), tree
    )


def test_a_restored_state_equals_the_saved_one(checkpoints):
    checkpoints.save(3, state(3))
    checkpoints.wait()
    restored = checkpoints.restore(3, like(state(0)))
    np.testing.assert_array_equal(restored["w"], np.full((3, 4), 3.0))
    assert jax.random.uniform(restored["key"]) == jax.random.uniform(jax.random.key(3))


def test_the_two_latest_and_the_best_are_kept(checkpoints, tmp_path):
    for step, loss in [(1, 0.5), (2, 0.1), (3, 0.3), (4, 0.2)]:
        checkpoints.save(step, state(step), loss=loss)
    checkpoints.wait()
    assert checkpoints.steps == [2, 3, 4]
    assert checkpoints.best == (2, 0.1)
    again = Checkpoints(tmp_path / "checkpoints")
    assert (again.steps, again.best, again.latest) == ([2, 3, 4], (2, 0.1), 4)
    again.close()


def test_the_later_of_equally_good_steps_is_the_best(checkpoints):
    for step, loss in [(1, 0.5), (2, 0.5), (3, 0.6), (4, 0.7)]:
        checkpoints.save(step, state(step), loss=loss)
    checkpoints.wait()
    assert checkpoints.steps == [2, 3, 4]
    assert checkpoints.best == (2, 0.5)


def test_an_interrupted_save_has_no_loss_and_does_not_push_out_the_best(checkpoints):
    checkpoints.save(1, state(1), loss=0.5)
    checkpoints.save(2, state(2))
    checkpoints.save(3, state(3))
    checkpoints.save(4, state(4))
    checkpoints.wait()
    assert checkpoints.steps == [1, 3, 4]
    assert checkpoints.best == (1, 0.5)
    assert checkpoints.latest == 4


def test_only_the_latest_two_are_kept_without_validation(checkpoints):
    for step in (1, 2, 3):
        checkpoints.save(step, state(step))
    checkpoints.wait()
    assert checkpoints.steps == [2, 3]
    assert checkpoints.best is None


def test_a_damaged_checkpoint_is_reported_with_its_step(checkpoints, tmp_path):
    checkpoints.save(3, state(3))
    checkpoints.wait()
    for path in (tmp_path / "checkpoints" / "3" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="The checkpoint of step 3 is damaged"):
        checkpoints.restore(3, like(state(0)))


def test_a_damaged_step_that_is_saved_again_is_trusted_again(tmp_path):
    folder = tmp_path / "checkpoints"
    before = Checkpoints(folder)
    for step in (1, 2):
        before.save(step, state(step))
    before.close()
    (folder / "2" / "_CHECKPOINT_METADATA").unlink()
    again = Checkpoints(folder)
    assert again.restore_latest(like(state(0)))[0] == 1
    for step in (2, 3):
        again.save(step, state(step))
    again.wait()
    assert again.restore_best(like(state(0)))[0] == 3
    again.close()


@pytest.mark.parametrize("is_half_gone", [False, True])
def test_a_step_deleted_by_the_run_that_trains_is_not_damaged(
    checkpoints, tmp_path, capsys, is_half_gone
):
    checkpoints.save(1, state(1), loss=0.1)
    checkpoints.save(2, state(2), loss=0.2)
    checkpoints.wait()
    reader = Checkpoints(tmp_path / "checkpoints", read_only=True)
    if is_half_gone:
        folder = tmp_path / "checkpoints" / "1"
        (folder / "commit_success.txt").unlink()
        rest = threading.Timer(0.05, shutil.rmtree, [folder])
        rest.start()
        expected = 2
    else:
        checkpoints.save(3, state(3), loss=0.05)  # Better than the first.
        checkpoints.save(4, state(4), loss=0.3)
        checkpoints.wait()
        expected = 3
    assert reader.restore_best(like(state(0)))[0] == expected
    assert capsys.readouterr().err == ""
    reader.close()


def test_a_file_that_may_not_be_read_is_not_taken_for_damage():
    with public_folder() as folder:
        checkpoints = Checkpoints(folder)
        for step in (1, 2):
            checkpoints.save(step, state(step))
        checkpoints.wait()
        data = list((folder / "2" / "state").rglob("d/*"))
        for path in data:
            path.chmod(0)
        message = (
            r"can't read the checkpoint of step 2 now \(Permission denied\); it may be"
        )
        with as_nobody(), pytest.raises(CheckpointError, match=message):
            checkpoints.restore_latest(like(state(0)))
        for path in data:
            path.chmod(0o644)
        assert checkpoints.restore_latest(like(state(0)))[0] == 2
        checkpoints.close()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(5, "Input/output error"),
        ValueError("DATA_LOSS: reading x [OS error 5: EIO Input/output error]"),
        ValueError("UNKNOWN: reading x [os_error_code='5'] [more]"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes."),
    ],
)
def test_a_failure_that_may_pass_is_not_taken_for_damage(
    checkpoints, monkeypatch, error
):
    def read(*_, **__):
        raise KeyError("Orbax hides the cause") from error

    checkpoints.save(1, state(1))
    checkpoints.save(2, state(2))
    checkpoints.wait()
    monkeypatch.setattr(module.ocp, "load_checkpointables", read)
    with pytest.raises(
        CheckpointError, match="can't read the checkpoint of step 2 now"
    ):
        checkpoints.restore_latest(like(state(0)))
    assert checkpoints.steps == [1, 2]


def test_the_accuracy_of_a_validation_is_kept_with_its_step(checkpoints, tmp_path):
    checkpoints.save(1, state(1), loss=0.5, accuracy=0.75)
    checkpoints.save(2, state(2))
    checkpoints.wait()
    again = Checkpoints(tmp_path / "checkpoints", read_only=True)
    for kept in (checkpoints, again):
        assert (kept.accuracy(1), kept.accuracy(2)) == (0.75, None)
    again.close()


FULL_DISK = """
import os, pathlib, sys
import jax.numpy as jnp
from capsjax.storage.checkpoints import CheckpointError, Checkpoints

folder, kind = pathlib.Path(sys.argv[1]), sys.argv[2]
state = {"w": jnp.arange(100.0)}
checkpoints = Checkpoints(folder / "checkpoints")
checkpoints.save(1, state)
checkpoints.wait()
left = None  # Number of folders and files that can still be made.
if kind == "made up":
    def hook(event, arguments):
        global left
        is_made = event == "os.mkdir" or event == "open" and arguments[2] & os.O_CREAT
        if left is None or not is_made or str(folder) not in str(arguments[0]):
            return
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
    sys.addaudithook(hook)
else:
    fillers = [folder / f"{k}" for k in range(os.statvfs(folder).f_ffree)]
    for filler in fillers:
        filler.touch()
for room in range(100):
    left = room
    try:
        checkpoints.save(2, state)
        checkpoints.wait()
        break
    except CheckpointError as error:
        print(error)
        assert checkpoints.steps == [1], checkpoints.steps
    if kind != "made up":
        fillers.pop().unlink()
assert checkpoints.steps == [1, 2]
assert Checkpoints(folder / "checkpoints").steps == [1, 2]
print("the end", flush=True)
"""


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a disk for 60 files and folders."""
    options = ["-t", "tmpfs", "-o", "nr_inodes=60,size=20m", "tmpfs", str(tmp_path)]
    if (
        shutil.which("mount") is None
        or subprocess.run(
            ["mount", *options], stderr=subprocess.DEVNULL, check=False
        ).returncode
    ):
        pytest.skip("no disk may be mounted here")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def every_failed_save(folder, kind):
    """Returns the errors of saves, each with room for one file more than before."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(folder), kind],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,  # Orbax's threads would wait for twenty minutes.
    )
    assert done.returncode == 0, done.stderr
    *errors, end = done.stdout.splitlines()
    assert end == "the end"
    return errors


def test_a_save_that_fails_anywhere_is_an_error_and_the_process_ends(tmp_path):
    """A folder that can't be made once left threads that kept the process alive."""
    errors = every_failed_save(tmp_path, "made up")
    assert len(errors) >= 6  # Orbax itself makes two folders and four files.
    for line in errors:
        assert line.startswith("can't save step 2: OSError: "), line
        assert "No space left on device" in line


def test_a_disk_without_room_is_an_error_and_the_process_ends(small_disk):
    """Here TensorStore's files count too."""
    errors = every_failed_save(small_disk, "mounted")
    assert len(errors) >= 12
    for line in errors:
        assert line.startswith("can't save step 2: OSError: "), line
        assert "No space left on device" in line


def test_a_failed_save_is_raised_by_the_next_check(checkpoints, tmp_path, monkeypatch):
    checkpoints.save(1, state(1))
    checkpoints.check()
    checkpoints.wait()

    class Failed:
        def result(self, timeout):
            raise OSError(5, "Input/output error")

    def fail(*_, **__):
        return Failed()

    with monkeypatch.context() as patch:
        patch.setattr(module.ocp, "save_checkpointables_async", fail)
        checkpoints.save(2, state(2))
    message = r"can't save step 2: OSError: \[Errno 5\] Input/output error"
    with pytest.raises(CheckpointError, match=message):
        checkpoints.check()
    assert checkpoints.steps == [1]
    checkpoints.check()  # It is raised once.


def test_a_check_does_not_wait(checkpoints, monkeypatch):
    class Running:
        def result(self, timeout):
            assert timeout == 0
            raise TimeoutError

    with monkeypatch.context() as patch:
        patch.setattr(
            module.ocp, "save_checkpointables_async", lambda *_, **__: Running()
        )
        checkpoints.save(1, state(1))
    checkpoints.check()
    assert checkpoints.steps == [1]
    checkpoints._saving = None


DELETION = """
import os, pathlib, shutil, signal, sys
import jax.numpy as jnp
from capsjax.storage.checkpoints import Checkpoints

checkpoints = Checkpoints(pathlib.Path(sys.argv[1]))
for step in (1, 2, 3):
    if step == 3:
        unlink, left = os.unlink, int(sys.argv[2])
        def until_killed(*arguments, **options):
            global left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            unlink(*arguments, **options)
        os.unlink = until_killed
    checkpoints.save(step, {"w": jnp.full(3, float(step))}, loss=1 / step)
    checkpoints.wait()
"""


@pytest.mark.parametrize("deleted", [0, *variants(1), 3])
def test_a_kill_while_an_old_step_is_deleted_leaves_nothing_damaged(
    tmp_path, capsys, deleted
):
    arguments = [sys.executable, "-c", DELETION, str(tmp_path), str(deleted)]
    killed = subprocess.run(arguments, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "1.deleted").exists()
    reader = Checkpoints(tmp_path, read_only=True)
    assert (reader.steps, reader.best) == ([2, 3], (3, 1 / 3))
    assert (tmp_path / "1.deleted").exists()  # A reader changes nothing.
    again = Checkpoints(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"2", "3"}
    assert again.restore_best(like({"w": jnp.zeros(3)}))[0] == 3
    assert capsys.readouterr().err == ""


def test_a_step_that_can_t_be_deleted_is_a_warning_and_the_run_goes_on(
    checkpoints, monkeypatch, capsys
):
    def refuse(*_):
        raise OSError(16, "Device or resource busy")

    for step in (1, 2):
        checkpoints.save(step, state(step))
    checkpoints.wait()
    with monkeypatch.context() as patch:
        checkpoints.save(3, state(3))
        checkpoints._saving.response.result()
        patch.setattr(pathlib.Path, "rename", refuse)
        checkpoints.wait()
    assert "can't delete the checkpoint of step 1 (OSError: [Errno 16]" in (
        capsys.readouterr().err
    )
    assert checkpoints.steps == [2, 3]


def test_a_folder_that_is_none_is_an_error_and_none_at_all_has_no_steps(tmp_path):
    (tmp_path / "file").touch()
    for read_only in (False, True):
        with pytest.raises(CheckpointError, match=r"can't use .*file: "):
            Checkpoints(tmp_path / "file", read_only=read_only)
    assert Checkpoints(tmp_path / "none", read_only=True).steps == []


def test_a_record_whose_seal_is_another_is_damaged(checkpoints, monkeypatch):
    checkpoints.save(3, state(3))
    checkpoints.wait()
    monkeypatch.setattr(module, "_seal", lambda record: 0)
    with pytest.raises(CheckpointError, match=r"step 3 .*its checksums are missing or"):
        checkpoints.restore(3, like(state(0)))
