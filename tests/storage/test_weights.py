"""A folder with weights.safetensors, opened as a run is."""

import json
import pathlib
import pickle
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from bars import bars
from safetensors.numpy import load_file, save_file
from tiny import tiny, tiny_model

import capsjax
from capsjax import config as configs
from capsjax import evaluate, report
from capsjax.exporting.safetensors import export
from capsjax.models.network import init_variables
from capsjax.models.variables import named
from capsjax.storage.files import WorkdirError, write_json
from capsjax.storage.weights import read_weights, write_weights
from capsjax.training import train

MODEL = tiny_model().clone(image_shape=(28, 28, 1), num_classes=3)
RESULT = {
    "test": {"accuracy": 0.75, "loss": 0.5, "step": 7},
    "test_of_last": {"accuracy": 0.5, "loss": 0.6, "step": 9},
    "num_epochs": 10,
    "seconds": 60.0,
    "num_parameters": 30_784,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of first weights, as if it had been trained and tested."""
    params = init_variables(MODEL, jax.random.key(0))
    path = tmp_path_factory.mktemp("saved") / "run"
    capsjax.save_run(path, MODEL, params, class_names="abc")
    write_json(path / "result.json", RESULT)
    about = json.loads((path / "dataset.json").read_text())
    write_json(path / "dataset.json", {**about, "splits": {"train": {"checksum": "0"}}})
    return capsjax.load_run(path)


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("shared") / "folder"
    export(run, path)
    return path


def test_it_has_the_bits_of_the_run_and_predicts_and_draws_the_same(run, folder):
    shared = capsjax.load_run(folder)
    jax.tree.map(np.testing.assert_array_equal, shared.params, run.params)
    assert shared.model == run.model
    assert shared.class_names == ("a", "b", "c")
    assert (shared.step, shared.result) == (run.step, RESULT)
    image = bars(4).image
    expected, actual = run.predict(image), shared.predict(image)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    jax.tree.map(
        np.testing.assert_array_equal, shared.features(image), run.features(image)
    )
    drawings = [one.draw(expected.pose, expected.label) for one in (run, shared)]
    np.testing.assert_array_equal(*drawings)


def test_halves_are_read_as_float32_parameters(run, tmp_path):
    export(run, tmp_path, half=True)
    stored = load_file(tmp_path / "weights.safetensors")
    assert {array.dtype for array in stored.values()} == {np.dtype(np.float16)}
    params = capsjax.load_run(tmp_path).params
    for name, array in named(params).items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, stored[name].astype(np.float32))


def test_batch_statistics_are_not_rounded(tmp_path):
    small = np.full(2, 1e-9, np.float32)
    variables = {"params": {"scale": small}, "batch_stats": {"var": small}}
    write_weights(tmp_path / "x.safetensors", variables, step=3, half=True)
    step, arrays = read_weights(tmp_path / "x.safetensors")
    assert step == 3
    np.testing.assert_array_equal(arrays["batch_stats/var"], small)
    assert not arrays["params/scale"].any()


def test_a_weight_beyond_float16_is_named(tmp_path):
    variables = {"params": {"scale": np.full(2, -70_000, np.float32)}}
    with pytest.raises(WorkdirError, match="params/scale has 70000, and float16 ends"):
        write_weights(tmp_path / "x.safetensors", variables, step=0, half=True)
    assert not [*tmp_path.iterdir()]


def test_the_same_weights_make_the_same_bytes(run, folder, tmp_path):
    for path in export(run, tmp_path):
        assert path.read_bytes() == (folder / path.name).read_bytes(), path


def test_the_card_of_save_run_names_no_recipe(run, tmp_path):
    own = capsjax.save_run(tmp_path / "run", MODEL, run.params)
    export(own, tmp_path / "folder")
    card = (tmp_path / "folder" / "README.md").read_text()
    assert "| recipe | its author's own loop |" in card
    assert not (tmp_path / "folder" / "result.json").exists()


@pytest.mark.slow
def test_evaluate_and_report_open_it(folder, tmp_path, capsys):
    arrays = {"x_test": bars(9).image, "y_test": bars(9).label}
    np.savez(tmp_path / "bars.npz", **arrays, class_names=["a", "b", "c"])
    words = ["--workdir", str(folder), "--data", f"{tmp_path}/bars.npz"]
    assert evaluate.main([*words, "--no-figures"]) == 0
    assert capsys.readouterr().out.startswith("9 test images of ")
    assert report.main([str(folder)]) == 0
    assert "75.00" in capsys.readouterr().out


def test_no_training_goes_on_in_it(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    config = tiny(num_epochs=1)
    config.data = configs.Data(num_validation=0)
    with pytest.raises(WorkdirError, match="holds weights to share, which no") as error:
        train(config, folder, (bars(40), bars(16)))
    assert "\n" not in str(error.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


class Malicious:
    """Makes a file when it is unpickled."""

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("executed"),)


def cut(path, end):
    path.write_bytes(path.read_bytes()[:end])


def changed(change):
    """Changes the arrays, and writes them as another program would."""

    def apply(path):
        arrays = load_file(path)
        change(arrays)
        save_file(arrays, path)

    return apply


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 64
    path.write_bytes(data)


def set_bias(value):
    return changed(lambda arrays: arrays.update({"params/conv_bias": value}))


NO_FILE = "weights.safetensors is damaged, or no safetensors file: "
BAD = {
    "empty": (lambda path: cut(path, 0), NO_FILE),
    "cut in its header": (lambda path: cut(path, 100), NO_FILE),
    "cut in its data": (lambda path: cut(path, -1), NO_FILE),
    "a bit flipped": (flip_a_bit, "its numbers are not the written ones"),
    "a text": (lambda path: path.write_text("no weights, but a text"), NO_FILE),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps(Malicious())), NO_FILE),
    "an array missing": (
        changed(lambda arrays: arrays.pop("params/conv/kernel")),
        "weights.safetensors: the variables have no params/conv/kernel: CapsNet has p",
    ),
    "an array unknown": (
        changed(lambda arrays: arrays.update(x=arrays["params/conv_bias"])),
        "weights.safetensors: the variables have unknown x: CapsNet has params/",
    ),
    "an array in the place of others": (
        changed(lambda arrays: arrays.update(params=arrays["params/conv_bias"])),
        "weights.safetensors: the variables have unknown params: CapsNet has params/",
    ),
    "another shape": (
        set_bias(np.zeros(9, np.float32)),
        r"params/conv_bias of CapsNet must have the shape \(8,\), got \(9,\)",
    ),
    "whole numbers": (
        set_bias(np.zeros(8, np.int32)),
        "params/conv_bias of CapsNet must have the dtype float32, got int32",
    ),
    "no numbers": (
        set_bias(np.full(8, np.nan, np.float32)),
        "params/conv_bias of CapsNet has numbers that are not finite",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line_and_nothing_in_it_runs(
    name, folder, tmp_path, monkeypatch
):
    damage, message = BAD[name]
    monkeypatch.chdir(tmp_path)
    path = shutil.copytree(folder, tmp_path / "folder")
    damage(path / "weights.safetensors")
    with pytest.raises(WorkdirError, match=message) as error:
        capsjax.load_run(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert not (tmp_path / "executed").exists()


def test_a_file_of_another_name_is_named(folder, tmp_path):
    path = shutil.copytree(folder, tmp_path / "folder")
    (path / "weights.safetensors").rename(path / "model.safetensors")
    with pytest.raises(
        WorkdirError, match=r"model\.safetensors must be called weights\.safetensors"
    ):
        capsjax.load_run(path)


def test_weights_of_other_programs_may_have_other_floats(folder, tmp_path):
    path = shutil.copytree(folder, tmp_path / "folder")
    for dtype in (np.float64, ml_dtypes.bfloat16):
        set_bias(np.full(8, 0.5, dtype))(path / "weights.safetensors")
        run = capsjax.load_run(path)
        assert run.step == 0  # Other programs keep none.
        np.testing.assert_array_equal(
            run.params["params"]["conv_bias"], np.full(8, 0.5, np.float32)
        )


def test_the_header_of_capsjax_may_be_damaged_too(folder, tmp_path):
    path = tmp_path / "x.safetensors"
    for about in ("", "[]", "{}", json.dumps({"step": "x", "checksum": ""})):
        arrays = load_file(folder / "weights.safetensors")
        save_file(arrays, path, {"capsjax": about})
        with pytest.raises(WorkdirError, match="is damaged: its header has "):
            read_weights(path)
