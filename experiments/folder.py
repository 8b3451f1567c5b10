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

from capsjax.config import Config, Data, Model, Optimizer, make_smoke, require_variant

VARIANTS = ("", "smoke")


def get_config(variant: str = "") -> Config:
    """The recipe of that name; the plain one without a name."""
    require_variant(variant, VARIANTS, "folder")
    config = Config(experiment="folder", variant=variant)
    config.num_epochs = 30
    config.batch_size = 32
    config.data = Data(name="image_folder", image_size=32, num_validation=-1)
    config.model = Model(conv_features=128, primary_types=16)
    config.optimizer = Optimizer(learning_rate=0.001, warmup_steps=100)
    if variant == "smoke":
        make_smoke(config)
        config.batch_size, config.steps_per_dispatch = 8, 4
        config.optimizer.warmup_steps = 10
        config.data.num_train, config.data.num_validation = 0, -1
    return config
