"""Figures of couplings and of confidences, as statistics over many images."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from capsjax.analysis.plots.canvas import COLOURS, STYLES, Figure, draw_legend

Curve = Float[Any, " bin"] | Int[Any, " bin"]


def measures(
    histogram: Mapping[str, Int[Any, " bars"]],
    sizes: Mapping[str, tuple[int, int]],
    by_round: Sequence[Mapping[str, float]],
) -> Figure:
    """Draws the couplings of each layer, and measures of them round by round.

    Args:
        histogram: Number of couplings in equal parts of 0 to 1, by layer.
        sizes: Number of inputs and outputs of each layer.
        by_round: T-score, bonding and dynamics after each round; nothing for an
            algorithm without rounds.
    """
    panels = 1 + bool(by_round)
    figure = Figure(figsize=(4.5 * panels, 3.6), layout="constrained")
    left, *others = np.ravel(figure.subplots(1, panels))
    for k, (name, count) in enumerate(histogram.items()):
        colour, (_, j) = COLOURS[k % len(COLOURS)], sizes[name]
        edges = np.linspace(0, 1, len(count) + 1)
        share = np.asarray(count) / np.sum(count)
        left.stairs(share, edges, color=colour, label=f"{name}, J = {j}")
        left.axvline(1 / j, color=colour, linestyle=":")
    left.set(yscale="log", xlabel="coupling (dotted: 1 / J)", ylabel="share of all")
    for axes in others:
        number = np.arange(1, len(by_round) + 1)
        for k, (what, key) in enumerate(
            (("T-score", "t_score"), ("bonding", "bonding"), ("dynamics", "dynamics"))
        ):
            values = [one[key] for one in by_round]
            how: Any = {"color": COLOURS[k], "linestyle": STYLES[k], "marker": "osD"[k]}
            axes.plot(number, values, label=what, **how)
        axes.set(xlabel="rounds of routing", ylim=(-0.02, 1.02))
        axes.set_xticks(number)
        axes.legend()
    for axes in (left, *others):
        axes.grid(visible=True, alpha=0.2)
    draw_legend(left)
    return figure


def reliability(
    curves: Mapping[str, tuple[Curve, Curve, Curve]],
) -> Figure:
    """Draws accuracy over confidence, and the number of images at each confidence.

    Args:
        curves: Mean confidence, accuracy and number of images in equal parts of 0 to 1,
            by name.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="grey", linewidth=1, label="calibrated")
    for k, (name, columns) in enumerate(curves.items()):
        confidence, accuracy, number = map(np.asarray, columns)
        shown = number > 0
        how: Any = {"color": COLOURS[k], "label": name}
        style: Any = {"linestyle": STYLES[k], "marker": "os"[k]}
        left.plot(confidence[shown], accuracy[shown], **style, **how)
        edges = np.linspace(0, 1, len(number) + 1)
        right.stairs(number, edges, linestyle=STYLES[k], **how)
    left.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    right.set(xlabel="confidence", ylabel="images", yscale="log")
    for axes in (left, right):
        axes.grid(visible=True, alpha=0.2)
        axes.legend()
    return figure
