"""A user's own folder of images."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from capsjax.data import (
    FIRST_EDITION,
    DatasetError,
    has_validation,
    load,
)
from capsjax.data.preparation import Preparation
from capsjax.data.readers import layout

COLOURS = {"cats": (200, 30, 30), "dogs": (30, 200, 30), "eels": (30, 30, 200)}


def save(path, colour=(1, 2, 3), size=(30, 20), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path):
    """Makes three classes with 20, 3 and 2 images in their class's colour."""
    for (name, colour), num_images in zip(COLOURS.items(), (20, 3, 2), strict=True):
        for number in range(num_images):
            save(tmp_path / "photos" / name / f"{number}.png", colour)
    return tmp_path / "photos"


def read(folder, split="train", image_size=8, **options):
    return load("image_folder", split, path=folder, image_size=image_size, **options)


def files_of(folder, split, monkeypatch):
    """Returns the files that are read for a split, in their order."""
    files = []
    apply = Preparation.apply

    def noted(self, path, **options):
        files.append(path)
        return apply(self, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Preparation, "apply", noted)
        read(folder, split)
    return files


def test_each_subfolder_is_a_class_in_the_order_of_the_names(folder):
    for split, counts in (("train", (18, 2, 1)), ("test", (2, 1, 1))):
        dataset = read(folder, split)
        assert dataset.class_names == ("cats", "dogs", "eels")
        assert dataset.image_shape == (8, 8, 3)
        assert dataset.name == str(folder)
        assert (np.diff(dataset.label) >= 0).all()
        if split == "test":
            np.testing.assert_array_equal(np.bincount(dataset.label)[1:], counts[1:])
        colours = np.array(list(COLOURS.values()))[dataset.label]
        np.testing.assert_array_equal(
            dataset.image, np.broadcast_to(colours[:, None, None], dataset.image.shape)
        )


def test_the_two_splits_are_disjoint_complete_and_always_the_same(folder, monkeypatch):
    train, test = (files_of(folder, split, monkeypatch) for split in ("train", "test"))
    assert sorted([*train, *test]) == sorted(folder.glob("*/*"))
    moved = folder.parent / "elsewhere"
    shutil.copytree(folder, moved)
    again = files_of(moved, "test", monkeypatch)
    assert [file.relative_to(moved) for file in again] == [
        file.relative_to(folder) for file in test
    ]


def test_about_a_tenth_is_for_testing(folder, monkeypatch):
    for number in range(20, 400):
        save(folder / "cats" / f"{number}.png", size=(2, 2))
    files = files_of(folder, "test", monkeypatch)
    num_cats = sum(file.parent.name == "cats" for file in files)
    # Four standard deviations of 6 around the binomial distribution's mean of 40.
    assert 16 < num_cats < 64


def test_further_images_leave_the_others_in_their_split():
    files = [Path(f"{number}.png") for number in range(400)]
    train, test = layout.divide(files[:40])
    for num_files in range(41, 400):
        before_train, before_test = train, test
        train, test = layout.divide(files[:num_files])
        assert set(before_train) <= set(train)
        assert set(before_test) <= set(test)


def test_both_splits_have_an_image_however_few_there_are():
    for number in range(200):
        pair = [Path(f"{number}.png"), Path(f"{number}.jpg")]
        assert [len(part) for part in layout.divide(pair)] == [1, 1]


def test_folders_called_train_and_test_are_the_splits(tmp_path, monkeypatch):
    for split, num_images in (("train", 3), ("test", 1)):
        for name, colour in COLOURS.items():
            for number in range(num_images):
                save(tmp_path / split / name / f"{number}.png", colour)
    shutil.rmtree(tmp_path / "test" / "dogs")
    for split in ("train", "test"):
        files = files_of(tmp_path, split, monkeypatch)
        assert files == sorted((tmp_path / split).glob("*/*"))
    test = read(tmp_path, "test")
    assert test.class_names == tuple(COLOURS)
    np.testing.assert_array_equal(test.label, [0, 2])


def split_folder(folder, **splits):
    """Makes a folder for each split, with three images of each class."""
    for split, colour in splits.items():
        for name in COLOURS:
            for number in range(3):
                save(folder / split / name / f"{split}-{number}.png", colour)


