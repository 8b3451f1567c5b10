"""Images that exceed the memory: in a cache on disk, with the bits of memory."""

import json
import os
import pickle
import resource
import sys
import time
import types
from collections import namedtuple

import numpy as np
import pytest
from PIL import Image

from capsjax.data import DatasetError, disk, load, workers
from capsjax.data.images import ImageError
from capsjax.data.preparation import Preparation
from capsjax.data.readers import image_files, tfds_builders
from capsjax.data.readers import tfds as tfds_reader

SHAPE = (9, 8, 3)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of the caches, of which each part has three images."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(disk, "_LEAST_BYTES", 3 * 8 * 8 * 3)
    return tmp_path / "cache" / "capsjax" / "images"


@pytest.fixture
def photos(tmp_path):
    """Ten images of noise to train on, of two sizes, in two classes, and two others."""
    folder = tmp_path / "photos"
    for number in range(12):
        split = "train" if number < 10 else "test"
        path = folder / split / f"class{number % 2}" / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (13, 11 + number % 2, 3)
        noise = np.random.default_rng(number).integers(0, 256, size, dtype=np.uint8)
        Image.fromarray(noise).save(path)
    return folder


def read(folder, max_bytes=0, split="train", **options):
    options = {"path": folder, "image_size": 8, **options}
    return load("image_folder", split, max_bytes=max_bytes, **options)


def assert_same(one, other):
    assert not one.is_on_disk
    assert other.is_on_disk
    np.testing.assert_array_equal(other.image, one.image)
    np.testing.assert_array_equal(other.label, one.label)
    assert other.identity() == one.identity()
    assert (other.notes, other.preparation) == (one.notes, one.preparation)
    assert other.class_names == one.class_names


@pytest.fixture
def applied(monkeypatch):
    """The names of the files that are decoded from now on."""
    names, apply = [], Preparation.apply

    def noted(self, path, **options):
        names.append(path.name)
        return apply(self, path, **options)

    monkeypatch.setattr(Preparation, "apply", noted)
    return names


def damage(path):
    path.write_bytes(path.read_bytes()[:100])


# ---- the same images


def test_images_are_on_disk_only_if_they_exceed_the_memory(photos):
    num_bytes = 10 * 8 * 8 * 3
    in_memory = read(photos, num_bytes)
    assert_same(in_memory, read(photos, num_bytes - 1))


def test_a_subset_on_disk_reads_nothing_and_has_the_images_of_memory(
    photos, monkeypatch
):
    in_memory, on_disk = read(photos, 2**30), read(photos)
    opened = []
    monkeypatch.setattr(disk.ImagesOnDisk, "_opened", opened.append)
    index = np.array([7, 2, 9, 0])
    some = on_disk.subset(index).subset(np.array([3, 1]))
    assert not opened
    monkeypatch.undo()
    assert_same(in_memory.subset(index[[3, 1]]), some)


def test_images_on_disk_are_indexed_like_an_array(photos):
    array, image = read(photos, 2**30).image, read(photos).image
    assert image.shape == array.shape
    for index in (
        *(0, -1, np.int64(4), slice(2, 7, 2), slice(None), slice(0, 0)),
        *(np.array([[9, 0, 0], [4, -10, 5]]), np.array(3), []),
    ):
        if isinstance(index, list):
            index = np.array(index, int)
        np.testing.assert_array_equal(image[index], array[index])
    np.testing.assert_array_equal(list(image), array)
    for wrong in (10, -11, np.array([0, 10])):
        with pytest.raises(IndexError):
            image[wrong]
    with pytest.raises(TypeError, match="not by bool"):
        image[np.ones(10, bool)]


def test_images_on_disk_pickle_without_their_pixels(photos):
    image = read(photos).image
    again = pickle.loads(pickle.dumps(image))
    np.testing.assert_array_equal(again, image)


# ---- files that can't be read


def test_a_damaged_file_is_refused_as_in_memory(photos):
    damage(photos / "train" / "class1" / "03.png")
    messages = []
    for max_bytes in (2**30, 0, 0):  # The last one finds the cache.
        with pytest.raises(DatasetError, match=r"03\.png.*skip_bad_files") as error:
            read(photos, max_bytes)
        messages.append(str(error.value))
    assert len(set(messages)) == 1


