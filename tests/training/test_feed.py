"""What one call of the device program takes, and that it makes no other run."""

import dataclasses
import json

import flax.linen as nn
import jax
import numpy as np
import pytest
from bars import bars
from tiny import made, pairs, tiny

from capsjax import Routed, train, training
from capsjax import config as configs
from capsjax.data import Dataset, load
from capsjax.losses import MarginLoss
from capsjax.runtime import platforms
from capsjax.runtime.devices import sharded
from capsjax.runtime.platforms import Platform
from capsjax.storage.checkpoints import Checkpoints
from capsjax.storage.workdir import Workdir
from capsjax.training import trainer
from capsjax.training.feed import (
    Feed,
    chunk_end,
    is_held,
    stack_batches,
    steps_per_dispatch,
)
from capsjax.training.memory import estimate_memory

pytestmark = pytest.mark.usefixtures("without_estimate")

ACCELERATOR = Platform(
    **{
        **platforms.platform("cpu")._asdict(),
        "steps_per_dispatch": 256,
        "calls_ahead": 1,
        "largest_held_data_bytes": 2**20,
    }
)


@pytest.fixture
def as_on_an_accelerator(monkeypatch):
    monkeypatch.setattr(platforms, "PLATFORMS", {"cpu": ACCELERATOR})


def run(config, path):
    """The lines of metrics without the clock, and the last state."""
    train.train(config, Workdir(path))
    rows = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    checkpoints = Checkpoints(path / "checkpoints", read_only=True)
    state = checkpoints.restore(checkpoints.latest, made(config)[2])
    checkpoints.close()
    rows = [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]
    return rows, jax.tree.map(np.asarray, (state.params, state.opt_state))


def assert_same(one, other):
    assert one[0] == other[0]
    jax.tree.map(np.testing.assert_array_equal, one[1], other[1])


@pytest.mark.slow
def test_images_on_the_devices_make_the_same_run_bit_for_bit(tmp_path):
    runs = {}
    for placement in ("host", "device"):
        config = tiny(data_placement=placement, steps_per_dispatch=3)
        runs[placement] = run(config, tmp_path / placement)
    assert len(runs["host"][0]) > 5
    assert_same(runs["host"], runs["device"])


@pytest.mark.variant
def test_outcomes_that_are_read_late_make_the_same_run(tmp_path, monkeypatch):
    config = tiny()
    at_once = run(config, tmp_path / "at once")
    events = []

    def noted(name):
        method = getattr(trainer.Trainer, name)

        def note(self, *arguments):
            if name == "_read":
                events.append(("read", arguments[0].steps.start))
            else:
                events.append(("start", self.step))
            return method(self, *arguments)

        monkeypatch.setattr(trainer.Trainer, name, note)

    noted("_read")
    noted("_train_chunk")
    ahead = platforms.platform("cpu")._replace(calls_ahead=1)
    monkeypatch.setattr(platforms, "PLATFORMS", {"cpu": ahead})
    assert_same(run(config, tmp_path / "late"), at_once)
    # Of an epoch's calls, of three steps and of one each, each but the first is
    # started before the one before it is read; all are read before the validation.
    starts, reads = [0, 3, 4], [("read", 0), ("read", 3), ("read", 4)]
    assert events[:6] == [
        ("start", 0),
        ("start", 3),
        reads[0],
        ("start", 4),
        *reads[1:],
    ]
    assert len(events) == 4 * len(starts)


@pytest.mark.slow
def test_a_bad_step_that_is_read_late_ends_the_run(tmp_path, as_on_an_accelerator):
    config = tiny()
    config.steps_per_dispatch = 1
    # Sums of squares overflow at the first step; every later one is skipped alike.
    config.loss = dataclasses.replace(config.loss, weight=1e30)
    with pytest.raises(FloatingPointError, match=r"step 1 of 10: not finite"):
        train.train(config, Workdir(tmp_path))
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))


@pytest.mark.slow
def test_a_run_goes_on_with_another_placement_and_other_calls(tmp_path):
    config = tiny()
    train.train(config, Workdir(tmp_path))
    config.num_epochs, config.steps_per_dispatch = 3, 5
    config.data_placement = "device"
    result = train.train(config, Workdir(tmp_path)).result
    assert result["test_of_last"]["step"] == 15


@pytest.mark.parametrize(
    ("steps_per_epoch", "number"),
    [(429, 143), (430, 215), (107, 107), (256, 256), (257, 256), (1, 1), (859, 256)],
)
def test_the_platform_chooses_a_number_that_divides_the_epoch(
    steps_per_epoch, number, as_on_an_accelerator
):
    assert steps_per_dispatch(configs.Config(), steps_per_epoch) == number
    chosen = configs.Config(steps_per_dispatch=7)
    assert steps_per_dispatch(chosen, steps_per_epoch) == 7


