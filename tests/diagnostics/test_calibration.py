"""Probabilities from activations, their temperature, and the calibration error."""

import math

import diagnostics as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capsjax.diagnostics import Reliability, class_probability, fit_temperature


@pytest.fixture(autouse=True)
def _in_float64():
    with jax.enable_x64(True):
        yield


def images(number=200):
    """Returns logits of 4 classes, and labels that they often meet."""
    rng = np.random.default_rng(0)
    logit = 2 * rng.normal(size=(number, 4))
    label = np.argmax(logit + 1.5 * rng.gumbel(size=logit.shape), axis=-1)
    return logit, label


def test_a_kind_of_activation_has_its_map_to_probabilities():
    logit, _ = images()
    softmax = np.exp(logit) / np.exp(logit).sum(-1, keepdims=True)
    np.testing.assert_allclose(class_probability(logit, "logit"), softmax, rtol=1e-12)
    # Probabilities that add up to one are kept, and others are divided by their sum.
    for factor in (1, 0.5):
        found = class_probability(factor * softmax, "probability")
        np.testing.assert_allclose(found, softmax, rtol=1e-12)
    cold = class_probability(logit, "logit", 0.5)
    np.testing.assert_allclose(cold, softmax**2 / (softmax**2).sum(-1, keepdims=True))
    found = class_probability(softmax, "probability", 0.5)
    np.testing.assert_allclose(found, cold, rtol=1e-12)
    length = np.array([[0.9, 0.1, 0.0]])
    ratio = class_probability(length, "length", 0.1)[0]
    np.testing.assert_allclose(ratio[0] / ratio[1:], [math.exp(8), math.exp(9)])
    # A class that is impossible leaves everything finite.
    assert np.isfinite(class_probability(length, "probability", 1e-3)).all()


@pytest.mark.parametrize("kind", ["logit", "length", "probability"])
def test_the_temperature_is_the_best_one(kind):
    z, label = images()
    activation = z
    if kind == "length":
        activation = z = z / 20 + 0.5
    if kind == "probability":
        activation = 1 / (1 + np.exp(-z))  # They do not add up to one.
        z = np.log(activation)
    best = float(fit_temperature(activation, label, kind))
    least = reference.mean_loss(z, label, best)
    grid = best * np.exp(np.linspace(-0.5, 0.5, 101))
    assert all(least <= reference.mean_loss(z, label, one) + 1e-12 for one in grid)
    # It is no end of the interval, and the slope vanishes.
    slope = reference.mean_loss(z, label, best * 1.001) - least
    assert 0 < slope < 1e-5
    assert 1e-3 < best < 10


def test_the_temperature_stays_finite_in_extreme_cases():
    logit = np.eye(4) * 5
    assert fit_temperature(logit, np.arange(4), "logit") == pytest.approx(1e-4)
    wrong = fit_temperature(logit, (np.arange(4) + 1) % 4, "logit")
    assert wrong == pytest.approx(1e4)


@pytest.mark.parametrize("num_bins", [1, 15])
def test_the_calibration_error_is_that_of_its_definition(num_bins):
    logit, label = images()
    p = class_probability(logit, "logit")
    found = Reliability.of(p, label, num_bins=num_bins)
    expected = reference.calibration_error(np.asarray(p), label, num_bins)
    assert expected > 0.02
    np.testing.assert_allclose(found.expected_error, expected, rtol=1e-12)
    parts = [
        Reliability.of(p[part], label[part], num_bins=num_bins)
        for part in (slice(100), slice(100, None))
    ]
    added = parts[0] + parts[1]
    np.testing.assert_allclose(added.expected_error, expected, rtol=1e-12)
    np.testing.assert_array_equal(added.right.weight, found.right.weight)


def test_bins_hold_their_upper_end():
    # Confidences of 0.5, 0.75 and 1 in the bins (0, 0.5] and (0.5, 1].
    p = jnp.array([[0.5, 0.5], [0.75, 0.25], [0.0, 1.0]])
    found = Reliability.of(p, jnp.array([1, 0, 1]), num_bins=2)
    assert found.right.weight.tolist() == [1, 2]
    assert found.confidence.mean.tolist() == [0.5, 0.875]
    assert found.right.mean.tolist() == [0, 1]
    assert found.expected_error == pytest.approx(0.5 / 3 + 0.125 * 2 / 3)
    sure = Reliability.of(jnp.eye(2), jnp.arange(2))
    assert sure.expected_error == 0
