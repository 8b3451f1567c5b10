"""The data and the network of a run, checked before anything is written."""

import dataclasses
import importlib.util
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from capsjax import config as configs
from capsjax.data import (
    BY_CLASS,
    Dataset,
    Generated,
)
from capsjax.data.augment import check_changes
from capsjax.data.crop import cropped_shape
from capsjax.data.loading import can_be_on_disk, may_name_a_place
from capsjax.data.preparation import Preparation
from capsjax.data.readers.layout import shortened
from capsjax.losses import Loss, fitting_loss
from capsjax.models import Network, NetworkError, num_parameters
from capsjax.models.network import (
    activation_kind,
    bind,
    check_output,
    init_variables,
)
from capsjax.routings.algorithm import AlgorithmError
from capsjax.runtime.console import say, warn
from capsjax.training.finetuning import check_freeze
from capsjax.training.memory import estimate_memory
from capsjax.training.objective import (
    ClassWeight,
    balanced_label_weights,
    balanced_weights,
)
from capsjax.training.sets import make_sets

_CONTRACTS = (NetworkError, AlgorithmError)


class Task(NamedTuple):
    """The data sets and the network of one run.

    Attributes:
        train_set: Images to train on.
        validation_set: Images for choosing the best network, if there are any.
        test_set: Images for judging it.
        model: The network, which has no weights yet.
        loss: The loss, which fits the network.
        split_rule: Name of the rule that divided the training images.
        class_weight: Factors of the loss for each class in training and validation, as
            in ``measure``; None if all classes count alike.
        in_memory: True if the images are arrays of a Python program.
    """

    train_set: Dataset | Generated
    validation_set: Dataset | None
    test_set: Dataset
    model: Network
    loss: Loss
    split_rule: str = BY_CLASS
    class_weight: ClassWeight | None = None
    in_memory: bool = False

    @property
    def sets(self) -> dict[str, Dataset | Generated]:
        """The images of each existing split."""
        sets = {"train": self.train_set, "validation": self.validation_set}
        sets["test"] = self.test_set
        return {name: one for name, one in sets.items() if one is not None}

    @property
    def num_shown(self) -> int | None:
        """Number of classes in each image; None if it differs between images."""
        if not self.train_set.is_multi_label:
            return 1
        source = self.train_set.batch(np.arange(1)).source
        return None if source is None else source.shape[1]

    @property
    def preparation(self) -> Preparation:
        """The preparation that turns a picture into an image of this data set."""
        shape = self.train_set.image_shape
        return self.train_set.preparation or Preparation("as_is", *shape)

    def about(self) -> dict[str, Any]:
        """Returns the content of ``dataset.json``."""
        return {
            "name": self.train_set.name,
            "image_shape": self.train_set.image_shape,
            "class_names": self.train_set.class_names,
            "num_shown": self.num_shown,
            "preparation": self.preparation.to_json(),
            "split_rule": self.split_rule,
            **({"in_memory": True} if self.in_memory else {}),
            "splits": {name: one.identity() for name, one in self.sets.items()},
        }


def wherever(config: configs.Config, task: Task) -> tuple[configs.Config, Any]:
    """Strips the places of the images, which may differ between processes.

    Returns:
        The configuration and the content of ``dataset.json``, without the places.
    """
    data, about = config.data, task.about()
    if data.path or may_name_a_place(data.name):
        name = data.name if data.path else ""
        data = dataclasses.replace(data, name=name, path="")
        about["name"] = ""
    return dataclasses.replace(config, data=data), about


def make_task(
    config: configs.Config,
    split_rule: str = BY_CLASS,
    datasets: Sequence[Dataset] | None = None,
) -> Task:
    """Loads the data and describes the network; prints its size before allocating it.

    Args:
        config: The config of the run.
        split_rule: Name of the rule that divides the training images.
        datasets: Images in memory, ``(train, test)`` or ``(train, validation, test)``;
            None to load the images that the config names.

    Raises:
        ConfigError: If a field does not fit the data, the devices or the memory.
        DatasetError: If the data can't be found or read.
    """
    _check_machine(config)
    task = _describe(config, *make_sets(config, split_rule, datasets))
    task = task._replace(split_rule=split_rule, in_memory=datasets is not None)
    _say_about_splits(task)
    num_weights = _check_network(config, task.model)
    if not _is_beyond_memory(config, task, num_weights):
        return task
    say(
        f"{task.train_set.name}: memory for the images leaves too little for the "
        "training, so they are read from disk"
    )
    del task  # And the images.
    return make_task(dataclasses.replace(config, data_placement="disk"), split_rule)


def _check_machine(config: configs.Config) -> None:
    devices = jax.device_count()
    if config.batch_size % (devices * config.num_parts):
        parts = f" in {config.num_parts} parts" * (config.num_parts > 1)
        raise configs.ConfigError(
            f"config.batch_size={config.batch_size} can't be shared evenly by "
            f"{devices} devices{parts}; choose a multiple of "
            f"{devices * config.num_parts}."
        )
    if config.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise configs.ConfigError(
            "config.tensorboard needs tensorboardX: pip install 'capsjax[tensorboard]'."
        )


