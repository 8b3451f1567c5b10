"""Pages of the explorer in a browser, and the same numbers by JAX."""

import base64
import functools
import io
import json
import pathlib
import types

import jax
import numpy as np

from capsjax import CapsNet
from capsjax import config as configs
from capsjax.data import load
from capsjax.data.augment import scale_to_unit
from capsjax.data.preparation import Preparation
from capsjax.explorer.page import make_page
from capsjax.models.network import init_variables
from capsjax.storage.pretrained import load_pretrained
from capsjax.storage.run import Run

ROUNDS = 8


@functools.cache
def pretrained():
    """The network that comes with capsjax, and its page."""
    run = load_pretrained("mnist")
    return run, make_page(run)


def opened(tab, page, path, **options):
    path.write_text(page.html)
    tab.open(path, **options)
    tab.wait("document.body.dataset.state")
    assert tab.js("document.body.dataset.state") == "ready", tab.text("#verdict")
    return tab


def halved(params):
    """Weights that 16 bits hold, like those that come with capsjax."""
    return jax.tree.map(lambda x: x.astype("float16").astype("float32"), params)


def made(**fields):
    """A network of random weights, as a run without a folder."""
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
            **fields,
        }
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(  # Of NumPy, which compiles nothing.
        lambda leaf: rng.normal(scale=0.2, size=leaf.shape).astype(np.float32),
        jax.eval_shape(lambda: init_variables(model, jax.random.key(0))),
    )
    names = ["</script><b>", '"quoted"', "größer\u2028"][: model.num_classes]
    run = object.__new__(Run)
    run.workdir = types.SimpleNamespace(path=pathlib.Path("run"), is_untrained=True)
    run.config = configs.Config(data=configs.Data("unknown"))
    run.class_names, run.image_shape = tuple(names), model.image_shape
    run.num_shown, run.in_memory, run.step, run.result = 1, True, 0, None
    run.preparation = Preparation("as_is", *model.image_shape)
    run.model, run.params, run._encoders = model, halved(params), {}
    return run


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


def board(tab):
    packed = tab.js(
        "btoa(String.fromCharCode(...boardPicture().values.slice(0, 40000)))"
    )
    rest = tab.js("btoa(String.fromCharCode(...boardPicture().values.slice(40000)))")
    values = base64.b64decode(packed) + base64.b64decode(rest)
    return np.frombuffer(values, np.uint8).reshape(280, 280)


def seen(tab):
    return [np.array(one, np.uint8) for one in tab.js("prepared().map(x => [...x])")]


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def drop(tab, data):
    packed = base64.b64encode(data).decode()
    tab.js(f"openPicture(new File([fromBase64('{packed}')], 'a.png'))")
    tab.frame()
