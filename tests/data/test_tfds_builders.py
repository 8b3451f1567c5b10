"""Downloading twins, fed with small archives in the upstream layout."""

import gzip
import io
import struct
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import requests
import scipy.io
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.download import resource
from tiny import idx_bytes

from capsjax.data import DatasetError, load
from capsjax.data.readers import tfds as reader
from capsjax.data.readers import tfds_builders

SIZES = {"train": 25, "test": 15}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Makes every request fail."""

    def fail(*_, **__):
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(requests, "head", fail)
    monkeypatch.setattr(requests.Session, "request", fail)


def put_downloads(folder, name, files):
    """Puts files where TFDS keeps its downloads, as if their checksums were right."""
    infos = tfds.builder_cls(name).url_infos
    urls = {url.rsplit("/", 1)[1]: url for url in infos}
    for file_name, content in files.items():
        url = urls[file_name]
        fname = resource.get_dl_fname(url, infos[url].checksum)
        path = epath.Path(folder) / "downloads" / name / fname
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        resource.write_info_file(url, path, name, file_name, infos[url])


def numbered(split, *shape):
    """Makes noise whose first pixel is the image's number."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (SIZES[split], *shape)).astype(np.uint8)
    image.reshape(len(image), -1)[:, 0] = np.arange(len(image))
    return image


def labels(split):
    return np.arange(SIZES[split]) * 7 % 10


def require_same(dataset, image, label):
    """Asserts the same images in TFDS's own order."""
    number = dataset.image.reshape(len(dataset), -1)[:, 0]
    assert sorted(number) == list(range(len(image)))
    assert number.tolist() != list(range(len(image)))
    np.testing.assert_array_equal(dataset.image, image[number])
    np.testing.assert_array_equal(dataset.label, label[number])


def require_ids(name, folder, pattern):
    builder = tfds_builders.make_twin(name)(data_dir=str(folder))
    for split in SIZES:
        for example in builder.as_data_source(split):
            number = example["image"].flat[0]
            assert example["id"].decode() == pattern.format(split, number)


# ---- four IDX archives


def idx_files():
    files = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        files[f"{prefix}-images-idx3-ubyte.gz"] = gzip.compress(
            idx_bytes(numbered(split, 28, 28))
        )
        files[f"{prefix}-labels-idx1-ubyte.gz"] = gzip.compress(
            idx_bytes(labels(split))
        )
    return files


@pytest.mark.parametrize(
    ("name", "class_name"), [("fashion_mnist", "Ankle boot"), ("kmnist", "wo")]
)
def test_idx_archives_are_read(tmp_path, monkeypatch, name, class_name):
    monkeypatch.setattr(tfds_builders, "FASHION_MNIST_FOLDER", tmp_path / "none")
    put_downloads(tmp_path, name, idx_files())
    for split in SIZES:
        dataset = load(name, split, data_dir=tmp_path)
        require_same(dataset, numbered(split, 28, 28)[..., None], labels(split))
        assert dataset.class_names[9] == class_name


def test_debian_s_fashion_mnist_is_read_without_a_download(tmp_path, monkeypatch):
    folder = tmp_path / "debian"
    folder.mkdir()
    for name, content in idx_files().items():
        (folder / name).write_bytes(content)
    monkeypatch.setattr(tfds_builders, "FASHION_MNIST_FOLDER", folder)
    twin = tfds_builders.TWINS["fashion_mnist"]._replace(is_downloaded=False)
    monkeypatch.setitem(tfds_builders.TWINS, "fashion_mnist", twin)
    for split in SIZES:
        dataset = load("fashion_mnist", split, data_dir=tmp_path)
        require_same(dataset, numbered(split, 28, 28)[..., None], labels(split))
        assert dataset.class_names[0] == "T-shirt/top"


# ---- CIFAR-10

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer"]
CIFAR10 += ["dog", "frog", "horse", "ship", "truck"]