def test_a_damaged_file_is_skipped_as_in_memory_wherever_the_folder_lies(photos):
    damage(photos / "train" / "class1" / "03.png")
    assert len(read(photos, skip_bad_files=True)) == 9
    moved = photos.rename(photos.with_name("elsewhere"))
    in_memory, on_disk = (
        read(moved, max_bytes, skip_bad_files=True) for max_bytes in (2**30, 0)
    )
    assert_same(in_memory, on_disk)
    assert "03.png" in on_disk.notes[-1]


def test_a_file_that_can_be_read_again_is_read(photos, monkeypatch):
    """A disk elsewhere may fail for a moment; the file stays unchanged."""
    apply = Preparation.apply

    def fails(self, path, **options):
        if path.name == "03.png":
            raise ImageError(f"can't read {path}: it is away for a moment.")
        return apply(self, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Preparation, "apply", fails)
        assert len(read(photos, skip_bad_files=True)) == 9
        assert len(read(photos, skip_bad_files=True)) == 9
    assert_same(read(photos, 2**30), read(photos))


# ---- the cache


def test_a_second_start_looks_at_no_file(photos, monkeypatch):
    first = read(photos)

    def never(path):
        raise AssertionError(f"{path} is opened")

    monkeypatch.setattr(image_files, "read_header", never)
    assert read(photos).identity() == first.identity()
    assert read(photos).preparation == first.preparation
    with pytest.raises(AssertionError, match="is opened"):
        read(photos, image_size=7)


def test_the_cache_is_found_again_until_a_file_changes(photos, applied):
    first = read(photos)
    assert len(applied) == 10
    assert_same(read(photos, 2**30), read(photos))
    del applied[:]
    read(photos)
    assert not applied
    # The same size, another time.
    file = photos / "train" / "class0" / "00.png"
    os.utime(file, (1, 1))
    assert read(photos).identity() == first.identity()
    assert len(applied) == 10
    # Another size of images is another cache.
    read(photos, image_size=7)
    assert len(applied) == 20


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_cache_that_is_not_finished_is_gone_on_with(
    photos, cache, monkeypatch, applied, error
):
    """Whatever ends the process: the parts that are there are whole ones."""

    def stop(self, path, **options):
        if len(applied) == 5:
            raise error
        return noted(self, path, **options)

    noted = Preparation.apply
    with monkeypatch.context() as patch:
        patch.setattr(Preparation, "apply", stop)
        with pytest.raises(error):
            read(photos)
    whole = [json.loads(path.read_text()) for path in cache.glob("*/*.json")]
    num_whole = sum(len(part["checksum"]) for part in whole)
    assert 3 <= num_whole <= 4
    assert not [*cache.glob("*/*.aside")]
    # As a kill leaves it: pixels whose second file is missing, and a file aside.
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    missing = next(n for n in range(4) if not (folder / f"{n:03d}.json").exists())
    (folder / f"{missing:03d}.pixels").write_bytes(b"half")
    for name, age in (("old", 7200), ("new", 0)):
        aside = folder / f"003.pixels.{name}.aside"
        aside.write_bytes(b"half")
        os.utime(aside, (time.time() - age,) * 2)
    again = read(photos)
    assert len(applied) - 5 == 10 - num_whole
    assert_same(read(photos, 2**30), again)
    assert [path.name for path in folder.glob("*.aside")] == ["003.pixels.new.aside"]


