import copy
import dataclasses
import importlib.util
import itertools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from places import ROOT

from capsjax import config as configs
from capsjax.models import make_model, num_parameters
from capsjax.runtime.hosts import Hosts
from capsjax.training.command_line import UsageError
from capsjax.training.command_line import parse as parse_flags
from capsjax.training.step import make_optimizer

EXPERIMENTS = ROOT / "experiments"
EXPERIMENT = EXPERIMENTS / "mnist.py"


def experiment(path=EXPERIMENT):
    spec = importlib.util.spec_from_file_location("experiment", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse(*arguments):
    return parse_flags(["train", *arguments], "about")


@pytest.mark.parametrize(
    "path", sorted(EXPERIMENTS.glob("*.py")), ids=lambda path: path.stem
)
def test_every_recipe_is_valid_and_survives_json(path):
    variants = experiment(path).VARIANTS
    assert {"", "smoke"} <= set(variants)
    for variant in variants:
        config = experiment(path).get_config(variant)
        assert (config.experiment, config.variant) == (path.stem, variant)
        configs.validate(config)
        stored = json.loads(json.dumps(configs.to_dict(config)))
        assert configs.from_dict(stored) == config
    with pytest.raises(ValueError, match=f"experiments/{path.stem}.py"):
        experiment(path).get_config("nothing")


# What the network sees, channels of the first convolution, types and components of
# primary capsules, components of class capsules: the paper's sections 4, 6 and 7; and
# the parameters in millions where it tells them.
@pytest.mark.parametrize(
    ("name", "shape", "features", "types", "dim", "class_dim", "told"),
    [
        ("mnist", (28, 28, 1), 256, 32, 8, 16, 8.2),
        ("multimnist", (36, 36, 1), 256, 32, 8, 16, 11.36),
        ("affnist", (40, 40, 1), 256, 32, 8, 16, None),
        ("cifar10", (24, 24, 3), 256, 64, 8, 16, None),
        ("svhn", (32, 32, 3), 64, 16, 6, 8, None),
        ("smallnorb", (32, 32, 2), 256, 32, 8, 16, None),
    ],
)
def test_networks_are_as_large_as_the_papers(
    name, shape, features, types, dim, class_dim, told
):
    config = experiment(EXPERIMENTS / f"{name}.py").get_config()
    classes = 5 if name == "smallnorb" else 10
    height, width, channels = shape
    positions = len(range(0, height - 16, 2)) ** 2
    inputs, pixels = positions * types, height * width * channels
    widths = (class_dim * classes, 512, 1024, pixels)
    expected = (
        (81 * channels + 1) * features
        + (81 * features + 1) * types * dim
        + inputs * classes * dim * class_dim
        + sum((one + 1) * other for one, other in itertools.pairwise(widths))
    )
    model = make_model(config.model, shape, classes)
    image = jax.ShapeDtypeStruct((1, *shape), np.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)
    assert num_parameters(params) == expected
    assert config.data.crop in (0, height)
    assert told is None or expected / 1e6 == pytest.approx(told, abs=0.02)


def test_recipes_differ_as_their_sources_do():
    recipe = {name: experiment().get_config(name) for name in experiment().VARIANTS}
    notebook, paper, authors = recipe["notebook"], recipe["paper"], recipe["authors"]
    assert notebook.model.num_iterations == 2
    assert notebook.model.primary_relu
    assert notebook.loss.reconstruction_reduction == "mean"
    assert notebook.batch_size == 50
    assert notebook.data.max_shift == 0
    assert notebook.model.initializers.weight == "normal(0.1)"
    assert paper.model.num_iterations == 3
    for name, rounds, weight in (
        ("one_round", 1, paper.loss.reconstruction_weight),
        ("no_reconstruction", 3, 0),
        ("one_round_no_reconstruction", 1, 0),
    ):
        expected = copy.deepcopy(paper)
        expected.variant, expected.model.num_iterations = name, rounds
        expected.loss.reconstruction_weight = float(weight)
        assert recipe[name] == expected
    assert recipe["cnn"].model.name == "cnn"
    assert paper.loss.reconstruction_reduction == "sum"
    assert paper.data.max_shift == 2
    assert paper.batch_size == authors.batch_size == 128
    assert authors.loss.margin_weight == pytest.approx(1 / 20)
    assert authors.model.primary_scale == 1 / 32
    assert authors.model.routing_bias
    assert authors.model.initializers == configs.Initializers(
        conv="truncated_normal(0.05)",
        primary="truncated_normal(0.1)",
        weight="truncated_normal(0.1)",
        decoder="truncated_normal(0.1)",
        reconstruction="truncated_normal(0.1)",
        bias="constant(0.1)",
        routing_bias=0.1,
    )
    assert authors.optimizer.floor == 1e-6


WRONG = [
    ("num_epochs", 0, "config.num_epochs must be at least 1, got 0"),
    ("experiment", "../x", "config.experiment must be letters, digits"),
    ("model.num_iterations", 101, "config.model.num_iterations must be at most 100"),
    ("optimizer.decay_rate", 1.0, "config.optimizer.decay_rate must be above 0, below"),
    ("seed", -1, "config.seed must be from 0"),
    ("stop_at", 1.5, "config.stop_at must be from 0 to 1, got 1.5"),
    ("max_gigabytes", 0.0, "config.max_gigabytes must be above 0, got 0.0"),
    ("data.num_validation", -2, "num_validation must be at least 0, or -1, got -2"),
    ("data.class_weights", "equal", "must be one of none, balanced, got 'equal'"),
    ("data.crop", -1, "config.data.crop must be at least 0, got -1"),
    ("model.name", "resnet", "must be one of capsnet, cnn, got 'resnet'"),
    ("model.dropout", 1.0, "config.model.dropout must be at least 0, below 1"),
    ("batch_size", 2.5, "config.batch_size must be a whole number, got 2.5"),
    ("tensorboard", 1, "config.tensorboard must be true or false, got 1"),
    ("data.name", "", "config.data.name must be the name"),
    ("data.max_shift", -1, "config.data.max_shift must be at least 0, got -1"),
    ("model.num_iterations", 0, "config.model.num_iterations must be at least 1"),
    ("model.decoder_features", (5, 0), "config.model.decoder_features must be"),
    ("model.decoder_features", [5], "must be a tuple of whole numbers, got [5]"),
    (
        "model.compute_dtype",
        "float16",
        "must be one of float32, bfloat16, got 'float16'",
    ),
    ("loss.absent", 0.95, "config.loss.absent must be at most present=0.9"),
    ("loss.reconstruction_reduction", "max", "must be one of sum, mean"),
    ("optimizer.learning_rate", float("nan"), "must be a finite number, got nan"),
    ("optimizer.learning_rate", 1001.0, "must be above 0, at most 1000, got 1001"),
    ("optimizer.eps", 1e-31, "must be at least 1e-30, got 1e-31"),
    ("optimizer.schedule", "step", "must be one of constant, exponential, cosine"),
    ("optimizer.floor", 1.0, "config.optimizer.floor must be from 0 to learning_rate"),
    ("optimizer.b2", 1.0, "config.optimizer.b2 must be at least 0, below 1"),
    ("optimizer.average", 1.0, "config.optimizer.average must be"),
    ("optimizer.learning_rate", 10**400, "must be a finite number, got 1000"),
    ("num_epochs", 2**32, "config.num_epochs must be below 2^32, got 4294967296"),
    ("model.decoder_features", (-(2**40),), "must be below 2^32"),
    ("model.conv_features", 2**17, "config.model.conv_features must be at most 65536"),
    ("model.primary_stride", 2**17, "primary_stride must be at most 65536"),
    ("model.decoder_features", (2**17,), "integers of at most 65536, got (131072,)"),
    ("model.decoder_features", (1,) * 101, "must be at most 100 integers"),
    ("optimizer.decay_steps", 2**31, "config.optimizer.decay_steps must be below 2^31"),
]


@pytest.mark.parametrize(("field", "value", "told"), WRONG)
def test_a_wrong_value_is_told_with_field_value_and_range(field, value, told):
    config = configs.Config()
    *sections, name = field.split(".")
    section = config
    for part in sections:
        section = getattr(section, part)
    setattr(section, name, value)
    with pytest.raises(configs.ConfigError, match=re.escape(told)):
        configs.validate(config)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("model", 3, "config.model must be a capsjax.config.Model, got 3"),
        ("model", None, "config.model must be a capsjax.config.Model, got None"),
        (
            "model",
            configs.Model,
            "config.model must be a capsjax.config.Model, got <cl",
        ),
        ("loss", {"present": 1}, "config.loss must be a capsjax.config.Loss, got {'pr"),
        (
            "model.initializers",
            "scaled",
            "config.model.initializers must be a capsjax.config.Initializers, got 'sc",
        ),
        ("batchsize", 3, "config has no field batchsize; did you mean batch_size?"),
        ("model.depth", 3, "config.model has no field depth. It has name, conv_"),
    ],
)
def test_what_a_config_file_breaks_is_one_line_with_the_field(
    tmp_path, field, value, told
):
    file = tmp_path / "broken.py"
    written = "configs.Model" if value is configs.Model else repr(value)
    file.write_text(
        "from capsjax import config as configs\n"
        "def get_config():\n"
        "    config = configs.Config()\n"
        f"    config.{field} = {written}\n"
        "    return config\n"
    )
    with pytest.raises(configs.ConfigError, match=f"^{re.escape(told)}") as error:
        configs.validate(parse(f"--config={file}").config)
    assert "\n" not in str(error.value)


