"""Variational Bayes routing: *Capsule Routing via Variational Bayes*.

Letters: ``i`` input capsules, ``j`` output capsules with ``d`` components.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma
from jaxtyping import Array, Float

from capsjax.bounds import Rounds, Scale, above
from capsjax.losses import ActivationKind
from capsjax.routings.algorithm import Algorithm, Parameter, Routed
from capsjax.routings.competition import Competition
from capsjax.routings.gaussian import VOTE_DEVIATION, alternate, distance, moments


class _Fit(NamedTuple):
    """The posteriors' parameters, and two expectations."""

    mean: Float[Array, "*batch j d"]
    num_votes: Float[Array, "*batch j"]
    variance: Float[Array, "*batch j d"]
    log_share: Float[Array, "*batch j"]
    log_precision: Float[Array, "*batch j"]


@dataclasses.dataclass(frozen=True)
class VariationalBayesRouting(Algorithm):
    r"""Fits one Gaussian to the votes for each output, with priors on its parameters.

    The model is a Bayesian mixture: the shares ``pi`` of the outputs have a Dirichlet
    prior, and the mean and the diagonal precision ``Lambda_j`` of each output a
    Gaussian-Wishart prior. In each of ``R`` rounds, the posteriors follow the votes of
    inputs with activations ``a_i``:

    .. math::
        r_{ij} = c_{ij} a_i, \quad
        m_j = \sum_i r_{ij}, \quad
        \bar v_{jh} = \frac{1}{m_j} \sum_i r_{ij} v_{ijh}, \\
        \alpha_j = \alpha_0 + m_j, \quad
        \kappa_j = \kappa_0 + m_j, \quad
        \nu_j = \nu_0 + m_j, \quad
        \mu_{jh} = \frac{m_j}{\kappa_j} \bar v_{jh}, \\
        \Psi_{jh}^{-1} = \Psi_0^{-1} + \sum_i r_{ij} (v_{ijh} - \bar v_{jh})^2
            + \frac{\kappa_0 m_j}{\kappa_j} \bar v_{jh}^2,

    and, in every round but the last, the couplings follow their expectations, with the
    digamma function ``psi`` and ``h`` from 0:

    .. math::
        E[\ln \pi_j] = \psi(\alpha_j) - \psi(\textstyle\sum_k \alpha_k), \quad
        E[\ln |\Lambda_j|] = d \ln 2
            + \sum_h \psi(\frac{\nu_j - h}{2}) + \ln \Psi_{jh}, \\
        \ln p_{ij} = \frac12 \Big( E[\ln |\Lambda_j|] - d \ln 2\pi - \frac{d}{\kappa_j}
            - \nu_j \sum_h \Psi_{jh} (v_{ijh} - \mu_{jh})^2 \Big), \\
        c_{ij} = softmax_j(E[\ln \pi_j] + \ln p_{ij}) .

    The first couplings are ``1 / J``. The pose is ``mu_j``, and the activation the
    logit of the last round, the negative entropy of the output by its share:

    .. math::
        z_j = \beta_{a,j} - \beta_{u,j} - e^{E[\ln \pi_j]}
            \Big( \frac d2 \ln 2 \pi e - \frac12 E[\ln |\Lambda_j|] \Big) .

    The gradient flows through all rounds. The priors do what a floor of the variance
    does in EM routing. The softmax is one of logarithms: dividing the numbers ``p_ij``
    by their sum instead underflows for votes of unit variance.

    The authors go on with ``sigmoid(BN(z))`` and ``BN(mu)``. Batch normalisation
    belongs to a layer. The parameters ``beta_u`` and ``beta_a`` have one number for
    each output, zero at the start, and zero if they are not given.

    Attributes:
        num_iterations: Rounds of routing ``R``, at least 1. The authors use 3.
        prior_concentration: ``alpha_0`` of the Dirichlet prior.
        prior_count: ``kappa_0``, the number of votes for a mean of zero.
        prior_precision: ``Psi_0``, the scale of the Wishart prior.
        prior_freedom: ``nu_0 - d``, its degrees of freedom beyond ``d``, above -1.
        unroll: True to write out all rounds; False for a loop, which compiles sooner
            with many rounds.

    References:
        De Sousa Ribeiro, Leontidis and Kollias 2020, section 3, *Capsule Routing via
        Variational Bayes*, https://arxiv.org/abs/1905.11455.
    """

    activation_kind: ClassVar[ActivationKind] = "logit"
    takes_activation: ClassVar[bool] = True
    activation_is_length: ClassVar[bool] = False
    vote_deviation: ClassVar[float | None] = VOTE_DEVIATION

    num_iterations: Rounds = 3
    prior_concentration: Scale = 1.0
    prior_count: Scale = 1.0
    prior_precision: Scale = 1.0
    prior_freedom: Annotated[float, above(-1)] = 1.0
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
        """Alternates updates of the posteriors and of the couplings."""
        assert activation is not None
        activation = activation.astype(votes.dtype)[..., None]
        dim = votes.shape[-1]

        def fit(coupling: Array, number: Any) -> _Fit:
            del number
            return self._fit(coupling * activation, votes, competition)

        def score(fit: _Fit) -> Array:
            output = fit.log_share + (fit.log_precision - dim / fit.num_votes) / 2
            output = output - dim / 2 * jnp.log(2 * jnp.pi)
            away = distance(votes, fit.mean, fit.variance)
            return jnp.expand_dims(output, -2) - away / 2

        last, coupling = alternate(
            *(votes, competition, fit, score),
            num_iterations=self.num_iterations,
            unroll=self.unroll,
        )
        entropy = dim / 2 * jnp.log(2 * jnp.pi * jnp.e) - last.log_precision / 2
        beta_u, beta_a = (
            jnp.broadcast_to(parameters.get(name, 0), entropy.shape)
            for name in ("beta_u", "beta_a")
        )
        logit = beta_a - beta_u - jnp.exp(last.log_share) * entropy
        return Routed(last.mean, logit, coupling)

    def _fit(
        self,
        share: Float[Array, "*batch i j"],
        votes: Float[Array, "*batch i j d"],
        competition: Competition,
    ) -> _Fit:
        dim = votes.shape[-1]
        mass, mean, variance = moments(share, votes)
        count = self.prior_count + mass
        freedom = self.prior_freedom + dim + mass
        pull = self.prior_count * (mass / count)[..., None] * mean**2
        inverse = 1 / self.prior_precision + mass[..., None] * variance + pull
        lower = jnp.arange(dim, dtype=votes.dtype).reshape(*[1] * mass.ndim, dim)
        halves = (freedom[..., None] - lower) / 2
        concentration = self.prior_concentration + mass
        competing = concentration
        if competition.output_mask is not None:
            competing = jnp.where(competition.output_mask, concentration, 0)
        total = jnp.sum(competing, -1, keepdims=True)
        # Not zero where all outputs are masked.
        total = jnp.maximum(total, self.prior_concentration)
        total = jnp.broadcast_to(total, mass.shape)
        # One call: it is a large program, and its gradient a larger one.
        shares = jnp.stack([concentration, total], -1)
        expected = digamma(jnp.concatenate([halves, shares], -1))
        log_precision = jnp.sum(expected[..., :dim] - jnp.log(inverse / 2), -1)
        return _Fit(
            mean=mean * (mass / count)[..., None],
            num_votes=count,
            variance=inverse / freedom[..., None],
            log_share=expected[..., dim] - expected[..., dim + 1],
            log_precision=log_precision,
        )
