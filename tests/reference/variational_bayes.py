"""Variational Bayes routing (De Sousa Ribeiro et al. 2020) in float64 NumPy."""

import numpy as np
from reference import softmax
from scipy.special import digamma


def variational_bayes(
    votes,
    activation,
    num_iterations,
    *,
    beta_u=None,
    beta_a=None,
    alpha0=1.0,
    kappa0=1.0,
    psi0=1.0,
    freedom=1.0,
    logit=None,
):
    """Returns poses [j, d], logits [j] and couplings [i, j] for votes [i, j, d].

    With matrices, as for a full covariance, of which only the diagonal is kept.
    """
    votes = np.asarray(votes, np.float64)
    num_inputs, num_outputs, dim = votes.shape
    beta_u = np.zeros(num_outputs) if beta_u is None else beta_u
    beta_a = np.zeros(num_outputs) if beta_a is None else beta_a
    prior = np.zeros((num_inputs, num_outputs)) if logit is None else logit
    nu0 = dim + freedom
    coupling = np.stack([softmax(row) for row in prior])
    for number in range(1, num_iterations + 1):
        outputs = []
        masses = [
            sum(coupling[i, j] * activation[i] for i in range(num_inputs))
            for j in range(num_outputs)
        ]
        for j in range(num_outputs):
            r = coupling[:, j] * activation
            mass = masses[j]
            kappa, nu = kappa0 + mass, nu0 + mass
            average = sum(r[i] * votes[i, j] for i in range(num_inputs)) / mass
            mean = mass * average / kappa
            inverse = np.eye(dim) / psi0 + kappa0 * mass / kappa * np.diag(average**2)
            for i in range(num_inputs):
                away = votes[i, j] - average
                inverse += r[i] * np.diag(np.diag(np.outer(away, away)))
            psi = np.linalg.inv(inverse)
            log_pi = digamma(alpha0 + mass) - digamma(
                sum(alpha0 + one for one in masses)
            )
            log_det = dim * np.log(2) + np.linalg.slogdet(psi)[1]
            log_det += sum(digamma((nu + 1 - h) / 2) for h in range(1, dim + 1))
            outputs.append((mean, kappa, nu, psi, log_pi, log_det))
        if number == num_iterations:
            break
        for i in range(num_inputs):
            b = np.array(prior[i])
            for j, (mean, kappa, nu, psi, log_pi, log_det) in enumerate(outputs):
                away = votes[i, j] - mean
                expected = dim / kappa + nu * away @ psi @ away
                b[j] += log_pi + log_det / 2 - dim / 2 * np.log(2 * np.pi)
                b[j] -= expected / 2
            coupling[i] = softmax(b)
    z = np.zeros(num_outputs)
    for j, (_, _, _, _, log_pi, log_det) in enumerate(outputs):
        entropy = dim / 2 * np.log(2 * np.pi * np.e) - log_det / 2
        z[j] = beta_a[j] - (np.exp(log_pi) * entropy + beta_u[j])
    return np.stack([mean for mean, *_ in outputs]), z, coupling
