"""Photographs are cropped and recoloured as in NumPy, by what their fields allow."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats

from capsjax.data import photo
from capsjax.data.augment import Photo

STILL = Photo(
    flip=0.0, min_area=1.0, max_aspect=1.0, brightness=0.0, contrast=0.0, saturation=0.0
)
START_OF_RUN = jnp.float32(0)
cropped, recoloured = jax.jit(photo.crop), jax.jit(photo.recolour)


def random_image(shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def whole(share, unit):
    return np.round(np.asarray(share) * unit).astype(np.int32)


# Upper left corner, height and width, as shares.
PARTS = [(0, 0, 1, 1), (0, 0, 0.5, 1), (0.25, 0.5, 0.75, 0.5), (0.7, 0.1, 0.05, 0.3)]


@pytest.mark.numerics
@pytest.mark.parametrize("is_mirrored", [False, True])
def test_parts_are_enlarged_as_by_scipy(is_mirrored):
    image = random_image((len(PARTS), 12, 9, 2))
    start, side = np.split(whole(PARTS, photo.PLACES), 2, axis=1)
    actual = cropped(image, start, side, np.full(len(PARTS), is_mirrored))
    assert actual.dtype == np.uint8
    size = np.array([11, 8])
    for n, one in enumerate(image):
        new = np.moveaxis(np.indices((12, 9)), 0, -1)
        if is_mirrored:
            new = new[:, ::-1]
        old = (start[n] * size + side[n] * new) / photo.PLACES
        for channel in range(2):
            expected = ndimage.map_coordinates(
                one[..., channel].astype(np.float64), np.moveaxis(old, -1, 0), order=1
            )
            np.testing.assert_allclose(actual[n, ..., channel], expected, atol=0.501)


def recoloured_by_numpy(image, brightness, contrast, saturation):
    """The three changes of one image, in float64."""
    image = image.astype(np.float64)
    weights = [0.299, 0.587, 0.114] if image.shape[-1] == 3 else [0.5, 0.5]
    grey = image @ np.array(weights)
    if image.shape[-1] == 3:
        image = grey[..., None] + saturation * (image - grey[..., None])
    image = grey.mean() + contrast * (image - grey.mean())
    return np.clip(np.round(brightness * image), 0, 255)


@pytest.mark.numerics
@pytest.mark.parametrize("channels", [2, 3])
def test_colours_change_as_in_numpy(channels):
    factors = [(1, 1, 1), (1.5, 1, 1), (1, 0.25, 1), (1, 1, 0), (0.75, 1.5, 2)]
    image = random_image((len(factors), 16, 11, channels))
    actual = recoloured(image, whole(factors, photo.FACTORS))
    assert actual.dtype == np.uint8
    for n, row in enumerate(factors):
        expected = recoloured_by_numpy(image[n], *row)
        # Greys are whole numbers, and their factors at most 1.5.
        np.testing.assert_allclose(actual[n], expected, atol=2, err_msg=f"{row}")
        assert np.abs(actual[n] - expected).mean() < 0.8


def test_bright_colours_are_cut_at_white():
    image = np.full((1, 2, 2, 3), 200, np.uint8)
    actual = recoloured(image, np.array([[512, 256, 256]], np.int32))
    np.testing.assert_array_equal(actual, 255)


@pytest.mark.parametrize("shape", [(9, 6, 3), (1, 1, 1), (5, 7, 2)])
def test_no_amount_changes_no_byte(key, shape):
    image = random_image((40, *shape))
    drawn = STILL.draw(key, 40, shape, START_OF_RUN)
    np.testing.assert_array_equal(jax.jit(STILL.apply)(image, drawn), image)


def test_a_large_white_image_has_no_number_above_32_bits():
    image = np.full((1, 3_000, 3_000, 1), 255, np.uint8)
    factors = np.array([[256, 0, 512]], np.int32)
    np.testing.assert_array_equal(recoloured(image, factors), 255)


def test_flips_are_a_share_of_the_images(key):
    one = dataclasses.replace(STILL, flip=0.3)
    image = random_image((2_000, 3, 4, 3))
    changed = np.asarray(
        jax.jit(one.apply)(image, one.draw(key, 2_000, (3, 4, 3), START_OF_RUN))
    )
    is_mirrored = np.all(changed == image[:, :, ::-1], axis=(1, 2, 3))
    assert np.all(is_mirrored | np.all(changed == image, axis=(1, 2, 3)))
    # Three standard deviations.
    assert abs(is_mirrored.mean() - 0.3) < 0.031


def parts_of(one, key, number=20_000):
    """Corners, sizes, areas and aspects, in shares of the image."""
    drawn = one.draw(key, number, (40, 30, 3), START_OF_RUN)
    start, side = (np.asarray(a) / photo.PLACES for a in (drawn.start, drawn.side))
    return start, side, side.prod(-1), side[:, 1] / side[:, 0]


def test_areas_are_uniform_from_the_smallest_to_the_whole(key):
    *_, area, _ = parts_of(Photo(min_area=0.2), key)
    # Once in a thousand keys, and this is one key.
    assert stats.kstest(area, stats.uniform(0.2, 0.8).cdf).pvalue > 1e-3


def test_aspects_are_uniform_in_their_logarithm_up_to_the_largest(key):
    *_, area, aspect = parts_of(Photo(min_area=0.01, max_aspect=2.0), key)
    largest = np.minimum(np.log(2), -np.log(np.minimum(area, 1)))
    # Sides of few units are coarse.
    share = (np.log(aspect) / np.maximum(largest, 1e-9))[(area > 0.1) & (area < 0.9)]
    assert stats.kstest(share, stats.uniform(-1, 2).cdf).pvalue > 1e-3
    assert np.abs(share).max() < 1.1


def test_parts_lie_inside_the_image_and_reach_all_its_edges(key):
    start, side, *_ = parts_of(Photo(min_area=0.05, max_aspect=10.0), key)
    assert start.min() == 0
    assert side.min() > 0
    assert np.max(start + side) == 1
    # Places are uniform in what a part leaves, along each axis independently.
    free = (side < 0.8).all(-1)
    place = start[free] / (1 - side[free])
    for axis in range(2):
        assert stats.kstest(place[:, axis], stats.uniform.cdf).pvalue > 1e-3
    assert abs(np.corrcoef(place, rowvar=False)[0, 1]) < 0.03


@pytest.mark.parametrize("number", range(3))
def test_a_factor_is_uniform_up_to_its_field_in_both_directions(key, number):
    name = ("brightness", "contrast", "saturation")[number]
    drawn = dataclasses.replace(STILL, **{name: 0.4}).draw(
        key, 5_000, (8, 8, 3), START_OF_RUN
    )
    factors = np.asarray(drawn.factors) / photo.FACTORS
    found = factors[:, number]
    assert stats.kstest(found, stats.uniform(0.6, 0.8).cdf).pvalue > 1e-3
    np.testing.assert_array_equal(np.delete(factors, number, axis=1), 1)


def test_another_key_gives_other_changes(key):
    drawn = [
        Photo().draw(k, 500, (28, 28, 3), START_OF_RUN) for k in jax.random.split(key)
    ]
    same = [
        np.mean(np.asarray(a) == np.asarray(b)) for a, b in zip(*drawn, strict=True)
    ]
    start, side, is_mirrored, factors = same
    assert max(start, side, factors) < 0.1
    assert abs(is_mirrored - 0.5) < 0.07
