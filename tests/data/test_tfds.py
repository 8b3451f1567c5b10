"""Data sets from TensorFlow Datasets, offline and without TensorFlow."""

import hashlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds

from capsjax.data import (
    Dataset,
    DatasetError,
    has_validation,
    load,
)
from capsjax.data import prepare as prepare_command
from capsjax.data.readers import idx, tfds_builders
from capsjax.data.readers import tfds as reader


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Prepares all of MNIST by its twin; takes several seconds."""
    folder = tmp_path_factory.mktemp("tfds")
    path = reader.prepare("mnist", data_dir=folder)
    assert path == folder / "mnist" / "3.0.1"
    return folder


@pytest.fixture
def offline(monkeypatch):
    """Makes every request fail at once; returns the list of requests."""
    requested = []

    def fail(url, **options):
        requested.append((url, options))
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(requests, "head", fail)
    return requested


def small_twin(monkeypatch, name="fashion_mnist", num_images=40, read=None):
    """Puts a twin in the table that needs no download: images of their number."""

    def examples(split_size):
        for index in range(split_size):
            image = np.full((28, 28, 1), index, np.uint8)
            yield {"image": image, "label": index % 10}

    def numbered(builder, download_manager):
        return {"train": examples(num_images), "test": examples(num_images // 2)}

    twin = tfds_builders.Twin(read or numbered, is_downloaded=False)
    monkeypatch.setitem(tfds_builders.TWINS, name, twin)


def files_in(folder):
    return [path for path in Path(folder).rglob("*") if path.is_file()]


# ---- MNIST's twin


def test_the_shipped_archives_equal_tfds_s_registered_ones():
    url_infos = tfds.builder_cls("mnist").url_infos
    assert len(url_infos) == 4
    for url, info in url_infos.items():
        content = (idx.MNIST_FOLDER / url.rsplit("/", 1)[1]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == info.checksum
        assert len(content) == info.size


@pytest.mark.variant
@pytest.mark.parametrize(
    ("split", "first_labels"),
    # TFDS's order: the first labels of tfds.load("mnist"), as its users know them.
    [
        pytest.param(
            *("train", [4, 1, 0, 7, 8, 1, 2, 7, 1, 6]), marks=pytest.mark.variant
        ),
        ("test", [2, 0, 4, 8, 7, 6, 0, 6, 3, 1]),
    ],
)
def test_mnist_s_twin_equals_direct_reading(prepared, split, first_labels):
    direct = load("mnist", split)
    twin = reader.load_tfds("mnist", split, data_dir=prepared)
    np.testing.assert_array_equal(twin.label[:10], first_labels)
    assert twin.class_names == direct.class_names
    assert twin.image.dtype == np.uint8
    assert twin.label.dtype == np.int32

    def in_order_of_content(dataset):
        rows = np.column_stack([dataset.image.reshape(len(dataset), -1), dataset.label])
        return rows[np.lexsort(rows[:, ::-3].T)]

    np.testing.assert_array_equal(
        in_order_of_content(twin), in_order_of_content(direct)
    )


def test_a_twin_of_a_new_style_builder_finds_its_metadata(tmp_path, monkeypatch):
    small_twin(monkeypatch, "svhn_cropped")
    # The twin comes first: it must not profit from the stock builder's search.
    twin = tfds_builders.make_twin("svhn_cropped")(data_dir=str(tmp_path))
    stock = tfds.builder("svhn_cropped", data_dir=tmp_path)
    assert twin.info.description == stock.info.description
    assert twin.url_infos == stock.url_infos


def test_a_twin_leaves_the_stock_builder_registered():
    tfds_builders.make_twin("mnist")
    assert tfds.builder_cls("mnist").__module__.startswith("tensorflow_datasets.")


@pytest.mark.slow
def test_the_stock_builder_reads_the_twin_s_prepared_set(prepared):
    source = tfds.data_source("mnist", split="test", data_dir=prepared, download=False)
    assert len(source) == 10_000
    assert int(source[0]["label"]) == 2


# ---- other sets


def test_a_twin_is_prepared_once_and_then_read(tmp_path, monkeypatch):
    small_twin(monkeypatch)
    train = load("fashion_mnist", data_dir=tmp_path)
    monkeypatch.delitem(tfds_builders.TWINS, "fashion_mnist")
    test = load("fashion_mnist", "test", data_dir=tmp_path)
    for dataset, num_images in ((train, 40), (test, 20)):
        number = dataset.image[:, 0, 0, 0]
        assert sorted(number.tolist()) == list(range(num_images))
        np.testing.assert_array_equal(dataset.label, number % 10)
        np.testing.assert_array_equal(
            dataset.image,
            np.broadcast_to(number[:, None, None, None], (len(number), 28, 28, 1)),
        )
        assert dataset.name == "fashion_mnist"


def test_more_than_one_block_is_read_in_order(tmp_path, monkeypatch):
    small_twin(monkeypatch)
    expected = load("fashion_mnist", data_dir=tmp_path)
    for block_size in (1, 7, 20, 39):
        monkeypatch.setattr(reader, "_BLOCK_SIZE", block_size)
        actual = load("fashion_mnist", data_dir=tmp_path)
        np.testing.assert_array_equal(actual.image, expected.image)
        np.testing.assert_array_equal(actual.label, expected.label)


@pytest.mark.parametrize(
    ("name", "shape", "num_classes"),
    [
        ("cifar10", (32, 32, 3), 10),
        ("smallnorb", (96, 96, 2), 5),
        ("svhn_cropped", (32, 32, 3), 10),
        ("emnist/letters", (28, 28, 1), 37),
    ],
)
def test_a_mocked_set_is_read_as_any_other(name, shape, num_classes):
    with tfds.testing.mock_data(num_examples=5):
        dataset = load(name)
    assert isinstance(dataset, Dataset)
    assert len(dataset) == 5
    assert dataset.image_shape == shape
    assert dataset.num_classes == num_classes


def test_images_of_several_sizes_need_an_image_size():
    with tfds.testing.mock_data(num_examples=2):
        dataset = load("oxford_flowers102", image_size=16)
        assert dataset.image_shape == (16, 16, 3)
        assert len(dataset) == 2
        assert np.ptp(dataset.image) > 0
        with pytest.raises(DatasetError, match=r"several sizes: give .* by image_size"):
            load("oxford_flowers102")


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (("train", "validation"), "validation"),
        (("train", "test"), "test"),
        ((), "test"),
    ],
)
def test_a_set_without_a_test_split_is_tested_by_its_validation(splits, expected):
    builder = SimpleNamespace(info=SimpleNamespace(splits=splits))
    assert reader._own_split(builder, "test") == expected
    assert reader._own_split(builder, "train") == "train"


def three_splits(builder, download_manager):
    return {
        split: [{"image": np.full((28, 28, 1), value, np.uint8), "label": value}]
        for value, split in enumerate(("train", "validation", "test"))
    }


def test_a_set_s_own_validation_split_is_read(tmp_path, monkeypatch):
    small_twin(monkeypatch, read=three_splits)
    for value, split in enumerate(("train", "validation", "test")):
        dataset = load("fashion_mnist", split, data_dir=tmp_path)
        assert (dataset.image == value).all()
    assert has_validation("fashion_mnist", data_dir=tmp_path)


@pytest.mark.parametrize("missing", ["validation", "test"])
def test_a_set_with_two_splits_has_none_for_validation(tmp_path, monkeypatch, missing):
    def two_splits(builder, download_manager):
        splits = three_splits(builder, download_manager)
        return {split: splits[split] for split in splits if split != missing}

    small_twin(monkeypatch, read=two_splits)
    load("fashion_mnist", "test", data_dir=tmp_path)
    assert not has_validation("fashion_mnist", data_dir=tmp_path)
    with pytest.raises(DatasetError, match="has no split 'validation'"):
        load("fashion_mnist", "validation", data_dir=tmp_path)


def test_a_prepared_set_keeps_its_identity_in_any_folder(tmp_path, monkeypatch):
    small_twin(monkeypatch)
    before = load("fashion_mnist", data_dir=tmp_path / "here").identity()
    (tmp_path / "here").rename(tmp_path / "there")
    moved = load("fashion_mnist", data_dir=tmp_path / "there")
    assert moved.difference(before) is None
    # Identity depends on the bytes read, before scaling.
    small = load("fashion_mnist", data_dir=tmp_path / "there", image_size=8)
    assert small.difference(before) is None


@pytest.mark.parametrize("name", ["ag_news_subset", "celeb_a"])
def test_a_set_without_images_and_labels_is_refused(name):
    with (
        tfds.testing.mock_data(num_examples=2),
        pytest.raises(DatasetError, match="is not for image classification"),
    ):
        load(name)


# ---- the folder of the sets


def test_the_folder_is_the_argument_else_the_variable_else_the_cache(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("CAPSJAX_DATA_DIR", raising=False)
    folder = reader.data_folder
    assert folder() == Path("/home/someone/.cache/capsjax/tfds")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert folder() == Path("/cache/capsjax/tfds")
    monkeypatch.setenv("CAPSJAX_DATA_DIR", "~/data")
    assert folder() == Path("/home/someone/data")
    assert folder("/given") == Path("/given")


def test_a_set_is_found_by_the_variable(tmp_path, monkeypatch):
    small_twin(monkeypatch)
    monkeypatch.setenv("CAPSJAX_DATA_DIR", str(tmp_path))
    load("fashion_mnist")
    assert (tmp_path / "fashion_mnist").is_dir()


# ---- errors


def test_an_unknown_name_is_refused_with_near_ones():
    with pytest.raises(DatasetError, match="Did you mean cifar10 or") as error:
        load("cifar_10")
    assert "unknown data set 'cifar_10'" in str(error.value)


def test_a_mistyped_mnist_is_guessed():
    with pytest.raises(DatasetError, match="Did you mean mnist"):
        load("mnits")


def test_a_name_that_may_have_meant_a_folder_is_refused_as_both():
    with pytest.raises(DatasetError, match="there is no folder of that name, and"):
        load("qqqq/train")


def test_a_name_unlike_all_others_is_refused_without_a_guess():
    with pytest.raises(DatasetError, match="unknown data set 'qqqq'") as error:
        load("qqqq")
    assert "Did you mean" not in str(error.value)


@pytest.mark.parametrize("name", ["cifar10/none", "a b", "cifar10:9.9.9"])
def test_a_malformed_name_is_refused(name, tmp_path):
    with pytest.raises(DatasetError, match="correct the name"):
        load(name, data_dir=tmp_path)


# coco's builder cannot even be made without TensorFlow.
@pytest.mark.parametrize("name", ["cifar100", "emnist/letters", "coco"])
def test_an_unprepared_stock_set_s_error_has_the_command(
    name, tmp_path, offline, monkeypatch
):
    monkeypatch.setattr(reader, "_has_tensorflow", lambda: False)
    with pytest.raises(DatasetError, match="needs TensorFlow") as error:
        load(name, data_dir=tmp_path)
    assert str(error.value).endswith(
        'pip install "capsjax[tf]" && '
        f"python -m capsjax.data.prepare {name} --data_dir {tmp_path}"
    )
    assert not offline
    assert not files_in(tmp_path)


def test_load_never_prepares_with_tensorflow_in_its_own_process(
    tmp_path, offline, monkeypatch
):
    monkeypatch.setattr(reader, "_has_tensorflow", lambda: True)
    with pytest.raises(DatasetError, match="needs TensorFlow") as error:
        load("cifar100", data_dir=tmp_path)
    assert "pip install" not in str(error.value)
    assert not offline


def test_an_unreachable_source_is_refused_before_tfds_tries(
    tmp_path, offline, monkeypatch
):
    small_twin(monkeypatch)
    monkeypatch.setitem(
        tfds_builders.TWINS,
        "fashion_mnist",
        tfds_builders.TWINS["fashion_mnist"]._replace(is_downloaded=True),
    )
    with pytest.raises(DatasetError, match="cannot be reached") as error:
        load("fashion_mnist", data_dir=tmp_path)
    [(url, options)] = offline
    assert url in tfds.builder_cls("fashion_mnist").url_infos
    assert options == {"timeout": 10}
    assert url in str(error.value)
    assert "no network" in str(error.value)
    assert str(tmp_path / "fashion_mnist") in str(error.value)
    assert not files_in(tmp_path)


def test_existing_downloads_need_no_network(tmp_path, offline, monkeypatch):
    small_twin(monkeypatch)
    monkeypatch.setitem(
        tfds_builders.TWINS,
        "fashion_mnist",
        tfds_builders.TWINS["fashion_mnist"]._replace(is_downloaded=True),
    )
    downloads = tmp_path / "downloads" / "fashion_mnist"
    downloads.mkdir(parents=True)
    (downloads / "images.gz.INFO").write_text("{}")
    assert len(load("fashion_mnist", data_dir=tmp_path)) == 40
    assert not offline


def test_mnist_is_prepared_without_a_network(tmp_path, offline, monkeypatch):
    monkeypatch.setattr(
        tfds_builders,
        "load_mnist",
        lambda split: load("mnist", split).subset(np.arange(3)),
    )
    assert len(reader.load_tfds("mnist", "train", data_dir=tmp_path)) == 3
    assert not offline


def test_a_failure_while_preparing_leaves_nothing_and_can_be_repeated(
    tmp_path, monkeypatch
):
    def failing(builder, download_manager):
        def examples():
            yield {"image": np.zeros((28, 28, 1), np.uint8), "label": 0}
            raise OSError("connection lost")

        return {"train": examples(), "test": examples()}

    small_twin(monkeypatch, read=failing)
    for _ in range(2):
        with pytest.raises(DatasetError, match="connection lost") as error:
            load("fashion_mnist", data_dir=tmp_path)
        assert "nothing was kept of it" in str(error.value)
        assert not files_in(tmp_path)
        assert not list(tmp_path.glob("fashion_mnist/*"))
    small_twin(monkeypatch)
    assert len(load("fashion_mnist", data_dir=tmp_path)) == 40


def test_an_interrupted_preparation_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(builder, download_manager):
        def examples():
            yield {"image": np.zeros((28, 28, 1), np.uint8), "label": 0}
            raise KeyboardInterrupt

        return {"train": examples(), "test": examples()}

    small_twin(monkeypatch, read=interrupted)
    with pytest.raises(KeyboardInterrupt):
        load("fashion_mnist", data_dir=tmp_path)
    assert not files_in(tmp_path)


def test_a_killed_process_s_leftovers_are_not_taken_for_the_set(tmp_path, monkeypatch):
    killed = (
        "import os, numpy as np\n"
        "from capsjax.data import load\n"
        "from capsjax.data.readers import tfds_builders\n"
        "def examples():\n"
        "    yield {'image': np.zeros((28, 28, 1), np.uint8), 'label': 0}\n"
        "    os._exit(9)\n"
        "read = lambda builder, _: {'train': examples(), 'test': examples()}\n"
        "twin = tfds_builders.Twin(read, is_downloaded=False)\n"
        "tfds_builders.TWINS['fashion_mnist'] = twin\n"
        f"load('fashion_mnist', data_dir={str(tmp_path)!r})\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", killed], check=False, capture_output=True
    )
    assert process.returncode == 9
    assert list(tmp_path.glob("fashion_mnist/incomplete.*"))
    small_twin(monkeypatch)
    assert len(load("fashion_mnist", data_dir=tmp_path)) == 40


def test_another_process_s_prepared_set_is_read(tmp_path, monkeypatch):
    small_twin(monkeypatch)
    numbered = tfds_builders.TWINS["fashion_mnist"].read

    def overtaken(builder, download_manager):
        small_twin(monkeypatch)
        reader.prepare("fashion_mnist", data_dir=tmp_path)
        return numbered(builder, download_manager)

    small_twin(monkeypatch, read=overtaken)
    assert len(load("fashion_mnist", data_dir=tmp_path)) == 40
    assert not list(tmp_path.glob("fashion_mnist/incomplete.*"))


@pytest.mark.parametrize("damage", ["remove", "truncate", "empty", "no info"])
def test_a_damaged_prepared_set_is_refused(tmp_path, monkeypatch, damage):
    small_twin(monkeypatch)
    load("fashion_mnist", data_dir=tmp_path)
    [path] = tmp_path.rglob("*train.array_record*")
    if damage == "remove":
        path.unlink()
    elif damage == "no info":
        (path.parent / "dataset_info.json").write_text("{")
    else:
        path.write_bytes(path.read_bytes()[: 100 if damage == "truncate" else 0])
    with pytest.raises(DatasetError, match=r"fashion_mnist.*delete"):
        load("fashion_mnist", data_dir=tmp_path)


def test_a_set_in_tensorflows_format_is_refused(tmp_path, monkeypatch):
    small_twin(monkeypatch)
    load("fashion_mnist", data_dir=tmp_path)
    [info] = tmp_path.rglob("dataset_info.json")
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DatasetError, match="only TensorFlow can read") as error:
        load("fashion_mnist", data_dir=tmp_path)
    assert str(info.parent) in str(error.value)
    assert "CAPSJAX_DATA_DIR" in str(error.value)


def test_a_set_without_the_split_is_refused(tmp_path, monkeypatch):
    numbered = {"train": [{"image": np.zeros((28, 28, 1), np.uint8), "label": 0}]}
    small_twin(monkeypatch, read=lambda builder, download_manager: numbered)
    load("fashion_mnist", data_dir=tmp_path)
    with pytest.raises(DatasetError, match="no split 'test', only train"):
        load("fashion_mnist", "test", data_dir=tmp_path)


# ---- output


def test_nothing_is_written_to_the_standard_output(tmp_path, monkeypatch, capfd):
    small_twin(monkeypatch)
    load("fashion_mnist", data_dir=tmp_path)
    assert capfd.readouterr().out == ""


def test_the_command_prints_the_folder_of_the_set(tmp_path, monkeypatch, capsys):
    small_twin(monkeypatch)
    assert prepare_command.main(["fashion_mnist", "--data_dir", str(tmp_path)]) == 0
    path = capsys.readouterr().out.strip()
    assert Path(path).parent == tmp_path / "fashion_mnist"
    assert len(load("fashion_mnist", data_dir=tmp_path)) == 40


def test_the_command_ends_with_one_line_for_an_unknown_name(tmp_path, capsys):
    assert prepare_command.main(["cifar_10", "--data_dir", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("capsjax.data.prepare: error: unknown data set 'cifar_10'")
