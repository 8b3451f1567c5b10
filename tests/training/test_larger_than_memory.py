"""Images on disk make the run that the same images in memory make, bit for bit."""

import json
import threading

import jax
import numpy as np
import pytest
from marks import variants
from PIL import Image
from test_hosts import ended, free_port, python
from tiny import TINY_MODEL, tiny

from capsjax import config as configs
from capsjax import evaluate, predict
from capsjax.analysis.images import load_test_set
from capsjax.data import disk
from capsjax.data.augment import Photo
from capsjax.training import ahead, feed, task
from capsjax.training.memory import estimate_memory
from capsjax.training.sets import make_sets
from capsjax.training.trainer import train

pytestmark = pytest.mark.usefixtures("without_estimate")

ESTIMATE = task._is_beyond_memory


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


def assert_no_thread_reads_on():
    for thread in threading.enumerate():
        if "grain" in thread.name:
            thread.join(10)
            assert not thread.is_alive()


@pytest.mark.slow
def test_a_run_from_disk_is_the_run_from_memory(photos, tmp_path, cache, capsys):
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
    assert_no_thread_reads_on()
    # Evaluated alike.
    capsys.readouterr()
    printed = []
    for name in runs:
        arguments = ["--workdir", str(tmp_path / name), "--no-figures"]
        assert evaluate.main(arguments) == 0
        printed.append(capsys.readouterr().out.splitlines())
    # All but the folders.
    assert len(printed[0]) > 5
    differing = [
        n for n, pair in enumerate(zip(*printed, strict=True)) if len({*pair}) > 1
    ]
    assert all(str(tmp_path) in printed[0][n] for n in differing)
    # Predicts the test images' files as their pixels from the disk.
    run = runs["disk"]
    test_set = load_test_set([run], None)
    expected = run.predict(test_set.image[np.arange(5)])
    files = [str(photos / file) for file in test_set.files[:5]]
    assert predict.main(["--workdir", str(tmp_path / "disk"), "--json", *files]) == 0
    answers = json.loads(capsys.readouterr().out)
    for answer, lengths in zip(answers, expected.length.tolist(), strict=True):
        named = zip(run.class_names, lengths, strict=True)
        assert answer["lengths"] == {name: round(one, 4) for name, one in named}


