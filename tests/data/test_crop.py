import jax
import numpy as np
import pytest

from capsjax.data import crop


def random_image(shape):
    return np.random.default_rng(0).integers(1, 256, shape, np.uint8)


def test_crops_are_cut_out_at_their_corners():
    image = random_image((4, 6, 7, 2))
    corners = np.array([[0, 0], [2, 3], [1, 2], [9, 9]], np.int32)
    actual = jax.jit(crop.apply_crops, static_argnums=2)(image, corners, (4, 4, 2))
    for n, (row, column) in enumerate([(0, 0), (2, 3), (1, 2), (2, 3)]):
        expected = image[n, row : row + 4, column : column + 4]
        np.testing.assert_array_equal(actual[n], expected)


def test_crops_are_uniform_over_all_places_in_the_image(key):
    shapes = (5, 7, 1), (4, 3, 1)
    corners = np.asarray(crop.draw_corners(key, 20_000, *shapes))
    pairs, counts = np.unique(corners, axis=0, return_counts=True)
    assert pairs.tolist() == [[row, column] for row in range(2) for column in range(5)]
    # Chi-squared with 9 degrees of freedom is below 27.9 in 999 of 1000 keys.
    assert np.sum((counts - 2_000) ** 2 / 2_000) < 27.9


@pytest.mark.parametrize(("size", "side", "start"), [(48, 32, 8), (7, 4, 1), (5, 5, 0)])
def test_the_middle_has_as_much_on_either_side(size, side, start):
    image = random_image((2, 3, size, size, 1))
    actual = crop.crop_middle(image, (side, side, 1))
    end = start + side
    np.testing.assert_array_equal(actual, image[:, :, start:end, start:end])


def test_a_crop_of_nothing_is_the_whole_image():
    assert crop.cropped_shape((28, 30, 3), 0) == (28, 30, 3)
    assert crop.cropped_shape((28, 30, 3), 24) == (24, 24, 3)
