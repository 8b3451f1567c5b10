"""Measures the routing and the calibration of a run on images."""

import functools
import operator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int

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
from capsjax.models.watching import WatchedLayer, watch
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
        trees: Parse trees of the layer that makes the class capsules; none if it is
            convolutional.
        accuracy: Accuracy on these images.
        uniform_accuracy: Accuracy with all couplings replaced by ``1 / J``.
        num_images: Number of images.
    """

    layers: dict[str, dict[str, float]]
    sizes: dict[str, tuple[int, int]]
    histogram: dict[str, Int[np.ndarray, " bars"]]
    trees: ParseTrees
    accuracy: float
    uniform_accuracy: float
    num_images: int


def diagnose(
    run: Run, dataset: Dataset, *, most: int = MOST_WATCHED
) -> Diagnosis | None:
    """Watches the routing of images; returns None if no layer routes.

    Args:
        run: The run, with its network.
        dataset: The images.
        most: Largest number of images to watch; fewer if they have many couplings.
    """
    model, params = run.model, run.params
    judging: Any = {"kind": run.activation_kind}
    judging["is_counted"] = dataset.num_shown is not None

    @jax.jit
    def num_right(routed: Routed, label: Array) -> Array:
        return found(routed.activation, label, **judging)[0].sum()

    # The measures are other programs: XLA would take seconds to fold couplings that are
    # known when it compiles.
    @jax.jit
    def watched(params: Any, batch: Batch) -> tuple[Routed, dict[str, WatchedLayer]]:
        return watch(model, params, middle(batch, model)[0])

    @jax.jit
    def swapped(params: Any, batch: Batch) -> Routed:
        image, _ = middle(batch, model)
        return watch(model, params, image, compete=uniformly)[0]

    # Take as many images as their couplings allow, in equal batches.
    one = dataset.batch(np.arange(1))
    shapes = jax.eval_shape(watched, params, one)[1]
    if not shapes:
        return None
    sizes = {name: layer.coupling.shape[-2:] for name, layer in shapes.items()}
    num_couplings = sum(layer.coupling.size for layer in shapes.values())
    number = min(len(dataset), most, max(1, _MOST_COUPLINGS // num_couplings))
    step = min(number, max(1, _COUPLINGS_AT_ONCE // num_couplings))
    images = some_images(dataset, number // step * step)
    # Watch them, and add up their statistics.
    parts: dict[str, list[RoutingStatistics]] = {name: [] for name in sizes}
    histogram: dict[str, Any] = dict.fromkeys(sizes, 0)
    trees, right, swapped_right = ParseTrees({}), 0.0, 0.0
    for _, batch in batches(images, step):
        routed, layers = watched(params, batch)
        for name in sizes:
            parts[name].append(layers[name].statistics())
            coupling, mask = np.asarray(layers[name].coupling), layers[name].input_mask
            if mask is not None:
                coupling = coupling[np.asarray(mask)]
            histogram[name] += np.histogram(coupling, NUM_SHARES, (0, 1))[0]
        *_, last = layers.values()
        if last.coupling.shape[2:] == routed.activation.shape[1:]:
            label = np.argmax(routed.activation, axis=-1)
            trees += ParseTrees.of(parse_tree(last.coupling, label), label)
        right += float(num_right(routed, batch.label))
        swapped_right += float(num_right(swapped(params, batch), batch.label))
    measures = {
        name: functools.reduce(operator.add, one).measures()
        for name, one in parts.items()
    }
    return Diagnosis(
        {
            name: {what: float(value) for what, value in one.items()}
            for name, one in measures.items()
        },
        sizes,
        histogram,
        trees,
        right / len(images),
        swapped_right / len(images),
        len(images),
    )


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
    known = run.predict(np.asarray(validation.image)).activation
    temperature = float(fit_temperature(known, validation.label, kind))
    activation = prediction.activation
    fitted = class_probability(activation, kind, temperature)
    return Calibration(
        temperature,
        len(validation),
        Reliability.of(fitted, dataset.label),
        Reliability.of(activation, dataset.label),
    )
