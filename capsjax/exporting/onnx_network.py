"""Networks as ONNX graphs: plain operators, for a batch of any size."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx

from capsjax.exporting.errors import ExportError
from capsjax.exporting.functions import inputs, outputs
from capsjax.exporting.onnx_graph import Graph, Storage, Value
from capsjax.exporting.onnx_routing import Inputs, multiply_each, route, squash
from capsjax.models import BaselineCNN, CapsNet
from capsjax.storage.run import Run


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
    weights = {name: _as_numpy(one) for name, one in run.params["params"].items()}

    def encode(graph: Graph) -> dict[str, Value]:
        found = encode_network(network, weights, graph.input("image"))
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
        if "pose" in found and network.draws:
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
    network: CapsNet, weights: Mapping[str, Any], image: Value
) -> dict[str, Value]:
    features = _convolve(
        *(image.transpose(0, 3, 1, 2), "conv", weights["conv"], weights["conv_bias"])
    ).apply("Relu")
    primary = weights["primary_caps"]
    s = _convolve(
        *(features, "primary_caps/conv", primary["conv"], primary["bias"]),
        factor=network.primary_scale,
        stride=network.primary_stride,
    )
    if network.primary_relu:
        s = s.apply("Relu")
    own = dict(weights["class_caps"])
    weight = own.pop("weight")
    j, d, c = weight.shape[-3:]
    window, step = network.primary_window
    i = network.primary_types * math.prod(
        1 + (side - window) // step for side in network.image_shape[:2]
    )
    capsules = squash(s.transpose(0, 2, 3, 1).reshape(0, i, c))
    # Each capsule times its matrices: a product for each input, with the batch inside.
    # Shared matrices have a first axis of 1.
    votes = multiply_each(capsules, "class_caps/weight", weight.reshape(-1, j * d, c))
    votes = votes.reshape(0, 0, j, d).transpose(1, 2, 0, 3)
    size = {"i": i, "j": j, "d": d}
    pose, activation = route(network.routing, Inputs(capsules, votes, size, own))
    return {"pose": pose, "activation": activation}


def _encode_cnn(
    network: BaselineCNN, weights: Mapping[str, Any], image: Value
) -> dict[str, Value]:
    hidden = image.transpose(0, 3, 1, 2)
    pad = {"SAME": "SAME_UPPER", "VALID": "VALID"}[network.conv_padding]
    for n in range(len(network.conv_features)):
        own = f"conv{n}"
        stride = network.conv_strides[n] if network.conv_strides else 1
        hidden = _convolve(
            *(hidden, own, weights[own], weights[f"{own}_bias"]), stride=stride, pad=pad
        ).apply("Relu")
    size = weights["Dense_0"]["kernel"].shape[0]
    hidden = hidden.transpose(0, 2, 3, 1).reshape(0, size)
    layers = [weights[f"Dense_{n}"] for n in range(len(network.hidden_features) + 1)]
    return {"activation": _connect(hidden, "", layers)}


def _decode(
    network: CapsNet, weights: Mapping[str, Any], pose: Value, mask: Value
) -> Value:
    masked = pose * mask.reshape(0, network.num_classes, 1)
    hidden = masked.reshape(0, network.num_classes * network.class_dim)
    own = weights["decoder"]
    layers = [own[f"Dense_{n}"] for n in range(len(own))]
    pixels = _connect(hidden, "decoder/", layers).apply("Sigmoid")
    return pixels.reshape(0, *network.image_shape)


def _convolve(
    image: Value,
    name: str,
    layer: Mapping[str, np.ndarray],
    bias: np.ndarray,
    *,
    factor: float = 1.0,
    stride: int = 1,
    pad: str = "VALID",
) -> Value:
    kernel = factor * layer["kernel"].transpose(3, 2, 0, 1)
    weight = image.graph.weight(f"{name}/kernel", kernel, axis=0)
    strides = [stride, stride]
    return image.apply("Conv", weight, bias, strides=strides, auto_pad=pad)


def _connect(hidden: Value, name: str, layers: Any) -> Value:
    """Adds fully connected layers, with a ReLU between them."""
    for n, layer in enumerate(layers):
        if n:
            hidden = hidden.apply("Relu")
        label = f"{name}Dense_{n}/kernel"
        weight = hidden.graph.weight(label, layer["kernel"], axis=1)
        hidden = hidden.apply("Gemm", weight, layer["bias"])
    return hidden


_ENCODERS: Mapping[type, Callable[[Any, Any, Value], dict[str, Value]]] = {
    CapsNet: _encode_capsnet,
    BaselineCNN: _encode_cnn,
}
