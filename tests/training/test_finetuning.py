"""Other weights: where a run takes them, and which it keeps."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from bars import bars
from places import blocks
from safetensors.numpy import save_file
from tiny import tiny, tiny_model

import capsjax
from capsjax import config as configs
from capsjax.exporting.safetensors import export
from capsjax.models.variables import named
from capsjax.storage.workdir import Workdir
from capsjax.training import train
from capsjax.training.finetuning import read_start
from capsjax.training.task import make_task
from capsjax.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("without_estimate")

FROZEN = ("conv", "conv_bias", "primary_caps")


def recipe(source, **fields):
    """Fine-tunes on four classes what learnt three."""
    config = dataclasses.replace(tiny(), num_epochs=1, init_from=str(source), **fields)
    config.data = configs.Data(num_validation=0)
    return config


FOUR = bars(40, 4), bars(16, 4)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run on three classes, and its folder."""
    config = recipe("")
    return train(config, tmp_path_factory.mktemp("source"), (bars(40, 3), bars(16, 3)))


@pytest.fixture(scope="module")
def tuned(source, tmp_path_factory):
    path = tmp_path_factory.mktemp("tuned") / "run"
    return train(recipe(source.workdir.path, freeze=FROZEN), path, FOUR)


@pytest.mark.slow
def test_frozen_weights_keep_their_bits_and_all_others_move(source, tuned):
    before, after = named(source.params), named(tuned.params)
    for name, array in after.items():
        is_same = np.array_equal(before[name], array)
        assert is_same == (name.split("/")[1] in FROZEN), name


@pytest.mark.slow
def test_the_page_fine_tunes_in_python(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(source.workdir.path, "runs/mnist-smoke-seed0")
    (block,) = blocks("fine-tuning.md")
    names = {"sets": (bars(150, 4), bars(16, 4))}
    exec(block, names)
    before, after = source.params["params"], names["run"].params["params"]
    np.testing.assert_array_equal(after["conv_bias"], before["conv_bias"])
    assert after["class_caps"]["weight"].shape[1] == 4


def test_history_names_what_was_taken_and_what_starts_anew(source, tuned):
    (stage,) = json.loads(tuned.workdir.history.read_text())
    about = stage["init_from"]
    assert about["run"] == str(source.workdir.path)
    assert about["step"] == source.step
    assert about["taken"] == [
        *("conv", "conv_bias", "decoder/Dense_0/bias", "decoder/Dense_1"),
        "primary_caps",
    ]
    assert about["anew"] == ["class_caps", "decoder/Dense_0/kernel"]
    assert (about["num_taken"], about["num_arrays"]) == (7, 9)


def test_without_a_step_all_weights_are_the_other_runs(source, tmp_path, monkeypatch):
    """The moving average and what the optimizer keeps start from them, too."""
    config = recipe(source.workdir.path)
    config.optimizer = configs.Adam(average=0.9)
    states = []

    def begin(trainer):
        states.append(trainer.state)
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_introduce", begin)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", (bars(40, 3), bars(16, 3)))
    (state,) = states
    for variables in (state.params, state.average):
        jax.tree.map(np.testing.assert_array_equal, variables, source.params)


@pytest.mark.slow
def test_a_run_resumes_after_its_source_has_gone(source, tmp_path, monkeypatch):
    there = tmp_path / "source"
    shutil.copytree(source.workdir.path, there)
    config = recipe(there, freeze=FROZEN)
    config.num_epochs = 2
    whole = train(config, tmp_path / "whole", FOUR)

    def stop(trainer):
        raise KeyboardInterrupt

    epoch = Trainer.train_epoch
    with monkeypatch.context() as patch:
        done = []
        patch.setattr(
            *(Trainer, "train_epoch"),
            lambda trainer: stop(trainer) if done else done.append(epoch(trainer)),
        )
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "parts", FOUR)
    shutil.rmtree(there)
    resumed = train(config, tmp_path / "parts", FOUR)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
    assert "init_from" in json.loads(resumed.workdir.history.read_text())[0]


WRONG = [
    # A folder in spite of its name.
    ({"init_from": "a.safetensors"}, r"a\.safetensors holds no run"),
    ({"init_from": "nowhere"}, r"config.init_from=nowhere: .*nowhere holds no run"),
    ({"init_from": "run"}, "config.init_from=run is the folder of this run itself"),
    ({"freeze": ("conv", "x")}, "config.freeze has 'x', which names no weights: the "),
    ({"freeze": ("conv", "conv")}, "config.freeze=conv,conv names weights twice"),
    (
        {"freeze": (*FROZEN, "class_caps", "decoder")},
        "decoder leaves nothing to train: the network has class_caps, conv, ",
    ),
    ({"model": capsjax.models.BaselineCNN()}, "none of its weights has a name and sha"),
    (
        {"freeze": ("conv",), "model": tiny_model().clone(conv_features=4)},
        r"config.freeze has 'conv', which starts anew in spite of config.init_from=.*: "
        r"params/conv/kernel is \(9, 9, 1, 4\) in this network and \(9, .*, 8\) there",
    ),
    (
        {
            "freeze": ("class_caps",),
            "model": tiny_model(routing=capsjax.DynamicRouting(bias=0.1)),
        },
        r"'class_caps', which .*: params/class_caps/bias is \(4, 4\) .* and not there",
    ),
]


