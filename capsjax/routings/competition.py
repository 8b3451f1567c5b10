"""Who competes for the inputs: couplings of logits, with masks and log priors.

Letters: ``i`` input capsules with ``c`` components, ``j`` output capsules with ``d``.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Shaped

Compete = Callable[[Float[Array, "*batch i j"]], Float[Array, "*batch i j"]]


def over_outputs(logit: Float[Array, "*batch i j"]) -> Float[Array, "*batch i j"]:
    """Lets the outputs of a layer compete for each input: ``softmax_j`` (Eq. 3)."""
    return jax.nn.softmax(logit, axis=-1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Competition:
    """How the outputs compete for the inputs: makes couplings of logits.

    Attributes:
        initial_logit: Added to the logits in every round.
        input_mask: False for inputs that send nothing.
        output_mask: False for outputs that get nothing.
        compete: Turns logits into couplings.
        nowhere: Whether there is one more output, whose logit is zero, and which is
            dropped: an input may be sent to none of the outputs.
    """

    initial_logit: Float[Array, "*_ i j"] | None = None
    input_mask: Bool[Array, "*_ i"] | None = None
    output_mask: Bool[Array, "*_ j"] | None = None
    compete: Compete = dataclasses.field(
        default=over_outputs, metadata={"static": True}
    )
    nowhere: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def is_plain(self) -> bool:
        """Whether all inputs go to all outputs, which start alike."""
        arrays = (self.initial_logit, self.input_mask, self.output_mask)
        return self.compete is over_outputs and all(array is None for array in arrays)

    def couple(self, logit: Float[Array, "*batch i j"]) -> Float[Array, "*batch i j"]:
        """The couplings of a round, given the logits without the initial ones."""
        if self.initial_logit is not None:
            logit = logit + self.initial_logit
        gets = None
        if self.output_mask is not None:
            gets = jnp.expand_dims(self.output_mask, -2)
            # Not minus infinity: of outputs that are all masked the softmax is finite.
            logit = jnp.where(gets, logit, jnp.finfo(logit.dtype).min)
        if self.nowhere:
            nowhere = jnp.zeros_like(logit[..., :1])
            logit = jnp.concatenate([nowhere, logit], axis=-1)
        coupling = self.compete(logit)[..., int(self.nowhere) :]
        if gets is not None:
            coupling = jnp.where(gets, coupling, 0)
        if self.input_mask is not None:
            coupling = jnp.where(self.input_mask[..., None], coupling, 0)
        return coupling

    def start(self, votes: Float[Array, "*batch i j d"]) -> Float[Array, "*batch i j"]:
        """The couplings of the first round, before anything has agreed."""
        if self.is_plain:
            # Of zeros the softmax is known, and XLA would spend seconds on finding out.
            # Made like the votes, it keeps the sharding of the batch.
            return jnp.full_like(votes[..., 0], 1 / (votes.shape[-2] + self.nowhere))
        return self.couple(jnp.zeros_like(votes[..., 0]))

    def start_logit(self, dtype: jnp.dtype) -> Float[Array, "*_ i j"] | None:
        """Initial logits that keep masked outputs out; None where all start alike.

        Of the axes of batch and inputs those over which they do not differ may be one
        long.
        """
        logit = self.initial_logit
        if self.output_mask is not None:
            gets = jnp.expand_dims(self.output_mask, -2)
            logit = jnp.zeros((), dtype) if logit is None else logit
            # What agreement adds must not make minus infinity of it.
            logit = jnp.where(gets, logit, jnp.finfo(dtype).min / 2)
        if logit is None:
            return None
        if self.input_mask is not None and self.initial_logit is not None:
            logit = jnp.where(self.input_mask[..., None], logit, 0)
        return logit.astype(dtype)

    def without_masked(
        self,
        votes: Float[Array, "*batch i j d"],
        activation: Float[Array, "*batch i"] | None,
    ) -> tuple[Array, Array | None, "Competition"]:
        """Zero in the place of what masked inputs and outputs hold, NaN or not."""
        initial_logit = self.initial_logit
        if self.input_mask is not None:
            sends = self.input_mask
            votes = jnp.where(sends[..., None, None], votes, 0)
            if activation is not None:
                activation = jnp.where(sends, activation, 0)
            if initial_logit is not None:
                initial_logit = jnp.where(sends[..., None], initial_logit, 0)
        if self.output_mask is not None:
            gets = jnp.expand_dims(self.output_mask, -2)
            votes = jnp.where(gets[..., None], votes, 0)
            if initial_logit is not None:
                initial_logit = jnp.where(gets, initial_logit, 0)
        own = dataclasses.replace(self, initial_logit=initial_logit)
        return votes, activation, own

    def without_masked_capsules(
        self, capsules: Float[Array, "*batch i c"]
    ) -> Float[Array, "*batch i c"]:
        """Zero in the place of what masked inputs hold, NaN or not."""
        if self.input_mask is None:
            return capsules
        return jnp.where(self.input_mask[..., None], capsules, 0)

    def present(self) -> Bool[Array, "*_ j"] | None:
        """Which outputs get anything; None where all do."""
        present = self.output_mask
        if self.input_mask is not None:
            has_inputs = self.input_mask.any(-1, keepdims=True)
            present = has_inputs if present is None else present & has_inputs
        return present


def check_competition(
    initial_logit: Shaped[ArrayLike, "..."] | None,
    input_mask: Shaped[ArrayLike, "..."] | None,
    output_mask: Shaped[ArrayLike, "..."] | None,
    compete: Compete,
    batch: tuple[Any, ...],
    i: int,
    j: int,
) -> Competition:
    """Initial logits and masks as arrays, with how outputs compete.

    Raises:
        ValueError: If one does not fit the votes, or has numbers of another kind.
    """

    def checked(name, array, axes, own, kind):
        if array is None:
            return None
        array = jnp.asarray(array)
        fits = array.shape[-len(own) :] == own and len(array.shape) >= len(own)
        try:
            fits &= jnp.broadcast_shapes(array.shape[: -len(own)], batch) == batch
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"{name} must have the axes [*batch, {axes}], {own} behind batch axes "
                f"that broadcast to those of the votes, {batch}; got shape "
                f"{array.shape}."
            )
        if not jnp.issubdtype(array.dtype, kind):
            needed = "True or False" if kind is jnp.bool_ else "floating-point numbers"
            raise ValueError(f"{name} must be {needed}, got {array.dtype}.")
        # Of the votes' rank: JAX may be told to promote none.
        missing = len(batch) + len(own) - array.ndim
        return array.reshape(*[1] * missing, *array.shape)

    return Competition(
        checked("initial_logit", initial_logit, "i, j", (i, j), jnp.floating),
        checked("input_mask", input_mask, "i", (i,), jnp.bool_),
        checked("output_mask", output_mask, "j", (j,), jnp.bool_),
        compete,
    )
