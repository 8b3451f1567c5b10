"""Self-attention routing (Mazzia, Salvetti and Chiaberge 2021) in float64 NumPy."""

import numpy as np
from reference import softmax


def exponential_squash(s):
    """Shrinks one vector to a length of 1 - exp(-length)."""
    length = np.linalg.norm(s)
    if length == 0:
        return np.zeros_like(s)
    return (1 - 1 / np.exp(length)) * s / length


def self_attention(votes, *, scale=None, bias=None, logit=None):
    """Returns poses [j, d] and couplings [i, j], before the bias, for votes [i, j, d].

    The agreement of every pair of votes for one output is in the matrix A [j, i, k].
    """
    votes = np.asarray(votes, np.float64)
    num_inputs, num_outputs, dim = votes.shape
    scale = np.sqrt(dim) if scale is None else scale
    b = np.zeros((num_inputs, num_outputs))
    for j in range(num_outputs):
        agreement = votes[:, j] @ votes[:, j].T / scale
        b[:, j] = agreement.sum(axis=1)
    if logit is not None:
        b += logit
    c = np.stack([softmax(row) for row in b])
    share = c if bias is None else c + bias
    pose = [
        exponential_squash(sum(share[i, j] * votes[i, j] for i in range(num_inputs)))
        for j in range(num_outputs)
    ]
    return np.stack(pose), c
