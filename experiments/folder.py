"""CapsNet on your own images: a folder with one subfolder a class.

    python -m capsjax.train --config experiments/folder.py --config.data.path=photos/

``photos/cat/*.jpg``, ``photos/dog/*.png`` and so on, of any size; they are scaled to
``--config.data.image_size=32``. Subfolders ``train``, ``test`` and ``val``, by these or
other common names, are the splits. Without ``test`` a tenth of each class is kept for
it, chosen by the files' names; without ``val`` a tenth of the rest validates. Once the
images are read, what the training will need of memory is told, and refused above
``--config.max_gigabytes=16``.

Large images make many primary capsules, 18,432 of 64 x 64 pixels in the paper's
network, and what the first steps do to each adds up. So the rate rises over 100 steps:
without that, at 0.001, the margin loss is 3.5 after ten steps (0.81 if all lengths were
zero) and nothing is learnt (the paper's network, MNIST scaled to 64 pixels, batches of
32: training accuracy 7.5 % after 50 steps, 91 % with it; seed 0, bfloat16, commit
b35cfdf).

    python -m capsjax.predict --workdir runs/folder-seed0 new_photo.jpg

Variants: ``smoke``, a minute for a few hundred images.
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
