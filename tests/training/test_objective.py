"""What is measured of images that show one class, several, or go to the baseline."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from tiny import made, tiny, tiny_cnn

from capsjax.data import load
from capsjax.losses import CrossEntropy, MarginLoss
from capsjax.models import CapsNet
from capsjax.routings import Routed
from capsjax.training.objective import (
    balanced_label_weights,
    balanced_weights,
    found,
    image_metrics,
    measure,
)

SMALL = CapsNet(
    (17, 17, 1), 5, conv_features=4, primary_types=2, class_dim=3, decoder_features=(8,)
)


@pytest.fixture(scope="module")
def params():
    return jax.jit(SMALL.init)(jax.random.key(0), jnp.zeros((1, 17, 17, 1)))


decode = jax.jit(functools.partial(SMALL.apply, method=SMALL.decode))


def drawn(params, pose, classes):
    """What some class capsules of one image draw together, the others set to zero."""
    mask = np.zeros((1, 5), np.float32)
    mask[0, list(classes)] = 1
    return decode(params, pose[None], mask)[0]


def in_jit(function, model, *arrays, loss, class_weight=None, **options):
    """Calls ``measure`` or ``image_metrics`` as a training step does."""
    call = functools.partial(function, model, loss=loss, class_weight=class_weight)
    return jax.jit(call)(*arrays, **options)


def squared_error(a, b):
    return np.sum((np.asarray(a, np.float64) - np.asarray(b)) ** 2)


def random_case(key, shown, num_images=4):
    """Images, sources, poses and lengths for labels that show these classes each."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    image = rng.uniform(size=(num_images, 17, 17, 1)).astype(np.float32)
    shape = (num_images, len(shown[0]), 17, 17, 1)
    source = rng.uniform(size=shape).astype(np.float32)
    pose = rng.normal(size=(num_images, 5, 3)).astype(np.float32)
    label = np.zeros((num_images, 5), bool)
    np.put_along_axis(label, np.array(shown), values=True, axis=1)
    return image, source, pose, label


SHOWN = [(0, 3), (1, 2), (2, 4), (0, 4)]
# Both classes are longest, one of them, none, and both in the other order.
LENGTH = [
    (0.9, 0.1, 0.2, 0.8, 0.3),
    (0.9, 0.1, 0.8, 0.2, 0.0),
    (0.5, 0.9, 0.4, 0.8, 0.1),
    (0.6, 0.1, 0.2, 0.3, 0.7),
]
LONGEST = [(0, 3), (0, 2), (1, 3), (0, 4)]


def routed(length, pose=None):
    return Routed(pose, np.array(length, "f4"), None)


def test_exact_matches_and_found_classes_are_counted_by_image(key, params):
    image, source, _, label = random_case(key, SHOWN)
    metrics = in_jit(
        *(measure, SMALL, params, routed(LENGTH), image, label),
        loss=MarginLoss(),
        source=source,
    )
    assert metrics.per_label_accuracy is None
    assert metrics.accuracy.tolist() == [1, 0, 0, 1]
    assert metrics.label_accuracy.tolist() == [1, 0.5, 0, 1]
    expected = [
        reference.margin_loss(length, own)
        for length, own in zip(LENGTH, np.asarray(label), strict=True)
    ]
    np.testing.assert_allclose(metrics.parts["margin_loss"], expected, rtol=1e-5)
    assert metrics.loss.tolist() == metrics.parts["margin_loss"].tolist()