class _StopError(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("rows", [4, *variants(1)])
def test_a_stopped_run_goes_on_from_disk_exactly(photos, tmp_path, rows):
    """It stops in the first epoch, and in the second: in its last checkpoint's."""

    def stop(row):
        seen.append(row)
        if len(seen) == rows:
            raise _StopError

    seen = []
    whole = train(config(photos, "disk"), tmp_path / "whole")
    with pytest.raises(_StopError):
        train(config(photos, "disk"), tmp_path / "stopped", on_metrics=stop)
    again = train(config(photos, "disk"), tmp_path / "stopped")
    assert lines(tmp_path / "stopped") == lines(tmp_path / "whole")
    for one, other in zip(weights(again), weights(whole), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.variant
def test_two_hosts_train_from_disk_as_from_memory(photos, tmp_path):
    """Both fill one cache at once."""

    def trained(placement):
        workdir, port = tmp_path / placement, free_port()
        pair = [
            python(
                *("-m", "capsjax.train", "--config=experiments/mnist.py:smoke"),
                *("--config.data.name=image_folder", f"--config.data.path={photos}"),
                *("--config.data.image_size=28", "--config.data.num_validation=6"),
                "--config.data.num_train=0",
                *("--config.batch_size=8", "--config.num_epochs=2", *TINY_MODEL),
                *(f"--config.data_placement={placement}", "--num_cpu_devices=1"),
                *(f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2"),
                *(f"--process_id={process}", f"--workdir={workdir}"),
            )
            for process in range(2)
        ]
        ended(pair, 0)
        return lines(workdir)

    in_memory = trained("host")
    assert len(in_memory) > 4
    assert trained("disk") == in_memory


# ---- batches


def sets_of(photos, placement):
    return make_sets(config(photos, placement), "by_class", None)


def test_batches_from_disk_are_those_of_memory_from_any_step_on(photos):
    for one, other in zip(
        *(sets_of(photos, placement) for placement in ("host", "disk")), strict=True
    ):
        assert other.is_on_disk
        np.testing.assert_array_equal(other.image, one.image)
        np.testing.assert_array_equal(other.label, one.label)
    feeds = {}
    for placement in ("host", "disk"):
        train_set, *_ = sets_of(photos, placement)
        feeds[placement] = feed.Feed(config(photos, placement), train_set)
    # A call repeated, one cut short, one further on and one from an earlier step.
    for steps in ((0, 3), (0, 3), (0, 1), (1, 2), (3, 4), (4, 7), (7, 8), (2, 3)):
        one, other = (feed.batches(range(*steps)) for feed in feeds.values())
        assert one.image.shape[:2] == (jax.device_count(), len(range(*steps)))
        for a, b in zip(one[:2], other[:2], strict=True):
            np.testing.assert_array_equal(a, b)
    feeds["disk"].close()
    assert_no_thread_reads_on()


def test_each_host_reads_its_share_alone(photos, monkeypatch):
    train_set, *_ = sets_of(photos, "disk")
    read, rows_of = [], disk.ImagesOnDisk._rows

    def noted(self, index):
        rows = rows_of(self, index)
        read.append(rows)
        return rows

    monkeypatch.setattr(disk.ImagesOnDisk, "_rows", noted)

    def second_half(array, *, axis):
        return np.moveaxis(np.split(array, 2, axis)[1][np.newaxis], 0, 0)

    monkeypatch.setattr(feed, "my_shares", second_half)
    one = config(photos, "disk")
    from_disk = feed.Feed(one, train_set)
    batch = from_disk.batches(range(0, 3))
    from_disk.close()
    assert batch.image.shape == (1, 3, 4, 28, 28, 3)
    assert {rows.size for rows in read} == {4}


# ---- placements


def test_a_placement_that_does_not_fit_the_images_is_refused(photos):
    train_set, *_ = sets_of(photos, "disk")
    with pytest.raises(configs.ConfigError, match="placement=device, but the images"):
        feed.is_held(config(photos, "device"), train_set)
    in_memory, *_ = sets_of(photos, "host")
    with pytest.raises(configs.ConfigError, match="placement=disk, but the images"):
        feed.is_held(config(photos, "disk"), in_memory)


def test_a_set_beyond_the_memory_limit_is_read_from_disk_unasked(photos):
    one = config(photos, "auto")
    one.max_gigabytes = 60 * 28 * 28 * 3 / 1e9
    assert not make_sets(one, "by_class", None)[0].is_on_disk
    one.max_gigabytes /= 2
    train_set, _, test_set = make_sets(one, "by_class", None)
    assert train_set.is_on_disk
    assert not test_set.is_on_disk
    assert not feed.is_held(one, train_set)


def test_images_that_leave_too_little_memory_are_read_from_disk_unasked(
    photos, capsys, monkeypatch
):
    monkeypatch.setattr(task, "_is_beyond_memory", ESTIMATE)
    one = config(photos, "auto")
    one.steps_per_dispatch = 1
    whole = task.make_task(one)
    assert not whole.train_set.is_on_disk
    used = estimate_memory(whole.model, whole.loss, one, whole[:3])
    one.max_gigabytes = used.total - used.data / 4
    assert one.max_image_bytes > len(whole.train_set) * 28 * 28 * 3
    capsys.readouterr()
    found = task.make_task(one)
    assert found.train_set.is_on_disk
    assert "leaves too little for the training" in capsys.readouterr().out
    assert found.about() == whole.about()
    # A placement that was asked for stays.
    one.data_placement = "host"
    with pytest.raises(configs.ConfigError, match="leave the images on disk"):
        task.make_task(one)
    # Nothing helps where the network alone is too much.
    one.data_placement, one.max_gigabytes = "auto", used.state
    with pytest.raises(configs.ConfigError, match=r"Lower [^:]*, or raise") as error:
        task.make_task(one)
    assert "disk" not in str(error.value)


# ---- waiting


class _Clock:
    """A clock that the reading of a batch, or its computation, sets forward."""

    def __init__(self, computing):
        self.now, self.computing = 0.0, computing

    def monotonic(self):
        return self.now

    def thread_time(self):
        return self.now * self.computing


@pytest.mark.parametrize(
    ("reading", "is_idle", "computing", "expected"),
    [
        (0.1, True, 0.1, ["wait 50% of the time", "the disk limits"]),
        (0.1, True, 0.9, ["wait 50% of the time", "the processors limit"]),
        (0.1, False, 0.1, None),  # The devices had enough to do.
        (0.01, True, 0.1, None),
    ],
)
def test_what_limits_is_printed_once_if_the_steps_wait_for_images(
    monkeypatch, capsys, reading, is_idle, computing, expected
):
    clock = _Clock(computing)
    monkeypatch.setattr(ahead, "time", clock)

    class Values:
        def __init__(self, function, first, stop, *, num_ahead):
            self.function, self.number = function, first

        def __next__(self):
            self.number += 1
            return self.function(self.number - 1)

    def read(steps):
        clock.now += reading
        return feed.Batch(np.zeros((1, len(steps), 2)), np.zeros((1, len(steps), 2)))

    monkeypatch.setattr(ahead, "Ahead", Values)
    batches = ahead.BatchesAhead(
        read, place="photos", num_steps=900, num_ahead=2, is_idle=lambda: is_idle
    )
    for step in range(900):
        batches.take(range(step, step + 1))
        clock.now += 0.1
    printed = capsys.readouterr().err.splitlines()
    if expected is None:
        assert not printed
        return
    (line,) = printed
    assert line.startswith("warning: photos: the steps ")
    assert all(part in line for part in expected)
