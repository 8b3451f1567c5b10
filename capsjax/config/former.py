"""Names of former editions: translated in stored runs, refused as flags."""

import copy
from typing import Any

from capsjax.config.values import ConfigError

# Fields that moved.
_MOVED = {
    "data.max_shift": "augmentation.max_shift",
    "model.name": "model",
    "model.num_iterations": "model.routing.num_iterations",
    "model.none_of_the_above": "model.routing.none_of_the_above",
    "model.stop_gradient": "model.routing.stop_gradient",
    "model.routing_bias": "model.routing.bias",
    "model.initializers.routing_bias": "model.routing.bias",
    **{
        f"model.initializers.{name}": f"model.{name}_init"
        for name in ("conv", "primary", "weight", "decoder", "reconstruction", "bias")
    },
    "loss.margin_weight": "loss.weight",
}
# Former names of capsjax.config, and what replaces them.
NAMES = {
    "make_smoke": "capsjax.config.recipes.smoke",
    "require_variant": "capsjax.config.recipes.choose",
    "Model": "capsjax.CapsNet, or another network",
    "Initializers": "the fields conv_init, primary_init ... of capsjax.CapsNet",
    "Loss": "capsjax.losses.AutoLoss, or another loss",
}
# Initializers before "scaled": one deviation for networks of any size.
INITIALIZERS = {
    "conv_init": "normal(0.064)",
    "primary_init": "normal(0.0098)",
    "weight_init": "normal(0.02)",
}
# Fields of the section ``model`` that the baseline had, too.
_OF_CNN = ("dropout", "compute_dtype", "bias_init")
_OF_ROUTING = ("num_iterations", "bias", "none_of_the_above", "stop_gradient")
_MARGINS = {"present": 0.9, "absent": 0.1, "down_weight": 0.5}


def require_no_former_name(name: str, text: str) -> None:
    """Raises for a flag of a former edition.

    Raises:
        ConfigError: With the flag that replaces it.
    """
    if name not in _MOVED:
        return
    now = _MOVED[name]
    if name == "model.routing_bias":
        text = "0.1" if text.lower() in ("true", "1") else "none"
    raise ConfigError(
        f"config.{name} is config.{now} now: write --config.{now}={text}."
    )


def require_no_former_field(config: Any) -> None:
    """Raises if a config file sets a field of a former edition.

    Raises:
        ConfigError: With the field that replaces it.
    """
    for section in ("data", "model"):
        for name, value in vars(getattr(config, section)).items():
            if value is not None:  # Flax gives every module a name, which is None.
                require_no_former_name(f"{section}.{name}", str(value))


def translated(stored: dict[str, Any]) -> dict[str, Any]:
    """Rewrites a config of a former edition; returns one of this edition unchanged.

    A former edition's section ``model`` has no kind, but perhaps the field ``name``.

    Raises:
        ConfigError: If a section has no fields.
    """
    for name in _FORMER_SECTIONS & stored.keys():
        _require_object(f"config.{name}", stored[name])
    if {"kind", "class"} & stored.get("model", {}).keys():
        return stored
    stored = copy.deepcopy(stored)
    _translate_model(stored)
    _translate_loss(stored)
    stored.setdefault("optimizer", {})["kind"] = "adam"
    if "max_shift" in stored.get("data", {}):
        shift = stored["data"].pop("max_shift")
        stored["augmentation"] = {"kind": "shift", "max_shift": shift}
    return stored


def _require_object(path: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must be an object with fields, got {value!r}.")


_FORMER_SECTIONS = {"data", "model", "loss", "optimizer"}


def _translate_model(stored: dict[str, Any]) -> None:
    model = stored.setdefault("model", {})
    kind = model.pop("name", "capsnet")
    starts = model.pop("initializers", {})
    _require_object("config.model.initializers", starts)
    bias_start = starts.pop("routing_bias", 0.1)
    model.update({f"{name}_init": start for name, start in starts.items()})
    bias = bias_start if model.pop("routing_bias", False) else None
    routing = {"kind": model.pop("routing", "dynamic"), "bias": bias}
    for name in _OF_ROUTING:
        if name in model:
            routing[name] = model.pop(name)
    if kind == "cnn":
        # The baseline's other fields had no effect.
        stored["model"] = {"kind": kind}
        stored["model"] |= {name: model[name] for name in _OF_CNN if name in model}
        return
    model.pop("dropout", None)
    if routing["kind"] == "uniform":
        routing = {name: routing[name] for name in ("kind", "bias")}
    stored["model"] = {"kind": kind, **model, "routing": routing}


def _translate_loss(stored: dict[str, Any]) -> None:
    loss = stored.setdefault("loss", {})
    margins = {name: loss.pop(name) for name in _MARGINS if name in loss}
    weight = loss.pop("margin_weight", 1.0)
    loss["kind"] = "auto"
    if stored["model"]["kind"] == "cnn":
        return  # Its loss had neither margins nor a weight.
    loss["weight"] = weight
    if {**_MARGINS, **margins} != _MARGINS:
        loss.update(margins, kind="margin")
