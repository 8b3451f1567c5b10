import dataclasses
import importlib.util
import itertools
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from places import ROOT

from capsjax import CapsNet, DynamicRouting
from capsjax import config as configs
from capsjax.config.values import check, fields_of
from capsjax.data.augment import AUGMENTATIONS, NoAugmentation, Shift
from capsjax.losses import LOSSES, MarginLoss
from capsjax.models import NETWORKS, BaselineCNN, num_parameters
from capsjax.models.network import bind, init_variables
from capsjax.routings import ROUTINGS, UniformRouting
from capsjax.runtime.hosts import Hosts
from capsjax.training.command_line import UsageError
from capsjax.training.command_line import parse as parse_flags

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
    variants = experiment(path).RECIPES
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
    ("name", "shape", "features", "types", "dim", "class_dim", "millions"),
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
    name, shape, features, types, dim, class_dim, millions
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
    model = bind(config.model, shape, classes)
    params = jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))
    assert num_parameters(params) == expected
    assert config.data.crop in (0, height)
    assert millions is None or expected / 1e6 == pytest.approx(millions, abs=0.02)


def test_a_cosine_ends_any_schedule():
    optimizer = configs.Adam(
        schedule="exponential",
        learning_rate=1.0,
        decay_rate=0.1,
        decay_steps=100,
        floor=0.001,
        last_cosine=0.2,
    )
    rate = optimizer._rates(100)
    found = [float(rate(step)) for step in (0, 80, 90, 100)]
    before = 0.1**0.8
    expected = [1.0, before, (before + 0.001) / 2, 0.001]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_recipes_of_the_record_search_see_no_test_image():
    for recipe in experiment(EXPERIMENTS / "record.py").RECIPES.values():
        assert not recipe.test
        assert recipe.data.validation_choice == "last"


def test_recipes_differ_as_their_sources_do():
    recipe = {name: experiment().get_config(name) for name in experiment().RECIPES}
    notebook, paper, authors = recipe["notebook"], recipe["paper"], recipe["authors"]
    assert notebook.model.routing == DynamicRouting(num_iterations=2)
    assert notebook.model.primary_relu
    assert notebook.loss.reconstruction_reduction == "mean"
    assert notebook.batch_size == 50
    assert notebook.augmentation == Shift(max_shift=0)
    assert notebook.model.weight_init == "normal(0.1)"
    assert paper.model.routing == DynamicRouting(num_iterations=3)
    for name, rounds, weight in (
        ("one_round", 1, paper.loss.reconstruction_weight),
        ("no_reconstruction", 3, 0.0),
        ("one_round_no_reconstruction", 1, 0.0),
    ):
        expected = configs.override(
            paper,
            [
                ("variant", name),
                ("model.routing.num_iterations", str(rounds)),
                ("loss.reconstruction_weight", str(weight)),
            ],
        )
        assert recipe[name] == expected
    assert recipe["cnn"].model == BaselineCNN()
    efficient = recipe["efficient"]
    assert (efficient.batch_size, efficient.optimizer.learning_rate) == (16, 5e-4)
    # A normal distribution cut at two deviations has 0.8796 of its deviation.
    deviation = 0.8796 * float(
        efficient.model.weight_init[len("truncated_normal(") : -1]
    )
    assert deviation == pytest.approx((2 / (16 * 10 * 8)) ** 0.5, rel=1e-3)
    assert paper.loss.reconstruction_reduction == "sum"
    assert paper.augmentation == Shift(max_shift=2)
    assert paper.batch_size == authors.batch_size == 128
    assert authors.loss.weight == pytest.approx(1 / 20)
    assert authors.model.primary_scale == 1 / 32
    assert authors.model.routing == DynamicRouting(bias=0.1)
    starts = {
        "conv_init": "truncated_normal(0.05)",
        "primary_init": "truncated_normal(0.1)",
        "weight_init": "truncated_normal(0.1)",
        "decoder_init": "truncated_normal(0.1)",
        "reconstruction_init": "truncated_normal(0.1)",
        "bias_init": "constant(0.1)",
    }
    assert {name: getattr(authors.model, name) for name in starts} == starts
    assert authors.optimizer.floor == 1e-6


