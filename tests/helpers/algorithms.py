"""Arguments that an algorithm needs, made of its inputs, to fit every size."""

import jax.numpy as jnp


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
        return self.algorithm(votes, **options)


def bias_of(weight):
    """Returns numbers ``[i, j]`` from a weight ``[i, j, d, c]``."""
    return 0.3 * weight[..., 0, 0]


def parameters_of(algorithm, weight):
    """Returns an algorithm's parameters for a weight ``[i, j, d, c]``."""
    made = {"ij": bias_of, "jd": lambda weight: weight[0, ..., 0]}
    declared = algorithm.declared_parameters.items()
    return {name: made[one.axes](weight) for name, one in declared}
