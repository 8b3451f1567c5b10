"""Variational Bayes routing: *Capsule Routing via Variational Bayes*.

Letters: ``i`` input capsules, ``j`` output capsules with ``d`` components.
"""

import dataclasses
from typing import Annotated, Any, ClassVar

import jax.numpy as jnp
from jax.scipy.special import digamma
from jaxtyping import Array

from capsjax.bounds import Scale, above
from capsjax.losses import ActivationKind
from capsjax.routings.competition import Competition
from capsjax.routings.gaussian import Fit, GaussianAlgorithm, Moments


@dataclasses.dataclass(frozen=True)
class VariationalBayesRouting(GaussianAlgorithm):
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

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from capsjax import VariationalBayesRouting
        >>> votes = jax.random.normal(jax.random.key(0), (6, 3, 4))
        >>> routed = VariationalBayesRouting(num_iterations=2)(votes, jnp.full(6, 0.5))
        >>> routed.pose.shape, routed.activation.shape
        ((3, 4), (3,))

    References:
        De Sousa Ribeiro, Leontidis and Kollias 2020, section 3, *Capsule Routing via
        Variational Bayes*, https://arxiv.org/abs/1905.11455.
    """

    activation_kind: ClassVar[ActivationKind] = "logit"

    prior_concentration: Scale = 1.0
    prior_count: Scale = 1.0
    prior_precision: Scale = 1.0
    prior_freedom: Annotated[float, above(-1)] = 1.0

    def fit(
        self,
        moments: Moments,
        number: Any,
        betas: tuple[Array, Array],
        competition: Competition,
        num_inputs: int,
    ) -> Fit:
        """Makes the posteriors, and their expectations."""
        mass, mean, variance = moments
        dim = mean.shape[-1]
        count = self.prior_count + mass
        freedom = self.prior_freedom + dim + mass
        pull = self.prior_count * (mass / count)[..., None] * mean**2
        inverse = 1 / self.prior_precision + mass[..., None] * variance + pull
        lower = jnp.arange(dim, dtype=mean.dtype).reshape(*[1] * mass.ndim, dim)
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
        log_share = expected[..., dim] - expected[..., dim + 1]
        entropy = dim / 2 * jnp.log(2 * jnp.pi * jnp.e) - log_precision / 2
        beta_u, beta_a = betas
        offset = log_share + (log_precision - dim / count) / 2
        return Fit(
            mean=mean * (mass / count)[..., None],
            variance=inverse / freedom[..., None],
            offset=offset - dim / 2 * jnp.log(2 * jnp.pi),
            activation=beta_a - beta_u - jnp.exp(log_share) * entropy,
        )
