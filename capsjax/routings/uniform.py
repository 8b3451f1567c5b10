"""Uniform routing: every input gives every output the same share."""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from capsjax.ops import safe_norm, squash
from capsjax.routings.algorithm import Algorithm, Parameter, Routed, declared_bias
from capsjax.routings.competition import Competition


@dataclasses.dataclass(frozen=True)
class UniformRouting(Algorithm):
    r"""One round without agreement: ``v_j = squash(sum_i u_hat_{j|i} / J + bias_j)``.

    The baseline that tells what routing adds: dynamic routing with one round.

    Attributes:
        bias: Where the trainable bias of ``s_j`` starts; None for no bias.

    References:
        Gu and Tresp 2020, *Improving the Robustness of Capsule Networks to Image Affine
        Transformations*, https://arxiv.org/abs/1911.07968.
    """

    bias: float | None = None

    @property
    def declared_parameters(self) -> Mapping[str, Parameter]:
        """The bias, if there is one."""
        return declared_bias(self.bias)

    def route(
        self,
        votes: Float[Array, "*batch i j d"],
        activation: Float[Array, "*batch i"] | None,
        parameters: Mapping[str, Array],
        competition: Competition,
    ) -> Routed:
        """Adds up the votes in equal shares, but for initial logits and masks."""
        coupling = competition.start(votes)
        s = jnp.einsum("...ij,...ijd->...jd", coupling, votes)
        if "bias" in parameters:
            s = s + jnp.broadcast_to(parameters["bias"], s.shape)
        pose = squash(s)
        return Routed(pose, safe_norm(pose), coupling)
