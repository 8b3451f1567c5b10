"""Figures of images: samples, reconstructions, mistakes, couplings over images."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from capsjax.analysis.plots.canvas import COLOURS, Figure, to_rgb, write_title
from capsjax.runtime.console import shortened


def samples(
    image: Float[Any, "n h w c"], title: Sequence[str], *, columns: int = 10
) -> Figure:
    """Draws images in a grid, each under its title."""
    rows = -(-len(image) // columns)
    figure = Figure(figsize=(columns, 1.25 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, one, text in zip(grid.flat, image, title, strict=False):
        _show(axes, one)
        write_title(axes, text, most=14, fontsize=9)
    return figure


def reconstructions(
    image: Float[Any, "n h w c"],
    drawn: Float[Any, "n h w c"],
    label: Sequence[str],
    predicted: Sequence[str],
) -> Figure:
    """Draws images above the reconstructions of their longest capsule."""
    figure = Figure(figsize=(1 + len(image), 2.9), layout="constrained")
    grid = figure.subplots(2, len(image), squeeze=False)
    for column, one, redrawn, own, guess in zip(
        grid.T, image, drawn, label, predicted, strict=True
    ):
        _show(column[0], one)
        write_title(column[0], own, most=14, fontsize=9)
        _show(column[1], redrawn)
        right = own == guess
        text = guess if right else f"{shortened(guess, 7)} (wrong)"
        colour = "black" if right else COLOURS[1]
        write_title(column[1], text, most=15, fontsize=9, color=colour)
    _name_row(grid[0], "image\nlabel above")
    _name_row(grid[1], "redrawn\nprediction above")
    return figure


def overlaps(
    image: Float[Any, "n h w c"],
    drawn: Float[Any, "n two h w c"],
    title: Sequence[tuple[str, str]],
) -> Figure:
    """Draws images of two classes above both reconstructions, one over the other.

    Like the paper's figure 5; the first class is orange, the second blue.

    Args:
        image: The images, one per column.
        drawn: The reconstructions of two class capsules, each alone.
        title: Titles of each image and of its reconstructions.
    """
    columns = len(image)
    figure = Figure(figsize=(1.1 * columns + 1, 3.2), layout="constrained")
    grid = figure.subplots(2, columns, squeeze=False)
    colour = np.array([to_rgb(COLOURS[4]), to_rgb(COLOURS[5])])
    brightness = np.asarray(drawn).mean(-1)
    both = np.clip(np.einsum("nkhw,kc->nhwc", brightness, colour), 0, 1)
    for column, one, coloured, texts in zip(grid.T, image, both, title, strict=True):
        for axes, shown, text in zip(column, (one, coloured), texts, strict=True):
            _show(axes, shown)
            write_title(axes, text, most=20, fontsize=8)
    _name_row(grid[0], "image")
    _name_row(grid[1], "redrawn")
    return figure


def tweaks(
    drawn: Float[Any, "d step h w c"], *, low: float, high: float, title: str
) -> Figure:
    """Draws reconstructions as each dimension of a pose (a row) moves step by step."""
    rows, columns, height, width, _ = drawn.shape
    figure = Figure(figsize=(0.55 * columns + 1, 0.55 * rows + 1), layout="constrained")
    axes = figure.subplots()
    axes.imshow(_visible(_mosaic(np.asarray(drawn))), cmap="gray", vmin=0, vmax=1)
    axes.set_xticks(
        [2 + (width + 2) * (k + 0.5) - 1 for k in range(columns)],
        [f"{step:+.2f}" for step in np.linspace(low, high, columns)],
        fontsize=8,
    )
    axes.set_yticks(
        [2 + (height + 2) * (k + 0.5) - 1 for k in range(rows)],
        [str(k + 1) for k in range(rows)],
        fontsize=8,
    )
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set(xlabel="added to the component", ylabel="dimension of the pose")
    write_title(axes, title)
    return figure


def mistakes(
    image: Float[Any, "n h w c"],
    drawn: Float[Any, "n two h w c"] | None,
    name: Sequence[Sequence[str]],
    length: Float[Any, "n two"],
    label: Sequence[str],
    *,
    title: str = "",
) -> Figure:
    """Draws misclassified images with their predictions and reconstructions.

    Args:
        image: The images.
        drawn: Reconstructions of the longest and the second longest capsule; None
            without a trained decoder.
        name: The classes of the two capsules.
        length: Their lengths, or probabilities.
        label: The right class.
        title: Title of the figure.
    """
    figure = Figure(figsize=(5, 1 + 1.5 * len(image)), layout="constrained")
    figure.suptitle(shortened(title, 80), fontsize=10, parse_math=False)
    grid = figure.subplots(max(1, len(image)), 3, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    rows = zip(grid, image, name, length, label, strict=False)
    for n, (row, one, names, lengths, own) in enumerate(rows):
        _show(row[0], one)
        write_title(row[0], f"label {own}", most=20, fontsize=9)
        for k, (axes, guess, long) in enumerate(
            zip(row[1:], names, lengths, strict=True)
        ):
            if drawn is not None:
                _show(axes, drawn[n, k])
            right = guess == own
            text = f"as {shortened(guess, 12)}: {long:.2f}" + " (right)" * right
            write_title(
                axes, text, fontsize=9, color=COLOURS[0] if right else COLOURS[1]
            )
    if not len(image):
        grid[0, 1].set_title("no image was misclassified")
    return figure


def label_mistakes(
    image: Float[Any, "n h w c"],
    label: Sequence[Sequence[tuple[str, float]]],
    verdict: Sequence[Sequence[tuple[str, float]]],
    *,
    title: str = "",
) -> Figure:
    """Draws misjudged images of several classes beside their labels and verdicts.

    Args:
        image: The images.
        label: Name of each class of an image, with its length or probability.
        verdict: Name of each class that the network named, likewise.
        title: Title of the figure.
    """
    figure = Figure(figsize=(8, 1 + 1.3 * len(image)), layout="constrained")
    figure.suptitle(shortened(title, 80), fontsize=10, parse_math=False)
    grid = figure.subplots(max(1, len(image)), 2, squeeze=False, width_ratios=(1, 4))
    for axes in grid.flat:
        axes.set_axis_off()
    for (left, right), one, own, named in zip(
        grid, image, label, verdict, strict=False
    ):
        _show(left, one)
        for (what, wrong), classes, others, place, colour in (
            (("label", "missed"), own, dict(named), 0.95, "black"),
            (("verdict", "wrong"), named, dict(own), 0.45, COLOURS[1]),
        ):
            # The wrong ones come first, since the last may have no place.
            words = [
                f"{shortened(name, 20)} {active:.2f}{f' ({wrong})' * is_wrong}"
                for is_wrong in (True, False)
                for name, active in classes
                if is_wrong == (name not in others)
            ]
            # A line is broken only between classes.
            kept = [word.replace(" ", "\xa0") for word in words or ["none"]]
            text = f"{what}: {', '.join(kept)}"
            lines = textwrap.wrap(text, 80, max_lines=3, placeholder=" ...")
            right.text(
                *(0, place, "\n".join(lines)),
                va="top",
                fontsize=9,
                color=colour,
                parse_math=False,
            )
    if not len(image):
        grid[0, 1].set_title("no image was misjudged")
    return figure


def coupling_maps(
    image: Float[Any, "n h w c"],
    share: Float[Any, "round n H W"],
    title: Sequence[str],
    *,
    extent: tuple[float, float, float, float],
) -> Figure:
    """Draws over each image the primary capsules that feed the winning class.

    Args:
        image: The images, one per column.
        share: Contribution of the capsules at each position to the winner, for each
            round (a row), at least 0.
        title: Title of each column.
        extent: Left, right, bottom and top of the positions, in pixels of the image.
    """
    num_rounds, num_images = share.shape[:2]
    figure = Figure(
        figsize=(1.2 * num_images + 1.4, 1.3 * num_rounds + 0.4), layout="constrained"
    )
    grid = figure.subplots(num_rounds, num_images, squeeze=False)
    shown: Any = None
    for k, row in enumerate(grid):
        for axes, one, map_, text in zip(row, image, share[k], title, strict=True):
            height, width = one.shape[:2]
            _show(axes, one)
            shown = axes.imshow(
                map_, cmap="cividis", alpha=0.7, extent=extent, vmin=0, vmax=share.max()
            )
            axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
            if k == 0:
                write_title(axes, text, most=16, fontsize=9)
        _name_row(row, f"round {k + 1}")
    figure.colorbar(shown, ax=grid, label="contribution to the pose", shrink=0.8)
    return figure


def _show(axes: Any, image: Float[Any, "h w c"], **options: Any) -> None:
    axes.imshow(_visible(image), cmap="gray", vmin=0, vmax=1, **options)
    axes.set_axis_off()


def _visible(image: Float[Any, "h w c"]) -> Float[Any, "..."]:
    """Returns colours, or the first channel of any other kind of image."""
    return image if image.shape[-1] == 3 else image[..., 0]


def _name_row(row: Any, text: str) -> None:
    row[0].set_axis_on()
    row[0].set(xticks=[], yticks=[], frame_on=False)
    row[0].set_ylabel(text, fontsize=9)


def _mosaic(image: Float[Any, "rows columns h w c"], gap: int = 2) -> np.ndarray:
    """Joins images into a large one with white lines between."""
    _, _, height, width, _ = image.shape
    padded = np.pad(
        image, ((0, 0), (0, 0), (gap, 0), (gap, 0), (0, 0)), constant_values=1
    )
    rows, columns = image.shape[:2]
    whole = padded.transpose(0, 2, 1, 3, 4).reshape(
        rows * (height + gap), columns * (width + gap), -1
    )
    return np.pad(whole, ((0, gap), (0, gap), (0, 0)), constant_values=1)
