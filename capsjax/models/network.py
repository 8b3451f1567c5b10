"""The contract of networks, and the functions that use it.

A network is a Flax Linen module with the fields ``image_shape`` and ``num_classes``,
which the data set fills in, and these methods:

``encode(image, *, is_training=False) -> Routed``
    Computes the class capsules. A network without poses returns None for them.
``decode(pose, mask) -> image``
    Draws images. Optional. Not called if an attribute ``draws`` is False.
``primary(image)``, ``route(primary)`` and ``primary_window``
    Show the inside to the analysis. Optional. The methods are the two stages of
    ``encode``, the second with the algorithm in the field ``routing`` in a
    ``DenseCaps`` named ``class_caps``. The property holds the size in pixels of a
    primary capsule's window, the first of which begins at the image's corner, and the
    step to the next one.

It declares ``activation_kind``, unless its field ``routing`` does. Batch statistics and
dropout follow Flax: collections of variables, and the rng ``dropout``. Collections must
be the same on all devices: give ``nn.BatchNorm`` ``axis_name=capsjax.DEVICE_AXIS``.
"""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any, Protocol, TypeGuard, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from capsjax.ops import mask_longest
from capsjax.routings import Algorithm
from capsjax.routings.algorithm import ActivationKind, Routed

# The value until the data set fills it in.
UNKNOWN_SHAPE = (0, 0, 0)
FROM_DATA = ("image_shape", "num_classes")
# Collection that ``prepare`` makes from the weights, and that is not stored.
_PREPARED = "prepared"


@runtime_checkable
class Network(Protocol):
    """The contract of networks: what a Flax Linen module must have to be trained.

    A field ``routing`` with an algorithm, or a class variable ``activation_kind``, says
    how the activations are to be read: ``length``, ``probability`` or ``logit``. A
    network that draws has ``decode(pose, mask)``, too, from ``[*batch, n, d]`` and
    ``[*batch, n]`` to images ``[*batch, h, w, c]``. A network whose inside the analysis
    shows has ``primary(image)``, ``route(primary)`` and ``primary_window``.

    Collections of variables, such as batch statistics, must be the same on all devices:
    give ``nn.BatchNorm`` ``axis_name=capsjax.DEVICE_AXIS``. Dropout draws from the rng
    ``dropout``.

    Attributes:
        image_shape: Height, width and channels of an image; the data set fills in this
            annotated field and the next.
        num_classes: Number of classes.

    Examples:
        >>> import flax.linen as nn
        >>> from capsjax import Routed
        >>> from capsjax.models import Network
        >>> class Linear(nn.Module):
        ...     image_shape: tuple[int, int, int] = (0, 0, 0)
        ...     num_classes: int = 0
        ...     activation_kind = "logit"
        ...
        ...     @nn.compact
        ...     def encode(self, image, *, is_training=False):
        ...         logit = nn.Dense(self.num_classes)(image.mean((-3, -2)))
        ...         return Routed(None, logit, None)
        >>> isinstance(Linear(), Network)
        True
    """

    image_shape: tuple[int, int, int]
    num_classes: int

    def encode(
        self, image: Float[Array, "*batch h w c"], *, is_training: bool = False
    ) -> Routed:
        """Computes the class capsules of images with pixels from 0 to 1."""
        ...

    @property
    def init(self) -> Callable[..., Any]:
        """Flax's ``init``."""
        ...

    @property
    def apply(self) -> Callable[..., Any]:
        """Flax's ``apply``."""
        ...


class Drawing(Network, Protocol):
    """A network that draws images of its class capsules."""

    def decode(
        self, pose: Float[Array, "*batch n d"], mask: Float[Array, "*batch n"]
    ) -> Float[Array, "*batch h w c"]:
        """Draws images from the class capsules that the mask lets through."""
        ...


