"""Figures of unusual arrays: what they say is looked at by people."""

import io

import numpy as np
import pytest
from PIL import Image

from capsjax import plots

RANDOM = np.random.default_rng(0)


def images(*shape):
    return RANDOM.random(shape).astype(np.float32)


@pytest.mark.parametrize(("channels", "number"), [(1, 1), (3, 6)])
def test_any_number_of_images_of_any_kind(channels, number, tmp_path):
    image = images(number, 20, 24, channels)
    names = ["a long name"] * number
    two = images(number, 2, 20, 24, channels)
    pairs = [("a long name", "b")] * number
    for n, figure in enumerate(
        [
            plots.samples(image, names),
            plots.reconstructions(image, image, names, ["b", *names[1:]]),
            plots.overlaps(image, two, pairs),
            plots.mistakes(image, two, pairs, images(number, 2), names),
            plots.tweaks(
                images(4, number, 20, 24, channels), low=-1.0, high=1.0, title="tweak"
            ),
            plots.coupling_maps(
                image, images(2, number, 3, 4), names, extent=(5.0, 15.0, 15.0, 5.0)
            ),
        ]
    ):
        plots.save(figure, tmp_path / f"{n}.png")
        assert (tmp_path / f"{n}.png").stat().st_size > 1000


def test_nothing_wrong_is_a_figure_too(tmp_path):
    nothing = plots.mistakes(
        images(0, 9, 9, 1), images(0, 2, 9, 9, 1), [], images(0, 2), []
    )
    plots.save(nothing, tmp_path / "mistakes.png")
    plots.save(
        plots.confusion(np.diag([3] * 12), [f"class {k}" for k in range(12)]),
        tmp_path / "confusion.png",
    )


def test_curves_of_a_run_without_validation_or_errors():
    train = np.array([(0.5, 0.1, 1.0), (1.0, 0.1, 0.5)])
    figure = plots.training_curves(train, np.zeros((0, 3)))
    loss, wrong = figure.axes
    np.testing.assert_allclose(loss.lines[0].get_xdata(), [0.5, 1])
    np.testing.assert_allclose(wrong.lines[0].get_ydata(), [np.nan, 50])


def test_entropy_is_drawn_round_by_round():
    entropy = np.array([[3.0, 3.0], [1.0, 2.0]])
    figure = plots.coupling_entropy(entropy, num_classes=8)
    means = {line.get_label(): line for line in figure.axes[0].lines}["mean"]
    np.testing.assert_allclose(means.get_xydata(), [[1, 0], [2, 1.5]])


def test_validation_curves_name_each_recipe_once():
    curve = [(1, 0.9), (2, 0.95)]
    figure = plots.validation_curves({"a": [curve, curve], "b": [curve]})
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [10, 5])


def test_rounds_are_drawn_with_those_that_were_learnt():
    figure = plots.rounds({1: 0.5, 3: 0.9}, np.ones(3), np.array([0.1, 0.01]), usual=3)
    accuracy, change = figure.axes
    np.testing.assert_allclose(accuracy.lines[0].get_xydata(), [[1, 50], [3, 90]])
    np.testing.assert_allclose(change.lines[0].get_xydata(), [[1, 1], [2, 1], [3, 1]])
    np.testing.assert_allclose(change.lines[1].get_xydata(), [[1, 0.1], [2, 0.01]])
    assert {axes.lines[-1].get_xdata()[0] for axes in figure.axes} == {3}


def test_a_notebook_shows_a_figure():
    figure = plots.samples(np.zeros((2, 4, 4, 1)), ["a", "b"], columns=2)
    formatters = pytest.importorskip("IPython.core.formatters")
    shown, _ = formatters.DisplayFormatter().format(figure)
    size = Image.open(io.BytesIO(shown["image/png"])).size
    assert size == (2 * 96, 1.25 * 96)
