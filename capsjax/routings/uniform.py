"""Uniform routing: every input gives every output the same share."""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from capsjax.ops import safe_norm, squash
from capsjax.routings.algorithm import BiasedAlgorithm, Routed
from capsjax.routings.competition import Competition


@dataclasses.dataclass(frozen=True)
class UniformRouting(BiasedAlgorithm):
    r"""One round without agreement: ``v_j = squash(sum_i u_hat_{j|i} / J + bias_j)``.

    This is dynamic routing with one round, the baseline that shows the effect of more.

    References:
        Gu and Tresp 2020, *Improving the Robustness of Capsule Networks to Image Affine
        Transformations*, https://arxiv.org/abs/1911.07968.
    """

    def route(
        self,
        votes: Float[Array, "*batch i j d"],
        activation: Float[Array, "*batch i"] | None,
        parameters: Mapping[str, Array],
        competition: Competition,
    ) -> Routed:
        """Adds up the votes in shares that only initial logits and masks change."""
        coupling = competition.start(votes)
        s = jnp.einsum("...ij,...ijd->...jd", coupling, votes)
        if "bias" in parameters:
            s = s + jnp.broadcast_to(parameters["bias"], s.shape)
        pose = squash(s)
        return Routed(pose, safe_norm(pose), coupling)
