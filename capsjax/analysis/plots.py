"""Figures from arrays; each function returns one, ``save`` writes it.

Images are ``[h, w, c]`` with pixels from 0 to 1, grey (one channel) or colour (three).
Colours are those of Okabe and Ito and the map cividis, which colour-blind readers tell
apart; lines differ in their style too. Names are drawn as they are: a ``$`` begins no
formula, and what can't be drawn is escaped.
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
# On a light ground, where a single error must be seen too.
_FEW_TO_MANY = LinearSegmentedColormap.from_list(
    "few to many", (COLOURS[5], COLOURS[0], "black")
)
MOST_NAMED = 30  # Classes whose names and counts a confusion figure has room for.
_MOST_CELLS = 300  # Of a confusion figure, a side; of more classes some share a cell.
_MOST_PIXELS = 6000  # Of a figure, a side.
_MOST_POINTS = 5000  # Of a curve.
_MOST_IN_LEGEND = 20


class Figure(_figure.Figure):
    """A figure that a notebook shows; no window and no global state come with it."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=96)
        return file.getvalue()


def save(figure: Figure, path: str | pathlib.Path) -> None:
    """Writes a figure, in the format that the name ends with."""
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
    """Of the lines that are named, the first."""
    lines, names = axes.get_legend_handles_labels()
    names = [shortened(name, 60) for name in names]
    if (more := len(names) - _MOST_IN_LEGEND) > 0:
        names = [*names[:_MOST_IN_LEGEND], f"and {more} more"]
        lines = [*lines[:_MOST_IN_LEGEND], Line2D([], [], linestyle="none")]
    # Of many, beside the axes.
    beside = {"loc": "upper left", "bbox_to_anchor": (1, 1), "fontsize": 7}
    legend = axes.legend(lines, names, **(beside if len(names) > 6 else {}))
    for text in legend.get_texts():
        text.set_parse_math(False)


def _show(axes: Any, image: Float[Any, "h w c"], **options: Any) -> None:
    axes.imshow(_visible(image), cmap="gray", vmin=0, vmax=1, **options)
    axes.set_axis_off()


def _visible(image: Float[Any, "h w c"]) -> Float[Any, "..."]:
    """Colours, or the first channel of any other kind of image."""
    return image if image.shape[-1] == 3 else image[..., 0]


def _name_row(row: Any, text: str) -> None:
    row[0].set_axis_on()
    row[0].set(xticks=[], yticks=[], frame_on=False)
    row[0].set_ylabel(text, fontsize=9)


def _mosaic(image: Float[Any, "rows columns h w c"], gap: int = 2) -> np.ndarray:
    """One large image with white lines between."""
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
    """Images in a grid, each under its title."""
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
    """Images above what was drawn of their longest capsule, with the predictions."""
    figure = Figure(figsize=(1 + len(image), 2.9), layout="constrained")
    grid = figure.subplots(2, len(image), squeeze=False)
    for column, one, redrawn, own, told in zip(
        grid.T, image, drawn, label, predicted, strict=True
    ):
        _show(column[0], one)
        _title(column[0], own, most=14, fontsize=9)
        _show(column[1], redrawn)
        right = own == told
        text = told if right else f"{shortened(told, 7)} (wrong)"
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
    """Images of two classes above what was drawn of each, one over the other.

    As figure 5 of the paper; the first class is orange, the second blue.

    Args:
        image: The images, one a column.
        drawn: What was drawn of two class capsules, alone.
        title: Over each image and over what was drawn.
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
    """What is drawn when each dimension of a pose (a row) is moved step by step."""
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
    """Loss and error rate over the epochs.

    Args:
        train: Epoch, loss and accuracy (0 to 1) of some training images, a row each.
        validation: The same of the validation images.
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
        # Images without an error have no place on a logarithmic axis.
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
    """Error rates over the epochs: one colour a recipe, one line a seed."""
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
    """How often each class (a row) was taken for which (a column).

    Above ``MOST_NAMED`` classes the counts are colours, of a few names are at the edge,
    and the commonest confusions stand beside them in words.
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
    """Each count a cell of a few pixels; the canvas is always as large."""
    figure = Figure(figsize=(16, 11.5))
    axes = figure.add_axes((0.1, 0.14, 0.56, 0.8))
    num_classes = len(class_names)
    wrong = np.array(count)
    np.fill_diagonal(wrong, 0)
    # The sum of the classes that share a cell, so that no error is lost.
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
    """Images that were got wrong, for what they were taken, and what that draws.

    Args:
        image: The images.
        drawn: Reconstructions of the longest and the second longest capsule; None if
            there is no decoder that has learnt to.
        name: The classes of the two.
        length: Their lengths, or probabilities.
        label: What it should have been.
        title: Over all of them.
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
        for k, (axes, told, long) in enumerate(
            zip(row[1:], names, lengths, strict=True)
        ):
            if drawn is not None:
                _show(axes, drawn[n, k])
            right = told == own
            text = f"as {shortened(told, 12)}: {long:.2f}" + " (right)" * right
            _title(axes, text, fontsize=9, color=COLOURS[0] if right else COLOURS[1])
    if not len(image):
        grid[0, 1].set_title("no image was got wrong")
    return figure


def coupling_entropy(entropy: Float[Any, "round n"], *, num_classes: int) -> Figure:
    """How couplings sharpen round by round: by how much their entropy falls.

    Args:
        entropy: Of the couplings of one input capsule, in bits, for ``n`` of them.
        num_classes: Of so many; uniform couplings have ``log2(num_classes)``.
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
    """What more rounds of routing bring: accuracy, and what each round changes.

    On the right is figure B.1 of the paper. There the changes fall from round to round;
    by Procedure 1 those of the logits need not: once the poses have settled, each round
    adds the same agreement again.

    Args:
        accuracy: From 0 to 1, by the number of rounds.
        logit_change: The mean size of what each round adds to a logit.
        coupling_change: The mean change of a coupling, from each round to the next.
        usual: The number of rounds that the network has learnt with.
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
    """Which primary capsules feed the winning class, drawn over the image.

    Args:
        image: The images, one a column.
        share: What the capsules at each position give to the winner, for each round (a
            row), at least 0.
        title: Over each column.
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
