"""The one type of every data set, and what it refuses."""

import dataclasses

import numpy as np
import pytest

from capsjax.data import Batch, Dataset, DatasetError


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


def test_other_images_labels_or_files_are_told_apart():
    dataset = small_dataset()
    assert dataset.identity() == small_dataset().identity()
    assert dataset.identity()["num_images"] == 6
    for one in ("image", "label"):
        changed = getattr(dataset, one).copy()
        changed.flat[1] = 0
        other = dataclasses.replace(dataset, **{one: changed}).identity()
        assert other["fingerprint"] != dataset.identity()["fingerprint"]
    renamed = dataclasses.replace(dataset, class_names=("a", "b", "z")).identity()
    assert renamed["fingerprint"] != dataset.identity()["fingerprint"]
    named = dataclasses.replace(dataset, files=np.array([f"{n}.png" for n in range(6)]))
    assert named.subset(np.array([5, 2])).identity()["files"] == ["5.png", "2.png"]


def test_a_data_set_does_not_print_its_images():
    assert len(repr(small_dataset())) < 80


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("image", np.zeros((6, 2, 2, 1), np.float32), "image is float32 of the shape"),
        ("image", np.zeros((6, 2, 2), np.uint8), r"\(6, 2, 2\)"),
        ("image", np.zeros((0, 2, 2, 1), np.uint8), "0 images and 6 labels"),
        ("image", np.zeros((6, 2, 0, 1), np.uint8), "is empty"),
        ("label", np.zeros(6, np.int64), "label is int64"),
        ("label", np.zeros((6, 3), np.int32), r"label is int32 of the shape \(6, 3\)"),
        ("label", np.zeros(5, np.int32), "6 images and 5 labels"),
        (
            "label",
            np.array([0, 1, 2, 0, 3, 9], np.int32),
            "the label 3 at index 4: with 3 class names .* from 0 to 2",
        ),
        ("label", np.array([0, -1, 2, 0, 1, 2], np.int32), "the label -1 at index 1"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(field, value, message):
    good = small_dataset()
    fields = {"image": good.image, "label": good.label, field: value}
    with pytest.raises(DatasetError, match=message) as error:
        Dataset("small", class_names=good.class_names, **fields)
    assert "data set 'small'" in str(error.value)


def multi_dataset(**fields):
    """Four images of 2 x 2 pixels, each of two classes out of three."""
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
        ("label", np.ones((4, 2), bool), "labels of 2 classes and 3 class names"),
        (
            "label",
            np.ones(4, bool),
            r"label is bool of the shape \(4,\), .*\[n classes",
        ),
        ("label", np.ones((3, 3), bool), "4 images and 3 labels"),
        ("label", np.ones((4, 3), bool), "2 sources for each image, .* 2 classes"),
        ("label", np.zeros(4, np.int32), "source is of the shape"),
        ("source", np.zeros((4, 2, 2, 2), np.uint8), "source is uint8 of the shape"),
        ("source", np.zeros((4, 2, 2, 2, 1)), "source is float64 of the shape"),
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
