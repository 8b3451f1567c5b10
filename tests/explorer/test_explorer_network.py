"""The page's network computes the numbers of JAX, and sees what ``predict`` sees."""

import json
import subprocess

import numpy as np
import pytest
from pages import (
    assert_equal_numbers,
    board,
    digits,
    drop,
    made,
    opened,
    png,
    pretrained,
    seen,
)
from PIL import Image

import capsjax
from capsjax import DynamicRouting, SelfAttention, UniformRouting
from capsjax.analysis.verdicts import judge, verdicts
from capsjax.data.picture import UnclearGroundError
from capsjax.explorer.page import make_page
from capsjax.storage.prediction import Prediction

WITHOUT_WASM = "delete window.WebAssembly"


@pytest.mark.parametrize("before", ["", WITHOUT_WASM], ids=["wasm", "without wasm"])
def test_twenty_digits_have_the_numbers_of_jax(tab, tmp_path, before):
    run, page = pretrained()
    opened(tab, page, tmp_path / "page.html", before=before)
    assert tab.js("net.convolve !== null") == (before == "")
    assert_equal_numbers(tab, run, digits())


@pytest.mark.parametrize(
    "fields",
    [
        {"routing": UniformRouting(bias=0.1)},
        {"routing": SelfAttention(bias=0.3, scale=0.5)},
        {"routing": SelfAttention(bias=None), "image_shape": (20, 18, 3)},
        {
            "routing": DynamicRouting(bias=0.2, none_of_the_above=True),
            "primary_relu": True,
            "primary_scale": 3.0,
            "conv_features": 6,  # No multiple of 8: the loops in JavaScript.
            "decoder_features": (),
        },
    ],
    ids=["uniform", "self_attention", "colour", "every option"],
)
def test_other_networks_have_the_numbers_of_jax(tab, tmp_path, fields):
    run = made(**fields)
    page = make_page(run)
    assert page.note.startswith("no test images: ")
    opened(tab, page, tmp_path / "page.html")
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (4, *run.image_shape), np.uint8)
    assert_equal_numbers(tab, run, image)
    # The names do no harm, and stand there as they are.
    size = image[0].size
    tab.js(f"change({{picture: [new Uint8Array({size}).fill(99)], chosen: 0}})")
    tab.frame()
    assert tab.text(".class .name") == "</script><b>"
    assert "</script><b>" in tab.text("#senders th:last-child")
    assert tab.js("document.querySelectorAll('b').length") == 0
    assert not tab.errors()


def test_drawings_are_seen_as_predict_sees_them(tab, tmp_path):
    run, page = pretrained()
    opened(tab, page, tmp_path / "page.html")
    rng = np.random.default_rng(0)
    for _ in range(20):
        length = rng.integers(1, 8, rng.integers(1, 4))
        strokes = [rng.integers(0, 281, (n, 2)).tolist() for n in length]
        tab.js(f"change({{strokes: {strokes}, test: null}})")
        expected = run.preparation.apply(Image.fromarray(board(tab)))
        (image,) = seen(tab)
        np.testing.assert_array_equal(image, expected.ravel())


def pictures():
    """Light and dark grounds, an unclear one, transparency, and a digit as it is."""
    rng = np.random.default_rng(1)
    yield Image.fromarray(digits()[3, ..., 0])
    for ground, ink in ((255, 20), (30, 220), (128, 255)):
        paper = np.full((150, 211, 3), ground, np.uint8)
        paper[40:110, 80:100] = ink
        paper[40:60, 80:150, 1] = ink
        yield Image.fromarray(paper)
    stamp = np.zeros((90, 70, 4), np.uint8)
    stamp[20:70, 30:40] = (0, 0, 0, 255)
    yield Image.fromarray(stamp)
    yield Image.fromarray(rng.integers(0, 256, (57, 43, 3), np.uint8))


