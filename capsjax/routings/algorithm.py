"""The contract of routing algorithms.

Letters: ``i`` input capsules with ``c`` components, ``j`` output capsules with ``d``.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, ArrayLike, Float, Shaped

from capsjax.kernels.varying import leave_sharding_to_xla, spec_of
from capsjax.losses import ActivationKind
from capsjax.routings.competition import (
    Compete,
    Competition,
    check_competition,
    over_outputs,
)
from capsjax.votes import cast_votes


class Routed(NamedTuple):
    """The result of a routing algorithm.

    Attributes:
        pose: Poses of the upper capsules; None from a network that has none.
        activation: Presence of each upper capsule, in the algorithm's
            ``activation_kind``: the pose's length for dynamic routing.
        coupling: The share of lower capsule ``i`` that went to upper capsule ``j``; the
            shares of one lower capsule sum to one over ``j`` (to less with a "none of
            the above"). May be None from ``from_capsules``, which need not hold them.

    Examples:
        >>> import jax.numpy as jnp
        >>> from capsjax import UniformRouting
        >>> pose, activation, coupling = UniformRouting()(jnp.ones((6, 3, 4)))
        >>> print(coupling[0])
        [0.33333334 0.33333334 0.33333334]
    """

    pose: Float[Array, "*batch j d"] | Any
    activation: Float[Array, "*batch j"]
    coupling: Float[Array, "*batch i j"] | None


class Parameter(NamedTuple):
    """A parameter that a layer owns on behalf of its routing algorithm.

    Attributes:
        axes: Its axes, letters of ``i j c d``: ``"jd"`` is one value for each component
            of each upper capsule.
        init: A ``jax.nn.initializers`` function.

    Examples:
        >>> import jax
        >>> from capsjax.routings import Parameter
        >>> gain = Parameter("j", jax.nn.initializers.ones)
        >>> print(gain.init(jax.random.key(0), (3,)))
        [1. 1. 1.]
    """

    axes: str
    init: Callable[..., Array]


class AlgorithmError(ValueError):
    """A class does not fulfil the contract of algorithms; the message says in what."""


class Algorithm(abc.ABC):
    """A routing algorithm: a frozen dataclass with its hyperparameters inside.

    A subclass has ``route``. This class applies the masks: ``route`` gets zeros for
    masked inputs, and its results for masked outputs are replaced. There is no training
    flag, step or key.

    Attributes:
        activation_kind: Kind of an output's activation: the ``"length"`` of its pose, a
            ``"probability"``, or a ``"logit"``, whose softmax gives the classes'
            probabilities. An absent output has 0, 0 or minus infinity.
        takes_activation: True if activations of the inputs are needed; if False, they
            are refused.
        couplings_sum_to_one: True if each input gives away all of itself.
        activation_is_length: True if the activation is the length of the pose.
        follows_outputs: True if poses follow outputs that change places.
        vote_deviation: Standard deviation of the votes' components that a layer should
            start with; None for the votes that make squashed outputs start short.

    Examples:
        >>> import dataclasses
        >>> import jax.numpy as jnp
        >>> from capsjax import Routed, safe_norm, squash
        >>> from capsjax.routings import Algorithm
        >>> @dataclasses.dataclass(frozen=True)
        ... class OneRound(Algorithm):
        ...     gain: float = 2.0
        ...
        ...     def route(self, votes, activation, parameters, competition):
        ...         coupling = competition.start(votes)
        ...         mean = jnp.einsum("...ij,...ijd->...jd", coupling, votes)
        ...         pose = squash(self.gain * mean)
        ...         return Routed(pose, safe_norm(pose), coupling)
        >>> OneRound()(jnp.ones((6, 3, 4))).pose.shape
        (3, 4)
    """

    activation_kind: ClassVar[ActivationKind] = "length"
    takes_activation: ClassVar[bool] = False
    couplings_sum_to_one: ClassVar[bool] = True
    activation_is_length: ClassVar[bool] = True
    follows_outputs: ClassVar[bool] = True
    vote_deviation: ClassVar[float | None] = None

    @property
    def declared_parameters(self) -> Mapping[str, Parameter]:
        """Parameters that a layer must create and pass back as ``parameters``."""
        return {}

    @property
    def num_rounds(self) -> int | None:
        """Number of rounds; None if the algorithm does not iterate."""
        return None

    def with_rounds(self, num_rounds: int) -> "Algorithm":
        """Returns the same algorithm with another number of rounds."""
        value: Any = self
        return dataclasses.replace(value, num_iterations=num_rounds)

    def with_couplings(self) -> "Algorithm":
        """Returns the same algorithm, whose ``from_capsules`` returns couplings."""
        return self

    @abc.abstractmethod
    def route(
        self,
        votes: Float[Array, "*batch i j d"],
        activation: Float[Array, "*batch i"] | None,
        parameters: Mapping[str, Array],
        competition: Competition,
    ) -> Routed:
        """Routes votes in float32 or float64 to upper capsules.

        Args:
            votes: Votes, zero where an input or output is masked.
            activation: Activations, zero where an input is masked; None if the
                algorithm takes none.
            parameters: The declared parameters, by name.
            competition: Makes the couplings: ``start`` for the first round, ``couple``
                for rounds with logits.
        """

    def __call__(
        self,
        votes: Shaped[ArrayLike, "..."],
        activation: Shaped[ArrayLike, "..."] | None = None,
        *,
        parameters: Mapping[str, Array] | None = None,
        initial_logit: Shaped[ArrayLike, "..."] | None = None,
        input_mask: Shaped[ArrayLike, "..."] | None = None,
        output_mask: Shaped[ArrayLike, "..."] | None = None,
        compete: Compete = over_outputs,
    ) -> Routed:
        """Routes votes to upper capsules.

        Args:
            votes: Votes, ``[*batch, i, j, d]``.
            activation: Presence of the inputs, ``[*batch, i]``; only for algorithms
                that take it.
            parameters: The declared parameters, by name.
            initial_logit: Log priors, ``[*batch, i, j]``, added to the logits in every
                round. Its batch axes must broadcast to the votes' batch axes.
            input_mask: False for padding, ``[*batch, i]``: the input sends nothing,
                whatever its votes are.
            output_mask: False for outputs that get nothing, ``[*batch, j]``: pose zero,
                and the activation of an absent capsule.
            compete: Turns logits into couplings.

        Raises:
            ValueError: If the arrays do not fit together, or an activation is missing
                or not taken.
        """
        votes = check_votes(votes)
        *batch, i, j, d = votes.shape
        self._check_activation(activation, (*batch, i))
        if activation is not None:
            activation = check_activation(activation, (*batch, i))
        competition = check_competition(
            initial_logit, input_mask, output_mask, compete, tuple(batch), i, j
        )
        sizes = {"i": i, "j": j, "d": d}
        return _route(
            votes,
            activation,
            self.check_parameters(parameters, sizes, votes.dtype),
            competition,
            algorithm=self,
        )

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
        """Routes the votes that capsules ``[*batch, i, c]`` cast through a weight.

        Args:
            capsules: The input capsules.
            weight: The matrices that turn them into votes, ``[i, j, d, c]``, or
                ``[j, d, c]`` if all inputs share them.
            activation: Presence of the inputs. See ``__call__`` for this and the rest.
            parameters: The declared parameters, by name.
            initial_logit: Log priors.
            input_mask: False for padding.
            output_mask: False for outputs that get nothing.
            compete: Turns logits into couplings.

        Returns:
            The result, perhaps without couplings: some algorithms never hold them.
        """
        capsules, weight = check_capsules(capsules, weight)
        if input_mask is not None:
            # Mask before casting votes: the weight's gradient multiplies the capsules.
            batch, i, j = capsules.shape[:-2], capsules.shape[-2], weight.shape[-3]
            sends = check_competition(None, input_mask, None, compete, batch, i, j)
            capsules = sends.without_masked_capsules(capsules)
        return self(
            cast_votes(capsules, weight),
            activation,
            parameters=parameters,
            initial_logit=initial_logit,
            input_mask=input_mask,
            output_mask=output_mask,
            compete=compete,
        )

    def without_absent(self, routed: Routed, competition: Competition) -> Routed:
        """Makes outputs absent that are masked, or that no input sends anything."""
        present = competition.present()
        if present is None:
            return routed
        absent = -jnp.inf if self.activation_kind == "logit" else 0
        return routed._replace(
            pose=jnp.where(present[..., None], routed.pose, 0),
            activation=jnp.where(present, routed.activation, absent),
        )

    def check_parameters(
        self,
        parameters: Mapping[str, Array] | None,
        sizes: Mapping[str, int],
        dtype: jnp.dtype,
    ) -> dict[str, Array]:
        """Returns the parameters as arrays in the type of the computation.

        Raises:
            ValueError: If one is not declared, or has other axes.
        """
        checked = {}
        for name, array in (parameters or {}).items():
            if name not in self.declared_parameters:
                names = ", ".join(self.declared_parameters) or "none"
                raise ValueError(f"{name} is no parameter of {self}: it has {names}.")
            axes = self.declared_parameters[name].axes
            array = jnp.asarray(array, jnp.promote_types(dtype, jnp.float32))
            shape = tuple(sizes.get(axis) for axis in axes)
            fits = len(shape) == array.ndim and all(
                size in (None, own)
                for size, own in zip(shape, array.shape, strict=True)
            )
            if not fits:
                raise ValueError(
                    f"{name} must have the votes' axes [{', '.join(axes)}] = {shape}, "
                    f"got {array.shape}."
                )
            checked[name] = array
        return checked

    def _check_activation(
        self, activation: Any, shape: tuple[Any, ...] | None = None
    ) -> None:
        if activation is not None and not self.takes_activation:
            raise ValueError(
                f"{type(self).__name__} does not use activations of the inputs; it "
                "compares votes with poses only."
            )
        if activation is None and self.takes_activation:
            axes = "[*batch, i]" + (f" = {shape}" if shape is not None else "")
            raise ValueError(
                f"{type(self).__name__} needs the inputs' activations: give "
                f"activation, {axes}."
            )


@dataclasses.dataclass(frozen=True)
class BiasedAlgorithm(Algorithm):
    """An algorithm whose sums ``s_j`` may have a trainable bias.

    Attributes:
        bias: Initial value of the bias, which has one number for each component of each
            output; None for no bias. The authors' code starts it at 0.1.
    """

    bias: float | None = dataclasses.field(default=None, kw_only=True)

    @property
    def declared_parameters(self) -> Mapping[str, Parameter]:
        """Declaration of the bias, if there is one."""
        if self.bias is None:
            return {}
        return {"bias": Parameter("jd", jax.nn.initializers.constant(self.bias))}


# An eager call with a closure would compile every time.
@functools.partial(jax.jit, static_argnames="algorithm")
def _route(
    votes: Float[Array, "*batch i j d"],
    activation: Float[Array, "*batch i"] | None,
    parameters: dict[str, Array],
    competition: Competition,
    *,
    algorithm: Algorithm,
) -> Routed:
    def route(votes, activation, parameters, competition):
        votes, activation, own = competition.without_masked(votes, activation)
        routed = algorithm.route(votes, activation, parameters, own)
        _check_routed(type(algorithm).__name__, routed, votes.shape)
        return tuple(algorithm.without_absent(routed, competition))

    wide = jnp.promote_types(votes.dtype, jnp.float32)
    operands = (votes.astype(wide), activation, parameters, competition)
    *batch, i, j, d = spec_of(votes)
    specs = P(*batch, j, d), P(*batch, j), P(*batch, i, j)
    return Routed(*leave_sharding_to_xla(route, specs, *operands))


# ---- checks


def require_algorithm(routing: Any) -> None:
    """Raises if a layer's ``routing`` is no value of an algorithm.

    Raises:
        TypeError: With the value.
    """
    if not isinstance(routing, Algorithm):
        hint = f": write {routing.__name__}()" if isinstance(routing, type) else ""
        raise TypeError(
            f"routing must be a value, such as DynamicRouting(), got {routing!r}{hint}."
        )


def _check_routed(name: str, routed: Any, votes_shape: tuple[Any, ...]) -> None:
    """Raises if ``route`` does not return what the contract says."""
    if not isinstance(routed, Routed):
        raise AlgorithmError(
            f"route of {name} must return a capsjax.Routed(pose, activation, "
            f"coupling), got {type(routed).__name__}."
        )
    *batch, i, j, d = votes_shape
    shapes = {"pose": (*batch, j, d), "activation": (*batch, j)}
    shapes["coupling"] = (*batch, i, j)
    for part, shape in shapes.items():
        found = getattr(routed, part).shape
        if found != shape:
            raise AlgorithmError(
                f"route of {name} must return a {part} of shape {shape} for votes of "
                f"shape {votes_shape}, got {found}."
            )


def parameter_shapes(
    algorithm: Algorithm, sizes: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of an algorithm's declared parameters.

    Raises:
        AlgorithmError: If a declaration is no ``Parameter``, or has an unknown axis.
    """
    for name, own in algorithm.declared_parameters.items():
        if not isinstance(own, Parameter) or not {*own.axes} <= {*sizes}:
            raise AlgorithmError(
                f"{name} of {type(algorithm).__name__} must be declared as "
                f"Parameter(axes, init), with axes of the letters {', '.join(sizes)}, "
                f"got {own!r}."
            )
    return {
        name: tuple(sizes[axis] for axis in own.axes)
        for name, own in algorithm.declared_parameters.items()
    }


def check_votes(votes: Shaped[ArrayLike, "..."]) -> Float[Array, "*batch i j d"]:
    """Returns the votes as an array.

    Raises:
        ValueError: If an axis is missing or empty, or the type is not floating-point.
    """
    votes = jnp.asarray(votes)
    if votes.ndim < 3 or 0 in votes.shape[-3:]:
        raise ValueError(
            "votes must have the axes [*batch, i, j, d] (input capsules, output "
            f"capsules, components), at least one of each; got shape {votes.shape}."
        )
    if not jnp.issubdtype(votes.dtype, jnp.floating):
        raise ValueError(f"votes must be floating-point numbers, got {votes.dtype}.")
    return votes


def check_activation(
    activation: Shaped[ArrayLike, "..."], shape: tuple[Any, ...]
) -> Float[Array, "*batch i"]:
    """Returns the activations of the inputs as an array.

    Raises:
        ValueError: If the shape is another one, or the type is not floating-point.
    """
    activation = jnp.asarray(activation)
    if activation.shape != shape:
        raise ValueError(
            f"activation must have the votes' axes [*batch, i] = {shape}, got shape "
            f"{activation.shape}."
        )
    if not jnp.issubdtype(activation.dtype, jnp.floating):
        raise ValueError(
            f"activation must be floating-point numbers, got {activation.dtype}."
        )
    return activation


def check_capsules(
    capsules: Shaped[ArrayLike, "..."], weight: Shaped[ArrayLike, "..."]
) -> tuple[Float[Array, "*batch i c"], Float[Array, "*i j d c"]]:
    """Returns capsules and weight as arrays.

    Raises:
        ValueError: If they do not fit together, or their type is not floating-point.
    """
    capsules, weight = jnp.asarray(capsules), jnp.asarray(weight)
    fits = capsules.ndim >= 2 and weight.ndim in (3, 4) and 0 not in weight.shape
    own = (*weight.shape[:-3], *weight.shape[-1:])
    if not fits or capsules.shape[-len(own) :] != own or 0 in capsules.shape[-2:]:
        raise ValueError(
            "capsules [*batch, i, c] and weight [i, j, d, c] (or [j, d, c], shared by "
            "all inputs) must agree in i and c, at least one of each; got shapes "
            f"{capsules.shape} and {weight.shape}."
        )
    for name, array in (("capsules", capsules), ("weight", weight)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(
                f"{name} must be floating-point numbers, got {array.dtype}."
            )
    return capsules, weight