def test_classes_that_are_not_counted_are_those_of_at_least_a_half(key, params):
    label = np.array([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
    image = random_case(key, SHOWN)[0][:3]
    length = [[0.9, 0.5, 0.7, 0.1, 0.49]] * 3
    metrics = in_jit(
        *(measure, SMALL, params, routed(length), image, label), loss=MarginLoss()
    )
    assert metrics.accuracy.tolist() == [1, 0, 0]
    assert metrics.label_accuracy is None
    np.testing.assert_allclose(metrics.per_label_accuracy, [1, 0.6, 0.4])
    none = routed([[0.4, 0, 0, 0, 0]] * 3)
    metrics = in_jit(*(measure, SMALL, params, none, image, label), loss=MarginLoss())
    assert metrics.accuracy.tolist() == [0, 0, 1]


def test_a_logit_of_zero_is_a_half():
    label, activation = jnp.array([[True, False]]), jnp.array([[0.0, -1e-3]])
    right = found(activation, label, kind="logit", is_counted=False)
    assert right[0].tolist() == [1]
    right = found(activation, label, kind="probability", is_counted=False)
    assert (right[0].tolist(), right[2].tolist()) == ([0], [0.5])


@pytest.mark.parametrize("is_training", [True, False])
def test_each_class_is_drawn_alone_and_compared_with_its_own_image(
    key, params, is_training
):
    image, source, pose, label = random_case(key, SHOWN)
    loss = MarginLoss(reconstruction_weight=0.3)
    metrics = in_jit(
        *(measure, SMALL, params, routed(LENGTH, pose), image, label),
        loss=loss,
        source=source,
        mask=label.astype(np.float32) if is_training else None,
    )
    classes = SHOWN if is_training else LONGEST
    expected = [
        sum(
            squared_error(drawn(params, pose[n], [k]), source[n, s])
            for s, k in enumerate(classes[n])
        )
        for n in range(4)
    ]
    np.testing.assert_allclose(
        metrics.parts["reconstruction_loss"], expected, rtol=1e-5
    )
    np.testing.assert_allclose(
        metrics.loss, metrics.parts["margin_loss"] + 0.3 * np.array(expected), rtol=1e-5
    )


def test_without_sources_all_classes_are_drawn_together(key, params):
    image, _, pose, label = random_case(key, SHOWN)
    metrics = in_jit(
        *(measure, SMALL, params, routed(LENGTH, pose), image, label), loss=MarginLoss()
    )
    present = [(0, 3), (0, 2), (0, 1, 3), (0, 4)]
    expected = [
        squared_error(drawn(params, pose[n], present[n]), image[n]) for n in range(4)
    ]
    np.testing.assert_allclose(
        metrics.parts["reconstruction_loss"], expected, rtol=1e-5
    )


def test_nothing_is_drawn_where_the_reconstruction_has_no_weight():
    model, _, state = made(tiny())
    params = jax.tree.map(lambda leaf: leaf, state.params)
    del params["params"]["decoder"]
    metrics = in_jit(
        image_metrics,
        model,
        params,
        np.zeros((2, 28, 28, 1), np.float32),
        np.zeros(2, int),
        loss=MarginLoss(reconstruction_weight=0.0),
    )
    assert set(metrics.known()) == {"loss", "accuracy", "margin_loss"}
    assert list(metrics.parts) == ["margin_loss"]
    assert metrics.loss.tolist() == metrics.parts["margin_loss"].tolist()


def test_the_baseline_has_a_cross_entropy_and_no_other_loss(key):
    dataset = load("mnist", "test").subset(np.arange(20))
    model = tiny_cnn()
    image = np.float32(dataset.image) / 255
    params = jax.jit(model.init)(key, image)
    label = dataset.label
    metrics = in_jit(image_metrics, model, params, image, label, loss=CrossEntropy())
    probability = np.exp(
        np.asarray(jax.jit(model.apply)(params, image).activation, np.float64)
    )
    probability /= probability.sum(-1, keepdims=True)
    expected = -np.log(probability[np.arange(20), dataset.label])
    np.testing.assert_allclose(metrics.loss, expected, rtol=1e-4)
    assert set(metrics.known()) == {"loss", "accuracy", "cross_entropy"}
    is_right = probability.argmax(-1) == dataset.label
    assert metrics.accuracy.tolist() == is_right.tolist()


def test_balanced_weights_give_every_class_that_has_images_the_same_say():
    num_images = np.array([1, 3, 0, 8])
    weight = balanced_weights(num_images)
    np.testing.assert_allclose(weight, [12 / 3, 12 / 9, 1, 12 / 24], rtol=1e-6)
    assert (weight * num_images).tolist() == pytest.approx([4, 4, 0, 4])


@pytest.mark.parametrize(
    ("model", "loss"),
    [(SMALL, MarginLoss()), (tiny_cnn((17, 17, 1)), CrossEntropy())],
    ids=type,
)
def test_the_weight_of_a_class_multiplies_the_loss_of_its_images_alone(
    key, model, loss
):
    image = np.random.default_rng(0).uniform(size=(4, 17, 17, 1)).astype(np.float32)
    params, label = jax.jit(model.init)(key, image), np.array([3, 0, 3, 1])
    weight = np.arange(model.num_classes, dtype=np.float32)

    def known(class_weight):
        arrays = params, image, label
        options = {"loss": loss, "class_weight": class_weight}
        return in_jit(image_metrics, model, *arrays, **options).known()

    plain, weighted = known(None), known(weight)
    np.testing.assert_allclose(
        weighted.pop("loss"), plain.pop("loss") * np.array([3, 0, 3, 1]), rtol=1e-6
    )
    jax.tree.map(np.testing.assert_array_equal, weighted, plain)


def test_balanced_weights_make_the_images_with_and_without_a_class_count_alike():
    weight = balanced_label_weights(np.array([1, 3, 0, 4]), 4)
    np.testing.assert_allclose(weight, [[4 / 6, 2, 1, 1], [2, 4 / 6, 1, 1]], rtol=1e-6)


def test_the_weights_of_several_classes_multiply_their_terms_of_the_loss(key, params):
    image, _, pose, label = random_case(key, SHOWN)
    loss = MarginLoss(weight=0.7, reconstruction_weight=0.3)
    weight = np.arange(1, 11, dtype=np.float32).reshape(2, 5)
    metrics = in_jit(
        *(measure, SMALL, params, routed(LENGTH, pose), image, label),
        loss=loss,
        class_weight=weight,
    )
    expected = [
        sum(
            weight[int(t), k] * reference.margin_loss([n], [t])
            for k, (n, t) in enumerate(zip(length, own, strict=True))
        )
        for length, own in zip(LENGTH, np.asarray(label), strict=True)
    ]
    drawn_apart = 0.3 * metrics.parts["reconstruction_loss"]
    np.testing.assert_allclose(
        metrics.loss, 0.7 * np.array(expected) + drawn_apart, rtol=1e-5
    )
    plain = [
        reference.margin_loss(length, own)
        for length, own in zip(LENGTH, np.asarray(label), strict=True)
    ]
    np.testing.assert_allclose(metrics.parts["margin_loss"], plain, rtol=1e-5)
