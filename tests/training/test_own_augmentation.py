"""An augmentation of a user's own goes through the whole engine."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from places import ROOT
from tiny import tiny

from capsjax import config as configs
from capsjax.data.augment import Augmentation, check_changes
from capsjax.training.command_line import parse
from capsjax.training.trainer import train

PAGE = (ROOT / "docs" / "augmentation.md").read_text()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The experiment file of docs/augmentation.md."""
    path = tmp_path_factory.mktemp("own") / "my_experiment.py"
    path.write_text("\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.S)))
    return path


def flagged(file):
    flags = [f"--config={file}", "--config.augmentation.share=0.3"]
    return parse(["train", *flags], "").config.augmentation


def test_flags_set_the_fields_of_the_augmentation_of_the_page(file):
    augmentation = flagged(file)
    assert (type(augmentation).__name__, augmentation.share) == ("Mirror", 0.3)


def test_it_mirrors_the_share_of_its_field(file, key):
    augmentation = flagged(file)
    image = np.arange(2_000 * 4, dtype=np.uint8).reshape(2_000, 1, 4, 1)
    drawn = augmentation.draw(key, 2_000, (1, 4, 1), jnp.float32(0))
    changed = np.asarray(augmentation.apply(image, drawn))
    is_mirrored = np.all(changed == image[:, :, ::-1], axis=(1, 2, 3))
    assert np.all(is_mirrored | np.all(changed == image, axis=(1, 2, 3)))
    assert abs(is_mirrored.mean() - 0.3) < 0.031


@pytest.mark.slow
def test_it_trains_and_learns_of_the_run_s_progress(file, tmp_path):
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Watched(type(flagged(file))):
        def draw(self, key, num_images, image_shape, progress):
            jax.debug.callback(lambda one: seen.append(float(one)), progress)
            return super().draw(key, num_images, image_shape, progress)

    config = tiny()
    config.augmentation, config.test = Watched(share=0.25), False
    train(config, tmp_path)
    jax.effects_barrier()
    stored = json.loads((tmp_path / "config.json").read_text())["augmentation"]
    assert stored == {"class": "Watched", "share": 0.25}
    # Each in the middle of its step.
    assert sorted(set(seen)) == pytest.approx((np.arange(10) + 0.5) / 10)


class FewerArguments(Augmentation):
    def draw(self, key, num_images):
        return None

    def apply(self, image, drawn):
        return image


class Whole(Augmentation):
    """Draws and returns what it is made of."""

    def __init__(self, drawn, changed):
        self.drawn, self.changed = drawn, changed

    def draw(self, key, num_images, image_shape, progress):
        return self.drawn(key, num_images)

    def apply(self, image, drawn):
        return self.changed(image)


def same(image):
    return image


WRONG = {
    "draw takes two arguments": (
        FewerArguments(),
        "draw of FewerArguments must take (self, key, num_images, image_shape, "
        "progress): too many positional arguments.",
    ),
    "one number for all images": (
        Whole(lambda key, _: {"turn": jax.random.normal(key)}, same),
        "draw of Whole must return arrays whose first axis is the image, got one of "
        "shape () for 8 images.",
    ),
    "the image is the second axis": (
        Whole(lambda key, n: jax.random.normal(key, (2, n)), same),
        "draw of Whole must return arrays whose first axis is the image, got one of "
        "shape (2, 8) for 8 images.",
    ),
    "floats": (
        Whole(lambda *_: None, lambda image: image / 255),
        "apply of Whole must return uint8(8, 28, 28, 1) for images of that shape, got "
        "float32(8, 28, 28, 1).",
    ),
    "other shape": (
        Whole(lambda *_: None, lambda image: image[..., 0]),
        "apply of Whole must return uint8(8, 28, 28, 1) for images of that shape, got "
        "uint8(8, 28, 28).",
    ),
    "nothing": (
        Whole(lambda *_: None, lambda image: None),
        "apply of Whole must return uint8(8, 28, 28, 1) for images of that shape, got "
        "NoneType.",
    ),
    "a pair": (
        Whole(lambda *_: None, lambda image: (image, image)),
        "apply of Whole must return uint8(8, 28, 28, 1) for images of that shape, got "
        "tuple.",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_an_augmentation_must_do_is_checked_and_the_message_names_it(name):
    augmentation, message = WRONG[name]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_changes(augmentation, 8, (28, 28, 1))


@pytest.mark.parametrize(
    "drawn",
    [
        lambda key, n: None,
        lambda key, n: jax.random.split(key, n),
        lambda key, n: {"down": jnp.ones(n), "both": [jnp.ones((n, 2))]},
    ],
)
def test_an_augmentation_may_draw_nothing_keys_and_containers(drawn):
    check_changes(Whole(drawn, same), 8, (28, 28, 1))


def test_a_wrong_augmentation_is_refused_before_anything_is_written(tmp_path):
    config = tiny()

    @dataclasses.dataclass(frozen=True)
    class Blur(Augmentation):
        def draw(self, key, num_images, image_shape, progress):
            return None

        def apply(self, image, drawn):
            return image / 2

    config.augmentation = Blur()
    with pytest.raises(configs.ConfigError, match=r"^apply of Blur must return uint8"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
