"""Draws what every routing algorithm does with the same forty votes for three outputs.

    python docs/figures/routing.py

Draws into routing.png, and prints the numbers of docs/routing.md.
"""

import math
import pathlib

import jax
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from capsjax import ROUTINGS
from capsjax.routings import Algorithm, Routed

NUM_INPUTS, NUM_AGREEING, NUM_FARTHEST = 40, 20, 8
OUTPUTS = "ABC"
# Darker for a larger coupling, in grey too.
COLOURS = LinearSegmentedColormap.from_list("", ("#CFE8F7", "#0072B2", "black"))
OF_POSES = "#D55E00"
CENTRE = np.array([0.64, 0.48])  # Of the votes that agree.
# Turns a point of the plane into a vote of four components whose mean is zero, and
# keeps its length: layer norm subtracts the mean, and would leave the plane otherwise.
TO_VOTE = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]]) / math.sqrt(2)


def scene() -> np.ndarray:
    """Makes the votes of forty inputs for three outputs, as points ``[i, j, 2]``.

    A: twenty agree, and twenty scatter around zero. B: all scatter around the mean of
    the votes for A. C: all scatter around zero.
    """
    normal = np.random.default_rng(0).normal

    def scattered(number, deviation):
        points = normal(size=(number, 2))
        points -= points.mean(0)
        return deviation * points / points.std()

    agreeing = CENTRE + scattered(NUM_AGREEING, 0.08)
    others = scattered(NUM_INPUTS - NUM_AGREEING, 0.5)
    a = np.concatenate([agreeing, others])
    b = a.mean(0) + scattered(NUM_INPUTS, 0.5)
    return np.stack([a, b, scattered(NUM_INPUTS, 0.5)], axis=1)


def route(algorithm: Algorithm, points: np.ndarray) -> Routed:
    """Routes votes for points, by an algorithm with the first weights of a layer.

    All inputs are equally active. Their poses are drawn with length 1/3, and have
    matrices that turn them into the votes.
    """
    votes = (points @ TO_VOTE.T).astype(np.float32)
    i, j, d = votes.shape
    capsules = np.random.default_rng(1).normal(size=(i, d)).astype(np.float32)
    capsules /= 3 * np.linalg.norm(capsules, axis=-1, keepdims=True)
    weight = 9 * votes[..., None] * capsules[:, None, None]
    sizes = {"i": i, "j": j, "d": d, "c": d}
    parameters = {
        name: own.init(jax.random.key(3), tuple(sizes[axis] for axis in own.axes))
        for name, own in algorithm.declared_parameters.items()
    }
    active = np.ones(i, np.float32) if algorithm.takes_activation else None
    routed = algorithm.with_couplings().from_capsules(
        capsules, weight, active, parameters=parameters
    )
    return Routed(*(np.asarray(array) for array in routed))


def numbers(points: np.ndarray, routed: Routed) -> np.ndarray:
    """Returns the activations, and mean couplings of two kinds of votes.

    First of the votes for A that agree; then of the votes for B that lie farthest in
    the same direction.
    """
    farthest = np.argsort(points[:, 1] @ CENTRE)[-NUM_FARTHEST:]
    shares = routed.coupling[:NUM_AGREEING, 0], routed.coupling[farthest, 1]
    return np.array([*routed.activation, *(share.mean() for share in shares)])


def size(share):
    """Returns the area of a circle for a coupling."""
    return 4 + 56 * share


def legend() -> list[Line2D]:
    """Makes the legend's marks."""
    no_line = {"linestyle": "none", "mec": "#555555", "mew": 0.4}
    kinds = {
        "o": "vote of an input whose vote for A agrees",
        "D": "vote of another input",
    }
    shares = {"0": 0.0, "1/3": 1 / 3, "2/3": 2 / 3, "1": 1.0}
    return [
        *(
            Line2D([], [], marker=shape, color="#888888", label=kind, **no_line)
            for shape, kind in kinds.items()
        ),
        *(
            Line2D(
                *([], []),
                marker="o",
                color=COLOURS(share),
                markersize=math.sqrt(size(share)),
                label=f"coupling {name}",
                **no_line,
            )
            for name, share in shares.items()
        ),
        Line2D([], [], color=OF_POSES, marker="X", mec="white", ms=8, label="pose"),
    ]


def draw(points: np.ndarray, results: dict[str, Routed]) -> None:
    """Draws a row of three panels for each algorithm, two rows side by side."""
    shapes = {"o": slice(0, NUM_AGREEING), "D": slice(NUM_AGREEING, None)}
    num_rows = math.ceil((len(results) + 1) / 2)
    figure = Figure(figsize=(11, 2.25 * num_rows), layout="constrained")
    blocks = figure.subfigures(num_rows, 2, wspace=0.04, hspace=0.03).flat
    for word, routed in results.items():
        block = next(blocks)
        kind = ROUTINGS[word]().activation_kind
        title = {"fontsize": 11, "fontweight": "bold", "x": 0.01, "ha": "left"}
        block.suptitle(f"{word}: {kind} of A, B, C", **title)
        panels = block.subplots(1, len(OUTPUTS), sharex=True, sharey=True)
        for number, panel in enumerate(panels):
            for shape, inputs in shapes.items():
                share = routed.coupling[inputs, number]
                panel.scatter(
                    *points[inputs, number].T,
                    s=size(share) * (0.7 if shape == "D" else 1),
                    c=COLOURS(share),
                    marker=shape,
                    edgecolors="#555555",
                    linewidths=0.4,
                )
            pose = routed.pose[number] @ TO_VOTE
            panel.plot(*np.stack([0 * pose, pose]).T, color=OF_POSES, linewidth=2)
            panel.plot(*pose, "X", color=OF_POSES, markersize=8, mec="white")
            activation = f"{routed.activation[number]:.2f}"
            panel.set_title(f"{OUTPUTS[number]}   {activation}", fontsize=10)
            panel.axhline(0, color="#DDDDDD", linewidth=0.8, zorder=0)
            panel.axvline(0, color="#DDDDDD", linewidth=0.8, zorder=0)
            panel.set(xlim=(-1.6, 1.8), ylim=(-1.4, 1.9), aspect="equal")
            panel.set(xticks=[], yticks=[])
    next(blocks).legend(
        handles=legend(),
        title="Above each panel: output, activation",
        loc="center",
        frameon=False,
        fontsize=10,
    )
    figure.savefig(pathlib.Path(__file__).with_suffix(".png"), dpi=110)


def main() -> None:
    points = scene()
    results = {word: route(kind(), points) for word, kind in ROUTINGS.items()}
    for word, routed in results.items():
        cells = (f"{number:.2f}" for number in numbers(points, routed))
        print(f"| `{word}` | {' | '.join(cells)} |")
    draw(points, results)


if __name__ == "__main__":
    main()
