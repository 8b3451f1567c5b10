"""Draws figures from arrays; each function returns one, ``save`` writes it.

Images are ``[h, w, c]`` with pixels from 0 to 1, grey (one channel) or colour (three).
Okabe and Ito's colours and the map cividis suit colour-blind readers; lines differ in
their style too. Names are drawn literally: a ``$`` begins no formula, and characters
that can't be drawn are escaped.
"""

import io
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib import figure as _figure
from matplotlib.colors import LinearSegmentedColormap, LogNorm, to_rgb
from matplotlib.lines import Line2D

from capsjax.analysis.confusion import commonest_confusions
from capsjax.runtime.console import shortened, warn
from capsjax.runtime.paths import expanded

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", ":", "-.")
# For a light ground, on which a single error must be visible.
_FEW_TO_MANY = LinearSegmentedColormap.from_list(
    "few to many", (COLOURS[5], COLOURS[0], "black")
)
MOST_NAMED = 30  # A confusion figure has room for this many names and counts.
_MOST_CELLS = 300  # Per side of a confusion figure; more classes share cells.
_MOST_PIXELS = 6000  # Per side of a figure.
_MOST_POINTS = 5000  # Per curve.
_MOST_IN_LEGEND = 20


class Figure(_figure.Figure):
    """A figure that a notebook shows, without a window or global state."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=96)
        return file.getvalue()


def save(figure: Figure, path: str | pathlib.Path) -> None:
    """Writes a figure in the format of the name's suffix."""
    path = expanded(path)
    dpi = min(120, _MOST_PIXELS / max(figure.get_size_inches()))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(path, dpi=dpi)
    lacking = [one for one in caught if "missing from" in str(one.message)]
    if lacking:
        warn(f"in {path} characters that no font here has are drawn as boxes.")
    for one in caught:
        if one not in lacking:
            warnings.warn(one.message, one.category, stacklevel=2)


def _title(axes: Any, text: str, *, most: int = 90, **how: Any) -> None:
    axes.set_title(shortened(text, most), parse_math=False, **how)


def _legend(axes: Any) -> None:
    """Draws a legend of the first named lines."""
    lines, names = axes.get_legend_handles_labels()
    names = [shortened(name, 60) for name in names]
    if (more := len(names) - _MOST_IN_LEGEND) > 0:
        names = [*names[:_MOST_IN_LEGEND], f"and {more} more"]
        lines = [*lines[:_MOST_IN_LEGEND], Line2D([], [], linestyle="none")]
    # A long legend stands beside the axes.
    beside = {"loc": "upper left", "bbox_to_anchor": (1, 1), "fontsize": 7}
    legend = axes.legend(lines, names, **(beside if len(names) > 6 else {}))
    for text in legend.get_texts():
        text.set_parse_math(False)


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
        _title(axes, text, most=14, fontsize=9)
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
        _title(column[0], own, most=14, fontsize=9)
        _show(column[1], redrawn)
        right = own == guess
        text = guess if right else f"{shortened(guess, 7)} (wrong)"
        colour = "black" if right else COLOURS[1]
        _title(column[1], text, most=15, fontsize=9, color=colour)
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
            _title(axes, text, most=20, fontsize=8)
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
    _title(axes, title)
    return figure


