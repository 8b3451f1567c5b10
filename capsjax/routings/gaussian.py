"""The loop of the algorithms that fit a Gaussian to the votes for each output.

Letters: ``i`` input capsules with ``c`` components, ``j`` output capsules with ``d``.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from capsjax.bounds import Rounds
from capsjax.kernels.gaussian_routing import (
    Gaussians,
    log_totals,
    sum_by_gaussians,
)
from capsjax.routings.algorithm import Parameter, Routed
from capsjax.routings.competition import Compete, Competition, OverImage
from capsjax.routings.votes_free import VotesFreeAlgorithm

# Below it an output counts as without inputs: its mean shrinks to zero, and gradients
# stay finite.
_LEAST_MASS = 1e-7
# The largest square of a distance. The quotient of a square and a variance or a mass
# must stay finite, and so must its gradient.
_FARTHEST = 1e20


class Moments(NamedTuple):
    """Moments of the votes for each output.

    Attributes:
        mass: Sum of the inputs' shares.
        mean: Mean of the votes, weighted by the shares.
        variance: Variance of each component around that mean.
    """

    mass: Float[Array, "*batch j"]
    mean: Float[Array, "*batch j d"]
    variance: Float[Array, "*batch j d"]


class Fit(NamedTuple):
    """The outputs after a round.

    Attributes:
        mean: The poses.
        variance: Variance of each component, for the logits of the next round.
        offset: The logit of a vote that equals the mean.
        activation: Activation of each output.
    """

    mean: Float[Array, "*batch j d"]
    variance: Float[Array, "*batch j d"]
    offset: Float[Array, "*batch j"]
    activation: Float[Array, "*batch j"]


@dataclasses.dataclass(frozen=True)
class GaussianAlgorithm(VotesFreeAlgorithm):
    """An algorithm that alternates moments of the votes and couplings.

    A subclass has ``fit``. The logit of a vote is the fit's ``offset``, less half its
    squared distance from the mean in units of the variance.

    Attributes:
        num_iterations: Rounds of routing ``R``, at least 1.
        unroll: True to write out all rounds; False for a loop, which compiles sooner
            with many rounds. Without votes they are always written out.
    """

    takes_activation: ClassVar[bool] = True
    activation_is_length: ClassVar[bool] = False
    # Votes near EM's least variance make soft couplings. With 0.1 and more the network
    # of ``experiments/routings.py``, and a stack of matrix capsules, learn slower.
    vote_deviation: ClassVar[float | None] = 0.03

    num_iterations: Rounds = 3
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

    def needs_votes(self, compete: Compete) -> bool:
        """Also windows that share their inputs compete without votes."""
        return not isinstance(compete, OverImage) and super().needs_votes(compete)

    @abc.abstractmethod
    def fit(
        self,
        moments: Moments,
        number: Any,
        betas: tuple[Array, Array],
        competition: Competition,
        num_inputs: int,
    ) -> Fit:
        """Fits the outputs to the moments of their votes.

        Args:
            moments: The moments.
            number: The number of the round, from 1.
            betas: The parameters ``beta_u`` and ``beta_a``, one number for each output.
            competition: Has the masks.
            num_inputs: Number of inputs, masked ones too.
        """

    def route(
        self,
        votes: Float[Array, "*batch i j d"],
        activation: Float[Array, "*batch i"] | None,
        parameters: Mapping[str, Array],
        competition: Competition,
    ) -> Routed:
        """Alternates fits and couplings."""
        assert activation is not None
        activation = activation.astype(votes.dtype)[..., None]

        def add(fit):
            coupling = competition.start(votes)
            if fit is not None:
                square = _squared_distance(votes, fit.mean)
                # A product keeps one array of the votes' size for the gradient, a
                # quotient two.
                away = jnp.einsum("...ijd,...jd->...ij", square, 1 / fit.variance)
                coupling = competition.couple(fit.offset[..., None, :] - away / 2)
            return _moments(coupling * activation, votes), coupling

        own = parameters, competition, votes.shape[-3]
        return self._alternate(add, *own, unroll=self.unroll)

    def route_capsules(
        self,
        capsules: Float[Array, "*batch i c"],
        weight: Float[Array, "i j d c"],
        activation: Float[Array, "*batch i"] | None,
        parameters: Mapping[str, Array],
        competition: Competition,
    ) -> Routed:
        """Alternates fits and passes over blocks of votes."""
        assert activation is not None
        start = competition.start_logit(capsules.dtype)

        def among_windows(gaussians, *, is_equal):
            if not isinstance(competition.compete, OverImage):
                return activation
            if is_equal:
                part = competition.compete.equal_parts(*activation.shape[-3:])
                part = part.astype(activation.dtype)
                return activation * jnp.broadcast_to(part, activation.shape)
            operands = capsules, weight, gaussians, start
            total = log_totals(*operands, holds_votes=self.holds_votes)
            return activation * competition.compete.among_windows(total)

        def add(fit):
            if fit is None:
                gaussians = _around_the_mean(capsules, weight, activation)
            else:
                gaussians = Gaussians(fit.offset, fit.mean, 1 / fit.variance)
            is_equal = fit is None and start is None
            sent = among_windows(gaussians, is_equal=is_equal)
            operands = capsules, weight, sent, gaussians, start
            sums = sum_by_gaussians(*operands, holds_votes=self.holds_votes)
            mass = jnp.maximum(sums.share, _LEAST_MASS)[..., None]
            # Less than one if the output has almost no inputs.
            whole = sums.share[..., None] / mass
            away = sums.away / mass
            moved = away - (1 - whole) * gaussians.centre
            variance = sums.square / mass - moved * (2 * away - whole * moved)
            # Rounding may leave less than nothing.
            variance = jnp.maximum(variance, 0)
            return Moments(sums.share, gaussians.centre + moved, variance), None

        own = parameters, competition, len(weight)
        # JAX does not differentiate a loop over these passes twice.
        return self._alternate(add, *own, unroll=True)

    def _alternate(
        self,
        add: Callable[[Fit | None], tuple[Moments, Any]],
        parameters: Mapping[str, Array],
        competition: Competition,
        num_inputs: int,
        *,
        unroll: bool,
    ) -> Routed:
        """Alternates moments and fits.

        Args:
            add: Returns moments, and perhaps couplings, by a fit; by None at first.
            parameters: The declared parameters, by name.
            competition: Has the masks.
            num_inputs: Number of inputs.
            unroll: True to write out all rounds.
        """

        def fit(moments, number):
            beta_u, beta_a = (
                jnp.broadcast_to(parameters.get(name, 0), moments.mass.shape)
                for name in ("beta_u", "beta_a")
            )
            return self.fit(moments, number, (beta_u, beta_a), competition, num_inputs)

        def improve(number, own):
            return fit(add(own)[0], number)

        moments, coupling = add(None)
        last = self.num_iterations
        if last > 1:
            # The first round stays outside: inside ``jax.shard_map`` its result varies
            # over more mesh axes than the start.
            own = fit(moments, 1)
            if unroll:
                for number in range(2, last):
                    own = improve(number, own)
            else:
                own = jax.lax.fori_loop(2, last, improve, own)
            moments, coupling = add(own)
        result = fit(moments, last)
        return Routed(result.mean, result.activation, coupling)


def _moments(
    share: Float[Array, "*batch i j"], votes: Float[Array, "*batch i j d"]
) -> Moments:
    """Computes the moments of votes that count by the inputs' shares."""
    mass = jnp.sum(share, -2)
    # Dividing first keeps the sums in the range of the votes.
    weight = share / jnp.expand_dims(jnp.maximum(mass, _LEAST_MASS), -2)
    mean = jnp.sum(weight[..., None] * votes, -3)
    # Not E[v^2] - mean^2, which cancels.
    square = _squared_distance(votes, mean)
    return Moments(mass, mean, jnp.sum(weight[..., None] * square, -3))


def _squared_distance(
    votes: Float[Array, "*batch i j d"], mean: Float[Array, "*batch j d"]
) -> Float[Array, "*batch i j d"]:
    return jnp.minimum((votes - jnp.expand_dims(mean, -3)) ** 2, _FARTHEST)


def _around_the_mean(
    capsules: Float[Array, "*batch i c"],
    weight: Float[Array, "i j d c"],
    activation: Float[Array, "*batch i"],
) -> Gaussians:
    """Returns Gaussians without preference, centred where all inputs' mean vote is."""
    total = jnp.sum(activation, -1, keepdims=True)
    share = activation / jnp.maximum(total, _LEAST_MASS)
    centre = jnp.einsum("...ic,ijdc->...jd", capsules * share[..., None], weight)
    return Gaussians(jnp.zeros_like(centre[..., 0]), centre, jnp.zeros_like(centre))