@pytest.mark.parametrize("name", ["val", "valid", "Validation", "VAL"])
def test_a_validation_folder_is_the_validation_split(tmp_path, name):
    colours = {"train": (10, 10, 10), name: (20, 20, 20), "test": (30, 30, 30)}
    split_folder(tmp_path, **colours)
    assert has_validation("image_folder", tmp_path)
    for split, value in (("train", 10), ("validation", 20), ("test", 30)):
        dataset = read(tmp_path, split)
        assert (dataset.image == value).all()
        assert dataset.images_by_class().tolist() == [3, 3, 3]
        assert dataset.notes == ()
    assert len(read(tmp_path, "all")) == 27


@pytest.mark.parametrize(
    ("train", "test"),
    [("Training", "Testing"), ("Train", "Test"), ("TRAIN", "testing")],
)
def test_the_splits_are_known_by_their_usual_names(tmp_path, train, test):
    split_folder(tmp_path, **{train: (10, 10, 10), test: (30, 30, 30)})
    assert not has_validation("image_folder", tmp_path)
    for split, value in (("train", 10), ("test", 30)):
        assert (read(tmp_path, split).image == value).all()
    with pytest.raises(DatasetError, match="has no split 'validation'"):
        read(tmp_path, "validation")


def test_a_tenth_of_the_training_images_replaces_a_missing_test_folder(tmp_path):
    split_folder(tmp_path, train=(10, 10, 10), val=(20, 20, 20))
    train, validation, test = (
        read(tmp_path, s) for s in ("train", "validation", "test")
    )
    assert [len(one) for one in (train, validation, test)] == [6, 9, 3]
    assert (validation.image == 20).all()
    assert (test.image == 10).all()
    assert not {*train.files} & {*test.files}
    [note] = train.notes
    assert note.endswith(
        "val validates; there is no folder for the test, so a tenth of train is kept "
        "for it"
    )


def test_two_folders_of_one_split_are_refused(tmp_path):
    split_folder(tmp_path, train=(1, 1, 1), val=(1, 1, 1), valid=(1, 1, 1))
    with pytest.raises(DatasetError, match="for one split, val and valid: keep one"):
        read(tmp_path)


def test_folders_beside_the_splits_are_named(tmp_path):
    split_folder(tmp_path, train=(1, 1, 1), test=(1, 1, 1), other=(1, 1, 1))
    [note] = read(tmp_path).notes
    assert note.endswith("other left out: only test, train read")


def test_a_class_that_is_only_validated_is_refused(tmp_path):
    split_folder(tmp_path, train=(1, 1, 1), val=(1, 1, 1), test=(1, 1, 1))
    save(tmp_path / "val" / "fish" / "0.png")
    with pytest.raises(DatasetError, match=r"val/fish has no images to train on"):
        read(tmp_path)


def test_other_folders_are_classes_under_the_first_edition_s_rule(tmp_path):
    for name in ("train", "val"):
        for number in range(4):
            save(tmp_path / name / f"{number}.png")
    old = read(tmp_path, split_rule=FIRST_EDITION)
    assert old.class_names == ("train", "val")
    shutil.rmtree(tmp_path / "val")
    shutil.rmtree(tmp_path / "train")
    split_folder(tmp_path, train=(10, 10, 10), val=(20, 20, 20), test=(30, 30, 30))
    assert (read(tmp_path, split_rule=FIRST_EDITION).image == 10).all()
    [note] = read(tmp_path, split_rule=FIRST_EDITION).notes
    assert note.endswith("val left out: only test, train read")


def test_moved_photos_keep_their_identity_and_changed_ones_do_not(folder):
    before = read(folder).identity()
    moved = folder.rename(folder.parent / "elsewhere")
    assert read(f"{moved}/").difference(before) is None
    assert read(moved, image_size=4).difference(before) is None
    # A smaller file that looks the same.
    file, other = read(moved).files[:2]
    save(moved / file, COLOURS["cats"], size=(10, 10))
    again = read(moved)
    assert again.difference(before) == "pixels, labels or names are not what they were"
    (moved / other).rename(moved / other.replace(".png", "x.png"))
    difference = f"{other} is gone; {other.replace('.png', 'x.png')} is new"
    assert read(moved).difference(before) == difference


def test_a_class_may_be_called_train(folder):
    (folder / "cats").rename(folder / "train")
    assert read(folder).class_names == ("dogs", "eels", "train")


