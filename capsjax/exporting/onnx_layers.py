"""Layers without capsules as ONNX operators: features are ``[b, channels, h, w]``."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from capsjax.exporting.onnx_graph import Value
from capsjax.layers import Stem

# As in Flax, and in ``capsjax.layers.stem``.
_EPSILON = 1e-5


def convolve(
    image: Value,
    name: str,
    layer: Mapping[str, np.ndarray],
    bias: Any = "",
    *,
    factor: float = 1.0,
    stride: int = 1,
    pad: str = "VALID",
    group: int = 1,
) -> Value:
    """Adds a convolution, with a bias if there is one."""
    kernel = factor * layer["kernel"].transpose(3, 2, 0, 1)
    weight = image.graph.weight(f"{name}/kernel", kernel, axis=0)
    options = {"strides": [stride, stride], "auto_pad": pad, "group": group}
    return image.apply("Conv", weight, bias, **options)


def connect(hidden: Value, name: str, layers: Any) -> Value:
    """Adds fully connected layers, with a ReLU between them."""
    for n, layer in enumerate(layers):
        if n:
            hidden = hidden.apply("Relu")
        label = f"{name}Dense_{n}/kernel"
        weight = hidden.graph.weight(label, layer["kernel"], axis=1)
        hidden = hidden.apply("Gemm", weight, layer["bias"])
    return hidden


def normalise(
    hidden: Value,
    layer: Mapping[str, np.ndarray],
    seen: Mapping[str, np.ndarray],
    *,
    epsilon: float = _EPSILON,
) -> Value:
    """Adds a batch normalisation by the statistics of training, channel by channel."""
    factor, shift = as_factor(layer, seen, epsilon=epsilon)
    return hidden * factor[:, None, None] + shift[:, None, None]


def as_factor(
    layer: Mapping[str, np.ndarray],
    seen: Mapping[str, np.ndarray],
    *,
    epsilon: float = _EPSILON,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a batch normalisation as a factor and a term of each channel."""
    factor = layer["scale"] / np.sqrt(seen["var"] + epsilon)
    return factor, layer["bias"] - seen["mean"] * factor


def convolve_stem(
    stem: Stem, variables: Mapping[str, Any], name: str, image: Value
) -> Value:
    """Adds the convolutions of a :class:`capsjax.layers.ConvStem`."""
    weights = variables["params"][name]
    statistics = variables.get("batch_stats", {}).get(name, {})

    def norm(x: Value, own: str) -> Value:
        if not stem.batch_norm:
            return x
        return normalise(x, weights[own], statistics[own])

    def conv(x: Value, own: str) -> Value:
        bias = weights[f"{own}_bias"]
        x = convolve(x, f"{name}/{own}", weights[own], bias, pad="SAME_UPPER")
        return x.apply("Relu")

    x, channels = conv(image.transpose(0, 3, 1, 2), "first"), stem.features[0]
    for n, (features, pool) in enumerate(zip(stem.features, stem.pools, strict=True)):
        if features != channels:
            x, channels = conv(norm(x, f"widen{n}_norm"), f"widen{n}"), features
        if pool > 1:
            window = [pool, pool]
            x = x.apply("MaxPool", kernel_shape=window, strides=window, ceil_mode=1)
        z = norm(x, f"stage{n}_norm")
        x = conv(z, f"stage{n}")
        if stem.residual:
            x = z + x
    return norm(x, "last_norm")
