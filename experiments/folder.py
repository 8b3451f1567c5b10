"""CapsNet on your own images: a folder with one subfolder a class.

    python -m capsjax.train --config experiments/folder.py --config.data.path=photos/
    python -m capsjax.predict --workdir runs/folder-seed0 new_photo.jpg

Reads ``photos/cat/*.jpg``, ``photos/dog/*.png`` and so on, of any size, and scales them
to ``--config.data.image_size=32``. Subfolders ``train``, ``test`` and ``val``, by these
or other common names, are the splits. Without ``test``, a tenth of each class is kept
for the test, chosen by the files' names; without ``val``, a tenth of the rest
validates. Training reads the images, prints the memory that it needs, and refuses to
start above ``--config.max_gigabytes=16``. The rate rises over 100 steps, because large
images make many primary capsules, and the changes of the first steps add up over them.

Variants: ``smoke``, a minute for a few hundred images.

Results: docs/results.md
"""

import dataclasses

from capsjax import CapsNet
from capsjax.config import Adam, Config, Data
from capsjax.config.recipes import choose, smoke

PLAIN = Config(
    num_epochs=30,
    batch_size=32,
    data=Data("image_folder", image_size=32, num_validation=-1),
    model=CapsNet(conv_features=128, primary_types=16),
    optimizer=Adam(learning_rate=0.001, warmup_steps=100),
)

RECIPES = {
    "": PLAIN,
    "smoke": dataclasses.replace(
        smoke(PLAIN),
        batch_size=8,
        steps_per_dispatch=4,
        data=PLAIN.data,
        optimizer=dataclasses.replace(PLAIN.optimizer, warmup_steps=10),
    ),
}


def get_config(variant: str = "") -> Config:
    """Returns the recipe of that name; the plain one without a name."""
    return choose(RECIPES, variant, experiment="folder")
