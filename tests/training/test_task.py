"""What is learnt from what, and what does not go together."""

import dataclasses

import flax.linen as nn
import numpy as np
import pytest
from PIL import Image
from tiny import pairs, tiny, tiny_cnn

from capsjax import config as configs
from capsjax.config import replaced
from capsjax.data import Dataset, DatasetError, Generated, load, loading
from capsjax.data.augment import NoAugmentation
from capsjax.data.generated import RECIPES
from capsjax.data.preparation import Preparation
from capsjax.losses import AutoLoss, CrossEntropy, Loss, MarginLoss
from capsjax.models import CapsNet
from capsjax.routings import DynamicRouting
from capsjax.training import task
from capsjax.training.sets import can_load_validation, load_validation, make_sets

pytestmark = pytest.mark.usefixtures("without_estimate")


def made_task(monkeypatch, dataset, **changes):
    """The task on a data set of this process, with fields of the config changed."""
    monkeypatch.setattr(loading, "load", lambda *_, **__: dataset)
    config = tiny()
    config.data = configs.Data(num_validation=0)
    for name, value in changes.items():
        section, _, field = name.rpartition("__")
        if section:
            field, value = section, replaced(getattr(config, section), **{field: value})
        setattr(config, field, value)
    configs.validate(config)
    return task.make_task(config)


def digits(number):
    return load("mnist", "test").subset(np.arange(number))


@pytest.mark.parametrize(("number", "held_out"), [(59, 5), (9, 1)])
def test_a_tenth_of_the_images_is_held_out(monkeypatch, number, held_out):
    made = made_task(monkeypatch, digits(number), data__num_validation=-1)
    assert len(made.validation_set) == held_out
    assert len(made.train_set) == number - held_out


def test_the_network_is_for_the_crops(monkeypatch):
    made = made_task(monkeypatch, digits(20), data__crop=20)
    assert made.model.image_shape == (20, 20, 1)
    assert made.train_set.image_shape == (28, 28, 1)


def test_the_data_set_is_loaded_with_the_options_of_the_config(monkeypatch):
    asked = []

    def load_set(*arguments, **options):
        asked.append((arguments, options))
        return digits(20)

    monkeypatch.setattr(loading, "load", load_set)
    config = tiny()
    config.data = configs.Data("image_folder", "photos", 28, num_validation=0)
    task.make_task(config)
    options = {"path": "photos", "image_size": 28, "max_bytes": 16 * 10**9}
    options |= {"split_rule": "by_class", "skip_bad_files": False}
    # The test images are to be made as those to train on are.
    made = {"preparation": load("mnist", "test").preparation}
    assert asked == [
        (("image_folder", "train"), {**options, "preparation": None}),
        (("image_folder", "test"), {**options, **made}),
    ]


def test_how_many_classes_an_image_shows_is_known(monkeypatch):
    assert made_task(monkeypatch, digits(20)).num_shown == 1
    two = pairs(20)
    assert made_task(monkeypatch, two).num_shown == 2
    without = dataclasses.replace(two, source=None)
    assert made_task(monkeypatch, without).num_shown is None


class NotANetwork(nn.Module):
    image_shape: tuple[int, int, int] = (28, 28, 1)


class Whole(MarginLoss):
    """A loss that is no sum over the classes."""

    by_class = Loss.by_class


WRONG = [
    (digits, {"data__crop": 29}, "data.crop=29 is more than images of 28x28"),
    (
        digits,
        {"augmentation__max_shift": 28},
        "augmentation.max_shift=28 moves images of 28x28",
    ),
    (pairs, {"model": tiny_cnn()}, "the cross entropy of BaselineCNN is for one class"),
    (
        digits,
        {"loss": CrossEntropy()},
        "kind logit, and the network's are of the kind ",
    ),
    (
        digits,
        {"model": NotANetwork()},
        "must have the annotated field num_classes and ",
    ),
    (
        lambda number: Generated("pairs", digits(number), RECIPES["multi_mnist"]),
        {"data__class_weights": "balanced"},
        "balanced needs images that stay the same, and mnist makes new ones",
    ),
    (
        pairs,
        {"data__class_weights": "balanced", "loss": Whole()},
        "the loss Whole has no method by_class; choose none",
    ),
    (digits, {"stop_at": 0.9}, "stop_at=0.9 is a validation accuracy, and must be 0"),
    (digits, {"data__num_validation": 20}, "num_validation=20 leaves none of the 20"),
    (digits, {"data__num_train": 21}, "data.num_train=21 is more than the 20"),
]


@pytest.mark.parametrize(("make", "changes", "message"), WRONG)
def test_what_does_not_go_together_is_refused(monkeypatch, make, changes, message):
    with pytest.raises(configs.ConfigError, match=message):
        made_task(monkeypatch, make(20), **changes)


