"""The validation split, and the order of the images in training."""

import hashlib

import numpy as np
import pytest

from capsjax.data import Dataset, DatasetError, load, split_validation
from capsjax.data import batch_indices as indices_of_batch


def small_dataset(num_images=6, num_classes=3, name="small"):
    image = np.arange(num_images * 4, dtype=np.uint8).reshape(num_images, 2, 2, 1)
    label = np.arange(num_images, dtype=np.int32) % num_classes
    return Dataset(name, image, label, tuple("abcdefghij"[:num_classes]))


def test_the_validation_split_is_disjoint_complete_and_in_order():
    dataset = small_dataset(50, 10)
    train, validation = split_validation(dataset, 12)
    assert len(validation) == 12
    first_pixels = [part.image[:, 0, 0, 0] for part in (train, validation)]
    for pixels in first_pixels:
        assert (np.diff(pixels.astype(int)) > 0).all()
    np.testing.assert_array_equal(
        np.sort(np.concatenate(first_pixels)), dataset.image[:, 0, 0, 0]
    )
    for part in (train, validation):
        np.testing.assert_array_equal(part.label, part.image[:, 0, 0, 0] // 4 % 10)


def test_the_validation_split_of_mnist_never_changes():
    # Not the values of a paper: whoever changes them makes runs incomparable.
    train, validation = split_validation(load("mnist"), 5_000)
    assert len(train) == 55_000
    assert len(validation) == 5_000
    digest = hashlib.sha256(validation.image.tobytes()).hexdigest()
    assert digest[:16] == "d34094aea8e9a7da"


def test_the_validation_split_does_not_look_at_the_global_generator():
    dataset = small_dataset(50)
    np.random.seed(1)  # noqa: NPY002
    _, first = split_validation(dataset, 10)
    np.random.seed(2)  # noqa: NPY002
    _, second = split_validation(dataset, 10)
    np.testing.assert_array_equal(first.image, second.image)


def test_the_validation_split_is_not_the_first_images():
    _, validation = split_validation(small_dataset(50), 10)
    assert validation.image[:, 0, 0, 0].max() > 4 * 10


def test_no_validation_leaves_everything_to_train_on():
    dataset = small_dataset()
    assert split_validation(dataset, 0) == (dataset, None)


@pytest.mark.parametrize("num_validation", [-1, 6, 7])
def test_a_validation_split_of_impossible_size_is_refused(num_validation):
    with pytest.raises(DatasetError, match=f"cannot hold out {num_validation} .* to 5"):
        split_validation(small_dataset(), num_validation)


# The order of the batches


def test_every_epoch_visits_each_image_at_most_once():
    for epoch in range(3):
        steps = range(epoch * 4, (epoch + 1) * 4)
        visited = np.concatenate([indices_of_batch(23, 5, 0, s) for s in steps])
        assert len(set(visited.tolist())) == 20
        assert set(visited.tolist()) <= set(range(23))


def test_each_epoch_drops_other_images():
    dropped = set()
    for epoch in range(40):
        steps = range(epoch * 4, (epoch + 1) * 4)
        visited = np.concatenate([indices_of_batch(23, 5, 0, s) for s in steps])
        dropped |= set(range(23)) - set(visited.tolist())
    assert dropped == set(range(23))


def test_a_batch_is_a_slice_of_the_permutation_of_its_epoch():
    permutation = np.random.default_rng((7, 2)).permutation(23)
    np.testing.assert_array_equal(indices_of_batch(23, 5, 7, 9), permutation[5:10])


def test_a_batch_does_not_depend_on_the_batches_before_it():
    steps = [11, 3, 0, 7, 3, 40, 11]
    in_order = {step: indices_of_batch(23, 5, 1, step).copy() for step in range(41)}
    for step in steps:
        np.testing.assert_array_equal(indices_of_batch(23, 5, 1, step), in_order[step])


def test_seeds_and_epochs_give_other_orders():
    orders = {
        tuple(indices_of_batch(23, 23, seed, step).tolist())
        for seed in range(3)
        for step in range(3)
    }
    assert len(orders) == 9


def test_the_indices_of_a_batch_cannot_be_written_over():
    with pytest.raises(ValueError, match="read-only"):
        indices_of_batch(23, 5, 0, 0)[0] = 1


@pytest.mark.parametrize("batch_size", [0, -1, 24])
def test_an_impossible_batch_size_is_refused(batch_size):
    with pytest.raises(DatasetError, match="must be from 1 to 23"):
        indices_of_batch(23, batch_size, 0, 0)


@pytest.mark.parametrize(("seed", "step"), [(-1, 0), (0, -1)])
def test_a_negative_seed_or_step_is_refused(seed, step):
    with pytest.raises(DatasetError, match="must be at least 0"):
        indices_of_batch(23, 5, seed, step)


def test_what_is_held_out_is_the_same_in_every_epoch():
    class Generated(Dataset):
        def fixed(self):
            return plain

    plain = small_dataset()
    generated = Generated(plain.name, plain.image, plain.label, plain.class_names)
    train, validation = split_validation(generated, 2)
    assert isinstance(train, Generated)
    assert validation is plain
    assert plain.fixed() is plain.in_epoch(0, 1) is plain
