import gzip
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import idx_bytes

from capsjax.data import (
    DatasetError,
    generated,
    has_validation,
    images,
    load,
)
from capsjax.data.readers import idx

ARCHIVES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


@pytest.fixture
def folder(tmp_path):
    """Makes four small archives laid out like MNIST's; labels go from 0 to 3."""
    rng = np.random.default_rng(0)
    for prefix, num_images in (("train", 8), ("t10k", 4)):
        image = rng.integers(0, 256, (num_images, 5, 6))
        label = np.arange(num_images) % 4
        files = {"images-idx3": image, "labels-idx1": label}
        for name, array in files.items():
            path = tmp_path / f"{prefix}-{name}-ubyte.gz"
            path.write_bytes(gzip.compress(idx_bytes(array)))
    return tmp_path


# ---- MNIST


@pytest.mark.parametrize("split", ["train", "test"])
def test_mnist_has_the_published_counts(split):
    # https://en.wikipedia.org/wiki/MNIST_database and Keras' documentation.
    expected_size = {"train": 60_000, "test": 10_000}[split]
    dataset = load("mnist", split)
    assert len(dataset) == expected_size
    assert dataset.image.shape == (expected_size, 28, 28, 1)
    assert dataset.image_shape == (28, 28, 1)
    assert dataset.image.dtype == np.uint8
    assert dataset.label.dtype == np.int32
    assert dataset.class_names == tuple("0123456789")
    assert dataset.name == "mnist"


def test_mnist_has_the_published_mean_and_label_counts():
    dataset = load("mnist")
    # The usual mean of 0.1307 for normalising MNIST, with more digits: data.md.
    np.testing.assert_allclose(dataset.image.mean(dtype=np.float64), 33.3184, atol=5e-5)
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    np.testing.assert_array_equal(np.bincount(dataset.label), counts)
    # Every tutorial shows these first digits.
    np.testing.assert_array_equal(dataset.label[:5], [5, 0, 4, 1, 9])


