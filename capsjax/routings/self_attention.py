"""Self-attention routing: votes that agree with all votes for an output win it.

Letters: ``i`` input capsules with ``c`` components, ``j`` output capsules with ``d``.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from capsjax.bounds import Scale
from capsjax.kernels.query_routing import sum_by_query
from capsjax.ops import exponential_squash, safe_norm
from capsjax.routings.algorithm import Parameter, Routed
from capsjax.routings.competition import Competition
from capsjax.routings.votes_free import VotesFreeAlgorithm


@dataclasses.dataclass(frozen=True)
class SelfAttention(VotesFreeAlgorithm):
    r"""Routing in one step, by the agreement of each vote with the sum of all votes.

    .. math::
        b_{ij} = \hat u_{j|i} \cdot \sum_k \hat u_{j|k} / scale, \quad
        c_{ij} = softmax_j(b_{ij}), \quad
        s_j = \sum_i (c_{ij} + \beta_{ij}) \hat u_{j|i}, \quad
        v_j = (1 - e^{-|s_j|}) s_j / |s_j| .

    The trained ``beta_ij`` join after the softmax, so that ``c + beta`` need not add up
    to one and may be negative. The result's coupling is ``c``, without them.

    The paper divides by the root of ``d^l``, and other people read that as the size of
    the input capsules. The default is the authors' code, which takes the output's.
    ``W`` starts there as ``N(0, 2 / (I J c))``.

    Attributes:
        scale: Divisor of the logits, above 0; None for ``sqrt(d)`` with ``d`` the
            components of an output. A small one makes couplings of 0 or 1.
        bias: Initial value of ``beta``, which has one number for each input and output,
            in units of a coupling; None for no bias. Without it a layer that shares its
            matrix takes any number of inputs.

    Examples:
        >>> import jax
        >>> from capsjax import SelfAttention
        >>> votes = jax.random.normal(jax.random.key(0), (6, 3, 4))
        >>> SelfAttention()(votes).activation.shape
        (3,)

    References:
        Mazzia, Salvetti and Chiaberge 2021, *Efficient-CapsNet: Capsule Network with
        Self-Attention Routing*, https://arxiv.org/abs/2101.12491.
    """

    scale: Scale | None = None
    bias: float | None = 0.0

    @property
    def declared_parameters(self) -> Mapping[str, Parameter]:
        """Declaration of the bias, if there is one."""
        if self.bias is None:
            return {}
        return {"bias": Parameter("ij", jax.nn.initializers.constant(self.bias))}

    def route(
        self,
        votes: Float[Array, "*batch i j d"],
        activation: Float[Array, "*batch i"] | None,
        parameters: Mapping[str, Array],
        competition: Competition,
    ) -> Routed:
        """Compares each vote with the sum of the votes, once."""
        query = self._query(votes.sum(-3))
        coupling = competition.couple(jnp.einsum("...ijd,...jd->...ij", votes, query))
        share = coupling
        if "bias" in parameters:
            share = coupling + jnp.broadcast_to(parameters["bias"], coupling.shape)
        pose = exponential_squash(jnp.einsum("...ij,...ijd->...jd", share, votes))
        return Routed(pose, safe_norm(pose), coupling)

    def route_capsules(
        self,
        capsules: Float[Array, "*batch i c"],
        weight: Float[Array, "i j d c"],
        activation: Float[Array, "*batch i"] | None,
        parameters: Mapping[str, Array],
        competition: Competition,
    ) -> Routed:
        """Adds up all votes in two products, and the attended ones by blocks."""
        query = self._query(jnp.einsum("...ic,ijdc->...jd", capsules, weight))
        start = competition.start_logit(capsules.dtype)
        s = sum_by_query(capsules, weight, query, start, holds_votes=self.holds_votes)
        if "bias" in parameters:
            biased = parameters["bias"][..., None, None] * weight
            s = s + jnp.einsum("...ic,ijdc->...jd", capsules, biased)
        pose = exponential_squash(s)
        return Routed(pose, safe_norm(pose), None)

    def _query(self, total: Float[Array, "*batch j d"]) -> Float[Array, "*batch j d"]:
        scale = math.sqrt(total.shape[-1]) if self.scale is None else self.scale
        return total / scale
