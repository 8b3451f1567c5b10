"""One round of routing by given queries that never holds the votes.

The logits are the products of the votes ``u_hat_ij = W_ij u_i`` with a query for each
output. So one pass over blocks of input capsules makes a block's votes and couplings,
and adds to ``s_j = sum_i softmax_j(u_hat_ij . q_j + start_ij) u_hat_ij``. The gradient
is one more pass. The blocks and their layout are those of
:mod:`capsjax.kernels.dynamic_routing`, whose queries are sums of poses.

Letters: as there.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from capsjax.kernels.batching import primitive_over_examples
from capsjax.kernels.vote_blocks import (
    Rounds,
    Votes,
    flat_batch,
    join,
    map_form,
    numbered,
    pull_back,
    split,
)
from capsjax.runtime.platforms import Platform

_ROUND = Rounds(num_iterations=1, none_of_the_above=False, stop_gradient=False)


def sum_by_query(
    capsules: Float[Array, "*batch i c"],
    weight: Float[Array, "i j d c"],
    query: Float[Array, "*batch j d"],
    start: Float[Array, "*_ i j"] | None = None,
    *,
    holds_votes: bool | None = None,
) -> Float[Array, "*batch j d"]:
    """Returns the votes' sum in shares by their agreement with a query.

    Reverse mode only. All arrays must have one type, float32 or float64, and inside
    ``jax.shard_map`` vary over the same axes.

    Args:
        capsules: The input capsules.
        weight: The matrices that turn them into votes.
        query: A vector for each output.
        start: Added to the logits. Axes before ``j`` may have size one, and batch axes
            may be missing.
        holds_votes: True to hold the votes, False to make them block by block, None for
            the faster way (:meth:`capsjax.runtime.platforms.Platform.routing_form`).
    """
    *batch, i, c = capsules.shape
    operands = [
        capsules.reshape(-1, i, c),
        weight,
        query.reshape(-1, *query.shape[-2:]),
    ]
    if start is not None:
        operands.append(flat_batch(start, batch))
    s = _sum_of_votes.bind(*operands, holds_votes=holds_votes)
    return s.reshape(*batch, *s.shape[1:])


def _type_of_sum(capsules, weight, query, *start, holds_votes):
    return query


def _votes_sum(capsules, weight, query, start=None, *, holds_votes):
    return _sum(capsules, weight, query, start, holds_votes)


_sum_of_votes = primitive_over_examples(
    _votes_sum, _type_of_sum, shared=(1,), optional=3
)


# ---- its gradient


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _sum(capsules, weight, query, start, holds_votes) -> Float[Array, "b j d"]:
    return _sum_forward(capsules, weight, query, start, holds_votes)[0]


def _sum_forward(capsules, weight, query, start, holds_votes):
    operands, axes = _given(capsules, weight, query, start)
    s = map_form(_forward, _held, axes, 0, holds_votes=holds_votes)(*operands)
    return s, (capsules, weight, query, start)


def _sum_backward(holds_votes, residuals, s_gradient):
    operands, axes = _given(*residuals)
    backward = map_form(
        _backward, _held_backward, (*axes, 0), axes, holds_votes=holds_votes
    )
    gradients = backward(*operands, s_gradient)
    return gradients if len(gradients) == 4 else (*gradients, None)


_sum.defvjp(_sum_forward, _sum_backward)


def _given(*operands):
    """Returns the operands that there are, and their batch axes."""
    capsules, weight, query, start = operands
    if start is None:
        return (capsules, weight, query), (0, None, 0)
    return operands, (0, None, 0, 0 if len(start) > 1 else None)


def _held(capsules, weight, query, start=None) -> Float[Array, "b j d"]:
    votes = jnp.einsum("bic,ijdc->bijd", capsules, weight)
    logit = jnp.einsum("bijd,bjd->bij", votes, query)
    if start is not None:
        logit = logit + start
    return jnp.einsum("bij,bijd->bjd", jax.nn.softmax(logit, axis=-1), votes)


def _held_backward(*operands_and_gradient):
    *operands, s_gradient = operands_and_gradient
    return jax.vjp(_held, *operands)[1](s_gradient)


def _forward(
    capsules, weight, query, start=None, *, platform: Platform
) -> Float[Array, "b j d"]:
    blocks = split(capsules, weight, start, platform)
    query = query.transpose(1, 2, 0)

    def add_block(s, block):
        votes = Votes(block, query.shape, platform)
        return s + votes.gather(votes.couple(query, _ROUND)), None

    s = lax.scan(add_block, jnp.zeros_like(query), numbered(blocks))[0]
    return s.transpose(2, 0, 1)


def _backward(capsules, weight, query, *start_and_gradient, platform: Platform):
    *given, s_gradient = start_and_gradient
    start = given[0] if given else None
    blocks = split(capsules, weight, start, platform)
    query_gradient, gradients = pull_back(
        blocks,
        jax.tree.map(jnp.zeros_like, blocks),
        query.transpose(1, 2, 0),
        s_gradient.transpose(1, 2, 0),
        jnp.zeros_like(query.transpose(1, 2, 0)),
        rounds=_ROUND,
        platform=platform,
    )
    of_capsules, of_weight, *of_start = join(gradients, capsules, weight, start)
    return of_capsules, of_weight, query_gradient.transpose(2, 0, 1), *of_start
