"""Data sets that make new images in each epoch."""

import functools
import hashlib

import numpy as np
import pytest

from capsjax.data import Dataset, DatasetError, Generated, load, split_validation
from capsjax.data.generated import RECIPES, _deformed, deform, expand, overlap

SIDE = 6


def numbered(num_images=60, num_classes=10):
    """Makes images without a dark pixel, whose first pixel is their number."""
    rng = np.random.default_rng(0)
    image = rng.integers(1, 256, (num_images, SIDE, SIDE, 1)).astype(np.uint8)
    image[:, 0, 0, 0] = np.arange(num_images) + 1
    label = (np.arange(num_images) % num_classes).astype(np.int32)
    return Dataset("numbered", image, label, tuple("abcdefghij"[:num_classes]))


def made(base, recipe=overlap, max_shift=4):
    return Generated("made", base, functools.partial(recipe, max_shift=max_shift))


def everything(dataset):
    return dataset.batch(np.arange(len(dataset)))


def epochs(dataset, num_epochs, seed=0):
    for epoch in range(num_epochs):
        yield everything(dataset.in_epoch(seed, epoch))


def found(canvas):
    """Returns the box that is not dark, and its row and column."""
    rows, columns = (np.flatnonzero(canvas.any(axis=axis)) for axis in ((1, 2), (0, 2)))
    box = canvas[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return box, (rows[0], columns[0])


def require_uniform(counts):
    """Asserts uniform counts; at 5 standard deviations one table in a million fails."""
    counts = np.asarray(counts)
    expected = counts.sum() / counts.size
    assert abs(counts - expected).max() < 5 * expected**0.5


def of_mnist(name, num_images=50):
    base = load("mnist", "test").subset(np.arange(num_images))
    return Generated(name, base, RECIPES[name])


ALL = pytest.mark.parametrize("name", RECIPES)


# ---- every recipe


@ALL
def test_an_image_does_not_depend_on_its_batch(name):
    dataset = of_mnist(name)
    epoch = dataset.in_epoch(3, 7)
    whole = everything(epoch)
    # In chunks of steps, with repeats, and after other epochs were made.
    everything(dataset.in_epoch(3, 8))
    everything(dataset.in_epoch(4, 7))
    indices = np.array([[4, 0, 49], [4, 30, 2]])
    part = dataset.in_epoch(3, 7).batch(indices)
    for all_of_it, some in zip(whole, part, strict=True):
        if all_of_it is not None:
            np.testing.assert_array_equal(some, all_of_it[indices])
            assert some.dtype == all_of_it.dtype


@ALL
def test_seeds_epochs_and_the_fixed_set_all_have_different_images(name):
    dataset = of_mnist(name)
    streams = [dataset.in_epoch(seed, epoch) for seed in range(3) for epoch in range(3)]
    images = {everything(part).image.tobytes() for part in [*streams, dataset.fixed()]}
    assert len(images) == 10


@ALL
def test_the_fixed_set_is_the_same_for_every_run(name):
    dataset = of_mnist(name)
    fixed = dataset.fixed()
    assert isinstance(fixed, Dataset)
    for again in (dataset.fixed(), dataset.in_epoch(5, 2).fixed(), fixed.fixed()):
        for field in ("image", "label", "source"):
            np.testing.assert_array_equal(getattr(again, field), getattr(fixed, field))
    assert fixed.in_epoch(5, 2) is fixed


@ALL
def test_a_generated_set_describes_itself_like_a_data_set(name):
    dataset = of_mnist(name)
    fixed = dataset.fixed()
    assert dataset.is_multi_label == fixed.is_multi_label
    for field in ("name", "image_shape", "class_names", "num_classes"):
        assert getattr(dataset, field) == getattr(fixed, field), field
    assert len(dataset) == len(fixed) == 50
    assert len(repr(dataset)) < 200


@ALL
def test_validation_images_are_fixed_and_made_from_held_out_images(name):
    base = load("mnist", "test").subset(np.arange(300))
    train, validation = split_validation(Generated(name, base, RECIPES[name]), 100)
    expected_train, expected_validation = split_validation(base, 100)
    np.testing.assert_array_equal(train.base.image, expected_train.image)
    assert isinstance(validation, Dataset)
    again = Generated(name, expected_validation, RECIPES[name]).fixed()
    np.testing.assert_array_equal(validation.image, again.image)


# ---- two images, one over the other


def test_the_two_images_are_whole_moved_and_differ_in_class():
    base = numbered()
    for image, label, source in epochs(made(base), 3):
        assert image.shape == (60, SIDE + 8, SIDE + 8, 1)
        assert source.shape == (60, 2, SIDE + 8, SIDE + 8, 1)
        for index in range(60):
            numbers = []
            for canvas in source[index]:
                box, _ = found(canvas)
                numbers.append(box[0, 0, 0] - 1)
                np.testing.assert_array_equal(box, base.image[numbers[-1]])
            assert index in numbers
            classes = base.label[numbers]
            assert classes[0] < classes[1]
            np.testing.assert_array_equal(np.flatnonzero(label[index]), classes)


def test_the_image_is_the_sum_of_its_sources_up_to_white():
    for image, _, source in epochs(made(numbered()), 2):
        total = source.astype(int).sum(axis=1)
        assert (total > 255).any()
        np.testing.assert_array_equal(image, np.minimum(total, 255))


def test_both_are_moved_uniformly_and_independently():
    # Counts moves of the first along both axes, of the second along the first axis.
    counts = np.zeros((5, 5, 5), int)
    for _, _, source in epochs(made(numbered(), max_shift=2), 60):
        for first, second in source:
            _, (row, column) = found(first)
            _, (other_row, _) = found(second)
            counts[row, column, other_row] += 1
    require_uniform(counts)


def test_the_other_image_is_uniform_among_the_other_classes():
    # Three classes with 1, 3 and 4 images.
    base = numbered(8, 3)
    label = np.array([1, 2, 0, 2, 1, 2, 1, 2], np.int32)
    base = Dataset("few", base.image, label, base.class_names)
    counts = np.zeros((8, 8), int)
    for _, _, source in epochs(made(base, max_shift=1), 1000):
        for index in range(8):
            numbers = [found(canvas)[0][0, 0, 0] - 1 for canvas in source[index]]
            counts[index, sum(numbers) - index] += 1
    differs = base.label[:, None] != base.label
    assert not counts[~differs].any()
    for index in range(8):
        require_uniform(counts[index, differs[index]])


def test_all_pairs_of_classes_come_up_in_both_orders():
    base = load("mnist", "test")
    pairs = np.zeros((10, 10), int)
    _, label, _ = everything(made(base).in_epoch(0, 0))
    for own, both in zip(base.label, label, strict=True):
        first, second = np.flatnonzero(both)
        pairs[own, first + second - own] += 1
    assert (pairs > 0).sum() == 90
    assert not np.diag(pairs).any()


def test_both_images_of_a_subset_come_from_the_subset():
    chosen = np.array([3, 14, 25, 36, 47, 58])
    for _, _, source in epochs(made(numbered()).subset(chosen), 20):
        numbers = {found(canvas)[0][0, 0, 0] - 1 for pair in source for canvas in pair}
        assert numbers == set(chosen.tolist())


def test_images_of_one_class_cannot_make_pairs():
    dataset = made(numbered()).subset(np.array([0, 10, 20]))
    with pytest.raises(
        DatasetError, match=r"3 images .*'numbered' are all of one class"
    ):
        everything(dataset.in_epoch(0, 0))


# ---- one image on a larger ground


def test_an_expanded_image_is_whole_and_its_place_uniform():
    base = numbered()
    counts = np.zeros((7, 7), int)
    for image, label, source in epochs(made(base, expand, max_shift=3), 40):
        assert image.shape == (60, SIDE + 6, SIDE + 6, 1)
        assert source is None
        np.testing.assert_array_equal(label, base.label)
        for index, canvas in enumerate(image):
            box, place = found(canvas)
            np.testing.assert_array_equal(box, base.image[index])
            counts[place] += 1
    require_uniform(counts)


# ---- affine


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("num_turns", range(4))
def test_a_quarter_turn_moves_pixels_as_numpy_does_and_ends_at_the_edge(
    num_turns, place
):
    [image] = numbered(1, 1).image
    quarter = np.array([[0.0, -1], [1, 0]])
    matrix = np.linalg.matrix_power(quarter, num_turns)
    result = _deformed(image, matrix, np.full(2, float(place)), 20)
    box, corner = found(result)
    np.testing.assert_array_equal(box, np.rot90(image, num_turns))
    assert corner == (place * (20 - SIDE),) * 2


def test_a_deformed_digit_keeps_its_ink_and_is_in_sight():
    base = load("mnist", "test").subset(np.arange(1000))
    image, label, _ = everything(Generated("a", base, RECIPES["affine_mnist"]))
    np.testing.assert_array_equal(label, base.label)
    assert image.shape == (1000, 40, 40, 1)
    share = image.sum(axis=(1, 2, 3)) / base.image.sum(axis=(1, 2, 3))
    # The area grows by the product of two scales, whose mean is 1. A digit that lost a
    # part would have a smaller share.
    assert share.min() > 0.8**2 - 0.02
    assert share.max() < 1.2**2 + 0.02
    np.testing.assert_allclose(share.mean(), 1, atol=0.02)
    np.testing.assert_allclose(share.std(), 0.165, atol=0.02)
    # Every edge is reached.
    for edge in (image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]):
        assert edge.any()


