"""Figures of unusual arrays; people judge how they look."""

import io
import os

import numpy as np
import pytest
from marks import variants
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image

from capsjax.analysis import plots
from capsjax.analysis.confusion import commonest_confusions

RANDOM = np.random.default_rng(0)


# A tweak's images have white lines before each one, and after the last.
GAP, END = ((2, 0), (2, 0), (0, 0)), ((0, 2), (0, 2), (0, 0))


def images(*shape):
    return RANDOM.random(shape).astype(np.float32)


def shown(figure):
    """Returns the arrays of all images in a figure, in order."""
    return [np.asarray(one.get_array()) for a in figure.axes for one in a.images]


@pytest.mark.parametrize(("channels", "number"), [(1, 1), (3, 6)])
def test_any_number_of_images_of_any_kind(channels, number, tmp_path):
    image, drawn = images(2, number, 20, 24, channels)
    names = ["a long name"] * number
    two = images(number, 2, 20, 24, channels)
    pairs = [("a long name", "b")] * number
    moved, share = images(4, number, 20, 24, channels), images(2, number, 3, 4)
    orange, blue = (np.array(to_rgb(colour)) for colour in plots.COLOURS[4:])
    bright = two.mean(-1)[..., None]
    overlapped = np.clip(bright[:, 0] * orange + bright[:, 1] * blue, 0, 1)
    rows = [
        np.hstack([np.pad(x, GAP, constant_values=1) for x in row]) for row in moved
    ]
    mosaic = np.pad(np.vstack(rows), END, constant_values=1)
    for name, figure, expected in [
        ("samples", plots.samples(image, names), image),
        (
            "reconstructions",
            plots.reconstructions(image, drawn, names, ["b", *names[1:]]),
            [*image, *drawn],
        ),
        ("overlaps", plots.overlaps(image, two, pairs), [*image, *overlapped]),
        (
            "mistakes",
            plots.mistakes(image, two, pairs, images(number, 2), names),
            [x for one, both in zip(image, two, strict=True) for x in (one, *both)],
        ),
        ("tweaks", plots.tweaks(moved, low=-1.0, high=1.0, title="tweak"), [mosaic]),
        (
            "coupling maps",
            plots.coupling_maps(image, share, names, extent=(5.0, 15.0, 15.0, 5.0)),
            [x for s in share for both in zip(image, s, strict=True) for x in both],
        ),
    ]:
        plots.save(figure, tmp_path / "figure.png")
        actual = shown(figure)
        assert len(actual) == len(expected), name
        for a, e in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a, np.squeeze(e), rtol=1e-6, err_msg=name)


def test_nothing_wrong_is_a_figure_too(tmp_path):
    nothing = plots.mistakes(
        images(0, 9, 9, 1), images(0, 2, 9, 9, 1), [], images(0, 2), []
    )
    plots.save(nothing, tmp_path / "mistakes.png")
    assert not shown(nothing)
    titles = [axes.get_title() for axes in nothing.axes]
    assert titles == ["", "no image was misclassified", ""]
    right = plots.confusion(np.diag([3] * 12), [f"class {k}" for k in range(12)])
    plots.save(right, tmp_path / "confusion.png")
    (wrong,) = shown(right)
    np.testing.assert_array_equal(wrong, np.zeros((12, 12)))
    places = [(*text.get_position(), text.get_text()) for text in right.axes[0].texts]
    assert places == [(k, k, "3") for k in range(12)]


def test_labels_that_were_missed_or_named_in_vain_stand_first(tmp_path):
    label = [[("ant", 0.9), ("bee", 0.25)], []]
    verdict = [[("ant", 0.9), ("a cat", 0.6)], [(f"class {k}", 0.5) for k in range(99)]]
    image = images(2, 9, 9, 1)
    figure = plots.label_mistakes(image, label, verdict)
    plots.save(figure, tmp_path / "mistakes.png")
    np.testing.assert_allclose(shown(figure), image[..., 0])
    texts = [
        text.get_text().replace("\xa0", " ") for a in figure.axes for text in a.texts
    ]
    assert texts[:3] == [
        "label: bee 0.25 (missed), ant 0.90",
        "verdict: a cat 0.60 (wrong), ant 0.90",
        "label: none",
    ]
    assert len(texts[3].splitlines()) == 3
    assert texts[3].endswith("(wrong), ...")
    nothing = plots.label_mistakes(images(0, 9, 9, 1), [], [])
    titles = [axes.get_title() for axes in nothing.axes]
    assert titles == ["", "no image was misjudged"]