# On the command line, and the line that answers.
WRONG = [
    ("num_epochs", "0", "config.num_epochs must be at least 1, got 0."),
    ("num_epochs", "2.5", "config.num_epochs must be a whole number, got '2.5'."),
    ("num_epochs", 2**32, "config.num_epochs must be below 2^32, got 4294967296."),
    ("experiment", "../x", "config.experiment must be letters, digits"),
    ("seed", "-1", "config.seed must be from 0 to 4294967295, got -1."),
    ("stop_at", "1.5", "config.stop_at must be from 0 to 1, got 1.5."),
    ("max_gigabytes", "0", "config.max_gigabytes must be above 0, got 0.0."),
    ("tensorboard", "maybe", "config.tensorboard must be true or false, got 'maybe'."),
    ("batchsize", 3, "config has no field batchsize; did you mean batch_size?"),
    ("sed.deep", 5, "config has no field sed; did you mean seed?"),
    ("data", "x", "config.data must be set field by field, got 'x'."),
    ("data.num_validation", "-2", "must be at least 0, or -1, got -2."),
    ("data.class_weights", "equal", "must be one of none, balanced, got 'equal'."),
    ("data.crop", "-1", "config.data.crop must be at least 0, got -1."),
    ("data.name", "", "config.data.name must be the name of a data set or a folder"),
    ("augmentation.max_shift", -1, "config.augmentation.max_shift must be from 0 to"),
    (
        "augmentation",
        "shft",
        "config.augmentation must be one of shift, warp, photo, none, got ",
    ),
    ("augmentation.scale", 0.3, "shift has no field scale; config.augmentation=warp"),
    ("model", "resnet", "config.model must be one of capsnet, cnn, "),
    ("model.depth", 3, "config.model=capsnet has no field depth. It has conv_features"),
    ("model.class_dims", 5, "no field class_dims; did you mean class_dim? It has"),
    ("model.dropout", 0.1, "model=capsnet has no field dropout; config.model=cnn has."),
    ("model.decoder_features", "(5,0)", "must be at most 100 integers from 1 to 65536"),
    ("model.decoder_features", "(131072,)", "integers from 1 to 65536, got (131072,)."),
    ("model.decoder_features", "1," * 101, "must be at most 100 integers"),
    ("model.decoder_features", "(-1099511627776,)", "must be below 2^32"),
    ("model.decoder_features", "wide", "must be a tuple of whole numbers, got 'wide'."),
    ("model.compute_dtype", "float16", "must be one of float32, bfloat16, got 'flo"),
    ("model.conv_features", 2**17, "config.model.conv_features must be from 1 to 655"),
    ("model.conv_init", "normal", "config.model.conv_init must be one of glorot_unif"),
    ("model.routing", "em_", "config.model.routing must be one of dynamic, uniform, s"),
    ("model.routing.num_iterations", 101, "num_iterations must be from 1 to 100, got "),
    ("model.routing.num_iterations", 0, "num_iterations must be from 1 to 100, got 0."),
    ("model.routing.unroll", 0, "config.model.routing: unroll must be a Python int of"),
    (
        "model.routing.unroll",
        "x",
        "unroll must be a whole number or true or false, got",
    ),
    ("model.routing.form", "fast", "must be one of auto, votes, votes_free, got 'fas"),
    ("model.routing.bias", "x", "model.routing.bias must be a finite number, got 'x'"),
    ("loss", "hinge", "config.loss must be one of auto, margin, spread, cross_entropy"),
    ("loss.present", 0.8, "config.loss=auto has no field present; config.loss=margin "),
    ("loss.reconstruction_reduction", "max", "must be one of sum, mean, got 'max'."),
    (
        "optimizer",
        "adm",
        "must be one of adam, adamw, lion, sgd, got 'adm'; did",
    ),
    ("optimizer.weight_decay", 1, "optimizer=adam has no field weight_decay; config."),
    ("optimizer.decay_rate", 1.0, "config.optimizer.decay_rate must be above 0, below"),
    ("optimizer.learning_rate", "nan", "must be a finite number, got nan."),
    ("optimizer.learning_rate", 1001, "must be above 0, at most 1000, got 1001.0."),
    ("optimizer.eps", 1e-31, "must be from 1e-30 to 1, got 1e-31."),
    ("optimizer.schedule", "step", "must be one of constant, exponential, cosine, got"),
    (
        "optimizer.floor",
        1.0,
        "config.optimizer.floor must be at most learning_rate=0.0",
    ),
    ("optimizer.b2", 1.0, "config.optimizer.b2 must be at least 0, below 1, got 1.0."),
    ("optimizer.average", 1.0, "config.optimizer.average must be at least 0, below 1"),
    ("optimizer.decay_steps", 2**31, "must be from 1 to 2147483647, got 2147483648."),
]


