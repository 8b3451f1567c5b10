"""Reads a user's own images, whose labels stand in a CSV beside them."""

import collections
import csv
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from capsjax.data.dataset import Dataset
from capsjax.data.errors import DatasetError, NotFoundError
from capsjax.data.preparation import Preparation
from capsjax.data.readers.image_files import read_files
from capsjax.data.readers.layout import (
    SPLIT_NAMES,
    LabelledFile,
    Layout,
    divide,
    shortened,
)
from capsjax.runtime.paths import require_file

_PATHS = ("path", "file", "filename", "file_name", "image")
_SEPARATORS = ";|"
# The cells of a class's column: what spreadsheets and pandas write.
_ABSENT, _PRESENT = ("0", "0.0", "false"), ("1", "1.0", "true")
_COLUMNS = (
    f"it must have a column path (or {', '.join(_PATHS[1:])}), and label for one class "
    "an image, labels for several, or a column of 0 and 1 for each class"
)


def load_image_csv(
    path: Path,
    split: str,
    *,
    image_size: int,
    max_bytes: int,
    preparation: Preparation | None = None,
    skip_bad_files: bool = False,
    choose: Callable[[Dataset], Dataset] | None = None,
) -> Dataset:
    """Reads one split of the images that a CSV lists into memory.

    Args:
        path: The CSV: see ``find_layout``.
        split: "train", "validation", "test", or "all" for all images.
        image_size: As in ``read_files``.
        max_bytes: As in ``read_files``.
        preparation: As in ``read_files``.
        skip_bad_files: Whether files that are missing or can't be read are left out.
        choose: As in ``read_files``.

    Returns:
        The images, in the order of their rows.

    Raises:
        NotFoundError: If there is no CSV.
        DatasetError: As in ``find_layout`` and ``read_files``, or if no row is of the
            split.
    """
    layout = find_layout(path, needs_test=split != "all")
    if not layout.files_of(split):
        raise DatasetError(f"{path} has no row for the {split} split")
    if not skip_bad_files:
        _require_files(path, layout)
    return read_files(
        layout,
        split,
        image_size=image_size,
        max_bytes=max_bytes,
        preparation=preparation,
        skip_bad_files=skip_bad_files,
        choose=choose,
    )


def own_splits(path: Path) -> set[str]:
    """Returns the splits that the CSV's column ``split`` names.

    Raises:
        NotFoundError: If there is no CSV.
        DatasetError: As in ``find_layout``.
    """
    return {row.split for row in _read_rows(path)[1]} - {""}


def find_layout(path: Path, *, needs_test: bool = True) -> Layout:
    """Finds classes and splits in a CSV.

    Its first row names the columns, in upper or lower case:

    - ``path``, ``file``, ``filename``, ``file_name`` or ``image``: the file of an
      image, relative to the CSV's folder and in it;
    - ``label``: its class; or ``labels``: its classes, between ``;`` or ``|``, none if
      it is empty; or, without these, one column for each class, with 0 or 1;
    - ``split``, if there is one: train, validation or test, as a folder may be called.

    Without ``split``, or without a row for the test, a tenth of each class is kept for
    the test, by hashes of the paths: at least one image, and never all. An image with
    several classes counts for the rarest.

    Args:
        path: The CSV, in UTF-8.
        needs_test: Whether test images are taken if no row is for the test.

    Returns:
        The files in the order of their rows. Classes are those of the training images,
        ordered by name, or as numbers if all are; or as their columns are.

    Raises:
        NotFoundError: If there is no CSV.
        DatasetError: If the CSV can't be read or has other columns or cells, names a
            file twice, or a class has too few images. The message names the line.
    """
    columns, rows = _read_rows(path)
    notes = list(_notes(path, columns))
    # Find the classes of the training images; of all, if there are none.
    trained = [row for row in rows if row.split in ("", "train")] or rows
    class_names = columns.classes or _ordered(k for row in trained for k in row.classes)
    number = {name: index for index, name in enumerate(class_names)}
    splits: dict[str, list[LabelledFile]] = {}
    lines = {}
    for row in rows:
        for name in row.classes:
            if name not in number:
                raise DatasetError(
                    f"{path}, line {row.line}: class {name!r} has no image to train on"
                )
        label = tuple(sorted({number[name] for name in row.classes}))
        file = LabelledFile(
            label if columns.is_multi_label else label[0],
            path.parent / row.path,
            row.path,
        )
        splits.setdefault(row.split or "train", []).append(file)
        lines[row.path] = row.line
    # Keep images for the test.
    if needs_test and "test" not in splits and "train" in splits:
        splits["train"], splits["test"] = _divided(path, class_names, splits, lines)
        if columns.split is not None:
            notes.append(
                f"{path}: no row is for the test, so a tenth of the training images is "
                "kept for it"
            )
    return Layout(path, class_names, splits, tuple(notes), columns.is_multi_label)


