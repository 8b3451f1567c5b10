"""Loads the images that runs are evaluated on, and takes some of them."""

import contextlib
import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from capsjax.config import ConfigError
from capsjax.data import Batch, Dataset, DatasetError, NotFoundError, load
from capsjax.data.loading import find_pictures, names_a_file, own_splits
from capsjax.data.readers.layout import shortened as listed
from capsjax.runtime.console import printable
from capsjax.storage.files import WorkdirError
from capsjax.storage.run import Run
from capsjax.training.sets import can_load_validation, load_validation, make_sets

# Larger images are not read again to calibrate by them.
_MOST_BYTES = 2**28


# Standard output is for results, not for progress in decoding.
@contextlib.contextmanager
def _progress_aside() -> Iterator[None]:
    with contextlib.redirect_stdout(sys.stderr):
        yield


@_progress_aside()
def load_test_set(runs: Sequence[Run], name: str | None) -> Dataset:
    """Loads the first run's test images, or another data set's, if all runs fit them.

    Raises:
        DatasetError: If the images can't be read or don't fit.
        WorkdirError: If the runs don't go together.
    """
    # Load the images, with labels by the first run's classes.
    first = runs[0]
    data, most = first.config.data, int(first.config.max_gigabytes * 1e9)
    load_split = functools.partial(
        load,
        image_size=data.image_size,
        max_bytes=most,
        preparation=first.preparation,
        skip_bad_files=data.skip_bad_files,
    )
    if name is not None and (pictures := find_pictures(name)):
        load_split = functools.partial(load_split, image_size=0)
        dataset = _load_pictures(first, *pictures, load_split)
    else:
        if name is None and first.in_memory:
            whose = f"{first.workdir.path} keeps no images, which were arrays in memory"
            if first.workdir.is_untrained:
                whose = f"save_run made {first.workdir.path}, which has no images"
            raise DatasetError(
                f"{whose}: name them by --data FILE.npz, FILE.csv or FOLDER"
            )
        rule = first.workdir.split_rule()
        try:
            if name in (None, data.name):
                dataset = data.load(
                    "test",
                    max_bytes=first.config.max_image_bytes,
                    split_rule=rule,
                    preparation=first.preparation,
                ).fixed()
            else:
                dataset = load_split(name, "test", split_rule=rule).fixed()
        except NotFoundError as error:
            place = "FILE" if names_a_file(name or data.name) else "FOLDER"
            raise NotFoundError(
                f"{error}. If the images are elsewhere: --data {place}"
            ) from error
    dataset = _with_classes_of(first, dataset)
    # Compare every run with the first and with the images.
    for run in runs:
        path = run.workdir.path
        kinds = [one.activation_kind for one in (first, run)]
        if kinds[0] != kinds[1]:
            raise WorkdirError(
                f"{first.workdir.path} and {path} are no ensemble: the activations of "
                f"the first network are of the kind {kinds[0]}, the second network's "
                f"of the kind {kinds[1]}."
            )
        if run.image_shape != dataset.image_shape:
            raise DatasetError(
                f"{dataset.name} does not fit {path}: its images are "
                f"{dataset.image_shape}, the run's {run.image_shape}."
            )
        scales = {one.preparation.scale for one in (first, run)} - {"own", "type"}
        if len(scales) > 1:
            raise WorkdirError(
                f"{first.workdir.path} and {path} are no ensemble: they scale grey of "
                f"more than 8 bits differently, {scales}."
            )
        if run.class_names != dataset.class_names:
            raise WorkdirError(
                f"{first.workdir.path} and {path} are no ensemble: their classes "
                "differ."
            )
        if dataset.is_multi_label and not run.loss.takes_several:
            raise DatasetError(
                f"{dataset.name} does not fit {path}: it shows several classes in an "
                "image, and the network names one."
            )
    return dataset


def _load_pictures(
    run: Run, name: str, path: str, load_split: Callable[..., Any]
) -> Dataset:
    """Loads the test images among image files; all images if they name no test split.

    The run's own images, which may have moved, are divided as before.
    """
    load_split = functools.partial(load_split, name, path=path)
    with contextlib.suppress(DatasetError):
        test_set = load_split("test", split_rule=run.workdir.split_rule())
        if run.workdir.is_of(test_set, "test"):
            return test_set
    if "test" in own_splits(name, path):
        return load_split("test")
    what = f"{path} has no folder" if path else f"{name} has no row"
    note = (
        f"{what} for the test: all of its images are evaluated, even if the network "
        "was trained on some of them"
    )
    dataset = load_split("all")
    return dataclasses.replace(dataset, notes=(note, *dataset.notes))


def _with_classes_of(run: Run, dataset: Dataset) -> Dataset:
    """Renumbers the labels by the run's classes, which have the same names.

    Raises:
        DatasetError: If the run has not learnt one of its classes.
    """
    learnt = {printable(name): index for index, name in enumerate(run.class_names)}
    names = [printable(name) for name in dataset.class_names]
    if unknown := [name for name in names if name not in learnt]:
        raise DatasetError(
            f"{dataset.name} does not fit {run.workdir.path}: its classes are not "
            f"those that were learnt there, which have no {listed(unknown)}."
        )
    index = np.array([learnt[name] for name in names], np.int32)
    label = index[dataset.label] if not dataset.is_multi_label else None
    if label is None:
        label = np.zeros((len(dataset), len(run.class_names)), np.bool_)
        label[:, index] = dataset.label
    return dataclasses.replace(dataset, label=label, class_names=run.class_names)


@_progress_aside()
def load_validation_set(run: Run) -> Dataset | None:
    """Loads the images that a run was validated on.

    Returns:
        The images; None if there were none, if they are not there any more, or if what
        must be read for them takes more than 256 MB: of image files the images
        themselves, of other sets all training images, of which they are a part.
    """
    with contextlib.suppress(DatasetError, ConfigError, WorkdirError, KeyError):
        known = run.workdir.read_json(run.workdir.dataset)["splits"]
        if run.in_memory or "validation" not in known:
            return None
        how = (run.config, run.workdir.split_rule())
        is_alone = can_load_validation(run.config)
        num_images = known["validation" if is_alone else "train"]["num_images"]
        if num_images * math.prod(run.image_shape) > _MOST_BYTES:
            return None
        if is_alone:
            validation = load_validation(*how, run.preparation)
        else:
            _, validation, _ = make_sets(*how, None, run.preparation)
        if validation is not None and run.workdir.is_of(validation, "validation"):
            return validation
    return None


def batches(dataset: Dataset, step: int) -> Iterator[tuple[slice, Batch]]:
    """Yields a data set's images in batches of ``step``, with their places."""
    for start in range(0, len(dataset), step):
        part = slice(start, min(start + step, len(dataset)))
        yield part, dataset.batch(np.arange(part.start, part.stop))


def some_images(dataset: Dataset, number: int) -> Dataset:
    """Returns at most ``number`` images, drawn from all parts of a sorted set."""
    if len(dataset) <= number:
        return dataset
    index = np.random.default_rng(0).choice(len(dataset), number, replace=False)
    return dataset.subset(np.sort(index))
