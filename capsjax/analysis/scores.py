"""Scores of each class: precision, recall and what follows from the verdicts."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from capsjax.losses import PRESENT


class Scores(NamedTuple):
    """Scores of each class; NaN where a share has no images.

    Attributes:
        num_images: Number of images that show the class.
        precision: Share of the images predicted as the class that show it.
        recall: Share of the images that show the class that were predicted as it.
        f1: The harmonic mean of both.
        balanced: Mean of the shares of images with and without the class on which the
            verdict is right; None unless images show different numbers of classes.
        average_precision: Mean of the precision over the images that show the class, at
            the activation of each; None likewise.
    """

    num_images: Int[np.ndarray, " classes"]
    precision: Float[np.ndarray, " classes"]
    recall: Float[np.ndarray, " classes"]
    f1: Float[np.ndarray, " classes"]
    balanced: Float[np.ndarray, " classes"] | None = None
    average_precision: Float[np.ndarray, " classes"] | None = None

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that have images; or mean of ``balanced``."""
        return _known_mean(self.recall if self.balanced is None else self.balanced)

    @property
    def mean_average_precision(self) -> float | None:
        """Mean of ``average_precision`` over the classes that have images."""
        precision = self.average_precision
        return None if precision is None else _known_mean(precision)

    @property
    def is_uneven(self) -> bool:
        """True if the classes differ in size by more than a tenth."""
        return bool(self.num_images.max() > 1.1 * self.num_images.min())


def class_scores(confusion: Int[np.ndarray, "n n"]) -> Scores:
    """Computes precision, recall and F1 of each class from the confusions.

    Args:
        confusion: How often each class (a row) was predicted as each other (a column).
    """
    right, shown, taken = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    return Scores(
        shown,
        _share(right, taken),
        _share(right, shown),
        _share(2 * right, shown + taken),
    )


def label_scores(
    label: Bool[np.ndarray, "m n"], activation: Float[np.ndarray, "m n"]
) -> Scores:
    """Computes the scores of images that show different numbers of classes.

    Args:
        label: True for each class of an image.
        activation: The length or probability of every class; at least 0.5 names it.
    """
    named = activation >= PRESENT
    right, shown, taken = (label & named).sum(0), label.sum(0), named.sum(0)
    absent = len(label) - shown
    kept_out = absent - (taken - right)
    recall = _share(right, shown)
    return Scores(
        shown,
        _share(right, taken),
        recall,
        _share(2 * right, shown + taken),
        (recall + _share(kept_out, absent)) / 2,
        np.array([*map(average_precision, label.T, activation.T)]),
    )


def average_precision(
    is_shown: Bool[np.ndarray, " m"], activation: Float[np.ndarray, " m"]
) -> float:
    r"""Returns the average precision of one class; NaN if no image shows it.

    .. math::
        AP = \sum_k (R_k - R_{k-1}) P_k

    over all distinct activations as thresholds, from the highest: precision ``P`` and
    recall ``R`` of the images at or above each. It is not interpolated.
    """
    if not is_shown.any():
        return float("nan")
    order = np.argsort(-activation, kind="stable")
    right = np.cumsum(is_shown[order])
    # Images of one activation are above a threshold together.
    last = np.append(np.flatnonzero(np.diff(activation[order])), len(order) - 1)
    precision, recall = right[last] / (last + 1), right[last] / right[-1]
    return float(np.sum(np.diff(recall, prepend=0) * precision))


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _known_mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
