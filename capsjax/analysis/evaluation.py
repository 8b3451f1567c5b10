"""What a network, or several together, make of a data set."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from capsjax.analysis.inspection import (
    ROUNDS,
    Lengths,
    accuracy_by_rounds,
    batches,
    primary_lengths,
)
from capsjax.data import Batch, Dataset
from capsjax.models.network import has_stages, routing_of
from capsjax.ops import mask_longest
from capsjax.routings import Routed
from capsjax.storage.run import Prediction, Run
from capsjax.training.evaluation import means, middle
from capsjax.training.objective import (
    Metrics,
    measure,
)

# Couplings that are computed to compare numbers of rounds; but of so many images at
# least.
_MOST_COUPLINGS, _FEWEST_COMPARED = 2**27, 200
# Classes whose whole table of confusions is kept.
MOST_KEPT_CLASSES = 100


class Scores(NamedTuple):
    """How well each class is told from the others; NaN where that has no meaning.

    Attributes:
        num_images: How many images show the class.
        precision: Which share of the images that were taken for it show it.
        recall: Which share of the images that show it were taken for it.
        f1: The harmonic mean of both.
    """

    num_images: Int[np.ndarray, " classes"]
    precision: Float[np.ndarray, " classes"]
    recall: Float[np.ndarray, " classes"]
    f1: Float[np.ndarray, " classes"]

    @property
    def balanced_accuracy(self) -> float:
        """The mean recall of the classes that are shown."""
        return float(self.recall[self.num_images > 0].mean())

    @property
    def is_uneven(self) -> bool:
        """Whether the classes differ in size by more than a tenth."""
        return bool(self.num_images.max() > 1.1 * self.num_images.min())


def class_scores(confusion: Int[np.ndarray, "n n"]) -> Scores:
    """Precision, recall and F1 of each class, from what was taken for what.

    Args:
        confusion: How often each class (a row) was taken for which (a column).
    """
    right, shown, taken = np.diag(confusion), confusion.sum(1), confusion.sum(0)

    def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)

    return Scores(
        shown, share(right, taken), share(right, shown), share(2 * right, shown + taken)
    )


class Evaluation(NamedTuple):
    """What a network, or several together, make of a data set.

    Attributes:
        metrics: Means over the images.
        prediction: For every image.
        confusion: How often each class that is shown (a row) was taken for which (a
            column). Of several in one image, those that were missed are set against
            those that were taken for them, both in the order of the classes.
        primary: Lengths of the primary capsules of one network, if it has any.
        classes: Lengths of the class capsules, if there are any.
        by_rounds: Accuracy by the number of rounds of routing, if there is routing.
        num_compared: Of so many of the images.
    """

    metrics: Metrics
    prediction: Prediction
    confusion: Any
    primary: Lengths | None = None
    classes: Lengths | None = None
    by_rounds: dict[int, float] | None = None
    num_compared: int = 0


def evaluate_run(
    run: Run, dataset: Dataset, *, looks_inside: bool = True
) -> Evaluation:
    """Everything that is told of a run, but the figures.

    Args:
        run: Whose network.
        dataset: The images.
        looks_inside: Whether to tell of capsules and routing, if there are any.
    """
    summed, sums, parts = _summed_metrics(run), [], []
    for _, batch in batches(run, dataset):
        part = run.predict(batch.image)
        sums.append(jax.tree.map(np.asarray, summed(run.params, batch, part)))
        # Poses of many classes and images would take more memory than the images.
        parts.append(part._replace(pose=None))
    prediction: Prediction = jax.tree.map(lambda *part: np.concatenate(part), *parts)
    evaluation = Evaluation(
        means(sums, len(dataset)),
        prediction,
        count_confusions(dataset.label, prediction.activation),
    )
    if not (has_stages(run.model) and looks_inside):
        return evaluation
    length = prediction.activation
    # Of many classes each number of rounds takes minutes to compile and to compare.
    compared_rounds = ROUNDS if length.shape[1] <= MOST_KEPT_CLASSES else ROUNDS[:2]
    routing = routing_of(run.model)
    rounds = []
    if routing is not None:
        rounds = sorted({*compared_rounds, routing.num_rounds or 1})
    primary = primary_lengths(run, dataset)
    num_couplings = primary.longest.size * length.shape[1]
    compared = some_images(
        dataset, max(_FEWEST_COMPARED, _MOST_COUPLINGS // num_couplings)
    )
    return evaluation._replace(
        primary=primary,
        classes=Lengths(length.max(0), length.min(0)),
        by_rounds=accuracy_by_rounds(run, compared, rounds) if rounds else None,
        num_compared=len(compared),
    )


def some_images(dataset: Dataset, number: int) -> Dataset:
    """So many images at most, of all parts of the set: it may be sorted by class."""
    if len(dataset) <= number:
        return dataset
    index = np.random.default_rng(0).choice(len(dataset), number, replace=False)
    return dataset.subset(np.sort(index))


def evaluate_ensemble(
    runs: Sequence[Run], dataset: Dataset, members: Sequence[Evaluation]
) -> Evaluation:
    """What several networks make of a data set together.

    The lengths of their class capsules, or their probabilities, are averaged. Nothing
    is drawn; margins are those of the first run.

    Args:
        runs: Of one kind of network.
        dataset: The images.
        members: What each run makes of them.
    """
    activation = np.mean([one.prediction.activation for one in members], axis=0)
    prediction = Prediction(activation.argmax(-1), activation, None)
    summed, sums = _summed_metrics(runs[0]), []
    for part, batch in batches(runs[0], dataset):
        seen = jax.tree.map(lambda whole, part=part: whole[part], prediction)
        sums.append(jax.tree.map(np.asarray, summed(runs[0].params, batch, seen)))
    return Evaluation(
        means(sums, len(dataset)),
        prediction,
        count_confusions(dataset.label, activation),
    )


def _summed_metrics(run: Run) -> Callable[[Any, Batch, Prediction], Metrics]:
    """Makes the function that sums up the metrics of a batch, given its predictions."""

    @jax.jit
    def summed(params: Any, batch: Batch, prediction: Prediction) -> Metrics:
        image, source = middle(batch, run.model)
        activation: Any = prediction.activation
        if run.activation_kind == "logit":
            # The logarithm of a probability that was rounded to zero is not finite.
            activation = jnp.log(jnp.maximum(activation, np.finfo(np.float32).tiny))
        routed = Routed(prediction.pose, activation, None)
        each = measure(
            *(run.model, params, routed, image, batch.label),
            loss=run.loss,
            source=source,
        )
        return jax.tree.map(jnp.sum, each)

    return summed


def count_confusions(
    label: np.ndarray, activation: Float[np.ndarray, "m n"]
) -> np.ndarray:
    """How often each class that is shown was taken for which: see ``Evaluation``."""
    num_classes = activation.shape[1]
    if label.ndim == 1:
        pairs = label.astype(np.int64) * num_classes + activation.argmax(-1)
        confusion = np.bincount(pairs, minlength=num_classes**2)
        return confusion.reshape(num_classes, num_classes)
    shown = label
    count = jnp.asarray(shown.sum(1))
    taken = np.asarray(mask_longest(jnp.asarray(activation), count)) > 0
    confusion = np.diag((shown & taken).sum(0))
    # By image and then by class; of each image as many were missed as taken for them.
    missed, instead = np.nonzero(shown & ~taken)[1], np.nonzero(taken & ~shown)[1]
    np.add.at(confusion, (missed, instead), 1)
    return confusion
