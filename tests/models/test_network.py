"""Networks and algorithms of a user's own go through the whole engine."""

import dataclasses
import functools
import importlib.util
import json
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image
from places import blocks
from tiny import TINY_MODEL, digits, tiny

import capsjax
from capsjax import config as configs
from capsjax import evaluate, load_run, predict, report
from capsjax import train as train_command
from capsjax.data import load
from capsjax.losses import fitting_loss
from capsjax.models.network import NetworkError, activation_kind, bind, check_output
from capsjax.models.variables import named
from capsjax.routings import Routed
from capsjax.runtime.devices import AXIS
from capsjax.storage.files import WorkdirError
from capsjax.training.command_line import UsageError, parse
from capsjax.training.state import init_state
from capsjax.training.step import make_train_step
from capsjax.training.trainer import train

pytestmark = pytest.mark.usefixtures("without_estimate")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The complete example of docs/your-experiment.md."""
    path = tmp_path_factory.mktemp("own") / "my_experiment.py"
    path.write_text(blocks("your-experiment.md")[0])
    return path


@pytest.fixture(scope="module")
def own(file):
    spec = importlib.util.spec_from_file_location("my_experiment", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small(config, **model):
    """Makes two epochs of five steps of the config, with a narrow network."""
    config.num_epochs, config.batch_size, config.steps_per_dispatch = 2, 8, 5
    config.data = configs.Data(digits(), num_train=40, num_validation=50)
    config.model = config.model.clone(features=8, **model)
    return config


def extendable(config):
    """The page's config, with epochs that don't depend on how many there are to be."""
    config.optimizer = dataclasses.replace(config.optimizer, schedule="constant")
    config.augmentation = dataclasses.replace(config.augmentation, last_shifted=0.0)
    return config


@pytest.fixture(scope="module")
def run_path(own, tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    train(extendable(small(own.get_config())), path)
    return path


@pytest.mark.slow
def test_the_network_of_the_page_trains_and_config_json_names_it(run_path):
    stored = json.loads((run_path / "config.json").read_text())
    routing = {"class": "GainRouting", "num_iterations": 3, "sharpness": 1.0}
    assert stored["model"] == {
        **{"class": "ConvCapsNet", "features": 8, "dropout": 0.1},
        "routing": routing,
    }
    words = [stored[name]["kind"] for name in ("optimizer", "augmentation")]
    assert (words, stored["augmentation"]["rotation"]) == (["adamw", "warp"], 15.0)
    result = json.loads((run_path / "result.json").read_text())
    assert result["test"]["margin_loss"] == result["test"]["loss"]  # It does not draw.


@pytest.mark.slow
def test_its_run_is_opened_with_its_file_and_not_without(own, run_path):
    run = load_run(run_path, config=own.get_config())
    assert type(run.model).__name__ == "ConvCapsNet"
    assert run.model.features == 8
    (gain,) = [a for name, a in named(run.params).items() if name.endswith("gain")]
    assert gain.shape == (10,)
    assert (gain != 1).all()  # It is learnt.
    # The statistics have moved, and are those that predict.
    mean = run.params["batch_stats"]["BatchNorm_0"]["mean"]
    assert np.abs(mean).max() > 0
    image = load(digits(), "test").image
    seen = run.model.apply(run.params, jnp.asarray(image) / 255, method="encode")
    np.testing.assert_allclose(run.predict(image).length, seen.activation, atol=1e-6)
    with pytest.raises(
        WorkdirError, match=r"config.model is ConvCapsNet, a class that"
    ):
        load_run(run_path)


@pytest.mark.slow
def test_every_command_opens_its_run_with_its_file(file, run_path, capsys, tmp_path):
    Image.fromarray(load(digits(), "test").image[0, ..., 0]).save(tmp_path / "one.png")
    own, run = ["--config", str(file)], str(run_path)
    assert evaluate.main([*own, "--workdir", run, "--no-figures"]) == 0
    assert "accuracy by rounds" not in capsys.readouterr().out  # It has no stages.
    assert report.main([*own, run]) == 0
    assert "my_experiment" in capsys.readouterr().out
    picture = str(tmp_path / "one.png")
    assert predict.main([*own, "--workdir", run, "--json", picture]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert len(answer["lengths"]) == 10
    assert predict.main(["--workdir", run, picture]) == 1
    message = "ConvCapsNet, a class that capsjax does not have: .* --config FILE"
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.variant
def test_a_resumed_run_equals_one_that_was_not_stopped_bit_for_bit(
    own, run_path, tmp_path
):
    config = extendable(small(own.get_config()))
    config.num_epochs = 1
    train(config, tmp_path / "parts")
    config.num_epochs = 2
    train(config, tmp_path / "parts")
    runs = [load_run(path, config=config) for path in (run_path, tmp_path / "parts")]
    jax.tree.map(np.testing.assert_array_equal, runs[0].params, runs[1].params)


def test_flags_set_the_fields_of_an_own_network(file):
    flags = ["--config.model.features=5", "--config.model.routing.sharpness=2"]
    model = parse(["train", f"--config={file}", *flags], "").config.model
    assert (model.features, model.routing.sharpness) == (5, 2.0)
    flags = ["--config.model.routing=uniform"]
    model = parse(["train", f"--config={file}", *flags], "").config.model
    assert model.routing == capsjax.UniformRouting()
    for flag, message in (
        ("model.width=3", r"has no field width. It has features, dropout, routing"),
        ("model.features=wide", r"config.model.features must be a whole number"),
        ("model.num_classes=3", r"has no field num_classes"),
    ):
        with pytest.raises(UsageError, match=message):
            parse(["train", f"--config={file}", f"--config.{flag}"], "")


@pytest.mark.slow
def test_an_own_algorithm_trains_in_the_network_that_comes_with_capsjax(tmp_path):
    names = {}
    for block in blocks("algorithms.md"):
        exec(block, names)
    config = tiny()
    config.model = config.model.clone(routing=names["get_config"]().model.routing)
    config = configs.override(config, [("model.routing.sharpness", "2")])
    train(config, tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    routing = stored["model"]["routing"]
    assert (routing["class"], routing["sharpness"]) == ("CosineRouting", 2.0)
    assert load_run(tmp_path, config=config).model.routing == config.model.routing


class StartsBadly(nn.Module):
    """A network whose author chose a wrong initializer."""

    image_shape: tuple[int, int, int] = (0, 0, 0)
    num_classes: int = 0
    features: int = 8

    activation_kind = "logit"

    @nn.compact
    def encode(self, image, *, is_training=False):
        flat = image.reshape(*image.shape[:-3], -1)
        start = nn.initializers.constant(np.inf)
        return Routed(None, nn.Dense(self.num_classes, bias_init=start)(flat), None)


def test_weights_that_are_not_finite_at_the_start_are_named(tmp_path):
    message = "StartsBadly starts with numbers that are not finite in params/Dense_0/b"
    with pytest.raises(configs.ConfigError, match=message):
        train(small(configs.Config(model=StartsBadly())), tmp_path)
    assert not (tmp_path / "config.json").exists()


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """The second file of docs/your-experiment.md, with a narrow network."""
    path = tmp_path_factory.mktemp("parts") / "parts.py"
    path.write_text("\n".join(blocks("your-experiment.md")[1:]))
    return path


PARTS = ("--config.num_epochs=1", "--config.batch_size=100", *TINY_MODEL)


@pytest.fixture
def command(monkeypatch):
    """The training command, in this process as it is."""
    monkeypatch.setattr(train_command, "keep_compiled_programs", lambda: None)
    return lambda *words: train_command.main(["train", *words, "--distributed=off"])


@pytest.mark.slow
def test_a_loss_an_optimizer_and_images_of_ones_own_go_through_the_commands(
    parts, command, tmp_path, capsys
):
    own, run = f"--config={parts}", str(tmp_path / "run")
    words = [own, f"--workdir={run}", "--config.data.noise=50", *PARTS]
    assert command(*words) == 0
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    kinds = {name: stored[name]["class"] for name in ("loss", "optimizer", "data")}
    assert kinds == {"loss": "LogLoss", "optimizer": "OneCycle", "data": "Bars"}
    assert stored["data"]["noise"] == 50
    lines = load_run(run, config=get_config(parts)).workdir.read_metrics()
    assert "log_loss" in lines[0]
    # The same command finds it finished; every command opens it with its file.
    assert command(*words) == 0
    assert "is finished" in capsys.readouterr().out
    evaluated = ["--workdir", run, "--no-figures"]
    assert evaluate.main(["--config", str(parts), *evaluated]) == 0
    assert capsys.readouterr().out.startswith("100 test images of bars")
    assert report.main(["--config", str(parts), run]) == 0
    capsys.readouterr()
    assert evaluate.main(evaluated) == 1
    message = r"error: .*config.data is Bars, a class that capsjax does not have"
    assert re.search(message, capsys.readouterr().err)


def get_config(path):
    names = {"__name__": "parts"}
    exec(path.read_text(), names)
    return names["get_config"]()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "return None",
            "load of Mine must return a capsjax.data.Dataset, got NoneType.",
        ),
        ("raise OSError('the server is down')", "the server is down"),
    ],
)
def test_data_of_ones_own_that_can_t_be_loaded_are_one_line(
    command, tmp_path, capsys, body, message
):
    file = tmp_path / "mine.py"
    file.write_text(
        "from capsjax.config import Config, Data\n"
        f"class Mine(Data):\n    def load(self, split, **options):\n        {body}\n"
        "def get_config(variant=''):\n    return Config(data=Mine())\n"
    )
    assert command(f"--config={file}", f"--workdir={tmp_path / 'run'}") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"capsjax.train: error: {message}"
    assert not (tmp_path / "run").exists()


# ---- several devices


def step_on(devices, model, config):
    """Variables after two steps on so many devices, and whether they were shared."""
    loss = fitting_loss(config.loss, "length")
    optimizer = config.optimizer.make(10)
    state = init_state(model, optimizer, config)
    step = jax.pmap(
        make_train_step(model, optimizer, config, loss, num_steps=10),
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=None,
        devices=jax.devices()[:devices],
    )
    batch = load(digits(), "train").batch(np.arange(8))
    shares = jax.tree.map(lambda a: a.reshape(devices, -1, *a.shape[1:]), batch)
    for _ in range(2):
        state, outcome = step(state, shares)
    return state.params, bool(outcome.is_shared)


@pytest.mark.slow
def test_batch_statistics_are_those_of_the_batch_of_all_devices(own):
    config = small(own.get_config())
    model = bind(config.model.clone(dropout=0.0), (28, 28, 1), 10)
    one, is_shared = step_on(1, model, config)
    assert is_shared
    four, is_shared = step_on(4, model, config)
    assert is_shared
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
        one["batch_stats"],
        four["batch_stats"],
    )


class Foreign(nn.Module):
    """Batch norm whose author did not think of several devices."""

    image_shape: tuple[int, int, int] = (0, 0, 0)
    num_classes: int = 0
    features: int = 8

    @nn.compact
    def encode(self, image, *, is_training=False):
        hidden = nn.BatchNorm(not is_training)(image)
        flat = hidden.reshape(len(image), -1, 8)
        return capsjax.DenseCaps(self.num_classes, 4)(capsjax.squash(flat))

    activation_kind = "length"


def test_statistics_that_differ_between_devices_are_refused_with_the_remedy(tmp_path):
    config = small(configs.Config(model=Foreign()))
    message = "batch_stats of Foreign differ .* axis_name=capsjax.DEVICE_AXIS"
    with pytest.raises(configs.ConfigError, match=message) as error:
        train(config, tmp_path)
    assert "\n" not in str(error.value)


class Noisy(nn.Module):
    """Adds to its activations what dropout left of ones."""

    image_shape: tuple[int, int, int] = (28, 28, 1)
    num_classes: int = 10
    devices: int = 4
    activation_kind = "length"

    @nn.compact
    def encode(self, image, *, is_training=False):
        scale = self.param("scale", nn.initializers.ones, (10,))
        ones = jnp.ones((len(image), 10)) * scale[None]
        kept = nn.Dropout(0.5, deterministic=not is_training)(ones)
        shape = (self.devices, 80 // self.devices)
        seen = self.variable("seen", "kept", jnp.zeros, shape)
        self.variable("seen", "flag", jnp.zeros, (), bool)
        if is_training:
            seen.value = jax.lax.all_gather(kept, AXIS).reshape(shape)
        return Routed(ones[..., None], kept / 4, None)


def test_each_device_draws_dropout_of_its_own_and_each_step_another():
    config = configs.Config(batch_size=8)
    first = step_on(4, Noisy(), config)[0]["seen"]["kept"]
    again = step_on(4, Noisy(), config)[0]["seen"]["kept"]
    np.testing.assert_array_equal(first, again)
    assert len({row.tobytes() for row in np.asarray(first)}) == 4


@dataclasses.dataclass(frozen=True)
class Wild(configs.Optimizer):
    """An optimizer of a user's own, with updates that are not finite."""

    def update_rule(self, rate):
        return optax.scale(float("inf"))