def test_images_lie_on_an_accelerator_if_there_is_room(as_on_an_accelerator):
    config, digits = configs.Config(), load("mnist", "test")
    assert not is_held(config, digits)
    assert is_held(config, digits.subset(np.arange(1000)))
    assert not is_held(config, load("multi_mnist"))
    assert not is_held(
        configs.Config(data_placement="host"), digits.subset(np.arange(1))
    )


def test_images_that_are_made_in_each_epoch_cannot_lie_on_the_device():
    config = configs.Config(data_placement="device")
    with pytest.raises(configs.ConfigError, match=r"device.*multi_mnist.*auto or host"):
        is_held(config, load("multi_mnist"))


def test_what_lies_on_the_devices_is_counted():
    digits = load("mnist", "test").subset(np.arange(100))
    model = made(tiny())[0]
    on_host, on_device = (
        estimate_memory(
            model,
            MarginLoss(),
            configs.Config(
                batch_size=8, steps_per_dispatch=1, data_placement=placement
            ),
            [digits],
        )
        for placement in ("host", "device")
    )
    image = 28 * 28 + 4
    assert on_host.data * 1e9 == pytest.approx((100 + 2 * 8) * image)
    assert on_device.data * 1e9 == pytest.approx((100 + 4 * 100) * image)


@pytest.mark.parametrize("label", ["one class", "several"])
def test_batches_that_are_gathered_on_the_devices_are_those_of_the_host(label):
    digits = pairs(40) if label == "several" else load("mnist", "test")
    feeds = {
        placement: Feed(tiny(data_placement=placement), digits)
        for placement in ("host", "device")
    }
    steps = feeds["host"].next_steps(0)
    assert feeds["device"].next_steps(0) == steps == range(5)
    host, device = (feed.batches(steps) for feed in feeds.values())
    assert device.image.sharding == sharded()
    jax.tree.map(np.testing.assert_array_equal, host, device)
    assert (host.source is None) == (label == "one class")


def test_a_batch_is_taken_from_its_epoch():
    epochs = []

    class Generated(Dataset):
        def in_epoch(self, seed, epoch):
            epochs.append((seed, epoch))
            return self

    digits = load("mnist", "test").subset(np.arange(20))
    generated = Generated(digits.name, digits.image, digits.label, digits.class_names)
    stack_batches(generated, range(5, 7), batch_size=8, seed=4)
    assert epochs == [(4, 2)]


@pytest.mark.parametrize("steps_per_dispatch", [1, 3, 5, 100])
def test_where_a_chunk_ends_depends_on_the_absolute_step_alone(steps_per_dispatch):
    options = {"steps_per_dispatch": steps_per_dispatch, "steps_per_epoch": 13}
    ends = {chunk_end(step, **options) for step in range(39)}
    assert {13, 26, 39} <= ends
    for step in range(39):
        end = chunk_end(step, **options)
        assert step < end <= min(step + steps_per_dispatch, (step // 13 + 1) * 13)
        assert all(chunk_end(within, **options) == end for within in range(step, end))


class Convolved(nn.Module):
    """Somebody else's network, with Flax's convolutions."""

    image_shape: tuple[int, int, int] = (0, 0, 0)
    num_classes: int = 0

    activation_kind = "logit"

    @nn.compact
    def encode(self, image, *, is_training=False):
        hidden = nn.relu(nn.Conv(2, (3, 3), strides=4)(image))
        hidden = hidden.reshape(*hidden.shape[:-3], -1)
        return Routed(None, nn.Dense(self.num_classes)(hidden), None)


def test_convolutions_of_xla_are_kept_out_of_loops(tmp_path, monkeypatch, capsys):
    """XLA:CPU computes them many times as slowly in a loop."""
    compile, texts = jax.stages.Lowered.compile, []

    def note(lowered, *options):
        program = compile(lowered, *options)
        texts.append(program.as_text())
        return program

    monkeypatch.setattr(jax.stages.Lowered, "compile", note)
    config = tiny()
    config.model = Convolved()
    config.data = configs.Data(num_validation=0)
    run = training.train(config, tmp_path, (bars(40), bars(16)))
    lines = [line for text in texts for line in text.splitlines()]
    lines = [line for line in lines if " convolution(" in line]
    assert lines
    assert not any("while/body" in line for line in lines)
    assert "convolutions of XLA" in capsys.readouterr().out
    lines = run.workdir.read_metrics()
    assert [one["step"] for one in lines if one["kind"] == "train"] == [*range(1, 11)]
