"""Votes of one block of input capsules at a time, and the steps of routing on them.

Letters: as in :mod:`capsjax.kernels.dynamic_routing`.
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export, lax
from jaxtyping import Array, Float, Int

from capsjax.kernels.batching import in_parts, merge_mapped
from capsjax.runtime.platforms import Platform, by_platform

# Slices that are combined in one expression; more make the compiler slow.
_LONGEST_CHAIN = 32
# Examples at a time, at least: the numbers in a vector of the processor.
_FEWEST_EXAMPLES = 16


class Rounds(NamedTuple):
    """Options of :func:`capsjax.routing`."""

    num_iterations: int
    none_of_the_above: bool
    stop_gradient: bool


class Operands(NamedTuple):
    """Arrays in blocks of input capsules, or their gradients; batch last.

    Attributes:
        weight: The matrices.
        capsules: The input capsules.
        start: Initial logits, or None. Size one along inputs or batch if all share
            them.
        activation: Activations of the input capsules, or None.
    """

    weight: Float[Array, "*k i n c"]
    capsules: Float[Array, "*k i c b"]
    start: Float[Array, "*k _ j _"] | None = None
    activation: Float[Array, "*k i b"] | None = None


class Votes:
    """The votes of one block, and the steps of routing on them."""

    def __init__(
        self,
        block: tuple[Int[Array, ""], Operands],
        shape: tuple[Any, ...],
        platform: Platform,
    ):
        self._number, self._operands = block
        self._platform = platform
        votes = jnp.einsum("inc,icb->inb", *self._operands[:2])
        self._votes = votes.reshape(len(votes), *shape)

    def agree(self, vector: Float[Array, "j d b"]) -> Float[Array, "i j b"]:
        """Returns the scalar product of each vote with a vector."""
        return self.fence(
            lambda votes, vector: self.total(2, votes, vector[None]),
            self._votes,
            vector,
        )

    def gather(self, share: Float[Array, "i j b"]) -> Float[Array, "j d b"]:
        """Returns the sum of all votes, each times its share."""
        return self.total(0, share[:, :, None], self._votes)

    def couple(
        self, pose_sum: Float[Array, "j d b"], rounds: Rounds
    ) -> Float[Array, "i j b"]:
        """Returns the couplings: the softmax over ``j`` of the votes' agreement."""
        return self.softmax(self.agree(pose_sum), nowhere=rounds.none_of_the_above)

    def softmax(
        self, logit: Float[Array, "i j b"], *, nowhere: bool = False
    ) -> Float[Array, "i j b"]:
        """Returns the softmax over ``j`` of logits without the initial ones.

        Args:
            logit: The logits.
            nowhere: Whether "none of the above" competes: one more output whose logit
                is zero.
        """

        def scale(share, offset):
            total = self.total(1, share)
            return 1 / (total + jnp.exp(-offset) if nowhere else total)

        share, offset = self._exponentials(logit, nowhere=nowhere)
        scaled = self.fence(scale, share, offset)
        return self.fence(lambda x, y: x * y[:, None], share, scaled)

    def log_sum(self, logit: Float[Array, "i j b"]) -> Float[Array, "i b"]:
        """Returns ``ln sum_j exp b_ij`` of logits without the initial ones."""
        share, offset = self._exponentials(logit, nowhere=False)
        return offset + jnp.log(self.total(1, share))

    def _exponentials(
        self, logit: Float[Array, "i j b"], *, nowhere: bool
    ) -> tuple[Float[Array, "i j b"], Float[Array, "i b"]]:
        """Returns the exponentials of differences from the largest logit, and that."""

        def largest(logit):
            largest = self._fold(jnp.maximum, jnp.max, 1, logit)
            return jnp.maximum(largest, 0) if nowhere else largest

        if self._operands.start is not None:
            logit = logit + self._operands.start
        offset = self.fence(largest, logit)
        share = self.fence(lambda x, y: jnp.exp(x - y[:, None]), logit, offset)
        return share, offset

    def uncouple(
        self, coupling: Float[Array, "i j b"], s_gradient: Float[Array, "j d b"]
    ) -> Float[Array, "i j b"]:
        """Returns the gradient of the logits, given the gradient of ``s``."""
        gradient = self.agree(s_gradient)
        mean = self.fence(lambda x, y: self.total(1, x, y), coupling, gradient)
        return self.fence(
            lambda x, y, mean: x * (y - mean[:, None]), coupling, gradient, mean
        )

    def uncast(
        self,
        gradient: Float[Array, "i j d b"],
        logit_gradient: Float[Array, "i j b"] | None,
    ) -> Operands:
        """Returns the operands' gradients, given gradients of votes and logits."""
        weight, capsules, start, _ = self._operands
        gradient = lax.collapse(gradient, 1, 3)
        if start is not None:
            shared = [n for n in (0, 2) if start.shape[n] == 1]
            own = jnp.zeros_like(start) if logit_gradient is None else logit_gradient
            start = own.sum(shared, keepdims=True)
        return Operands(
            jnp.einsum("inb,icb->inc", gradient, capsules),
            jnp.einsum("inb,inc->icb", gradient, weight),
            start,
        )

    def total(self, axis: int, *factors: Array) -> Array:
        """Sums the product of the factors along an axis."""
        return self._fold(operator.add, jnp.sum, axis, *factors)

    def _fold(
        self, combine: Callable, reduce: Callable, axis: int, *factors: Array
    ) -> Array:
        """Reduces the product of the factors along an axis.

        XLA:CPU reduces one number at a time over any axis but the last. A chain of
        slices computes the same in whole vectors, ten times faster.
        """
        if not self._platform.slices_sums:
            return reduce(functools.reduce(operator.mul, factors), axis)

        def take(start, size):
            parts = [
                lax.slice_in_dim(x, start, start + size, axis=axis) for x in factors
            ]
            return functools.reduce(operator.mul, parts)

        # Long axes in two steps.
        total = factors[0].shape[axis]
        size = -(-total // _LONGEST_CHAIN)
        end = total // size * size
        terms = [take(start, size) for start in range(0, end, size)]
        folded = functools.reduce(combine, terms)
        rest = [take(k, 1) for k in range(end, total)]
        ones = [lax.slice_in_dim(folded, k, k + 1, axis=axis) for k in range(size)]
        return functools.reduce(combine, [*ones, *rest]).squeeze(axis)

    def fence(self, function: Callable, *operands: Array) -> Array:
        """Computes ``function(*operands)`` once.

        XLA:CPU considers sums and products so cheap that it computes them again for
        each number that uses them, here a hundred times. ``lax.optimization_barrier``
        does not prevent that. A branch does: the compiler does not find out that a
        block's number is never negative.
        """
        if not self._platform.slices_sums:
            return function(*operands)

        def never(*operands):
            shape = jax.eval_shape(function, *operands).shape
            return lax.full_like(operands[0], 0, shape=shape)

        return lax.cond(self._number >= 0, function, never, *operands)


def map_form(
    votes_free: Callable[..., Any],
    votes: Callable[..., Any],
    in_axes: Sequence[int | None],
    out_axes: Any,
    *,
    holds_votes: bool | None,
) -> Callable[..., Any]:
    """Makes a function of a batch from two that compute the same.

    Args:
        votes_free: Makes the votes block by block. Takes capsules ``[b, i, c]``, weight
            ``[i, j, d, c]``, other arrays, and a platform.
        votes: Holds the votes. Takes the arrays.
        in_axes: As for ``merge_mapped``.
        out_axes: As for ``merge_mapped``.
        holds_votes: Which to take; None for each platform's faster one.
    """

    def choose(capsules, weight, *operands, platform):
        is_held = holds_votes
        if is_held is None:
            batch = capsules.shape[0]
            votes_bytes = batch * math.prod(weight.shape[:3]) * weight.dtype.itemsize
            is_held = platform.routing_form(batch, votes_bytes) == "votes"
        if is_held:
            return votes(capsules, weight, *operands)
        free = functools.partial(in_small_parts, votes_free, in_axes, out_axes)
        return free(capsules, weight, *operands, platform=platform)

    function = functools.partial(by_platform, choose)
    return merge_mapped(function, in_axes, out_axes)


def in_small_parts(
    function: Callable[..., Any],
    in_axes: Sequence[int | None],
    out_axes: Any,
    capsules: Float[Array, "b i c"],
    weight: Float[Array, "i j d c"],
    *operands: Array,
    platform: Platform,
    **options: Any,
) -> Any:
    """Computes for so few examples at a time that one input's votes stay in the cache.

    Args:
        function: Takes the operands, the platform and the options.
        in_axes: As for ``merge_mapped``.
        out_axes: As for ``merge_mapped``.
        capsules: The input capsules.
        weight: The matrices.
        operands: Others.
        platform: The platform.
        options: Of the function.
    """
    bytes_of_one = max(1, math.prod(weight.shape[1:3]) * weight.dtype.itemsize)
    size = max(_FEWEST_EXAMPLES, platform.one_input_bytes // bytes_of_one)
    own = functools.partial(function, platform=platform, **options)
    return in_parts(own, size, in_axes, out_axes)(capsules, weight, *operands)


def flat_batch(
    start: Float[Array, "*_ i j"], batch: Sequence[Any]
) -> Float[Array, "b i j"]:
    """Returns initial logits with one batch axis, of size one if examples share them.

    Args:
        start: Initial logits, whose batch axes may be missing or have size one.
        batch: The batch axes of the capsules.
    """
    if math.prod(start.shape[:-2]) > 1:
        start = jnp.broadcast_to(start, (*batch, *start.shape[-2:]))
    return start.reshape(-1, *start.shape[-2:])


def split(
    capsules: Float[Array, "b i c"],
    weight: Float[Array, "i j d c"],
    start: Float[Array, "_ _ j"] | None,
    platform: Platform,
    activation: Float[Array, "b i"] | None = None,
) -> Operands:
    """Cuts the input capsules into blocks of equal size."""
    (batch, i, c), n = capsules.shape, weight.shape[1] * weight.shape[2]
    num_blocks = 1  # Also for a batch of unknown size.
    if not export.is_symbolic_dim(batch):
        largest = platform.block_bytes // max(1, batch * n * weight.dtype.itemsize)
        num_blocks = -(-i // max(1, min(largest, platform.largest_block)))
    size = -(-i // num_blocks)
    # Zero capsules cast zero votes, and without activation count as no votes.
    padding = [(0, num_blocks * size - i), (0, 0), (0, 0)]
    weight = jnp.pad(weight.reshape(i, n, c), padding)
    capsules = jnp.pad(capsules.transpose(1, 2, 0), padding)
    if start is not None:
        start = start.transpose(1, 2, 0)
        if len(start) == i and i > 1:
            start = jnp.pad(start, padding).reshape(num_blocks, size, *start.shape[1:])
        else:
            start = jnp.broadcast_to(start, (num_blocks, *start.shape))
    if activation is not None:
        activation = jnp.pad(activation.T, padding[:2])
        activation = activation.reshape(num_blocks, size, batch)
    return Operands(
        weight.reshape(num_blocks, size, n, c),
        capsules.reshape(num_blocks, size, c, batch),
        start,
        activation,
    )


def join(
    blocks: Operands,
    capsules: Float[Array, "b i c"],
    weight: Float[Array, "i j d c"],
    start: Float[Array, "_ _ j"] | None,
) -> list[Array]:
    """Reverses :func:`split`, to the shapes of capsules, weight, activation, start."""
    i = capsules.shape[1]
    joined = [
        lax.collapse(blocks.capsules, 0, 2)[:i].transpose(2, 0, 1),
        blocks.weight.reshape(-1, *weight.shape[1:])[:i],
    ]
    if blocks.activation is not None:
        joined.append(lax.collapse(blocks.activation, 0, 2)[:i].T)
    if start is None or blocks.start is None:
        return joined
    if start.shape[1] == i and i > 1:
        own = lax.collapse(blocks.start, 0, 2)[:i]
    else:
        own = blocks.start.sum(0)
    return [*joined, own.transpose(2, 0, 1)]


def numbered(blocks: Operands) -> tuple[Int[Array, " k"], Operands]:
    """Returns the blocks with their numbers, to scan over."""
    return jnp.arange(len(blocks.weight)), blocks


def add_to_block(all_blocks: Operands, block: Operands, number: Array) -> Operands:
    """Adds to one block; in place once compiled."""

    def add(whole, part):
        total = lax.dynamic_index_in_dim(whole, number, keepdims=False) + part
        return lax.dynamic_update_index_in_dim(whole, total, number, axis=0)

    return jax.tree.map(add, all_blocks, block)


def pull_back(
    blocks: Operands,
    gradients: Operands,
    pose_sum: Float[Array, "j d b"],
    s_gradient: Float[Array, "j d b"],
    pose_sum_gradient: Float[Array, "j d b"],
    *,
    rounds: Rounds,
    platform: Platform,
) -> tuple[Float[Array, "j d b"], Operands]:
    """Adds one round's share of the gradients, in one pass over the blocks.

    Args:
        blocks: The operands.
        gradients: Their gradients so far.
        pose_sum: The vector whose products with the votes are the logits.
        s_gradient: Gradient of the sum of the votes in their shares.
        pose_sum_gradient: Gradient of ``pose_sum`` so far.
        rounds: Options of the routing.
        platform: The platform.
    """

    def add_block(totals, block):
        pose_sum_gradient, gradients = totals
        votes = Votes(block, pose_sum.shape, platform)
        coupling = votes.couple(pose_sum, rounds)
        votes_gradient = coupling[:, :, None] * s_gradient[None]
        logit_gradient = None
        if not rounds.stop_gradient:
            logit_gradient = votes.uncouple(coupling, s_gradient)
            votes_gradient += logit_gradient[:, :, None] * pose_sum[None]
            pose_sum_gradient = pose_sum_gradient + votes.gather(logit_gradient)
        share = votes.uncast(votes_gradient, logit_gradient)
        gradients = add_to_block(gradients, share, block[0])
        return (pose_sum_gradient, gradients), None

    return lax.scan(add_block, (pose_sum_gradient, gradients), numbered(blocks))[0]
