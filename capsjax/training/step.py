"""The training step: a pure function of the state and one device's share of a batch.

Several steps run in one call of the device program, to which
``capsjax.training.feed`` hands the batches.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key

from capsjax import config as configs
from capsjax.data import Batch
from capsjax.data.augment import Augmentation, scale_to_unit
from capsjax.data.crop import apply_crops, draw_corners
from capsjax.losses import Loss
from capsjax.models import Network
from capsjax.runtime.devices import AXIS
from capsjax.training.objective import ClassWeight, Metrics, measure
from capsjax.training.state import TrainState, joined, split_weights

# Folded into a step's key for the crops and the dropout. The augmentation takes the key
# itself, and folds in 0, 1 and numbers from 4 on.
_CROPS, _DROPOUT = 2, 3


class Outcome(NamedTuple):
    """Metrics of one step, and whether its numbers were sound.

    Attributes:
        metrics: Means over its batch.
        is_finite: True for each of ``parts`` whose numbers were finite. The update is
            applied if all are.
        is_shared: True if the collections besides the weights are the same on all
            devices.
    """

    metrics: Metrics
    is_finite: Bool[Array, "*steps parts"]
    is_shared: Bool[Array, "*steps"]


def parts(weights: Any, metrics: Metrics) -> list[str]:
    """Returns the names of the values checked, in the order of ``is_finite``."""
    leaves = jax.tree_util.tree_leaves_with_path(weights)
    names = [jax.tree_util.keystr(k, simple=True, separator="/") for k, _ in leaves]
    return [
        *(name.replace("_", " ") for name in sorted(metrics.parts)),
        *(f"gradient of {name}" for name in names),
    ]


def make_train_step(
    model: Network,
    optimizer: optax.GradientTransformation,
    config: configs.Config,
    loss: Loss,
    class_weight: ClassWeight | None = None,
    *,
    num_steps: int,
) -> Callable[[TrainState, Batch], tuple[TrainState, Outcome]]:
    """Makes one update, a function of the state and one device's share of the batch.

    It runs under ``AXIS``, over which gradients and metrics are averaged. If a loss or
    gradient is not finite, the update is skipped: only the state's step changes.

    Args:
        model: The network.
        optimizer: The optimizer.
        config: The config of the run.
        loss: The loss, which fits the network.
        class_weight: Factors of the loss, as in ``measure``; None for none.
        num_steps: Steps of the whole run, in which augmentation and loss may change.
    """

    def loss_fn(weights, others, image, source, label, progress, dropout_key):
        variables = joined(weights, others)
        routed, collections = model.apply(
            variables,
            image,
            is_training=True,
            method=model.encode,
            mutable=[name for name in variables if name != "params"],
            rngs={"dropout": dropout_key},
        )
        is_shown = label if label.ndim > 1 else jax.nn.one_hot(label, model.num_classes)
        each = measure(
            model,
            {**variables, **collections},
            routed,
            image,
            label,
            loss=loss,
            source=source,
            mask=is_shown.astype(jnp.float32),
            class_weight=class_weight,
            progress=progress,
        )
        means = jax.tree.map(jnp.mean, each)
        return means.loss, (means, collections)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Outcome]:
        # Draw the batch.
        key = jax.random.fold_in(state.augment_key, state.step)
        # In the middle of the step: no rounding moves a part's first step.
        progress = (state.step + jnp.float32(0.5)) / num_steps
        image, source = _augmented(
            *(key, progress, batch, config.augmentation, model.image_shape)
        )
        dropout_key = jax.random.fold_in(key, _DROPOUT)
        dropout_key = jax.random.fold_in(dropout_key, jax.lax.axis_index(AXIS))
        # Differentiate, and average over parts and devices.
        weights, others = split_weights(state.params, config.freeze)
        differentiate = _in_parts(jax.grad(loss_fn, has_aux=True), config.num_parts)
        grads, (metrics, collections) = differentiate(
            weights, others, image, source, batch.label, progress, dropout_key
        )
        grads, metrics = jax.lax.pmean((grads, metrics), AXIS)
        # Update.
        updates, opt_state = optimizer.update(grads, state.opt_state, weights)
        weights: Any = optax.apply_updates(weights, updates)
        params = joined(weights, {**others, **collections})
        average = state.average
        if config.optimizer.average:
            decay = _average_decay(state.step, config.optimizer.average)
            average = _averaged(params, average, decay)
        # Skip the update if a number is not finite.
        squares = jax.tree.map(_sum_of_squares, grads)
        if configs.word_of(config.optimizer) is None:
            squares = jax.tree.map(
                lambda square, update: square + _sum_of_squares(update),
                *(squares, updates),
            )
        is_finite = jnp.isfinite(
            jnp.stack(
                [
                    *(metrics.parts[name] for name in sorted(metrics.parts)),
                    # Adam squares them: an overflow there spoils its moments. Without
                    # one, updates are finite by the bounds of the config: checking them
                    # too would take longer than Adam itself. A user's own optimizer has
                    # no such bounds.
                    *jax.tree.leaves(squares),
                ]
            )
        )
        params, opt_state, average = jax.tree.map(
            functools.partial(jnp.where, is_finite.all()),
            (params, opt_state, average),
            (state.params, state.opt_state, state.average),
        )
        new = TrainState(state.step + 1, state.augment_key, params, opt_state, average)
        return new, Outcome(metrics, is_finite, _is_shared(collections))

    return train_step


_RUNNING_MEAN = optax.microbatching.Accumulator(
    init=functools.partial(jax.tree.map, jnp.zeros_like),
    update=lambda mean, new, n: _averaged(new, mean, n / (n + 1)),
    finalize=lambda mean: mean,
    aggregate=functools.partial(jax.tree.map, functools.partial(jnp.mean, axis=0)),
)


def _in_parts(gradient: Callable, num_parts: int) -> Callable:
    """Makes ``jax.grad`` of the loss go through a batch in parts, and averages them."""
    if num_parts == 1:
        return gradient

    def of_part(weights, others, image, source, label, position, progress, key):
        key = jax.random.fold_in(key, position[0])  # Each part has its own dropout.
        return gradient(weights, others, image, source, label, progress, key)

    def of_batch(weights, others, image, source, label, progress, key):
        parts = optax.microbatching.microbatch(
            of_part,
            argnums=(2, 3, 4, 5),
            microbatch_size=len(image) // num_parts,
            accumulator=_RUNNING_MEAN,
        )
        position = jnp.arange(len(image))
        return parts(weights, others, image, source, label, position, progress, key)

    return of_batch


def _is_shared(collections: Any) -> Bool[Array, ""]:
    """Returns True if the collections are the same on all devices."""
    is_shared = jnp.ones((), bool)
    for array in jax.tree.leaves(collections):
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            array = jax.random.key_data(array)
        if array.dtype == jnp.bool_:
            array = array.astype(jnp.int32)
        largest, smallest = jax.lax.pmax(array, AXIS), jax.lax.pmin(array, AXIS)
        # The check of the loss finds numbers that are not finite.
        is_same = (largest == smallest) | ~jnp.isfinite(largest - smallest)
        is_shared &= is_same.all()
    return is_shared


def _averaged(new: Any, old: Any, decay: Any) -> Any:
    """Moves the average towards new values; copies whole numbers."""

    def moved(new, old):
        if not jnp.issubdtype(new.dtype, jnp.inexact):
            return new
        return optax.incremental_update(new, old, 1 - decay)

    return jax.tree.map(moved, new, old)


def make_train_chunk(train_step: Callable, *, has_loop: bool = True) -> Callable:
    """Joins several steps into one call, with batches stacked along a first axis.

    Args:
        train_step: The step.
        has_loop: False for calls of a single step, which the program then has without
            a loop around it.
    """

    def train_chunk(state: TrainState, batches: Batch) -> tuple[TrainState, Outcome]:
        if has_loop:
            return jax.lax.scan(train_step, state, batches)
        state, outcome = train_step(state, jax.tree.map(lambda a: a[0], batches))
        return state, jax.tree.map(lambda a: a[None], outcome)

    return train_chunk


def is_slow_in_a_loop(program: jax.stages.Lowered) -> bool:
    """Returns True if a program has a convolution of XLA for a CPU.

    XLA:CPU computes it with many threads outside of loops only.
    """
    on_cpu = jax.default_backend() == "cpu"
    return on_cpu and "stablehlo.convolution" in program.as_text()


def _augmented(
    key: Key[Array, ""],
    progress: Float[Array, ""],
    batch: Batch,
    augmentation: Augmentation,
    shape: tuple[int, int, int],
) -> tuple[Float[Array, "batch h w c"], Float[Array, "batch s h w c"] | None]:
    """Augments, crops and scales this device's images, and their sources alike.

    The changes are drawn for the batch of all devices. They are a function of the seed,
    the step and the run's progress, not of the number of devices.
    """
    *_, height, width, channels = batch.image.shape
    whole = (height, width, channels)
    number = _num_images(batch)
    drawn = augmentation.draw(key, number, whole, progress)
    drawn = jax.tree.map(_my_share, drawn)
    corners = None
    if whole != shape:
        key = jax.random.fold_in(key, _CROPS)
        corners = _my_share(draw_corners(key, number, whole, shape))

    def changed(image):
        image = augmentation.apply(image, drawn)
        if corners is not None:
            image = apply_crops(image, corners, shape)
        return scale_to_unit(image)

    source = batch.source
    if source is not None:
        source = jax.vmap(changed, in_axes=1, out_axes=1)(source)
    return changed(batch.image), source


def _num_images(batch: Batch) -> int:
    """Returns the number of images in the batch of all devices."""
    return len(batch.image) * jax.lax.axis_size(AXIS)


def _my_share(drawn: Array) -> Array:
    """Returns this device's part of the numbers drawn for all images."""
    share = len(drawn) // jax.lax.axis_size(AXIS)
    start = jax.lax.axis_index(AXIS) * share
    return jax.lax.dynamic_slice_in_dim(drawn, start, share)


def _sum_of_squares(array: Array) -> Array:
    return jnp.vdot(array, array)  # Faster on a CPU than the sum of squares.


def _average_decay(step: Array, decay: float) -> Array:
    """Returns the decay: small at first, to forget the random start soon."""
    return jnp.minimum(decay, (1 + step) / (10 + step))
