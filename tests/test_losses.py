import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from capsjax import margin_loss, reconstruction_loss
from capsjax.losses import (
    AutoLoss,
    CrossEntropy,
    Loss,
    MarginLoss,
    SpreadLoss,
    cross_entropy,
    fitting_loss,
    spread_loss,
    unexplained_variance,
)


def test_a_loss_of_a_user_s_own_without_a_name_is_one_line():
    class Nameless(Loss):
        def __call__(self, activation, label):
            return activation.sum(-1)

    with pytest.raises(ValueError, match=r"config.loss: Nameless must have name"):
        fitting_loss(Nameless(), "length")


def test_margin_loss_equals_the_value_worked_out_by_hand():
    # Class 0 is there and 0.2 too short, class 2 is 0.3 too long: 0.04 + 0.5 * 0.09.
    length = jnp.array([0.7, 0.05, 0.4])
    np.testing.assert_allclose(margin_loss(length, jnp.array(0)), 0.085, rtol=1e-6)


def test_margin_loss_follows_equation_4(key):
    length = jax.random.uniform(key, (2, 5, 10))
    label = jax.random.randint(key, (2, 5), 0, 10)
    options = {"present": 0.95, "absent": 0.05, "down_weight": 0.8}
    actual = margin_loss(length, label, **options)
    for index in np.ndindex(2, 5):
        row = np.asarray(length[index], np.float64)
        expected = reference.margin_loss(row, np.eye(10)[label[index]], **options)
        np.testing.assert_allclose(actual[index], expected, rtol=1e-5)


def test_two_digits_in_one_image_both_count_as_present(key):
    length = jax.random.uniform(key, (4, 10))
    label = np.zeros((4, 10), np.int32)
    label[:, [3, 7]] = 1
    actual = margin_loss(length, jnp.asarray(label))
    for n in range(4):
        expected = reference.margin_loss(np.asarray(length[n], np.float64), label[n])
        np.testing.assert_allclose(actual[n], expected, rtol=1e-5)
    np.testing.assert_array_equal(actual, margin_loss(length, jnp.asarray(label > 0)))


def test_long_present_and_short_absent_capsules_cost_nothing():
    length = jnp.array([0.95, 0.08, 0.0])
    assert margin_loss(length, jnp.array(0)) == 0


def test_margin_loss_refuses_labels_of_another_shape():
    with pytest.raises(ValueError, match="label must be integers of shape"):
        margin_loss(jnp.ones((4, 10)), jnp.zeros((4, 9), jnp.int32))


def test_margin_loss_is_float32_for_bfloat16_lengths():
    loss = margin_loss(jnp.full((10,), 0.5, jnp.bfloat16), jnp.array(1))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, 0.16 + 9 * 0.5 * 0.16, rtol=1e-6)


def test_reconstruction_loss_is_summed_over_pixels_for_each_image(key):
    image = jax.random.uniform(key, (3, 4, 5, 2))
    drawn = jnp.flip(image, 1)
    difference = np.asarray(drawn, np.float64) - np.asarray(image, np.float64)
    expected = (difference**2).reshape(3, -1).sum(-1)
    np.testing.assert_allclose(reconstruction_loss(drawn, image), expected, rtol=1e-5)
    mean = reconstruction_loss(drawn, image, reduction="mean")
    np.testing.assert_allclose(mean, expected / 40, rtol=1e-5)


def test_unexplained_variance_does_not_depend_on_contrast_or_brightness(key):
    image = jax.random.uniform(key, (3, 4, 5, 2))
    drawn = jnp.flip(image, 1)
    x, d = (np.asarray(one, np.float64).reshape(3, -1) for one in (image, drawn))
    expected = ((x - d) ** 2).sum(-1) / (x.var(-1) * x.shape[-1])
    for change in (lambda x: x, lambda x: 0.1 + x / 4):
        share = unexplained_variance(change(drawn), change(image))
        np.testing.assert_allclose(share, expected, rtol=1e-4)
    mean = image.mean((1, 2, 3), keepdims=True)
    share = unexplained_variance(jnp.broadcast_to(mean, image.shape), image)
    np.testing.assert_allclose(share, 1, rtol=1e-5)
    np.testing.assert_array_equal(unexplained_variance(image, image), 0)
    np.testing.assert_array_equal(unexplained_variance(drawn, jnp.zeros_like(image)), 1)


def test_reconstruction_loss_refuses_what_it_does_not_know():
    image = jnp.zeros((1, 2, 2, 1))
    with pytest.raises(ValueError, match=r"got \(1, 2, 2, 1\) and \(2, 2, 1\)"):
        reconstruction_loss(image, image[0])
    with pytest.raises(
        ValueError, match="reduction must be 'sum' or 'mean', got 'max'"
    ):
        reconstruction_loss(image, image, reduction="max")


def test_reconstruction_loss_takes_numpy_s_arrays():
    image = np.full((2, 3, 3, 1), 0.5)
    loss = reconstruction_loss(image, np.zeros_like(image))
    assert isinstance(loss, jax.Array)
    np.testing.assert_allclose(loss, 9 * 0.25, rtol=1e-6)