def test_a_deformed_line_is_turned_and_slanted_within_the_ranges():
    image = np.zeros((1000, 28, 28, 1), np.uint8)
    image[:, 4:24, 13:15] = 255
    base = Dataset("line", image, np.zeros(1000, np.int32), ("line",))
    dataset = Generated("line", base, functools.partial(deform, size=40))
    angles, heights = [], []
    for canvas in everything(dataset).image[..., 0]:
        weight = canvas / canvas.sum()
        row, column = np.indices(canvas.shape)
        axes = np.stack([row, column]).reshape(2, -1)
        covariance = np.cov(axes, aweights=weight.ravel())
        long = np.linalg.eigh(covariance)[1][:, 1]
        angles.append(np.degrees(np.arctan(long[1] / long[0])))
        heights.append(np.ptp(np.flatnonzero(canvas.any(axis=1))) + 1)
    angles = np.array(angles)
    # At most 20 degrees of turn and atan(0.2) of slant, with standard deviations
    # 1 / sqrt(3) times as large.
    most = np.array([20, np.degrees(np.arctan(0.2))])
    assert 25 < abs(angles).max() < most.sum() + 0.5
    np.testing.assert_allclose(angles.mean(), 0, atol=1.5)
    np.testing.assert_allclose(angles.std(), (most**2 / 3).sum() ** 0.5, atol=1)
    assert np.ptp(heights) > 6