def test_weights_of_several_classes_are_those_of_present_and_absent_ones(monkeypatch):
    made = made_task(monkeypatch, pairs(20), data__class_weights="balanced")
    shown = made.train_set.label.sum(0)
    is_mixed = shown > 0
    expected = [20 / (2 * (20 - shown)), 20 / (2 * np.maximum(shown, 1))]
    np.testing.assert_allclose(
        made.class_weight, np.where(is_mixed, expected, 1), rtol=1e-6
    )


def labelled(*counts):
    """So many images of each class, black."""
    label = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    names = tuple(f"class {k}" for k in range(len(counts)))
    return Dataset("black", np.zeros((len(label), 28, 28, 1), np.uint8), label, names)


def test_images_of_one_class_are_refused(monkeypatch):
    message = (
        "'black': all 20 images to train on are of one class, 'class 0': there is no"
    )
    for dataset in (labelled(20), labelled(20, 0)):
        with pytest.raises(DatasetError, match=message):
            made_task(monkeypatch, dataset)
    label = np.zeros((20, 3), bool)
    label[:, 1] = True
    several = Dataset("black", labelled(20).image, label, ("a", "b", "c"))
    with pytest.raises(DatasetError, match="all 20 images to train on show the same"):
        made_task(monkeypatch, several)


def test_labels_with_more_gaps_than_classes_are_refused(monkeypatch):
    message = (
        r"'black' has 201 classes, and of 198 of them no image to train on \(class 2, "
        r"class 3, .* and 188 more\): number the labels from 0 on"
    )
    with pytest.raises(DatasetError, match=message):
        made_task(monkeypatch, labelled(8, 8, *[0] * 198, 8))


def test_classes_without_images_are_named_in_one_line(monkeypatch, capsys):
    made_task(monkeypatch, labelled(0, 9, 9, 1), data__num_validation=4)
    out = capsys.readouterr().out
    assert out.count("no image to train on of") == 1
    assert "black: no image to train on of class 0\n" in out
    assert "black: no image to validate of class 0, class 3\n" in out
    made_task(monkeypatch, labelled(9, 9), data__num_validation=4)
    assert "no image" not in capsys.readouterr().out


def test_a_tenth_leaves_each_class_an_image(monkeypatch):
    made = made_task(monkeypatch, labelled(*[1] * 8), data__num_validation=-1)
    assert made.validation_set is None
    assert made.train_set.images_by_class().tolist() == [1] * 8


def test_the_rule_of_the_split_is_written_down(monkeypatch):
    made = made_task(monkeypatch, labelled(30, 10), data__num_train=20)
    assert made.about()["split_rule"] == "by_class"
    assert made.train_set.images_by_class().tolist() == [15, 5]


def test_under_the_rule_of_the_first_edition_the_first_images_are_taken(monkeypatch):
    monkeypatch.setattr(loading, "load", lambda *_, **__: labelled(30, 10))
    config = tiny()
    config.data = configs.Data(num_train=20, num_validation=0)
    made = task.make_task(config, "first_edition")
    assert made.about()["split_rule"] == "first_edition"
    assert made.train_set.images_by_class().tolist() == [20, 0]


def folder_of(tmp_path, *splits):
    """A folder with the subfolders of images; each split has its own brightness."""
    rng = np.random.default_rng(0)
    for value, split in enumerate(splits):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(6):
                pixels = np.full((12, 12), value, np.uint8)
                pixels[0] = rng.integers(0, 256, 12)
                path = tmp_path / split / name / f"{number}.png"
                Image.fromarray(pixels).save(path)
    config = tiny()
    config.data = configs.Data("image_folder", str(tmp_path), 12, num_validation=-1)
    config.augmentation, config.batch_size = NoAugmentation(), 4
    config.model = config.model.clone(conv_kernel=3, primary_kernel=3)
    return config


def values(dataset):
    return np.unique(dataset.image[:, 1:]).tolist()


def test_the_validation_split_of_a_folder_validates(tmp_path):
    config = folder_of(tmp_path, "Train", "Val", "Test")
    made = task.make_task(config)
    assert [values(one) for one in made.sets.values()] == [[0], [1], [2]]
    assert [len(one) for one in made.sets.values()] == [12, 12, 12]
    config.data.num_validation = 0
    assert task.make_task(config).validation_set is None


def test_a_folder_of_two_splits_names_what_is_tested(tmp_path, capsys):
    made = task.make_task(folder_of(tmp_path, "train", "val"))
    assert [values(one) for one in made.sets.values()] == [[0], [1], [0]]
    out = capsys.readouterr().out
    assert "val validates; there is no folder for the test, so a tenth of train" in out


