"""What describes one run, as plain dataclasses, and the check of their values.

``experiments/*.py`` return a :class:`Config`; ``--config.field=value`` overrides its
fields. ``validate`` runs after that, so that every value is checked once, in one place.
"""

import dataclasses
import difflib
import re
import sys
from typing import Any


@dataclasses.dataclass
class Data:
    """Where images come from and how they vary.

    Attributes:
        name: ``mnist``, ``multi_mnist``, ``expanded_mnist``, ``image_folder``, a folder
            of IDX archives, or a name that TFDS knows.
        path: The folder of an ``image_folder``, with one subfolder for each class.
        image_size: Images are scaled to this height and width; 0 leaves them.
        num_validation: Training images kept for validation, of each class its share; 0
            trains on all, -1 keeps a tenth. Where the data set has a validation split
            of its own, that is used, unless this is 0.
        num_train: Trains on so many of the others only, drawn at random, of each class
            its share; 0 for all of them.
        max_shift: Training images are shifted by up to so many pixels per axis.
        crop: The network sees squares of so many pixels, at a random place in training
            and in the middle otherwise; 0 for whole images.
        class_weights: ``none``: every image counts alike. ``balanced``: the loss of an
            image counts ``N / (K N_class)``, for ``N`` training images of ``K`` classes
            of which ``N_class`` are of its class, so that every class has the same say,
            in training and in the validation loss by which the best checkpoint is
            chosen. The other metrics, and all of the test, count every image alike.
        skip_bad_files: Leaves out files of an ``image_folder`` that can't be read.
    """

    name: str = "mnist"
    path: str = ""
    image_size: int = 0
    num_validation: int = 5000
    num_train: int = 0
    max_shift: int = 2
    crop: int = 0
    class_weights: str = "none"
    skip_bad_files: bool = False


@dataclasses.dataclass
class Initializers:
    """How each weight starts: a name of ``capsjax.initializers``, ``normal(0.1)`` say.

    Attributes:
        conv: Kernel of the first convolution. ``scaled``, here and in the next two,
            starts a network of any size with capsules as long as the paper's.
        primary: Kernel of the primary capsules.
        weight: The matrices ``W_ij`` from primary to class capsules.
        decoder: Kernels of the decoder's hidden layers.
        reconstruction: Kernel of the decoder's last layer.
        bias: All biases but the routing's.
        routing_bias: The value at which the routing's bias starts, if there is one.
    """

    conv: str = "scaled"
    primary: str = "scaled"
    weight: str = "scaled"
    decoder: str = "he_normal"
    reconstruction: str = "lecun_normal"
    bias: str = "zeros"
    routing_bias: float = 0.1


@dataclasses.dataclass
class Model:
    """The network of the paper; image size and class count come from the data.

    Attributes:
        name: ``capsnet``, or ``cnn``, the paper's baseline, to which no other field but
            ``dropout``, ``compute_dtype`` and ``initializers.bias`` applies.
        conv_features: Channels of the first convolution.
        conv_kernel: Its height and width, stride 1.
        primary_types: Kinds of primary capsules at each position.
        primary_dim: Components of a primary capsule.
        primary_kernel: Height and width of the primary capsules' convolution.
        primary_stride: Its stride.
        primary_relu: Whether a ReLU comes before the primary squash (the notebook's).
        primary_scale: Factor of the primary capsules before bias and squash.
        class_dim: Components of a class capsule.
        routing: A name of ``capsjax.ROUTINGS``.
        num_iterations: Rounds of routing.
        routing_bias: Whether the routing has a trainable bias.
        none_of_the_above: Whether a primary capsule may vote for no class.
        stop_gradient: Whether the couplings are constants in the backward pass.
        decoder_features: Widths of the decoder's hidden layers.
        compute_dtype: ``float32``, or ``bfloat16`` for the operands of large products.
        dropout: The share of the baseline's last hidden units that a training step
            leaves out.
        initializers: How each weight starts.
    """

    name: str = "capsnet"
    conv_features: int = 256
    conv_kernel: int = 9
    primary_types: int = 32
    primary_dim: int = 8
    primary_kernel: int = 9
    primary_stride: int = 2
    primary_relu: bool = False
    primary_scale: float = 1.0
    class_dim: int = 16
    routing: str = "dynamic"
    num_iterations: int = 3
    routing_bias: bool = False
    none_of_the_above: bool = False
    stop_gradient: bool = False
    decoder_features: tuple[int, ...] = (512, 1024)
    compute_dtype: str = "float32"
    dropout: float = 0.5
    initializers: Initializers = dataclasses.field(default_factory=Initializers)