@pytest.mark.parametrize(("field", "value", "message"), WRONG)
def test_a_wrong_flag_is_one_line_with_field_value_and_range(field, value, message):
    with pytest.raises(configs.ConfigError, match=re.escape(message)) as error:
        configs.validate(configs.override(configs.Config(), [(field, str(value))]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.model = 3", "config.model must be a network, such as capsjax.Caps"),
        ("config.model = None", "config.model must be a network, such as capsjax.Cap"),
        ("config.loss = {'a': 1}", "config.loss must be a value of capsjax.losses.Lo"),
        ("config.optimizer = 'adam'", "config.optimizer must be a value of capsjax.c"),
        ("config.batchsize = 3", "config has no field batchsize; did you mean batch_"),
        ("config.batch_size = 2.5", "config.batch_size must be a whole number, got 2"),
        ("config.tensorboard = 1", "config.tensorboard must be true or false, got 1"),
        ("config.model = CapsNet(class_dim=0)", "config.model.class_dim must be from"),
        ("config.data.crop = (5,)", "config.data.crop must be a whole number, got (5"),
        ("config.model = CapsNet(conv_init=len)", "config.model.conv_init must be on"),
        ("config.loss = MarginLoss(absent=1.0)", "config.loss.absent must be at most"),
        ("config.stop_at = 10**400", "config.stop_at must be a finite number, got 100"),
        ("config.data.max_shift = 0", "config.data.max_shift is config.augmentation."),
        ("config.model.num_iterations = 2", "config.model.num_iterations is config.mo"),
        ("config.model.conv_feature = 3", "config.model=capsnet has no field conv_fea"),
        ("config.optimizer.learning_rate = 3", "the config file failed: cannot assign"),
        (
            "config.model.routing = 'uniform'",
            "config.model.routing must be a value, suc",
        ),
    ],
)
def test_a_wrong_value_in_a_config_file_is_one_line_with_the_field(
    tmp_path, line, message
):
    file = tmp_path / "broken.py"
    file.write_text(
        "from capsjax import CapsNet, config as configs\n"
        "from capsjax.losses import MarginLoss\n"
        "def get_config():\n"
        "    config = configs.Config()\n"
        f"    {line}\n"
        "    return config\n"
    )
    for flags in ([], ["--config.seed=1", "--config.data.num_train=10"]):
        errors = configs.ConfigError, UsageError
        with pytest.raises(errors, match=f"^{re.escape(message)}") as error:
            configs.validate(parse(f"--config={file}", *flags).config)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("x = 1", "the config file has no function get_config(), which returns the "),
        (
            "from capsjax.routings import Algorithm\n"
            "class Plain(Algorithm):\n    def route(*_): pass\n"
            "from capsjax import CapsNet, config\n"
            "def get_config(): return config.Config(model=CapsNet(routing=Plain()))",
            "config.model.routing: Plain must be a dataclass. Write @dataclasses.data",
        ),
    ],
)
def test_what_an_experiment_file_forgets_is_one_line(
    tmp_path, monkeypatch, lines, message
):
    # In this process only, the file of another test would lend its functions.
    monkeypatch.delitem(sys.modules, "config_config", raising=False)
    file = tmp_path / "mine.py"
    file.write_text(lines)
    with pytest.raises(UsageError, match=f"^{re.escape(message)}"):
        configs.validate(parse(f"--config={file}").config)