@pytest.mark.parametrize(
    ("splits", "choice", "rule"),
    [
        (["train", "test"], "drawn", "by_class"),
        (["train", "test"], "last", "first_edition"),
        (["train", "val"], "drawn", "by_class"),
        ([""], "drawn", "by_class"),
    ],
)
def test_the_images_that_validate_are_found_without_reading_the_others(
    tmp_path, monkeypatch, splits, choice, rule
):
    config = folder_of(tmp_path, *splits)
    config.data.validation_choice = choice
    train_set, expected, _ = make_sets(config, rule, None)
    read = []

    def apply(self, path, **options):
        read.append(path)
        return applied(self, path, **options)

    applied = Preparation.apply
    monkeypatch.setattr(Preparation, "apply", apply)
    assert can_load_validation(config)
    found = load_validation(config, rule, train_set.preparation)
    assert found.identity() == expected.identity()
    np.testing.assert_array_equal(found.image, expected.image)
    assert len(read) == len(expected)
    # Whether a file is skipped shows in reading it.
    config.data.skip_bad_files = True
    assert not can_load_validation(config)


def test_of_a_table_too_the_images_that_validate_are_found(tmp_path):
    config = folder_of(tmp_path, "")
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.glob("?/*.png"))
    lines = [f"{path},{path.parent};{n % 3}" for n, path in enumerate(files)]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["path,labels", *lines]))
    config.data = replaced(config.data, name=str(table), path="")
    train_set, expected, _ = make_sets(config, "by_class", None)
    found = load_validation(config, "by_class", train_set.preparation)
    assert found.is_multi_label
    assert found.identity() == expected.identity()


def test_processes_may_find_the_same_images_in_different_places(tmp_path):
    config = folder_of(tmp_path / "here", "train", "test")
    here = task.wherever(config, task.make_task(config))
    moved = (tmp_path / "here").rename(tmp_path / "there")
    config.data.path = f"{moved}/"
    assert repr(task.wherever(config, task.make_task(config))) == repr(here)
    [file, *_] = moved.glob("train/a/*.png")
    Image.fromarray(np.zeros((12, 12), np.uint8)).save(file)
    assert repr(task.wherever(config, task.make_task(config))) != repr(here)


def test_the_name_of_what_is_made_is_no_place(monkeypatch):
    made = made_task(monkeypatch, digits(20))
    config = tiny()
    config.data.name = "mnist"
    same, about = task.wherever(config, made)
    assert (same.data.name, about["name"]) == ("mnist", "mnist")
    config.data.name = "./digits"
    assert task.wherever(config, made)[0].data.name == ""


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (("image_folder", "photos", 8), r"{}/photos .*--config.data.path=FOLDER"),
        (("./digits",), r"no {}/digits.*--config.data.name=FOLDER"),
        (("digits_there",), r"'digits_there'.*--config.data.name=FOLDER"),
    ],
)
def test_images_that_are_not_there_are_looked_for_by_the_user(
    tmp_path, monkeypatch, data, message
):
    monkeypatch.chdir(tmp_path)
    config = tiny()
    config.data = configs.Data(*data)
    with pytest.raises(DatasetError, match=message.format(tmp_path)):
        task.make_task(config)


def test_the_network_decides_the_loss_where_the_config_leaves_it_open(monkeypatch):
    loss = AutoLoss(weight=0.5, reconstruction_weight=0.1)
    made = made_task(monkeypatch, digits(20), model=tiny_cnn(), loss=loss)
    assert made.loss == CrossEntropy(weight=0.5, reconstruction_weight=0.1)
    made = made_task(monkeypatch, pairs(20), loss=loss)
    assert made.loss == MarginLoss(weight=0.5, reconstruction_weight=0.1)
    own = MarginLoss(present=0.8)
    assert made_task(monkeypatch, digits(20), loss=own).loss is own


def test_size_and_memory_are_printed_before_there_is_any(monkeypatch, capsys):
    monkeypatch.undo()  # Memory is estimated here.
    made_task(monkeypatch, digits(20))
    assert "30,784 parameters; training takes about 0.0" in capsys.readouterr().out


def test_a_network_that_does_not_fit_into_memory_is_refused(monkeypatch):
    monkeypatch.undo()  # Memory is estimated here.
    photos = Dataset(
        "photos",
        np.zeros((8, 48, 48, 3), np.uint8),
        np.arange(8, dtype=np.int32) % 2,
        ("cat", "dog"),
    )
    message = (
        r"max_gigabytes=0.5: training needs about \d+\.\d\d GB .*\. Lower "
        r"config.data.image_size, .*model.primary_types or config.batch_size, raise"
    )
    with pytest.raises(configs.ConfigError, match=message):
        made_task(
            monkeypatch,
            photos,
            model=CapsNet(routing=DynamicRouting(num_iterations=1)),
            max_gigabytes=0.5,
        )
