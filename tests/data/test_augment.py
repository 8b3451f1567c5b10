from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from capsjax.data import augment


def shifted(image, shifts):
    """Moves the pixels one by one."""
    moved = np.zeros_like(image)
    num_images, height, width, _ = image.shape
    for n in range(num_images):
        down, right = shifts[n]
        for row in range(height):
            for column in range(width):
                if 0 <= row + down < height and 0 <= column + right < width:
                    moved[n, row + down, column + right] = image[n, row, column]
    return moved


def random_image(shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(1, 256, shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, jnp.bfloat16])
@pytest.mark.parametrize("max_shift", [0, 1, 3])
def test_shifted_images_are_those_of_a_loop_over_pixels(dtype, max_shift):
    image = random_image((49, 5, 7, 2), dtype)
    offsets = np.arange(-max_shift, max_shift + 1, dtype=np.int32)
    shifts = np.stack(np.meshgrid(offsets, offsets), axis=-1).reshape(-1, 2)
    image = image[: len(shifts)]
    actual = jax.jit(augment.apply_shifts, static_argnums=2)(image, shifts, max_shift)
    assert actual.dtype == dtype
    np.testing.assert_array_equal(actual, shifted(image, shifts))


def test_shift_applies_what_is_drawn(key):
    image = random_image((32, 6, 6, 1))
    shifts = np.asarray(augment.draw_shifts(key, 32, 2))
    actual = augment.shift(key, image, max_shift=2)
    np.testing.assert_array_equal(actual, shifted(image, shifts))


def test_no_shift_loses_no_pixel(key):
    image = random_image((8, 5, 7, 3))
    np.testing.assert_array_equal(augment.shift(key, image, max_shift=0), image)


def test_shifts_are_uniform_and_independent_of_each_other(key):
    num_images, max_shift = 20_000, 2
    shifts = np.asarray(augment.draw_shifts(key, num_images, max_shift))
    assert shifts.dtype == np.int32
    pairs, counts = np.unique(shifts, axis=0, return_counts=True)
    assert len(pairs) == 25
    assert np.abs(pairs).max() == max_shift
    # 25 equally likely pairs: chi-squared with 24 degrees of freedom is below 51.2 in
    # 999 of 1000 keys, and this is one key.
    expected = num_images / 25
    assert np.sum((counts - expected) ** 2 / expected) < 51.2
    following = np.mean(shifts[:-1] * shifts[1:]) / np.mean(shifts**2)
    assert abs(following) < 0.03


def test_another_key_gives_independent_shifts(key):
    first, second = jax.random.split(key)
    shifts = [np.asarray(augment.draw_shifts(k, 640, 2)) for k in (first, second)]
    # A fifth of them agree by chance, to three standard deviations.
    assert abs((shifts[0] == shifts[1]).mean() - 1 / 5) < 0.034


@pytest.mark.parametrize("check_vma", [True, False])
def test_shifts_do_not_depend_on_the_number_of_devices_in_a_shard_map(key, check_vma):
    image = random_image((16, 6, 6, 1))
    expected = augment.shift(key, image, max_shift=2)
    mesh = jax.make_mesh((4,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
    images, everywhere = PartitionSpec("device"), PartitionSpec()

    @jax.jit
    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(everywhere, images),
        out_specs=images,
        check_vma=check_vma,
    )
    def step(key, image):
        shifts = augment.draw_shifts(key, 16, 2)
        start = jax.lax.axis_index("device") * len(image)
        share = jax.lax.dynamic_slice_in_dim(shifts, start, len(image))
        return augment.apply_shifts(image, share, 2)

    np.testing.assert_array_equal(step(key, image), expected)


def test_shifts_do_not_depend_on_the_number_of_devices_in_a_pmap(key):
    image = random_image((16, 6, 6, 1))

    def step(key, image):
        shifts = augment.draw_shifts(key, 16, 2)
        start = jax.lax.axis_index("device") * len(image)
        share = jax.lax.dynamic_slice_in_dim(shifts, start, len(image))
        return augment.scale_to_unit(augment.apply_shifts(image, share, 2))

    results = []
    for num_devices in (1, 4):
        mapped = jax.pmap(
            step, "device", in_axes=(None, 0), devices=jax.devices()[:num_devices]
        )
        shares = image.reshape(num_devices, -1, *image.shape[1:])
        results.append(np.asarray(mapped(key, shares)).reshape(image.shape))
    np.testing.assert_array_equal(results[0], results[1])
    expected = augment.scale_to_unit(augment.shift(key, image, max_shift=2))
    np.testing.assert_array_equal(results[0], expected)


def test_shifts_beyond_the_largest_are_cut_to_it():
    image = random_image((2, 6, 6, 1))
    far = np.array([[9, 0], [-1, -9]], np.int32)
    actual = augment.apply_shifts(image, far, 2)
    np.testing.assert_array_equal(actual, shifted(image, np.array([[2, 0], [-1, -2]])))


@pytest.mark.parametrize("max_shift", [5, 7, 100])
def test_a_shift_out_of_sight_is_refused(key, max_shift):
    image = random_image((2, 7, 5, 1))
    with pytest.raises(ValueError, match="must be below the height and width"):
        augment.shift(key, image, max_shift=max_shift)


def test_a_negative_shift_is_refused(key):
    with pytest.raises(ValueError, match="max_shift is -1, and must be at least 0"):
        augment.draw_shifts(key, 4, -1)


def test_every_byte_becomes_its_255th_part_in_float32():
    image = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    expected = (image / 255).astype(np.float32)
    for actual in (
        augment.scale_to_unit(image),
        jax.jit(augment.scale_to_unit)(image),
        jax.pmap(augment.scale_to_unit)(image[None])[0],
    ):
        assert actual.dtype == np.float32
        # XLA may multiply by the reciprocal of 255.
        np.testing.assert_allclose(actual, expected, rtol=1.2e-7)
        assert actual.min() == 0
        assert actual.max() == 1


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_images_that_are_not_bytes_are_not_scaled(dtype):
    with pytest.raises(TypeError, match="must be uint8"):
        augment.scale_to_unit(np.ones((1, 2, 2, 1), dtype))
