"""Images whose labels stand in a table beside them."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from capsjax.data import DatasetError, NotFoundError, has_validation, load
from capsjax.data.preparation import Preparation
from capsjax.data.readers.image_csv import find_layout

NUM = 24


@pytest.fixture
def folder(tmp_path):
    """Makes images in two folders; the brightness of each is its number."""
    for number in range(NUM):
        path = tmp_path / "data" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (12, 9), number).save(path)
    return tmp_path / "data"


def paths():
    return [f"{'ab'[number % 2]}/{number}.png" for number in range(NUM)]


def table(folder, *lines, name="labels.csv", **options):
    path = folder / name
    path.write_text("\n".join(lines) + "\n", **options)
    return str(path)


def labelled(folder, label="cat{}", head="path,label", extra=""):
    """A table with three labels in turn."""
    rows = [f"{path},{label.format(n % 3)}{extra}" for n, path in enumerate(paths())]
    return table(folder, head, *rows)


def read(name, split="train", **options):
    return load(name, split, image_size=8, **options)


def numbers(dataset):
    return dataset.image[:, 0, 0, 0].tolist()


def test_each_image_has_the_label_of_its_row(folder):
    name = labelled(folder)
    train, test = read(name), read(name, "test")
    assert train.class_names == test.class_names == ("cat0", "cat1", "cat2")
    assert train.image_shape == (8, 8, 1)
    assert train.name == name
    for dataset in (train, test):
        np.testing.assert_array_equal(dataset.label, np.array(numbers(dataset)) % 3)
        assert numbers(dataset) == sorted(numbers(dataset))
        assert (dataset.images_by_class() > 0).all()
    assert sorted(numbers(train) + numbers(test)) == [*range(NUM)]
    assert sorted(numbers(read(name, "all"))) == [*range(NUM)]
    assert not has_validation(name)


def test_the_test_images_are_the_same_wherever_the_folder_lies(folder):
    name = labelled(folder)
    moved = folder.parent / "moved"
    shutil.copytree(folder, moved)
    before, after = (read(n, "test") for n in (name, str(moved / "labels.csv")))
    assert after.difference(before.identity()) is None
    assert before.files[0] == paths()[numbers(before)[0]]


def test_about_a_tenth_is_for_the_test_even_of_files_of_one_name(tmp_path):
    # This name's own hash would choose all of them.
    rows = [f"{number}/0.png,x" for number in range(400)]
    few, many = (
        find_layout(Path(table(tmp_path, "path,label", *rows[:number]))).splits
        for number in (100, 400)
    )
    # Four standard deviations of 6 around the binomial distribution's mean of 40.
    assert 16 < len(many["test"]) < 64
    # Further rows leave the others where they are.
    assert {*few["test"]} <= {*many["test"]}
    assert {*few["train"]} <= {*many["train"]}


def test_a_column_chooses_the_splits(folder):
    splits = ["train"] * 12 + ["Val"] * 6 + ["TESTING"] * 6
    rows = [
        f"{s},{n % 3},{p}" for n, (s, p) in enumerate(zip(splits, paths(), strict=True))
    ]
    name = table(folder, "Split,Label,File", *rows)
    assert has_validation(name)
    for split, expected in (
        ("train", range(12)),
        ("validation", range(12, 18)),
        ("test", range(18, 24)),
    ):
        assert numbers(read(name, split)) == [*expected]


def test_test_images_are_kept_if_the_column_names_none(folder):
    rows = [f"{p},{n % 3},{'tv'[n % 2]}" for n, p in enumerate(paths())]
    rows = [row.replace(",t", ",train").replace(",v", ",valid") for row in rows]
    name = table(folder, "path,label,split", *rows)
    assert 0 < len(read(name, "test")) < 8
    assert set(numbers(read(name, "validation"))) == set(range(1, NUM, 2))
    assert "no row is for the test" in read(name).notes[0]


def test_labels_that_are_numbers_are_in_their_order(folder):
    name = labelled(folder, label="{}0")
    assert read(name).class_names == ("00", "10", "20")
    rows = [f"{p},{(1, 2, 10)[n % 3]}" for n, p in enumerate(paths())]
    assert read(table(folder, "path,label", *rows)).class_names == ("1", "2", "10")


@pytest.mark.parametrize(
    ("head", "row"),
    [
        ("path,labels", lambda p, n: f"{p},{'; '.join(names(n))}"),
        ("path,labels", lambda p, n: f"{p},{'|'.join(names(n))}"),
        ("two,path,three", lambda p, n: f"{1 * (n % 2 == 0)},{p},{1 * (n % 3 == 0)}"),
        ("two,path,three", lambda p, n: f"{n % 2 == 0},{p},{float(n % 3 == 0)}"),
        # pandas writes an index, in a column without a name.
        (",two,path,three", lambda p, n: f"{n},{n % 2 == 0},{p},{n % 3 == 0}"),
    ],
)
def test_an_image_has_several_labels_or_none(folder, head, row):
    name = table(folder, head, *(row(p, n) for n, p in enumerate(paths())))
    seen = []
    for split in ("train", "test"):
        dataset = read(name, split)
        three, two = (dataset.class_names.index(k) for k in ("three", "two"))
        is_divided = np.array(numbers(dataset))[:, None] % [3, 2] == 0
        np.testing.assert_array_equal(dataset.label[:, [three, two]], is_divided)
        seen += numbers(dataset)
    assert sorted(seen) == [*range(NUM)]
    order = ("two", "three") if "two" in head else ("three", "two")
    assert dataset.class_names == order


def names(number):
    return [name for name, k in (("two", 2), ("three", 3)) if number % k == 0]


def test_a_spreadsheet_s_table_is_read(folder):
    lines = ["PATH,Label", *(f'"{p}", "a, b {n % 2}" ' for n, p in enumerate(paths()))]
    lines = [line.replace(', "', ',"').rstrip() for line in lines]
    (folder / "x.CSV").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert read(str(folder / "x.CSV")).class_names == ("a, b 0", "a, b 1")


def test_a_path_may_be_whole_if_it_is_within_the_folder(folder):
    rows = [f"{folder / p},{n % 2}" for n, p in enumerate(paths())]
    name = table(folder, "path,label", *rows)
    assert set(read(name).files) <= {*paths()}


def test_columns_that_are_not_read_are_named(folder):
    (note,) = read(labelled(folder, head="path,label,age", extra=",7")).notes
    assert "age not read" in note


def test_missing_files_may_be_skipped(folder):
    name = labelled(folder)
    before = len(read(name))
    (folder / read(name).files[3]).unlink()
    (folder / read(name, skip_bad_files=True).files[3]).write_bytes(b"none")
    dataset = read(name, skip_bad_files=True)
    assert len(dataset) == before - 2
    assert "2 train files can't be read and are skipped: " in dataset.notes[-1]


def test_images_are_prepared_as_in_another_split(folder):
    name = labelled(folder)
    preparation = Preparation("as_is", 4, 6, 3)
    dataset = load(name, "test", preparation=preparation)
    assert dataset.image_shape == (4, 6, 3)


GOOD = [f"{path},{n % 3}" for n, path in enumerate(paths())]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([""], "line 1 has no name: it must have a column path (or file, filename, "),
        (["a,b", *GOOD], "line 1 has a, b: it must have a column path"),
        (["path", *paths()], "line 1 has path: it must have a column path"),
        (["path,file,label"], "line 1 has path and file and label: it must have a col"),
        (["path,label,labels"], "line 1 has path and label and labels: it must have"),
        (["path,label,Label"], "line 1 has the column label twice"),
        (["path;label", *GOOD], "line 1 has a single column: separate the columns by"),
        (["path,label"], "has no row below its header"),
        (
            ["path,label", GOOD[0], "", "a/2.png"],
            "line 4 has 1 cells, and the header h",
        ),
        (["path,label", GOOD[0], ",1"], "line 3 has no path of an image"),
        (
            ["path,label", *GOOD, "a/2.png,"],
            "line 26: label is empty, and must name a c",
        ),
        (
            ["path,label", *GOOD, "a/2.png,1|2"],
            "line 26: label is '1|2', and must name",
        ),
        (
            ["path,label", *GOOD, "b/../a/2.png,1"],
            "line 26: a/2.png is in line 4 alrea",
        ),
        (["path,label", *GOOD, "../2.png,1"], "line 26: ../2.png is not within /"),
        (["path,label", *GOOD, "/2.png,1"], "line 26: /2.png is not within /"),
        (["path,label", *GOOD, ".,1"], "line 26: . is not within /"),
        (["path,label", *GOOD, "a/no.png,1"], "line 26: there is no /"),
        (["path,label", "no,1", *GOOD, "b,1"], "line 2: there is no "),
        (["path,label", "no,1", *GOOD, "b,1"], "no, and 1 more are missing; correct"),
        (["path,label", *GOOD, "a\\2.png,1"], "a\\2.png: write / between folders;"),
        (
            ["path,label", *GOOD[:-1], f"{paths()[-1]},dog"],
            "class dog has a single ima",
        ),
        (["path,label", *GOOD[:-1], f"{paths()[-1]},dog"], "(line 25): a class needs"),
        (
            ["path,x,y", "a/0.png,1,0", "b/1.png,0,2"],
            "line 3: y is '2', and must be 0 o",
        ),
        (
            ["path,label,split", "a/0.png,1,eval"],
            "line 2: split is 'eval', and must be",
        ),
        (["path,label,split", "a/0.png,1,test"], "has no row for the train split"),
        (["path,label", 'a/0.png,"1'], "line 2 is no row of a CSV: unexpected end of"),
    ],
)
def test_other_tables_are_refused_in_one_line(folder, lines, message):
    name = table(folder, *lines)
    with pytest.raises(DatasetError) as error:
        read(name)
    assert message in str(error.value)
    assert str(error.value).startswith(name)
    assert "\n" not in str(error.value)


def test_a_class_that_is_only_tested_is_refused(folder):
    name = table(
        folder,
        "path,label,split",
        "a/0.png,x,train",
        "b/1.png,y,train",
        "a/2.png,z,test",
    )
    with pytest.raises(
        DatasetError, match="line 4: class 'z' has no image to train on"
    ):
        read(name, "test")


def test_other_encodings_are_refused_with_their_line(folder):
    for encoding, line in (("latin-1", 3), ("utf-16", 1)):
        name = table(folder, "path,label", "a/0.png,x", "b/1.png,é", encoding=encoding)
        with pytest.raises(DatasetError, match=f"line {line} is not in UTF-8"):
            read(name)


def test_a_missing_table_is_not_found(tmp_path):
    name = str(tmp_path / "labels.csv")
    for use in (read, has_validation):
        with pytest.raises(NotFoundError, match=r"there is no /.*labels.csv: correct"):
            use(name)


def test_image_files_need_a_size(folder):
    with pytest.raises(DatasetError, match="image_size is 0: image files need the hei"):
        load(labelled(folder))


def test_a_home_folder_is_found(folder, monkeypatch):
    labelled(folder)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(os.sep)
    assert len(read("~/labels.csv")) > 10