@pytest.mark.parametrize(("num_classes", "rows"), [(3, 3), (300, 100)])
def test_the_worst_classes_have_a_row_of_scores(num_classes, rows, tmp_path):
    precision = np.linspace(1, 0.5, num_classes)
    precision[-2] = np.nan  # No image shows it.
    scores = {"average precision": precision, "recall": precision / 2}
    names = [f"{k}. " + "a long name" * 20 for k in range(num_classes)]
    figure = plots.label_scores(scores, np.arange(num_classes), names)
    plots.save(figure, tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as image:
        assert max(image.size) <= 3000
    (axes,) = figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(labels) == rows
    assert labels[0].startswith(f"{num_classes - 1}. ")
    assert labels[0].endswith(f"({num_classes - 1})")
    first, second = (line.get_xdata() for line in axes.lines)
    assert first[0] == 50
    np.testing.assert_allclose(second, first / 2)
    assert np.isnan(first).sum() == (rows == num_classes)
    assert np.all(np.diff(first[~np.isnan(first)]) > 0)
    title = figure.get_suptitle()
    assert f"{num_classes} classes, worst average precision first" in title
    assert title.startswith("100 of 300") == (rows < num_classes)


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


def test_couplings_and_their_measures_are_drawn():
    by_round = [{"t_score": k / 4, "bonding": 0.5, "dynamics": 0} for k in range(3)]
    figure = plots.measures({"caps": np.array([6, 2])}, {"caps": (2, 4)}, by_round)
    left, right = figure.axes
    np.testing.assert_allclose(left.patches[0].get_data().values, [0.75, 0.25])
    assert left.lines[0].get_xdata()[0] == 0.25
    lines = {line.get_label(): line for line in right.lines}
    np.testing.assert_allclose(lines["T-score"].get_ydata(), [0, 0.25, 0.5])
    assert (
        len(plots.measures({"caps": np.ones(2, int)}, {"caps": (2, 4)}, []).axes) == 1
    )


def test_reliability_is_drawn_where_there_are_images():
    curve = np.array([0.2, 0.0, 0.9]), np.array([0.1, 0.0, 1.0]), np.array([3, 0, 5])
    left, right = plots.reliability({"as it is": curve}).axes
    np.testing.assert_allclose(left.lines[1].get_xydata(), [[0.2, 0.1], [0.9, 1]])
    np.testing.assert_allclose(right.patches[0].get_data().values, [3, 0, 5])


def test_validation_curves_name_each_recipe_once():
    curve = [(1, 0.9), (2, 0.95)]
    figure = plots.validation_curves({"a": [curve, curve], "b": [curve]})
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [10, 5])


def test_rounds_are_drawn_with_the_number_in_training():
    changed = {1: 0.25, 3: 0.0}
    changes = np.ones(3), np.array([0.1, 0.01])
    figure = plots.rounds({1: 0.5, 3: 0.9}, changed, *changes, usual=3)
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


NAMES = ["$x", "$y$", r"\frac{", "_^", os.fsdecode(b"caf\xe9"), "a\x1b[31m\nb"]


def drawn_texts(figure):
    """Returns the texts of a figure, which are drawn literally."""
    texts = figure.findobj(Text)
    assert not any(text.get_parse_math() for text in texts if "x" in text.get_text())
    return {text.get_text() for text in texts}