class _Row(NamedTuple):
    """A checked row: its line, the file, the names of its classes, and its split."""

    line: int
    path: str
    classes: tuple[str, ...]
    split: str


class _Columns(NamedTuple):
    """The indices of the columns, and the classes if each has its own column."""

    names: tuple[str, ...]
    path: int
    label: int | None
    labels: int | None
    split: int | None
    classes: tuple[str, ...] = ()

    @property
    def is_multi_label(self) -> bool:
        return self.label is None


def _read_rows(path: Path) -> tuple[_Columns, list[_Row]]:
    lines = _lines(path)
    _, header = next(lines, (0, []))
    columns = _find_columns(path, header)
    rows, seen = [], {}
    for line, cells in lines:
        row = _read_row(path, columns, line, cells)
        if row.path in seen:
            raise DatasetError(
                f"{path}, line {line}: {row.path} is in line {seen[row.path]} already; "
                "each image has one row"
            )
        seen[row.path] = line
        rows.append(row)
    if not rows:
        raise DatasetError(f"{path} has no row below its header")
    return columns, rows


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields the number of each line that is not blank, and its cells."""
    try:
        require_file(path)
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError(
            f"there is no {os.path.abspath(path)}: correct the path"
        ) from error
    except OSError as error:
        raise DatasetError(
            f"{path} cannot be read ({error.strerror or error}): check what it is and "
            "that you may read it"
        ) from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DatasetError(
            f"{path}, line {line} is not in UTF-8 ({error.reason}): save the table as "
            "CSV in UTF-8"
        ) from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield line, [cell.strip() for cell in cells]
            line = reader.line_num + 1
    except csv.Error as error:
        raise DatasetError(
            f"{path}, line {line} is no row of a CSV: {error}"
        ) from error


def _find_columns(path: Path, header: Sequence[str]) -> _Columns:
    names = tuple(name.lower() for name in header)
    if len(names) == 1 and any(mark in names[0] for mark in ";\t"):
        raise DatasetError(
            f"{path}, line 1 has a single column: separate the columns by commas"
        )
    for name in names:
        if name and names.count(name) > 1:
            raise DatasetError(f"{path}, line 1 has the column {name} twice")
    there = [name for name in names if name in _PATHS]
    labels = [name for name in names if name in ("label", "labels")]
    if len(there) != 1 or len(labels) > 1:
        found = " and ".join([*there, *labels]) if there else shortened(names)
        raise DatasetError(f"{path}, line 1 has {found or 'no name'}: {_COLUMNS}")
    known = {*there, *labels, "split"}
    classes = () if labels else tuple(n for n in header if n and n.lower() not in known)
    if not labels and not classes:
        raise DatasetError(f"{path}, line 1 has {shortened(names)}: {_COLUMNS}")
    label, several, split = (
        names.index(name) if name in names else None
        for name in ("label", "labels", "split")
    )
    return _Columns(
        tuple(header), names.index(there[0]), label, several, split, classes
    )


def _read_row(path: Path, columns: _Columns, line: int, cells: list[str]) -> _Row:
    place = f"{path}, line {line}"
    if len(cells) != len(columns.names):
        raise DatasetError(
            f"{place} has {len(cells)} cells, and the header has {len(columns.names)}: "
            "put a text with a comma between quotes"
        )
    split = ""
    if columns.split is not None:
        cell = cells[columns.split]
        found = [one for one, names in SPLIT_NAMES.items() if cell.lower() in names]
        if not found:
            raise DatasetError(
                f"{place}: split is {cell!r}, and must be train, validation or test"
            )
        split = found[0]
    classes = tuple(_classes(place, columns, cells))
    return _Row(line, _relative(path, place, cells[columns.path]), classes, split)


def _classes(place: str, columns: _Columns, cells: Sequence[str]) -> Iterator[str]:
    """Yields the names of an image's classes."""
    if columns.label is not None:
        cell = cells[columns.label]
        if not cell:
            raise DatasetError(f"{place}: label is empty, and must name a class")
        if any(mark in cell for mark in _SEPARATORS):
            raise DatasetError(
                f"{place}: label is {cell!r}, and must name one class; call the column "
                "labels if images show several"
            )
        yield cell
    elif columns.labels is not None:
        names = cells[columns.labels].replace("|", ";").split(";")
        yield from filter(None, (name.strip() for name in names))
    else:
        for name, cell in zip(columns.names, cells, strict=True):
            if name not in columns.classes:
                continue
            if cell.lower() not in (*_ABSENT, *_PRESENT):
                raise DatasetError(
                    f"{place}: {name} is {cell!r}, and must be 0 or 1, as the column "
                    "of a class; or add a column label or labels"
                )
            if cell.lower() in _PRESENT:
                yield name


