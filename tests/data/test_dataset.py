"""The one type of every data set, and the arrays that it refuses."""

import dataclasses
import json

import numpy as np
import pytest

from capsjax.data import Batch, Dataset, DatasetError
from capsjax.data.preparation import Preparation


def small_dataset(num_images=6, num_classes=3, name="small"):
    image = np.arange(num_images * 4, dtype=np.uint8).reshape(num_images, 2, 2, 1)
    label = np.arange(num_images, dtype=np.int32) % num_classes
    return Dataset(name, image, label, tuple("abcdefghij"[:num_classes]))


def test_a_batch_holds_the_images_at_the_indices_in_their_order():
    dataset = small_dataset()
    batch = dataset.batch(np.array([4, 0, 4]))
    assert isinstance(batch, Batch)
    np.testing.assert_array_equal(batch.image[:, 0, 0, 0], [16, 0, 16])
    np.testing.assert_array_equal(batch.label, [1, 0, 1])


def test_a_subset_is_a_data_set_of_the_same_name_and_classes():
    subset = small_dataset().subset(np.array([5, 2]))
    assert len(subset) == 2
    assert subset.name == "small"
    assert subset.class_names == ("a", "b", "c")
    np.testing.assert_array_equal(subset.image[:, 0, 0, 0], [20, 8])


def test_other_images_labels_or_files_have_another_identity():
    dataset = small_dataset()
    named = dataclasses.replace(dataset, files=np.array([f"{n}.png" for n in range(6)]))
    assert dataset.identity() == small_dataset().identity()
    assert dataset.identity()["num_images"] == 6
    assert dataset.difference(small_dataset().identity()) is None
    others = [dataclasses.replace(dataset, class_names=("a", "b", "z")), named]
    for one in ("image", "label"):
        changed = getattr(dataset, one).copy()
        changed.flat[1] = 0
        others.append(dataclasses.replace(dataset, **{one: changed}))
    renamed = np.array(["x.png", *named.files[1:]])
    others.append(dataclasses.replace(named, files=renamed))
    for other in others:
        assert other.identity()["checksum"] != dataset.identity()["checksum"]
        assert dataset.difference(other.identity()) is not None
    assert others[-1].identity()["checksum"] != named.identity()["checksum"]
    assert named.subset(np.array([5, 2])).identity()["files"] == ["5.png", "2.png"]


def test_the_name_of_a_data_set_is_not_part_of_its_identity():
    assert small_dataset(name="a").identity() == small_dataset(name="b/").identity()


def test_images_are_identified_by_the_bytes_read_and_not_by_pixels():
    read = dataclasses.replace(small_dataset(), checksum=np.arange(6, dtype=np.uint64))
    brighter = dataclasses.replace(read, image=read.image + np.uint8(1))
    assert brighter.difference(read.identity()) is None
    turned = dataclasses.replace(read, checksum=read.checksum[::-1])
    assert turned.difference(read.identity()) is not None
    subset = read.subset(np.array([5, 2]))
    np.testing.assert_array_equal(subset.checksum, [5, 2])


def test_an_identity_is_small_however_many_files_there_are():
    def numbered(numbers):
        files = np.array([f"cats/{number}.png" for number in numbers])
        image = np.zeros((len(files), 1, 1, 1), np.uint8)
        label = np.zeros(len(files), np.int32)
        return Dataset("many", image, label, ("cats",), files=files)

    many = numbered(range(12_345))
    identity = many.identity()
    assert 50 < len(identity["files"]) <= 100
    assert len(json.dumps(identity)) < 3000
    # New files can't be named when only a sample of names is known.
    more = numbered(range(12_346))
    assert more.difference(identity) == "there were 12345 and are 12346"
    fewer = numbered(range(1, 12_345))
    assert fewer.difference(identity) == "cats/0.png is gone"


def test_the_first_edition_s_fingerprint_is_still_understood():
    # Commit dedba28 hashed classes, files, pixels and labels.
    before = {"num_images": 6, "fingerprint": "b346a0fab278258e"}
    dataset = small_dataset()
    assert dataset.difference(before) is None
    changed = dataset.image.copy()
    changed[0] = 9
    other = dataclasses.replace(dataset, image=changed)
    assert other.difference(before) == "pixels, labels or names are not what they were"
    named = dataclasses.replace(dataset, files=np.array([f"{n}.png" for n in range(6)]))
    files = {"fingerprint": "of others", "files": ["0.png", "7.png"]}
    assert named.difference(files) == "7.png is gone; 1.png is new and 4 more"


def test_images_are_counted_by_class():
    assert small_dataset().images_by_class().tolist() == [2, 2, 2]
    assert small_dataset(2).images_by_class().tolist() == [1, 1, 0]
    assert multi_dataset().images_by_class().tolist() == [3, 3, 2]


