"""The functions of a trained network that are exported, in every format the same."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from capsjax.models.network import can_draw
from capsjax.storage.run import Run

Function = Callable[..., dict[str, Any]]


def functions(run: Run) -> dict[str, Function]:
    """Returns the functions ``encode``, ``decode`` and ``network`` by name.

    ``encode`` has the pose and the activation of each class capsule, as ``run.predict``
    has them: activations are lengths or probabilities. ``decode`` draws the capsules
    that a mask lets through. ``network`` has all of ``encode``, the label and what the
    label's capsule draws. Products are of float32, also after a training in bfloat16.
    A network without poses has none, and one that draws nothing no ``decode``.
    """
    model: Any = run.model
    if hasattr(model, "compute_dtype"):
        model = model.clone(compute_dtype="float32")

    def encode(image: Float[Array, "batch h w c"]) -> dict[str, Array]:
        routed = model.apply(run.params, image, method="encode")
        activation = routed.activation
        if run.activation_kind == "logit":
            squash = jax.nn.softmax if run.num_shown == 1 else jax.nn.sigmoid
            activation = squash(activation)
        pose = {} if routed.pose is None else {"pose": routed.pose}
        return {**pose, "activation": activation}

    def decode(
        pose: Float[Array, "batch n d"], mask: Float[Array, "batch n"]
    ) -> dict[str, Array]:
        return {"drawing": model.apply(run.params, pose, mask, method="decode")}

    def network(image: Float[Array, "batch h w c"]) -> dict[str, Array]:
        found = encode(image)
        label = found["activation"].argmax(-1).astype(jnp.int32)
        found["label"] = label
        if can_draw(model):
            mask = jax.nn.one_hot(label, model.num_classes, dtype=jnp.float32)
            found |= decode(found["pose"], mask)
        return found

    drawing = {"decode": decode} if can_draw(model) else {}
    return {"encode": encode, **drawing, "network": network}


def inputs(run: Run, batch: Any) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Returns the inputs of each function by name, for a batch of that size.

    Args:
        run: The run.
        batch: The number of images, perhaps symbolic.
    """

    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *shape), jnp.float32)

    image = {"image": array(*run.model.image_shape)}
    found = functions(run)
    taken = {"encode": image, "network": image}
    if "decode" in found:
        one = jax.ShapeDtypeStruct((1, *run.model.image_shape), jnp.float32)
        pose = jax.eval_shape(found["encode"], one)["pose"]
        num_classes, dim = pose.shape[1:]
        taken["decode"] = {"pose": array(num_classes, dim), "mask": array(num_classes)}
    return {name: taken[name] for name in found}


def outputs(run: Run) -> dict[str, Mapping[str, jax.ShapeDtypeStruct]]:
    """Returns the outputs of each function by name, for a batch of one."""
    given = inputs(run, 1)
    return {
        name: jax.eval_shape(function, **given[name])
        for name, function in functions(run).items()
    }
