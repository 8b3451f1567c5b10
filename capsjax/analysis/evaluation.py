"""Evaluates a network, or an ensemble of networks, on a data set."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from capsjax.analysis.diagnosis import Calibration, Diagnosis, calibrate, diagnose
from capsjax.analysis.images import batches, load_validation_set, some_images
from capsjax.analysis.inspection import ROUNDS, predictions_by_rounds
from capsjax.analysis.scores import Scores, class_scores, label_scores
from capsjax.data import Batch, Dataset
from capsjax.diagnostics import is_changed
from capsjax.models.network import has_stages, routing_of
from capsjax.ops import mask_longest
from capsjax.routings import Routed
from capsjax.storage.prediction import Prediction
from capsjax.storage.run import Run
from capsjax.training.evaluation import means, middle
from capsjax.training.objective import (
    Metrics,
    measure,
)

# Most couplings computed to compare numbers of rounds, but for at least this many
# images.
_MOST_COUPLINGS, _FEWEST_COMPARED = 2**27, 200
# With more classes, only the commonest confusions are kept.
MOST_KEPT_CLASSES = 100


class Evaluation(NamedTuple):
    """Results of a network, or an ensemble of networks, on a data set.

    Attributes:
        metrics: Means over the images.
        prediction: The prediction for every image.
        scores: Scores of each class.
        confusion: How often each shown class (a row) was predicted as each other (a
            column). If all images show the same number of several, an image's missed
            classes are paired with the wrong predictions, both in the order of the
            classes. None if images show different numbers.
        diagnosis: Measures of the routing of one network, if it has capsule layers.
        calibration: Reliability of its confidences, if images show one class each and
            there are validation images.
        by_rounds: Accuracy by the number of rounds of routing, if there is routing.
        changed: Share of the predictions that differ from those of the network's own
            number of rounds, likewise.
        num_compared: Number of images behind these two.
    """

    metrics: Metrics
    prediction: Prediction
    scores: Scores
    confusion: Any
    diagnosis: Diagnosis | None = None
    calibration: Calibration | None = None
    by_rounds: dict[int, float] | None = None
    changed: dict[int, float] | None = None
    num_compared: int = 0


def evaluate_run(
    run: Run, dataset: Dataset, *, looks_inside: bool = True
) -> Evaluation:
    """Computes all numbers reported for a run.

    Args:
        run: The run, with its network.
        dataset: The images.
        looks_inside: True to report on capsules and routing, if there are any.
    """
    # Predict every image, and sum up the metrics.
    summed, sums, parts = _summed_metrics(run), [], []
    for _, batch in batches(dataset, run.config.eval_batch_size):
        part = run.predict(batch.image)
        sums.append(jax.tree.map(np.asarray, summed(run.params, batch, part)))
        # Poses would take more memory than the images.
        parts.append(part._replace(pose=None))
    prediction: Prediction = jax.tree.map(lambda *part: np.concatenate(part), *parts)
    evaluation = Evaluation(
        means(sums, len(dataset)),
        prediction,
        *_compared(dataset, prediction.activation),
    )
    if not looks_inside:
        return evaluation
    evaluation = evaluation._replace(diagnosis=diagnose(run, dataset))
    if not dataset.is_multi_label and (validation := load_validation_set(run)):
        calibration = calibrate(run, validation, dataset, prediction)
        evaluation = evaluation._replace(calibration=calibration)
    routing = routing_of(run.model)
    if routing is None or not has_stages(run.model) or evaluation.diagnosis is None:
        return evaluation
    # Compare numbers of rounds; with many classes each takes minutes to compile.
    is_small = prediction.activation.shape[1] <= MOST_KEPT_CLASSES
    own = routing.num_rounds or 1
    rounds = sorted({*(ROUNDS if is_small else ROUNDS[:2]), own})
    *_, (i, j) = evaluation.diagnosis.sizes.values()
    number = max(_FEWEST_COMPARED, _MOST_COUPLINGS // (i * j))
    # Of a choice, batches of one size: each is compiled by itself.
    number -= number % min(number, run.config.eval_batch_size)
    compared = some_images(dataset, number)
    named = predictions_by_rounds(run, compared, rounds)
    label = compared.label
    if not dataset.is_multi_label:
        label = np.arange(dataset.num_classes) == label[:, None]

    def differing(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.mean(is_changed(one, other)))

    return evaluation._replace(
        by_rounds={
            n: float(1 - is_changed(one, label).mean()) for n, one in named.items()
        },
        changed={
            n: float(is_changed(one, named[own]).mean()) for n, one in named.items()
        },
        num_compared=len(compared),
    )


def evaluate_ensemble(
    runs: Sequence[Run], dataset: Dataset, members: Sequence[Evaluation]
) -> Evaluation:
    """Evaluates several networks together on a data set.

    Averages the lengths of their class capsules, or their probabilities. Draws nothing,
    and takes the margins from the first run.

    Args:
        runs: The runs, with networks of one kind.
        dataset: The images.
        members: The evaluation of each run on these images.
    """
    activation = np.mean([one.prediction.activation for one in members], axis=0)
    prediction = Prediction(activation.argmax(-1), activation, None)
    summed, sums = _summed_metrics(runs[0]), []
    for part, batch in batches(dataset, runs[0].config.eval_batch_size):
        seen = jax.tree.map(lambda whole, part=part: whole[part], prediction)
        sums.append(jax.tree.map(np.asarray, summed(runs[0].params, batch, seen)))
    return Evaluation(
        means(sums, len(dataset)),
        prediction,
        *_compared(dataset, activation),
    )


def _summed_metrics(run: Run) -> Callable[[Any, Batch, Prediction], Metrics]:
    """Makes the function that sums up the metrics of a batch, given its predictions."""

    @jax.jit
    def summed(params: Any, batch: Batch, prediction: Prediction) -> Metrics:
        image, source = middle(batch, run.model)
        activation: Any = prediction.activation
        if run.activation_kind == "logit":
            # The logarithm of a probability rounded to zero is not finite.
            tiny = np.finfo(np.float32).tiny
            if run.num_shown == 1:
                activation = jnp.log(jnp.maximum(activation, tiny))
            else:
                activation = jax.scipy.special.logit(
                    jnp.clip(activation, tiny, 1 - 2**-24)
                )
        routed = Routed(prediction.pose, activation, None)
        each = measure(
            *(run.model, params, routed, image, batch.label),
            loss=run.loss,
            source=source,
        )
        return jax.tree.map(jnp.sum, each)

    return summed


def _compared(
    dataset: Dataset, activation: Float[np.ndarray, "m n"]
) -> tuple[Scores, np.ndarray | None]:
    """Returns scores and confusions of the predictions, as in ``Evaluation``."""
    if dataset.num_shown is None:
        return label_scores(dataset.label, activation), None
    confusion = count_confusions(dataset.label, activation)
    return class_scores(confusion), confusion


def count_confusions(
    label: np.ndarray, activation: Float[np.ndarray, "m n"]
) -> np.ndarray:
    """Counts how often each shown class was predicted as each: see ``Evaluation``."""
    num_classes = activation.shape[1]
    if label.ndim == 1:
        pairs = label.astype(np.int64) * num_classes + activation.argmax(-1)
        confusion = np.bincount(pairs, minlength=num_classes**2)
        return confusion.reshape(num_classes, num_classes)
    shown = label
    count = jnp.asarray(shown.sum(1))
    taken = np.asarray(mask_longest(jnp.asarray(activation), count)) > 0
    confusion = np.diag((shown & taken).sum(0))
    # By image, then by class: each image has as many missed classes as wrong ones.
    missed, instead = np.nonzero(shown & ~taken)[1], np.nonzero(taken & ~shown)[1]
    np.add.at(confusion, (missed, instead), 1)
    return confusion
