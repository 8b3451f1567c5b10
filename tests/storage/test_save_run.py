"""Weights that somebody trained in a loop of their own become a run."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from bars import bars
from places import blocks
from tiny import tiny, tiny_model

import capsjax
from capsjax import config as configs
from capsjax import evaluate, predict, report
from capsjax.data.augment import scale_to_unit
from capsjax.data.preparation import Preparation
from capsjax.models.network import init_variables
from capsjax.storage.files import WorkdirError
from capsjax.training import train
from capsjax.training.trainer import Trainer

MODEL = tiny_model().clone(image_shape=(28, 28, 1), num_classes=3)


@pytest.fixture(scope="module")
def params():
    return init_variables(MODEL, jax.random.key(0))


@pytest.fixture(scope="module")
def saved(params, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "run"
    return capsjax.save_run(path, MODEL, params, class_names="abc")


def test_the_run_has_the_weights_the_network_and_the_names(saved, params):
    jax.tree.map(np.testing.assert_array_equal, saved.params, params)
    assert saved.model == MODEL
    assert saved.class_names == ("a", "b", "c")
    assert saved.result is None


@pytest.mark.slow
def test_evaluate_and_predict_open_it(saved, tmp_path, capsys):
    from PIL import Image

    for k, image in enumerate(bars(6).image):
        folder = tmp_path / "pictures" / "abc"[k % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(folder / f"{k}.png")
    path = str(saved.workdir.path)
    data = str(tmp_path / "pictures")
    assert evaluate.main(["--workdir", path, "--data", data, "--no-figures"]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("6 test images of ")
    assert second == f"{path}, weights of save_run"
    assert predict.main(["--workdir", path, f"{data}/a/0.png"]) == 0
    # Without --data nobody knows which images are meant.
    assert evaluate.main(["--workdir", path]) == 1
    message = f"save_run made {path}, which has no images: name them by --data FILE"
    assert message in capsys.readouterr().err
    assert report.main([path]) == 1
    assert "its weights were saved by save_run" in capsys.readouterr().err


@pytest.mark.variant
def test_its_figures_are_drawn(saved, tmp_path):
    arrays = {"x_test": bars(9).image, "y_test": bars(9).label}
    np.savez(tmp_path / "bars.npz", **arrays, class_names=["a", "b", "c"])
    words = ["--workdir", str(saved.workdir.path), "--data", f"{tmp_path}/bars.npz"]
    assert evaluate.main(words) == 0
    (folder,) = saved.workdir.figures.iterdir()
    assert (folder / "evaluation.json").exists()
    assert not (folder / "training.png").exists()


def test_a_training_can_start_from_it(saved, tmp_path, monkeypatch):
    config = tiny(init_from=str(saved.workdir.path), num_epochs=1)
    config.data = configs.Data(num_validation=0)
    states = []
    monkeypatch.setattr(
        Trainer, "train_epoch", lambda trainer: states.append(trainer.state) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        train(config, tmp_path, (bars(40), bars(16)))
    jax.tree.map(np.testing.assert_array_equal, states[0].params, saved.params)


@pytest.mark.slow
def test_the_page_trains_a_network_in_its_own_loop(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = [one for one in blocks("your-code.md") if "save_run" in one]
    names = {"image": scale_to_unit(bars(30).image), "label": bars(30).label}
    names["__name__"] = __name__  # The module of its class.
    exec(block, names)
    run = capsjax.load_run("runs/rows", config=configs.Config(model=names["Rows"]()))
    assert (run.predict(bars(30).image).label == bars(30).label).mean() > 0.9


def test_it_is_not_resumed(saved):
    config = tiny(num_epochs=1)
    config.data = configs.Data(num_validation=0)
    with pytest.raises(WorkdirError, match="holds a run with another configuration"):
        train(config, saved.workdir.path, (bars(40), bars(16)))


def broken(params, change):
    params = jax.tree.map(np.asarray, params)
    change(params["params"])
    return params


WRONG = [
    (lambda p: p.pop("conv"), {}, "the variables have no params/conv/kernel: CapsNet "),
    (lambda p: p.update(x=p["conv_bias"]), {}, "the variables have unknown params/x: "),
    (
        lambda p: p.update(conv_bias=np.zeros(9, np.float32)),
        {},
        r"params/conv_bias of CapsNet must have the shape \(8,\), got \(9,\)",
    ),
    (
        lambda p: p.update(conv_bias=np.zeros(8, np.float64)),
        {},
        "params/conv_bias of CapsNet must have the dtype float32, got float64",
    ),
    (
        lambda p: p.update(conv_bias=np.full(8, np.nan, np.float32)),
        {},
        "params/conv_bias of CapsNet has numbers that are not finite",
    ),
    (None, {"class_names": "ab"}, "class_names has 2 names, and the network 3 classes"),
    (
        None,
        {"preparation": Preparation("as_is", 20, 20, 1)},
        r"the preparation makes images of \(20, 20, 1\), and the network is for \(28",
    ),
]


@pytest.mark.parametrize(("change", "options", "message"), WRONG)
def test_what_does_not_fit_is_named_and_nothing_is_written(
    params, tmp_path, change, options, message
):
    if change is not None:
        params = broken(params, change)
    with pytest.raises(ValueError, match=message):
        capsjax.save_run(tmp_path / "run", MODEL, params, **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Dense(3), "Dense must have the annotated field image_shape and .* encode"),
        (
            tiny_model(),
            r"CapsNet needs image_shape=.* and num_classes, got image_shape=\(0",
        ),
    ],
)
def test_what_is_no_bound_network_is_named(params, tmp_path, model, message):
    for use in (
        lambda: capsjax.save_run(tmp_path / "run", model, params),
        lambda: capsjax.memory_estimate(model, 8),
    ):
        with pytest.raises(ValueError, match=message):
            use()


def test_a_folder_with_a_run_is_left_alone(saved, params):
    before = saved.workdir.config.read_bytes()
    with pytest.raises(WorkdirError, match="holds a run; choose another folder"):
        capsjax.save_run(saved.workdir.path, MODEL, params)
    assert saved.workdir.config.read_bytes() == before
