"""Configs that former editions wrote become the same values of now."""

import copy

import pytest

from capsjax import CapsNet, DynamicRouting, UniformRouting
from capsjax import config as configs
from capsjax.data.augment import Shift
from capsjax.losses import AutoLoss, MarginLoss
from capsjax.models import BaselineCNN

# As the second edition's first months wrote it (ac53f87), with no value at its default.
FORMER = {
    "experiment": "mnist",
    "variant": "mine",
    "seed": 3,
    "num_epochs": 4,
    "batch_size": 64,
    "data": {"name": "mnist", "num_train": 100, "max_shift": 1, "crop": 20},
    "model": {
        "name": "capsnet",
        "conv_features": 8,
        "primary_types": 2,
        "primary_relu": True,
        "routing": "dynamic",
        "num_iterations": 2,
        "routing_bias": True,
        "none_of_the_above": True,
        "stop_gradient": True,
        "decoder_features": [5, 6],
        "dropout": 0.3,
        "compute_dtype": "bfloat16",
        "initializers": {
            "conv": "he_normal",
            "primary": "zeros",
            "weight": "normal(0.1)",
            "decoder": "zeros",
            "reconstruction": "he_normal",
            "bias": "constant(0.1)",
            "routing_bias": 0.2,
        },
    },
    "loss": {
        "present": 0.9,
        "absent": 0.1,
        "down_weight": 0.5,
        "margin_weight": 0.05,
        "reconstruction_weight": 0.1,
        "reconstruction_reduction": "mean",
    },
    "optimizer": {"learning_rate": 0.01, "b2": 0.99, "average": 0.9},
}


def former(path="", value=None):
    """The config of then, with another value in one field."""
    stored = copy.deepcopy(FORMER)
    if path:
        section, name = path.split(".")
        stored[section][name] = value
    return configs.from_dict(stored)


def test_every_field_finds_its_place():
    assert former() == configs.Config(
        experiment="mnist",
        variant="mine",
        seed=3,
        num_epochs=4,
        batch_size=64,
        data=configs.Data("mnist", num_train=100, crop=20),
        augmentation=Shift(max_shift=1),
        model=CapsNet(
            conv_features=8,
            primary_types=2,
            primary_relu=True,
            routing=DynamicRouting(
                num_iterations=2, bias=0.2, none_of_the_above=True, stop_gradient=True
            ),
            decoder_features=(5, 6),
            compute_dtype="bfloat16",
            conv_init="he_normal",
            primary_init="zeros",
            weight_init="normal(0.1)",
            decoder_init="zeros",
            reconstruction_init="he_normal",
            bias_init="constant(0.1)",
        ),
        loss=AutoLoss(
            weight=0.05, reconstruction_weight=0.1, reconstruction_reduction="mean"
        ),
        optimizer=configs.Adam(learning_rate=0.01, b2=0.99, average=0.9),
    )


@pytest.mark.parametrize(
    ("path", "value", "field", "expected"),
    [
        ("model.routing_bias", False, "model.routing.bias", None),
        ("model.routing", "uniform", "model.routing", UniformRouting(bias=0.2)),
        ("data.max_shift", 0, "augmentation", Shift(max_shift=0)),
        (
            *("loss.present", 0.8, "loss"),
            MarginLoss(
                present=0.8,
                weight=0.05,
                reconstruction_weight=0.1,
                reconstruction_reduction="mean",
            ),
        ),
        # The loss of the baseline had no weight.
        (
            *("model.name", "cnn", "loss"),
            AutoLoss(reconstruction_weight=0.1, reconstruction_reduction="mean"),
        ),
        # The baseline had no other field.
        (
            *("model.name", "cnn", "model"),
            BaselineCNN(
                dropout=0.3, compute_dtype="bfloat16", bias_init="constant(0.1)"
            ),
        ),
    ],
)
def test_what_differs_is_found_elsewhere(path, value, field, expected):
    found = former(path, value)
    for name in field.split("."):
        found = getattr(found, name)
    assert found == expected


def test_a_config_of_now_is_not_translated():
    config = configs.Config(loss=MarginLoss(present=0.8), model=BaselineCNN())
    assert configs.from_dict(configs.to_dict(config)) == config


@pytest.mark.parametrize("section", ["model", "loss", "data", "optimizer"])
def test_a_damaged_section_is_one_line(section):
    stored = {**copy.deepcopy(FORMER), section: 3}
    with pytest.raises(configs.ConfigError, match=f"config.{section} must be an obj"):
        configs.from_dict(stored)