def test_bytes_are_refused_where_numbers_from_0_to_1_belong():
    """By the function itself: the tests' type checks would refuse them first."""
    grey, bytes_ = np.full((2, 4, 4, 1), 0.5, "f4"), np.full((2, 4, 4, 1), 128, "u1")
    loss = reconstruction_loss.__wrapped__
    for name, images in {
        "reconstruction": (bytes_, grey),
        "image": (grey, bytes_),
    }.items():
        with pytest.raises(TypeError, match=f"{name} is uint8.*scale_to_unit"):
            loss(*images)
    with pytest.raises(TypeError, match="length is uint8, and must be floating"):
        margin_loss.__wrapped__(np.zeros((2, 3), "u1"), np.zeros(2, int))
    with pytest.raises(TypeError, match="probability is uint8, and must be floating"):
        spread_loss.__wrapped__(np.zeros((2, 3), "u1"), np.zeros(2, int))


def spread_of(row, label, margin):
    """Computes equation 3 of *Matrix Capsules with EM Routing* for one example."""
    loss = 0.0
    for n in range(len(row)):
        if n != label:
            loss += max(0.0, margin - (row[label] - row[n])) ** 2
    return loss


def entropy_of(row, label):
    """Computes ``-log softmax(row)[label]`` for one example."""
    total = 0.0
    for logit in row:
        total += math.exp(logit - max(row))
    return math.log(total) - (row[label] - max(row))


def test_spread_loss_equals_the_value_worked_out_by_hand():
    # Class 0 leads class 1 by 0.65, 0.25 too little, and class 2 by 0.3, 0.6 too
    # little: 0.0625 + 0.36.
    probability = jnp.array([0.7, 0.05, 0.4])
    loss = spread_loss(probability, jnp.array(0))
    np.testing.assert_allclose(loss, 0.4225, rtol=1e-6)


@pytest.mark.parametrize("margin", [0.2, 0.5, 0.9])
def test_spread_loss_follows_equation_3_of_its_paper(key, margin):
    probability = jax.random.uniform(key, (2, 5, 10))
    label = jax.random.randint(key, (2, 5), 0, 10)
    actual = spread_loss(probability, label, margin=margin)
    assert actual.shape == (2, 5)
    for index in np.ndindex(2, 5):
        row = np.asarray(probability[index], np.float64)
        expected = spread_of(row, int(label[index]), margin)
        np.testing.assert_allclose(actual[index], expected, rtol=1e-5, atol=1e-7)


def test_a_label_that_leads_by_the_margin_costs_nothing():
    probability = jnp.array([0.95, 0.05, 0.0])
    assert spread_loss(probability, jnp.array(0), margin=0.875) == 0


def test_cross_entropy_equals_the_value_worked_out_by_hand():
    # The softmax is (1/2, 1/4, 1/4).
    logit = jnp.log(jnp.array([2.0, 1.0, 1.0]))
    loss = [cross_entropy(logit, jnp.array(n)) for n in range(3)]
    np.testing.assert_allclose(loss, np.log([2, 4, 4]), rtol=1e-6)


def test_cross_entropy_is_minus_the_log_of_the_softmax(key):
    logit = 10 * jax.random.normal(key, (2, 5, 10))
    label = jax.random.randint(key, (2, 5), 0, 10)
    actual = cross_entropy(logit, label)
    assert actual.shape == (2, 5)
    for index in np.ndindex(2, 5):
        row = np.asarray(logit[index], np.float64)
        expected = entropy_of(row, int(label[index]))
        np.testing.assert_allclose(actual[index], expected, rtol=1e-5, atol=1e-6)


def test_cross_entropy_is_finite_for_logits_of_any_size():
    logit = jnp.array([1e4, 0.0, -1e4])
    loss = [cross_entropy(logit, jnp.array(n)) for n in range(3)]
    np.testing.assert_array_equal(loss, [0, 1e4, 2e4])


