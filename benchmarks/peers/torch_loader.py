"""PyTorch's DataLoader over a folder of images, in its own process: no JAX here.

    python benchmarks/peers/torch_loader.py FOLDER SIDE BATCH WORKERS EPOCHS

Decodes and scales with Pillow as capsjax does, and prints a JSON line: images, seconds
and processor seconds (of the workers too) of each epoch.
"""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps


class Folder(torch.utils.data.Dataset):
    """The images of a folder of classes."""

    def __init__(self, folder, side):
        self.files = sorted(Path(folder).glob("*/*.jpg"))
        self.side = side

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        with Image.open(self.files[index]) as image:
            image = ImageOps.fit(image.convert("RGB"), (self.side, self.side))
        return torch.from_numpy(np.asarray(image).copy()), index % 10


def processor_seconds():
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    used = [resource.getrusage(kind) for kind in kinds]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main():
    """Reads the epochs, and prints their times."""
    folder, *numbers = sys.argv[1:]
    side, batch, workers, epochs = map(int, numbers)
    rows = []
    for _ in range(epochs):
        # A loader of its own: the seconds of workers count when they have ended.
        loader = torch.utils.data.DataLoader(
            Folder(folder, side), batch, shuffle=True, num_workers=workers
        )
        begun, used = time.monotonic(), processor_seconds()
        images = sum(len(label) for _, label in loader)
        del loader
        rows.append(
            {
                "images": images,
                "seconds": time.monotonic() - begun,
                "processor_seconds": processor_seconds() - used,
            }
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
