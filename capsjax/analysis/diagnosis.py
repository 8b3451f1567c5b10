"""Measures the routing and the calibration of a run on images."""

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from capsjax.analysis.images import batches, some_images
from capsjax.data import Batch, Dataset
from capsjax.diagnostics import (
    ParseTrees,
    Reliability,
    RoutingStatistics,
    class_probability,
    fit_temperature,
    parse_tree,
    uniformly,
)
from capsjax.models.network import NetworkError
from capsjax.models.watching import watch
from capsjax.routings import Routed
from capsjax.storage.run import Prediction, Run
from capsjax.training.evaluation import middle
from capsjax.training.objective import found

# Validation images for one temperature.
_MOST_VALIDATED = 2000
# Images whose couplings are watched: so many by default, and at most so many couplings,
# of which so many at once.
MOST_WATCHED, _MOST_COUPLINGS, _COUPLINGS_AT_ONCE = 1000, 2**26, 2**21
NUM_SHARES = 50  # Bars of a histogram of couplings.


class Diagnosis(NamedTuple):
    """Measures of the routing of a network, on some images.

    Attributes:
        layers: The measures of each capsule layer, by name: see ``RoutingStatistics``.
        sizes: Number of inputs and outputs of each layer.
        histogram: Number of each layer's couplings in each of 50 parts of 0 to 1.
        trees: Parse trees of the layer that makes the class capsules.
        accuracy: Accuracy on these images.
        uniform_accuracy: Accuracy with all couplings replaced by ``1 / J``; None if a
            layer does not take another competition.
        num_images: Number of images.
    """

    layers: dict[str, dict[str, float]]
    sizes: dict[str, tuple[int, int]]
    histogram: dict[str, Int[np.ndarray, " bars"]]
    trees: ParseTrees
    accuracy: float
    uniform_accuracy: float | None
    num_images: int


class _Watched(NamedTuple):
    """What is counted of a batch."""

    statistics: dict[str, RoutingStatistics]
    histogram: dict[str, Int[Array, " bars"]]
    tree: Int[Array, "n i"]
    label: Int[Array, " n"]
    num_right: Float[Array, ""]


def diagnose(
    run: Run, dataset: Dataset, *, most: int = MOST_WATCHED
) -> Diagnosis | None:
    """Watches the routing of images; returns None if no layer shows its couplings.

    Args:
        run: The run, with its network.
        dataset: The images.
        most: Largest number of images to watch; fewer if they have many couplings.
    """
    model, counted = run.model, dataset.num_shown is not None

    def count_right(routed: Routed, batch: Batch) -> Array:
        judging: Any = {"kind": run.activation_kind, "is_counted": counted}
        return found(routed.activation, batch.label, **judging)[0].sum()

    def watch_batch(params: Any, batch: Batch) -> _Watched | None:
        routed, layers = watch(model, params, middle(batch, model)[0])
        if not layers:
            return None
        label = jnp.argmax(routed.activation, axis=-1)
        return _Watched(
            {name: layer.statistics() for name, layer in layers.items()},
            {
                name: jnp.histogram(layer.coupling, NUM_SHARES, (0, 1))[0]
                for name, layer in layers.items()
            },
            parse_tree([*layers.values()][-1].coupling, label),
            label,
            count_right(routed, batch),
        )

    def swap(params: Any, batch: Batch) -> Array:
        image, _ = middle(batch, model)
        return count_right(watch(model, params, image, compete=uniformly)[0], batch)

    # Take as many images as their couplings allow, in equal batches.
    one = dataset.batch(np.arange(1))
    shapes: Any = jax.eval_shape(watch_batch, run.params, one)
    if shapes is None:
        return None
    sizes = {name: part.bond.mean.shape for name, part in shapes.statistics.items()}
    num_couplings = sum(i * j for i, j in sizes.values())
    number = min(len(dataset), most, max(1, _MOST_COUPLINGS // num_couplings))
    step = min(number, max(1, _COUPLINGS_AT_ONCE // num_couplings))
    images = some_images(dataset, number // step * step)
    can_swap = True
    try:
        jax.eval_shape(swap, run.params, one)
    except NetworkError:
        can_swap = False
    # Watch them, and add up their statistics.
    watch_batch, swap = jax.jit(watch_batch), jax.jit(swap)
    parts, trees, swapped = [], ParseTrees({}), 0.0
    for _, batch in batches(images, step):
        part: Any = watch_batch(run.params, batch)
        trees += ParseTrees.of(np.asarray(part.tree), np.asarray(part.label))
        parts.append(part._replace(tree=None, label=None))
        if can_swap:
            swapped += float(swap(run.params, batch))
    total: Any = functools.reduce(_add, parts)
    return Diagnosis(
        {
            name: {what: float(value) for what, value in one.measures().items()}
            for name, one in total.statistics.items()
        },
        sizes,
        {name: np.asarray(count) for name, count in total.histogram.items()},
        trees,
        float(total.num_right) / len(images),
        swapped / len(images) if can_swap else None,
        len(images),
    )


def _add(one: _Watched, other: _Watched) -> _Watched:
    """Adds up two batches."""
    is_whole = lambda part: isinstance(part, RoutingStatistics)  # noqa: E731
    return jax.tree.map(operator.add, one, other, is_leaf=is_whole)


class Calibration(NamedTuple):
    """How far the confidence of a network is from its accuracy.

    Attributes:
        temperature: Temperature fitted on validation images.
        num_validation: Number of these images.
        fitted: Reliability of the probabilities at this temperature.
        as_is: Reliability of the activations, each read as a probability.
    """

    temperature: float
    num_validation: int
    fitted: Reliability
    as_is: Reliability


def calibrate(
    run: Run, validation: Dataset, dataset: Dataset, prediction: Prediction
) -> Calibration:
    """Fits a temperature on validation images, and measures test images with it.

    Args:
        run: The run, whose images show one class each.
        validation: Its validation images, of which at most 2,000 are used.
        dataset: The images to measure.
        prediction: The predictions for these.
    """
    validation = some_images(validation, _MOST_VALIDATED)
    # ``predict`` turns logits into probabilities.
    kind = "length" if run.activation_kind == "length" else "probability"
    known = run.predict(validation.image).activation
    temperature = float(fit_temperature(known, validation.label, kind))
    activation = prediction.activation
    fitted = class_probability(activation, kind, temperature)
    return Calibration(
        temperature,
        len(validation),
        Reliability.of(fitted, dataset.label),
        Reliability.of(activation, dataset.label),
    )
