"""Builds the page of a run: one HTML file with the network inside.

The page needs no server and requests nothing. The weights are in it, as 16-bit floats,
and ``network.js`` computes. ``network.js`` and ``picture.js`` are twins of the
library's Python; tests compare their numbers in a browser.
"""

import base64
import dataclasses
import html
import os
import pathlib
import re
import zlib
from importlib import resources
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from capsjax.analysis.images import load_test_set
from capsjax.analysis.verdicts import nouns
from capsjax.data import DatasetError
from capsjax.data.preparation import DRAWN
from capsjax.models import CapsNet
from capsjax.models.network import num_parameters
from capsjax.routings import (
    ROUTINGS,
    Algorithm,
    DynamicRouting,
    SelfAttention,
    UniformRouting,
)
from capsjax.runtime.console import json_text, printable
from capsjax.runtime.paths import expanded
from capsjax.storage.files import WorkdirError, write_text
from capsjax.storage.run import Run
from capsjax.training.objective import PRESENT

# Fields of an algorithm that network.js reads.
_KNOWN: dict[type[Algorithm], tuple[str, ...]] = {
    DynamicRouting: ("num_iterations", "none_of_the_above"),
    UniformRouting: (),
    SelfAttention: ("scale",),
}
_MODEL_FIELDS = (
    "conv_kernel",
    "primary_kernel",
    "primary_stride",
    "primary_types",
    "primary_dim",
    "primary_scale",
    "primary_relu",
    "class_dim",
    "decoder_features",
)
# In order: page.js opens the page when the others are there.
_SCRIPTS = (
    "picture.js",
    "network.js",
    "board.js",
    "agreement.js",
    "link.js",
    "tour.js",
    "page.js",
)
_MOST_PARAMETERS = 16_000_000  # A page of 40 megabytes.
_MOST_SAMPLES, _SAMPLES_BYTES = 30, 200_000
_FIRST_LINE = "<!doctype html><!-- capsjax explorer -->"
_MNIST_CREDIT = (
    "Test digits of MNIST by Yann LeCun and Corinna Cortes, CC BY-SA 3.0 "
    "(creativecommons.org/licenses/by-sa/3.0)."
)


class ExplorerError(ValueError):
    """The explorer can't show this network, or can't write the page."""