class Staged(Network, Protocol):
    """A network that shows its inside to the analysis."""

    routing: Algorithm
    primary_window: tuple[int, int]

    def primary(
        self, image: Float[Array, "*batch h w c"]
    ) -> Float[Array, "*batch H W t d"]:
        """Computes the primary capsules."""
        ...

    def route(self, primary: Float[Array, "*batch H W t d"]) -> Routed:
        """Computes the class capsules that the primary capsules vote for."""
        ...

    def clone(self, **fields: Any) -> "Staged":
        """Flax's ``clone``: the network with other values in some fields."""
        ...


class NetworkError(ValueError):
    """A network does not fulfil the contract; the message names what is missing.

    Examples:
        >>> from capsjax import memory_estimate
        >>> from capsjax.models import NetworkError
        >>> try:
        ...     memory_estimate("capsnet", 128)
        ... except NetworkError as error:
        ...     print(error)
        str is no Flax Linen module, got 'capsnet'.
    """


def bind(network: Any, image_shape: tuple[int, int, int], num_classes: int) -> Network:
    """Fills in the fields of a network that a data set decides.

    Raises:
        NetworkError: If it is not a Linen module, or lacks a field or ``encode``.
    """
    _require_network(network)
    whole: Any = network.clone(image_shape=image_shape, num_classes=num_classes)
    activation_kind(whole)
    return whole


def require_bound(network: Any) -> None:
    """Raises if a network does not fulfil the contract, or is not bound to a data set.

    Raises:
        NetworkError: If it lacks a field, ``encode`` or the kind of its activations.
        ValueError: If ``image_shape`` or ``num_classes`` have no values yet.
    """
    _require_network(network)
    require_data(network)
    activation_kind(network)


def _require_network(network: Any) -> None:
    name = type(network).__name__
    if not isinstance(network, nn.Module):
        raise NetworkError(f"{name} is no Flax Linen module, got {network!r}.")
    fields = [field.name for field in dataclasses.fields(type(network))]
    missing = [f"the annotated field {one}" for one in FROM_DATA if one not in fields]
    if not _takes_training(getattr(network, "encode", None)):
        missing.append("the method encode(image, *, is_training)")
    if missing:
        raise NetworkError(f"{name} must have {' and '.join(missing)}.")


def _takes_training(encode: Any) -> bool:
    if encode is None:
        return False
    parameters = inspect.signature(encode).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    return "is_training" in parameters or inspect.Parameter.VAR_KEYWORD in kinds


def activation_kind(network: Any) -> ActivationKind:
    """Returns the kind of a network's activations.

    Raises:
        NetworkError: If neither the network nor its ``routing`` declares it.
    """
    declared: Any = None
    for owner in (network, getattr(network, "routing", None)):
        declared = declared or getattr(owner, "activation_kind", None)
    kinds = typing.get_args(ActivationKind)
    if declared not in kinds:
        raise NetworkError(
            f"{type(network).__name__} must have activation_kind, one of "
            f"{', '.join(kinds)}, or a field routing with an algorithm; got "
            f"{declared!r}."
        )
    return declared


def can_draw(network: Network) -> TypeGuard[Drawing]:
    """Returns True if a network draws images from its class capsules."""
    return hasattr(network, "decode") and getattr(network, "draws", True)


def has_stages(network: Network) -> TypeGuard[Staged]:
    """Returns True if a network has the two stages ``primary`` and ``route``."""
    stages = ("primary", "route", "primary_window", "routing")
    return all(hasattr(network, name) for name in stages)


def routing_of(network: Any) -> Algorithm | None:
    """Returns a network's algorithm; None if it has none with rounds to change."""
    routing = getattr(network, "routing", None)
    if not isinstance(routing, Algorithm) or routing.num_rounds is None:
        return None
    can_change = "num_iterations" in vars(routing) or (
        type(routing).with_rounds is not Algorithm.with_rounds
    )
    return routing if can_change else None


def init_variables(network: Network, key: Key[Array, ""]) -> dict[str, Any]:
    """Makes the variables of a network: ``params``, and its other collections."""
    image = jnp.zeros((1, *network.image_shape), jnp.float32)

    def forward(module: Any, image: Array) -> None:
        routed = module.encode(image)
        if can_draw(module):
            module.decode(routed.pose, mask_longest(routed.activation))

    variables = network.init(key, image, method=forward)
    return {name: one for name, one in variables.items() if name != _PREPARED}


