"""Uniform routing: every input gives every output the same share."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from capsjax.ops import safe_norm, squash
from capsjax.routings.algorithm import BiasedAlgorithm, Routed
from capsjax.routings.competition import Competition
from capsjax.routings.votes_free import VotesFreeAlgorithm


@dataclasses.dataclass(frozen=True)
class UniformRouting(VotesFreeAlgorithm, BiasedAlgorithm):
    r"""One round without agreement: each output gets the same share of each vote.

    .. math::
        v_j = squash(\frac{1}{J} \sum_i \hat u_{j|i} + b_j)

    This is dynamic routing with one round, the baseline that shows the effect of more.

    Examples:
        >>> import jax
        >>> from capsjax import UniformRouting
        >>> votes = jax.random.normal(jax.random.key(0), (6, 3, 4))
        >>> UniformRouting()(votes).activation.shape
        (3,)

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
        return _routed(s, parameters, coupling)

    def route_capsules(
        self,
        capsules: Float[Array, "*batch i c"],
        weight: Float[Array, "i j d c"],
        activation: Float[Array, "*batch i"] | None,
        parameters: Mapping[str, Array],
        competition: Competition,
    ) -> Routed:
        """Adds up the votes in one product, as their shares are known before them."""
        start = competition.start_logit(capsules.dtype)
        if start is None:
            s = jnp.einsum("...ic,ijdc->...jd", capsules, weight / weight.shape[1])
        else:
            # Shares of capsules, before the matrices: fewer numbers than votes have.
            share = jax.nn.softmax(start, axis=-1)
            sent = jnp.einsum("...ij,...ic->...ijc", share, capsules)
            s = jnp.einsum("...ijc,ijdc->...jd", sent, weight)
        return _routed(s, parameters, None)


def _routed(
    s: Float[Array, "*batch j d"], parameters: Mapping[str, Array], coupling: Any
) -> Routed:
    if "bias" in parameters:
        s = s + jnp.broadcast_to(parameters["bias"], s.shape)
    pose = squash(s)
    return Routed(pose, safe_norm(pose), coupling)
