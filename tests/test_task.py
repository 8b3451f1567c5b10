"""What is learnt from what, and what does not go together."""

import dataclasses

import numpy as np
import pytest
from tiny import pairs, tiny

from capsjax import config as configs
from capsjax import task
from capsjax.data import Dataset, load
from capsjax.models import BaselineCNN


def made_task(monkeypatch, dataset, **changes):
    """The task on a data set of this process, with fields of the config changed."""
    monkeypatch.setattr(task, "load", lambda *_, **__: dataset)
    config = tiny()
    config.data = configs.Data(num_validation=0)
    for name, value in changes.items():
        section, _, field = name.rpartition("__")
        setattr(getattr(config, section) if section else config, field, value)
    configs.validate(config)
    return task.make_task(config)


def digits(number):
    return load("mnist", "test").subset(np.arange(number))


@pytest.mark.parametrize(("number", "held_out"), [(59, 5), (9, 1)])
def test_a_tenth_of_the_images_is_held_out(monkeypatch, number, held_out):
    made = made_task(monkeypatch, digits(number), data__num_validation=-1)
    assert len(made.validation_set) == held_out
    assert len(made.train_set) == number - held_out


def test_the_network_is_for_the_crops(monkeypatch):
    made = made_task(monkeypatch, digits(20), data__crop=20)
    assert made.model.image_shape == (20, 20, 1)
    assert made.train_set.image_shape == (28, 28, 1)


def test_the_data_set_is_asked_for_as_the_config_says(monkeypatch):
    asked = []

    def load_set(*arguments, **options):
        asked.append((arguments, options))
        return digits(20)

    monkeypatch.setattr(task, "load", load_set)
    config = tiny()
    config.data = configs.Data("image_folder", "photos", 28, num_validation=0)
    task.make_task(config)
    options = {"path": "photos", "image_size": 28, "max_bytes": 16 * 10**9}
    assert asked == [
        (("image_folder", "train"), options),
        (("image_folder", "test"), options),
    ]


def test_how_many_classes_an_image_shows_is_told(monkeypatch):
    assert made_task(monkeypatch, digits(20)).num_shown == 1
    two = pairs(20)
    assert made_task(monkeypatch, two).num_shown == 2
    without = dataclasses.replace(two, source=None)
    assert made_task(monkeypatch, without).num_shown is None


WRONG = [
    (digits, {"data__crop": 29}, "data.crop=29 is more than images of 28x28"),
    (digits, {"data__max_shift": 28}, "data.max_shift=28 moves images of 28x28 out"),
    (pairs, {"model__name": "cnn"}, "model.name=cnn names one class an image"),
    (digits, {"stop_at": 0.9}, "stop_at=0.9 is a validation accuracy, and must be 0"),
    (digits, {"data__num_validation": 20}, "num_validation=20 leaves none of the 20"),
    (digits, {"data__num_train": 21}, "data.num_train=21 is more than the 20"),
]


@pytest.mark.parametrize(("make", "changes", "told"), WRONG)
def test_what_does_not_go_together_is_told(monkeypatch, make, changes, told):
    with pytest.raises(configs.ConfigError, match=told):
        made_task(monkeypatch, make(20), **changes)


def test_the_baseline_is_chosen_by_its_name(monkeypatch):
    made = made_task(monkeypatch, digits(20), model__name="cnn")
    assert isinstance(made.model, BaselineCNN)


def test_size_and_memory_are_told_before_there_is_any(monkeypatch, capsys):
    made_task(monkeypatch, digits(20))
    assert "30,784 parameters; training takes about 0.0" in capsys.readouterr().out


def test_a_network_that_does_not_fit_into_memory_is_refused(monkeypatch):
    photos = Dataset(
        "photos",
        np.zeros((8, 256, 256, 3), np.uint8),
        np.zeros(8, np.int32),
        ("cat", "dog"),
    )
    told = (
        r"max_gigabytes=16.0: training needs about \d+\.\d\d GB .*\. Lower "
        r"config.data.image_size, .*model.primary_types or config.batch_size, raise"
    )
    with pytest.raises(configs.ConfigError, match=told):
        made_task(monkeypatch, photos, model=configs.Model(num_iterations=1))
