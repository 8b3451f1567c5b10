"""Arguments that an algorithm needs, made of its inputs, to fit every size."""

import jax.numpy as jnp

from capsjax.routings import SelfRouting


class Given:
    """An algorithm that needs no argument but votes: it makes the others of them."""

    def __init__(self, algorithm):
        self.algorithm = algorithm

    def __getattr__(self, name):
        return getattr(self.algorithm, name)

    def __call__(self, votes, **options):
        votes = jnp.asarray(votes)
        wide = votes.astype(jnp.promote_types(votes.dtype, jnp.float32))
        # Votes and their negatives make the same; the outputs' order does not matter.
        loudness = jnp.mean(wide**2, axis=-1)
        if self.takes_activation:
            options["activation"] = jnp.tanh(loudness.mean(-1))
        if type(self.algorithm) is SelfRouting:  # It refuses bare votes without.
            options["initial_logit"] = loudness
        if "score" in self.declared_parameters:
            options["parameters"] = {"score": score_of(votes.shape[-1])}
        return self.algorithm(votes, **options)


def score_of(dim):
    """Returns numbers ``[d]``, different ones."""
    return jnp.cos(1.0 + jnp.arange(dim))


def parameters_of(algorithm, weight):
    """Returns an algorithm's parameters for a weight ``[i, j, d, c]``."""
    made = {
        "": lambda: jnp.float32(0.2),
        "d": lambda: score_of(weight.shape[-2]),
        "j": lambda: 0.3 * weight[0, :, 0, 0],
        "ij": lambda: 0.3 * weight[..., 0, 0],
        "jd": lambda: 0.3 * weight[0, ..., 0],
        "ijc": lambda: weight[..., 0, :],
    }
    declared = algorithm.declared_parameters.items()
    return {name: jnp.asarray(made[one.axes]()) for name, one in declared}
