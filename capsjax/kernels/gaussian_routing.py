"""One round of routing by given Gaussians that never holds the votes.

The logits are ``offset_j - sum_h precision_jh (u_hat_ijh - centre_jh)^2 / 2``. So one
pass over blocks of input capsules makes a block's votes and couplings, and adds to the
moments of the votes. The sums are of differences from the centres, which lie near the
means: sums of votes and of their squares would cancel. The gradient is one more pass.
Where outputs of several windows compete for an input, one more pass makes the totals by
which windows share it. The blocks and their layout are those of
:mod:`capsjax.kernels.dynamic_routing`.

Letters: as there; ``p`` is ``1 + 2 d`` numbers for each output.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from capsjax.kernels.batching import primitive_over_examples
from capsjax.kernels.vote_blocks import (
    Operands,
    Votes,
    add_to_block,
    flat_batch,
    join,
    map_form,
    numbered,
    split,
)
from capsjax.runtime.platforms import Platform

# Votes count as at most this far from a centre: squares stay finite.
_FARTHEST = 1e10


class Gaussians(NamedTuple):
    """What the logits of the votes for each output are made of."""

    offset: Float[Array, "*batch j"]
    centre: Float[Array, "*batch j d"]
    precision: Float[Array, "*batch j d"]


class Sums(NamedTuple):
    """Sums over the inputs, each in its share of an output.

    Attributes:
        share: The shares themselves, ``c_ij a_i``.
        away: The votes' differences from the centre.
        square: The squares of these.
    """

    share: Float[Array, "*batch j"]
    away: Float[Array, "*batch j d"]
    square: Float[Array, "*batch j d"]


def sum_by_gaussians(
    capsules: Float[Array, "*batch i c"],
    weight: Float[Array, "i j d c"],
    activation: Float[Array, "*batch i"],
    gaussians: Gaussians,
    start: Float[Array, "*_ i j"] | None = None,
    *,
    holds_votes: bool | None = None,
) -> Sums:
    """Returns sums over the votes in their shares of the outputs.

    Reverse mode only. All arrays must have one type, float32 or float64, and inside
    ``jax.shard_map`` vary over the same axes.

    Args:
        capsules: The input capsules.
        weight: The matrices that turn them into votes.
        activation: What each input gives away.
        gaussians: The Gaussian of each output.
        start: Added to the logits. Axes before ``j`` may have size one, and batch axes
            may be missing.
        holds_votes: True to hold the votes, False to make them block by block, None for
            the faster way (:meth:`capsjax.runtime.platforms.Platform.routing_form`).
    """
    batch, operands = _flat(capsules, weight, gaussians, start)
    operands.insert(2, activation.reshape(-1, activation.shape[-1]))
    sums = _sums_of_votes.bind(*operands, holds_votes=holds_votes)
    return Sums(*_unpack(sums.reshape(*batch, *sums.shape[1:])))


def log_totals(
    capsules: Float[Array, "*batch i c"],
    weight: Float[Array, "i j d c"],
    gaussians: Gaussians,
    start: Float[Array, "*_ i j"] | None = None,
    *,
    holds_votes: bool | None = None,
) -> Float[Array, "*batch i"]:
    """Returns ``ln sum_j exp b_ij`` of each input's logits.

    All is as in :func:`sum_by_gaussians`, whose shares are ``exp b_ij`` by this total.
    """
    batch, operands = _flat(capsules, weight, gaussians, start)
    totals = _totals_of_logits.bind(*operands, holds_votes=holds_votes)
    return totals.reshape(*batch, -1)


def _flat(capsules, weight, gaussians, start) -> tuple[list[Any], list[Array]]:
    """Returns the batch axes, and operands with one batch axis."""
    *batch, i, c = capsules.shape
    packed = _pack(gaussians)
    operands = [
        capsules.reshape(-1, i, c),
        weight,
        packed.reshape(-1, *packed.shape[-2:]),
    ]
    if start is not None:
        operands.append(flat_batch(start, batch))
    return batch, operands


def _pack(parts: tuple[Array, Array, Array]) -> Float[Array, "*batch j p"]:
    """Joins Gaussians or sums to one array, as a primitive has one result."""
    return jnp.concatenate([parts[0][..., None], *parts[1:]], -1)


def _unpack(packed: Float[Array, "*batch j p"]) -> tuple[Array, Array, Array]:
    """Reverses :func:`_pack`."""
    dim = packed.shape[-1] // 2
    return packed[..., 0], packed[..., 1 : 1 + dim], packed[..., 1 + dim :]


def _type_of_sums(capsules, weight, activation, gaussians, *start, holds_votes):
    return gaussians


def _votes_sums(capsules, weight, activation, gaussians, start=None, *, holds_votes):
    return _sum(capsules, weight, activation, gaussians, start, holds_votes)


_sums_of_votes = primitive_over_examples(
    _votes_sums, _type_of_sums, shared=(1,), optional=4
)


# ---- its gradient


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _sum(capsules, weight, activation, gaussians, start, holds_votes):
    operands = capsules, weight, activation, gaussians, start
    return _sum_forward(*operands, holds_votes)[0]


def _sum_forward(capsules, weight, activation, gaussians, start, holds_votes):
    operands, axes = _given(capsules, weight, activation, gaussians, start)
    sums = map_form(_forward, _held, axes, 0, holds_votes=holds_votes)(*operands)
    return sums, (capsules, weight, activation, gaussians, start, sums)


def _sum_backward(holds_votes, residuals, gradient):
    *operands, sums = residuals
    operands, axes = _given(*operands)
    in_axes = (*axes, 0, 0)
    backward = map_form(
        _backward, _held_backward, in_axes, axes, holds_votes=holds_votes
    )
    gradients = backward(*operands, sums, gradient)
    return gradients if len(gradients) == 5 else (*gradients, None)


_sum.defvjp(_sum_forward, _sum_backward)


def _given(*operands):
    """Returns the operands that there are, and their batch axes."""
    *always, start = operands
    axes = (0, None, *[0] * (len(always) - 2))
    if start is None:
        return always, axes
    return operands, (*axes, 0 if len(start) > 1 else None)


def _held(capsules, weight, activation, gaussians, start=None) -> Float[Array, "b j p"]:
    away, logit = _held_logit(capsules, weight, gaussians, start)
    share = jax.nn.softmax(logit, axis=-1) * activation[..., None]
    first, second = (jnp.einsum("bij,bijd->bjd", share, x) for x in (away, away**2))
    return _pack((share.sum(1), first, second))


def _held_logit(capsules, weight, gaussians, start) -> tuple[Array, Array]:
    """Returns the votes' differences from the centres, and the logits."""
    offset, centre, precision = _unpack(gaussians)
    votes = jnp.einsum("bic,ijdc->bijd", capsules, weight)
    away = jnp.clip(votes - centre[:, None], -_FARTHEST, _FARTHEST)
    # A product keeps one array of the votes' size for the gradient, a quotient two.
    distance = jnp.einsum("bijd,bjd->bij", away**2, precision)
    logit = offset[:, None] - distance / 2
    return away, logit if start is None else logit + start


