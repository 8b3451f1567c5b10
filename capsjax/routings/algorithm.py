"""What every routing algorithm takes, owns and returns."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float


class Routed(NamedTuple):
    """What a routing algorithm returns.

    Attributes:
        pose: The upper capsules.
        activation: How present each upper capsule is; its length for dynamic routing.
        coupling: The share of lower capsule ``i`` that went to upper capsule ``j``; the
            shares of one lower capsule sum to one over ``j`` (to less with a "none of
            the above"). None from ``from_capsules``, which may never hold them.
    """

    pose: Float[Array, "*batch j d"]
    activation: Float[Array, "*batch j"]
    coupling: Float[Array, "*batch i j"] | None


class Parameter(NamedTuple):
    """A parameter that a layer owns on behalf of its routing algorithm.

    Attributes:
        axes: Its axes, letters of ``i j c d``: ``"jd"`` is one value for each component
            of each upper capsule.
        init: A ``jax.nn.initializers`` function.
    """

    axes: str
    init: Callable[..., Array]


@runtime_checkable
class Routing(Protocol):
    """A routing algorithm as a value: hyperparameters inside, parameters from outside.

    ``__call__`` routes votes. ``from_capsules`` routes the votes that the lower
    capsules cast through a weight, and may never hold them. Neither takes a training
    flag, a step or a key.
    """

    @property
    def declared_parameters(self) -> Mapping[str, Parameter]:
        """What a layer must create and pass back as ``parameters``."""
        ...

    def __call__(
        self,
        votes: Float[Array, "*batch i j d"],
        activation: Float[Array, "*batch i"] | None = None,
        *,
        parameters: Mapping[str, Array] | None = None,
    ) -> Routed:
        """Routes votes to upper capsules."""
        ...

    def from_capsules(
        self,
        capsules: Float[Array, "*batch i c"],
        weight: Float[Array, "i j d c"],
        activation: Float[Array, "*batch i"] | None = None,
        *,
        parameters: Mapping[str, Array] | None = None,
    ) -> Routed:
        """Routes the votes ``weight_ij capsule_i``; may return no couplings."""
        ...