def test_an_own_optimizer_s_updates_that_are_not_finite_are_not_applied():
    config = configs.Config(batch_size=8, optimizer=Wild())
    first = init_state(Noisy(), config.optimizer.make(10), config).params
    after, _ = step_on(1, Noisy(devices=1), config)
    np.testing.assert_array_equal(first["params"]["scale"], after["params"]["scale"])


# ---- the contract


class NoEncode(nn.Module):
    image_shape: tuple[int, int, int] = (0, 0, 0)
    num_classes: int = 0


class NoKind(NoEncode):
    def encode(self, image, *, is_training=False):
        return Routed(None, image, None)


class OddKind(NoKind):
    activation_kind = "odd"


class NoTraining(NoEncode):
    def encode(self, image):
        return Routed(None, image, None)


class NoFields(nn.Module):
    image_shape = (0, 0, 0)  # An attribute, as it has no annotation.

    def encode(self, image, *, is_training=False):
        return Routed(None, image, None)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (3, "int is no Flax Linen module, got 3"),
        (NoEncode(), r"NoEncode must have the method encode\(image, \*, is_training\)"),
        (NoFields(), "the annotated field image_shape and the annotated field num_c"),
        (NoTraining(), r"NoTraining must have the method encode\(image, \*, is_train"),
        (NoKind(), "NoKind must have activation_kind, one of length, .*; got None"),
        (OddKind(), "OddKind must have activation_kind, one of length, .*; got 'odd'"),
    ],
)
def test_what_a_network_lacks_is_one_line(network, message):
    with pytest.raises(NetworkError, match=message):
        bind(network, (28, 28, 1), 10)