@dataclasses.dataclass
class Loss:
    """Margin loss plus a little reconstruction.

    Attributes:
        present: Length above which a present class costs nothing.
        absent: Length below which an absent class costs nothing.
        down_weight: Weight of absent classes.
        margin_weight: Weight of the margin loss.
        reconstruction_weight: Weight of the reconstruction's squared error.
        reconstruction_reduction: ``sum`` or ``mean`` over the pixels.
    """

    present: float = 0.9
    absent: float = 0.1
    down_weight: float = 0.5
    margin_weight: float = 1.0
    reconstruction_weight: float = 0.0005
    reconstruction_reduction: str = "sum"


@dataclasses.dataclass
class Optimizer:
    """Adam, its learning rate over time, and the averaging of weights.

    Attributes:
        learning_rate: The highest rate.
        schedule: ``constant``, ``exponential`` (x ``decay_rate`` every ``decay_steps``
            steps, continuously) or ``cosine`` (to ``floor`` at the last step of the
            run).
        decay_rate: Factor of the exponential schedule.
        decay_steps: Steps in which the exponential schedule falls by that factor.
        floor: The lowest rate that a schedule falls to.
        warmup_steps: Steps in which the rate rises linearly from zero.
        b1: Decay of Adam's first moment.
        b2: Decay of Adam's second moment.
        eps: Adam's epsilon.
        average: Decay of the moving average of weights that is evaluated in place of
            the weights, reached as min(average, (1 + step) / (10 + step)); 0 to
            evaluate the weights themselves.
    """

    learning_rate: float = 1e-3
    schedule: str = "cosine"
    decay_rate: float = 0.96
    decay_steps: int = 2000
    floor: float = 1e-6
    warmup_steps: int = 0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    average: float = 0.0


@dataclasses.dataclass
class Config:
    """One run.

    Attributes:
        experiment: Name of the experiment, for the default work directory.
        variant: Name of its variant, for the same.
        seed: Of the weights, the order of the data and the augmentation.
        num_epochs: Passes over the training images.
        batch_size: Images in one step, over all devices.
        eval_batch_size: Images evaluated at once, over all devices.
        steps_per_dispatch: Optimizer steps in one call of the device program; 0 leaves
            the number to the platform.
        data_placement: Where the training images lie: ``host``, whose batches travel
            to the devices; ``device``, on each of them; or ``auto``, on the devices of
            an accelerator if there is room. The run is the same.
        bad_numbers: What happens at a loss, gradient or update that is not finite, and
            so is not applied: ``stop`` ends the run, ``skip`` goes on with the next
            batch.
        stop_at: The run ends with the first epoch whose validation accuracy is at least
            this; 0 to train for all epochs.
        max_gigabytes: A run that would need more memory is refused.
        tensorboard: Whether metrics are also written for TensorBoard.
        test: Whether the run is tested at its end; where not, its result has validation
            metrics only. A later start may test it.
        data: Where images come from.
        model: The network.
        loss: What is minimised.
        optimizer: How.
    """

    experiment: str = ""
    variant: str = ""
    seed: int = 0
    num_epochs: int = 10
    batch_size: int = 128
    eval_batch_size: int = 200
    steps_per_dispatch: int = 0
    data_placement: str = "auto"
    bad_numbers: str = "stop"
    stop_at: float = 0.0
    max_gigabytes: float = 16.0
    tensorboard: bool = False
    test: bool = True
    data: Data = dataclasses.field(default_factory=Data)
    model: Model = dataclasses.field(default_factory=Model)
    loss: Loss = dataclasses.field(default_factory=Loss)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)


# How weights started before "scaled" did it: with these, any size as the paper's.
FORMER_INITIALIZERS = {
    "conv": "normal(0.064)",
    "primary": "normal(0.0098)",
    "weight": "normal(0.02)",
}

# A run may go on with other values of these; a change of any other field is another
# run.
CHANGEABLE = (
    *("num_epochs", "eval_batch_size", "bad_numbers", "max_gigabytes", "tensorboard"),
    *("steps_per_dispatch", "data_placement", "test"),
    # What it leaves out, and so changes, is seen in the images.
    "data.skip_bad_files",
)
# Of these, fields that change no number that is computed; the others' values are in a
# run's history.
WITHOUT_EFFECT = (
    *("max_gigabytes", "tensorboard", "steps_per_dispatch", "data_placement", "test"),
    "data.skip_bad_files",
)
RECORDED = tuple(name for name in CHANGEABLE if name not in WITHOUT_EFFECT)
# Where the same images lie is no part of what a run is.
PLACES = ("data.path", "data.name")


