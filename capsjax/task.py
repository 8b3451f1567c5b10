"""What a run learns and from what, checked before anything is written."""

import importlib.util
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from capsjax import config as configs
from capsjax.console import say
from capsjax.data import Dataset, DatasetError, Generated, load, split_validation
from capsjax.data.augment import cropped_shape
from capsjax.data.preparation import Preparation
from capsjax.memory import estimate_memory
from capsjax.models import BaselineCNN, Network, make_model, num_parameters


class Task(NamedTuple):
    """What is learnt.

    Attributes:
        train_set: What is trained on.
        validation_set: By what the best network is chosen, if there is a choice.
        test_set: By what it is judged.
        model: The network, which has no weights yet.
    """

    train_set: Dataset | Generated
    validation_set: Dataset | None
    test_set: Dataset
    model: Network

    @property
    def num_shown(self) -> int | None:
        """How many classes each image shows; None where that differs."""
        if not self.train_set.is_multi_label:
            return 1
        source = self.train_set.batch(np.arange(1)).source
        return None if source is None else source.shape[1]

    @property
    def preparation(self) -> Preparation:
        """How a picture becomes such an image."""
        shape = self.train_set.image_shape
        return self.train_set.preparation or Preparation("as_is", *shape, scale="own")

    def about(self) -> dict[str, Any]:
        """What ``dataset.json`` holds."""
        sets = {"train": self.train_set, "validation": self.validation_set}
        sets["test"] = self.test_set
        return {
            "name": self.train_set.name,
            "image_shape": self.train_set.image_shape,
            "class_names": self.train_set.class_names,
            "num_shown": self.num_shown,
            "preparation": self.preparation.to_json(),
            "splits": {
                name: one.identity() for name, one in sets.items() if one is not None
            },
        }


def make_task(config: configs.Config) -> Task:
    """Loads the data, and tells how large the network is before there is one.

    Raises:
        ConfigError: If a field does not fit the data, the devices or the memory.
        DatasetError: If the data can't be had.
    """
    _check_machine(config)
    task = _describe(config, *_load_sets(config))
    _check_memory(config, task)
    return task


def _check_machine(config: configs.Config) -> None:
    devices = jax.device_count()
    if config.batch_size % devices:
        raise configs.ConfigError(
            f"config.batch_size={config.batch_size} can't be shared evenly by "
            f"{devices} devices; choose a multiple of {devices}."
        )
    if config.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise configs.ConfigError(
            "config.tensorboard needs tensorboardX: pip install 'capsjax[tensorboard]'."
        )


def _load_sets(
    config: configs.Config,
) -> tuple[Dataset | Generated, Dataset | None, Dataset]:
    """The images to train on, to validate and to test."""
    data = config.data
    train_set, test_set = (
        load(
            data.name,
            split,
            path=data.path,
            image_size=data.image_size,
            max_bytes=int(config.max_gigabytes * 1e9),
        )
        for split in ("train", "test")
    )
    if test_set.image_shape != train_set.image_shape:
        raise DatasetError(
            f"{data.name}: the test images are {test_set.image_shape}, the training "
            f"images {train_set.image_shape}: they must be of one shape."
        )
    held_out = data.num_validation
    if held_out == -1:
        held_out = max(1, len(train_set) // 10)
    if held_out >= len(train_set):
        raise configs.ConfigError(
            f"config.data.num_validation={data.num_validation} leaves none of the "
            f"{len(train_set)} training images."
        )
    train_set, validation_set = split_validation(train_set, held_out)
    for field, wanted in (
        ("data.num_train", data.num_train),
        ("batch_size", config.batch_size),
    ):
        if wanted > len(train_set):
            raise configs.ConfigError(
                f"config.{field}={wanted} is more than the {len(train_set)} training "
                "images that there are."
            )
        if field == "data.num_train" and wanted:
            train_set = train_set.subset(np.arange(wanted))
    return train_set, validation_set, test_set.fixed()


def _describe(
    config: configs.Config,
    train_set: Dataset | Generated,
    validation_set: Dataset | None,
    test_set: Dataset,
) -> Task:
    data = config.data
    height, width, _ = train_set.image_shape
    if data.max_shift >= min(height, width):
        raise configs.ConfigError(
            f"config.data.max_shift={data.max_shift} moves images of {height}x{width} "
            "out of sight."
        )
    if data.crop > min(height, width):
        raise configs.ConfigError(
            f"config.data.crop={data.crop} is more than images of {height}x{width} are."
        )
    shape = cropped_shape(train_set.image_shape, data.crop)
    try:
        model = make_model(config.model, shape, train_set.num_classes)
    except ValueError as error:
        raise configs.ConfigError(str(error)) from error
    if isinstance(model, BaselineCNN) and train_set.is_multi_label:
        raise configs.ConfigError(
            f"config.model.name=cnn names one class an image, and {data.name} shows "
            "several; choose capsnet."
        )
    return Task(train_set, validation_set, test_set, model)


def _check_memory(config: configs.Config, task: Task) -> None:
    key = jax.eval_shape(lambda: jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, *task.model.image_shape), jnp.float32)
    try:
        params = jax.eval_shape(task.model.init, key, image)
    except ValueError as error:
        raise configs.ConfigError(str(error)) from error
    sets = [one for one in task[:3] if one is not None]
    memory = estimate_memory(task.model, config, sets)
    say(f"{num_parameters(params):,} parameters; training takes about {memory}")
    if memory.total > config.max_gigabytes:
        fields = "config.data.image_size or config.batch_size"
        if config.model.name == "capsnet":
            fields = (
                "config.data.image_size, config.model.primary_types or "
                "config.batch_size, raise config.model.primary_stride"
            )
        raise configs.ConfigError(
            f"config.max_gigabytes={config.max_gigabytes}: training needs about "
            f"{memory}. Lower {fields}, or allow for more."
        )
