"""The validation split, and the order of images in training."""

import hashlib

import numpy as np
import pytest

from capsjax.data import (
    FIRST_EDITION,
    Dataset,
    DatasetError,
    Generated,
    load,
    split_validation,
    take_share,
)
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
    # No paper has these values, but changing them makes runs incomparable.
    train, validation = split_validation(load("mnist"), 5_000)
    assert len(train) == 55_000
    assert len(validation) == 5_000
    digest = hashlib.sha256(validation.image.tobytes()).hexdigest()
    assert digest[:16] == "d34094aea8e9a7da"


def test_the_validation_split_ignores_numpy_s_global_generator():
    dataset = small_dataset(50)
    np.random.seed(1)  # noqa: NPY002
    _, first = split_validation(dataset, 10)
    np.random.seed(2)  # noqa: NPY002
    _, second = split_validation(dataset, 10)
    np.testing.assert_array_equal(first.image, second.image)


def test_the_validation_split_is_not_the_first_images():
    _, validation = split_validation(small_dataset(50), 10)
    assert validation.image[:, 0, 0, 0].max() > 4 * 10


def test_the_last_images_are_held_out_on_request():
    dataset = small_dataset(50)
    train, validation = split_validation(dataset, 10, choice="last")
    np.testing.assert_array_equal(validation.image, dataset.image[40:])
    np.testing.assert_array_equal(train.image, dataset.image[:40])
    with pytest.raises(DatasetError, match=r"the last images of data set 'sorted' are"):
        split_validation(of_classes(5, 5), 5, choice="last")


def test_no_validation_leaves_everything_to_train_on():
    dataset = small_dataset()
    assert split_validation(dataset, 0) == (dataset, None)


@pytest.mark.parametrize("num_validation", [-1, 4, 6, 7])
def test_a_validation_split_of_impossible_size_is_refused(num_validation):
    with pytest.raises(
        DatasetError, match=f"cannot hold out {num_validation} .* to 3, so that each"
    ):
        split_validation(small_dataset(), num_validation)


# ---- by class


def of_classes(*counts):
    """Makes images ordered by class, with these counts; pixels hold their index."""
    label = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    image = np.arange(len(label), dtype="<u4").view(np.uint8).reshape(-1, 2, 2, 1)
    return Dataset("sorted", image, label, tuple(map(str, range(len(counts)))))


def indices(dataset):
    return dataset.image.reshape(-1).view("<u4")


def counts(dataset):
    return dataset.images_by_class().tolist()


@pytest.mark.parametrize(
    ("there", "num_validation", "held_out"),
    [
        # A rare class is on both sides, however many the others are.
        ((300, 197, 3), 50, (30, 19, 1)),
        ((300, 298, 2), 6, (3, 2, 1)),
        ((20, 2, 1), 3, (2, 1, 0)),
        ((2, 2, 2), 3, (1, 1, 1)),
        ((30, 30, 40), 10, (3, 3, 4)),
        ((5, 1, 1), 4, (4, 0, 0)),
    ],
)
def test_each_class_gives_its_share_to_the_validation(there, num_validation, held_out):
    train, validation = split_validation(of_classes(*there), num_validation)
    # The largest remainders get the images left after rounding.
    assert counts(validation) == list(held_out)
    assert counts(train) == [n - k for n, k in zip(there, held_out, strict=True)]
    together = np.concatenate([indices(train), indices(validation)])
    np.testing.assert_array_equal(np.sort(together), np.arange(sum(there)))


def test_some_classes_give_none_if_too_few_images_are_held_out():
    _, validation = split_validation(of_classes(*[4] * 10), 5)
    assert sorted(counts(validation)) == [0] * 5 + [1] * 5
    assert counts(validation) != [1] * 5 + [0] * 5


def test_the_split_by_class_never_changes():
    _, validation = split_validation(of_classes(20, 9, 3), 6)
    np.testing.assert_array_equal(indices(validation), [2, 8, 12, 14, 22, 30])
    np.testing.assert_array_equal(
        indices(take_share(of_classes(20, 9, 3), 6)), [7, 10, 12, 18, 23, 29]
    )


@pytest.mark.parametrize("num_validation", [5, 2000])
def test_the_rule_of_the_first_edition_draws_from_all_alike(num_validation):
    dataset = of_classes(1400, 1300, 5)
    train, validation = split_validation(dataset, num_validation, FIRST_EDITION)
    order = np.random.default_rng(2017).permutation(2705)
    np.testing.assert_array_equal(indices(validation), sorted(order[:num_validation]))
    np.testing.assert_array_equal(indices(train), sorted(order[num_validation:]))


@pytest.mark.parametrize(("num_validation", "is_drawn_alike"), [(200, True), (199, 0)])
def test_images_are_drawn_from_all_alike_if_each_class_has_plenty(
    num_validation, is_drawn_alike
):
    dataset = of_classes(500, 500)
    _, validation = split_validation(dataset, num_validation)
    _, alike = split_validation(dataset, num_validation, FIRST_EDITION)
    assert np.array_equal(indices(validation), indices(alike)) == is_drawn_alike


def test_fewer_images_to_train_on_are_a_share_of_each_class():
    dataset = of_classes(40, 40, 40)
    taken = take_share(dataset, 30)
    assert counts(taken) == [10, 10, 10]
    assert indices(taken).max() > 80 + 10
    np.testing.assert_array_equal(indices(taken), indices(take_share(dataset, 30)))
    assert counts(take_share(of_classes(900, 90, 1), 10)) == [8, 1, 1]
    assert sorted(counts(take_share(of_classes(3, 3, 3), 2))) == [0, 1, 1]
    assert len(take_share(dataset, 120)) == 120
    first = take_share(dataset, 30, FIRST_EDITION)
    np.testing.assert_array_equal(indices(first), np.arange(30))


def test_images_of_several_classes_are_divided_by_the_rarest():
    # 60 images show classes 0 and 1, 6 of them class 2 too; 4 show none.
    label = np.zeros((64, 3), bool)
    label[:60, :2], label[:6, 2] = True, True
    plain = of_classes(64)
    dataset = Dataset("several", plain.image, label, ("a", "b", "c"))
    train, validation = split_validation(dataset, 16)
    # Classes 0 and 1 are equally rare: the first counts.
    assert counts(validation) == [15, 15, 2] or counts(validation) == [15, 15, 1]
    assert counts(train)[2] + counts(validation)[2] == 6
    assert (~validation.label.any(axis=1)).sum() == 1
    assert len(take_share(dataset, 6)) == 6


def test_generated_images_are_divided_by_the_class_of_their_base():
    digits = load("mnist", "test").subset(np.arange(200))
    made = Generated("made", digits, lambda base, rng: base.batch)
    train, validation = split_validation(made, 20)
    assert isinstance(train, Generated)
    assert min(counts(validation)) >= 1
    plain, _ = split_validation(digits, 20)
    np.testing.assert_array_equal(train.base.image, plain.image)
    assert min(counts(take_share(made, 10))) == 1


# ---- the order of the batches


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


def test_held_out_images_are_the_same_in_every_epoch():
    class Generated(Dataset):
        def fixed(self):
            return plain

    plain = small_dataset()
    generated = Generated(plain.name, plain.image, plain.label, plain.class_names)
    train, validation = split_validation(generated, 2)
    assert isinstance(train, Generated)
    assert validation is plain
    assert plain.fixed() is plain.in_epoch(0, 1) is plain
