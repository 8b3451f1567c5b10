"""Networks as ONNX graphs: plain operators, for a batch of any size."""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx

from capsjax.exporting.errors import ExportError
from capsjax.exporting.functions import inputs, outputs
from capsjax.exporting.onnx_capsules import (
    Grid,
    class_capsules,
    convolve_capsules,
    primary,
    primary_capsules,
    route_capsules,
)
from capsjax.exporting.onnx_graph import Graph, Storage, Value
from capsjax.exporting.onnx_layers import connect, convolve, convolve_stem, normalise
from capsjax.exporting.onnx_routing import exponential_squash, squash
from capsjax.models import (
    BaselineCNN,
    CapsNet,
    EfficientCapsNet,
    ResidualCapsNet,
    StackedCapsNet,
    StemCapsNet,
    StemCNN,
)
from capsjax.models.efficient import EPSILON, LAST_STRIDE
from capsjax.models.network import can_draw
from capsjax.storage.run import Run
from capsjax.votes import num_windows


def models(run: Run, storage: Storage = "float32") -> dict[str, onnx.ModelProto]:
    """Returns the functions of a run as ONNX files, by name.

    Args:
        run: The run.
        storage: The type in which weights are stored.

    Raises:
        ExportError: If the network or its routing has no form in ONNX.
    """
    network: Any = run.model
    encode_network = _ENCODERS.get(type(network))
    if encode_network is None:
        raise ExportError(
            f"the network must be {' or '.join(one.__name__ for one in _ENCODERS)} for "
            f"ONNX, got {type(network).__name__}: export it as stablehlo."
        )
    variables = _as_numpy(run.params)
    weights = variables["params"]

    def encode(graph: Graph) -> dict[str, Value]:
        found = encode_network(network, variables, graph.input("image"))
        if run.activation_kind == "logit":
            activation = found["activation"]
            if run.num_shown == 1:
                found["activation"] = activation.apply("Softmax", axis=1)
            else:
                found["activation"] = activation.apply("Sigmoid")
        return found

    def decode(graph: Graph) -> dict[str, Value]:
        pose, mask = graph.input("pose"), graph.input("mask")
        return {"drawing": _decode(network, weights, pose, mask)}

    def whole(graph: Graph) -> dict[str, Value]:
        found = encode(graph)
        label = found["activation"].apply("ArgMax", axis=1, keepdims=0)
        found["label"] = label.apply("Cast", to=onnx.TensorProto.INT32)
        if can_draw(run.model):
            count = np.array([network.num_classes])
            mask = label.apply("OneHot", count, np.array([0.0, 1.0]), axis=1)
            found["drawing"] = _decode(network, weights, found["pose"], mask)
        return found

    parts = {"encode": encode, "decode": decode, "network": whole}
    made, given = {}, inputs(run, 1)
    for name, results in outputs(run).items():
        graph = Graph(storage)
        made[name] = graph.model(name, given[name], results, parts[name](graph))
    return made


def _as_numpy(weights: Any) -> Any:
    if isinstance(weights, Mapping):
        return {name: _as_numpy(one) for name, one in weights.items()}
    return np.asarray(weights, np.float32)


def _encode_capsnet(
    network: CapsNet, variables: Mapping[str, Any], image: Value
) -> dict[str, Value]:
    weights = variables["params"]
    features = convolve(
        *(image.transpose(0, 3, 1, 2), "conv", weights["conv"], weights["conv_bias"])
    ).apply("Relu")
    primary = weights["primary_caps"]
    s = convolve(
        *(features, "primary_caps/conv", primary["conv"], primary["bias"]),
        factor=network.primary_scale,
        stride=network.primary_stride,
    )
    if network.primary_relu:
        s = s.apply("Relu")
    window, step = network.primary_window
    i = network.primary_types * math.prod(
        1 + (side - window) // step for side in network.image_shape[:2]
    )
    capsules = squash(s.transpose(0, 2, 3, 1).reshape(0, i, network.primary_dim))
    return route_capsules(network.routing, weights["class_caps"], capsules, i)