@dataclasses.dataclass(frozen=True)
class Page:
    """A page that a browser opens, and that a notebook shows in a cell.

    Attributes:
        html: The whole page.
        note: A sentence on the reason for which the page has no test images, if any.
    """

    html: str = dataclasses.field(repr=False)
    note: str | None = None

    def write(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Writes the page; replaces an earlier page, and no other file.

        Raises:
            ExplorerError: If the file is there and is no page of the explorer.
            WorkdirError: If it can't be written.
        """
        place = pathlib.Path(expanded(path)).absolute()
        if place.exists() and not _is_page(place):
            raise ExplorerError(
                f"{path} exists and is no page of the explorer: name another file by "
                "--output."
            )
        write_text(place, self.html)
        return place

    def _repr_html_(self) -> str:
        return (
            f'<iframe srcdoc="{html.escape(self.html)}" title="capsjax explorer" '
            'style="width:100%;height:860px;border:0"></iframe>'
        )


def make_page(run: Run) -> Page:
    """Builds the page of a run.

    Args:
        run: A run of :class:`capsjax.CapsNet` with dynamic, uniform or self-attention
            routing, for grey or colour images. Its test images are shown if they can be
            read.

    Raises:
        ExplorerError: If the network is another one.
    """
    model = _known_model(run)
    arrays, weights = _weights(run)
    samples, note = _samples(run)
    about = {**_about(run, model), "arrays": arrays, "samples": samples}
    files = resources.files("capsjax.explorer")
    parts = {
        "style": files.joinpath("style.css").read_text("utf-8"),
        # A class name may hold the end of a script.
        "about": json_text(about).replace("<", "\\u003c"),
        "weights": _base64(zlib.compress(weights, 9)),
        "convolve": _base64(files.joinpath("convolve.wasm").read_bytes()),
        "scripts": "\n".join(
            files.joinpath(one).read_text("utf-8") for one in _SCRIPTS
        ),
    }
    page = files.joinpath("page.html").read_text("utf-8")
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page)
    return Page(f"{_FIRST_LINE}\n{page}", note)


def _is_page(path: pathlib.Path) -> bool:
    start = _FIRST_LINE.encode()
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(start)) == start


def _known_model(run: Run) -> CapsNet:
    """Returns a run's network if the page can show it.

    Raises:
        ExplorerError: With the network's property, and what is allowed.
    """
    model, place = run.model, run.workdir.path
    if type(model) is not CapsNet:
        raise ExplorerError(
            f"the explorer shows networks of the class CapsNet, and {place} holds a "
            f"{type(model).__name__}."
        )
    if type(model.routing) not in _KNOWN:
        known = " or ".join(name for name in ROUTINGS if ROUTINGS[name] in _KNOWN)
        raise ExplorerError(
            f"the explorer knows {known} routing, and {place} has "
            f"{type(model.routing).__name__}."
        )
    if model.share_weight or not model.draws:
        raise ExplorerError(
            f"the explorer shows networks with a decoder and a matrix for each pair of "
            f"capsules, and {place} has share_weight={model.share_weight}, "
            f"decoder_features={model.decoder_features}."
        )
    if model.image_shape[2] not in (1, 3):
        raise ExplorerError(
            f"the explorer shows images of 1 or 3 channels, and those of {place} have "
            f"{model.image_shape[2]}."
        )
    if (size := num_parameters(run.params)) > _MOST_PARAMETERS:
        raise ExplorerError(
            f"the network of {place} has {size:,} parameters, and the explorer takes "
            f"at most {_MOST_PARAMETERS:,}."
        )
    return model


def _about(run: Run, model: CapsNet) -> dict[str, Any]:
    routing, preparation = model.routing, run.preparation
    name = next(name for name in ROUTINGS if ROUTINGS[name] is type(routing))
    fields = {field: getattr(routing, field) for field in _KNOWN[type(routing)]}
    test = (run.result or {}).get("test") or {}
    return {
        "name": printable(run.workdir.path.name),
        "step": run.step,
        "num_parameters": num_parameters(run.params),
        "accuracy": test.get("accuracy"),
        "data": printable(run.config.data.name),
        "credit": _MNIST_CREDIT if preparation.is_drawn else None,
        "class_names": [printable(name) for name in run.class_names],
        "nouns": nouns(run),
        "num_shown": run.num_shown,
        "present": PRESENT,
        "image_shape": run.image_shape,
        "seen_shape": model.image_shape,
        "drawn": DRAWN[preparation.kind]._asdict() if preparation.is_drawn else None,
        "routing": {"kind": name, "num_iterations": 1, **fields},
        "largest": _largest(model),
        **{field: getattr(model, field) for field in _MODEL_FIELDS},
    }


def _largest(model: CapsNet) -> int:
    """Returns the size of the largest array into or out of a convolution or layer."""
    height, width, channels = model.image_shape
    grid = [side - model.conv_kernel + 1 for side in (height, width)]
    places = [1 + (n - model.primary_kernel) // model.primary_stride for n in grid]
    return max(
        height * width * channels,
        grid[0] * grid[1] * model.conv_features,
        places[0] * places[1] * model.primary_types * model.primary_dim,
        model.num_classes * model.class_dim,
        *(model.decoder_features or ()),
    )


def _weights(run: Run) -> tuple[list[dict[str, Any]], bytes]:
    """Returns the names, shapes and types of the weights, and their bytes in order.

    Matrices are halved to 16 bits; biases, which are few, are not.
    """
    arrays, parts = [], []
    for path, value in jax.tree_util.tree_leaves_with_path(run.params["params"]):
        dtype = "float16" if value.ndim > 1 else "float32"
        name = "/".join(key.key for key in path)
        arrays.append({"name": name, "shape": value.shape, "dtype": dtype})
        raw = np.asarray(value).astype(f"<f{2 if dtype == 'float16' else 4}").tobytes()
        parts.append(raw + b"\0" * (-len(raw) % 4))
    return arrays, b"".join(parts)


def _samples(run: Run) -> tuple[dict[str, Any], str | None]:
    """Returns some of the run's test images, or none and the reason."""
    try:
        dataset = load_test_set([run], None)
    except (DatasetError, WorkdirError, OSError) as error:
        return {"images": "", "labels": []}, f"no test images: {error}"
    most = max(4, min(_MOST_SAMPLES, _SAMPLES_BYTES // dataset.image[0].nbytes))
    chosen = np.linspace(0, len(dataset) - 1, min(most, len(dataset))).astype(int)
    batch = dataset.batch(chosen)
    image: UInt8[np.ndarray, "n h w c"] = np.asarray(batch.image)
    labels = [] if dataset.is_multi_label else np.asarray(batch.label).tolist()
    return {"images": _base64(image.tobytes()), "labels": labels}, None


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