# No layer is as wide by far; the product of three is still counted in 64 bits.
_WIDEST = 2**16


class ConfigError(ValueError):
    """A field of a config has a value that is not allowed."""


def require_variant(variant: str, allowed: tuple[str, ...], experiment: str) -> None:
    """Refuses the name of a variant that an experiment does not have.

    Raises:
        ValueError: Naming those that it has.
    """
    if variant not in allowed:
        named = ", ".join(name for name in allowed if name)
        raise ValueError(
            f"unknown variant {variant!r} of experiments/{experiment}.py; choose from "
            f"{named}, or none"
        )


def make_smoke(config: Config) -> None:
    """Makes a recipe one of a minute: a narrow network, few images, two epochs."""
    config.num_epochs = 2
    config.batch_size = 50
    config.steps_per_dispatch = 20
    config.data.num_train, config.data.num_validation = 10_000, 2_000
    config.model.conv_features, config.model.primary_types = 64, 8


def validate(config: Config) -> None:
    """Checks every field of a config that can be checked without its data.

    Raises:
        ConfigError: Naming the field, its value and what is allowed.
    """
    _check_types("config", config, Config)
    for field in ("num_epochs", "batch_size", "eval_batch_size"):
        _require(config, field, lambda v: v >= 1, "at least 1")
    _require(config, "steps_per_dispatch", lambda v: v >= 0, "at least 0")
    _require_one_of(config, "data_placement", ("auto", "host", "device"))
    _require(config, "seed", lambda v: 0 <= v < 2**32, "from 0 to 2^32 - 1")
    for field in ("experiment", "variant"):
        _require(config, field, _is_plain, "letters, digits, '-', '_' and '.'")
    _require_one_of(config, "bad_numbers", ("stop", "skip"))
    _require(config, "stop_at", lambda v: 0 <= v <= 1, "from 0 to 1")
    _require(config, "max_gigabytes", lambda v: v > 0, "above 0")
    data, model, loss, optimizer = (
        config.data,
        config.model,
        config.loss,
        config.optimizer,
    )
    _require(data, "name", bool, "the name of a data set or a folder")
    _require(data, "num_validation", lambda v: v >= -1, "at least 0, or -1")
    for field in ("image_size", "num_train", "max_shift", "crop"):
        _require(data, field, lambda v: v >= 0, "at least 0")
    _require(data, "image_size", lambda v: v <= _WIDEST, f"at most {_WIDEST}")
    _require_one_of(data, "class_weights", ("none", "balanced"))
    if config.stop_at and not data.num_validation:
        raise ConfigError(
            f"config.stop_at={config.stop_at} is a validation accuracy, and must be 0 "
            "where config.data.num_validation is 0."
        )
    for field in (
        *("conv_features", "conv_kernel", "primary_types", "primary_dim"),
        *("primary_kernel", "primary_stride", "class_dim", "num_iterations"),
    ):
        _require(model, field, lambda v: v >= 1, "at least 1")
    for field in dataclasses.fields(model):
        if field.type is int:
            _require(model, field.name, lambda v: v <= _WIDEST, f"at most {_WIDEST}")
    _require(model, "num_iterations", lambda v: v <= 100, "at most 100")
    _require(model, "primary_scale", lambda v: v > 0, "above 0")
    _require(
        model, "decoder_features", lambda v: all(n >= 1 for n in v), "integers above 0"
    )
    _require(
        model,
        "decoder_features",
        lambda v: len(v) <= 100 and all(n <= _WIDEST for n in v),
        f"at most 100 integers of at most {_WIDEST}",
    )
    _require_one_of(model, "name", ("capsnet", "cnn"))
    _require_one_of(model, "compute_dtype", ("float32", "bfloat16"))
    _require(model, "dropout", lambda v: 0 <= v < 1, "at least 0, below 1")
    for field in ("present", "absent"):
        _require(loss, field, lambda v: 0 <= v <= 1, "from 0 to 1")
    _require(
        loss, "absent", lambda v: v <= loss.present, f"at most present={loss.present}"
    )
    for field in ("down_weight", "margin_weight", "reconstruction_weight"):
        _require(loss, field, lambda v: v >= 0, "at least 0")
    _require_one_of(loss, "reconstruction_reduction", ("sum", "mean"))
    # With these bounds no update of finite gradients overflows, or divides by zero.
    _require(
        optimizer, "learning_rate", lambda v: 0 < v <= 1000, "above 0, at most 1000"
    )
    _require(optimizer, "eps", lambda v: v >= 1e-30, "at least 1e-30")
    _require_one_of(optimizer, "schedule", ("constant", "exponential", "cosine"))
    _require(optimizer, "decay_rate", lambda v: 0 < v < 1, "above 0, below 1")
    _require(optimizer, "decay_steps", lambda v: v >= 1, "at least 1")
    _require(
        optimizer,
        "floor",
        lambda v: 0 <= v <= optimizer.learning_rate,
        f"from 0 to learning_rate={optimizer.learning_rate}",
    )
    _require(optimizer, "warmup_steps", lambda v: v >= 0, "at least 0")
    for field in ("decay_steps", "warmup_steps"):
        _require(optimizer, field, lambda v: v < 2**31, "below 2^31")
    for field in ("b1", "b2"):
        _require(optimizer, field, lambda v: 0 <= v < 1, "at least 0, below 1")
    _require(optimizer, "average", lambda v: 0 <= v < 1, "at least 0, below 1")


