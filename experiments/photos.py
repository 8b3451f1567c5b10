"""A residual network with class capsules, on a folder of photographs.

    python -m capsjax.train --config experiments/photos.py --config.data.path=photos/
    python -m capsjax.predict --workdir runs/photos-seed0 new_photo.jpg

Reads ``photos/cat/*.jpg``, ``photos/dog/*.png`` and so on, as ``experiments/folder.py``
does, and scales them to ``--config.data.image_size=128``. Each training image shows a
random part of the photograph, mirrored or not, in other colours; every class counts
alike.

Variants: ``smoke``, a minute for a few hundred images.

Results: docs/results.md
"""

import dataclasses

from capsjax.config import AdamW, Config, Data
from capsjax.config.recipes import choose
from capsjax.data.augment import Photo
from capsjax.models import ResidualCapsNet

PLAIN = Config(
    num_epochs=60,
    batch_size=32,
    eval_batch_size=32,
    data=Data(
        "image_folder", image_size=128, num_validation=-1, class_weights="balanced"
    ),
    augmentation=Photo(),
    model=ResidualCapsNet(),
    optimizer=AdamW(learning_rate=0.001, warmup_steps=100),
)

RECIPES = {
    "": PLAIN,
    "smoke": dataclasses.replace(
        PLAIN,
        num_epochs=2,
        batch_size=8,
        data=dataclasses.replace(PLAIN.data, image_size=64),
        model=ResidualCapsNet(widths=(16, 32, 64)),
        optimizer=dataclasses.replace(PLAIN.optimizer, warmup_steps=10),
    ),
}


def get_config(variant: str = "") -> Config:
    """Returns the recipe of that name; the plain one without a name."""
    return choose(RECIPES, variant, experiment="photos")
