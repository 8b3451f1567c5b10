"""Figures of curves: over the epochs, and over the rounds of routing."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from capsjax.analysis.plots.canvas import COLOURS, STYLES, Figure, draw_legend

_MOST_POINTS = 5000  # Per curve.


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
        error_axes.semilogy(epoch, _percent_wrong(accuracy), **how)
    loss_axes.set(xlabel="epoch", ylabel="loss")
    error_axes.set(xlabel="epoch", ylabel="wrong, %")
    for axes in (loss_axes, error_axes):
        axes.grid(visible=True, which="both", alpha=0.2)
    draw_legend(loss_axes)
    return figure


def _percent_wrong(accuracy: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Returns error rates; not zero, which has no place on a logarithmic axis."""
    return np.where(accuracy < 1, 100 * (1 - accuracy), np.nan)


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
                _percent_wrong(accuracy),
                color=COLOURS[n % len(COLOURS)],
                linestyle=STYLES[n % len(STYLES)],
                marker=".",
                label=recipe if k == 0 else None,
            )
    axes.set(xlabel="epoch", ylabel="wrong of the validation images, %")
    axes.grid(visible=True, which="both", alpha=0.2)
    draw_legend(axes)
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
    changed: Mapping[int, float],
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
        changed: Share of the predictions that differ from those as learnt, likewise.
        logit_change: Mean size of each round's addition to a logit.
        coupling_change: Mean change of a coupling, from each round to the next.
        usual: Number of rounds in training.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    same = [1 - share for share in changed.values()]
    for what, share, style, colour in (
        ("right", [*accuracy.values()], "o-", COLOURS[0]),
        ("as with the learnt rounds", same, "s:", COLOURS[2]),
    ):
        percent = 100 * np.array(share)
        left.plot([*accuracy], percent, style, color=colour, label=what)
    left.set(xlabel="rounds of routing", ylabel="predictions, %")
    for what, change, style, colour in (
        ("of a logit", logit_change, "o-", COLOURS[0]),
        ("of a coupling", coupling_change, "s:", COLOURS[2]),
    ):
        number = np.arange(1, len(change) + 1)
        right.semilogy(number, change, style, color=colour, label=what)
    right.set(xlabel="by round", ylabel="mean change")
    for axes in (left, right):
        axes.axvline(usual, color=COLOURS[1], linestyle="--", label="as learnt")
        axes.set_xticks(range(1, max(accuracy) + 1))
        axes.grid(visible=True, which="both", alpha=0.2)
        axes.legend()
    return figure