def _encode_stem(
    network: StemCapsNet, variables: Mapping[str, Any], image: Value
) -> dict[str, Value]:
    weights = variables["params"]
    features = convolve_stem(network.stem, variables, "conv_stem", image)
    height, width = (-(-side // network.stem.step) for side in network.image_shape[:2])
    grid = Grid(height, width, network.primary_types, network.primary_dim)
    capsules = primary_capsules(features, weights["primary_caps"], grid)
    return route_capsules(
        *(network.routing, weights["class_caps"]),
        capsules.reshape(0, grid.size, grid.dim),
        grid.size,
    )


def _encode_stem_cnn(
    network: StemCNN, variables: Mapping[str, Any], image: Value
) -> dict[str, Value]:
    weights = variables["params"]
    features = convolve_stem(network.stem, variables, "stem", image)
    hidden = features.apply("ReduceMean", np.array([2, 3]), keepdims=0)
    layers = [weights[f"Dense_{n}"] for n in range(len(network.hidden_features) + 1)]
    return {"activation": connect(hidden, "", layers)}


def _encode_residual(
    network: ResidualCapsNet, variables: Mapping[str, Any], image: Value
) -> dict[str, Value]:
    weights, statistics = variables["params"], variables["batch_stats"]
    counts = {"Convolution": itertools.count(), "BatchNorm": itertools.count()}

    def convolve_next(hidden: Value, stride: int = 1) -> Value:
        """Convolves and normalises, with the next of each layer's weights."""
        conv, norm = (f"{kind}_{next(count)}" for kind, count in counts.items())
        hidden = convolve(hidden, conv, weights[conv], stride=stride, pad="SAME_UPPER")
        return normalise(hidden, weights[norm], statistics[norm])

    hidden = convolve_next(image.transpose(0, 3, 1, 2), network.stem_stride)
    hidden, channels = hidden.apply("Relu"), network.widths[0]
    rows, columns = (
        -(-side // network.stem_stride) for side in network.image_shape[:2]
    )
    for stage, width in enumerate(network.widths):
        for block in range(network.num_blocks):
            stride = 2 if stage and not block else 1
            branch = convolve_next(hidden, stride).apply("Relu")
            branch = convolve_next(branch)
            if stride > 1 or width != channels:
                hidden = convolve_next(hidden, stride)
            hidden, channels = (hidden + branch).apply("Relu"), width
            rows, columns = (-(-side // stride) for side in (rows, columns))
    own = weights["CapsuleHead_0"]
    grid = Grid(rows, columns, network.primary_types, network.primary_dim)
    capsules, presence = primary(network.routing, hidden, own["primary_caps"], grid)
    return class_capsules(
        *(network.routing, own["class_caps"], capsules, presence, grid)
    )


def _encode_stacked(
    network: StackedCapsNet, variables: Mapping[str, Any], image: Value
) -> dict[str, Value]:
    weights, statistics = variables["params"], variables.get("batch_stats", {})
    hidden = convolve(
        *(image.transpose(0, 3, 1, 2), "conv", weights["conv"], weights["conv_bias"]),
        stride=network.conv_stride,
    ).apply("Relu")
    height, width = network.image_shape[:2]
    for kernel, stride in (
        (network.conv_kernel, network.conv_stride),
        (network.primary_kernel, network.primary_stride),
    ):
        height, width = (
            num_windows(side, kernel, stride, "VALID") for side in (height, width)
        )
    grid = Grid(height, width, network.primary_types, network.dim)
    capsules, presence = primary(
        *(network.routing, hidden, weights["primary_caps"], grid),
        stride=network.primary_stride,
    )
    for n, own in enumerate(
        zip(
            network.layer_types,
            network.layer_kernels,
            network.layer_strides,
            strict=True,
        )
    ):
        name = f"conv_caps{n}"
        capsules, presence, grid = convolve_capsules(
            *(network, name, weights[name], statistics.get(name, {}), own),
            *(capsules, presence, grid),
        )
    return class_capsules(
        *(network.routing, weights["class_caps"], capsules, presence, grid),
        pose=network.pose,
        coordinates=network.coordinates,
    )


def _encode_efficient(
    network: EfficientCapsNet, variables: Mapping[str, Any], image: Value
) -> dict[str, Value]:
    weights, statistics = variables["params"], variables["batch_stats"]
    hidden = image.transpose(0, 3, 1, 2)
    last = len(network.conv_features)
    for n in range(last + 1):
        name = f"convs_{n}"
        own, seen = weights[name], statistics[name]["norm"]
        hidden = convolve(
            *(hidden, f"{name}/conv", own["conv"], own["bias"]),
            stride=LAST_STRIDE if n == last else 1,
        ).apply("Relu")
        hidden = normalise(hidden, own["norm"], seen, epsilon=EPSILON)
    types, dim = network.primary_types, network.primary_dim
    s = convolve(
        *(hidden, "primary", {"kernel": weights["primary_kernel"]}),
        weights["primary_bias"],
        group=types * dim,
    )
    capsules = exponential_squash(s.reshape(0, types, dim))
    return route_capsules(network.routing, weights["class_caps"], capsules, types)


def _encode_cnn(
    network: BaselineCNN, variables: Mapping[str, Any], image: Value
) -> dict[str, Value]:
    weights = variables["params"]
    hidden = image.transpose(0, 3, 1, 2)
    pad = {"SAME": "SAME_UPPER", "VALID": "VALID"}[network.conv_padding]
    for n in range(len(network.conv_features)):
        own = f"conv{n}"
        stride = network.conv_strides[n] if network.conv_strides else 1
        hidden = convolve(
            *(hidden, own, weights[own], weights[f"{own}_bias"]), stride=stride, pad=pad
        ).apply("Relu")
    size = weights["Dense_0"]["kernel"].shape[0]
    hidden = hidden.transpose(0, 2, 3, 1).reshape(0, size)
    layers = [weights[f"Dense_{n}"] for n in range(len(network.hidden_features) + 1)]
    return {"activation": connect(hidden, "", layers)}


def _decode(
    network: CapsNet | EfficientCapsNet | StemCapsNet,
    weights: Mapping[str, Any],
    pose: Value,
    mask: Value,
) -> Value:
    masked = pose * mask.reshape(0, network.num_classes, 1)
    hidden = masked.reshape(0, network.num_classes * network.class_dim)
    own = weights["decoder"]
    layers = [own[f"Dense_{n}"] for n in range(len(own))]
    pixels = connect(hidden, "decoder/", layers).apply("Sigmoid")
    return pixels.reshape(0, *network.image_shape)


_ENCODERS: Mapping[type, Callable[[Any, Any, Value], dict[str, Value]]] = {
    CapsNet: _encode_capsnet,
    BaselineCNN: _encode_cnn,
    EfficientCapsNet: _encode_efficient,
    ResidualCapsNet: _encode_residual,
    StackedCapsNet: _encode_stacked,
    StemCapsNet: _encode_stem,
    StemCNN: _encode_stem_cnn,
}
