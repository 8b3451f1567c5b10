"""Self-routing: each input decides by its own pose where it goes.

Letters: ``i`` input capsules with ``c`` components, ``j`` output capsules with ``d``.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, ArrayLike, Float, Shaped

from capsjax.bounds import Weight
from capsjax.kernels.varying import leave_sharding_to_xla, spec_of
from capsjax.losses import ActivationKind
from capsjax.routings.algorithm import (
    Algorithm,
    Parameter,
    Routed,
    check_activation,
    check_capsules,
)
from capsjax.routings.competition import (
    Compete,
    Competition,
    check_competition,
    over_outputs,
)

# An output with less than this sum of ``c_ij a_i`` has a pose of zero.
_LEAST_MASS = 1e-12


@dataclasses.dataclass(frozen=True)
class SelfRouting(Algorithm):
    r"""Routing without agreement: a small network for each input makes its logits.

    .. math::
        b_{ij} = w_{ij} \cdot u_i + \beta_{ij}, \quad
        c_{ij} = softmax_j(b_{ij}), \quad
        m_j = \sum_i c_{ij} a_i, \\
        v_j = \sum_i c_{ij} a_i \hat u_{j|i} / m_j, \quad
        a_j = m_j / \sum_i a_i .

    The activations ``a_i`` of the inputs are needed, and those of the outputs are
    probabilities that sum to one. All are zero, and their gradients, if all ``a_i`` are
    zero. A mass ``m_j`` below 1e-12 makes a pose of zero.

    Logits come from the poses ``u_i`` of the inputs, so this algorithm routes capsules:
    ``from_capsules``. It refuses bare votes, unless ``initial_logit`` is given; then
    these are the logits. ``from_capsules`` never holds the votes, and has couplings.

    ``beta`` starts at zero. It is in the authors' code and not in the paper's formulas.
    They start ``w`` at zero, too, so that all couplings start equal; they train for
    hundreds of epochs, with batch-normalised poses and the negative log likelihood of
    ``a_j``. Squashed poses are ten times shorter, and learn through ``w`` alone: on two
    epochs of 10,000 digits, zeros give 76 % where random weights give over 90 %.

    Attributes:
        deviation: Standard deviation of the first ``w``, at least 0: logits for a unit
            of a pose. 0 as in the authors' code.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from capsjax import DenseCaps, SelfRouting
        >>> layer = DenseCaps(num_capsules=3, dim=4, routing=SelfRouting())
        >>> capsules, activation = jnp.ones((6, 8)), jnp.full(6, 0.5)
        >>> routed, _ = layer.init_with_output(jax.random.key(0), capsules, activation)
        >>> print(f"{routed.activation.sum():.3f}")
        1.000

    References:
        Hahn, Pyeon and Kim 2019, *Self-Routing Capsule Networks*, section 3, NeurIPS.
    """

    deviation: Weight = 3.0

    activation_kind: ClassVar[ActivationKind] = "probability"
    takes_activation: ClassVar[bool] = True
    activation_is_length: ClassVar[bool] = False

    @property
    def declared_parameters(self) -> Mapping[str, Parameter]:
        """Declarations of ``w`` and ``beta``, the network that makes the logits."""
        start = jax.nn.initializers.normal(self.deviation)
        return {
            "route_weight": Parameter("ijc", start),
            "route_bias": Parameter("ij", jax.nn.initializers.zeros),
        }

    def __call__(
        self,
        votes: Shaped[ArrayLike, "..."],
        activation: Shaped[ArrayLike, "..."] | None = None,
        *,
        initial_logit: Shaped[ArrayLike, "..."] | None = None,
        **others: Any,
    ) -> Routed:
        """Averages votes in shares of the initial logits.

        Raises:
            ValueError: If there are no initial logits, or on the same arrays as every
                algorithm.
        """
        if initial_logit is None:
            raise ValueError(
                "SelfRouting makes its logits of the input capsules, not of votes: "
                "call from_capsules(capsules, weight, activation), or give "
                "initial_logit."
            )
        return super().__call__(
            votes, activation, initial_logit=initial_logit, **others
        )

    def route(
        self,
        votes: Float[Array, "*batch i j d"],
        activation: Float[Array, "*batch i"] | None,
        parameters: Mapping[str, Array],
        competition: Competition,
    ) -> Routed:
        """Averages votes in shares of the initial logits."""
        assert activation is not None
        coupling = competition.couple(jnp.zeros_like(votes[..., 0]))

        def add(share):
            return jnp.einsum("...ij,...ijd->...jd", share, votes)

        return _average(coupling, activation, add)

    def from_capsules(
        self,
        capsules: Shaped[ArrayLike, "..."],
        weight: Shaped[ArrayLike, "..."],
        activation: Shaped[ArrayLike, "..."] | None = None,
        *,
        parameters: Mapping[str, Array] | None = None,
        initial_logit: Shaped[ArrayLike, "..."] | None = None,
        input_mask: Shaped[ArrayLike, "..."] | None = None,
        output_mask: Shaped[ArrayLike, "..."] | None = None,
        compete: Compete = over_outputs,
    ) -> Routed:
        """Routes capsules ``[*batch, i, c]`` by their poses, without holding votes.

        Args:
            capsules: The input capsules.
            weight: The matrices that turn them into votes, ``[i, j, d, c]``, or
                ``[j, d, c]`` if all inputs share them.
            activation: Presence of the inputs, ``[*batch, i]``, at least 0.
            parameters: ``route_weight`` and ``route_bias``; one that is missing counts
                as zero.
            initial_logit: Log priors, added to the logits.
            input_mask: False for padding.
            output_mask: False for outputs that get nothing.
            compete: Turns logits into couplings.

        Raises:
            ValueError: If the arrays do not fit together, or the activation is missing.
        """
        capsules, weight = check_capsules(capsules, weight)
        (*batch, i, c), (j, d) = capsules.shape, weight.shape[-3:-1]
        self._check_activation(activation, (*batch, i))
        competition = check_competition(
            initial_logit, input_mask, output_mask, compete, tuple(batch), i, j
        )
        sizes = {"i": i, "j": j, "d": d, "c": c}
        return _route_capsules(
            capsules,
            weight,
            check_activation(0 if activation is None else activation, (*batch, i)),
            self.check_parameters(parameters, sizes, capsules.dtype),
            competition,
            algorithm=self,
        )


@functools.partial(jax.jit, static_argnames="algorithm")
def _route_capsules(
    capsules: Float[Array, "*batch i c"],
    weight: Float[Array, "*i j d c"],
    activation: Float[Array, "*batch i"],
    parameters: dict[str, Array],
    competition: Competition,
    *,
    algorithm: SelfRouting,
) -> Routed:
    def route(capsules, weight, activation, parameters, competition):
        capsules = competition.without_masked_capsules(capsules)
        activation = competition.without_masked_capsules(activation[..., None])[..., 0]
        own = competition.without_masked_logits()
        inputs = "i" if weight.ndim == 4 else ""

        def add(share):
            # Shares of capsules, before the matrices: fewer numbers than votes have.
            sent = jnp.einsum(f"...ij,...ic->...{inputs}jc", share, capsules)
            return jnp.einsum(f"...{inputs}jc,{inputs}jdc->...jd", sent, weight)

        coupling = own.couple(_logit(capsules, weight.shape[-3], parameters))
        routed = _average(coupling, activation, add)
        return tuple(algorithm.without_absent(routed, competition))

    wide = jnp.promote_types(capsules.dtype, jnp.float32)
    capsules, weight = capsules.astype(wide), weight.astype(wide)
    *batch, i, _ = spec_of(capsules)
    specs = P(*batch, None, None), P(*batch, None), P(*batch, i, None)
    operands = (capsules, weight, activation, parameters, competition)
    return Routed(*leave_sharding_to_xla(route, specs, *operands))


def _logit(
    capsules: Float[Array, "*batch i c"],
    num_outputs: int,
    parameters: Mapping[str, Array],
) -> Float[Array, "*batch i j"]:
    logit = jnp.zeros((*capsules.shape[:-1], num_outputs), capsules.dtype)
    if "route_weight" in parameters:
        weight = parameters["route_weight"]
        logit = logit + jnp.einsum("...ic,ijc->...ij", capsules, weight)
    if "route_bias" in parameters:
        logit = logit + jnp.broadcast_to(parameters["route_bias"], logit.shape)
    return logit


def _average(
    coupling: Float[Array, "*batch i j"],
    activation: Float[Array, "*batch i"],
    add: Callable[[Float[Array, "*batch i j"]], Float[Array, "*batch j d"]],
) -> Routed:
    """Averages votes, given a function that adds them up in the shares given."""
    activation = activation.astype(coupling.dtype)
    share = coupling * activation[..., None]
    mass, total = share.sum(-2), activation.sum(-1, keepdims=True)
    pose = add(share) * _reciprocal(mass)[..., None]
    return Routed(pose, mass * _reciprocal(total), coupling)


def _reciprocal(mass: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns ``1 / mass``, and zero below the least mass: gradients stay finite."""
    is_enough = mass >= _LEAST_MASS
    return jnp.where(is_enough, 1 / jnp.where(is_enough, mass, 1), 0)