def _relative(path: Path, place: str, cell: str) -> str:
    """Returns the path of an image within the CSV's folder, with ``/``."""
    if not cell:
        raise DatasetError(f"{place} has no path of an image")
    folder = os.path.abspath(path.parent)
    within = os.path.relpath(os.path.join(folder, cell), folder)
    if within.split(os.sep)[0] in (os.pardir, os.curdir) or os.path.isabs(within):
        raise DatasetError(
            f"{place}: {cell} is not within {folder}, as all images must be: put the "
            "CSV into a folder above them"
        )
    return Path(within).as_posix()


def _ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Returns each name once, in order: of the numbers, if all are numbers."""
    distinct = {*names}
    are_numbers = all(name.isascii() and name.isdigit() for name in distinct)
    key = (lambda name: (int(name), name)) if are_numbers else None
    return tuple(sorted(distinct, key=key))


def _divided(
    path: Path,
    class_names: Sequence[str],
    splits: dict[str, list[LabelledFile]],
    lines: dict[str, int],
) -> tuple[list[LabelledFile], list[LabelledFile]]:
    """Divides the training files of each class into training and test files."""
    files = splits["train"]
    count = collections.Counter(k for file in files for k in file.classes)
    groups: dict[int, list[LabelledFile]] = {}
    for file in files:
        rarest = min(file.classes, key=count.__getitem__, default=-1)
        groups.setdefault(rarest, []).append(file)
    test = set()
    for label, group in groups.items():
        if len(group) > 1:
            test.update(divide(group)[1])
        elif not isinstance(group[0].label, tuple):
            raise DatasetError(
                f"{path}: class {class_names[label]} has a single image (line "
                f"{lines[group[0].name]}): a class needs one to train on and another "
                "one to test"
            )
    return (
        [file for file in files if file not in test],
        [file for file in files if file in test],
    )


def _notes(path: Path, columns: _Columns) -> Iterator[str]:
    known = {*_PATHS, "label", "labels", "split", ""}
    if columns.label is None and columns.labels is None:
        return  # Every other column is a class.
    if left := [name for name in columns.names if name.lower() not in known]:
        yield f"{path}: {shortened(left)} not read: only path, label or labels, split"


def _require_files(path: Path, layout: Layout) -> None:
    missing = [f for f in layout.files_of("all") if not f.path.is_file()]
    if not missing:
        return
    lines = {row.path: row.line for row in _read_rows(path)[1]}
    first = min(missing, key=lambda file: lines[file.name])
    more = f", and {len(missing) - 1} more are missing" if len(missing) > 1 else ""
    hint = ": write / between folders" if "\\" in first.name and os.sep == "/" else ""
    raise DatasetError(
        f"{path}, line {lines[first.name]}: there is no {first.path}{hint}{more}; "
        "correct the paths, or set skip_bad_files (--config.data.skip_bad_files=true)"
    )
