"""The page's network computes the numbers of JAX, and sees what ``predict`` sees."""

import base64
import functools
import io
import json
import shutil
import subprocess

import jax
import numpy as np
import pytest
from PIL import Image

import capsjax
from capsjax import CapsNet, DynamicRouting, SelfAttention, UniformRouting, save_run
from capsjax.analysis.verdicts import judge, verdicts
from capsjax.data import load
from capsjax.data.augment import scale_to_unit
from capsjax.data.picture import UnclearGroundError
from capsjax.explorer.page import make_page
from capsjax.models.network import init_variables
from capsjax.storage.run import Prediction, load_run

ROUNDS = 8
WITHOUT_WASM = "delete window.WebAssembly"


def opened(tab, page, path, **options):
    path.write_text(page.html)
    tab.open(path, **options)
    tab.wait("document.body.dataset.state")
    assert tab.js("document.body.dataset.state") == "ready", tab.text("#verdict")
    return tab


def halved(params):
    """Weights that 16 bits hold, like those that come with capsjax."""
    return jax.tree.map(lambda x: x.astype("float16").astype("float32"), params)


def made(path, **fields):
    """A run with its first weights."""
    model = CapsNet(
        **{
            "image_shape": (20, 20, 1),
            "num_classes": 3,
            "conv_features": 8,
            "primary_types": 2,
            "primary_stride": 1,
            "primary_dim": 4,
            "class_dim": 6,
            "decoder_features": (16,),
            "weight_init": "normal(0.5)",
            "bias_init": "normal(0.1)",
            **fields,
        }
    )
    params = halved(init_variables(model, jax.random.key(0)))
    names = ["</script><b>", '"quoted"', "größer\u2028"][: model.num_classes]
    return save_run(path, model, params, class_names=names)


def in_jax(run, image, rounds):
    """What the page shows of images, by JAX: results of each round, and drawings."""
    model = run.model

    @jax.jit
    def compute(params, image):
        primary = model.apply(params, image, method=model.primary)
        results = []
        for number in rounds:
            routing = model.routing.with_rounds(number) if number else model.routing
            one = model.clone(routing=routing.with_couplings())
            results.append(one.apply(params, primary, method=one.route))
        return results

    results = jax.tree.map(np.asarray, compute(run.params, scale_to_unit(image)))
    label = results[-1].activation.argmax(-1)
    return results, label, run.draw(results[-1].pose, label)


def in_page(tab, image, rounds):
    packed = base64.b64encode(image.tobytes()).decode()
    return json.loads(
        tab.js(
            f"""(() => {{
            const bytes = fromBase64("{packed}"), size = bytes.length / {len(image)};
            const results = [];
            for (let n = 0; n < {len(image)}; n++) {{
              const image = seenOf(net, bytes.subarray(n * size, (n + 1) * size));
              const {{ rounds }} = encode(net, image, {len(rounds)});
              const {{ activation, pose }} = rounds.at(-1), d = net.class_dim;
              const label = activation.indexOf(largest(activation));
              const own = pose.slice(label * d, (label + 1) * d);
              const lists = rounds.map(one => ({{
                pose: [...one.pose], activation: [...one.activation],
                coupling: [...one.coupling] }}));
              const drawing = [...decode(net, own, label)];
              results.push({{ rounds: lists, label, drawing }});
            }}
            return JSON.stringify(results);
            }})()"""
        )
    )


def assert_equal_numbers(tab, run, image):
    rounds = range(1, ROUNDS + 1) if run.model.routing.num_rounds else (0,)
    results, label, drawing = in_jax(run, image, rounds)
    for n, page in enumerate(in_page(tab, image, rounds)):
        assert page["label"] == label[n]
        np.testing.assert_allclose(page["drawing"], drawing[n].ravel(), atol=2e-5)
        for mine, routed in zip(page["rounds"], results, strict=True):
            for name, values in mine.items():
                expected = getattr(routed, name)[n].ravel()
                np.testing.assert_allclose(values, expected, atol=2e-5, err_msg=name)


@functools.cache
def digits():
    return load("mnist", "test").image[:20]


