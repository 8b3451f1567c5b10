"""Somebody's own arrays: which become a data set, and what is wrong with others."""

import numpy as np
import pytest

from capsjax.data import Dataset, DatasetError

IMAGE = np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2)


@pytest.mark.parametrize("dtype", "bhilqBHILQ")
def test_labels_of_any_integer_type_become_int32(dtype):
    dataset = Dataset("own", IMAGE, np.arange(6).astype(dtype))
    assert dataset.label.dtype == np.int32
    assert dataset.label.tolist() == [0, 1, 2, 3, 4, 5]


def test_labels_in_the_other_byte_order_have_the_same_identity():
    big, little = (
        Dataset("own", IMAGE, np.arange(6).astype(f"{order}i4")) for order in "><"
    )
    assert big.identity() == little.identity()


def test_a_column_of_labels_is_a_row():
    dataset = Dataset("own", IMAGE, np.arange(6)[:, None] % 2)
    assert dataset.label.tolist() == [0, 1, 0, 1, 0, 1]


def test_grey_images_get_an_axis_of_one_channel():
    dataset = Dataset("own", IMAGE, np.zeros(6, int), ["a"])
    assert dataset.image_shape == (2, 2, 1)
    np.testing.assert_array_equal(dataset.image[..., 0], IMAGE)


def test_classes_without_names_are_numbered():
    assert Dataset("own", IMAGE, [0, 3, 1, 0, 1, 0]).class_names == tuple("0123")
    assert Dataset("own", IMAGE, [0, 1] * 3, []).class_names == ("0", "1")
    assert Dataset("own", IMAGE, np.zeros((6, 2), bool)).class_names == ("0", "1")


@pytest.mark.parametrize("names", [["a", "b"], np.array(["a", "b"]), iter("ab")])
def test_class_names_are_any_sequence_of_texts(names):
    dataset = Dataset("own", IMAGE, [0, 1] * 3, names)
    assert dataset.class_names == ("a", "b")
    assert {type(name) for name in dataset.class_names} == {str}


def test_an_image_may_show_none_of_several_classes():
    dataset = Dataset("own", IMAGE, np.eye(6, 3, dtype=bool))
    assert dataset.is_multi_label
    assert dataset.subset(np.arange(4)).images_by_class().tolist() == [1, 1, 1]


def with_value(value, dtype):
    image = np.zeros((6, 2, 2), dtype)
    image[3, 1, 0] = value
    return image


def with_label(value, dtype):
    return np.array([0, 1, value, 0, 1, 0], dtype)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"image": with_value(1, np.float32)},
            "image is float32, and pixels must be uint8, from 0 to 255: they are from "
            "0 to 1: pass (255 * image).round().astype(np.uint8)",
        ),
        ({"image": with_value(200, np.float64)}, "pass image.round().astype(np.uint8)"),
        ({"image": with_value(200, np.int64)}, "pass image.astype(np.uint8)"),
        ({"image": with_value(1, bool)}, "pass 255 * image.astype(np.uint8)"),
        ({"image": with_value(np.nan, np.float32)}, "image[3, 1, 0] is nan"),
        ({"image": with_value(-np.inf, np.float16)}, "image[3, 1, 0] is -inf"),
        ({"image": with_value(4095, np.uint16)}, "they are from 0 to 4095: scale"),
        ({"image": with_value(-1, np.int8)}, "they are from -1 to 0: scale them"),
        ({"image": with_value(1j, complex)}, "image is complex128, and pixels"),
        ({"image": with_value("a", "U1")}, "image is <U1, and pixels must be uint8"),
        ({"image": with_value(None, object)}, "image is object, and pixels must be"),
        ({"image": [[[1, 2]], [[1]]]}, "image is no array: its parts differ in shape"),
        ({"image": IMAGE[0]}, "image has the shape (2, 2), and must be [n, h, w]"),
        ({"image": IMAGE[:0]}, "image is empty: it has the shape (0, 2, 2, 1)"),
        (
            {"image": np.zeros((6, 3, 8, 8), np.uint8)},
            "with channels first, and must be [n, h, w, c]: pass "
            "image.transpose(0, 2, 3, 1)",
        ),
        ({"label": with_label(-1, int)}, "label is -1 at index 2: a label is the numb"),
        ({"label": with_label(2**40, np.uint64)}, "label is 1099511627776 at index 2"),
        ({"label": with_label(2**63, np.uint64)}, "9223372036854775808 at index 2"),
        ({"label": with_label(2e5, int)}, "the largest label is 200000, which needs"),
        (
            {"label": with_label(2, float)},
            "is float64 with the shape (6,), and must be",
        ),
        ({"label": with_label(2, float)}, "an image: pass label.astype(int)"),
        (
            {"label": with_label(np.nan, float)},
            "several classes an image: label[2] is n",
        ),
        (
            {"label": with_label(0.5, float)},
            "must be integers [n], or bool [n, classes",
        ),
        ({"label": np.array([*"abcabc"])}, "np.unique(label, return_inverse=True)[1]"),
        ({"label": np.ones(6, bool)}, "bool with the shape (6,), and must be integers"),
        ({"label": np.eye(6, dtype=int)}, "an image: pass label.astype(bool)"),
        ({"label": np.eye(6)}, "an image: pass label.astype(bool)"),
        (
            {"label": np.zeros((6, 2, 2), bool)},
            "label is bool with the shape (6, 2, 2)",
        ),
        ({"label": np.zeros(5, int)}, "has 6 images and 5 labels"),
        (
            {"label": with_label(2, int), "class_names": ["a", "b"]},
            "label is 2 at index 2",
        ),
        ({"class_names": "ab"}, "class_names is 'ab', and must be a sequence of texts"),
        ({"class_names": 2}, "class_names is 2, and must be a sequence of texts"),
        ({"class_names": ["a", 1]}, "class_names has 1 at index 1: every name must be"),
        ({"class_names": np.eye(9)}, "class_names has array([1., 0., 0., 0., 0."),
        ({"class_names": ["a", ""]}, "class_names has '' at index 1: every name must"),
        (
            {"class_names": ["a", "a"]},
            "class_names has 'a' twice: each class needs its",
        ),
    ],
)
def test_other_arrays_are_refused_in_one_line(fields, message):
    good = {"image": IMAGE, "label": np.array([0, 1] * 3)}
    with pytest.raises(DatasetError) as error:
        Dataset("own", **{**good, **fields})
    assert str(error.value).startswith("data set 'own'")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