def test_fields_that_a_stored_config_does_not_have_yet_have_their_defaults():
    stored = configs.to_dict(configs.Config(seed=3))
    del stored["bad_numbers"], stored["model"]["class_dim"]
    assert configs.from_dict(stored) == configs.Config(seed=3)


def test_stored_configs_with_unknown_fields_are_refused():
    with pytest.raises(configs.ConfigError, match=r"config\.model must be an object"):
        configs.from_dict({**configs.to_dict(configs.Config()), "model": 1})
    with pytest.raises(configs.ConfigError, match="config has unknown fields: odd"):
        configs.from_dict({**configs.to_dict(configs.Config()), "odd": 1})


def test_every_field_is_documented():
    for section in (configs.Config, configs.Data, configs.Model, configs.Optimizer):
        for field in dataclasses.fields(section):
            assert f"{field.name}:" in section.__doc__, field.name


def test_overrides_reach_their_fields():
    asked = parse(
        f"--config={EXPERIMENT}:smoke",
        "--config.num_epochs=7",
        "--config.optimizer.learning_rate=1",
        "--config.model.decoder_features=(4,8)",
        "--config.model.routing_bias=true",
        "--workdir=there",
    )
    expected = copy.deepcopy(experiment().get_config("smoke"))
    expected.num_epochs = 7
    expected.optimizer.learning_rate = 1.0
    expected.model.decoder_features = (4, 8)
    expected.model.routing_bias = True
    assert asked.config == expected
    assert asked.workdir == "there"
    assert (asked.num_cpu_devices, asked.hosts) == (None, Hosts())