def _say_about_splits(task: Task) -> None:
    """Prints the notes of the splits, and classes without images."""
    # Several splits may have the same note.
    for note in dict.fromkeys(n for one in task.sets.values() for n in one.notes):
        say(note)
    for split, what in (("train", "to train on"), ("validation", "to validate")):
        if split not in task.sets:
            continue
        empty = np.flatnonzero(task.sets[split].images_by_class() == 0)
        if len(empty):
            names = shortened([task.train_set.class_names[k] for k in empty])
            say(f"{task.train_set.name}: no image {what} of {names}")


def _describe(
    config: configs.Config,
    train_set: Dataset | Generated,
    validation_set: Dataset | None,
    test_set: Dataset,
) -> Task:
    # Check the size of the images.
    data = config.data
    height, width, _ = train_set.image_shape
    try:
        config.augmentation.check_image(train_set.image_shape)
    except ValueError as error:
        raise configs.ConfigError(f"config.augmentation.{error}") from error
    try:
        check_changes(config.augmentation, config.batch_size, train_set.image_shape)
    except ValueError as error:
        raise configs.ConfigError(str(error)) from error
    if data.crop > min(height, width):
        raise configs.ConfigError(
            f"config.data.crop={data.crop} is more than images of {height}x{width} "
            "allow."
        )
    # Bind the network and its loss to the images and classes.
    shape = cropped_shape(train_set.image_shape, data.crop)
    try:
        model = bind(config.model, shape, train_set.num_classes)
        loss = fitting_loss(config.loss, activation_kind(model))
    except ValueError as error:
        raise configs.ConfigError(str(error)) from error
    if train_set.is_multi_label and not loss.takes_several:
        raise configs.ConfigError(
            f"the {loss.name.replace('_', ' ')} of {type(model).__name__} is for one "
            f"class per image, and {data.name} shows several; choose a network with "
            "lengths, for example config.model=capsnet, and config.loss=auto."
        )
    # Weight the classes.
    class_weight = None
    if data.class_weights == "balanced":
        class_weight = _balanced(data.name, train_set, loss)
    return Task(
        *(train_set, validation_set, test_set, model, loss), class_weight=class_weight
    )


def _balanced(name: str, train_set: Dataset | Generated, loss: Loss) -> ClassWeight:
    if not train_set.is_multi_label:
        return balanced_weights(train_set.images_by_class())
    what = "config.data.class_weights=balanced"
    if isinstance(train_set, Generated):
        raise configs.ConfigError(
            f"{what} needs images that stay the same, and {name} makes new ones in "
            "each epoch; choose none."
        )
    if not loss.is_by_class:
        raise configs.ConfigError(
            f"{what} weights the classes of images that show several, and the loss "
            f"{type(loss).__name__} has no method by_class; choose none."
        )
    return balanced_label_weights(train_set.images_by_class(), len(train_set))


def _check_network(config: configs.Config, model: Network) -> int:
    """Checks what the network returns, and its frozen weights; counts its weights."""
    try:
        variables = jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))
        check_output(model, variables)
        check_freeze(config, variables)
    except ValueError as error:
        if configs.is_own(config.model) and not isinstance(error, _CONTRACTS):
            # A mistake in somebody's own code: its place is in the traceback.
            error.add_note(f"in {type(config.model).__name__}, which is config.model")
            raise
        raise configs.ConfigError(str(error)) from error
    if config.freeze and not config.init_from:
        warn(
            f"config.freeze={','.join(config.freeze)}: these weights start at random "
            "and stay so, as no config.init_from gives others"
        )
    return num_parameters(variables["params"])


def _is_beyond_memory(config: configs.Config, task: Task, num_weights: int) -> bool:
    """Prints the memory for a run; returns True if the images must be read from disk.

    Raises:
        ConfigError: If it would be too much then, too, or the images can't be.
    """
    sets = [one for one in task[:3] if one is not None]
    memory = estimate_memory(task.model, task.loss, config, sets)
    say(f"{num_weights:,} parameters; training takes about {memory}")
    if memory.total <= config.max_gigabytes:
        return False
    is_own = type(config.data).load is not configs.Data.load or task.in_memory
    helps = not is_own and can_be_on_disk(config.data.name)
    helps &= not task.train_set.is_on_disk
    helps &= memory.total - memory.data < config.max_gigabytes
    if helps and config.data_placement == "auto":
        return True
    fields = "config.data.image_size or config.batch_size"
    if hasattr(config.model, "primary_types"):
        fields = (
            "config.data.image_size, config.model.primary_types or "
            "config.batch_size, raise config.model.primary_stride"
        )
    if helps:
        fields += ", leave the images on disk by config.data_placement=disk"
    raise configs.ConfigError(
        f"config.max_gigabytes={config.max_gigabytes}: training needs about "
        f"{memory}. Lower {fields}, or raise config.max_gigabytes."
    )