def test_a_data_set_does_not_print_its_images():
    assert len(repr(small_dataset())) < 80


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("image", np.zeros((6, 2, 2, 1), np.float32), "image is float32, and pixels"),
        ("image", np.zeros((6, 2, 2, 2, 1), np.uint8), r"\(6, 2, 2, 2, 1\)"),
        ("image", np.zeros((5, 2, 2, 1), np.uint8), "5 images and 6 labels"),
        ("image", np.zeros((6, 2, 0, 1), np.uint8), "is empty"),
        ("label", np.zeros((6, 3), np.int32), r"int32 with the shape \(6, 3\)"),
        ("label", np.zeros(5, np.int32), "6 images and 5 labels"),
        (
            "label",
            np.array([0, 1, 2, 0, 3, 9], np.int32),
            "label is 3 at index 4: with 3 class names .* from 0 to 2",
        ),
        ("label", np.array([0, -1, 2, 0, 1, 2], np.int32), "label is -1 at index 1"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(field, value, message):
    good = small_dataset()
    fields = {"image": good.image, "label": good.label, field: value}
    with pytest.raises(DatasetError, match=message) as error:
        Dataset("small", class_names=good.class_names, **fields)
    assert "data set 'small'" in str(error.value)


def multi_dataset(**fields):
    """Makes four images of 2 x 2 pixels, each showing two of three classes."""
    small = small_dataset(4)
    label = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]], bool)
    source = np.stack([small.image // 2, small.image - small.image // 2], axis=1)
    fields = {"image": small.image, "label": label, "source": source, **fields}
    return Dataset("multi", class_names=("a", "b", "c"), **fields)


def test_a_batch_of_several_classes_holds_labels_and_sources():
    dataset = multi_dataset()
    assert dataset.is_multi_label
    assert not small_dataset().is_multi_label
    batch = dataset.batch(np.array([[3, 0], [1, 1]]))
    assert batch.image.shape == (2, 2, 2, 2, 1)
    np.testing.assert_array_equal(batch.label[0], [[1, 1, 0], [1, 1, 0]])
    np.testing.assert_array_equal(batch.source.sum(axis=2), batch.image)
    assert small_dataset().batch(np.array([0])).source is None


def test_a_subset_of_several_classes_keeps_their_sources():
    subset = multi_dataset().subset(np.array([2, 1]))
    np.testing.assert_array_equal(subset.label, [[1, 0, 1], [0, 1, 1]])
    np.testing.assert_array_equal(subset.source.sum(axis=1), subset.image)


def test_several_classes_may_come_without_sources():
    label = np.array([[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 1]], bool)
    dataset = multi_dataset(label=label, source=None)
    assert dataset.batch(np.array([1])).source is None
    assert len(dataset.subset(np.array([1]))) == 1


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "label",
            np.ones((4, 2), bool),
            "columns for 2 classes, and there are 3 class names",
        ),
        (
            "label",
            np.ones(4, bool),
            r"label is bool with the shape \(4,\), .*\[n, classes",
        ),
        ("label", np.ones((3, 3), bool), "4 images and 3 labels"),
        ("label", np.ones((4, 3), bool), "2 sources for each image, .* 2 classes"),
        ("label", np.zeros(4, np.int32), "source has the shape"),
        ("source", np.zeros((4, 2, 2, 2), np.uint8), "source is uint8 with the shape"),
        ("source", np.zeros((4, 2, 2, 2, 1)), "source is float64 with the shape"),
        ("source", np.zeros((3, 2, 2, 2, 1), np.uint8), "does not fit images"),
        ("source", np.zeros((4, 2, 3, 2, 1), np.uint8), "does not fit images"),
        ("source", np.zeros((4, 3, 2, 2, 1), np.uint8), "3 sources for each image"),
    ],
)
def test_labels_and_sources_that_do_not_fit_are_refused(field, value, message):
    with pytest.raises(DatasetError, match=message) as error:
        multi_dataset(**{field: value})
    assert "data set 'multi'" in str(error.value)


def test_a_plain_data_set_is_the_same_in_every_epoch():
    dataset = small_dataset()
    assert dataset.in_epoch(3, 1) is dataset
    assert dataset.fixed() is dataset


def test_a_dataset_error_is_a_value_error():
    assert issubclass(DatasetError, ValueError)


def test_images_are_of_the_shape_that_their_preparation_makes():
    made = Preparation.of("mnist", (3, 3, 1))
    with pytest.raises(DatasetError, match=r"are \(2, 2, 1\), but its .* \(3, 3, 1\)"):
        dataclasses.replace(small_dataset(), preparation=made)
