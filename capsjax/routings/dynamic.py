"""Routing by agreement: Procedure 1 of *Dynamic Routing Between Capsules*.

Letters: ``i`` input capsules with ``c`` components, ``j`` output capsules with ``d``.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, ArrayLike, Float, Shaped

from capsjax.bounds import Rounds
from capsjax.kernels import dynamic_routing as kernel
from capsjax.ops import safe_norm, squash
from capsjax.routings.algorithm import BiasedAlgorithm, Routed
from capsjax.routings.competition import Competition
from capsjax.routings.votes_free import VotesFreeAlgorithm
from capsjax.votes import cast_votes

Remat = Literal["none", "body", "full", "offload"]
REMATS = get_args(Remat)


def routing(
    votes: Shaped[ArrayLike, "..."],
    *,
    num_iterations: int = 3,
    bias: Shaped[ArrayLike, "j d"] | None = None,
    none_of_the_above: bool = False,
    stop_gradient: bool = False,
    unroll: int | bool = True,
    remat: str = "none",
    initial_logit: Shaped[ArrayLike, "..."] | None = None,
    input_mask: Shaped[ArrayLike, "..."] | None = None,
    output_mask: Shaped[ArrayLike, "..."] | None = None,
) -> Routed:
    r"""Routes votes to the capsules that they agree on.

    The logits ``b_ij`` start at zero, or at ``initial_logit``; then, in each iteration,

    .. math::
        c_{ij} = softmax_j(b_{ij}), \quad
        s_j = \sum_i c_{ij} \hat u_{j|i} + bias_j, \quad
        v_j = squash(s_j), \quad
        b_{ij} \leftarrow b_{ij} + \hat u_{j|i} \cdot v_j .

    The softmax is over the output capsules ``j``: each input capsule shares out one
    vote. The gradient flows through every iteration unless ``stop_gradient``.
    Everything is computed in float32 (in float64 for float64 votes), whatever the type
    of the votes.

    Args:
        votes: The predictions ``u_hat``, ``[*batch, i, j, d]`` with any number of batch
            axes: how each input capsule ``i`` predicts each output capsule ``j``.
        num_iterations: Rounds of routing, a Python int of at least 1. One round is the
            uniform average; the paper uses 3.
        bias: Added to ``s_j`` in every round, ``[j, d]``, as the authors' code does.
        none_of_the_above: Lets an input capsule send its share to none of the outputs:
            a further output with a logit of zero takes part in the softmax, and is then
            dropped (the paper's section 7, on CIFAR-10).
        stop_gradient: Treats the couplings as constants in the backward pass, so that
            the gradient flows through the last weighted sum only.
        unroll: How many iterations of the ``jax.lax.fori_loop`` are written out: True
            writes out all, so that no loop is left; 1 leaves a loop over single rounds.
            The numbers are the same. A loop over many rounds compiles sooner, but takes
            more memory and more time: 1.7 times as long on a CPU.
        remat: What the backward pass recomputes to save memory: ``"none"``, the
            ``"body"`` of the loop, the ``"full"`` routing, or ``"offload"``: the
            couplings are kept in the host's memory instead (on an accelerator).
        initial_logit: Log priors ``[*batch, i, j]``, where the logits start. Its batch
            axes must broadcast to the votes'.
        input_mask: False for padding, ``[*batch, i]``: padding sends nothing, and may
            hold anything, even NaN.
        output_mask: False for outputs that get nothing, ``[*batch, j]``: their poses
            and lengths are zero. So are all if every input is masked.

    Returns:
        Poses shorter than one, their lengths, and the last round's couplings.

    Raises:
        ValueError: If ``num_iterations`` is not a Python int of at least 1, the votes
            have fewer than three axes or an empty one, the bias does not fit, or
            ``unroll`` or ``remat`` is none of the above.

    Examples:
        >>> import jax
        >>> from capsjax import routing
        >>> votes = jax.random.normal(jax.random.key(0), (2, 6, 3, 4))
        >>> routed = routing(votes, num_iterations=3)
        >>> routed.pose.shape, routed.activation.shape, routed.coupling.shape
        ((2, 3, 4), (2, 3), (2, 6, 3))

    References:
        Sabour, Frosst and Hinton 2017, Procedure 1, https://arxiv.org/abs/1710.09829.
    """
    checked: Any = remat
    algorithm = DynamicRouting(
        num_iterations=num_iterations,
        bias=None if bias is None else 0.0,
        none_of_the_above=none_of_the_above,
        stop_gradient=stop_gradient,
        unroll=unroll,
        remat=checked,
    )
    return algorithm(
        votes,
        parameters=None if bias is None else {"bias": jnp.asarray(bias)},
        initial_logit=initial_logit,
        input_mask=input_mask,
        output_mask=output_mask,
    )


@dataclasses.dataclass(frozen=True)
class DynamicRouting(VotesFreeAlgorithm, BiasedAlgorithm):
    """Dynamic routing as a value for a layer.

    :func:`capsjax.routing` has the equations.

    Attributes:
        num_iterations: Rounds of routing, at least 1.
        none_of_the_above: Whether an input may be sent to none of the outputs.
        stop_gradient: Whether the couplings are constants in the backward pass.
        unroll: How many iterations of the loop are written out; True for all.
        remat: What the backward pass recomputes: none, body, full or offload.

    Raises:
        ValueError: If a field has a value that is not allowed.

    Examples:
        >>> import jax
        >>> from capsjax import DynamicRouting
        >>> votes = jax.random.normal(jax.random.key(0), (6, 3, 4))
        >>> DynamicRouting(num_iterations=2)(votes).activation.shape
        (3,)

    References:
        Sabour, Frosst and Hinton 2017, Procedure 1, https://arxiv.org/abs/1710.09829.
    """

    num_iterations: Rounds = 3
    none_of_the_above: bool = False
    stop_gradient: bool = False
    unroll: int | bool = True
    remat: Remat = "none"
    # True == 1, yet they are two programs: without this they would share one in caches.
    _is_written_out: bool = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        super().__post_init__()
        _check_count("num_iterations", self.num_iterations)
        object.__setattr__(self, "_is_written_out", self.unroll is True)
        if self.unroll is not True and self.unroll is not False:
            _check_count("unroll", self.unroll)
        if self.remat not in REMATS:
            raise ValueError(f"remat must be one of {REMATS}, got {self.remat!r}.")

    @property
    def couplings_sum_to_one(self) -> bool:  # type: ignore[override]
        """False if inputs may be sent to none of the outputs."""
        return not self.none_of_the_above

    @property
    def num_rounds(self) -> int:
        """Number of rounds."""
        return self.num_iterations

    def route(
        self,
        votes: Float[Array, "*batch i j d"],
        activation: Float[Array, "*batch i"] | None,
        parameters: Mapping[str, Array],
        competition: Competition,
    ) -> Routed:
        """Routes votes as :func:`capsjax.routing` does."""
        agree = functools.partial(_agree, options=self)
        if self.remat == "full":
            agree = jax.checkpoint(agree)
        return agree(votes, parameters.get("bias"), competition)

    def route_capsules(
        self,
        capsules: Float[Array, "*batch i c"],
        weight: Float[Array, "i j d c"],
        activation: Float[Array, "*batch i"] | None,
        parameters: Mapping[str, Array],
        competition: Competition,
    ) -> Routed:
        """Routes as ``capsjax.kernels.dynamic_routing`` does."""
        bias = parameters.get("bias")
        if bias is None:
            # Of the weight: it varies over the same axes inside ``jax.shard_map``.
            bias = jnp.zeros_like(weight[0, :, :, 0])
        rounds = kernel.Rounds(
            self.num_iterations, self.none_of_the_above, self.stop_gradient
        )
        by_votes = None if self.form == "votes_free" else _ByVotes(self)
        start = competition.start_logit(capsules.dtype)
        pose = kernel.route_capsules(
            capsules, weight, bias, start, rounds=rounds, by_votes=by_votes
        )
        return Routed(pose, safe_norm(pose), None)


@dataclasses.dataclass(frozen=True)
class _ByVotes:
    """Computes poses from held votes; equal options compare equal, for caches."""

    options: DynamicRouting

    def __call__(self, capsules, weight, bias, start=None) -> Float[Array, "b j d"]:
        competition = Competition(initial_logit=start)
        votes = cast_votes(capsules, weight)
        return self.options.route(votes, None, {"bias": bias}, competition).pose


def _agree(
    votes: Float[Array, "*batch i j d"],
    bias: Float[Array, "j d"] | None,
    competition: Competition,
    *,
    options: DynamicRouting,
) -> Routed:
    constant_votes = jax.lax.stop_gradient(votes) if options.stop_gradient else votes

    def agree(coupling):
        pose = _pose(coupling, constant_votes, bias)
        return jnp.einsum("...ijd,...jd->...ij", constant_votes, pose)

    def couple(logit):
        return checkpoint_name(competition.couple(logit), "coupling")

    def increase_agreement(_, logit):
        return logit + agree(couple(logit))

    if options.none_of_the_above:
        competition = dataclasses.replace(competition, nowhere=True)
    coupling = competition.start(votes)
    if options.num_iterations > 1:
        # More than the remaining rounds, or JAX makes a loop of a single one.
        unroll = options.num_iterations if options.unroll is True else options.unroll
        logit = jax.lax.fori_loop(
            0,
            options.num_iterations - 2,
            _rematerialised(increase_agreement, options.remat),
            agree(coupling),
            unroll=unroll,
        )
        coupling = couple(logit)
    if options.stop_gradient:
        coupling = jax.lax.stop_gradient(coupling)
    pose = _pose(coupling, votes, bias)
    return Routed(pose=pose, activation=safe_norm(pose), coupling=coupling)


def _pose(
    coupling: Float[Array, "*batch i j"],
    votes: Float[Array, "*batch i j d"],
    bias: Float[Array, "j d"] | None,
) -> Float[Array, "*batch j d"]:
    s = jnp.einsum("...ij,...ijd->...jd", coupling, votes)
    if bias is not None:
        s = s + jnp.broadcast_to(bias, s.shape)
    return squash(s)


def _rematerialised(body: Callable, remat: str) -> Callable:
    if remat == "body":
        return jax.checkpoint(body, prevent_cse=False)
    if remat == "offload":
        policy = jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=["coupling"],
            offload_src="device",
            offload_dst="pinned_host",
        )
        return jax.checkpoint(body, policy=policy, prevent_cse=False)
    return body


def _check_count(name: str, value: int) -> None:
    # Not operator.index: it accepts arrays, which can't be static arguments.
    is_int = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_int or value < 1:
        raise ValueError(
            f"{name} must be a Python int of at least 1, known when the function is "
            f"traced; got {value!r}."
        )
