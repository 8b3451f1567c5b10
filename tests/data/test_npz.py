"""Files of arrays: which splits they have, and what is wrong with others."""

import contextlib
import io
import pathlib
import pickle
import zipfile

import numpy as np
import pytest

from capsjax.data import DatasetError, NotFoundError, has_validation, load


def arrays(number=12, **others):
    rng = np.random.default_rng(0)
    made = {}
    for split in ("train", "test"):
        made[f"x_{split}"] = rng.integers(0, 256, (number, 28, 28), np.uint8)
        made[f"y_{split}"] = np.arange(number, dtype=np.uint64) % 3
    return {**made, **others}


def save(path, **others):
    np.savez(path, **{k: v for k, v in arrays(**others).items() if v is not None})
    return str(path)


def error_of(name, split="train", **options):
    with pytest.raises(DatasetError) as error:
        load(name, split, **options)
    message = str(error.value)
    assert "\n" not in message
    assert name in message
    return message


def test_each_split_has_its_arrays(tmp_path):
    name, there = save(tmp_path / "own.npz"), arrays()
    for split in ("train", "test"):
        dataset = load(name, split)
        np.testing.assert_array_equal(dataset.image[..., 0], there[f"x_{split}"])
        np.testing.assert_array_equal(dataset.label, there[f"y_{split}"])
        assert dataset.class_names == ("0", "1", "2")
        assert dataset.name == name
    assert not has_validation(name)
    with pytest.raises(DatasetError, match="no split 'validation'"):
        load(name, "validation")


def test_validation_images_and_class_names_may_be_there(tmp_path):
    name = save(
        tmp_path / "own.npz",
        x_validation=np.zeros((2, 28, 28, 3), np.uint8),
        y_validation=np.array([1, 0]),
        class_names=np.array(["ant", "bee", "cat"]),
    )
    assert has_validation(name)
    dataset = load(name, "validation")
    assert dataset.image_shape == (28, 28, 3)
    assert dataset.class_names == ("ant", "bee", "cat")


def test_a_single_array_is_no_data_set(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 28, 28), np.uint8))
    np.savetxt(tmp_path / "a.txt", np.zeros(3))
    for name in (str(tmp_path / "a.npy"), "nowhere.npy", str(tmp_path / "a.txt")):
        assert "arrays come as FILE.npz, made by np.savez('FI" in error_of(name)


def test_a_note_names_the_arrays_that_are_not_read(tmp_path):
    own = arrays(2)
    name = save(tmp_path / "own.npz", x_val=own["x_test"], y_val=own["y_test"])
    assert load(name, "train").notes == load(name, "test").notes
    (note,) = load(name, "train").notes
    assert note.startswith(f"{name} has arrays that are not read: x_val, y_val; those")
    assert "x_validation, y_validation, x_test" in note


def test_compressed_arrays_of_bool_rows_are_scaled(tmp_path):
    label = np.eye(12, 4, dtype=bool)
    path = tmp_path / "own.NPZ"
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays(y_train=label, y_test=label))
    dataset = load(str(path), "test", image_size=14)
    assert dataset.image_shape == (14, 14, 1)
    np.testing.assert_array_equal(dataset.label, label)


def test_only_the_arrays_of_the_split_are_read(tmp_path):
    name = save(tmp_path / "own.npz", x_train=np.array([{}]))
    assert len(load(name, "test")) == 12


def test_a_file_without_training_images_has_a_test(tmp_path):
    name = save(tmp_path / "own.npz", x_train=None, y_train=None)
    assert load(name, "test").num_classes == 3


class Malicious:
    def __reduce__(self):
        return (pytest.fail, ("it was unpickled",))


