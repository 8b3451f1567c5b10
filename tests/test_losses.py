import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from capsjax import margin_loss, reconstruction_loss


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


def test_reconstruction_loss_refuses_what_it_does_not_know():
    image = jnp.zeros((1, 2, 2, 1))
    with pytest.raises(ValueError, match=r"got \(1, 2, 2, 1\) and \(2, 2, 1\)"):
        reconstruction_loss(image, image[0])
    with pytest.raises(
        ValueError, match="reduction must be 'sum' or 'mean', got 'max'"
    ):
        reconstruction_loss(image, image, reduction="max")


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
