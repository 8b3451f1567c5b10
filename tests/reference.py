"""The formulas of the paper in float64 NumPy, as loops, and not from our code."""

import numpy as np


def squash(s):
    """Equation 1 for one vector."""
    length = np.linalg.norm(s)
    if length == 0:
        return np.zeros_like(s)
    return length**2 / (1 + length**2) * s / length


def softmax(logit):
    """Of one row."""
    e = np.exp(logit - np.max(logit))
    return e / e.sum()


def dynamic_routing(votes, num_iterations, *, bias=None, none_of_the_above=False):
    """Procedure 1 for one example's votes [i, j, d]: poses [j, d], couplings [i, j]."""
    votes = np.asarray(votes, np.float64)
    num_inputs, num_outputs, dim = votes.shape
    b = np.zeros((num_inputs, num_outputs))
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
    """Equation 4 for one example."""
    loss = 0.0
    for n, t in zip(length, is_present, strict=True):
        loss += t * max(0.0, present - n) ** 2
        loss += down_weight * (1 - t) * max(0.0, n - absent) ** 2
    return loss
