"""Routing by agreement: Procedure 1 of *Dynamic Routing Between Capsules*.

Letters: ``i`` input capsules with ``c`` components, ``j`` output capsules with ``d``.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, ArrayLike, Float, Shaped

from capsjax.kernels.batching import map_one_by_one
from capsjax.kernels.dynamic_routing import Rounds, route_votes_free
from capsjax.kernels.varying import leave_sharding_to_xla, spec_of, vary_alike
from capsjax.ops import safe_norm, squash
from capsjax.routings.algorithm import Parameter, Routed
from capsjax.votes import cast_votes

REMATS = ("none", "body", "full", "offload")


def routing(
    votes: Shaped[ArrayLike, "..."],
    *,
    num_iterations: int = 3,
    bias: Shaped[ArrayLike, "j d"] | None = None,
    none_of_the_above: bool = False,
    stop_gradient: bool = False,
    unroll: int | bool = True,
    remat: str = "none",
) -> Routed:
    r"""Routes votes to the capsules that they agree on.

    The logits ``b_ij`` start at zero; then, in each iteration,

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
            axes: what each input capsule ``i`` expects of each output capsule ``j``.
        num_iterations: Rounds of routing, a Python int of at least 1. One round is the
            uniform average; the paper uses 3.
        bias: Added to ``s_j`` in every round, ``[j, d]``, as the authors' code does.
        none_of_the_above: Lets an input capsule send its share to none of the outputs:
            a further output whose logit stays zero takes part in the softmax and is
            then dropped (the paper's section 7, on CIFAR-10).
        stop_gradient: Treats the couplings as constants in the backward pass, so that
            the gradient flows through the last weighted sum only.
        unroll: How many iterations of the ``jax.lax.fori_loop`` are written out: True
            writes out all, so that no loop is left; 1 leaves a loop over single
            rounds. Same numbers. With many rounds a loop compiles sooner, but it
            computes more slowly and in more memory: on a CPU 1.7 times as long.
        remat: What the backward pass recomputes to save memory: ``"none"``, the
            ``"body"`` of the loop, the ``"full"`` routing, or ``"offload"``: the
            couplings are kept in the host's memory instead (on an accelerator).

    Returns:
        Poses of length below one, their lengths, and the last round's couplings.

    Raises:
        ValueError: If ``num_iterations`` is not a Python int of at least 1, the votes
            have fewer than three axes or none of some capsule, the bias does not fit,
            or ``unroll`` or ``remat`` is none of the above.

    References:
        Sabour, Frosst and Hinton 2017, Procedure 1, https://arxiv.org/abs/1710.09829.
    """
    votes = _check_votes(votes)
    options = DynamicRouting(
        num_iterations=num_iterations,
        none_of_the_above=none_of_the_above,
        stop_gradient=stop_gradient,
        unroll=unroll,
        remat=remat,
    )
    bias = _check_bias(bias, votes.shape[-2:], votes.dtype)
    return _route(votes, bias, options)


@dataclasses.dataclass(frozen=True)
class DynamicRouting:
    """Dynamic routing as a value for a layer: see :func:`routing` for what it computes.

    Attributes:
        num_iterations: Rounds of routing, at least 1.
        bias: Where the trainable bias of ``s_j`` starts; None for no bias. The authors'
            code starts it at 0.1.
        none_of_the_above: Whether an input may be sent to none of the outputs.
        stop_gradient: Whether the couplings are constants in the backward pass.
        unroll: How many iterations of the loop are written out; True for all.
        remat: What the backward pass recomputes: none, body, full or offload.

    Raises:
        ValueError: If a field has a value that is not allowed.
    """

    num_iterations: int = 3
    bias: float | None = None
    none_of_the_above: bool = False
    stop_gradient: bool = False
    unroll: int | bool = True
    remat: str = "none"
    # True == 1, yet they are two programs: without this they would share one in caches.
    _is_written_out: bool = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        _check_count("num_iterations", self.num_iterations)
        object.__setattr__(self, "_is_written_out", self.unroll is True)
        if self.unroll is not True and self.unroll is not False:
            _check_count("unroll", self.unroll)
        if self.remat not in REMATS:
            raise ValueError(f"remat must be one of {REMATS}, got {self.remat!r}.")

    @property
    def declared_parameters(self) -> Mapping[str, Parameter]:
        """The bias, one value for each component of each output capsule, if any."""
        if self.bias is None:
            return {}
        return {"bias": Parameter("jd", jax.nn.initializers.constant(self.bias))}

    def __call__(
        self,
        votes: Shaped[ArrayLike, "..."],
        activation: Float[Array, "*batch i"] | None = None,
        *,
        parameters: Mapping[str, Array] | None = None,
    ) -> Routed:
        """Routes votes ``[*batch, i, j, d]``; what :func:`routing` does.

        Raises:
            ValueError: If activations are given: dynamic routing has no use for them.
        """
        _refuse_activation(activation)
        votes = _check_votes(votes)
        bias = (parameters or {}).get("bias")
        return _route(votes, _check_bias(bias, votes.shape[-2:], votes.dtype), self)

    def from_capsules(
        self,
        capsules: Float[Array, "*batch i c"],
        weight: Float[Array, "i j d c"],
        activation: Float[Array, "*batch i"] | None = None,
        *,
        parameters: Mapping[str, Array] | None = None,
    ) -> Routed:
        """Routes the votes ``weight_ij capsule_i`` without ever holding all of them.

        They are made again in every round, for a few input capsules at a time
        (:mod:`capsjax.kernels.dynamic_routing`): several times faster for a batch on a
        CPU, and in a fraction of the memory. Where the platform's row says so
        (:mod:`capsjax.runtime.platforms`; on a CPU for fewer than 16 examples, on
        accelerators for up to 2 GB of votes), and where the batch's size is not known,
        ``self(cast_votes(capsules, weight))`` is faster and is what computes;
        ``unroll`` and ``remat`` matter to these only.

        Examples that ``jax.vmap`` maps over are examples of the batch. Weights or
        biases that it maps over are taken one after the other.

        Reverse mode only: ``jax.jvp`` of the poses raises a TypeError. The gradient
        has derivatives again, of either mode: a Hessian works. Routing the votes
        themselves has both modes.

        Args:
            capsules: The input capsules, ``[*batch, i, c]``.
            weight: The matrices that make votes of them, ``[i, j, d, c]``.
            activation: None; dynamic routing takes no activation.
            parameters: The bias, if there is one.

        Returns:
            Poses and lengths as of :func:`routing`, to rounding. The coupling is None;
            see :meth:`coupling_from_capsules`.

        Raises:
            ValueError: If the arrays do not fit together or there is an activation.
        """
        _refuse_activation(activation)
        capsules, weight = _check_capsules(capsules, weight)
        bias = (parameters or {}).get("bias")
        bias = _check_bias(bias, weight.shape[1:3], capsules.dtype)
        return _route_capsules(capsules, weight, bias, self)

    def coupling_from_capsules(
        self,
        capsules: Float[Array, "*batch i c"],
        weight: Float[Array, "i j d c"],
        *,
        parameters: Mapping[str, Array] | None = None,
    ) -> Float[Array, "*batch i j"]:
        """The last round's couplings in :meth:`from_capsules`; holds the votes.

        Raises:
            ValueError: If the arrays do not fit together.
        """
        capsules, weight = _check_capsules(capsules, weight)
        votes = cast_votes(capsules, weight)
        coupling = self(votes, parameters=parameters).coupling
        assert coupling is not None
        return coupling


@functools.partial(jax.jit, static_argnames="options")
def _route(
    votes: Float[Array, "*batch i j d"],
    bias: Float[Array, "j d"] | None,
    options: DynamicRouting,
) -> Routed:
    """An eager loop with a closure would compile at every call."""
    route = functools.partial(_agree, options=options)
    if options.remat == "full":
        route = jax.checkpoint(route)
    *batch, i, j, d = spec_of(votes)
    specs = P(*batch, j, d), P(*batch, j), P(*batch, i, j)
    votes = votes.astype(jnp.promote_types(votes.dtype, jnp.float32))
    routed = leave_sharding_to_xla(lambda *x: tuple(route(*x)), specs, votes, bias)
    return Routed(*routed)


@functools.partial(jax.jit, static_argnames="options")
def _route_capsules(
    capsules: Float[Array, "*batch i c"],
    weight: Float[Array, "i j d c"],
    bias: Float[Array, "j d"] | None,
    options: DynamicRouting,
) -> Routed:
    wide = jnp.promote_types(capsules.dtype, jnp.float32)
    if bias is None:
        bias = jnp.zeros(weight.shape[1:3], wide)

    def route(capsules, weight, bias):
        *batch, i, c = capsules.shape
        capsules = capsules.reshape(-1, i, c)
        pose = _pose_of_capsules.bind(capsules, weight, bias, options=options)
        return pose.reshape(*batch, *pose.shape[1:])

    *batch, _, _ = spec_of(capsules)
    arrays = vary_alike(capsules.astype(wide), weight.astype(wide), bias)
    pose = leave_sharding_to_xla(route, P(*batch, None, None), *arrays)
    return Routed(pose=pose, activation=safe_norm(pose), coupling=None)


# A primitive of our own, to have a rule for ``vmap`` that holds before the gradient is
# taken: a ``custom_vjp`` mapped over examples makes a gradient of the shared weight for
# each of them, to be summed after, and does not learn how many there are.
_pose_of_capsules = Primitive("pose_of_capsules")


@_pose_of_capsules.def_abstract_eval
def _type_of_pose(capsules, weight, bias, *, options):
    return capsules.update(shape=(capsules.shape[0], *weight.shape[1:3]))


@_pose_of_capsules.def_impl
def _pose_by_size(capsules, weight, bias, *, options):
    rounds = Rounds(
        options.num_iterations, options.none_of_the_above, options.stop_gradient
    )

    def by_votes(capsules, weight, bias):
        return _route(cast_votes(capsules, weight), bias, options).pose

    return route_votes_free(capsules, weight, bias, rounds, by_votes)


def _pose_and_tangent(arrays, tangents, *, options):
    function = functools.partial(_pose_by_size, options=options)
    return jax.jvp(function, arrays, tuple(map(ad.instantiate_zeros, tangents)))


def _mapped_pose(arrays, axes, *, options):
    pose_of = functools.partial(_pose_of_capsules.bind, options=options)
    is_mapped = [axis is not None for axis in axes]
    capsules, weight, bias = [
        jnp.moveaxis(x, axis, 0) if y else x
        for x, axis, y in zip(arrays, axes, is_mapped, strict=True)
    ]
    if any(is_mapped[1:]):
        return map_one_by_one(pose_of, is_mapped, (capsules, weight, bias)), 0
    pose = pose_of(jax.lax.collapse(capsules, 0, 2), weight, bias)
    return pose.reshape(*capsules.shape[:2], *pose.shape[1:]), 0


mlir.register_lowering(
    _pose_of_capsules, mlir.lower_fun(_pose_by_size, multiple_results=False)
)
ad.primitive_jvps[_pose_of_capsules] = _pose_and_tangent
batching.primitive_batchers[_pose_of_capsules] = _mapped_pose


def _agree(
    votes: Float[Array, "*batch i j d"],
    bias: Float[Array, "j d"] | None,
    *,
    options: DynamicRouting,
) -> Routed:
    constant_votes = jax.lax.stop_gradient(votes) if options.stop_gradient else votes

    def agree(coupling):
        pose = _pose(coupling, constant_votes, bias)
        return jnp.einsum("...ijd,...jd->...ij", constant_votes, pose)

    def increase_agreement(_, logit):
        return logit + agree(_coupling(logit, options))

    # In the first round all logits are zero, and their softmax is known. An array made
    # like the votes, not of their shape, keeps the sharding of the batch.
    share = 1 / (votes.shape[-2] + options.none_of_the_above)
    coupling = jnp.full_like(votes[..., 0], share)
    if options.num_iterations > 1:
        # More than all rounds that are left, or JAX makes a loop of a single one.
        unroll = options.num_iterations if options.unroll is True else options.unroll
        logit = jax.lax.fori_loop(
            0,
            options.num_iterations - 2,
            _rematerialised(increase_agreement, options.remat),
            agree(coupling),
            unroll=unroll,
        )
        if options.stop_gradient:
            logit = jax.lax.stop_gradient(logit)
        coupling = _coupling(logit, options)
    pose = _pose(coupling, votes, bias)
    return Routed(pose=pose, activation=safe_norm(pose), coupling=coupling)


def _coupling(
    logit: Float[Array, "*batch i j"], options: DynamicRouting
) -> Float[Array, "*batch i j"]:
    # Over outputs, not inputs: each input distributes a total share of one (Eq. 3).
    if not options.none_of_the_above:
        coupling = jax.nn.softmax(logit, axis=-1)
    else:
        nowhere = jnp.zeros_like(logit[..., :1])
        logit = jnp.concatenate([nowhere, logit], axis=-1)
        coupling = jax.nn.softmax(logit, axis=-1)[..., 1:]
    return checkpoint_name(coupling, "coupling")


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
    # Not by operator.index: it takes arrays, which are no static arguments.
    is_int = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_int or value < 1:
        raise ValueError(
            f"{name} must be a Python int of at least 1, known when the function is "
            f"traced; got {value!r}."
        )


def _refuse_activation(activation: Float[Array, "*batch i"] | None) -> None:
    if activation is not None:
        raise ValueError(
            "Dynamic routing takes no activation: the length of a vote is all that it "
            "goes by."
        )


def _check_votes(votes: Shaped[ArrayLike, "..."]) -> Float[Array, "*batch i j d"]:
    votes = jnp.asarray(votes)
    if votes.ndim < 3 or 0 in votes.shape[-3:]:
        raise ValueError(
            "votes must have the axes [*batch, i, j, d] (input capsules, output "
            f"capsules, components), at least one of each; got shape {votes.shape}."
        )
    if not jnp.issubdtype(votes.dtype, jnp.floating):
        raise ValueError(f"votes must be floating-point numbers, got {votes.dtype}.")
    return votes


def _check_bias(
    bias: Shaped[ArrayLike, "..."] | None, shape: tuple[int, ...], dtype: jnp.dtype
) -> Float[Array, "j d"] | None:
    if bias is None:
        return None
    bias = jnp.asarray(bias, jnp.promote_types(dtype, jnp.float32))
    if bias.shape != shape:
        raise ValueError(
            f"bias must have the votes' axes [j, d] = {shape}, got {bias.shape}."
        )
    return bias


def _check_capsules(
    capsules: Shaped[ArrayLike, "..."], weight: Shaped[ArrayLike, "..."]
) -> tuple[Float[Array, "*batch i c"], Float[Array, "i j d c"]]:
    capsules, weight = jnp.asarray(capsules), jnp.asarray(weight)
    fits = capsules.ndim >= 2 and weight.ndim == 4 and 0 not in weight.shape
    if not fits or capsules.shape[-2:] != (weight.shape[0], weight.shape[3]):
        raise ValueError(
            "capsules [*batch, i, c] and weight [i, j, d, c] must agree in i and c, at "
            f"least one of each; got shapes {capsules.shape} and {weight.shape}."
        )
    for name, array in (("capsules", capsules), ("weight", weight)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(
                f"{name} must be floating-point numbers, got {array.dtype}."
            )
    return capsules, weight
