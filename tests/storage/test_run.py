"""A run on disk, opened again."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import capsjax
from capsjax.data import load
from capsjax.runtime.devices import replicated
from capsjax.storage.checkpoints import Checkpoints
from capsjax.storage.files import WorkdirError
from capsjax.storage.workdir import Workdir
from capsjax.training.state import init_state

pytestmark = pytest.mark.slow  # it trains one first


@pytest.fixture(scope="module")
def run(tiny_run):
    return capsjax.load_run(tiny_run)


def test_it_is_the_best_network_of_the_run(run, tiny_run):
    checkpoints = Checkpoints(Workdir(tiny_run).checkpoints, read_only=True)
    best, _ = checkpoints.best
    optimizer = run.config.optimizer.make(10)
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated()),
        jax.eval_shape(lambda: init_state(run.model, optimizer, run.config)),
    )
    state = checkpoints.restore(best, like)
    checkpoints.close()
    assert run.step == best
    jax.tree.map(np.testing.assert_array_equal, run.params, state.params)
    assert run.class_names == tuple("0123456789")


def test_it_is_the_last_network_where_the_run_was_to_stop_at_an_accuracy(
    tiny_run, tmp_path, monkeypatch
):
    path = shutil.copytree(tiny_run, tmp_path / "run")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "stop_at": 0.9}))
    # As if the first had been the best.
    monkeypatch.setattr(Checkpoints, "restore_best", None)
    assert capsjax.load_run(path).step == 20


def test_it_answers_as_the_model_however_many_images_there_are(run):
    image = load("mnist", "test").image[:70]
    routed = run.model.apply(
        run.params, jnp.asarray(image) / 255, method=run.model.encode
    )
    for n in (0, 1, 5, 70):
        label, length, pose = prediction = run.predict(image[:n])
        assert prediction.length is length
        assert len(label) == n
        np.testing.assert_allclose(pose, routed.pose[:n], rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(length, routed.activation[:n], rtol=1e-3, atol=1e-6)
        assert (label == length.argmax(-1)).all()
    for one in (image[0], image[0, ..., 0], image[:1, ..., 0]):
        np.testing.assert_array_equal(run.predict(one).label, label[:1])


def test_it_draws_from_the_labels_capsule(run):
    pose = run.predict(load("mnist", "test").image[:3]).pose
    label = np.array([3, 1, 4])
    mask = jax.nn.one_hot(label, 10)
    expected = run.model.apply(
        run.params, jnp.asarray(pose), mask, method=run.model.decode
    )
    np.testing.assert_allclose(run.draw(pose, label), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((2, 27, 28, 1), np.uint8), ValueError, r"\(28, 28, 1\).*27"),
        (np.zeros((28, 27), np.uint8), ValueError, r"\(28, 27\)"),
        (np.zeros((2, 28, 28, 1)), TypeError, "uint8.*float64"),
    ],
)
def test_other_images_are_refused(run, image, error, message):
    with pytest.raises(error, match=message):
        run.predict(image)


def test_what_is_no_run_is_refused(tmp_path, tiny_run):
    with pytest.raises(WorkdirError, match="it has no config"):
        capsjax.load_run(tmp_path / "nothing")
    for name in ("config.json", "dataset.json"):
        (tmp_path / name).write_bytes((tiny_run / name).read_bytes())
    with pytest.raises(WorkdirError, match="no checkpoint yet"):
        capsjax.load_run(tmp_path)
    about = json.loads((tiny_run / "dataset.json").read_text())
    for damaged in (
        {},
        [],
        {**about, "image_shape": ["28", 28, 1]},
        {**about, "image_shape": [28, 28, 0]},
        {**about, "image_shape": [28, 28, 10**30]},
        {**about, "image_shape": 28},
        {**about, "class_names": []},
        {**about, "class_names": "0123456789"},
        {**about, "class_names": [0, 1]},
    ):
        (tmp_path / "dataset.json").write_text(json.dumps(damaged))
        with pytest.raises(WorkdirError, match=r"dataset\.json is damaged"):
            capsjax.load_run(tmp_path)
    assert not (tmp_path / "nothing").exists()
    assert not (tmp_path / "checkpoints").exists()


def test_an_edited_run_is_refused_in_a_line(tmp_path, tiny_run):
    for name in ("config.json", "dataset.json"):
        (tmp_path / name).write_bytes((tiny_run / name).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["eval_batch_size"] = 0
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WorkdirError, match="eval_batch_size must be"):
        capsjax.load_run(tmp_path)
    config["eval_batch_size"] = 8
    config["model"]["routing"]["kind"] = "x"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WorkdirError, match=r"model\.routing must be one of dynamic, "):
        capsjax.load_run(tmp_path)


def test_nothing_is_drawn_of_nothing(run):
    nothing = run.draw(np.zeros((0, 10, 4), np.float32), np.zeros(0, int))
    assert nothing.shape == (0, 28, 28, 1)


def test_a_pickled_run_predicts_the_same(run):
    image = load("mnist", "test").image[:5]
    expected = run.predict(image)
    run.draw(expected.pose, expected.label)  # Nothing that is compiled gets in the way.
    again = pickle.loads(pickle.dumps(run))
    jax.tree.map(np.testing.assert_array_equal, again.predict(image), expected)
    np.testing.assert_array_equal(
        again.draw(expected.pose, expected.label),
        run.draw(expected.pose, expected.label),
    )
    assert again.class_names == run.class_names
    assert again.preparation == run.preparation


def test_a_run_goes_to_another_process(run, tiny_run, tmp_path):
    # Far from the folder that it was opened in, and from this process's settings.
    image = load("mnist", "test").image[:3]
    (tmp_path / "run.pickle").write_bytes(pickle.dumps((run.predict, image)))
    code = (
        "import pickle, sys\n"
        "predict, image = pickle.load(open('run.pickle', 'rb'))\n"
        "pickle.dump(tuple(predict(image)), open('answer.pickle', 'wb'))\n"
    )
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "4"}  # as here
    subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, env=environment
    )
    answer = pickle.loads((tmp_path / "answer.pickle").read_bytes())
    jax.tree.map(np.testing.assert_array_equal, answer, tuple(run.predict(image)))