def _held_backward(*operands_and_gradient):
    *operands, _, gradient = operands_and_gradient
    return jax.vjp(_held, *operands)[1](gradient)


class _Block(Votes):
    """The votes of one block, and their differences from the centres."""

    def __init__(self, block, gaussians: Gaussians, platform: Platform):
        super().__init__(block, gaussians.centre.shape, platform)
        # In a pass for totals, their gradients.
        self.activation, self._gaussians = block[1].activation, gaussians
        self.away = self.fence(
            lambda votes, centre: jnp.clip(votes - centre, -_FARTHEST, _FARTHEST),
            *(self._votes, gaussians.centre[None]),
        )

    def couple_by_distance(self) -> Float[Array, "i j b"]:
        """Returns the couplings."""
        return self.softmax(self._logit())

    def log_total(self) -> Float[Array, "i b"]:
        """Returns the logarithm of each input's sum of exponentials of logits."""
        return self.log_sum(self._logit())

    def _logit(self) -> Float[Array, "i j b"]:
        def score(away, offset, precision):
            return offset - self.total(2, away, away, precision) / 2

        offset, _, precision = self._gaussians
        return self.fence(score, self.away, offset[None], precision[None])

    def add_up(self, share: Float[Array, "i j b"]) -> Sums:
        """Returns the sums of shares, differences and squares."""
        each = share[:, :, None]
        return Sums(
            self.total(0, share),
            self.total(0, each, self.away),
            self.total(0, each, self.away, self.away),
        )

    def pull_back(self, gradient: Sums) -> tuple[Gaussians, Operands]:
        """Returns shares of the gradients, of the Gaussians by way of the logits."""

        def pull(away, share, first, second):
            return (
                share + self.total(2, away, first) + self.total(2, away, away, second)
            )

        def to_logit(product, coupling, total, activation):
            return (product - coupling * total) * activation

        coupling = self.couple_by_distance()
        of_sums = [x[None] for x in gradient]
        of_share = self.fence(pull, self.away, *of_sums)
        product = self.fence(jnp.multiply, coupling, of_share)
        of_activation = self.fence(lambda x: self.total(1, x), product)
        activation = self.activation[:, None]
        of_logit = self.fence(
            to_logit, product, coupling, of_activation[:, None], activation
        )
        share = self.fence(jnp.multiply, coupling, activation)
        _, first, second = of_sums
        of_votes = share[:, :, None] * (first + 2 * second * self.away)
        gaussians, operands = self._pull_back_logit(of_logit, of_votes)
        return gaussians, operands._replace(activation=of_activation)

    def pull_back_totals(self) -> tuple[Gaussians, Operands]:
        """Returns shares of the gradients, given gradients of the totals."""
        of_logit = self.fence(
            jnp.multiply, self.couple_by_distance(), self.activation[:, None]
        )
        return self._pull_back_logit(of_logit, jnp.zeros(()))

    def _pull_back_logit(
        self, of_logit: Float[Array, "i j b"], of_votes: Array
    ) -> tuple[Gaussians, Operands]:
        """Returns gradients by way of the logits, and those of the votes added."""
        precision = self._gaussians.precision
        of_votes -= of_logit[:, :, None] * precision[None] * self.away
        logits = self.add_up(of_logit)
        of_gaussians = logits.share, precision * logits.away, -logits.square / 2
        return Gaussians(*of_gaussians), self.uncast(of_votes, of_logit)


