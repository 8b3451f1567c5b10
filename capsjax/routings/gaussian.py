"""What the algorithms share that fit a Gaussian to the votes for each output.

Letters: ``i`` input capsules, ``j`` output capsules with ``d`` components.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from capsjax.routings.competition import Competition

# Standard deviation of the votes that a layer starts with. Of 1, 0.3 and 0.1, the small
# network of ``experiments/mnist.py:smoke`` learned fastest with this one.
VOTE_DEVIATION = 0.1

# Below it an output counts as without inputs: its mean shrinks to zero, and gradients
# stay finite.
_LEAST_MASS = 1e-7
# The largest square of a distance. The quotient of a square and a variance or a mass
# must stay finite, and so must its gradient.
_FARTHEST = 1e20


class Moments(NamedTuple):
    """Moments of the votes for each output.

    Attributes:
        mass: Sum of the inputs' shares.
        mean: Mean of the votes, weighted by the shares.
        variance: Variance of each component around that mean.
    """

    mass: Float[Array, "*batch j"]
    mean: Float[Array, "*batch j d"]
    variance: Float[Array, "*batch j d"]


def moments(
    share: Float[Array, "*batch i j"], votes: Float[Array, "*batch i j d"]
) -> Moments:
    """Computes the moments of votes that count by the inputs' shares."""
    mass = jnp.sum(share, -2)
    # Dividing first keeps the sums in the range of the votes.
    weight = share / jnp.expand_dims(jnp.maximum(mass, _LEAST_MASS), -2)
    mean = jnp.sum(weight[..., None] * votes, -3)
    # Not E[v^2] - mean^2, which cancels.
    square = _squared_distance(votes, mean)
    return Moments(mass, mean, jnp.sum(weight[..., None] * square, -3))


def distance(
    votes: Float[Array, "*batch i j d"],
    mean: Float[Array, "*batch j d"],
    variance: Float[Array, "*batch j d"],
) -> Float[Array, "*batch i j"]:
    """Returns ``sum_h (v_ijh - mean_jh)^2 / variance_jh``."""
    square = _squared_distance(votes, mean)
    # A product keeps one array of the votes' size for the gradient, a quotient two.
    return jnp.einsum("...ijd,...jd->...ij", square, 1 / variance)


def _squared_distance(
    votes: Float[Array, "*batch i j d"], mean: Float[Array, "*batch j d"]
) -> Float[Array, "*batch i j d"]:
    return jnp.minimum((votes - jnp.expand_dims(mean, -3)) ** 2, _FARTHEST)


def alternate(
    votes: Float[Array, "*batch i j d"],
    competition: Competition,
    fit: Callable[[Float[Array, "*batch i j"], Any], Any],
    score: Callable[[Any], Float[Array, "*batch i j"]],
    *,
    num_iterations: int,
    unroll: bool,
) -> tuple[Any, Float[Array, "*batch i j"]]:
    """Alternates fits of the outputs and couplings of the inputs, a fit last.

    Args:
        votes: The votes.
        competition: Makes the couplings.
        fit: Fits the outputs, given the couplings and the number of the round from 1.
        score: Returns the logits of the next couplings, given a fit.
        num_iterations: Number of fits.
        unroll: True to write out all rounds, False for a loop.

    Returns:
        The last fit, and its couplings.
    """

    def improve(number, coupling):
        return competition.couple(score(fit(coupling, number)))

    coupling = competition.start(votes)
    if num_iterations > 1:
        # The first round stays outside: inside ``jax.shard_map`` its result varies over
        # more mesh axes than the start.
        coupling = jax.lax.fori_loop(
            2, num_iterations, improve, improve(1, coupling), unroll=unroll
        )
    return fit(coupling, num_iterations), coupling
