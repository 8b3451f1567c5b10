"""Routing by agreement that never holds the votes.

The votes ``u_hat = W u`` are the only large array of dynamic routing: ``batch x i x j x
d`` numbers from two operands that are a hundred times smaller. Here they exist for one
block of input capsules at a time, and are made again in every round:

* **Forward.** The logits before round ``r`` are ``u_hat . (v_1 + ... + v_(r-1))``, so a
  pass over the blocks needs only that sum of earlier poses. It makes the votes, logits
  and couplings of a block, and adds to ``s``. All couplings are equal in round 1, which
  is one matrix product and no votes.
* **Backward.** One pass for each round, from the last to the second, uses the same
  operands and sums of poses. Couplings ``c`` and the gradient ``db`` of the logits give
  ``du_hat = c ds + db (v_1 + ... + v_(r-1))``, a share of the gradients of ``W`` and
  ``u``; ``sum_i db u_hat`` is a share of the gradient of the earlier poses. Round 1 is
  two matrix products.

Arrays with ``batch x i x j`` numbers exist for one block at a time, too. The work is
linear in every size and in the rounds.

The batch is the last axis inside, so that all sums and products over ``j``, ``d`` or
the ``i`` of a block use whole contiguous vectors. On a CPU a block's votes stay in the
second-level cache, and ``_fold`` and ``fence`` of
:class:`capsjax.kernels.vote_blocks.Votes` work around two habits of XLA:CPU. Other
platforms get ordinary reductions and larger blocks; on an H100 they take up to 3.5
times as long as held votes.

Letters: ``b`` batch, ``i`` input capsules with ``c`` components, ``j`` output capsules
with ``d``; ``n`` is ``j`` and ``d`` as one axis, ``k`` the blocks, ``r`` the rounds.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from capsjax.kernels.batching import merge_mapped, primitive_over_examples
from capsjax.kernels.vote_blocks import (
    Operands,
    Rounds,
    Votes,
    flat_batch,
    in_small_parts,
    join,
    numbered,
    pull_back,
    split,
)
from capsjax.ops import squash
from capsjax.runtime.platforms import Platform, by_platform


def route_capsules(
    capsules: Float[Array, "*batch i c"],
    weight: Float[Array, "i j d c"],
    bias: Float[Array, "j d"],
    start: Float[Array, "*_ i j"] | None = None,
    *,
    rounds: Rounds,
    by_votes: Callable[..., Float[Array, "b j d"]] | None = None,
) -> Float[Array, "*batch j d"]:
    """Returns the poses of ``routing(cast_votes(capsules, weight))`` without the votes.

    Reverse mode only: ``jax.jvp`` of the poses raises a TypeError. The gradient itself
    has derivatives in either mode.

    All arrays must have one type, float32 or float64, and inside ``jax.shard_map`` vary
    over the same axes (:func:`capsjax.kernels.varying.vary_alike`).

    Args:
        capsules: The input capsules.
        weight: The matrices that turn them into votes.
        bias: Added to ``s`` in every round.
        start: The initial logits. Axes before ``j`` may have size one, and batch axes
            may be missing.
        rounds: Options of the routing.
        by_votes: Computes the same from ``capsules[b, i, c]``, weight, bias and start,
            if there is one, and holds the votes. It is called where that is faster
            (:meth:`capsjax.runtime.platforms.Platform.routing_form`); None for nowhere.
            Equal computations must compare equal.

    References:
        Sabour, Frosst and Hinton 2017, Procedure 1, https://arxiv.org/abs/1710.09829.
    """
    *batch, i, c = capsules.shape
    capsules = capsules.reshape(-1, i, c)
    operands = [capsules, weight, bias]
    if start is not None:
        operands.append(flat_batch(start, batch))
    pose = _pose_of_capsules.bind(*operands, rounds=rounds, by_votes=by_votes)
    return pose.reshape(*batch, *pose.shape[1:])


# ---- the primitive


def _type_of_pose(capsules, weight, bias, *start, rounds, by_votes):
    return capsules.update(shape=(capsules.shape[0], *weight.shape[1:3]))


def _pose(capsules, weight, bias, start=None, *, rounds, by_votes):
    return _route(capsules, weight, bias, start, rounds, by_votes)


_pose_of_capsules = primitive_over_examples(
    _pose, _type_of_pose, shared=(1, 2), optional=3
)


# ---- its gradient


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _route(
    capsules, weight, bias, start, rounds: Rounds, by_votes
) -> Float[Array, "b j d"]:
    return _route_forward(capsules, weight, bias, start, rounds, by_votes)[0]


def _route_forward(capsules, weight, bias, start, rounds: Rounds, by_votes):
    given, axes = _given(start)
    in_axes, out_axes = (0, None, None, *axes), (0, 3)
    free = functools.partial(in_small_parts, _forward, in_axes, out_axes)
    forward = _by_form(free, _hold_forward, rounds, by_votes)
    merged = merge_mapped(forward, in_axes, out_axes)
    pose, s = merged(capsules, weight, bias, *given)
    return pose, (capsules, weight, bias, start, s)


def _route_backward(rounds: Rounds, by_votes, residuals, pose_gradient):
    capsules, weight, bias, start, s = residuals
    given, axes = _given(start)
    in_axes, out_axes = (0, None, None, *axes, 3, 0), (0, None, None, *axes)
    free = functools.partial(in_small_parts, _backward, in_axes, out_axes)
    backward = _by_form(free, _hold_backward, rounds, by_votes)
    merged = merge_mapped(backward, in_axes, out_axes)
    gradients = merged(capsules, weight, bias, *given, s, pose_gradient)
    return gradients if given else (*gradients, None)


def _given(start) -> tuple[list[Array], list[int | None]]:
    """Returns the initial logits and their batch axis, if there are any."""
    if start is None:
        return [], []
    return [start], [0 if len(start) > 1 else None]


_route.defvjp(_route_forward, _route_backward)


def _by_form(votes_free: Callable, votes: Callable, rounds: Rounds, by_votes):
    """Returns a function that takes each platform's form for the operands' size."""

    def choose(capsules, weight, bias, *operands, platform):
        operands = capsules, weight, bias, *operands
        batch = capsules.shape[0]
        votes_bytes = batch * math.prod(weight.shape[:3]) * weight.dtype.itemsize
        form = platform.routing_form(batch, votes_bytes)
        if by_votes is None or form == "votes_free":
            return votes_free(*operands, rounds=rounds, platform=platform)
        return votes(*operands, rounds=rounds, platform=platform, by_votes=by_votes)

    return functools.partial(by_platform, choose)


def _hold_forward(capsules, weight, bias, *start, rounds: Rounds, platform, by_votes):
    # The backward pass of this form ignores every round's ``s``, and the compiler then
    # leaves it out. But many gradients of one pose count as many examples, so that
    # their backward pass may take the other form, which needs it.
    whole = platform._replace(slices_sums=False, block_bytes=2**62, largest_block=2**62)
    operands = capsules, weight, bias, *start
    _, s = _forward(*operands, rounds=rounds, platform=whole)
    return by_votes(*operands), s


def _hold_backward(*operands, rounds, platform, by_votes):
    del rounds, platform
    *operands, _, pose_gradient = operands
    # Inside one jit the compiler sees that this repeats the forward pass, and reuses
    # it; elsewhere, keeping its results would fill memory.
    return jax.vjp(by_votes, *operands)[1](pose_gradient)


def _forward(
    capsules: Float[Array, "b i c"],
    weight: Float[Array, "i j d c"],
    bias: Float[Array, "j d"],
    start: Float[Array, "_ _ j"] | None = None,
    *,
    rounds: Rounds,
    platform: Platform,
) -> tuple[Float[Array, "b j d"], Float[Array, "r j d b"]]:
    """Returns the poses, and every round's ``s`` for the backward pass."""
    blocks = split(capsules, weight, start, platform)
    batch = capsules.shape[0]
    bias = jnp.broadcast_to(bias[:, :, None], (*bias.shape, batch))
    pose_sum = jnp.zeros_like(bias)
    s = []
    for r in range(rounds.num_iterations):
        if r == 0 and start is None:
            # All couplings are equal: one product and no votes.
            total = jnp.einsum("kinc,kicb->nb", blocks.weight, blocks.capsules)
            total = total.reshape(bias.shape)
            s.append(_first_coupling(len(bias), rounds) * total + bias)
        else:

            def add_block(s, block, pose_sum=pose_sum):
                votes = Votes(block, s.shape, platform)
                return s + votes.gather(votes.couple(pose_sum, rounds)), None

            s.append(lax.scan(add_block, bias, numbered(blocks))[0])
        pose_sum = pose_sum + squash(s[-1], axis=1)
    return squash(s[-1], axis=1).transpose(2, 0, 1), jnp.stack(s)


