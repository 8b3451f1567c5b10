"""Competition for the inputs: turns logits into couplings, with masks and log priors.

Letters: ``i`` input capsules with ``c`` components, ``j`` output capsules with ``d``.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Shaped

from capsjax.votes import fold_windows, gather_windows

Compete = Callable[[Float[Array, "*batch i j"]], Float[Array, "*batch i j"]]


def over_outputs(logit: Float[Array, "*batch i j"]) -> Float[Array, "*batch i j"]:
    """Lets the outputs of a layer compete for each input: ``softmax_j`` (Eq. 3)."""
    return jax.nn.softmax(logit, axis=-1)


@dataclasses.dataclass(frozen=True)
class OverImage:
    r"""Lets the outputs of all windows that hold an input compete for it.

    .. math::
        c_{nij} = \frac{\exp b_{nij}}{\sum_{n', j'} \exp b_{n'ij'}}

    with the sum over the windows ``n'`` that hold the input ``i``: it spreads one unit
    over the image. Where windows do not overlap, this is :func:`over_outputs`.

    Attributes:
        kernel_size: Side of a window.
        stride: Step between windows.

    References:
        Gritzman 2019, *Avoiding Implementation Pitfalls of Matrix Capsules with EM
        Routing by Hinton et al.*, https://arxiv.org/abs/1907.00652.
    """

    kernel_size: int
    stride: int

    def among_windows(
        self, log_total: Float[Array, "*batch H W i"]
    ) -> Float[Array, "*batch H W i"]:
        """Returns the part of each input that goes to each window that holds it.

        The coupling is this part of what the outputs of the window alone would get.

        Args:
            log_total: ``ln sum_j exp b_nij`` of the logits in each window.
        """
        own = self.kernel_size, self.stride
        *windows, i = log_total.shape
        size = self.kernel_size**2
        total = log_total.reshape(*windows, size, i // size)

        def spread(children):
            return gather_windows(children, *own, behind=1)

        most = jax.lax.stop_gradient(total)
        most = fold_windows(most, *own, jnp.maximum, -jnp.inf, behind=1)
        part = jnp.exp(total - spread(most))
        whole = fold_windows(part, *own, jnp.add, 0.0, behind=1)
        return (part / spread(whole)).reshape(*windows, i)

    def equal_parts(
        self, height: int, width: int, i: int
    ) -> Float[Array, "{height} {width} {i}"]:
        """Returns these parts for equal logits, of a map of windows."""
        own = self.kernel_size, self.stride
        size = self.kernel_size**2
        ones = jnp.ones((height, width, size, 1), jnp.float32)
        number = fold_windows(ones, *own, jnp.add, 0.0, behind=1)
        part = 1 / gather_windows(number, *own, behind=1)
        part = jnp.broadcast_to(part, (height, width, size, i // size))
        return part.reshape(height, width, i)

    def __call__(
        self, logit: Float[Array, "*batch H W i j"]
    ) -> Float[Array, "*batch H W i j"]:
        """Returns the couplings of windows whose inputs ``i`` are ``(k t)``."""
        part = self.among_windows(jax.nn.logsumexp(logit, axis=-1))
        return over_outputs(logit) * part[..., None]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Competition:
    """The rules of outputs that compete for inputs: turns logits into couplings.

    Attributes:
        initial_logit: Added to the logits in every round.
        input_mask: False for inputs that send nothing.
        output_mask: False for outputs that get nothing.
        compete: Turns logits into couplings.
        nowhere: Whether an input may be sent to none of the outputs: one more output
            with a logit of zero competes, and is dropped.
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
        """True if all inputs go to all outputs, which start alike."""
        arrays = (self.initial_logit, self.input_mask, self.output_mask)
        return self.compete is over_outputs and all(array is None for array in arrays)

    def couple(self, logit: Float[Array, "*batch i j"]) -> Float[Array, "*batch i j"]:
        """Returns the couplings of a round, given the logits without initial ones."""
        if self.initial_logit is not None:
            logit = logit + self.initial_logit
        gets = None
        if self.output_mask is not None:
            gets = jnp.expand_dims(self.output_mask, -2)
            # Not minus infinity: the softmax stays finite if all outputs are masked.
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
        """Returns the couplings of the first round, before any agreement."""
        zeros = jnp.zeros_like(votes[..., 0])
        if self.initial_logit is not None or self.output_mask is not None:
            return self.couple(zeros)
        # The softmax of zeros is known, and XLA would spend seconds finding out.
        if self.compete is over_outputs:
            # ``full_like`` keeps the sharding of the votes' batch.
            share = jnp.full_like(zeros, 1 / (zeros.shape[-1] + self.nowhere))
        elif isinstance(self.compete, OverImage) and not self.nowhere:
            part = self.compete.equal_parts(*zeros.shape[-4:-1]).astype(zeros.dtype)
            part = part.reshape(*[1] * (zeros.ndim - 4), *part.shape, 1)
            share = part / zeros.shape[-1] + zeros
        else:
            return self.couple(zeros)
        if self.input_mask is not None:
            share = jnp.where(self.input_mask[..., None], share, 0)
        return share

    def start_logit(self, dtype: jnp.dtype) -> Float[Array, "*_ i j"] | None:
        """Returns initial logits that exclude masked outputs; None if all start alike.

        Axes of batch and inputs may have size one if the logits are equal along them.
        """
        logit = self.initial_logit
        if self.output_mask is not None:
            gets = jnp.expand_dims(self.output_mask, -2)
            logit = jnp.zeros((), dtype) if logit is None else logit
            # Half of it: adding agreement must not overflow to minus infinity.
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
        """Replaces the values of masked inputs and outputs by zero, NaN or not."""
        if self.input_mask is not None:
            sends = self.input_mask
            votes = jnp.where(sends[..., None, None], votes, 0)
            if activation is not None:
                activation = jnp.where(sends, activation, 0)
        if self.output_mask is not None:
            gets = jnp.expand_dims(self.output_mask, -2)
            votes = jnp.where(gets[..., None], votes, 0)
        return votes, activation, self.without_masked_logits()

    def without_masked_logits(self) -> "Competition":
        """Replaces the initial logits of masked inputs and outputs by zero."""
        logit = self.initial_logit
        if logit is None:
            return self
        if self.input_mask is not None:
            logit = jnp.where(self.input_mask[..., None], logit, 0)
        if self.output_mask is not None:
            logit = jnp.where(jnp.expand_dims(self.output_mask, -2), logit, 0)
        return dataclasses.replace(self, initial_logit=logit)

    def without_masked_capsules(
        self, capsules: Float[Array, "*batch i c"]
    ) -> Float[Array, "*batch i c"]:
        """Replaces the values of masked inputs by zero, NaN or not."""
        if self.input_mask is None:
            return capsules
        return jnp.where(self.input_mask[..., None], capsules, 0)

    def present(self) -> Bool[Array, "*_ j"] | None:
        """Returns which outputs get anything; None if all do."""
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
    """Returns the competition, with initial logits and masks as checked arrays.

    Raises:
        ValueError: If an array does not fit the votes, or has another kind of numbers.
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
                f"that broadcast to the votes' batch axes, {batch}; got shape "
                f"{array.shape}."
            )
        if not jnp.issubdtype(array.dtype, kind):
            needed = "True or False" if kind is jnp.bool_ else "floating-point numbers"
            raise ValueError(f"{name} must be {needed}, got {array.dtype}.")
        # The votes' rank: a setting of JAX may forbid promotion.
        missing = len(batch) + len(own) - array.ndim
        return array.reshape(*[1] * missing, *array.shape)

    return Competition(
        checked("initial_logit", initial_logit, "i, j", (i, j), jnp.floating),
        checked("input_mask", input_mask, "i", (i,), jnp.bool_),
        checked("output_mask", output_mask, "j", (j,), jnp.bool_),
        compete,
    )