def training_curves(
    train: Float[Any, "n three"], validation: Float[Any, "m three"]
) -> Figure:
    """Draws loss and error rate over the epochs.

    Args:
        train: Rows of epoch, loss and accuracy (0 to 1) on some training images.
        validation: The same on the validation images.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss_axes, error_axes = figure.subplots(1, 2)
    for label, rows, marker, colour, style in (
        ("train", train, "", COLOURS[0], "-"),
        ("validation", validation, "o", COLOURS[1], "--"),
    ):
        rows = np.asarray(rows, np.float64).reshape(-1, 3)
        epoch, loss, accuracy = rows[:: -(-len(rows) // _MOST_POINTS) or 1].T
        how: Any = {"marker": marker, "color": colour, "linestyle": style}
        how |= {"label": label, "linewidth": 1}
        loss_axes.semilogy(epoch, loss, **how)
        # Zero errors have no place on a logarithmic axis.
        wrong = np.where(accuracy < 1, 100 * (1 - accuracy), np.nan)
        error_axes.semilogy(epoch, wrong, **how)
    loss_axes.set(xlabel="epoch", ylabel="loss")
    error_axes.set(xlabel="epoch", ylabel="wrong, %")
    for axes in (loss_axes, error_axes):
        axes.grid(visible=True, which="both", alpha=0.2)
    _legend(loss_axes)
    return figure


def validation_curves(
    curves: Mapping[str, Sequence[Sequence[tuple[int, float]]]],
) -> Figure:
    """Draws error rates over the epochs: a colour per recipe, a line per seed."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for n, (recipe, runs) in enumerate(curves.items()):
        for k, curve in enumerate(runs):
            epochs, accuracy = np.array(curve).reshape(-1, 2).T
            axes.semilogy(
                epochs,
                100 * (1 - accuracy),
                color=COLOURS[n % len(COLOURS)],
                linestyle=STYLES[n % len(STYLES)],
                marker=".",
                label=recipe if k == 0 else None,
            )
    axes.set(xlabel="epoch", ylabel="wrong of the validation images, %")
    axes.grid(visible=True, which="both", alpha=0.2)
    _legend(axes)
    return figure


def confusion(count: Int[Any, "n n"], class_names: Sequence[str]) -> Figure:
    """Draws how often each class (a row) was predicted as each other (a column).

    Above ``MOST_NAMED`` classes the counts are colours, few names are at the edge, and
    the commonest confusions stand beside them in words.
    """
    if len(class_names) > MOST_NAMED:
        return _large_confusion(count, class_names)
    size = max(4.0, 0.5 * len(class_names) + 1)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    wrong = count - np.diag(np.diag(count))
    axes.imshow(wrong, cmap="cividis", vmin=0, vmax=max(1, wrong.max()))
    for (row, column), number in np.ndenumerate(count):
        if number:
            dark = row == column or wrong[row, column] < wrong.max() / 2
            axes.text(
                column,
                row,
                str(number),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else "black",
            )
    names = [shortened(name, 20) for name in class_names]
    is_wide = len(names) > 10 or max(map(len, names)) > 4
    ticks = range(len(names))
    axes.set_xticks(ticks, names, rotation=90 if is_wide else 0, parse_math=False)
    axes.set_yticks(ticks, names, parse_math=False)
    axes.set(xlabel="predicted", ylabel="label", title="colour: the errors only")
    return figure