def _backward(
    capsules: Float[Array, "b i c"],
    weight: Float[Array, "i j d c"],
    bias: Float[Array, "j d"],
    *start_s_and_gradient: Array,
    rounds: Rounds,
    platform: Platform,
) -> tuple[Array, ...]:
    """Returns gradients of capsules, weight, bias and start, if there is one.

    The operands are followed by every round's ``s[r, j, d, b]`` and the gradient of the
    poses, ``[b, j, d]``.
    """
    del bias
    *given, s, pose_gradient = start_s_and_gradient
    start = given[0] if given else None
    blocks = split(capsules, weight, start, platform)
    poses = jnp.cumsum(squash(s, axis=2), axis=0)
    pose_gradient = pose_gradient.transpose(1, 2, 0)
    pose_sum_gradient = bias_gradient = jnp.zeros_like(pose_gradient)
    gradients = jax.tree.map(jnp.zeros_like, blocks)
    last = rounds.num_iterations - 1
    for r in range(last, last - 1 if rounds.stop_gradient else -1, -1):
        s_gradient = _unsquash(s[r], pose_gradient)
        bias_gradient = bias_gradient + s_gradient
        if r == 0 and start is None:
            gradients = _first_round(blocks, gradients, s_gradient, rounds)
        else:
            pose_sum_gradient, gradients = pull_back(
                blocks,
                gradients,
                poses[r - 1] if r else jnp.zeros_like(poses[0]),
                s_gradient,
                pose_sum_gradient,
                rounds=rounds,
                platform=platform,
            )
            pose_gradient = pose_sum_gradient
    of_capsules, of_weight, *of_start = join(gradients, capsules, weight, start)
    return of_capsules, of_weight, bias_gradient.sum(-1), *of_start


def _first_round(
    blocks: Operands,
    gradients: Operands,
    s_gradient: Float[Array, "j d b"],
    rounds: Rounds,
) -> Operands:
    """Adds the share of the round in which all couplings are equal."""
    share = _first_coupling(len(s_gradient), rounds)
    gradient = share * lax.collapse(s_gradient, 0, 2)
    return gradients._replace(
        weight=gradients.weight
        + jnp.einsum("nb,kicb->kinc", gradient, blocks.capsules),
        capsules=gradients.capsules
        + jnp.einsum("nb,kinc->kicb", gradient, blocks.weight),
    )


def _first_coupling(num_outputs: int, rounds: Rounds) -> float:
    return 1 / (num_outputs + rounds.none_of_the_above)


def _unsquash(
    s: Float[Array, "j d b"], pose_gradient: Float[Array, "j d b"]
) -> Float[Array, "j d b"]:
    """Returns the gradient of ``s``, given the gradient of its squash."""
    return jax.vjp(functools.partial(squash, axis=1), s)[1](pose_gradient)[0]
