"""Pictures in files reach the network exactly like the run's own images."""

import gzip
import json
import struct
import zlib

import jax
import numpy as np
import pytest
from marks import first_of
from PIL import Image
from test_tfds_builders import (
    cifar10_files,
    idx_files,
    put_downloads,
    smallnorb_files,
    svhn_files,
)
from tiny import idx_bytes, tiny_model

from capsjax import config as configs
from capsjax import predict
from capsjax.data.readers import idx, tfds_builders
from capsjax.storage.checkpoints import Checkpoints
from capsjax.storage.files import write_json
from capsjax.storage.run import Run
from capsjax.storage.workdir import Workdir
from capsjax.training.state import init_state
from capsjax.training.task import make_task

NUM_FILES = 4
pytestmark = pytest.mark.usefixtures("without_estimate")


def noise(*shape, most=256, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, most, shape).astype(dtype)


def png_of_deep_colour(pixels):
    """Makes a PNG file with 16 bits a channel, which Pillow can only read."""
    height, width, _ = pixels.shape

    def chunk(kind, data):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*one)
        for one in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


def folder_of(tmp_path, save, suffix="png"):
    """Makes two classes of eight pictures of noise, 24 pixels wide and 20 high."""
    for name in "ab":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(8):
            path = tmp_path / "photos" / name / f"{number}.{suffix}"
            save(path, np.random.default_rng(number + ord(name)))
    return configs.Data("image_folder", str(tmp_path / "photos"), image_size=16)


def saved_as(mode, suffix="png"):
    """Returns a maker of a folder of pictures in one of Pillow's modes."""

    def make(tmp_path, _):
        def save(path, rng):
            pixels = rng.integers(0, 256, (20, 24, 4)).astype(np.uint8)
            Image.fromarray(pixels).convert(mode).save(path)

        return folder_of(tmp_path, save, suffix)

    return make


def deep(dtype, low, high, suffix="tiff"):
    """Returns a maker of a folder of grey pictures from ``low`` to ``high``."""

    def make(tmp_path, _):
        def save(path, rng):
            pixels = rng.uniform(low, high, (20, 24)).astype(dtype)
            Image.fromarray(pixels).save(path)

        return folder_of(tmp_path, save, suffix)

    return make


def deep_colour(tmp_path, _):
    def save(path, rng):
        pixels = rng.integers(0, 2**16, (20, 24, 3)).astype(np.uint16)
        path.write_bytes(png_of_deep_colour(pixels))

    return folder_of(tmp_path, save)


def idx_folder(height, width, image_size=0):
    """Returns a maker of a folder of IDX archives."""

    def make(tmp_path, _):
        for prefix in ("train", "t10k"):
            image = noise(20, height, width, most=200)
            for kind, array in (("images-idx3", image), ("labels-idx1", noise(20) % 3)):
                path = tmp_path / f"{prefix}-{kind}-ubyte.gz"
                path.write_bytes(gzip.compress(idx_bytes(array)))
        return configs.Data(str(tmp_path), image_size=image_size)

    return make


def array_file(*shape, image_size=0, num_classes=None):
    """Returns a maker of a file of arrays, with several labels if classes are given."""

    def make(tmp_path, _):
        label = noise(20) % 3
        if num_classes is not None:
            label = noise(20, num_classes) > 127
        np.savez(
            tmp_path / "arrays.npz",
            **{f"x_{split}": noise(20, *shape) for split in ("train", "test")},
            **{f"y_{split}": label for split in ("train", "test")},
        )
        return configs.Data(str(tmp_path / "arrays.npz"), image_size=image_size)

    return make


def listed(make_folder):
    """Returns a maker of a table of the pictures in a folder."""

    def make(tmp_path, monkeypatch):
        data = make_folder(tmp_path, monkeypatch)
        photos = tmp_path / "photos"
        rows = [
            f"{path.relative_to(photos)},{path.parent.name}"
            for path in photos.glob("*/*")
        ]
        (photos / "labels.csv").write_text("\n".join(["path,label", *sorted(rows)]))
        return configs.Data(str(photos / "labels.csv"), image_size=data.image_size)

    return make


def digits(name, image_size=0):
    """Returns a maker of few images from MNIST, or from a set made from it."""

    def make(_, monkeypatch):
        def few(split, **options):
            return whole(split, **options).subset(np.arange(20))

        whole = idx.load_mnist
        monkeypatch.setattr("capsjax.data.loading.load_mnist", few)
        return configs.Data(name, image_size=image_size)

    return make


def downloaded(name, files, image_size=0):
    """Returns a maker of a set with invented downloads."""

    def make(tmp_path, monkeypatch):
        monkeypatch.setenv("CAPSJAX_DATA_DIR", str(tmp_path))
        monkeypatch.setattr(tfds_builders, "FASHION_MNIST_FOLDER", tmp_path / "none")
        put_downloads(tmp_path, name, files())
        return configs.Data(name, image_size=image_size)

    return make


