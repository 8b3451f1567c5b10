"""The files of a folder: deep, damaged, with several frames, many."""

import json
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from capsjax.data import DatasetError, load
from capsjax.data.images import common_scale
from capsjax.data.preparation import Preparation

NUM = 12


def make(folder, pixels_of, suffix="tiff", classes="ab", num=NUM):
    """Makes a folder of images; a function of class and number returns their pixels."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(num):
            image = Image.fromarray(pixels_of(label, number))
            image.save(folder / name / f"{number:03}.{suffix}")
    return folder


def read(folder, split="train", **options):
    return load("image_folder", split, path=folder, image_size=8, **options)


def grey(dtype, *levels):
    """Returns a function that makes flat images, with a level for each class."""
    return lambda label, _: np.full((8, 8), levels[label], dtype)


# ---- deep grey


@pytest.mark.parametrize(
    ("dtype", "suffix", "levels", "scale", "expected"),
    [
        (np.uint16, "png", (50 * 257, 220 * 257), (0, 65535), (50, 220)),
        (np.uint16, "tiff", (50 * 257, 220 * 257), (0, 65535), (50, 220)),
        (np.uint16, "png", (819, 4095), (0, 4095), (51, 255)),
        (np.uint16, "png", (51, 204), (0, 255), (51, 204)),
        (np.uint16, "png", (29_000, 31_000), (29_000, 31_000), (0, 255)),
        (np.int32, "tiff", (-1000, 1550), (-1000, 1550), (0, 255)),
        (np.float32, "tiff", (0.2, 0.8), (0, 1), (51, 204)),
        (np.float32, "tiff", (-1, 4), (-1, 4), (0, 255)),
    ],
)
def test_deep_grey_has_one_scale(tmp_path, dtype, suffix, levels, scale, expected):
    folder = make(tmp_path / "deep", grey(dtype, *levels), suffix)
    train = read(folder)
    assert train.preparation.scale == scale
    np.testing.assert_array_equal(
        train.image[:, 0, 0, 0], np.take(expected, train.label)
    )
    test = read(folder, "test")
    np.testing.assert_array_equal(test.image[:, 0, 0, 0], np.take(expected, test.label))
    (note,) = [note for note in train.notes if "more than 8 bits" in note]
    assert f"{scale[0]:g} is black and {scale[1]:g} white" in note


def test_the_same_pictures_at_8_and_16_bits_are_the_same_images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, NUM, 20, 20))
    shallow = make(tmp_path / "8", lambda *k: pixels[k].astype(np.uint8), "png")
    deep = make(tmp_path / "16", lambda *k: (pixels[k] * 257).astype(np.uint16), "png")
    for split in ("train", "test"):
        images = [read(folder, split).image for folder in (shallow, deep)]
        np.testing.assert_array_equal(*images)


def test_brighter_test_images_do_not_change_the_scale(tmp_path):
    for split, level in (("train", 1000), ("test", 60_000)):
        make(tmp_path / split, grey(np.uint16, level, level // 2), "png")
    expected = round(255 * 1000 / 1023)
    for split, least in (("train", expected), ("test", 255)):
        dataset = read(tmp_path, split)
        assert dataset.preparation.scale == (0, 1023)
        assert dataset.image[0, 0, 0, 0] == least


def test_a_given_scale_is_kept(tmp_path):
    folder = make(tmp_path / "deep", grey(np.uint16, 1000, 4000), "png")
    given = Preparation("as_is", 6, 6, 1, scale=(0.0, 8000.0))
    dataset = read(folder, preparation=given)
    assert dataset.preparation == given
    assert dataset.image_shape == (6, 6, 1)
    assert set(dataset.image[..., 0].ravel()) == {32, 128}  # round(255 / 8), 127.5


def test_the_first_edition_stretched_each_image_by_itself(tmp_path):
    folder = make(tmp_path / "deep", grey(np.uint16, 1000, 4000), "png")
    dataset = read(folder, split_rule="first_edition")
    assert dataset.preparation.scale == "own"
    assert (dataset.image == 255).all()


def test_images_of_8_bits_need_no_scale(tmp_path):
    dataset = read(make(tmp_path / "grey", grey(np.uint8, 10, 100), "png"))
    assert dataset.preparation.scale == "type"
    assert dataset.notes == ()
    # This run reads a deep picture by the full range of its type.
    for dtype, level, suffix in (
        (np.uint16, 257, "png"),
        (np.float32, 1 / 255, "tiff"),
    ):
        path = tmp_path / f"picture.{suffix}"
        Image.fromarray(np.full((8, 8), 30 * level, dtype)).save(path)
        assert (dataset.preparation.apply(path) == 30).all()


def test_a_scale_is_wide_enough_and_survives_json():
    rng = np.random.default_rng(0)
    for least, most in np.sort(rng.integers(0, 2**16, (200, 2)) * 1.0).tolist():
        black, white = common_scale(least, most, are_integers=True)
        assert black <= least
        assert white >= min(most, black + 1)
        assert most - least >= (white - black) / 4 or white == max(255, black + 1)
        preparation = Preparation("as_is", 8, 8, 1, scale=(black, white))
        again = json.loads(json.dumps(preparation.to_json()))
        assert Preparation.from_json(again) == preparation
    assert common_scale(0.3, 0.3, are_integers=False) == (0.3, 1.3)


# ---- files that can't be read


def damage(folder, *names):
    for name in names:
        path = folder / name
        path.write_bytes(path.read_bytes()[:-60])


@pytest.fixture
def damaged(tmp_path):
    """Makes 24 files in both splits: two are no images, eleven are cut short."""
    noise = np.random.default_rng(0).integers(0, 256, (2, NUM, 40, 40)).astype(np.uint8)
    folder = make(tmp_path / "photos", lambda *k: noise[k], "png")
    damage(folder, *[f"a/{number:03}.png" for number in range(11)])
    for name in ("a/011.png", "b/003.png"):
        (folder / name).write_text("no image")
    return folder


@pytest.mark.parametrize("split", ["train", "test"])
def test_all_bad_files_of_both_splits_are_named_at_once(damaged, split):
    with pytest.raises(DatasetError) as error:
        read(damaged, split)
    message = str(error.value)
    assert message.count(f"{damaged}/") == 10
    assert "3 more files can't be read" in message
    assert "replace these 13 files or take them away" in message
    assert "--config.data.skip_bad_files=true" in message


def test_a_single_bad_file_is_named(tmp_path):
    folder = make(tmp_path / "photos", grey(np.uint8, 1, 2), "png")
    (folder / "b" / "005.png").write_text("no image")
    with pytest.raises(
        DatasetError, match=r"b/005\.png is not an image .* the file or"
    ):
        read(folder)


def test_bad_files_are_skipped_on_request(damaged):
    for name in ("000", "005"):
        good = Image.fromarray(np.full((40, 40), 77, np.uint8))
        good.save(damaged / "a" / f"{name}.png")
    train, test = (
        read(damaged, split, skip_bad_files=True) for split in ("train", "test")
    )
    files = {*train.files.tolist(), *test.files.tolist()}
    others = {f"b/{number:03}.png" for number in range(NUM)} - {"b/003.png"}
    assert files == {"a/000.png", "a/005.png"} | others
    for dataset in (train, test):
        names = np.array([name[0] for name in dataset.files])
        np.testing.assert_array_equal(names, np.take(["a", "b"], dataset.label))
        assert len(dataset.image) == len(dataset.label) == len(dataset.checksum)
    notes = [note for note in train.notes + test.notes if "skipped" in note]
    assert sum(int(note.split(": ")[1].split()[0]) for note in notes) == 11


def test_a_class_without_a_readable_image_is_refused(damaged):
    with pytest.raises(DatasetError, match=r"no image of class a in .* can be read"):
        read(damaged, skip_bad_files=True)


# ---- frames, and many files


def test_files_that_are_read_in_part_are_named_and_counted(tmp_path):
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(NUM):
            frames = [Image.new("L", (9, 9), 20 * k) for k in range(3)]
            path = tmp_path / label / f"{number}.gif"
            frames[0].save(path, save_all=True, append_images=frames[1:])
    train = read(tmp_path)
    named = [note for note in train.notes if "3 frames: only the first" in note]
    assert len(named) == 3
    assert train.notes[-1] == f"{len(train) - 3} more files are read in part"


def test_one_long_file_name_does_not_lengthen_all_names_in_memory(tmp_path):
    folder = make(tmp_path / "photos", grey(np.uint8, 1, 2), "png")
    (folder / "a" / "000.png").rename(folder / "a" / f"{'x' * 200}.png")
    train = read(folder)
    assert train.files.dtype == object
    assert train.files.itemsize == 8


@pytest.mark.slow
def test_a_folder_of_many_classes_is_read_in_little_memory(tmp_path):
    num_classes, num = 300, 4
    names = [f"class_{k:03}" for k in range(num_classes)]
    make(
        tmp_path / "many",
        lambda label, number: np.full((8, 8), (label + number) % 256, np.uint8),
        *("png", names, num),
    )
    read(tmp_path / "many", "test")  # Imports, and fills caches once.
    tracemalloc.start()
    train = read(tmp_path / "many")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(train) == num_classes * (num - 1)
    np.testing.assert_array_equal(train.images_by_class(), num - 1)
    number = [int(name.split("/")[1].split(".")[0]) for name in train.files]
    np.testing.assert_array_equal(train.image[:, 0, 0, 0], (train.label + number) % 256)
    # Two kilobytes for each file cover a path and, at times, a header.
    assert peak < train.image.nbytes + 2000 * num_classes * num
