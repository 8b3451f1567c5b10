"""Figures of classes: their scores and their confusions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from capsjax.analysis.confusion import commonest_confusions
from capsjax.analysis.plots.canvas import (
    COLOURS,
    FEW_TO_MANY,
    Figure,
    write_title,
)
from capsjax.runtime.console import shortened

_MOST_NAMED = 30  # A confusion figure has room for this many names and counts.
_MOST_CELLS = 300  # Per side of a confusion figure; more classes share cells.
_MOST_SCORED = 100  # Classes, each with its row.
_MARKERS = "osD^v"


def label_scores(
    scores: Mapping[str, Float[Any, " n"]],
    num_images: Int[Any, " n"],
    class_names: Sequence[str],
) -> Figure:
    """Draws the scores of each class in a row of marks, from the worst class down.

    Of more than 100 classes, only the worst are drawn.

    Args:
        scores: Scores of the classes from 0 to 1, by name; NaN where one is unknown.
            The rows are in the order of the first.
        num_images: Number of images that show each class.
        class_names: Names of the classes.
    """
    main = next(iter(scores))
    order = np.argsort(scores[main], kind="stable")[:_MOST_SCORED]  # NaN is last.
    figure = Figure(figsize=(8, 1.6 + 0.2 * len(order)), layout="constrained")
    axes = figure.subplots()
    row = np.arange(len(order))
    for (name, values), marker, colour in zip(
        scores.items(), _MARKERS, COLOURS, strict=False
    ):
        how: Any = {"marker": marker, "color": colour, "linestyle": "none"}
        axes.plot(100 * values[order], row, label=name, markersize=5, **how)
    named: Any = [(class_names[k], num_images[k]) for k in order]
    names = [f"{shortened(name, 30)} ({number:,})" for name, number in named]
    axes.set_yticks(row, names, fontsize=8, parse_math=False)
    axes.set(xlim=(-2, 102), ylim=(len(order) - 0.5, -0.5), xlabel="%")
    axes.tick_params(labeltop=True, top=True)
    axes.grid(visible=True, alpha=0.3)
    which = f"{len(order)} of " * (len(order) < len(class_names))
    title = f"{which}{len(class_names)} classes, worst {main} first; images in brackets"
    figure.suptitle(title, fontsize=10)
    figure.legend(loc="outside lower center", ncols=len(scores), frameon=False)
    return figure


def confusion(count: Int[Any, "n n"], class_names: Sequence[str]) -> Figure:
    """Draws how often each class (a row) was predicted as each other (a column).

    Above 30 classes the counts are colours, few names are at the edge, and
    the commonest confusions stand beside them in words.
    """
    if len(class_names) > _MOST_NAMED:
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
        cmap=FEW_TO_MANY,
        norm="log",
        vmin=1,
        vmax=max(2, cells.max()),
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
    write_title(axes, f"{num_classes} classes{named}; colour: {what}")
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
