"""EM routing: Procedure 1 of *Matrix Capsules with EM Routing*.

Letters: ``i`` input capsules, ``j`` output capsules with ``d`` components.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from capsjax.bounds import Rounds, Scale
from capsjax.losses import ActivationKind
from capsjax.routings.algorithm import Algorithm, Parameter, Routed
from capsjax.routings.competition import Competition
from capsjax.routings.gaussian import VOTE_DEVIATION, alternate, distance, moments


class _Fit(NamedTuple):
    mean: Float[Array, "*batch j d"]
    variance: Float[Array, "*batch j d"]
    logit: Float[Array, "*batch j"]


@dataclasses.dataclass(frozen=True)
class EMRouting(Algorithm):
    r"""Fits one Gaussian to the votes for each output, by expectation-maximisation.

    An input capsule with activation ``a_i`` spreads it over the outputs. In round
    ``t = 1 .. R``, the M-step fits the outputs:

    .. math::
        r_{ij} = c_{ij} a_i, \quad
        m_j = \sum_i r_{ij}, \quad
        \mu_{jh} = \frac{1}{m_j} \sum_i r_{ij} v_{ijh}, \quad
        \sigma_{jh}^2 = \epsilon
            + \frac{1}{m_j} \sum_i r_{ij} (v_{ijh} - \mu_{jh})^2, \\
        cost_j = k m_j \sum_h (\beta_{u,j} + \ln \sigma_{jh}), \quad
        a_j = sigmoid(\lambda_t (\beta_{a,j} - cost_j)), \quad
        \lambda_t = \lambda (1 - 0.95^t),

    and the E-step, in every round but the last, the couplings:

    .. math::
        p_{ij} = N(v_{ij}; \mu_j, \sigma_j^2), \quad
        c_{ij} = softmax_j(\ln a_j + \ln p_{ij}) .

    The first couplings are ``1 / J``. The outputs compete for each input in every
    round. The pose is ``mu_j``, and the activation the probability ``a_j``. The
    gradient flows through all rounds.

    Two additions to the paper. The variance has a floor ``epsilon``: an output with a
    single vote would be present whatever else happens, and its gradient infinite. And
    ``k = 100 J / I`` makes the cost independent of the layer's size, as Gritzman found
    necessary: the mass of an output grows with the number of inputs for each output.
    ``mass="sum"`` is the paper's ``k = 1``. Masked inputs and outputs do not count.

    The parameters ``beta_u`` and ``beta_a`` have one number for each output, zero at
    the start, and zero if they are not given. A layer starts with votes of the standard
    deviation ``vote_deviation``. Costs are then negative, and an output is the more
    active the more inputs it gets. Votes or ``beta_u`` that make the first costs zero,
    and every output half active, learn more slowly.

    Attributes:
        num_iterations: Rounds of routing ``R``, at least 1. The paper uses 3. Open
            implementations on smallNORB are best with 2.
        final_inverse_temperature: ``lambda``, which the schedule approaches.
        mass: ``relative`` for ``k = 100 J / I``, ``sum`` for ``k = 1``.
        min_variance: ``epsilon``, the floor of the variances.
        unroll: True to write out all rounds; False for a loop, which compiles sooner
            with many rounds.

    References:
        Hinton, Sabour and Frosst 2018, Procedure 1, *Matrix Capsules with EM Routing*,
        https://openreview.net/forum?id=HJWLfGWRb; the authors' answers there have the
        schedule. Gritzman 2019, *Avoiding Implementation Pitfalls of Matrix Capsules
        with EM Routing by Hinton et al.*, https://arxiv.org/abs/1907.00652.
    """

    activation_kind: ClassVar[ActivationKind] = "probability"
    takes_activation: ClassVar[bool] = True
    activation_is_length: ClassVar[bool] = False
    vote_deviation: ClassVar[float | None] = VOTE_DEVIATION

    num_iterations: Rounds = 2
    final_inverse_temperature: Scale = 0.01
    mass: Literal["relative", "sum"] = "relative"
    min_variance: Scale = 5e-4
    unroll: bool = True

    @property
    def declared_parameters(self) -> Mapping[str, Parameter]:
        """Declaration of ``beta_u`` and ``beta_a``."""
        zeros = jax.nn.initializers.zeros
        return {name: Parameter("j", zeros) for name in ("beta_u", "beta_a")}

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
        """Alternates M-steps and E-steps."""
        assert activation is not None
        activation = activation.astype(votes.dtype)[..., None]
        factor = self._cost_factor(votes, competition)

        def maximise(coupling: Array, number: Any) -> _Fit:
            mass, mean, variance = moments(coupling * activation, votes)
            variance = variance + self.min_variance
            beta_u, beta_a = (
                jnp.broadcast_to(parameters.get(name, 0), mass.shape)
                for name in ("beta_u", "beta_a")
            )
            entropy = jnp.sum(beta_u[..., None] + jnp.log(variance) / 2, -1)
            inverse_temperature = self.final_inverse_temperature * (1 - 0.95**number)
            logit = inverse_temperature * (beta_a - factor * mass * entropy)
            return _Fit(mean, variance, logit)

        def expect(fit: _Fit) -> Array:
            spread = jnp.sum(jnp.log(2 * jnp.pi * fit.variance), -1)
            output = jax.nn.log_sigmoid(fit.logit) - spread / 2
            away = distance(votes, fit.mean, fit.variance)
            return jnp.expand_dims(output, -2) - away / 2

        fit, coupling = alternate(
            *(votes, competition, maximise, expect),
            num_iterations=self.num_iterations,
            unroll=self.unroll,
        )
        return Routed(fit.mean, jax.nn.sigmoid(fit.logit), coupling)

    def _cost_factor(
        self, votes: Float[Array, "*batch i j d"], competition: Competition
    ) -> Float[Array, "*_"] | float:
        """Returns the factor ``k`` of the cost."""
        if self.mass == "sum":
            return 1.0
        num_inputs, num_outputs = votes.shape[-3:-1]
        if competition.input_mask is not None:
            sends = competition.input_mask.astype(votes.dtype)
            num_inputs = jnp.maximum(jnp.sum(sends, -1, keepdims=True), 1)
        if competition.output_mask is not None:
            gets = competition.output_mask.astype(votes.dtype)
            num_outputs = jnp.sum(gets, -1, keepdims=True)
        return 100 * num_outputs / num_inputs
