"""The images of a run: loaded or given, checked, divided."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from capsjax import config as configs
from capsjax.data import (
    BY_CLASS,
    Dataset,
    DatasetError,
    Generated,
    NotFoundError,
    load,
    split_validation,
    take_share,
)
from capsjax.data.loading import are_image_files, names_a_file
from capsjax.data.preparation import Preparation
from capsjax.data.readers.layout import shortened

_OTHERS = ("validation", "test")


def make_sets(
    config: configs.Config,
    rule: str,
    datasets: Sequence[Dataset] | None,
    preparation: Preparation | None = None,
) -> tuple[Dataset | Generated, Dataset | None, Dataset]:
    """Returns the images to train on, to validate and to test.

    Args:
        config: The config of the run.
        rule: Name of the rule that divides the training images.
        datasets: Images in memory; None to load the images that the config names.
        preparation: How image files become images; None to look at all of them first.

    Raises:
        ConfigError: If a field does not fit the images.
        DatasetError: If images can't be found or read, or sets are not alike.
    """
    if datasets is not None:
        return _divide(config, *_alike(datasets), rule)
    return _divide(config, *_load_sets(config, rule, preparation), rule)


def can_load_validation(config: configs.Config) -> bool:
    """Returns True if ``load_validation`` can load a config's validation images."""
    data = config.data
    # A file that can't be read is found by reading all.
    is_own = type(data).load is not configs.Data.load
    return not is_own and are_image_files(data.name) and not data.skip_bad_files


def load_validation(
    config: configs.Config, rule: str, preparation: Preparation
) -> Dataset | None:
    """Returns the images to validate, without reading those to train on.

    None if there are none.

    Args:
        config: The config of the run, of which ``can_load_validation`` is true.
        rule: Name of the rule that divides the training images.
        preparation: How image files become images.

    Raises:
        ConfigError: If a field does not fit the images.
        DatasetError: If images can't be found or read.
    """
    data = config.data
    if data.num_validation == 0:
        return None
    if _has_validation(config, rule):
        return _load(config, "validation", rule, preparation).fixed()

    def choose(train_set: Dataset) -> Dataset:
        _, validation_set, _ = _divide(config, train_set, None, train_set, rule)
        assert validation_set is not None
        return validation_set

    return load(
        data.name,
        "train",
        path=data.path,
        max_bytes=config.max_image_bytes,
        split_rule=rule,
        preparation=preparation,
        choose=choose,
    ).fixed()


def named_after(config: configs.Config, datasets: Sequence[Dataset]) -> configs.Config:
    """Returns the config with the name of data sets in memory, and no other place."""
    require_datasets(datasets)
    data = dataclasses.replace(config.data, name=datasets[0].name, path="")
    return dataclasses.replace(config, data=data)


def _load_sets(
    config: configs.Config, rule: str, preparation: Preparation | None
) -> tuple[Dataset | Generated, Dataset | None, Dataset]:
    """Loads the images to train on, the set's own validation images, and the test's."""
    data = config.data
    train_set = _load(config, "train", rule, preparation)
    # Prepare all splits like the training images.
    load_split = functools.partial(
        _load, config, rule=rule, preparation=train_set.preparation
    )
    test_set, own = load_split("test"), None
    if _has_validation(config, rule):
        own = load_split("validation").fixed()
    for what, one in (("test", test_set), ("validation", own)):
        if one is not None and one.image_shape != train_set.image_shape:
            raise DatasetError(
                f"{data.name}: the {what} images are {one.image_shape}, the training "
                f"images {train_set.image_shape}: they must have one shape."
            )
    return train_set, own, test_set.fixed()


def _has_validation(config: configs.Config, rule: str) -> bool:
    """Returns True if the data set's own validation images validate."""
    data = config.data
    return bool(data.num_validation) and rule == BY_CLASS and data.has_validation


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
    for split, one in zip(_OTHERS[-len(others) :], others, strict=True):
        for what in ("image_shape", "is_multi_label"):
            here, there = getattr(train_set, what), getattr(one, what)
            if here != there:
                raise DatasetError(
                    f"the {split} images {one.name!r} have {what} {there}, and the "
                    f"training images have {here}: they must be alike."
                )
        # The last classes may have no image there.
        if one.class_names != names[: one.num_classes] or (
            one.is_multi_label and one.class_names != names
        ):
            raise DatasetError(
                f"the {split} images {one.name!r} have the classes "
                f"{shortened(one.class_names)}, and the training images have "
                f"{shortened(names)}: they must have the same class_names."
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
        train_set, validation_set = split_validation(
            train_set, held_out, rule, data.validation_choice
        )
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
        found = data.load(
            split,
            max_bytes=config.max_image_bytes,
            split_rule=rule,
            preparation=preparation,
        )
    except NotFoundError as error:
        field = "path" if data.path else "name"
        place = "FILE" if names_a_file(data.name) else "FOLDER"
        raise NotFoundError(
            f"{error}. If the images are elsewhere: --config.data.{field}={place}"
        ) from error
    if not isinstance(found, Dataset | Generated):
        raise DatasetError(
            f"load of {type(data).__name__} must return a capsjax.data.Dataset, got "
            f"{type(found).__name__}."
        )
    return found


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
