"""Sections of a run's config, and the check of their values.

``experiments/*.py`` return a :class:`Config`; ``--config.field=value`` sets its fields.
:func:`validate` runs after that and checks every value once, in one place. The sections
``model``, ``loss``, ``optimizer`` and ``augmentation`` hold objects that compute: a
network with a routing algorithm in it, a loss, and so on.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import flax.linen as nn

from capsjax.bounds import Allowed, Names, Natural, Positive, Share, above, between
from capsjax.config import former, values
from capsjax.config.data import Data
from capsjax.config.optimizers import Adam, Optimizer
from capsjax.config.values import ConfigError
from capsjax.data.augment import Augmentation, Shift
from capsjax.losses import AutoLoss, Loss
from capsjax.models import CapsNet

# Texts that may be part of a folder's name.
PlainText = Annotated[
    str,
    Allowed(
        "letters, digits, '-', '_' and '.'",
        lambda name: re.fullmatch(r"[\w.-]*", name) is not None,
    ),
]


@dataclasses.dataclass
class Config:
    """The config of one run: a value for each of its settings.

    An experiment file returns one. ``--config.field=value`` sets a field of it, or of a
    section: ``--config.optimizer=adamw --config.optimizer.weight_decay=0.01``.

    Attributes:
        experiment: Name of the experiment, for the default work directory.
        variant: Name of the experiment's variant, for the default work directory.
        seed: Seed of the weights, the order of the data and the augmentation.
        num_epochs: Passes over the training images.
        batch_size: Images in one step, over all devices.
        num_parts: Parts into which each device cuts its share of a batch, one after the
            other. Their mean gradient is the batch's, in less memory; batch norm
            normalises each part by itself.
        eval_batch_size: Images evaluated at once, over all devices.
        steps_per_dispatch: Optimizer steps in one call of the device program; 0 leaves
            the number to the platform.
        data_placement: Place of the training images: ``host``, from which batches
            travel to the devices; ``device``, on each of them; ``disk``, from which
            image files and sets of TFDS are read while training; or ``auto``, on the
            devices of an accelerator if there is room, and on disk if the images exceed
            ``max_gigabytes``. Results are the same.
        bad_numbers: Action after a loss or gradient that is not finite, whose update is
            never applied: ``stop`` ends the run, ``skip`` continues with the next
            batch.
        stop_at: Validation accuracy that ends the run after the first epoch to reach
            it; 0 to train for all epochs.
        max_gigabytes: Memory limit; a run that would need more is refused. Image files
            and sets of TFDS that exceed it are read from disk while training.
        tensorboard: True to write metrics for TensorBoard, too.
        test: True to test the run at its end; without it the result has validation
            metrics only, and a later start may test it.
        data: The source of the images.
        augmentation: The random changes of training images.
        init_from: Folder of another run, or a safetensors file, whose weights replace
            the random ones of the same name and shape; empty to start at random.
        init_names: For a file whose arrays have other names: the array to take for each
            of the network's, ``conv/kernel = conv1.weight oihw->hwio``. The letters
            transpose it, and are left out if the axes are the same.
        freeze: Names of weights that stay as they start, at the top level of the
            network's ``params``: ``conv``, ``primary_caps``. Its batch statistics
            still follow the batches.
        model: The network: a Flax module of ``capsjax.models.NETWORKS``, or your own.
            The data set fills in its image shape and number of classes.
        loss: The loss to minimise.
        optimizer: The optimizer that minimises it.

    Examples:
        >>> from capsjax import CapsNet, EMRouting
        >>> from capsjax.config import AdamW, Config
        >>> config = Config(num_epochs=5, model=CapsNet(routing=EMRouting()))
        >>> config.optimizer = AdamW(learning_rate=3e-4)
        >>> config.data.name, config.augmentation
        ('mnist', Shift(max_shift=2))
    """

    experiment: PlainText = ""
    variant: PlainText = ""
    seed: Annotated[int, between(0, 2**32 - 1)] = 0
    num_epochs: Positive = 10
    batch_size: Positive = 128
    num_parts: Positive = 1
    eval_batch_size: Positive = 200
    steps_per_dispatch: Natural = 0
    data_placement: Literal["auto", "host", "device", "disk"] = "auto"
    bad_numbers: Literal["stop", "skip"] = "stop"
    stop_at: Share = 0.0
    max_gigabytes: Annotated[float, above(0)] = 16.0
    tensorboard: bool = False
    test: bool = True
    init_from: str = ""
    init_names: Names = ()
    freeze: Names = ()
    data: Data = dataclasses.field(default_factory=Data)
    augmentation: Augmentation = dataclasses.field(default_factory=Shift)
    model: nn.Module = dataclasses.field(default_factory=CapsNet)
    loss: Loss = dataclasses.field(default_factory=AutoLoss)
    optimizer: Optimizer = dataclasses.field(default_factory=Adam)

    @property
    def max_image_bytes(self) -> int:
        """The most memory that the images of one split may take."""
        is_on_disk = self.data_placement == "disk"
        return 0 if is_on_disk else int(self.max_gigabytes * 1e9)


# Fields that may change when a run resumes; a change of any other field makes another
# run.
CHANGEABLE = (
    *("num_epochs", "eval_batch_size", "bad_numbers", "max_gigabytes", "tensorboard"),
    *("steps_per_dispatch", "data_placement", "num_parts", "test"),
    # A change of it changes the images, which are compared.
    "data.skip_bad_files",
)
# Changeable fields without influence on any result; a run's history records the others.
WITHOUT_EFFECT = (
    *("max_gigabytes", "tensorboard", "steps_per_dispatch", "data_placement", "test"),
    "data.skip_bad_files",
)
RECORDED = tuple(name for name in CHANGEABLE if name not in WITHOUT_EFFECT)
# Fields that may differ in one run, if the images are the same.
PLACES = ("data.path", "data.name")


def validate(config: Config) -> None:
    """Checks every field of a config that can be checked without its data.

    Raises:
        ConfigError: With the field, its value and the allowed values.
    """
    for name, (kind, allowed) in _SECTIONS.items():
        if not isinstance(section := getattr(config, name), kind):
            raise ConfigError(f"config.{name} must be {allowed}, got {section!r}.")
    former.require_no_former_field(config)
    values.check("config", config)
    if config.stop_at and not config.data.num_validation:
        raise ConfigError(
            f"config.stop_at={config.stop_at} is a validation accuracy, and must be 0 "
            "if config.data.num_validation is 0."
        )
    if config.init_names and not config.init_from:
        raise ConfigError(
            "config.init_names names arrays of a file, so config.init_from must be "
            "FILE.safetensors, got ''."
        )


# The class of each section, and its description in an error.
_SECTIONS: dict[str, tuple[type, str]] = {
    "data": (Data, "a capsjax.config.Data"),
    "augmentation": (Augmentation, "a value of capsjax.data.augment.Augmentation"),
    "model": (nn.Module, "a network, such as capsjax.CapsNet()"),
    "loss": (Loss, "a value of capsjax.losses.Loss"),
    "optimizer": (Optimizer, "a value of capsjax.config.Optimizer"),
}


def override(config: Config, assignments: Sequence[tuple[str, str]]) -> Config:
    """Returns a config with values from a command line.

    Assigns words before the fields of the sections they choose, in any order.

    Args:
        config: The config, with allowed values; it stays unchanged.
        assignments: Pairs of name, for example ``model.routing.num_iterations``, and
            text.

    Raises:
        ConfigError: With the field, the text and the allowed values.
    """
    # A copy would lose a misspelt attribute silently.
    validate(config)
    for name, text in sorted(assignments, key=lambda one: one[0].count(".")):
        former.require_no_former_name(name, text)
        config = values.assigned(config, "config", name.split("."), text)
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """Returns the config as nested plain values, the content of ``config.json``."""
    return values.to_json(config)


def from_dict(stored: dict[str, Any], own: Config | None = None) -> Config:
    """Makes a config from the values of :func:`to_dict`, of any edition.

    Args:
        stored: The nested plain values.
        own: The config of the run's experiment file, if it has classes of its own.

    Raises:
        ConfigError: If a field is unknown.
    """
    if isinstance(stored, dict):
        stored = former.translated(stored)
    return values.from_json(Config() if own is None else own, stored, "config")
