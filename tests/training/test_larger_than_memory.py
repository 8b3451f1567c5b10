"""Images on disk make the run that the same images in memory make, bit for bit."""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import tiny

from capsjax import config as configs
from capsjax.data import disk
from capsjax.data.augment import Photo
from capsjax.training.trainer import train

pytestmark = pytest.mark.usefixtures("without_estimate")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of the caches; several parts for a few images."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(disk, "_LEAST_BYTES", 5 * 28 * 28 * 3)
    return tmp_path / "cache" / "capsjax" / "images"


def save(path, seed, size=(40, 30)):
    """A picture of noise, which no two decoders scale alike by chance."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path):
    """A folder of 27, 20 and 13 images in three classes."""
    folder = tmp_path / "photos"
    for label, number in enumerate((27, 20, 13)):
        for n in range(number):
            suffix = "jpg" if n % 2 else "png"
            save(folder / f"class{label}" / f"{n:02d}.{suffix}", 100 * label + n)
    return folder


def config(folder, placement, **options):
    """Two epochs of four steps, on a share of the images, validated, weighted."""
    one = tiny(data_placement=placement, steps_per_dispatch=3, eval_batch_size=5)
    one.data = configs.Data(
        "image_folder",
        str(folder),
        image_size=28,
        **{
            "num_train": 35,
            "num_validation": 7,
            "class_weights": "balanced",
            "crop": 24,
            **options,
        },
    )
    one.augmentation = Photo()
    return one


def lines(workdir):
    """The metrics without the clock."""
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]


def weights(run):
    return jax.tree.leaves(jax.tree.map(np.asarray, run.params))


def test_a_run_from_disk_is_the_run_from_memory(photos, tmp_path, cache):
    runs = {
        placement: train(config(photos, placement), tmp_path / placement)
        for placement in ("host", "disk")
    }
    kept = {name: lines(tmp_path / name) for name in runs}
    assert len(kept["host"]) == 7  # Two calls and a validation an epoch, and the test.
    assert kept["disk"] == kept["host"]
    for one, other in zip(*map(weights, runs.values()), strict=True):
        np.testing.assert_array_equal(one, other)
    about = [json.loads((tmp_path / n / "dataset.json").read_text()) for n in runs]
    assert about[0] == about[1]
    # Training and test images, in parts.
    assert len([*cache.glob("*/*.pixels")]) > 8