def check_output(network: Network, variables: Any) -> None:
    """Checks the shapes that a network returns, without computing them.

    Args:
        network: The network, bound to a data set.
        variables: Its variables, or their shapes.

    Raises:
        NetworkError: If ``encode`` returns no ``Routed`` with an activation for each
            class, or ``decode`` no images of ``image_shape``.
    """
    name = type(network).__name__
    image = jax.ShapeDtypeStruct((2, *network.image_shape), jnp.float32)
    routed: Any = jax.eval_shape(
        functools.partial(network.apply, method=network.encode), variables, image
    )
    if not isinstance(routed, Routed):
        raise NetworkError(
            f"encode of {name} must return a capsjax.Routed(pose, activation, "
            f"coupling), got {type(routed).__name__}."
        )
    shape = (2, network.num_classes)
    if routed.activation.shape != shape:
        raise NetworkError(
            f"encode of {name} must return an activation of shape {shape} for "
            f"{len(image)} images, got {routed.activation.shape}."
        )
    if not can_draw(network):
        return
    drawn: Any = jax.eval_shape(
        functools.partial(network.apply, method=network.decode),
        *(variables, routed.pose, routed.activation),
    )
    if drawn.shape != image.shape:
        raise NetworkError(
            f"decode of {name} must return images of shape {image.shape} for "
            f"{len(image)} images, got {drawn.shape}."
        )


def prepare(
    network: Network, variables: Any, *, batch_size: int
) -> Callable[[Float[Array, "batch h w c"]], Routed]:
    """Compiles inference without the decoder, and transforms kernels only once.

    Training can't reuse transformed kernels: its weights change with every step.

    Args:
        network: The network.
        variables: Its weights and other variables.
        batch_size: Images per call; other numbers work, but may be slower.

    Returns:
        A function from images, with pixels from 0 to 1, to class capsules.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from capsjax.models import BaselineCNN, prepare
        >>> network = BaselineCNN((8, 8, 1), 3, (4,), hidden_features=())
        >>> image = jnp.zeros((2, 8, 8, 1))
        >>> variables = network.init(jax.random.key(0), image)
        >>> encode = prepare(network, variables, batch_size=2)
        >>> encode(image).activation.shape
        (2, 3)
    """

    @jax.jit
    def transform(variables):
        image = jnp.zeros((batch_size, *network.image_shape), jnp.float32)
        apply = functools.partial(network.apply, method=network.encode)
        return apply(variables, image, mutable=[_PREPARED])[1]

    encode = jax.jit(functools.partial(network.apply, method=network.encode))
    return functools.partial(encode, {**variables, **transform(variables)})


def num_parameters(params: Any) -> int:
    """Counts the numbers in a tree of weights, or of their shapes.

    Examples:
        >>> import numpy as np
        >>> from capsjax.models import num_parameters
        >>> num_parameters({"dense": {"kernel": np.ones((3, 4)), "bias": np.ones(4)}})
        16
    """
    return sum(leaf.size for leaf in jax.tree.leaves(params))


# ---- checks of fields and images


def require_data(network: Network) -> None:
    """Raises if a network is not bound to a data set.

    Raises:
        ValueError: With the values of the two fields.
    """
    shape = network.image_shape
    if not network.num_classes or len(shape) != 3 or 0 in shape:
        raise ValueError(
            f"{type(network).__name__} needs image_shape=(height, width, channels) and "
            f"num_classes, got image_shape={shape} and "
            f"num_classes={network.num_classes}."
        )


def require_shape(image: Array, image_shape: tuple[int, int, int]) -> None:
    """Raises if images have another shape.

    Raises:
        ValueError: With both shapes.
    """
    if image.shape[-3:] != tuple(image_shape):
        raise ValueError(
            f"the network is for images of shape {tuple(image_shape)}, got "
            f"{image.shape[-3:]}."
        )
