"""The paper's formulas as loops in float64 NumPy, independent of our code."""

import numpy as np


def squash(s):
    """Computes equation 1 for one vector."""
    length = np.linalg.norm(s)
    if length == 0:
        return np.zeros_like(s)
    return length**2 / (1 + length**2) * s / length


def softmax(logit):
    """Computes the softmax of one row."""
    e = np.exp(logit - np.max(logit))
    return e / e.sum()


def dynamic_routing(
    votes, num_iterations, *, bias=None, none_of_the_above=False, logit=None
):
    """Returns poses [j, d] and couplings [i, j] of Procedure 1 for votes [i, j, d]."""
    votes = np.asarray(votes, np.float64)
    num_inputs, num_outputs, dim = votes.shape
    b = np.zeros((num_inputs, num_outputs))
    if logit is not None:
        b += logit
    for _ in range(num_iterations):
        c = np.zeros_like(b)
        for i in range(num_inputs):
            if none_of_the_above:
                c[i] = softmax(np.append(b[i], 0.0))[:-1]
            else:
                c[i] = softmax(b[i])
        v = np.zeros((num_outputs, dim))
        for j in range(num_outputs):
            s = sum(c[i, j] * votes[i, j] for i in range(num_inputs))
            if bias is not None:
                s = s + bias[j]
            v[j] = squash(s)
        for i in range(num_inputs):
            for j in range(num_outputs):
                b[i, j] += votes[i, j] @ v[j]
    return v, c


def margin_loss(length, is_present, *, present=0.9, absent=0.1, down_weight=0.5):
    """Computes equation 4 for one example."""
    loss = 0.0
    for n, t in zip(length, is_present, strict=True):
        loss += t * max(0.0, present - n) ** 2
        loss += down_weight * (1 - t) * max(0.0, n - absent) ** 2
    return loss


def convolve(image, kernel, stride=1):
    """Convolves one image [h, w, c] without padding, window by window."""
    height, width = kernel.shape[:2]
    return np.array(
        [
            [
                np.einsum(
                    "hwc,hwco->o",
                    image[row : row + height, column : column + width],
                    kernel,
                )
                for column in range(0, image.shape[1] - width + 1, stride)
            ]
            for row in range(0, image.shape[0] - height + 1, stride)
        ]
    )


def encode(weights, image, network):
    """Returns the poses [j, d] of section 4 for one image [h, w, c]."""
    primary, dense = weights["primary_caps"], weights["class_caps"]
    features = convolve(image, weights["conv"]["kernel"]) + weights["conv_bias"]
    features = np.maximum(0, features)
    s = convolve(features, primary["conv"]["kernel"], network.primary_stride)
    s = network.primary_scale * s + primary["bias"]
    if network.primary_relu:
        s = np.maximum(0, s)
    capsules = [
        squash(channels[start : start + network.primary_dim])
        for row in s
        for channels in row
        for start in range(0, len(channels), network.primary_dim)
    ]
    pairs = zip(dense["weight"], capsules, strict=True)
    votes = [[matrix @ capsule for matrix in matrices] for matrices, capsule in pairs]
    pose, _ = dynamic_routing(
        votes,
        network.routing.num_rounds or 1,
        bias=None if network.routing.bias is None else dense["bias"],
        none_of_the_above=getattr(network.routing, "none_of_the_above", False),
    )
    return pose


def decode(weights, pose, mask):
    """Returns the pixels of section 4.1 for one example, flat."""
    hidden = np.concatenate([m * v for m, v in zip(mask, pose, strict=True)])
    layers = weights["decoder"]
    *inner, last = [layers[f"Dense_{n}"] for n in range(len(layers))]
    for layer in inner:
        hidden = np.maximum(0, hidden @ layer["kernel"] + layer["bias"])
    return 1 / (1 + np.exp(-(hidden @ last["kernel"] + last["bias"])))
