"""The page in a browser, as a person uses it."""

import base64
import zlib

import jax.numpy as jnp
import numpy as np
import pytest
from pages import (
    board,
    digits,
    drop,
    made,
    opened,
    png,
    pretrained,
)
from PIL import Image
from places import ROOT

from capsjax import EMRouting, UniformRouting, explore
from capsjax.analysis.verdicts import verdicts
from capsjax.data import load
from capsjax.explorer import page as building
from capsjax.explorer.page import ExplorerError, make_page
from capsjax.models import BaselineCNN
from capsjax.storage.pretrained import load_pretrained

SEVEN = [(75, 55), (130, 55), (190, 55), (170, 90), (150, 130), (135, 180), (120, 235)]
RING = [
    (round(140 + 62 * np.sin(a)), round(140 - 85 * np.cos(a)))
    for a in np.linspace(0, 2 * np.pi, 24)
]


@pytest.fixture
def page(tab, tmp_path):
    """The page of the network that comes with capsjax."""
    return opened(tab, pretrained()[1], tmp_path / "page.html")


def draw(tab, points):
    left, top, *_ = tab.box("#pad")
    tab.drag([(left + x, top + y) for x, y in points])


def lengths(tab):
    return np.array(tab.js("[...current().activation]"))


def test_digits_drawn_by_the_mouse_are_read(page):
    for points, digit in ((SEVEN, "7"), (RING, "0")):
        draw(page, points)
        assert page.text("#verdict") == digit
        run = pretrained()[0]
        image = run.preparation.apply(Image.fromarray(board(page)))
        (answer,) = verdicts(run, run.predict(image))
        assert answer["verdict"] == digit
        np.testing.assert_allclose(
            lengths(page), run.predict(image).activation[0], atol=2e-4
        )
        page.click("#clear")
        assert page.text("#verdict") == "Draw a digit."
    assert len(page.requests()) == 1
    assert not page.errors()


def test_the_page_is_small():
    assert len(pretrained()[1].html.encode()) < 3e6


def test_test_digits_are_chosen_by_the_keyboard(page):
    page.js("document.querySelector('#samples button').focus()")
    page.press("ArrowDown")
    assert page.js("state.test") == 10
    page.press("ArrowRight")
    assert page.js("state.test") == 11
    assert page.text("#verdict") == str(page.js("net.samples.labels[11]"))


def test_a_stroke_can_be_undone_and_drawn_over(page):
    draw(page, SEVEN)
    seven = lengths(page)
    draw(page, RING)
    assert len(page.js("state.strokes")) == 2
    assert abs(lengths(page) - seven).max() > 0.1
    page.click("#undo")
    np.testing.assert_array_equal(lengths(page), seven)


def test_a_slider_draws_what_the_run_draws(page):
    run = pretrained()[0]
    page.click(".class[data-label='4']")
    left, top, width, _ = page.box(".slider:nth-child(6) input")
    x, y = left + 8 + (page.js("current().own[5]") + 1) / 2 * (width - 16), top + 12
    page.drag([(x, y), (left + 0.8 * width, y), (left + 0.9 * width, y)])
    moved = page.js("+document.querySelectorAll('.slider input')[5].value")
    assert moved > 0.7
    pose = np.zeros((1, 10, 16), np.float32)
    pose[0, 4] = page.js("[...current().own]")
    pose[0, 4, 5] = moved
    expected = run.draw(pose, jnp.array([4]))[0].ravel()
    np.testing.assert_allclose(page.js("[...explorer.drawing]"), expected, atol=2e-4)
    assert "long" in page.text("#pose-length")
    page.click("#reset")
    assert page.js("Object.keys(state.moved)") == []


def test_rounds_change_the_lengths(page):
    three = lengths(page).max()
    page.js("document.querySelector('#num-rounds').focus()")
    page.click("#num-rounds")
    page.js("change({rounds: 1})")
    page.frame()
    assert lengths(page).max() < three
    assert page.text("#rounds-label") == "1 round (training had 3)"
    page.js("change({rounds: 8})")
    page.frame()
    assert lengths(page).max() > three
    assert page.text("#senders td:last-child").count("→") == 7


def test_a_place_shows_its_window_and_its_votes_by_mouse_and_keyboard(page):
    left, top, width, _ = page.box("#ground")
    page.hover(left + width / 2, top + width / 2)
    assert page.text("#senders-title") == "Votes for 7 from row 4, column 4"
    page.hover(left - 5, top - 5)
    assert page.text("#senders-title") == "The strongest votes for 7"
    page.js("document.querySelector('#flow').focus()")
    page.press("ArrowUp")
    page.press("ArrowUp")
    assert page.text("#senders-title") == "Votes for 7 from row 3, column 4"
    page.press("Escape")
    assert page.js("state.place") is None


def test_a_link_shows_what_was_seen(page, tab, tmp_path):
    draw(page, SEVEN)
    page.js("change({chosen: 2, rounds: 5})")
    page.frame()
    page.js("state.moved = {3: 0.5}; renderPose(); choosePlace([1, 2], true); tour(1)")
    page.js("remember.now()")
    state = "[state.strokes, state.chosen, state.rounds, state.moved, state.place]"
    before, seen = page.js(state), lengths(page)
    fragment = page.js("location.hash")
    opened(tab, pretrained()[1], tmp_path / "page.html", fragment=fragment)
    assert tab.js(state) == before
    np.testing.assert_array_equal(lengths(tab), seen)
    assert tab.text("#tour-count") == "Step 2 of 5"