def test_dropped_pictures_are_seen_as_predict_sees_them(tab, tmp_path):
    run, page = pretrained()
    opened(tab, page, tmp_path / "page.html")
    for n, picture in enumerate(pictures()):
        path = tmp_path / f"{n}.png"
        path.write_bytes(png(picture))
        drop(tab, path.read_bytes())
        try:
            expected = [run.preparation.apply(path)]
        except UnclearGroundError:
            ways = (True, False)
            expected = [run.preparation.apply(path, invert=way) for way in ways]
        for image, one in zip(seen(tab), expected, strict=True):
            np.testing.assert_array_equal(image, one.ravel())
        answer = judge(run, str(path), invert=None)
        assert tab.text("#verdict") == answer["verdict"]
        error = tab.js("state.seen.error")
        assert error == pytest.approx(answer["drawing_error"], abs=1e-3)
    drop(tab, b"no picture")
    assert "can't read a.png" in tab.text("#because")


@pytest.mark.parametrize("shape", [(20, 18, 3), (31, 40, 1)])
def test_other_pictures_are_scaled_as_predict_scales_them(tab, tmp_path, shape):
    run = made(image_shape=shape, routing=UniformRouting())
    opened(tab, make_page(run), tmp_path / "page.html")
    rng = np.random.default_rng(2)
    for size in ((64, 64), (17, 90), (301, 20), shape[:2]):
        picture = Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8))
        drop(tab, png(picture))
        path = tmp_path / "picture.png"
        path.write_bytes(png(picture))
        (image,) = seen(tab)
        np.testing.assert_array_equal(image, run.preparation.apply(path).ravel())


def test_the_verdict_is_in_the_words_of_predict(tab, tmp_path, monkeypatch):
    run, page = pretrained()
    opened(tab, page, tmp_path / "page.html")
    rng = np.random.default_rng(3)
    for num_shown in (1, 2, None):
        monkeypatch.setattr(run, "num_shown", num_shown)
        tab.js(f"net.num_shown = {json.dumps(num_shown)}")
        activation = rng.choice([0.1, 0.3, 0.5, 0.7, 0.9], (30, 10)).astype(np.float32)
        answers = verdicts(run, Prediction(activation.argmax(-1), activation, None))
        for row, answer in zip(activation.tolist(), answers, strict=True):
            assert tab.js(f"verdict(Float32Array.of(...{row}))") == answer["verdict"]


def test_a_long_capsule_that_draws_something_else_is_no_digit(tab, tmp_path):
    run, page = pretrained()
    opened(tab, page, tmp_path / "page.html")
    assert tab.js("net.drawing_limit") == run.drawing_limit
    # Two crossed lines, and a seven and a four that both capsules draw.
    for strokes, verdict in (
        ("[[[70, 60], [210, 220]], [[210, 70], [60, 210]]]", "no digit"),
        ("[...SEVEN, ...FOUR]", "7, or two digits? (7 and 4)"),
    ):
        tab.js(f"change({{ strokes: {strokes}, test: null, picture: null }})")
        tab.frame()
        path = tmp_path / "board.png"
        path.write_bytes(png(Image.fromarray(board(tab))))
        answer = judge(run, str(path), invert=None)
        assert max(answer["lengths"].values()) > 0.5
        assert tab.text("#verdict") == answer["verdict"] == verdict
        error = tab.js("state.seen.error")
        assert error == pytest.approx(answer["drawing_error"], abs=1e-3)
        reason = tab.text("#because")
        assert ("drawing is something else" in reason) == (verdict == "no digit")
        present = tab.js("document.querySelectorAll('.bar.present').length")
        assert present == answer["num_present"]
        # The picture is no other for another number of rounds.
        tab.js("change({ rounds: 8 })")
        tab.frame()
        assert tab.js("state.seen.error") == pytest.approx(error, abs=1e-6)
        tab.js("change({ rounds: 3 })")
    tab.js("net.drawing_limit = null")
    tab.js("change({ strokes: [[[70, 60], [210, 220]], [[210, 70], [60, 210]]] })")
    tab.frame()
    assert tab.text("#verdict") != "no digit"


def test_convolve_wasm_is_made_of_its_source(wat2wasm, tmp_path):
    folder = capsjax.__path__[0] + "/explorer"
    out = tmp_path / "convolve.wasm"
    subprocess.run([wat2wasm, f"{folder}/convolve.wat", "-o", out], check=True)
    with open(f"{folder}/convolve.wasm", "rb") as file:
        assert out.read_bytes() == file.read()
