"""Networks as StableHLO, called where neither capsjax nor Flax can be imported."""

import json
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exported import IMAGE, draw_images, run_of, small

from capsjax import InvertedAttention
from capsjax.exporting import stablehlo
from capsjax.exporting.errors import ExportError
from capsjax.exporting.functions import functions
from capsjax.routings import Routed

CALL = """
import pathlib, sys

class Hider:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("capsjax", "flax"):
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Hider())
import jax
import jax.export
import numpy as np

def call(name, *arrays):
    path = pathlib.Path(sys.argv[1], f"{name}.stablehlo")
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    return exported.call(*arrays)

image = np.load(sys.argv[2])
found = call("network", image)
found["one"] = call("encode", image[1:2])["activation"]
mask = np.eye(4, dtype=np.float32)[found["label"]]
found["drawn"] = call("decode", found["pose"], mask)["drawing"]
np.savez(sys.argv[3], **found)
"""


@pytest.mark.slow
def test_the_files_are_called_without_capsjax_for_any_batch(tmp_path):
    run = run_of(small(routing=InvertedAttention()), tmp_path)
    folder, image = tmp_path / "exported", draw_images(7)
    paths = stablehlo.export(run, folder)
    assert [one.name for one in paths] == [
        *("encode.stablehlo", "decode.stablehlo", "network.stablehlo"),
        *("README.md", "card.json"),
    ]
    np.save(tmp_path / "image.npy", image)
    files = [folder, tmp_path / "image.npy", tmp_path / "found.npz"]
    subprocess.run([sys.executable, "-c", CALL, *map(str, files)], check=True)
    found = dict(np.load(files[-1]))
    expected = {
        name: np.asarray(one)
        for name, one in jax.jit(functions(run)["network"])(image).items()
    }
    expected["one"] = expected["activation"][1:2]
    expected["drawn"] = expected["drawing"]
    assert found.keys() == expected.keys()
    for name, one in found.items():
        np.testing.assert_allclose(one, expected[name], rtol=1e-4, atol=1e-5)
    card = json.loads((folder / "card.json").read_text())
    assert (card["format"], card["weights"]) == ("stablehlo", "float32")
    assert card["files"].keys() == {one.name for one in paths[:3]}


class Own(nn.Module):
    """Somebody's network, with batch normalisation and without poses."""

    image_shape: tuple[int, int, int] = IMAGE
    num_classes: int = 4
    activation_kind = "logit"

    @nn.compact
    def encode(self, image, *, is_training=False):
        hidden = nn.BatchNorm(use_running_average=not is_training)(image)
        hidden = nn.Dense(self.num_classes)(hidden.reshape(image.shape[0], -1))
        return Routed(None, hidden, None)


class OneByOne(Own):
    """A network that must know the number of images."""

    def encode(self, image, *, is_training=False):
        parts = [super(OneByOne, self).encode(one[None]) for one in [*image]]
        return jax.tree.map(lambda *part: jnp.concatenate(part), *parts)


def test_a_network_of_any_class_is_exported(tmp_path):
    paths = stablehlo.export(run_of(Own(), tmp_path), tmp_path / "exported")
    assert [one.name for one in paths[:2]] == ["encode.stablehlo", "network.stablehlo"]
    card = json.loads((tmp_path / "exported" / "card.json").read_text())
    assert card["activation"] == "probability"


def test_a_network_that_needs_the_number_of_images_is_refused(tmp_path):
    run = run_of(Own(), tmp_path)
    run.model = OneByOne()
    message = "encode of OneByOne can't be traced for a batch of any size: "
    with pytest.raises(ExportError, match=message):
        stablehlo.export(run, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()