def test_a_link_shows_a_picture_that_was_opened(page, tab, tmp_path):
    drop(page, png(Image.fromarray(digits()[5, ..., 0])))
    page.js("remember.now()")
    fragment, seen = page.js("location.hash"), lengths(page)
    opened(tab, pretrained()[1], tmp_path / "page.html", fragment=fragment)
    np.testing.assert_array_equal(lengths(tab), seen)


@pytest.mark.parametrize(
    "fragment",
    [
        "#draw=zz&class=99&rounds=0&pose=77:9,x&place=-1,4&step=9",
        "#test=1e9",
        "#%",
        "#",
    ],
)
def test_a_damaged_link_does_no_harm(tab, tmp_path, fragment):
    opened(tab, pretrained()[1], tmp_path / "page.html", fragment=fragment)
    assert tab.js("state.rounds") == 3
    assert not tab.errors()


def test_the_walk_through_does_what_it_says(page):
    page.click("#begin-tour")
    verdict = []
    for step in range(5):
        assert page.text("#tour-count") == f"Step {step + 1} of 5"
        page.click("#tour-do")
        page.frame()
        verdict.append(page.text("#verdict"))
        if step == 1:
            assert page.js("Object.keys(state.moved).length") == 1
        page.click("#tour-next")
    assert verdict[:2] == ["7", "7"]
    assert page.js("document.querySelector('#tour').hidden")
    assert not page.errors()


def test_everything_that_can_be_used_has_a_name(page):
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = ("button", "slider", "image", "application", "group", "region")
    for node in tree:
        if not node["ignored"] and node["role"]["value"] in roles:
            assert node["name"]["value"].strip(), node


def test_a_phone_needs_no_sideways_scrolling(tab, tmp_path):
    path = tmp_path / "page.html"
    opened(tab, pretrained()[1], path, size=(390, 844), fragment="#step=1")
    assert tab.js("document.documentElement.scrollWidth") == 390
    draw(tab, SEVEN)
    assert tab.text("#echo") == "7"


@pytest.mark.parametrize("size", [0.3, 0.9, 0.999])
def test_a_page_that_was_cut_off_says_so(tab, tmp_path, size):
    path = tmp_path / "page.html"
    whole = pretrained()[1].html
    path.write_text(whole[: int(size * len(whole))])
    tab.open(path)
    assert "This page is damaged" in tab.text("#verdict")


def test_a_page_with_damaged_weights_says_so(tab, tmp_path):
    path = tmp_path / "page.html"
    whole = pretrained()[1].html
    at = whole.index('id="weights"') + 100_000
    path.write_text(whole[:at] + ("A" if whole[at] != "A" else "B") + whole[at + 1 :])
    tab.open(path)
    tab.wait("document.body.dataset.state === 'failed'")
    assert "it is damaged" in tab.text("#verdict")


def test_a_notebook_shows_the_page_in_a_frame(tab, tmp_path):
    path = tmp_path / "notebook.html"
    page = load_pretrained("mnist").explore()
    path.write_text(f"<!doctype html><body>{page._repr_html_()}")
    tab.open(path)
    inside = "document.querySelector('iframe').contentDocument"
    tab.wait(f"{inside}?.body?.dataset.state")
    assert tab.js(f"{inside}.querySelector('#verdict').textContent") == "7"
    assert not tab.errors()


def test_the_command_writes_the_page_and_opens_it(tmp_path, monkeypatch, capsys):
    opened_pages = []
    monkeypatch.setattr("webbrowser.open", opened_pages.append)
    path = tmp_path / "own.html"
    assert explore.main(["--output", str(path)]) == 0
    assert opened_pages == [path.as_uri()]
    assert path.read_text() == pretrained()[1].html
    assert explore.main(["--output", str(path), "--no-open"]) == 0  # It is ours.
    assert len(opened_pages) == 1
    path.write_text("my notes")
    assert explore.main(["--output", str(path)]) == 1
    assert "exists and is no page of the explorer" in capsys.readouterr().err
    assert path.read_text() == "my notes"


def test_other_networks_are_refused_in_one_line(monkeypatch):
    run = made(routing=UniformRouting())
    known = run.model
    for model, words in (
        (known.clone(routing=EMRouting()), "dynamic or uniform or self_attention"),
        (known.clone(image_shape=(20, 20, 2)), "1 or 3 channels"),
        (BaselineCNN((28, 28, 1), 10), "holds a BaselineCNN"),
        (known.clone(share_weight=True), "has share_weight=True"),
        (known.clone(decoder_features=None), "decoder_features=None"),
    ):
        run.model = model
        with pytest.raises(ExplorerError, match=words):
            make_page(run)
    run.model = known
    monkeypatch.setattr(building, "_MOST_PARAMETERS", 100)
    with pytest.raises(ExplorerError, match="at most 100"):
        make_page(run)


def test_the_samples_are_test_images_with_their_credit(page):
    images = page.js("samples.map(one => [...one.image])")
    labels = page.js("net.samples.labels")
    test = load("mnist", "test")
    chosen = np.linspace(0, 9999, len(images)).astype(int)
    np.testing.assert_array_equal(images, test.image[chosen].reshape(len(images), -1))
    assert labels == test.label[chosen].tolist()
    assert "CC BY-SA 3.0" in page.text("#credit")


def parts(html):
    """A page without its weights, and the weights: their packing may differ."""
    begin = html.index('id="weights">') + len('id="weights">')
    end = html.index("</script>", begin)
    weights = zlib.decompress(base64.b64decode(html[begin:end]))
    return html[:begin] + html[end:], weights


def test_the_documentation_has_the_page_of_the_package():
    html = (ROOT / "docs" / "explorer.html").read_text()
    assert parts(html) == parts(pretrained()[1].html), "run docs/figures/explorer.py"