def _large_confusion(count: Int[Any, "n n"], class_names: Sequence[str]) -> Figure:
    """Draws each count as a cell of a few pixels, on a canvas of constant size."""
    figure = Figure(figsize=(16, 11.5))
    axes = figure.add_axes((0.1, 0.14, 0.56, 0.8))
    num_classes = len(class_names)
    wrong = np.array(count)
    np.fill_diagonal(wrong, 0)
    # Classes that share a cell are summed, so that no error is lost.
    share = -(-num_classes // _MOST_CELLS)
    starts = np.arange(0, num_classes, share)
    cells = np.add.reduceat(np.add.reduceat(wrong, starts, axis=0), starts, axis=1)
    shown = axes.imshow(
        np.ma.masked_equal(cells, 0),
        cmap=_FEW_TO_MANY,
        norm=LogNorm(1, max(2, cells.max())),
        extent=(-0.5, len(starts) * share - 0.5, len(starts) * share - 0.5, -0.5),
        interpolation="nearest",
    )
    axes.set_facecolor("#f4f4f4")
    axes.axline((0, 0), slope=1, color="white", zorder=0)
    ticks = range(0, num_classes, -(-num_classes // 50))
    names = [shortened(class_names[k], 16) for k in ticks]
    axes.set_xticks(ticks, names, rotation=90, fontsize=7, parse_math=False)
    axes.set_yticks(ticks, names, fontsize=7, parse_math=False)
    axes.set(xlabel="predicted", ylabel="label")
    what = "errors" if share == 1 else f"errors; a cell is {share} x {share} classes"
    named = "" if ticks.step == 1 else f", 1 in {ticks.step} named"
    _title(axes, f"{num_classes} classes{named}; colour: {what}")
    bar_axes = figure.add_axes((0.675, 0.34, 0.012, 0.4))
    bar = figure.colorbar(shown, cax=bar_axes, label="images")
    round_numbers = [k * 10**n for n in range(9) for k in (1, 2, 5)]
    most = max(2, cells.max())
    numbers = [number for number in round_numbers if number < 0.8 * most] + [most]
    bar.set_ticks(numbers, labels=[str(number) for number in numbers])
    bar.minorticks_off()
    lines = [
        f"{number:5}  {shortened(class_names[row], 20)} as "
        f"{shortened(class_names[column], 20)}"
        for row, column, number in commonest_confusions(np.asarray(count), 50)
    ]
    figure.text(
        *(0.73, 0.94, "\n".join(["images, label as predicted", "", *lines])),
        va="top",
        family="monospace",
        fontsize=8,
        parse_math=False,
    )
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
        _title(row[0], f"label {own}", most=20, fontsize=9)
        for k, (axes, guess, long) in enumerate(
            zip(row[1:], names, lengths, strict=True)
        ):
            if drawn is not None:
                _show(axes, drawn[n, k])
            right = guess == own
            text = f"as {shortened(guess, 12)}: {long:.2f}" + " (right)" * right
            _title(axes, text, fontsize=9, color=COLOURS[0] if right else COLOURS[1])
    if not len(image):
        grid[0, 1].set_title("no image was misclassified")
    return figure


def coupling_entropy(entropy: Float[Any, "round n"], *, num_classes: int) -> Figure:
    """Draws the fall of the couplings' entropy, round by round.

    Args:
        entropy: Entropy in bits of each of ``n`` input capsules' couplings.
        num_classes: Number of classes; uniform couplings have ``log2(num_classes)``.
    """
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    rounds = np.arange(1, len(entropy) + 1)
    fall = np.log2(num_classes) - np.asarray(entropy)
    low, middle, high = np.quantile(fall, (0.1, 0.5, 0.9), axis=1)
    axes.fill_between(
        rounds, low, high, color=COLOURS[5], alpha=0.4, label="middle 80 %"
    )
    axes.plot(rounds, middle, "o--", color=COLOURS[0], label="median")
    axes.plot(rounds, fall.mean(axis=1), "s-", color=COLOURS[1], label="mean")
    axes.set(
        xlabel="round of routing",
        ylabel="bits below uniform couplings",
        title=f"log2({num_classes}) less the entropy of the couplings",
    )
    axes.set_xticks(rounds)
    axes.grid(visible=True, alpha=0.2)
    axes.legend()
    return figure


def rounds(
    accuracy: Mapping[int, float],
    logit_change: Float[Any, " round"],
    coupling_change: Float[Any, " fewer"],
    *,
    usual: int,
) -> Figure:
    """Draws the effect of more rounds of routing: accuracy, and each round's changes.

    The right half is the paper's figure B.1. There the changes fall from round to
    round. By Procedure 1 the logits' need not: once the poses have settled, each round
    adds the same agreement again.

    Args:
        accuracy: Accuracy from 0 to 1, by the number of rounds.
        logit_change: Mean size of each round's addition to a logit.
        coupling_change: Mean change of a coupling, from each round to the next.
        usual: Number of rounds in training.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([*accuracy], [100 * share for share in accuracy.values()], "o-")
    left.set(xlabel="rounds of routing", ylabel="accuracy, %")
    for what, change, style, colour in (
        ("of a logit", logit_change, "o-", COLOURS[0]),
        ("of a coupling", coupling_change, "s:", COLOURS[2]),
    ):
        number = np.arange(1, len(change) + 1)
        right.semilogy(number, change, style, color=colour, label=what)
    right.set(xlabel="by round", ylabel="mean change")
    left.lines[0].set_color(COLOURS[0])
    for axes in (left, right):
        axes.axvline(usual, color=COLOURS[1], linestyle="--", label="as learnt")
        axes.set_xticks(range(1, max(accuracy) + 1))
        axes.grid(visible=True, which="both", alpha=0.2)
        axes.legend()
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
                _title(axes, text, most=16, fontsize=9)
        _name_row(row, f"round {k + 1}")
    figure.colorbar(shown, ax=grid, label="contribution to the pose", shrink=0.8)
    return figure
