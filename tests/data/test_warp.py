"""Warped images are SciPy's in float64, and warps are drawn as the fields say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats

from capsjax.data import augment, warp
from capsjax.data.augment import Warp

STILL = Warp(
    max_shift=0,
    share_shifted=0.0,
    last_shifted=0.0,
    rotation=0.0,
    scale=0.0,
    shear=0.0,
    shift=0.0,
)
# turn in degrees, slant, factors of height and width, pixels down and to the right
WARPS = {
    "turn": (17, 0, 1, 1, 0, 0),
    "turn back": (-130, 0, 1, 1, 0, 0),
    "slant": (0, 0.4, 1, 1, 0, 0),
    "height": (0, 0, 1.3, 1, 0, 0),
    "width": (0, 0, 1, 0.6, 0, 0),
    "down": (0, 0, 1, 1, 1.3, 0),
    "left": (0, 0, 1, 1, 0, -0.45),
    "all": (-25, 0.3, 1.2, 0.8, 0.7, -1.6),
    "out of sight": (10, 0, 1, 1, 90.5, 0),
}
warped = jax.jit(warp.warp)


def random_image(shape):
    return np.random.default_rng(0).integers(1, 256, shape, np.uint8)


def backs_of(rows):
    turn, slant, tall, wide, *_ = (
        jnp.asarray(one, jnp.float32) for one in zip(*rows, strict=True)
    )
    scale = jnp.stack([tall, wide], axis=-1)
    return warp.inverses(warp.matrices(jnp.radians(turn), slant, scale))


def scipys(image, turn, slant, tall, wide, down, right, bend):
    """The image in float64, in a frame of zeros from which it is interpolated too."""
    turn = np.radians(turn)
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    back = np.linalg.inv(turned @ [[1, 0], [slant, 1]] @ np.diag([tall, wide]))
    middle = (np.array(image.shape[:2]) - 1)[:, None, None] / 2
    new = np.indices(image.shape[:2]) - middle - np.reshape([down, right], (2, 1, 1))
    old = np.einsum("ij,jhw->ihw", back, new) + middle + bend
    channels = [
        ndimage.map_coordinates(channel, old, order=1, mode="grid-constant")
        for channel in np.moveaxis(image.astype(np.float64), -1, 0)
    ]
    return np.stack(channels, axis=-1)


@pytest.mark.numerics
@pytest.mark.parametrize("has_bend", [False, True])
def test_warped_images_are_scipys(has_bend):
    rows = list(WARPS.values())
    image = random_image((len(rows), 12, 9, 2))
    bend = np.random.default_rng(1).normal(size=(len(rows), 2, 12, 9))
    bend = (bend * has_bend).astype(np.float32)
    shift = np.array([row[4:] for row in rows], np.float32)
    actual = warped(image, backs_of(rows), shift, bend if has_bend else None)
    assert actual.dtype == np.uint8
    for n, (name, row) in enumerate(WARPS.items()):
        expected = scipys(image[n], *row, bend[n])
        # Half a byte, and a byte for 1/512 pixel along both axes between 0 and 255.
        np.testing.assert_allclose(actual[n], expected, atol=1.5, err_msg=name)
        assert abs(actual[n] - expected).mean() < 0.3
        if name == "out of sight":
            assert not np.any(actual[n])


def test_the_middle_stays_and_a_positive_turn_is_counter_clockwise():
    image = random_image((1, 7, 7, 1))
    nothing = np.zeros((1, 2), np.float32)
    turned = warped(image, backs_of([(90, 0, 1, 1)]), nothing)
    np.testing.assert_array_equal(turned, np.rot90(image, axes=(1, 2)))
    slanted = np.asarray(warped(image, backs_of([(0, 1, 1, 1)]), nothing))
    # The lowest row moves to the right, the uppermost to the left.
    np.testing.assert_array_equal(slanted[:, 6, 3:], image[:, 6, :4])
    np.testing.assert_array_equal(slanted[:, 0, :4], image[:, 0, 3:])
    np.testing.assert_array_equal(slanted[:, 3], image[:, 3])


def test_half_a_pixel_is_the_mean_of_neighbours_and_of_zero_beyond_the_edge():
    image = np.full((1, 3, 4, 1), 200, np.uint8)
    half = warped(image, backs_of([(0, 0, 1, 1)]), np.array([[0, 1.5]], np.float32))
    assert np.asarray(half)[0, ..., 0].tolist() == 3 * [[0, 100, 200, 200]]


def test_whole_shifts_give_the_very_bytes():
    image = random_image((25, 8, 5, 3))
    shifts = np.stack(np.meshgrid(range(-2, 3), range(-2, 3)), axis=-1).reshape(-1, 2)
    still = np.zeros((25, 2, 8, 5), np.float32)
    back = backs_of(25 * [(0, 0, 1, 1)])
    actual = warped(image, back, shifts.astype(np.float32), still)
    np.testing.assert_array_equal(actual, augment.apply_shifts(image, shifts, 2))


def test_no_amount_changes_no_byte(key):
    image = random_image((40, 9, 6, 2))
    drawn = STILL.draw(key, 40, (9, 6, 2), jnp.float32(0))
    np.testing.assert_array_equal(jax.jit(STILL.apply)(image, drawn), image)


def test_bends_are_normal_everywhere_and_alike_nearby_only(key):
    shape = warp.noise_shape(20, 30, 3.0)
    noise = jax.random.normal(key, (4_000, *shape))
    field = np.asarray(warp.bends(noise, 20, 30, 3.0))
    assert field.shape == (4_000, 2, 20, 30)
    # Three standard deviations, and a little for 1,200 of them.
    np.testing.assert_allclose(field.std(0), 1, atol=0.05)
    correlation = np.mean(field[..., :1] * field, axis=(0, 1, 2))
    bell = np.exp(-((np.arange(30) / 3) ** 2) / 4)
    np.testing.assert_allclose(correlation, bell, atol=0.03)
    assert abs(np.mean(field[:, 0] * field[:, 1])) < 0.02


FIELDS = {
    "rotation": (30.0, lambda m, _: np.degrees(np.arctan2(m[:, 1, 0], m[:, 0, 0]))),
    "scale": (0.2, lambda m, _: m[:, 0, 0] - 1),
    "shear": (0.3, lambda m, _: m[:, 1, 0]),
    "shift": (1.5, lambda _, shift: shift[:, 1]),
}


@pytest.mark.parametrize("field", FIELDS)
def test_an_amount_is_uniform_up_to_its_field_in_both_directions(key, field):
    largest, amount = FIELDS[field]
    one = dataclasses.replace(STILL, **{field: largest})
    drawn = one.draw(key, 5_000, (28, 28, 1), jnp.float32(0))
    found = amount(np.linalg.inv(drawn.back), np.asarray(drawn.shift))
    # Once in a thousand keys, and this is one key.
    test = stats.kstest(found, stats.uniform(-largest, 2 * largest).cdf)
    assert test.pvalue > 1e-3
    # Drawn numbers are coarse.
    assert np.abs(found).max() < 1.01 * largest


def test_amounts_are_independent_of_each_other(key):
    one = dataclasses.replace(STILL, scale=0.2, shift=1.5)
    drawn = one.draw(key, 20_000, (28, 28, 1), jnp.float32(0))
    factors = np.asarray(drawn.back)[:, [0, 1], [0, 1]]
    amounts = np.concatenate([factors, np.asarray(drawn.shift)], axis=-1)
    correlation = np.corrcoef(amounts, rowvar=False) - np.eye(4)
    assert np.abs(correlation).max() < 0.03


def is_shifted(image, changed, shifts, max_shift):
    """True for each image that was moved by its whole shift and is as sharp as ever."""
    moved = augment.apply_shifts(image, shifts, max_shift)
    return np.all(np.asarray(changed) == np.asarray(moved), axis=(1, 2, 3))


@pytest.mark.parametrize("elastic", [0.0, 1.0])
@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.3), (0.79, 0.3), (0.81, 1.0)])
def test_a_share_of_the_images_and_the_last_part_of_the_run_are_only_shifted(
    key, elastic, progress, share
):
    one = Warp(share_shifted=0.3, last_shifted=0.2, max_shift=3, elastic=elastic)
    image = random_image((3_000, 8, 8, 1))
    drawn = one.draw(key, 3_000, (8, 8, 1), jnp.float32(progress))
    changed = jax.jit(one.apply)(image, drawn)
    # Those are the shifts that the kind "shift" draws.
    shifts = augment.draw_shifts(key, 3_000, 3)
    found = is_shifted(image, changed, shifts, 3).mean()
    # Three standard deviations.
    assert found == 1 if share == 1 else abs(found - share) < 0.026


def test_no_whole_shift_leaves_images_that_are_not_warped_alone(key):
    one = Warp(share_shifted=1.0, max_shift=0)
    image = random_image((8, 6, 6, 1))
    drawn = one.draw(key, 8, (6, 6, 1), jnp.float32(0))
    np.testing.assert_array_equal(jax.jit(one.apply)(image, drawn), image)


def test_another_key_gives_other_warps(key):
    keys = jax.random.split(key)
    drawn = [Warp().draw(k, 100, (28, 28, 1), jnp.float32(0)) for k in keys]
    same = np.asarray(drawn[0].shift) == np.asarray(drawn[1].shift)
    assert same.mean() < 0.1


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (Warp(shift=5.0), "shift=5.0 moves images of 7x5 out of sight"),
        (Warp(max_shift=5), "max_shift=5 moves images of 7x5 out of sight"),
    ],
)
def test_a_shift_out_of_sight_is_refused(one, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        one.check_image((7, 5, 1))
    Warp(shift=4.9, max_shift=4).check_image((7, 5, 1))