def test_a_full_disk_is_one_line_and_loses_nothing(photos, cache):
    """A limit on the size of files stands in for a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    try:
        with pytest.raises(DatasetError, match="can't keep the images of") as error:
            read(photos)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "XDG_CACHE_HOME" in str(error.value)
    assert not [*cache.glob("*/*.aside")]
    assert_same(read(photos, 2**30), read(photos))


def test_too_little_room_is_refused_before_any_image_is_decoded(
    photos, monkeypatch, applied
):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage(10 * 192 - 1))
    with pytest.raises(DatasetError, match=r"has 1\.92e-06 GB free"):
        read(photos)
    assert not applied


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (lambda data: data[:-1], "it is damaged"),
        (lambda data: bytes([data[0] ^ 1]) + data[1:], "it is damaged"),
        (None, "No such file or directory"),
    ],
)
def test_damaged_pixels_are_never_used(photos, cache, damaged, message):
    image = read(photos).image
    for path in cache.glob("*/*.pixels"):
        path.write_bytes(damaged(path.read_bytes())) if damaged else path.unlink()
    with pytest.raises(DatasetError, match=f"{message}; delete the folder"):
        image[:]


def test_a_damaged_record_of_a_part_is_refused(photos, cache):
    read(photos)
    next(cache.glob("*/*.json")).write_text("{")
    with pytest.raises(DatasetError, match=r"is damaged .*delete it"):
        read(photos)


def test_images_that_exceed_the_memory_need_grain(photos, monkeypatch):
    monkeypatch.setattr(workers.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DatasetError, match="pip install grain"):
        read(photos)
    read(photos, 2**30)


def test_arrays_are_not_read_from_disk(tmp_path):
    with pytest.raises(DatasetError, match="must be held in memory"):
        load("mnist", max_bytes=0)


# ---- processes


@pytest.mark.slow
def test_processes_decode_the_same_images(photos, monkeypatch):
    monkeypatch.setattr(workers, "_FEWEST_FOR_PROCESSES", 1)
    monkeypatch.setattr(workers, "_num_processors", lambda: 2)
    pids = set(workers.in_processes(_pid, range(4), 4))
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert_same(read(photos, 2**30), read(photos))
    with pytest.raises(ZeroDivisionError, match="division"):
        list(workers.in_processes(_inverse, range(4), 4))


@pytest.mark.parametrize(
    ("script", "guarded"),
    [("main()", False), ('if __name__ == "__main__":\n    main()', True), (None, True)],
)
def test_a_script_without_a_guard_is_not_imported_by_processes(
    tmp_path, monkeypatch, script, guarded
):
    main = types.ModuleType("__main__")
    if script is not None:
        main.__file__ = str(tmp_path / "script.py")
        (tmp_path / "script.py").write_text(script)
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert workers._main_is_guarded() == guarded


def _pid(_):
    return os.getpid()


def _inverse(number):
    return 1 / number


def test_values_come_in_order_and_an_error_where_its_value_is_due():
    def inverse(number):
        time.sleep(0.01 * (number % 2))
        return 1 / (number - 3)

    values = workers.Ahead(inverse, 0, 9, num_ahead=3)
    assert [next(values) for _ in range(3)] == [-1 / 3, -1 / 2, -1]
    with pytest.raises(ZeroDivisionError):
        next(values)
    values.close()
    values = workers.Ahead(inverse, 5, 7, num_ahead=3)
    assert list(values) == [1 / 2, 1 / 3]
    values.close()


# ---- sets of TFDS


def small_twin(monkeypatch):
    def examples(number):
        for index in range(number):
            noise = np.random.default_rng(index).integers(256, size=(28, 28, 1))
            yield {"image": noise.astype(np.uint8), "label": index % 10}

    twin = tfds_builders.Twin(
        lambda *_: {"train": examples(20), "test": examples(5)}, is_downloaded=False
    )
    monkeypatch.setitem(tfds_builders.TWINS, "fashion_mnist", twin)


@pytest.mark.parametrize("image_size", [0, 8])
def test_a_set_of_tfds_is_read_from_disk(tmp_path, monkeypatch, image_size, cache):
    small_twin(monkeypatch)
    options = {"data_dir": tmp_path, "image_size": image_size}
    sets = [load("fashion_mnist", max_bytes=n, **options) for n in (2**30, 0)]
    assert_same(*sets)

    def never(*_):
        raise AssertionError("an example is read")

    monkeypatch.setattr(tfds_reader, "_examples_at", never)
    assert_same(sets[0], load("fashion_mnist", max_bytes=0, **options))


def test_a_source_of_tfds_opens_its_set_in_another_process(tmp_path, monkeypatch):
    small_twin(monkeypatch)
    sources = []

    def noted(source, *_, **options):
        sources.append(source)
        return disk.read_images(source, *_, **options)

    monkeypatch.setattr(tfds_reader, "read_images", noted)
    image = load("fashion_mnist", data_dir=tmp_path).image
    kept = []
    pickle.loads(pickle.dumps(sources[0])).read(range(3, 5), kept.append)
    np.testing.assert_array_equal(kept, image[3:5])


def test_a_folder_of_array_record_files_is_read(tmp_path, monkeypatch):
    small_twin(monkeypatch)
    load("fashion_mnist", data_dir=tmp_path)
    (info,) = tmp_path.glob("*/*/dataset_info.json")
    record = json.loads(info.read_text())
    assert record["fileFormat"] == "array_record"
    folder = info.parent.rename(tmp_path / "elsewhere")
    sets = [load(str(folder), max_bytes=n, image_size=8) for n in (2**30, 0)]
    assert_same(*sets)
    expected = load("fashion_mnist", data_dir=tmp_path / "again", image_size=8)
    np.testing.assert_array_equal(sets[1].image, expected.image)