# ---- by name


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("multi_mnist", (36, 36, 1)),
        ("expanded_mnist", (40, 40, 1)),
        ("affine_mnist", (40, 40, 1)),
    ],
)
def test_a_name_makes_the_training_set_endless_and_the_test_set_fixed(name, shape):
    train = load(name)
    assert isinstance(train, Generated)
    assert len(train) == 60_000
    assert train.image_shape == shape
    assert train.name == name
    assert train.class_names == tuple("0123456789")
    np.testing.assert_array_equal(train.base.image, load("mnist").image)
    if name != "affine_mnist":  # It takes a second.
        test = load(name, "test")
        assert isinstance(test, Dataset)
        assert test.image.shape == (10_000, *shape)
        assert test.is_multi_label == (name == "multi_mnist")


@pytest.mark.parametrize(
    ("name", "digest"),
    [("multi_mnist", "f6537a78206cd128"), ("expanded_mnist", "5d245cacf7c4d8e1")],
)
def test_the_test_set_never_changes(name, digest):
    # No paper has these values, but changing them makes results incomparable.
    image = load(name, "test").image
    assert hashlib.sha256(image.tobytes()).hexdigest()[:16] == digest


def test_the_test_digits_keep_all_their_ink():
    test, digits = load("multi_mnist", "test"), load("mnist", "test")
    ink = test.source.sum(axis=(2, 3, 4), dtype=int)
    own = digits.image.sum(axis=(1, 2, 3), dtype=int)
    assert (ink == own[:, None]).any(axis=1).all()
    np.testing.assert_array_equal(
        np.take_along_axis(test.label, digits.label[:, None], axis=1), True
    )


def test_another_image_size_is_refused():
    assert load("multi_mnist", image_size=36).image_shape == (36, 36, 1)
    with pytest.raises(DatasetError, match=r"image_size is 28, .*'multi_mnist' is"):
        load("multi_mnist", image_size=28)