def test_a_recipe_outside_a_checkout_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = r"outside a checkout the recipe is --config capsjax:mnist:smoke$"
    with pytest.raises(UsageError, match=message):
        parse("--config=experiments/mnist.py:smoke")


def test_fields_that_a_stored_config_does_not_have_yet_have_their_defaults():
    stored = configs.to_dict(configs.Config(seed=3))
    del stored["bad_numbers"], stored["model"]["class_dim"], stored["loss"]
    assert configs.from_dict(stored) == configs.Config(seed=3)


def test_stored_configs_with_unknown_fields_are_refused():
    with pytest.raises(configs.ConfigError, match=r"config\.model must be an object"):
        configs.from_dict({**configs.to_dict(configs.Config()), "model": 1})
    with pytest.raises(configs.ConfigError, match="config has unknown fields: odd"):
        configs.from_dict({**configs.to_dict(configs.Config()), "odd": 1})


def sections(kind):
    """A class and the classes whose fields it inherits."""
    return [one for one in kind.__mro__ if dataclasses.is_dataclass(one)]


@pytest.mark.parametrize(
    "kind",
    [
        *(configs.Config, configs.Data),
        *configs.OPTIMIZERS.values(),
        *(*NETWORKS.values(), *ROUTINGS.values(), *LOSSES.values()),
        *AUGMENTATIONS.values(),
    ],
)
def test_every_field_is_documented_and_has_a_default_that_is_allowed(kind):
    documented = "".join(one.__doc__ for one in sections(kind))
    for name in fields_of(kind):
        assert f"{name}:" in documented, name
    check("config", kind())


def test_flags_reach_their_fields():
    asked = parse(
        f"--config={EXPERIMENT}:smoke",
        "--config.num_epochs=7",
        "--config.optimizer.learning_rate=1",
        "--config.model.decoder_features=(4,8)",
        "--config.model.routing.bias=0.1",
        "--config.seed",
        "3",
        "--config.tensorboard",
        "--noconfig.test",
        "--workdir=there",
    )
    expected = experiment().get_config("smoke")
    expected.num_epochs, expected.seed = 7, 3
    expected.tensorboard, expected.test = True, False
    expected.optimizer = configs.Adam(learning_rate=1.0)
    expected.model = expected.model.clone(
        decoder_features=(4, 8), routing=DynamicRouting(bias=0.1)
    )
    assert asked.config == expected
    assert asked.workdir == "there"
    assert (asked.num_cpu_devices, asked.hosts) == (None, Hosts())


def test_a_word_chooses_what_stands_in_a_section_and_its_fields_follow():
    config = parse(
        f"--config={EXPERIMENT}",
        # In any order.
        "--config.optimizer.weight_decay=1e-3",
        "--config.optimizer=adamw",
        "--config.model.routing=uniform",
        "--config.model.routing.bias=0.2",
        "--config.loss=margin",
        "--config.loss.present=0.8",
        "--config.augmentation=none",
    ).config
    # What both kinds inherit is kept: rate and b2 are the recipe's.
    assert config.optimizer == configs.AdamW(
        learning_rate=0.003, b2=0.99, weight_decay=1e-3
    )
    assert config.model == CapsNet(routing=UniformRouting(bias=0.2))
    assert config.loss == MarginLoss(present=0.8)
    assert config.augmentation == NoAugmentation()


def test_the_word_of_what_stands_there_already_changes_nothing():
    recipe = experiment().get_config("notebook")
    words = [("model", "capsnet"), ("model.routing", "dynamic"), ("optimizer", "adam")]
    assert configs.override(recipe, words) == recipe