def _forward(
    capsules, weight, activation, gaussians, start=None, *, platform: Platform
) -> Float[Array, "b j p"]:
    blocks = split(capsules, weight, start, platform, activation)
    gaussians = Gaussians(*_batch_last(gaussians))

    def add_block(sums, block):
        votes = _Block(block, gaussians, platform)
        activation = votes.activation[:, None]
        share = votes.fence(jnp.multiply, votes.couple_by_distance(), activation)
        return jax.tree.map(jnp.add, sums, votes.add_up(share)), None

    zeros = Sums(*map(jnp.zeros_like, gaussians))
    return _batch_first(lax.scan(add_block, zeros, numbered(blocks))[0])


def _backward(capsules, weight, activation, gaussians, *rest, platform: Platform):
    *given, sums, gradient = rest
    start = given[0] if given else None
    blocks = split(capsules, weight, start, platform, activation)
    gaussians = Gaussians(*_batch_last(gaussians))
    gradient, sums = Sums(*_batch_last(gradient)), Sums(*_batch_last(sums))

    def add_block(totals, block):
        of_gaussians, gradients = totals
        own, operands = _Block(block, gaussians, platform).pull_back(gradient)
        of_gaussians = jax.tree.map(jnp.add, of_gaussians, own)
        return (of_gaussians, add_to_block(gradients, operands, block[0])), None

    zeros = jax.tree.map(jnp.zeros_like, (gaussians, blocks))
    of_gaussians, gradients = lax.scan(add_block, zeros, numbered(blocks))[0]
    # The sums of differences depend on the centres, too.
    direct = gradient.away * sums.share[:, None] + 2 * gradient.square * sums.away
    of_gaussians = of_gaussians._replace(centre=of_gaussians.centre - direct)
    of_capsules, of_weight, *others = join(gradients, capsules, weight, start)
    of_activation, *of_start = others
    return of_capsules, of_weight, of_activation, _batch_first(of_gaussians), *of_start


