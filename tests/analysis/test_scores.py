"""Scores of images that show different numbers of classes."""

import math

import numpy as np
import pytest

from capsjax.analysis.scores import average_precision, label_scores


def precision_by_thresholds(is_shown, activation):
    """Computes the average precision by its definition, threshold by threshold."""
    total, before = 0.0, 0.0
    for threshold in sorted({*activation}, reverse=True):
        right = sum(
            s and a >= threshold for s, a in zip(is_shown, activation, strict=True)
        )
        above = sum(a >= threshold for a in activation)
        recall = right / sum(is_shown)
        total += (recall - before) * right / above
        before = recall
    return total


@pytest.mark.parametrize("levels", [3, 1000])
def test_average_precision_is_the_sum_over_all_thresholds(levels):
    rng = np.random.default_rng(0)
    for number in range(1, 40):
        is_shown = rng.random(number) < 0.4
        is_shown[rng.integers(number)] = True
        # With few levels, many activations are equal.
        activation = rng.integers(0, levels, number).astype(np.float32) / levels
        actual = average_precision(is_shown, activation)
        expected = precision_by_thresholds(is_shown.tolist(), activation.tolist())
        assert actual == pytest.approx(expected, rel=1e-12)


def test_average_precision_of_known_cases():
    shown = np.array([True, False, True, False])
    assert average_precision(shown, np.array([4.0, 2, 3, 1])) == 1
    assert average_precision(shown, np.ones(4)) == 0.5
    assert math.isnan(average_precision(shown & ~shown, np.ones(4)))
    # The example in the documentation of scikit-learn's average_precision_score.
    given = np.array([0.1, 0.4, 0.35, 0.8])
    shown = np.array([False, False, True, True])
    assert average_precision(shown, given) == pytest.approx(5 / 6)


def test_each_class_has_scores_of_its_verdicts():
    label = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0]], bool)
    activation = np.array(
        [[0.9, 0.5, 0.1], [0.4, 0.8, 0.6], [0.6, 0.1, 0.2], [0.3, 0.7, 0.3]], np.float32
    )
    scores = label_scores(label, activation)
    assert scores.num_images.tolist() == [2, 2, 0]
    np.testing.assert_allclose(scores.precision, [1 / 2, 2 / 3, 0])
    np.testing.assert_allclose(scores.recall, [1 / 2, 1, np.nan])
    np.testing.assert_allclose(scores.f1, [1 / 2, 4 / 5, 0])
    np.testing.assert_allclose(scores.balanced, [1 / 2, 3 / 4, np.nan])
    np.testing.assert_allclose(scores.average_precision, [5 / 6, 1, np.nan])
    # A class without images has no share in the means.
    assert scores.balanced_accuracy == pytest.approx(5 / 8)
    assert scores.mean_average_precision == pytest.approx(11 / 12)