SETS = {
    "grey folder": saved_as("L"),
    "black and white folder": saved_as("1"),
    "grey and transparent folder": saved_as("LA"),
    "palette folder": saved_as("P", "gif"),
    "colour folder": saved_as("RGB"),
    "colour and transparent folder": saved_as("RGBA"),
    "CMYK folder": saved_as("CMYK", "tiff"),
    "16-bit folder": deep(np.uint16, 0, 65535, "png"),
    "12-bit folder": deep(np.uint16, 0, 4096),
    "thermal folder": deep(np.uint16, 29_000, 31_000),
    "CT folder": deep(np.int32, -1024, 3000),
    "float folder": deep(np.float32, -1, 7),
    "16-bit colour folder": deep_colour,
    "IDX 28x28": idx_folder(28, 28),
    "IDX 20x30": idx_folder(20, 30),
    "IDX scaled": idx_folder(20, 30, image_size=12),
    "grey arrays": array_file(20, 30),
    "grey arrays scaled": array_file(20, 30, 1, image_size=12),
    "colour arrays": array_file(20, 24, 3),
    "transparent arrays": array_file(20, 24, 4),
    "arrays of several labels": array_file(20, 20, num_classes=3),
    "table of colour": listed(saved_as("RGB")),
    "table of 12 bits": listed(deep(np.uint16, 0, 4096)),
    "MNIST": digits("mnist"),
    "MNIST scaled": digits("mnist", image_size=20),
    "expanded MNIST": digits("expanded_mnist"),
    "MultiMNIST": digits("multi_mnist"),
    "affine MNIST": digits("affine_mnist"),
    "Fashion-MNIST": downloaded("fashion_mnist", idx_files),
    "KMNIST": downloaded("kmnist", idx_files),
    "CIFAR-10": downloaded("cifar10", cifar10_files),
    "CIFAR-10 scaled": downloaded("cifar10", cifar10_files, image_size=20),
    "SVHN": downloaded("svhn_cropped", svhn_files),
    "smallNORB": downloaded("smallnorb", smallnorb_files),
    "smallNORB scaled": downloaded("smallnorb", smallnorb_files, image_size=20),
}

QUICK = (
    *("grey folder", "colour and transparent folder", "12-bit folder"),
    *("IDX 20x30", "grey arrays", "table of 12 bits", "MNIST", "MultiMNIST"),
    "smallNORB",
)


def untrained_run(path, data):
    """Writes a run before its first step; returns its test images."""
    data.num_validation = 0
    model = tiny_model(conv_kernel=3, primary_kernel=3, weight_init="normal(0.3)")
    config = configs.Config(data=data, model=model, batch_size=4)
    task = make_task(config)
    workdir = Workdir(path)
    path.mkdir()
    write_json(workdir.config, configs.to_dict(config))
    write_json(workdir.dataset, task.about())
    checkpoints = Checkpoints(workdir.checkpoints)
    optimizer = config.optimizer.make(1)
    state = jax.jit(lambda: init_state(task.model, optimizer, config))()
    checkpoints.save(0, state)
    checkpoints.close()
    return task.test_set


def save(image, path):
    """Saves an array as a user would, a pair of images side by side."""
    if image.shape[-1] == 2:
        image = np.concatenate([image[..., :1], image[..., 1:]], axis=1)
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path)


def test_invert_is_refused_if_pictures_are_taken_unchanged(
    tmp_path, monkeypatch, capsys
):
    untrained_run(tmp_path / "run", idx_folder(12, 12)(tmp_path, monkeypatch))
    for option in ("--invert", "--no-invert"):
        arguments = ["--workdir", str(tmp_path / "run"), option, "picture.png"]
        assert predict.main(arguments) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{option} is for networks of MNIST's digits" in line


@pytest.fixture
def seen(monkeypatch):
    """Records the run that the command opened, its network's inputs and outputs."""
    calls, answer = [], Run.predict

    def noted(self, image):
        prediction = answer(self, image)
        calls.append((self, image, prediction))
        return prediction

    monkeypatch.setattr(Run, "predict", noted)
    return calls


@pytest.mark.parametrize("name", first_of(QUICK, SETS))
def test_test_images_as_files_give_the_same_as_the_arrays(
    name, tmp_path, monkeypatch, seen, capsys
):
    test_set = untrained_run(tmp_path / "run", SETS[name](tmp_path, monkeypatch))
    image = test_set.image[:NUM_FILES]
    files = [str(tmp_path / f"{number}.png") for number in range(len(image))]
    for one, file in zip(image, files, strict=True):
        save(one, file)
    about = json.loads((tmp_path / "run" / "dataset.json").read_text())["preparation"]
    few = image
    is_deep = not isinstance(about["scale"], str)
    if about["kind"] == "as_is" and not is_deep and about["channels"] < 3:
        # Scaled by the full range of 16 bits, and not by each brightest pixel.
        image = np.concatenate([image, few])
        for number, one in enumerate(few):
            files.append(str(tmp_path / f"deep{number}.png"))
            save(one.astype(np.uint16) * 257, files[-1])
    if test_set.files is not None:  # Their own files must give the same.
        image = np.concatenate([image, few])
        files += [f"{tmp_path}/photos/{file}" for file in test_set.files[:NUM_FILES]]
    capsys.readouterr()
    command = ["--workdir", str(tmp_path / "run"), "--json", *files]
    assert predict.main(command) == 0
    answers = json.loads(capsys.readouterr().out)
    assert [answer["file"] for answer in answers] == files
    for k, (run, given, prediction) in enumerate(seen.copy()):
        np.testing.assert_array_equal(given, image[k : k + 1])
        expected = run.predict(image[k])
        np.testing.assert_array_equal(prediction.length, expected.length)
        lengths = [answers[k]["lengths"][of] for of in run.class_names]
        assert lengths == [round(length, 4) for length in expected.length[0].tolist()]
    assert np.ptp(test_set.image[0]) > 0