def cifar10_files():
    # Upstream has the channels first.
    records = {
        split: np.concatenate(
            [
                labels(split)[:, None].astype(np.uint8),
                numbered(split, 32, 32, 3).transpose(0, 3, 1, 2).reshape(-1, 3072),
            ],
            axis=1,
        )
        for split in SIZES
    }
    batches = np.split(records["train"], 5)
    files = {
        f"data_batch_{number}.bin": batch.tobytes()
        for number, batch in enumerate(batches, 1)
    }
    files["test_batch.bin"] = records["test"].tobytes()
    files["batches.meta.txt"] = "\n".join([*CIFAR10, "", ""]).encode()
    files["readme.html"] = b"<html>"
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        folder = tarfile.TarInfo("cifar-10-batches-bin")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        # The published archive's order.
        for name in sorted(files, key=lambda name: name[::-1]):
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(files[name])
            tar.addfile(member, io.BytesIO(files[name]))
    return {"cifar-10-binary.tar.gz": archive.getvalue()}


def test_cifar10_s_archive_is_read(tmp_path):
    put_downloads(tmp_path, "cifar10", cifar10_files())
    for split in SIZES:
        dataset = load("cifar10", split, data_dir=tmp_path)
        require_same(dataset, numbered(split, 32, 32, 3), labels(split))
        assert dataset.class_names == tuple(CIFAR10)
    require_ids("cifar10", tmp_path, "{}_{:05d}")


# ---- SVHN


def svhn_files():
    files = {}
    for split in SIZES:
        file = io.BytesIO()
        label = np.where(labels(split) == 0, 10, labels(split))[:, None]
        image = np.moveaxis(numbered(split, 32, 32, 3), 0, -1)
        scipy.io.savemat(file, {"X": image, "y": label.astype(np.uint8)})
        files[f"{split}_32x32.mat"] = file.getvalue()
    return files


def test_svhn_s_files_are_read(tmp_path):
    put_downloads(tmp_path, "svhn_cropped", svhn_files())
    for split in SIZES:
        dataset = load("svhn_cropped", split, data_dir=tmp_path)
        require_same(dataset, numbered(split, 32, 32, 3), labels(split))
        assert dataset.class_names == tuple("0123456789")
    require_ids("svhn_cropped", tmp_path, "{}_{:06d}")


# ---- smallNORB


def norb_file(array):
    magic = {np.dtype(np.uint8): 0x1E3D4C55, np.dtype(np.int32): 0x1E3D4C54}
    sizes = [*array.shape, *[1] * (3 - array.ndim)]
    header = struct.pack(f"<{2 + len(sizes)}i", magic[array.dtype], array.ndim, *sizes)
    return gzip.compress(header + array.tobytes())


def smallnorb_files():
    stems = {
        "train": "smallnorb-5x46789x9x18x6x2x96x96-training",
        "test": "smallnorb-5x01235x9x18x6x2x96x96-testing",
    }
    files = {}
    for split, stem in stems.items():
        rows = np.arange(SIZES[split])
        info = np.stack([rows % 10, rows % 9, rows % 18 * 2, rows % 6], axis=1)
        files[f"{stem}-dat.mat.gz"] = norb_file(numbered(split, 2, 96, 96))
        files[f"{stem}-cat.mat.gz"] = norb_file((labels(split) % 5).astype(np.int32))
        files[f"{stem}-info.mat.gz"] = norb_file(info.astype(np.int32))
    return files


@pytest.fixture
def smallnorb(tmp_path):
    put_downloads(tmp_path, "smallnorb", smallnorb_files())
    return tmp_path


def test_smallnorb_s_two_images_become_two_channels(smallnorb):
    for split in SIZES:
        dataset = load("smallnorb", split, data_dir=smallnorb)
        image = np.moveaxis(numbered(split, 2, 96, 96), 1, -1)
        require_same(dataset, image, labels(split) % 5)
        assert dataset.class_names[4] == "cars"
    builder = tfds_builders.make_twin("smallnorb")(data_dir=str(smallnorb))
    for example in builder.as_data_source("train"):
        number = example["image"].flat[0]
        assert example["instance"] == number % 10
        assert example["label_elevation"] == number % 9
        assert example["label_azimuth"] == number % 18
        assert example["label_lighting"] == number % 6


