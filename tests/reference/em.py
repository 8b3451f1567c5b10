"""EM routing (Hinton, Sabour and Frosst 2018, Procedure 1) in float64 NumPy."""

import numpy as np
from reference import softmax


def em(
    votes,
    activation,
    num_iterations,
    *,
    beta_u=None,
    beta_a=None,
    final_inverse_temperature=0.01,
    relative=True,
    min_variance=5e-4,
    logit=None,
):
    """Returns poses [j, d], activations [j] and couplings [i, j] of one example."""
    votes = np.asarray(votes, np.float64)
    num_inputs, num_outputs, dim = votes.shape
    beta_u = np.zeros(num_outputs) if beta_u is None else beta_u
    beta_a = np.zeros(num_outputs) if beta_a is None else beta_a
    prior = np.zeros((num_inputs, num_outputs)) if logit is None else logit
    coupling = np.stack([softmax(row) for row in prior])
    mean = np.zeros((num_outputs, dim))
    variance = np.zeros((num_outputs, dim))
    present = np.zeros(num_outputs)
    for t in range(1, num_iterations + 1):
        inverse_temperature = final_inverse_temperature * (1 - 0.95**t)
        for j in range(num_outputs):
            r = [coupling[i, j] * activation[i] for i in range(num_inputs)]
            mass = max(sum(r), 1e-7)
            for h in range(dim):
                v = votes[:, j, h]
                mean[j, h] = sum(r[i] * v[i] for i in range(num_inputs)) / mass
                square = [r[i] * (v[i] - mean[j, h]) ** 2 for i in range(num_inputs)]
                variance[j, h] = sum(square) / mass + min_variance
            cost = 0.0
            for h in range(dim):
                deviation = np.sqrt(variance[j, h])
                cost += (beta_u[j] + np.log(deviation)) * sum(r)
            if relative:
                cost *= 100 * num_outputs / num_inputs
            last = final_inverse_temperature * (1 - 0.95**num_iterations)
            z = inverse_temperature * (beta_a[j] / last - cost)
            present[j] = 1 / (1 + np.exp(-z))
        if t == num_iterations:
            break
        for i in range(num_inputs):
            b = np.zeros(num_outputs)
            for j in range(num_outputs):
                b[j] = prior[i, j] + np.log(present[j])
                for h in range(dim):
                    away = (votes[i, j, h] - mean[j, h]) ** 2 / variance[j, h]
                    b[j] -= (away + np.log(2 * np.pi * variance[j, h])) / 2
            coupling[i] = softmax(b)
    return mean, present, coupling