def test_mnist_is_read_without_tensorflow_datasets_and_without_a_backend():
    code = (
        "import sys, capsjax.data\n"
        "assert len(capsjax.data.load('mnist', 'test')) == 10_000\n"
        "for name in ('tensorflow', 'tensorflow_datasets'):\n"
        "    assert name not in sys.modules, name\n"
        "bridge = sys.modules.get('jax._src.xla_bridge')\n"
        "assert bridge is None or not bridge._backends\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_readme_beside_the_archives_states_their_sha256():
    readme = (idx.MNIST_FOLDER / "README.md").read_text()
    for name in ARCHIVES:
        content = (idx.MNIST_FOLDER / name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        assert f"| `{name}` | {len(content):,} | `{digest}` |" in readme


def test_the_archives_have_their_own_licence():
    licence = (idx.MNIST_FOLDER / "LICENSE").read_text()
    assert "https://creativecommons.org/licenses/by-sa/3.0/" in licence
    assert "Yann LeCun and Corinna Cortes" in licence
    assert "The licence of capsjax itself (Apache-2.0) does not cover them." in licence


def test_a_folder_called_mnist_does_not_replace_the_shipped_one(
    folder, tmp_path_factory, monkeypatch
):
    parent = tmp_path_factory.mktemp("parent")
    (parent / "mnist").symlink_to(folder)
    monkeypatch.chdir(parent)
    assert len(load("mnist", "test")) == 10_000
    assert len(load("./mnist", "test")) == 4


# ---- folders of IDX archives


def test_the_names_of_classes_come_from_the_training_labels(folder):
    (folder / ARCHIVES[3]).write_bytes(idx_bytes(np.zeros(4)))
    assert load(str(folder), "test").class_names == ("0", "1", "2", "3")


@pytest.mark.parametrize("is_compressed", [True, False])
@pytest.mark.parametrize("separator", ["-", "."])
@pytest.mark.parametrize("has_suffix", [True, False])
def test_every_spelling_of_the_archives_is_read(
    folder, is_compressed, separator, has_suffix
):
    expected = {split: load(str(folder), split) for split in ("train", "test")}
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        name = path.name.removesuffix(".gz").replace("-idx", separator + "idx")
        path.unlink()
        (folder / (name + ".gz" * has_suffix)).write_bytes(
            content if is_compressed else gzip.decompress(content)
        )
    for split, dataset in expected.items():
        actual = load(str(folder), split)
        np.testing.assert_array_equal(actual.image, dataset.image)
        np.testing.assert_array_equal(actual.label, dataset.label)


def test_the_pixels_of_an_archive_keep_their_places(folder):
    image = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    (folder / ARCHIVES[0]).write_bytes(idx_bytes(image))
    (folder / ARCHIVES[1]).write_bytes(idx_bytes(np.array([0, 1])))
    dataset = load(str(folder))
    assert dataset.image[1, 2, 3, 0] == (1 * 3 + 2) * 4 + 3
    np.testing.assert_array_equal(dataset.image[..., 0], image)


def good_image():
    return np.zeros((8, 5, 6))


@pytest.mark.parametrize("prefix", ["validation", "valid", "val"])
def test_validation_archives_are_the_validation_split(folder, prefix):
    assert not has_validation(str(folder))
    image = np.full((3, 5, 6), 77)
    (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(image))
    (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(np.array([1, 0, 1])))
    assert has_validation(str(folder))
    validation = load(str(folder), "validation")
    assert (validation.image == 77).all()
    assert validation.label.tolist() == [1, 0, 1]
    assert validation.class_names == ("0", "1", "2", "3")


def test_archives_keep_their_identity_in_any_folder(folder, tmp_path_factory):
    before = load(str(folder)).identity()
    moved = tmp_path_factory.mktemp("elsewhere") / "digits"
    shutil.move(folder, moved)
    assert load(f"{moved}/").difference(before) is None
    assert load(str(moved), image_size=4).difference(before) is None
    image = good_image()
    (moved / ARCHIVES[0]).write_bytes(idx_bytes(image))
    assert load(str(moved)).difference(before) is not None


DAMAGES = {
    "empty file": (b"", "0 bytes, too few for a header"),
    "three bytes": (b"\0\0\x08", "3 bytes, too few for a header"),
    "ends within the header": (idx_bytes(good_image())[:10], "ends within its header"),
    "not IDX": (b"<html>not found</html>", "not an IDX file of unsigned bytes"),
    "floats": (idx_bytes(good_image(), type_code=0x0D), "begins with 00 00 0d 03"),
    "no axes": (idx_bytes(good_image(), shape=()), "not an IDX file"),
    "too many axes": (idx_bytes(good_image(), shape=(1,) * 5), "not an IDX file"),
    "too short": (idx_bytes(good_image())[:-1], "states 240 bytes of data"),
    "too long": (idx_bytes(good_image()) + b"\0", "states 240 bytes of data"),
    "labels for images": (idx_bytes(np.zeros(8)), "must have 3 axes"),
    "no images": (idx_bytes(np.zeros((0, 5, 6))), "none of them empty"),
    "no pixels": (idx_bytes(np.zeros((8, 0, 6))), "none of them empty"),
    "too large": (idx_bytes(good_image(), shape=(2**32 - 1,) * 3), "too many"),
    "other count": (idx_bytes(np.zeros((7, 5, 6))), "holds 7 images and"),
}


@pytest.mark.parametrize("is_compressed", [True, False])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_archive_is_refused_by_name(folder, damage, is_compressed):
    content, message = DAMAGES[damage]
    path = folder / ARCHIVES[0]
    path.write_bytes(gzip.compress(content) if is_compressed else content)
    with pytest.raises(DatasetError, match=message) as error:
        load(str(folder))
    assert str(path) in str(error.value)


@pytest.mark.parametrize("size", [3, 12, 40, -1, -8])
def test_a_truncated_gzip_file_is_refused(folder, size):
    path = folder / ARCHIVES[0]
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DatasetError, match="ends before its compressed data does"):
        load(str(folder))


def test_a_flipped_bit_in_a_gzip_file_is_refused(folder):
    path = folder / ARCHIVES[0]
    content = bytearray(path.read_bytes())
    for position in range(24, len(content), 7):
        flipped = content.copy()
        flipped[position] ^= 0x10
        path.write_bytes(flipped)
        with pytest.raises(DatasetError, match=f"{path} .*get the file again"):
            load(str(folder))


def test_nonsense_gzip_data_are_refused(folder):
    path = folder / ARCHIVES[0]
    # A block of an unknown kind follows the header of ten bytes.
    path.write_bytes(path.read_bytes()[:10] + b"\xff" * 40)
    with pytest.raises(DatasetError, match="cannot be unpacked"):
        load(str(folder))


def test_bytes_after_the_gzip_data_are_refused(folder):
    path = folder / ARCHIVES[0]
    path.write_bytes(path.read_bytes() + b"garbage")
    with pytest.raises(DatasetError, match="cannot be unpacked"):
        load(str(folder))


def test_a_gzip_bomb_is_not_unpacked(folder, monkeypatch):
    # 64 MiB of zeros behind the header of 240 bytes.
    path = folder / ARCHIVES[0]
    path.write_bytes(gzip.compress(idx_bytes(good_image()) + bytes(1 << 26)))
    num_unpacked = 0
    read = gzip.GzipFile.read

    def counted(self, size=-1):
        nonlocal num_unpacked
        content = read(self, size)
        num_unpacked += len(content)
        return content

    monkeypatch.setattr(gzip.GzipFile, "read", counted)
    with pytest.raises(DatasetError, match=r"states 240 bytes of data.*it has more"):
        load(str(folder))
    assert num_unpacked == 16 + 240 + 1


def test_a_header_of_too_many_bytes_is_refused_before_any_unpacking(
    folder, monkeypatch
):
    path = folder / ARCHIVES[0]
    content = gzip.compress(idx_bytes(good_image(), shape=(60_000, 28, 28)))
    path.write_bytes(content)
    assert len(content) * 1032 < 60_000 * 28 * 28

    def never(*_):
        raise AssertionError("unpacked")

    monkeypatch.setattr(idx, "_read_at_most", never)
    with pytest.raises(DatasetError, match="states 47040000 bytes of data"):
        load(str(folder))


def test_data_compressed_to_gzip_s_limit_are_read(folder):
    path = folder / ARCHIVES[0]
    content = gzip.compress(idx_bytes(np.zeros((8, 2048, 2048))), compresslevel=9)
    path.write_bytes(content)
    assert len(content) * 1000 < 8 * 2048 * 2048
    assert load(str(folder)).image_shape == (2048, 2048, 1)


def test_labels_that_were_never_trained_are_refused(folder):
    path = folder / ARCHIVES[3]
    path.write_bytes(idx_bytes(np.array([0, 1, 9, 3])))
    with pytest.raises(DatasetError, match="the label 9 at index 2") as error:
        load(str(folder), "test")
    assert str(path) in str(error.value)
    assert "from 0 to 3" in str(error.value)


def test_an_empty_folder_is_refused_and_the_files_named(tmp_path):
    with pytest.raises(DatasetError, match=ARCHIVES[0]) as error:
        load(str(tmp_path))
    assert "It holds nothing" in str(error.value)


@pytest.mark.parametrize("name", ARCHIVES[1:])
def test_a_missing_archive_is_named_and_the_others_listed(folder, name):
    (folder / name).unlink()
    split = "train" if name.startswith("train") else "test"
    with pytest.raises(DatasetError, match=f"has no file {name}") as error:
        load(str(folder), split)
    assert f"It holds {min(set(ARCHIVES) - {name})}" in str(error.value)


@pytest.mark.parametrize(
    "name", ["/no/such/folder", "./no_such", "~/no_such/x", "~no_such_user/x", ".."]
)
def test_a_path_without_a_folder_or_archives_is_refused(name, tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    with pytest.raises(DatasetError, match=r"there is no \S+: correct|has no file"):
        load(name)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="there is no /"):
        idx.read_idx(tmp_path / "none")


def test_a_folder_that_may_not_be_read_is_refused(folder, monkeypatch):
    def denied(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", denied)
    with pytest.raises(DatasetError, match=r"cannot be read \(Permission denied\)"):
        load(str(folder))


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="cannot be read"):
        idx.read_idx(tmp_path)


def test_a_damaged_shipped_archive_names_installing_again(tmp_path, monkeypatch):
    monkeypatch.setattr(idx, "MNIST_FOLDER", tmp_path)
    for name in ARCHIVES:
        (tmp_path / name).write_bytes(b"\x1f\x8b")
    with pytest.raises(DatasetError, match="install capsjax again"):
        load("mnist")


@pytest.mark.parametrize("split", ["validation", "Train", ""])
def test_an_unknown_split_is_refused(split):
    with pytest.raises(DatasetError, match="must be 'train' or 'test'"):
        load("mnist", split)


def test_an_empty_name_is_refused():
    with pytest.raises(DatasetError, match="name of the data set is empty"):
        load("")


# ---- scaling


def test_images_are_cut_to_the_middle_and_then_scaled(folder):
    image = np.zeros((8, 5, 7))
    image[:, :, 1:6] = np.arange(8)[:, None, None] * 30
    (folder / ARCHIVES[0]).write_bytes(idx_bytes(image))
    for size in (3, 5, 10):
        dataset = load(str(folder), image_size=size)
        assert dataset.image_shape == (size, size, 1)
        # The filter sees a little of the cut edges.
        inner = dataset.image[:, :, size // 3 : -(size // 3)]
        expected = np.broadcast_to(np.arange(8)[:, None, None, None] * 30, inner.shape)
        np.testing.assert_allclose(inner, expected, atol=0 if size == 5 else 5)
        np.testing.assert_array_equal(dataset.label, load(str(folder)).label)


def test_an_image_of_the_right_size_is_left_alone():
    np.testing.assert_array_equal(
        load("mnist", "test", image_size=28).image, load("mnist", "test").image
    )


def test_a_negative_size_is_refused():
    with pytest.raises(DatasetError, match="image_size is -1: it must be at least 0"):
        load("mnist", image_size=-1)


def test_too_large_a_size_is_refused():
    with pytest.raises(DatasetError, match=r"image_size is 100000: .* at most 65536"):
        load("mnist", image_size=100_000)


@pytest.mark.parametrize(
    ("name", "options", "what"),
    [
        ("mnist", {"image_size": 160}, "60,000 images of mnist at 160 x 160 x 1"),
        ("mnist", {"max_bytes": 47_039_999}, "60,000 images of .* at 28 x 28"),
        ("multi_mnist", {"split": "test", "max_bytes": 38_000_000}, "30,000 images"),
        ("expanded_mnist", {"split": "test", "max_bytes": 15_000_000}, "40 x 40 x 1"),
    ],
)
def test_too_much_memory_is_refused_before_any_is_taken(
    name, options, what, monkeypatch
):
    def never(*_):
        raise AssertionError("an image is made")

    monkeypatch.setattr(images, "fit", never)
    monkeypatch.setattr(generated.Generated, "fixed", never)
    with pytest.raises(DatasetError, match=what) as error:
        load(name, **{"max_bytes": 10**9, **options})
    allowed = {"max_bytes": 10**9, **options}["max_bytes"] / 1e9
    remedy = f"at most {allowed:.3g} GB are allowed: choose a smaller image_size"
    assert remedy in str(error.value)


def test_memory_is_checked_by_the_header_of_an_archive(folder):
    size = (100, 600, 600)
    path = folder / ARCHIVES[0]
    path.write_bytes(gzip.compress(idx_bytes(np.zeros(size, np.uint8))))
    with pytest.raises(DatasetError, match=r"100 images of .* at 600 x 600 would"):
        load(str(folder), max_bytes=35_999_999)


def test_reading_writes_no_file(folder):
    before = sorted(os.listdir(folder))
    load(str(folder))
    assert sorted(os.listdir(folder)) == before