@pytest.mark.parametrize("before", ["", WITHOUT_WASM], ids=["wasm", "without wasm"])
def test_twenty_digits_have_the_numbers_of_jax(tab, tiny_run, tmp_path, before):
    run = load_run(tiny_run)
    run.params = halved(run.params)
    opened(tab, make_page(run), tmp_path / "page.html", before=before)
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
    run = made(tmp_path / "run", **fields)
    page = make_page(run)
    assert page.note.startswith("no test images: ")
    opened(tab, page, tmp_path / "page.html")
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (4, *run.image_shape), np.uint8)
    assert_equal_numbers(tab, run, image)
    # The names did no harm, and stand there as they are.
    assert tab.js("document.querySelectorAll('.class b').length") == 0
    tab.js(
        "change({picture: [new Uint8Array(net.image_shape.reduce((a, b) => a * b))]})"
    )
    tab.frame()
    assert tab.text(".class .name") == "</script><b>"
    assert not tab.errors()


def board(tab):
    packed = tab.js(
        "btoa(String.fromCharCode(...boardPicture().values.slice(0, 40000)))"
    )
    rest = tab.js("btoa(String.fromCharCode(...boardPicture().values.slice(40000)))")
    values = base64.b64decode(packed) + base64.b64decode(rest)
    return np.frombuffer(values, np.uint8).reshape(280, 280)


def seen(tab):
    return [np.array(one, np.uint8) for one in tab.js("prepared().map(x => [...x])")]


def test_drawings_are_seen_as_predict_sees_them(tab, tiny_run, tmp_path):
    run = load_run(tiny_run)
    opened(tab, make_page(run), tmp_path / "page.html")
    rng = np.random.default_rng(0)
    for _ in range(20):
        length = rng.integers(1, 8, rng.integers(1, 4))
        strokes = [rng.integers(0, 281, (n, 2)).tolist() for n in length]
        tab.js(f"change({{strokes: {strokes}, test: null}})")
        expected = run.preparation.apply(Image.fromarray(board(tab)))
        (image,) = seen(tab)
        np.testing.assert_array_equal(image, expected.ravel())


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def drop(tab, data):
    packed = base64.b64encode(data).decode()
    tab.js(f"openPicture(new File([fromBase64('{packed}')], 'a.png'))")
    tab.frame()


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


def test_dropped_pictures_are_seen_as_predict_sees_them(tab, tiny_run, tmp_path):
    run = load_run(tiny_run)
    opened(tab, make_page(run), tmp_path / "page.html")
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
    drop(tab, b"no picture")
    assert "can't read a.png" in tab.text("#because")


@pytest.mark.parametrize("shape", [(20, 18, 3), (31, 40, 1)])
def test_other_pictures_are_scaled_as_predict_scales_them(tab, tmp_path, shape):
    run = made(tmp_path / "run", image_shape=shape, routing=UniformRouting())
    opened(tab, make_page(run), tmp_path / "page.html")
    rng = np.random.default_rng(2)
    for size in ((64, 64), (17, 90), (301, 20), shape[:2]):
        picture = Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8))
        drop(tab, png(picture))
        path = tmp_path / "picture.png"
        path.write_bytes(png(picture))
        (image,) = seen(tab)
        np.testing.assert_array_equal(image, run.preparation.apply(path).ravel())


def test_the_verdict_is_in_the_words_of_predict(tab, tiny_run, tmp_path):
    run = load_run(tiny_run)
    opened(tab, make_page(run), tmp_path / "page.html")
    rng = np.random.default_rng(3)
    for num_shown in (1, 2, None):
        run.num_shown = num_shown
        tab.js(f"net.num_shown = {json.dumps(num_shown)}")
        activation = rng.choice([0.1, 0.3, 0.5, 0.7, 0.9], (30, 10)).astype(np.float32)
        answers = verdicts(run, Prediction(activation.argmax(-1), activation, None))
        for row, answer in zip(activation.tolist(), answers, strict=True):
            assert tab.js(f"verdict(Float32Array.of(...{row}))") == answer["verdict"]


def test_convolve_wasm_is_made_of_its_source(tmp_path):
    if shutil.which("wat2wasm") is None:
        pytest.skip("no wat2wasm here: it comes with wabt")
    folder = capsjax.__path__[0] + "/explorer"
    out = tmp_path / "convolve.wasm"
    subprocess.run(["wat2wasm", f"{folder}/convolve.wat", "-o", out], check=True)
    with open(f"{folder}/convolve.wasm", "rb") as file:
        assert out.read_bytes() == file.read()
