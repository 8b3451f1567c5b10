"""Inverted dot-product attention: outputs compete for each input by the last poses.

Letters: ``i`` input capsules with ``c`` components, ``j`` output capsules with ``d``.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from capsjax.bounds import Rounds
from capsjax.kernels.query_routing import sum_by_query
from capsjax.losses import ActivationKind
from capsjax.routings.algorithm import Parameter, Routed
from capsjax.routings.competition import Competition
from capsjax.routings.votes_free import VotesFreeAlgorithm

# Added to the variance, which is in squared units of a sum of votes.
_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class InvertedAttention(VotesFreeAlgorithm):
    r"""Routing by the agreement of votes with the poses of the round before.

    Couplings of the first round are equal. Then, in each round,

    .. math::
        c_{ij} = softmax_j(\hat u_{j|i} \cdot p_j / \sqrt d), \quad
        p_j \leftarrow LayerNorm(\sum_i c_{ij} \hat u_{j|i}) .

    The layer norm has one scale and one offset for each component, which all outputs
    share, and adds 1e-5 to the variance. It makes all poses equally long, so a length
    shows nothing: the activation is a logit, ``score . p_j + score_bias``, with one
    score for all outputs.

    The paper's agreement (Eq. 2) has no divisor; ``sqrt(d)`` is the authors' code,
    where ``W`` starts as ``N(0, J / (c I))``. Their networks update the poses of all
    layers in each round ("concurrent routing"); this algorithm routes one layer to its
    end.

    Attributes:
        num_iterations: Rounds, at least 1. One round is the uniform average, with layer
            norm; the paper uses 1 and 2.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from capsjax import InvertedAttention
        >>> votes = jax.random.normal(jax.random.key(0), (6, 3, 4))
        >>> parameters = {"score": jnp.ones(4)}  # A layer learns them.
        >>> InvertedAttention()(votes, parameters=parameters).activation.shape
        (3,)

    References:
        Tsai, Srivastava, Goh and Salakhutdinov 2020, *Capsules with Inverted
        Dot-Product Attention Routing*, Eq. 1 to 3 and Procedure 1,
        https://arxiv.org/abs/2002.04764.
    """

    num_iterations: Rounds = 2

    activation_kind: ClassVar[ActivationKind] = "logit"
    activation_is_length: ClassVar[bool] = False

    @property
    def declared_parameters(self) -> Mapping[str, Parameter]:
        """Declarations of the layer norm and of the score."""
        return {
            "scale": Parameter("d", jax.nn.initializers.ones),
            "offset": Parameter("d", jax.nn.initializers.zeros),
            "score": Parameter("d", _uniform),
            "score_bias": Parameter("", jax.nn.initializers.zeros),
        }

    @property
    def num_rounds(self) -> int:
        """Number of rounds."""
        return self.num_iterations

    def route(
        self,
        votes: Float[Array, "*batch i j d"],
        activation: Float[Array, "*batch i"] | None,
        parameters: Mapping[str, Array],
        competition: Competition,
    ) -> Routed:
        """Updates couplings and poses in turn."""

        def add(query):
            coupling = competition.start(votes)
            if query is not None:
                agreement = jnp.einsum("...ijd,...jd->...ij", votes, query)
                coupling = competition.couple(agreement)
            return jnp.einsum("...ij,...ijd->...jd", coupling, votes), coupling

        return self._attend(add, parameters)

    def route_capsules(
        self,
        capsules: Float[Array, "*batch i c"],
        weight: Float[Array, "i j d c"],
        activation: Float[Array, "*batch i"] | None,
        parameters: Mapping[str, Array],
        competition: Competition,
    ) -> Routed:
        """Updates poses in turn, each from one pass over blocks of votes."""
        start = competition.start_logit(capsules.dtype)

        def add(query):
            total = jnp.einsum("...ic,ijdc->...jd", capsules, weight)
            if query is None and start is None:
                return total / total.shape[-2], None
            query = jnp.zeros_like(total) if query is None else query
            held = self.holds_votes
            return sum_by_query(capsules, weight, query, start, holds_votes=held), None

        return self._attend(add, parameters)

    def _attend(
        self,
        add: Callable[[Array | None], tuple[Array, Array | None]],
        parameters: Mapping[str, Array],
    ) -> Routed:
        """Routes, given a function that adds up votes by their agreement with queries.

        Args:
            add: Returns ``s`` and couplings for a query, or for None before the first.
            parameters: The declared parameters, by name.

        Raises:
            ValueError: If the score is missing.
        """
        if "score" not in parameters:
            raise ValueError(
                "InvertedAttention needs its parameters, at least the score [d], of "
                "which it makes the activations; DenseCaps owns them."
            )
        s, coupling = add(None)
        pose = _layer_norm(s, parameters)
        for _ in range(1, self.num_iterations):
            s, coupling = add(pose / math.sqrt(pose.shape[-1]))
            pose = _layer_norm(s, parameters)
        logit = jnp.einsum("...jd,d->...j", pose, parameters["score"])
        if "score_bias" in parameters:
            logit = logit + jnp.broadcast_to(parameters["score_bias"], logit.shape)
        return Routed(pose, logit, coupling)


def _layer_norm(
    s: Float[Array, "*batch j d"], parameters: Mapping[str, Array]
) -> Float[Array, "*batch j d"]:
    centred = s - s.mean(-1, keepdims=True)
    variance = jnp.mean(centred**2, axis=-1, keepdims=True)
    normal = centred * jax.lax.rsqrt(variance + _EPSILON)
    if "scale" in parameters:
        normal = normal * jnp.broadcast_to(parameters["scale"], normal.shape)
    if "offset" in parameters:
        normal = normal + jnp.broadcast_to(parameters["offset"], normal.shape)
    return normal


def _uniform(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
    """Draws like PyTorch's layer from ``d`` to 1: uniform up to ``1 / sqrt(d)``."""
    most = 1 / math.sqrt(shape[0])
    return jax.random.uniform(key, shape, dtype, -most, most)
