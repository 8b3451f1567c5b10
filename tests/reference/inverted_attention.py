"""Inverted dot-product attention (Tsai et al. 2020) in float64 NumPy."""

import numpy as np
from reference import softmax


def layer_norm(x, scale, offset):
    """Normalises one vector, as PyTorch does by default."""
    return scale * (x - np.mean(x)) / np.sqrt(np.var(x) + 1e-5) + offset


def inverted_attention(
    votes, num_iterations, *, scale, offset, score, score_bias, logit=None
):
    """Returns poses [j, d], logits [j] and couplings [i, j] for votes [i, j, d]."""
    votes = np.asarray(votes, np.float64)
    num_inputs, num_outputs, dim = votes.shape
    pose = np.zeros((num_outputs, dim))
    for _ in range(num_iterations):
        c = np.zeros((num_inputs, num_outputs))
        for i in range(num_inputs):
            agreement = np.array([v @ p for v, p in zip(votes[i], pose, strict=True)])
            agreement /= np.sqrt(dim)
            c[i] = softmax(agreement if logit is None else agreement + logit[i])
        for j in range(num_outputs):
            pose[j] = layer_norm(c[:, j] @ votes[:, j], scale, offset)
    return pose, pose @ score + score_bias, c