def test_images_are_scaled_channel_by_channel(smallnorb):
    whole = load("smallnorb", data_dir=smallnorb)
    small = load("smallnorb", data_dir=smallnorb, image_size=48)
    assert small.image_shape == (48, 48, 2)
    np.testing.assert_array_equal(small.label, whole.label)
    # A scaled image of noise correlates with the means of 2 x 2 pixels by about 0.9,
    # whatever the filter; with another image or channel not at all.
    mean = whole.image.reshape(-1, 48, 2, 48, 2, 2).mean(axis=(2, 4))
    for index in range(len(whole)):
        for channel in range(2):
            pair = small.image[index, ..., channel], mean[index, ..., channel]
            assert np.corrcoef(*(one.ravel() for one in pair))[0, 1] > 0.8


# ---- affNIST


def affnist_archive(folder="", **fields):
    """Makes the published struct, as far as code that reads it shows."""
    image, label = numbered("test", 40, 40), labels("test").astype(np.uint8)
    fields = {
        "affine": np.zeros((6, len(label))),
        "image": image.reshape(len(label), -1).T,
        "label_one_of_n": (label == np.arange(10)[:, None]).astype(np.uint8),
        "label_int": label[None],
        **fields,
    }
    file, archive = io.BytesIO(), io.BytesIO()
    scipy.io.savemat(file, {"affNISTdata": fields})
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as members:
        members.writestr(f"{folder}test.mat", file.getvalue())
    return archive.getvalue()


@pytest.fixture
def server(monkeypatch):
    """Serves the dictionary's values at the paths that are its keys."""
    monkeypatch.undo()
    served = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self, *, has_body=True):
            content = served.get(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if has_body:
                self.wfile.write(content or b"")

        def do_HEAD(self):
            self.do_GET(has_body=False)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{listening.server_port}/test.mat.zip"
        monkeypatch.setattr(tfds_builders.AffNist, "URL", url)
        yield served
        listening.shutdown()
        thread.join()


@pytest.mark.parametrize("folder", ["", "transformed/"])
def test_affnist_is_downloaded_and_read(tmp_path, server, folder):
    server["/test.mat.zip"] = affnist_archive(folder)
    dataset = load("affnist", "test", data_dir=tmp_path)
    require_same(dataset, numbered("test", 40, 40)[..., None], labels("test"))
    assert dataset.class_names == tuple("0123456789")
    server.clear()
    assert len(load("affnist", "test", data_dir=tmp_path)) == 15


def test_affnist_has_no_split_to_train_on(tmp_path, server):
    server["/test.mat.zip"] = affnist_archive()
    with pytest.raises(DatasetError, match="'affnist' has no split 'train', only test"):
        load("affnist", data_dir=tmp_path)


def test_another_file_in_affnists_place_is_refused_and_not_kept(tmp_path, server):
    server["/test.mat.zip"] = b"<html>Moved</html>"
    with pytest.raises(DatasetError, match=r"'affnist'.*mat\.zip is not a zip"):
        load("affnist", "test", data_dir=tmp_path)
    server["/test.mat.zip"] = affnist_archive()
    assert len(load("affnist", "test", data_dir=tmp_path)) == 15


def test_affnist_without_a_network_is_refused_at_once(tmp_path):
    with pytest.raises(DatasetError, match=r"tijmen/affNIST.*cannot be reached"):
        load("affnist", "test", data_dir=tmp_path)


# ---- all twins


@pytest.mark.parametrize("name", sorted(set(tfds_builders.TWINS) - {"affnist"}))
def test_a_twin_has_the_stock_builders_version_features_and_checksums(name, tmp_path):
    twin = tfds_builders.make_twin(name)(data_dir=str(tmp_path))
    stock = tfds.builder(name, data_dir=tmp_path)
    assert str(twin.version) == str(stock.version)
    assert repr(twin.info.features) == repr(stock.info.features)
    assert twin.info.supervised_keys == stock.info.supervised_keys
    assert twin.info.description == stock.info.description
    assert twin.url_infos == stock.url_infos
    assert twin.data_path == stock.data_path


@pytest.mark.parametrize("name", sorted(set(tfds_builders.TWINS) - {"mnist"}))
def test_a_twin_without_a_network_is_refused_at_once(name, tmp_path, monkeypatch):
    twin = tfds_builders.TWINS[name]._replace(is_downloaded=True)
    monkeypatch.setitem(tfds_builders.TWINS, name, twin)
    with pytest.raises(DatasetError, match="cannot be reached"):
        reader.prepare(name, data_dir=tmp_path)