def to_dict(config: Config) -> dict[str, Any]:
    """The config as nested plain values, as it stands in ``config.json``."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any]) -> Config:
    """The config that ``to_dict`` wrote, perhaps before some fields were invented.

    Raises:
        ConfigError: If a field is unknown.
    """
    return _from_dict(Config, values, "config")


def _from_dict(kind: type, values: Any, path: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must be an object with fields, got {values!r}.")
    if unknown := sorted(values.keys() - fields.keys()):
        raise ConfigError(f"{path} has unknown fields: {', '.join(unknown)}.")
    section = kind()
    for name, value in values.items():
        if dataclasses.is_dataclass(fields[name].type):
            value = _from_dict(fields[name].type, value, f"{path}.{name}")  # pyright: ignore
        # Of any type yet: that is for ``validate``.
        setattr(section, name, tuple(value) if isinstance(value, list) else value)
    return section


def _check_types(path: str, section: Any, of: Any) -> None:
    """The command line is typed by its parser; a config file is not."""
    if not isinstance(section, of):
        raise ConfigError(
            f"{path} must be a capsjax.config.{of.__name__}, got {section!r}."
        )
    for name in vars(section):
        if (told := missing_field(path, section, name)) is not None:
            raise ConfigError(told)
    for field in dataclasses.fields(section):
        value, name = getattr(section, field.name), f"{path}.{field.name}"
        kind: Any = field.type
        if dataclasses.is_dataclass(kind):
            _check_types(name, value, kind)
        elif not _is_of_kind(value, kind):
            what = _KINDS.get(kind, "a tuple of whole numbers")
            raise ConfigError(f"{name} must be {what}, got {value!r}.")
        elif any(abs(n) >= 2**32 for n in _whole_numbers(value)):
            raise ConfigError(f"{name} must be below 2^32, got {value!r}.")


def missing_field(path: str, section: Any, name: str) -> str | None:
    """Tells that a section has no field of that name; None if it has.

    Args:
        path: What the section is called.
        section: The section or its class; anything else has no fields.
        name: Of the field.
    """
    is_section = dataclasses.is_dataclass(section)
    fields = [f.name for f in dataclasses.fields(section)] if is_section else []
    if name in fields:
        return None
    near = difflib.get_close_matches(name, fields, n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    known = f" It has {', '.join(fields)}." if fields else ""
    return f"{path} has no field {name}{hint}{known}"


def _whole_numbers(value: Any) -> list[int]:
    values = value if type(value) is tuple else (value,)
    return [number for number in values if type(number) is int]


_KINDS = {
    int: "a whole number",
    float: "a finite number",
    str: "a text",
    bool: "true or false",
}


def _is_of_kind(value: Any, kind: Any) -> bool:
    if kind is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    if kind in _KINDS:
        return type(value) is kind
    return type(value) is tuple and all(type(number) is int for number in value)


def _is_plain(name: str) -> bool:
    """Whether it may be part of a folder's name."""
    return re.fullmatch(r"[\w.-]*", name) is not None


def _require(section: Any, field: str, is_allowed: Any, allowed: str) -> None:
    value = getattr(section, field)
    if not is_allowed(value):
        path = (
            "" if isinstance(section, Config) else f"{type(section).__name__.lower()}."
        )
        raise ConfigError(f"config.{path}{field} must be {allowed}, got {value!r}.")


def _require_one_of(section: Any, field: str, allowed: tuple[str, ...]) -> None:
    _require(section, field, lambda v: v in allowed, "one of " + ", ".join(allowed))