def test_the_flags_of_hosts_and_devices_are_taken():
    asked = parse(
        f"--config={EXPERIMENT}:smoke",
        "--num_cpu_devices=2",
        "--distributed=on",
        "--coordinator_address=there:1234",
        "--num_processes=4",
        "--process_id=3",
        "--heartbeat_seconds=20",
    )
    assert asked.num_cpu_devices == 2
    assert asked.hosts == Hosts("on", "there:1234", 4, 3, 20)


MISTAKES = [
    ([], "--config is missing; for example --config experiments/mnist.py"),
    (["--config=nope.py"], "No such file or directory: 'nope.py'"),
    ([f"--config={EXPERIMENT}:smok"], "unknown variant 'smok' .* choose from notebook"),
    (
        ["--config.model.rounds=5"],
        "config.model has no field rounds.* It has name, conv_",
    ),
    (["--config.model.class_dims=5"], "no field class_dims; did you mean class_dim?"),
    (["--config.sed.deep=5"], "config has no field sed; did you mean seed?"),
    (["--flagfile=/nope"], "nope"),
    (["--config.seed=five"], "--config.seed=five: invalid literal"),
    (["--config.num_epochs=2.5"], "--config.num_epochs=2.5: invalid literal"),
    (["--confg.seed=5"], "Unknown command line flag 'confg.seed'"),
    (["more"], "unexpected arguments: more"),
    (["--distributed=maybe"], "should be one of <auto|on|off>"),
    (["--num_cpu_devices=0"], r"integer in the range \[1, 1024\]"),
    (["--num_cpu_devices=100000"], r"integer in the range \[1, 1024\]"),
    (["--heartbeat_seconds=1000000000"], r"integer in the range \[1, 86400\]"),
    (["--num_processes=9999999999999"], r"integer in the range \[1, 65536\]"),
]


@pytest.mark.parametrize(("arguments", "told"), MISTAKES)
def test_a_mistake_on_the_command_line_is_one_clear_line(arguments, told):
    if arguments and not arguments[0].startswith("--config="):
        arguments = [f"--config={EXPERIMENT}", *arguments]
    with pytest.raises(UsageError, match=told) as error:
        parse(*arguments)
    assert "\n" not in str(error.value)


def test_a_broken_config_file_is_told_with_its_line(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config():\n    return 1 / 0\n")
    with pytest.raises(UsageError, match=r"ZeroDivisionError.*broken.py, line 2"):
        parse(f"--config={broken}")
    broken.write_text("def get_config(:\n")
    with pytest.raises(UsageError, match="is not Python"):
        parse(f"--config={broken}")
    broken.write_text("def get_config():\n    return {}\n")
    with pytest.raises(UsageError, match=r"must return a capsjax.config.Config"):
        parse(f"--config={broken}")


def test_help_tells_the_flags(capsys):
    with pytest.raises(SystemExit) as end:
        parse("--help")
    assert end.value.code == 0
    assert "--workdir" in capsys.readouterr().out


def test_the_authors_rate_falls_by_4_percent_in_2000_steps_to_a_millionth():
    config = experiment().get_config("authors")
    optimizer = make_optimizer(config.optimizer, 500_000)
    one, update = jnp.ones(()), jax.jit(optimizer.update)

    def rate(step):
        """Adam's update, when all gradients so far were one."""
        state = optax.tree.set(
            optimizer.init(one),
            count=jnp.array(step),
            mu=jnp.array(1 - 0.9**step),
            nu=jnp.array(1 - 0.999**step),
        )
        return -update(one, state)[0]

    for step in (0, 1_000, 2_000, 6_000, 100_000, 338_000):
        np.testing.assert_allclose(rate(step), 1e-3 * 0.96 ** (step / 2_000), rtol=1e-4)
    np.testing.assert_allclose(rate(400_000), 1e-6, rtol=1e-4)