@pytest.mark.parametrize("function", [spread_loss, cross_entropy])
def test_gradients_are_the_slopes_of_the_formula(key, function):
    values, step = jax.random.uniform(key, (10,)), 1e-6
    gradient = jax.grad(function)(values, jnp.array(3))
    formula = {
        spread_loss: lambda row: spread_of(row, 3, 0.9),
        cross_entropy: lambda row: entropy_of(row, 3),
    }[function]
    row = np.asarray(values, np.float64)
    for n in range(10):
        move = step * np.eye(10)[n]
        slope = (formula(row + move) - formula(row - move)) / (2 * step)
        np.testing.assert_allclose(gradient[n], slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("function", [spread_loss, cross_entropy])
@pytest.mark.parametrize(
    ("label", "words"),
    [
        (np.zeros((4, 10), np.int32), r"int32 of shape \(4, 10\)"),
        (np.zeros(3, np.int32), r"int32 of shape \(3,\)"),
        (np.zeros(4, np.float32), r"float32 of shape \(4,\)"),
    ],
    ids=["rows", "too few", "no integers"],
)
def test_losses_of_one_class_refuse_labels_of_another_shape(function, label, words):
    message = rf"label must be integers of shape \(4,\), got {words}\."
    with pytest.raises(ValueError, match=message):
        function(jnp.full((4, 10), 0.5), jnp.asarray(label))


@pytest.mark.parametrize(
    ("function", "expected"),
    [(spread_loss, 9 * 0.9**2), (cross_entropy, np.log(10))],
)
def test_losses_are_float32_for_bfloat16_activations(function, expected):
    loss = function(jnp.full((10,), 0.5, jnp.bfloat16), jnp.array(1))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize("function", [margin_loss, spread_loss, cross_entropy])
def test_losses_stay_float32_where_64_bits_are_enabled(function):
    activation, label = np.full((2, 3), 0.5, np.float32), np.zeros(2, np.int32)
    with jax.enable_x64(True):
        assert function(activation, label).dtype == jnp.float32
        # And have the width of activations of 64 bits.
        assert function(activation.astype("f8"), label).dtype == jnp.float64


WEIGHTS = {
    "weight": 0.25,
    "reconstruction_weight": 0.125,
    "reconstruction_reduction": "mean",
}
OPTIONS = {
    MarginLoss: {"present": 0.95, "absent": 0.05, "down_weight": 0.8},
    SpreadLoss: {"margin": 0.3},
    CrossEntropy: {},
}
FUNCTIONS = {
    MarginLoss: margin_loss,
    SpreadLoss: spread_loss,
    CrossEntropy: cross_entropy,
}
KINDS = {"length": MarginLoss, "probability": SpreadLoss, "logit": CrossEntropy}
WORDS = {MarginLoss: "margin", SpreadLoss: "spread", CrossEntropy: "cross_entropy"}


@pytest.mark.parametrize("loss", FUNCTIONS)
def test_a_loss_computes_its_function_with_its_fields_and_without_its_weight(key, loss):
    activation = jax.random.uniform(key, (5, 10))
    label = jax.random.randint(key, (5,), 0, 10)
    actual = loss(**OPTIONS[loss], weight=7.0)(activation, label)
    expected = FUNCTIONS[loss](activation, label, **OPTIONS[loss])
    np.testing.assert_array_equal(actual, expected)
    if OPTIONS[loss]:
        assert np.abs(loss()(activation, label) - expected).max() > 0.01


@pytest.mark.parametrize("loss", FUNCTIONS)
def test_the_spread_loss_alone_changes_with_the_progress_of_training(key, loss):
    activation = jax.random.uniform(key, (5, 10))
    label = jax.random.randint(key, (5,), 0, 10)
    own = loss(**OPTIONS[loss])
    in_training = jax.jit(own.in_training)
    for progress in (0, 0.25, 1):
        expected = own(activation, label)
        if loss is SpreadLoss:
            # From 0.2 to 0.3, the margin of the options.
            margin = 0.2 + 0.1 * progress
            expected = spread_loss(activation, label, margin=margin)
        actual = in_training(activation, label, jnp.float32(progress))
        np.testing.assert_allclose(actual, expected, rtol=1e-6)
    constant = SpreadLoss(margin=0.3, first_margin=0.3)
    actual = constant.in_training(activation, label, jnp.float32(0))
    np.testing.assert_allclose(actual, constant(activation, label), rtol=1e-6)


@pytest.mark.parametrize(("kind", "loss"), KINDS.items())
def test_the_fitting_loss_has_the_weights_of_auto_and_its_own_margins(kind, loss):
    fitting = fitting_loss(AutoLoss(**WEIGHTS), kind)
    assert type(fitting) is loss
    assert fitting.activation_kind == kind
    assert dataclasses.asdict(fitting) == dataclasses.asdict(loss()) | WEIGHTS


@pytest.mark.parametrize(("kind", "loss"), KINDS.items())
def test_a_loss_of_that_kind_is_its_own_fitting_loss(kind, loss):
    own = loss(**OPTIONS[loss], **WEIGHTS)
    assert fitting_loss(own, kind) is own


@pytest.mark.parametrize(
    ("loss", "kind"),
    [(loss, kind) for loss in FUNCTIONS for kind in KINDS if KINDS[kind] is not loss],
)
def test_a_loss_of_another_kind_is_refused_with_those_that_fit(loss, kind):
    with pytest.raises(ValueError, match="compares") as caught:
        fitting_loss(loss(), kind)
    assert str(caught.value) == (
        f"config.loss={WORDS[loss]} compares activations of the kind "
        f"{loss.activation_kind}, and the network's are of the kind {kind}: "
        f"choose auto or {WORDS[KINDS[kind]]}."
    )


def test_auto_computes_nothing_before_it_is_fitted():
    with pytest.raises(TypeError, match="AutoLoss is no loss yet; call fitting_loss"):
        AutoLoss()(jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32))


def test_margins_in_the_wrong_order_are_refused():
    MarginLoss(present=0.5, absent=0.5).check()
    message = r"absent must be at most present=0\.5, got 0\.6"
    with pytest.raises(ValueError, match=message):
        MarginLoss(present=0.5, absent=0.6).check()
