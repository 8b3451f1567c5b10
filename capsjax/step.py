"""The training step: a pure function of the state and one device's share of a batch.

Several steps run in one call of the device program; where such a chunk ends depends on
the absolute step alone, so that a run that was stopped goes on exactly as if it had not
been.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Int, Key

from capsjax import config as configs
from capsjax.data import Batch, Dataset, batch_indices
from capsjax.data.augment import apply_shifts, draw_shifts, scale_to_unit
from capsjax.evaluate import Metrics, image_metrics
from capsjax.models import CapsNet
from capsjax.parallel import AXIS, my_shares


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


def parts(params: Any) -> list[str]:
    """What is looked at for numbers that are not finite, in the outcome's order."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    names = [jax.tree_util.keystr(k, simple=True, separator="/") for k, _ in leaves]
    return [
        "margin loss",
        "reconstruction loss",
        *(f"gradient of {name}" for name in names),
        "update",
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
    model: CapsNet, optimizer: optax.GradientTransformation, config: configs.Config
) -> TrainState:
    """The state before the first step: a function of the seed."""
    init_key, augment_key = jax.random.split(jax.random.key(config.seed))
    params = model.init(init_key, jnp.zeros((1, *model.image_shape)))
    average = jax.tree.map(jnp.copy, params) if config.optimizer.average else None
    step = jnp.zeros((), jnp.int32)
    return TrainState(step, augment_key, params, optimizer.init(params), average)


def make_train_step(
    model: CapsNet, optimizer: optax.GradientTransformation, config: configs.Config
) -> Callable[[TrainState, Batch], tuple[TrainState, Outcome]]:
    """One update, as a function of the state and one device's share of the batch.

    It runs under ``AXIS``, over which gradients and metrics are averaged. An update
    that is not finite is left out: of the state only the step changes.
    """

    def loss_fn(params, image, label):
        mask = jax.nn.one_hot(label, model.num_classes)
        each = image_metrics(model, params, image, label, loss=config.loss, mask=mask)
        means = jax.tree.map(jnp.mean, each)
        return means.loss, means

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Outcome]:
        key = jax.random.fold_in(state.augment_key, state.step)
        image = scale_to_unit(_shifted(key, batch.image, config.data.max_shift))
        grads, metrics = jax.grad(loss_fn, has_aux=True)(
            state.params, image, batch.label
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
                    metrics.margin_loss,
                    metrics.reconstruction_loss,
                    # Adam squares them: what overflows there spoils its moments.
                    *map(_sum_of_squares, jax.tree.leaves(grads)),
                    sum(map(_sum_of_squares, jax.tree.leaves(updates))),
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


def chunk_end(step: int, *, steps_per_dispatch: int, steps_per_epoch: int) -> int:
    """The step at which the chunk that ``step`` is in ends.

    Chunks are counted from the start of each epoch and end with it at the latest.
    """
    done = step % steps_per_epoch
    end = (done // steps_per_dispatch + 1) * steps_per_dispatch
    return step - done + min(end, steps_per_epoch)


def stack_batches(
    dataset: Dataset, steps: range, *, batch_size: int, seed: int
) -> Batch:
    """This process's share of these steps' batches, ``[device, step, image, ...]``."""
    indices = np.stack(
        [batch_indices(len(dataset), batch_size, seed, step) for step in steps]
    )
    return dataset.batch(my_shares(indices, axis=1))


def num_parameters(params: Any) -> int:
    """How many numbers the weights are."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _shifted(key: Key[Array, ""], image: Array, max_shift: int) -> Array:
    """Shifts this device's share, drawn for the batch of all devices.

    So the shifts are a function of seed and step, not of the number of devices.
    """
    if max_shift == 0:
        return image
    share = len(image)
    shifts = draw_shifts(key, share * jax.lax.axis_size(AXIS), max_shift)
    start = jax.lax.axis_index(AXIS) * share
    return apply_shifts(
        image, jax.lax.dynamic_slice_in_dim(shifts, start, share), max_shift
    )


def _sum_of_squares(array: Array) -> Array:
    return jnp.sum(jnp.square(array))


def _average_decay(step: Array, decay: float) -> Array:
    """Short at first, so that the random start is soon forgotten."""
    return jnp.minimum(decay, (1 + step) / (10 + step))
