"""Draws reconstructions and a tweaked pose of the network that comes with capsjax.

    python docs/figures/digits.py

Draws the first ten test digits of MNIST into reconstructions.png, and the fifth, a 4,
into tweak.png, as ``capsjax evaluate`` draws those of a run.
"""

import pathlib

from capsjax import load_pretrained
from capsjax.analysis import plots
from capsjax.analysis.inspection import tweaked
from capsjax.data import load
from capsjax.data.augment import scale_to_unit

FOLDER = pathlib.Path(__file__).resolve().parent
FOUR, LIMITS = 4, {"low": -0.5, "high": 0.5}


def main() -> None:
    run, digits = load_pretrained("mnist"), load("mnist", "test")
    image, label = digits.image[:10], digits.label[:10]
    predicted, _, pose = run.predict(image)
    assert pose is not None
    drawn = run.draw(pose, predicted)
    names = ([str(one) for one in row] for row in (label, predicted))
    figure = plots.reconstructions(scale_to_unit(image), drawn, *names)
    plots.save(figure, FOLDER / "reconstructions.png")
    rows = tweaked(run, pose[FOUR, predicted[FOUR]], predicted[FOUR], **LIMITS)
    figure = plots.tweaks(rows, **LIMITS, title=f"{predicted[FOUR]}, tweaked")
    plots.save(figure, FOLDER / "tweak.png")


if __name__ == "__main__":
    main()