class Wrong(nn.Module):
    """Returns what it is made with."""

    encoded: Any
    drawn: tuple[int, ...] = (2, 28, 28, 1)
    image_shape: tuple[int, int, int] = (28, 28, 1)
    num_classes: int = 10

    def encode(self, image, *, is_training=False):
        return self.encoded

    def decode(self, pose, mask):
        return jnp.zeros(self.drawn)


def encoded(*shape):
    return Routed(jnp.zeros((2, 10, 4)), jnp.zeros(shape), None)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Wrong(jnp.zeros(3)), r"encode of Wrong must return a capsjax.Routed\("),
        (Wrong(encoded(2, 9)), r"an activation of shape \(2, 10\) .*, got \(2, 9\)"),
        (
            Wrong(encoded(2, 10), (2, 784)),
            r"images of shape \(2, 28, .* \(2, 784\)",
        ),
    ],
)
def test_what_a_network_returns_wrong_is_one_line(network, message):
    with pytest.raises(NetworkError, match=message):
        check_output(network, {})


def test_a_network_has_the_kind_of_its_algorithm_unless_it_declares_one():
    assert activation_kind(capsjax.CapsNet()) == "length"
    assert activation_kind(capsjax.models.BaselineCNN()) == "logit"
    assert activation_kind(Foreign()) == "length"
