"""What all figures share: the canvas, its file, colours, titles and legends.

The one module that imports matplotlib.
"""

import io
import pathlib
import warnings
from typing import Any

from matplotlib import figure as _figure
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.colors import to_rgb as to_rgb
from matplotlib.lines import Line2D

from capsjax.runtime.console import shortened, warn
from capsjax.runtime.paths import expanded

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", ":", "-.")
# For a light ground, on which a single error must be visible.
FEW_TO_MANY = LinearSegmentedColormap.from_list(
    "few to many", (COLOURS[5], COLOURS[0], "black")
)
_MOST_PIXELS = 6000  # Per side of a figure.
_MOST_IN_LEGEND = 20


class Figure(_figure.Figure):
    """A figure that a notebook shows, without a window or global state."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=96)
        return file.getvalue()


def save(figure: Figure, path: str | pathlib.Path) -> None:
    """Writes a figure in the format of the name's suffix, as PNG without one.

    Raises:
        ValueError: If the suffix names no format that matplotlib writes.
    """
    path = expanded(path)
    suffix = path.suffix[1:].lower()
    if suffix not in ("", *figure.canvas.get_supported_filetypes()):
        raise ValueError(f"{path} must end in .png, .svg or .pdf, or have no suffix.")
    dpi = min(120, _MOST_PIXELS / max(figure.get_size_inches()))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # Without a format matplotlib would add a suffix to the name.
        figure.savefig(path, dpi=dpi, format=suffix or "png")
    lacking = [one for one in caught if "missing from" in str(one.message)]
    if lacking:
        warn(f"in {path} characters that no font here has are drawn as boxes.")
    for one in caught:
        if one not in lacking:
            warnings.warn(one.message, one.category, stacklevel=2)


def write_title(axes: Any, text: str, *, most: int = 90, **how: Any) -> None:
    """Writes a title literally, at most so many characters of it."""
    axes.set_title(shortened(text, most), parse_math=False, **how)


def draw_legend(axes: Any) -> None:
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