def test_the_middle_is_kept_and_scaled(tmp_path):
    for number in range(2):
        image = Image.new("RGB", (60, 20), "blue")
        image.paste((255, 0, 0), (20, 0, 40, 20))
        (tmp_path / "a").mkdir(exist_ok=True)
        image.save(tmp_path / "a" / f"{number}.png")
    image = read(tmp_path, image_size=10).image
    assert image.shape == (1, 10, 10, 3)
    assert (image[:, :, 1:-1] == (255, 0, 0)).all()


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tiff", "webp", "ppm"])
def test_every_format_is_read(tmp_path, suffix):
    for number in range(2):
        save(tmp_path / "a" / f"{number}.{suffix}", (200, 100, 50))
    image = read(tmp_path).image
    assert abs(image.astype(int) - (200, 100, 50)).max() < 8


@pytest.mark.parametrize("mode", ["L", "1", "LA", "I;16"])
def test_grey_images_have_one_channel(tmp_path, mode):
    for number in range(3):
        save(tmp_path / "a" / f"{number}.png", "white", mode=mode)
    for split in ("train", "test"):
        dataset = read(tmp_path, split)
        assert dataset.image_shape == (8, 8, 1)
        assert (dataset.image == 255).all()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_one_colour_image_in_either_split_makes_both_coloured(tmp_path, number):
    for other in range(3):
        save(tmp_path / "a" / f"{other}.png", (7, 7, 7), mode="L")
    save(tmp_path / "a" / f"{number}.png", (7, 7, 7))
    for split in ("train", "test"):
        dataset = read(tmp_path, split)
        assert dataset.image_shape == (8, 8, 3)
        assert (dataset.image == 7).all()


def test_hidden_files_and_desktop_files_are_skipped(folder):
    for name in (".DS_Store", "cats/.DS_Store", "cats/Thumbs.db", "dogs/desktop.ini"):
        (folder / name).write_text("no image")
    (folder / ".git").mkdir()
    (folder / "README.txt").write_text("My animals.")
    assert read(folder).class_names == tuple(COLOURS)


# ---- errors


@pytest.mark.parametrize("name", ["cats/broken.png", "eels/IMG_1.heic"])
def test_a_file_that_is_no_image_is_named(folder, name):
    (folder / name).write_text("no image")
    for split in ("train", "test"):
        with pytest.raises(DatasetError, match="not an image that can be") as error:
            read(folder, split)
        assert str(folder / name) in str(error.value)


def test_a_damaged_image_is_named(folder):
    for path in (folder / "cats").iterdir():
        Image.effect_noise((64, 64), 90).convert("RGB").save(path)
        path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DatasetError, match=r"can't read .*cats/\S+.png: .*replace"):
        read(folder)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"none cannot be read \(No such file"):
        read(tmp_path / "none")


def test_a_file_in_place_of_a_folder_is_refused(folder):
    with pytest.raises(DatasetError, match=r"0.png cannot be read \(Not a directory"):
        read(folder / "cats" / "0.png")


def test_a_folder_without_subfolders_is_refused(folder):
    with pytest.raises(DatasetError, match="cats has no subfolders: it must have one"):
        read(folder / "cats")


def test_a_class_without_images_is_refused(folder):
    (folder / "fish").mkdir()
    (folder / "fish" / ".hidden").write_text("")
    with pytest.raises(DatasetError, match="fish has no images: add some"):
        read(folder)


def test_a_class_with_a_single_image_is_refused(folder):
    save(folder / "fish" / "0.png")
    with pytest.raises(DatasetError, match="fish has a single image: a class"):
        read(folder)


def test_a_folder_within_a_class_is_refused(folder):
    (folder / "cats" / "old").mkdir()
    with pytest.raises(DatasetError, match="old is a folder within a class"):
        read(folder)


def test_a_class_that_is_never_trained_is_refused(tmp_path):
    save(tmp_path / "train" / "cats" / "0.png")
    save(tmp_path / "test" / "dogs" / "0.png")
    with pytest.raises(DatasetError, match="dogs has no images to train on"):
        read(tmp_path, "test")


@pytest.mark.parametrize("image_size", [0, -1])
def test_a_missing_image_size_is_refused(folder, image_size):
    with pytest.raises(DatasetError, match=f"image_size is {image_size}"):
        read(folder, image_size=image_size)


def test_only_a_folder_of_images_has_a_path(tmp_path):
    with pytest.raises(DatasetError, match="do not go together"):
        load("mnist", path=tmp_path)
    with pytest.raises(DatasetError, match="needs the path of its folder: --config"):
        load("image_folder", image_size=8)
