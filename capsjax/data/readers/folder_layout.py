"""Assigns the files of a folder of images to classes and splits."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from capsjax.data.errors import DatasetError
from capsjax.data.readers.layout import (
    SPLIT_NAMES,
    LabelledFile,
    Layout,
    divide,
    shortened,
)
from capsjax.data.sampling import BY_CLASS, FIRST_EDITION

_LAYOUT = "it must have one subfolder for each class, with that class's images"
# Files that desktops leave in folders of images; names with a leading dot are skipped
# too.
_NO_IMAGES = ("Thumbs.db", "desktop.ini")

# The files of each class.
Files = dict[str, list[Path]]


def find_layout(
    folder: Path, split_rule: str = BY_CLASS, *, needs_test: bool = True
) -> Layout:
    """Finds classes and splits in a folder, by the names of its subfolders.

    Subfolders called train (or training) and test (or testing), in upper or lower case,
    are these splits; val, valid or validation is the validation split. Without a folder
    for the test, a tenth of each class is taken from the training images: at least one,
    those whose names have the smallest hashes, so that further images move almost none
    of the others to another split.

    Args:
        folder: The folder.
        split_rule: "first_edition" knows only ``train`` and ``test`` together, in lower
            case; every other subfolder is a class.
        needs_test: Whether test images are taken if they have no subfolder.

    Raises:
        DatasetError: If the folder has another layout, or a class has too few images.
        OSError: If a folder can't be read.
    """
    own = own_splits(folder, split_rule)
    if not own:
        splits = {"train": _find_classes(folder)}
        if needs_test:
            splits["train"], splits["test"] = _divided(folder, splits["train"])
        return _layout(folder, splits)
    splits = {split: _find_classes(path) for split, path in own.items()}
    for split, path in own.items():
        if unknown := sorted(splits[split].keys() - splits["train"].keys()):
            raise DatasetError(
                f"{path / unknown[0]} has no images to train on: there must be a "
                f"folder {own['train'] / unknown[0]}"
            )
    notes = []
    if needs_test and "test" not in splits:
        splits["train"], splits["test"] = _divided(own["train"], splits["train"])
        notes.append(
            f"{folder}: {own['validation'].name} validates; there is no folder for the "
            f"test, so a tenth of {own['train'].name} is kept for it"
        )
    used = {path.name for path in own.values()}
    if left := [name for name in _subfolders(folder) if name not in used]:
        notes.append(
            f"{folder}: {shortened(left)} left out: only {', '.join(sorted(used))} read"
        )
    return _layout(folder, splits, notes)


def _layout(
    folder: Path, splits: Mapping[str, Files], notes: Iterable[str] = ()
) -> Layout:
    """Labels the files by the training classes; orders them by class, then by name."""
    class_names = tuple(splits["train"])
    labelled = {
        split: [
            LabelledFile(label, file, f"{file.parent.name}/{file.name}")
            for label, name in enumerate(class_names)
            for file in classes.get(name, ())
        ]
        for split, classes in splits.items()
    }
    return Layout(folder, class_names, labelled, tuple(notes))


def own_splits(folder: Path, split_rule: str = BY_CLASS) -> dict[str, Path]:
    """Returns the subfolders that are splits; none if the folder has classes.

    Raises:
        DatasetError: If two of them are the same split.
        OSError: If the folder can't be read.
    """
    names = _subfolders(folder)
    if split_rule == FIRST_EDITION:
        own = {name: folder / name for name in ("train", "test") if name in names}
        return own if len(own) == 2 else {}
    own = {}
    for split, spellings in SPLIT_NAMES.items():
        found = [name for name in names if name.lower() in spellings]
        if len(found) > 1:
            raise DatasetError(
                f"{folder} has {len(found)} folders for one split, "
                f"{' and '.join(found)}: keep one of them"
            )
        if found:
            own[split] = folder / found[0]
    return own if "train" in own and len(own) > 1 else {}


def _divided(folder: Path, classes: Files) -> tuple[Files, Files]:
    """Divides each class's files into training and test files."""
    train, test = {}, {}
    for name, files in classes.items():
        if len(files) < 2:
            raise DatasetError(
                f"{folder / name} has a single image: a class needs one to train on "
                "and another one to test"
            )
        train[name], test[name] = divide(files)
    return train, test


def _find_classes(folder: Path) -> Files:
    classes = {}
    for name in _subfolders(folder):
        classes[name] = []
        for entry in _visible(folder / name):
            if entry.is_dir():
                raise DatasetError(
                    f"{entry.path} is a folder within a class: {_LAYOUT}"
                )
            classes[name].append(folder / name / entry.name)
        if not classes[name]:
            raise DatasetError(f"{folder / name} has no images: add some, or remove it")
    if not classes:
        raise DatasetError(f"{folder} has no subfolders: {_LAYOUT}")
    return classes


def _subfolders(folder: Path) -> list[str]:
    return [entry.name for entry in _visible(folder) if entry.is_dir()]


def _visible(folder: Path) -> list[os.DirEntry]:
    with os.scandir(folder) as entries:
        visible = [
            entry
            for entry in entries
            if not entry.name.startswith(".") and entry.name not in _NO_IMAGES
        ]
    return sorted(visible, key=lambda entry: entry.name)