def _batch_last(packed: Float[Array, "b j p"]) -> tuple[Array, ...]:
    parts = _unpack(packed)
    return tuple(jnp.moveaxis(part, 0, -1) for part in parts)


def _batch_first(parts: tuple[Array, ...]) -> Float[Array, "b j p"]:
    first, second, third = (jnp.moveaxis(part, -1, 0) for part in parts)
    return _pack((first, second, third))


# ---- totals


def _votes_totals(capsules, weight, gaussians, start=None, *, holds_votes):
    return _total(capsules, weight, gaussians, start, holds_votes)


def _type_of_totals(capsules, weight, gaussians, *start, holds_votes):
    return capsules.update(shape=capsules.shape[:2])


_totals_of_logits = primitive_over_examples(
    _votes_totals, _type_of_totals, shared=(1,), optional=3
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _total(capsules, weight, gaussians, start, holds_votes):
    return _total_forward(capsules, weight, gaussians, start, holds_votes)[0]


def _total_forward(capsules, weight, gaussians, start, holds_votes):
    operands, axes = _given(capsules, weight, gaussians, start)
    totals = map_form(_totals, _held_totals, axes, 0, holds_votes=holds_votes)(
        *operands
    )
    return totals, (capsules, weight, gaussians, start)


def _total_backward(holds_votes, residuals, gradient):
    operands, axes = _given(*residuals)
    forms = _totals_backward, _held_totals_backward
    backward = map_form(*forms, (*axes, 0), axes, holds_votes=holds_votes)
    gradients = backward(*operands, gradient)
    return gradients if len(gradients) == 4 else (*gradients, None)


_total.defvjp(_total_forward, _total_backward)


def _held_totals(capsules, weight, gaussians, start=None) -> Float[Array, "b i"]:
    logit = _held_logit(capsules, weight, gaussians, start)[1]
    return jax.nn.logsumexp(logit, axis=-1)


def _held_totals_backward(*operands_and_gradient):
    *operands, gradient = operands_and_gradient
    return jax.vjp(_held_totals, *operands)[1](gradient)


def _totals(
    capsules, weight, gaussians, start=None, *, platform: Platform
) -> Float[Array, "b i"]:
    blocks = split(capsules, weight, start, platform)
    gaussians = Gaussians(*_batch_last(gaussians))

    def of_block(number, block):
        return number, _Block(block, gaussians, platform).log_total()

    totals = lax.scan(of_block, None, numbered(blocks))[1]
    return lax.collapse(totals, 0, 2)[: capsules.shape[1]].T


def _totals_backward(capsules, weight, gaussians, *rest, platform: Platform):
    *given, gradient = rest
    start = given[0] if given else None
    blocks = split(capsules, weight, start, platform, gradient)
    gaussians = Gaussians(*_batch_last(gaussians))

    def add_block(totals, block):
        of_gaussians, gradients = totals
        own, operands = _Block(block, gaussians, platform).pull_back_totals()
        of_gaussians = jax.tree.map(jnp.add, of_gaussians, own)
        return (of_gaussians, add_to_block(gradients, operands, block[0])), None

    zeros = jax.tree.map(jnp.zeros_like, (gaussians, blocks._replace(activation=None)))
    of_gaussians, gradients = lax.scan(add_block, zeros, numbered(blocks))[0]
    of_capsules, of_weight, *of_start = join(gradients, capsules, weight, start)
    return of_capsules, of_weight, _batch_first(of_gaussians), *of_start