@pytest.mark.parametrize(
    "draw",
    [
        lambda image, two, pairs: plots.samples(image, NAMES),
        lambda image, two, pairs: plots.reconstructions(image, image, NAMES, NAMES),
        lambda image, two, pairs: plots.overlaps(image, two, pairs),
        lambda image, two, pairs: plots.mistakes(
            image, two, pairs, two[:, :, 0, 0, 0], NAMES, title="$x"
        ),
        lambda image, two, pairs: plots.label_mistakes(
            image, [[(name, 0.25)] for name in NAMES], [[("$y$", 0.5)]] * 6, title="$x"
        ),
        lambda image, two, pairs: plots.label_scores(
            {"recall": two[:, 0, 0, 0, 0]}, np.arange(6), NAMES
        ),
        lambda image, two, pairs: plots.coupling_maps(
            image, two[None, :, 0, :, :, 0], NAMES, extent=(0.0, 7.0, 7.0, 0.0)
        ),
        lambda image, two, pairs: plots.confusion(np.ones((6, 6), int), NAMES),
        lambda image, two, pairs: plots.confusion(np.ones((36, 36), int), 6 * NAMES),
        lambda image, two, pairs: plots.validation_curves(
            {name: [[(1, 0.5), (2, 0.7)]] for name in NAMES}
        ),
    ],
)
def test_names_are_drawn_literally(draw, tmp_path):
    figure = draw(images(6, 8, 8, 1), images(6, 2, 8, 8, 1), [("$x", "$y$")] * 6)
    plots.save(figure, tmp_path / "figure.png")  # Raises for a broken formula.
    drawn = drawn_texts(figure)
    for text in ("$x", "$y$"):
        assert any(text in one for one in drawn)
    assert not any("\x1b" in one or "\udce9" in one for one in drawn)


def test_characters_that_can_t_be_drawn_are_escaped():
    assert drawn_texts(plots.samples(images(6, 8, 8, 1), NAMES)) >= {
        *("$x", "$y$", r"\frac{", "_^", r"caf\xe9", r"a\x1b[31m\nb")
    }


def test_a_tweak_has_its_class_as_title(tmp_path):
    figure = plots.tweaks(images(2, 3, 8, 8, 1), low=-1.0, high=1.0, title="$x")
    plots.save(figure, tmp_path / "figure.png")
    assert "$x" in drawn_texts(figure)


def test_characters_without_a_glyph_are_one_warning(tmp_path, capsys):
    figure = plots.samples(images(2, 8, 8, 1), ["\U0001f9ff", "\U0001f9fe"])
    plots.save(figure, tmp_path / "figure.png")
    (line,) = capsys.readouterr().err.splitlines()
    assert "figure.png characters that no font here has are drawn as boxes" in line


@pytest.mark.parametrize("num_classes", [3, 30, 31, *variants(300), 1000])
def test_a_confusion_figure_is_bounded_and_loses_no_error(num_classes, tmp_path):
    count = np.diag(np.full(num_classes, 100))
    count[2, 0], count[1, 2] = 7, 3
    names = [f"{k}. " + "a long name" * 20 for k in range(num_classes)]
    figure = plots.confusion(count, names)
    plots.save(figure, tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as image:
        assert max(image.size) <= 2000
    cells = np.ma.filled(figure.axes[0].images[0].get_array(), 0)
    assert max(cells.shape) <= 300
    assert cells.sum() == 10  # The errors only.
    if num_classes > 30:
        (text,) = (text.get_text() for text in figure.texts)
        pairs = [line.split("  ")[-1] for line in text.splitlines()[2:]]
        assert [line[:3] for line in pairs] == ["2. ", "1. "]
        assert text.splitlines()[2].split()[0] == "7"


@pytest.mark.slow
def test_a_figure_of_any_size_has_a_limited_canvas(tmp_path):
    figure = plots.tweaks(images(512, 3, 4, 4, 1), low=-1.0, high=1.0, title="long")
    plots.save(figure, tmp_path / "tweaks.png")
    with Image.open(tmp_path / "tweaks.png") as image:
        assert max(image.size) <= 6000


def test_a_legend_of_many_recipes_is_cut_short():
    curves = {f"recipe {k}": [[(1, 0.5), (2, 0.7)]] for k in range(50)}
    (axes,) = plots.validation_curves(curves).axes
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(names) == 21
    assert names[-1] == "and 30 more"


def test_commonest_confusions():
    count = np.array([[9, 0, 2], [4, 9, 0], [2, 1, 9]])
    assert commonest_confusions(count, 3) == [(1, 0, 4), (0, 2, 2), (2, 0, 2)]
    assert commonest_confusions(count, 9)[3:] == [(2, 1, 1)]
    assert commonest_confusions(np.diag([3, 4]), 9) == []
