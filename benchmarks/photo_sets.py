"""Makes folders of images, sorted in classes, from pictures that Debian packages ship.

    apt-get download tuxpaint-stamps-default openclipart-png
    for package in *.deb; do dpkg -x $package pictures; done
    python benchmarks/photo_sets.py stamps pictures sets/stamps-0 --fold=0
    python benchmarks/photo_sets.py clipart pictures sets/clipart-0 --fold=0

``stamps`` are 240 photographs of animals, food, plants and things, cut out; ``clipart``
are drawings. A quarter of each class is in ``test``, another one in each of the four
folds; the rest is in ``train``.
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

STAMPS = "usr/share/tuxpaint/stamps"
CLIPART = "usr/share/openclipart/png"
# Folders of each class.
SETS = {
    "stamps": {
        "bird": [f"{STAMPS}/animals/birds"],
        "food": [f"{STAMPS}/food"],
        "mammal": [f"{STAMPS}/animals/mammals", f"{STAMPS}/animals/marsupials"],
        "plant": [f"{STAMPS}/plants"],
        "thing": [f"{STAMPS}/household", f"{STAMPS}/vehicles"],
    },
    "clipart": {
        name: [f"{CLIPART}/{name}"]
        for name in ("animals", "food", "people", "plants", "tools", "transportation")
    },
}
MOST_OF_A_CLASS = 250
SIDE = 192
# Larger pictures are left out below, after their header is read.
Image.MAX_IMAGE_PIXELS = None


def pictures(folders: list[Path]) -> list[Image.Image]:
    """Reads the pictures of a class, small; drawings among the stamps are left out."""
    found = {}
    paths = sorted(path for folder in folders for path in folder.rglob("*.png"))
    for path in paths:
        if "cartoon" in path.parts:
            continue
        with Image.open(path) as image:
            if image.width * image.height > 10_000_000:
                continue
            small = image.convert("RGBA")
        small.thumbnail((SIDE, SIDE))
        # Some stand in several folders.
        found.setdefault(hashlib.sha256(small.tobytes()).digest(), small)
    return list(found.values())


def main() -> None:
    """Writes the folder, with its subfolders ``train`` and ``test``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=SETS)
    parser.add_argument("source", type=Path, help="the folder of unpacked packages")
    parser.add_argument("target", type=Path, help="the folder to make")
    parser.add_argument("--fold", type=int, default=0, choices=range(4))
    chosen = parser.parse_args()
    for label, folders in SETS[chosen.name].items():
        images = pictures([chosen.source / folder for folder in folders])
        order = np.random.default_rng(0).permutation(len(images))[:MOST_OF_A_CLASS]
        for place, number in enumerate(order):
            split = "test" if place % 4 == chosen.fold else "train"
            folder = chosen.target / split / label
            folder.mkdir(parents=True, exist_ok=True)
            images[number].save(folder / f"{place:03}.png")
        print(f"{label}: {len(order)} images")


if __name__ == "__main__":
    main()
