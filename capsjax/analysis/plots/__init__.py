"""Draws figures from arrays; each function returns one, ``save`` writes it.

Images are ``[h, w, c]`` with pixels from 0 to 1, grey (one channel) or colour (three).
Okabe and Ito's colours and the map cividis suit colour-blind readers; lines differ in
their style too. Names are drawn literally: a ``$`` begins no formula, and characters
that can't be drawn are escaped.

Examples:
    >>> import numpy as np
    >>> from capsjax.analysis import plots
    >>> figure = plots.samples(np.zeros((2, 28, 28, 1)), ["7", "2"], columns=2)
    >>> [axes.get_title() for axes in figure.axes]
    ['7', '2']
"""

from capsjax.analysis.plots.canvas import COLOURS, STYLES, Figure, save
from capsjax.analysis.plots.classes import confusion, label_scores
from capsjax.analysis.plots.curves import (
    coupling_entropy,
    rounds,
    training_curves,
    validation_curves,
)
from capsjax.analysis.plots.pictures import (
    coupling_maps,
    label_mistakes,
    mistakes,
    overlaps,
    reconstructions,
    samples,
    tweaks,
)
from capsjax.analysis.plots.routing import measures, reliability

__all__ = [
    "COLOURS",
    "STYLES",
    "Figure",
    "confusion",
    "coupling_entropy",
    "coupling_maps",
    "label_mistakes",
    "label_scores",
    "measures",
    "mistakes",
    "overlaps",
    "reconstructions",
    "reliability",
    "rounds",
    "samples",
    "save",
    "training_curves",
    "tweaks",
    "validation_curves",
]
