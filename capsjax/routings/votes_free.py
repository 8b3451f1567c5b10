"""Algorithms that route capsules without holding the votes.

Letters: ``i`` input capsules with ``c`` components, ``j`` output capsules with ``d``.
"""

import abc
import dataclasses
import functools
from collections.abc import Mapping
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, ArrayLike, Float, Shaped

from capsjax.kernels.varying import leave_sharding_to_xla, spec_of, vary_alike
from capsjax.routings.algorithm import (
    Algorithm,
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

Form = Literal["auto", "votes", "votes_free"]
FORMS = get_args(Form)


@dataclasses.dataclass(frozen=True)
class VotesFreeAlgorithm(Algorithm):
    """An algorithm whose ``from_capsules`` need not hold the votes.

    A subclass has ``route_capsules`` beside ``route``.

    Attributes:
        form: How capsules are routed. ``"votes"`` holds the votes, and has couplings
            and forward-mode derivatives. ``"votes_free"`` never holds them
            (:mod:`capsjax.kernels`). ``"auto"`` takes the faster form for the size and
            platform (:mod:`capsjax.runtime.platforms`).
    """

    form: Form = dataclasses.field(default="auto", kw_only=True)

    def __post_init__(self):
        if self.form not in FORMS:
            raise ValueError(f"form must be one of {FORMS}, got {self.form!r}.")

    def with_couplings(self) -> "VotesFreeAlgorithm":
        """Returns the same algorithm, which holds the votes."""
        return dataclasses.replace(self, form="votes")

    @property
    def holds_votes(self) -> bool | None:
        """Whether the votes are held; None if size and platform decide."""
        return None if self.form == "auto" else self.form == "votes"

    def needs_votes(self, compete: Compete) -> bool:
        """Returns True if there is no votes-free form of a competition."""
        return compete is not over_outputs

    @abc.abstractmethod
    def route_capsules(
        self,
        capsules: Float[Array, "*batch i c"],
        weight: Float[Array, "i j d c"],
        activation: Float[Array, "*batch i"] | None,
        parameters: Mapping[str, Array],
        competition: Competition,
    ) -> Routed:
        """Routes capsules, perhaps without holding votes; nobody reads the couplings.

        Args:
            capsules: The input capsules, zero where masked, in float32 or float64.
            weight: The matrices that turn them into votes.
            activation: Their activations, zero where masked, in the same type; None if
                the algorithm takes none.
            parameters: The declared parameters, by name.
            competition: Has the initial logits, ``start_logit``.
        """

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
        """Routes the votes ``weight_ij capsule_i`` in the chosen ``form``.

        The votes-free form makes votes again in every round, for a few input capsules
        at a time: several times faster for a batch on a CPU, and in a fraction of the
        memory. The other form holds the votes, and is chosen for fewer than 16 examples
        on a CPU, for up to 2 GB of votes on accelerators, if the batch size is unknown,
        if all inputs share one weight, and for another ``compete``, unless windows
        share their inputs and the algorithm is EM or variational Bayes. Only this form
        heeds ``unroll``, and ``remat`` of dynamic routing.

        ``jax.vmap`` over examples extends the batch. Mapped weights or biases are taken
        one after the other.

        Unless ``form`` is ``"votes"``, reverse mode only: ``jax.jvp`` of the poses
        raises a TypeError. The gradient itself has derivatives in either mode: a
        Hessian works.

        Args:
            capsules: The input capsules, ``[*batch, i, c]``.
            weight: The matrices that turn them into votes, ``[i, j, d, c]``, or
                ``[j, d, c]`` if all inputs share them.
            activation: Presence of the inputs, ``[*batch, i]``; only for algorithms
                that take it.
            parameters: The declared parameters, by name.
            initial_logit: Log priors. See ``__call__`` for these and the masks.
            input_mask: False for padding.
            output_mask: False for outputs that get nothing.
            compete: Turns logits into couplings.

        Returns:
            Poses and activations as of the votes, to rounding. Couplings only with
            ``form="votes"``.

        Raises:
            ValueError: If the arrays do not fit together, or an activation is missing
                or not taken.
        """
        capsules, weight = check_capsules(capsules, weight)
        self._check_activation(activation, capsules.shape[:-1])
        needs_votes = weight.ndim == 3 or self.needs_votes(compete)
        if needs_votes and self.form == "votes_free":
            raise ValueError(
                "form='votes_free' needs a weight for each input, and the default "
                "compete, among the layer's outputs; use form='auto'."
            )
        if needs_votes or self.form == "votes":
            return super().from_capsules(
                capsules,
                weight,
                activation,
                parameters=parameters,
                initial_logit=initial_logit,
                input_mask=input_mask,
                output_mask=output_mask,
                compete=compete,
            )
        batch, (i, j) = capsules.shape[:-2], weight.shape[:2]
        if activation is not None:
            activation = check_activation(activation, (*batch, i))
        competition = check_competition(
            initial_logit, input_mask, output_mask, compete, batch, i, j
        )
        sizes = dict(zip("ijdc", weight.shape, strict=True))
        own = self.check_parameters(parameters, sizes, capsules.dtype)
        return _route_capsules(
            capsules, weight, activation, own, competition, algorithm=self
        )


@functools.partial(jax.jit, static_argnames="algorithm")
def _route_capsules(
    capsules: Float[Array, "*batch i c"],
    weight: Float[Array, "i j d c"],
    activation: Float[Array, "*batch i"] | None,
    parameters: dict[str, Array],
    competition: Competition,
    *,
    algorithm: VotesFreeAlgorithm,
) -> Routed:
    wide = jnp.promote_types(capsules.dtype, jnp.float32)
    capsules, weight = capsules.astype(wide), weight.astype(wide)
    capsules = competition.without_masked_capsules(capsules)
    if activation is not None:
        activation = activation.astype(wide)[..., None]
        activation = competition.without_masked_capsules(activation)[..., 0]
    operands = capsules, weight, activation, parameters, competition
    arrays, structure = jax.tree.flatten(operands)
    operands = jax.tree.unflatten(structure, vary_alike(*arrays))

    def route(*operands):
        return tuple(algorithm.route_capsules(*operands)[:2])

    *batch, _, _ = spec_of(capsules)
    specs = P(*batch, None, None), P(*batch, None)
    pose, own_activation = leave_sharding_to_xla(route, specs, *operands)
    routed = Routed(pose, own_activation, None)
    return algorithm.without_absent(routed, competition)