@pytest.mark.parametrize(("fields", "message"), WRONG)
def test_what_does_not_fit_is_one_line_and_nothing_is_written(
    source, tmp_path, monkeypatch, fields, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.safetensors").mkdir()
    config = dataclasses.replace(recipe(source.workdir.path), **fields)
    with pytest.raises(configs.ConfigError, match=message) as caught:
        train(config, "run", FOUR)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("without_estimate")
def test_freezing_weights_that_start_at_random_is_a_warning(capsys):
    config = tiny()
    config.freeze = ("conv",)
    make_task(config)
    assert "warning: config.freeze=conv: these weights start" in capsys.readouterr().err


def test_names_to_freeze_come_from_the_command_line():
    config = configs.override(configs.Config(), [("freeze", "conv, primary_caps")])
    assert config.freeze == ("conv", "primary_caps")
    assert configs.override(config, [("freeze", "")]).freeze == ()
    assert configs.from_dict(configs.to_dict(config)) == config
    config.freeze = (1,)
    with pytest.raises(configs.ConfigError, match=r"freeze must be a tuple of names"):
        configs.validate(config)


# ---- files

MODEL = tiny_model().clone(image_shape=(28, 28, 1), num_classes=3)
# Arrays with PyTorch's names and axes, and where the network has them.
TABLE = ("conv/kernel = stem.weight oihw->hwio", "conv_bias=stem.bias")
STEM = {
    "stem.weight": np.random.default_rng(0).normal(size=(8, 1, 9, 9)),
    "stem.bias": np.arange(8, dtype=np.float16),
    "head.weight": np.zeros((10, 8)),
}


def start_from(path, **fields):
    config = tiny(init_from=str(path), **fields)
    return read_start(config, MODEL, Workdir("run"))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    path = tmp_path_factory.mktemp("backbone") / "x.safetensors"
    save_file(STEM, path)
    return path


def test_a_folder_or_a_file_of_weights_starts_a_run_as_the_run_does(source, tmp_path):
    export(source, tmp_path)
    file = tmp_path / "weights.safetensors"
    expected = start_from(source.workdir.path)
    for path in (tmp_path, file):
        start = start_from(path)
        assert start == expected._replace(run=str(path), variables=start.variables)
        jax.tree.map(np.testing.assert_array_equal, start.variables, expected.variables)


def test_a_table_names_and_transposes_the_arrays_of_a_backbone(
    backbone, tmp_path, monkeypatch, capsys
):
    config = recipe(backbone, init_names=TABLE)
    states = []

    def begin(trainer):
        states.append(trainer.state)
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_introduce", begin)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", (bars(40, 3), bars(16, 3)))
    weights = jax.tree.map(np.asarray, states[0].params["params"])
    # Weight [o, i, h, w] of PyTorch is kernel [h, w, i, o] of Flax.
    kernel = weights["conv"]["kernel"]
    assert kernel.dtype == np.float32
    for h, w, o in ((0, 0, 0), (2, 7, 5)):
        assert kernel[h, w, 0, o] == np.float32(STEM["stem.weight"][o, 0, h, w])
    np.testing.assert_array_equal(weights["conv_bias"], np.arange(8))
    line = f"arrays start as {backbone} has them: conv, conv_bias; class_caps, "
    assert line in capsys.readouterr().out
    (stage,) = json.loads((tmp_path / "run" / "history.json").read_text())
    assert stage["init_from"]["taken"] == ["conv", "conv_bias"]
    assert stage["init_from"]["step"] is None
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert configs.from_dict(written).init_names == TABLE


WRONG_FILES = [
    ((), "none of its weights has a name and shape of this network"),
    (("conv/kernel",), "has 'conv/kernel': write OURS = THEIRS, or OURS = THEIRS oihw"),
    (("conv/bias = stem.bias",), "the network has no conv/bias, but class_caps/"),
    (("conv_bias = stem.b",), r"the file has no stem.b, but head.weight, stem.bias, s"),
    (
        ("conv/kernel = stem.weight",),
        r"conv/kernel is \(9, 9, 1, 8\) in this .* stem.weight is \(8, 1, 9, 9\)\.",
    ),
    (("conv/kernel = stem.weight oihw->hwoi",), r"\(9, 9, 8, 1\) so transposed"),
    *(
        ((f"conv/kernel = stem.weight {axes}",), "must have each of 4 letters once")
        for axes in ("oi->io", "oihw->hwii", "oihh->hhio", "oihw->hwix")
    ),
    ((*TABLE, "params/conv_bias = stem.bias"), "has an array of ours twice"),
]


@pytest.mark.parametrize(("table", "message"), WRONG_FILES)
def test_a_table_that_does_not_fit_is_one_line(backbone, table, message):
    with pytest.raises(configs.ConfigError, match=message) as error:
        start_from(backbone, init_names=table)
    assert "\n" not in str(error.value)


def test_a_file_of_no_weights_is_one_line(tmp_path, source):
    path = tmp_path / "backbone.pt"
    path.write_bytes(b"\x80\x02}q\x00.")
    bad = {"params/conv_bias": np.full(8, np.inf, np.float32)}
    save_file(bad, tmp_path / "infinite.safetensors")
    save_file({"params/conv_bias": np.zeros(8, int)}, tmp_path / "int.safetensors")
    for name, message in (
        ("backbone.pt", r"backbone.pt is damaged, or no safetensors file: "),
        ("none.safetensors", r"can't read .*none.safetensors: No such file"),
        ("infinite.safetensors", "params/conv_bias has numbers that are not finite"),
        ("int.safetensors", "params/conv_bias must be float32, got int64"),
    ):
        with pytest.raises(configs.ConfigError, match=message) as error:
            start_from(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(configs.ConfigError, match=r"config.init_names is for a file"):
        start_from(source.workdir.path, init_names=TABLE)
    with pytest.raises(configs.ConfigError, match=r"so config.init_from must be FILE"):
        configs.validate(tiny(init_names=TABLE))


def test_a_table_comes_from_the_command_line():
    text = ", ".join(TABLE)
    assert configs.override(tiny(), [("init_names", text)]).init_names == TABLE
