"""The training step: a pure function of the state and one device's share of a batch.

Several steps run in one call of the device program, which
``capsjax.training.feed`` hands the batches.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from capsjax import config as configs
from capsjax.data import Batch
from capsjax.data.augment import (
    apply_crops,
    apply_shifts,
    draw_corners,
    draw_shifts,
    scale_to_unit,
)
from capsjax.models import BaselineCNN, Network
from capsjax.runtime.devices import AXIS
from capsjax.training.objective import Metrics, image_metrics

# What a step folds into its key to draw the crops, and the dropout. The shifts take the
# key itself, of which they use what 0 and 1 would make.
_CROPS, _DROPOUT = 2, 3


class TrainState(NamedTuple):
    """Everything that the next step depends on, besides the data.

    Attributes:
        step: Optimizer steps done.
        augment_key: Of which each step folds its own key.
        params: The network's weights.
        opt_state: The optimizer's.
        average: The moving average of the weights, if the recipe wants one.
    """

    step: Int[Array, ""]
    augment_key: Key[Array, ""]
    params: Any
    opt_state: Any
    average: Any

    @property
    def evaluated(self) -> Any:
        """The weights that are evaluated: the average, if there is one."""
        return getattr(self, self.evaluated_name)

    @property
    def evaluated_name(self) -> str:
        """Of the field with the weights that are evaluated."""
        return "params" if self.average is None else "average"


class Outcome(NamedTuple):
    """What is told of a step.

    Attributes:
        metrics: Means over its batch.
        is_finite: For each of ``parts``, whether its numbers were finite. The update is
            applied if all are.
    """

    metrics: Metrics
    is_finite: Bool[Array, "*steps parts"]


def parts(params: Any, metrics: Metrics) -> list[str]:
    """What is looked at for numbers that are not finite, in the outcome's order."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    names = [jax.tree_util.keystr(k, simple=True, separator="/") for k, _ in leaves]
    return [
        *(name.replace("_", " ") for name in metrics.parts()),
        *(f"gradient of {name}" for name in names),
    ]


def make_optimizer(
    config: configs.Optimizer, num_steps: int
) -> optax.GradientTransformation:
    """Adam with the learning rate's schedule over so many steps."""
    rate = config.learning_rate
    after = max(1, num_steps - config.warmup_steps)
    schedule = {
        "constant": lambda: optax.constant_schedule(rate),
        "exponential": lambda: optax.exponential_decay(
            rate, config.decay_steps, config.decay_rate, end_value=config.floor
        ),
        "cosine": lambda: optax.cosine_decay_schedule(
            rate, after, alpha=config.floor / rate
        ),
    }[config.schedule]()
    if config.warmup_steps:
        rise = optax.linear_schedule(0.0, rate, config.warmup_steps)
        schedule = optax.join_schedules([rise, schedule], [config.warmup_steps])
    return optax.adam(schedule, config.b1, config.b2, config.eps)


def init_state(
    model: Network, optimizer: optax.GradientTransformation, config: configs.Config
) -> TrainState:
    """The state before the first step: a function of the seed."""
    init_key, augment_key = jax.random.split(jax.random.key(config.seed))
    params = model.init(init_key, jnp.zeros((1, *model.image_shape), jnp.float32))
    average = jax.tree.map(jnp.copy, params) if config.optimizer.average else None
    step = jnp.zeros((), jnp.int32)
    return TrainState(step, augment_key, params, optimizer.init(params), average)


