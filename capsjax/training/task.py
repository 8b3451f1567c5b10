"""The data and the network of a run, checked before anything is written."""

import dataclasses
import functools
import importlib.util
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from capsjax import config as configs
from capsjax.data import (
    BY_CLASS,
    Dataset,
    DatasetError,
    Generated,
    NotFoundError,
    has_validation,
    load,
    split_validation,
    take_share,
)
from capsjax.data.augment import check_changes
from capsjax.data.crop import cropped_shape
from capsjax.data.loading import may_name_a_place, names_a_file
from capsjax.data.preparation import Preparation
from capsjax.data.readers.layout import shortened
from capsjax.losses import Loss, fitting_loss
from capsjax.models import Network, num_parameters
from capsjax.models.network import (
    activation_kind,
    bind,
    check_output,
    init_variables,
)
from capsjax.runtime.console import say
from capsjax.training.finetuning import check_freeze
from capsjax.training.memory import estimate_memory
from capsjax.training.objective import (
    ClassWeight,
    balanced_label_weights,
    balanced_weights,
)


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
    """

    train_set: Dataset | Generated
    validation_set: Dataset | None
    test_set: Dataset
    model: Network
    loss: Loss
    split_rule: str = BY_CLASS
    class_weight: ClassWeight | None = None

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


def named_after(config: configs.Config, datasets: Sequence[Dataset]) -> configs.Config:
    """Returns the config with the name of data sets in memory, and no other place."""
    require_datasets(datasets)
    data = dataclasses.replace(config.data, name=datasets[0].name, path="")
    return dataclasses.replace(config, data=data)


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
    sets = _load_sets(config, split_rule) if datasets is None else _alike(datasets)
    task = _describe(config, *_divide(config, *sets, split_rule))
    task = task._replace(split_rule=split_rule)
    _say_about_splits(task)
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
    config: configs.Config, rule: str
) -> tuple[Dataset | Generated, Dataset | None, Dataset]:
    """Loads the images to train on, the set's own validation images, and the test's."""
    data = config.data
    train_set = _load(config, "train", rule)
    # Prepare all splits like the training images.
    load_split = functools.partial(
        _load, config, rule=rule, preparation=train_set.preparation
    )
    test_set, own = load_split("test"), None
    has_own = rule == BY_CLASS and has_validation(data.name, data.path)
    if has_own and data.num_validation:
        own = load_split("validation").fixed()
    for what, one in (("test", test_set), ("validation", own)):
        if one is not None and one.image_shape != train_set.image_shape:
            raise DatasetError(
                f"{data.name}: the {what} images are {one.image_shape}, the training "
                f"images {train_set.image_shape}: they must have one shape."
            )
    return train_set, own, test_set.fixed()


def require_datasets(datasets: Any) -> None:
    """Raises if ``datasets`` is no pair or triple of data sets.

    Raises:
        DatasetError: With the value.
    """
    is_right = isinstance(datasets, Sequence) and len(datasets) in (2, 3)
    if not is_right or not all(isinstance(one, Dataset) for one in datasets):
        found = datasets
        if isinstance(datasets, Sequence) and not isinstance(datasets, str):
            found = f"({', '.join(type(one).__name__ for one in datasets)})"
        raise DatasetError(
            "datasets must be (train, test) or (train, validation, test), each a "
            f"capsjax.data.Dataset, got {found}."
        )


def _alike(datasets: Sequence[Dataset]) -> tuple[Dataset, Dataset | None, Dataset]:
    """Checks that data sets in memory have one shape, one kind of labels, one list."""
    require_datasets(datasets)
    train_set, *others = datasets
    names = train_set.class_names
    same = [train_set]
    for one in others:
        for what in ("image_shape", "is_multi_label"):
            here, there = getattr(train_set, what), getattr(one, what)
            if here != there:
                raise DatasetError(
                    f"data set {one.name!r} has {what} {there}, and the training "
                    f"images of {train_set.name!r} have {here}: they must be alike."
                )
        # The last classes may have no image there.
        if one.class_names != names[: one.num_classes] or (
            one.is_multi_label and one.class_names != names
        ):
            raise DatasetError(
                f"data set {one.name!r} has the classes {shortened(one.class_names)}, "
                f"and {train_set.name!r} has {shortened(names)}: they must have the "
                "same class_names."
            )
        same.append(dataclasses.replace(one, class_names=names))
    return same[0], same[1] if len(same) == 3 else None, same[-1]


def _divide(
    config: configs.Config,
    train_set: Dataset | Generated,
    own: Dataset | None,
    test_set: Dataset,
    rule: str,
) -> tuple[Dataset | Generated, Dataset | None, Dataset]:
    """Holds out the images to validate, and takes the share to train on."""
    data = config.data
    if rule == BY_CLASS:
        _require_two_classes(train_set)
        _require_used_classes(train_set)
    # Take the set's own validation images, or hold out training images.
    if own is not None:
        validation_set = own if data.num_validation else None
    else:
        held_out = data.num_validation
        if held_out == -1:
            held_out = max(1, len(train_set) // 10)
            if rule == BY_CLASS:
                # One image of each class stays in training.
                num_shown = np.unique(train_set.main_class).size
                held_out = min(held_out, len(train_set) - num_shown)
        if held_out >= len(train_set):
            raise configs.ConfigError(
                f"config.data.num_validation={data.num_validation} leaves none of the "
                f"{len(train_set)} training images; -1 keeps a tenth of them."
            )
        train_set, validation_set = split_validation(train_set, held_out, rule)
    # Shorten the training set.
    for field, wanted in (
        ("data.num_train", data.num_train),
        ("batch_size", config.batch_size),
    ):
        if wanted > len(train_set):
            raise configs.ConfigError(
                f"config.{field}={wanted} is more than the {len(train_set)} training "
                "images."
            )
        if field == "data.num_train" and wanted:
            train_set = take_share(train_set, wanted, rule)
    if rule == BY_CLASS:
        _require_two_classes(train_set)
    return train_set, validation_set, test_set


def _load(
    config: configs.Config,
    split: str,
    rule: str,
    preparation: Preparation | None = None,
) -> Dataset | Generated:
    data = config.data
    try:
        return load(
            data.name,
            split,
            path=data.path,
            image_size=data.image_size,
            max_bytes=int(config.max_gigabytes * 1e9),
            split_rule=rule,
            preparation=preparation,
            skip_bad_files=data.skip_bad_files,
        )
    except NotFoundError as error:
        field = "path" if data.path else "name"
        place = "FILE" if names_a_file(data.name) else "FOLDER"
        raise NotFoundError(
            f"{error}. If the images are elsewhere: --config.data.{field}={place}"
        ) from error


def _require_used_classes(train_set: Dataset | Generated) -> None:
    """Raises if most classes have no images, for example with labels 0, 1 and 200."""
    num_images = train_set.images_by_class()
    empty = np.flatnonzero(num_images == 0)
    if 2 * len(empty) > len(num_images):
        names = [train_set.class_names[k] for k in empty]
        raise DatasetError(
            f"data set {train_set.name!r} has {len(num_images)} classes, and of "
            f"{len(empty)} of them no image to train on ({shortened(names)}): number "
            "the labels from 0 on, without gaps."
        )


def _require_two_classes(train_set: Dataset | Generated) -> None:
    num_shown = train_set.images_by_class()
    shown = np.flatnonzero(num_shown)
    if train_set.is_multi_label:
        # A class that some images show, and some do not, can be learnt.
        if not (num_shown % len(train_set)).any():
            raise DatasetError(
                f"data set {train_set.name!r}: all {len(train_set)} images to train on "
                "show the same classes: there is nothing to learn."
            )
    elif len(shown) < 2:
        names = "".join(f" {train_set.class_names[k]!r}" for k in shown)
        raise DatasetError(
            f"data set {train_set.name!r}: all {len(train_set)} images to train on are "
            f"of one class,{names}: there is nothing to learn."
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


def _check_memory(config: configs.Config, task: Task) -> None:
    try:
        variables = jax.eval_shape(
            lambda: init_variables(task.model, jax.random.key(0))
        )
        check_output(task.model, variables)
        check_freeze(config, variables)
    except ValueError as error:
        raise configs.ConfigError(str(error)) from error
    sets = [one for one in task[:3] if one is not None]
    memory = estimate_memory(task.model, task.loss, config, sets)
    num_weights = num_parameters(variables["params"])
    say(f"{num_weights:,} parameters; training takes about {memory}")
    if memory.total > config.max_gigabytes:
        fields = "config.data.image_size or config.batch_size"
        if hasattr(config.model, "primary_types"):
            fields = (
                "config.data.image_size, config.model.primary_types or "
                "config.batch_size, raise config.model.primary_stride"
            )
        raise configs.ConfigError(
            f"config.max_gigabytes={config.max_gigabytes}: training needs about "
            f"{memory}. Lower {fields}, or raise config.max_gigabytes."
        )
