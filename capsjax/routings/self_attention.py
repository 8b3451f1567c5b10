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
from capsjax.ops import exponential_squash, safe_norm
from capsjax.routings.algorithm import Algorithm, Parameter, Routed
from capsjax.routings.competition import Competition


@dataclasses.dataclass(frozen=True)
class SelfAttention(Algorithm):
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
        scale = math.sqrt(votes.shape[-1]) if self.scale is None else self.scale
        query = votes.sum(-3) / scale
        coupling = competition.couple(jnp.einsum("...ijd,...jd->...ij", votes, query))
        share = coupling
        if "bias" in parameters:
            share = coupling + jnp.broadcast_to(parameters["bias"], coupling.shape)
        pose = exponential_squash(jnp.einsum("...ij,...ijd->...jd", share, votes))
        return Routed(pose, safe_norm(pose), coupling)
