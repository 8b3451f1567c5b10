"""Estimates a run's memory before any is allocated.

The training step is traced with shapes alone. The estimate is the most that is alive at
once when its operations run in order. The compiler fuses some of them, which needs
less, and reorders others.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import Jaxpr, Var, jaxprs_in_params

from capsjax import config as configs
from capsjax.data import Batch, Dataset, Generated
from capsjax.losses import Loss, fitting_loss
from capsjax.models import Network
from capsjax.models.network import activation_kind, require_bound
from capsjax.runtime.devices import AXIS
from capsjax.training.evaluation import make_eval_step
from capsjax.training.feed import is_held, num_bytes, steps_per_dispatch
from capsjax.training.state import init_state
from capsjax.training.step import make_train_step


class Memory(NamedTuple):
    """Gigabytes, by use.

    Attributes:
        state: Weights and optimizer state.
        step: Results of a training step: activations, gradients, new weights; or of a
            step of the evaluation, if they are larger.
        data: The data sets, and the batches on their way to the devices or the training
            images held there.

    Examples:
        >>> from capsjax.training.memory import Memory
        >>> print(Memory(state=0.1, step=1.5, data=0.4))
        2.00 GB (weights and optimizer 0.10, a step 1.50, data 0.40)
    """

    state: float
    step: float
    data: float

    @property
    def total(self) -> float:
        """The sum of all three."""
        return sum(self)

    def __str__(self) -> str:
        return (
            f"{self.total:.2f} GB (weights and optimizer {self.state:.2f}, a "
            f"step {self.step:.2f}, data {self.data:.2f})"
        )


def estimate_memory(
    model: Network,
    loss: Loss,
    config: configs.Config,
    datasets: Sequence[Dataset | Generated],
) -> Memory:
    """Estimates the memory of training; on a CPU over all of its devices.

    Args:
        model: The network.
        loss: The loss, which fits the network.
        config: The config of the run.
        datasets: All sets; the first is trained on.
    """
    example = datasets[0].batch(np.arange(1))
    if is_held(config, datasets[0]):
        batches = _sharing() * num_bytes(datasets[0])
    else:
        # Once where they are gathered, once where they are used; those on disk are
        # read ahead, too.
        steps = steps_per_dispatch(config, len(datasets[0]) // config.batch_size)
        copies = 4 if datasets[0].is_on_disk else 2
        batches = copies * steps * config.batch_size * _num_bytes(example)
    data = sum(map(num_bytes, datasets)) + batches
    return _estimate(model, loss, config, example)._replace(data=data / 1e9)


def memory_estimate(
    model: Any, batch: int, *, config: configs.Config | None = None
) -> Memory:
    """Estimates the memory of training a network, before any is allocated.

    Args:
        model: The network, with its ``image_shape`` and ``num_classes``.
        batch: Images in one step, over all devices.
        config: A config with the loss and the optimizer; by default the loss that fits
            the network, and Adam.

    Returns:
        Gigabytes. ``data`` is the memory of the images of one step.

    Raises:
        ValueError: If ``batch`` can't be shared evenly by the devices, or the network
            does not fulfil the contract.

    Examples:
        >>> from capsjax import CapsNet, memory_estimate
        >>> network = CapsNet((28, 28, 1), 10)
        >>> memory_estimate(network, 128).total > 0.5  # GB
        True
    """
    if type(batch) is not int or batch < 1 or batch % jax.device_count():
        raise ValueError(
            f"batch must be a positive multiple of the {jax.device_count()} devices, "
            f"got {batch!r}."
        )
    require_bound(model)
    config = dataclasses.replace(config or configs.Config(), batch_size=batch)
    config.eval_batch_size = batch
    loss = fitting_loss(config.loss, activation_kind(model))
    image = np.zeros((1, *model.image_shape), np.uint8)
    example = Batch(image, np.zeros(1, np.int32))
    memory = _estimate(model, loss, config, example)
    return memory._replace(data=2 * batch * _num_bytes(example) / 1e9)


def _estimate(
    model: Network, loss: Loss, config: configs.Config, example: Batch
) -> Memory:
    """Estimates the memory of state and step, given a batch of one image."""
    optimizer = config.optimizer.make(1)
    state = jax.eval_shape(lambda: init_state(model, optimizer, config))
    batch = _of_size(example, config.batch_size // jax.device_count())
    step = jax.make_jaxpr(
        make_train_step(model, optimizer, config, loss, num_steps=1),
        axis_env=[(AXIS, jax.device_count())],
    )(state, batch)
    evaluated = _of_size(example, -(-config.eval_batch_size // jax.device_count()))
    counts = jax.ShapeDtypeStruct((len(evaluated.image),), np.float32)
    eval_step = jax.make_jaxpr(
        make_eval_step(model, loss), axis_env=[(AXIS, jax.device_count())]
    )(state.params, (evaluated, counts))
    most = max(peak_bytes(step.jaxpr), peak_bytes(eval_step.jaxpr))
    return Memory(_sharing() * _num_bytes(state) / 1e9, _sharing() * most / 1e9, 0.0)


def _sharing() -> int:
    """Returns the number of devices that share one memory: a CPU's do."""
    return jax.local_device_count() if jax.default_backend() == "cpu" else 1


def _of_size(example: Batch, size: int) -> Batch:
    return jax.tree.map(
        lambda array: jax.ShapeDtypeStruct((size, *array.shape[1:]), array.dtype),
        example,
    )


def peak_bytes(jaxpr: Jaxpr) -> int:
    """Returns the most bytes of results alive at once, operation by operation."""
    return _peak_bytes(jaxpr, {})


def _peak_bytes(jaxpr: Jaxpr, known: dict[Jaxpr, int]) -> int:
    if jaxpr in known:  # The same function, called once more.
        return known[jaxpr]
    last = {}
    for n, operation in enumerate(jaxpr.eqns):
        last.update((v, n) for v in operation.invars if isinstance(v, Var))
    last.update((v, len(jaxpr.eqns)) for v in jaxpr.outvars if isinstance(v, Var))
    ending = collections.Counter()
    for n, operation in enumerate(jaxpr.eqns):
        for result in operation.outvars:
            ending[last.get(result, n)] += _num_bytes(result.aval)
    alive = peak = 0
    for n, operation in enumerate(jaxpr.eqns):
        made = _num_bytes([result.aval for result in operation.outvars])
        inside = [_peak_bytes(j, known) for j in jaxprs_in_params(operation.params)]
        peak = max(peak, alive + max(made, *inside, 0))
        alive += made - ending[n]
    known[jaxpr] = peak
    return peak


def _num_bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