def make_train_step(
    model: Network,
    optimizer: optax.GradientTransformation,
    config: configs.Config,
    class_weight: Float[np.ndarray, " n"] | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Outcome]]:
    """One update, as a function of the state and one device's share of the batch.

    It runs under ``AXIS``, over which gradients and metrics are averaged. The update of
    losses or gradients that are not finite is left out: of the state only the step
    changes. The loss is weighted by class as ``image_metrics`` does it.
    """

    def loss_fn(params, image, source, label, kept):
        is_shown = label if label.ndim > 1 else jax.nn.one_hot(label, model.num_classes)
        each = image_metrics(
            model,
            params,
            image,
            label,
            loss=config.loss,
            source=source,
            mask=is_shown.astype(jnp.float32),
            kept=kept,
            class_weight=class_weight,
        )
        means = jax.tree.map(jnp.mean, each)
        return means.loss, means

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Outcome]:
        key = jax.random.fold_in(state.augment_key, state.step)
        image, source = _augmented(key, batch, config.data.max_shift, model.image_shape)
        kept = None
        if isinstance(model, BaselineCNN):
            key = jax.random.fold_in(key, _DROPOUT)
            kept = _my_share(model.draw_kept(key, _num_images(batch)))
        grads, metrics = jax.grad(loss_fn, has_aux=True)(
            state.params, image, source, batch.label, kept
        )
        grads, metrics = jax.lax.pmean((grads, metrics), AXIS)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if config.optimizer.average:
            decay = _average_decay(state.step, config.optimizer.average)
            average = optax.incremental_update(params, average, 1 - decay)
        is_finite = jnp.isfinite(
            jnp.stack(
                [
                    *metrics.parts().values(),
                    # Adam squares them: what overflows there spoils its moments. Where
                    # it does not, updates are finite, by the bounds of the config: to
                    # look at them too would take longer than Adam itself.
                    *map(_sum_of_squares, jax.tree.leaves(grads)),
                ]
            )
        )
        params, opt_state, average = jax.tree.map(
            functools.partial(jnp.where, is_finite.all()),
            (params, opt_state, average),
            (state.params, state.opt_state, state.average),
        )
        new = TrainState(state.step + 1, state.augment_key, params, opt_state, average)
        return new, Outcome(metrics, is_finite)

    return train_step


def make_train_chunk(train_step: Callable) -> Callable:
    """Several steps in one: the batches are stacked along a first axis."""

    def train_chunk(state: TrainState, batches: Batch) -> tuple[TrainState, Outcome]:
        return jax.lax.scan(train_step, state, batches)

    return train_chunk


def _augmented(
    key: Key[Array, ""], batch: Batch, max_shift: int, shape: tuple[int, int, int]
) -> tuple[Float[Array, "batch h w c"], Float[Array, "batch s h w c"] | None]:
    """Shifts, crops and scales this device's images, and what is in them alike.

    It is drawn for the batch of all devices, and so a function of seed and step, not of
    the number of devices.
    """
    *_, height, width, channels = batch.image.shape
    whole = (height, width, channels)
    changes = []
    if max_shift:
        shifts = _my_share(draw_shifts(key, _num_images(batch), max_shift))
        changes.append(lambda image: apply_shifts(image, shifts, max_shift))
    if whole != shape:
        key = jax.random.fold_in(key, _CROPS)
        corners = _my_share(draw_corners(key, _num_images(batch), whole, shape))
        changes.append(lambda image: apply_crops(image, corners, shape))

    def changed(image):
        for change in changes:
            image = change(image)
        return scale_to_unit(image)

    source = batch.source
    if source is not None:
        source = jax.vmap(changed, in_axes=1, out_axes=1)(source)
    return changed(batch.image), source


def _num_images(batch: Batch) -> int:
    """In the batch of all devices."""
    return len(batch.image) * jax.lax.axis_size(AXIS)


def _my_share(drawn: Array) -> Array:
    """This device's part of what was drawn for all images."""
    share = len(drawn) // jax.lax.axis_size(AXIS)
    start = jax.lax.axis_index(AXIS) * share
    return jax.lax.dynamic_slice_in_dim(drawn, start, share)


def _sum_of_squares(array: Array) -> Array:
    return jnp.vdot(array, array)  # Faster on a CPU than the sum of squares.


def _average_decay(step: Array, decay: float) -> Array:
    """Short at first, so that the random start is soon forgotten."""
    return jnp.minimum(decay, (1 + step) / (10 + step))