FORMER = [
    ("data.max_shift=0", "--config.augmentation.max_shift=0"),
    ("model.name=cnn", "--config.model=cnn"),
    ("model.num_iterations=2", "--config.model.routing.num_iterations=2"),
    ("model.routing_bias=true", "--config.model.routing.bias=0.1"),
    ("model.none_of_the_above=true", "--config.model.routing.none_of_the_above=true"),
    ("model.stop_gradient=true", "--config.model.routing.stop_gradient=true"),
    ("model.initializers.conv=zeros", "--config.model.conv_init=zeros"),
    ("model.initializers.routing_bias=0.2", "--config.model.routing.bias=0.2"),
    ("loss.margin_weight=0.05", "--config.loss.weight=0.05"),
]


@pytest.mark.parametrize(("flag", "now"), FORMER)
def test_a_flag_of_a_former_edition_is_one_line_with_the_new_flag(flag, now):
    with pytest.raises(UsageError, match=re.escape(f"now: write {now}.")):
        parse(f"--config={EXPERIMENT}", f"--config.{flag}")
    # And the new flag is understood.
    parse(f"--config={EXPERIMENT}", now)


@pytest.mark.parametrize(
    ("name", "now"),
    [("Model", "capsjax.CapsNet, or"), ("make_smoke", "capsjax.config.recipes.smoke")],
)
def test_a_name_of_a_former_edition_is_one_line_with_its_place_now(tmp_path, name, now):
    file = tmp_path / "former.py"
    file.write_text(f"from capsjax.config import Config, {name}\n")
    with pytest.raises(UsageError, match=f"config.{name} is {now}"):
        parse(f"--config={file}")


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
        "config.model=capsnet has no field rounds.* It has conv_",
    ),
    (["--config.model.class_dims=5"], "no field class_dims; did you mean class_dim?"),
    (["--config.sed.deep=5"], "config has no field sed; did you mean seed?"),
    (["--flagfile=/nope"], "nope"),
    (["--config.seed=five"], "config.seed must be a whole number, got 'five'"),
    (["--config.num_epochs=2.5"], "must be a whole number, got '2.5'"),
    (["--confg.seed=5"], "Unknown command line flag 'confg.seed'"),
    (["--num_epochs=3"], "unknown option --num_epochs; did you mean --config.num_ep"),
    (["--model.dropout=1"], "Unknown command line flag 'model.dropout'"),
    (["--max_shift", "2"], "did you mean --config.augmentation.max_shift?"),
    (["--config", f"{EXPERIMENT}:smoke"], "--config is given 2 times; give it once"),
    (["--workdir=a", "--workdir", "b"], "--workdir is given 2 times; give it once"),
    (["more"], "unexpected arguments: more"),
    (["--distributed=maybe"], "should be one of <auto|on|off>"),
    (["--num_cpu_devices=0"], r"integer in the range \[1, 1024\]"),
    (["--num_cpu_devices=100000"], r"integer in the range \[1, 1024\]"),
    (["--heartbeat_seconds=1000000000"], r"integer in the range \[1, 86400\]"),
    (["--num_processes=9999999999999"], r"integer in the range \[1, 65536\]"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_a_mistake_on_the_command_line_is_one_clear_line(arguments, message):
    if arguments and not arguments[0].startswith("--config="):
        arguments = [f"--config={EXPERIMENT}", *arguments]
    with pytest.raises(UsageError, match=message) as error:
        parse(*arguments)
    assert "\n" not in str(error.value)


def test_a_broken_config_file_is_one_line_with_its_place(tmp_path):
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


def test_help_lists_the_flags(capsys):
    with pytest.raises(SystemExit) as end:
        parse("--help")
    assert end.value.code == 0
    assert "--workdir" in capsys.readouterr().out


def test_the_authors_rate_falls_by_4_percent_in_2000_steps_to_a_millionth():
    config = experiment().get_config("authors")
    optimizer = config.optimizer.make(500_000)
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
