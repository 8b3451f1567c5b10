"""Self-routing (Hahn, Pyeon and Kim 2019) in float64 NumPy."""

import numpy as np
from reference import softmax


def self_routing(capsules, weight, activation, route_weight, route_bias, logit=None):
    """Returns poses [j, d], activations [j] and couplings [i, j] of capsules [i, c]."""
    num_inputs, num_outputs, dim, _ = weight.shape
    c = np.zeros((num_inputs, num_outputs))
    for i in range(num_inputs):
        b = route_weight[i] @ capsules[i] + route_bias[i]
        c[i] = softmax(b if logit is None else b + logit[i])
    pose, mass = np.zeros((num_outputs, dim)), np.zeros(num_outputs)
    for j in range(num_outputs):
        for i in range(num_inputs):
            mass[j] += c[i, j] * activation[i]
            pose[j] += c[i, j] * activation[i] * (weight[i, j] @ capsules[i])
        if mass[j] > 0:
            pose[j] /= mass[j]
    total = activation.sum()
    return pose, mass / total if total > 0 else mass, c
