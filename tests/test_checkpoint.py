import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rights import as_nobody, public_folder

from capsjax.checkpoint import CheckpointError, Checkpoints


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


def test_a_restored_state_is_the_saved_one(checkpoints):
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


def test_of_equally_good_ones_the_later_is_the_best(checkpoints):
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


def test_without_validation_only_the_latest_two_are_kept(checkpoints):
    for step in (1, 2, 3):
        checkpoints.save(step, state(step))
    checkpoints.wait()
    assert checkpoints.steps == [2, 3]
    assert checkpoints.best is None


def test_a_damaged_checkpoint_is_told_with_step_and_cause(checkpoints, tmp_path):
    checkpoints.save(3, state(3))
    checkpoints.wait()
    for path in (tmp_path / "checkpoints" / "3" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="The checkpoint of step 3 is damaged"):
        checkpoints.restore(3, like(state(0)))


def test_a_damaged_step_that_is_made_again_is_no_longer_suspected(tmp_path):
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
        told = (
            r"can't read the checkpoint of step 2 now \(Permission denied\); it may be"
        )
        with as_nobody(), pytest.raises(CheckpointError, match=told):
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
def test_a_reading_that_failed_this_once_is_told_as_such(
    checkpoints, monkeypatch, error
):
    def read(*_, **__):
        raise KeyError("what Orbax makes of it") from error

    checkpoints.save(1, state(1))
    checkpoints.save(2, state(2))
    checkpoints.wait()
    monkeypatch.setattr(checkpoints._checkpointer, "load_checkpointables", read)
    with pytest.raises(
        CheckpointError, match="can't read the checkpoint of step 2 now"
    ):
        checkpoints.restore_latest(like(state(0)))
    assert checkpoints.steps == [1, 2]
