"""The sections of a run's config, and the check of their values.

``experiments/*.py`` return a :class:`Config`; ``--config.field=value`` sets its fields.
:func:`validate` runs after that, so that every value is checked once, in one place. The
sections ``model``, ``loss``, ``optimizer`` and ``augmentation`` hold the values that
compute: a network, and in it a routing algorithm, a loss, and so on.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from capsjax.bounds import Allowed, Share, Size, above, at_least, between
from capsjax.config import former, values
from capsjax.config.optimizers import Adam, Optimizer
from capsjax.config.values import ConfigError
from capsjax.data.augment import Augmentation, Shift
from capsjax.losses import AutoLoss, Loss
from capsjax.models import CapsNet

_Positive = Annotated[int, at_least(1)]
_Natural = Annotated[int, at_least(0)]
# May be part of a folder's name.
_Plain = Annotated[
    str,
    Allowed(
        "letters, digits, '-', '_' and '.'",
        lambda name: re.fullmatch(r"[\w.-]*", name) is not None,
    ),
]


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
        crop: The network sees squares of so many pixels, at a random place in training
            and in the middle otherwise; 0 for whole images.
        class_weights: ``none``: every image counts alike. ``balanced``: the loss of an
            image counts ``N / (K N_class)``, for ``N`` training images of ``K`` classes
            of which ``N_class`` are of its class, so that every class has the same say,
            in training and in the validation loss by which the best checkpoint is
            chosen. The other metrics, and all of the test, count every image alike.
        skip_bad_files: Leaves out files of an ``image_folder`` that can't be read.
    """

    name: Annotated[str, Allowed("the name of a data set or a folder", bool)] = "mnist"
    path: str = ""
    image_size: Size = 0
    num_validation: Annotated[
        int, Allowed("at least 0, or -1", lambda number: number >= -1)
    ] = 5000
    num_train: _Natural = 0
    crop: _Natural = 0
    class_weights: Literal["none", "balanced"] = "none"
    skip_bad_files: bool = False


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
        augmentation: How training images vary.
        model: The network: a Flax module of ``capsjax.models.NETWORKS``, or your own.
            The data set fills in its image shape and number of classes.
        loss: What is minimised.
        optimizer: How.
    """

    experiment: _Plain = ""
    variant: _Plain = ""
    seed: Annotated[int, between(0, 2**32 - 1)] = 0
    num_epochs: _Positive = 10
    batch_size: _Positive = 128
    eval_batch_size: _Positive = 200
    steps_per_dispatch: _Natural = 0
    data_placement: Literal["auto", "host", "device"] = "auto"
    bad_numbers: Literal["stop", "skip"] = "stop"
    stop_at: Share = 0.0
    max_gigabytes: Annotated[float, above(0)] = 16.0
    tensorboard: bool = False
    test: bool = True
    data: Data = dataclasses.field(default_factory=Data)
    augmentation: Augmentation = dataclasses.field(default_factory=Shift)
    model: Any = dataclasses.field(default_factory=CapsNet)
    loss: Loss = dataclasses.field(default_factory=AutoLoss)
    optimizer: Optimizer = dataclasses.field(default_factory=Adam)


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


def validate(config: Config) -> None:
    """Checks every field of a config that can be checked without its data.

    Raises:
        ConfigError: Naming the field, its value and what is allowed.
    """
    for name, kind in _SECTIONS.items():
        section = getattr(config, name)
        is_fitting = kind is None or isinstance(section, kind)
        if not (values.is_section(section) and is_fitting):
            raise ConfigError(
                f"config.{name} must be {_ALLOWED[name]}, got {section!r}."
            )
    former.require_no_former_field(config)
    values.check("config", config)
    if config.stop_at and not config.data.num_validation:
        raise ConfigError(
            f"config.stop_at={config.stop_at} is a validation accuracy, and must be 0 "
            "where config.data.num_validation is 0."
        )


_SECTIONS: dict[str, Any] = {
    "data": Data,
    "augmentation": Augmentation,
    "model": None,
    "loss": Loss,
    "optimizer": Optimizer,
}
_ALLOWED = {
    "data": "a capsjax.config.Data",
    "augmentation": "a value of capsjax.data.augment.Augmentation",
    "model": "a network, such as capsjax.CapsNet()",
    "loss": "a value of capsjax.losses.Loss",
    "optimizer": "a value of capsjax.config.Optimizer",
}


def override(config: Config, assignments: Sequence[tuple[str, str]]) -> Config:
    """Returns a config with values from a command line.

    Words come before the fields of what they choose, whatever their order there.

    Args:
        config: The config, whose values are allowed; it stays as it is.
        assignments: Names, such as ``model.routing.num_iterations``, and texts.

    Raises:
        ConfigError: Naming the field, the text and what is allowed.
    """
    # A copy would lose a misspelt attribute without a word.
    validate(config)
    for name, text in sorted(assignments, key=lambda one: one[0].count(".")):
        former.require_no_former_name(name, text)
        config = values.assigned(config, "config", name.split("."), text)
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """Returns the config as nested plain values, as it stands in ``config.json``."""
    return values.to_json(config)


def from_dict(stored: dict[str, Any], own: Config | None = None) -> Config:
    """Reads what :func:`to_dict` wrote, in this edition or a former one.

    Args:
        stored: The nested plain values.
        own: The config of the run's experiment file, if it has classes of its own.

    Raises:
        ConfigError: If a field is unknown.
    """
    if isinstance(stored, dict):
        stored = former.translated(stored)
    return values.from_json(Config() if own is None else own, stored, "config")
