"""EM routing: Procedure 1 of *Matrix Capsules with EM Routing*.

Letters: ``i`` input capsules, ``j`` output capsules with ``d`` components.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from capsjax.bounds import Rounds, Scale
from capsjax.losses import ActivationKind
from capsjax.routings.algorithm import Parameter
from capsjax.routings.competition import Competition, OverImage
from capsjax.routings.gaussian import Fit, GaussianAlgorithm, Moments

# About the negative of the costs at the start, in units of the activation's logit.
_FIRST_BETA_A = -2.0
# Below the part of an input that any window gets at the start.
_LEAST_PART = 1e-4


@dataclasses.dataclass(frozen=True)
class EMRouting(GaussianAlgorithm):
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
        a_j = sigmoid(\frac{\lambda_t}{\lambda_R} \beta_{a,j} - \lambda_t cost_j), \quad
        \lambda_t = \lambda (1 - 0.95^t),

    and the E-step, in every round but the last, the couplings:

    .. math::
        p_{ij} = N(v_{ij}; \mu_j, \sigma_j^2), \quad
        c_{ij} = softmax_j(\ln a_j + \ln p_{ij}) .

    The first couplings are ``1 / J``. The outputs compete for each input in every
    round. The pose is ``mu_j``, and the activation the probability ``a_j``. The
    gradient flows through all rounds.

    Three changes to the paper. The variance has a floor ``epsilon``: an output with a
    single vote would be present whatever else happens, and its gradient infinite.

    ``k = 100 / sum_i c_ij`` with the first couplings makes the cost independent of the
    layer's size, as Gritzman found necessary: the mass of an output grows with the
    number of inputs for each output. That is ``100 J / I``; where windows share inputs,
    an input counts only in part, and masked inputs and outputs do not count.
    ``mass="sum"`` is the paper's ``k = 1``.

    ``beta_a`` is the paper's times ``lambda_R``: a change of the activation's logit in
    the last round. The paper's own moves that logit by a thousandth of itself, which no
    step of an optimizer notices.

    The parameters ``beta_u`` and ``beta_a`` have one number for each output, and are
    zero if they are not given. A layer starts with votes of the standard deviation
    ``vote_deviation``. Costs are then negative, and an output is the more active the
    more inputs it gets. Votes or ``beta_u`` that make the first costs zero learn more
    slowly. In a layer ``beta_a`` starts at -2, which leaves about half of the outputs
    active.

    Attributes:
        num_iterations: Rounds of routing ``R``, at least 1. The paper uses 3. Open
            implementations on smallNORB are best with 2.
        final_inverse_temperature: ``lambda``, which the schedule approaches.
        mass: ``relative`` for the ``k`` above, ``sum`` for ``k = 1``.
        min_variance: ``epsilon``, the floor of the variances.
        unroll: True to write out all rounds; False for a loop, which compiles sooner
            with many rounds.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from capsjax import EMRouting
        >>> votes = jax.random.normal(jax.random.key(0), (6, 3, 4))
        >>> routed = EMRouting(num_iterations=2)(votes, jnp.full(6, 0.5))
        >>> routed.pose.shape, routed.activation.shape
        ((3, 4), (3,))

    References:
        Hinton, Sabour and Frosst 2018, *Matrix Capsules with EM Routing*, Eq. 1 (the
        cost), Eq. 2 (the activation) and Procedure 1,
        https://openreview.net/forum?id=HJWLfGWRb; the authors' answers there have the
        schedule. Gritzman 2019, *Avoiding Implementation Pitfalls of Matrix Capsules
        with EM Routing by Hinton et al.*, https://arxiv.org/abs/1907.00652.
    """

    activation_kind: ClassVar[ActivationKind] = "probability"

    num_iterations: Rounds = 2
    final_inverse_temperature: Scale = 0.01
    mass: Literal["relative", "sum"] = "relative"
    min_variance: Scale = 5e-4

    @property
    def declared_parameters(self) -> Mapping[str, Parameter]:
        """Declaration of ``beta_u`` and ``beta_a``."""
        start = jax.nn.initializers.constant(_FIRST_BETA_A)
        return {**super().declared_parameters, "beta_a": Parameter("j", start)}

    @property
    def inverse_temperature(self) -> float:
        """Inverse temperature of the last round."""
        return self.final_inverse_temperature * (1 - 0.95**self.num_iterations)

    def fit(
        self,
        moments: Moments,
        number: Any,
        betas: tuple[Array, Array],
        competition: Competition,
        num_inputs: int,
    ) -> Fit:
        """Makes the M-step's costs and activations, and what the E-step needs."""
        variance = moments.variance + self.min_variance
        beta_u, beta_a = betas
        factor = 1.0
        if self.mass == "relative":
            factor = _cost_factor(moments.mass, num_inputs, competition)
        entropy = jnp.sum(beta_u[..., None] + jnp.log(variance) / 2, -1)
        # Of the last round's inverse temperature.
        share = (1 - 0.95**number) / (1 - 0.95**self.num_iterations)
        cost = factor * moments.mass * entropy
        logit = share * (beta_a - self.inverse_temperature * cost)
        spread = jnp.sum(jnp.log(2 * jnp.pi * variance), -1)
        offset = jax.nn.log_sigmoid(logit) - spread / 2
        return Fit(moments.mean, variance, offset, jax.nn.sigmoid(logit))


def _cost_factor(
    mass: Float[Array, "*batch j"], num_inputs: int, competition: Competition
) -> Any:
    """Returns the factor ``k`` of the cost, which counts what takes part."""
    num_outputs = mass.shape[-1]
    sends, mask = num_inputs, competition.input_mask
    if isinstance(competition.compete, OverImage):
        height, width = mass.shape[-3:-1]
        part = competition.compete.equal_parts(height, width, num_inputs)
        part = part.reshape(*[1] * (mass.ndim - 3), *part.shape).astype(mass.dtype)
        part = part if mask is None else jnp.where(mask, part, 0)
        sends = jnp.sum(part, -1, keepdims=True)
    elif mask is not None:
        sends = jnp.sum(mask.astype(mass.dtype), -1, keepdims=True)
    if competition.output_mask is not None:
        gets = competition.output_mask.astype(mass.dtype)
        num_outputs = jnp.sum(gets, -1, keepdims=True)
    # An output without inputs has no mass, whatever its factor is.
    return 100 * num_outputs / jnp.maximum(sends, _LEAST_PART)