@pytest.mark.parametrize(
    ("split", "others", "message"),
    [
        (
            "test",
            {"x_test": None, "y_test": None},
            "has no x_test and no y_test: the test split needs x_test and y_test. It "
            "has x_train, y_train",
        ),
        (
            "train",
            {"y_train": None},
            "has no y_train: the train split needs x_train an",
        ),
        ("train", {"x_train": np.array([Malicious()])}, "x_train holds objects, which"),
        ("train", {"class_names": np.array(["a", None])}, "class_names holds objects"),
        (
            "test",
            {"x_test": np.zeros((12, 28, 28))},
            "x_test is float64, and pixels must be uint8, from 0 to 255: they are from "
            "0 to 0: pass (255 * x_test).round().astype(np.uint8)",
        ),
        ("test", {"y_test": np.zeros(12)}, "y_test is float64 with the shape (12,), a"),
        ("test", {"y_test": np.zeros(12)}, "an image: pass y_test.astype(int)"),
        (
            "test",
            {"y_test": np.zeros(11, int)},
            "12 images and 11 labels (x_test and y_test)",
        ),
        (
            "test",
            {"y_test": np.full(12, 3)},
            "y_test is 3 at index 0, but y_train only",
        ),
        (
            "test",
            {"y_test": np.eye(12, 3, dtype=bool)},
            "y_test is bool and y_train int32: both must be integers, or both bool",
        ),
        (
            "train",
            {"class_names": np.array(["a", "b"])},
            "y_train is 2 at index 2: with",
        ),
        (
            "train",
            {"class_names": np.array([b"a"])},
            "class_names has np.bytes_(b'a') ",
        ),
    ],
)
def test_other_arrays_are_refused_in_one_line(tmp_path, split, others, message):
    name = save(tmp_path / "own.npz", **others)
    assert message in error_of(name, split)


def test_a_file_that_is_not_whole_is_refused_wherever_it_ends(tmp_path):
    whole = pathlib.Path(save(tmp_path / "own.npz", number=3)).read_bytes()
    for end in range(0, len(whole), 97):
        (tmp_path / "part.npz").write_bytes(whole[:end])
        message = error_of(str(tmp_path / "part.npz"))
        assert "not whole" in message or (end < 2 and "is no .npz file" in message)


def test_a_flipped_byte_is_an_error_of_the_data_or_harmless(tmp_path):
    whole = pathlib.Path(save(tmp_path / "own.npz", number=3)).read_bytes()
    rng = np.random.default_rng(0)
    # Half of the flips hit the headers and the directory, between which pixels lie.
    for at in [*range(0, 200, 2), *rng.integers(0, len(whole), 100)]:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        (tmp_path / "damaged.npz").write_bytes(damaged)
        with contextlib.suppress(DatasetError):
            load(str(tmp_path / "damaged.npz"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no .npz file: save its arrays by np.savez"),
        (b"images", "is no .npz file"),
        (pickle.dumps({}), "is no .npz file"),
        (b"\x93NUMPY\x01\x00", "is a single array: save all arrays in one file by np"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "own.npz").write_bytes(content)
    assert message in error_of(str(tmp_path / "own.npz"))
    with pytest.raises(DatasetError, match="own"):
        has_validation(str(tmp_path / "own.npz"))


def test_a_header_that_lies_takes_no_memory(tmp_path):
    there = arrays()
    with zipfile.ZipFile(tmp_path / "own.npz", "w") as archive:
        for name, array in there.items():
            file = io.BytesIO()
            np.save(file, array)
            content = file.getvalue()
            if name == "x_train":
                content = content.replace(b"(12, 28, 28), }   ", b"(12000, 28, 28), }")
            archive.writestr(f"{name}.npy", content)
    message = error_of(str(tmp_path / "own.npz"))
    assert "x_train is damaged (its header states 9408000 bytes, not 9408" in message


def test_too_large_arrays_are_refused_before_they_are_read(tmp_path):
    name = save(tmp_path / "own.npz")
    message = error_of(name, max_bytes=9_000)
    assert (
        "x_train would take 9.41e-06 GB of memory, and at most 9e-06 GB are" in message
    )


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(
        NotFoundError, match=r"there is no /.*own.npz: correct the path"
    ):
        load(str(tmp_path / "own.npz"))


def test_a_folder_may_have_the_name_of_a_file(tmp_path):
    (tmp_path / "own.npz").mkdir()
    with pytest.raises(DatasetError, match=r"the folder .* has no file train-images"):
        load(str(tmp_path / "own.npz"))


def test_an_array_of_an_unknown_format_is_damaged(tmp_path):
    name = save(tmp_path / "own.npz", x_train=None)
    with zipfile.ZipFile(name, "a") as archive:
        archive.writestr("x_train.npy", b"\x93NUMPY\x09\x00" + bytes(120))
    assert "format (9, 0) is not known" in error_of(name)
